// Exchanges the token of Airflow's UI for a session of the dashboard's, or goes to Airflow's login and comes back.
"use strict";
(async () => {
  const main = document.querySelector("main");
  const { root, airflow, login, key, cookie } = main.dataset;
  const kept = "airbridge.next";
  const asked = new URLSearchParams(location.search).get("next");
  if (asked) sessionStorage.setItem(kept, asked);

  const fromCookie = () =>
    document.cookie.split("; ").find((each) => each.startsWith(`${cookie}=`))?.slice(cookie.length + 1);
  const token = () => fromCookie() || localStorage.getItem(key);

  // Only a path below the dashboard: whoever made the link must not choose where a signed-in user lands.
  const target = () => {
    const url = new URL(sessionStorage.getItem(kept) || `${root}/`, location.origin);
    const inside = url.origin === location.origin && url.pathname.startsWith(`${root}/`);
    return inside && url.pathname !== `${root}/signin` ? url.pathname + url.search : `${root}/`;
  };

  const exchange = async (given) => {
    const answer = await fetch(`${root}/session`, {
      method: "POST",
      headers: { Authorization: `Bearer ${given}` },
    });
    if (answer.ok) {
      const next = target();
      sessionStorage.removeItem(kept);
      location.replace(next);
    }
    return answer.status;
  };

  const say = (text) => { document.getElementById("message").textContent = text; };

  // Some auth managers sign in without asking: try that before leaving the page.
  const silently = async () => {
    try { await fetch(login, { redirect: "manual" }); } catch { /* the login page will say what is wrong */ }
    return fromCookie();
  };

  try {
    let status = 401;
    const had = token();
    if (had) status = await exchange(had);
    if (status === 401) {
      const fresh = await silently();
      if (fresh && fresh !== had) status = await exchange(fresh);
    }
    if (status === 200) return;
    if (status === 403) {
      say("Your Airflow role does not let you see the platform's activity.");
    } else if (status === 401) {
      const back = encodeURIComponent(`${location.origin}${root}/signin`);
      location.replace(`${airflow}/api/v2/auth/login?next=${back}`);
      return;
    } else {
      say(`Airflow answered ${status}. Try again in a moment.`);
    }
  } catch {
    say("Airflow does not answer. Try again in a moment.");
  }
  document.getElementById("login").hidden = false;
})();
