//! The source of a user's program in its traces: the lines of events, and the trace page.

use std::fs;

use coralio::RuntimeBuilder;
use coralio::coroutine::Coroutine;
use coralio::trace::{Event, Record, Recording, Trace};
use serde_json::{Value, json};

use crate::browser::read;
use crate::common::Folder;
use crate::lessons::{program, root};

const FILE: &str = "tests/programs/trace_page.rs";

/// Yields, and returns the line on which it does.
fn yields() -> u32 {
    (coralio::yield_now(), line!()).1
}

/// Traces a coroutine that yields. Returns the line, and the line on which it is joined.
fn traced(trace: &Trace) -> (Recording, u32, u32) {
    let run = || {
        let a = Coroutine::builder().name("'A'").spawn(yields).unwrap();
        (a.join().unwrap(), line!())
    };
    let (yields, joins) = RuntimeBuilder::new().trace(trace).run(run).unwrap();
    (trace.recording(), yields, joins)
}

/// Returns the lines of an event in this file.
fn lines(record: &Record) -> Vec<u32> {
    let here = |file: &str| file.ends_with(FILE);
    record
        .calls
        .iter()
        .map(|call| (call.file.to_string_lossy(), call.line))
        .map(|(file, line)| {
            assert!(here(&file), "{file} is not the program's");
            line
        })
        .collect()
}

fn is_by<'a>(recording: &'a Recording, name: &'a str) -> impl Fn(&&Record) -> bool + 'a {
    move |record| matches!(record.event, Event::Yield { lane, .. } if recording.name(lane) == name)
}

#[test]
fn event_has_the_programs_lines_on_its_own_stack() {
    // X14: a yield names the call that yields and its callers in the program, and nothing of the code that
    // entered the coroutine; the end of a coroutine has no line, and no event has one by default
    let (recording, yields, joins) = traced(&Trace::new(1000).with_source());
    let of_a = recording.records.iter().find(is_by(&recording, "'A'")).unwrap();
    assert_eq!(lines(of_a), [yields]);
    let joined = recording.records.iter().find(|record| lines(record).first() == Some(&joins)).unwrap();
    assert!(matches!(joined.event, Event::Yield { .. }), "{joined:?}");
    for record in &recording.records {
        assert!(!matches!(record.event, Event::End(_)) || record.calls.is_empty(), "{record:?}");
    }
    let (plain, ..) = traced(&Trace::new(1000));
    assert!(plain.records.iter().all(|record| record.calls.is_empty()));
}

#[test]
fn lines_stay_with_their_events_when_older_ones_are_lost() {
    // X14: in a log of any size, the yield has its own line
    let whole = traced(&Trace::new(1000)).0.records.len();
    for capacity in 1..whole {
        let (recording, yields, _) = traced(&Trace::new(capacity).with_source());
        assert!(recording.lost > 0);
        for record in recording.records.iter().filter(is_by(&recording, "'A'")) {
            assert_eq!(lines(record), [yields], "of {capacity} events");
        }
    }
}

/// Returns the data in a trace page.
fn data(page: &str) -> Value {
    let (_, rest) = page.split_once("<script type=\"application/json\" id=\"data\">").unwrap();
    serde_json::from_str(rest.split_once("</script>").unwrap().0).unwrap()
}

#[test]
fn page_contains_the_files_whose_lines_occur() {
    // X14: with their paths relative to the package, and no others; without lines, no file
    let (recording, yields, _) = traced(&Trace::new(1000).with_source());
    let page = recording.html();
    let data = data(&page);
    let files = data["files"].as_array().unwrap();
    assert_eq!(files.iter().map(|file| &file["path"]).collect::<Vec<_>>(), [FILE]);
    assert_eq!(files[0]["text"], include_str!("trace_page.rs"));
    assert!(data["strings"].as_array().unwrap().contains(&json!(format!("{FILE}:{yields}"))));
    let machine = root().display().to_string();
    assert!(!page.contains(&machine), "{machine}");
    assert_eq!(self::data(&traced(&Trace::new(1000)).0.html())["files"], json!([]));
}

/// Looks at the event that a link has opened, and at others.
const READER: &str = "
const $ = (id) => document.getElementById(id);
const key = (key) => document.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
const now = () => $('code').querySelector('.now')?.textContent ?? '';
const opened = () => [$('number').textContent, $('words').textContent];
seen.opened = opened(); seen.now = now();
seen.labels = [...$('code').querySelectorAll('.mark')].map((mark) => mark.textContent).sort();
key('End'); key('Home'); seen.first = now();
await new Promise((done) => setTimeout(done, 400));
seen.named = location.hash;
await new Promise((done) => { addEventListener('hashchange', () => setTimeout(done), { once: true }); location.hash = '#event=EVENT'; });
seen.again = opened();
seen.wide = document.documentElement.scrollWidth - innerWidth;
";

#[test]
fn browser_shows_the_code_of_a_linked_event() {
    // X14: the page of a program's trace opens at the linked event, and marks its line and that of the
    // stack below it
    let folder = Folder::new("linked");
    program("09_september_2016").arg("--trace").arg(folder.0.join("h2.html")).output().unwrap();
    let page = fs::read_to_string(folder.0.join("h2-2.html")).unwrap();
    let data = data(&page);
    let numbers: Vec<_> = data["events"].as_array().unwrap().iter().map(|number| number.as_i64().unwrap()).collect();
    let text = |event: &&[i64]| data["strings"][event[4] as usize].as_str().unwrap();
    let event = numbers.chunks(7).find(|event| text(event).starts_with("VIOLATION")).unwrap();
    for wide in [1280, 360] {
        let reader = READER.replace("EVENT", &event[0].to_string());
        let Some(seen) = read(&page, &format!("#event={}", event[0]), wide, "", &reader) else { return };
        assert_eq!(seen["wrong"], json!([]), "{seen}");
        let opened = json!([format!("event {}", event[0]), text(&event)]);
        assert!(seen["opened"] == opened && seen["again"] == opened, "{seen}");
        assert!(seen["now"].as_str().unwrap().contains("disk.transfer(&"), "{seen}");
        assert_eq!(seen["labels"], json!(["A", "Y"]));
        assert!(seen["first"].as_str().unwrap().contains("Coroutine::builder()"), "{seen}");
        assert_eq!(seen["named"], format!("#event={}", numbers[0]));
        assert!(seen["wide"].as_i64().unwrap() <= 0, "{seen}");
    }
}
