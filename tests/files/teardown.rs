//! A thousand requests in flight when the context ends, or when they are cancelled: each buffer is
//! returned with the data that the kernel has read, and nothing is written to it, or to the stacks,
//! later.

use std::cell::RefCell;
use std::collections::HashSet;
use std::hint::black_box;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use coralio::context::AioContext;
use coralio::driver::BackendKind;
use coralio::fs::Direct;
use coralio::task::Cancelled;
use coralio::{AlignedBuf, File, JoinHandle, RuntimeBuilder, spawn, yield_now};

use crate::common::{is_all, is_refused};
use crate::{BACKENDS, Temp, disk, pattern};

const REQUESTS: usize = 1000;
const BLOCK: usize = 4096;
const BLOCKS: usize = 64;

/// A buffer. Half of the buffers are on the coroutines' stacks.
#[allow(clippy::large_enum_variant)] // intended: buffers on the stack
enum Memory {
    Heap(AlignedBuf),
    Stack(Block),
}

#[repr(align(4096))]
struct Block([u8; BLOCK]);

impl Memory {
    fn of(number: usize) -> Memory {
        match number % 2 {
            0 => Memory::Heap(AlignedBuf::new(BLOCK, 4096)),
            _ => Memory::Stack(Block([0; BLOCK])),
        }
    }

    fn bytes(&mut self) -> &mut [u8] {
        match self {
            Memory::Heap(buf) => buf,
            Memory::Stack(block) => &mut block.0,
        }
    }
}

/// The state of the buffers after their coroutines are gone.
#[derive(Default)]
struct Left {
    /// The number of buffers that were filled or left as they were, and nothing in between.
    given_back: usize,
    /// The buffers on the heap, overwritten with another pattern.
    heap: Vec<AlignedBuf>,
    /// The pages of the buffers on the stacks.
    pages: HashSet<usize>,
}

fn pages(memory: &[u8]) -> impl Iterator<Item = usize> + use<> {
    memory.as_ptr_range().start.addr() / 4096..memory.as_ptr_range().end.addr() / 4096
}

/// A buffer whose destructor checks that the kernel is not in the middle of filling it.
struct Lent {
    memory: Memory,
    expected: Rc<Vec<u8>>,
    block: usize,
    left: Rc<RefCell<Left>>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut left = self.left.borrow_mut();
        let buf = self.memory.bytes();
        let is_whole = buf[..] == self.expected[self.block * BLOCK..][..BLOCK];
        // A request that is unwound before the backend has begun it leaves its buffer as it was.
        left.given_back += usize::from(is_whole || is_all(buf, 0));
        buf.fill(0xee);
        match &mut self.memory {
            Memory::Heap(buf) => left.heap.push(std::mem::replace(buf, AlignedBuf::new(0, 1))),
            Memory::Stack(block) => left.pages.extend(pages(&block.0)),
        }
    }
}

/// How the context ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Returns,
    Panics,
    /// The engine was detached before, and dropped.
    Detached,
    /// The context continues, and the waiting coroutines are cancelled.
    Cancelled,
}

