//! Rule E10: a file's requests of which the kernel transfers only a part.

use std::fs;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;

use coralio::context::AioContext;
use coralio::engine::Engine;
use coralio::engine::scripted::ScriptedBackend;
use coralio::{File, spawn};

/// Runs `f` as a coroutine, with a file on a scripted disk.
fn with_file<T: 'static>(f: impl FnOnce(&ScriptedBackend, &File) -> T + 'static) -> T {
    AioContext::run(|_| {
        let backend = ScriptedBackend::new(8);
        let engine = Engine::<ScriptedBackend>::attach(backend.clone(), 8).unwrap();
        // The scripted backend does not use the descriptor.
        let file = File::with_engine(&engine, OwnedFd::from(fs::File::open("/dev/null").unwrap())).unwrap();
        spawn(move || f(&backend, &file)).join().unwrap()
    })
}

/// Checks that a write failed since the kernel accepted no more, and returns the message.
fn why(written: io::Result<usize>) -> String {
    let error = written.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WriteZero);
    error.to_string()
}

#[test]
fn write_of_which_nothing_is_accepted_fails() {
    // E10: a write that the kernel accepts in part, and then no further, is not a success
    with_file(|backend, file| {
        backend.shorten(0, 4);
        backend.set_result(1, 0);
        assert_eq!(why(file.write_at(&[7; 10], 3)), "short write: 4 of 10 bytes at offset 3");
        assert_eq!(backend.disk(), [0, 0, 0, 7, 7, 7, 7]);
        // The rest of a vectored write goes buffer by buffer.
        backend.set_result(2, 6);
        backend.set_result(3, 0);
        let buffers = [IoSlice::new(&[1; 4]), IoSlice::new(&[2; 4])];
        assert_eq!(why(file.write_vectored_at(&buffers, 8)), "short write: 0 of 2 bytes at offset 14");
        assert_eq!(backend.taken(), 4);
    });
}

#[test]
fn vectored_read_stops_at_the_end() {
    // E10: a vectored read that ends in the middle of a buffer leaves the buffers after it alone,
    // though the file may have grown meanwhile
    with_file(|backend, file| {
        backend.set_disk(&[5; 8]);
        backend.set_result(0, 2);
        backend.set_result(1, 0);
        let [mut one, mut two] = [[0; 4]; 2];
        assert_eq!(file.read_vectored_at(&mut [IoSliceMut::new(&mut one), IoSliceMut::new(&mut two)], 0).unwrap(), 2);
        assert_eq!((two, backend.taken()), ([0; 4], 2));
    });
}
