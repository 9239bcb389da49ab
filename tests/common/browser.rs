//! A reader of a page in a headless browser.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::common::Folder;

/// Runs before the page's own scripts and records their errors.
const TRAP: &str = "<script>
const wrong = [];
addEventListener('error', (event) => wrong.push(event.message));
console.error = (...words) => wrong.push(words.join(' '));
</script>";

/// The window around the page. The observations are in hexadecimal, which a dump of the page leaves
/// unchanged.
const WINDOW: &str = "<!DOCTYPE html><pre id='seen'></pre>
<script>addEventListener('message', (event) => document.getElementById('seen').textContent = event.data);</script>
<iframe src='page.htmlPLACE' style='border:0; width:WIDEpx; height:740px'></iframe>";

/// Sends what the reader has seen, and the page's errors.
const TELL: &str = "parent.postMessage([...new TextEncoder().encode(JSON.stringify({ ...seen, wrong }))]
  .map((byte) => byte.toString(16).padStart(2, '0')).join(''), '*')";

/// Opens `page` at the place `#...` in a window `wide` pixels wide, after the script `before`. Returns
/// what the script `reader`, an async function's body, has put into `seen`. Returns `None` without a
/// browser.
pub(crate) fn read(page: &str, place: &str, wide: u32, before: &str, reader: &str) -> Option<Value> {
    let works = |name: &&str| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success());
    let Some(browser) = ["chromium", "chromium-browser", "google-chrome"].into_iter().find(works) else {
        eprintln!("skipped: no chromium");
        return None;
    };
    let folder = Folder::new("browser");
    let page = page.replacen("<style>", &format!("{TRAP}<script>{before}</script><style>"), 1);
    let (page, end) = page.rsplit_once("</body>").unwrap();
    let run = format!(
        "<script>{{ const seen = {{}}; (async () => {{ {reader} }})().catch((error) => wrong.push(String(error.stack)))
        .finally(() => {TELL}); }}</script>"
    );
    fs::write(folder.0.join("page.html"), format!("{page}{run}</body>{end}")).unwrap();
    let window = folder.0.join("window.html");
    fs::write(&window, WINDOW.replace("WIDE", &wide.to_string()).replace("PLACE", place)).unwrap();
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
        .args(["--virtual-time-budget=60000", "--window-size=1400,800", "--dump-dom"])
        .arg(format!("--user-data-dir={}", folder.0.join("profile").display()))
        .arg(format!("file://{}", window.display()))
        .output()
        .unwrap();
    let dom = String::from_utf8(output.stdout).unwrap();
    let told = dom.split_once("<pre id=\"seen\">").and_then(|(_, rest)| rest.split_once("</pre>"));
    let (told, _) =
        told.filter(|(told, _)| !told.is_empty()).unwrap_or_else(|| panic!("the reader did not get to the end: {dom}"));
    let byte = |at| u8::from_str_radix(&told[at..at + 2], 16).unwrap();
    Some(serde_json::from_slice(&(0..told.len()).step_by(2).map(byte).collect::<Vec<_>>()).unwrap())
}
