"use strict";
// The page's frame. A section registers a view; its link is #name, or #name=2&event=31 with values.
//
//   course.view("levels", { title: "You are the kernel", show(main, values) { .. }, keys: { r: [run, "restart"] } })
//   course.data("levels")          the section's JSON
//   course.say(text)               tells readers of the screen
//   course.link({ levels: 2 })     changes the link and shows that place; course.replace changes the link alone
//   course.keep(key, value), course.kept(key)     progress
//   course.element("button", { class: "plain" }, ...children)
const course = (() => {
  const views = [];
  const $ = (id) => document.getElementById(id);
  const data = (name) => JSON.parse($(`data-${name}`).textContent);
  const say = (text) => { $("live").textContent = text; };

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (typeof value === "function") made.addEventListener(name.replace(/^on/, ""), value);
      else if (value !== false && value != null) made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children);
    return made;
  }

  const values = () => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const hash = (values) => `#${new URLSearchParams(values)}`;
  const link = (values) => { location.hash = hash(values); };
  const replace = (values) => history.replaceState(null, "", hash(values));

  let memory = {};
  try { memory = JSON.parse(localStorage.getItem("coralio-course")) ?? {}; } catch { /* no storage */ }
  const kept = (key) => memory[key];
  function keep(key, value) {
    memory[key] = value;
    try { localStorage.setItem("coralio-course", JSON.stringify(memory)); } catch { /* for this visit only */ }
  }

  let current = null;
  function route() {
    const wanted = values();
    current = views.find((view) => view.name in wanted) ?? views[0];
    $("main").replaceChildren();
    current.show($("main"), wanted);
  }

  function view(name, it) {
    views.push({ name, ...it });
    $("sections").append(element("a", { href: `#${name}` }, it.title));
  }

  function start() {
    addEventListener("hashchange", route);
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey || event.target.closest?.("input, textarea, select")) return;
      const key = current.keys?.[event.key];
      if (key) {
        event.preventDefault();
        key[0]();
      }
    });
    route();
  }
  return { view, data, say, element, values, link, replace, keep, kept, start };
})();
