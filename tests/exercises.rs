//! The exercises of the course: their judges accept the solutions, and refuse each wrong one that
//! a reader is likely to write.

#[path = "../examples/exercises/judge/mod.rs"]
mod judge;

use std::fs;
use std::path::Path;

use judge::Judged;

#[path = "../examples/exercises/solutions/08_cancel.rs"]
mod cancel;
#[path = "../examples/exercises/solutions/03_channel.rs"]
mod channel;
#[path = "../examples/exercises/solutions/01_event.rs"]
mod event;
#[path = "../examples/exercises/solutions/10_log.rs"]
mod log;
#[path = "../examples/exercises/solutions/02_mutex.rs"]
mod mutex;
#[path = "../examples/exercises/solutions/04_once.rs"]
mod once;
#[path = "../examples/exercises/solutions/07_plug.rs"]
mod plug;
#[path = "../examples/exercises/solutions/05_reap.rs"]
mod reap;
#[path = "../examples/exercises/solutions/09_save.rs"]
mod save;
#[path = "../examples/exercises/solutions/06_submit.rs"]
mod submit;
#[path = "../examples/exercises/wrong/08_cancel.rs"]
mod wrong_cancel;
#[path = "../examples/exercises/wrong/03_channel.rs"]
mod wrong_channel;
#[path = "../examples/exercises/wrong/01_event.rs"]
mod wrong_event;
#[path = "../examples/exercises/wrong/10_log.rs"]
mod wrong_log;
#[path = "../examples/exercises/wrong/02_mutex.rs"]
mod wrong_mutex;
#[path = "../examples/exercises/wrong/04_once.rs"]
mod wrong_once;
#[path = "../examples/exercises/wrong/07_plug.rs"]
mod wrong_plug;
#[path = "../examples/exercises/wrong/05_reap.rs"]
mod wrong_reap;
#[path = "../examples/exercises/wrong/09_save.rs"]
mod wrong_save;
#[path = "../examples/exercises/wrong/06_submit.rs"]
mod wrong_submit;

const FILES: [&str; 10] = [
    "01_event.rs",
    "02_mutex.rs",
    "03_channel.rs",
    "04_once.rs",
    "05_reap.rs",
    "06_submit.rs",
    "07_plug.rs",
    "08_cancel.rs",
    "09_save.rs",
    "10_log.rs",
];

fn accepts(judged: Judged) {
    if let Err(refusal) = judged {
        panic!("{}\n{}\n{}", refusal.picture, refusal.failure, refusal.tape);
    }
}

/// Expects a failure with these words, and a picture.
fn refuses(judged: Judged, why: &str) {
    let refusal = judged.expect_err(why);
    assert!(refusal.failure.contains(why), "expected {why:?}: {}\n{}", refusal.failure, refusal.picture);
    assert!(refusal.picture.contains("enters main") && !refusal.tape.is_empty(), "{}", refusal.picture);
    assert!(refusal.log.contains("CRASH") || !why.contains("crash"), "{}", refusal.log);
    println!("{} rows, {}", refusal.picture.lines().count(), refusal.failure);
}

const STUCK: &str = "and nothing will wake them";

#[test]
fn exercise_01_event() {
    // W3, C6: a wait ends when the event was set, not before, however the coroutine is entered
    accepts(judge::event::is_correct::<event::MyEvent>());
    refuses(judge::event::is_correct::<wrong_event::ChecksOnce>(), "before the event was set");
    refuses(judge::event::is_correct::<wrong_event::MissesThePast>(), STUCK);
    refuses(judge::event::is_correct::<wrong_event::WakesOne>(), STUCK);
}

#[test]
fn exercise_02_mutex() {
    // S1: one coroutine at a time, and all of them get the lock
    accepts(judge::mutex::is_correct::<mutex::MyMutex>());
    accepts(judge::mutex::is_correct::<mutex::PassedOn>());
    refuses(judge::mutex::is_correct::<wrong_mutex::ChecksOnce>(), "has got the lock while");
    refuses(judge::mutex::is_correct::<wrong_mutex::WakesOne>(), STUCK);
    refuses(judge::mutex::is_correct::<wrong_mutex::NeverFree>(), STUCK);
    refuses(judge::mutex::is_correct::<wrong_mutex::WakesNone>(), STUCK);
}

#[test]
fn exercise_03_channel() {
    // S4: every value arrives once, and no more are under way than there is room for
    accepts(judge::channel::is_correct::<channel::MyChannel>());
    refuses(judge::channel::is_correct::<wrong_channel::ReceivesWithIf>(), "from an empty channel");
    refuses(judge::channel::is_correct::<wrong_channel::SendsWithIf>(), "the channel is to hold 1");
    refuses(judge::channel::is_correct::<wrong_channel::WakesNoSender>(), STUCK);
    refuses(judge::channel::is_correct::<wrong_channel::Unbounded>(), "the channel is to hold 1");
}

