//! Requests that the loop's thread performs itself under `Auto`: on tmpfs, and reads of cached data.

use std::cell::Cell;
use std::io::{ErrorKind, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;
use std::time::Duration;

use coralio::driver::{self, BackendKind, Stats, stats};
use coralio::fs::Direct;
use coralio::task::Cancelled;
use coralio::trace::{Event, RequestState, Trace};
use coralio::{File, RuntimeBuilder, run, sleep, spawn, timeout, yield_now};

use crate::common::{content, has, is_all, skipped};
use crate::refused::has_uring;
use crate::seccomp::forbid;
use crate::{Temp, chosen, in_child, page};

pub fn on_tmpfs() -> Temp {
    Temp::at("/dev/shm".into())
}

/// Returns whether a temporary file is on tmpfs, where a test of disks has to be skipped.
fn is_on_tmpfs(file: &File) -> bool {
    let is_on_tmpfs = file.backend().unwrap().to_string().starts_with("system calls");
    if is_on_tmpfs {
        skipped("the directory for temporary files is on tmpfs");
    }
    is_on_tmpfs
}

/// Runs `check` in a child process, first without io_uring, and then without native AIO too.
pub fn without_interfaces(test: &str, check: fn()) {
    if !in_child(test) {
        for call in [libc::SYS_io_uring_setup, libc::SYS_io_setup] {
            forbid(&[(call, libc::EPERM)]);
            check();
        }
    }
}

/// Makes one request of each kind, and checks the data.
fn one_of_each(temp: &Temp, direct: Direct) {
    let file = temp.open(direct);
    assert_eq!(file.write_at(&page(1), 0).unwrap(), 4096);
    let [two, three] = [page(2), page(3)];
    assert_eq!(file.write_vectored_at(&[IoSlice::new(&two), IoSlice::new(&three)], 4096).unwrap(), 8192);
    let mut back = [page(0), page(0)];
    let [first, second] = &mut back;
    assert_eq!(file.read_vectored_at(&mut [IoSliceMut::new(first), IoSliceMut::new(second)], 0).unwrap(), 8192);
    assert!(is_all(&back[0], 1) && is_all(&back[1], 2));
    file.read_exact_at(&mut back[0], 8192).unwrap();
    assert!(is_all(&back[0], 3));
    file.sync_data().unwrap();
    file.sync_all().unwrap();
}

/// Checks that each request on tmpfs is performed in place.
fn tmpfs_is_in_place() {
    let temp = on_tmpfs();
    run(|| {
        [Direct::Auto, Direct::Never, Direct::Always].into_iter().for_each(|direct| one_of_each(&temp, direct));
        let Stats { requests, completions, in_place, submits, offloaded, .. } = stats();
        assert_eq!((requests, completions, in_place, submits, offloaded), (18, 18, 18, 0, 0));
    });
}

#[test]
fn requests_on_tmpfs_are_performed_in_place() {
    // E16: no request on tmpfs is submitted, whatever its kind
    tmpfs_is_in_place();
}

#[test]
fn requests_on_tmpfs_are_in_place_without_io_uring() {
    // E14, E16: the same where native AIO takes the place of io_uring, and where threads do
    without_interfaces("in_place::requests_on_tmpfs_are_in_place_without_io_uring", tmpfs_is_in_place);
}

#[test]
fn named_backend_has_all_requests() {
    // E16: a backend that the user named performs every request, also on tmpfs and of cached data
    let temp = on_tmpfs();
    for backend in [BackendKind::Aio, BackendKind::Uring, BackendKind::Threads] {
        if !has(backend, 64) {
            continue;
        }
        let work = || {
            one_of_each(&temp, Direct::Never);
            let backend = temp.open(Direct::Never).backend().unwrap();
            (stats().requests, stats().in_place, backend.to_string().ends_with(", as requested"))
        };
        assert_eq!(RuntimeBuilder::new().backend(backend).run(work).unwrap(), (6, 0, true));
    }
}

#[test]
fn each_file_names_its_backend() {
    // E16: a file on disk uses the context's engine, one on tmpfs none; each tells why
    if !has_uring() {
        return;
    }
    let (disk, tmpfs) = (Temp::on_disk(), on_tmpfs());
    run(|| {
        let files = [disk.open(Direct::Auto), tmpfs.open(Direct::Auto), tmpfs.open(Direct::Never)];
        let shown = files.each_ref().map(|file| file.backend().unwrap().to_string());
        if is_on_tmpfs(&files[0]) {
            return;
        }
        let in_place = "system calls in place, since requests on tmpfs do not wait for a device";
        assert_eq!(shown, ["io_uring", in_place, in_place]);
        assert_eq!(chosen().to_string(), "io_uring");
    });
}

/// Reads cached data, and the same data after the kernel has dropped it. Returns the number of reads in
/// place, and whether other reads were necessary then.
fn cached_and_dropped_reads() -> (u64, bool) {
    let content = content(1 << 20);
    let temp = Temp::with(&std::env::temp_dir(), &content);
    run(|| {
        let file = temp.open(Direct::Never);
        if is_on_tmpfs(&file) {
            return (256, true);
        }
        file.sync_all().unwrap();
        let read_all = || {
            let before = stats();
            for (number, expected) in content.chunks(4096).enumerate() {
                let (mut head, mut tail) = ([0; 1000], vec![0; 3096]);
                let at = number as u64 * 4096;
                match number % 2 {
                    0 => _ = file.read_exact_at(&mut head, at).and_then(|()| file.read_exact_at(&mut tail, at + 1000)),
                    _ => {
                        let mut parts = [IoSliceMut::new(&mut head), IoSliceMut::new(&mut tail)];
                        assert_eq!(file.read_vectored_at(&mut parts, at).unwrap(), 4096);
                    }
                }
                assert!(head == expected[..1000] && tail == expected[1000..]);
            }
            let after = stats();
            (after.requests - before.requests, after.in_place - before.in_place)
        };
        read_all();
        let (requests, in_place) = read_all();
        assert_eq!(requests, in_place);
        let dropped = || {
            for advice in [libc::POSIX_FADV_RANDOM, libc::POSIX_FADV_DONTNEED] {
                // SAFETY: takes no pointers.
                assert_eq!(unsafe { libc::posix_fadvise(file.as_fd().as_raw_fd(), 0, 0, advice) }, 0);
            }
            let (requests, in_place) = read_all();
            in_place < requests
        };
        // The kernel keeps pages that are in use elsewhere: so a few attempts.
        (in_place, (0..100).any(|_| dropped()))
    })
}

fn cached_reads_are_in_place() {
    let (in_place, others) = cached_and_dropped_reads();
    assert!(in_place >= 256 && others, "{in_place} in place, others: {others}");
}

#[test]
fn reads_of_cached_data_are_performed_in_place() {
    // E10, E16: a read whose data is cached is performed in place; one that must wait for the disk
    // goes to the engine, and returns the same data
    cached_reads_are_in_place();
}

#[test]
fn reads_of_cached_data_are_in_place_without_io_uring() {
    // E10, E14, E16: the same where native AIO takes the place of io_uring, and where threads do
    without_interfaces("in_place::reads_of_cached_data_are_in_place_without_io_uring", cached_reads_are_in_place);
}

#[test]
fn offset_beyond_any_file_fails() {
    // E10, E14: u64::MAX, which preadv2 takes for the descriptor's position, fails like any other
    // offset beyond a file's end
    for temp in [Temp::with(&std::env::temp_dir(), [7; 64]), Temp::with("/dev/shm".as_ref(), [7; 64])] {
        run(|| {
            let file = temp.open(Direct::Never);
            for offset in [u64::MAX, u64::MAX - 1, 1 << 63] {
                let (mut one, mut two) = ([0; 4], [0; 4]);
                assert_eq!(file.read_at(&mut one, offset).unwrap_err().kind(), ErrorKind::InvalidInput);
                let mut both = [IoSliceMut::new(&mut one), IoSliceMut::new(&mut two)];
                assert_eq!(file.read_vectored_at(&mut both, offset).unwrap_err().kind(), ErrorKind::InvalidInput);
                assert_eq!(file.write_at(&[1; 4], offset).unwrap_err().kind(), ErrorKind::InvalidInput);
                assert_eq!((one, two), ([0; 4], [0; 4]));
            }
        });
    }
}

#[test]
fn forbidden_preadv2_costs_no_read() {
    // E14: where a filter forbids the system call of cached reads, the engine makes them
    if in_child("in_place::forbidden_preadv2_costs_no_read") {
        return;
    }
    for errno in [libc::EPERM, libc::ENOSYS] {
        // The filter added last decides.
        forbid(&[(libc::SYS_preadv2, errno)]);
        let temp = Temp::with(&std::env::temp_dir(), [7; 8192]);
        run(|| {
            let file = temp.open(Direct::Never);
            let (mut one, mut two) = ([0; 5], [0; 5]);
            file.read_exact_at(&mut one, 0).unwrap();
            let mut both = [IoSliceMut::new(&mut one), IoSliceMut::new(&mut two)];
            assert_eq!(file.read_vectored_at(&mut both, 100).unwrap(), 10);
            assert_eq!((one, two), ([7; 5], [7; 5]));
            assert_eq!(stats().requests, 2);
        });
    }
}

#[test]
fn concurrent_reads_of_cached_data_share_a_submit() {
    // E7, E16: coroutines that read cached data at the same time share a system call; one alone
    // makes its own
    if !has_uring() {
        return;
    }
    let temp = Temp::with(&std::env::temp_dir(), content(1 << 20));
    run(|| {
        let file = Rc::new(temp.open(Direct::Never));
        if is_on_tmpfs(&file) {
            return;
        }
        (0..256).for_each(|number| file.read_exact_at(&mut [0; 4096], number * 4096).unwrap());
        assert_eq!((stats().in_place, stats().requests), (256, 256));
        let readers = (0..16).map(|number| {
            let file = Rc::clone(&file);
            spawn(move || {
                (0..16).for_each(|round| file.read_exact_at(&mut [0; 4096], (number * 16 + round) * 4096).unwrap())
            })
        });
        readers.collect::<Vec<_>>().into_iter().for_each(|reader| reader.join().unwrap());
        let Stats { requests, in_place, submits, .. } = stats();
        assert_eq!(requests, 512);
        assert!(in_place < 256 + 16 && submits < 64, "{in_place} in place, {submits} submits");
    });
}

#[test]
fn request_in_place_ends_when_cancelled() {
    // C9, E11: a cancelled coroutine makes no more requests in place; a timeout ends a loop of them
    let temp = on_tmpfs();
    run(|| {
        let file = Rc::new(temp.open(Direct::Auto));
        file.write_at(&page(5), 0).unwrap();
        let reader = Rc::clone(&file);
        let cancelled = spawn(move || {
            let slept = sleep(Duration::from_secs(3600));
            (slept, reader.write_at(&page(6), 0))
        });
        yield_now();
        cancelled.cancel();
        let (slept, wrote) = cancelled.join().unwrap();
        assert!(slept.is_err());
        assert!(Cancelled::is_cause_of(&wrote.unwrap_err()));
        let ended = timeout(Duration::ZERO, || {
            loop {
                if let Err(error) = file.read_exact_at(&mut page(0), 0) {
                    break error;
                }
            }
        });
        assert!(ended.is_err());
        let mut back = page(0);
        file.read_exact_at(&mut back, 0).unwrap();
        assert!(is_all(&back, 5), "the cancelled write was not performed");
    });
}

#[test]
fn requests_in_place_are_refused_without_the_engine() {
    // E12: while the engine is detached, a file on tmpfs reports an error too; afterwards the file
    // works in the engine's new context
    let temp = on_tmpfs();
    let detached = run(|| {
        let file = temp.open(Direct::Auto);
        file.write_at(&page(3), 0).unwrap();
        let detached = driver::detach().unwrap();
        assert_eq!(file.read_at(&mut page(0), 0).unwrap_err().kind(), ErrorKind::NotConnected);
        assert_eq!(file.sync_all().unwrap_err().kind(), ErrorKind::NotConnected);
        detached
    });
    let attached = coralio::context::AioContext::builder().run_coroutine(|_| {
        detached.attach().unwrap();
        let mut back = page(0);
        temp.open(Direct::Auto).read_exact_at(&mut back, 0).unwrap();
        assert!(is_all(&back, 3));
        assert_eq!((stats().requests, stats().in_place), (2, 2));
    });
    attached.unwrap();
}

#[test]
fn drain_and_detach_follow_requests_in_place() {
    // E12: a request in place is performed before others run: drain and detach come after it, and it
    // does not fail because of them
    let temp = on_tmpfs();
    run(|| {
        let file = Rc::new(temp.open(Direct::Auto));
        let calls = Rc::new(Cell::new(0));
        let writer = {
            let (file, calls) = (Rc::clone(&file), Rc::clone(&calls));
            spawn(move || {
                // Bounded, or a fault fills the memory.
                let mut writes = (0..20_000).map(|number| {
                    calls.set(number + 1);
                    file.write_at(&page(4), number * 4096)
                });
                writes.find_map(Result::err).map(|error| error.kind())
            })
        };
        for _ in 0..100 {
            yield_now();
            file.drain().unwrap();
            assert_eq!(std::fs::metadata(&temp.0).unwrap().len(), calls.get() * 4096);
        }
        let _detached = driver::detach().unwrap();
        let before = calls.get();
        assert_eq!(writer.join().unwrap(), Some(ErrorKind::NotConnected));
        assert_eq!(calls.get(), before + 1, "only the next call fails");
    });
}

#[test]
fn request_in_place_appears_in_the_trace() {
    // W7, E16: the trace shows a request in place like any other: pending, in flight, done
    let (temp, trace) = (on_tmpfs(), Trace::new(1000));
    let ran = RuntimeBuilder::new().trace(&trace).run(|| {
        let file = temp.open(Direct::Auto);
        file.write_at(&page(3), 0).unwrap();
        file.read_exact_at(&mut page(0), 0).unwrap();
    });
    ran.unwrap();
    let recording = trace.recording();
    recording.check().unwrap();
    let states = recording.records.iter().filter_map(|record| match record.event {
        Event::Request { state, .. } => Some(state),
        _ => None,
    });
    let one = [RequestState::Pending, RequestState::InFlight, RequestState::Done(4096)];
    assert_eq!(states.collect::<Vec<_>>(), [one, one].concat());
}

#[test]
fn slow_requests_in_place_are_counted() {
    // E14: a request in place that takes longer than the threshold counts as a slow submit
    let temp = on_tmpfs();
    let slow = RuntimeBuilder::new().slow_submit_threshold(Duration::ZERO).run(|| {
        temp.open(Direct::Auto).write_at(&page(3), 0).unwrap();
        stats()
    });
    let Stats { slow_submits, max_submit_time, .. } = slow.unwrap();
    assert!(slow_submits == 1 && max_submit_time > Duration::ZERO);
}

#[test]
fn unwinding_stack_makes_requests_in_place() {
    // C9, E13: a destructor may write to a file on tmpfs while its stack unwinds
    struct Writes(Rc<File>);
    impl Drop for Writes {
        fn drop(&mut self) {
            (0..100).for_each(|number| _ = self.0.write_at(&page(9), number * 4096).unwrap());
        }
    }
    let temp = on_tmpfs();
    run(|| {
        let file = Rc::new(temp.open(Direct::Auto));
        let ended = spawn({
            let file = Rc::clone(&file);
            move || {
                let _writes = Writes(file);
                panic!("unwinds");
            }
        });
        assert!(ended.join().is_err());
        assert_eq!(stats().in_place, 100);
    });
    assert!(is_all(&std::fs::read(&temp.0).unwrap(), 9));
}
