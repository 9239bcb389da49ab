//! The `tracing` span of each coroutine, with the feature `tracing`:
//! `cargo test -p coralio-runtime --features tracing --test tracing`.

use std::fmt;
use std::sync::{Arc, Mutex};

use coralio_runtime::{AioContext, Coroutine, JoinHandle, spawn, suspend, yield_now};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber, info, info_span};

/// Records the names of spans and what happens to them.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Recorded>>);

#[derive(Default)]
struct Recorded {
    /// The name of each span, and its parent; the number of a span is its index plus 1.
    spans: Vec<(String, Option<usize>)>,
    /// The numbers of the entered spans, outermost first.
    stack: Vec<u64>,
    /// `message: span span`, the entered spans with the outermost first.
    events: Vec<String>,
    closed: usize,
}

/// Takes the value of the field of this name.
struct Text(&'static str, String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == self.0 {
            self.1 = format!("{value:?}").trim_matches('"').to_string();
        }
    }
}

impl Subscriber for Recorder {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut name = Text("name", String::new());
        span.record(&mut name);
        let name = if name.1.is_empty() { span.metadata().name().to_string() } else { name.1 };
        let mut recorded = self.0.lock().unwrap();
        let parent = recorded.stack.last().map(|&id| id as usize);
        recorded.spans.push((name, parent));
        Id::from_u64(recorded.spans.len() as u64)
    }

    fn event(&self, event: &Event<'_>) {
        let mut message = Text("message", String::new());
        event.record(&mut message);
        let mut recorded = self.0.lock().unwrap();
        let within: Vec<_> = recorded.stack.iter().map(|&id| recorded.spans[id as usize - 1].0.clone()).collect();
        recorded.events.push(format!("{}: {}", message.1, within.join(" ")));
    }

    fn enter(&self, id: &Id) {
        assert!(Coroutine::current().is_none(), "the subscriber runs in no coroutine");
        self.0.lock().unwrap().stack.push(id.into_u64());
    }

    fn exit(&self, id: &Id) {
        let innermost = self.0.lock().unwrap().stack.pop();
        assert_eq!(innermost, Some(id.into_u64()), "spans nest");
    }

    fn try_close(&self, _: Id) -> bool {
        self.0.lock().unwrap().closed += 1;
        true
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
}

/// Runs `f` in a context, and returns the record. Each coroutine's span was left and closed.
fn recorded(f: impl FnOnce()) -> Recorded {
    let recorder = Recorder::default();
    tracing::subscriber::with_default(recorder.clone(), || {
        AioContext::builder().report_unwound(false).run(|_| f()).unwrap();
    });
    let recorded = std::mem::take(&mut *recorder.0.lock().unwrap());
    assert!(recorded.stack.is_empty(), "every entered span was left");
    assert_eq!(recorded.closed, recorded.spans.len(), "every span was closed");
    recorded
}

fn named(name: &'static str, f: impl FnOnce() + 'static) -> JoinHandle<()> {
    Coroutine::builder().name(name).spawn(f).unwrap()
}

#[test]
fn events_are_in_the_span_of_their_coroutine_after_others_ran() {
    // S17: two coroutines that yield to each other.
    let recorded = recorded(|| {
        let tasks = ["a", "b"].map(|name| {
            named(name, || {
                info!("first");
                yield_now();
                info!("second");
            })
        });
        info!("outside");
        tasks.into_iter().for_each(|task| task.join().unwrap());
        info!("outside");
    });
    assert_eq!(recorded.events, ["outside: ", "first: a", "first: b", "second: a", "second: b", "outside: "]);
}

#[test]
fn spans_nest_as_enters_do() {
    // S17: an entered coroutine's span lies within that of its enterer, until it yields.
    let recorded = recorded(|| {
        let inner = Coroutine::builder().name("inner").create(|| {
            info!("one");
            suspend();
            info!("two");
        });
        let inner = inner.unwrap();
        let outer = named("outer", move || {
            inner.enter();
            info!("back");
        });
        outer.join().unwrap();
        inner.enter();
    });
    assert_eq!(recorded.events, ["one: outer inner", "back: outer", "two: inner"]);
}

#[test]
fn span_belongs_to_the_span_where_the_coroutine_was_created() {
    // S17: the parent is the span that is current there: the user's, or the creating coroutine's.
    let recorded = recorded(|| {
        let task = info_span!("request").in_scope(|| named("handler", || named("part", || ()).join().unwrap()));
        task.join().unwrap();
    });
    let spans: Vec<_> = recorded.spans.iter().map(|(name, parent)| (name.as_str(), *parent)).collect();
    assert_eq!(spans, [("request", None), ("handler", Some(1)), ("part", Some(2))]);
}

#[test]
fn spans_are_left_by_panic_and_unwinding() {
    // S17: a coroutine that panics, one that is unwound where it waits, and one that never ran.
    let recorded = recorded(|| {
        let panics = named("panics", || {
            yield_now();
            std::panic::resume_unwind(Box::new("on purpose"))
        });
        assert!(panics.join().is_err());
        drop(spawn(|| {
            struct Drops;
            impl Drop for Drops {
                fn drop(&mut self) {
                    info!("dropped");
                }
            }
            let _drops = Drops;
            suspend();
        }));
        drop(named("waits", suspend));
        yield_from_the_loop();
        Coroutine::builder().name("never ran").create(|| ()).unwrap();
    });
    assert_eq!(recorded.events, ["dropped: coroutine"]);
    assert_eq!(recorded.spans.len(), 4);
}

/// Lets the spawned coroutines run.
fn yield_from_the_loop() {
    AioContext::current().unwrap().poll(false);
}
