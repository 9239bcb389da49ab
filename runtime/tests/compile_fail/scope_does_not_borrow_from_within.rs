//! S4: what lies in the scope's own closure is gone before its coroutines are.
use coralio_runtime::{AioContext, scope};

fn main() {
    AioContext::run(|_| {
        scope(|s| {
            let inside = 7;
            drop(s.spawn(|| drop(&inside)));
        });
    });
}
