//! Limits of the machine: full disks, file-size limits, failing devices. A short write never counts
//! as success (rule E10).

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use coralio::fs::Direct;
use coralio::task::OsCode;
use coralio::{AlignedBuf, File};

use crate::ends::Loop;
use crate::{Temp, aligned, disk, in_child, is_root, on_each_backend, pattern, tool};

/// A tmpfs of 1 MiB, unmounted on drop.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn new() -> Option<SmallDisk> {
        if !is_root() {
            println!("skipped: to mount takes root");
            return None;
        }
        let path = Temp::at(&disk()).0.clone();
        fs::create_dir(&path).unwrap();
        let small = SmallDisk(path);
        tool("mount", &["-t", "tmpfs", "-o", "size=1M", "tmpfs", small.0.to_str()?])?;
        Some(small)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        tool("umount", &[self.0.to_str().unwrap()]);
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn full_disk_is_reported() {
    // E10, E14: a write to a full disk is continued after a short write, and fails with the
    // kernel's reason
    let Some(small) = SmallDisk::new() else { return };
    for direct in [Direct::Auto, Direct::Never] {
        on_each_backend(|| {
            let temp = Temp::at(&small.0);
            let file = temp.open(direct);
            let data = pattern(1, 3 << 19);
            let error = file.write_at(&data, 0).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::StorageFull);
            let message = error.to_string();
            assert!(message.contains("No space left on device"), "{message}");
            assert!(
                message.contains("the file system is full: free some space, then write the rest again"),
                "{message}"
            );
            // The part that was written is there, and the message names the offset of the rest.
            let there = file.len().unwrap() as usize;
            assert!(message.starts_with(&format!("writing {} bytes at {there}", data.len() - there)), "{message}");
            assert!(there > 0 && temp.content() == data[..there]);
            let error = file.write_vectored_at(&[std::io::IoSlice::new(&data[..5000])], 2 << 20).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::StorageFull);
            // With space again, writing works as before.
            file.set_len(0).unwrap();
            assert_eq!(file.write_at(&data[..5000], 0).unwrap(), 5000);
        });
    }
}

#[test]
fn file_size_limit_is_reported() {
    // E10, E14: exceeding the file-size limit is a short write, then EFBIG with the limit's name;
    // in a child process, to which the limit applies
    if in_child("limits::file_size_limit_is_reported") {
        return;
    }
    let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
    // SAFETY: this process runs this test alone; ignoring the signal lets it see the error.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
    }
    for direct in [Direct::Auto, Direct::Never] {
        on_each_backend(|| {
            let temp = Temp::at(&disk());
            let file = temp.open(direct);
            let data = aligned(&[7; 2 << 20]);
            let error = file.write_at(&data, 0).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::FileTooLarge);
            let message = error.to_string();
            assert!(message.contains("file-size limit (ulimit -f)"), "{message}");
            assert_eq!(file.len().unwrap(), 1 << 20, "the part that fits was written");
            file.write_at(&data[..4096], 0).unwrap();
        });
    }
}

#[test]
fn broken_device_fails_the_read() {
    // E10, E14: a read that a device can serve only in part is an error, not the end of the file;
    // here the file under a loop device was truncated
    let temp = Temp::with(&disk(), &pattern(2, 1 << 20));
    let Some(device) = Loop::over(&temp.0) else { return };
    fs::OpenOptions::new().write(true).open(&temp.0).unwrap().set_len(1 << 19).unwrap();
    for direct in [Direct::Auto, Direct::Never] {
        on_each_backend(|| {
            let file = File::options().read(true).direct(direct).open(&device.0).unwrap();
            // From the middle of a block, which is page-cached in both modes; and whole blocks.
            for offset in [(1 << 19) - 8192 + 100, (1 << 19) - 8192] {
                let mut buf = AlignedBuf::new(64 * 1024, 4096);
                let error = match file.read_at(&mut buf, offset) {
                    Err(error) => error,
                    Ok(read) => panic!("{read} bytes at {offset}, and no error"),
                };
                assert_eq!(error.os_code(), Some(libc::EIO));
                assert!(error.to_string().contains("Input/output error"), "{error}");
                assert!(error.to_string().contains("the device failed: see the kernel log"), "{error}");
            }
        });
    }
}