/// Ends one context with its readers' requests in flight. Returns the state of their buffers.
fn end_amid(backend: BackendKind, temp: &Temp, expected: &Rc<Vec<u8>>, end: End) -> Option<Left> {
    let left = Rc::default();
    let context = AioContext::builder().report_unwound(false);
    let builder = RuntimeBuilder::new().context(context).backend(backend).queue_depth(1024);
    let ran = catch_unwind(AssertUnwindSafe(|| {
        builder.run(|| {
            let file = Rc::new(temp.open(Direct::Auto));
            let reader = |number| {
                let (file, expected, left) = (Rc::clone(&file), Rc::clone(expected), Rc::clone(&left));
                spawn(move || {
                    let block = number * 7 % BLOCKS;
                    let mut lent = Lent { memory: Memory::of(number), expected, block, left };
                    match file.read_at(lent.memory.bytes(), (block * BLOCK) as u64) {
                        Ok(read) => assert_eq!(read, BLOCK),
                        Err(error) => assert!(Cancelled::is_cause_of(&error), "{error}"),
                    }
                })
            };
            let readers: Vec<_> = (0..REQUESTS).map(reader).collect();
            yield_now(); // all have started
            yield_now(); // the kernel has what it takes
            let stats = coralio::driver::stats();
            assert_eq!(stats.requests, REQUESTS as u64);
            match end {
                End::Returns => {}
                End::Panics => resume_unwind(Box::new("in a thousand requests")),
                End::Detached => drop(coralio::driver::detach().unwrap()),
                End::Cancelled => {
                    readers.iter().for_each(JoinHandle::cancel);
                    readers.into_iter().for_each(|reader| reader.join().unwrap());
                    let again = use_stacks(temp, expected);
                    assert!(!again.is_disjoint(&left.borrow().pages), "no stack was used again");
                }
            }
            (stats.in_flight, stats.pending)
        })
    }));
    match ran {
        Ok(Err(error)) if is_refused(backend, &error) => return None,
        Ok(ran) => println!("{backend}: in flight and pending: {:?}", ran.unwrap()),
        Err(payload) => assert_eq!(payload.downcast_ref::<&str>(), Some(&"in a thousand requests")),
    }
    Some(Rc::into_inner(left).expect("all coroutines are gone").into_inner())
}

#[test]
fn thousand_requests_in_flight_are_unwound() {
    // E13, C9, E11, E12: after return, panic, a dropped engine or cancelling, on each backend,
    // every buffer was returned filled and is not written later; the stacks are reused
    let content = Rc::new(pattern(3, BLOCKS * BLOCK));
    let temp = Temp::with(&disk(), &content);
    for backend in BACKENDS {
        for end in [End::Returns, End::Panics, End::Detached, End::Cancelled] {
            if (backend, end) == (BackendKind::Auto, End::Detached) {
                continue; // two engines, which cannot be detached
            }
            println!("{backend}, {end:?}");
            let Some(left) = end_amid(backend, &temp, &content, end) else { continue };
            assert_eq!(left.given_back, REQUESTS, "unwound while the kernel filled it");
            // The next context uses the same ring, and may have got the same memory.
            RuntimeBuilder::new().backend(backend).run(|| use_stacks(&temp, &content)).unwrap();
            assert_eq!(left.heap.len(), REQUESTS / 2);
            assert!(left.heap.iter().all(|buf| is_all(buf, 0xee)), "written late");
        }
    }
}

/// Runs coroutines that check, after some I/O, that the contents of their stacks are intact.
/// Returns the pages that they used.
fn use_stacks(temp: &Temp, content: &Rc<Vec<u8>>) -> HashSet<usize> {
    let file = Rc::new(temp.open(Direct::Auto));
    // Opens the file's descriptor for unaligned requests in advance.
    file.read_exact_at(&mut [0; 1], 0).unwrap();
    let read_beside_a_mark = |number: usize, file: &File, content: &[u8]| {
        // Large enough to cover the earlier coroutine's buffer, wherever that was on the stack: under
        // AddressSanitizer, several pages below this frame's first local.
        let mut mark = [number as u8; 12 * BLOCK];
        let mut buf = [0; 512];
        let offset = number * 7 % BLOCKS * BLOCK;
        file.read_exact_at(&mut buf, offset as u64).unwrap();
        assert!(buf == content[offset..][..512]);
        let mark: &mut [u8] = black_box(&mut mark);
        assert!(is_all(mark, number as u8), "written late");
        pages(mark)
    };
    let user = |number| {
        let (file, content) = (Rc::clone(&file), Rc::clone(content));
        spawn(move || read_beside_a_mark(number, &file, &content))
    };
    let users: Vec<_> = (0..REQUESTS).map(user).collect();
    users.into_iter().flat_map(|user| user.join().unwrap()).collect()
}
