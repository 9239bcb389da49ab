"use strict";
// Draws the visible part of the data. Everything else was computed when the page was written.
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const WORDS = 7, [NUMBER, KIND, FROM, TO, SAID, SOURCE, STACK] = [0, 1, 2, 3, 4, 5, 6];
  const count = data.events.length / WORDS;
  const field = (at, which) => data.events[at * WORDS + which];
  const string = (place) => (place < 0 ? "" : data.strings[place]);
  const kind = (at) => string(field(at, KIND));
  const colour = (depth) => `var(--d${depth % 8})`;
  const escape = (text) => text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
  const bad = new Map(data.violations);
  const [SUSPENDED, ON_STACK, RUNS, KERNEL, FRAME, PENDING] = [1, 2, 3, 4, 5, 6];

  let step = 24, cursor = 0, playing = 0, everything = false;
  // The position of each event in steps, and the events that have a position.
  const places = new Int32Array(count + 1);
  let shown = [];

  const view = $("view"), svg = $("lanes"), slider = $("slider");
  const TOP = 24, COUNTER = 46;
  const labels = () => (view.clientWidth < 500 ? 74 : 116);
  const x = (at) => labels() + (places[at] + 0.5) * step - view.scrollLeft;

  const rows = data.rows.filter((row) => row.kind !== "requests" || row.levels.length);
  for (const row of rows) {
    const levels = Math.max(1, row.levels.length);
    row.pitch = row.kind === "thread" ? 17 : row.kind === "requests" ? (levels > 8 ? 7 : 14) : 22;
    row.height = levels * row.pitch + 8;
  }
  // With many coroutines, the kernel's row goes above them, where it is easy to find.
  const many = rows.length > 14, early = (row) => !many || row.kind !== "coroutine";
  const order = [...rows.filter(early), ...rows.filter((row) => !early(row))];
  // The rows that have a place, from top to bottom, and what is below them.
  let placed = order, counterTop = TOP, height = TOP + COUNTER;
  const most = data.counts.reduce((most, n, i) => (i % 3 ? Math.max(most, n) : most), 1);

  function arrange() {
    const hidden = new Set(everything ? [] : data.hidden);
    shown = [];
    for (let at = 0; at < count; at++) {
      places[at] = shown.length;
      if (!hidden.has(at) || bad.has(at)) shown.push(at);
    }
    places[count] = shown.length;
    slider.max = Math.max(0, shown.length - 1);
  }

  function resize() {
    // Space after the last event, so that its text is readable.
    $("space").style.width = `${labels() + (shown.length + 1) * step}px`;
    draw();
  }

  // Returns the first of the sorted groups that ends after `place`.
  function first(numbers, size, end, place) {
    let low = 0, high = numbers.length / size;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (places[numbers[middle * size + end]] > place) high = middle;
      else low = middle + 1;
    }
    return low * size;
  }

  const clip = (text, width) => {
    const room = Math.floor(width / 6.6);
    return text.length <= room ? text : room < 4 ? "" : `${text.slice(0, room - 1)}…`;
  };

  // The visible part: places of events, of which every `skip`th is drawn if several share a pixel.
  function range() {
    const from = Math.max(0, Math.floor(view.scrollLeft / step) - 1);
    const to = Math.min(shown.length, Math.ceil((view.scrollLeft + view.clientWidth - labels()) / step) + 1);
    return [from, to, Math.max(1, Math.floor(1 / step))];
  }

  // Of many rows, gives a place to those in whose visible part something runs or an arrow begins or
  // ends.
  function layOut(from, to, skip) {
    const met = new Set();
    const meet = (at) => met.add(rows[field(at, FROM)]).add(rows[field(at, TO)]);
    for (let place = from; place < to; place += skip) meet(shown[place]);
    meet(cursor);
    const isBusy = (level) => {
      for (let i = first(level, 6, 1, from); i < level.length && places[level[i]] <= to; i += 6) {
        if (level[i + 2] !== SUSPENDED) return true;
      }
      return false;
    };
    placed = many && !$("idle").checked ? order.filter((row) => met.has(row) || row.levels.some(isBusy)) : order;
    counterTop = TOP;
    for (const row of placed) {
      row.top = counterTop;
      counterTop += row.height;
    }
    height = counterTop + COUNTER;
    $("space").style.height = `${height}px`;
  }

  // Boxes and lines, and the texts above lines, which arrows must not cross.
  function bars(row, from, to, left, right) {
    let out = "", above = "";
    row.levels.forEach((level, n) => {
      const top = row.top + 4 + n * row.pitch, tall = row.pitch - 2, middle = top + tall / 2;
      let done = -1;
      for (let i = first(level, 6, 1, from); i < level.length; i += 6) {
        const [begin, end, state, depth, label, lane] = level.slice(i, i + 6);
        if (places[begin] > to) break;
        const a = Math.max(x(begin), left), b = Math.min(x(end), right);
        // Skip a bar narrower than a pixel where one is drawn already.
        if (b - a < 0.2 || b < done + 0.5) continue;
        done = b;
        const width = b - a;
        const box = (fill, more = "") =>
          `<rect x="${a}" y="${top}" width="${width}" height="${tall}" rx="2" fill="${fill}" ${more}/>`;
        const text = (css, words = string(label), y = middle + 4) => {
          const said = clip(words, width - 8);
          return said ? `<text x="${a + 4}" y="${y}" class="${css}">${escape(said)}</text>` : "";
        };
        if (state === SUSPENDED) {
          out += `<line x1="${a}" y1="${middle}" x2="${b}" y2="${middle}" stroke="var(--faint)" stroke-width="1.2"/>`;
          above += text("faint", string(label), middle - 3);
        } else if (state === ON_STACK) out += box(colour(depth), 'opacity="0.38"');
        else if (state === RUNS) out += box(colour(depth)) + (row.label ? "" : text("on", data.lanes[lane]));
        else if (state === FRAME) out += box(colour(depth)) + text("on");
        else if (state === KERNEL) out += box("var(--flight)", 'opacity="0.45"') + text("");
        else {
          const said = tall > 9 ? text(state === PENDING ? "" : "on") : "";
          out += box(state === PENDING ? "var(--pending)" : "var(--flight)") + said;
        }
      }
    });
    return [out, above];
  }

  // The point at which an arrow meets a row: for a thread, the lower edge, where its stack ends.
  const middle = (place) => rows[place].top + (rows[place].kind === "thread" ? rows[place].height - 3 : rows[place].height / 2);

  function arrow(at) {
    const what = kind(at), here = x(at), from = middle(field(at, FROM)), to = middle(field(at, TO));
    const line = (css) => `<line x1="${here}" y1="${from}" x2="${here}" y2="${to}" class="arrow ${css}"/>`;
    const way = Math.sign(to - from), big = step >= 10 ? 5 : 3;
    const head = (css) =>
      way ? `<path d="M${here} ${to}l${-big} ${-way * big * 1.6}h${2 * big}z" class="${css}"/>` : "";
    const dot = (y, css, r = 3) => `<circle cx="${here}" cy="${y}" r="${r}" class="${css}"/>`;
    switch (what) {
      case "enter": return line("") + head("head");
      case "yield": return line("yield") + head("head");
      case "end": return line("") + head("head") + `<rect x="${here - 4}" y="${from - 4}" width="8" height="8" class="head"/>`;
      case "wake": return line("wake") + head("wakehead");
      case "left": return line("wake") + `<path d="M${here - 4} ${to - 4}l8 8m0 -8l-8 8" class="arrow"/>`;
      case "create": return line("wake") + dot(to, "made", 4);
      case "submit": case "done": return line("kernel") + head("kernelhead");
      case "mark": return `<path d="M${here} ${TOP - 2}v-16l9 4l-9 4" class="arrow"/>` + dot(from, "head");
      default: return step >= 6 ? dot(from, "head", 2.2) : "";
    }
  }

  function counters(from, to, left, right) {
    const tall = COUNTER - 16, base = counterTop + COUNTER - 6;
    let out = "";
    for (const [which, css] of [[2, "var(--pending)"], [1, "var(--flight)"]]) {
      let path = "", i = Math.max(0, first(data.counts, 3, 0, from) - 3);
      for (; i < data.counts.length && places[data.counts[i]] <= to; i += 3) {
        const here = Math.max(left, x(data.counts[i]));
        const y = base - (data.counts[i + which] / most) * tall;
        path += path ? `H${here}V${y}` : `M${here} ${y}`;
      }
      if (path) out += `<path d="${path}H${Math.min(right, x(count))}" fill="none" stroke="${css}" stroke-width="2"/>`;
    }
    return out;
  }

  function named(row) {
    if (row.label) return row.label;
    // A shared row: label it with the coroutine at the cursor.
    const level = row.levels[0] || [], i = first(level, 6, 1, places[cursor]);
    return i < level.length && places[level[i]] <= places[cursor] ? data.lanes[level[i + 5]] : "";
  }

  function draw() {
    const [from, to, skip] = range();
    layOut(from, to, skip);
    const wide = view.clientWidth, tall = Math.min(height, view.clientHeight || height), up = view.scrollTop;
    const left = labels(), right = wide;
    svg.setAttribute("width", wide);
    svg.setAttribute("height", Math.max(tall, 1));
    const inSight = (row) => row.top + row.height > up && row.top < up + tall;
    let out = "", names = "";
    placed.forEach((row, n) => {
      if (!inSight(row)) return;
      if (n % 2) out += `<rect x="0" y="${row.top}" width="${wide}" height="${row.height}" fill="var(--stripe)"/>`;
      const y = row.kind === "thread" ? row.top + 16 : row.top + Math.min(row.height / 2 + 4, 24);
      names += `<text x="10" y="${y}" class="name"><title>${escape(named(row))}</title>${escape(clip(named(row), left - 12))}</text>`;
    });
    names += `<text x="10" y="${counterTop + 19}" class="name">count</text>`;
    names += `<text x="10" y="${counterTop + 35}" class="faint">at most ${most}</text>`;
    const here = x(cursor);
    out += `<rect id="cursor" x="${here - step / 2}" y="0" width="${step}" height="${height}" fill="var(--cursor)"/>`;
    let above = "";
    for (const row of placed) {
      if (!inSight(row)) continue;
      const [boxes, words] = bars(row, from, to, left, right);
      out += boxes;
      above += words;
    }
    out += counters(from, to, left, right);
    const every = Math.max(1, Math.ceil(44 / step / 5) * 5);
    for (let place = from; place < to; place += skip) {
      const at = shown[place];
      if (place % every === 0 && !bad.has(at) && kind(at) !== "mark") {
        out += `<text x="${x(at)}" y="14" text-anchor="middle" class="faint">${field(at, NUMBER)}</text>`;
      }
      out += arrow(at);
    }
    for (const at of bad.keys()) {
      if (places[at] < from || places[at] > to) continue;
      const a = x(at);
      out += `<line x1="${a}" y1="0" x2="${a}" y2="${height}" class="red"/>`;
      out += `<path d="M${a - 5} ${up + 5}l10 10m0 -10l-10 10" class="red"/>`;
      above += `<text x="${a + 9}" y="${up + 14}" class="rednumber">${field(at, NUMBER)}</text>`;
    }
    svg.innerHTML =
      `<g transform="translate(0 ${-up})">${out}${above}` +
      `<rect x="0" y="0" width="${left - 1}" height="${height}" fill="var(--panel)"/>` +
      `<line x1="${left - 1}" x2="${left - 1}" y1="0" y2="${height}" stroke="var(--line)"/>${names}</g>`;
  }

  function tell() {
    if (!count) return void ($("words").textContent = "Nothing is recorded.");
    $("number").textContent = `event ${field(cursor, NUMBER)}`;
    const wrong = bad.has(cursor), said = string(field(cursor, SAID));
    const what = wrong ? `VIOLATION: ${string(bad.get(cursor))}` : "";
    $("words").textContent = !wrong || what === said ? said : `${said}. ${what}`;
    $("words").className = wrong ? "bad" : "";
    $("source").textContent = string(field(cursor, SOURCE));
    $("chain").innerHTML = "on the stack: " + data.stacks[field(cursor, STACK)]
      .map((name, n) => n
        ? `<span style="background:${colour(n - 1)}">${escape(string(name))}</span>`
        : `<span class="base">${escape(string(name))}</span>`)
      .join("<i>›</i>");
    let i = 0;
    while (i + 3 < data.counts.length && data.counts[i + 3] <= cursor) i += 3;
    const lost = data.lost ? `; ${data.lost} events before these are lost` : "";
    $("counts").textContent = `${data.counts[i + 1]} in flight, ${data.counts[i + 2]} pending${lost}`;
    mark();
  }

  // The source, if the page has it: the lines at which the stacks stand, that of the event first.
  $("code").hidden = !data.files.length;
  document.body.classList.toggle("coded", data.files.length > 0);
  const pane = data.files.length ? codePane($("code"), data.files) : null;
  const fileOf = new Map(data.files.map((file, n) => [file.path, n]));
  function mark() {
    pane?.show(data.lines[data.at[cursor]].map(([label, line, depth], n) => {
      const [, path, number] = string(line).match(/^(.*):(\d+)$/);
      return { file: fileOf.get(path), line: Number(number), label: string(label), colour: depth ? colour(depth) : "var(--faint)", now: n === 0 };
    }));
  }

  // The page's address names the event, once the reader stays at one.
  let naming = 0;
  function name() {
    clearTimeout(naming);
    naming = setTimeout(() => {
      try { history.replaceState(null, "", `#event=${field(cursor, NUMBER)}`); } catch { /* not for this page */ }
    }, 300);
  }
  function linked() {
    const wanted = location.hash.match(/^#event=(\d+)$/);
    const at = wanted ? shown.findLastIndex((at) => field(at, NUMBER) <= Number(wanted[1])) : -1;
    if (at >= 0) go(at);
    return at >= 0;
  }
  addEventListener("hashchange", linked);

  function go(place, scroll = true) {
    if (!shown.length) return tell();
    place = Math.max(0, Math.min(shown.length - 1, place));
    cursor = shown[place];
    slider.value = place;
    slider.setAttribute("aria-valuetext", `event ${field(cursor, NUMBER)}: ${string(field(cursor, SAID))}`);
    if (scroll) {
      const room = view.clientWidth - labels(), at = (place + 0.5) * step - view.scrollLeft;
      if (at < step || at > room - step) view.scrollLeft = Math.max(0, (place + 0.5) * step - room / 2);
    }
    tell();
    draw();
    name();
    const row = rows[field(cursor, TO)], tall = view.clientHeight;
    if (scroll && (row.top < view.scrollTop || row.top + row.height > view.scrollTop + tall)) {
      view.scrollTop = row.top + row.height < tall ? 0 : row.top - tall / 2;
      draw();
    }
  }

  function zoom(by) {
    step = Math.max(0.5, Math.min(96, step * by));
    resize();
    view.scrollLeft = Math.max(0, (places[cursor] + 0.5) * step - (view.clientWidth - labels()) / 2);
    draw();
  }

  function play(on = !playing) {
    clearInterval(playing);
    playing = on ? setInterval(() => (slider.value === slider.max ? play(false) : go(places[cursor] + 1)), 160) : 0;
    $("play").textContent = on ? "❚❚" : "▶";
  }

  function theme() {
    const dark = getComputedStyle(document.documentElement).colorScheme === "dark" ||
      (getComputedStyle(document.documentElement).colorScheme !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
    document.documentElement.style.colorScheme = dark ? "light" : "dark";
  }

  function violation() {
    const next = [...bad.keys()].find((at) => at > cursor) ?? bad.keys().next().value;
    if (next !== undefined) go(places[next]);
  }

  // Search by the events' texts. A field has no line breaks.
  const plain = (text) => text.replace(/[\r\n]/g, "");
  const known = [...new Set([
    ...data.lanes.map(plain),
    ...data.strings.flatMap((text) => text.match(/^request \d+(?=: )/)?.[0] ?? []),
  ])];
  let sought = "", hits = [];

  // Whether `words` are in the text, not as a part of longer ones: "request 1" is not in "request 10".
  function mentions(text, words) {
    const isPart = (a, b) => /^\w\w$/.test((a ?? " ") + (b ?? " "));
    for (let i = text.indexOf(words); i >= 0; i = text.indexOf(words, i + 1)) {
      const end = i + words.length;
      if (!isPart(text[i - 1], text[i]) && !isPart(text[end - 1], text[end])) return true;
    }
    return false;
  }

  function search(words) {
    const among = (matches) => {
      const texts = new Set(data.strings.flatMap((text, n) => (matches(plain(text)) ? [n] : [])));
      return shown.filter((at) => texts.has(field(at, SAID)));
    };
    const exact = among((text) => mentions(text, words)), low = words.toLowerCase();
    return exact.length ? exact : among((text) => text.toLowerCase().includes(low));
  }

  // The first time at the first hit, then at the next one, or the previous one.
  function find(back) {
    const words = $("find").value;
    if (!words) return;
    const isNew = words !== sought;
    if (isNew) [sought, hits] = [words, search(words)];
    const next = back ? hits.findLastIndex((at) => at < cursor) : hits.findIndex((at) => at > cursor);
    const hit = isNew ? 0 : next >= 0 ? next : back ? hits.length - 1 : 0;
    $("found").textContent = hits.length ? `${hit + 1} of ${hits.length}` : "not found";
    if (hits.length) go(places[hits[hit]]);
  }

  function suggest() {
    const low = $("find").value.toLowerCase();
    const likely = known.filter((name) => name.toLowerCase().includes(low)).slice(0, 50);
    $("names").replaceChildren(...likely.map((name) => new Option("", name)));
  }

  const keys = {
    ArrowLeft: () => go(places[cursor] - 1), ArrowRight: () => go(places[cursor] + 1),
    PageUp: () => go(places[cursor] - 20), PageDown: () => go(places[cursor] + 20),
    Home: () => go(0), End: () => go(shown.length - 1), " ": () => play(),
    "+": () => zoom(1.4), "=": () => zoom(1.4), "-": () => zoom(1 / 1.4), t: theme, v: violation,
    "/": () => ($("find").focus(), $("find").select()),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || !keys[event.key]) return;
    // Keys in the search field are text.
    if (event.target === $("find")) return;
    // The space bar belongs to a focused button.
    if (event.key === " " && event.target.closest?.("button, summary, [type=checkbox]")) return;
    event.preventDefault();
    keys[event.key]();
  });
  $("find").addEventListener("keydown", (event) => {
    if (event.key === "Enter") find(event.shiftKey);
    else if (event.key === "Escape") $("find").blur();
  });
  $("find").addEventListener("input", suggest);
  slider.addEventListener("input", () => go(Number(slider.value)));
  svg.addEventListener("click", (event) => {
    const place = event.clientX - svg.getBoundingClientRect().left - labels() + view.scrollLeft;
    if (event.clientX - svg.getBoundingClientRect().left >= labels()) go(Math.floor(place / step), false);
  });
  $("play").onclick = () => play();
  $("in").onclick = () => zoom(1.4);
  $("out").onclick = () => zoom(1 / 1.4);
  $("theme").onclick = theme;
  $("all").onchange = (event) => {
    everything = event.target.checked;
    sought = "";
    arrange();
    resize();
    go(places[cursor]);
  };
  $("idle").onchange = draw;
  let waiting = false;
  view.addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  });
  window.addEventListener("resize", resize);

  const sample = (inside) => `<svg width="34" height="18" viewBox="0 0 34 18">${inside}</svg>`;
  const across = (css, head, size = 5) =>
    sample(`<line x1="2" y1="9" x2="26" y2="9" class="arrow ${css}"/><path d="M32 9l-8 ${-size}v${2 * size}z" class="${head}"/>`);
  const box = (fill, more = "") => sample(`<rect x="2" y="3" width="30" height="12" rx="2" fill="${fill}" ${more}/>`);
  $("legend").querySelector("ul").innerHTML = [
    [across("", "head"), "enters"], [across("yield", "head"), "yields"], [across("wake", "wakehead"), "wakes"],
    [across("kernel", "kernelhead"), "to the kernel, or done"],
    [sample('<circle cx="17" cy="9" r="4" class="made"/>'), "is made"],
    [sample('<rect x="13" y="5" width="8" height="8" class="head"/>'), "ends"],
    [sample(Array.from({ length: 4 }, (_, n) => `<rect x="${n * 8 + 1}" y="3" width="8" height="12" fill="${colour(n)}"/>`).join("")), "depth 1, 2, 3, 4, and so on"],
    [box("var(--d0)"), "runs, in its depth's colour"], [box("var(--d0)", 'opacity="0.38"'), "on the stack"],
    [sample('<line x1="2" y1="9" x2="32" y2="9" stroke="var(--faint)" stroke-width="1.2"/>'), "suspended"],
    [box("var(--pending)"), "request pending"], [box("var(--flight)"), "request in flight"],
    [sample('<path d="M2 13H12V5H22V13H32" fill="none" stroke="var(--flight)" stroke-width="2"/>'), "how many are in flight"],
    [sample('<path d="M2 13H12V5H22V13H32" fill="none" stroke="var(--pending)" stroke-width="2"/>'), "how many are pending"],
    [sample('<path d="M14 16v-14l9 4l-9 4" class="arrow"/>'), "the program says something"],
    [sample('<circle cx="17" cy="9" r="2.5" class="head"/>'), "anything else"],
    [sample('<path d="M12 4l10 10m0 -10l-10 10" class="red"/>'), "a rule is broken"],
  ].map(([picture, words]) => `<li>${picture}${words}</li>`).join("");
  $("legend").open = window.innerHeight > 700 && window.innerWidth > 700;
  document.querySelector("h1").textContent = document.title;
  // The failure and its position: a violation, or the last event before the run failed.
  const wrong = [...bad].map(([at, what]) => [at, `event ${field(at, NUMBER)}: ${string(what)}`]);
  if (!bad.size && data.failure && count) wrong.push([count - 1, `fails: ${data.failure}`]);
  for (const [at, what] of wrong.slice(0, 20)) {
    const button = document.createElement("button");
    button.textContent = `✕ ${what}`;
    button.title = bad.size ? "go there (v: the next)" : "go there";
    button.onclick = () => go(places[at]);
    $("alarm").append(button);
  }
  $("alarm").hidden = !wrong.length;
  // The height stays the same when rows come and go.
  view.style.flexGrow = many ? 1 : 0;
  $("idle").parentElement.hidden = !many;
  suggest();
  arrange();
  // A short run fills the window.
  step = Math.max(step, Math.min(48, (view.clientWidth - labels()) / (shown.length + 1)));
  resize();
  // The legend must not take the lanes' space.
  if (view.scrollHeight > view.clientHeight + 2) {
    $("legend").open = false;
    resize();
  }
  // At the first violation or the failure, else at the first request in flight.
  const busy = data.counts.findIndex((n, i) => i % 3 === 1 && n > 0);
  if (!linked()) go(wrong.length ? places[wrong[0][0]] : busy > 0 ? places[data.counts[busy - 1]] : 0);
})();
