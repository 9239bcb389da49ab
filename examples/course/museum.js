// The museum: the table, and the exhibits.
(() => {
  const { element } = course;
  const { matrix, exhibits, files } = course.data("museum");

  // The table as text has parts with headings, and each row of its first part ends with the cells.
  const [grid, ...parts] = matrix.split("\n\n").map((part) => part.split("\n").filter((line) => line.trim()));
  const workloads = grid[0].trim().split(/\s+/);
  const cells = grid.slice(1).map((row) => row.trim().split(/\s+/).slice(-workloads.length));
  const meanings = (heading) => new Map(parts.find(([first]) => first.startsWith(heading)).slice(1)
    .map((line) => line.trim().match(/^(\S+)\s+(.*)$/).slice(1)));
  const tests = meanings("The workloads"), outcomes = meanings("The outcomes");

  exhibits.forEach((exhibit, at) => {
    const word = cells[at][[...tests.values()].indexOf(exhibit.workload)];
    Object.assign(exhibit, {
      id: `museum/${at + 1}`, title: `Exhibit ${at + 1} (${exhibit.when}): ${exhibit.what}`,
      text: `${exhibit.explanation}\nThis is the production engine with one guard removed. The workload: ${exhibit.workload}. In the museum's table it is *${word}*: ${outcomes.get(word)}.`,
      files,
    });
  });

  function table() {
    const head = element("tr", {}, element("th", { scope: "col" }, "version"),
      ...workloads.map((name) => element("th", { scope: "col", title: tests.get(name) }, name)));
    const rows = cells.map((row, at) => {
      const exhibit = exhibits[at];
      const name = exhibit ? element("a", { href: lessons.href({ museum: at + 1 }), title: exhibit.what }, `${at + 1}. ${exhibit.when}`) : "today";
      return element("tr", {}, element("th", { scope: "row" }, name), ...row.map((word) =>
        element("td", { class: word === "·" ? "" : "bad", title: outcomes.get(word) }, word === "·" ? element("span", { "aria-label": "passes" }, "·") : word)));
    });
    return element("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "table" },
      element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)));
  }

  const explained = (title, meanings) => element("details", {}, element("summary", {}, title), element("dl", { class: "terms" },
    ...[...meanings].flatMap(([name, what]) => [element("dt", {}, name), element("dd", {}, what)])));

  let shown = 0;
  const turn = (by) => () => { if (exhibits[shown + by - 1]) course.link({ museum: shown + by }); };
  course.view("museum", {
    title: "Museum",
    keys: { ...lessons.keys, "]": [turn(1), "next exhibit"], "[": [turn(-1), "previous exhibit"] },
    show(main, values) {
      lessons.stop();
      const at = Number(values.museum) - 1, exhibit = exhibits[at];
      shown = exhibit ? at + 1 : 0;
      if (exhibit) {
        const links = [at - 1, at + 1].filter((n) => exhibits[n]).map((n) => ({ values: { museum: n + 1 }, title: `Exhibit ${n + 1}` }));
        return lessons.show(main, exhibit, { museum: at + 1 }, values, { links: [{ values: { museum: "" }, title: "The museum" }, ...links] });
      }
      main.append(element("h1", {}, "The museum of engine bugs"),
        element("p", {}, "Each exhibit is the production engine with one guard removed: most as it once was in the field. The table shows which version fails which workload, and how."),
        table(), explained("What the outcomes mean", outcomes), explained("What the workloads are", tests),
        element("ol", { class: "cards" }, ...exhibits.map((exhibit, at) => element("li", {},
          element("a", { href: lessons.href({ museum: at + 1 }) }, element("b", {}, `${at + 1}. ${exhibit.when}: ${exhibit.what}`),
            element("p", {}, exhibit.explanation))))));
    },
  });
})();
