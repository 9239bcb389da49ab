//! File operations for which the kernel offers only blocking calls: space, length, names. The
//! reference is what `std` sees.

use std::fs;
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::rc::Rc;

use coralio::context::AioContext;
use coralio::fs::{Direct, remove_file, rename, sync_dir};
use coralio::task::{Cancelled, OsCode};
use coralio::{File, spawn, unblock, yield_now};

use crate::common::skipped;
use crate::{Temp, disk, memory, on_real_files, pattern};

const BLOCK: u64 = 4096;

#[test]
fn space_is_allocated_and_released() {
    // E15: allocating, discarding and zeroing ranges have the right effect on length, content, and
    // blocks on the medium
    on_real_files(|place, direct| {
        let temp = Temp::at(place);
        let file = temp.open(direct);
        let blocks = || fs::metadata(&temp.0).unwrap().blocks() * 512 / BLOCK;
        file.allocate(0, 8 * BLOCK).unwrap();
        assert_eq!((file.len().unwrap(), blocks()), (8 * BLOCK, 8));
        assert!(temp.content().iter().all(|&byte| byte == 0));
        let mut model = pattern(1, 8 * BLOCK as usize);
        file.write_at(&model, 0).unwrap();
        file.sync_data().unwrap();

        file.discard(BLOCK, 2 * BLOCK).unwrap();
        model[BLOCK as usize..3 * BLOCK as usize].fill(0);
        assert!(temp.content() == model);
        assert_eq!((file.len().unwrap(), blocks()), (8 * BLOCK, 6));
        // Beyond the end there is nothing to discard, and the length stays.
        file.discard(100 * BLOCK, BLOCK).unwrap();
        assert_eq!(file.len().unwrap(), 8 * BLOCK);

        match file.zero_range(4 * BLOCK + 100, 200) {
            Ok(()) => {
                model[4 * BLOCK as usize + 100..4 * BLOCK as usize + 300].fill(0);
                file.zero_range(8 * BLOCK, BLOCK).unwrap();
                model.resize(9 * BLOCK as usize, 0);
                assert!(temp.content() == model);
                assert_eq!(blocks(), 7, "space is reserved");
            }
            Err(error) => {
                assert_eq!(place, memory(), "{error}");
                assert_eq!(error.kind(), ErrorKind::Unsupported);
                let message = error.to_string();
                assert!(message.starts_with("zeroing 200 bytes at 16484: Operation not supported"), "{message}");
                assert!(message.contains("tmpfs, for one, cannot zero ranges"), "{message}");
                assert!(message.ends_with("write zeroes instead"), "{message}");
            }
        }
        file.set_len(100).unwrap();
        file.set_len(200).unwrap();
        model.truncate(100);
        model.resize(200, 0);
        assert!(temp.content() == model);
        assert_eq!(file.metadata().unwrap().ino(), fs::metadata(&temp.0).unwrap().ino());
        assert!(!file.is_empty().unwrap());
    });
}

#[test]
fn names_are_created_renamed_and_removed() {
    // E15: `rename` replaces its target, the directory can be synced, and an open file outlives its
    // name
    on_real_files(|place, direct| {
        let folder = Temp::at(place);
        fs::create_dir(&folder.0).unwrap();
        let [old, new] = ["old", "new"].map(|name| folder.0.join(name));
        fs::write(&old, b"old").unwrap();
        fs::write(&new, b"new").unwrap();
        let file = File::options().read(true).direct(direct).open(&new).unwrap();
        rename(&old, &new).unwrap();
        sync_dir(&folder.0).unwrap();
        assert_eq!(fs::read(&new).unwrap(), b"old");
        assert!(!old.exists());
        let mut buf = [0; 3];
        file.read_exact_at(&mut buf, 0).unwrap();
        assert_eq!(&buf, b"new");
        remove_file(&new).unwrap();
        assert!(!new.exists());
        assert_eq!(file.metadata().unwrap().nlink(), 0);
    });
}

