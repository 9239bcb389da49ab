//! "You are the kernel", the part of the course's page in which the reader decides: its trees of
//! runs, and a reader in a browser who plays every level.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

use crate::common::{Folder, example};

/// A level as its lesson's number, its name, how its runs fail, and two trees, with the bug and with
/// the guard: the number of runs, and of those that differ in what the reader sees.
type Row = (u64, &'static str, &'static str, [[u64; 3]; 2]);

/// The trees: runs, leaves, failures.
const LEVELS: [Row; 12] = [
    (7, "letter", "A has read three times, and B has not run", [[4, 4, 1], [2, 2, 0]]),
    (8, "july", "recursive entry of 'B': thread > loop > 'B'", [[8, 8, 3], [8, 8, 0]]),
    (9, "september", "recursive entry of 'A': thread > 'A' > 'Y'", [[38, 38, 5], [38, 38, 0]]),
    (10, "check", "A has continued without a result", [[3, 3, 1], [4, 4, 0]]),
    (11, "nested", "this sleep would never end: the ring is empty", [[8, 8, 2], [8, 8, 0]]),
    (12, "threads", "in_flight below zero: a completion was reaped twice", [[32, 32, 6], [33, 33, 0]]),
    (13, "plug", "E's read is pending: it waits for a plug that was dropped", [[80, 80, 16], [96, 96, 0]]),
    (13, "again", "stuck: ", [[110, 110, 2], [164, 164, 0]]),
    (14, "saved", "the user was told \"saved\", and the file contains ", [[19, 9, 3], [20, 10, 0]]),
    (14, "transfer", "the accounts have ", [[164, 20, 12], [182, 38, 0]]),
    (14, "torn", "the accounts have ", [[182, 30, 6], [182, 38, 0]]),
    (0, "short", "cut: 128 bytes of 512 in the ", [[10, 10, 6], [20, 20, 0]]),
];

/// The page may grow by this many bytes.
const MAX_DATA: usize = 500_000;
const MAX_LEAVES: u64 = 300;

fn page() -> String {
    let folder = Folder::new("course");
    let file = folder.0.join("course.html");
    let output = Command::new(example("course")).arg("--output").arg(&file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::read_to_string(file).unwrap()
}

/// Returns the page that the tests share.
fn first_page() -> &'static str {
    static PAGE: OnceLock<String> = OnceLock::new();
    PAGE.get_or_init(page)
}

/// Returns the data of the levels as text.
fn data(page: &str) -> &str {
    let (_, rest) = page.split_once("<script type=\"application/json\" id=\"data-levels\">").unwrap();
    rest.split_once("</script>").unwrap().0
}

fn array(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("no list: {value}"))
}

fn number(value: &Value) -> usize {
    value.as_u64().unwrap_or_else(|| panic!("no number: {value}")) as usize
}

/// Walks in one tree. Calls `end` with the rows of each run, its outcome, and whether it fails.
fn walk(tree: &Value, texts: &[&str], end: &mut dyn FnMut(&[&str], &str, bool)) -> usize {
    fn go<'a>(
        nodes: &[Value],
        at: usize,
        texts: &[&'a str],
        rows: &mut Vec<&'a str>,
        end: &mut dyn FnMut(&[&str], &str, bool),
    ) -> usize {
        let [new, said, then] = array(&nodes[at]) else { panic!("{}", nodes[at]) };
        let before = rows.len();
        rows.extend(array(new).iter().map(|row| texts[number(row)]));
        let said = texts[number(said)];
        let mut seen = 1;
        if let Some(failed) = then.as_bool() {
            end(rows, said, failed);
        } else {
            let answers: Vec<_> = array(then).chunks(2).map(|answer| texts[number(&answer[0])]).collect();
            assert!(answers.len() > 1, "a question with one answer: {said} {answers:?}");
            for (place, answer) in array(then).chunks(2).enumerate() {
                assert!(!answers[..place].contains(&answers[place]), "twice the same answer: {said} {answers:?}");
                seen += go(nodes, number(&answer[1]), texts, rows, end);
            }
        }
        rows.truncate(before);
        seen
    }
    go(array(&tree["nodes"]), 0, texts, &mut Vec::new(), end)
}

