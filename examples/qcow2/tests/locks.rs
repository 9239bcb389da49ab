//! Conflicting access by several programs, with the locks that QEMU's programs use. QEMU's programs
//! run beside ours.

mod common;

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::process::{Child, Command, Stdio};

use common::{Scratch, has_qemu, qemu_img};
use coralio_qcow2::{CreateOptions, Format, Image, Options, Qcow2, open};

/// A `qemu-io` process with an image open until dropped.
struct Other(Child);

impl Other {
    fn opens(folder: &Scratch, args: &[&str], image: &str) -> Other {
        let mut command = Command::new("qemu-io");
        command.args(args).arg(folder.path(image)).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // Once a read has completed, the image is open.
        child.stdin.as_mut().unwrap().write_all(b"read 0 512\n").unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("read 512/512"), "{line}");
        Other(child)
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Returns the error text of a QEMU program, if it fails.
fn refuses(folder: &Scratch, command: &str) -> Option<String> {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).current_dir(folder.path("")).output().unwrap();
    (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

fn ours(folder: &Scratch, image: &str, format: Format, write: bool) -> std::io::Result<std::rc::Rc<dyn Image>> {
    open(folder.path(image), &Options { write, format: Some(format), lock: true, ..Options::default() })
}

fn is_busy(opened: std::io::Result<std::rc::Rc<dyn Image>>, why: &str) {
    let error = opened.err().expect(why);
    assert!(error.kind() == ErrorKind::ResourceBusy && error.to_string().contains(why), "{error}");
}

const WRITER: &str = "qemu-io -f qcow2 -c quit image";
const READER: &str = "qemu-io -r -f qcow2 -c quit image";

#[test]
fn writer_excludes_all_others() {
    // qcow2: while we write, no other program opens the image; while we read, none writes it; and
    // vice versa.
    use Format::Qcow2 as F;
    let folder = Scratch::new();
    coralio::run(|| {
        Qcow2::create(folder.path("image"), &CreateOptions::new(1 << 20)).unwrap();
        let writer = ours(&folder, "image", F, true).unwrap();
        is_busy(ours(&folder, "image", F, true), "open for writing");
        is_busy(ours(&folder, "image", F, false), "open for writing");
        // Opening without locks ignores the writer.
        open(folder.path("image"), &Options::default()).unwrap();
        if has_qemu() {
            assert!(refuses(&folder, WRITER).unwrap().contains("\"write\" lock"));
            assert!(refuses(&folder, READER).unwrap().contains("shared \"write\" lock"));
            assert!(refuses(&folder, "qemu-img info image").unwrap().contains("shared \"write\" lock"));
        }
        drop(writer);
        let readers = [(); 2].map(|()| ours(&folder, "image", F, false).unwrap());
        is_busy(ours(&folder, "image", F, true), "does not share writes");
        if has_qemu() {
            assert!(refuses(&folder, WRITER).unwrap().contains("\"write\" lock"));
            assert_eq!(refuses(&folder, READER), None);
            assert_eq!(refuses(&folder, "qemu-img info image"), None);
        }
        drop(readers);
        if !has_qemu() {
            return;
        }
        assert_eq!(refuses(&folder, WRITER), None);
        let other = Other::opens(&folder, &["-f", "qcow2"], "image");
        is_busy(ours(&folder, "image", F, true), "open for writing");
        is_busy(ours(&folder, "image", F, false), "open for writing");
        drop(other);
        let other = Other::opens(&folder, &["-r", "-f", "qcow2"], "image");
        is_busy(ours(&folder, "image", F, true), "does not share writes");
        ours(&folder, "image", F, false).unwrap();
        drop(other);
        ours(&folder, "image", F, true).unwrap();
    });
}

#[test]
fn backing_file_is_not_written() {
    // qcow2: every image of a chain is locked, including the raw one at the bottom.
    let folder = Scratch::new();
    std::fs::write(folder.path("raw"), vec![1; 1 << 20]).unwrap();
    coralio::run(|| {
        let on =
            |name: &str, format| CreateOptions { backing: Some((name.into(), format)), ..CreateOptions::new(1 << 20) };
        Qcow2::create(folder.path("base"), &on("raw", Format::Raw)).unwrap();
        Qcow2::create(folder.path("image"), &on("base", Format::Qcow2)).unwrap();
        let image = ours(&folder, "image", Format::Qcow2, true).unwrap();
        is_busy(ours(&folder, "base", Format::Qcow2, true), "does not share writes");
        let base = ours(&folder, "base", Format::Qcow2, false).unwrap();
        if has_qemu() {
            assert!(refuses(&folder, "qemu-io -f qcow2 -c quit base").unwrap().contains("\"write\" lock"));
        }
        let keeps_its_length = || {
            if has_qemu() {
                let said = refuses(&folder, "qemu-img resize -f raw raw 2M");
                assert!(said.unwrap().contains("lock"));
            }
        };
        keeps_its_length();
        is_busy(ours(&folder, "raw", Format::Raw, true), "does not share writes");
        if has_qemu() {
            assert!(refuses(&folder, "qemu-io -f raw -c quit raw").unwrap().contains("\"write\" lock"));
        }
        drop((image, base));
        let raw = ours(&folder, "raw", Format::Raw, true).unwrap();
        keeps_its_length();
        drop(raw);
        if has_qemu() {
            qemu_img(&folder, "resize -q -f raw raw 2M");
        }
    });
}

/// Asserts that exactly these bytes of the file are locked by all programs together.
fn assert_locked(folder: &Scratch, image: &str, expected: &[u64]) {
    let Ok(all) = std::fs::read_to_string("/proc/locks") else {
        eprintln!("skipped: /proc/locks cannot be read");
        return;
    };
    let inode = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(folder.path(image)).unwrap());
    let mut bytes = Vec::new();
    for line in all.lines().filter(|line| line.contains("OFDLCK")) {
        // Number, kind, mode, access, process, device and inode, first and last byte.
        let words: Vec<_> = line.split_whitespace().collect();
        if words[5].ends_with(&format!(":{inode}")) {
            bytes.extend(words[6].parse::<u64>().unwrap()..=words[7].parse().unwrap());
        }
    }
    bytes.sort_unstable();
    assert_eq!(bytes, expected);
}

#[test]
fn raw_image_has_one_writer() {
    // qcow2: while we write or read a raw image, qemu-io cannot open it for writing; while qemu-io
    // writes it, we cannot open it.
    use Format::Raw as F;
    const RAW_WRITER: &str = "qemu-io -f raw -c quit image";
    let folder = Scratch::new();
    std::fs::write(folder.path("image"), vec![1; 1 << 20]).unwrap();
    coralio::run(|| {
        let writer = ours(&folder, "image", F, true).unwrap();
        assert_locked(&folder, "image", &[100, 101, 201, 203]);
        is_busy(ours(&folder, "image", F, false), "open for writing");
        if has_qemu() {
            assert!(refuses(&folder, RAW_WRITER).unwrap().contains("\"write\" lock"));
            assert!(refuses(&folder, "qemu-img resize -f raw image 2M").unwrap().contains("lock"));
        }
        drop(writer);
        assert_locked(&folder, "image", &[]);
        let readers = [(); 2].map(|()| ours(&folder, "image", F, false).unwrap());
        is_busy(ours(&folder, "image", F, true), "does not share writes");
        if has_qemu() {
            assert!(refuses(&folder, RAW_WRITER).unwrap().contains("\"write\" lock"));
            assert_eq!(refuses(&folder, "qemu-io -r -f raw -c quit image"), None);
        }
        drop(readers);
        if !has_qemu() {
            return;
        }
        assert_eq!(refuses(&folder, RAW_WRITER), None);
        let other = Other::opens(&folder, &["-f", "raw"], "image");
        is_busy(ours(&folder, "image", F, true), "open for writing");
        is_busy(ours(&folder, "image", F, false), "open for writing");
        drop(other);
        // QEMU's readers of raw images permit writers.
        let other = Other::opens(&folder, &["-r", "-f", "raw"], "image");
        ours(&folder, "image", F, true).unwrap();
        ours(&folder, "image", F, false).unwrap();
        drop(other);
    });
}

#[test]
fn raw_image_is_written_by_threads_of_one_process() {
    // qcow2: the threads share the locks until the last one closes the image.
    let folder = Scratch::new();
    std::fs::write(folder.path("image"), vec![1; 1 << 20]).unwrap();
    let opened = || ours(&folder, "image", Format::Raw, true).unwrap();
    coralio::run(|| {
        let first = opened();
        std::thread::scope(|scope| {
            scope.spawn(|| coralio::run(|| opened().write_at(&[2; 512], 0).unwrap()));
        });
        assert_locked(&folder, "image", &[100, 101, 201, 203]);
        let second = opened();
        drop(first);
        assert_locked(&folder, "image", &[100, 101, 201, 203]);
        drop(second);
        assert_locked(&folder, "image", &[]);
    });
}
