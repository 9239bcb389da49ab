//! Programs that must not compile. `TRYBUILD=overwrite` updates the expected compiler messages.
#![cfg(not(any(loom, feature = "sanitizer")))]

#[test]
fn unsound_programs_do_not_compile() {
    // E9, E13: safe code cannot drive a backend without its engine
    if std::env::var_os("CORALIO_TEST_DIVISOR").is_some() {
        return eprintln!("skipped: under a checker, the compiler would be checked too");
    }
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
