//! S4: two coroutines of a scope cannot both borrow a value exclusively.
use coralio_runtime::{AioContext, scope};

fn main() {
    AioContext::run(|_| {
        let mut count = 0;
        scope(|s| {
            drop(s.spawn(|| count += 1));
            drop(s.spawn(|| count += 1)); //~ E0499
        });
    });
}
