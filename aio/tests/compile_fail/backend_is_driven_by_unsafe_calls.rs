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
        backend.advance(); //~ E0133
    }
    let _ = backend.peek_completion(); //~ E0133
    backend.cancel(0); //~ E0133
    let _ = backend.wait(None, None); //~ E0133
    let number = backend.register(File::open("/dev/null").unwrap().as_fd()); //~ E0133
    backend.unregister(number); //~ E0133
    let _ = Engine::<LinuxAio>::attach(backend, 64);
}
