//! Images written by this crate: `qemu-img check` finds no errors, and `qemu-img` reads the written
//! data.

mod common;

use std::io;
use std::rc::Rc;

use common::{
    Random, Scratch, as_qemu_reads, assert_clean, assert_same, cluster_bits, for_writing, has_qemu, qemu_img, qemu_io,
    read_all, seeds,
};
use coralio::spawn;
use coralio_qcow2::{CreateOptions, Format, Image, Options, Qcow2, Zeroes, open};

/// An open image, and the expected content of its disk.
struct Model {
    image: Rc<dyn Image>,
    bytes: Vec<u8>,
}

impl Model {
    fn new(image: Rc<dyn Image>) -> Model {
        let bytes = read_all(&*image, 1 << 20);
        Model { image, bytes }
    }

    fn write(&mut self, value: u8, offset: u64, len: u64) {
        let data = vec![value; len as usize];
        self.image.write_at(&data, offset).unwrap();
        self.bytes[offset as usize..(offset + len) as usize].fill(value);
    }

    fn zero(&mut self, offset: u64, len: u64, how: Zeroes) {
        match self.image.write_zeroes(offset, len, how) {
            Ok(()) => self.bytes[offset as usize..(offset + len) as usize].fill(0),
            Err(error) => assert!(how.fast && error.kind() == io::ErrorKind::Unsupported, "{error}"),
        }
    }

    /// Discards a range; each byte must then be zero or unchanged.
    fn discard(&mut self, offset: u64, len: u64) {
        self.image.discard(offset, len).unwrap();
        let mut now = vec![0; len as usize];
        self.image.read_at(&mut now, offset).unwrap();
        let before = &mut self.bytes[offset as usize..(offset + len) as usize];
        assert!(now.iter().zip(&*before).all(|(now, before)| *now == 0 || now == before), "discard invented data");
        before.copy_from_slice(&now);
    }

    fn check(&self, what: &str) {
        assert_same(&read_all(&*self.image, 100_000), &self.bytes, what);
    }

    /// Flushes the image and checks it with `qemu-img`.
    fn finish(self, folder: &Scratch, file: &str, what: &str) {
        self.check(what);
        self.image.flush().unwrap();
        drop(self.image);
        assert_clean(folder, file);
        // QEMU's disks consist of whole sectors.
        let sectors = self.bytes.len() / 512 * 512;
        assert_same(&as_qemu_reads(folder, file), &self.bytes[..sectors], what);
    }
}

fn created(folder: &Scratch, options: &CreateOptions) -> Model {
    Qcow2::create(folder.path("image"), options).unwrap();
    let model = Model::new(open(folder.path("image"), &for_writing()).unwrap());
    assert_eq!(model.image.len(), options.size);
    model
}

/// Writes within and across clusters, over existing data and unallocated clusters.
fn scribble(model: &mut Model, cluster: u64) {
    let size = model.image.len();
    model.write(1, 0, 4096.min(size));
    model.write(2, cluster * 3 + 512, cluster * 2);
    model.write(3, cluster * 7, cluster * 4);
    model.zero(cluster * 8 + 1, cluster + 100, Zeroes::default());
    model.zero(cluster * 9, cluster * 2, Zeroes { keep_allocated: true, fast: false });
    model.write(4, cluster * 9 + 7, 100);
    model.discard(cluster * 7, cluster);
    model.write(5, size - 3, 3);
    model.write(6, cluster * 4 - 5, 10);
}

#[test]
fn created_images_are_valid() {
    // qcow2: images of each cluster size, version and refcount width are created, written, and
    // clean for qemu-img.
    if !has_qemu() {
        return;
    }
    let sizes = cluster_bits().flat_map(|bits| [(bits, 2, 16), (bits, 3, 16)]);
    let widths = [1, 2, 4, 8, 32, 64].map(|width| (12, 3, width));
    for (bits, version, refcount_bits) in sizes.chain(widths) {
        let folder = Scratch::new();
        let cluster = 1_u64 << bits;
        let what = format!("{cluster} bytes a cluster, version {version}, {refcount_bits} bits");
        let size = cluster * 16 + 1500;
        let options =
            CreateOptions { cluster_size: cluster, version, refcount_bits, ..CreateOptions::new(size.max(70000)) };
        coralio::run(|| {
            let mut model = created(&folder, &options);
            model.check("new");
            scribble(&mut model, cluster);
            let options = Options { format: Some(Format::Qcow2), ..for_writing() };
            model.image.flush().unwrap();
            model.image = open(folder.path("image"), &options).unwrap();
            scribble(&mut model, cluster);
            model.finish(&folder, "image", &what);
        });
    }
}

