//! Every depth, size and shape on every backend, the simulated one included; a file that shrinks
//! while it is read; and, on real files, `fio`, in both directions.

use std::io::{IoSlice, IoSliceMut};
use std::path::Path;
use std::rc::Rc;

use coralio::fs::Direct;
use coralio::simulate::Simulation;
use coralio::{File, RuntimeBuilder, spawn};

use crate::common::{is_all, is_refused};
use crate::{BACKENDS, Temp, aligned, disk, everywhere, memory, on_each_backend, pattern, tool};

/// Without optimization, only the ends and a depth that no batch fills evenly: the whole sweep takes
/// half a minute there.
const DEPTHS: &[u32] = if cfg!(debug_assertions) { &[1, 7, 1024] } else { &[1, 2, 3, 7, 32, 128, 1024] };
const SIZES: [usize; 9] = [1, 511, 512, 513, 4096, 4097, 65_536, 300_001, 1 << 20];
/// The distance between the beginnings of regions; the rest of each is a hole.
const STRIDE: u64 = 1 << 21;

/// Returns the expected content of the file: each region's pattern, with zeroes between them.
fn model() -> Vec<u8> {
    let end = STRIDE as usize * (SIZES.len() - 1) + SIZES[SIZES.len() - 1];
    let mut model = vec![0; end];
    for (place, size) in SIZES.into_iter().enumerate() {
        let at = place * STRIDE as usize;
        model[at..at + size].copy_from_slice(&pattern(place as u64, size));
    }
    model
}

/// Returns the place of the first byte that is neither zero nor the expected one.
fn strange(found: &[u8], expected: &[u8]) -> Option<usize> {
    let mut blocks = found.chunks(512).zip(expected.chunks(512)).enumerate();
    blocks.find_map(|(block, (found, expected))| {
        if *found == expected[..found.len()] || is_all(found, 0) {
            return None;
        }
        let at = found.iter().zip(expected).position(|(found, expected)| *found != 0 && found != expected);
        at.map(|at| block * 512 + at)
    })
}

/// Writes the regions concurrently, in no order; meanwhile other coroutines read them and see only
/// zeroes and the data being written.
fn write_and_look(file: &Rc<File>, model: &Rc<Vec<u8>>) {
    let mut tasks = Vec::new();
    for (place, size) in SIZES.into_iter().enumerate().rev() {
        let at = place as u64 * STRIDE;
        let (writer, reader, expected) = (Rc::clone(file), Rc::clone(file), Rc::clone(model));
        tasks.push(spawn(move || writer.write_at(&aligned(&pattern(place as u64, size)), at).map(drop)));
        tasks.push(spawn(move || {
            let mut buf = aligned(&vec![0xee; size]);
            let read = reader.read_at(&mut buf, at)?;
            let expected = &expected[at as usize..][..read];
            let strange = strange(&buf[..read], expected);
            assert_eq!(strange, None, "in the region of {size} bytes");
            Ok(())
        }));
    }
    tasks.into_iter().try_for_each(|task: coralio::JoinHandle<std::io::Result<()>>| task.join().unwrap()).unwrap();
}

/// Reads the whole file in overlapping pieces of one size, more of them at a time than the queue is
/// deep, and past the end.
fn read_back(file: &Rc<File>, model: &Rc<Vec<u8>>, piece: usize) {
    let mut tasks = Vec::new();
    for at in (0..model.len() + piece).step_by(piece - piece / 4) {
        // A part of each hole is enough.
        if at % STRIDE as usize > SIZES[SIZES.len() - 1] + piece {
            continue;
        }
        let (file, model) = (Rc::clone(file), Rc::clone(model));
        tasks.push(spawn(move || {
            let mut buf = vec![0xee; piece];
            let expected = &model[at.min(model.len())..(at + piece).min(model.len())];
            assert_eq!(file.read_at(&mut buf, at as u64).unwrap(), expected.len(), "at {at}");
            assert!(buf[..expected.len()] == *expected, "{piece} bytes at {at}");
        }));
    }
    tasks.into_iter().for_each(|task| task.join().unwrap());
}

/// Writes and reads back, beyond the end, more pieces than one request may have, of sizes that are
/// not blocks.
fn append_by_pieces(file: &File, end: u64) {
    let content = pattern(99, 2050 * 37);
    let slices: Vec<_> = content.chunks(37).map(IoSlice::new).collect();
    assert_eq!(file.write_vectored_at(&slices, end).unwrap(), content.len());
    let mut back = vec![0; content.len()];
    let mut slices: Vec<_> = back.chunks_mut(41).map(IoSliceMut::new).collect();
    assert_eq!(file.read_vectored_at(&mut slices, end).unwrap(), content.len());
    assert!(back == content);
}

fn all_of_it(file: File, model: &Rc<Vec<u8>>) {
    let file = Rc::new(file);
    write_and_look(&file, model);
    file.sync_data().unwrap();
    read_back(&file, model, 150_000);
    append_by_pieces(&file, model.len() as u64);
    let stats = coralio::driver::stats();
    assert_eq!((stats.in_flight, stats.pending), (0, 0));
}

