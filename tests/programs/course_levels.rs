//! "You are the kernel", the part of the course's page in which the reader decides: its trees of
//! runs, and a reader in a browser who plays every level.

use serde_json::{Value, json};

use crate::browser::read;
use crate::course::{array, data, page};

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
    // the tree, which is complete, has none. The numbers of runs are known
    let data = data("levels");
    let size = data.to_string().len();
    assert!(size <= MAX_DATA, "{size} bytes");
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

/// Plays every level: finds the answers that lead to a failure, and gives them by mouse and by key in
/// turn.
const PLAYER: &str = "
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
seen.levels = [];
for (const level of course.data('levels').levels) {
  location.hash = `levels=${level.id}`;
  await later();
  const played = { id: level.id, title: one('.level h2').firstChild.textContent, goal: one('.goal').textContent.includes(level.goal) };
  const path = wins(level.versions[0].nodes, 0);
  // The page itself goes on once the goal is certain.
  path.forEach((answer, at) => all('.answer').length && (at % 2 ? key(String(answer + 1)) : all('.answer')[answer].click()));
  const shown = one('.outcome').getBoundingClientRect();
  played.inView = shown.top >= 0 && shown.top < innerHeight;
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
";

#[test]
fn browser_plays_each_level_to_its_goal() {
    // E17: by mouse and keys, each level is played to its goal, and with the guard the page says that no
    // run reaches it; nothing is wider than the window
    for wide in [1280, 360] {
        let Some(seen) = read(page(), "#levels", wide, "", PLAYER) else { return };
        assert_eq!(seen["wrong"], json!([]), "{seen}");
        let levels = array(&seen["levels"]);
        assert_eq!(levels.len(), LEVELS.len());
        for (played, (_, id, failure, [_, [runs, ..]])) in levels.iter().zip(LEVELS) {
            let text = |key: &str| played[key].as_str().unwrap_or_else(|| panic!("no {key}: {played}"));
            assert_eq!(text("id"), id);
            assert!(text("won").starts_with(&format!("Goal reached. {failure}")), "{played}");
            for key in ["goal", "ticked", "said", "undone", "again", "tab", "focus", "inView"] {
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