#[test]
fn each_level_can_be_won_and_its_guard_cannot() {
    // E17, H1-H4, H6, H7, H11: each level's tree has the level's failure and no other; with the guard
    // the tree, which is complete, has none. The numbers of runs are known, and the same each time
    let text = data(first_page());
    assert_eq!(text, data(&page()), "the same data twice");
    assert!(text.len() <= MAX_DATA, "{} bytes", text.len());
    let data: Value = serde_json::from_str(text).unwrap();
    let texts: Vec<_> = array(&data["texts"]).iter().map(|text| text.as_str().unwrap()).collect();
    let levels = array(&data["levels"]);
    assert_eq!(levels.len(), LEVELS.len());
    for (level, (lesson, id, failure, counts)) in levels.iter().zip(LEVELS) {
        assert!(level["source"].as_str().unwrap().contains("kernel") || lesson == 14, "{id}: {}", level["source"]);
        assert_eq!((level["lesson"].as_u64().unwrap(), level["id"].as_str().unwrap()), (lesson, id));
        for (tree, expected) in array(&level["versions"]).iter().zip(counts) {
            let (mut leaves, mut failures) = (0, 0);
            let seen = walk(tree, &texts, &mut |rows, said, failed| {
                leaves += 1;
                failures += u64::from(failed);
                assert!(!failed && said == "ends well" || failed && said.starts_with(failure), "{id}: {said}");
                let broken = rows.iter().filter(|row| row.contains("VIOLATION")).count();
                assert!(broken <= usize::from(failed), "{id}: {rows:?}");
                assert!(rows.iter().all(|row| row.split('\t').count() == 2), "{id}: a picture and words: {rows:?}");
            });
            assert_eq!(seen, array(&tree["nodes"]).len(), "{id}: each node is in the tree");
            assert_eq!([tree["runs"].as_u64().unwrap(), leaves, failures], expected, "{id}, {}", tree["name"]);
            assert!(leaves <= MAX_LEAVES, "{id}: {leaves}");
        }
    }
}

/// Runs before the page's own scripts and records their errors.
const TRAP: &str = "<script>
const wrong = [];
addEventListener('error', (event) => wrong.push(event.message));
console.error = (...words) => wrong.push(words.join(' '));
</script>";

/// Runs after them, and plays every level: finds the answers that lead to a failure, and gives them by
/// mouse and by key in turn.
const PLAYER: &str = "<script>
{
const all = (what) => [...document.querySelectorAll(what)], one = (what) => document.querySelector(what);
const later = () => new Promise((done) => setTimeout(done, 20));
const key = (key) => (document.activeElement ?? document.body).dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
const click = (text) => all('.level button').find((button) => button.textContent === text).click();
const wins = (nodes, at) => {
  const then = nodes[at][2];
  if (typeof then === 'boolean') return then ? [] : null;
  for (let place = 0; place < then.length; place += 2) {
    const rest = wins(nodes, then[place + 1]);
    if (rest) return [place / 2, ...rest];
  }
  return null;
};
const seen = { levels: [], wrong };
const player = async () => {
  const { levels } = course.data('levels');
  for (const level of levels) {
    location.hash = `levels=${level.id}`;
    await later();
    const played = { id: level.id, title: one('.level h2').firstChild.textContent, goal: one('.goal').textContent.includes(level.goal) };
    const path = wins(level.versions[0].nodes, 0);
    path.forEach((answer, at) => (at % 2 ? key(String(answer + 1)) : all('.answer')[answer].click()));
    played.won = one('.outcome.won')?.textContent ?? '';
    played.tries = one('.tries').textContent;
    played.ticked = one('.levels [aria-current]').textContent.endsWith('\\u2713');
    played.said = one('#live').textContent.includes('Goal reached. ');
    const rows = all('.lanes .row').length;
    key('u'); played.undone = all('.answer').length > 1 && all('.lanes .row').length < rows;
    key('h'); played.hint = one('.hint').textContent;
    click('Restart'); played.again = all('.tools button')[0].disabled;
    path.forEach((answer) => key(String(answer + 1)));
    played.second = one('.tries').textContent;
    click('Now with the guard');
    played.guarded = one('.verdict').textContent;
    played.tab = one('[role=tab][aria-selected=true]').textContent === level.versions[1].name;
    one('.answer').focus();
    for (let step = 0; all('.answer').length && step < 100; step++) key(String(1 + step % all('.answer').length));
    played.well = one('.outcome').textContent;
    played.wide = document.documentElement.scrollWidth - innerWidth;
    played.focus = one('.play').contains(document.activeElement) || one('.tools').contains(document.activeElement);
    seen.levels.push(played);
  }
  seen.labels = all('main button, main a').every((it) => it.textContent.trim() !== '');
  location.hash = 'levels=september&guard'; await later();
  seen.link = one('[role=tab][aria-selected=true]').textContent;
  one('[role=tab][aria-selected=true]').dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowLeft', bubbles: true }));
  seen.arrow = one('[role=tab][aria-selected=true]').textContent;
};
player().catch((error) => wrong.push(String(error.stack))).finally(() => parent.postMessage([...new TextEncoder().encode(JSON.stringify(seen))].map((byte) => byte.toString(16).padStart(2, '0')).join(''), '*'));
}
</script></body>";

