//! `gdb/coralio.py` on the program `hung`: a live process, its core files, and a process that does
//! not hang yet; built in both profiles with the types of the runtime, without which the other tests
//! compile faster.
#![cfg(all(target_arch = "x86_64", not(loom), not(feature = "sanitizer")))]

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().and_then(Path::parent).unwrap().join("examples/hung");
    assert!(program.is_file(), "no {}; make it first, as .ci/run does", program.display());
    program
}

/// The program, once all its coroutines wait.
struct Hung(Child);

impl Hung {
    fn start() -> Hung {
        let mut hung = Hung(Command::new(program()).stdout(Stdio::piped()).spawn().unwrap());
        let mut line = String::new();
        BufReader::new(hung.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "hung\n");
        hung
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A file that is removed when the test ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        Scratch(Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("gdb-{}-{name}", std::process::id())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Returns gdb's output, with the script loaded; `None`, with a note on standard error, if there is
/// no gdb or it may not trace other processes.
fn gdb(configure: impl FnOnce(&mut Command) -> &mut Command, commands: &[&str]) -> Option<String> {
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-q", "-batch", "-iex", "set debuginfod enabled off", "-iex", "set startup-with-shell off"]);
    gdb.args(["-iex", "set width 0"]);
    configure(&mut gdb).arg("-x").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/gdb/coralio.py"));
    let run = gdb.args(commands.iter().flat_map(|command| ["-ex", command])).output();
    let said = match run {
        Err(error) if error.kind() == ErrorKind::NotFound => Err("no gdb here".to_string()),
        run => {
            let run = run.unwrap();
            let said = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
            match said.lines().find(|line| line.contains("ptrace: Operation not permitted")) {
                Some(line) => Err(line.to_string()),
                None => Ok(said),
            }
        }
    };
    said.inspect_err(|cause| eprintln!("skipped: {cause}")).ok()
}

/// Asserts that there are lines with these beginnings, in this order; others may lie between.
#[track_caller]
fn assert_lines(said: &str, expected: &[&str]) {
    let mut lines = said.lines();
    for start in expected {
        assert!(lines.any(|line| line.starts_with(start)), "expected `{start}` next, but gdb said:\n{said}");
    }
}

const QUESTIONS: [&str; 7] = [
    "coralio coroutines",
    "coralio bt all",
    "coralio select 'bob to alice'",
    // gdb 13 fails on the arguments of some optimized frames.
    if cfg!(debug_assertions) { "frame apply all -q -s info args" } else { "echo" },
    "frame apply all -q -s x/a $rbp+8",
    "bt -2",
    "coralio select",
];

/// Asserts the answers to QUESTIONS.
#[track_caller]
fn assert_answers(said: &str) {
    let listed = |label: &str| format!("  {label}  suspended; created at ");
    let expected = [
        "context 0x",
        &listed("'alice to bob'"),
        &listed("'bob to alice'"),
        &listed("#3            "),
        "3 coroutines",
        "'bob to alice': its frames are those from #",
        "from = ",
        "amount = 10",
    ];
    assert_lines(said, if cfg!(debug_assertions) { &expected } else { &expected[..6] });
    let mut listed = said.lines().filter(|line| line.contains("; created at "));
    assert!(listed.all(|line| line.contains("examples/hung.rs:")), "{said}");
    // corosensei's first frame has its record where rbp points, below the function that it calls:
    // so rbp was correct.
    let records = said.lines().filter(|line| line.starts_with("0x") && line.contains("coroutine_func"));
    assert_ne!(records.count(), 0, "{said}");
    // That frame is the last, except for the zero return address.
    assert!(said.contains(" in stack_init_trampoline ()\n"), "{said}");
    for (label, waits_in, called_by) in [
        ("'alice to bob'", "CoMutex::lock at ", "hung::transfer at "),
        ("'bob to alice'", "CoMutex::lock at ", "hung::transfer at "),
        ("#3", "JoinHandle::join at ", "hung::main::{closure#0}::{closure#1} at "),
    ] {
        let (_, stack) = said.split_once(&format!("\n{label}: suspended\n")).expect(said);
        let stack: Vec<_> = stack.lines().take_while(|line| line.starts_with('#') && !line.ends_with("ed")).collect();
        let place = |what: &str| stack.iter().position(|line| line.contains(what));
        let (wait, caller) = (place(waits_in), place(called_by));
        assert!(wait.is_some() && wait < caller, "{label} waits in {waits_in}, called by {called_by}:\n{said}");
        assert!(place("poll").is_none() && place("hung::main at").is_none(), "{label} is not the thread:\n{said}");
    }
}

#[test]
#[ignore = "needs the types of the runtime: .ci/run builds them"]
fn gdb_lists_coroutines_of_a_process_and_its_core_files() {
    // C13, X11: the script finds all coroutines of a hung process and walks their stacks; so too in
    // a core file
    let mut hung = Hung::start();
    let (whole, plain) = (Scratch::new("whole"), Scratch::new("plain"));
    let dump = |command, file: &Scratch| format!("{command} {}", file.0.display());
    let dumps = [dump("coralio core", &whole), dump("generate-core-file", &plain)];
    let commands = [&["coralio bt #3", "bt -1"], &QUESTIONS[..], &["bt -1", &dumps[0], &dumps[1]]].concat();
    let pid = hung.0.id().to_string();
    let Some(said) = gdb(|gdb| gdb.args(["-p", &pid]), &commands) else { return };
    assert_answers(&said);
    // Restored, both times: gdb sees the thread's own stack.
    assert_eq!(said.matches(" in _start ()").count(), 2, "{said}");
    assert_eq!(hung.0.try_wait().unwrap(), None, "the process continues after the inspection");

    let core = |file: &Scratch| gdb(|gdb| gdb.arg(program()).arg(&file.0), &QUESTIONS).unwrap();
    assert_answers(&core(&whole));
    // gdb's own core file lacks mappings that contain guard pages: the script then says what to do.
    let said = core(&plain);
    assert_ne!(said.contains("hung::transfer at"), said.contains("Its stack is not in the core file."), "{said}");
}

#[test]
#[ignore = "needs the types of the runtime: .ci/run builds them"]
fn gdb_shows_entered_and_unstarted_coroutines() {
    // C13, X11: coroutines without a stack to walk are listed too, with the reason; an entered
    // coroutine's frames continue into those of its enterers
    let commands = [
        "break hung::transfer",
        "run",
        "coralio coroutines",
        "coralio bt 'alice to bob'",
        "coralio bt #3",
        "coralio bt 'carol'",
        "bt",
        "delete",
        "kill",
    ];
    let Some(said) = gdb(|gdb| gdb.arg(program()), &commands) else { return };
    let expected = [
        "  'alice to bob'  entered, runs on thread 1; created at ",
        "  'bob to alice'  scheduled, not started; created at ",
        "  #3              scheduled, not started; created at ",
        "'alice to bob': entered, runs on thread 1",
        "    It is entered: its frames are in `thread apply 1 bt`.",
        "#3: scheduled, not started",
        "    It has not been started.",
    ];
    assert_lines(&said, &expected);
    assert!(said.contains("coralio: no coroutine 'carol'"), "{said}");
    let (own, thread) = said.split_once("<signal handler called>").expect(&said);
    // An optimized `main` may leave no frame, since it ends with the call of `run`.
    let main = if cfg!(debug_assertions) { "hung::main (" } else { "hung::main::{closure_env#0}" };
    assert!(own.contains("hung::transfer (") && thread.contains(main), "{said}");
}

#[test]
fn gdb_script_reports_an_unknown_program() {
    // X11: the script's errors name cause and remedy
    let Some(said) = gdb(|gdb| gdb, &["coralio coroutines"]) else { return };
    assert!(said.contains("does not use coralio") && said.contains("CARGO_PROFILE_RELEASE_DEBUG=2"), "{said}");
}
