"use strict";
// Shows source files in `root`, and marks the lines at which stacks stand.
//
//   const pane = codePane(root, [{ path, text }])
//   pane.show([{ file, line, label, colour, now }])    file: its place in the list; now: this line's turn
function codePane(root, files) {
  const make = (tag, css, text = "") => Object.assign(document.createElement(tag), { className: css, textContent: text });
  const tabs = make("div", "tabs"), body = make("div", "code");
  Object.assign(body, { tabIndex: 0, role: "region", ariaLabel: "source" });
  root.classList.add("codepane");
  root.replaceChildren(tabs, body);

  // Comments, strings, words and numbers.
  const parts = /(\/\/.*)|("(?:[^"\\]|\\.)*"?)|\b(as|async|await|break|const|continue|crate|dyn|else|enum|extern|fn|for|if|impl|in|let|loop|match|mod|move|mut|pub|ref|return|self|Self|static|struct|super|trait|type|unsafe|use|where|while|true|false)\b|\b(\d[\d_]*\w*)/g;
  function paint(into, text) {
    let from = 0;
    for (const found of text.matchAll(parts)) {
      into.append(text.slice(from, found.index));
      const css = found[1] ? (/^\/\/[/!]/.test(found[1]) ? "comment doc" : "comment") : found[2] ? "string" : found[3] ? "keyword" : "number";
      into.append(make("span", css, found[0]));
      from = found.index + found[0].length;
    }
    into.append(text.slice(from));
  }

  let marked = [];
  const pages = files.map(({ path, text }, place) => {
    const tab = make("button", "tab", path), page = make("div", "file");
    tab.onclick = () => open(place);
    tabs.append(tab);
    const lines = text.replace(/\n$/, "").split("\n").map((text, number) => {
      const line = make("div", "line"), code = make("code", "text");
      paint(code, text);
      line.append(make("span", "n", `${number + 1}`), code);
      page.append(line);
      return line;
    });
    return { tab, page, lines };
  });

  let opened = -1;
  function open(place) {
    if (place === opened || !pages[place]) return;
    opened = place;
    pages.forEach(({ tab }, n) => tab.setAttribute("aria-pressed", n === place));
    body.replaceChildren(pages[place].page);
    body.scrollTop = 0;
  }

  function clear() {
    for (const line of marked) {
      line.classList.remove("here", "now");
      line.querySelector(".marks")?.remove();
      line.style.removeProperty("--mark");
    }
    marked = [];
  }

  // Scrolls this pane alone, if the line is not well in sight.
  function reveal(line) {
    const top = line.offsetTop, room = body.clientHeight;
    if (top < body.scrollTop + 30 || top + line.offsetHeight > body.scrollTop + room - 30) body.scrollTop = top - room * 0.4;
  }

  function show(marks) {
    clear();
    for (const { file, line, label, colour, now } of marks) {
      const row = pages[file]?.lines[line - 1];
      if (!row) continue;
      marked.push(row);
      row.classList.add("here");
      if (now || !row.style.getPropertyValue("--mark")) row.style.setProperty("--mark", colour);
      if (now) row.classList.add("now");
      let labels = row.querySelector(".marks");
      if (!labels) row.append(labels = make("span", "marks"));
      const chip = make("span", "mark", label);
      chip.style.setProperty("--mark", colour);
      labels.append(chip);
    }
    const now = marks.find((mark) => mark.now) ?? marks[0];
    if (!now) return;
    open(now.file);
    const row = pages[now.file]?.lines[now.line - 1];
    if (row) reveal(row);
  }
  open(0);
  return { show, open };
}
