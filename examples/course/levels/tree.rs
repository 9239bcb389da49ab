//! The tree of all runs of a program: a node for each decision of the kernel, with the rows of the
//! picture since the decision before.

use std::collections::HashMap;

use coralio::context::AioContext;
use coralio::trace::{Event, Recording, Replay, RequestState, TextOptions};
use serde_json::{Value, json};

/// The name of the decider. The mark of a decision in the log begins with it, unlike messages of
/// the program, which are in quotes.
pub const KERNEL: &str = "kernel: ";
pub const DISK: &str = "disk: ";
const END: &str = "the run has ended";

/// Logs a decision, if the run has a log.
pub fn mark(context: &AioContext, who: &str, what: &str) {
    if let Some(tracer) = context.tracer() {
        tracer.mark(format!("{who}{what}"));
    }
}

/// Logs the end of the run: the rows after it are not shown.
pub fn end(context: &AioContext) {
    mark(context, DISK, END);
}

/// A row: its picture, and its description.
type Row = (String, String);

/// One run, cut at its decisions.
pub struct Run {
    heading: String,
    /// The rows before the first decision.
    first: Vec<Row>,
    /// Question, answer, and the rows from the answer to the next question.
    rest: Vec<(String, String, Vec<Row>)>,
    failure: Option<String>,
}

impl Run {
    /// Cuts a recording. `marks` has an entry for each decision in the log, with its question, or
    /// `None` for one without a choice. The rows call a request of A "A's `request`".
    pub fn of(recording: &Recording, marks: &[Option<String>], failure: Option<String>, request: &str) -> Run {
        let makers = makers(recording);
        let text = recording.text_with(TextOptions::default().without_legend());
        let mut lines = text.lines();
        let heading = lines.next().expect("the names of the columns");
        let start = heading.chars().take_while(|c| *c == ' ').count();
        let last = heading.rsplit(' ').next().expect("a column");
        let end = heading.chars().count() - last.chars().count() + last.chars().count().max(4) + 2;
        let mut run = Run { heading: heading.trim().into(), first: Vec::new(), rest: Vec::new(), failure };
        let mut marks = marks.iter();
        // What the log's own checker notes, the violation after it says too.
        for line in lines.filter(|line| !line.trim_start().starts_with("!! ")) {
            let part = |from, to: usize| line.chars().skip(from).take(to - from).collect::<String>();
            let (picture, words) = (part(start, end), part(end, usize::MAX));
            if let Some(decided) = [KERNEL, DISK].iter().find_map(|who| words.trim_start().strip_prefix(who)) {
                if decided == END {
                    break;
                }
                if let Some(question) = marks.next().expect("each decision has an entry") {
                    run.rest.push((question.clone(), decided.into(), Vec::new()));
                }
            }
            let rows = run.rest.last_mut().map_or(&mut run.first, |(_, _, rows)| rows);
            let words = by_name(words.trim_end(), &makers, request);
            rows.push((picture.trim_end().into(), words.clone()));
            if words.trim_start().starts_with("VIOLATION") {
                break;
            }
        }
        run
    }
}

/// Returns the coroutine that made each request.
fn makers(recording: &Recording) -> HashMap<String, String> {
    let mut replay = Replay::of(recording);
    let mut makers = HashMap::new();
    for record in &recording.records {
        // An error is ignored: in a run with a bug, a coroutine may enter itself.
        let _ = replay.apply(record);
        if let (Event::Request { request, state: RequestState::Pending }, Some(maker)) =
            (&record.event, replay.running(record.thread))
        {
            makers.insert(request.to_string(), recording.name(maker).to_string());
        }
    }
    makers
}

/// Names a row's request by its coroutine.
fn by_name(words: &str, makers: &HashMap<String, String>, request: &str) -> String {
    let named = words.split_once("request ").and_then(|(before, rest)| {
        let (number, after) = rest.split_once(": ")?;
        Some(format!("{before}{}'s {request}: {after}", makers.get(number)?))
    });
    named.unwrap_or_else(|| words.into())
}

