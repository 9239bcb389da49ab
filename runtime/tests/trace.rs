//! The event log: its content, and that it nests.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::{Duration, Instant};

use coralio_runtime::trace::{Event, Frame, Recording, Replay, RequestState, Span, TextOptions, Trace, Wake};
use coralio_runtime::{AioContext, Coroutine, VirtualClock, sleep, spawn, suspend};

fn named(name: &'static str, f: impl FnOnce() + 'static) -> Coroutine {
    Coroutine::builder().name(name).create(f).unwrap()
}

/// Runs a context on the thread's own stack, with a log.
fn traced(f: impl FnOnce(&AioContext)) -> Recording {
    let trace = Trace::new(10_000);
    AioContext::builder().report_unwound(false).trace(&trace).run(f).unwrap();
    trace.recording()
}

#[test]
fn replay_gives_the_stack_at_each_event() {
    // C4, X2: a coroutine that polls, and one that the nested iteration enters
    let recording = traced(|context| {
        let (polled, context) = (Rc::new(RefCell::new(None)), context.clone());
        let inner = named("inner", || {});
        *polled.borrow_mut() = Some(inner.waker());
        let outer = named("outer", move || {
            polled.borrow_mut().take().unwrap().schedule().unwrap();
            context.poll(false);
        });
        outer.enter();
    });
    recording.check().unwrap();
    let mut replay = Replay::of(&recording);
    let mut seen = false;
    for record in &recording.records {
        replay.apply(record).unwrap();
        let Event::Enter { lane, .. } = record.event else { continue };
        if recording.name(lane) == "inner" {
            let stack = replay.stack(record.thread);
            let outer = stack[0];
            assert!(matches!(outer, Frame::Coroutine(outer) if recording.name(outer) == "outer"), "{stack:?}");
            assert_eq!(stack[1..], [Frame::Span(Span::Round), Frame::Coroutine(lane)]);
            assert_eq!(replay.running(record.thread), Some(lane));
            seen = true;
        }
    }
    assert!(seen, "{}", recording.text_with(TextOptions::everything()));
}

#[test]
fn log_tells_the_four_ways_of_waking_apart() {
    // W1: immediately, after a yield, in the next iteration, and not at all while entered
    let recording = traced(|context| {
        let first = named("first", suspend);
        first.enter();
        first.wake();
        let waits = named("waits", suspend);
        waits.enter();
        let itself: Rc<RefCell<Option<Coroutine>>> = Rc::default();
        let wakes = {
            let (waits, itself) = (waits, Rc::clone(&itself));
            named("wakes", move || {
                waits.wake();
                itself.borrow().as_ref().unwrap().wake();
            })
        };
        *itself.borrow_mut() = Some(wakes);
        wakes.enter();
        let later = named("later", || {});
        later.waker().schedule().unwrap();
        context.poll(false);
    });
    recording.check().unwrap();
    let ways: Vec<_> = recording
        .records
        .iter()
        .filter_map(|record| match record.event {
            Event::Wake { lane, how } => Some((recording.name(lane), how)),
            _ => None,
        })
        .collect();
    let expected = [
        ("first", Wake::Immediate),
        ("waits", Wake::Deferred),
        ("wakes", Wake::AlreadyEntered),
        ("later", Wake::Scheduled),
    ];
    assert_eq!(ways, expected);
}

#[test]
fn text_rows_are_numbered_in_sequence() {
    // X14: rows are numbered without gaps; with every event shown, a row has its event's number
    let recording = traced(|context| {
        drop(spawn(|| {}));
        context.poll(false);
    });
    let numbers = |text: &str| {
        let first_words = text.lines().filter_map(|line| line.split_whitespace().next());
        first_words.filter_map(|word| word.parse().ok()).collect::<Vec<u64>>()
    };
    let rows = numbers(&recording.text());
    assert!(rows.len() < recording.records.len(), "some events are hidden");
    assert!(rows.iter().copied().eq(0..rows.len() as u64), "{}", recording.text());
    let all = numbers(&recording.text_with(TextOptions::everything()));
    assert!(all.iter().copied().eq(recording.records.iter().map(|record| record.number)));
}

#[test]
fn text_marks_a_coroutine_that_is_left_alone() {
    // C6, X14: a wake that does nothing is drawn with a cross, also if the coroutine wakes itself
    let recording = traced(|_context| {
        named("A", || {
            let a = Coroutine::current().unwrap();
            a.wake();
            named("B", move || _ = a.enter_unless_entered()).enter();
        })
        .enter();
    });
    let text = recording.text_with(TextOptions::default().without_legend());
    let rows: Vec<_> = text.lines().filter(|line| line.ends_with("A is entered: left alone")).collect();
    let [itself, other] = rows[..] else { panic!("{text}") };
    assert!(itself.contains("│       ●× ") && other.contains("│       ×·····●"), "{text}");
}

