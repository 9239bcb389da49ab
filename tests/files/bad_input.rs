//! Invalid use by callers: each case gets a message that names cause and remedy, and nothing is
//! lost or left undefined.

use std::cell::Cell;
use std::io::{ErrorKind, IoSlice};
use std::os::fd::{AsFd, AsRawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::rc::Rc;

use crate::common::{Temp, has, in_child, panic_of};
use coralio::context::AioContext;
use coralio::driver::BackendKind;
use coralio::fs::Direct;
use coralio::{AlignedBuf, File, RuntimeBuilder, spawn};

/// Creates a file of 64 KiB filled with sevens.
fn sevens(place: &Path) -> Temp {
    Temp::with(place, [7; 64 * 1024])
}

fn on_disk() -> Temp {
    sevens(&std::env::temp_dir())
}

#[track_caller]
fn assert_says(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "no `{word}` in: {message}");
    }
}

#[test]
fn misaligned_direct_io_is_explained() {
    // E14: misaligned direct I/O reports the required alignment, the actual values and both
    // remedies
    let temp = on_disk();
    coralio::run(|| {
        let Ok(file) = File::options().read(true).write(true).direct(Direct::Always).open(&temp.0) else {
            return println!("skipped: does not support direct I/O in {}", std::env::temp_dir().display());
        };
        let block = file.alignment().block;
        let mut buf = AlignedBuf::new(8192, 4096);
        let wants = format!("offsets and lengths in multiples of {block} bytes");
        let words = [wants.as_str(), "direct I/O", "use AlignedBuf, or Direct::Never", "this buffer is at 0x"];
        let error = file.read_at(&mut buf[..4096], 100).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert_says(&error.to_string(), &words);
        assert_says(&error.to_string(), &["reading 4096 bytes at 100"]);
        assert_says(&file.write_at(&buf[..100], 0).unwrap_err().to_string(), &words);
        if file.alignment().memory > 1 {
            assert_says(&file.read_at(&mut buf[1..4097], 0).unwrap_err().to_string(), &words);
        }
        file.read_exact_at(&mut buf, 0).unwrap();
        assert!(buf.iter().all(|&byte| byte == 7));
    });
}

#[test]
fn missing_direct_io_support_is_explained() {
    // E14: `Direct::Always` fails where direct I/O does not exist; /proc has files, but no direct
    // I/O
    coralio::run(|| {
        let error = File::options().read(true).direct(Direct::Always).open("/proc/self/status").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert_says(
            &error.to_string(),
            &["/proc/self/status", "does not support direct I/O", "Direct::Auto or Direct::Never"],
        );
    });
}

#[test]
fn closed_descriptor_is_explained() {
    // E14, H5: I/O on a descriptor closed behind the file's back fails with a remedy; other files
    // keep working. Runs in a child process, where no other thread can reuse the number, and on
    // native AIO: io_uring uses the file that it has registered, whatever becomes of the descriptor
    if !has(BackendKind::Aio, 1) || in_child("bad_input::closed_descriptor_is_explained") {
        return;
    }
    let (temp, sound) = (on_disk(), on_disk());
    let aio = RuntimeBuilder::new().backend(BackendKind::Aio);
    let ran = aio.run(|| {
        let (broken, sound) = (temp.open(Direct::Auto), Rc::new(sound.open(Direct::Auto)));
        let fd = broken.as_fd().as_raw_fd();
        // SAFETY: closing the descriptor is the subject of this test; nothing else in this process
        // gets the number before `dup2` restores it below.
        unsafe { libc::close(fd) };
        let readers: Vec<_> = (0..4)
            .map(|number| {
                let sound = Rc::clone(&sound);
                spawn(move || sound.read_exact_at(&mut AlignedBuf::new(4096, 4096), number * 4096))
            })
            .collect();
        let mut buf = AlignedBuf::new(4096, 4096);
        for error in [broken.read_at(&mut buf, 0).unwrap_err(), broken.sync_data().unwrap_err()] {
            assert_says(&error.to_string(), &["Bad file descriptor", "was closed by other code", "open the file with"]);
        }
        readers.into_iter().for_each(|reader| reader.join().unwrap().unwrap());
        sound.read_exact_at(&mut buf, 0).unwrap();
        // SAFETY: takes no pointers. The file closes the descriptor.
        assert_eq!(unsafe { libc::dup2(sound.as_fd().as_raw_fd(), fd) }, fd);
    });
    ran.unwrap();
}

