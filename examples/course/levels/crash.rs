//! The levels of lesson 14: a program saves, and the reader decides when the power fails and what is
//! left of each sector.
//!
//! The runs are those of [`Simulation::explore_all`]. What a sector contains after the failure is
//! seen, not decided here: each content that some run has is an answer.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use coralio::File;
use coralio::context::AioContext;
use coralio::driver::stats;
use coralio::simulate::{Faults, Latency, Sim, Simulation};
use coralio::trace::Trace;

use super::lesson::{say, spawn};
use super::tree::{DISK, Run, Tree, end, mark};

/// The size of a sector in bytes.
const SECTOR: usize = 8;

/// Returns the simulation's context.
fn here() -> AioContext {
    AioContext::current().expect("in a simulation")
}

/// One run of a level.
pub struct Power {
    sim: Sim,
    /// Questions and answers so far.
    path: RefCell<Vec<(String, String)>>,
    /// What the saving coroutine waits for.
    doing: Rc<Cell<&'static str>>,
    failed: Cell<bool>,
}

/// A program for the reader to break. Returns the failure, if any.
pub type Program = fn(&Power) -> io::Result<Option<String>>;

impl Power {
    fn decided(&self, question: &str, answer: &str) {
        mark(&here(), DISK, answer);
        self.path.borrow_mut().push((question.into(), answer.into()));
    }

    /// Asks whether the power fails now, and lets it fail.
    fn fails(&self, question: &str, otherwise: &str) -> bool {
        let fails = self.sim.choose(2) == 1;
        self.decided(question, if fails { "the power fails" } else { otherwise });
        if fails {
            self.failed.set(true);
            self.sim.crash();
        }
        fails
    }

