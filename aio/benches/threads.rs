//! The engine on threads against a bare pool: CPU time per 4 KiB read, in turns, on the same file, pinned to one CPU.
//!
//! The bare pool is what one writes first: as many threads on one channel, each doing `pread` and sending back what it read.
//! `cargo bench -p coralio-aio --bench threads -- [FILE [DEPTH [DIRECT]]]`; without arguments a page-cached file in /dev/shm,
//! 32, and page-cached.

#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};
use std::{env, mem, process, thread};

use coralio_aio::kernel::threads::{MOST_THREADS, Threads};
use coralio_aio::kernel::{Opcode, Operation};
use coralio_aio::{AioContext, AlignedBuf, Engine, spawn};

const BLOCK: u64 = 4096;
const SIZE: u64 = 64 << 20;

fn cpu_time() -> Duration {
    // SAFETY: plain data, filled by the call.
    let time = unsafe {
        let mut time: libc::timespec = mem::zeroed();
        libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time);
        time
    };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn pin() {
    // SAFETY: plain data, filled before the call.
    unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        libc::CPU_SET(0, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
    }
}

/// Where the next read goes.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % (SIZE / BLOCK) * BLOCK
    }
}

fn ours(file: &Arc<File>, depth: u32, operations: u64) {
    let each = operations / u64::from(depth);
    coralio_aio::AioContext::builder()
        .run_coroutine(|_: &AioContext| {
            let engine = Engine::<Threads>::attach(Threads::new(depth)?, depth)?;
            let fd = file.as_raw_fd();
            let readers: Vec<_> = (0..depth)
                .map(|number| {
                    let engine = Arc::clone(&engine);
                    spawn(move || {
                        let mut random = Random(u64::from(number) + 1);
                        let buf = Rc::new(AlignedBuf::new(BLOCK as usize, BLOCK as usize));
                        for _ in 0..each {
                            let (addr, offset) = (buf.as_ptr() as u64, random.next());
                            let operation = Operation { opcode: Opcode::Read, fd, addr, len: BLOCK, offset };
                            // SAFETY: the buffer is nobody else's, and outlives the call.
                            assert_eq!(unsafe { engine.transfer(&operation) }.unwrap(), BLOCK as usize);
                        }
                    })
                })
                .collect();
            readers.into_iter().for_each(|reader| reader.join().unwrap());
            io::Result::Ok(())
        })
        .unwrap()
        .unwrap();
}

fn bare(file: &Arc<File>, depth: u32, operations: u64) {
    let (work, works) = mpsc::channel::<(AlignedBuf, u64)>();
    let works = Arc::new(Mutex::new(works));
    let (done, dones) = mpsc::channel();
    let workers: Vec<_> = (0..MOST_THREADS)
        .map(|_| {
            let (file, works, done) = (Arc::clone(file), Arc::clone(&works), done.clone());
            thread::spawn(move || {
                loop {
                    let work = works.lock().unwrap().recv();
                    let Ok((mut buf, offset)) = work else { return };
                    assert_eq!(file.read_at(&mut buf, offset).unwrap(), BLOCK as usize);
                    done.send(buf).unwrap();
                }
            })
        })
        .collect();
    let mut random = Random(1);
    for _ in 0..depth {
        work.send((AlignedBuf::new(BLOCK as usize, BLOCK as usize), random.next())).unwrap();
    }
    for _ in 0..operations - u64::from(depth) {
        work.send((dones.recv().unwrap(), random.next())).unwrap();
    }
    dones.iter().take(depth as usize).for_each(drop);
    drop(work);
    workers.into_iter().for_each(|worker| worker.join().unwrap());
}

fn main() {
    let mut arguments = env::args().skip(1).filter(|argument| argument != "--bench");
    let given = arguments.next().map(PathBuf::from);
    let depth: u32 = arguments.next().map_or(32, |depth| depth.parse().expect("a depth"));
    let direct = arguments.next().is_some();
    let path = given.clone().unwrap_or_else(|| format!("/dev/shm/coralio-bench-{}", process::id()).into());
    if given.is_none() {
        fs::write(&path, vec![7; SIZE as usize]).unwrap();
    }
    let flags = if direct { libc::O_DIRECT } else { 0 };
    let file = Arc::new(File::options().read(true).custom_flags(flags).open(&path).unwrap());
    if !direct {
        // Once through, so that all of it is in the page cache.
        let mut whole = vec![0; SIZE as usize];
        file.read_exact_at(&mut whole, 0).unwrap();
    }
    if env::var_os("UNPINNED").is_none() {
        pin();
    }
    let operations = env::var("OPS").ok().and_then(|text| text.parse().ok()).unwrap_or(200_000);
    let mut ratios = Vec::new();
    for round in 0..7 {
        let each = [ours as fn(&Arc<File>, u32, u64), bare].map(|run| {
            let (cpu, wall) = (cpu_time(), Instant::now());
            run(&file, depth, operations);
            let per = |time: Duration| time.as_nanos() as f64 / operations as f64;
            (per(cpu_time() - cpu), per(wall.elapsed()))
        });
        // The first one warms up.
        if round > 0 {
            ratios.push(each[0].0 / each[1].0);
            println!(
                "ours {:6.0} ns of CPU, {:6.0} by the clock; bare {:6.0}, {:6.0}; ratio {:.2}",
                each[0].0,
                each[0].1,
                each[1].0,
                each[1].1,
                each[0].0 / each[1].0
            );
        }
    }
    ratios.sort_by(f64::total_cmp);
    println!("median ratio {:.2} at depth {depth}, {MOST_THREADS} threads", ratios[ratios.len() / 2]);
    if given.is_none() {
        fs::remove_file(&path).unwrap();
    }
}
