//! "You are the kernel": levels in which the reader decides what the kernel, the disk or the power
//! does next, and tries to break a program.
//!
//! ```text
//!   programs.rs  kernel.rs    programs on the production engine, on the scripted backend, and the search
//!   crash.rs                  programs on the simulated disk, and the search
//!   tree.rs                   the tree of all runs, for the page
//!   levels.js  levels.css     the page: walks in the trees
//! ```
//!
//! Each level has two trees: of the program or engine with its bug, and with the guard. Both are
//! complete: every run that the level's kernel allows is in them.

mod crash;
mod kernel;
#[path = "../../lesson/mod.rs"]
mod lesson;
mod programs;
mod tree;

use serde_json::{Value, json};

use kernel::{Powers, search};
use programs as p;
use tree::{Texts, Tree};

use coralio::engine::guards::AllGuards;

pub(crate) const SCRIPT: &str = include_str!("levels.js");
pub(crate) const STYLE: &str = include_str!("levels.css");

struct Level {
    /// Its name in links.
    id: &'static str,
    /// Its lesson, or 0 for the museum.
    lesson: u32,
    title: &'static str,
    /// What runs.
    program: &'static str,
    /// The function that runs, of which the page shows the source.
    function: &'static str,
    /// What the reader is to achieve.
    goal: &'static str,
    hint: &'static str,
    /// Why it has happened.
    why: &'static str,
    /// With the bug, and with the guard.
    versions: [Version; 2],
}

struct Version {
    name: &'static str,
    search: fn() -> Tree,
}

const AB: &[&str] = &["A", "B"];