#[test]
fn descriptor_without_the_access_mode_is_explained() {
    // E14: writing to a read-only file and reading from a write-only file fail with a remedy
    for place in [std::env::temp_dir(), "/dev/shm".into()] {
        let temp = sevens(&place);
        coralio::run(|| {
            let read_only = File::open(&temp.0).unwrap();
            let write_only = File::options().write(true).open(&temp.0).unwrap();
            let mut buf = AlignedBuf::new(4096, 4096);
            let errors = [read_only.write_at(&buf, 0).unwrap_err(), write_only.read_at(&mut buf, 0).unwrap_err()];
            for (file, error) in [&read_only, &write_only].into_iter().zip(errors) {
                let descriptor = format!("; descriptor {} was closed", file.as_fd().as_raw_fd());
                assert_says(
                    &error.to_string(),
                    &["Bad file descriptor", &descriptor, "is not open for this", "read(true).write(true)"],
                );
            }
            let unaligned = read_only.write_at(b"x", 1).unwrap_err().to_string();
            assert!(!unaligned.contains("descriptor -"), "{unaligned}");
            read_only.read_exact_at(&mut buf, 0).unwrap();
        });
    }
}

#[test]
fn descriptor_of_another_kind_is_explained() {
    // E14: `from_fd` rejects pipes, sockets and directories: they have no offsets, and a read could
    // block the thread forever
    coralio::run(|| {
        let (reader, _writer) = std::io::pipe().unwrap();
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        for fd in [reader.into(), socket.into()] {
            let error = File::from_fd(fd).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert_says(&error.to_string(), &["it has no offsets", "regular file or block device"]);
        }
        let folder = std::fs::File::open("/").unwrap();
        assert_eq!(File::from_fd(folder.into()).unwrap_err().kind(), ErrorKind::IsADirectory);
    });
}

#[test]
fn request_past_the_end_is_explained() {
    // E10, E14: a read past the end returns 0; an exact read reports the numbers; an impossible
    // offset is named in the error
    let temp = on_disk();
    coralio::run(|| {
        let file = temp.open(Direct::Auto);
        let mut buf = AlignedBuf::new(4096, 4096);
        assert_eq!(file.read_at(&mut buf, 1 << 20).unwrap(), 0);
        let error = file.read_exact_at(&mut buf, 1 << 20).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        assert_says(&error.to_string(), &["unexpected end of file: read 0 of 4096 bytes at offset 1048576"]);
        for offset in [1 << 63, u64::MAX, u64::MAX - 4095] {
            let error = file.write_at(&buf, offset).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert_says(&error.to_string(), &[&format!("at {offset}")]);
        }
        let cached = File::options().read(true).write(true).direct(Direct::Never).open(&temp.0).unwrap();
        for file in [&file, &cached] {
            for offset in [1 << 63, i64::MAX as u64 & !4095] {
                let errors = [
                    file.read_at(&mut buf, offset).unwrap_err(),
                    file.write_at(&buf, offset).unwrap_err(),
                    file.write_vectored_at(&[IoSlice::new(&buf), IoSlice::new(&buf)], offset).unwrap_err(),
                ];
                for error in errors {
                    assert_says(&error.to_string(), &["the range exceeds the largest file size, 2^63 - 1"]);
                }
            }
        }
    });
}

#[test]
fn io_outside_a_coroutine_is_explained() {
    // E14: I/O outside a coroutine panics with a remedy, both inside and outside a context
    let temp = on_disk();
    AioContext::run(|context| {
        let file = Rc::new(temp.open(Direct::Auto));
        let words = ["I/O outside a coroutine", "inside `run(|| ..)` or `spawn`"];
        assert_says(&panic_of(|| file.read_at(&mut [0; 10], 0)), &words);
        assert_says(&panic_of(|| file.sync_all()), &words);
        // The file still works afterwards.
        let task = spawn({
            let file = Rc::clone(&file);
            move || file.read_at(&mut [0; 10], 0).unwrap()
        });
        while !task.is_finished() {
            context.poll(true);
        }
        assert_eq!(task.join().unwrap(), 10);
    });
    assert_says(&panic_of(|| File::open(&temp.0)), &["opening a file outside a context", "run(|| ..)"]);
    assert_says(&panic_of(coralio::driver::plug), &["run(|| ..)"]);
}

#[test]
fn destructor_runs_a_context_while_its_thread_unwinds() {
    // C8, C9, E13: while its thread unwinds, a destructor can run a context of its own, with
    // coroutines that wait for I/O
    struct Store<'a>(&'a Path, &'a Cell<usize>);
    impl Drop for Store<'_> {
        fn drop(&mut self) {
            let read = coralio::run(|| {
                let file = Rc::new(File::open(self.0).unwrap());
                let reader = spawn(move || file.read_at(&mut [0; 4096], 0).unwrap());
                reader.join().unwrap()
            });
            self.1.set(read);
        }
    }
    let (file, read) = (on_disk(), Cell::new(0));
    let unwound = catch_unwind(AssertUnwindSafe(|| {
        let _store = Store(&file.0, &read);
        panic!("on purpose");
    }));
    assert!(unwound.is_err());
    assert_eq!(read.get(), 4096);
}
