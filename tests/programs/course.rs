//! The course's page: its data, and a reader in a browser who steps through all of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::browser::read;
use crate::common::{Folder, example};
use crate::lessons::{assert_same, lessons, root};

const MOST: usize = 1_500_000;

/// Writes the page from within a folder, and returns it.
fn write(from: &Path) -> String {
    let folder = Folder::new("page");
    let file = folder.0.join("of/course.html");
    let output = Command::new(example("course")).current_dir(from).arg("--output").arg(&file).output().unwrap();
    // Lost questions would be reported.
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), file.display().to_string());
    fs::read_to_string(file).unwrap()
}

pub(crate) fn page() -> &'static str {
    static PAGE: OnceLock<String> = OnceLock::new();
    PAGE.get_or_init(|| write(root()))
}

/// Returns the data of a section.
pub(crate) fn data(section: &str) -> Value {
    let (_, rest) = page().split_once(&format!("<script type=\"application/json\" id=\"data-{section}\">")).unwrap();
    serde_json::from_str(rest.split_once("</script>").unwrap().0).unwrap()
}

pub(crate) fn array(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("no list: {value}"))
}

#[test]
fn page_is_the_same_each_time_and_refers_to_nothing() {
    // Checks that the page depends neither on the run nor on the folder, contains no path of this
    // machine, leads nowhere, and is small
    let page = page();
    assert!(page == write(&std::env::temp_dir()), "two pages differ");
    assert!(page.len() <= MOST, "{} bytes", page.len());
    for outside in ["http:", "https:", "//cdn", " src=", "@import", "url(", &root().display().to_string()] {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[test]
fn page_has_each_lesson_with_its_texts_and_questions() {
    // Checks that each lesson is there with its source, its acts as the terminal shows them, at least
    // two questions with their answers, and that its data is as recorded
    let data = data("lessons");
    let mut sums = String::new();
    assert_eq!(array(&data).len(), lessons().len());
    for (lesson, name) in array(&data).iter().zip(lessons()) {
        let folder = root().join("examples").join(&name);
        assert_eq!(lesson["id"], name);
        assert_eq!(lesson["files"][0]["text"], fs::read_to_string(folder.join("main.rs")).unwrap());
        let printed = fs::read_to_string(folder.join("lanes.txt")).unwrap();
        let mut asked = 0;
        for act in array(&lesson["acts"]) {
            let title = act["title"].as_str().unwrap();
            assert!(printed.contains(&format!(". {title}\n")), "{name}: {title}");
            // The panel counts as the lane of the kernel does.
            let kernel = act["heading"].as_str().unwrap().find("kernel");
            for step in array(&act["steps"]) {
                let row = format!("{:>5}  {}", step[0].as_str().unwrap(), step[1].as_str().unwrap());
                assert!(printed.contains(&row), "{name}: {row}");
                let picture: Vec<_> = step[1].as_str().unwrap().chars().collect();
                let lane: String = kernel.into_iter().flat_map(|from| &picture[from.min(picture.len())..]).collect();
                if let Ok(in_flight) = lane.parse::<u64>() {
                    assert_eq!(step[13][0], in_flight, "{name}, {title}: {row}");
                } else if step[5] != "request" {
                    assert!(step[13].is_null() || step[13][0] == 0, "{name}, {title}: {row}");
                }
            }
            for question in array(&act["questions"]) {
                asked += 1;
                let options = array(&question["options"]);
                for bare in ["yes", "no", "true", "false", "ends well", "fails"] {
                    assert!(!options.contains(&json!(bare)), "{name}: the options of {question} say nothing");
                }
                let options = options.len() as u64;
                assert!(options >= 2 && question["answer"].as_u64().unwrap() < options, "{name}: {question}");
                assert!(question["step"].as_u64().unwrap() > 0, "{name}: {question}");
            }
        }
        assert!(asked >= 2, "{name}: {asked} questions");
        sums.push_str(&format!("{name} {:08x}\n", crc32fast::hash(lesson.to_string().as_bytes())));
    }
    // An optimized program knows its lines less exactly, and another compiler may number them
    // differently.
    if cfg!(debug_assertions) && is_compiler_of_ci() {
        assert_same(&root().join("examples/course/sums.txt"), &sums);
    }
}

fn is_compiler_of_ci() -> bool {
    let version = Command::new("rustc").arg("--version").output().expect("the compiler of this test");
    String::from_utf8_lossy(&version.stdout).starts_with(concat!("rustc ", env!("CARGO_PKG_RUST_VERSION"), "."))
}

#[test]
fn step_names_the_lines_at_which_the_stacks_stand() {
    // H2: in lesson 9, Y waits in the line that locks; at the violation, Y and A are in their reads, and the
    // thread is where it entered A
    let lessons = data("lessons");
    let lesson = &array(&lessons)[8];
    let act = array(&lesson["acts"]).iter().find(|act| act["title"].as_str().unwrap().contains("A, X and Y")).unwrap();
    let stands = |words: &str| {
        let step = array(&act["steps"]).iter().find(|step| step[2].as_str().unwrap().starts_with(words)).unwrap();
        let line = |line: &Value| {
            let [stack, file, line] = [0, 1, 2].map(|n| line[n].as_i64().unwrap());
            let name = usize::try_from(stack).map_or("thread", |lane| act["lanes"][lane].as_str().unwrap());
            let text = lesson["files"][file as usize]["text"].as_str().unwrap();
            (name.to_string(), text.lines().nth(line as usize - 1).unwrap().trim().to_string())
        };
        array(&step[11]).iter().map(line).collect::<BTreeMap<_, _>>()
    };
    assert!(stands("Y yields, waits for a lock")["Y"].contains("CoMutex::lock"));
    let at_last = stands("VIOLATION");
    assert_eq!(["A", "Y", "thread"].map(|name| &*at_last[name]), ["read(&disk, 0);", "read(&disk, 0);", "a.enter();"]);
}

/// Steps through every act of every lesson and exhibit; answers each question wrongly first.
const READER: &str = "
const key = (key) => document.body.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
const open = (hash) => new Promise((done) => {
  addEventListener('hashchange', () => setTimeout(done), { once: true });
  location.hash = hash;
});
seen.acts = []; seen.wide = 0;
const look = () => { seen.wide = Math.max(seen.wide, document.documentElement.scrollWidth - innerWidth); };
const walk = async (place, whole) => {
  for (let act = 0; act < whole.acts.length; act++) {
    if (QUICK && place !== 'lesson=1') {
      await open(`${place}&act=${act + 1}&event=9999`);
      look();
      continue;
    }
    await open(`${place}&act=${act + 1}`);
    const it = lessons.playing, told = { place, act, refused: 0, accepted: 0, marked: 0 };
    for (let n = 0; n < 1000 && it.cursor < it.count - 1; n++) {
      const before = it.cursor;
      key('ArrowRight');
      if (it.asked) {
        const { answer, options } = it.asked, question = it.asked;
        options.forEach((_, wrongly) => {
          if (wrongly === answer) return;
          key(String(wrongly + 1));
          if (it.asked === question && document.querySelector('.result').textContent.startsWith('Not ')) told.refused += 1;
          key('ArrowRight');
          document.querySelector('.player .row:last-child').click();
          if (it.cursor !== question.step - 1) wrong.push('went on without an answer');
          if (!document.querySelector('.stacks').hidden) wrong.push('the stacks tell');
        });
        told.options = (told.options ?? 0) + options.length - 1;
        document.querySelector('.helps button').click();
        if (!document.querySelector('.result').textContent.startsWith('Hint: ')) wrong.push('no hint');
        key(String(answer + 1));
        if (document.querySelector('.result').textContent.startsWith('Right. ')) told.accepted += 1;
        key('ArrowRight');
        if (it.asked || document.querySelector('.stacks').hidden) wrong.push('does not continue after the answer');
      }
      if (it.cursor <= before) wrong.push(`${place} ${act}: stays at ${before}`);
      told.marked += document.querySelectorAll('.codepane .now').length;
    }
    told.steps = it.steps;
    key('ArrowRight');
    told.outcome = document.activeElement === document.querySelector('.seen');
    told.asked = (whole.acts[act].questions ?? []).length;
    told.end = document.querySelector('.seen').textContent;
    told.failure = whole.acts[act].failure;
    seen.acts.push(told);
    look();
  }
};
for (const [at, lesson] of course.data('lessons').entries()) await walk(`lesson=${at + 1}`, lesson);
for (const [at, exhibit] of course.data('museum').exhibits.entries()) await walk(`museum=${at + 1}`, exhibit);
await open('');
seen.progress = QUICK || [...document.querySelectorAll('.cards progress')].every((bar) => bar.value === bar.max);
for (const hash of ['compare=9', 'compare=m8', 'museum', 'levels', 'read', 'read=pictures', 'read=history', 'read=exercises', 'read=tokio', 'lesson=99', 'nothing']) {
  await open(hash);
  look();
  const text = document.querySelector('main').textContent;
  if (hash.startsWith('read') && (text.length < 200 || ['](', '|--'].some((mark) => text.includes(mark)))) wrong.push(`marks in ${hash}`);
}
seen.labels = [...document.querySelectorAll('button, a, input, select')].every((it) => it.textContent.trim() || it.ariaLabel || it.labels?.length);
";

#[test]
fn browser_steps_through_every_act() {
    // Checks that each lesson and exhibit steps from its first to its last event without an error, with a
    // marked line; that each question refuses wrong answers and accepts the right one; that nothing is
    // wider than the window; and, for one lesson in a narrow window, that it works without storage too
    let no_storage = "Object.defineProperty(window, 'localStorage', { get() { throw new Error('none'); } });
        const QUICK = true;";
    // To scroll to the row of each step lays out the page at each, which takes three times as long as
    // all else; the narrow window does it.
    let no_scrolling = "const QUICK = false;
        for (const [of, name] of [[HTMLElement, 'offsetTop'], [HTMLElement, 'offsetHeight'], [Element, 'scrollTop'], [Element, 'clientHeight']])
          Object.defineProperty(of.prototype, name, { get: () => 0, set: () => {} });
        Element.prototype.scrollIntoView = () => {};";
    for (wide, before, least) in [(1280, no_scrolling, 80), (360, no_storage, 3)] {
        let Some(seen) = read(page(), "", wide, before, READER) else { return };
        assert_eq!(seen["wrong"], json!([]), "{seen}");
        assert!(array(&seen["acts"]).len() >= least && seen["wide"].as_i64().unwrap() <= 0, "{wide}: {}", seen["wide"]);
        for act in array(&seen["acts"]) {
            assert_eq!(act["accepted"], act["asked"], "{act}");
            assert_eq!(act["refused"].as_u64().unwrap_or(0), act["options"].as_u64().unwrap_or(0), "{act}");
            let (steps, marked) = (act["steps"].as_u64().unwrap(), act["marked"].as_u64().unwrap());
            assert!(marked + 1 >= steps, "each step has a line: {act}");
            assert!(act["outcome"] == true, "one key after the last step leads to the outcome: {act}");
            let end = act["failure"].as_str().map_or("Ends well.".into(), |failure| format!("Fails: {failure}"));
            assert!(act["end"].as_str().unwrap().contains(&end), "{act}");
        }
        assert_eq!((&seen["progress"], &seen["labels"]), (&json!(true), &json!(true)));
    }
}

/// Uses the keys, after a link has opened the page.
const KEYS: &str = "
const moved = (act) => new Promise((done) => {
  addEventListener('hashchange', () => setTimeout(done), { once: true });
  act();
});
const key = (key) => document.body.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
const told = () => document.querySelector('.told').textContent;
seen.opened = told();
seen.acts = [...document.querySelectorAll('.acts a')].map((it) => it.textContent);
seen.now = document.querySelector('.codepane .now').textContent;
seen.stack = [...document.querySelectorAll('.tower b')].map((it) => it.textContent);
seen.said = document.getElementById('live').textContent;
seen.rows = [...document.querySelectorAll('.player .row')].filter((row) => !row.hidden).length;
key('ArrowLeft'); seen.back = told();
await new Promise((done) => setTimeout(done, 300));
seen.link = location.hash;
key('n'); seen.own = told();
key('Home'); seen.home = told(); key('w'); seen.wake = told();
key('a'); seen.all = [...document.querySelectorAll('.player .row')].every((row) => !row.hidden);
key('?'); seen.help = document.getElementById('keys').open && document.getElementById('keys').textContent;
seen.focus = document.activeElement.textContent;
document.getElementById('keys').close();
await moved(() => key(',')); seen.before = location.hash;
await moved(() => key('c'));
seen.compared = [...document.querySelectorAll('.compare .first')].map((it) => it.textContent);
const links = [...document.querySelectorAll('.compare .first a')]; await moved(() => links[0].click());
seen.followed = location.hash;
await moved(() => { location.hash = 'lesson=11'; });
key('ArrowRight'); key('h');
seen.hint = document.querySelector('.result').textContent;
document.querySelector('.option').focus();
document.querySelector('.option').click();
seen.wrongly = document.activeElement.disabled ? 'disabled, which loses the focus' : document.activeElement.className;
key('2'); key('ArrowRight');
seen.then = document.activeElement.className;
key('Home');
key('w'); key('w'); key('w'); key('w'); key('w'); key('w');
seen.noWake = document.querySelector('.where').textContent;
const pane = document.querySelector('.codepane .code'), at = lessons.playing.cursor;
pane.dispatchEvent(new KeyboardEvent('keydown', { key: 'End', bubbles: true }));
seen.scrolls = lessons.playing.cursor === at;
await moved(() => key(']')); seen.next = location.hash;
";

#[test]
fn browser_opens_a_link_at_its_step() {
    // Checks that a link opens at its step, with the code and the stacks of that step; the keys; and that
    // two acts are compared at their first difference
    let lessons = data("lessons");
    let act = &array(&lessons)[8]["acts"][1];
    let steps = array(&act["steps"]);
    let at = steps.iter().position(|step| step[5] == "violation").unwrap();
    let number = |at: usize| steps[at][0].as_str().unwrap();
    let told = |at: usize| format!("{}{}", number(at), steps[at][2].as_str().unwrap());
    let place = format!("#lesson=9&act=2&event={}", number(at));
    let Some(seen) = read(page(), &place, 1280, "", KEYS) else { return };
    let text = |key: &str| seen[key].as_str().unwrap_or_else(|| panic!("no {key}: {seen}"));
    assert_eq!(seen["wrong"], json!([]), "{seen}");
    assert_eq!(
        seen["acts"],
        json!(["Act 1", "Act 2", "3. The same with two coroutines and no lock"]),
        "no title tells"
    );
    assert!(text("opened").starts_with(&told(at)), "{seen}");
    assert!(text("now").contains("read(&disk, 0);"), "{seen}");
    assert_eq!(seen["stack"], json!(["thread", "A", "Y"]));
    assert!(text("said").contains("On the stack: thread, A, Y."), "{seen}");
    assert_eq!(seen["rows"], at + 1, "the rows to come are hidden");
    assert!(text("back").starts_with(&told(at - 1)), "{seen}");
    assert_eq!(text("link"), format!("#lesson=9&act=2&event={}", number(at - 1)));
    assert!(text("own").starts_with(&told(at)), "Y's next event: {seen}");
    assert!(text("home").starts_with(&told(0)) && text("wake").contains("wakes "), "{seen}");
    assert!(seen["all"] == true && text("help").contains("next wake"), "{seen}");
    assert!(text("help").contains("is suspended: not on the stack") && text("focus") == "Close", "{seen}");
    assert!(text("before").starts_with("#lesson=9&act=1"), "{seen}");
    let firsts = array(&seen["compared"]);
    assert!(firsts.len() == 2 && firsts[0] != firsts[1], "{seen}");
    assert!(firsts[0].as_str().unwrap().contains("enters X"), "{seen}");
    assert!(firsts[1].as_str().unwrap().contains("wakes X: runs when this one yields"), "{seen}");
    assert!(text("followed").starts_with("#lesson=9&act="), "{seen}");
    assert!(text("hint").starts_with("Hint: ") && text("wrongly").contains("wrong"), "the focus stays: {seen}");
    assert_eq!((text("then"), text("noWake"), text("next")), ("primary", " no wake is left", "#lesson=12"));
    assert_eq!(seen["scrolls"], true);
}
