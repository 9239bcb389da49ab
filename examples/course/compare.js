// Two acts side by side, aligned at their first difference. Has no link of its own: lessons lead here.
course.view("compare", {
  keys: lessons.keys,
  show(main, values) {
    const { element } = course;
    lessons.stop();
    const isExhibit = values.compare.startsWith("m"), number = Number(values.compare.replace("m", ""));
    const place = isExhibit ? { museum: number } : { lesson: number };
    const whole = isExhibit ? course.data("museum").exhibits[number - 1] : lessons.list[number - 1];
    if (!whole) return main.append(element("p", {}, "There is no such lesson."));
    const acts = whole.acts, better = acts.findLastIndex((act) => !act.failure);
    // The last act that ends well, and the last one before it that fails.
    const before = acts.findLastIndex((act, n) => n < better && act.failure);
    const failing = before >= 0 ? before : Math.max(0, acts.findIndex((act) => act.failure));
    const pick = (value, other) => { const at = Number(value) - 1; return acts[at] ? at : other; };
    const left = pick(values.left, failing), right = pick(values.right, better >= 0 && better !== failing ? better : acts.length - 1);
    const text = (step) => step[2], steps = [left, right].map((at) => acts[at].steps);
    let same = 0;
    while (same < Math.min(steps[0].length, steps[1].length) && text(steps[0][same]) === text(steps[1][same])) same += 1;

    main.append(element("h1", {}, `Compare: ${whole.title}`),
      element("p", {}, same < Math.max(steps[0].length, steps[1].length)
        ? `The first ${same} events are the same; the first difference is marked. A click on an event shows it with its code.`
        : "Both show the same events."));
    const side = (at, mine) => {
      const act = acts[at];
      const choice = element("select", { "aria-label": "act", onchange: () => {
        const chosen = [left, right].map((old, n) => (n === mine ? choice.selectedIndex : old) + 1);
        course.link({ compare: values.compare, left: chosen[0], right: chosen[1] });
      } }, ...acts.map((act, n) => element("option", { selected: n === at }, `${n + 1}. ${act.title}`)));
      const wide = Math.max(...act.steps.map((step) => step[1].length), act.heading.length) + 2;
      const rows = act.steps.map((step, n) => element("li", { class: `${n < same ? "same" : n === same ? "first" : ""} ${step[5]}` },
        element("span", { class: "faint" }, `${step[0].padStart(3)}  `), element("span", { "aria-hidden": true }, step[1].padEnd(wide)),
        " ".repeat(step[3]), element("a", { href: lessons.href({ ...place, act: at + 1, event: step[0] }) }, step[2])));
      return element("section", { "aria-label": act.title }, element("p", { class: "picked" }, choice),
        element("ol", { tabindex: 0, "aria-label": "events" }, element("li", { class: "faint", "aria-hidden": true }, "     " + act.heading), ...rows),
        element("p", { class: `outcome ${act.failure ? "bad" : "good"}` }, act.failure ? `Fails: ${act.failure}` : "Ends well."));
    };
    main.append(element("div", { class: "compare" }, side(left, 0), side(right, 1)),
      element("p", { class: "pager" }, element("a", { href: lessons.href({ ...place, act: left + 1 }) }, "Back")));
  },
});
