//! The event log's pictures: JSON that Perfetto takes, and a page that works in a browser.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use coralio_aio::trace::{Recording, Trace};
use coralio_aio::{CoMutex, Coroutine, Direct, File, Runner};
use serde_json::Value;

/// Names that a page or JSON could take for its own.
const NAMES: [&str; 3] = ["</script><b>", "quote \" \\ and \u{1f}", "\u{2028} {{data}} ü"];

/// A folder that goes with its guard.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("coralio-trace-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Three coroutines that share a lock and read a file.
fn recording(folder: &Path) -> Recording {
    let path = folder.join("data");
    fs::write(&path, [7; 3 * 4096]).unwrap();
    let trace = Trace::new(100_000);
    let work = || {
        let file = Rc::new(File::options().read(true).direct(Direct::Never).open(&path)?);
        let lock = Rc::new(CoMutex::new(0));
        let read = |(place, name): (u64, &'static str)| {
            let (file, lock) = (Rc::clone(&file), Rc::clone(&lock));
            let read = move || {
                let mut sum = lock.lock();
                let mut buf = [0; 4096];
                file.read_exact_at(&mut buf, place * 4096)?;
                *sum += buf.len();
                std::io::Result::Ok(())
            };
            Coroutine::builder().name(name).spawn(read)
        };
        let readers = (0..).zip(NAMES).map(read).collect::<std::io::Result<Vec<_>>>()?;
        readers.into_iter().try_for_each(|reader| reader.join().unwrap())
    };
    Runner::new().trace(&trace).run(work).unwrap().unwrap();
    trace.recording()
}

#[test]
fn the_run_checks() {
    // C1, C4, E2, E5, E9: transfers nest, each request lives once, the counters add up, on a real kernel
    let folder = Folder::new("check");
    recording(&folder.0).check().unwrap();
}

#[test]
fn perfetto_gets_slices_that_nest_and_flows_that_meet() {
    // C4, W1: B and E nest by lane, each flow and each request begins once and ends once
    let folder = Folder::new("perfetto");
    let json: Value = serde_json::from_str(&recording(&folder.0).perfetto()).unwrap();
    let events = json["traceEvents"].as_array().unwrap();
    let text = |event: &Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
    let mut open: HashMap<String, Vec<String>> = HashMap::new();
    let mut pairs: HashMap<(String, String), i32> = HashMap::new();
    let mut last: HashMap<String, f64> = HashMap::new();
    for event in events {
        let (lane, kind) = (event["tid"].to_string(), text(event, "ph"));
        if kind == "B" || kind == "E" {
            let time = event["ts"].as_f64().unwrap();
            let before = last.insert(lane.clone(), time);
            assert!(before.is_none_or(|before| before <= time), "time goes back: {event}");
        }
        match &*kind {
            "B" => open.entry(lane).or_default().push(text(event, "name")),
            "E" => assert!(open.get_mut(&lane).and_then(Vec::pop).is_some(), "ends, and has not begun: {event}"),
            "s" | "b" => *pairs.entry((kind.replace('b', "async"), event["id"].to_string())).or_default() += 1,
            "f" => *pairs.entry(("s".into(), event["id"].to_string())).or_default() -= 1,
            "e" => *pairs.entry(("async".into(), event["id"].to_string())).or_default() -= 1,
            "M" | "C" | "n" | "i" => {}
            other => panic!("what is {other:?}? {event}"),
        }
    }
    assert!(open.values().all(Vec::is_empty), "left open: {open:?}");
    assert!(pairs.values().all(|&count| count == 0), "without an end, or without a beginning: {pairs:?}");
    assert!(pairs.keys().any(|(kind, _)| kind == "s") && pairs.keys().any(|(kind, _)| kind == "async"));
    let names: Vec<_> = events.iter().filter_map(|event| event["args"]["name"].as_str()).collect();
    for name in NAMES {
        assert!(names.iter().any(|lane| lane.contains(name)), "{name:?} is not among {names:?}");
    }
}

#[test]
fn the_page_works_in_a_browser() {
    // The page loads without errors; arrow keys, End and the slider move; a click shows who is on the stack
    let folder = Folder::new("page");
    let page = recording(&folder.0).html_titled("A <run>");
    let browser = ["chromium", "chromium-browser", "google-chrome"];
    let Some(browser) = browser.into_iter().find(|name| Command::new(name).arg("--version").output().is_ok()) else {
        return eprintln!("skipped: no chromium");
    };
    assert!(!page.contains("http://") && !page.replace("http://www.w3.org/2000/svg", "").contains("src=\"http"));
    // A user's hands, after the page's own script, and an ear for errors, before it.
    let ear = "<script>window.errors = []; window.onerror = (what) => { window.errors.push(String(what)); };</script>";
    let hands = "<script>
      const told = (id) => document.getElementById(id).textContent;
      const press = (key) => document.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
      const slider = document.getElementById('slider');
      const seen = { start: told('number') };
      press('ArrowRight'); seen.right = told('number');
      press('ArrowLeft'); seen.left = told('number');
      press('End'); seen.end = told('number');
      slider.value = '3'; slider.dispatchEvent(new Event('input')); seen.slider = told('number');
      press('Home');
      const lanes = document.getElementById('lanes'), box = lanes.getBoundingClientRect();
      let deepest = '';
      for (let x = box.left + 130; x < box.right; x += 8) {
        lanes.dispatchEvent(new MouseEvent('click', { clientX: x, clientY: box.top + 40, bubbles: true }));
        if (told('chain').length > deepest.length) { deepest = told('chain'); seen.source = told('source'); }
      }
      seen.chain = deepest; seen.title = document.querySelector('h1').textContent; seen.errors = window.errors;
      const out = document.createElement('pre'); out.id = 'seen'; out.textContent = JSON.stringify(seen);
      document.body.append(out);
    </script>";
    let page = page.replacen("<body>", &format!("<body>{ear}"), 1).replacen("</body>", &format!("{hands}</body>"), 1);
    let file = folder.0.join("page.html");
    fs::write(&file, page).unwrap();
    let profile = folder.0.join("profile");
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,800", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("file://{}", file.display()))
        .output()
        .unwrap();
    let dom = String::from_utf8_lossy(&output.stdout);
    let seen = dom.split("<pre id=\"seen\">").nth(1).and_then(|rest| rest.split("</pre>").next());
    let seen =
        seen.unwrap_or_else(|| panic!("the page's script did not get to its end:\n{}", &dom[..dom.len().min(500)]));
    let seen = seen.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
    let seen: Value = serde_json::from_str(&seen).unwrap();
    assert_eq!(seen["errors"], Value::Array(Vec::new()));
    assert_eq!(seen["title"], "A <run>");
    assert_ne!(seen["start"], seen["right"], "{seen}");
    assert_eq!(seen["start"], seen["left"], "{seen}");
    assert!(![&seen["start"], &seen["right"], &seen["slider"]].contains(&&seen["end"]), "{seen}");
    assert!(![&seen["start"], &seen["right"]].contains(&&seen["slider"]), "{seen}");
    let chain = seen["chain"].as_str().unwrap();
    assert!(chain.contains("round of the loop") && NAMES.iter().any(|name| chain.contains(name)), "{seen}");
    assert!(seen["source"].as_str().unwrap().contains(".rs:"), "{seen}");
}
