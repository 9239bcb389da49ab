//! A program whose steps are on the tape too: coroutines that read, write, sync, plug, poll and
//! cancel, each in its own region of a file and with a model of its content.

use std::cell::RefCell;
use std::io::{self, IoSlice, IoSliceMut};
use std::rc::Rc;

use coralio::context::AioContext;
use coralio::driver::plug;
use coralio::simulate::{Faults, Sim};
use coralio::task::Cancelled;
use coralio::{File, JoinHandle, spawn, yield_now};

/// The size of a region in bytes: a few sectors, not aligned.
pub const REGION: usize = 75;

/// Returns leaked memory, for reads that may be cancelled: an engine whose cancel does not wait
/// returns it while the kernel still has it.
fn scratch() -> &'static mut [u8; REGION] {
    Box::leak(Box::new([0; REGION]))
}

/// The size of the program.
#[derive(Clone, Copy)]
pub struct Size {
    pub workers: u32,
    pub steps: u32,
}

struct Worker {
    sim: Sim,
    file: Rc<File>,
    start: u64,
    model: Vec<u8>,
}

/// Retries until `f` succeeds, in the end without faults.
fn insist<T>(sim: &Sim, mut f: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..20 {
        match f() {
            Err(error) if !Cancelled::is_cause_of(&error) => {}
            other => return other,
        }
    }
    sim.set_faults(Faults::none());
    f()
}

impl Worker {
    /// Returns a part of the region.
    fn range(&self) -> (usize, usize) {
        let start = self.sim.choose(REGION as u32) as usize;
        (start, 1 + self.sim.choose((REGION - start) as u32) as usize)
    }

    fn step(&mut self) -> io::Result<()> {
        match self.sim.choose(9) {
            0 => self.write(),
            1 => self.read(),
            2 => self.write_vectored(),
            3 => self.read_vectored(),
            4 => insist(&self.sim, || self.file.sync_data()),
            5 => {
                yield_now();
                Ok(())
            }
            6 => {
                let _plug = plug()?;
                self.write()?;
                self.read()
            }
            7 => self.poll(),
            _ => self.cancel(),
        }
    }

    fn write(&mut self) -> io::Result<()> {
        let (start, len) = self.range();
        let bytes = vec![self.sim.choose(256) as u8; len];
        insist(&self.sim, || self.file.write_at(&bytes, self.start + start as u64))?;
        self.model[start..start + len].copy_from_slice(&bytes);
        Ok(())
    }

    fn read(&mut self) -> io::Result<()> {
        let (start, len) = self.range();
        let mut bytes = vec![0xee; len];
        let read = insist(&self.sim, || self.file.read_at(&mut bytes, self.start + start as u64))?;
        assert_eq!(read, len, "the file continues after the read");
        assert_eq!(bytes, self.model[start..start + len]);
        Ok(())
    }

    fn write_vectored(&mut self) -> io::Result<()> {
        let bytes: Vec<_> = (0..REGION as u8).collect();
        let (head, tail) = bytes.split_at(1 + self.sim.choose(REGION as u32 - 1) as usize);
        let vectors = [IoSlice::new(head), IoSlice::new(tail)];
        insist(&self.sim, || self.file.write_vectored_at(&vectors, self.start))?;
        self.model.copy_from_slice(&bytes);
        Ok(())
    }

    fn read_vectored(&mut self) -> io::Result<()> {
        let mut bytes = [0xee; REGION];
        let (head, tail) = bytes.split_at_mut(1 + self.sim.choose(REGION as u32 - 1) as usize);
        let read = insist(&self.sim, || {
            let mut vectors = [IoSliceMut::new(head), IoSliceMut::new(tail)];
            self.file.read_vectored_at(&mut vectors, self.start)
        })?;
        assert_eq!(read, REGION);
        assert_eq!(bytes[..], self.model);
        Ok(())
    }

    /// Polls until a coroutine spawned here has read the region.
    fn poll(&mut self) -> io::Result<()> {
        let child = self.spawn_reader(scratch());
        let context = AioContext::current().unwrap();
        while !child.is_finished() {
            context.poll(true);
        }
        assert_eq!(child.join().unwrap()?[..], self.model);
        Ok(())
    }

    /// Cancels a coroutine spawned here that reads the region; then overwrites its memory.
    fn cancel(&mut self) -> io::Result<()> {
        let memory = scratch();
        let address = memory.as_mut_ptr();
        let child = self.spawn_reader(memory);
        for _ in 0..self.sim.choose(3) {
            yield_now();
        }
        child.cancel();
        match child.join().unwrap() {
            Ok(bytes) => assert_eq!(bytes[..], self.model),
            Err(error) => assert!(Cancelled::is_cause_of(&error), "{error}"),
        }
        // SAFETY: leaked, so valid forever, and without any other reference to it.
        unsafe { address.write_bytes(0x11, REGION) };
        Ok(())
    }

    fn spawn_reader(&self, memory: &'static mut [u8; REGION]) -> JoinHandle<io::Result<Vec<u8>>> {
        let (sim, file, start) = (self.sim.clone(), Rc::clone(&self.file), self.start);
        spawn(move || {
            let read = insist(&sim, || file.read_at(memory, start))?;
            Ok(memory[..read].to_vec())
        })
    }
}

/// Checks that no plug is left: a request is submitted in the loop's iteration, though the loop
/// does not sleep. Turns faults off.
pub fn nothing_waits_for_a_plug(sim: &Sim, file: &Rc<File>) -> io::Result<()> {
    sim.set_faults(Faults::none());
    let file = Rc::clone(file);
    let reader = spawn(move || file.read_at(&mut [0], 0));
    (0..2).for_each(|_| yield_now());
    assert_eq!(coralio::driver::stats().pending, 0, "a request waits for a plug that is gone");
    reader.join().unwrap().map(drop)
}

/// Runs the program, and compares the file with the model.
pub fn run(sim: &Sim, size: Size) -> io::Result<()> {
    let workers = 1 + sim.choose(size.workers);
    let len = workers as usize * REGION;
    let file = Rc::new(sim.create("data", len as u64 + 1));
    let models = Rc::new(RefCell::new(vec![0; len]));
    let tasks: Vec<_> = (0..workers as usize)
        .map(|number| {
            let start = number * REGION;
            let (sim, file, models) = (sim.clone(), Rc::clone(&file), Rc::clone(&models));
            spawn(move || {
                let mut worker = Worker { sim, file, start: start as u64, model: vec![0; REGION] };
                for _ in 0..1 + worker.sim.choose(size.steps) {
                    worker.step()?;
                }
                models.borrow_mut()[start..start + REGION].copy_from_slice(&worker.model);
                io::Result::Ok(())
            })
        })
        .collect();
    for task in tasks {
        task.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload))?;
    }
    assert_eq!(sim.contents("data").unwrap()[..len], *models.borrow());
    nothing_waits_for_a_plug(sim, &file)
}
