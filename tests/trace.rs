//! The event log of a real run, and its exports: JSON for Perfetto, and a page that works in a
//! browser.

#[path = "common/browser.rs"]
mod browser;
mod common;

use std::collections::HashMap;
use std::fs;
use std::rc::Rc;
use std::time::Duration;

use common::Folder;
use coralio::context::AioContext;
use coralio::coroutine::Coroutine;
use coralio::simulate::{Faults, Latency, Simulation};
use coralio::sync::CoMutex;
use coralio::trace::{Event, Frame, Recording, Replay, RequestState, Span, Trace};
use coralio::{File, RuntimeBuilder};
use serde_json::Value;

/// A name that a page or a JSON file must escape.
const NAME: &str = "'A' \"</script><!-- \\ \u{1}\u{2028}\n\u{1f41a} &lt; {{data}}";

/// Traces three coroutines that share a lock and read.
fn traced(capacity: usize, violation: Option<&'static str>) -> Recording {
    let trace = Trace::new(capacity);
    let builder = RuntimeBuilder::new().trace(&trace);
    let run = || {
        let (file, lock) = (Rc::new(File::open("Cargo.lock").unwrap()), Rc::new(CoMutex::new(0)));
        let start = |name| {
            let (file, lock) = (Rc::clone(&file), Rc::clone(&lock));
            let read = move || {
                let mut block = [0; 512];
                *lock.lock() += 1;
                let _guard = lock.lock();
                for n in 0..10 {
                    file.read_at(&mut block, n * 512).unwrap();
                }
            };
            Coroutine::builder().name(name).spawn(read).unwrap()
        };
        let started = [NAME, "'B'", "'C'"].map(start);
        if let Some(what) = violation {
            AioContext::current().unwrap().tracer().unwrap().violation(what);
        }
        for coroutine in started {
            coroutine.join().unwrap();
        }
    };
    builder.run(run).unwrap();
    trace.recording()
}

fn number(event: &Value, key: &str) -> u64 {
    event[key].as_u64().unwrap_or_else(|| panic!("no {key} in {event}"))
}

/// Returns the timestamp of an event in nanoseconds; the format's unit is a microsecond.
fn ts(event: &Value) -> u64 {
    (event["ts"].as_f64().unwrap_or_else(|| panic!("no ts in {event}")) * 1000.0).round() as u64
}

fn phase(event: &Value) -> &str {
    event["ph"].as_str().unwrap()
}

/// Checks the rules of Chrome's format, as far as viewers depend on them, and returns the events.
fn look_at(json: &str) -> Vec<Value> {
    let whole: Value = serde_json::from_str(json).unwrap();
    let events = whole["traceEvents"].as_array().unwrap().clone();
    let mut open: HashMap<u64, Vec<(u64, String)>> = HashMap::new();
    let (mut begun, mut flows) = (HashMap::new(), HashMap::new());
    let mut ended = 0;
    for event in &events {
        let (at, lane) = (ts(event), number(event, "tid"));
        let name = event["name"].as_str().unwrap().to_string();
        match phase(event) {
            "B" => {
                let open = open.entry(lane).or_default();
                assert!(open.last().is_none_or(|(begin, _)| *begin <= at), "{event} begins before what it is in");
                open.push((at, name));
            }
            "E" => {
                let (begin, opened) =
                    open.get_mut(&lane).and_then(Vec::pop).unwrap_or_else(|| panic!("{event}: none open"));
                assert!(begin <= at && opened.starts_with(&name), "{event} ends {opened}, begun at {begin}");
            }
            "b" => assert_eq!(begun.insert(number(event, "id"), at), None, "{event}: twice"),
            "n" => assert!(begun[&number(event, "id")] <= at, "{event}: not begun"),
            "e" => {
                assert!(begun[&number(event, "id")] <= at, "{event}: ends before it begins");
                ended += 1;
            }
            "s" => assert_eq!(flows.insert(number(event, "id"), (at, false)), None, "{event}: twice"),
            "f" => {
                let (start, taken) = flows.get_mut(&number(event, "id")).unwrap_or_else(|| panic!("{event}: no start"));
                assert!(*start <= at && !*taken, "{event} began at {start}");
                *taken = true;
            }
            _ => {}
        }
    }
    assert!(open.values().all(Vec::is_empty), "open at the end: {open:?}");
    assert!(flows.values().all(|(_, taken)| *taken), "arrows to nowhere: {flows:?}");
    assert_eq!(begun.len(), ended, "requests that do not end");
    events
}

