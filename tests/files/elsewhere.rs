//! A file whose context has ended, used in later contexts of its thread (rule E12), and the first
//! use of a file's second descriptor.

use std::fs;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Seek, SeekFrom, Write};
use std::rc::Rc;

use coralio::context::AioContext;
use coralio::driver::BackendKind;
use coralio::fs::{Advice, Direct, FileCursor, WriteFlags, copy_file_range};
use coralio::{AlignedBuf, File, RuntimeBuilder, run, spawn};

use crate::{Temp, disk, in_child};

/// Returns the error kind of each operation of a file, by name.
fn errors(file: &File) -> Vec<(&'static str, Option<ErrorKind>)> {
    fn kind<T>(result: io::Result<T>) -> Option<ErrorKind> {
        result.err().map(|error| error.kind())
    }
    let mut buf = AlignedBuf::new(4096, 4096);
    let mut stream = FileCursor::new(file);
    vec![
        ("read", kind(file.read_at(&mut buf, 0))),
        ("unaligned read", kind(file.read_at(&mut [0; 3], 1))),
        ("empty read", kind(file.read_at(&mut [], 0))),
        ("exact read", kind(file.read_exact_at(&mut buf, 0))),
        ("write", kind(file.write_at(&buf, 0))),
        ("unaligned write", kind(file.write_at(&[1; 3], 1))),
        ("empty write", kind(file.write_at(&[], 0))),
        ("vectored read", kind(file.read_vectored_at(&mut [IoSliceMut::new(&mut [0; 3])], 0))),
        ("vectored write", kind(file.write_vectored_at(&[IoSlice::new(&[1; 3])], 0))),
        ("empty vectored write", kind(file.write_vectored_at(&[], 0))),
        ("sync_data", kind(file.sync_data())),
        ("sync_all", kind(file.sync_all())),
        ("metadata", kind(file.metadata())),
        ("len", kind(file.len())),
        ("is_empty", kind(file.is_empty())),
        ("set_len", kind(file.set_len(4096))),
        ("allocate", kind(file.allocate(0, 4096))),
        ("discard", kind(file.discard(0, 4096))),
        ("zero_range", kind(file.zero_range(0, 4096))),
        ("try_clone", kind(file.try_clone())),
        ("to_std", kind(file.to_std())),
        ("next_data", kind(file.next_data(0))),
        ("next_hole", kind(file.next_hole(0))),
        ("advise", kind(file.advise(0, 0, Advice::WillNeed))),
        ("copy", kind(copy_file_range(file, 0, file, 4096, 10))),
        ("write with flags", kind(file.write_at_with(&buf, 0, WriteFlags::DSYNC))),
        ("unaligned write with flags", kind(file.write_at_with(&[1; 3], 1, WriteFlags::DSYNC))),
        ("lock", kind(file.lock())),
        ("lock_shared", kind(file.lock_shared())),
        ("try_lock", kind(file.try_lock().map_err(io::Error::from))),
        ("try_lock_shared", kind(file.try_lock_shared().map_err(io::Error::from))),
        ("unlock", kind(file.unlock())),
        ("drain", kind(file.drain())),
        ("stream read", kind(stream.read(&mut [0; 3]))),
        ("stream write", kind(stream.write(&[1; 3]))),
        ("stream seek", kind(stream.seek(SeekFrom::End(0)))),
    ]
}

#[test]
fn file_of_an_ended_context_rejects_every_operation() {
    // E12: every operation of a file fails in the thread's next context, with and without an engine
    // there
    for backend in [BackendKind::Auto, BackendKind::Aio, BackendKind::Uring, BackendKind::Threads] {
        for direct in [Direct::Auto, Direct::Never] {
            let temp = Temp::at(&disk());
            let open = || {
                // Makes no request, so that the context creates no engine after the first.
                File::options().read(true).write(true).direct(direct).open(&temp.0)
            };
            fs::write(&temp.0, [7; 8192]).unwrap();
            let opened = RuntimeBuilder::new().backend(backend).run(open);
            let file = match opened {
                Ok(file) => file.unwrap(),
                Err(error) => {
                    eprintln!("skipped: {error}");
                    continue;
                }
            };
            let expect_refused = || {
                for (operation, error) in errors(&file) {
                    assert_eq!(error, Some(ErrorKind::NotConnected), "{operation} on {backend} with {direct:?}");
                }
            };
            run(expect_refused);
            run(|| {
                let _own = File::open(&temp.0).unwrap();
                expect_refused();
            });
            // No operation took effect.
            assert!(fs::read(&temp.0).unwrap() == [7; 8192]);
        }
    }
}

#[test]
fn first_unaligned_requests_open_one_descriptor() {
    // E14: sixteen unaligned requests started together open one descriptor, with one left
    if in_child("elsewhere::first_unaligned_requests_open_one_descriptor") {
        return;
    }
    let temp = Temp::at(&disk());
    fs::write(&temp.0, [7; 8192]).unwrap();
    let context = AioContext::builder().report_deadlocks_after(None);
    let ran = RuntimeBuilder::new().context(context).backend(BackendKind::Threads).run(|| {
        let file = Rc::new(File::open(&temp.0).unwrap());
        if !file.is_direct() {
            return eprintln!("skipped: no direct I/O in {}", disk().display());
        }
        leave_one_descriptor();
        let readers: Vec<_> = (0..16)
            .map(|number| {
                let file = Rc::clone(&file);
                spawn(move || {
                    let mut buf = [0; 3];
                    file.read_exact_at(&mut buf, number * 3 + 1).map(|()| buf)
                })
            })
            .collect();
        for reader in readers {
            assert_eq!(reader.join().unwrap().unwrap(), [7; 3]);
        }
    });
    ran.unwrap();
}

/// Lowers the limit so that exactly one more descriptor can be opened.
fn leave_one_descriptor() {
    use std::os::fd::AsRawFd;
    let lowest_free = fs::File::open("/dev/null").unwrap().as_raw_fd();
    let limit = libc::rlimit { rlim_cur: lowest_free as u64 + 1, rlim_max: lowest_free as u64 + 1 };
    // SAFETY: the structure outlives the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
}
