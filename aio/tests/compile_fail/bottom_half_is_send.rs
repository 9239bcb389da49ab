//! X3: another thread's poll may run a bottom half.
use coralio_runtime::AioContext;
use std::rc::Rc;

fn main() {
    AioContext::run(|ctx| {
        let shared = Rc::new(7);
        drop(ctx.new_bottom_half(move || drop(Rc::clone(&shared)))); //~ cannot be sent between threads
    });
}
