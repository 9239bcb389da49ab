//! Opening files, and the context that a file belongs to.

use std::cell::RefCell;
use std::ffi::CString;
use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::rc::Rc;

use coralio::fs::Direct;
use coralio::task::OsCode;
use coralio::{AlignedBuf, File, RuntimeBuilder, spawn};

use crate::{Temp, aligned, disk, in_child, is_root, memory, on_each_backend, on_real_files};

#[test]
fn errors_name_the_file() {
    // E14: errors name the file that could not be opened, and the cause
    on_real_files(|place, direct| {
        let options = || File::options().read(true).direct(direct);
        let missing = Temp::at(place);
        let error = options().open(&missing.0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(error.os_code(), Some(libc::ENOENT));
        let name = missing.0.display().to_string();
        assert_eq!(error.to_string(), format!("cannot open {name}: No such file or directory (os error 2)"));

        fs::create_dir(&missing.0).unwrap();
        for options in [options(), options().write(true)] {
            let error = options.open(&missing.0).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::IsADirectory);
            assert_eq!(error.to_string(), format!("cannot open {name}: Is a directory (os error 21)"));
        }
        let error = File::options().write(true).create_new(true).direct(direct).open(&missing.0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    });
}

#[test]
fn missing_permission_is_an_error() {
    // E14: opening without permission is an error that names the file; in a child process as an
    // ordinary user, since root is always permitted
    if is_root() && in_child("opening::missing_permission_is_an_error") {
        return;
    }
    let temp = Temp::with(&disk(), b"secret");
    fs::set_permissions(&temp.0, Permissions::from_mode(0o000)).unwrap();
    if is_root() {
        // SAFETY: this process runs this test alone.
        assert_eq!(unsafe { libc::seteuid(65534) }, 0);
    }
    on_each_backend(|| {
        let error = File::open(&temp.0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        assert!(error.to_string().contains(&temp.0.display().to_string()), "{error}");
    });
    if std::env::var_os(crate::common::CHILD).is_some() {
        // SAFETY: as above. Root again, to be able to remove the file.
        assert_eq!(unsafe { libc::seteuid(0) }, 0);
    }
}

#[test]
fn closed_file_releases_its_descriptor() {
    // E13: a closed file is closed everywhere, whatever the kernel had registered: its lock is
    // released. Hangs if it is not
    on_each_backend(|| {
        for place in [disk(), memory()] {
            let temp = Temp::with(&place, &[7; 4096]);
            for detached in [false, true] {
                let locked = fs::File::open(&temp.0).unwrap();
                locked.lock().unwrap();
                let file = File::from_fd(OwnedFd::from(locked)).unwrap();
                // Often enough to be registered.
                for _ in 0..20 {
                    assert_eq!(file.read_at(&mut aligned(&[0; 4096]), 0).unwrap(), 4096);
                }
                if detached {
                    drop(file.detach())
                } else {
                    drop(file)
                }
                fs::File::open(&temp.0).unwrap().lock().unwrap();
            }
        }
    });
}

#[test]
fn options_create_truncate_and_set_the_mode() {
    // E15: the options behave as in std's OpenOptions; `create_new` also applies to the second
    // attempt of Direct::Auto, and the file is created once
    on_real_files(|place, direct| {
        let temp = Temp::at(place);
        let options = || File::options().read(true).write(true).direct(direct);
        options().create_new(true).mode(0o640).open(&temp.0).unwrap().write_at(b"twelve bytes", 0).unwrap();
        assert_eq!(temp.content(), b"twelve bytes");
        assert_eq!(fs::metadata(&temp.0).unwrap().permissions().mode() & 0o777 & !0o640, 0);
        assert_eq!(options().create_new(true).open(&temp.0).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(options().create(true).open(&temp.0).unwrap().len().unwrap(), 12);
        assert_eq!(options().truncate(true).open(&temp.0).unwrap().len().unwrap(), 0);
    });
}

#[test]
fn descriptor_is_used_with_its_flags() {
    // E15: `from_fd` keeps the descriptor as it is: direct if it was opened so, and then without
    // the page cache as an alternative
    let temp = Temp::with(&disk(), &[5; 8192]);
    on_each_backend(|| {
        let open = |flags| fs::OpenOptions::new().read(true).custom_flags(flags).open(&temp.0);
        let cached = File::from_fd(OwnedFd::from(open(0).unwrap())).unwrap();
        assert!(!cached.is_direct());
        let mut odd = [0; 100];
        cached.read_exact_at(&mut odd, 1).unwrap();
        assert_eq!(odd, [5; 100]);
        let Ok(direct) = open(libc::O_DIRECT) else { return println!("skipped: no direct I/O here") };
        let direct = File::from_fd(OwnedFd::from(direct)).unwrap();
        assert!(direct.is_direct());
        direct.read_exact_at(&mut AlignedBuf::new(8192, 4096), 0).unwrap();
        let error = direct.read_exact_at(&mut odd, 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("direct I/O"), "{error}");
    });
}

#[test]
fn appending_descriptor_appends() {
    // E15: with O_APPEND the offset of a write is ignored, as by pwrite on Linux
    on_real_files(|place, _| {
        let temp = Temp::with(place, b"begin");
        let open = fs::OpenOptions::new().read(true).append(true).open(&temp.0).unwrap();
        let file = File::from_fd(open.into()).unwrap();
        file.write_at(b", end", 0).unwrap();
        assert_eq!(temp.content(), b"begin, end");
    });
}

/// Returns the flags of this process's descriptors of the file at `path`.
fn flags_of_descriptors(path: &Path) -> Vec<i32> {
    let all = fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap());
    let of_file = all.filter(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == path));
    let flags = of_file.map(|entry| {
        let info = fs::read_to_string(Path::new("/proc/self/fdinfo").join(entry.file_name())).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        i32::from_str_radix(flags.trim(), 8).unwrap()
    });
    flags.collect()
}

#[test]
fn second_descriptor_keeps_the_flags() {
    // E15: the page-cache descriptor of Direct::Auto has the first one's access mode, its
    // `O_APPEND`, `O_SYNC` and `O_DSYNC`, and no more
    on_each_backend(|| {
        let temp = Temp::with(&disk(), &[5; 8192]);
        let read_only = File::open(&temp.0).unwrap();
        read_only.read_exact_at(&mut [0; 3], 5).unwrap();
        assert_eq!(read_only.write_at(b"odd", 1).unwrap_err().os_code(), Some(libc::EBADF));
        let write_only = File::options().write(true).open(&temp.0).unwrap();
        write_only.write_at(b"odd", 1).unwrap();
        assert!(write_only.read_at(&mut [0; 3], 1).is_err());
        assert_eq!(temp.content()[..5], [5, b'o', b'd', b'd', 5]);
        // It is the same file, even after its name was removed.
        let unlinked = Temp::with(&disk(), &[6; 8192]);
        let file = unlinked.open(Direct::Auto);
        fs::remove_file(&unlinked.0).unwrap();
        file.write_at(b"odd", 1).unwrap();
        let mut back = AlignedBuf::new(4096, 4096);
        file.read_exact_at(&mut back, 0).unwrap();
        assert_eq!(back[..5], [6, b'o', b'd', b'd', 6]);
        // Writes through it are as durable, and go to the same place.
        for kept in [libc::O_SYNC, libc::O_DSYNC, libc::O_APPEND] {
            let temp = Temp::with(&disk(), &[7; 8192]);
            let file = File::options().read(true).write(true).custom_flags(kept).open(&temp.0).unwrap();
            file.write_at(b"odd", 1).unwrap();
            let flags = flags_of_descriptors(&temp.0);
            assert_eq!(flags.len(), 1 + usize::from(file.is_direct()));
            let expected = kept | libc::O_CLOEXEC;
            assert!(flags.iter().all(|flags| flags & expected == expected), "{flags:x?} without {expected:#x}");
        }
    });
}

#[test]
fn file_of_another_context_is_rejected() {
    // E13, E14: a file used after its context's end, or in a later context, is an error and not
    // undefined behaviour
    let temp = Temp::with(&memory(), &[1; 4096]);
    let kept = Rc::new(RefCell::new(None));
    on_each_backend(|| {
        let file = temp.open(Direct::Auto);
        file.read_exact_at(&mut [0; 10], 0).unwrap();
        kept.replace(Some(file));
    });
    on_each_backend(|| {
        let file = kept.take().unwrap();
        for error in [file.read_at(&mut [0; 10], 0).unwrap_err(), file.sync_all().unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::NotConnected);
            let message = error.to_string();
            assert!(message.contains("belongs to a context that has ended"), "{message}");
            assert!(message.contains("open the file in the context that uses it"), "{message}");
        }
        // A new file on the same descriptor belongs to this context.
        let again = File::from_fd(file.as_fd().try_clone_to_owned().unwrap()).unwrap();
        again.read_exact_at(&mut aligned(&[0; 4096]), 0).unwrap();
        kept.replace(Some(file));
    });
    let file = kept.take().unwrap();
    assert_eq!(file.write_at(&[0; 10], 0).unwrap_err().kind(), ErrorKind::NotConnected);
    assert_eq!(temp.content(), [1; 4096]);
}

