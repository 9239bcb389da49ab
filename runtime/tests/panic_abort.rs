//! Programs built with `panic = "abort"`: `examples/left_over.rs`, built that way in its own target
//! directory. The first build takes some seconds, since it includes all dependencies.

use std::path::Path;
use std::process::{Command, Output};

/// Builds the example that way, and runs it.
fn left_over() -> Output {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("panic_abort");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--example", "left_over", "--manifest-path"]);
    cargo.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"));
    cargo.arg("--config").arg("profile.dev.panic=\"abort\"").arg("--target-dir").arg(&target);
    // Removes the checkers' compiler flags from this build: sanitizers need unwinding, and loom needs
    // its own sources.
    for flags in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET"] {
        cargo.env_remove(flags);
    }
    let built = cargo.status().expect("cargo runs this test, and so can run");
    assert!(built.success(), "the example is not built");
    Command::new(target.join("debug/examples/left_over")).output().expect("the built example runs")
}

#[test]
#[ignore = "compiles the library again; CI runs it"]
fn leftover_coroutines_are_leaked_and_never_run() {
    // C9: with panic = "abort", remaining coroutines are leaked, with a message; their handles
    // report that they have ended, even in a later context of the thread, and they never run again
    let run = left_over();
    let (out, said) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{}\n{out}\n{said}", run.status);
    assert_eq!(
        out,
        "unwound: 0\n(ended): cannot enter a coroutine: it has ended\n(ended): cannot enter a coroutine: it has ended\n\
         joined: true\nanother: 7\nwent on: 0\n"
    );
    assert!(
        said.contains(
            "context ended with 3 suspended coroutines, leaking them: with panic = \"abort\" no stack can be"
        ),
        "{said}"
    );
}
