//! E9, E13: safe code cannot make an engine believe completions that its kernel did not report
#![forbid(unsafe_code)]
use std::fs::File;
use std::os::fd::AsFd;

use coralio_aio::Engine;
use coralio_aio::kernel::Kernel;
use coralio_aio::kernel::linux_aio::LinuxAio;

fn main() {
    let kernel = LinuxAio::new(64).unwrap();
    for _ in 0..(1u64 << 32) - 2 {
        kernel.commit();
    }
    let _ = kernel.peek();
    kernel.cancel(0);
    let _ = kernel.wait(1, None, None);
    let number = kernel.register(File::open("/dev/null").unwrap().as_fd());
    kernel.unregister(number);
    let _ = Engine::<LinuxAio>::attach(kernel, 64);
}
