//! The search itself: seeds, tapes, hashes, and the report of a failing run.

use std::cell::{Cell, RefCell};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use coralio::coroutine::{Coroutine, suspend};
use coralio::fs::{self, copy_file_range};
use coralio::simulate::{Fault, Faults, Sim, Simulation};
use coralio::sync::CoMutex;
use coralio::{File, simulate, sleep, spawn, yield_now};

use crate::program::{self, Size};
use crate::{harsh, small};

const SIZE: Size = Size { workers: 3, steps: 4 };

#[test]
fn same_seed_gives_the_same_run() {
    // E17: the same seed gives the same run, by the hash of all that the kernel saw and decided;
    // other seeds give other runs.
    let simulation = small().faults(harsh());
    let hashes = |from| -> Vec<_> {
        (from..from + 200).map(|seed| simulation.fingerprint(seed, |sim| program::run(sim, SIZE))).collect()
    };
    let mut first = hashes(0);
    assert_eq!(first, hashes(0));
    first.extend(hashes(200));
    first.sort_unstable();
    first.dedup();
    assert!(first.len() > 350, "{} of 400", first.len());
}

#[test]
fn fingerprint_covers_everything_the_backend_does() {
    // E17: the hash covers the data written, the data read, the offset, and the faults; all else is
    // the same here.
    let hash = |write: u8, rot: u8, at: u64, errno: i32| {
        Simulation::new().faults(Faults::none()).fingerprint(0, |sim| {
            let file = sim.create("a", 512);
            file.write_at(&[write; 8], at)?;
            sim.corrupt("a", 100, &[rot]);
            file.read_at(&mut [0; 200], 0)?;
            sim.inject(Fault::Error(errno));
            file.sync_data().unwrap_err();
            Ok(())
        })
    };
    let base = hash(1, 1, 0, libc::EIO);
    assert_eq!(hash(1, 1, 0, libc::EIO), base);
    for other in
        [hash(2, 1, 0, libc::EIO), hash(1, 2, 0, libc::EIO), hash(1, 1, 1, libc::EIO), hash(1, 1, 0, libc::EBADF)]
    {
        assert_ne!(other, base);
    }
}

/// Fails if the second of three reads is the first to complete.
fn overtaken(sim: &Sim) -> io::Result<()> {
    let order = std::rc::Rc::new(RefCell::new(Vec::new()));
    let tasks = [0, 1, 2].map(|number| {
        let (file, order) = (sim.create(format!("{number}"), 8), order.clone());
        spawn(move || {
            file.read_at(&mut [0; 8], 0).unwrap();
            order.borrow_mut().push(number);
        })
    });
    tasks.into_iter().for_each(|task| task.join().unwrap());
    assert_ne!(order.borrow()[0], 1, "the second came first");
    Ok(())
}

#[test]
fn failure_is_shrunk_reported_and_reproduced() {
    // E17: a failure is shrunk and printed with seed, tape and log; the tape reproduces the
    // failure, and the seed the hash.
    const THIS: &str = "search::failure_is_shrunk_reported_and_reproduced";
    let failure = Simulation::new().search(0..1000, overtaken).unwrap_err();
    assert!(failure.message.contains("the second came first") && failure.shrunk_message == failure.message);
    assert!(failure.nonzero_choices <= 2 && !failure.is_flaky, "{failure}");
    let seed = failure.seed.unwrap();
    assert_eq!(failure.run, seed + 1);
    assert_eq!(Simulation::new().fingerprint(seed, overtaken), failure.fingerprint);
    let again = Simulation::new().tape(&failure.tape).unwrap().search(0..1000, overtaken).unwrap_err();
    assert!(again.message.contains("the second came first") && again.run == 1, "{again}");
    let text = failure.to_string();
    for part in [
        &format!("seed {seed} fails (run {}, fingerprint ", seed + 1),
        &format!("reproduce: CORALIO_SIM_TAPE='{}' cargo test {THIS} -- --exact", failure.tape),
        &format!("or: CORALIO_SIM_SEED={seed} cargo test {THIS} -- --exact"),
        "request 1 completed: 8",
        "request 2 by #4: Read, 8 bytes at 0 of 2",
    ] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

#[test]
fn log_of_a_failure_names_files_operations_and_coroutines() {
    // E17: files by their current names, operations that are not requests, and who made both
    let use_names = || {
        let file = File::options().read(true).write(true).create(true).open("log.new")?;
        file.write_at(b"12345678", 0)?;
        file.set_len(4)?;
        file.allocate(0, 8)?;
        fs::rename("log.new", "log")?;
        fs::sync_dir(".")?;
        copy_file_range(&file, 0, &File::options().write(true).create_new(true).open("copy")?, 0, 4)?;
        fs::remove_file("missing").unwrap_err();
        file.read_at(&mut [0; 4], 0)?;
        fs::remove_file("log")?;
        file.sync_data()?;
        Err(io::Error::other("as planned"))
    };
    let run = |_: &Sim| Coroutine::builder().name("writer").spawn(use_names)?.join().unwrap();
    let failure = Simulation::new().faults(Faults::none()).search(0..1, run).unwrap_err();
    let mut rest = failure.log.as_str();
    for line in [
        "open log.new (create) by 'writer'",
        "request 0 by 'writer': Write, 8 bytes at 0 of log.new",
        "setting the length of log.new to 4 by 'writer'",
        "allocating 8 bytes at 0 of log.new by 'writer'",
        "rename log.new to log by 'writer'",
        "sync the directory . by 'writer'",
        "open copy (create new) by 'writer'",
        "copying 4 bytes from 0 to 0 (log to copy) by 'writer'",
        "remove missing by 'writer' failed: No such file or directory",
        "request 1 by 'writer': Read, 4 bytes at 0 of log\n",
        "remove log by 'writer'",
        "request 2 by 'writer': SyncData, 0 bytes at 0 of a removed file, created as log.new",
    ] {
        (_, rest) = rest.split_once(line).unwrap_or_else(|| panic!("{line:?} is not in:\n{rest}"));
    }
}

#[test]
fn environment_variables_select_the_run() {
    // E17: the printed line reproduces the run. In a child process, since environment variables
    // apply to a whole process.
    let failure = Simulation::new().search(0..1000, overtaken).unwrap_err();
    for (name, value) in
        [("CORALIO_SIM_TAPE", failure.tape.clone()), ("CORALIO_SIM_SEED", failure.seed.unwrap().to_string())]
    {
        let run = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["search::requested_reordering_happens", "--exact", "--ignored", "--nocapture"])
            .env(name, &value)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&run.stderr);
        assert!(!run.status.success() && said.contains("the second came first"), "{said}");
        assert!(said.contains("(run 1, "), "{said}");
    }
}