#[test]
fn every_depth_size_and_shape_works() {
    // E2, E4, E5, E7, E10, E13, E15, E16: the sweep passes on each backend, on tmpfs and the disk,
    // past the page cache and through it
    let model = Rc::new(model());
    for backend in BACKENDS {
        for &depth in DEPTHS {
            for (place, direct) in [(memory(), Direct::Auto), (disk(), Direct::Auto), (disk(), Direct::Never)] {
                println!("{backend}, depth {depth}, {} {direct:?}", place.display());
                let temp = Temp::at(&place);
                let ran = RuntimeBuilder::new()
                    .backend(backend)
                    .queue_depth(depth)
                    .run(|| all_of_it(temp.open(direct), &model));
                match ran {
                    Err(error) if is_refused(backend, &error) => continue,
                    ran => ran.unwrap(),
                }
                assert!(temp.content()[..model.len()] == model[..]);
            }
        }
    }
}

#[test]
fn every_depth_size_and_shape_works_simulated() {
    // E2, E4, E5, E7, E10, E13, E15, E16, E17: the sweep passes on the simulated backend, which
    // reorders, refuses, and cuts requests short
    let model = Rc::new(model());
    let seeds = if cfg!(debug_assertions) { 1 } else { 2 };
    for &depth in DEPTHS {
        for (sector, direct) in [(512, Direct::Auto), (4096, Direct::Auto), (512, Direct::Never)] {
            println!("simulated, depth {depth}, sectors of {sector} bytes, {direct:?}");
            Simulation::new().queue_depth(depth).sector_size(sector).run(0..seeds, |sim| {
                let options = File::options().read(true).write(true).create(true).direct(direct);
                all_of_it(options.open("data")?, &model);
                assert!(sim.contents("data").unwrap()[..model.len()] == model[..]);
                Ok(())
            });
        }
    }
}

#[test]
fn shrinking_file_is_read_short() {
    // E10: a read of a shrinking file returns a prefix of the former content and never an error;
    // afterwards it returns the rest
    const LEN: usize = 1 << 20;
    everywhere(|place, direct| {
        let content = Rc::new(pattern(5, LEN));
        let temp = Temp::with(place, &content);
        let file = Rc::new(temp.open(direct));
        let readers: Vec<_> = (0..8)
            .map(|_| {
                let (file, content) = (Rc::clone(&file), Rc::clone(&content));
                spawn(move || {
                    let mut buf = aligned(&vec![0; LEN]);
                    let read = file.read_at(&mut buf, 0).unwrap();
                    assert_eq!(strange(&buf[..read], &content), None, "{read} bytes were read");
                })
            })
            .collect();
        file.set_len(LEN as u64 / 2).unwrap();
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        let mut buf = vec![0; LEN];
        assert_eq!(file.read_at(&mut buf, 0).unwrap(), LEN / 2);
        assert!(buf[..LEN / 2] == content[..LEN / 2]);
    });
}

/// Returns the content for `fio --verify=pattern --verify_pattern=%o`: each block repeats its own
/// offset.
fn places(len: usize) -> Vec<u8> {
    (0..len / 4096).flat_map(|block| (block as u64 * 4096).to_le_bytes().repeat(512)).collect()
}

fn fio(path: &Path, mode: &str) -> bool {
    let file = format!("--filename={}", path.display());
    let fixed = [
        "--name=coralio",
        "--bs=4k",
        "--size=1m",
        "--verify=pattern",
        "--verify_pattern=%o",
        "--verify_state_save=0",
        "--thread",
    ];
    let more = [&*file, mode, if mode == "--rw=write" { "--do_verify=0" } else { "--verify_fatal=1" }];
    tool("fio", &[&fixed[..], &more[..]].concat()).is_some()
}

#[test]
fn fio_and_file_read_each_others_data() {
    // E15: an independent program verifies each block, in both directions
    const LEN: usize = 1 << 20;
    let theirs = Temp::at(&disk());
    if !fio(&theirs.0, "--rw=write") {
        return;
    }
    for direct in [Direct::Auto, Direct::Never] {
        on_each_backend(|| {
            let mut buf = aligned(&vec![0; LEN]);
            theirs.open(direct).read_exact_at(&mut buf, 0).unwrap();
            assert!(buf[..] == places(LEN)[..]);
        });
        on_each_backend(|| {
            let ours = Temp::at(&disk());
            let file = Rc::new(ours.open(direct));
            let content = Rc::new(places(LEN));
            let writers: Vec<_> = (0..16)
                .map(|part| {
                    let (file, content) = (Rc::clone(&file), Rc::clone(&content));
                    let at = part * (LEN / 16);
                    spawn(move || file.write_at(&aligned(&content[at..at + LEN / 16]), at as u64).unwrap())
                })
                .collect();
            writers.into_iter().for_each(|writer| _ = writer.join().unwrap());
            file.sync_all().unwrap();
            assert!(fio(&ours.0, "--rw=read"), "fio does not find the written data");
        });
    }
}
