//! Without SRC and DST: copies a scratch file and verifies the copy.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use coralio::{AlignedBuf, File, spawn};

use crate::job::check_signals;
use crate::options::Options;
use crate::temp_file::make_new;
use crate::{copy, remedy};

const MIB: u64 = 1 << 20;
const LEN: u64 = 256 * MIB;
/// A hole that the copy must keep.
const HOLE: std::ops::Range<u64> = 96 * MIB..112 * MIB;
/// The space needed for both files.
const NEEDED: u64 = 2 * (LEN - (HOLE.end - HOLE.start));

pub fn copy_and_verify(options: &Options) -> Result<String, String> {
    let place = options.scratch_dir.clone().unwrap_or_else(std::env::temp_dir);
    let folder = Folder::new(&place)?;
    let (src, dst) = (folder.path.join("source"), folder.path.join("copy"));
    let say = |error: io::Error| format!("{}: {error}", place.display());
    let source = options.open(File::options().write(true).create(true), &src)?;
    check_space(&source).map_err(say)?;
    fill(&source).map_err(say)?;
    let report = copy(&src, &dst, options)?;

    // Read both files concurrently.
    let sums = [&src, &dst].map(|path| {
        let file = options.open(File::options().read(true), path)?;
        Ok(spawn(move || checksum(&file)))
    });
    let [of_src, of_dst] = sums.map(|sum: Result<_, String>| sum?.join().unwrap().map_err(say));
    let (of_src, of_dst) = (of_src?, of_dst?);
    if of_src != of_dst {
        return Err(format!("the copy differs: checksum {of_dst:016x}, source {of_src:016x}"));
    }
    Ok(format!("{report}verified: both files have checksum {of_src:016x}\n"))
}

/// Checks the free space in advance instead of failing halfway.
fn check_space(file: &File) -> io::Result<()> {
    // SAFETY: the structure is plain data for which zero is valid, and the kernel fills it.
    let (result, there) = unsafe {
        let mut there: libc::statvfs = std::mem::zeroed();
        (libc::fstatvfs(file.as_fd().as_raw_fd(), &mut there), there)
    };
    let free = (there.f_bavail * there.f_frsize) / MIB;
    // A file system that reports no size has no limit.
    if result != 0 || there.f_blocks == 0 || free >= NEEDED / MIB {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::StorageFull,
        format!(
            "the scratch files need {} MiB, but only {free} MiB is free; free some space, or choose another directory \
             with --scratch-dir",
            NEEDED / MIB
        ),
    ))
}

/// Fills the file with pseudo-random words, leaving a hole.
fn fill(file: &File) -> io::Result<()> {
    file.set_len(LEN)?;
    let mut buf = AlignedBuf::new(MIB as usize, 4096);
    for offset in (0..LEN).step_by(MIB as usize).filter(|offset| !HOLE.contains(offset)) {
        check_signals()?;
        for (word, number) in buf.as_chunks_mut().0.iter_mut().zip(offset / 8..) {
            *word = splitmix64(number).to_le_bytes();
        }
        file.write_at(&buf, offset)?;
    }
    Ok(())
}

/// Returns the `number`th value of this generator, seeded with 0.
fn splitmix64(number: u64) -> u64 {
    let state = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Computes a variant of FNV-1a on words instead of bytes, with a rotation: changing any single
/// word changes the sum.
fn checksum(file: &File) -> io::Result<u64> {
    let len = file.len()?;
    let mut sum = 0xcbf2_9ce4_8422_2325 ^ len;
    let mut buf = AlignedBuf::new(MIB as usize, 4096);
    for offset in (0..len).step_by(MIB as usize) {
        check_signals()?;
        let count = file.read_at(&mut buf, offset)?;
        buf[count..].fill(0);
        for word in buf.as_chunks().0 {
            sum = (sum.rotate_left(5) ^ u64::from_le_bytes(*word)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    Ok(sum)
}

/// A directory that is removed with its content when dropped. Locked, like all temporary names.
struct Folder {
    path: PathBuf,
    _lock: fs::File,
}

impl Folder {
    fn new(place: &Path) -> Result<Folder, String> {
        match make_new(place, "", |path| fs::create_dir(path).and_then(|()| fs::File::open(path))) {
            Ok((path, lock)) => Ok(Folder { path, _lock: lock }),
            Err(error) => Err(format!(
                "cannot create a directory in {}: {error}{}; choose another one with --scratch-dir",
                place.display(),
                remedy(&error)
            )),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}