#[test]
fn errors_name_operation_and_cause() {
    // E14: each error names the operation, cause and remedy
    let says = |error: std::io::Error, kind, words: &[&str]| {
        assert_eq!(error.kind(), kind, "{error}");
        words.iter().for_each(|word| assert!(error.to_string().contains(word), "{error}"));
    };
    on_real_files(|place, direct| {
        let temp = Temp::with(place, &[7; 8192]);
        let file = File::options().read(true).direct(direct).open(&temp.0).unwrap();
        let not_for_writing = ["Bad file descriptor", "not open for writing: open it with File::options().write(true)"];
        for error in [
            file.set_len(0).unwrap_err(),
            file.allocate(0, 4096).unwrap_err(),
            file.discard(0, 4096).unwrap_err(),
            file.zero_range(0, 4096).unwrap_err(),
        ] {
            // A file system that cannot zero ranges at all reports that instead.
            if error.kind() != ErrorKind::Unsupported {
                assert_eq!(error.os_code(), Some(libc::EBADF));
                says(error, std::io::Error::from_raw_os_error(libc::EBADF).kind(), &not_for_writing);
            }
        }
        assert_eq!(temp.content(), [7; 8192], "nothing has changed");
        for (offset, len) in [(0, 0), (u64::MAX, 1), (1 << 63, 1), (1, i64::MAX as u64)] {
            for error in [file.allocate(offset, len).unwrap_err(), file.discard(offset, len).unwrap_err()] {
                let numbers = format!("invalid range of {len} bytes at {offset}");
                says(error, ErrorKind::InvalidInput, &[&numbers, "at least one byte and end below 2^63"]);
            }
        }
        let missing = Temp::at(place);
        let name = missing.0.to_str().unwrap();
        let there = temp.0.to_str().unwrap();
        assert_eq!(rename(name, there).unwrap_err().os_code(), Some(libc::ENOENT));
        says(rename(name, there).unwrap_err(), ErrorKind::NotFound, &["cannot rename", name, " to ", there, "No such"]);
        says(remove_file(name).unwrap_err(), ErrorKind::NotFound, &["cannot remove", name]);
        says(sync_dir(there).unwrap_err(), ErrorKind::NotADirectory, &["cannot sync the directory", there]);
    });
    let temp = Temp::with(&disk(), b"to move");
    coralio::run(|| {
        let there = Temp::at(&memory());
        let error = rename(&temp.0, &there.0).unwrap_err();
        says(error, ErrorKind::CrossesDevices, &["different file systems: copy the file", "then remove the original"]);
    });
}

#[test]
fn other_coroutines_run_during_fs_operations() {
    // E15: each of these operations waits for a thread while another coroutine of this thread runs.
    // A fast thread may leave nothing to wait for, so each has many tries
    let temp = Temp::with(&disk(), &[7; 8192]);
    coralio::run(|| {
        let file = temp.open(Direct::Auto);
        let folder = disk();
        let calls: [(&str, &dyn Fn()); 6] = [
            ("open", &|| drop(File::options().write(true).create(true).open(&temp.0).unwrap())),
            ("set_len", &|| file.set_len(8192).unwrap()),
            ("allocate", &|| file.allocate(0, 4096).unwrap()),
            ("discard", &|| file.discard(0, 4096).unwrap()),
            ("rename", &|| rename(&temp.0, &temp.0).unwrap()),
            ("sync_dir", &|| sync_dir(&folder).unwrap()),
        ];
        for (name, call) in calls {
            let went_on = (0..10_000).any(|_| {
                let other = spawn(|| ());
                call();
                let went_on = other.is_finished();
                other.join().unwrap();
                went_on
            });
            assert!(went_on, "{name}");
        }
    });
}

#[test]
fn blocking_read_does_not_block_the_loop() {
    // E15: reading a named pipe suspends the coroutine until the other end is opened, here by
    // another coroutine of the same thread
    let temp = Temp::at(&memory());
    let name = std::ffi::CString::new(temp.0.to_str().unwrap()).unwrap();
    // SAFETY: the string ends with a zero byte.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    coralio::run(|| {
        let path = temp.0.clone();
        let reads = spawn(move || coralio::fs::read(path));
        let mut writer = loop {
            let options = fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&temp.0);
            match options {
                Ok(writer) => break writer,
                Err(error) if error.raw_os_error() == Some(libc::ENXIO) => yield_now(),
                Err(error) => panic!("{error}"),
            }
        };
        writer.write_all(b"written").unwrap();
        drop(writer);
        assert_eq!(reads.join().unwrap().unwrap(), b"written");
    });
}

