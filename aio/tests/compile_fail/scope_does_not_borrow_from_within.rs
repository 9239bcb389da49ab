//! S4: values in the scope's own closure are dropped before its coroutines.
use coralio_runtime::{AioContext, scope};

fn main() {
    AioContext::run(|_| {
        scope(|s| {
            let inside = 7;
            drop(s.spawn(|| drop(&inside))); //~ E0373
        });
    });
}
