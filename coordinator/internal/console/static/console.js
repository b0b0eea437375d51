// Shows changes as they come: at each event of the server the page is fetched again, and
// the <main> that is shown is made like the new one. Pages with forms are left alone.
(() => {
  "use strict";
  const main = document.querySelector("main[data-live]");
  const link = document.getElementById("link");
  const said = document.getElementById("said");
  if (!main || !link || !window.EventSource) return;
  const retry = 5000; // ms
  let source, fetching = false, again = false, lost = false;

  // connected tells whether what is shown is of now: who acts on it must know.
  function connected(is) {
    if (is === !lost && !link.hidden) return;
    lost = !is;
    link.hidden = false;
    link.className = "link " + (is ? "ok" : "bad");
    link.textContent = is ? "● live" : "✕ No news since " + new Date().toISOString().slice(11, 19) + " UTC: what you see may be old";
  }

  const key = (e) => e.id || (e.getAttribute && e.getAttribute("aria-labelledby")) || "";

  // morph makes a node that is shown like a new one, and leaves what is equal: what has
  // the focus, is selected or is being pressed stays.
  function morph(shown, fresh) {
    if (shown.nodeType !== Node.ELEMENT_NODE) {
      if (shown.data !== fresh.data) shown.data = fresh.data;
      return;
    }
    for (const { name } of [...shown.attributes]) {
      if (!fresh.hasAttribute(name) && !(name === "open" && shown.nodeName === "DETAILS")) shown.removeAttribute(name);
    }
    for (const { name, value } of fresh.attributes) {
      if (shown.getAttribute(name) !== value) shown.setAttribute(name, value);
    }
    const had = [...shown.childNodes];
    let at = shown.firstChild;
    for (const child of [...fresh.childNodes]) {
      const i = had.findIndex((e) => e.nodeName === child.nodeName && key(e) === key(child));
      if (i < 0) { shown.insertBefore(child, at); continue; }
      const [same] = had.splice(i, 1);
      if (same === at) at = at.nextSibling; else shown.insertBefore(same, at);
      morph(same, child);
    }
    for (const e of had) e.remove();
  }

  function words() {
    return [...main.querySelectorAll("[data-say]")].map((e) => e.textContent.trim()).join(" ");
  }

  function swap(text) {
    const page = new DOMParser().parseFromString(text, "text/html");
    const fresh = page.querySelector("main[data-live]");
    if (!fresh) { location.reload(); return; }
    if (main.querySelector("input:focus, select:focus, textarea:focus")) return;
    const before = words();
    const focus = document.activeElement;
    morph(main, fresh);
    if (focus.isConnected && focus !== document.activeElement) focus.focus({ preventScroll: true }); // it was moved
    document.title = page.title;
    const after = words();
    if (after !== before) said.textContent = after;
  }

  async function look() {
    if (document.hidden || fetching) { again = true; return; }
    fetching = true;
    again = false;
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      if (answer.redirected || answer.status === 404) { location.reload(); return; }
      if (!answer.ok) throw new Error(answer.status);
      swap(await answer.text());
      connected(true);
    } catch {
      connected(false);
    } finally {
      fetching = false;
    }
    if (again && !document.hidden) look();
  }

  function listen() {
    source = new EventSource("/events");
    source.addEventListener("change", look);
    source.addEventListener("end", () => { source.close(); location.reload(); });
    source.onerror = () => {
      connected(false);
      // What the server refuses the browser does not try again; the page may tell why.
      if (source.readyState === EventSource.CLOSED) setTimeout(() => { look(); listen(); }, retry);
    };
  }

  document.addEventListener("visibilitychange", () => { if (!document.hidden && again) look(); });
  addEventListener("pagehide", () => source.close());
  addEventListener("pageshow", (e) => { if (e.persisted) { listen(); } });
  listen();
})();
