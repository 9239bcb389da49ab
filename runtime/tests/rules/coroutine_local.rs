//! Coroutine-local variables: one value for each coroutine, within a scope.

use std::rc::Rc;

use crate::common::{Log, panic_of};
use coralio_runtime::{AioContext, CoroutineLocal, scope, spawn, suspend, yield_now};

static NUMBER: CoroutineLocal<u32> = CoroutineLocal::new();
static OTHER: CoroutineLocal<u32> = CoroutineLocal::new();
static NAME: CoroutineLocal<String> = CoroutineLocal::new();

#[test]
fn coroutines_keep_their_values_across_suspensions() {
    // S13: coroutines that take turns leave their scopes in another order than they entered them,
    // and each sees its own value
    AioContext::run(|_| {
        let tasks = [3, 1, 2].map(|turns| {
            spawn(move || {
                NUMBER.scope(turns, || {
                    NAME.scope(format!("task {turns}"), || {
                        (0..turns).for_each(|_| yield_now());
                        let name = NAME.with(|name| {
                            yield_now();
                            name.clone()
                        });
                        (NUMBER.get(), name, OTHER.try_with(|_| ()))
                    })
                })
            })
        });
        let expected = [3, 1, 2].map(|turns| (turns, format!("task {turns}"), None));
        assert_eq!(tasks.map(|task| task.join().unwrap()), expected);
    });
}

#[test]
fn scopes_nest_and_end_by_a_panic() {
    // S13: an inner value hides the outer one, until its scope returns or panics; a value is dropped
    // when its scope has ended
    struct Reads(Log);
    impl Drop for Reads {
        fn drop(&mut self) {
            self.0.add(format!("{:?}", NUMBER.try_with(|n| *n)));
        }
    }
    static READS: CoroutineLocal<Reads> = CoroutineLocal::new();
    let log = Log::default();
    AioContext::run(|_| {
        let theirs = log.clone();
        let task = spawn(move || {
            assert!(NUMBER.try_with(|_| ()).is_none());
            NUMBER.scope(1, || {
                OTHER.scope(10, || NUMBER.scope(2, || theirs.add(NUMBER.get() + OTHER.get())));
                let said = panic_of(|| NUMBER.scope(3, || panic!("{}", NUMBER.get())));
                theirs.add(format!("{said} {}", NUMBER.get()));
                READS.scope(Reads(theirs.clone()), || ());
            });
            READS.scope(Reads(theirs), || ());
            panic_of(|| NUMBER.get())
        });
        let said = task.join().unwrap();
        assert!(said.contains("a CoroutineLocal<u32> has no value here"), "{said}");
        assert_eq!(log.take(), "12 3 1 Some(1) None");
    });
}

#[test]
fn spawned_coroutines_do_not_inherit() {
    // S13: neither a coroutine that is spawned within the scope, nor one that runs meanwhile, nor
    // the caller's other code
    AioContext::run(|ctx| {
        let log = Log::default();
        let look = |log: &Log| {
            let log = log.clone();
            move || log.add(NUMBER.try_with(|n| *n).unwrap_or(0))
        };
        NUMBER.scope(1, || {
            drop(spawn(look(&log)));
            scope(|s| drop(s.spawn(look(&log))));
            ctx.schedule_oneshot(look(&log)).unwrap();
            ctx.poll(false);
            look(&log)();
        });
        look(&log)();
        assert_eq!(log.take(), "0 0 1 1 0");
    });
    assert_eq!(NUMBER.scope(5, || NUMBER.get()), 5, "outside a context");
}

#[test]
fn unwound_coroutine_sees_its_values() {
    // S13, C9: destructors of a coroutine that is unwound with its context see its values; the next
    // coroutine in the same block does not
    struct Reads(Log);
    impl Drop for Reads {
        fn drop(&mut self) {
            self.0.add(format!("{:?}", NUMBER.try_with(|n| *n)));
        }
    }
    let log = Log::default();
    AioContext::builder()
        .report_unwound(false)
        .run(|ctx| {
            for n in [1, 2] {
                let outer = Reads(log.clone());
                let log = log.clone();
                drop(spawn(move || {
                    let _outer = outer;
                    NUMBER.scope(n, || {
                        let _inner = Reads(log);
                        suspend();
                    });
                }));
            }
            ctx.poll(false);
        })
        .unwrap();
    assert_eq!(log.take(), "Some(1) None Some(2) None");
    AioContext::run(|_| {
        let none = spawn(|| NUMBER.try_with(|_| ()));
        assert_eq!(none.join().unwrap(), None);
    });
}

#[test]
fn constant_variables_of_two_types_are_not_confused() {
    // S13: the compiler may give two constants one address, and one constant two; their values have
    // different types
    const ONE: &CoroutineLocal<u64> = &CoroutineLocal::new();
    const TWO: &CoroutineLocal<Rc<u8>> = &CoroutineLocal::new();
    ONE.scope(7, || {
        assert!(TWO.try_with(|_| ()).is_none());
        TWO.scope(Rc::new(8), || {
            assert!(ONE.try_with(|one| *one).is_none_or(|one| one == 7));
            assert!(TWO.try_with(|two| **two).is_none_or(|two| two == 8));
        });
    });
}
