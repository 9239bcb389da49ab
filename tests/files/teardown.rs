//! A thousand requests in flight when the context ends: each buffer comes back with what the kernel has read, and nothing is
//! written to it, or to the stacks, later.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use coralio_aio::{AioContext, AlignedBuf, Direct, KernelChoice, Runner, spawn, yield_now};

use crate::{Temp, disk, pattern};

const REQUESTS: usize = 1000;
const BLOCK: usize = 16 * 1024;
const BLOCKS: usize = 64;

/// A buffer that looks, when its destructor runs, whether the kernel has filled it; and is kept, full of another pattern.
struct Lent {
    buf: AlignedBuf,
    expected: Rc<Vec<u8>>,
    block: usize,
    kept: Rc<RefCell<Vec<AlignedBuf>>>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        let filled = self.buf[..] == self.expected[self.block * BLOCK..][..BLOCK];
        let mut buf = std::mem::replace(&mut self.buf, AlignedBuf::new(0, 1));
        buf.fill(if filled { 0xee } else { 0xbb });
        self.kept.borrow_mut().push(buf);
    }
}

/// How the context ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Returns,
    Panics,
}

/// One context that ends with its readers' requests in flight. Returns their buffers.
fn end_amid(kernel: KernelChoice, temp: &Temp, expected: &Rc<Vec<u8>>, end: End) -> Option<Vec<AlignedBuf>> {
    let kept = Rc::default();
    let context = AioContext::builder().unwind_report(false);
    let runner = Runner::new().context(context).kernel(kernel).depth(1024);
    let ran = catch_unwind(AssertUnwindSafe(|| {
        runner.run(|| {
            let file = Rc::new(temp.open(Direct::Auto));
            for number in 0..REQUESTS {
                let (file, expected, kept) = (Rc::clone(&file), Rc::clone(expected), Rc::clone(&kept));
                drop(spawn(move || {
                    let block = number * 7 % BLOCKS;
                    let mut lent = Lent { buf: AlignedBuf::new(BLOCK, 4096), expected, block, kept };
                    let read = file.read_at(&mut lent.buf, (block * BLOCK) as u64);
                    assert_eq!(read.unwrap(), BLOCK);
                }));
            }
            yield_now(); // all have begun
            yield_now(); // the kernel has got what it takes
            let stats = coralio_aio::stats();
            assert_eq!(stats.requests, REQUESTS as u64);
            if end == End::Panics {
                resume_unwind(Box::new("amid a thousand"));
            }
            (stats.in_flight, stats.pending)
        })
    }));
    match ran {
        Ok(Err(error)) if kernel == KernelChoice::Uring => {
            println!("skipped: {error}");
            return None;
        }
        Ok(ran) => println!("{kernel}: in flight and pending: {:?}", ran.unwrap()),
        Err(payload) => assert_eq!(payload.downcast_ref::<&str>(), Some(&"amid a thousand")),
    }
    Some(Rc::try_unwrap(kept).expect("all coroutines are gone").into_inner())
}

#[test]
fn a_thousand_in_flight() {
    // E13, C9: on each kernel, whether the context returns or panics; and then the stacks are used anew
    let content = Rc::new(pattern(3, BLOCKS * BLOCK));
    let temp = Temp::with(&disk(), &content);
    for kernel in [KernelChoice::Aio, KernelChoice::Uring, KernelChoice::Threads] {
        for end in [End::Returns, End::Panics] {
            let Some(buffers) = end_amid(kernel, &temp, &content, end) else { continue };
            // The next context's coroutines lie on the same stacks, if they are still there, and go through the same ring.
            let mark = |number: usize| [number as u8; 8192];
            Runner::new()
                .kernel(kernel)
                .run(|| {
                    let file = Rc::new(temp.open(Direct::Auto));
                    let tasks: Vec<_> = (0..REQUESTS)
                        .map(|number| {
                            let (file, content) = (Rc::clone(&file), Rc::clone(&content));
                            spawn(move || {
                                let on_the_stack = std::hint::black_box(mark(number));
                                let mut buf = [0; 512];
                                let offset = number * 7 % BLOCKS * BLOCK;
                                file.read_exact_at(&mut buf, offset as u64).unwrap();
                                assert!(buf == content[offset..][..512]);
                                assert!(std::hint::black_box(on_the_stack) == mark(number));
                            })
                        })
                        .collect();
                    tasks.into_iter().for_each(|task| task.join().unwrap());
                })
                .unwrap();
            assert_eq!(buffers.len(), REQUESTS);
            for buffer in buffers {
                assert!(
                    buffer.iter().all(|&byte| byte == 0xee),
                    "{kernel}, {end:?}: it was not filled, or written late"
                );
            }
        }
    }
}