#[test]
fn fs_operations_work_on_the_threads_own_stack() {
    // E15: where there is no coroutine to suspend, the thread blocks
    let temp = Temp::with(&disk(), &[7; 100]);
    AioContext::run(|_| {
        let file = temp.open(Direct::Auto);
        assert_eq!(file.len().unwrap(), 100);
        file.set_len(50).unwrap();
        file.discard(0, 10).unwrap();
    });
    assert_eq!(temp.content().len(), 50);
}

/// Returns the number of descriptors that this process may have.
fn descriptor_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes the one structure.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
    limit.rlim_cur
}

#[test]
fn concurrent_fs_operations_work() {
    // E15: coroutines create, fill, rename and remove files at the same time, more of them than the
    // pool has threads
    //
    // A worker opens up to four descriptors, and other tests run at the same time.
    let many = (descriptor_limit() / 8).min(100);
    if many < 100 {
        skipped(format_args!("{} of 100 workers: the limit on descriptors is {}", 100 - many, descriptor_limit()));
    }
    on_real_files(|place, direct| {
        let folder = Rc::new(Temp::at(place));
        fs::create_dir(&folder.0).unwrap();
        let workers: Vec<_> = (0..many)
            .map(|number: u64| {
                let folder = Rc::clone(&folder);
                spawn(move || {
                    let [new, done] = ["new", "done"].map(|name| folder.0.join(format!("{name}-{number}")));
                    let options = File::options().read(true).write(true).create_new(true).direct(direct);
                    let file = options.open(&new).unwrap();
                    file.allocate(0, BLOCK * (1 + number % 4)).unwrap();
                    file.write_at(&number.to_ne_bytes(), 0).unwrap();
                    rename(&new, &done).unwrap();
                    let mut back = [0; 8];
                    File::open(&done).unwrap().read_exact_at(&mut back, 0).unwrap();
                    assert_eq!(back, number.to_ne_bytes());
                    assert_eq!(file.len().unwrap(), BLOCK * (1 + number % 4));
                    remove_file(&done).unwrap();
                })
            })
            .collect();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0);
    });
}

#[test]
fn cancelled_calls_have_no_effect() {
    // E11: a call by a coroutine that is already cancelled fails without taking effect
    let temp = Temp::with(&disk(), &[7; 100]);
    coralio::run(|| {
        let file = Rc::new(temp.open(Direct::Auto));
        let task = spawn({
            let file = Rc::clone(&file);
            move || {
                yield_now();
                let made = Temp::at(&disk());
                let opened = File::options().write(true).create(true).open(&made.0);
                let errors = [file.set_len(0).unwrap_err(), opened.unwrap_err(), unblock(|| ()).unwrap_err()];
                assert!(!made.0.exists());
                errors.map(|error| Cancelled::is_cause_of(&error))
            }
        });
        yield_now();
        task.cancel();
        assert_eq!(task.join().unwrap(), [true; 3]);
        assert_eq!(file.len().unwrap(), 100);
    });
}

#[test]
fn descriptors_own_offset_is_unchanged() {
    // E15: I/O leaves the descriptor's own offset alone, which may be shared with another program
    let temp = Temp::with(&disk(), &[7; 100]);
    let mut std_file = fs::File::open(&temp.0).unwrap();
    std_file.seek(SeekFrom::Start(33)).unwrap();
    coralio::run(|| {
        let shared = std_file.try_clone().unwrap();
        assert!(shared.as_raw_fd() > 2);
        let file = File::from_fd(shared.into()).unwrap();
        assert_eq!(file.len().unwrap(), 100);
        file.read_exact_at(&mut [0; 50], 50).unwrap();
    });
    assert_eq!(std_file.stream_position().unwrap(), 33);
}
