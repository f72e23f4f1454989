// Keeps the page live: asks every few seconds for the part that changes, and only takes it if it has changed.
"use strict";
(() => {
  const EVERY_MS = 5000;
  const live = document.getElementById("live");
  const state = document.getElementById("live-state");
  const dialog = document.getElementById("dialog");
  let etag = live.dataset.etag;
  let asking = false;
  let lost = null;

  // --- ages -------------------------------------------------------------------------------------

  const words = (seconds) => {
    const s = Math.max(0, Math.round(seconds));
    if (s < 60) return `${s} s`;
    if (s < 3600) return `${Math.floor(s / 60)} min`;
    if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
    return `${Math.floor(s / 86400)} d`;
  };

  const tick = () => {
    const now = Date.now();
    for (const each of document.querySelectorAll("time[data-ago], time[data-until]")) {
      const at = Date.parse(each.dateTime);
      const text = "ago" in each.dataset
        ? words((now - at) / 1000)
        : at > now ? words((at - now) / 1000) : "over";
      if (each.textContent !== text) each.textContent = text;
    }
  };

  // --- live -------------------------------------------------------------------------------------

  // What the browser has made of an element is not the server's to undo.
  Idiomorph.defaults.callbacks.beforeNodeMorphed = (old, fresh) => {
    if (old.nodeType !== Node.ELEMENT_NODE || fresh.nodeType !== Node.ELEMENT_NODE) return true;
    if (old.matches(".chart") && fresh.matches(".chart")) {
      old.dataset.chart = fresh.dataset.chart;
      old.setAttribute("aria-label", fresh.getAttribute("aria-label"));
      airbridgeChart.draw(old);
      return false;
    }
    if (old.matches("details[data-keep]")) fresh.toggleAttribute("open", old.open);
    return !(old.matches("time") && fresh.matches("time") && old.dateTime === fresh.dateTime);
  };

  const say = (text) => {
    state.hidden = !text;
    state.textContent = text;
  };

  const refresh = async () => {
    if (asking || document.hidden) return;
    asking = true;
    try {
      await htmx.ajax("GET", location.pathname + location.search, {
        source: live,
        target: live,
        swap: "morph:innerHTML",
        headers: { "If-None-Match": etag },
      });
    } catch { /* htmx has said so by an event */ } finally {
      asking = false;
    }
  };

  live.addEventListener("htmx:beforeSwap", (event) => {
    if (event.detail.xhr.status === 200) etag = event.detail.xhr.getResponseHeader("ETag") || "";
  });
  live.addEventListener("htmx:afterRequest", (event) => {
    const { status } = event.detail.xhr;
    if (status === 401) dispatchEvent(new Event("airbridge:signed-out"));
    const well = status === 200 || status === 304;
    if (well && lost) say("");
    if (!well && !lost) say(`Not live since ${new Date().toISOString().slice(11, 19)} UTC, trying again`);
    lost = well ? null : lost || Date.now();
  });
  live.addEventListener("htmx:afterSettle", tick);
  setInterval(refresh, EVERY_MS);
  setInterval(tick, 1000);
  addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });

  // --- filters ----------------------------------------------------------------------------------

  const form = document.querySelector("form[data-live-filter]");
  if (form) {
    let waiting;
    const apply = () => {
      const chosen = [...new FormData(form)].filter(([, value]) => value !== "");
      const query = new URLSearchParams(chosen).toString();
      history.replaceState(null, "", query ? `?${query}` : location.pathname);
      etag = "";
      refresh();
    };
    form.addEventListener("submit", (event) => { event.preventDefault(); apply(); });
    form.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(apply, 300); });
  }

  addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input, textarea, select, [contenteditable]");
    if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const search = document.querySelector("[data-search]");
    if (search) { event.preventDefault(); search.focus(); search.select(); }
  });

  // --- orders -----------------------------------------------------------------------------------

  addEventListener("click", async (event) => {
    const opener = event.target.closest?.("a[data-dialog]");
    if (opener && !event.ctrlKey && !event.metaKey && !event.shiftKey && event.button === 0) {
      event.preventDefault();
      const answer = await fetch(opener.href, { headers: { "HX-Request": "true" } });
      if (!answer.ok) { location.assign(opener.href); return; }
      dialog.innerHTML = await answer.text();
      dialog.showModal();
      dialog.querySelector("textarea").focus();
      return;
    }
    if (event.target.closest?.("dialog [data-close]")) { event.preventDefault(); dialog.close(); }
  });

  airbridgeChart.all();
  tick();
})();