#[test]
fn perfetto_file_is_well_formed() {
    // C1, C4, E2, E5, E9, W1: a run passes the checks; slices nest in each lane, arrows have both
    // ends, requests begin and end
    let recording = traced(10_000, None);
    recording.check().unwrap();
    let events = look_at(&recording.perfetto());
    let count = |which| events.iter().filter(|event| phase(event) == which).count();
    assert_eq!(count("b"), 30, "a slice for each read");
    for which in ["B", "s", "C", "i"] {
        assert!(count(which) > 0, "none is {which}");
    }
    let names: Vec<_> = events.iter().filter(|event| event["name"] == "thread_name").collect();
    assert!(names.iter().any(|event| event["args"]["name"] == NAME), "{names:?}");
}

#[test]
fn perfetto_file_has_the_times_of_the_events() {
    // X14: in nanoseconds, in order; a simulated run gives the same file each time, with virtual
    // times
    let recording = traced(10_000, None);
    let events = look_at(&recording.perfetto());
    let created: Vec<_> =
        recording.records.iter().filter(|record| matches!(record.event, Event::Create(_))).map(|r| r.time).collect();
    let drawn: Vec<_> = events.iter().filter(|event| event["name"].as_str().unwrap().starts_with("creates ")).collect();
    assert_eq!(drawn.len(), created.len());
    for (event, time) in drawn.into_iter().zip(created) {
        // Events with equal times are drawn 1 ns apart.
        let late = u128::from(ts(event)) - time.as_nanos();
        assert!(late < recording.records.len() as u128, "{event} is drawn {late} ns late");
    }

    let simulated = || {
        let trace = Trace::new(10_000);
        let latency = Latency::fixed(Duration::from_millis(8));
        Simulation::new()
            .latency(latency)
            .faults(Faults::none())
            .trace(&trace)
            .run(0..1, |sim| sim.create("file", 4096).read_at(&mut [0; 4096], 0).map(|_| ()));
        trace.recording().perfetto()
    };
    let file = simulated();
    assert_eq!(file, simulated());
    let events = look_at(&file);
    let at = |which| ts(events.iter().find(|event| phase(event) == which).unwrap());
    let taken = at("e") - at("b");
    assert!((7_990_000..8_010_000).contains(&taken), "a read of 8 ms took {taken} ns");
}

#[test]
fn truncated_log_still_checks() {
    // C4, W1: exports are well formed for a log that has lost its beginning, at any length
    let whole = traced(10_000, None).records.len();
    let mut lost = 0;
    for capacity in (1..whole * 3 / 4).step_by(31) {
        let recording = traced(capacity, None);
        // The number of events differs between runs: on threads by more than a quarter.
        lost += recording.lost;
        look_at(&recording.perfetto());
        data(&recording.html());
    }
    assert!(lost > 0);
}

#[test]
fn unnested_and_unfinished_logs_are_rendered() {
    // C4: spans open within a frame that is left end with it; spans open at the last event end
    // there
    let trace = Trace::new(1000);
    let run = || {
        let context = AioContext::current().unwrap();
        let _open = context.tracer().unwrap().span(Span::Submit);
        let _within = context.tracer().unwrap().span(Span::Reap);
        let running = trace.recording();
        running.check().unwrap();
        look_at(&running.perfetto());
        coralio::yield_now();
    };
    RuntimeBuilder::new().trace(&trace).run(run).unwrap();
    let recording = trace.recording();
    let what = recording.check().unwrap_err().to_string();
    assert!(what.contains("before [Span(Submit), Span(Reap)] inside it"), "{what}");
    let events = look_at(&recording.perfetto());
    assert!(events.iter().any(|event| event["name"].as_str().unwrap().contains("inside it")));
    assert!(!data(&recording.html())["violations"].as_array().unwrap().is_empty());
}

/// Returns the data in a page, from which its script draws.
fn data(page: &str) -> Value {
    let (_, rest) = page.split_once("<script type=\"application/json\" id=\"data\">").unwrap();
    serde_json::from_str(rest.split_once("</script>").unwrap().0).unwrap()
}

