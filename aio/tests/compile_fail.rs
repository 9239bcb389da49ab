//! Programs that must not compile. `TRYBUILD=overwrite` writes the compiler's messages anew.
#![cfg(not(any(loom, feature = "sanitizer")))]

#[test]
fn unsound_programs_do_not_compile() {
    // E9, E13: safe code cannot drive a kernel behind an engine's back
    if std::env::var_os("CORALIO_TEST_DIVISOR").is_some() {
        return eprintln!("skipped: under a checker, the compiler would be checked too");
    }
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
