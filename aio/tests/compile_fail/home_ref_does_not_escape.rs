//! C7: proof of being on the home thread is valid only within its closure.
use coralio_runtime::AioContext;

fn main() {
    AioContext::run(|ctx| {
        let here = ctx.at_home(|here| here).unwrap(); //~ lifetime may not live long enough
        here.current();
    });
}
