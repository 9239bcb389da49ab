//! I/O does not allocate in the steady state (rule C10). The allocator of this program counts per
//! thread.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;

use coralio::driver::BackendKind;
use coralio::fs::Direct;
use coralio::{AlignedBuf, File, RuntimeBuilder, spawn};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: all calls are forwarded unchanged to the system's allocator; counting touches only a
// thread-local cell without a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller upholds the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const BLOCK: usize = 4096;
const BLOCKS: u64 = 64;

/// A file that is removed on drop.
struct Temp(PathBuf);

impl Temp {
    fn new(place: &str, test: &str) -> Temp {
        let path = PathBuf::from(place).join(format!("coralio-no-allocation-{test}-{}", std::process::id()));
        std::fs::write(&path, vec![1; BLOCK * BLOCKS as usize]).unwrap();
        Temp(path)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Runs `f` often enough to fill every pool, then asserts that it no longer allocates.
fn steady(what: &str, mut f: impl FnMut()) {
    let divisor = std::env::var("CORALIO_TEST_DIVISOR").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    (0..100).for_each(|_| f());
    let before = ALLOCATIONS.get();
    (0..(1000 / divisor).max(10)).for_each(|_| f());
    assert_eq!(ALLOCATIONS.get() - before, 0, "{what}: allocations in the steady state");
}

/// Runs `f` on the disk, where requests complete later, and in memory, where they complete within
/// submit; direct and page-cached.
fn on_each(test: &str, f: impl Fn(&Rc<File>, &str)) {
    for place in [std::env::temp_dir().to_str().unwrap(), "/dev/shm"] {
        for direct in [Direct::Auto, Direct::Never] {
            for backend in [BackendKind::Aio, BackendKind::Uring] {
                let temp = Temp::new(place, test);
                let ran = RuntimeBuilder::new().backend(backend).run(|| {
                    let file = File::options().read(true).write(true).direct(direct).open(&temp.0).unwrap();
                    f(&Rc::new(file), &format!("{place}, {direct:?}, {backend}"));
                });
                match ran {
                    Err(error) if common::is_refused(backend, &error) => {}
                    ran => ran.unwrap(),
                }
            }
        }
    }
}

#[test]
fn counting_allocator_counts() {
    // C10: (a check of this test itself) an allocation in a coroutine is counted
    coralio::run(|| {
        let before = ALLOCATIONS.get();
        spawn(|| drop(std::hint::black_box(Box::new(7)))).join().unwrap();
        assert!(ALLOCATIONS.get() > before);
    });
}

#[test]
fn successive_requests_do_not_allocate() {
    // C10: `read_at` and `write_at`, aligned and unaligned, short at the end of the file, and the
    // syncs do not allocate
    on_each("single", |file, what| {
        let mut buf = AlignedBuf::new(2 * BLOCK, BLOCK);
        let mut round = 0;
        steady(what, || {
            let at = round % BLOCKS * BLOCK as u64;
            round += 1;
            file.write_at(&buf[..BLOCK], at).unwrap();
            file.read_exact_at(&mut buf[..BLOCK], at).unwrap();
            file.read_exact_at(&mut buf[1..100], at + 7).unwrap();
            file.write_at(&buf[1..100], at + 7).unwrap();
            assert_eq!(file.read_at(&mut buf, (BLOCKS - 1) * BLOCK as u64).unwrap(), BLOCK);
        });
        file.sync_data().unwrap();
        let before = ALLOCATIONS.get();
        file.sync_data().unwrap();
        file.sync_all().unwrap();
        assert_eq!(ALLOCATIONS.get() - before, 0, "{what}: a sync");
    });
}

#[test]
fn coroutine_per_request_does_not_allocate() {
    // C10: spawning a coroutine, I/O on a buffer of its own stack, and joining do not allocate
    on_each("spawned", |file, what| {
        let mut round = 0;
        steady(what, || {
            let (file, at) = (Rc::clone(file), round % BLOCKS * BLOCK as u64);
            round += 1;
            let task = spawn(move || {
                let mut buf = [0u8; 512];
                file.read_exact_at(&mut buf, at).unwrap();
                buf[0]
            });
            assert_eq!(task.join().unwrap(), 1);
        });
    });
}

#[test]
fn concurrent_requests_do_not_allocate() {
    // C10: thirty-two coroutines in flight, under a plug, do not allocate
    const COROUTINES: u64 = 32;
    on_each("many", |file, what| {
        let mut tasks = Vec::with_capacity(COROUTINES as usize);
        steady(what, || {
            let plug = coralio::driver::plug().unwrap();
            for number in 0..COROUTINES {
                let file = Rc::clone(file);
                tasks.push(spawn(move || {
                    let mut buf = [0u8; 512];
                    file.read_exact_at(&mut buf, number * BLOCK as u64).unwrap();
                    file.write_at(&buf, number * BLOCK as u64).unwrap();
                }));
            }
            drop(plug);
            for task in tasks.drain(..) {
                task.join().unwrap();
            }
        });
    });
}
