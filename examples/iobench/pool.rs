//! The opponent on threads, in the most obvious design: threads on one channel, each performing
//! plain system calls and returning its buffer, and one thread that generates offsets and
//! distributes the work. The number of threads is that of the library's own pool, so that the
//! comparison covers the handover of the work and the results.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use coralio::AlignedBuf;
use coralio::engine::thread_pool::MAX_THREADS;

use crate::bare::Bare;
use crate::options::Options;
use crate::target::Target;
use crate::work::{Work, short};

/// A buffer and its number.
type Numbered = (usize, AlignedBuf);
/// Orders carry a buffer and an offset; replies carry the buffer and the result.
type Order = (Numbered, u64);
type Done = (Numbered, Result<(), String>);

/// The threads, both channels, and the buffers that are not in use by a thread.
pub struct Pool {
    /// `None` only in drop: dropping the sender ends the threads.
    orders: Option<Sender<Order>>,
    done: Receiver<Done>,
    threads: Vec<JoinHandle<()>>,
    idle: Vec<Numbered>,
}

impl Bare for Pool {
    const SETUP: &str = "threads";
    const REMEDY: &str = "raise the limit on threads (ulimit -u), or reduce --depth";

    fn new(options: &Options, target: &Target) -> io::Result<Pool> {
        let file = Arc::new(File::from(target.file.as_fd().try_clone_to_owned()?));
        let (orders, taken) = channel();
        let taken = Arc::new(Mutex::new(taken));
        let (give_back, done) = channel();
        let write = options.write;
        let thread = |_| {
            let (file, taken, give_back) = (Arc::clone(&file), Arc::clone(&taken), give_back.clone());
            thread::Builder::new().spawn(move || serve(&file, &taken, &give_back, write))
        };
        let threads = (0..MAX_THREADS.min(options.depth as usize)).map(thread).collect::<io::Result<_>>()?;
        let idle = (0..options.depth as usize).map(|number| (number, target.buffer(options))).collect();
        Ok(Pool { orders: Some(orders), done, threads, idle })
    }

    fn run(&mut self, work: &Rc<Work>) -> Result<(), String> {
        let mut out = 0;
        while let Some(buffer) = self.idle.pop() {
            let Some(offset) = work.next(buffer.0) else {
                self.idle.push(buffer);
                break;
            };
            self.order((buffer, offset))?;
            out += 1;
        }
        while out > 0 {
            let (buffer, result) = self.done.recv().map_err(|_| "all threads have ended")?;
            result?;
            match work.next(buffer.0) {
                Some(offset) => self.order((buffer, offset))?,
                None => {
                    self.idle.push(buffer);
                    out -= 1;
                }
            }
        }
        Ok(())
    }
}

impl Pool {
    fn order(&self, order: Order) -> Result<(), String> {
        let orders = self.orders.as_ref().expect("only drop takes the sender");
        orders.send(order).map_err(|_| "all threads have ended".to_string())
    }
}

/// Runs one thread until the order channel is closed.
fn serve(file: &File, taken: &Mutex<Receiver<Order>>, give_back: &Sender<Done>, write: bool) {
    loop {
        let order = taken.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((mut buffer, offset)) = order else { return };
        let result = transfer(file, &mut buffer.1, offset, write);
        if give_back.send((buffer, result)).is_err() {
            return;
        }
    }
}

/// Performs one operation; an incomplete transfer is an error.
pub fn transfer(file: &File, buffer: &mut AlignedBuf, offset: u64, write: bool) -> Result<(), String> {
    let verb = if write { "write" } else { "read" };
    let result = if write { file.write_at(buffer, offset) } else { file.read_at(buffer, offset) };
    let block = buffer.len();
    match result {
        Ok(count) if count == block => Ok(()),
        Ok(count) => Err(short(verb, block as u64, offset, count as u64)),
        Err(error) => Err(format!("{verb} of {block} bytes at offset {offset}: {error}")),
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.orders = None;
        for thread in self.threads.drain(..) {
            // If the thread panicked, the panic was printed and `run` has seen it.
            let _ = thread.join();
        }
    }
}
