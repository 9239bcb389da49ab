// Plays one act: its lanes, its stacks and its source, step by step. With questions, it stops before
// the step that answers one.
//
//   const it = player(root, { act, files, id, begin, onstep, onend })
//   it.forward() it.back() it.first() it.last() it.own() it.wake() it.all() it.answer(n) it.hint()
//
// While a question is open, the stacks are hidden, and so are the comments of the source.
function player(root, { act, files, id, begin, onstep, onend }) {
  const [NUMBER, PICTURE, WORDS, INDENT, NOTE, KIND, ACTOR, RUNNING, HAS_LINE, STACKS, SUSPENDED, LINES, REQUESTS, COUNTERS] =
    Array(14).keys();
  const { element, say } = course;
  const steps = act.steps, questions = (act.questions ?? []).toSorted((one, other) => one.step - other.step);
  const last = steps.length - 1;
  // What the log's own checker says.
  const noted = (step) => step[NOTE].replace(/^!! (.*) is (.*) but was \2$/, "does not fit: $1 was $2 already").replace(/^!! /, "does not fit: ");
  // Within a series of iterations in which nothing happens, all but the first and the last.
  const isBare = (place) => steps[place]?.[WORDS] === "iteration";
  const folded = steps.map((_, place) => isBare(place - 1) && isBare(place) && isBare(place + 1));
  const labels = [...act.heading.matchAll(/\S+(?: \S+)*/g)];
  const names = (stack) => (stack >= 0 ? act.lanes[stack] : labels[-1 - stack][0]);
  const colour = (stack) => (stack >= 0 ? `var(--c${stack % 7})` : "var(--base)");
  let cursor = -1, reached = -1, asked = null, everything = course.kept("all rows") ?? false;

  const number = element("span", { class: "number" }), words = element("b"), where = element("span", { class: "where" });
  const ask = element("section", { class: "ask", hidden: true, tabindex: -1, "aria-label": "question" });
  const code = element("section", { class: "source", "aria-label": "source" });
  const stacks = element("section", { class: "stacks", "aria-label": "stacks" });
  const rows = element("ol", { class: "rows" });
  const lanes = element("section", { class: "lanes", tabindex: 0, "aria-label": "lanes" });
  const end = element("section", { class: "seen", hidden: true, tabindex: -1, "aria-label": "what you have seen" });
  const button = (text, title, run, css = "") => element("button", { class: css, title, "aria-label": title, onclick: run }, text);
  const next = button("Next →", "next step (→)", () => it.forward(), "primary");
  const own = button("own ⇥", "next event of the same stack (n)", () => it.own(), "own");
  const toggle = element("input", { type: "checkbox", onchange: () => it.all() });
  toggle.checked = everything;
  root.append(
    element("div", { class: "top" },
      element("div", { class: "bar", role: "toolbar", "aria-label": "steps" },
        button("⇤", "first step (Home)", () => it.first()), button("←", "previous step (←)", () => it.back()), next, own,
        button("wake ⇥", "next wake (w)", () => it.wake()), button("⇥", "last step (End)", () => it.last())),
      element("p", { class: "told" }, number, words, where)),
    element("div", { class: "stage" }, code, element("div", { class: "side" }, ask, stacks, lanes)),
    element("label", { class: "toggle", title: "show the rows that are still to come (a)" }, toggle, " show the rows to come"), end);
  const pane = codePane(code, files);

  // The columns of the lanes: threads, coroutines, the kernel.
  const columns = labels.map((found, n) => ({
    at: found.index, name: found[0],
    colour: n < act.threads ? "var(--base)" : n < act.threads + act.lanes.length ? colour(n - act.threads) : "var(--kernel)",
  }));
  function painted(text, css) {
    const into = element("span", { class: css });
    for (const [place, char] of [...text].entries()) {
      const column = columns.findLast(({ at }) => at <= place);
      const isOwn = css === "heading" || /[●○■│┊▶◀▷◁×\d]/.test(char);
      const span = isOwn && char !== " " ? element("i", { style: `color:${column.colour}` }, char) : char;
      into.append(span);
    }
    return into;
  }
  lanes.append(element("div", { class: "head", "aria-hidden": true }, element("span", { class: "number" }), painted(act.heading, "heading")), rows);
  lanes.style.setProperty("--wide", `${Math.max(act.heading.length, ...steps.map((step) => step[PICTURE].length)) + 2}ch`);
  const series = (place) => place - steps.findLastIndex((_, n) => n < place && !isBare(n));
  const drawn = steps.map((step, place) => {
    const row = element("li", { class: `row ${step[KIND] === "violation" ? "broken" : ""}`, onclick: () => (place > reached ? forward(place) : show(place)) },
      element("span", { class: "number" }, step[NUMBER]), element("span", { class: "picture", "aria-hidden": true }, painted(step[PICTURE], "")),
      element("span", { class: "words", style: `padding-left:${step[INDENT] * 0.5}ch` }, step[WORDS],
        ...(step[NOTE] ? [element("span", { class: "note" }, noted(step))] : []),
        ...(folded[place - 1] && !folded[place] ? [element("span", { class: "note" }, `${series(place)} iterations in which nothing happens`)] : [])));
    rows.append(row);
    return row;
  });

  const line = (step, stack) => step[LINES].find(([of]) => of === stack);
  const place = (step, stack) => {
    const found = line(step, stack);
    return found ? `line ${found[2]}` : "";
  };

  function drawStacks(step) {
    const group = (title, ...inside) => element("div", { class: "group" }, element("h3", {}, title), ...inside);
    const box = (css, style, ...text) => element("li", { class: `box ${css}`, style }, ...text);
    // A thread's empty stack is shown only if the event is the thread's.
    const isShared = step[STACKS].length > 1;
    const towers = step[STACKS].flatMap((frames, thread) => {
      const base = -1 - thread, whole = [base, ...frames], top = whole.findLastIndex((frame) => typeof frame === "number");
      const runsHere = step[RUNNING] === whole[top];
      if (!frames.length && !runsHere && isShared) return [];
      const tower = element("ol", { class: "tower", "aria-label": `stack of ${names(base)}, from the bottom` });
      whole.forEach((frame, n) => {
        if (typeof frame !== "number") return tower.append(box("span", "", frame));
        const runs = n === top && runsHere;
        const state = runs ? "runs" : n < top ? "waits for an enter to return" : "waits for the other thread";
        tower.append(box(runs ? "runs" : "waits", `--mark:${colour(frame)}`, element("b", {}, names(frame)), ` ${state} `, element("small", {}, place(step, frame))));
      });
      return [group(isShared ? `On the stack of ${names(base)}` : "On the stack", tower)];
    });
    const suspended = step[SUSPENDED].map(([lane, why]) =>
      box("suspended", `--mark:${colour(lane)}`, element("b", {}, names(lane)), why ? ` waits for ${why} ` : " not entered yet ", element("small", {}, why ? place(step, lane) : "")));
    const requests = step[REQUESTS].map(([request, owner, taken]) =>
      box(taken ? "taken" : "queued", `--mark:${colour(owner)}`, `request ${request} of `, element("b", {}, names(owner)), taken ? " in flight" : " pending"));
    const [flight, pending, plugs] = step[COUNTERS] ?? [];
    const counters = step[COUNTERS] && element("p", { class: "counters" }, `in flight: ${flight}, pending: ${pending}${plugs ? `, plugs: ${plugs}` : ""}`);
    stacks.replaceChildren(...towers,
      ...(suspended.length ? [group("Suspended", element("ul", {}, ...suspended))] : []),
      ...(requests.length || counters ? [group("Requests", element("ul", {}, ...requests), counters ?? "")] : []));
  }

  function drawCode(step) {
    const onStack = step[STACKS].flatMap((frames, thread) => [-1 - thread, ...frames.filter((frame) => typeof frame === "number")]);
    const marks = onStack.includes(step[ACTOR]) ? onStack : [...onStack, step[ACTOR]];
    pane.show(marks.flatMap((stack) => {
      const found = line(step, stack);
      return found ? [{ file: found[1], line: found[2], label: names(stack), colour: colour(stack), now: stack === step[ACTOR] }] : [];
    }));
  }

  function reveal(row) {
    const head = lanes.firstElementChild.offsetHeight;
    const top = row.offsetTop;
    if (top < lanes.scrollTop + head) lanes.scrollTop = top - head;
    else if (top + row.offsetHeight > lanes.scrollTop + lanes.clientHeight - 24) lanes.scrollTop = top + row.offsetHeight - lanes.clientHeight + 24;
  }

  function draw() {
    const step = steps[cursor], open = questions.find((question) => question.step > reached && isOpen(question));
    const known = everything ? (open ? open.step - 1 : last) : reached;
    drawn.forEach((row, place) => {
      row.classList.toggle("future", place > cursor);
      row.hidden = place > Math.max(known, reached) || (folded[place] && place !== cursor);
      if (place === cursor) row.setAttribute("aria-current", "step");
      else row.removeAttribute("aria-current");
    });
    number.textContent = step[NUMBER];
    words.textContent = step[WORDS];
    words.className = step[KIND] === "violation" ? "bad" : "";
    const found = line(step, step[ACTOR]);
    where.textContent = step[HAS_LINE] && found ? ` ${names(step[ACTOR])}, ${files[found[1]].path.split("/").pop()}:${found[2]}` : ` ${names(step[ACTOR])}`;
    own.textContent = `${names(step[RUNNING])} ⇥`;
    next.textContent = cursor === last ? "Outcome ↓" : "Next →";
    next.title = next.ariaLabel = cursor === last ? "what you have seen (→)" : "next step (→)";
    root.classList.toggle("guesses", Boolean(open));
    drawStacks(step);
    drawCode(step);
    reveal(drawn[cursor]);
    end.hidden = reached < last;
    const towers = step[STACKS].map((frames) => frames.filter((frame) => typeof frame === "number").map(names));
    const outcome = cursor === last ? ` ${act.failure ? `The act fails: ${act.failure}` : "The act ends well"}.` : "";
    say(`${step[NUMBER]}: ${step[WORDS]}. On the stack: ${[names(-1), ...towers.flat()].join(", ")}. ${where.textContent}${outcome}`);
    onstep(step[NUMBER]);
  }

  // Goes to a step, whatever is asked before it.
  function show(place) {
    const lost = ask.contains(document.activeElement);
    asked = null;
    ask.hidden = true;
    stacks.hidden = false;
    cursor = Math.max(0, Math.min(last, place));
    reached = Math.max(reached, cursor);
    // Before it draws: an act that has been seen is named.
    if (reached === last) onend(end);
    draw();
    if (lost) next.focus({ preventScroll: true });
  }

  function showEnd() {
    end.scrollIntoView({ block: "start" });
    end.focus({ preventScroll: true });
    say(end.textContent);
  }

  const key = (question) => `${id}:${question.name}`;
  const isOpen = (question) => course.kept("no guesses") !== true && course.kept(key(question)) === undefined;

  function forward(place) {
    if (asked) return isOpen(asked) ? ask.focus() : show(asked.step);
    if (cursor === last) return showEnd();
    const question = questions.find((question) => question.step > cursor && question.step <= place && question.step > reached && isOpen(question));
    if (!question) return show(place);
    if (question.step - 1 !== cursor) show(question.step - 1);
    put(question);
  }

  function put(question) {
    asked = question;
    let tries = 0;
    const result = element("p", { class: "result", role: "status" });
    const done = (tries) => {
      course.keep(key(question), tries);
      options.forEach((option, n) => {
        option.ariaDisabled = "true";
        option.classList.toggle("right", n === question.answer);
      });
      helps.replaceChildren(element("button", { class: "primary", onclick: () => show(question.step) }, "Continue →"));
      helps.firstChild.focus();
    };
    const answer = (n) => {
      if (!options[n] || options[n].ariaDisabled) return;
      tries += 1;
      if (n === question.answer) {
        result.replaceChildren(element("b", {}, "Right. "), course.words(question.why));
        done(tries);
      } else {
        options[n].ariaDisabled = "true";
        options[n].classList.add("wrong");
        result.textContent = `Not ${question.options[n]}. Think again${tries > 1 ? "; a hint may help" : ""}.`;
      }
    };
    const options = question.options.map((text, n) =>
      element("button", { class: "option", onclick: () => answer(n) }, element("kbd", {}, `${n + 1}`), ` ${text}`));
    const hint = element("button", { title: "hint (h)", onclick: () => { result.replaceChildren(element("b", {}, "Hint: "), course.words(question.hint)); } }, "Hint");
    const give = element("button", { onclick: () => {
      result.replaceChildren(element("b", {}, `${question.options[question.answer]}. `), course.words(question.why));
      done(0);
    } }, "Show the answer");
    const helps = element("div", { class: "helps" }, hint, give);
    ask.replaceChildren(element("h3", {}, "Guess"), element("p", {}, course.words(question.question)),
      element("div", { class: "options" }, ...options), helps, result);
    ask.answer = answer;
    ask.hint = () => isOpen(question) && hint.click();
    ask.hidden = false;
    stacks.hidden = true;
    reveal(drawn[cursor]);
    ask.scrollIntoView({ block: "nearest" });
    say(`Question: ${question.question} ${question.options.map((text, n) => `${n + 1}: ${text}.`).join(" ")}`);
  }

  const seek = (matches, none) => {
    const found = steps.findIndex((step, place) => place > cursor && matches(step));
    if (found >= 0 || asked) forward(found);
    else say(where.textContent = ` ${none}`);
  };
  const over = (place, by) => (folded[place] ? over(place + by, by) : place);
  const it = {
    forward: () => forward(over(cursor + 1, 1)),
    back: () => show(over(cursor - 1, -1)),
    first: () => show(0),
    last: () => forward(last),
    own: () => { const running = steps[cursor][RUNNING]; seek((step) => step[ACTOR] === running, "no event of this stack is left"); },
    wake: () => seek((step) => step[KIND] === "wake", "no wake is left"),
    hint: () => (asked ? ask.hint() : false),
    all: () => { everything = !everything; toggle.checked = everything; course.keep("all rows", everything); draw(); },
    answer: (n) => asked && ask.answer(n),
    // For tests: where this is, and what it asks.
    get cursor() { return cursor; },
    get count() { return steps.length; },
    get steps() { return steps.length - folded.filter(Boolean).length; },
    get asked() { return asked; },
  };
  // The first event with this number, or the last before it.
  const wanted = Number(begin);
  const opened = begin === undefined ? 0 : steps.findLastIndex((step) => Number(step[NUMBER]) <= wanted);
  show(opened);
  return it;
}
