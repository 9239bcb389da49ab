//! Applies the same random operations to an image of this crate and to one of `qemu-io`: after each
//! operation both disks have the same content, and `qemu-img check` finds no errors.
//!
//! ```sh
//! CORALIO_QCOW2_ROUNDS=200 cargo test --release -p coralio-qcow2 --test differential
//! CORALIO_QCOW2_SEED=17 cargo test -p coralio-qcow2 --test differential     # repeats sequence 17
//! ```

mod common;

use std::ops::Range;
use std::rc::Rc;

use common::{Random, Scratch, assert_clean, cluster_bits, for_writing, has_qemu, qemu_img, qemu_io, seeds};
use coralio::spawn;
use coralio_qcow2::{CreateOptions, Format, Image, Qcow2, Zeroes, open};

const OURS: &str = "ours";
const THEIRS: &str = "theirs";
const BASE: &str = "base";

/// The content of the backing file.
const BASE_BYTE: u8 = 0xbb;
/// The maximum disk size in this test.
const MAX_SIZE: u64 = 256 << 30;
/// The format's limit on L1 tables, in entries.
const MAX_L1_ENTRIES: u64 = (32 << 20) / 8;
const MAX_LEN: u64 = 32 << 20;
/// The maximum number of bytes in use at the start; they are holes of the file.
const MAX_IN_USE: u64 = 4 << 30;
const OPERATIONS: usize = 8;
/// With more L2 tables, `qemu-img compare` takes seconds.
const MAX_TABLES_COMPARED: u64 = 300_000;

/// The number of bytes, of the disk or of the file, that each structure of the format covers.
struct Shape {
    cluster: u64,
    slice: u64,
    table: u64,
    /// The number of bytes of the file whose refcounts are in one slice of a block, and in one
    /// block.
    refcounts: [u64; 2],
}

impl Shape {
    fn new(cluster: u64, refcount_bits: u64) -> Shape {
        let slice = cluster.min(4096);
        let counted = |bytes: u64| bytes * 8 / refcount_bits * cluster;
        Shape {
            cluster,
            slice: slice / 8 * cluster,
            table: cluster / 8 * cluster,
            refcounts: [counted(slice), counted(cluster)],
        }
    }
}

/// Returns a number of bytes; all powers of two are equally likely.
fn any_size(random: &mut Random, range: Range<u64>) -> u64 {
    let bits = u64::from(range.start.ilog2())..u64::from(range.end.ilog2());
    let low = 1 << (bits.start + random.below(bits.end - bits.start));
    (low + random.below(low)).clamp(range.start, range.end)
}

fn any_image(random: &mut Random) -> CreateOptions {
    let cluster_size = 1_u64 << (9 + random.below(13));
    let version = 2 + random.below(2) as u32;
    let refcount_bits = if version == 2 { 16 } else { 1 << random.below(7) };
    let limit = (cluster_size / 8 * cluster_size).saturating_mul(MAX_L1_ENTRIES).min(MAX_SIZE);
    let mut size = if random.chance(8) { limit } else { any_size(random, 64 << 10..limit) };
    if random.chance(2) {
        size = size.next_multiple_of(cluster_size).min(limit);
    }
    let size = size / 512 * 512;
    let backing = random.chance(4).then(|| (BASE.to_owned(), Format::Raw));
    CreateOptions { cluster_size, version, refcount_bits, backing, ..CreateOptions::new(size) }
}

/// A part of the disk whose bytes should all have the same value.
struct Stretch {
    range: Range<u64>,
    value: u8,
    /// Set if an operation has accessed it.
    touched: bool,
}

/// The expected content of the disk: stretches in order, without gaps.
struct Model(Vec<Stretch>);

impl Model {
    fn fill(&mut self, range: Range<u64>, value: u8, touched: bool) {
        let mut all = Vec::new();
        for old in self.0.drain(..) {
            for part in [old.range.start..old.range.end.min(range.start), old.range.start.max(range.end)..old.range.end]
            {
                if part.start < part.end {
                    all.push(Stretch { range: part, ..old });
                }
            }
        }
        all.push(Stretch { range, value, touched });
        all.sort_by_key(|stretch| stretch.range.start);
        self.0 = all;
    }
}

struct Sequence {
    seed: u64,
    random: Random,
    folder: Scratch,
    shape: Shape,
    options: CreateOptions,
    image: Rc<dyn Image>,
    model: Model,
    /// Offsets around which the operations happen.
    focus: Vec<u64>,
    /// Operations since the last comparison.
    log: Vec<String>,
    commands: Vec<String>,
}

