//! The reader's kernel: at each turn of the scripted backend it takes a decision from a tape, and
//! records the number of options.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use coralio::context::AioContext;
use coralio::coroutine::Coroutine;
use coralio::engine::guards::Guards;
use coralio::engine::scripted::{ScriptedBackend, Turn};

use super::lesson::{self, Disk, poll_if_free, record, say};
use super::tree::{KERNEL, Run, Tree, mark};

/// What the kernel of a level can do, apart from completing requests in any order.
#[derive(Clone, Copy, Default)]
pub struct Powers {
    /// The readers' names: the reader with index `i` reads at `512 * i`.
    pub readers: &'static [&'static str],
    /// How many submits the kernel may refuse (EAGAIN), or accept only in part.
    pub refusals: u32,
    /// Whether reads complete in the order in which they were submitted.
    pub in_order: bool,
    /// How many reads may be short.
    pub short: u32,
    /// Whether a second thread may poll, once.
    pub second_thread: bool,
}

/// The length of a short read.
const SHORT: usize = 128;

/// A decision, and the number of options that there were.
struct Made {
    value: usize,
    bound: usize,
}

struct Script {
    powers: Powers,
    tape: Vec<usize>,
    made: Vec<Made>,
    /// For each mark in the log, the question that it answers; `None` if there was no choice.
    marks: Vec<Option<String>>,
    /// The readers of the requests that the current submit offers.
    offered: Vec<usize>,
    /// The requests in flight, with their readers.
    in_flight: Vec<(usize, usize)>,
    second_thread: Option<SecondThread>,
    /// The run has failed: complete everything, so that the stacks can unwind.
    over: bool,
}

/// Clones share the kernel of one run.
#[derive(Clone)]
pub struct Kernel {
    script: Arc<Mutex<Script>>,
    /// During a sleep there is no current context.
    context: AioContext,
}

/// A program for the reader to break.
pub type Program = fn(&AioContext, &Kernel);

impl Kernel {
    /// Attaches an engine whose backend this kernel decides for.
    pub fn attach<G: Guards>(&self, depth: u32) -> Disk<G> {
        let backend = lesson::backend();
        if self.script().powers.second_thread {
            let second = SecondThread::start(self.context.clone());
            self.script().second_thread = Some(second);
        }
        let kernel = self.clone();
        backend.on_turn(move |backend, turn| kernel.turn(backend, turn));
        lesson::attach(&backend, depth)
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the reader, unless there is only one option. Returns the index of the answer. `tell`
    /// logs it.
    pub fn choose(&self, question: &str, options: &[String]) -> usize {
        let mut script = self.script();
        let mut value = 0;
        let mut asked = None;
        if options.len() > 1 {
            value = script.tape.get(script.made.len()).copied().unwrap_or(0);
            script.made.push(Made { value, bound: options.len() });
            asked = Some(question.into());
        }
        script.marks.push(asked);
        drop(script);
        mark(&self.context, KERNEL, &options[value]);
        value
    }

    fn is_over(&self) -> bool {
        let mut script = self.script();
        script.over |= thread::panicking();
        script.over
    }

    fn turn(&self, backend: &ScriptedBackend, turn: Turn<'_>) {
        match turn {
            Turn::Offered(operations) => {
                let readers = operations.iter().map(|operation| operation.offset as usize / 512).collect();
                self.script().offered = readers;
                if !self.is_over() {
                    self.offer(backend);
                }
            }
            Turn::Accepted(count) => {
                {
                    let mut script = self.script();
                    let first = backend.taken() - count;
                    let accepted: Vec<_> = (first..).zip(script.offered.drain(..).take(count)).collect();
                    script.in_flight.extend(accepted);
                }
                self.complete(
                    backend,
                    &format!("{} submits. What is done before the submit returns?", who()),
                    Some("nothing is done yet"),
                );
            }
            Turn::Asleep => self.complete(backend, "The loop sleeps. What is done when it wakes up?", None),
            Turn::Peeked => self.maybe_another_thread(),
            _ => {}
        }
    }

    /// Decides how much of a submit is accepted.
    fn offer(&self, backend: &ScriptedBackend) {
        let (count, refusals) = {
            let script = self.script();
            (script.offered.len(), script.powers.refusals)
        };
        if refusals == 0 {
            return;
        }
        let reads = |count: usize| if count == 1 { "1 read".into() } else { format!("{count} reads") };
        let mut options = vec![format!("accepts {}", reads(count)), "EAGAIN: accepts nothing".into()];
        options.extend((1..count).map(|part| format!("accepts {} of {count}", reads(part))));
        let answer = self.choose(&format!("{} submits {}. How much do you accept?", who(), reads(count)), &options);
        match answer {
            0 => return,
            1 => backend.refuse(libc::EAGAIN),
            part => backend.take_at_most(part - 1),
        }
        self.script().powers.refusals -= 1;
    }

    /// Completes requests, as many and in the order that the reader wants. A sleep ends only with a
    /// completion.
    fn complete(&self, backend: &ScriptedBackend, question: &str, nothing: Option<&str>) {
        let (mut nothing, asleep) = (nothing, nothing.is_none());
        loop {
            let over = self.is_over();
            let (mut possible, powers) = {
                let script = self.script();
                (script.in_flight.clone(), script.powers)
            };
            if over {
                self.script().in_flight.clear();
                possible.iter().for_each(|&(number, _)| backend.release(number));
                return;
            }
            if powers.in_order {
                possible.truncate(1);
            }
            let name = |reader: usize| powers.readers[reader];
            let mut options: Vec<_> =
                possible.iter().map(|&(_, reader)| format!("{}'s read is done", name(reader))).collect();
            if options.is_empty() {
                return;
            }
            if powers.short > 0 {
                let short =
                    possible.iter().map(|&(_, reader)| format!("{}'s read is short: {SHORT} bytes", name(reader)));
                options.extend(short);
            }
            let requests = options.len();
            options.extend(nothing.map(String::from));
            let answer = self.choose(question, &options);
            if answer == requests {
                return;
            }
            let (number, _) = possible[answer % possible.len()];
            self.script().in_flight.retain(|&(other, _)| other != number);
            if answer >= possible.len() {
                self.script().powers.short -= 1;
                backend.shorten(number, SHORT);
            }
            backend.release(number);
            nothing = Some(if asleep { "the loop wakes up" } else { "nothing more is done yet" });
        }
    }

    /// Lets another thread poll between the two halves of taking a completion off the ring.
    fn maybe_another_thread(&self) {
        // With a read in flight, a completion that is taken twice ends the process: the engine would
        // lose that read, whose buffer is still lent.
        let is_possible = {
            let script = self.script();
            script.second_thread.is_some() && script.in_flight.is_empty()
        };
        if self.is_over() || !is_possible {
            return;
        }
        let options = ["thread 1 does not run yet", "thread 1 polls"].map(String::from);
        let question = "The home thread has read a completion, and not counted it yet. What does thread 1 do?";
        if self.choose(question, &options) == 1 {
            let second = self.script().second_thread.take();
            second.into_iter().for_each(SecondThread::poll);
        }
    }
}

/// A thread that polls on request. It has a column from the beginning.
struct SecondThread {
    polls: Sender<()>,
    thread: JoinHandle<()>,
}

impl SecondThread {
    fn start(context: AioContext) -> SecondThread {
        say("starts a second thread"); // the first message in the log: this thread is in the first column
        let (polls, told) = channel();
        let (started, starts) = channel();
        let thread = thread::spawn(move || {
            context.tracer().expect("levels are traced").mark("\"waits for its turn\"");
            started.send(()).expect("the home thread waits");
            if told.recv().is_ok() {
                poll_if_free(&context);
            }
        });
        starts.recv().expect("it starts");
        SecondThread { polls, thread }
    }

