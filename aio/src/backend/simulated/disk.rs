//! A simulated file: its visible contents, its durable contents, and the versions in between.
//!
//! Each write creates a new version of each sector that it touches. A sync makes durable the newest
//! version that was complete before the sync began. A crash independently takes, for each sector,
//! any version since the durable one, or a torn mixture of the newest and its predecessor. The same
//! applies to the length, which is never torn.

use std::collections::BTreeMap;

use super::tape::Tape;

/// Contents by sector; missing sectors are zero.
#[derive(Clone, Default)]
struct Image {
    len: u64,
    sectors: BTreeMap<u64, Box<[u8]>>,
}

/// A sector's contents that no sync has made durable.
struct Version {
    /// Disk time at which its write completed.
    at: u64,
    bytes: Box<[u8]>,
    /// A sync that covered this version failed: later syncs do not make it durable.
    given_up: bool,
}

pub(crate) struct SimFile {
    sector: usize,
    now: Image,
    durable: Image,
    /// Oldest first.
    unsynced: BTreeMap<u64, Vec<Version>>,
    lengths: Vec<(u64, u64)>,
    /// A direct and a page-cached write of one page were in flight at the same time: the next sync
    /// fails.
    pub(super) clashed: bool,
}

/// The effects of a crash on a file, in sectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Damage {
    pub(crate) kept: u32,
    pub(crate) dropped: u32,
    pub(crate) torn: u32,
}

impl SimFile {
    /// Creates a file with durable contents.
    pub(crate) fn new(sector: usize, len: u64) -> SimFile {
        let image = Image { len, ..Image::default() };
        SimFile {
            sector,
            now: image.clone(),
            durable: image,
            unsynced: BTreeMap::new(),
            lengths: Vec::new(),
            clashed: false,
        }
    }

    pub(crate) fn len(&self) -> u64 {
        self.now.len
    }

