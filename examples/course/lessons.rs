//! The lessons and the exhibits of the museum, run in this program.

use std::cell::RefCell;

use coralio::trace::Recording;

/// A file whose lines the page shows.
pub(crate) struct SourceFile {
    /// Its path within the folder `examples`.
    pub(crate) path: &'static str,
    pub(crate) text: &'static str,
}

impl SourceFile {
    /// Returns whether this is the lessons' common module.
    pub(crate) fn is_common(&self) -> bool {
        self.path == "lesson/mod.rs"
    }
}

/// A run, as the lesson shows it.
pub(crate) struct Act {
    pub(crate) title: String,
    pub(crate) recording: Recording,
    pub(crate) failure: Option<String>,
    /// What the lesson prints after it.
    pub(crate) said: String,
}

/// A lesson after its run.
pub(crate) struct Lesson {
    /// Its own file first.
    pub(crate) files: Vec<SourceFile>,
    pub(crate) acts: Vec<Act>,
}

impl Lesson {
    /// Returns the name of its folder.
    pub(crate) fn folder(&self) -> &'static str {
        self.files[0].path.split('/').next().unwrap_or_default()
    }
}

thread_local!(static SHOWN: RefCell<Vec<Act>> = const { RefCell::new(Vec::new()) });

fn take_act(title: &str, recording: &Recording, failure: Option<&str>) {
    let (title, recording, failure) = (title.into(), recording.clone(), failure.map(Into::into));
    SHOWN.with_borrow_mut(|acts| acts.push(Act { title, recording, failure, said: String::new() }));
}

fn take_text(text: &str) {
    SHOWN.with_borrow_mut(|acts| acts.last_mut().expect("a text after an act").said.push_str(text));
}

/// Declares the lessons: each with its file, and with the other files that it consists of.
macro_rules! lessons {
    ($($name:ident $path:literal [$($more:literal),*])*) => {
        $(#[path = $path] #[allow(dead_code, unreachable_pub)] mod $name;)*

        /// Runs all lessons.
        pub(crate) fn lessons() -> Vec<Lesson> {
            let mut lessons = Vec::new();
            $(
                $name::lesson::send_to($name::lesson::Sink { act: take_act, text: take_text });
                $name::main();
                let files = vec![file($path, include_str!($path)), $(file($more, include_str!($more))),*];
                lessons.push(Lesson { files, acts: SHOWN.take() });
            )*
            lessons
        }
    };
}

fn file(path: &'static str, text: &'static str) -> SourceFile {
    SourceFile { path: path.trim_start_matches("../"), text }
}

lessons! {
    enter_and_yield "../01_enter_and_yield/main.rs" []
    who_is_entered "../02_who_is_entered/main.rs" []
    bottom_halves "../03_bottom_halves/main.rs" []
    three_wakes "../04_three_wakes/main.rs" []
    a_lock "../05_a_lock/main.rs" []
    submit_to_reap "../06_submit_to_reap/main.rs" []
    reap_from_submit "../07_reap_from_submit/main.rs" []
    july_2016 "../08_july_2016/main.rs" []
    september_2016 "../09_september_2016/main.rs" ["../09_september_2016/schedule.rs"]
    the_fix "../10_the_fix/main.rs" ["../09_september_2016/schedule.rs"]
    nested_poll "../11_nested_poll/main.rs" []
    two_threads "../12_two_threads/main.rs" ["../lesson/mod.rs"]
    plug "../13_plug/main.rs" []
    crash_and_sync "../14_crash_and_sync/main.rs" []
    simulate "../15_simulate/main.rs" []
    cancel "../16_cancel/main.rs" []
}

#[path = "../museum/main.rs"]
#[allow(dead_code, unreachable_pub)]
mod museum;

/// An exhibit of the museum after its two runs.
pub(crate) struct Exhibit {
    pub(crate) when: &'static str,
    pub(crate) what: &'static str,
    pub(crate) workload: &'static str,
    /// Without the guard, and with it.
    pub(crate) acts: [Act; 2],
}

/// The museum's table.
pub(crate) const MATRIX: &str = include_str!("../museum/matrix.txt");

/// The files that the exhibits consist of.
pub(crate) fn museum_files() -> Vec<SourceFile> {
    vec![
        file("../museum/workloads.rs", include_str!("../museum/workloads.rs")),
        file("../09_september_2016/schedule.rs", include_str!("../09_september_2016/schedule.rs")),
        file("../lesson/mod.rs", include_str!("../lesson/mod.rs")),
    ]
}

/// Runs all exhibits.
pub(crate) fn exhibits() -> Vec<Exhibit> {
    museum::lesson::send_to(museum::lesson::Sink { act: take_act, text: take_text });
    let today = museum::versions::today();
    let versions = museum::versions::versions();
    let exhibit = |version: museum::versions::Version| {
        let index = today.workloads.iter().position(|workload| workload.name == version.bane).expect("each has one");
        let run = |title: &str, workload| {
            let museum::Outcome { recording, failure } = museum::run(workload);
            Act { title: title.into(), recording, failure, said: String::new() }
        };
        Exhibit {
            when: version.when,
            what: version.what,
            workload: version.workloads[index].what,
            acts: [
                run("With the guard out", &version.workloads[index]),
                run("With the guard in", &today.workloads[index]),
            ],
        }
    };
    versions.into_iter().map(exhibit).collect()
}