#[test]
fn page_is_self_contained_and_escapes_names() {
    // No name ends the script element, and no address leads out of the page
    let page = traced(10_000, Some(NAME)).html_titled("a < b & </title>", None);
    assert_eq!(page.matches("</script").count(), 2);
    assert!(page.contains("<title>a &lt; b &amp; &lt;/title></title>"));
    for outside in ["http:", "https:", "//cdn", " src=", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
    let data = data(&page);
    assert!(data["lanes"].as_array().unwrap().iter().any(|name| name == NAME));
    assert_eq!(data["violations"].as_array().unwrap().len(), 1);
}

#[test]
fn nested_iteration_is_on_the_polling_coroutines_stack() {
    // X2: in the page and in the lanes of text, an iteration polled by a coroutine belongs to that
    // coroutine, which counts as running throughout
    let trace = Trace::new(1000);
    let poll = || {
        let _ = AioContext::current().unwrap().poll(false);
    };
    let run = || Coroutine::builder().name("'P'").spawn(poll).unwrap().join().unwrap();
    RuntimeBuilder::new().trace(&trace).run(run).unwrap();
    let recording = trace.recording();
    let text = recording.text();
    let lane = text.lines().find(|line| line.contains("'P'")).unwrap();
    let column = lane[..lane.find("'P'").unwrap()].chars().count();
    let nested = |line: &&str| line.ends_with(" iteration") && line.chars().nth(column) == Some('\u{25cf}');
    assert_eq!(text.lines().filter(nested).count(), 1, "{text}");

    let page = data(&recording.html());
    let numbers = |list: &Value| list.as_array().unwrap().iter().map(|n| n.as_i64().unwrap()).collect::<Vec<_>>();
    let row = page["rows"].as_array().unwrap().iter().position(|row| row["label"] == "'P'").unwrap();
    let events = numbers(&page["events"]);
    let is_nested = |event: &&[i64]| page["strings"][event[4] as usize] == "iteration" && event[2] == row as i64;
    assert_eq!(events.chunks(7).filter(is_nested).count(), 1);
    let bars = numbers(&page["rows"][row]["levels"][0]);
    let states: Vec<_> = bars.chunks(6).map(|bar| bar[2]).collect();
    assert_eq!(states, [SUSPENDED, RUNS], "made, and entered once");
}

/// The states of a bar in the page's data.
const SUSPENDED: i64 = 1;
const RUNS: i64 = 3;

#[test]
fn file_extension_selects_the_format() {
    // .html, .json and .txt are written; for another extension the message gives the remedy
    let folder = Folder::new("endings");
    let recording = traced(10_000, None);
    for (name, begin) in [("a.html", "<!DOCTYPE html>"), ("a.json", "{"), ("a.txt", "●")] {
        recording.write(folder.0.join(name)).unwrap();
        assert!(fs::read_to_string(folder.0.join(name)).unwrap().starts_with(begin), "{name}");
    }
    for name in ["a", "a.svg"] {
        let error = recording.write(folder.0.join(name)).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(".html for a page"), "{error}");
        assert!(!folder.0.join(name).exists());
    }
    let error = recording.write(folder.0.join("none/a.txt")).unwrap_err().to_string();
    assert!(error.contains("none/a.txt: No such file"), "{error}");
}

