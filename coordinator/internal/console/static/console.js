// Shows changes as they come: at each event of the server the page is fetched again, and
// its <main> takes the place of the one that is shown. Pages with forms are left alone.
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
    link.textContent = is ? "● live" : "✕ No connection since " + new Date().toISOString().slice(11, 19) + " UTC: what you see may be old";
  }

  // place finds an element again in a page that was made anew.
  function place(e) {
    if (!e || !main.contains(e)) return null;
    if (e.id) return () => document.getElementById(e.id);
    const tag = e.tagName, href = e.getAttribute("href");
    const same = () => [...main.querySelectorAll(tag)].filter((x) => x.getAttribute("href") === href);
    const at = same().indexOf(e);
    return () => same()[at];
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
    const focus = place(document.activeElement);
    const open = [...main.querySelectorAll("details[open]")].map(place);
    const x = scrollX, y = scrollY;
    main.replaceChildren(...fresh.childNodes);
    document.title = page.title;
    for (const find of open) { const e = find(); if (e) e.open = true; }
    if (focus) { const e = focus(); if (e) e.focus({ preventScroll: true }); }
    scrollTo({ left: x, top: y, behavior: "instant" });
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
