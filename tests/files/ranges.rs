//! Locks, handles, data and holes, advice, copies within the kernel, and writes with flags.

use std::cell::Cell;
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use coralio::coroutine::Coroutine;
use coralio::fs::{Advice, Direct, TryLockError, WriteFlags, copy_file_range};
use coralio::task::{Cancelled, OsCode};
use coralio::{File, run, spawn, yield_now};

use crate::{Temp, disk, everywhere, memory, on_real_files, pattern, sim_of};

#[test]
fn lock_excludes_other_handles_without_blocking_the_loop() {
    // E21: a lock is refused or awaited while another handle has one, and the waiting coroutine's
    // loop continues; a shared lock excludes only exclusive ones
    on_real_files(|place, direct| {
        let temp = Temp::with(place, &[7; 100]);
        let open = || Rc::new(temp.open(direct));
        let (first, second) = (open(), open());
        let blocked = |result| assert!(matches!(result, Err(TryLockError::WouldBlock)));
        first.lock().unwrap();
        blocked(second.try_lock());
        blocked(second.try_lock_shared());
        assert!(fs::File::open(&temp.0).unwrap().try_lock().is_err(), "other programs respect it");
        let order = Rc::new(Cell::new(0));
        let waits = spawn({
            let (second, order) = (Rc::clone(&second), Rc::clone(&order));
            move || {
                second.lock().unwrap();
                assert_eq!(order.get(), 1);
                // A cancelled coroutine can release its lock.
                Coroutine::current().unwrap().cancel();
                second.unlock().unwrap();
            }
        });
        yield_now();
        order.set(1);
        // A duplicate shares the lock, and keeps it.
        let clone = first.try_clone().unwrap();
        clone.try_lock().unwrap();
        drop(first);
        blocked(open().try_lock());
        clone.unlock().unwrap();
        waits.join().unwrap();
        clone.lock_shared().unwrap();
        second.try_lock_shared().unwrap();
        blocked(open().try_lock());
    });
}

#[test]
fn wait_for_a_lock_is_cancelled() {
    // E21, E11: a coroutine that waits for a lock can be cancelled
    let temp = Temp::with(&memory(), &[7; 100]);
    coralio::run(|| {
        let (first, second) = (temp.open(Direct::Never), temp.open(Direct::Never));
        first.lock().unwrap();
        let waits = spawn(move || second.lock().unwrap_err());
        yield_now();
        waits.cancel();
        assert!(Cancelled::is_cause_of(&waits.join().unwrap()));
    });
}

#[test]
fn duplicate_is_the_same_open_file() {
    // E21: a duplicate reads and writes the same file, with the same options, after the first is
    // closed
    everywhere(|place, direct| {
        let temp = Temp::with(place, &[7; 8192]);
        let file = temp.open(direct);
        let clone = file.try_clone().unwrap();
        assert_eq!((clone.is_direct(), clone.alignment()), (file.is_direct(), file.alignment()));
        file.write_at(b"first", 1).unwrap();
        drop(file);
        let mut back = [0; 7];
        clone.read_exact_at(&mut back, 0).unwrap();
        assert_eq!(&back, b"\x07first\x07");
        clone.set_len(100).unwrap();
        assert_eq!(temp.content().len(), 100);
    });
}

#[test]
fn handle_for_other_code_is_never_direct() {
    // E21: a std handle of a direct file takes any memory, offset and length
    everywhere(|place, direct| {
        let temp = Temp::with(place, &[7; 8192]);
        let file = temp.open(direct);
        if sim_of(place).is_some() {
            assert_eq!(file.to_std().unwrap_err().kind(), ErrorKind::Unsupported);
            return;
        }
        let std = file.to_std().unwrap();
        // SAFETY: takes no pointers.
        let flags = unsafe { libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(&std.as_fd()), libc::F_GETFL) };
        assert_eq!(flags & libc::O_DIRECT, 0);
        std.write_all_at(b"odd", 3).unwrap();
        (&std).write_all(b"at 0").unwrap();
        let mut back = [0; 7];
        file.read_exact_at(&mut back, 0).unwrap();
        assert_eq!(&back, b"at 0dd\x07");
    });
}

#[test]
fn data_and_holes_are_found() {
    // E21: data and holes are reported as the file system has them, on real and simulated disks
    everywhere(|place, direct| {
        let temp = Temp::with(place, &[]);
        let file = temp.open(direct);
        const MIB: u64 = 1 << 20;
        file.set_len(4 * MIB).unwrap();
        file.write_at(&pattern(1, 65536), MIB).unwrap();
        assert_eq!(file.next_data(0).unwrap(), Some(MIB));
        assert_eq!(file.next_data(MIB + 5).unwrap(), Some(MIB + 5));
        assert_eq!(file.next_hole(MIB).unwrap(), Some(MIB + 65536));
        assert_eq!(file.next_hole(3).unwrap(), Some(3));
        assert_eq!(file.next_data(2 * MIB).unwrap(), None);
        assert_eq!((file.next_data(4 * MIB).unwrap(), file.next_hole(4 * MIB).unwrap()), (None, None));
        file.write_at(&pattern(2, 65536), 4 * MIB - 65536).unwrap();
        assert_eq!(file.next_hole(4 * MIB - 1).unwrap(), Some(4 * MIB));
    });
}