    /// Reads up to the end of the file.
    pub(crate) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let end = offset.saturating_add(len as u64).min(self.now.len);
        let mut bytes = vec![0; end.saturating_sub(offset) as usize];
        for (number, within, place) in pieces(self.sector, offset, bytes.len()) {
            if let Some(sector) = self.now.sectors.get(&number) {
                bytes[place.clone()].copy_from_slice(&sector[within..within + place.len()]);
            }
        }
        bytes
    }

    pub(crate) fn write(&mut self, at: u64, offset: u64, bytes: &[u8]) {
        for (number, within, place) in pieces(self.sector, offset, bytes.len()) {
            self.change(at, number, |sector| sector[within..within + place.len()].copy_from_slice(&bytes[place]));
        }
        let end = offset + bytes.len() as u64;
        if !bytes.is_empty() && end > self.now.len {
            self.now.len = end;
            self.lengths.push((at, end));
        }
    }

    /// Changes contents spontaneously and durably.
    pub(crate) fn corrupt(&mut self, offset: u64, bytes: &[u8]) {
        for (number, within, place) in pieces(self.sector, offset, bytes.len()) {
            for image in [&mut self.now, &mut self.durable] {
                let sector = image.sectors.entry(number).or_insert_with(|| vec![0; self.sector].into());
                sector[within..within + place.len()].copy_from_slice(&bytes[place.clone()]);
            }
        }
    }

    /// Adds a new version of a sector.
    fn change(&mut self, at: u64, number: u64, change: impl FnOnce(&mut [u8])) {
        let sector = self.now.sectors.entry(number).or_insert_with(|| vec![0; self.sector].into());
        change(sector);
        let version = Version { at, bytes: sector.clone(), given_up: false };
        self.unsynced.entry(number).or_default().push(version);
    }

    pub(crate) fn set_len(&mut self, at: u64, len: u64) {
        if len < self.now.len {
            self.zero(at, len, self.now.len - len);
        }
        if len != self.now.len {
            self.now.len = len;
            self.lengths.push((at, len));
        }
    }

    /// Zeroes a range; holes stay holes.
    pub(crate) fn zero(&mut self, at: u64, offset: u64, len: u64) {
        let (size, end) = (self.sector as u64, offset.saturating_add(len));
        let there: Vec<_> =
            self.now.sectors.range(offset / size..end.div_ceil(size)).map(|(&number, _)| number).collect();
        for number in there {
            let start = number * size;
            let (from, to) = (offset.max(start) - start, end.min(start + size) - start);
            self.change(at, number, |sector| sector[from as usize..to as usize].fill(0));
        }
    }

    /// Returns the offset of the next sector with data, or of the next without; the end is a hole.
    pub(crate) fn next_range(&self, offset: u64, data: bool) -> Option<u64> {
        let Image { len, sectors } = &self.now;
        let has_data = |number: &u64| sectors.get(number).is_some_and(|bytes| bytes.iter().any(|&byte| byte != 0));
        let size = self.sector as u64;
        let found = (offset / size..len.div_ceil(size)).find(|number| has_data(number) == data);
        match found.map(|number| offset.max(number * size)).filter(|found| found < len) {
            None if !data && offset < *len => Some(*len),
            found => found,
        }
    }

    /// Makes durable the versions that were complete by `began`.
    pub(crate) fn sync(&mut self, began: u64) {
        let durable = &mut self.durable;
        self.unsynced.retain(|&number, versions| {
            if let Some(newest) = versions.iter().rposition(|version| version.at <= began && !version.given_up) {
                let version = versions.drain(..=newest).next_back().expect("the version was found");
                durable.sectors.insert(number, version.bytes);
            }
            !versions.is_empty()
        });
        if let Some(newest) = self.lengths.iter().rposition(|&(at, _)| at <= began) {
            durable.len = self.lengths[newest].1;
            self.lengths.drain(..=newest);
        }
    }

    /// Handles a failed sync that should have made durable the versions complete by `began`.
    pub(crate) fn give_up(&mut self, began: u64) {
        let versions = self.unsynced.values_mut().flatten();
        versions.filter(|version| version.at <= began).for_each(|version| version.given_up = true);
    }

    /// Decides the contents after a power failure.
    pub(crate) fn crash(&mut self, tape: &mut Tape, torn_writes: bool) -> Damage {
        let mut damage = Damage::default();
        // The kernel's memory of the failure is lost with the power.
        self.clashed = false;
        for (number, mut versions) in std::mem::take(&mut self.unsynced) {
            let newest = versions.pop().expect("no list of versions is empty");
            let before = |versions: &mut Vec<Version>, durable: &Image| match versions.pop() {
                Some(version) => version.bytes,
                None => durable.sectors.get(&number).cloned().unwrap_or_else(|| vec![0; self.sector].into()),
            };
            // The newest, the durable one, those between, and torn.
            let choice = tape.choose(versions.len() as u32 + 2 + u32::from(torn_writes));
            let left = match choice {
                0 => {
                    damage.kept += 1;
                    newest.bytes
                }
                1 => {
                    damage.dropped += 1;
                    continue;
                }
                choice if choice as usize <= versions.len() + 1 => {
                    damage.dropped += 1;
                    versions.swap_remove(choice as usize - 2).bytes
                }
                _ => {
                    damage.torn += 1;
                    let cut = (1 + tape.choose(7) as usize) * self.sector / 8;
                    let mut torn = newest.bytes;
                    torn[cut..].copy_from_slice(&before(&mut versions, &self.durable)[cut..]);
                    torn
                }
            };
            self.durable.sectors.insert(number, left);
        }
        let lengths = std::mem::take(&mut self.lengths);
        match tape.choose(lengths.len() as u32 + 1) as usize {
            behind if behind < lengths.len() => self.durable.len = lengths[lengths.len() - 1 - behind].1,
            _ => {}
        }
        self.cut();
        self.now = self.durable.clone();
        damage
    }

    /// Discards contents beyond the end of the durable image.
    fn cut(&mut self) {
        let Image { len, sectors } = &mut self.durable;
        let within = (*len % self.sector as u64) as usize;
        sectors.split_off(&len.div_ceil(self.sector as u64));
        if let Some(last) = sectors.get_mut(&(*len / self.sector as u64)) {
            last[within..].fill(0);
        }
    }
}

