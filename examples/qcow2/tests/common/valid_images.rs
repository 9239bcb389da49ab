//! Valid images to be corrupted: created by this crate, and by `qemu-img` if available.
#![allow(dead_code, unreachable_pub)]

use coralio_qcow2::{CreateOptions, Qcow2, Zeroes, open};

use super::{Scratch, for_writing, has_qemu, qemu_img};

/// Returns the images, of 4 to 20 KiB each.
pub fn good_images() -> Vec<Vec<u8>> {
    let folder = Scratch::new();
    let mut images = Vec::new();
    let shapes = [(512, 3, 16, 30_000), (512, 2, 16, 70_000), (1024, 3, 1, 1 << 30), (4096, 3, 64, 100_000)];
    for (cluster_size, version, refcount_bits, size) in shapes {
        let options = CreateOptions { cluster_size, version, refcount_bits, ..CreateOptions::new(size) };
        let path = folder.path(&format!("{}", images.len()));
        coralio::run(|| {
            Qcow2::create(&path, &options).unwrap();
            let image = open(&path, &for_writing()).unwrap();
            image.write_at(&[1; 9000], 3000).unwrap();
            image.write_zeroes(6144, 2048, Zeroes::default()).unwrap();
            image.write_at(&[2; 100], size - 100).unwrap();
            image.flush().unwrap();
        });
        images.push(std::fs::read(&path).unwrap());
    }
    if has_qemu() {
        std::fs::write(folder.path("source"), (0..60_000).map(|at| (at / 99) as u8).collect::<Vec<_>>()).unwrap();
        for options in ["cluster_size=512", "cluster_size=4096,compression_type=zstd"] {
            qemu_img(&folder, &format!("convert -c -f raw -O qcow2 -o {options} source packed"));
            images.push(std::fs::read(folder.path("packed")).unwrap());
        }
        qemu_img(&folder, "create -f qcow2 -o cluster_size=512 -b source -F raw backed");
        images.push(std::fs::read(folder.path("backed")).unwrap());
    }
    images
}