#[test]
fn file_can_be_dropped_with_requests_in_flight_elsewhere() {
    // E13: dropping a file does not affect other files open on the same path, which have their own
    // descriptors
    RuntimeBuilder::new()
        .queue_depth(4)
        .run(|| {
            let temp = Temp::with(&disk(), &[3; 64 * 1024]);
            let readers: Vec<_> = (0..16)
                .map(|number| {
                    let file = temp.open(Direct::Auto);
                    spawn(move || {
                        let mut buf = aligned(&[0; 4096]);
                        file.read_exact_at(&mut buf, number * 4096).unwrap();
                        assert!(buf.iter().all(|&byte| byte == 3));
                    })
                })
                .collect();
            readers.into_iter().for_each(|reader| reader.join().unwrap());
        })
        .unwrap();
}

#[test]
fn path_that_is_no_file_is_refused_at_once() {
    // E14, E18: an open of a FIFO without another end, of a socket or of a terminal returns an error,
    // and does not wait or let the other end continue
    on_each_backend(|| {
        let (fifo, socket) = (Temp::at(&memory()), Temp::at(&memory()));
        let name = CString::new(fifo.0.as_os_str().as_bytes()).unwrap();
        // SAFETY: the name is a C string.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        let _bound = UnixListener::bind(&socket.0).unwrap();
        for path in [&fifo.0, &socket.0, Path::new("/dev/ptmx")] {
            for direct in [Direct::Auto, Direct::Never] {
                let options = || File::options().direct(direct);
                for options in [options().read(true), options().write(true), options().write(true).create(true)] {
                    let error = options.open(path).unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
                    assert!(error.to_string().contains("it has no offsets"), "{error}");
                }
            }
            let error = File::options().write(true).create_new(true).open(path).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        }
    });
}

#[test]
fn opened_file_blocks_as_usual() {
    // E15: the descriptor has the flags that were asked for, and no others
    on_real_files(|place, direct| {
        let temp = Temp::with(place, &[1; 4096]);
        let options = || File::options().read(true).write(true).direct(direct);
        for options in [options(), options().create(true), options().truncate(true)] {
            for asked in [0, libc::O_NONBLOCK] {
                let file = options.clone().custom_flags(asked).open(&temp.0).unwrap();
                // SAFETY: takes no pointers.
                let flags = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_GETFL) };
                assert_eq!(flags & libc::O_NONBLOCK, asked);
            }
        }
    });
}
