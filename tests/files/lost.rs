//! A disk that disappears while requests are in flight: shut down, cut off, detached. Each request
//! completes once, with data or an error, and its buffer is not touched afterwards.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;

use coralio::context::AioContext;
use coralio::driver::BackendKind;
use coralio::fs::Direct;
use coralio::{AlignedBuf, File, JoinHandle, RuntimeBuilder, spawn, yield_now};

use crate::common::is_refused;
use crate::held::{Device, HeldDisk, Mount, in_child_with_mounts};
use crate::{BACKENDS, Temp, aligned, disk, is_root, on_each_backend, pattern};

/// Fewer than a loop device's queue holds: with more, submit itself would block.
const REQUESTS: usize = 64;
const BLOCK: usize = 16 * 1024;

/// Buffers whose request is over, filled with 0xee and checked at the end.
type Kept = Rc<RefCell<Vec<AlignedBuf>>>;

/// A buffer that is kept for inspection when it is dropped.
struct Lent {
    buf: AlignedBuf,
    kept: Kept,
    /// For a write to a frozen disk: the flag that must be set before the write completes.
    over: Option<Arc<AtomicBool>>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        let early = self.over.as_ref().is_some_and(|over| !over.load(Ordering::SeqCst));
        let mut buf = std::mem::replace(&mut self.buf, AlignedBuf::new(0, 1));
        buf.fill(if early { 0xbb } else { 0xee });
        self.kept.borrow_mut().push(buf);
    }
}

type Task = JoinHandle<io::Result<()>>;

/// Writers of existing blocks, which start first so that a frozen disk holds everything; and
/// readers.
struct Load {
    writers: Vec<Task>,
    readers: Vec<Task>,
}

impl Load {
    /// Starts `REQUESTS` requests on the file, which has this content. `over` goes with the writes.
    fn begin(file: &Rc<File>, content: &Rc<Vec<u8>>, kept: &Kept, over: Option<&Arc<AtomicBool>>) -> Load {
        let lent = |over| Lent { buf: AlignedBuf::new(BLOCK, 4096), kept: Rc::clone(kept), over };
        let writers = (0..REQUESTS / 2).map(|number| {
            let (file, mut lent, at) = (Rc::clone(file), lent(over.cloned()), number * BLOCK);
            lent.buf.copy_from_slice(&content[at..at + BLOCK]);
            spawn(move || file.write_at(&lent.buf, at as u64).map(|written| assert_eq!(written, BLOCK)))
        });
        let writers = writers.collect();
        let readers = (REQUESTS / 2..REQUESTS).map(|number| {
            let (file, content, mut lent, at) = (Rc::clone(file), Rc::clone(content), lent(None), number * BLOCK);
            spawn(move || {
                file.read_exact_at(&mut lent.buf, at as u64)?;
                assert!(is_of(&lent.buf, &content[at..]), "neither the old content nor a hole");
                Ok(())
            })
        });
        let load = Load { writers, readers: readers.collect() };
        yield_now(); // all have started
        yield_now(); // the engine held them for an iteration at most
        yield_now(); // the kernel has them
        load
    }

    fn is_held(&self) -> bool {
        coralio::driver::stats().in_flight > 0 && !self.writers.iter().any(JoinHandle::is_finished)
    }

    /// Waits for all. Returns how many writes and how many reads have failed, each only because the
    /// disk is gone.
    fn end(self) -> (usize, usize) {
        let failed = |tasks: Vec<Task>| {
            let ended = tasks.into_iter().map(|task| task.join().unwrap());
            ended.filter_map(Result::err).inspect(is_gone).count()
        };
        let failed = (failed(self.writers), failed(self.readers));
        let stats = coralio::driver::stats();
        assert_eq!((stats.in_flight, stats.pending), (0, 0));
        failed
    }
}

/// Compares, allowing holes: a file that was truncated and is written again has them.
fn is_of(buf: &[u8], content: &[u8]) -> bool {
    buf.iter().zip(content).all(|(found, was)| found == was || *found == 0)
}

