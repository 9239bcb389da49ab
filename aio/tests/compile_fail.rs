//! Programs that must not compile: guarantees of both crates that the compiler enforces.
//! `TRYBUILD=overwrite` updates the expected messages.
#![cfg(not(any(loom, feature = "sanitizer")))]

#[test]
fn unsound_programs_do_not_compile() {
    // C7, E9, E13, X8, S4: handles and guards stay on their thread; values that cross threads are
    // Send; scopes do not outlive their borrows; safe code cannot drive a backend without its engine
    if std::env::var_os("CORALIO_TEST_DIVISOR").is_some() {
        return eprintln!("skipped: under a checker, the compiler would be checked too");
    }
    if std::env::var_os("CORALIO_TEST_OLD_COMPILER").is_some() {
        return eprintln!("skipped: the expected messages are those of a newer compiler");
    }
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
