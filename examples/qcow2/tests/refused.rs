//! Images that QEMU's programs reject are rejected here too, with a specific error.

mod common;

use std::io;
use std::process::Command;

use common::{Random, Scratch, has_qemu, qemu_img, qemu_io, seeds};
use coralio_qcow2::{Image, Options, Qcow2};

/// Large enough for the feature name table that `qemu-img` writes after the header.
const CLUSTER: u64 = 65536;

/// Creates an image with `qemu-img` that has two data clusters, and a snapshot if requested.
fn good(folder: &Scratch, version: u32, snapshot: bool) -> Vec<u8> {
    let compat = if version == 2 { "0.10" } else { "1.1" };
    qemu_img(folder, &format!("create -q -f qcow2 -o compat={compat},cluster_size={CLUSTER} good 1M"));
    qemu_io(folder, "good", &["write -P 1 0 128k"]);
    if snapshot {
        qemu_img(folder, "snapshot -c one good");
    }
    std::fs::read(folder.path("good")).unwrap()
}

fn number(image: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(image[at..at + 8].try_into().unwrap())
}

/// Returns the error of `qemu-io`, if it cannot open the image or read the range that `ours` reads.
fn theirs(folder: &Scratch, image: &[u8]) -> Option<String> {
    std::fs::write(folder.path("image"), image).unwrap();
    let args = ["-r", "-f", "qcow2", "-c", "read 0 192k", "image"];
    let output = Command::new("qemu-io").args(args).current_dir(folder.path("")).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    (!output.status.success() || text.contains("failed")).then_some(text)
}

fn ours(folder: &Scratch, image: &[u8], write: bool) -> io::Result<()> {
    std::fs::write(folder.path("image"), image).unwrap();
    let options = Options { write, ..Options::default() };
    coralio::run(|| Qcow2::open(folder.path("image"), &options)?.read_at(&mut vec![0; 192 << 10], 0))
}

