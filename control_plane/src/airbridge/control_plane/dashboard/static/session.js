// Leaving Airflow leaves the dashboard: the session ends with the sign-in it was made from.
"use strict";
(() => {
  const root = document.querySelector('meta[name="airbridge-root"]').content;
  const subject = document.querySelector('meta[name="airbridge-subject"]').content;
  const token = () =>
    localStorage.getItem("token") ||
    document.cookie.split("; ").find((each) => each.startsWith("_token="))?.slice("_token=".length);

  const subjectOf = (given) => {
    try {
      const part = given.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
      return String(JSON.parse(atob(part)).sub);
    } catch {
      return undefined;
    }
  };

  const signIn = () => {
    const next = encodeURIComponent(location.pathname + location.search);
    location.replace(`${root}/signin?next=${next}`);
  };

  const check = async () => {
    const given = token();
    if (given && subjectOf(given) === subject) return;
    await fetch(`${root}/session/end`, { method: "POST" });
    signIn();
  };

  addEventListener("storage", (event) => {
    if (event.key === "token" || event.key === null) check();
  });
  addEventListener("airbridge:signed-out", signIn);
  check();
})();
