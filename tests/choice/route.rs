//! Routing of requests under `Auto` where io_uring is not available: operations that would block the
//! loop in submit go to a thread.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::rc::Rc;
use std::time::Duration;

use coralio::driver::{BackendKind, Stats, stats};
use coralio::fs::Direct;
use coralio::{AlignedBuf, File, RuntimeBuilder, spawn, yield_now};

use crate::held::Held;
use crate::seccomp::forbid;
use crate::{Temp, chosen, in_child, page};

/// Returns what `f` adds to the counters.
fn counted(f: impl FnOnce()) -> Stats {
    let before = stats();
    f();
    let after = stats();
    assert_eq!((after.in_flight, after.pending), (0, 0));
    assert_eq!(after.completions, after.requests, "each completes once, and counts once");
    let mut counted = after;
    counted.requests -= before.requests;
    counted.offloaded -= before.offloaded;
    counted
}

/// Returns the number of requests that `f` makes, and how many of them go to threads.
fn requests(f: impl FnOnce()) -> (u64, u64) {
    let Stats { requests, offloaded, .. } = counted(f);
    (requests, offloaded)
}

/// Runs `f` under `Auto` on a thread that cannot use io_uring.
fn without_uring(f: impl FnOnce() + Send) {
    let run = || {
        forbid(&[(libc::SYS_io_uring_setup, libc::EPERM)]);
        coralio::run(f);
    };
    let ran = std::thread::scope(|scope| scope.spawn(run).join());
    ran.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// Runs `f` under `Auto` without io_uring on a direct file on a disk, or prints why it is skipped.
fn on_direct_file(f: impl FnOnce(&File) + Send) {
    let temp = Temp::on_disk();
    without_uring(|| {
        let file = temp.open(Direct::Auto);
        // tmpfs accepts direct I/O at any alignment.
        let on_a_disk = file.is_direct() && file.alignment().memory > 1;
        if on_a_disk && chosen().backend() == BackendKind::Aio {
            f(&file);
        } else {
            println!("skipped: {}, on a disk and direct: {on_a_disk}", chosen());
        }
    });
}

#[test]
fn extending_direct_writes_go_to_a_thread() {
    // E16: a direct write that extends the file goes to a thread, since submit would block until
    // the device has the data; overwriting, filling a hole and reading do not
    on_direct_file(|file| {
        for number in 0..4 {
            let at = u64::from(number) * 4096;
            assert_eq!(requests(|| _ = file.write_at(&page(number), at).unwrap()), (1, 1), "extends");
        }
        for number in 0..4 {
            let at = u64::from(number) * 4096;
            assert_eq!(requests(|| _ = file.write_at(&page(number + 9), at).unwrap()), (1, 0), "overwrites");
        }
        file.set_len(1 << 20).unwrap();
        assert_eq!(requests(|| _ = file.write_at(&page(7), 1 << 19).unwrap()), (1, 0), "fills a hole");
        let [one, two] = [page(8), page(9)];
        let vectors = [&one, &two].map(|buf| std::io::IoSlice::new(buf));
        let end = (1 << 20) - 8192;
        assert_eq!(requests(|| _ = file.write_vectored_at(&vectors, end).unwrap()), (1, 0), "to the end");
        assert_eq!(requests(|| _ = file.write_vectored_at(&vectors, end + 4096).unwrap()), (1, 1), "and beyond");
        let mut buf = page(0);
        let mut back = |at| {
            file.read_exact_at(&mut buf, at).unwrap();
            assert!(buf.iter().all(|&byte| byte == buf[0]));
            buf[0]
        };
        let read = requests(|| {
            assert_eq!([back(0), back(4096 * 3), back(1 << 19), back(end), back(end + 4096)], [9, 12, 7, 8, 8]);
            assert_eq!(back(1 << 20), 9);
        });
        assert_eq!(read, (6, 0));
        let mut much = AlignedBuf::new(1 << 20, 4096);
        much.fill(6);
        assert_eq!(requests(|| _ = file.write_at(&much, 2 << 20).unwrap()), (1, 1), "extends by much");
        assert_eq!(requests(|| file.sync_data().unwrap()), (1, 0), "nothing of that is in the page cache");
    });
}

#[test]
fn hole_filling_write_waits_for_an_extending_write() {
    // E16: a write that fills a hole goes to a thread while a thread extends the file: the
    // extending write holds the inode lock, and submit would wait for it
    if in_child("route::hole_filling_write_waits_for_an_extending_write") {
        return;
    }
    on_direct_file(|file| {
        const END: u64 = 1 << 20;
        file.set_len(END).unwrap();
        let mut held = match Held::from_now_on(libc::SYS_pwrite64) {
            Ok(held) => Some(held),
            Err(error) => return println!("skipped: no filter that asks: {error}"),
        };
        let all = requests(|| {
            coralio::scope(|scope| {
                let extends = scope.spawn(|| file.write_at(&page(2), END).unwrap());
                while stats().offloaded == 0 {
                    yield_now();
                }
                let fills = scope.spawn(|| file.write_at(&page(1), 8192).unwrap());
                while stats().offloaded == 1 && !fills.is_finished() {
                    yield_now();
                }
                let still_held = !extends.is_finished();
                held = None;
                assert!(still_held);
            });
        });
        assert_eq!(all, (2, 2));
        assert_eq!(requests(|| _ = file.write_at(&page(1), 1 << 16).unwrap()), (1, 0), "alone it is submitted");
    });
}

#[test]
fn appends_go_to_a_thread() {
    // E16: every append extends the file, whatever its offset, and so goes to a thread
    let temp = Temp::on_disk();
    on_direct_file(|_| {
        let mut options = std::fs::OpenOptions::new();
        let opened = options.append(true).create(true).custom_flags(libc::O_DIRECT).open(&temp.0).unwrap();
        let file = File::from_fd(OwnedFd::from(opened)).unwrap();
        let twice = || (0..2).for_each(|byte| _ = file.write_at(&page(byte), 0).unwrap());
        assert_eq!(requests(twice), (2, 2));
        assert_eq!(std::fs::metadata(&temp.0).unwrap().len(), 8192);
    });
}

#[test]
fn blocking_page_cache_reads_go_to_a_thread() {
    // E16: page-cached writes go to threads, reads of cached data do not; a sync does only after
    // much was written
    on_direct_file(|_| {
        let temp = Temp::on_disk();
        let file = temp.open(Direct::Never);
        assert_eq!(requests(|| _ = file.write_at(&[1; 100], 5).unwrap()), (1, 1));
        assert_eq!(requests(|| file.read_exact_at(&mut [0; 50], 20).unwrap()), (1, 0));
        assert_eq!(requests(|| file.sync_data().unwrap()), (1, 0), "there is little to sync");
        let much = vec![7; 1 << 20];
        assert_eq!(requests(|| _ = file.write_at(&much, 0).unwrap()), (1, 1));
        assert_eq!(requests(|| file.sync_all().unwrap()), (1, 1));
        assert_eq!(requests(|| file.sync_all().unwrap()), (1, 0), "nothing since");
        // Drops the pages from the cache: a read is then refused, since it would wait for the disk.
        //
        // SAFETY: takes no pointers.
        let advise = |advice| unsafe { libc::posix_fadvise(file.as_fd().as_raw_fd(), 0, 0, advice) };
        assert_eq!(advise(libc::POSIX_FADV_RANDOM), 0);
        let read_all = || {
            let mut buf = vec![0; 4096];
            for at in (0..1 << 20).step_by(1 << 16) {
                file.read_exact_at(&mut buf, at).unwrap();
                assert!(buf.iter().all(|&byte| byte == 7));
            }
        };
        // The kernel keeps pages that are in use elsewhere, and a fast disk may have fetched a page
        // before the read is retried: so a few attempts.
        let went_to_a_thread = |_| {
            assert_eq!(advise(libc::POSIX_FADV_DONTNEED), 0);
            requests(read_all).1 > 0
        };
        assert!((0..100).any(went_to_a_thread), "no read after the cache was dropped went to a thread");
    });
}

#[test]
fn files_without_nowait_support_go_to_a_thread() {
    // E14, E16: /proc has no direct I/O and does not report what would block, so its reads go to
    // threads under native AIO; tmpfs never waits for a device, so its requests do not
    without_uring(|| {
        let status = File::open("/proc/self/status").unwrap();
        assert!(!status.is_direct());
        let mut buf = vec![0; 4096];
        let (_, on_threads) = requests(|| assert!(status.read_at(&mut buf, 0).unwrap() > 100));
        assert!(buf.starts_with(b"Name:"));
        assert_eq!(on_threads > 0, chosen().backend() == BackendKind::Aio);
        let temp = Temp::at("/dev/shm".into());
        for direct in [Direct::Auto, Direct::Never] {
            let file = temp.open(direct);
            let work = || {
                file.write_at(&vec![3; 1 << 20], 0).unwrap();
                file.read_exact_at(&mut vec![0; 1 << 20], 0).unwrap();
                file.sync_data().unwrap();
            };
            assert_eq!(requests(work), (3, 0), "{direct:?}");
        }
    });
}

#[test]
fn both_engines_work_simultaneously() {
    // E2, E7, W3: completions of either engine wake the loop, whichever one it sleeps in
    on_direct_file(|file| {
        let cached = Temp::on_disk();
        let cached = Rc::new(cached.open(Direct::Never));
        file.set_len(1 << 20).unwrap();
        (0..256).for_each(|number| _ = file.write_at(&page(number as u8), number * 4096).unwrap());
        let writers: Vec<_> = (0..16u64)
            .map(|number| {
                let cached = Rc::clone(&cached);
                spawn(move || {
                    for round in 0..20u64 {
                        let at = (number * 20 + round) * 100;
                        cached.write_at(&[number as u8; 100], at).unwrap();
                        let mut back = [0; 100];
                        cached.read_exact_at(&mut back, at).unwrap();
                        assert_eq!(back, [number as u8; 100]);
                    }
                })
            })
            .collect();
        let mut buf = page(0);
        for number in 0..256 {
            file.read_exact_at(&mut buf, number * 4096).unwrap();
            assert!(buf.iter().all(|&byte| byte == number as u8));
        }
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        let stats = stats();
        assert!(stats.offloaded >= 320 && stats.requests > stats.offloaded, "{stats:?}");
    });
}

#[test]
fn context_end_waits_for_requests_on_threads() {
    // E13, W5: coroutines not joined at the context's end are unwound, each after its buffer was
    // returned
    for rounds in 0..3 {
        let temp = Temp::on_disk();
        without_uring(|| {
            let file = Rc::new(temp.open(Direct::Never));
            for number in 0..32 {
                let (file, buf) = (Rc::clone(&file), AlignedBuf::new(1 << 16, 4096));
                drop(spawn(move || file.write_at(&buf, number << 16).map(drop)));
            }
            (0..rounds).for_each(|_| yield_now());
        });
    }
}

#[test]
fn missing_descriptor_for_threads_is_an_error() {
    // E14: when no descriptor for the thread engine can be opened, the primary engine performs the
    // request
    if in_child("route::missing_descriptor_for_threads_is_an_error") {
        return;
    }
    let temp = Temp::on_disk();
    without_uring(|| {
        let file = temp.open(Direct::Never);
        let mut taken = Vec::new();
        while let Ok(one) = std::fs::File::open("/dev/null") {
            taken.push(one);
        }
        file.write_at(&[5; 100], 0).unwrap();
        assert_eq!(stats().offloaded, 0);
        drop(taken);
        file.write_at(&[6; 100], 100).unwrap();
        assert_eq!(stats().offloaded, u64::from(chosen().backend() == BackendKind::Aio), "as soon as there is one");
        file.sync_all().unwrap();
    });
    assert_eq!(std::fs::read(&temp.0).unwrap(), [[5; 100], [6; 100]].concat());
}

#[test]
fn submits_above_the_threshold_are_counted() {
    // E14: slow submits are counted: all with a zero threshold, none with a large one; without a
    // threshold the clock is not read
    if !crate::common::has(BackendKind::Aio, 1) {
        return;
    }
    let temp = Temp::on_disk();
    let work = || {
        let file = temp.open(Direct::Auto);
        (0..10).for_each(|number| _ = file.write_at(&page(1), number * 4096).unwrap());
        stats()
    };
    let aio = || RuntimeBuilder::new().backend(BackendKind::Aio);
    let stats = aio().slow_submit_threshold(Duration::ZERO).run(work).unwrap();
    assert!(stats.submits >= 10 && stats.slow_submits == stats.submits, "{stats:?}");
    assert!(stats.max_submit_time > Duration::ZERO);
    let stats = aio().slow_submit_threshold(Duration::from_secs(3600)).run(work).unwrap();
    assert!(stats.slow_submits == 0 && stats.max_submit_time > Duration::ZERO, "{stats:?}");
    let stats = aio().run(work).unwrap();
    assert!(stats.slow_submits == 0 && stats.max_submit_time == Duration::ZERO, "{stats:?}");
}
