//! Invalid use by callers: each case gets a message that names cause and remedy, and nothing is
//! lost or left undefined.

mod common;

use std::cell::Cell;
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

use coralio::context::AioContext;
use coralio::coroutine::{Coroutine, suspend};
use coralio::driver::BackendKind;
use coralio::engine::linux_aio::LinuxAio;
use coralio::fs::Direct;
use coralio::{AlignedBuf, File, RuntimeBuilder, spawn, yield_now};

/// A file of 64 KiB filled with sevens, removed on drop.
struct Temp(PathBuf);

impl Temp {
    fn new(place: &Path) -> Temp {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = place.join(format!("coralio-bad-input-{}-{number}", std::process::id()));
        std::fs::write(&path, [7; 64 * 1024]).unwrap();
        Temp(path)
    }

    fn on_disk() -> Temp {
        Temp::new(&std::env::temp_dir())
    }

    fn open(&self) -> File {
        File::options().read(true).write(true).open(&self.0).unwrap()
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn panic_of<R>(f: impl FnOnce() -> R) -> String {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(_) => panic!("it was expected to panic"),
        Err(payload) => text(&*payload),
    }
}

fn text(payload: &(dyn std::any::Any + Send)) -> String {
    match (payload.downcast_ref::<String>(), payload.downcast_ref::<&str>()) {
        (Some(text), _) => text.clone(),
        (_, Some(text)) => (*text).to_string(),
        _ => "a payload that is no text".into(),
    }
}

#[track_caller]
fn assert_says(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "no `{word}` in: {message}");
    }
}

const CHILD: &str = "CORALIO_TEST_CHILD";

/// Reruns the test `test` in a child process and asserts that it passes there. Returns false in the
/// child.
fn in_child(test: &str) -> bool {
    if std::env::var_os(CHILD).is_some() {
        return false;
    }
    let me = std::env::current_exe().unwrap();
    let child = Command::new(me).args(["--exact", test, "--nocapture"]).env(CHILD, "1").output().unwrap();
    print!("{}", String::from_utf8_lossy(&child.stdout));
    assert!(child.status.success(), "{}\n{}", child.status, String::from_utf8_lossy(&child.stderr));
    true
}