/// Bytes to write at an offset of an image, and the expected error text.
type Change = (usize, Vec<u8>, &'static str);

fn be32(number: u32) -> Vec<u8> {
    number.to_be_bytes().to_vec()
}

fn be64(number: u64) -> Vec<u8> {
    number.to_be_bytes().to_vec()
}

fn extension(kind: u32, len: u32) -> Vec<u8> {
    [kind.to_be_bytes(), len.to_be_bytes()].concat()
}

/// Returns changes that make the valid `image` of this version invalid.
fn changes(image: &[u8], version: u32) -> Vec<Change> {
    let extensions = if version == 2 { 72 } else { 112 };
    let mut all: Vec<Change> = vec![
        (8, be64(CLUSTER + 1), "backing file is at 65537"),
        (8, be64(1 << 60), "outside the first cluster"),
        (56, be32(0), "no refcount table"),
        (60, be32(65537), "65537 internal snapshots; the limit is 65536"),
        (64, be64(1), "snapshot table is at 1,"),
        (64, be64(CLUSTER / 2), "snapshot table is at 32768,"),
        (64, be64(1 << 63), "not the offset of a cluster"),
        (60, [be32(1), be64(i64::MAX as u64 - 65535)].concat(), "beyond the largest file offset"),
    ];
    for len in [CLUSTER as u32, i32::MAX as u32, 1 << 31, u32::MAX] {
        all.extend([0, 0x1234_5678].map(|kind| (extensions, extension(kind, len), "reaches beyond the header")));
    }
    all.push((extensions, extension(0x2385_2875, 16), "bitmaps extension has 16 bytes"));
    if version == 2 {
        let l2 = (number(image, number(image, 40) as usize) & !(1 << 63)) as usize;
        all.push((l2, be64(number(image, l2) | 1), "reserved in version 2"));
        all.push((l2 + 16, be64(1), "reserved in version 2"));
    } else {
        all.push((88, be64(2), "autoclear bit 1"));
        all.push((104, vec![1], "compression type is 1 (zstd), but feature bit 3"));
        all.push((104, vec![2], "compression type 2"));
        all.push((72, be64(8), "compression type is 0 (zlib), but feature bit 3"));
        all.push((100, be32(108), "length 108: must be a multiple of 8"));
        all.extend([107, 109, 111, 113, 115, 117].map(|len| (100, be32(len), "must be a multiple of 8")));
        all.push((100, be32(103), "length 103"));
        all.push((100, be32(CLUSTER as u32 + 1), "length 65537"));
    }
    all
}

#[test]
fn image_that_qemu_rejects_is_rejected_by_name() {
    // qcow2: each change is rejected by qemu-io, and here with an error that names the field.
    if !has_qemu() {
        return;
    }
    for version in [2, 3] {
        let folder = Scratch::new();
        let good = good(&folder, version, false);
        assert_eq!(theirs(&folder, &good), None);
        ours(&folder, &good, true).unwrap();
        for (at, bytes, why) in changes(&good, version) {
            let what = format!("version {version}, {bytes:x?} at {at}");
            let mut image = good.clone();
            image[at..at + bytes.len()].copy_from_slice(&bytes);
            assert!(theirs(&folder, &image).is_some(), "{what}: qemu-io reads it");
            for write in [false, true] {
                let error = ours(&folder, &image, write).expect_err(&what).to_string();
                assert!(error.contains(why), "{what}: {error}");
            }
        }
    }
}

#[test]
fn invalid_snapshot_table_is_rejected() {
    // qcow2: invalid entries are rejected even though this crate does not use them.
    if !has_qemu() {
        return;
    }
    for version in [2, 3] {
        let folder = Scratch::new();
        let good = good(&folder, version, true);
        ours(&folder, &good, false).unwrap();
        let table = number(&good, 64) as usize;
        let mut image = good.clone();
        image[table + 36..table + 40].copy_from_slice(&be32(1025));
        assert!(theirs(&folder, &image).is_some());
        let error = ours(&folder, &image, false).unwrap_err().to_string();
        assert!(error.contains("snapshot 1 has 1025 bytes of extra data"), "{error}");

        // QEMU reads entries beyond the end of the file as zeroes.
        image.clone_from(&good);
        image[64..72].copy_from_slice(&be64(1 << 40));
        let error = ours(&folder, &image, false).unwrap_err().to_string();
        assert!(error.contains("snapshot 1, at 0x10000000000, lies beyond the end of the file"), "{error}");
    }
}

#[test]
fn reserved_bits_of_entries_are_rejected() {
    // qcow2: each reserved bit of an L1 or L2 entry, which `qemu-img check` reports as an error.
    if !has_qemu() {
        return;
    }
    for version in [2, 3] {
        let folder = Scratch::new();
        let good = good(&folder, version, false);
        let l1 = number(&good, 40) as usize;
        let l2 = (number(&good, l1) & !(1 << 63)) as usize;
        let of_l1 = (0..9).chain(56..63).map(|bit| (l1, bit));
        let of_l2 = (1..9).chain(56..62).map(|bit| (l2, bit));
        for (at, bit) in of_l1.chain(of_l2) {
            let mut image = good.clone();
            image[at..at + 8].copy_from_slice(&be64(number(&good, at) | 1 << bit));
            for write in [false, true] {
                let error = ours(&folder, &image, write).expect_err("a reserved bit").to_string();
                assert!(error.contains("reserved in version"), "bit {bit} at {at}: {error}");
            }
            if bit % 8 == 0 {
                let mut check = Command::new("qemu-img");
                check.args(["check", "-f", "qcow2", "image"]).current_dir(folder.path(""));
                let checked = check.output().unwrap();
                assert_eq!(checked.status.code(), Some(2), "bit {bit} at {at}: qemu-img check finds nothing");
            }
        }
    }
}

#[test]
fn header_that_qemu_rejects_is_rejected() {
    // qcow2: for random changes to header bytes, an image that qemu-io rejects is not opened here.
    if !has_qemu() {
        return;
    }
    let folder = Scratch::new();
    let images: Vec<_> =
        [(2, false), (3, false), (3, true)].map(|(version, snapshot)| good(&folder, version, snapshot)).into();
    for seed in seeds(60) {
        let mut random = Random(seed ^ 0x4ead);
        let mut image = images[random.below(3) as usize].clone();
        let (width, at) = if random.chance(2) { (1, random.below(136)) } else { (4, 4 * random.below(34)) };
        let at = at as usize;
        let flipped = 1_u64 << random.below(8 * width);
        let values = [0, 1, 2, 511, 512, CLUSTER, CLUSTER + 1, 1 << 31, u64::MAX, random.next()];
        let width = width as usize;
        let value = match random.below(2) {
            0 => values[random.below(10) as usize],
            _ => image[at..at + width].iter().fold(0, |number, &byte| number << 8 | u64::from(byte)) ^ flipped,
        };
        image[at..at + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
        if let Some(said) = theirs(&folder, &image) {
            let what = format!("seed {seed}: {value:#x} in {width} bytes at {at}; qemu-io: {said}");
            ours(&folder, &image, false).expect_err(&what);
        }
    }
}
