// The texts to read besides the lessons, and the legend of the pictures.
(() => {
  const { element } = course;
  const { legend, texts } = course.data("read");

  // Where a link of these texts leads within this page, if anywhere.
  function place(target) {
    const lesson = target.match(/^(?:\.\.\/)?(\d\d)_\w+\//), text = texts.find(({ path }) => path.endsWith(target));
    if (lesson) return { lesson: Number(lesson[1]) };
    if (text) return { read: text.id };
    return /museum\/main\.rs$/.test(target) ? { museum: "" } : null;
  }

  function inline(text) {
    const into = document.createDocumentFragment();
    let from = 0;
    for (const found of text.matchAll(/\[([^\]]+)\]\(([^)]+)\)/g)) {
      const [whole, name, target] = found, to = place(target);
      into.append(course.words(text.slice(from, found.index)));
      into.append(to ? element("a", { href: lessons.href(to) }, course.words(name)) : course.words(name));
      from = found.index + whole.length;
    }
    into.append(course.words(text.slice(from)));
    return into;
  }

  function table(lines) {
    const cells = (line) => line.replace(/^\||\|$/g, "").split("|").map((cell) => inline(cell.trim()));
    const row = (line, tag) => element("tr", {}, ...cells(line).map((cell) => element(tag, {}, cell)));
    const head = /[^|\s]/.test(lines[0]) ? [element("thead", {}, row(lines[0], "th"))] : [];
    return element("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "table" },
      element("table", {}, ...head, element("tbody", {}, ...lines.slice(2).map((line) => row(line, "td")))));
  }

  // Markdown, as far as these texts use it.
  function markdown(text) {
    const into = document.createDocumentFragment();
    const parts = text.split(/(```[^]*?```)/).flatMap((part) => (part.startsWith("```") ? [part] : part.split(/\n{2,}/)));
    for (const part of parts.map((part) => part.replace(/^\n+|\n+$/g, "")).filter(Boolean)) {
      const lines = part.split("\n"), heading = part.match(/^(#+) (.*)/);
      if (part.startsWith("```")) into.append(element("pre", { tabindex: 0 }, lines.slice(1, -1).join("\n")));
      else if (heading) into.append(element(heading[1].length > 1 ? "h2" : "h1", {}, inline(heading[2])));
      else if (part.startsWith("|")) into.append(table(lines));
      else if (part.startsWith("- ")) into.append(element("ul", {}, ...part.split(/^- /m).filter(Boolean).map((item) => element("li", {}, inline(item)))));
      else into.append(element("p", {}, inline(part)));
    }
    return into;
  }

  // For the list of keys: the first table alone.
  course.legend = () => [element("h2", {}, "Signs"), table(legend.split("\n\n").find((part) => part.startsWith("|")).split("\n")),
    element("p", {}, element("a", { href: lessons.href({ read: "pictures" }) }, "How to read a picture"))];

  course.view("read", {
    title: "Read on",
    show(main, values) {
      const all = [{ id: "pictures", title: "How to read a picture", text: legend, what: "The signs, and terms that appear before their lesson." }, ...texts];
      const text = all.find(({ id }) => id === values.read);
      if (text) return main.append(element("article", { class: "text" }, markdown(text.text)), element("p", { class: "pager" }, element("a", { href: "#read" }, "Read on")));
      main.append(element("h1", {}, "Read on"), element("ol", { class: "cards" }, ...all.map(({ id, title, what }) =>
        element("li", {}, element("a", { href: lessons.href({ read: id }) }, element("b", {}, title), element("p", {}, what))))));
    },
  });
})();
