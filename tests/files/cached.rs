//! Opens and `fstat` in place: where they cannot block they use no thread, and only there.

use std::cell::Cell;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::rc::Rc;

use coralio::fs::Direct;
use coralio::simulate::{Faults, Simulation};
use coralio::task::Cancelled;
use coralio::{File, spawn, yield_now};

use crate::fuse::{Fuse, GETATTR, OPEN, STATFS};
use crate::{Temp, disk, everywhere, on_each_backend, on_real_files, sim_of};

const TIMES: usize = 50;

/// Returns in how many of [`TIMES`] calls of `f` another coroutine ran.
fn switches(mut f: impl FnMut()) -> usize {
    let switched = |_: &usize| {
        let ran = Rc::new(Cell::new(false));
        let other = spawn({
            let ran = Rc::clone(&ran);
            move || ran.set(true)
        });
        f();
        let switched = ran.get();
        other.join().unwrap();
        switched
    };
    (0..TIMES).filter(switched).count()
}

/// Returns the flags of a file and of its descriptor.
fn flags(fd: impl AsFd) -> [i32; 2] {
    // SAFETY: these take no pointers.
    [libc::F_GETFL, libc::F_GETFD].map(|which| unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), which) })
}

#[test]
fn cached_open_and_fstat_use_no_thread() {
    // E18: opening an existing file again, its length and its metadata take place immediately, and the
    // descriptor is as std's open makes it
    on_real_files(|place, direct| {
        let temp = Temp::with(place, &[7; 8192]);
        let open = || File::options().read(true).write(true).direct(direct).open(&temp.0).unwrap();
        let file = open();
        let custom = if file.is_direct() { libc::O_DIRECT } else { 0 };
        let std = fs::OpenOptions::new().read(true).write(true).custom_flags(custom).open(&temp.0).unwrap();
        // A lookup fails to use the cache while another test renames a file.
        assert!(switches(|| drop(open())) < TIMES / 2, "opens");
        assert_eq!(flags(open()), flags(&std));
        assert_eq!(switches(|| assert_eq!(file.len().unwrap(), 8192)), 0);
        assert_eq!(switches(|| assert_eq!(file.metadata().unwrap().ino(), std.metadata().unwrap().ino())), 0);
    });
}

#[test]
fn file_system_of_another_process_is_asked_on_a_thread() {
    // E18: opening a FUSE file whose name is cached, and fstat, ask the server on a thread
    let Ok(fuse) = Fuse::mount() else { return eprintln!("skipped: cannot mount a FUSE file system") };
    let path = fuse.folder.0.join("file");
    on_each_backend(|| {
        for direct in [Direct::Auto, Direct::Never] {
            for _ in 0..3 {
                let file = File::options().read(true).write(true).direct(direct).open(&path).unwrap();
                file.len().unwrap();
                file.metadata().unwrap();
            }
        }
        // SAFETY: only returns the thread's number.
        let here = unsafe { libc::gettid() };
        let asked = fuse.asked();
        assert!([OPEN, GETATTR].iter().all(|wanted| asked.iter().any(|(opcode, _)| opcode == wanted)), "{asked:?}");
        for (opcode, thread) in asked {
            assert!(thread != here || ![OPEN, GETATTR, STATFS].contains(&opcode), "{opcode} on the loop's thread");
        }
    });
}

#[test]
fn leased_file_is_opened_on_a_thread() {
    // E18: an open that waits for the holder of a lease, here this thread, does not block the loop
    on_real_files(|place, direct| {
        let temp = Temp::with(place, &[7; 100]);
        let other = Temp::with(place, &[]);
        File::options().read(true).direct(direct).open(&other.0).unwrap();
        let holder = fs::OpenOptions::new().read(true).write(true).open(&temp.0).unwrap();
        /// From `fcntl.h`.
        const F_SETSIG: i32 = 10;
        let lease = |kind: i32| {
            // SAFETY: these take no pointers. SIGURG is ignored, unlike the default SIGIO.
            unsafe {
                libc::fcntl(holder.as_raw_fd(), F_SETSIG, libc::SIGURG);
                libc::fcntl(holder.as_raw_fd(), libc::F_SETLEASE, kind)
            }
        };
        if lease(libc::F_WRLCK) != 0 {
            return println!("skipped: no leases here: {}", std::io::Error::last_os_error());
        }
        let (path, opened) = (temp.0.clone(), Rc::new(Cell::new(false)));
        let opens = spawn({
            let opened = Rc::clone(&opened);
            move || {
                File::options().read(true).direct(direct).open(&path).unwrap();
                opened.set(true);
            }
        });
        yield_now();
        assert!(!opened.get(), "the open waited on the loop's thread until the lease expired");
        assert_eq!(lease(libc::F_UNLCK), 0);
        opens.join().unwrap();
    });
}

