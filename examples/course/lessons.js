// The list of lessons, and a lesson: its texts, its acts, and one act in the player.
const lessons = (() => {
  const { element, words, paragraphs } = course;
  const list = course.data("lessons");
  const numbered = (at) => ({ lesson: at + 1 });
  const href = (values) => `#${new URLSearchParams(values)}`;
  const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
  let playing = null, turn = () => {}, compared = null;
  // The lessons next to the one that is shown.
  let before = null, after = { lesson: 1 };

  // The title of an act, as far as it tells nothing before the act has been played. What this act
  // does comes after a verdict such as "A fix that fails: ".
  const titled = (lesson, n) => (name(lesson, n).startsWith("Act ") ? name(lesson, n) : `${n + 1}. ${name(lesson, n)}`);
  const isOver = (lesson, n) => course.kept(`${lesson.id}/${n} seen`) || course.kept("no guesses") === true || !lesson.puzzle;
  function name(lesson, n) {
    const { title } = lesson.acts[n], [, verdict, rest] = title.match(/^([^:]*): (.+)$/) ?? [null, title, ""];
    const tells = /\b(fix|fails|works|puzzle)\b/.test(verdict);
    return isOver(lesson, n) ? title : !tells && !/\b(first that|works|came to)\b/.test(title) ? title : rest && !/\b(fails|works)\b/.test(rest) ? capital(rest.replace(/ \(.*\)$/, "")) : `Act ${n + 1}`;
  }

  const guesses = (lesson) => lesson.acts.flatMap((act, at) => (act.questions ?? []).map((_, n) => `${lesson.id}/${at}:${n}`));
  const answered = (lesson) => guesses(lesson).filter((key) => course.kept(key) !== undefined).length;

  function contents(main) {
    main.append(element("h1", {}, "A course on event loops, coroutines and I/O"),
      element("p", {}, "Which code calls which in an event loop, when, and on whose stack? Each lesson is a short program, and shows its code, its stacks and its events side by side, step by step. Guess before you step: the recorded run checks your answer. Two hours, no set-up; the programs are in the folder ",
        element("code", {}, "examples"), ". After the lessons come ", element("a", { href: href({ read: "exercises" }) }, "exercises"),
        ", ", element("a", { href: href({ read: "history" }) }, "the history of the bugs"), " and ",
        element("a", { href: href({ read: "tokio" }) }, "a map for tokio users"), "."),
      element("p", {}, element("kbd", {}, "→"), " steps, ", element("kbd", {}, "?"), " lists all keys, and what the signs in the pictures mean."));
    const cards = element("ol", { class: "cards" });
    list.forEach((lesson, at) => {
      const all = guesses(lesson).length, done = answered(lesson);
      cards.append(element("li", {}, element("a", { href: href(numbered(at)) }, element("b", {}, lesson.title),
        element("p", {}, words(capital(lesson.puzzle))), element("progress", { max: all || 1, value: done, "aria-label": "guesses made" }),
        element("small", {}, `${done} of ${all} guesses`))));
    });
    const ask = element("input", { type: "checkbox", onchange: () => course.keep("no guesses", !ask.checked) });
    ask.checked = course.kept("no guesses") !== true;
    const forget = () => {
      course.forget();
      main.replaceChildren();
      contents(main);
      main.focus();
    };
    main.append(cards, element("p", {}, element("label", {}, ask, " ask me to guess"), " ", element("button", { onclick: forget }, "Forget my progress")));
  }

  // Shows a lesson, or an exhibit, at an act. `place` is its address without act and event.
  function show(main, lesson, place, values, more) {
    const at = Math.max(0, Math.min(lesson.acts.length - 1, (Number(values.act) || 1) - 1));
    const act = lesson.acts[at], address = { ...place, act: at + 1 };
    turn = (by) => { if (lesson.acts[at + by]) course.link({ ...place, act: at + by + 1 }); };
    compared = { ...(place.museum ? { compare: `m${place.museum}` } : { compare: place.lesson }) };
    main.append(element("h1", {}, lesson.title));
    const intro = element("details", { class: "intro", open: at === 0 && values.event === undefined }, element("summary", {}, "What this is about"), paragraphs(lesson.text));
    if (lesson.text) main.append(intro);
    if (lesson.puzzle) {
      main.append(element("div", { class: "puzzle" }, element("p", {}, element("b", {}, "Puzzle. "), words(capital(lesson.puzzle))),
        element("details", { class: "hint" }, element("summary", {}, "Hint"), element("p", {}, words(capital(lesson.hint))))));
    }
    const tabs = lesson.acts.map((_, n) => element("a", { href: href({ ...place, act: n + 1 }), "aria-current": n === at && "true" }));
    const naming = () => tabs.forEach((tab, n) => { tab.textContent = titled(lesson, n); });
    naming();
    main.append(element("ol", { class: "acts", "aria-label": "acts" }, ...tabs.map((tab) => element("li", {}, tab))));
    tabs[at].parentNode.parentNode.scrollLeft = tabs[at].offsetLeft - 40;
    const root = element("div", { class: "player" });
    main.append(root);
    const again = () => {
      guesses(lesson).forEach((key) => course.keep(key, undefined));
      lesson.acts.forEach((_, n) => course.keep(`${lesson.id}/${n} seen`, undefined));
      course.show({ ...place, act: 1 });
    };
    const end = (into) => {
      course.keep(`${lesson.id}/${at} seen`, true);
      naming();
      const outcome = act.failure ? element("p", { class: "bad" }, element("b", {}, "Fails: "), act.failure) : element("p", { class: "good" }, element("b", {}, "Ends well."));
      const after = lesson.acts[at + 1]
        ? element("a", { href: href({ ...place, act: at + 2 }) }, `Next: ${name(lesson, at + 1)}`)
        : more.next && element("a", { href: href(more.next.values) }, `Next: ${more.next.title}`);
      into.replaceChildren(element("h2", {}, "What you have seen"), outcome, paragraphs(act.text),
        ...(act.said ? [element("p", { class: "said" }, act.said)] : []),
        element("p", { class: "pager" }, after || "", ...(lesson.acts.length > 1 ? [element("a", { href: href(compared) }, "Compare two acts")] : []),
          ...(guesses(lesson).length ? [element("button", { onclick: again }, "Ask this lesson's questions again")] : [])));
    };
    const questions = (act.questions ?? []).map((question, name) => ({ ...question, name }));
    playing = player(root, {
      act: { ...act, questions }, files: lesson.files, id: `${lesson.id}/${at}`, begin: values.event, onend: end,
      onstep: (event) => course.replace({ ...address, event }),
    });
    main.append(element("p", { class: "pager" }, ...(more.links ?? []).map(({ values, title }) => element("a", { href: href(values) }, title))));
  }

  const step = (name) => () => playing?.[name]();
  const keys = {
    ArrowRight: [step("forward"), "next step"], ArrowLeft: [step("back"), "previous step"],
    n: [step("own"), "next event of the stack that runs"], w: [step("wake"), "next wake"],
    Home: [step("first"), "first step"], End: [step("last"), "last step"],
    ".": [() => turn(1), "next act"], ",": [() => turn(-1), "previous act"],
    "]": [() => course.link(after), "next lesson"], "[": [() => before && course.link(before), "previous lesson"],
    h: [() => {
      if (playing?.hint() !== false) return;
      const hint = document.querySelector("details.hint");
      if (hint) hint.open = !hint.open;
    }, "hint: of the question, or else of the puzzle"],
    g: [() => {
      course.keep("no guesses", course.kept("no guesses") !== true);
      course.say(course.kept("no guesses") ? "No more questions" : "Questions are asked");
    }, "ask questions, or not"],
    a: [step("all"), "show or hide the rows to come"], c: [() => compared && course.link(compared), "compare two acts"],
    ...Object.fromEntries([1, 2, 3, 4, 5, 6].map((n) => [`${n}`, [() => playing?.answer(n - 1), "give that answer"]])),
  };

  course.view("lesson", {
    title: "Lessons", keys,
    show(main, values) {
      [playing, compared, turn] = [null, null, () => {}];
      const at = Number(values.lesson) - 1, lesson = list[at];
      [before, after] = [at > 0 ? numbered(at - 1) : null, lesson ? (at + 1 < list.length ? numbered(at + 1) : { museum: "" }) : numbered(0)];
      if (!lesson) return contents(main);
      const title = (at) => list[at].title;
      const next = at + 1 < list.length ? { values: numbered(at + 1), title: title(at + 1) } : { values: { museum: "" }, title: "the museum" };
      const back = at ? [{ values: numbered(at - 1), title: `← ${title(at - 1)}` }] : [];
      const levels = course.data("levels").levels.filter((level) => level.lesson === at + 1);
      const play = levels.map((level) => ({ values: { levels: level.id }, title: `You are the kernel: ${level.title}` }));
      show(main, lesson, numbered(at), values, { next, links: [...back, ...play, { values: next.values, title: `${next.title} →` }] });
    },
  });
  return { list, show, keys, href, get playing() { return playing; }, stop() { [playing, compared, turn] = [null, null, () => {}]; } };
})();
