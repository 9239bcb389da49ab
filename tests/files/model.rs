//! Many coroutines on one file, compared with a model.

use std::cell::RefCell;
use std::rc::Rc;

use coralio::{AlignedBuf, spawn};

use crate::{Temp, everywhere, pattern};

const BLOCK: usize = 4096;

/// Runs sixteen coroutines, each of which writes and reads its own blocks, and reads blocks that
/// are not being written. A block's content depends on its number and a version.
#[test]
fn file_is_shared_by_many_coroutines() {
    // E15, E13: every block contains the data last written there, whichever coroutine reads it
    const COROUTINES: usize = 16;
    const EACH: usize = 8;
    const ROUNDS: usize = if cfg!(debug_assertions) { 20 } else { 60 };
    everywhere(|place, direct| {
        let temp = Temp::at(place);
        let file = Rc::new(temp.open(direct));
        file.set_len((COROUTINES * EACH * BLOCK) as u64).unwrap();
        // The version of each block that is certain to be in the file; `None` while one is being
        // written.
        let model = Rc::new(RefCell::new(vec![Some(0u64); COROUTINES * EACH]));
        let workers: Vec<_> = (0..COROUTINES)
            .map(|me| {
                let (file, model) = (Rc::clone(&file), Rc::clone(&model));
                spawn(move || {
                    let mut random = pattern(me as u64, ROUNDS * 4).into_iter().map(usize::from);
                    let mut next = move || random.next().unwrap();
                    let mut buf = AlignedBuf::new(BLOCK, BLOCK);
                    for round in 0..ROUNDS {
                        let mine = me * EACH + next() % EACH;
                        let version = round as u64 + 1;
                        buf.copy_from_slice(&block(mine, version));
                        model.borrow_mut()[mine] = None;
                        // One whole direct write, or two pieces that are not blocks.
                        let at = (mine * BLOCK) as u64;
                        if next() % 4 == 0 {
                            let split = 1 + next() % 200;
                            file.write_at(&buf[..split], at).unwrap();
                            file.write_at(&buf[split..], at + split as u64).unwrap();
                        } else {
                            file.write_at(&buf, at).unwrap();
                        }
                        model.borrow_mut()[mine] = Some(version);

                        let other = (next() * 7 + round) % (COROUTINES * EACH);
                        let before = model.borrow()[other];
                        file.read_exact_at(&mut buf, (other * BLOCK) as u64).unwrap();
                        // If it was not written meanwhile, its content is known.
                        if let Some(version) = before.filter(|_| model.borrow()[other] == before) {
                            assert!(buf[..] == block(other, version)[..], "block {other}, version {version}");
                        }
                    }
                })
            })
            .collect();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        file.sync_all().unwrap();
        let content = temp.content();
        for (number, version) in model.borrow().iter().enumerate() {
            let there = &content[number * BLOCK..(number + 1) * BLOCK];
            assert!(*there == block(number, version.unwrap()), "block {number}");
        }
        let stats = coralio::driver::stats();
        assert_eq!((stats.requests, stats.in_flight, stats.pending), (stats.completions, 0, 0));
        assert!(stats.submits < stats.requests, "requests of several coroutines share submits");
    });
}

fn block(number: usize, version: u64) -> Vec<u8> {
    match version {
        0 => vec![0; BLOCK],
        _ => pattern(number as u64 * 1000 + version, BLOCK),
    }
}
