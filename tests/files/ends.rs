//! Ends of files, and their lengths.

use std::io::{ErrorKind, IoSliceMut};

use coralio::fs::Direct;
use coralio::{AlignedBuf, File};

use crate::{Temp, aligned, disk, everywhere, is_root, on_each_backend, pattern, tool};

#[test]
fn read_across_the_end_is_short() {
    // E10: a read across the end returns the true count, whether or not the file ends within a
    // block
    everywhere(|place, direct| {
        for len in [1usize, 511, 512, 4608, 5000, 8192] {
            let content = pattern(len as u64, len);
            let temp = Temp::with(place, &content);
            let file = temp.open(direct);
            for offset in [0usize, 1, 512, 4096, len - 1] {
                let mut buf = AlignedBuf::new(16384, 4096);
                let there = len.saturating_sub(offset);
                assert_eq!(file.read_at(&mut buf, offset as u64).unwrap(), there, "{len} bytes, at {offset}");
                assert!(buf[..there] == content[offset.min(len)..]);
            }
        }
    });
}

#[test]
fn vectored_reads_across_the_end_are_short() {
    // E10: a vectored read across the end returns the true count, whichever buffer the file ends in
    everywhere(|place, direct| {
        for len in [4096usize, 5000, 8192, 9000, 12288] {
            let content = pattern(len as u64, len);
            let temp = Temp::with(place, &content);
            let file = temp.open(direct);
            let mut buf = AlignedBuf::new(16384, 4096);
            let mut slices: Vec<_> = buf.chunks_mut(4096).map(IoSliceMut::new).collect();
            assert_eq!(file.read_vectored_at(&mut slices, 0).unwrap(), len);
            assert!(buf[..len] == content[..]);
            let mut slices: Vec<_> = buf[1..].chunks_mut(1000).map(IoSliceMut::new).collect();
            assert_eq!(file.read_vectored_at(&mut slices, 5).unwrap(), len - 5);
            assert!(buf[1..=len - 5] == content[5..]);
        }
    });
}

#[test]
fn direct_read_stops_at_the_end() {
    // E10: a read with `Direct::Always` ends at the end of the file without continuing from within
    // a block, which direct I/O could not do
    on_each_backend(|| {
        let content = pattern(1, 9000);
        let temp = Temp::with(&disk(), &content);
        let Ok(file) = File::options().read(true).direct(Direct::Always).open(&temp.0) else {
            return println!("skipped: no direct I/O in {}", disk().display());
        };
        let mut buf = AlignedBuf::new(16384, 4096);
        assert_eq!(file.read_at(&mut buf, 0).unwrap(), 9000);
        assert!(buf[..9000] == content[..]);
        let mut slices: Vec<_> = buf.chunks_mut(4096).map(IoSliceMut::new).collect();
        assert_eq!(file.read_vectored_at(&mut slices, 4096).unwrap(), 9000 - 4096);
        assert!(buf[..9000 - 4096] == content[4096..]);
    });
}

#[test]
fn set_len_shrinks_and_extends() {
    // E15: `set_len` truncates and extends, and reads see the new length immediately
    everywhere(|place, direct| {
        let temp = Temp::with(place, &[7; 10_000]);
        let file = temp.open(direct);
        assert_eq!(file.len().unwrap(), 10_000);
        assert!(!file.is_empty().unwrap());
        file.set_len(3).unwrap();
        let mut buf = aligned(&[9; 8192]);
        assert_eq!(file.read_at(&mut buf, 0).unwrap(), 3);
        file.set_len(20_000).unwrap();
        assert_eq!(file.read_at(&mut buf, 0).unwrap(), 8192);
        assert!(buf[..3] == [7; 3] && buf[3..].iter().all(|&byte| byte == 0));
        file.set_len(0).unwrap();
        assert!(file.is_empty().unwrap());
        assert_eq!(file.read_at(&mut buf, 0).unwrap(), 0);
    });
}

#[test]
fn sync_covers_direct_and_page_cached_writes() {
    // E15: data and full sync succeed on a file written directly and through the page cache
    everywhere(|place, direct| {
        let temp = Temp::at(place);
        let file = temp.open(direct);
        file.sync_all().unwrap();
        file.write_at(&aligned(&[1; 4096]), 0).unwrap();
        file.sync_data().unwrap();
        file.write_at(b"odd", 4097).unwrap();
        file.sync_data().unwrap();
        file.sync_all().unwrap();
        assert_eq!(temp.content()[4096..], *b"\0odd");
    });
}

/// A loop device over a file, detached on drop.
pub(crate) struct Loop(pub(crate) String);

impl Loop {
    pub(crate) fn over(path: &std::path::Path) -> Option<Loop> {
        if !is_root() {
            println!("skipped: a loop device takes root");
            return None;
        }
        let output = tool("losetup", &["--find", "--show", path.to_str()?])?;
        Some(Loop(String::from_utf8(output.stdout).unwrap().trim().into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        tool("losetup", &["--detach", &self.0]);
    }
}

#[test]
fn block_device_reports_its_length() {
    // E15: a block device has a length, and is read and written like a file; reads beyond its end
    // return 0, writes fail
    let content = pattern(3, 1 << 20);
    let temp = Temp::with(&disk(), &content);
    let Some(device) = Loop::over(&temp.0) else { return };
    for direct in [Direct::Auto, Direct::Always, Direct::Never] {
        on_each_backend(|| {
            let file = File::options().read(true).write(true).direct(direct).open(&device.0).unwrap();
            assert_eq!(file.len().unwrap(), 1 << 20);
            let mut buf = AlignedBuf::new(8192, 4096);
            file.read_exact_at(&mut buf, 4096).unwrap();
            assert!(buf[..] == content[4096..12288]);
            assert_eq!(file.read_at(&mut buf, (1 << 20) - 4096).unwrap(), 4096);
            assert_eq!(file.read_at(&mut buf, 1 << 20).unwrap(), 0);
            assert_eq!(file.write_at(&buf, 4096).unwrap(), 8192);
            file.sync_all().unwrap();
            let error = file.write_at(&buf, (1 << 20) - 4096).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::StorageFull), "{error}");
            // Restores the content for the next iteration.
            file.write_at(&aligned(&content[4096..12288]), 4096).unwrap();
            file.write_at(&aligned(&content[(1 << 20) - 4096..]), (1 << 20) - 4096).unwrap();
        });
    }
}