#[test]
#[ignore = "run by environment_variables_select_the_run"]
fn requested_reordering_happens() {
    // E17: only the requested run is made; the seeds given here are not drawn.
    simulate((0..1).map(|_| panic!("a seed was drawn")), overtaken);
}

#[test]
fn invalid_tape_is_rejected() {
    // E14: an invalid tape is rejected with an example of a valid one.
    let error = Simulation::new().tape("1,zwei").unwrap_err();
    assert!(
        error.to_string().contains(r#"invalid choice "zwei" on a tape: must be numbers such as 0*3,1,0,2"#),
        "{error}"
    );
}

#[test]
fn flaky_run_is_reported_as_such() {
    // E17: a run that depends on more than its tape, here on the number of runs, is reported as
    // such.
    let runs = Cell::new(0);
    let failure = Simulation::new().search(0..5, |_sim| {
        runs.set(runs.get() + 1);
        assert_ne!(runs.get(), 3);
        Ok(())
    });
    let failure = failure.unwrap_err();
    assert!(failure.is_flaky && failure.seed == Some(2), "{failure}");
    assert!(failure.to_string().contains("the same tape did not fail again"), "{failure}");
}

/// Returns the message with which the only run fails.
fn failure_of(f: impl Fn(&Sim) -> io::Result<()>) -> String {
    Simulation::new().max_shrink_runs(0).search(0..1, f).unwrap_err().message
}

#[test]
fn each_kind_of_failure_is_detected() {
    // E17, X11: a run fails by a panic, an error, or a deadlock with its dump.
    assert_eq!(failure_of(|_| panic!("so")), "so");
    assert_eq!(
        failure_of(|sim| sim.open("nothing").map(drop)),
        "the run ended with an error: cannot open nothing: No such file or directory (os error 2)"
    );
    let stuck = failure_of(|_| {
        let mutex = std::rc::Rc::new(CoMutex::new(()));
        let held = mutex.clone();
        let _holder = spawn(move || {
            let _guard = held.lock();
            suspend();
        });
        yield_now();
        drop(mutex.lock());
        Ok(())
    });
    assert!(stuck.starts_with("deadlock: every coroutine waits, and no request is in flight"), "{stuck}");
    assert!(stuck.contains("'main' waits for CoMutex"), "{stuck}");
}

#[test]
fn requests_of_others_are_awaited_and_the_rest_unwound() {
    // E17, C9: detached coroutines do not fail a run: their requests are waited for, and they are
    // unwound.
    Simulation::new().run(0..100, |sim| {
        for name in ["a", "b"] {
            let file = sim.create(name, 4096);
            drop(spawn(move || while file.read_at(&mut [0; 512], 0).is_ok() {}));
        }
        yield_now();
        Ok(())
    });
}

#[test]
fn panic_in_a_run_does_not_affect_the_next() {
    // E17: a panic with requests in flight, and others waiting, does not affect the next run.
    for _ in 0..2 {
        let ran = catch_unwind(AssertUnwindSafe(|| {
            simulate(0..1, |sim| {
                let file = sim.create("a", 8);
                drop(spawn(move || file.read_at(&mut [0; 8], 0)));
                yield_now();
                panic!("now")
            })
        }));
        let said = *ran.unwrap_err().downcast::<String>().unwrap();
        assert!(said.contains("fails (run 1") && said.contains("now"), "{said}");
    }
}

#[test]
fn panic_hook_works_while_its_thread_ends() {
    // E17: a panic that a thread-local's destructor catches is printed as without a simulation,
    // although the hook's own thread-local is gone. Aborts if not
    struct Panics;
    impl Drop for Panics {
        fn drop(&mut self) {
            assert!(catch_unwind(|| panic!("while the thread ends")).is_err());
        }
    }
    thread_local!(static PANICS: Panics = const { Panics });
    let thread = std::thread::spawn(|| {
        // Before the hook's, so dropped after it.
        PANICS.with(|_| ());
        simulate(0..1, |sim| {
            sim.crash_during(|| ());
            Ok(())
        });
    });
    thread.join().unwrap();
}

#[test]
fn script_determines_the_next_fault() {
    // E2, E10, E17: scripted faults occur once each, in order, whatever the rates.
    let quiet = Simulation::new().faults(Faults::none()).sector_size(16);
    quiet.run(0..1, |sim| {
        let file = sim.create("a", 64);
        let submits = || coralio::driver::stats().submits;
        sim.inject(Fault::Refuse(libc::EAGAIN));
        sim.inject(Fault::Short(5));
        let before = submits();
        assert_eq!(file.write_at(&[1; 20], 0)?, 20);
        assert_eq!(submits() - before, 3, "one refused, one short, and the rest");
        for errno in [libc::EBADF, libc::ENOMEM] {
            sim.inject(Fault::Refuse(errno));
            assert!(file.read_at(&mut [0; 4], 0).is_err());
        }
        sim.inject(Fault::Error(libc::EIO));
        assert!(file.sync_data().unwrap_err().to_string().contains("the device failed"));
        let before = sim.now();
        sim.inject(Fault::Delay(std::time::Duration::from_secs(3600)));
        file.sync_data()?;
        assert!(sim.now() - before > std::time::Duration::from_secs(3600));
        sim.inject(Fault::AtOnce);
        let before = sim.now();
        file.read_exact_at(&mut [0; 20], 0)?;
        assert!(sim.now() - before < std::time::Duration::from_micros(50));
        assert_eq!(sim.contents("a").unwrap()[..21], [[1; 20].as_slice(), &[0]].concat());
        Ok(())
    });
}

/// Asserts that the run fails by the bound on steps, with a dump that names `coroutine`.
#[track_caller]
fn endless(simulation: &Simulation, coroutine: &str, f: impl Fn(&Sim) -> io::Result<()>) {
    let failure = simulation.clone().max_steps(2000).search(0..3, f).unwrap_err();
    assert!(failure.message.contains("the run does not end"), "{}", failure.message);
    assert!(failure.message.contains("Simulation::max_steps") && failure.message.contains(coroutine), "{failure}");
    let text = failure.to_string();
    assert!(text.lines().all(|line| line.len() < 5000) && text.contains("CORALIO_SIM_SEED="), "{text}");
}

#[test]
fn run_that_retries_forever_ends() {
    // E17: a run that retries forever fails by the bound on steps, whether each try takes time,
    // completes within its submit, sleeps, or belongs to another coroutine whose panic is caught.
    let write_until_done = |file: &File| while file.write_at(&[7; 512], 0).is_err() {};
    let broken = Simulation::new().faults(Faults::none().errors(1.0));
    endless(&broken, "'main'", |sim| {
        write_until_done(&sim.create("file", 0));
        Ok(())
    });
    endless(&broken.clone().faults(Faults::none().errors(1.0).at_once(1.0)), "'main'", |sim| {
        write_until_done(&sim.create("file", 0));
        Ok(())
    });
    endless(&Simulation::new(), "'main'", |_| {
        loop {
            sleep(Duration::from_secs(1))?;
        }
    });
    endless(&broken, "'writer'", |sim| {
        let file = sim.create("file", 0);
        let writer = Coroutine::builder().name("writer").spawn(move || write_until_done(&file))?;
        let _ = writer.join();
        Ok(())
    });
    // After a crash a file stays broken; the tape shrinks to nothing.
    let failure = Simulation::new().max_steps(2000).search(0..3, |sim| {
        let file = sim.create("file", 0);
        sim.crash();
        write_until_done(&file);
        Ok(())
    });
    assert_eq!(failure.unwrap_err().nonzero_choices, 0);
}
