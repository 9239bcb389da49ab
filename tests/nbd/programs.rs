//! Other projects' clients. One that is not installed is skipped with a message.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::server::{Folder, Server};

/// Runs a program and asserts success. Returns its output, or `None` if it is not installed.
fn run(program: &str, args: &[&str]) -> Option<String> {
    let output = match Command::new(program).args(args).stdin(Stdio::null()).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: no {program}");
            return None;
        }
        output => output.unwrap(),
    };
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {args:?}: {}\n{said}", output.status);
    Some(said)
}

/// Fills a file with words of which no two are equal, and with holes among them.
fn fill(path: &Path, len: usize) {
    let mut bytes = vec![0; len];
    for (number, word) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        if number / 40_000 % 3 != 1 {
            *word = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        }
    }
    fs::write(path, bytes).unwrap();
}

#[test]
fn qemu_io_patterns_are_verified() {
    // P13: qemu-io writes, zeroes, discards and reads back patterns, aligned and unaligned, with
    // and without FUA
    let folder = Folder::new("qemu-io");
    let image = folder.image("disk", 16 << 20);
    let server = Server::of(&folder, &image);
    let uri = server.uri("");
    let steps = [
        "write -P 1 0 1M",
        "write -P 2 513 3000",
        "read -P 2 513 3000",
        "read -P 1 0 513",
        "write -P 3 -f 4M 2M",
        "write -z 5M 64k",
        "read -P 0 5M 64k",
        "read -P 3 4M 1M",
        "write -z -u 4M 64k",
        "read -P 0 4M 64k",
        "discard 0 64k",
        "flush",
        "aio_write -P 4 8M 64k",
        "aio_write -P 5 9M 64k",
        "aio_flush",
        "read -P 4 8M 64k",
        "read -P 5 9M 64k",
    ];
    let mut args = vec!["-f", "raw"];
    steps.iter().for_each(|step| args.extend(["-c", step]));
    args.push(&uri);
    let Some(said) = run("qemu-io", &args) else { return };
    assert!(!said.contains("Pattern verification failed"), "{said}");
    server.stop();
    let found = fs::read(&image).unwrap();
    assert!(found[8 << 20..(8 << 20) + 65536].iter().all(|&byte| byte == 4));
}

#[test]
fn qemu_img_copies_and_compares() {
    // P14: qemu-img converts to and from the server and finds no difference; its benchmark runs at
    // every depth
    let folder = Folder::new("qemu-img");
    let (source, copy) = (folder.path("source"), folder.path("copy"));
    fill(&source, 24 << 20);
    let image = folder.image("disk", 24 << 20);
    let server = Server::of(&folder, &image);
    let uri = server.uri("");
    let [source_name, copy_name] = [&source, &copy].map(|path| path.to_str().unwrap());
    let convert = ["convert", "-n", "-f", "raw", "-O", "raw", "-m", "16", "-W", source_name, &uri];
    if run("qemu-img", &convert).is_none() {
        return;
    }
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", source_name, &uri]);
    run("qemu-img", &["convert", "-f", "raw", "-O", "raw", &uri, copy_name]);
    assert!(fs::read(&source).unwrap() == fs::read(&copy).unwrap());
    for depth in ["1", "16", "64"] {
        run("qemu-img", &["bench", "-f", "raw", "-c", "2000", "-d", depth, "-s", "4096", "-S", "266240", &uri]);
    }
    run("qemu-img", &["bench", "-f", "raw", "-w", "--flush-interval=100", "-c", "2000", "-d", "32", &uri]);
    server.stop();
}

#[test]
fn libnbd_copies_and_queries() {
    // P15: nbdcopy copies both ways with several connections; nbdinfo shows size, exports and the
    // map of holes
    let folder = Folder::new("libnbd");
    let (source, copy) = (folder.path("source"), folder.path("copy"));
    fill(&source, 24 << 20);
    let image = folder.image("disk", 24 << 20);
    let named = format!("disk={}", image.display());
    let server = Server::start(&folder, &["--export", &named, "--threads", "2"]);
    let uri = server.uri("disk");
    let [source_name, copy_name] = [&source, &copy].map(|path| path.to_str().unwrap());
    if run("nbdcopy", &["--connections=4", "--requests=32", "--flush", source_name, &uri]).is_none() {
        return;
    }
    run("nbdcopy", &["--connections=4", "--requests=32", &uri, copy_name]);
    assert!(fs::read(&source).unwrap() == fs::read(&copy).unwrap());
    assert!(fs::read(&source).unwrap() == fs::read(&image).unwrap());
    // Without asking for extents first: it reads the holes, which are reported as such.
    run("nbdcopy", &["--no-extents", "--request-size=4194304", &uri, copy_name]);
    assert!(fs::read(&source).unwrap() == fs::read(&copy).unwrap());
    let map = run("nbdinfo", &["--map", &uri]).unwrap();
    assert!(map.contains("data"), "{map}");
    assert_eq!(run("nbdinfo", &["--size", &uri]).unwrap().trim(), (24 << 20).to_string());
    let list = run("nbdinfo", &["--list", &server.uri("")]).unwrap();
    assert!(list.contains("export=\"disk\":"), "{list}");
    server.stop();
}

#[test]
fn qcow2_image_is_served_by_one_thread_of_two() {
    // P17: a qcow2 image made by qemu-img is served by two threads, with all its clients on one;
    // qemu-img check finds no error
    let folder = Folder::new("qcow2");
    let (source, image) = (folder.path("source"), folder.path("disk.qcow2"));
    fill(&source, 24 << 20);
    let [source_name, image_name] = [&source, &image].map(|path| path.to_str().unwrap());
    if run("qemu-img", &["create", "-q", "-f", "qcow2", image_name, "24M"]).is_none() {
        return;
    }
    let server = Server::start(&folder, &["--threads", "2", image_name]);
    let uri = server.uri("");
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", "-m", "16", "-W", source_name, &uri]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", source_name, &uri]);
    if run("nbdcopy", &["--connections=4", "--requests=32", "--flush", source_name, &uri]).is_some() {
        assert!(run("nbdinfo", &["--map", &uri]).unwrap().contains("data"));
    }
    server.stop();
    run("qemu-img", &["check", "-f", "qcow2", image_name]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", source_name, image_name]);
}

#[test]
fn fio_verifies_its_data() {
    // P16: fio writes at random with checksums, at depth 32, and verifies them
    let folder = Folder::new("fio");
    let engines = run("fio", &["--enghelp"]);
    if !engines.is_some_and(|engines| engines.split_whitespace().any(|engine| engine == "nbd")) {
        eprintln!("skipped: no fio with its nbd engine");
        return;
    }
    let image = folder.image("disk", 16 << 20);
    let server = Server::of(&folder, &image);
    let uri = format!("--uri={}", server.uri(""));
    let job = ["--name=verify", "--ioengine=nbd", "--rw=randwrite", "--bs=4k", "--iodepth=32", "--size=16m"];
    let verify = ["--verify=crc32c", "--do_verify=1", "--verify_state_save=0", "--thread"];
    let aux = format!("--aux-path={}", folder.path("").display());
    run("fio", &[&job[..], &verify, &[&uri, &aux]].concat());
    server.stop();
}