#[track_caller]
fn is_gone(error: &io::Error) {
    let message = error.to_string();
    assert!(message.contains("Input/output error") && message.contains("the device failed"), "{message}");
}

/// Checks the kept buffers once everything that could write to them has ended.
fn untouched(kept: Kept, count: usize) {
    let buffers = Rc::try_unwrap(kept).expect("all coroutines are gone").into_inner();
    assert_eq!(buffers.len(), count);
    let strange = buffers.iter().position(|buf| buf.iter().any(|&byte| byte != 0xee));
    assert_eq!(strange, None, "returned before its write had completed, or written to after its request");
}

fn content() -> Rc<Vec<u8>> {
    Rc::new(pattern(7, REQUESTS * BLOCK))
}

/// Runs `f` on each backend with a new disk, and then checks the `count` buffers that are left.
fn with_a_disk_each(count: usize, f: impl Fn(HeldDisk, &Rc<Vec<u8>>, &Kept)) {
    let content = content();
    on_each_backend(|| {
        let Some(disk) = HeldDisk::with(&content) else { return };
        let kept = Kept::default();
        f(disk, &content, &kept);
        untouched(kept, count);
    });
}

fn open(path: &std::path::Path) -> Rc<File> {
    Rc::new(File::options().read(true).write(true).direct(Direct::Always).open(path).unwrap())
}

#[test]
fn device_over_a_shut_down_disk_fails_requests() {
    // E5, E10, E13, E14: when the file system below a device is shut down, every held write fails,
    // reads return their data or fail, and later requests fail
    if !in_child_with_mounts("lost::device_over_a_shut_down_disk_fails_requests") {
        return;
    }
    with_a_disk_each(REQUESTS, |disk, content, kept| {
        let file = open(&disk.device.path);
        let freeze = disk.freeze();
        let load = Load::begin(&file, content, kept, Some(&freeze.is_over()));
        assert!(load.is_held(), "no progress while the file system is frozen");
        disk.below.shut_down();
        drop(freeze);
        assert_eq!(load.end().0, REQUESTS / 2);
        is_gone(&file.write_at(&aligned(&content[..BLOCK]), 0).unwrap_err());
        is_gone(&file.read_at(&mut AlignedBuf::new(BLOCK, 4096), 0).unwrap_err());
    });
}

#[test]
fn shut_down_file_system_fails_requests() {
    // E5, E10, E13, E14: when the file's own file system is shut down, requests that the device has
    // end with or without an error, and later ones fail
    if !in_child_with_mounts("lost::shut_down_file_system_fails_requests") {
        return;
    }
    with_a_disk_each(REQUESTS, |disk, content, kept| {
        let mount = Mount::of_new_ext4(&disk.device.path).expect("as the one below");
        fs::write(mount.path("file"), &content[..]).unwrap();
        let file = open(&mount.path("file"));
        file.sync_all().unwrap();
        let freeze = disk.freeze();
        let load = Load::begin(&file, content, kept, None);
        assert!(load.is_held(), "no progress while the file system is frozen");
        mount.shut_down();
        let later = [true, false].map(|writes| {
            let (file, content) = (Rc::clone(&file), Rc::clone(content));
            spawn(move || match writes {
                true => file.write_at(&aligned(&content[..BLOCK]), 0).map(drop),
                false => file.read_at(&mut AlignedBuf::new(BLOCK, 4096), 0).map(drop),
            })
        });
        yield_now(); // they fail immediately, or wait for a thread
        drop(freeze);
        later.into_iter().for_each(|task| is_gone(&task.join().unwrap().unwrap_err()));
        load.end();
    });
}