#[test]
fn ranges_are_copied_within_the_kernel() {
    // E21: the copy has the bytes of the source up to its end, whatever the alignment, and sees
    // earlier writes of either kind
    everywhere(|place, direct| {
        let content = pattern(3, 20_000);
        let (from, to) = (Temp::with(place, &[]), Temp::with(place, &[1; 100]));
        let (source, target) = (from.open(direct), to.open(direct));
        source.write_at(&content, 0).unwrap();
        assert_eq!(copy_file_range(&source, 7, &target, 3, 9000).unwrap(), 9000);
        assert_eq!(copy_file_range(&source, 15_000, &target, 9003, 1 << 40).unwrap(), 5000);
        let expected = [&[1; 3], &content[7..9007], &content[15_000..]].concat();
        assert!(to.content() == expected);
        assert_eq!(copy_file_range(&source, 30_000, &target, 0, 10).unwrap(), 0);
        assert_eq!(copy_file_range(&source, 0, &source, 10, 100).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(copy_file_range(&source, u64::MAX, &target, 0, 1).unwrap_err().kind(), ErrorKind::InvalidInput);
        let reader = File::options().read(true).direct(direct).open(&to.0).unwrap();
        let error = copy_file_range(&source, 0, &reader, 0, 10).unwrap_err();
        assert_eq!(error.os_code(), Some(libc::EBADF));
        assert!(
            error.to_string().contains("copying 10 bytes from 0 to 0") && error.to_string().contains("not open for")
        );
    });
}

#[test]
fn long_copy_continues_after_each_piece() {
    // E21: a copy that takes more than one call puts every byte in its place
    const LONG: u64 = 64 << 20;
    run(|| {
        let (from, to) = (Temp::with(&disk(), &[]), Temp::with(&disk(), &[]));
        let (source, target) = (from.open(Direct::Never), to.open(Direct::Never));
        source.write_at(&pattern(4, 20_000), LONG - 10_000).unwrap();
        assert_eq!(copy_file_range(&source, 5, &target, 10, LONG + 9000).unwrap(), LONG + 9000);
        assert_eq!(target.len().unwrap(), LONG + 9010);
        let mut copied = vec![0; 19_005];
        target.read_exact_at(&mut copied, LONG - 9995).unwrap();
        assert!(copied == pattern(4, 20_000)[..19_005]);
    });
}

#[test]
fn advice_is_accepted() {
    // E21: every advice is accepted, and changes no contents
    everywhere(|place, direct| {
        let temp = Temp::with(place, &[7; 8192]);
        let file = temp.open(direct);
        use Advice::*;
        for advice in [Normal, Sequential, Random, NoReuse, WillNeed, DontNeed] {
            file.advise(0, 0, advice).unwrap();
            file.advise(4096, 100, advice).unwrap();
        }
        assert_eq!(temp.content(), [7; 8192]);
    });
}

#[test]
fn write_flags_work_or_are_refused_clearly() {
    // E22: a write with flags has its effect, aligned or not; a missing property is an error that
    // names it, with a remedy
    everywhere(|place, direct| {
        let temp = Temp::with(place, &[7; 16384]);
        let file = temp.open(direct);
        let mut model = vec![7; 16384];
        for (number, (offset, len)) in [(0, 8192), (4096, 4096), (5, 7), (16_000, 5000)].into_iter().enumerate() {
            for flags in [WriteFlags::DSYNC, WriteFlags::DONTCACHE, WriteFlags::DSYNC | WriteFlags::DONTCACHE] {
                let data = crate::aligned(&pattern(number as u64 + 10, len));
                match file.write_at_with(&data, offset as u64, flags) {
                    Ok(done) => {
                        assert_eq!(done, len);
                        model.resize(model.len().max(offset + len), 0);
                        model[offset..offset + len].copy_from_slice(&data);
                    }
                    Err(error) => {
                        assert!(flags.contains(WriteFlags::DONTCACHE), "{error}");
                        assert_eq!(error.kind(), ErrorKind::Unsupported);
                        let text = error.to_string();
                        assert!(
                            text.contains(&format!("with {flags:?}: ")) && text.contains("without flags"),
                            "{text}"
                        );
                    }
                }
            }
        }
        assert!(temp.content() == model);
        if let Err(error) = file.write_at_with(&crate::aligned(&[1; 4096]), 0, WriteFlags::ATOMIC) {
            assert!([ErrorKind::Unsupported, ErrorKind::InvalidInput].contains(&error.kind()), "{error}");
            assert!(error.to_string().contains("with ATOMIC: "), "{error}");
        }
        let reader = File::options().read(true).direct(direct).open(&temp.0).unwrap();
        assert!(reader.write_at_with(b"x", 0, WriteFlags::DSYNC).is_err());
        let error = file.write_at_with(b"lost", u64::MAX, WriteFlags::DSYNC).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "the system would take it for the current position: {error}");
    });
    assert_eq!(format!("{:?}", WriteFlags::NONE), "NONE");
    assert_eq!(format!("{:?}", WriteFlags::DSYNC | WriteFlags::ATOMIC), "DSYNC | ATOMIC");
}