#[test]
fn invalid_creations_are_rejected() {
    // qcow2: the error says what is valid, and no file is created.
    let folder = Scratch::new();
    let refused = |options: CreateOptions, why: &str| {
        let error = coralio::run(|| Qcow2::create(folder.path("image"), &options)).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
        assert!(!folder.path("image").exists());
    };
    let new = CreateOptions::new;
    refused(CreateOptions { cluster_size: 1000, ..new(1) }, "power of two");
    refused(CreateOptions { cluster_size: 4 << 20, ..new(1) }, "512 to 2097152");
    refused(CreateOptions { refcount_bits: 128, ..new(1) }, "up to 64");
    refused(CreateOptions { version: 4, ..new(1) }, "must be 3, or 2 with 16 bits");
    refused(CreateOptions { version: 2, refcount_bits: 8, ..new(1) }, "16 bits");
    refused(CreateOptions { cluster_size: 512, ..new(1 << 40) }, "L1 entries");
    refused(CreateOptions { backing: Some((String::new(), Format::Raw)), ..new(1) }, "1 to ");
}

#[test]
fn images_of_qemu_img_are_written() {
    // qcow2: overwrites compressed, zero and preallocated clusters and backing data; unused
    // clusters are freed.
    if !has_qemu() {
        return;
    }
    let made: [(&str, &str, u64); 7] = [
        ("compressed", "convert -c -f raw -O qcow2 -o cluster_size=4k source image", 4096),
        ("zstd", "convert -c -f raw -O qcow2 -o compression_type=zstd source image", 65536),
        ("metadata", "create -f qcow2 -o preallocation=metadata image 2M", 65536),
        ("full", "create -f qcow2 -o preallocation=full,cluster_size=1k image 2M", 1024),
        ("version 2", "convert -f raw -O qcow2 -o compat=0.10,cluster_size=8k source image", 8192),
        ("backed", "create -f qcow2 -o cluster_size=4k -b source -F raw image 3M", 4096),
        ("backed, version 2", "create -f qcow2 -o cluster_size=4k,compat=0.10 -b source -F raw image 3M", 4096),
    ];
    for (what, command, cluster) in made {
        let folder = Scratch::new();
        let source: Vec<u8> = (0..2 << 20).map(|at| (at / 700) as u8).collect();
        std::fs::write(folder.path("source"), &source).unwrap();
        qemu_img(&folder, command);
        coralio::run(|| {
            let mut model = Model::new(open(folder.path("image"), &for_writing()).unwrap());
            scribble(&mut model, cluster);
            model.finish(&folder, "image", what);
        });
    }
}

#[test]
fn images_with_backing_files_are_written() {
    // qcow2: qemu-img follows the backing file's name and format in the header that this crate
    // writes.
    if !has_qemu() {
        return;
    }
    for version in [2, 3] {
        let folder = Scratch::new();
        qemu_img(&folder, "create -f qcow2 base 1M");
        qemu_io(&folder, "base", &["write -P 7 0 1M"]);
        let backing = Some(("base".to_owned(), Format::Qcow2));
        let options = CreateOptions { version, backing, cluster_size: 4096, ..CreateOptions::new(2 << 20) };
        coralio::run(|| {
            let mut model = created(&folder, &options);
            assert!(model.bytes[..1 << 20].iter().all(|&byte| byte == 7));
            scribble(&mut model, 4096);
            model.finish(&folder, "image", &format!("version {version}"));
        });
        assert!(qemu_img(&folder, "info image").contains("backing file format: qcow2"));
    }
}

