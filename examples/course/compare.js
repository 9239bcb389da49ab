// Two acts side by side, aligned at their first difference. Has no link of its own: lessons lead here.
// An act is given by its number, or as `10.6`: act 6 of lesson 10.
(() => {
  // What belongs together, by lesson: parts of the titles of two acts, and the lesson of the second.
  const PAIRS = {
    9: ["A, X and Y", 10, "A, X and Y"], 11: ["both completions", 11, "one completion at a time"], 16: ["The puzzle", 16, "The fix"],
  };
  const { element } = course;

  // The acts to choose from, as [lesson, act, its title].
  function choices(whole, number, isExhibit) {
    const of = (lesson, of) => lesson.acts.map((act, n) => ({
      act, place: isExhibit ? { museum: of, act: n + 1 } : { lesson: of, act: n + 1 }, key: of === number ? `${n + 1}` : `${of}.${n + 1}`,
      title: of === number ? `${n + 1}. ${act.title}` : `Lesson ${of}: ${act.title}`,
    }));
    const other = !isExhibit && PAIRS[number]?.[1];
    return [...of(whole, number), ...(other && other !== number ? of(lessons.list[other - 1], other) : [])];
  }

  // The pair to begin with: the one above, or the last act that ends well, and the last one before it that fails.
  function pair(list, number, isExhibit) {
    const [bug, of, fix] = (!isExhibit && PAIRS[number]) || [];
    if (bug) return [list.findIndex(({ act }) => act.title.includes(bug)), list.findLastIndex(({ act, place }) => place.lesson === of && act.title.includes(fix))];
    const better = list.findLastIndex(({ act }) => !act.failure);
    const before = list.findLastIndex(({ act }, n) => n < better && act.failure);
    const failing = before >= 0 ? before : Math.max(0, list.findIndex(({ act }) => act.failure));
    return [failing, better >= 0 && better !== failing ? better : list.length - 1];
  }

  function show(main, values) {
    lessons.stop();
    const isExhibit = values.compare.startsWith("m"), number = Number(values.compare.replace("m", ""));
    const whole = isExhibit ? course.data("museum").exhibits[number - 1] : lessons.list[number - 1];
    if (!whole) return main.append(element("p", {}, "There is no such lesson."));
    const list = choices(whole, number, isExhibit), first = pair(list, number, isExhibit);
    const [left, right] = [values.left, values.right].map((wanted, n) => {
      const found = list.findIndex(({ key }) => key === wanted);
      return found >= 0 ? found : Math.max(0, first[n]);
    });
    const acts = list.map(({ act }) => act);
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
        const chosen = [left, right].map((old, n) => list[n === mine ? choice.selectedIndex : old].key);
        course.link({ compare: values.compare, left: chosen[0], right: chosen[1] });
      } }, ...list.map(({ title }, n) => element("option", { selected: n === at }, title)));
      const wide = Math.max(...act.steps.map((step) => step[1].length), act.heading.length) + 2;
      const rows = act.steps.map((step, n) => element("li", { class: `${n < same ? "same" : n === same ? "first" : ""} ${step[5]}` },
        element("span", { class: "faint" }, `${step[0].padStart(3)}  `), element("span", { class: "picture", "aria-hidden": true }, step[1].padEnd(wide)),
        " ".repeat(step[3]), element("a", { href: lessons.href({ ...list[at].place, event: step[0] }) }, step[2])));
      return element("section", { "aria-label": act.title }, element("p", { class: "picked" }, choice),
        element("ol", { tabindex: 0, "aria-label": "events" }, element("li", { class: "faint", "aria-hidden": true }, "     " + act.heading), ...rows),
        element("p", { class: `outcome ${act.failure ? "bad" : "good"}` }, act.failure ? `Fails: ${act.failure}` : "Ends well."));
    };
    main.append(element("div", { class: "compare" }, side(left, 0), side(right, 1)),
      element("p", { class: "pager" }, element("a", { href: lessons.href(list[left].place) }, "Back")));
  }

  course.view("compare", { keys: lessons.keys, show });
})();