#[test]
fn exercise_04_once() {
    // S3: computed once, and readers do not exclude each other
    accepts(judge::once::is_correct(once::get_or_compute));
    refuses(judge::once::is_correct(wrong_once::keeps_reading), STUCK);
    refuses(judge::once::is_correct(wrong_once::checks_once), "computed a second time");
    refuses(judge::once::is_correct(wrong_once::computes_first), "computed a second time");
    refuses(judge::once::is_correct(wrong_once::always_writes), STUCK);
}

#[test]
fn exercise_05_reap() {
    // E5, H4: a nested reap finds the rest on the ring, and the count is right when a coroutine runs
    accepts(judge::reap::is_correct(reap::reap));
    refuses(judge::reap::is_correct(wrong_reap::in_a_batch), "does not find their completions");
    refuses(judge::reap::is_correct(wrong_reap::counts_late), "the queue looks full");
    refuses(judge::reap::is_correct(wrong_reap::advances_late), "completed twice");
    refuses(judge::reap::is_correct(wrong_reap::only_one), "still on the ring");
}

#[test]
fn exercise_06_submit() {
    // E2, H5, H6: every request is accepted once, or fails by its own fault
    accepts(judge::submit::is_correct(submit::submit));
    refuses(judge::submit::is_correct(wrong_submit::forgets_the_tail), "is lost");
    refuses(judge::submit::is_correct(wrong_submit::fails_all), "nothing is wrong with it");
    refuses(judge::submit::is_correct(wrong_submit::fails_when_busy), "nothing is wrong with it");
    refuses(judge::submit::is_correct(wrong_submit::stays_at_the_error), "is lost");
}

#[test]
fn exercise_07_plug() {
    // E3, H7: requests gather while there is a plug, and no longer
    accepts(judge::plug::is_correct::<plug::MyQueue>());
    refuses(judge::plug::is_correct::<wrong_plug::DropSubmits>(), "1 of 1 requests were submitted, and 0 should");
    refuses(judge::plug::is_correct::<wrong_plug::LoopIgnoresPlugs>(), "1 of 1 requests were submitted, and 0 should");
    refuses(judge::plug::is_correct::<wrong_plug::OnePlugOnly>(), "1 of 1 requests were submitted, and 0 should");
    refuses(judge::plug::is_correct::<wrong_plug::CountsInOneBranch>(), "0 of 1 requests were submitted");
    refuses(judge::plug::is_correct::<wrong_plug::IgnoresFull>(), "0 of 3 requests were submitted");
}

#[test]
fn exercise_08_cancel() {
    // E11, S10: a permit is given back once, however its holder ends
    accepts(judge::cancel::is_correct(cancel::with_permit));
    refuses(judge::cancel::is_correct(wrong_cancel::loses_it_on_errors), STUCK);
    refuses(judge::cancel::is_correct(wrong_cancel::returns_what_it_has_not), "that it does not have");
    refuses(judge::cancel::is_correct(wrong_cancel::drops_it_early), "has no permit");
    refuses(judge::cancel::is_correct(wrong_cancel::loses_it_on_panics), STUCK);
}

#[test]
fn exercise_09_save() {
    // E20: after a crash the contents are old or new, and new if that was acknowledged
    accepts(judge::save::is_correct(save::save));
    refuses(judge::save::is_correct(wrong_save::in_place), "neither the old nor the new");
    refuses(judge::save::is_correct(wrong_save::without_the_contents), "neither the old nor the new");
    refuses(judge::save::is_correct(wrong_save::without_the_name), "the contents are the old ones");
    refuses(judge::save::is_correct(wrong_save::syncs_late), "neither the old nor the new");
}

#[test]
fn exercise_10_log() {
    // E17: after a crash and a recovery a pair is old or new, and new if that was acknowledged
    accepts(judge::log::is_correct::<log::MyPair>());
    refuses(judge::log::is_correct::<wrong_log::LogNotSynced>(), "after the crash and the recovery");
    refuses(judge::log::is_correct::<wrong_log::DataNotSynced>(), "after the crash and the recovery");
    refuses(judge::log::is_correct::<wrong_log::NoChecksum>(), "after the crash and the recovery");
    refuses(judge::log::is_correct::<wrong_log::NoLog>(), "after the crash and the recovery");
}

#[test]
fn exercises_are_complete() {
    // Checks that each exercise is in the README, and has a solution without holes and at least two
    // wrong ones. Its own file may have been solved by a reader
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/exercises");
    let read = |path: &str| fs::read_to_string(folder.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    let course = read("README.md");
    for (number, file) in (1..).zip(FILES) {
        let (exercise, wrong) = (read(file), read(&format!("wrong/{file}")));
        assert!(exercise.starts_with(&format!("//! Exercise {number}. ")), "{file}");
        assert!(!read(&format!("solutions/{file}")).contains("todo!"), "{file}");
        assert!(wrong.lines().filter(|line| line.trim_start().starts_with("///")).count() >= 2, "{file}");
        assert!(course.contains(&format!("({file})")), "{file}");
    }
}
