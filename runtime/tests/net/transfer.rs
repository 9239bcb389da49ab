//! sendfile and splice: all bytes, waits for the right descriptor, ends of files.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;

use coralio_runtime::{AioContext, Cancelled, CoFd, net::splice, spawn, spawn_now};

/// Returns a file of this content, which has no name.
fn file(test: &str, content: &[u8]) -> File {
    let path = std::env::temp_dir().join(format!("coralio-net-{test}-{}", std::process::id()));
    let mut file = File::options().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    file.write_all(content).unwrap();
    file
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| ((at * 7) >> 2) as u8).collect()
}

#[test]
fn sendfile_sends_all_to_a_slow_reader() {
    // N7: more than the socket holds is sent while the coroutine waits for space; the range ends at
    // the end of the file; other coroutines run meanwhile
    const LEN: usize = 4 << 20;
    AioContext::run(|ctx| {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let source = file("sendfile", &pattern(LEN));
        let sender = spawn_now(move || {
            let ours = CoFd::new(ours).unwrap();
            [ours.sendfile(&source, 5, u64::MAX), ours.sendfile(&source, 2, 3), ours.sendfile(&source, 1 << 40, 9)]
                .map(Result::unwrap)
        });
        while ctx.poll(false) {}
        assert!(!sender.is_finished());
        let reader = thread::spawn(move || {
            let mut all = Vec::new();
            theirs.read_to_end(&mut all).map(|_| all)
        });
        assert_eq!(sender.join().unwrap(), [LEN as u64 - 5, 3, 0]);
        let all = reader.join().unwrap().unwrap();
        let expected = pattern(LEN);
        assert!(all[..LEN - 5] == expected[5..] && all[LEN - 5..] == expected[2..5]);
    });
}

#[test]
fn sendfile_fails_on_cancel_and_on_a_closed_socket() {
    // N7: a wait for space can be cancelled; a closed peer is the kernel's error
    AioContext::run(|ctx| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let source = file("closed", &pattern(4 << 20));
        let sender = spawn_now(move || {
            let ours = CoFd::new(ours).unwrap();
            let cancelled = ours.sendfile(&source, 0, u64::MAX).unwrap_err();
            (ours, source, cancelled)
        });
        while ctx.poll(false) {}
        sender.cancel();
        let (ours, source, cancelled) = sender.join().unwrap();
        assert!(Cancelled::is_cause_of(&cancelled), "{cancelled}");
        drop(theirs);
        let closed = spawn(move || ours.sendfile(&source, 0, 1).unwrap_err());
        assert_eq!(closed.join().unwrap().kind(), ErrorKind::BrokenPipe);
    });
}

#[test]
fn splice_moves_a_stream_through_a_pipe() {
    // N7: from socket to pipe to socket, through waits for data and for space on both sides, each
    // byte arrives, and then the end
    const LEN: usize = 4 << 20;
    AioContext::run(|_ctx| {
        let ((mut source, from), (to, mut target)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        let (pipe_end, pipe_start) = rustix::pipe::pipe().unwrap();
        let into_pipe = spawn(move || {
            let (from, pipe) = (CoFd::new(from).unwrap(), CoFd::new(pipe_start).unwrap());
            while splice(&from, &pipe, 1 << 20).unwrap() > 0 {}
        });
        let out_of_pipe = spawn(move || {
            let (pipe, to) = (CoFd::new(pipe_end).unwrap(), CoFd::new(to).unwrap());
            while splice(&pipe, &to, 1 << 20).unwrap() > 0 {}
        });
        let writer = thread::spawn(move || source.write_all(&pattern(LEN)).unwrap());
        let reader = thread::spawn(move || {
            let mut all = Vec::new();
            target.read_to_end(&mut all).map(|_| all)
        });
        into_pipe.join().unwrap();
        out_of_pipe.join().unwrap();
        writer.join().unwrap();
        assert!(reader.join().unwrap().unwrap() == pattern(LEN));
    });
}

#[test]
fn splice_waits_for_the_descriptor_that_would_block() {
    // N7: with data and no space it waits for space, also if more data arrives; with space and no
    // data for data
    AioContext::run(|ctx| {
        let (mut source, from) = UnixStream::pair().unwrap();
        let (pipe_end, pipe_start) = rustix::pipe::pipe().unwrap();
        let mut pipe_end = File::from(pipe_end);
        let pipe = CoFd::new(File::from(pipe_start)).unwrap();
        let mut filled = 0;
        while let Ok(count) = pipe.get_ref().write(&[0; 4096]) {
            filled += count;
        }
        source.write_all(b"one").unwrap();
        let mover = spawn_now(move || {
            let from = CoFd::new(from).unwrap();
            [splice(&from, &pipe, 100), splice(&from, &pipe, 100)].map(Result::unwrap)
        });
        source.write_all(b"two").unwrap();
        while ctx.poll(false) {}
        pipe_end.read_exact(&mut vec![0; filled]).unwrap();
        let mut word = [0; 6];
        while ctx.poll(false) {}
        pipe_end.read_exact(&mut word).unwrap();
        assert_eq!(&word, b"onetwo");
        assert!(!mover.is_finished(), "the second one waits for data");
        drop(source);
        assert_eq!(mover.join().unwrap(), [6, 0]);
        let refused = spawn(|| {
            let (one, other) = UnixStream::pair().unwrap();
            splice(&CoFd::new(&one).unwrap(), &CoFd::new(&other).unwrap(), 1).unwrap_err()
        });
        assert_eq!(refused.join().unwrap().kind(), ErrorKind::InvalidInput);
    });
}