#[test]
fn out_of_range_and_read_only_writes_are_rejected() {
    // qcow2: rejected before anything is done.
    let folder = Scratch::new();
    coralio::run(|| {
        let model = created(&folder, &CreateOptions::new(1000));
        let kinds = [
            model.image.read_at(&mut [0; 2], 999),
            model.image.write_at(&[0; 2], 999),
            model.image.discard(1, u64::MAX),
            model.image.write_zeroes(1000, 1, Zeroes::default()),
            model.image.extent(1001, 0).map(drop),
        ]
        .map(|result| result.unwrap_err().kind());
        assert_eq!(kinds, [io::ErrorKind::InvalidInput; 5]);
        let reader = open(folder.path("image"), &Options::default()).unwrap();
        let kinds = [reader.write_at(&[1], 0), reader.discard(0, 1), reader.write_zeroes(0, 1, Zeroes::default())]
            .map(|result| result.unwrap_err().kind());
        assert_eq!(kinds, [io::ErrorKind::PermissionDenied; 3]);
        assert!(Qcow2::create(folder.path("image"), &CreateOptions::new(1)).is_err());
    });
}

#[test]
fn error_names_the_path_once() {
    // qcow2: for errors of creating, opening and probing.
    let folder = Scratch::new();
    let (there, missing) = (folder.path("image"), folder.path("missing"));
    coralio::run(|| {
        Qcow2::create(&there, &CreateOptions::new(1000)).unwrap();
        let errors = [
            (&there, Qcow2::create(&there, &CreateOptions::new(1)).unwrap_err()),
            (&missing, Qcow2::create(&missing, &CreateOptions { version: 1, ..CreateOptions::new(1) }).unwrap_err()),
            (&missing, open(&missing, &Options::default()).err().expect("it is not there")),
            (&missing, Format::of(&missing).unwrap_err()),
            (&folder.path(""), Format::of(folder.path("")).unwrap_err()),
        ];
        for (path, error) in errors {
            let error = error.to_string();
            assert_eq!(error.matches(path.to_str().unwrap()).count(), 1, "{error}");
        }
    });
}

#[test]
fn discard_releases_space() {
    // qcow2: the space returns to the image, which reuses it, and to the file system.
    let folder = Scratch::new();
    coralio::run(|| {
        let mut model = created(&folder, &CreateOptions::new(8 << 20));
        let used = || std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(folder.path("image")).unwrap());
        let empty = used();
        model.write(1, 0, 4 << 20);
        model.image.flush().unwrap();
        let (full, len) = (used(), std::fs::metadata(folder.path("image")).unwrap().len());
        assert!(full >= empty + (4 << 11));
        model.discard(0, 4 << 20);
        model.image.flush().unwrap();
        assert!(used() < empty + (1 << 11), "{} blocks of 512 bytes, {full} before, {empty} at first", used());
        model.write(2, 4 << 20, 4 << 20);
        assert_eq!(
            std::fs::metadata(folder.path("image")).unwrap().len(),
            len,
            "new clusters although others are free"
        );
        model.check("used again");
    });
}

#[test]
fn cancelled_requests_leave_the_image_consistent() {
    // qcow2: a request cancelled during a write or flush affects no other request; at worst
    // clusters leak.
    if !has_qemu() {
        return;
    }
    for seed in seeds(20) {
        let folder = Scratch::new();
        let options = CreateOptions { cluster_size: 512, refcount_bits: 64, ..CreateOptions::new(4 << 20) };
        coralio::run(|| {
            let model = created(&folder, &options);
            let mut random = Random(seed);
            for _ in 0..40 {
                let image = Rc::clone(&model.image);
                let mut own = Random(random.next());
                let task = spawn(move || {
                    for _ in 0..4 {
                        let offset = own.below((4 << 20) - 70_000);
                        // A cancelled request fails.
                        _ = image.write_at(&vec![7; own.below(70_000) as usize], offset);
                        _ = image.flush();
                    }
                });
                for _ in 0..random.below(20) {
                    coralio::yield_now();
                }
                task.cancel();
                task.join().unwrap();
            }
            let mut model = Model::new(Rc::clone(&model.image));
            model.write(1, 1000, 100_000);
            model.image.flush().unwrap();
            model.check(&format!("seed {seed}"));
        });
        let bytes = std::fs::read(folder.path("image")).unwrap();
        common::check::check(&bytes).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}
