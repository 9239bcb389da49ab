//! Puts texts, data and scripts into one page.

use std::fmt::Write;

use coralio_runtime::report;
use serde_json::{Value, json};

use crate::lessons::{Act, Exhibit, Lesson, MATRIX, SourceFile, exhibits, lessons, museum_files};
use crate::levels;
use crate::questions::{Question, Questions, questions};
use crate::steps::{Step, steps};
use crate::texts::{above, head};

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
const EXPLANATIONS: &str = include_str!("museum.json");

/// A part of the page. Its data is in the page as JSON, for its script; see `page.js` for what a
/// script can use.
pub(crate) struct Section {
    /// Names the data: `course.data(name)`.
    pub(crate) name: &'static str,
    pub(crate) data: Value,
    pub(crate) script: &'static str,
    pub(crate) style: &'static str,
}

/// Returns the parts of the page, in the order of their links.
fn sections() -> Vec<Section> {
    vec![lesson_section(), level_section(), museum_section(), read_section()]
}

/// Returns the page.
pub(crate) fn page() -> String {
    let (mut style, mut data, mut scripts) = (String::from(STYLE), String::new(), String::new());
    script(&mut scripts, SCRIPT);
    for section in sections() {
        style.push_str(section.style);
        let json = section.data.to_string().replace('<', "\\u003c");
        let _ = writeln!(data, "<script type=\"application/json\" id=\"data-{}\">{json}</script>", section.name);
        script(&mut scripts, section.script);
    }
    script(&mut scripts, "course.start();");
    let mut page = String::new();
    let mut rest = PAGE;
    // In this order, so that inserted text is never searched for a placeholder.
    for (mark, text) in [("{{style}}", style), ("{{data}}", data), ("{{scripts}}", scripts)] {
        let (before, after) = rest.split_once(mark).expect("page.html has the placeholders in this order");
        page.push_str(before);
        page.push_str(&text);
        rest = after;
    }
    page + rest
}

fn script(scripts: &mut String, text: &str) {
    if !text.is_empty() {
        let _ = write!(scripts, "<script>\n{text}</script>\n");
    }
}

fn lesson_section() -> Section {
    let questions = questions();
    let data = lessons().iter().map(|one| lesson(one, &questions)).collect();
    let style = concat!(include_str!("../../runtime/src/trace/render/html/code.css"), include_str!("player.css"));
    let script = concat!(
        include_str!("../../runtime/src/trace/render/html/code.js"),
        include_str!("player.js"),
        include_str!("lessons.js"),
        include_str!("compare.js"),
    );
    Section { name: "lessons", data: Value::Array(data), script, style }
}

fn lesson(lesson: &Lesson, questions: &Questions) -> Value {
    let source = lesson.files[0].text;
    let head = head(source);
    let mut before = None;
    let mut acts = Vec::new();
    let questions = questions.of(lesson.folder());
    for one in &lesson.acts {
        // The title of a simulated act ends with its seed.
        let title = one.title.split(" (seed ").next().unwrap_or_default();
        let text = above(source, before, title).unwrap_or_else(|| panic!("{}: no act {title}", head.title));
        before = Some(title);
        acts.push(act(one, &text, &lesson.files, &questions));
    }
    for question in questions.iter().filter(|question| !lesson.acts.iter().any(|act| question.is_of(act))) {
        report(format_args!("questions.json: {}: no act for {question}", head.title));
    }
    json!({
        "id": lesson.folder(), "title": head.title, "text": head.text, "puzzle": head.puzzle, "hint": head.hint,
        "files": files(&lesson.files), "acts": acts,
    })
}

fn act(act: &Act, text: &str, files: &[SourceFile], questions: &[Question]) -> Value {
    let (heading, steps) = steps(&act.recording, files, act.failure.is_none());
    let lanes: Vec<_> = act.recording.lanes.iter().map(|lane| &lane.name).collect();
    let asked = questions.iter().filter(|question| question.is_of(act));
    let (asked, lost): (Vec<_>, Vec<_>) = asked.map(|question| question.resolve(act, &steps)).partition(Result::is_ok);
    for lost in lost {
        report(format_args!("questions.json: {:?}: {}", act.title, lost.expect_err("these are the errors")));
    }
    let asked: Vec<_> = asked.into_iter().flatten().collect();
    let steps: Vec<_> = steps.iter().map(Step::json).collect();
    json!({
        "title": act.title, "text": text, "failure": act.failure, "said": act.said.trim(), "heading": heading,
        "lanes": lanes, "threads": act.recording.threads, "steps": steps, "questions": asked,
    })
}

fn files(files: &[SourceFile]) -> Value {
    files.iter().map(|file| json!({ "path": file.path, "text": file.text })).collect()
}

fn level_section() -> Section {
    Section { name: "levels", data: levels::data(), script: levels::SCRIPT, style: levels::STYLE }
}

fn museum_section() -> Section {
    let files = museum_files();
    let explanations: Vec<String> = serde_json::from_str(EXPLANATIONS).expect("museum.json is a list of texts");
    let exhibits = exhibits();
    assert_eq!(exhibits.len(), explanations.len(), "museum.json explains each exhibit");
    let exhibits: Vec<_> =
        exhibits.iter().zip(explanations).map(|(exhibit, text)| museum_exhibit(exhibit, &text, &files)).collect();
    let data = json!({ "matrix": MATRIX, "files": self::files(&files), "exhibits": exhibits });
    Section { name: "museum", data, script: include_str!("museum.js"), style: "" }
}

fn museum_exhibit(exhibit: &Exhibit, explanation: &str, files: &[SourceFile]) -> Value {
    let acts: Vec<_> = exhibit.acts.iter().map(|one| act(one, "", files, &[])).collect();
    json!({
        "when": exhibit.when, "what": exhibit.what, "workload": exhibit.workload, "explanation": explanation, "acts": acts,
    })
}

/// The texts to read besides the lessons: name, path, title, and what they are.
const TEXTS: [(&str, &str, &str, &str, &str); 3] = [
    (
        "history",
        "history.md",
        include_str!("../history.md"),
        "The history of the bugs",
        "What was seen in the field, when, and why the first fixes were not enough. Gives the lessons' answers away.",
    ),
    (
        "exercises",
        "exercises/README.md",
        include_str!("../exercises/README.md"),
        "Exercises",
        "Ten small programs, each with a hole to fill.",
    ),
    (
        "tokio",
        "tokio.md",
        include_str!("../tokio.md"),
        "A map for tokio users",
        "What a waker, `Notify`, `select!` and `Pin` are here, or why they are not needed.",
    ),
];

fn read_section() -> Section {
    let readme = include_str!("../README.md");
    let legend = readme.find("## How to read a picture").and_then(|begin| {
        let end = readme[begin..].find("## First half")?;
        Some(&readme[begin..begin + end])
    });
    let texts: Vec<_> = TEXTS
        .iter()
        .map(|(id, path, text, title, what)| json!({ "id": id, "path": path, "text": text, "title": title, "what": what }))
        .collect();
    let data = json!({ "legend": legend.expect("README.md has the legend"), "texts": texts });
    Section { name: "read", data, script: include_str!("read.js"), style: "" }
}