    /// Runs `save` in a coroutine until it has ended or the power fails. Returns whether it has
    /// ended, so that the user was told.
    fn save(&self, save: impl FnOnce(&dyn Fn(&'static str)) -> io::Result<()> + 'static) -> io::Result<bool> {
        let context = here();
        let doing = Rc::clone(&self.doing);
        let saver = spawn("A", move || {
            save(&|what| {
                say(what);
                doing.set(what);
            })?;
            say("tells the user: saved");
            io::Result::Ok(())
        });
        loop {
            while stats().in_flight == 0 && !saver.is_finished() {
                context.poll(false);
            }
            if saver.is_finished() {
                saver.join().expect("it does not panic")?;
                self.fails("The user has been told \"saved\". What happens next?", "the power stays on");
                return Ok(true);
            }
            if self.fails(
                &format!("A {}: the request is in flight. What happens next?", self.doing.get()),
                "the request is done",
            ) {
                return Ok(false);
            }
            let done = stats().completions;
            while stats().completions == done {
                context.poll(true);
            }
        }
    }

    /// Returns the contents of a file, a part for each of `names`. After a power failure they count
    /// among the decisions.
    fn left<const N: usize>(&self, file: &str, names: [&str; N]) -> [String; N] {
        let contents = self.sim.contents(file).expect("creating it was durable");
        let mut sectors = contents.chunks(SECTOR);
        names.map(|name| {
            let sector = sectors.next().expect("a sector for each name");
            let text: String = sector.iter().map(|&byte| if byte == 0 { '.' } else { byte as char }).collect();
            let text = text.trim_end_matches(' ');
            if self.failed.get() {
                self.decided(&format!("The power is back. What is left of {name}?"), &format!("{name}: {text}"));
            }
            text.to_string()
        })
    }
}

/// Makes every run of `program`.
pub fn search(program: Program) -> Tree {
    let machine =
        Simulation::new().sector_size(SECTOR).faults(Faults::none()).latency(Latency::fixed(Duration::from_millis(1)));
    let one = |machine: &Simulation, visit: &dyn Fn(&Power, Option<String>)| {
        machine.explore_all(|sim| {
            let doing = Rc::new(Cell::new(""));
            let power = Power { sim: sim.clone(), path: RefCell::default(), doing, failed: Cell::new(false) };
            let failure = program(&power)?;
            end(&here());
            visit(&power, failure);
            Ok(())
        })
    };
    // First every run, then those with different answers once more, each with a log of its own.
    let tapes = RefCell::new(Vec::<(Vec<(String, String)>, String)>::new());
    let runs = one(&machine, &|power, _failure| {
        let path = power.path.take();
        let mut tapes = tapes.borrow_mut();
        if tapes.iter().all(|(other, _)| *other != path) {
            tapes.push((path, power.sim.tape()));
        }
    });
    let mut tree = Tree::default();
    for (path, tape) in tapes.into_inner() {
        let trace = Trace::new(10_000);
        let machine = machine.clone().trace(&trace).tape(&tape).expect("the simulation has printed it");
        let ended = RefCell::new(None);
        one(&machine, &|_power, failure| *ended.borrow_mut() = Some(failure)).expect("it has no failing runs");
        let questions: Vec<_> = path.into_iter().map(|(question, _)| Some(question)).collect();
        tree.insert(Run::of(&trace.recording(), &questions, ended.take().expect("it has run"), "request"));
    }
    tree.runs = runs.expect("it has no failing runs");
    tree
}

fn write(file: &File, contents: &[u8], doing: &dyn Fn(&'static str), what: &'static str) -> io::Result<()> {
    doing(what);
    file.write_at(contents, 0).map(drop)
}

fn sync(file: &File, doing: &dyn Fn(&'static str), what: &'static str) -> io::Result<()> {
    doing(what);
    file.sync_data()
}

/// A file with "old" is overwritten by "new".
fn save_file(power: &Power, syncs: bool) -> io::Result<Option<String>> {
    let file = power.sim.create("file", 3);
    power.sim.corrupt("file", 0, b"old");
    let was_told = power.save(move |doing| {
        write(&file, b"new", doing, "writes new")?;
        if syncs { sync(&file, doing, "syncs") } else { Ok(()) }
    })?;
    let [found] = power.left("file", ["the file"]);
    let is_lost = was_told && found != "new";
    Ok(is_lost.then(|| format!("the user was told \"saved\", and the file contains {found}")))
}

/// See [`save_file`].
pub fn write_only(power: &Power) -> io::Result<Option<String>> {
    save_file(power, false)
}

/// See [`save_file`].
pub fn write_and_sync(power: &Power) -> io::Result<Option<String>> {
    save_file(power, true)
}

#[derive(Clone, Copy, PartialEq)]
enum Journal {
    None,
    WithoutChecksum,
    WithChecksum,
}

/// Returns the journal's record of the new balances. The checksum is at its end.
fn record(balances: [&str; 2], kind: Journal) -> String {
    let sum = balances.iter().fold(7, |sum, balance| sum * 31 + balance.parse::<u32>().unwrap_or(0)) % 10_000;
    let checksum = if kind == Journal::WithChecksum { format!("{sum:04}") } else { String::new() };
    format!("{}{}{checksum}", balances[0], balances[1])
}

/// Two accounts, each in its own sector, with 55 and 45. A moves 18 from the first to the second.
fn transfer(power: &Power, kind: Journal) -> io::Result<Option<String>> {
    let accounts = power.sim.create("accounts", 2 * SECTOR as u64);
    power.sim.corrupt("accounts", 0, b"55      45      ");
    let journal = power.sim.create("journal", SECTOR as u64);
    let was_told = power.save(move |doing| {
        if kind != Journal::None {
            write(&journal, record(["37", "63"], kind).as_bytes(), doing, "writes 37 and 63 to the journal")?;
            sync(&journal, doing, "syncs the journal")?;
        }
        write(&accounts, b"37      63      ", doing, "writes 37 and 63 to the accounts")?;
        sync(&accounts, doing, "syncs the accounts")
    })?;
    let mut balances = power.left("accounts", ["account 1", "account 2"]);
    if kind != Journal::None {
        let [found] = power.left("journal", ["the journal"]);
        let number = |from: usize| found[from..from + 2].trim_matches('.').to_string();
        let noted = [number(0), number(2)];
        let is_whole = found.starts_with(&record([&noted[0], &noted[1]], kind));
        let is_valid = if kind == Journal::WithChecksum { is_whole } else { !found.starts_with('.') };
        if is_valid {
            say(format!("recovery: the accounts are {} and {}", noted[0], noted[1]));
            balances = noted;
        } else {
            say("recovery: no valid record in the journal");
        }
    }
    let [first, second] = balances.map(|balance| balance.parse::<u32>().unwrap_or(0));
    if first + second != 100 {
        return Ok(Some(format!("the accounts have {first} and {second}: {} in all, not 100", first + second)));
    }
    Ok((was_told && first != 37).then(|| "the user was told \"saved\", and the transfer is lost".into()))
}

/// See [`transfer`].
pub fn transfer_in_place(power: &Power) -> io::Result<Option<String>> {
    transfer(power, Journal::None)
}

/// See [`transfer`].
pub fn transfer_without_checksum(power: &Power) -> io::Result<Option<String>> {
    transfer(power, Journal::WithoutChecksum)
}

/// See [`transfer`].
pub fn transfer_with_checksum(power: &Power) -> io::Result<Option<String>> {
    transfer(power, Journal::WithChecksum)
}