#[test]
fn cancelled_open_in_place_fails() {
    // E11, E18: an open or fstat that would take place immediately has no effect if the coroutine is
    // cancelled
    let temp = Temp::with(&disk(), &[7; 100]);
    coralio::run(|| {
        let file = temp.open(Direct::Auto);
        let path = temp.0.clone();
        let task = spawn(move || {
            yield_now();
            let errors = [File::open(&path).map(drop), file.len().map(drop), file.metadata().map(drop)];
            errors.map(|result| Cancelled::is_cause_of(&result.unwrap_err()))
        });
        yield_now();
        task.cancel();
        assert_eq!(task.join().unwrap(), [true; 3]);
    });
}

#[test]
fn append_option_appends() {
    // E18: writes of a file opened with `append` go to its end, whatever their offset; as in std it
    // excludes `truncate` and implies writing
    everywhere(|place, direct| {
        let temp = Temp::with(place, b"begin");
        let options = || File::options().append(true).direct(direct);
        let file = options().read(true).open(&temp.0).unwrap();
        assert!(!file.is_direct());
        file.write_at(b", middle", 0).unwrap();
        options().open(&temp.0).unwrap().write_at(b", end", 1).unwrap();
        assert_eq!(temp.content(), b"begin, middle, end");
        let mut back = [0; 5];
        file.read_exact_at(&mut back, 0).unwrap();
        assert_eq!(&back, b"begin");
        assert_eq!(options().truncate(true).open(&temp.0).unwrap_err().kind(), ErrorKind::InvalidInput);
        options().create(true).open(&temp.0).unwrap();
    });
}

#[test]
fn custom_flags_are_used() {
    // E18: custom flags reach the open, in place or on a thread; a simulated file has none
    everywhere(|place, direct| {
        let temp = Temp::with(place, b"content");
        let options = || File::options().read(true).direct(direct);
        let open = || options().custom_flags(libc::O_NOFOLLOW | libc::O_WRONLY).open(&temp.0);
        if sim_of(place).is_some() {
            assert_eq!(open().unwrap_err().kind(), ErrorKind::Unsupported);
            return;
        }
        let link = Temp::at(place);
        std::os::unix::fs::symlink(&temp.0, &link.0).unwrap();
        for _ in 0..3 {
            options().open(&link.0).unwrap();
            assert!(open().unwrap().write_at(b"x", 0).is_err(), "the access mode is not among them");
            assert!(options().custom_flags(libc::O_NOFOLLOW).open(&link.0).is_err());
            let synced = options().custom_flags(libc::O_DSYNC).open(&temp.0).unwrap();
            assert_ne!(flags(synced)[0] & libc::O_DSYNC, 0);
        }
    });
}

#[test]
fn crash_keeps_a_prefix_of_synced_appends() {
    // E17, E18: the simulated append goes to the end also when requests are in flight at a crash
    Simulation::new().faults(Faults::harmless()).run(0..200, |sim| {
        drop(sim.create("log", 0));
        let synced = Cell::new(0);
        sim.crash_during(|| {
            let log = File::options().append(true).open("log")?;
            for number in 1..20u8 {
                log.write_at(&[number], 0)?;
                log.sync_data()?;
                synced.set(number);
            }
            std::io::Result::Ok(())
        });
        let there = sim.contents("log").unwrap();
        assert!(there.len() >= synced.get().into(), "{there:?}");
        let expected: Vec<_> = (1..=synced.get()).collect();
        assert_eq!(there[..expected.len()], expected[..]);
        Ok(())
    });
}
