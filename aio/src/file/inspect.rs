//! What a `File` needs to know about an open file: kind, inode, alignment, and file system.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, FileType, Statx, StatxFlags, fstatfs, makedev, statx};

use super::Alignment;
use super::order::Inode;

/// `STATX_MNT_ID_UNIQUE` (Linux 6.8): the number of a mount, never used for another.
const MOUNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// The file systems of the mounts seen most recently. A mount has one file system for as long as it
/// exists.
static MOUNTS: Mutex<Vec<(u64, FileSystem)>> = Mutex::new(Vec::new());
const MAX_MOUNTS: usize = 64;

/// Where a file system gets the answer to a question about an open file from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileSystem {
    /// tmpfs: everything is in memory.
    Memory,
    /// A file system on a local disk: the inodes of open files are in memory.
    Local,
    /// A server, another process (FUSE), other file systems (overlayfs), or unknown.
    Other,
}

impl FileSystem {
    /// Lists the local ones, so that an unknown file system counts as one that may block.
    fn of_magic(magic: u32) -> FileSystem {
        /// ext2, ext3, ext4; XFS; Btrfs; F2FS; bcachefs.
        const LOCAL: [u32; 5] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0xca45_1a4e];
        match magic {
            magic if magic == libc::TMPFS_MAGIC as u32 => FileSystem::Memory,
            magic if LOCAL.contains(&magic) => FileSystem::Local,
            _ => FileSystem::Other,
        }
    }
}

/// See the module documentation.
pub(super) struct Facts {
    pub(super) kind: FileType,
    /// Of a device: its number, the same for each of its nodes, since they have one page cache.
    pub(super) inode: Inode,
    /// The alignment that direct I/O requires.
    pub(super) alignment: Alignment,
    pub(super) file_system: FileSystem,
}

impl Facts {
    /// Inspects an open file. May block: `fstatfs` asks the server of a network file system.
    pub(super) fn of(fd: impl AsFd) -> io::Result<Facts> {
        let (fd, stat) = (fd.as_fd(), stat(fd.as_fd())?);
        let file_system = match known(&stat) {
            Some(known) => known,
            None => {
                let found = FileSystem::of_magic(fstatfs(fd)?.f_type as u32);
                learn(&stat, found);
                found
            }
        };
        Ok(Facts::new(&stat, file_system))
    }

    /// Inspects an open file without blocking. `None` if it is not a regular file, or if its mount
    /// has not been seen or may block.
    pub(super) fn of_local(fd: impl AsFd) -> Option<Facts> {
        let stat = stat(fd.as_fd()).ok()?;
        let file_system = known(&stat).filter(|&known| known != FileSystem::Other)?;
        Some(Facts::new(&stat, file_system)).filter(|facts| facts.kind == FileType::RegularFile)
    }

    fn new(stat: &Statx, file_system: FileSystem) -> Facts {
        let kind = FileType::from_raw_mode(stat.stx_mode.into());
        let inode = match kind {
            FileType::BlockDevice => (makedev(stat.stx_rdev_major, stat.stx_rdev_minor), 0),
            _ => (makedev(stat.stx_dev_major, stat.stx_dev_minor), stat.stx_ino),
        };
        let told = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::DIOALIGN);
        let alignment = match (told && stat.stx_dio_offset_align != 0, file_system) {
            (true, _) => {
                Alignment { memory: stat.stx_dio_mem_align as usize, block: stat.stx_dio_offset_align as usize }
            }
            // tmpfs accepts direct I/O at any alignment.
            (false, FileSystem::Memory) if kind == FileType::RegularFile => Alignment::ANY,
            // Without the information (Linux 6.1) assume a page, the largest requirement in use.
            (false, _) => Alignment { memory: 4096, block: 4096 },
        };
        Facts { kind, inode, alignment, file_system }
    }

    /// Whether `fstat` of the open file never waits.
    pub(super) fn stats_at_once(&self) -> bool {
        self.kind == FileType::RegularFile && self.file_system != FileSystem::Other
    }
}

/// Returns what the kernel knows by itself, without a question to a server.
fn stat(fd: BorrowedFd<'_>) -> io::Result<Statx> {
    let wanted = StatxFlags::TYPE | StatxFlags::INO | StatxFlags::DIOALIGN | MOUNT_ID_UNIQUE;
    Ok(statx(fd, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, wanted)?)
}

/// Returns the number of the mount; `None` before Linux 6.8.
fn mount(stat: &Statx) -> Option<u64> {
    StatxFlags::from_bits_retain(stat.stx_mask).contains(MOUNT_ID_UNIQUE).then_some(stat.stx_mnt_id)
}

fn known(stat: &Statx) -> Option<FileSystem> {
    let mount = mount(stat)?;
    MOUNTS.lock().iter().find(|&&(known, _)| known == mount).map(|&(_, file_system)| file_system)
}

fn learn(stat: &Statx, file_system: FileSystem) {
    let Some(mount) = mount(stat) else { return };
    let mut mounts = MOUNTS.lock();
    if mounts.len() == MAX_MOUNTS {
        mounts.remove(0);
    }
    mounts.push((mount, file_system));
}