/// Splits a range into pieces within one sector each: the sector's number, the offset in the
/// sector, and the range's part.
fn pieces(sector: usize, offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let within = (at % sector as u64) as usize;
        let here = (sector - within).min(len - done);
        let piece = (at / sector as u64, within, done..done + here);
        done += here;
        (here > 0).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the contents after a crash for every tape, with their frequency.
    fn crashes(file: impl Fn() -> SimFile, torn_writes: bool) -> BTreeMap<Vec<u8>, usize> {
        let (mut next, mut seen) = (Some(Vec::new()), BTreeMap::new());
        while let Some(given) = next {
            let (mut tape, mut file) = (Tape::replay(given), file());
            file.crash(&mut tape, torn_writes);
            let contents = file.read(0, 1000);
            // The result is durable: a second crash changes nothing.
            file.crash(&mut Tape::replay(vec![9; 20]), true);
            assert_eq!(file.read(0, 1000), contents);
            *seen.entry(contents).or_insert(0) += 1;
            next = super::super::tape::successor(tape.made());
        }
        seen
    }

    #[test]
    fn contents_match_a_vector() {
        // E10: reads, writes, zeroing and lengths agree with a vector, across sector boundaries.
        let (mut file, mut model, mut tape) = (SimFile::new(8, 0), Vec::new(), Tape::random(1));
        for at in 0..3000 {
            let (offset, len) = (tape.choose(60) as usize, tape.choose(30) as usize);
            match tape.choose(4) {
                0 => {
                    let bytes = vec![at as u8; len];
                    file.write(at, offset as u64, &bytes);
                    if len > 0 {
                        model.resize(model.len().max(offset + len), 0);
                        model[offset..offset + len].copy_from_slice(&bytes);
                    }
                }
                1 => {
                    file.set_len(at, offset as u64);
                    model.resize(offset, 0);
                }
                2 => {
                    file.zero(at, offset as u64, len as u64);
                    let end = model.len().min(offset + len);
                    model[offset.min(end)..end].fill(0);
                }
                _ => file.sync(at),
            }
            assert_eq!(file.len(), model.len() as u64);
            assert_eq!(file.read(0, 1000), model);
            let end = model.len().min(offset + len);
            assert_eq!(file.read(offset as u64, len), model[offset.min(end)..end]);
        }
    }

    #[test]
    fn crash_keeps_drops_or_tears_each_sector() {
        // E17: a crash produces every outcome of two writes, the first of which was synced, and no
        // other.
        let file = || {
            let mut file = SimFile::new(8, 16);
            file.write(1, 0, &[1; 16]);
            file.sync(1);
            file.write(2, 0, &[2; 8]);
            file
        };
        let seen = crashes(file, true);
        let with = |first: [u8; 8]| [first, [1; 8]].concat();
        for cut in 0..=8 {
            let mut first = [1; 8];
            first[..cut].fill(2);
            assert_eq!(seen.get(&with(first)), Some(&1), "{cut}");
        }
        assert_eq!(seen.len(), 9);
        assert_eq!(crashes(file, false).len(), 2);
    }

    #[test]
    fn sync_covers_writes_completed_before_it() {
        // E17: a write that completed after the sync began may be lost, and so may the length.
        let file = || {
            let mut file = SimFile::new(8, 0);
            file.write(1, 0, &[1; 4]);
            file.write(3, 8, &[3; 4]);
            file.sync(2);
            file
        };
        let seen: Vec<_> = crashes(file, false).into_keys().collect();
        let long = |last: [u8; 4]| [vec![1; 4], vec![0; 4], last.to_vec()].concat();
        assert_eq!(seen, [vec![1; 4], long([0; 4]), long([3; 4])]);
    }

    #[test]
    fn data_lost_by_a_failed_sync_is_not_saved_later() {
        // E17: a failed sync gives up its data, as on Linux, where the pages count as clean after
        // the error.
        let file = |again: bool| {
            move || {
                let mut file = SimFile::new(8, 8);
                file.write(1, 0, &[1; 8]);
                file.give_up(1);
                if again {
                    file.write(2, 0, &[1; 8]);
                }
                file.sync(2);
                file
            }
        };
        assert_eq!(crashes(file(false), false).len(), 2);
        assert_eq!(crashes(file(true), false).len(), 1);
    }
}
