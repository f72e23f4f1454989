// The one chart: work ended per minute, a line for each region. The data stands in the element's attribute.
"use strict";
window.airbridgeChart = (() => {
  const plots = new WeakMap();
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const series = (names) => names.map((label, number) => ({
    label,
    stroke: css(`--line-${number % 6}`),
    width: 1.75,
    dash: number >= 6 ? [4, 3] : undefined,
    points: { show: false },
  }));

  const axis = (extra) => ({
    stroke: css("--muted"),
    font: "11px system-ui, sans-serif",
    grid: { stroke: css("--rule"), width: 1 },
    ticks: { show: false },
    ...extra,
  });

  const draw = (element) => {
    const { minutes, regions } = JSON.parse(element.dataset.chart);
    const names = Object.keys(regions);
    const data = [minutes, ...names.map((name) => regions[name])];
    const known = plots.get(element);
    if (known && known.names === names.join()) {
      known.plot.setData(data);
      return;
    }
    known?.plot.destroy();
    const plot = new uPlot({
      width: Math.max(element.clientWidth, 200),
      height: 180,
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "UTC"),
      cursor: { drag: { x: false, y: false } },
      scales: { y: { range: (_, __, most) => [0, Math.max(most * 1.1, 4)] } },
      axes: [
        axis({ space: 70, values: (_, ticks) => ticks.map((at) => new Date(at * 1000).toISOString().slice(11, 16)) }),
        axis({ size: 40, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000] }),
      ],
      series: [{ value: (_, at) => (at ? `${new Date(at * 1000).toISOString().slice(11, 16)} UTC` : "–") }, ...series(names)],
    }, data, element);
    plots.set(element, { plot, names: names.join() });
  };

  const all = () => document.querySelectorAll(".chart[data-chart]");
  const redraw = () => all().forEach((element) => {
    plots.get(element)?.plot.destroy();
    plots.delete(element);
    draw(element);
  });

  new ResizeObserver(() => all().forEach((element) => {
    const known = plots.get(element);
    if (known && element.clientWidth > 0) known.plot.setSize({ width: element.clientWidth, height: 180 });
  })).observe(document.documentElement);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  return { draw, all: () => all().forEach(draw) };
})();
