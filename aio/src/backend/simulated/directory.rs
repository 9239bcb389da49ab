//! The simulated file system: files by name, durable and not yet durable names, and open
//! descriptors.
//!
//! Descriptors are numbers of this file system, above all descriptors that a process can have, and
//! are never reused. So a stale number refers to no file, neither real nor simulated.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::path::{Component, Path, PathBuf};

use super::disk::{Damage, SimFile};
use super::tape::Tape;

mod calls;
mod tree;

/// Stands for a directory in the map from names to numbers of files.
const FOLDER: usize = usize::MAX;

/// The largest length of a file, in bytes.
pub(super) const MAX_LEN: u64 = i64::MAX as u64;

/// The first descriptor: above any descriptor of a process.
const FIRST: RawFd = 1 << 30;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) append: bool,
    pub(crate) create: bool,
    pub(crate) create_new: bool,
    pub(crate) truncate: bool,
    /// Bypasses the page cache: requires alignment to sectors.
    pub(crate) direct: bool,
}

impl fmt::Display for Access {
    /// Writes what an open may change: ` (create, truncate)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [(self.create, "create"), (self.create_new, "create new"), (self.truncate, "truncate")];
        let names: Vec<_> = names.into_iter().filter_map(|(is_set, name)| is_set.then_some(name)).collect();
        if names.is_empty() { Ok(()) } else { write!(f, " ({})", names.join(", ")) }
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Open {
    pub(crate) file: usize,
    pub(crate) access: Access,
    /// The machine has crashed since the file was opened.
    pub(crate) lost: bool,
}

/// A change of names that is not durable yet.
enum Change {
    Link(PathBuf, usize),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf),
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Change::Link(name, file) => drop(names.insert(name.clone(), *file)),
            Change::Unlink(name) => drop(names.remove(name)),
            Change::Rename(from, to) => tree::rename(names, from, to),
        }
    }

    fn concerns(&self, folder: &Path) -> bool {
        let within = |name: &PathBuf| name.parent() == Some(folder);
        match self {
            Change::Link(name, _) | Change::Unlink(name) => within(name),
            Change::Rename(from, to) => within(from) || within(to),
        }
    }
}

pub(crate) struct FileSystem {
    sector: usize,
    pub(crate) files: Vec<SimFile>,
    /// The name under which each file was created.
    first_names: Vec<PathBuf>,
    names: BTreeMap<PathBuf, usize>,
    durable: BTreeMap<PathBuf, usize>,
    /// Changes of names that are not durable yet, in order.
    changes: Vec<Change>,
    open: BTreeMap<RawFd, Open>,
    next: RawFd,
    /// The number of names given to temporary files so far.
    temporaries: u64,
    /// The number of changes so far: the disk's own time.
    at: u64,
    /// Makes an unknown descriptor refer to a new file: for tests that use real descriptors.
    #[cfg(test)]
    pub(crate) adopts: bool,
}

fn error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

/// Normalises a name.
fn plain(name: &Path) -> PathBuf {
    name.components().filter(|component| *component != Component::CurDir).collect()
}

impl FileSystem {
    pub(crate) fn new(sector: usize) -> FileSystem {
        FileSystem {
            sector,
            files: Vec::new(),
            first_names: Vec::new(),
            names: BTreeMap::new(),
            durable: BTreeMap::new(),
            changes: Vec::new(),
            open: BTreeMap::new(),
            next: FIRST,
            temporaries: 0,
            at: 0,
            #[cfg(test)]
            adopts: false,
        }
    }

    /// Creates a file, replacing one of the same name; durable immediately.
    pub(crate) fn put(&mut self, name: &Path, len: u64) -> usize {
        let file = self.add(name, len);
        self.names.insert(plain(name), file);
        self.durable.insert(plain(name), file);
        file
    }

    pub(crate) fn now(&self) -> u64 {
        self.at
    }

    /// Counts a change, and returns its time on the disk's own clock.
    pub(crate) fn tick(&mut self) -> u64 {
        self.at += 1;
        self.at
    }

    /// Returns a number for the name of a temporary file, different at each call.
    pub(crate) fn next_temporary(&mut self) -> u64 {
        self.temporaries += 1;
        self.temporaries
    }

