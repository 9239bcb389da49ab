//! Many coroutines on one file, compared with a model; and an image created by another program.

use std::cell::RefCell;
use std::rc::Rc;

use coralio::fs::Direct;
use coralio::{AlignedBuf, File, spawn};

use crate::{Temp, disk, everywhere, on_each_backend, pattern, tool};

const BLOCK: usize = 4096;

/// Runs sixteen coroutines, each of which writes and reads its own blocks, and reads blocks that
/// are not being written. A block's content depends on its number and a version.
#[test]
fn file_is_shared_by_many_coroutines() {
    // E15, E13: every block contains the data last written there, whichever coroutine reads it
    const COROUTINES: usize = 16;
    const EACH: usize = 8;
    const ROUNDS: usize = 60;
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

#[test]
fn image_of_qemu_img_is_read() {
    // E15: files are interchangeable with those of an independent implementation, qemu-io, in both
    // directions
    let temp = Temp::at(&disk());
    let path = temp.0.to_str().unwrap();
    if tool("qemu-img", &["create", "-f", "raw", path, "4M"]).is_none() {
        return;
    }
    let script =
        ["write -P 0x11 0 64k", "write -P 0x22 1M 4k", "write -P 0x33 3149824 512", "write -P 0x44 4190208 4k"];
    let arguments: Vec<_> = ["-f", "raw"].into_iter().chain(script.iter().flat_map(|line| ["-c", line])).collect();
    if tool("qemu-io", &[&arguments[..], &[path]].concat()).is_none() {
        return;
    }
    let parts = [(0, 65536, 0x11), (1 << 20, 4096, 0x22), (3149824, 512, 0x33), (4190208, 4096, 0x44)];
    for direct in [Direct::Auto, Direct::Never] {
        on_each_backend(|| {
            let file = File::options().read(true).direct(direct).open(&temp.0).unwrap();
            let mut whole = AlignedBuf::new(4 << 20, 4096);
            assert_eq!(file.read_at(&mut whole, 0).unwrap(), 4 << 20);
            let mut expected = vec![0u8; 4 << 20];
            for (at, len, byte) in parts {
                expected[at..at + len].fill(byte);
                let mut part = vec![0; len];
                file.read_exact_at(&mut part, at as u64).unwrap();
                assert!(part.iter().all(|&found| found == byte), "at {at}");
            }
            assert!(whole[..] == expected[..]);
        });
    }
    on_each_backend(|| {
        let file = temp.open(Direct::Auto);
        file.write_at(&[0x55; 4096], 2 << 20).unwrap();
        file.write_at(&[0x66; 512], (2 << 20) + 8192).unwrap();
        file.sync_data().unwrap();
    });
    for line in ["read -P 0x55 2M 4k", "read -P 0 2101248 4k", "read -P 0x66 2105344 512", "read -P 0x11 0 64k"] {
        let said = tool("qemu-io", &["-f", "raw", "-c", line, path]).expect("it ran before");
        let said = String::from_utf8_lossy(&said.stdout);
        assert!(!said.contains("verification failed"), "{line}: {said}");
    }
}
