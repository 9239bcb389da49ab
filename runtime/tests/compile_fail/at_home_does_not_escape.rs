//! C7: proof that this is the home thread is good within its closure alone.
use coralio_runtime::AioContext;

fn main() {
    AioContext::run(|ctx| {
        let here = ctx.at_home(|here| here).unwrap();
        here.current();
    });
}