/// Runs after the page's script and acts as a reader. `AT` is an event, given by its position in
/// the log, and `COROUTINE` a name to look for.
const READER: &str = "
const $ = (id) => document.getElementById(id);
const key = (key) => document.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
const slide = (to) => { $('slider').value = to; $('slider').dispatchEvent(new Event('input')); };
const here = () => Number($('slider').value);
const middle = () => { const box = $('cursor').getBoundingClientRect(); return box.left + box.width / 2; };
seen.opened = $('number').textContent;
seen.inSight = middle() > $('view').getBoundingClientRect().left && middle() < $('view').getBoundingClientRect().right;
$('all').click();
seen.most = Number($('slider').max);
key('End'); seen.end = here();
key('Home'); seen.home = here();
key('ArrowRight'); key('ArrowRight'); key('ArrowLeft'); seen.arrows = here();
seen.second = $('number').textContent;
key('PageDown'); seen.page = here();
key(' '); seen.plays = $('play').textContent; key(' '); seen.stops = $('play').textContent;
const wide = $('space').offsetWidth; key('+'); seen.larger = $('space').offsetWidth > wide; key('-');
const scheme = () => getComputedStyle(document.body).backgroundColor;
const first = scheme(); key('t'); seen.turns = first !== scheme();
slide(AT); seen.slid = $('number').textContent;
const x = middle(); key('ArrowLeft'); seen.away = here();
$('lanes').dispatchEvent(new MouseEvent('click', { clientX: x, clientY: $('lanes').getBoundingClientRect().top + 9, bubbles: true }));
seen.clicked = here(); seen.words = $('words').textContent; seen.chain = $('chain').textContent;
key('/'); seen.ready = document.activeElement === $('find');
const press = (key, shiftKey) => $('find').dispatchEvent(new KeyboardEvent('keydown', { key, shiftKey, bubbles: true }));
const find = (words, back) => {
  $('find').value = words; $('find').dispatchEvent(new Event('input')); press('Enter', back);
  return $('words').textContent;
};
seen.coroutine = [find('COROUTINE'), find('COROUTINE')];
seen.named = [...document.querySelectorAll('#lanes .name title')].some((title) => title.textContent === 'COROUTINE');
seen.request = [find('request 1'), find('request 1'), find('request 1', true)];
seen.hits = $('found').textContent;
seen.suggested = [...$('names').options].map((option) => option.value);
const before = here(); find('nothing like it'); seen.unfound = [here() - before, $('found').textContent];
const last = scheme(); press('t'); press('Escape');
seen.left = [last === scheme(), document.activeElement === $('find')];
seen.busy = $('space').offsetHeight; $('idle').click(); seen.tall = $('space').offsetHeight;
key('v'); seen.violation = $('words').textContent; seen.alarm = $('alarm').textContent;
seen.overflow = document.documentElement.scrollWidth - innerWidth; seen.wide = innerWidth;
seen.drawn = $('lanes').querySelectorAll('*').length;";

/// Returns the observations of a reader of the page after a search for the coroutine `name`, in a window
/// `wide` pixels wide, or `None` without a browser.
fn read(page: &str, at: usize, name: &str, wide: u32) -> Option<Value> {
    let reader = READER.replace("AT", &at.to_string()).replace("COROUTINE", &name.replace('\'', "\\'"));
    browser::read(page, "", wide, "", &reader)
}

/// Returns the stack at event `at`, in the page's words.
fn chain(recording: &Recording, at: usize) -> String {
    let mut replay = Replay::of(recording);
    for record in &recording.records[..=at] {
        let _ = replay.apply(record);
    }
    let frame = |frame: &Frame| match frame {
        Frame::Coroutine(lane) => recording.name(*lane).to_string(),
        Frame::Span(span) => span.to_string(),
    };
    let stack: Vec<_> = replay.stack(recording.records[at].thread).iter().map(frame).collect();
    format!("on the stack: thread\u{203a}{}", stack.join("\u{203a}"))
}

#[test]
fn browser_shows_the_page() {
    // C4, X14: the page loads without errors, keys and slider work, a click shows the stack, and a
    // search leads to coroutines and requests
    let recording = traced(10_000, Some(NAME));
    let is_reentered = |event: &Event| matches!(event, Event::Enter { lane, .. } if recording.name(*lane) == NAME);
    let at = recording.records.iter().rposition(|record| is_reentered(&record.event)).unwrap();
    for wide in [1280, 360] {
        let Some(seen) = read(&recording.html(), at, "'B'", wide) else { return };
        assert_eq!(seen["wide"], wide);
        everything_works(&recording, at, &seen);
    }
}

