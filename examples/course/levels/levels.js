"use strict";
// You are the kernel: a walk in a precomputed tree of runs. The data is described in tree.rs.
(() => {
  const { element } = course;
  const { texts, levels } = course.data("levels");
  const BUG = 0, GUARD = 1;

  // What the reader has done at the level that is shown.
  let level, side, path, hinted, sourceIsOpen = false;
  // The places in the path to which no decision led: the goal was certain before.
  let certain;

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

  // The ends that can be reached from a node.
  function count(from) {
    let ends = 0, bad = 0;
    const walk = (node) => {
      if (isEnd(node)) { ends++; bad += failed(node); }
      else answers(node).forEach(({ to }) => walk(nodes()[to]));
    };
    walk(from);
    return { ends, bad };
  }

  function verdict() {
    const { ends, bad } = count(nodes()[0]);
    const all = version().runs;
    if (side === GUARD && bad === 0) {
      const alike = all > ends ? ` Some look the same: you can see ${ends} different ones.` : "";
      return `None of the ${all} possible runs reaches the goal; all were run.${alike} You may walk in them all the same.`;
    }
    const alike = all > ends ? ` (${all} were made; some of them look the same.)` : "";
    return `Your decisions lead to ${ends} different runs. ${bad} of them ${bad === 1 ? "reaches" : "reach"} the goal.${alike}`;
  }

  function start(which, wanted) {
    level = which;
    side = wanted;
    path = [0];
    certain = new Set();
    hinted = false;
  }

  function choose(at) {
    if (isEnd(here())) return;
    const answer = answers(here())[at];
    if (!answer) return;
    path.push(answer.to);
    if (side === BUG && !isEnd(here())) {
      const { ends, bad } = count(here());
      while (ends === bad && !isEnd(here())) {
        certain.add(path.length);
        path.push(answers(here())[0].to);
      }
    }
    if (isEnd(here()) && side === BUG) {
      course.keep(triesKey(), tries() + 1);
      if (failed(here())) course.keep(`level-${level.id}`, true);
    }
    draw(`You chose: ${answer.label}`);
  }

  function undo() {
    if (path.length < 2) return;
    while (certain.delete(path.length - 1)) path.pop();
    path.pop();
    draw("One step back");
  }

  function restart() {
    path = [0];
    certain.clear();
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

  // Before the decisions that did not matter any more, there is one that did.
  const decided = () => path.findLastIndex((_, at) => !certain.has(at));

  function lanes() {
    const last = decided();
    const all = path.flatMap((node, at) => rowsOf(nodes()[node]).map((number) => ({ number, isNew: at >= last && last > 0 })));
    const isBare = (at) => all[at] && texts[all[at].number].endsWith("\titeration");
    // Iterations after the end of the program.
    while (isEnd(here()) && isBare(all.length - 1)) all.pop();
    const rows = [];
    for (let at = 0; at < all.length; at++) {
      rows.push(row(all[at].number, all[at].isNew));
      let more = 0;
      while (isBare(at) && isBare(at + 1) && all[at].number === all[at + 1].number) { at++; more++; }
      if (more) rows.push(element("div", { class: "row faint" }, element("span", { class: "picture" }, "".padEnd(width() + 2)),
        element("span", { class: "words" }, `${more} more`)));
    }
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
      certain.size ? element("p", {}, "After your last decision nothing could prevent it: each of the runs from there reaches the goal.") : "",
      element("p", {}, level.why),
      element("p", {}, button("Now with the guard", () => turn(GUARD)), " ",
        next ? element("a", { href: `#levels=${next.id}` }, `Next level: ${next.title}`) : ""));
  }

  function decision() {
    const node = here();
    if (isEnd(node)) return outcome(node);
    // The same question once more: the answer before was not the last one.
    const before = path.length > 1 && nodes()[path[path.length - 2]];
    const again = before && before[1] === node[1] ? "And what else? " : "";
    return element("div", { class: "question" },
      element("p", { id: "question" }, again, saidOf(node)),
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
    const focused = main.contains(document.activeElement) && document.activeElement !== main && document.activeElement;
    const place = focused && [".levels", ".sides", "summary", ".lanes"].find((part) => focused.closest(part));
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
    if (announced) main.querySelector(".question, .outcome").scrollIntoView({ block: "nearest" });
    const same = { ".levels": ".levels [aria-current]", ".sides": ".sides [aria-selected=true]", summary: "summary", ".lanes": ".lanes" };
    const next = main.querySelector(same[place] ?? ".answer") ?? main.querySelector(".outcome button") ?? main.querySelector(".tools button:enabled");
    if (focused) (next ?? main).focus({ preventScroll: true });
  }

  const turnTo = (by) => () => {
    const next = levels[levels.indexOf(level) + by];
    if (next) course.link({ levels: next.id });
  };
  const keys = {
    "]": [turnTo(1), "next level"], "[": [turnTo(-1), "previous level"], g: [() => turn(1 - side), "the bug, or the guard"], u: [undo, "undo a decision"], Backspace: [undo, "undo a decision"], r: [restart, "restart the level"], h: [hint, "hint"],
  };
  for (let digit = 1; digit <= 9; digit++) keys[digit] = [() => choose(digit - 1), "decide"];

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
