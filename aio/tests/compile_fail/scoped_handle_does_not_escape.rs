//! S4: a handle cannot be used after its scope has ended.
use coralio_runtime::{AioContext, scope};

fn main() {
    AioContext::run(|_| {
        let handle = scope(|s| s.spawn(|| 7)); //~ lifetime may not live long enough
        drop(handle.join());
    });
}
