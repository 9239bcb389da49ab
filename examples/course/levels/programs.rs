//! The programs of the levels of lessons 7 to 13: those of the lessons, with an open schedule.

use std::cell::Cell;
use std::fs::File as StdFile;
use std::os::fd::OwnedFd;
use std::panic::resume_unwind;
use std::rc::Rc;

use coralio::context::AioContext;
use coralio::coroutine::{Coroutine, suspend};
use coralio::engine::guards::{Guards, PartialSubmit, RingCursor, ShortRead, UnplugDecrement, WakeGuard};
use coralio::sync::CoMutex;
use coralio::{File, JoinHandle, yield_now};

use super::kernel::Kernel;
use super::lesson::{Disk, coroutine, read, run_loop, say, spawn};

/// Defines guards of which one each is disabled.
macro_rules! versions {
    ($($(#[$doc:meta])* $name:ident { $constant:ident: $type:ty = $value:expr })*) => {$(
        $(#[$doc])*
        pub struct $name;

        // SAFETY: where two threads reap without the lock, the kernel of the level synchronizes
        // them; and no request is cancelled in flight.
        unsafe impl Guards for $name {
            const $constant: $type = $value;
        }
    )*};
}

versions! {
    /// A completion enters its coroutine.
    July2016 { WAKE_GUARD: WakeGuard = WakeGuard::None }
    /// A completion enters its coroutine, unless that is the current one.
    September2016 { WAKE_GUARD: WakeGuard = WakeGuard::EnterUnlessCurrent }
    /// A reap takes completions off the ring in batches.
    Batch2014 { RING_CURSOR: RingCursor = RingCursor::PerReap }
    /// A reap from submit does not take the lock.
    Unlocked2018 { REAP_LOCKS: bool = false }
    /// Unplug decrements the plug depth in only one of two branches.
    ShortCircuit2021 { UNPLUG_DECREMENT: UnplugDecrement = UnplugDecrement::OnlyWhenNotFull }
    /// A short read is taken for the end of the file.
    TakenForTheEnd2022 { SHORT_READ: ShortRead = ShortRead::TreatAsEof }
    /// After EAGAIN all requests wait for a completion.
    WaitsForCompletion2016 { PARTIAL_SUBMIT: PartialSubmit = PartialSubmit::WedgeOnEagain }
}

/// Lesson 7: A reads until there is a letter, at most three times. B writes the letter.
pub fn letter(context: &AioContext, kernel: &Kernel, before_each_read: fn()) {
    let disk: Disk = kernel.attach(8);
    let letter = Rc::new(Cell::new(false));
    let b = coroutine("B", {
        let letter = Rc::clone(&letter);
        move || {
            letter.set(true);
            say("writes the letter");
        }
    });
    let a = coroutine("A", move || {
        for _ in 0..3 {
            if !letter.get() {
                before_each_read();
                read(&disk, 0);
            }
        }
        assert!(letter.get(), "A has read three times, and B has not run");
    });
    b.schedule().expect("once");
    a.enter();
    run_loop(context, &[a, b]);
}

/// See [`letter`].
pub fn letter_without_yield(context: &AioContext, kernel: &Kernel) {
    letter(context, kernel, || ());
}

/// See [`letter`].
pub fn letter_with_yield(context: &AioContext, kernel: &Kernel) {
    letter(context, kernel, yield_now);
}

fn readers<G: Guards, const N: usize>(disk: &Disk<G>, names: [&'static str; N]) -> [Coroutine; N] {
    let mut at = 0;
    names.map(|name| {
        let (disk, offset) = (disk.clone(), at);
        at += 512;
        coroutine(name, move || _ = read(&disk, offset))
    })
}

/// Lesson 8: the loop enters A and B, which read once each. B fills the batch.
pub fn two_readers<G: Guards>(context: &AioContext, kernel: &Kernel) {
    let all = readers(&kernel.attach::<G>(2), ["A", "B"]);
    all.iter().for_each(|one| one.schedule().expect("once"));
    run_loop(context, &all);
}

/// Lesson 9: X and Y read while they hold a lock, A without it.
pub fn three_and_a_lock<G: Guards>(context: &AioContext, kernel: &Kernel) {
    let disk: Disk<G> = kernel.attach(8);
    let reader = |name, offset, lock: Option<Rc<CoMutex<()>>>| {
        let disk = disk.clone();
        coroutine(name, move || {
            let _guard = lock.as_deref().map(CoMutex::lock);
            read(&disk, offset);
        })
    };
    let lock = Rc::new(CoMutex::new(()));
    let a = reader("A", 0, None);
    let (x, y) = (reader("X", 512, Some(Rc::clone(&lock))), reader("Y", 1024, Some(lock)));
    x.enter();
    y.enter();
    a.enter();
    run_loop(context, &[a, x, y]);
}

type Result = Cell<Option<u32>>;

/// Lesson 10: A waits for a request by `wait`. A timer may enter A twice.
fn one_request(kernel: &Kernel, wait: fn(&Result)) {
    let complete = |result: &Result, waiter: Coroutine| {
        result.set(Some(512));
        waiter.enter_unless_entered();
    };
    let options = |both: [&str; 2], count| both[..count].iter().map(|option| option.to_string()).collect::<Vec<_>>();
    let result = Rc::new(Result::default());
    let a = coroutine("A", {
        let (result, kernel) = (Rc::clone(&result), kernel.clone());
        move || {
            say("submits a request");
            if kernel.choose(
                "A has submitted its request. What does the kernel do before the submit returns?",
                &options(["the request is done", "nothing is done yet"], 2),
            ) == 0
            {
                complete(&result, Coroutine::current().expect("this is A"));
            }
            wait(&result);
            assert!(result.get().is_some(), "A has continued without a result");
        }
    });
    a.enter();
    let mut timers = 2;
    while !a.has_ended() && result.get().is_none() {
        let options = options(["the request is done", "a timer enters A"], if timers > 0 { 2 } else { 1 });
        if kernel.choose("A is suspended. What happens next?", &options) == 0 {
            complete(&result, a);
        } else {
            timers -= 1;
            a.enter();
        }
    }
    assert!(a.has_ended(), "A waits for a completion that has been processed already");
}

/// See [`one_request`].
pub fn one_request_checked_once(_context: &AioContext, kernel: &Kernel) {
    one_request(kernel, |result| {
        if result.get().is_none() {
            suspend();
        }
    });
}

/// See [`one_request`].
pub fn one_request_checked_each_time(_context: &AioContext, kernel: &Kernel) {
    one_request(kernel, |result| {
        while result.get().is_none() {
            suspend();
        }
    });
}

fn join<T>(task: JoinHandle<T>) -> T {
    task.join().unwrap_or_else(|payload| resume_unwind(payload))
}

/// Lesson 11: A reads, then polls until B has read.
pub fn nested_poll<G: Guards>(context: &AioContext, kernel: &Kernel) {
    let disk: Disk<G> = kernel.attach(8);
    let b_has_read = Rc::new(Cell::new(false));
    let a = spawn("A", {
        let (disk, b_has_read, context) = (disk.clone(), Rc::clone(&b_has_read), context.clone());
        move || {
            read(&disk, 0);
            while !b_has_read.get() {
                say("B has not read: polls");
                context.poll(true);
            }
        }
    });
    let b = spawn("B", move || {
        read(&disk, 512);
        b_has_read.set(true);
    });
    while !(a.is_finished() && b.is_finished()) {
        context.poll(true);
    }
    join(a);
    join(b);
}

/// Lesson 12: A and B read, while another thread may poll.
pub fn two_threads<G: Guards>(context: &AioContext, kernel: &Kernel) {
    let all = readers(&kernel.attach::<G>(3), ["A", "B"]);
    all.iter().for_each(|one| one.enter());
    run_loop(context, &all);
}

/// Lesson 13: C and D read under a plug, while A and B may still be in flight. Then E reads.
pub fn plug<G: Guards>(context: &AioContext, kernel: &Kernel) {
    let disk: Disk<G> = kernel.attach(2);
    let [a, b, c, d, e] = readers(&disk, ["A", "B", "C", "D", "E"]);
    a.enter();
    b.enter();
    let plug = disk.plug();
    say("creates the plug");
    c.enter();
    d.enter();
    say("drops the plug");
    drop(plug);
    run_loop(context, &[a, b, c, d]);
    e.enter();
    assert!(disk.stats().pending == 0, "E's read is pending: it waits for a plug that was dropped");
    run_loop(context, &[e]);
}

/// Lesson 13: A reads, then B and C in an iteration of the loop. The kernel may refuse a submit.
pub fn refused<G: Guards>(context: &AioContext, kernel: &Kernel) {
    let disk: Disk<G> = kernel.attach(8);
    let [a, b, c] = readers(&disk, ["A", "B", "C"]);
    a.enter();
    [b, c].iter().for_each(|one| one.schedule().expect("once"));
    for _ in 0..8 {
        if [a, b, c].iter().all(|one| one.has_ended()) {
            return;
        }
        context.poll(disk.stats().in_flight > 0);
    }
    let stats = disk.stats();
    panic!("stuck: {} pending, {} in flight, and the loop never submits them", stats.pending, stats.in_flight);
}

/// Museum: A reads a block of a file, twice.
pub fn blocks<G: Guards>(context: &AioContext, kernel: &Kernel) {
    let disk: Disk<G> = kernel.attach(8);
    let null = OwnedFd::from(StdFile::open("/dev/null").expect("a descriptor"));
    let file = File::with_engine(&disk, null).expect("it is of this context");
    let a = coroutine("A", move || {
        for block in ["first", "second"] {
            let read = file.read_at(&mut [0; 512], 0).expect("this kernel has no errors");
            assert!(read == 512, "cut: {read} bytes of 512 in the {block} block, and no error");
        }
    });
    a.enter();
    run_loop(context, &[a]);
}
