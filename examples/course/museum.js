// The museum: the table, and the exhibits.
(() => {
  const { element } = course;
  const { matrix, exhibits, files } = course.data("museum");
  exhibits.forEach((exhibit, at) => Object.assign(exhibit, {
    id: `museum/${at + 1}`, title: `Exhibit ${at + 1} (${exhibit.rule}, ${exhibit.when}): ${exhibit.what}`,
    text: `The production engine with one guard removed. The workload: ${exhibit.workload}.`, files,
  }));
  course.view("museum", {
    title: "Museum", keys: lessons.keys,
    show(main, values) {
      lessons.stop();
      const at = Number(values.museum) - 1, exhibit = exhibits[at];
      if (exhibit) {
        const links = [at - 1, at + 1].filter((n) => exhibits[n]).map((n) => ({ values: { museum: n + 1 }, title: `Exhibit ${n + 1}` }));
        return lessons.show(main, exhibit, { museum: at + 1 }, values, { links: [{ values: { museum: "" }, title: "The museum" }, ...links] });
      }
      main.append(element("h1", {}, "The museum of engine bugs"),
        element("p", {}, "Each exhibit is the production engine with one guard removed: most as it once was in the field. The table shows which version fails which workload."),
        element("pre", { tabindex: 0, "aria-label": "table" }, matrix),
        element("ol", { class: "cards" }, ...exhibits.map((exhibit, at) => element("li", {},
          element("a", { href: lessons.href({ museum: at + 1 }) }, element("b", {}, `${at + 1}. ${exhibit.rule}, ${exhibit.when}`),
            element("p", {}, exhibit.what), element("small", {}, exhibit.workload))))));
    },
  });
})();