    /// Makes the thread poll once, and waits for the end of the poll.
    fn poll(self) {
        self.polls.send(()).expect("it waits");
        self.thread.join().expect("it does not panic");
    }
}

/// Returns the name of the code that runs.
fn who() -> String {
    Coroutine::current().map_or("The loop".into(), |coroutine| coroutine.to_string().replace('\'', ""))
}

/// Makes every run of `program`: depth first, a run for each leaf.
pub fn search(powers: Powers, program: Program) -> Tree {
    let mut tree = Tree::default();
    let mut tape = Some(Vec::new());
    while let Some(given) = tape {
        let script = Arc::new(Mutex::new(Script {
            powers,
            tape: given,
            made: Vec::new(),
            marks: Vec::new(),
            offered: Vec::new(),
            in_flight: Vec::new(),
            second_thread: None,
            over: false,
        }));
        let (recording, failure) =
            record(|context| one(&Kernel { script: script.clone(), context: context.clone() }, program));
        let script = script.lock().unwrap_or_else(PoisonError::into_inner);
        tree.insert(Run::of(&recording, &script.marks, failure, "read"));
        tape = successor(&script.made);
    }
    tree
}

fn one(kernel: &Kernel, program: Program) {
    let ended = catch_unwind(AssertUnwindSafe(|| program(&kernel.context, kernel)));
    let Err(payload) = ended else { return };
    kernel.script().over = true;
    // Lets coroutines that the panic has left suspended end by themselves, if they can: without a
    // guard, a coroutine that unwinds may not survive the completion that it waits for.
    for _ in 0..8 {
        let sleeps = !kernel.script().in_flight.is_empty();
        let _ = catch_unwind(AssertUnwindSafe(|| kernel.context.poll(sleeps)));
    }
    resume_unwind(payload);
}

/// Returns the next tape of the enumeration.
fn successor(made: &[Made]) -> Option<Vec<usize>> {
    let last = made.iter().rposition(|made| made.value + 1 < made.bound)?;
    let mut next: Vec<_> = made[..=last].iter().map(|made| made.value).collect();
    next[last] += 1;
    Some(next)
}
