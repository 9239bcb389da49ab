//! CPU time for each read of an image, beside `qemu-img bench` on the same one: same depth, block and steps, in turns.
//!
//! ```sh
//! qemu-img create -f qcow2 -o preallocation=full /dev/shm/image 1G
//! taskset -c 1 cargo run --release -p coralio-qcow2 --example image_bench -- /dev/shm/image
//! ```
//!
//! Each side makes some operations, and then more; the difference counts, so that opening does not.

#![allow(unsafe_code)]

use std::io;
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use coralio_aio::{AlignedBuf, Runner, spawn};
use coralio_qcow2::{Image, Options, open};

const STEP: u64 = 260 << 10;
const WARM_UP: u64 = 20_000;

/// What to do, as on the command line: IMAGE [OPERATIONS [DEPTH [BLOCK [ROUNDS]]]].
struct Work {
    image: String,
    operations: u64,
    depth: u64,
    block: usize,
    rounds: usize,
}

fn parse() -> Option<Work> {
    let mut args = std::env::args().skip(1);
    let image = args.next()?;
    let mut number = |default| args.next().map_or(Some(default), |text| text.parse::<u64>().ok());
    let (operations, depth, block, rounds) = (number(300_000)?, number(64)?, number(4096)?, number(11)?);
    Some(Work { image, operations, depth, block: block as usize, rounds: rounds as usize })
}

/// CPU time so far: of this process, or of its children that have ended.
fn cpu(who: libc::c_int) -> Duration {
    // SAFETY: plain data for which zero is valid, and which the kernel fills.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(who, &mut usage), 0, "getrusage");
        usage
    };
    let time = |part: libc::timeval| Duration::new(part.tv_sec as u64, part.tv_usec as u32 * 1000);
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// Reads in steps, as `qemu-img bench` does.
fn reads(image: &Rc<dyn Image>, work: &Work, operations: u64) -> io::Result<()> {
    let next = Rc::new(std::cell::Cell::new(0));
    let size = image.len() / work.block as u64 * work.block as u64;
    let readers: Vec<_> = (0..work.depth)
        .map(|_| {
            let (image, next, block) = (Rc::clone(image), Rc::clone(&next), work.block);
            spawn(move || {
                let mut buf = AlignedBuf::new(block, 4096);
                while next.get() < operations {
                    let offset = next.get() * STEP % size;
                    next.set(next.get() + 1);
                    image.read_at(&mut buf, offset.min(size - block as u64))?;
                }
                io::Result::Ok(())
            })
        })
        .collect();
    readers.into_iter().try_for_each(|reader| reader.join().expect("no reader panics"))
}

/// Nanoseconds for each.
fn ours(work: &Work) -> io::Result<f64> {
    Runner::new().depth(work.depth as u32).run(|| {
        let image = open(&work.image, &Options::default())?;
        reads(&image, work, WARM_UP)?;
        let before = cpu(libc::RUSAGE_SELF);
        reads(&image, work, work.operations)?;
        Ok((cpu(libc::RUSAGE_SELF) - before).as_nanos() as f64 / work.operations as f64)
    })?
}

fn qemu(work: &Work) -> f64 {
    let run = |operations: u64| {
        let before = cpu(libc::RUSAGE_CHILDREN);
        let numbers = [operations, work.depth, work.block as u64, STEP].map(|number| number.to_string());
        let done = Command::new("qemu-img")
            .args(["bench", "-t", "none", "-i", "native", "-c", &numbers[0], "-d", &numbers[1]])
            .args(["-s", &numbers[2], "-S", &numbers[3], &work.image])
            .output()
            .expect("qemu-img is installed");
        assert!(done.status.success(), "qemu-img bench: {}", String::from_utf8_lossy(&done.stderr));
        cpu(libc::RUSAGE_CHILDREN) - before
    };
    let before = run(WARM_UP);
    (run(WARM_UP + work.operations).saturating_sub(before)).as_nanos() as f64 / work.operations as f64
}

fn main() {
    let Some(work) = parse() else {
        eprintln!("image_bench IMAGE [OPERATIONS [DEPTH [BLOCK [ROUNDS]]]]");
        std::process::exit(2);
    };
    let mut pairs: Vec<(f64, f64)> = Vec::new();
    for round in 0..work.rounds {
        let ours = ours(&work).unwrap_or_else(|error| {
            eprintln!("{error}");
            std::process::exit(1)
        });
        let theirs = qemu(&work);
        println!("{round:3}: ours {ours:6.0} ns, qemu-img bench {theirs:6.0} ns: {:.2}", ours / theirs);
        pairs.push((ours, theirs));
    }
    let mut ratios: Vec<_> = pairs.iter().map(|(ours, theirs)| ours / theirs).collect();
    ratios.sort_by(f64::total_cmp);
    println!("median of {}: {:.2}", ratios.len(), ratios[ratios.len() / 2]);
}
