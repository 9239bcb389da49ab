//! Reads images created by `qemu-img`: their content must equal what `qemu-img` reads.

mod common;

use std::io;
use std::rc::Rc;

use common::{Scratch, as_qemu_reads, assert_same, cluster_bits, has_qemu, qemu_img, qemu_io, read_all};
use coralio_qcow2::{Image, Options, open};

/// Writes within and across clusters, zeroes and discards clusters, and leaves some untouched.
fn fill(folder: &Scratch, file: &str, cluster: u64, size: u64) {
    let last = size - 512;
    let commands = [
        "write -P 1 0 4096".to_owned(),
        format!("write -P 2 {} {}", cluster * 3 + 512, cluster * 2),
        format!("write -P 3 {} {}", cluster * 7, cluster * 4),
        format!("write -z {} {}", cluster * 8, cluster),
        format!("discard {} {}", cluster * 9, cluster),
        format!("write -P 4 {} 512", size / 2 + cluster / 2),
        format!("write -P 5 {last} 512"),
    ];
    qemu_io(folder, file, &commands);
}

fn assert_reads(folder: &Scratch, file: &str, what: &str) {
    let reference = as_qemu_reads(folder, file);
    let path = folder.path(file);
    coralio::run(|| {
        let image = open(path, &Options::default()).unwrap();
        for step in [1 << 20, 4096, 12345] {
            assert_same(&read_all(&*image, step), &reference, &format!("{what}, by {step}"));
        }
        assert_extents(&*image, &reference, what);
    });
}

/// Asserts that extents reported as zero read as zeroes.
fn assert_extents(image: &dyn Image, reference: &[u8], what: &str) {
    let mut offset = 0;
    while offset < image.len() {
        let extent = image.extent(offset, image.len() - offset).unwrap();
        assert!(extent.len > 0 && extent.len <= image.len() - offset, "{what}: {extent:?} at {offset}");
        let bytes = &reference[offset as usize..(offset + extent.len) as usize];
        assert!(!extent.zero || bytes.iter().all(|&byte| byte == 0), "{what}: {extent:?} at {offset} is not zero");
        assert!(extent.zero || extent.allocated, "{what}: {extent:?} at {offset} has no location");
        offset += extent.len;
    }
}

#[test]
fn every_cluster_size_and_version_is_read() {
    // qcow2: images of qemu-img with 512-byte to 2 MiB clusters, versions 2 and 3.
    if !has_qemu() {
        return;
    }
    for bits in cluster_bits() {
        for compat in ["0.10", "1.1"] {
            let folder = Scratch::new();
            let cluster = 1_u64 << bits;
            let size = (cluster * 16 + 1536).max(69632);
            qemu_img(&folder, &format!("create -f qcow2 -o compat={compat},cluster_size={cluster} image {size}"));
            fill(&folder, "image", cluster, size);
            assert_reads(&folder, "image", &format!("{cluster} bytes a cluster, {compat}"));
        }
    }
}

#[test]
fn every_preallocation_and_refcount_width_is_read() {
    // qcow2: preallocation allocates data clusters for zeroes; reading ignores refcounts.
    if !has_qemu() {
        return;
    }
    for mode in ["off", "metadata", "falloc", "full"] {
        let folder = Scratch::new();
        qemu_img(&folder, &format!("create -f qcow2 -o preallocation={mode} image 3M"));
        fill(&folder, "image", 65536, 3 << 20);
        assert_reads(&folder, "image", mode);
    }
    for bits in [1, 2, 4, 8, 16, 32, 64] {
        let folder = Scratch::new();
        qemu_img(&folder, &format!("create -f qcow2 -o cluster_size=4k,refcount_bits={bits} image 3M"));
        fill(&folder, "image", 4096, 3 << 20);
        assert_reads(&folder, "image", &format!("{bits} bits"));
    }
}