fn everything_works(recording: &Recording, at: usize, seen: &Value) {
    let last = recording.records.len() - 1;
    assert_eq!(seen["wrong"], serde_json::json!([]), "{seen}");
    assert_eq!((&seen["most"], &seen["end"], &seen["home"]), (&last.into(), &last.into(), &0.into()), "{seen}");
    assert_eq!((&seen["arrows"], &seen["page"]), (&1.into(), &21.into()), "{seen}");
    assert_eq!((&seen["plays"], &seen["stops"]), (&"\u{275a}\u{275a}".into(), &"\u{25b6}".into()));
    assert_eq!((&seen["larger"], &seen["turns"]), (&true.into(), &true.into()));
    assert_eq!(seen["slid"], format!("event {}", recording.records[at].number));
    assert_eq!((&seen["away"], &seen["clicked"]), (&(at - 1).into(), &at.into()), "{seen}");
    assert_eq!(seen["words"], recording.describe(&recording.records[at].event).to_string());
    assert_eq!(seen["chain"], chain(recording, at));
    assert_eq!(seen["violation"], format!("VIOLATION: {NAME}"));
    assert!(seen["alarm"].as_str().unwrap().contains(NAME));
    assert_eq!((&seen["ready"], &seen["named"]), (&true.into(), &true.into()), "{seen}");
    assert_eq!(seen["coroutine"], serde_json::json!(["creates 'B'", "enters 'B'"]));
    let pending = "request 1: pending";
    assert_eq!(seen["request"], serde_json::json!([pending, "request 1: in flight", pending]));
    assert_eq!(seen["hits"], "1 of 3", "and none of request 10");
    assert_eq!(seen["suggested"][0], "request 1");
    assert_eq!(seen["suggested"].as_array().unwrap().len(), 11, "request 1, and 10 to 19");
    assert_eq!(
        (&seen["unfound"], &seen["left"]),
        (&serde_json::json!([0, "not found"]), &serde_json::json!([true, false]))
    );
    let violation = recording.records.iter().find(|record| matches!(record.event, Event::Violation(_))).unwrap();
    opens_at(violation.number, seen);
    assert!(seen["overflow"].as_i64().unwrap() <= 0, "wider than its window: {seen}");
}

/// Asserts that the page opens at this event, and that the event is in view.
fn opens_at(number: u64, seen: &Value) {
    assert_eq!((&seen["opened"], &seen["inSight"]), (&format!("event {number}").into(), &true.into()), "{seen}");
}

#[test]
fn browser_opens_a_failed_run_at_its_end() {
    // C4: the page of a failed run opens at its last event, also where no rule was broken, and
    // shows the failure
    let recording = traced(10_000, None);
    let what = "stuck: </script> & nobody comes";
    let page = recording.html_titled("failed", Some(what));
    let hidden = data(&page)["hidden"].as_array().unwrap().clone();
    let last = (0..recording.records.len()).rfind(|at| !hidden.contains(&(*at).into())).unwrap();
    for wide in [1280, 360] {
        let Some(seen) = read(&page, 1, "'B'", wide) else { return };
        assert_eq!(seen["alarm"], format!("\u{2715} fails: {what}"));
        opens_at(recording.records[last].number, &seen);
    }
}

#[test]
fn browser_opens_at_the_first_request_in_flight() {
    // X14: where no rule was broken and the run did not fail
    let recording = traced(10_000, None);
    let is_submit = |event: &Event| matches!(event, Event::Request { state: RequestState::InFlight, .. });
    let first = recording.records.iter().find(|record| is_submit(&record.event)).unwrap();
    let Some(seen) = read(&recording.html(), 1, "'B'", 1280) else { return };
    opens_at(first.number, &seen);
}

#[test]
fn browser_draws_only_the_visible_part() {
    // X14: a hundred thousand events are drawn one window at a time, without the coroutines that do
    // not run meanwhile
    let trace = Trace::new(100_000);
    let run = || {
        let swap = |n: usize| (0..n).for_each(|_| coralio::yield_now());
        let all: Vec<_> = (0..100).map(|_| coralio::spawn(move || swap(700))).collect();
        all.into_iter().for_each(|one| one.join().unwrap());
    };
    RuntimeBuilder::new().trace(&trace).run(run).unwrap();
    let recording = trace.recording();
    assert_eq!(recording.records.len(), 100_000);
    let Some(seen) = read(&recording.html(), 50_000, "#50", 1280) else { return };
    assert_eq!((&seen["wrong"], &seen["clicked"]), (&serde_json::json!([]), &50_000.into()), "{seen}");
    assert!(seen["drawn"].as_u64().unwrap() < 3000, "{seen}");
    assert_eq!((&seen["coroutine"][0], &seen["named"]), (&"enters #50".into(), &true.into()), "{seen}");
    let height = |which: &str| seen[which].as_u64().unwrap();
    assert!(height("busy") * 2 < height("tall"), "lanes in which nothing runs are not hidden: {seen}");
}