/// The window around the page. The observations are in hexadecimal, which a dump of the page leaves
/// unchanged.
const WINDOW: &str = "<!DOCTYPE html><pre id='seen'></pre>
<script>addEventListener('message', (event) => document.getElementById('seen').textContent = event.data);</script>
<iframe src='played.html' style='border:0; width:WIDEpx; height:740px'></iframe>";

fn browser() -> Option<&'static str> {
    let works = |name: &&str| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success());
    ["chromium", "chromium-browser", "google-chrome"].into_iter().find(works)
}

/// Lets the player play in a window `wide` pixels wide. Returns what it has seen.
fn play(browser: &str, page: &str, wide: u32, folder: &Folder) -> Value {
    let page = page.replacen("<style>", &format!("{TRAP}<style>"), 1);
    let (before, after) = page.rsplit_once("</body>").unwrap();
    fs::write(folder.0.join("played.html"), format!("{before}{PLAYER}{after}")).unwrap();
    let window: PathBuf = folder.0.join("window.html");
    fs::write(&window, WINDOW.replace("WIDE", &wide.to_string())).unwrap();
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
        .args(["--virtual-time-budget=20000", "--window-size=1400,800", "--dump-dom"])
        .arg(format!("--user-data-dir={}", folder.0.join("profile").display()))
        .arg(format!("file://{}", window.display()))
        .output()
        .unwrap();
    let dom = String::from_utf8(output.stdout).unwrap();
    let told = dom.split_once("<pre id=\"seen\">").and_then(|(_, rest)| rest.split_once("</pre>"));
    let (told, _) =
        told.filter(|(told, _)| !told.is_empty()).unwrap_or_else(|| panic!("the player did not get to the end: {dom}"));
    let byte = |at| u8::from_str_radix(&told[at..at + 2], 16).unwrap();
    serde_json::from_slice(&(0..told.len()).step_by(2).map(byte).collect::<Vec<_>>()).unwrap()
}

#[test]
fn browser_plays_each_level_to_its_goal() {
    // E17: by mouse and keys, each level is played to its goal, and with the guard the page says that no
    // run reaches it; nothing is wider than the window
    let Some(browser) = browser() else { return eprintln!("skipped: no chromium") };
    let folder = Folder::new("player");
    for wide in [1280, 360] {
        let seen = play(browser, first_page(), wide, &folder);
        assert_eq!(seen["wrong"], serde_json::json!([]), "{seen}");
        let levels = array(&seen["levels"]);
        assert_eq!(levels.len(), LEVELS.len());
        for (played, (_, id, failure, [_, [runs, ..]])) in levels.iter().zip(LEVELS) {
            let text = |key: &str| played[key].as_str().unwrap_or_else(|| panic!("no {key}: {played}"));
            assert_eq!(text("id"), id);
            assert!(text("won").starts_with(&format!("Goal reached. {failure}")), "{played}");
            for key in ["goal", "ticked", "said", "undone", "again", "tab", "focus"] {
                assert_eq!(played[key], true, "{id}, {key}: {played}");
            }
            assert!(text("hint").starts_with("Hint: ") && text("hint").len() > 20, "{played}");
            assert!(text("guarded").starts_with(&format!("None of the {runs} possible runs reaches")), "{played}");
            assert!(text("well").starts_with("Ends well."), "{played}");
            assert!(played["wide"].as_i64().unwrap() <= 0, "{id}: wider than a window of {wide}: {played}");
            assert_ne!(text("tries"), text("second"), "{id}: each run to the end is a try");
        }
        assert_eq!(seen["labels"], true, "{seen}");
        assert!(
            seen["link"].as_str().unwrap().contains("today") && seen["arrow"].as_str().unwrap().contains("July"),
            "{seen}"
        );
    }
}