#[test]
fn detached_disk_fails_requests_in_flight() {
    // E10, E13: detaching a device loses no request: Linux detaches it only when it is closed
    if !in_child_with_mounts("lost::detached_disk_fails_requests_in_flight") {
        return;
    }
    with_a_disk_each(REQUESTS, |disk, content, kept| {
        let HeldDisk { ref device, ref below, .. } = disk;
        let file = open(&device.path);
        let freeze = disk.freeze();
        let load = Load::begin(&file, content, kept, Some(&freeze.is_over()));
        assert!(load.is_held(), "no progress while the file system is frozen");
        device.detach();
        drop(freeze);
        assert_eq!(load.end(), (0, 0));
        file.sync_all().unwrap();
        assert!(fs::read(below.path("disk")).unwrap().starts_with(content));
    });
}

#[test]
fn disconnected_disk_fails_requests_in_flight() {
    // E5, E10, E13, E14: when the device's file is truncated, each request is done completely or
    // fails
    if !is_root() {
        return println!("skipped: a loop device takes root");
    }
    let content = content();
    on_each_backend(|| {
        let temp = Temp::with(&disk(), &content);
        let Some(device) = Device::over(&temp.0) else { return };
        let kept = Kept::default();
        let cut = |len| fs::OpenOptions::new().write(true).open(&temp.0).unwrap().set_len(len).unwrap();
        for _ in 0..20 {
            let file = open(&device.path);
            assert_eq!(file.write_at(&aligned(&content), 0).unwrap(), content.len());
            let load = Load::begin(&file, &content, &kept, None);
            cut((REQUESTS * BLOCK * 3 / 4) as u64);
            assert_eq!(load.end().0, 0, "new writes extend the file again");
            cut(0);
            is_gone(&file.read_at(&mut AlignedBuf::new(BLOCK, 4096), 0).unwrap_err());
        }
        untouched(kept, 20 * REQUESTS);
    });
}

/// Ends a context with its requests in flight on a disk that dies. Returns false if there is no
/// such disk to test on.
fn end_on_a_dying_disk(backend: BackendKind, panics: bool) -> bool {
    let content = content();
    let Some(disk) = HeldDisk::with(&content) else { return false };
    let (kept, path) = (Kept::default(), disk.device.path.clone());
    let (go, wait_for_go) = channel();
    let ran = std::thread::scope(|scope| {
        let freeze = disk.freeze();
        let over = freeze.is_over();
        let disk = &disk;
        scope.spawn(move || {
            let _ = wait_for_go.recv();
            disk.below.shut_down();
            drop(freeze);
        });
        let context = AioContext::builder().report_unwound(false);
        let go = go; // dropped if the runner fails
        catch_unwind(AssertUnwindSafe(|| {
            RuntimeBuilder::new().context(context).backend(backend).run(|| {
                // Other backends may cancel a write that has not begun.
                let waits_for_writes = (backend == BackendKind::Aio).then_some(&over);
                let load = Load::begin(&open(&path), &content, &kept, waits_for_writes);
                assert!(load.is_held(), "no progress while the file system is frozen");
                go.send(()).unwrap();
                if panics {
                    resume_unwind(Box::new("amid a loss"));
                }
            })
        }))
    });
    match ran {
        Ok(Err(error)) if is_refused(backend, &error) => {}
        Ok(ran) => ran.unwrap(),
        Err(payload) => assert_eq!(payload.downcast_ref(), Some(&"amid a loss")),
    }
    let begun = kept.borrow().len();
    assert!(begun == REQUESTS || matches!(backend, BackendKind::Aio | BackendKind::Uring) && begun == 0);
    drop(disk);
    untouched(kept, begun);
    true
}

#[test]
fn context_end_survives_a_dying_disk() {
    // E13, C9: the end of the context, by return or by panic, waits until the kernel is done with
    // each request, whatever its result
    if !in_child_with_mounts("lost::context_end_survives_a_dying_disk") {
        return;
    }
    for backend in BACKENDS {
        for panics in [false, true] {
            println!("{backend}, {}", if panics { "panics" } else { "returns" });
            if !end_on_a_dying_disk(backend, panics) {
                return;
            }
        }
    }
}