fn levels() -> Vec<Level> {
    let version = |name, search| Version { name, search };
    vec![
        Level {
            id: "letter",
            lesson: 7,
            title: "The letter",
            program: "A waits for a letter from B, which is ready to write it. Until there is one, A reads from the disk, three times at most.",
            function: "letter",
            goal: "Keep B from running until A has read three times.",
            hint: "A lets others run only when it yields. When does a read not yield?",
            why: "Each read was done before its submit returned, so A never yielded. A call that may yield need not.",
            versions: [
                version("A only reads", || search(powers(&["A"]), p::letter_without_yield)),
                version("with yield_now before each read", || search(powers(&["A"]), p::letter_with_yield)),
            ],
        },
        Level {
            id: "july",
            lesson: 8,
            title: "July 2016",
            program: "The loop enters A and B, which read once each. B's read fills the batch, so B submits. A completion enters its coroutine.",
            function: "two_readers",
            goal: "Make B enter itself.",
            hint: "The submit reaps what is done before it returns, on the stack of the coroutine that submits.",
            why: "B reaped its own completion, and the completion entered B, which was running.",
            versions: [
                version("July 2016: a completion enters", || search(powers(AB), p::two_readers::<p::July2016>)),
                version("with the guard", || search(powers(AB), p::two_readers::<AllGuards>)),
            ],
        },
        Level {
            id: "september",
            lesson: 9,
            title: "September 2016",
            program: "X and Y share a lock, and read while they hold it; A reads without it. The thread enters X, Y and A in this order. A completion enters its coroutine, unless that is the current one.",
            function: "three_and_a_lock",
            goal: "Make a coroutine enter itself all the same.",
            hint: "Not the current coroutine, but one below it on the stack. X must end on top of A, so that Y gets the lock there.",
            why: "A coroutine was entered that was not the current one, but was below it on the stack. The condition must be \"entered\", not \"current\".",
            versions: [
                version("July's guard: enters unless current", || {
                    search(powers(&["A", "X", "Y"]), p::three_and_a_lock::<p::September2016>)
                }),
                version("with the guard of today", || {
                    search(powers(&["A", "X", "Y"]), p::three_and_a_lock::<AllGuards>)
                }),
            ],
        },
        Level {
            id: "check",
            lesson: 10,
            title: "Check, and yield",
            program: "A toy: A makes one request, checks once whether it is done, and yields if not. A timer may enter A as well.",
            function: "one_request",
            goal: "Make A continue without a result.",
            hint: "A takes each enter for the end of its request.",
            why: "The timer entered A, and A did not check again. A coroutine must check before each yield, and so after each.",
            versions: [
                version("A checks once", || search(Powers::default(), p::one_request_checked_once)),
                version("A checks before each yield", || search(Powers::default(), p::one_request_checked_each_time)),
            ],
        },
        Level {
            id: "nested",
            lesson: 11,
            title: "The private batch",
            program: "A reads, and then polls until B has read. B reads once. A reap takes all completions off the ring, and then processes them.",
            function: "nested_poll",
            goal: "Make the loop sleep for an event that has already occurred.",
            hint: "A must poll while B's completion is in the batch of the reap below it.",
            why: "Both completions were in one batch, A's first. A polled on top of the reap that held B's.",
            versions: [
                version("2014: a private batch", || search(powers(AB), p::nested_poll::<p::Batch2014>)),
                version("with the shared cursor", || search(powers(AB), p::nested_poll::<AllGuards>)),
            ],
        },
        Level {
            id: "threads",
            lesson: 12,
            title: "Two threads",
            program: "A and B read. When both reads are done, and not yet reaped, a second thread may poll, once, if it gets the lock. You decide that, too.",
            function: "two_threads",
            goal: "Make both threads take the same completion.",
            hint: "The second thread needs the lock. The loop holds it; in which place does this engine reap without it?",
            why: "The reap in the submit had read a completion without the lock. The other thread took the lock, and the same completion.",
            versions: [
                version("2018: submit reaps without the lock", || {
                    search(Powers { second_thread: true, ..powers(AB) }, p::two_threads::<p::Unlocked2018>)
                }),
                version("with the lock", || {
                    search(Powers { second_thread: true, ..powers(AB) }, p::two_threads::<AllGuards>)
                }),
            ],
        },
        Level {
            id: "plug",
            lesson: 13,
            title: "The plug that is gone",
            program: "Queue depth 2. A and B read. C and D read under a plug, which is then dropped. At the end E reads. This kernel completes reads in order.",
            function: "plug",
            goal: "Make E wait for a plug that is gone.",
            hint: "The unplug skips its decrement if two requests are pending: then the batch is full. When do C and D stay pending?",
            why: "A and B were both in flight, which is all that depth 2 allows. So C and D stayed pending, the unplug met a full batch, and it did not count.",
            versions: [
                version("2021: unplug counts in one branch", || {
                    search(
                        Powers { in_order: true, ..powers(&["A", "B", "C", "D", "E"]) },
                        p::plug::<p::ShortCircuit2021>,
                    )
                }),
                version("with the guard", || {
                    search(Powers { in_order: true, ..powers(&["A", "B", "C", "D", "E"]) }, p::plug::<AllGuards>)
                }),
            ],
        },
        Level {
            id: "again",
            lesson: 13,
            title: "Try again",
            program: "A reads; then B and C in one iteration of the loop. You may refuse one submit with EAGAIN, which means that the kernel has no room at the moment, or accept only a part of it. After EAGAIN the engine waits for a completion.",
            function: "refused",
            goal: "Leave reads pending for ever.",
            hint: "After a refusal the next completion makes the engine submit again. When is there none?",
            why: "Nothing was in flight, so no completion came, and nothing made the engine submit again.",
            versions: [
                version("2016: EAGAIN waits for a completion", || {
                    search(Powers { refusals: 1, ..powers(&["A", "B", "C"]) }, p::refused::<p::WaitsForCompletion2016>)
                }),
                version("with the guard", || {
                    search(Powers { refusals: 1, ..powers(&["A", "B", "C"]) }, p::refused::<AllGuards>)
                }),
            ],
        },
        Level {
            id: "saved",
            lesson: 14,
            title: "Saved",
            program: "A file contains \"old\". A writes \"new\" over it, and tells the user: saved. You are the disk and the power.",
            function: "save_file",
            goal: "Lose what the user was told is saved.",
            hint: "The kernel has the data when the write returns. Does the disk have it?",
            why: "The write had returned, but the data was not on the disk yet.",
            versions: [
                version("write", || crash::search(crash::write_only)),
                version("write, and sync", || crash::search(crash::write_and_sync)),
            ],
        },
        Level {
            id: "transfer",
            lesson: 14,
            title: "Half a transfer",
            program: "Two accounts, each in a sector of its own, have 55 and 45. A moves 18 from one to the other: it writes 37 and 63 in one write, and syncs. A dot is a zero byte.",
            function: "transfer",
            goal: "Make money vanish, or appear from nowhere.",
            hint: "One write, but two sectors. A disk may also tear a sector: its first bytes are new, the others old.",
            why: "A write is not atomic: each sector by itself is old, new or torn. The sync does not help: the power fails before it returns.",
            versions: [
                version("in place", || crash::search(crash::transfer_in_place)),
                version("with a journal", || crash::search(crash::transfer_with_checksum)),
            ],
        },
        Level {
            id: "torn",
            lesson: 14,
            title: "A torn record",
            program: "The same transfer, with a journal: A writes the record 3763 to the journal and syncs it, then writes the accounts and syncs them. Recovery writes the journal's record to the accounts again, if there is one.",
            function: "transfer",
            goal: "Make the recovery write wrong numbers.",
            hint: "What does recovery take for a record, if the power fails while the journal is written?",
            why: "The record was torn, and recovery took it for a whole one. With a checksum it sees the difference.",
            versions: [
                version("without a checksum", || crash::search(crash::transfer_without_checksum)),
                version("with a checksum", || crash::search(crash::transfer_with_checksum)),
            ],
        },
        Level {
            id: "short",
            lesson: 0,
            title: "The end of the file",
            program: "A reads two blocks of 512 bytes. You may make one read short, on which the library ought to read the rest.",
            function: "blocks",
            goal: "Give A a part of a block without an error.",
            hint: "A read may be short in the middle of a file too.",
            why: "A short read was taken for the end of the file. Only a read of nothing is the end: the library must ask for the rest.",
            versions: [
                version("2022: short is the end", || {
                    search(Powers { short: 1, ..powers(&["A"]) }, p::blocks::<p::TakenForTheEnd2022>)
                }),
                version("with the guard", || search(Powers { short: 1, ..powers(&["A"]) }, p::blocks::<AllGuards>)),
            ],
        },
    ]
}

