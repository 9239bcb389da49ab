//! A single invalid value in a header or table is rejected with a specific error, or is harmless.

mod common;

use std::io;

use common::{Scratch, as_qemu_reads, assert_clean, for_writing, has_qemu, qemu_img};
use coralio_qcow2::{CreateOptions, Format, Image, Options, Qcow2, open};

/// Returns an image of this crate: 512-byte clusters, one L2 table, one data cluster.
fn good(folder: &Scratch) -> Vec<u8> {
    let path = folder.path("good");
    coralio::run(|| {
        Qcow2::create(&path, &CreateOptions { cluster_size: 512, ..CreateOptions::new(20_000) }).unwrap();
        let image = Qcow2::open(&path, &for_writing()).unwrap();
        image.write_at(&[1; 512], 0).unwrap();
        image.flush().unwrap();
    });
    std::fs::read(path).unwrap()
}

fn number(image: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(image[at..at + 8].try_into().unwrap())
}

fn opens(folder: &Scratch, image: &[u8], options: &Options) -> io::Result<Qcow2> {
    let path = folder.path("image");
    std::fs::write(&path, image).unwrap();
    Qcow2::open(path, options)
}

#[test]
fn corrupt_headers_are_rejected() {
    // qcow2: an out-of-range value in any header field is rejected with a specific error, before
    // anything is allocated or read based on it.
    let folder = Scratch::new();
    let good = good(&folder);
    let lies: [(usize, &[u8], &str); 17] = [
        (0, b"RAW!", "does not start with"),
        (4, &4_u32.to_be_bytes(), "version 4"),
        (8, &[0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 4, 0], "1024 bytes at 256"),
        (20, &8_u32.to_be_bytes(), "2^8"),
        (20, &22_u32.to_be_bytes(), "2^22"),
        (24, &u64::MAX.to_be_bytes(), "the limit is"),
        (32, &1_u32.to_be_bytes(), "AES"),
        (36, &0_u32.to_be_bytes(), "0 entries"),
        (36, &0x40_0001_u32.to_be_bytes(), "4194305 entries"),
        (40, &1000_u64.to_be_bytes(), "multiple of the cluster size"),
        (40, &0_u64.to_be_bytes(), "overlaps the header"),
        (40, &(1_u64 << 60).to_be_bytes(), "beyond the largest file offset"),
        (48, &1000_u64.to_be_bytes(), "multiple of the cluster size"),
        (56, &16385_u32.to_be_bytes(), "the limit is 8388608"),
        (96, &7_u32.to_be_bytes(), "2^7 bits"),
        (100, &1000_u32.to_be_bytes(), "length 1000 in a cluster of 512 bytes"),
        (104, &[0xe2, 0x79, 0x2a, 0xca, 0, 0, 2, 0], "512 bytes reaches beyond the header"),
    ];
    coralio::run(|| {
        for (at, bytes, why) in lies {
            let mut image = good.clone();
            image[at..at + bytes.len()].copy_from_slice(bytes);
            let error = opens(&folder, &image, &Options::default()).expect_err(why);
            assert!(error.to_string().contains(why), "{why}: {error}");
        }
    });
}

#[test]
fn overlapping_tables_are_not_written() {
    // qcow2: if tables overlap or lie outside the file, the image can be read but not written.
    let folder = Scratch::new();
    let good = good(&folder);
    let (l1, reftable) = (number(&good, 40), number(&good, 48));
    let block = number(&good, reftable as usize);
    let beyond = good.len().next_multiple_of(512) as u64;
    let lies = [
        (l1, reftable, "overlaps another table"),
        (l1, block, "overlaps another table"),
        (l1, l1, "overlaps another table"),
        (l1, beyond, "not at a cluster of the file"),
        (reftable, l1, "overlaps another table"),
        (reftable, block + 8, "not at a cluster of the file"),
        (40, reftable, "overlaps another table"),
    ];
    coralio::run(|| {
        for (at, value, why) in lies {
            let mut image = good.clone();
            image[at as usize..][..8].copy_from_slice(&value.to_be_bytes());
            opens(&folder, &image, &Options::default()).unwrap();
            let error = opens(&folder, &image, &for_writing()).expect_err(why);
            assert!(error.to_string().contains(why), "{error}");
        }
    });
}

#[test]
fn data_is_not_written_over_tables() {
    // qcow2: if an L2 entry refers to a table, writing guest data is rejected and the table stays
    // unchanged.
    let folder = Scratch::new();
    let good = good(&folder);
    let (l1, reftable) = (number(&good, 40), number(&good, 48));
    let l2 = number(&good, l1 as usize) & !(1 << 63);
    for table in [0x200 * (l1 / 0x200), reftable, number(&good, reftable as usize), l2] {
        let mut image = good.clone();
        image[l2 as usize..][..8].copy_from_slice(&(table | 1 << 63).to_be_bytes());
        coralio::run(|| {
            let opened = opens(&folder, &image, &for_writing()).unwrap();
            for result in [opened.write_at(&[9; 512], 0), opened.discard(0, 512)] {
                let error = result.expect_err("a table is there");
                assert!(error.to_string().contains("points to a table"), "{error}");
            }
            opened.flush().unwrap();
        });
        assert!(std::fs::read(folder.path("image")).unwrap() == image, "something was written");
    }
}

#[test]
fn clusters_wrongly_marked_free_are_skipped() {
    // qcow2: even if all refcounts are 0, so that every cluster looks free, tables are not
    // allocated.
    let folder = Scratch::new();
    let mut image = good(&folder);
    let block = number(&image, number(&image, 48) as usize) as usize;
    image[block..block + 512].fill(0);
    coralio::run(|| {
        let opened = opens(&folder, &image, &for_writing()).unwrap();
        opened.write_at(&[9; 4096], 4096).unwrap();
        opened.flush().unwrap();
        let mut buf = [0; 4096];
        Qcow2::open(folder.path("image"), &Options::default()).unwrap().read_at(&mut buf, 4096).unwrap();
        assert_eq!(buf, [9; 4096]);
    });
}