    fn add(&mut self, name: &Path, len: u64) -> usize {
        self.files.push(SimFile::new(self.sector, len));
        self.first_names.push(plain(name));
        self.files.len() - 1
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.names);
        self.changes.push(change);
    }

    pub(crate) fn find(&self, name: &Path) -> Option<usize> {
        self.names.get(&plain(name)).copied().filter(|&file| file != FOLDER)
    }

    /// Returns the name of an open file, for messages.
    pub(crate) fn open_name(&self, fd: RawFd) -> String {
        self.open.get(&fd).map_or_else(|| "a closed file".into(), |open| self.name(open.file))
    }

    /// Returns a file's name, for messages.
    pub(crate) fn name(&self, file: usize) -> String {
        match self.names.iter().find(|(_, named)| **named == file) {
            Some((name, _)) => name.display().to_string(),
            None => format!("a removed file, created as {}", self.first_names[file].display()),
        }
    }

    pub(crate) fn open(&mut self, name: &Path, access: Access) -> io::Result<RawFd> {
        tree::check_name(name)?;
        // The rules of `std::fs::OpenOptions`.
        let changes = access.create || access.create_new || access.truncate;
        let access = Access { write: access.write || access.append, ..access };
        let truncates = access.append && access.truncate && !access.create_new;
        if truncates || !access.write && (changes || !access.read) {
            return Err(error(libc::EINVAL));
        }
        let found = match self.find(name) {
            None if self.is_folder(name) => {
                return Err(error(if access.create_new { libc::EEXIST } else { libc::EISDIR }));
            }
            Some(_) if access.create_new => return Err(error(libc::EEXIST)),
            Some(file) => file,
            None if access.create || access.create_new => {
                let file = self.add(name, 0);
                self.change(Change::Link(plain(name), file));
                file
            }
            None => return Err(error(libc::ENOENT)),
        };
        if access.truncate {
            let at = self.tick();
            self.files[found].set_len(at, 0);
        }
        Ok(self.add_open(Open { file: found, access, lost: false }))
    }

    fn add_open(&mut self, open: Open) -> RawFd {
        let fd = self.next;
        self.next += 1;
        self.open.insert(fd, open);
        fd
    }

    /// Opens the file of the open descriptor `fd` again, through the page cache.
    pub(crate) fn reopen(&mut self, fd: RawFd) -> RawFd {
        let open = self.open[&fd];
        self.add_open(Open { access: Access { direct: false, ..open.access }, ..open })
    }

    /// Opens the open file of the descriptor `fd` by another descriptor.
    pub(crate) fn duplicate(&mut self, fd: RawFd) -> RawFd {
        self.add_open(self.open[&fd])
    }

    /// Returns the number of the file of the open descriptor `fd`.
    pub(crate) fn inode(&self, fd: RawFd) -> usize {
        self.open[&fd].file
    }

    pub(crate) fn close(&mut self, fd: RawFd) {
        self.open.remove(&fd);
    }

    pub(crate) fn opened(&mut self, fd: RawFd) -> io::Result<Open> {
        #[cfg(test)]
        if self.adopts && (0..FIRST).contains(&fd) && !self.open.contains_key(&fd) {
            let access = Access { read: true, write: true, ..Access::default() };
            let open = Open { file: self.add(Path::new("adopted"), 0), access, lost: false };
            self.open.insert(fd, open);
        }
        self.open.get(&fd).copied().ok_or_else(|| error(libc::EBADF))
    }

    /// As `opened`, for operations that are not requests: fails after a crash, and if the file is
    /// not open for writing as required.
    fn usable(&mut self, fd: RawFd, writes: bool) -> io::Result<&mut SimFile> {
        match self.opened(fd)? {
            Open { lost: true, .. } => Err(error(libc::EIO)),
            Open { access, .. } if writes && !access.write => Err(error(libc::EBADF)),
            Open { file, .. } => Ok(&mut self.files[file]),
        }
    }

    pub(crate) fn len(&mut self, fd: RawFd) -> io::Result<u64> {
        self.usable(fd, false).map(|file| file.len())
    }

    pub(crate) fn set_len(&mut self, fd: RawFd, len: u64) -> io::Result<()> {
        let at = self.tick();
        let file = self.usable(fd, true)?;
        if len > MAX_LEN {
            return Err(error(libc::EINVAL));
        }
        file.set_len(at, len);
        Ok(())
    }

    /// As `fallocate`.
    pub(crate) fn allocate(
        &mut self,
        fd: RawFd,
        offset: u64,
        len: u64,
        keeps_len: bool,
        zeroes: bool,
    ) -> io::Result<()> {
        let at = self.tick();
        let file = self.usable(fd, true)?;
        if zeroes {
            file.zero(at, offset, len);
        }
        if !keeps_len {
            file.set_len(at, file.len().max(offset + len));
        }
        Ok(())
    }

    /// Makes the directory's names durable, and all earlier changes of names, as a journal does.
    pub(crate) fn sync_folder(&mut self, folder: &Path) -> io::Result<()> {
        tree::check_name(folder)?;
        let folder = plain(folder);
        if let Some(last) = self.changes.iter().rposition(|change| change.concerns(&folder)) {
            self.changes.drain(..=last).for_each(|change| change.apply(&mut self.durable));
        }
        Ok(())
    }

    /// Decides the state after a power failure. Open descriptors become unusable.
    pub(crate) fn crash(&mut self, tape: &mut Tape, torn_writes: bool) -> Damage {
        let kept = self.changes.len() - tape.choose(self.changes.len() as u32 + 1) as usize;
        self.changes.drain(..).take(kept).for_each(|change| change.apply(&mut self.durable));
        self.names = self.durable.clone();
        self.open.values_mut().for_each(|open| open.lost = true);
        let mut damage = Damage::default();
        for file in &mut self.files {
            let Damage { kept, dropped, torn } = file.crash(tape, torn_writes);
            damage.kept += kept;
            damage.dropped += dropped;
            damage.torn += torn;
        }
        damage
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_sync_makes_names_durable() {
        // E15, E17: a crash preserves all changes up to some moment, which is not before the last
        // sync.
        let states = |synced: bool| {
            let (mut next, mut seen) = (Some(Vec::new()), Vec::new());
            while let Some(given) = next {
                let (mut names, mut tape) = (FileSystem::new(8), Tape::replay(given));
                let access = Access { write: true, create: true, ..Access::default() };
                names.put(Path::new("./a"), 0);
                names.open(Path::new("b.new"), access).unwrap();
                names.rename(Path::new("b.new"), Path::new("./b")).unwrap();
                if synced {
                    names.sync_folder(Path::new("elsewhere")).unwrap();
                    names.sync_folder(Path::new(".")).unwrap();
                }
                names.remove(Path::new("a")).unwrap();
                names.crash(&mut tape, false);
                seen.push(["a", "b.new", "b"].map(|name| names.find(Path::new(name)).is_some()));
                next = super::super::tape::successor(tape.made());
            }
            seen
        };
        let all = [[false, false, true], [true, false, true], [true, true, false], [true, false, false]];
        assert_eq!(states(false), all);
        assert_eq!(states(true), all[..2]);
    }

    #[test]
    fn invalid_opens_are_rejected() {
        // E14: errors as those of real files; a descriptor that was closed does not refer to
        // another file.
        let mut names = FileSystem::new(8);
        let mut open = |access| names.open(Path::new("x"), access).map_err(|error| error.raw_os_error().unwrap());
        let write = Access { write: true, ..Access::default() };
        assert_eq!(open(Access::default()), Err(libc::EINVAL));
        assert_eq!(open(Access { truncate: true, read: true, ..Access::default() }), Err(libc::EINVAL));
        assert_eq!(open(write), Err(libc::ENOENT));
        let first = open(Access { create: true, ..write }).unwrap();
        assert_eq!(open(Access { create_new: true, ..write }), Err(libc::EEXIST));
        let second = open(write).unwrap();
        assert!(first >= FIRST && second != first);
        names.close(second);
        assert!(names.opened(second).is_err() && names.opened(first).is_ok());
        assert!(names.usable(first, true).is_ok());
        names.crash(&mut Tape::replay(Vec::new()), false);
        assert_eq!(names.usable(first, true).err().unwrap().raw_os_error(), Some(libc::EIO));
    }
}