impl Sequence {
    fn new(seed: u64) -> Sequence {
        let mut random = Random(seed ^ 0xd1ff);
        let folder = Scratch::new();
        let options = any_image(&mut random);
        let CreateOptions { size, cluster_size: cluster, version, refcount_bits, ref backing } = options;
        let mut model = Model(Vec::new());
        model.fill(0..size, 0, false);
        if backing.is_some() {
            let len = any_size(&mut random, 512..8 << 20) / 512 * 512;
            std::fs::write(folder.path(BASE), vec![BASE_BYTE; len as usize]).unwrap();
            model.fill(0..len.min(size), BASE_BYTE, false);
        }
        let shape = Shape::new(cluster, u64::from(refcount_bits));
        let compat = if version == 2 { "0.10" } else { "1.1" };
        let how = format!("compat={compat},cluster_size={cluster},refcount_bits={refcount_bits}");
        let on = if backing.is_some() { format!("-b {BASE} -F raw") } else { String::new() };
        // All clusters up to near a boundary between refcount blocks are in use at the start.
        let in_use = shape.refcounts[1] - any_size(&mut random, 1..shape.refcounts[1] - cluster);
        let is_full = backing.is_none() && in_use <= MAX_IN_USE.min(size) && random.chance(3);
        let make = |name: &str| {
            let create = format!("create -q -f qcow2 {on} -o {how}");
            if is_full {
                qemu_img(&folder, &format!("{create},preallocation=metadata {name} {}", in_use / 512 * 512));
                qemu_img(&folder, &format!("resize -q -f qcow2 {name} {size}"));
            } else {
                qemu_img(&folder, &format!("{create} {name} {size}"));
            }
        };
        make(THEIRS);
        if is_full || random.chance(2) {
            make(OURS);
        } else {
            Qcow2::create(folder.path(OURS), &options).unwrap();
        }
        let image = open(folder.path(OURS), &for_writing()).unwrap();
        let focus = (0..3).map(|_| any_border(&shape, size, &mut random)).collect();
        let full = if is_full { format!(", {in_use} bytes in use") } else { String::new() };
        let log = vec![format!("{how} {on} size={size}{full}")];
        Sequence { seed, random, folder, shape, options, image, model, focus, log, commands: Vec::new() }
    }

    /// Returns a range around one of the focus offsets.
    fn any_range(&mut self) -> Range<u64> {
        let (random, size, cluster) = (&mut self.random, self.options.size, self.shape.cluster);
        if random.chance(3) {
            let at = random.below(self.focus.len() as u64) as usize;
            self.focus[at] = any_border(&self.shape, size, random);
        }
        let border = self.focus[random.below(self.focus.len() as u64) as usize];
        let mut len = any_size(random, 512..MAX_LEN);
        if random.chance(4) {
            // The file grows across the next boundary of its refcounts.
            let end = std::fs::metadata(self.folder.path(OURS)).unwrap().len();
            let counted = self.shape.refcounts[random.below(2) as usize];
            len = (end.next_multiple_of(counted) - end + cluster).min(MAX_LEN);
        }
        let unit = [1, 512, cluster, cluster][random.below(4) as usize];
        let len = len.next_multiple_of(unit);
        let before = [0, unit, cluster, random.below(len)][random.below(4) as usize] / unit * unit;
        let start = border.saturating_sub(before);
        start.min(size - 1)..(start + len).min(size)
    }

    fn step(&mut self) {
        let Range { start, end } = self.any_range();
        let len = end - start;
        let cluster = self.shape.cluster;
        match self.random.below(10) {
            0 | 1 => {
                let keep_allocated = self.random.chance(2);
                let unmap = if keep_allocated { "" } else { "-u" };
                self.commands.push(format!("write -z {unmap} {start} {len}"));
                self.log.push(format!("write -z {unmap} {start} {len}"));
                self.image.write_zeroes(start, len, Zeroes { keep_allocated, fast: false }).unwrap();
                self.model.fill(start..end, 0, true);
            }
            2 if self.options.backing.is_none() => {
                // Discarding a part of a cluster does nothing.
                let start = start.next_multiple_of(cluster);
                let end = if end == self.options.size { end } else { end / cluster * cluster };
                if start < end {
                    self.commands.push(format!("discard {start} {}", end - start));
                    self.log.push(format!("discard {start} {}", end - start));
                    self.image.discard(start, end - start).unwrap();
                    self.model.fill(start..end, 0, true);
                }
            }
            _ => {
                let value = self.random.next() as u8;
                self.commands.push(format!("write -P {value} {start} {len}"));
                self.log.push(format!("write -P {value} {start} {len}"));
                self.write(value, start..end);
                self.model.fill(start..end, value, true);
            }
        }
        self.check_ours();
    }

