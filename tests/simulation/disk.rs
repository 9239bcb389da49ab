//! Simulated files as a program sees them: the same calls as on real ones.

use std::io::{self, ErrorKind, IoSlice, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::panic;

use coralio::fs::{self, Alignment, Direct, FileCursor, remove_file, rename, sync_dir};
use coralio::simulate::{Fault, Faults, Simulation};
use coralio::task::OsCode;
use coralio::{AlignedBuf, File, simulate, unblock};

#[test]
fn files_are_opened_created_and_removed_by_name() {
    // E15, E16: files are opened, created and removed by name as on the real kernel, and none of it
    // touches a real disk.
    simulate(0..20, |sim| {
        let open = |name: &str| File::open(name).map(drop).map_err(|error| error.kind());
        assert_eq!(open("a"), Err(ErrorKind::NotFound));
        let file = File::options().write(true).create_new(true).mode(0o600).open("a")?;
        let again = File::options().write(true).create_new(true).open("a");
        assert_eq!(again.unwrap_err().kind(), ErrorKind::AlreadyExists);
        file.write_at(b"hello", 3)?;
        assert_eq!((file.len()?, file.is_empty()?), (8, false));
        assert!(file.read_at(&mut [0], 0).unwrap_err().to_string().contains("is not open for this"));
        rename("a", "./b")?;
        sync_dir(".")?;
        assert_eq!((open("a"), open("b")), (Err(ErrorKind::NotFound), Ok(())));
        assert_eq!(sim.contents("b").unwrap(), b"\0\0\0hello");
        remove_file("b")?;
        assert!(remove_file("b").unwrap_err().to_string().contains("cannot remove b"));
        assert!(rename("b", "c").unwrap_err().to_string().contains("cannot rename b to c"));
        file.write_at(b"still", 0)?;
        assert!(!std::path::Path::new("b").exists());
        Ok(())
    });
}

/// Returns what each call makes of its arguments where they are not valid.
fn bad_arguments() -> Vec<Result<String, ErrorKind>> {
    fn seen<T: std::fmt::Debug>(done: io::Result<T>) -> Result<String, ErrorKind> {
        done.map(|value| format!("{value:?}")).map_err(|error| error.kind())
    }
    ["", "a\0b"]
        .iter()
        .flat_map(|name| {
            [
                seen(File::open(name).map(drop)),
                seen(File::options().write(true).create(true).open(name).map(drop)),
                seen(fs::read(name)),
                seen(fs::write(name, "x")),
                seen(fs::create_dir(name)),
                seen(fs::create_dir_all(name)),
                seen(fs::read_dir(name).map(drop)),
                seen(fs::remove_dir(name)),
                seen(fs::remove_dir_all(name)),
                seen(remove_file(name)),
                seen(rename(name, "never")),
                seen(fs::hard_link(name, "never")),
                seen(sync_dir(name)),
                seen(fs::try_exists(name)),
                seen(fs::canonicalize(name)),
            ]
        })
        .collect()
}

#[test]
fn bad_arguments_get_the_errors_of_a_real_disk() {
    // E19, E16: empty names and those with a NUL, and lengths and ranges beyond 2^63 - 1, have the
    // same results as on a real disk
    let real = coralio::run(bad_arguments);
    assert_eq!(real[0], Err(ErrorKind::NotFound));
    Simulation::new().faults(Faults::none()).run(0..1, |sim| {
        assert_eq!(bad_arguments(), real);
        let file = sim.create("a", 0);
        let end = i64::MAX as u64;
        for len in [end + 1, u64::MAX] {
            assert_eq!(file.set_len(len).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
        let cached = File::options().write(true).direct(Direct::Never).open("a")?;
        let mut bytes = [0; 512];
        let errors = [
            file.write_at(b"x", end).unwrap_err(),
            file.read_at(&mut bytes, end - 511).unwrap_err(),
            cached.write_vectored_at(&[IoSlice::new(b"x"), IoSlice::new(b"y")], end - 1).unwrap_err(),
        ];
        for error in errors {
            assert!(error.to_string().contains("the range exceeds the largest file size"), "{error}");
        }
        assert_eq!(file.len()?, 0);
        Ok(())
    });
}

#[test]
fn lengths_holes_and_zeroes_are_simulated() {
    // E15: length, truncation, allocation, discarding and zeroing.
    simulate(0..20, |sim| {
        let file = sim.create("a", 0);
        file.write_at(&[1; 3000], 0)?;
        file.set_len(2000)?;
        file.set_len(2500)?;
        file.allocate(2400, 200)?;
        assert_eq!(file.len()?, 2600);
        file.discard(100, 1_000_000)?;
        assert_eq!(file.len()?, 2600);
        file.zero_range(2590, 20)?;
        assert_eq!(file.len()?, 2610);
        let mut expected = [0; 2610];
        expected[..100].fill(1);
        assert_eq!(sim.contents("a").unwrap(), expected);
        assert_eq!(file.metadata().unwrap_err().kind(), ErrorKind::Unsupported);
        let reader = File::open("a")?;
        assert!(reader.set_len(1).unwrap_err().to_string().contains("is not open for writing"));
        let mut rest = [7; 20];
        assert_eq!(file.read_at(&mut rest, 2600)?, 10);
        assert_eq!(file.read_at(&mut rest, 9999)?, 0);
        assert_eq!(file.read_exact_at(&mut rest, 2600).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        Ok(())
    });
}

#[test]
fn direct_requests_require_sector_alignment() {
    // E14: without the page cache as an alternative, unaligned requests fail as on ext4.
    Simulation::new().sector_size(64).run(0..20, |sim| {
        sim.create("a", 640);
        let open = |direct| File::options().read(true).write(true).direct(direct).open("a");
        let (always, never) = (open(Direct::Always)?, open(Direct::Never)?);
        assert_eq!((always.is_direct(), always.alignment()), (true, Alignment { memory: 64, block: 64 }));
        assert_eq!((never.is_direct(), never.alignment()), (false, Alignment { memory: 1, block: 1 }));
        let mut buf = AlignedBuf::new(128, 64);
        assert_eq!(always.read_at(&mut buf, 64)?, 128);
        for (from, len, offset) in [(0, 64, 1), (1, 64, 64), (0, 63, 64), (1, 1, 64)] {
            let error = always.read_at(&mut buf[from..from + len], offset).unwrap_err();
            assert!(error.to_string().contains("multiples of 64 bytes"), "{error}");
        }
        never.write_at(b"any", 1)?;
        open(Direct::Auto)?.write_at(b"any", 5)?;
        assert_eq!(sim.contents("a").unwrap()[..8], *b"\0any\0any");
        Ok(())
    });
}

#[test]
fn libraries_for_std_io_run_unchanged() {
    // E16: a file works as a stream; blocking calls, otherwise off the loop's thread, run in place
    // here.
    simulate(0..50, |sim| {
        let mut stream = FileCursor::new(sim.create("a", 0));
        writeln!(stream, "{}", "line ".repeat(200))?;
        stream.seek(SeekFrom::Start(5))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        assert_eq!(text.len(), 996);
        assert_eq!(unblock(std::thread::current)?.id(), std::thread::current().id());
        Ok(())
    });
}

#[test]
fn disk_contents_can_be_corrupted() {
    // E17: corruption is silent, and survives a crash.
    Simulation::new().faults(Faults::none()).run(0..1, |sim| {
        let file = sim.create("a", 1000);
        sim.corrupt("a", 510, b"rot!");
        sim.crash();
        assert!(file.sync_all().is_err());
        let mut found = [0; 6];
        sim.open("a")?.read_exact_at(&mut found, 509)?;
        assert_eq!(&found, b"\0rot!\0");
        Ok(())
    });
}

#[test]
fn simulated_file_has_no_descriptor() {
    // E14: asking for a descriptor is an error; no real file is ever reached by a simulated file's
    // number.
    let failure = Simulation::new().search(0..1, |sim| {
        sim.create("a", 0).as_fd();
        Ok(())
    });
    assert!(failure.unwrap_err().message.contains("a simulated file has no descriptor"));
}

#[test]
fn simulated_name_outside_its_run_is_rejected() {
    // E17, E14: a Sim kept after its run opens nothing, in another simulation or in none.
    let kept = std::cell::RefCell::new(None);
    simulate(0..1, |sim| {
        kept.replace(Some(sim.clone()));
        Ok(())
    });
    let sim = kept.take().unwrap();
    let open = || panic::catch_unwind(panic::AssertUnwindSafe(|| drop(sim.open("Cargo.toml"))));
    for result in [open(), coralio::run(open)] {
        let said = *result.unwrap_err().downcast::<&str>().unwrap();
        assert!(said.contains("simulated files belong to a run"), "{said}");
    }
    simulate(0..1, |_| {
        assert!(open().is_err());
        Ok(())
    });
}

#[test]
fn interrupted_completions_are_retried() {
    // E10: reads, writes and syncs are retried on EINTR without a limit, on EAGAIN sixteen times.
    Simulation::new().faults(Faults::none()).run(0..1, |sim| {
        let file = sim.create("file", 4096);
        let fails = |errno, times| (0..times).for_each(|_| sim.inject(Fault::Error(errno)));
        for (errno, times) in [(libc::EINTR, 100), (libc::EAGAIN, 16)] {
            fails(errno, times);
            assert_eq!(file.write_at(&[7; 1024], 512)?, 1024);
            fails(errno, times);
            let mut back = [0; 1024];
            file.read_exact_at(&mut back, 512)?;
            assert_eq!(back, [7; 1024]);
            fails(errno, times);
            file.sync_data()?;
        }
        fails(libc::EAGAIN, 17);
        let error = file.read_at(&mut [0; 512], 0).unwrap_err();
        assert_eq!((error.kind(), error.os_code()), (io::ErrorKind::WouldBlock, Some(libc::EAGAIN)));
        assert!(error.to_string().contains("try later"), "{error}");
        assert_eq!(file.read_at(&mut [0; 512], 0)?, 512);
        Ok(())
    });
}
