//! Programs that must not compile: guarantees of both crates that the compiler enforces.
//! `TRYBUILD=overwrite` updates the expected messages: those of the compiler that CI uses.
#![cfg(not(any(loom, feature = "sanitizer")))]

#[test]
#[ignore = "compiles the libraries again; CI runs it"]
fn unsound_programs_do_not_compile() {
    // C7, E9, E13, X8, S4: handles and guards stay on their thread; values that cross threads are
    // Send; scopes do not outlive their borrows; safe code cannot drive a backend without its engine
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
