//! The table of registrations used by bottom halves, fd handlers, timers and poll handlers.
//!
//! A registry is protected by its owner's small lock. User code, in particular a closure's
//! destructor, never runs under that lock: values that leave the registry, or that a closed
//! registry rejects, are returned to the caller, which drops them after releasing the lock.

use std::fmt;
use std::io;
use std::ops::{Index, IndexMut};

use slab::Slab;

/// Identifies one registration. Serial numbers are never reused, so a key never refers to a later
/// registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) index: usize,
    serial: u64,
}

impl Key {
    /// Returns the number that epoll reports: the index, and the low 31 bits of the serial number.
    pub(crate) fn token(self) -> u64 {
        (self.serial & 0x7fff_ffff) << 32 | self.index as u64
    }
}

pub(crate) struct Registry<T> {
    /// Entries with their serial numbers.
    entries: Slab<(u64, T)>,
    serial: u64,
    closed: bool,
}

impl<T> Default for Registry<T> {
    fn default() -> Registry<T> {
        Registry { entries: Slab::new(), serial: 0, closed: false }
    }
}

impl<T> Registry<T> {
    /// Adds an entry. A closed registry returns the entry, to be dropped after releasing the lock.
    pub(crate) fn insert(&mut self, entry: T) -> Result<Key, T> {
        if self.closed { Err(entry) } else { Ok(self.insert_always(entry)) }
    }

    /// As `insert`, but also into a closed registry: for entries without user code.
    pub(crate) fn insert_always(&mut self, entry: T) -> Key {
        self.serial += 1;
        Key { index: self.entries.insert((self.serial, entry)), serial: self.serial }
    }

    pub(crate) fn get(&self, key: Key) -> Option<&T> {
        match self.entries.get(key.index) {
            Some((serial, entry)) if *serial == key.serial => Some(entry),
            _ => None,
        }
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        match self.entries.get_mut(key.index) {
            Some((serial, entry)) if *serial == key.serial => Some(entry),
            _ => None,
        }
    }

    /// Removes and returns an entry, to be dropped after releasing the lock.
    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        self.get(key).is_some().then(|| self.entries.remove(key.index).1)
    }

    /// Returns the current entry at this index.
    pub(crate) fn at(&self, index: usize) -> Option<&T> {
        self.entries.get(index).map(|(_, entry)| entry)
    }

    /// As `at`, with the key of the entry.
    pub(crate) fn at_mut(&mut self, index: usize) -> Option<(Key, &mut T)> {
        self.entries.get_mut(index).map(|(serial, entry)| (Key { index, serial: *serial }, entry))
    }

    /// Returns the entry whose key has this [token](Key::token).
    pub(crate) fn by_token(&mut self, token: u64) -> Option<(Key, &mut T)> {
        self.at_mut((token & 0xffff_ffff) as usize).filter(|(key, _)| key.token() == token)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.entries.iter().map(|(index, (serial, entry))| (Key { index, serial: *serial }, entry))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.entries.iter_mut().map(|(_, (_, entry))| entry)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Rejects all further entries, and returns the existing ones, to be dropped after releasing
    /// the lock.
    pub(crate) fn close(&mut self) -> Vec<T> {
        self.closed = true;
        std::mem::take(&mut self.entries).into_iter().map(|(_, (_, entry))| entry).collect()
    }
}

impl<T> Index<usize> for Registry<T> {
    type Output = T;

    fn index(&self, index: usize) -> &T {
        &self.entries[index].1
    }
}

impl<T> IndexMut<usize> for Registry<T> {
    fn index_mut(&mut self, index: usize) -> &mut T {
        &mut self.entries[index].1
    }
}

/// The context has ended, or is ending, and accepts no registration. The rejected closure has been
/// dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContextEnded {
    pub(crate) operation: &'static str,
}

impl fmt::Display for ContextEnded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: the context has ended; do so while its `run` or its thread is running", self.operation)
    }
}

impl std::error::Error for ContextEnded {}

impl From<ContextEnded> for io::Error {
    fn from(error: ContextEnded) -> io::Error {
        io::Error::new(io::ErrorKind::NotConnected, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_never_refers_to_later_entry() {
        // X4: the key of a removed registration stays invalid when its index is reused, even after
        // the registry was closed
        let mut registry = Registry::default();
        let first = registry.insert('a').unwrap();
        assert_eq!(registry.remove(first), Some('a'));
        let second = registry.insert('b').unwrap();
        assert_eq!((first.index, registry.get(first)), (second.index, None));
        assert_eq!(registry.remove(first), None);
        assert_ne!(first.token(), second.token());
        assert_eq!(registry.by_token(first.token()), None);
        assert_eq!(registry.by_token(second.token()).map(|(key, _)| key), Some(second));
        assert_eq!(registry.close(), ['b']);
        assert_eq!(registry.insert('c'), Err('c'));
        let third = registry.insert_always('d');
        assert_eq!((registry.get(second), registry.get(third)), (None, Some(&'d')));
    }
}
