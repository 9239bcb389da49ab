"use strict";
// You are the kernel: a walk in a precomputed tree of runs. The data is described in tree.rs.
(() => {
  const { element } = course;
  const { texts, levels } = course.data("levels");
  const BUG = 0, GUARD = 1;

  // What the reader has done at the level that is shown.
  let level, side, path, hinted, sourceIsOpen = false;

  const version = () => level.versions[side];
  const rowsOf = (node) => node[0];
  const saidOf = (node) => texts[node[1]];
  const isEnd = (node) => typeof node[2] === "boolean";
  const failed = (node) => node[2] === true;
  const answers = (node) => {
    const list = [];
    for (let at = 0; at < node[2].length; at += 2) list.push({ label: texts[node[2][at]], to: node[2][at + 1] });
    return list;
  };
  const nodes = () => version().nodes;
  const here = () => nodes()[path[path.length - 1]];
  const won = (which) => Boolean(course.kept(`level-${which.id}`));

  // Tries are runs that came to their end.
  const triesKey = () => `tries-${level.id}`;
  const tries = () => course.kept(triesKey()) ?? 0;

  function count() {
    let ends = 0, bad = 0;
    const walk = (node) => {
      if (isEnd(node)) { ends++; bad += failed(node); }
      else answers(node).forEach(({ to }) => walk(nodes()[to]));
    };
    walk(nodes()[0]);
    return { ends, bad };
  }

  function verdict() {
    const { ends, bad } = count();
    const all = version().runs;
    const differ = all > ends ? ` ${ends} of them differ in what you see.` : "";
    if (side === GUARD && bad === 0) {
      return `None of the ${all} possible runs reaches the goal; all were run.${differ} You may walk in them all the same.`;
    }
    return `${all} runs are possible.${differ} ${bad} ${bad === 1 ? "reaches" : "reach"} the goal.`;
  }

  function start(which, wanted) {
    level = which;
    side = wanted;
    path = [0];
    hinted = false;
  }

  function choose(at) {
    if (isEnd(here())) return;
    const answer = answers(here())[at];
    if (!answer) return;
    path.push(answer.to);
    if (isEnd(here()) && side === BUG) {
      course.keep(triesKey(), tries() + 1);
      if (failed(here())) course.keep(`level-${level.id}`, true);
    }
    draw(`You chose: ${answer.label}`);
  }

  function undo() {
    if (path.length < 2) return;
    path.pop();
    draw("One step back");
  }

  function restart() {
    path = [0];
    draw("From the beginning");
  }

  function hint() {
    hinted = true;
    draw(`Hint: ${level.hint}`);
  }

  function turn(to) {
    if (to === side) return;
    start(level, to);
    draw(version().name);
  }

  const button = (text, click, more = {}) => element("button", { type: "button", click, ...more }, text);
  const key = (name) => element("kbd", { "aria-hidden": "true" }, name);

  function row(number, isNew) {
    const [picture, words] = texts[number].split("\t");
    const said = words.trim();
    const kind = /^(kernel|disk): /.test(said) ? " decision" : said.startsWith("VIOLATION") ? " broken" : "";
    return element("div", { class: `row${isNew ? " new" : ""}${kind}` },
      element("span", { class: "picture", "aria-hidden": "true" }, picture.padEnd(width() + 2)),
      element("span", { class: "words", style: `--depth: ${(words.length - said.length) / 2}` }, said));
  }

  const widths = new Map();
  function width() {
    const shown = version();
    if (!widths.has(shown)) {
      const pictures = shown.nodes.flatMap(rowsOf).map((row) => texts[row].indexOf("\t"));
      widths.set(shown, Math.max(shown.heading.length, ...pictures));
    }
    return widths.get(shown);
  }

  function lanes() {
    const last = path.length - 1;
    const rows = path.flatMap((node, at) => rowsOf(nodes()[node]).map((number) => row(number, at === last && last > 0)));
    return element("div", { class: "lanes", tabindex: "0", role: "group", "aria-label": "the run so far" },
      element("div", { class: "rows" },
        element("div", { class: "row heading", "aria-hidden": "true" }, version().heading), ...rows));
  }

  function outcome(node) {
    if (!failed(node)) {
      const then = side === BUG ? "Not the goal yet: undo a step, or start again." : "As every run does with the guard.";
      return element("div", { class: "outcome" }, element("p", {}, element("strong", {}, "Ends well. "), then));
    }
    const next = levels[levels.indexOf(level) + 1];
    return element("div", { class: "outcome won" },
      element("p", {}, element("strong", {}, "Goal reached. "), saidOf(node)),
      element("p", {}, level.why),
      element("p", {}, button("Now with the guard", () => turn(GUARD)), " ",
        next ? element("a", { href: `#levels=${next.id}` }, `Next level: ${next.title}`) : ""));
  }

  function decision() {
    const node = here();
    if (isEnd(node)) return outcome(node);
    return element("div", { class: "question" },
      element("p", { id: "question" }, saidOf(node)),
      element("div", { class: "answers", role: "group", "aria-labelledby": "question" },
        ...answers(node).map(({ label }, at) => button(label, () => choose(at), { class: "answer" }))));
  }

  function tabs() {
    const tab = (which) => element("button", {
      type: "button", role: "tab", id: `side-${which}`, "aria-selected": String(which === side), "aria-controls": "play",
      tabindex: which === side ? "0" : "-1", click: () => turn(which),
      keydown: (event) => {
        if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
        event.preventDefault();
        event.stopPropagation();
        turn(1 - side);
        document.getElementById(`side-${side}`).focus();
      },
    }, level.versions[which].name);
    return element("div", { class: "sides", role: "tablist", "aria-label": "with the bug, or with the guard" }, tab(BUG), tab(GUARD));
  }

  function tools() {
    return element("p", { class: "tools" },
      button("Undo", undo, { disabled: path.length < 2 }), key("u"),
      button("Restart", restart, { disabled: path.length < 2 }), key("r"),
      button("Hint", hint, { disabled: hinted || side === GUARD }), key("h"),
      element("span", { class: "tries" }, side === BUG ? `Tries: ${tries()}` : ""));
  }

  function list() {
    const link = (which) => element("li", {},
      element("a", { href: `#levels=${which.id}`, "aria-current": which === level ? "page" : null },
        `${which.lesson || "Museum"}. ${which.title}${won(which) ? " \u2713" : ""}`));
    return element("nav", { class: "levels", "aria-label": "levels, with the numbers of their lessons" },
      element("ul", {}, ...levels.map(link)));
  }

  let main;
  function draw(announced) {
    const inside = main.contains(document.activeElement) && document.activeElement.closest(".play, .tools");
    main.replaceChildren(
      element("p", { class: "role" }, "You are the kernel, the disk or the power: you decide what happens next, and try to break the program. ",
        "All runs are real ones of the engine that the lessons use."),
      list(),
      element("article", { class: "level" },
        element("h2", {}, level.title, " ", level.lesson
          ? element("a", { href: `#lesson=${level.lesson}` }, `lesson ${level.lesson}`)
          : element("a", { href: "#museum" }, "museum")),
        element("p", {}, level.program),
        element("details", { open: sourceIsOpen, toggle: (event) => { sourceIsOpen = event.target.open; } },
          element("summary", {}, "Its source"), element("pre", { tabindex: "0" }, level.source)),
        element("p", { class: "goal" }, element("strong", {}, "Goal: "), level.goal),
        tabs(),
        element("p", { class: side === GUARD ? "verdict guarded" : "verdict" }, verdict()),
        element("div", { id: "play", class: "play", role: "tabpanel", "aria-labelledby": `side-${side}` }, lanes(), decision()),
        tools(),
        hinted ? element("p", { class: "hint" }, element("strong", {}, "Hint: "), level.hint) : ""));
    const box = main.querySelector(".lanes");
    box.scrollTop = box.scrollHeight;
    const strip = main.querySelector(".levels ul");
    strip.scrollLeft = strip.querySelector("[aria-current]").offsetLeft - strip.offsetLeft - 40;
    if (announced) {
      const fresh = rowsOf(here()).map((number) => texts[number].split("\t")[1].trim());
      const end = failed(here()) ? `Goal reached. ${saidOf(here())}. ${level.why}` : "Ends well";
      const then = isEnd(here()) ? end : saidOf(here());
      course.say([announced, ...fresh, then].join(". "));
    }
    if (inside) (main.querySelector(".answer") ?? main.querySelector(".outcome button") ?? main.querySelector(".tools button")).focus();
  }

  const keys = { u: [undo, "undo a decision"], Backspace: [undo, "undo a decision"], r: [restart, "restart the level"], h: [hint, "hint"] };
  for (let digit = 1; digit <= 9; digit++) keys[digit] = [() => choose(digit - 1), `decide: answer ${digit}`];

  course.view("levels", {
    title: "You are the kernel",
    show(where, values) {
      main = where;
      const which = levels.find(({ id }) => id === values.levels) ?? levels.find((one) => !won(one)) ?? levels[0];
      start(which, values.guard === undefined ? BUG : GUARD);
      draw();
    },
    keys,
  });
})();