#[test]
fn compressed_clusters_are_read() {
    // qcow2: zlib and zstd, clusters that share sectors, and incompressible clusters.
    if !has_qemu() {
        return;
    }
    for (bits, method) in [9, 12, 16, 21].into_iter().flat_map(|bits| [(bits, "zlib"), (bits, "zstd")]) {
        let folder = Scratch::new();
        let size = (1 << bits) * 10_u64;
        let mut random = common::Random(bits);
        let mut bytes: Vec<u8> = (0..size).map(|at| (at / 100) as u8).collect();
        bytes[size as usize / 2..].iter_mut().for_each(|byte| *byte = random.next() as u8 & 0x5f);
        std::fs::write(folder.path("source"), &bytes).unwrap();
        let options = format!("cluster_size={},compression_type={method}", 1 << bits);
        qemu_img(&folder, &format!("convert -c -f raw -O qcow2 -o {options} source image"));
        let packed = qemu_img(&folder, "check image");
        assert!(packed.contains("compressed clusters"), "{packed}");
        assert_reads(&folder, "image", &options);
    }
}

#[test]
fn backing_chains_are_read() {
    // qcow2: raw and qcow2 backing files, shorter and longer than the image, with relative names.
    if !has_qemu() {
        return;
    }
    let folder = Scratch::new();
    std::fs::create_dir(folder.path("below")).unwrap();
    std::fs::write(folder.path("below/base.raw"), vec![9; 1_000_448]).unwrap();
    qemu_img(&folder, "create -f qcow2 -o cluster_size=4k -b base.raw -F raw below/middle 2M");
    qemu_io(&folder, "below/middle", &["write -P 7 8192 100k", "write -z 40k 8k", "write -P 8 1100k 4k"]);
    qemu_img(&folder, "create -f qcow2 -b below/middle -F qcow2 top 3M");
    qemu_io(&folder, "top", &["write -P 6 16k 4k", "write -z 64k 64k", "write -P 5 2500k 4k"]);
    qemu_img(&folder, "create -f qcow2 -b below/middle -F qcow2 short 512k");
    assert_reads(&folder, "below/middle", "middle");
    assert_reads(&folder, "top", "top");
    assert_reads(&folder, "short", "short");
}

#[test]
fn images_with_snapshots_are_read() {
    // qcow2: an image with internal snapshots can be read, and writing is rejected with a specific
    // error.
    if !has_qemu() {
        return;
    }
    let folder = Scratch::new();
    qemu_img(&folder, "create -f qcow2 image 1M");
    qemu_io(&folder, "image", &["write -P 1 0 200k"]);
    qemu_img(&folder, "snapshot -c first image");
    qemu_io(&folder, "image", &["write -P 2 100k 200k"]);
    assert_reads(&folder, "image", "with a snapshot");
    assert_refused(&folder, "image", true, "1 internal snapshots");
}

fn assert_refused(folder: &Scratch, file: &str, write: bool, why: &str) {
    let path = folder.path(file);
    let error = coralio::run(|| open(path, &Options { write, ..Options::default() }).err()).expect(why);
    assert!(error.to_string().contains(why), "{error}");
    let kinds = [io::ErrorKind::Unsupported, io::ErrorKind::InvalidData];
    assert!(kinds.contains(&error.kind()), "{error:?}");
}

