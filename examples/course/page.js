"use strict";
// The page's frame. A section registers a view; its link is #name, or #name=2&event=31 with values.
//
//   course.view("levels", { title: "You are the kernel", show(main, values) { .. }, keys: { r: [run, "restart"] } })
//   course.data("levels")          the section's JSON
//   course.say(text)               tells readers of the screen
//   course.link({ levels: 2 })     shows that place; course.replace changes the address alone;
//                                  course.show begins anew there
//   course.keep(key, value), course.kept(key), course.forget()     progress
//   course.legend()                what the signs mean, for the list of keys
//   course.element("button", { class: "plain", click: run }, ...children)
//   course.words(text), course.paragraphs(text)   text with `code` and *emphasis*
const course = (() => {
  const views = [], parsed = new Map();
  const $ = (id) => document.getElementById(id);
  const say = (text) => { $("live").textContent = text; };

  function data(name) {
    if (!parsed.has(name)) parsed.set(name, JSON.parse($(`data-${name}`).textContent));
    return parsed.get(name);
  }

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (typeof value === "function") made.addEventListener(name.replace(/^on/, ""), value);
      else if (value !== false && value != null) made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children);
    return made;
  }

  // Plain text, `code`, *emphasis*. A link to an item, [`x`], is code.
  function words(text) {
    const into = document.createDocumentFragment();
    let from = 0;
    for (const found of text.matchAll(/\[?`([^`]+)`\]?|\*([^*\s][^*]*)\*/g)) {
      into.append(text.slice(from, found.index), found[1] ? element("code", {}, found[1]) : element("em", {}, found[2]));
      from = found.index + found[0].length;
    }
    into.append(text.slice(from));
    return into;
  }

  function paragraphs(text) {
    const into = document.createDocumentFragment();
    for (const paragraph of text.split("\n").filter(Boolean)) {
      if (!paragraph.startsWith("- ")) into.append(element("p", {}, words(paragraph)));
      else {
        if (into.lastChild?.tagName !== "UL") into.append(element("ul"));
        into.lastChild.append(element("li", {}, words(paragraph.slice(2))));
      }
    }
    return into;
  }

  const values = () => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const hash = (values) => `#${new URLSearchParams(values)}`;
  const link = (values) => { location.hash = hash(values); };
  // Not at each step of a series: browsers refuse too many changes.
  let pending = 0;
  function replace(values) {
    const before = location.hash;
    clearTimeout(pending);
    pending = setTimeout(() => {
      if (location.hash !== before) return;
      try { history.replaceState(null, "", hash(values)); } catch { /* some browsers refuse that for a file */ }
    }, 200);
  }

  let memory = {};
  try { memory = JSON.parse(localStorage.getItem("coralio-course")) ?? {}; } catch { /* no storage */ }
  const kept = (key) => memory[key];
  function keep(key, value) {
    memory[key] = value;
    try { localStorage.setItem("coralio-course", JSON.stringify(memory)); } catch { /* for this visit only */ }
  }

  function forget() {
    Object.keys(memory).forEach((key) => { delete memory[key]; });
    keep("forgotten", undefined);
  }

  let current = null;
  // Shows a place, also if it is this one.
  function show(values) {
    if (location.hash === hash(values)) route();
    else link(values);
  }

  function route() {
    if (location.hash === "#main") return $("main").focus();
    $("keys").close();
    const lost = $("main").contains(document.activeElement);
    const wanted = values();
    current = views.find((view) => view.name in wanted) ?? views[0];
    for (const link of $("sections").children) {
      if (link.hash === `#${current.name}`) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    $("main").replaceChildren();
    current.show($("main"), wanted);
    if (lost) $("main").focus({ preventScroll: true });
    document.title = `${$("main").querySelector("h1, h2")?.textContent ?? current.title} - Coralio`;
  }

  // A view without a title has no link of its own.
  function view(name, it) {
    views.push({ name, ...it });
    if (it.title) $("sections").append(element("a", { href: `#${name}` }, it.title));
  }

  function help() {
    const list = element("dl");
    const keys = Object.entries({ ...current.keys, "?": [help, "this list"] });
    const digits = keys.filter(([key]) => /\d/.test(key)).length;
    for (const [key, [, what]] of keys.filter(([key]) => !/[2-9]/.test(key))) {
      const name = key === "1" ? `1 .. ${digits}` : { ArrowRight: "→", ArrowLeft: "←", ArrowUp: "↑", ArrowDown: "↓" }[key] ?? key;
      list.append(element("dt", {}, element("kbd", {}, name)), element("dd", {}, what));
    }
    const close = element("button", { class: "close", autofocus: true, onclick: () => $("keys").close() }, "Close");
    $("keys").replaceChildren(close, element("h2", {}, "Keys"), list, ...course.legend());
    $("keys").showModal();
  }

  // Whether the pane that has the focus needs this key to scroll.
  function scrolls({ key, target }) {
    const pane = target.closest?.("[tabindex='0']:not(button)");
    if (/^Arrow(Left|Right)$/.test(key)) return Boolean(pane) && pane.scrollWidth > pane.clientWidth;
    return /^(Arrow|Home|End|Page)/.test(key) && Boolean(pane) && pane.scrollHeight > pane.clientHeight;
  }

  function start() {
    addEventListener("hashchange", route);
    $("help").onclick = help;
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey || $("keys").open) return;
      if (event.target.closest?.("input:not([type=checkbox]), textarea, select") || scrolls(event)) return;
      const key = event.key === "?" ? [help] : current.keys?.[event.key];
      if (key) {
        event.preventDefault();
        key[0]();
      }
    });
    route();
  }
  return { view, data, say, element, words, paragraphs, values, link, show, replace, keep, kept, forget, start };
})();
