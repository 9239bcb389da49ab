//! A thousand requests in flight when a run ends: each buffer is returned filled or as it was, and
//! nothing is written to it later. The random tapes cover requests in flight on a kernel with
//! faults.

use std::cell::RefCell;
use std::io;
use std::panic::resume_unwind;
use std::rc::Rc;

use coralio::simulate::{Faults, Simulation};
use coralio::{File, spawn, yield_now};

const REQUESTS: usize = 1000;
const BLOCK: usize = 512;

/// A buffer whose destructor checks that the kernel is not in the middle of filling it, and keeps
/// the buffer with another pattern.
struct Lent {
    buf: Vec<u8>,
    byte: u8,
    kept: Rc<RefCell<Vec<Vec<u8>>>>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        let first = self.buf[0];
        // A request that is unwound before the backend has begun it leaves its buffer as it was.
        let is_given_back = (first == self.byte || first == 0) && self.buf.iter().all(|&byte| byte == first);
        self.buf.fill(if is_given_back { 0xee } else { 0xbb });
        self.kept.borrow_mut().push(std::mem::take(&mut self.buf));
    }
}

fn begin_a_thousand(file: &Rc<File>, kept: &Rc<RefCell<Vec<Vec<u8>>>>) {
    for number in 0..REQUESTS {
        let (file, kept) = (Rc::clone(file), Rc::clone(kept));
        drop(spawn(move || {
            let mut lent = Lent { buf: vec![0; BLOCK], byte: 1 + (number % 200) as u8, kept };
            assert_eq!(file.read_at(&mut lent.buf, (number * BLOCK) as u64).unwrap(), BLOCK);
        }));
    }
    yield_now(); // all have started
    yield_now(); // the kernel has them
    assert!(coralio::stats().in_flight > 0);
}

#[test]
fn thousand_requests_in_flight_are_unwound() {
    // E13, C9, E17: a run that ends by an error or a panic, without joining its coroutines, leaves
    // no buffer unfilled or written late
    let disk = Simulation::new().queue_depth(1024).stack_size(64 << 10).faults(Faults::none()).max_shrink_runs(0);
    for panics in [false, true] {
        for seed in 0..10 {
            let kept = Rc::default();
            let ran = disk.search(seed..=seed, |sim| {
                let file = Rc::new(sim.create("data", (REQUESTS * BLOCK) as u64));
                let content: Vec<_> = (0..REQUESTS).flat_map(|number| [1 + (number % 200) as u8; BLOCK]).collect();
                file.write_at(&content, 0)?;
                begin_a_thousand(&file, &kept);
                if panics {
                    resume_unwind(Box::new("in a thousand requests"));
                }
                Err(io::Error::other("in a thousand requests"))
            });
            let said = ran.unwrap_err().message;
            assert!(said.contains("in a thousand requests"), "{said}");
            let kept = kept.take();
            // A failing run is made twice, the second time with a log.
            assert_eq!(kept.len() % REQUESTS, 0);
            assert!(
                kept.iter().flatten().all(|&byte| byte == 0xee),
                "seed {seed}: it was filled in part, or written late"
            );
        }
    }
}