    /// Writes with one request, or with several concurrent ones.
    fn write(&mut self, value: u8, range: Range<u64>) {
        let len = range.end - range.start;
        let piece = if self.random.chance(3) { (1 + self.random.below(len)).max(len / 16) } else { len };
        let writers: Vec<_> = range
            .clone()
            .step_by(piece as usize)
            .map(|start| {
                let (image, len) = (Rc::clone(&self.image), piece.min(range.end - start));
                spawn(move || image.write_at(&vec![value; len as usize], start).unwrap())
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
    }

    fn restart(&mut self) {
        self.log.push("restart".into());
        self.image.flush().unwrap();
        self.image = open(self.folder.path(OURS), &for_writing()).unwrap();
        self.check_ours();
    }

    /// Returns the ranges to compare after each operation: the touched ranges and the adjacent
    /// parts of their neighbours.
    fn samples(&self) -> impl Iterator<Item = (Range<u64>, u8)> + '_ {
        self.model.0.iter().flat_map(|Stretch { range, value, touched }| {
            let len = if *touched { u64::MAX } else { 2 * self.shape.cluster.max(4096) }.min(range.end - range.start);
            let ends = [range.start..range.start + len, range.end - len..range.end];
            let skipped = usize::from(ends[0] == ends[1]);
            ends.into_iter().skip(skipped).map(|range| (range, *value))
        })
    }

    fn check_ours(&self) {
        let mut buf = vec![0; 1 << 20];
        for (range, value) in self.samples() {
            let expected = vec![value; buf.len()];
            for at in range.clone().step_by(buf.len()) {
                let part = &mut buf[..(range.end - at).min(1 << 20) as usize];
                part.fill(!value);
                self.image.read_at(part, at).unwrap();
                if *part != expected[..part.len()] {
                    let n = part.iter().position(|&byte| byte != value).expect("they differ");
                    panic!("{}: {:#x} at {}, not {value:#x}", self.told(), part[n], at + n as u64);
                }
            }
        }
    }

    /// Compares the images as QEMU's programs see them.
    fn compare(&mut self) {
        self.image.flush().unwrap();
        let seen: Vec<_> = self
            .samples()
            .map(|(range, value)| format!("read -P {value} {} {}", range.start, range.end - range.start))
            .collect();
        let told = self.told();
        self.commands.extend(seen.iter().cloned());
        let shown = Shown(&told);
        qemu_io(&self.folder, THEIRS, &self.commands);
        qemu_io(&self.folder, OURS, &seen);
        assert_clean(&self.folder, OURS);
        drop(shown);
        self.commands.clear();
    }

    fn finish(mut self) {
        self.compare();
        let told = self.told();
        let _shown = Shown(&told);
        assert_clean(&self.folder, THEIRS);
        if self.options.size / self.shape.table < MAX_TABLES_COMPARED {
            qemu_img(&self.folder, &format!("compare -f qcow2 -F qcow2 {OURS} {THEIRS}"));
        }
    }

    fn told(&self) -> String {
        format!("seed {} ({})", self.seed, self.log.join("; "))
    }
}

/// Prints the operations if the test fails.
struct Shown<'a>(&'a str);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0);
        }
    }
}

/// Returns an offset at which a structure of the format ends and the next one begins.
fn any_border(shape: &Shape, size: u64, random: &mut Random) -> u64 {
    let unit = [shape.cluster, shape.slice, shape.table, size, 512][random.below(5) as usize];
    // Choose the first few boundaries as often as all others together.
    let most = if random.chance(2) { 4 } else { u64::MAX };
    unit * random.below((size / unit).min(most) + 1)
}

#[test]
fn random_sequences_match_qemu_io() {
    // qcow2: both implementations read back the written data, whatever boundaries a request
    // crosses.
    if !has_qemu() {
        return;
    }
    for seed in seeds(5) {
        eprintln!("seed {seed}: CORALIO_QCOW2_SEED={seed} repeats it");
        coralio::run(|| {
            let mut sequence = Sequence::new(seed);
            // In half of the sequences, much is not on disk yet when the next operation comes.
            let always = sequence.random.chance(2);
            for _ in 0..OPERATIONS {
                sequence.step();
                if always || sequence.random.chance(4) {
                    sequence.compare();
                }
                if sequence.random.chance(3) {
                    sequence.restart();
                }
            }
            sequence.finish();
        });
    }
}

#[test]
fn first_write_across_slice_border_is_kept() {
    // qcow2: whole clusters in a range without an L2 table, across each slice boundary.
    let qemu = has_qemu();
    for (bits, version) in cluster_bits().flat_map(|bits| [(bits, 2), (bits, 3)]) {
        let cluster = 1 << bits;
        let shape = Shape::new(cluster, 16);
        for border in [shape.slice, shape.table - shape.slice, shape.table] {
            let folder = Scratch::new();
            let size = border + 4 * cluster;
            let options = CreateOptions { cluster_size: cluster, version, ..CreateOptions::new(size) };
            coralio::run(|| {
                Qcow2::create(folder.path(OURS), &options).unwrap();
                let image = open(folder.path(OURS), &for_writing()).unwrap();
                let (start, len) = (border.saturating_sub(2 * cluster), 4 * cluster as usize);
                image.write_at(&vec![7; len], start).unwrap();
                for reopened in [false, true] {
                    let mut found = vec![0; len];
                    image.flush().unwrap();
                    let again = reopened.then(|| open(folder.path(OURS), &for_writing()).unwrap());
                    again.as_ref().unwrap_or(&image).read_at(&mut found, start).unwrap();
                    let zero = found.iter().position(|&byte| byte != 7);
                    assert_eq!(zero, None, "clusters of {cluster}, border at {border}: from {start} on");
                }
            });
            if qemu {
                assert_clean(&folder, OURS);
            }
        }
    }
}
