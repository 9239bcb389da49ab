//! E9, E13: safe code cannot make an engine believe completions that its kernel did not report
#![forbid(unsafe_code)]
use std::fs::File;
use std::os::fd::AsFd;

use coralio::engine::Engine;
use coralio::engine::Backend;
use coralio::engine::linux_aio::LinuxAio;

fn main() {
    let backend = LinuxAio::new(64).unwrap();
    for _ in 0..(1u64 << 32) - 2 {
        backend.advance();
    }
    let _ = backend.peek_completion();
    backend.cancel(0);
    let _ = backend.wait(None, None);
    let number = backend.register(File::open("/dev/null").unwrap().as_fd());
    backend.unregister(number);
    let _ = Engine::<LinuxAio>::attach(backend, 64);
}