#[test]
fn log_nests_after_a_panic() {
    // C8: spans and coroutines that unwound are closed
    let recording = traced(|context| {
        context.schedule_oneshot(|| panic!("in a bottom half")).unwrap();
        let _ = catch_unwind(AssertUnwindSafe(|| context.poll(false))).unwrap_err();
        let left = named("left", suspend);
        left.enter();
    });
    recording.check().unwrap();
    let last = recording.records.iter().rfind(|record| !matches!(record.event, Event::Release)).unwrap();
    assert!(matches!(last.event, Event::End(_)), "{last:?}");
    let mut replay = Replay::of(&recording);
    recording.records.iter().for_each(|record| replay.apply(record).unwrap());
    assert!((0..recording.threads).all(|thread| replay.stack(thread).is_empty()));
}

#[test]
fn full_log_keeps_the_last_events() {
    // Trace: memory is bounded, and the remaining events still pass the check
    let trace = Trace::new(64);
    AioContext::builder()
        .trace(&trace)
        .run_coroutine(|_| (0..1000).for_each(|_| spawn(|| {}).join().unwrap()))
        .unwrap();
    let recording = trace.recording();
    assert_eq!(recording.records.len(), 64);
    assert!(recording.lost > 1000);
    assert_eq!(recording.records[0].number, recording.lost);
    recording.check().unwrap();
    assert!(recording.text().contains("events before these are lost"));
}

#[test]
fn two_contexts_share_one_log() {
    // W3: a wake from another thread, seen from both sides
    let trace = Trace::new(10_000);
    let here = AioContext::builder().trace(&trace);
    here.run_coroutine(|_| {
        let other = trace.clone();
        let (sender, receiver) = coralio_runtime::oneshot::channel();
        let thread = std::thread::spawn(move || {
            let run = |_: &AioContext| sender.send(7).unwrap();
            AioContext::builder().trace(&other).run_coroutine(run).unwrap();
        });
        assert_eq!(receiver.recv().unwrap(), 7);
        thread.join().unwrap();
    })
    .unwrap();
    let recording = trace.recording();
    recording.check().unwrap();
    assert_eq!(recording.threads, 2);
    let contexts: Vec<_> = recording.lanes.iter().map(|lane| lane.context).collect();
    assert_eq!(contexts, [0, 1]);
}

#[test]
fn program_adds_its_own_events() {
    // Trace: marks, and where they were made
    let recording = traced(|context| context.tracer().unwrap().mark("here"));
    let record = &recording.records[0];
    assert_eq!(record.event, Event::Mark("here".into()));
    assert!(record.at.unwrap().file().ends_with("trace.rs"));
}

#[test]
fn engine_events_are_rendered_whatever_their_values() {
    // Trace: a log is rendered when something has gone wrong, so no number of an engine stops it
    let recording = traced(|context| {
        let tracer = context.tracer().unwrap();
        tracer.counters(u32::MAX, u32::MAX, u32::MAX);
        tracer.request(0, RequestState::InFlight);
        tracer.request(1, RequestState::Done(i64::MIN));
        tracer.request(2, RequestState::Refused(i64::MIN));
    });
    let text = recording.text_with(TextOptions::everything());
    assert!(text.contains("done, errno 9223372036854775808") && text.contains("refused, errno"), "{text}");
    assert!(!recording.html().is_empty() && !recording.perfetto().is_empty());
}

/// Returns the times of the marks.
fn mark_times(recording: &Recording) -> Vec<Duration> {
    recording.records.iter().filter(|record| matches!(record.event, Event::Mark(_))).map(|record| record.time).collect()
}

#[test]
fn events_have_the_time_of_the_monotonic_clock() {
    // X14: the time between two events is the time that has passed
    let (mut within, mut around) = (Duration::ZERO, Duration::ZERO);
    let recording = traced(|context| {
        let tracer = context.tracer().unwrap();
        let outer = Instant::now();
        tracer.mark("begin");
        let inner = Instant::now();
        while inner.elapsed() < Duration::from_micros(50) {}
        within = inner.elapsed();
        tracer.mark("end");
        around = outer.elapsed();
    });
    let times = mark_times(&recording);
    assert!((within..=around).contains(&(times[1] - times[0])), "{times:?}: {within:?} to {around:?}");
    assert!(recording.records.windows(2).all(|pair| pair[0].time <= pair[1].time));
}

#[test]
fn events_have_virtual_times_under_a_virtual_clock() {
    // X14: the time of a context with a new clock continues that of the one before
    let trace = Trace::new(1000);
    for _ in 0..2 {
        let run = |context: &AioContext| {
            sleep(Duration::from_secs(5)).unwrap();
            context.tracer().unwrap().mark("slept");
        };
        AioContext::builder().virtual_clock(VirtualClock::new()).trace(&trace).run_coroutine(run).unwrap();
    }
    assert_eq!(mark_times(&trace.recording()), [5, 10].map(Duration::from_secs));
}

#[test]
fn text_and_page_show_no_times() {
    // X14: identical runs give identical pictures, byte for byte
    let run = || {
        traced(|_context| {
            let coroutine = named("one", suspend);
            coroutine.enter();
            coroutine.wake();
        })
    };
    let (first, second) = (run(), run());
    assert_eq!(first.text_with(TextOptions::everything()), second.text_with(TextOptions::everything()));
    assert_eq!(first.html(), second.html());
}