#[derive(Default)]
struct Node {
    rows: Vec<Row>,
    question: String,
    children: Vec<(String, Node)>,
    /// The outcome, if the run ends here: the failure, or none.
    end: Option<Option<String>>,
}

/// The tree of all runs.
#[derive(Default)]
pub struct Tree {
    heading: String,
    root: Option<Node>,
    /// The number of tapes. Several may lead to one leaf, if their runs do not differ.
    pub runs: u64,
}

impl Tree {
    /// Adds a run.
    ///
    /// # Panics
    ///
    /// If a run with the same decisions has had other rows: the program is not deterministic.
    pub fn insert(&mut self, run: Run) {
        self.runs += 1;
        let Run { heading, first, rest, failure } = run;
        assert!(self.heading.is_empty() || self.heading == heading, "other columns: {heading}");
        self.heading = heading;
        let mut node = self.root.get_or_insert_with(|| Node { rows: first.clone(), ..Node::default() });
        assert_eq!(node.rows, first, "the same decisions give the same run");
        for (question, answer, rows) in rest {
            assert!(node.question.is_empty() || node.question == question, "{question} and {}", node.question);
            assert!(node.end.is_none(), "this run has ended before: {question}");
            node.question = question;
            let place = node.children.iter().position(|(other, _)| *other == answer).unwrap_or_else(|| {
                node.children.push((answer, Node { rows: rows.clone(), ..Node::default() }));
                node.children.len() - 1
            });
            node = &mut node.children[place].1;
            assert_eq!(node.rows, rows, "the same decisions give the same run");
        }
        assert!(node.children.is_empty() && node.end.as_ref().is_none_or(|end| *end == failure), "{failure:?}");
        node.end = Some(failure);
    }

    /// Returns the tree for the page: a list of nodes, the root first. A node is a list: the
    /// numbers of its rows, and either a question and the numbers of answers and nodes in turn, or
    /// the outcome and whether it is a failure.
    pub fn json(&self, texts: &mut Texts) -> Value {
        let mut nodes = Vec::new();
        let mut counts = [0, 0];
        let root = self.root.as_ref().expect("there is at least one run");
        add(root, &mut nodes, &mut counts, texts);
        json!({ "heading": self.heading, "runs": self.runs, "leaves": counts[0], "failures": counts[1], "nodes": nodes })
    }
}

fn add(node: &Node, nodes: &mut Vec<Value>, counts: &mut [usize; 2], texts: &mut Texts) -> usize {
    let place = nodes.len();
    nodes.push(Value::Null);
    // A decision with only one answer is not a question.
    let mut node = node;
    let mut rows: Vec<_> = node.rows.iter().collect();
    while let [(_, only)] = &node.children[..] {
        node = only;
        rows.extend(&node.rows);
    }
    let rows: Vec<_> = rows.into_iter().map(|(picture, words)| texts.number(&format!("{picture}\t{words}"))).collect();
    nodes[place] = match &node.end {
        Some(failure) => {
            counts[0] += 1;
            counts[1] += usize::from(failure.is_some());
            // Without the state of the engine, in brackets.
            let how = failure.as_deref().and_then(|failure| failure.split(" (").next()).unwrap_or("ends well");
            json!([rows, texts.number(how.trim_end()), failure.is_some()])
        }
        None => {
            let mut answers = Vec::new();
            for (answer, child) in &node.children {
                answers.extend([texts.number(answer), add(child, nodes, counts, texts)]);
            }
            json!([rows, texts.number(&node.question), answers])
        }
    };
    place
}

/// A table of texts, each once.
#[derive(Default)]
pub struct Texts {
    numbers: HashMap<String, usize>,
    pub all: Vec<String>,
}

impl Texts {
    fn number(&mut self, text: &str) -> usize {
        *self.numbers.entry(text.into()).or_insert_with(|| {
            self.all.push(text.into());
            self.all.len() - 1
        })
    }
}