fn powers(readers: &'static [&'static str]) -> Powers {
    Powers { readers, ..Powers::default() }
}

/// Returns the source of a function of the programs.
fn source(function: &str) -> &'static str {
    const SOURCES: [&str; 2] = [include_str!("programs.rs"), include_str!("crash.rs")];
    let found = SOURCES.iter().find_map(|source| {
        let (before, _) =
            source.split_once(&format!("fn {function}")).filter(|(_, after)| after.starts_with(['(', '<']))?;
        // From its documentation to the first line that is a brace.
        let start = before.rfind("\n\n")? + 2;
        let end = start + source[start..].find("\n}\n")? + 2;
        Some(&source[start..end])
    });
    found.unwrap_or_else(|| panic!("no function {function}"))
}

/// Makes all runs of all levels, and returns the data of the page's section.
pub(crate) fn data() -> Value {
    let mut texts = Texts::default();
    let mut list = Vec::new();
    for level in levels() {
        let Level { id, lesson, title, program, function, goal, hint, why, versions } = level;
        let versions = versions.map(|Version { name, search }| {
            let mut tree = search().json(&mut texts);
            tree["name"] = name.into();
            tree
        });
        list.push(json!({
            "id": id, "lesson": lesson, "title": title, "program": program, "goal": goal, "hint": hint, "why": why,
            "source": source(function),
            "versions": versions,
        }));
    }
    json!({ "texts": texts.all, "levels": list })
}
