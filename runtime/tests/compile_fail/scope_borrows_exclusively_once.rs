//! S4: two coroutines of a scope may not have the same value to write to.
use coralio_runtime::{AioContext, scope};

fn main() {
    AioContext::run(|_| {
        let mut count = 0;
        scope(|s| {
            drop(s.spawn(|| count += 1));
            drop(s.spawn(|| count += 1));
        });
    });
}