#[test]
fn misaligned_direct_io_is_explained() {
    // E14: misaligned direct I/O reports the required alignment, the actual values and both
    // remedies
    let temp = Temp::on_disk();
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
    if !common::has(BackendKind::Aio, 1) || in_child("closed_descriptor_is_explained") {
        return;
    }
    let (temp, sound) = (Temp::on_disk(), Temp::on_disk());
    let aio = RuntimeBuilder::new().backend(BackendKind::Aio);
    let ran = aio.run(|| {
        let (broken, sound) = (temp.open(), Rc::new(sound.open()));
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
        let temp = Temp::new(&place);
        coralio::run(|| {
            let read_only = File::open(&temp.0).unwrap();
            let write_only = File::options().write(true).open(&temp.0).unwrap();
            let mut buf = AlignedBuf::new(4096, 4096);
            for error in [read_only.write_at(&buf, 0).unwrap_err(), write_only.read_at(&mut buf, 0).unwrap_err()] {
                assert_says(
                    &error.to_string(),
                    &["Bad file descriptor", "is not open for this", "read(true).write(true)"],
                );
            }
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
    let temp = Temp::on_disk();
    coralio::run(|| {
        let file = temp.open();
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
        let cached = File::options().read(true).direct(Direct::Never).open(&temp.0).unwrap();
        assert_says(&cached.read_at(&mut buf, 1 << 63).unwrap_err().to_string(), &["exceeds the largest file size"]);
    });
}

#[test]
fn invalid_depth_is_explained() {
    // E14: an invalid depth is rejected with the valid range and a recommended value
    for depth in [0, 1_000_000] {
        let error = RuntimeBuilder::new().queue_depth(depth).run(|| unreachable!("no engine, no run")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert_says(
            &error.to_string(),
            &[&format!("invalid queue depth {depth}: must be 1 to 32768"), "32 suits most"],
        );
    }
    assert_eq!(RuntimeBuilder::new().queue_depth(1).run(|| 7).unwrap(), 7);
}

#[test]
fn exhausted_aio_max_nr_is_explained() {
    // E14: exhausted AIO requests are reported with the limit. fs.aio-max-nr is shared by all
    // processes, so the test uses only enough of it that the deepest queue no longer fits
    if !common::has(BackendKind::Aio, 1) {
        return;
    }
    const DEEPEST: u32 = 32768;
    let mut held = Vec::new();
    let refused = loop {
        match LinuxAio::new(DEEPEST) {
            Ok(_) if held.len() == 100 => return println!("skipped: fs.aio-max-nr is too large to be used up"),
            Ok(backend) => held.push(backend),
            Err(error) => break error,
        }
    };
    let named = RuntimeBuilder::new().backend(BackendKind::Aio);
    let not_run = named.queue_depth(DEEPEST).run(|| unreachable!("no engine, no run")).unwrap_err();
    for error in [refused, not_run] {
        assert_eq!(error.kind(), ErrorKind::QuotaExceeded);
        assert_says(&error.to_string(), &["no room for 32769 AIO requests", "fs.aio-max-nr", "use a smaller depth"]);
        assert_says(&error.to_string(), &["raise the limit as root: sysctl fs.aio-max-nr="]);
    }
    assert_eq!(RuntimeBuilder::new().queue_depth(32).run(|| 7).unwrap(), 7, "a smaller queue depth works");
    let one = !held.is_empty();
    drop(held);
    if one {
        assert_eq!(RuntimeBuilder::new().queue_depth(DEEPEST).run(|| 7).unwrap(), 7, "the largest depth works again");
    }
}

#[test]
fn yield_outside_a_coroutine_is_explained() {
    // C3: suspending outside a coroutine panics with a remedy, both inside and outside a context
    let words = ["outside a co", "spawn"];
    AioContext::run(|_| {
        assert_says(&panic_of(suspend), &words);
        assert_says(&panic_of(yield_now), &words);
    });
    assert_says(&panic_of(suspend), &["outside a context", "run(|| ..)"]);
}

#[test]
fn io_outside_a_coroutine_is_explained() {
    // E14: I/O outside a coroutine panics with a remedy, both inside and outside a context
    let temp = Temp::on_disk();
    AioContext::run(|context| {
        let file = Rc::new(temp.open());
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
fn self_entry_is_explained() {
    // C5: entering the running coroutine panics with the chain of entered coroutines; the coroutine
    // then continues normally, I/O included
    let temp = Temp::on_disk();
    coralio::run(|| {
        let file = temp.open();
        let task = Coroutine::builder().name("A").spawn(move || {
            let message = panic_of(|| Coroutine::current().unwrap().enter());
            assert_says(&message, &["recursive entry of 'A': main > ", "> 'A'"]);
            file.read_at(&mut [0; 10], 0).unwrap()
        });
        assert_eq!(task.unwrap().join().unwrap(), 10);
    });
}

/// A buffer whose destructor checks that the kernel is not in the middle of filling it.
struct Lent {
    buf: AlignedBuf,
    given_back: Rc<Cell<usize>>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        // A request that is unwound before the backend has begun it leaves its buffer as it was.
        let first = self.buf[0];
        if (first == 7 || first == 0) && self.buf.iter().all(|&byte| byte == first) {
            self.given_back.set(self.given_back.get() + 1);
        }
        self.buf.fill(0);
    }
}

#[test]
fn run_can_end_with_io_in_flight() {
    // E13, W5: coroutines not joined when `run` ends are unwound, each after its buffer was
    // returned. After one iteration the requests are pending, after two they are submitted.
    for (place, rounds) in [(std::env::temp_dir(), 1), (std::env::temp_dir(), 2), ("/dev/shm".into(), 1)] {
        let temp = Temp::new(&place);
        let given_back = Rc::new(Cell::new(0));
        let stats = coralio::run(|| {
            let file = Rc::new(temp.open());
            for number in 0..16 {
                let (file, given_back) = (Rc::clone(&file), Rc::clone(&given_back));
                drop(spawn(move || {
                    let mut lent = Lent { buf: AlignedBuf::new(4096, 4096), given_back };
                    file.read_exact_at(&mut lent.buf, number * 4096).unwrap();
                    suspend();
                }));
            }
            (0..rounds).for_each(|_| yield_now());
            coralio::driver::stats()
        });
        assert_eq!(stats.requests, 16);
        println!("{}: ended with {} pending and {} in flight", place.display(), stats.pending, stats.in_flight);
        assert_eq!(given_back.get(), 16, "{}", place.display());
    }
}

#[test]
fn panic_waits_for_io_in_flight_elsewhere() {
    // C8, E13: a panic, out of `run` itself or out of a joined coroutine, neither loses nor
    // corrupts other coroutines' buffers
    let temp = Temp::on_disk();
    let given_back = Rc::new(Cell::new(0));
    let lent = || Lent { buf: AlignedBuf::new(4096, 4096), given_back: Rc::clone(&given_back) };
    let message = panic_of(|| {
        coralio::run(|| {
            let file = Rc::new(temp.open());
            for number in 0..8 {
                let (file, mut lent) = (Rc::clone(&file), lent());
                drop(spawn(move || file.read_exact_at(&mut lent.buf, number * 4096).unwrap()));
            }
            yield_now();
            panic!("with eight in flight");
        })
    });
    assert_eq!(message, "with eight in flight");
    assert_eq!(given_back.get(), 8);
    coralio::run(|| {
        let file = temp.open();
        let mut other = lent();
        let reader = spawn(move || file.read_exact_at(&mut other.buf, 0).map_err(|error| error.to_string()));
        let bad = spawn(|| panic!("beside a reader"));
        assert_eq!(text(&*bad.join().unwrap_err()), "beside a reader");
        reader.join().unwrap().unwrap();
    });
    assert_eq!(given_back.get(), 9);
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
    let (file, read) = (Temp::on_disk(), Cell::new(0));
    let unwound = catch_unwind(AssertUnwindSafe(|| {
        let _store = Store(&file.0, &read);
        panic!("on purpose");
    }));
    assert!(unwound.is_err());
    assert_eq!(read.get(), 4096);
}