#[test]
fn unsupported_features_are_rejected_by_name() {
    // qcow2: encryption, an external data file, subclusters, unknown features, dirty and corrupt
    // images, loops.
    if !has_qemu() {
        return;
    }
    let folder = Scratch::new();
    qemu_img(&folder, "create -f qcow2 -o extended_l2=on subclusters 1M");
    assert_refused(&folder, "subclusters", false, "extended L2");
    qemu_img(&folder, "create -f qcow2 -o data_file=data external 1M");
    assert_refused(&folder, "external", false, "external data file");
    qemu_img(
        &folder,
        "create --object secret,id=s,data=x -f qcow2 -o encrypt.format=luks,encrypt.key-secret=s luks 1M",
    );
    assert_refused(&folder, "luks", false, "encrypted");

    let patch = |name: &str, at: usize, bytes: &[u8]| {
        qemu_img(&folder, &format!("create -f qcow2 {name} 1M"));
        let mut image = std::fs::read(folder.path(name)).unwrap();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        std::fs::write(folder.path(name), image).unwrap();
    };
    patch("unknown", 72, &[0x80]);
    assert_refused(&folder, "unknown", false, "bit 63");
    patch("corrupt", 79, &[2]);
    assert_refused(&folder, "corrupt", true, "qemu-img check -r all");
    assert_reads(&folder, "corrupt", "marked corrupt");
    patch("dirty", 79, &[1]);
    assert_refused(&folder, "dirty", true, "qemu-img check -r all");

    std::fs::write(folder.path("a"), b"").unwrap();
    qemu_img(&folder, "create -f qcow2 -u -b b -F qcow2 a 1M");
    qemu_img(&folder, "create -f qcow2 -u -b a -F qcow2 b 1M");
    assert_refused(&folder, "a", false, "has this image in its own backing chain: a loop");
    qemu_img(&folder, "create -f qcow2 -u -b ./self -F qcow2 self 1M");
    assert_refused(&folder, "self", false, "loop");
    qemu_img(&folder, "create -f qcow2 -u -b nbd://localhost/x -F raw remote 1M");
    assert_refused(&folder, "remote", false, "is not a path");
    qemu_img(&folder, "create -f qcow2 -u -b x.vmdk -F vmdk foreign 1M");
    assert_refused(&folder, "foreign", false, "\"vmdk\"");
}

#[test]
fn unknown_feature_is_named_from_the_image() {
    // qcow2: the error uses the name in the feature name table.
    if !has_qemu() {
        return;
    }
    let folder = Scratch::new();
    qemu_img(&folder, "create -f qcow2 image 1M");
    let mut image = std::fs::read(folder.path("image")).unwrap();
    let name = b"dirty bit";
    let at = image.windows(name.len()).position(|window| window == name).unwrap();
    image[at - 1] = 40; // now names bit 40
    image[72..80].copy_from_slice(&(1_u64 << 40).to_be_bytes());
    std::fs::write(folder.path("image"), image).unwrap();
    assert_refused(&folder, "image", false, "\"dirty bit\" (bit 40)");
}

#[test]
fn concurrent_reads_are_correct() {
    // qcow2: 64 coroutines, a cold cache, compressed and backing clusters mixed.
    if !has_qemu() {
        return;
    }
    let folder = Scratch::new();
    let mut random = common::Random(1);
    let bytes: Vec<u8> = (0..4 << 20).map(|at| (at >> 9) as u8 ^ (random.next() & 1) as u8).collect();
    std::fs::write(folder.path("source"), &bytes).unwrap();
    qemu_img(&folder, "convert -c -f raw -O qcow2 -o cluster_size=512 source base");
    qemu_img(&folder, "create -f qcow2 -o cluster_size=1k -b base -F qcow2 image");
    qemu_io(&folder, "image", &["write -P 1 1M 100k", "write -z 2M 100k"]);
    let reference = as_qemu_reads(&folder, "image");
    coralio::run(|| {
        let image = open(folder.path("image"), &Options::default()).unwrap();
        let readers: Vec<_> = (0..64)
            .map(|seed| {
                let image = Rc::clone(&image);
                coralio::spawn(move || {
                    let mut random = common::Random(seed);
                    (0..20)
                        .map(|_| {
                            let offset = random.below(image.len() - 20000);
                            let mut buf = vec![0; 1 + random.below(20000) as usize];
                            image.read_at(&mut buf, offset).unwrap();
                            (offset as usize, buf)
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        for (offset, buf) in readers.into_iter().flat_map(|reader| reader.join().unwrap()) {
            assert_same(&buf, &reference[offset..][..buf.len()], &format!("{} bytes at {offset}", buf.len()));
        }
    });
}