#[test]
fn corrupt_entries_are_errors() {
    // qcow2: misaligned L1 and L2 entries, and invalid or out-of-range compressed data, are errors
    // only for the affected offsets.
    let folder = Scratch::new();
    let good = good(&folder);
    let l1 = number(&good, 40);
    let l2 = number(&good, l1 as usize) & !(1 << 63);
    let lies = [(l2, 1 << 62 | 1 << 40, "beyond the end"), (l2, 1 << 62 | 512, "cannot be decompressed")];
    coralio::run(|| {
        for (at, value, why) in lies {
            let mut image = good.clone();
            image[at as usize..][..8].copy_from_slice(&u64::to_be_bytes(value));
            let opened = opens(&folder, &image, &Options::default()).unwrap();
            let error = opened.read_at(&mut [0; 512], 0).expect_err(why);
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(error.to_string().contains(why), "{error}");
            opened.read_at(&mut [0; 512], 512).unwrap();
        }
        for bits in 9..16 {
            // Clusters larger than 512 bytes, so that misaligned offsets exist.
            let path = folder.path(&format!("of {bits} bits"));
            Qcow2::create(&path, &CreateOptions { cluster_size: 1 << bits, ..CreateOptions::new(20_000) }).unwrap();
            let mut image = std::fs::read(&path).unwrap();
            let l1 = number(&image, 40) as usize;
            image[l1..l1 + 8].copy_from_slice(&(0x200_u64 | 1 << 63).to_be_bytes());
            let opened = opens(&folder, &image, &Options::default()).unwrap();
            let result = opened.read_at(&mut [0; 512], 0);
            assert_eq!(result.is_err(), bits > 9, "{result:?}");
        }
    });
}

#[test]
fn unverified_metadata_is_rejected() {
    // qcow2: a dirty bitmap is not maintained, so its autoclear bit is cleared when the image is
    // opened for writing.
    if !has_qemu() {
        return;
    }
    let folder = Scratch::new();
    qemu_img(&folder, "create -f qcow2 image 1M");
    qemu_img(&folder, "bitmap --add image changes");
    let autoclear = || number(&std::fs::read(folder.path("image")).unwrap(), 88);
    assert_eq!(autoclear(), 1);
    coralio::run(|| {
        drop(open(folder.path("image"), &Options::default()).unwrap());
        assert_eq!(autoclear(), 1);
        let image = open(folder.path("image"), &for_writing()).unwrap();
        image.write_at(&[1; 512], 0).unwrap();
        image.flush().unwrap();
    });
    assert_eq!(autoclear(), 0);
    assert_eq!(as_qemu_reads(&folder, "image")[..512], [1; 512]);
    // The clusters of the bitmap leak, as qemu-img reports.
    qemu_img(&folder, "check -r leaks image");
    assert_clean(&folder, "image");
}

#[test]
fn long_backing_chains_are_limited() {
    // qcow2: a chain of 32 images is readable on an ordinary stack; 33 images are rejected.
    let folder = Scratch::new();
    let name = |n: usize| format!("image {n}");
    coralio::run(|| {
        for n in 0..33_usize {
            let backing = n.checked_sub(1).map(|below| (name(below), Format::Qcow2));
            Qcow2::create(folder.path(&name(n)), &CreateOptions { backing, ..CreateOptions::new(4096) }).unwrap();
        }
        let bottom = open(folder.path(&name(0)), &for_writing()).unwrap();
        bottom.write_at(&[7; 4096], 0).unwrap();
        bottom.flush().unwrap();
        let top = open(folder.path(&name(31)), &for_writing()).unwrap();
        let mut buf = [0; 4096];
        top.read_at(&mut buf, 0).unwrap();
        assert_eq!(buf, [7; 4096]);
        assert!(top.extent(0, 4096).unwrap().allocated);
        top.write_at(&[8], 1).unwrap();
        top.read_at(&mut buf, 0).unwrap();
        assert_eq!(buf[..3], [7, 8, 7]);
        Qcow2::open(folder.path(&name(31)), &Options::default()).unwrap().read_at(&mut buf, 0).unwrap();
        assert_eq!(buf[..3], [7; 3]); // the other image has not flushed
        let error = open(folder.path(&name(32)), &Options::default()).err().expect("one too many");
        assert!(error.to_string().contains("look for a loop"), "{error}");
    });
}

#[test]
fn missing_backing_file_is_an_error() {
    // qcow2: an image can name any path as its backing file; special files are not opened, because
    // that could block forever.
    let folder = Scratch::new();
    assert!(std::process::Command::new("mkfifo").arg(folder.path("pipe")).status().unwrap().success());
    // Held open, so that an erroneous open for reading would fail the test instead of blocking it.
    let _held = std::fs::File::options().read(true).write(true).open(folder.path("pipe")).unwrap();
    std::os::unix::net::UnixListener::bind(folder.path("socket")).unwrap();
    coralio::run(|| {
        for name in ["pipe", "socket", "/dev/zero", "/dev/full", "."] {
            let backing = Some((name.to_owned(), Format::Raw));
            Qcow2::create(folder.path("image"), &CreateOptions { backing, ..CreateOptions::new(4096) }).unwrap();
            let error = open(folder.path("image"), &for_writing()).err().expect(name);
            assert!(
                error.to_string().contains(&format!("{name}: is neither a regular file nor a block device")),
                "{error}"
            );
            std::fs::remove_file(folder.path("image")).unwrap();
        }
    });
}
