//! Programs built with `panic = "abort"`: `examples/left_over.rs`, built so in a target folder of its own. The first
//! time that takes some seconds, for all that it depends on is built.

use std::path::Path;
use std::process::{Command, Output};

/// Builds the example so, and runs it.
fn left_over() -> Output {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("panic_abort");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--example", "left_over", "--manifest-path"]);
    cargo.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"));
    cargo.arg("--config").arg("profile.dev.panic=\"abort\"").arg("--target-dir").arg(&target);
    // What checkers want of the tests is not for this build: sanitizers go with unwinding, and loom with its own sources.
    for flags in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET"] {
        cargo.env_remove(flags);
    }
    let built = cargo.status().expect("cargo runs this test, and so can run");
    assert!(built.success(), "the example is not built");
    Command::new(target.join("debug/examples/left_over")).output().expect("what was built runs")
}

#[test]
fn left_over_coroutines_are_leaked_and_never_run() {
    // C9: with panic = "abort" coroutines that are left over are leaked, which is said; their handles say that they have
    // ended, also in a later context of the thread, and nothing of theirs ever runs
    let run = left_over();
    let (out, said) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{}\n{out}\n{said}", run.status);
    assert_eq!(
        out,
        "unwound: 0\n(ended): cannot enter a coroutine that has ended\n(ended): cannot enter a coroutine that has ended\n\
         joined: true\nanother: 7\nwent on: 0\n"
    );
    assert!(
        said.contains("a context ended with 3 suspended coroutines; with panic = \"abort\" they cannot be"),
        "{said}"
    );
}
