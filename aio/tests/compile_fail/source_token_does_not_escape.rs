//! E9: a source cannot keep the token of a call for a later one.
use std::cell::Cell;

use coralio_runtime::{HomeToken, LoopToken};

struct Keeps(Cell<Option<HomeToken<'static>>>, Cell<Option<LoopToken<'static>>>);

impl Keeps {
    fn close(&self, token: HomeToken<'_>) {
        self.0.set(Some(token)); //~ E0521
    }

    fn dispatch(&self, token: LoopToken<'_>) {
        self.1.set(Some(token)); //~ E0521
    }
}

fn main() {}
