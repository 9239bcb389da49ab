//! The program `copy`, run as its users run it: what it copies, what it refuses, and what remains
//! after a failure.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::common::{Folder, content, example};

fn copy(src: &Path, dst: &Path) -> Command {
    let mut command = Command::new(example("copy"));
    command.arg(src).arg(dst);
    command
}

fn said(output: &Output) -> (String, String) {
    (String::from_utf8(output.stdout.clone()).unwrap(), String::from_utf8(output.stderr.clone()).unwrap())
}

/// Runs the command, asserts success, and returns its one line of output.
#[track_caller]
fn copied(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (stdout, stderr) = said(&output);
    assert!(output.status.success(), "{command:?}: {stderr}");
    assert_eq!(stderr, "", "nothing to warn of, and no progress bar without a terminal");
    assert!(stdout.starts_with("copied ") && stdout.lines().count() == 1, "{stdout}");
    stdout
}

/// Runs the command and asserts that it fails with one line that contains `words`.
#[track_caller]
fn refused(command: &mut Command, words: &[&str]) {
    let output = command.output().unwrap();
    let (stdout, stderr) = said(&output);
    assert_eq!(output.status.code(), Some(1), "{command:?}: {stdout}{stderr}");
    assert_eq!(stdout, "");
    assert!(stderr.starts_with("copy: ") && stderr.lines().count() == 1, "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "no {word:?} in: {stderr}");
    }
}

fn every_size(direct: &str, block_sizes: &[&str]) {
    let folder = Folder::new(&format!("sizes-{direct}"));
    for size in [0, 1, 511, 512, 4095, 4096, (1 << 20) + 17] {
        let content = content(size);
        let src = folder.file("src", &content);
        for block_size in block_sizes {
            // A small file is one block or a few.
            for depth in if size > 4096 { &["1", "64"][..] } else { &["64"] } {
                let dst = folder.path("dst");
                let mut command = copy(&src, &dst);
                command.args(["--direct", direct, "--block-size", block_size, "--depth", depth]);
                let output = command.output().unwrap();
                let (stdout, stderr) = said(&output);
                let unsupported = ["does not support direct I/O", "as direct I/O needs"];
                if direct == "always" && unsupported.iter().any(|words| stderr.contains(words)) {
                    eprintln!("skipped: the file system of {} does not support it: {stderr}", folder.0.display());
                    continue;
                }
                assert!(output.status.success(), "{command:?}: {stderr}");
                assert!(stdout.starts_with("copied "), "{stdout}");
                assert!(fs::read(&dst).unwrap() == content, "{command:?}: another content, size {size}");
                fs::remove_file(dst).unwrap();
            }
        }
    }
    assert_eq!(folder.names(), ["src"]);
}

#[test]
fn copy_has_equal_content() {
    // Issue: content and length are kept for all sizes: through the page cache with any block size,
    // with direct I/O even if lengths are not multiples of its block, and with --direct auto where
    // the file system or the block size rules out direct I/O.
    every_size("never", &["333", "512", "4096", "64k", "1M"]);
    every_size("always", &["512", "4096", "64k", "1M"]);
    every_size("auto", &["333", "512", "64k", "1M"]);
}

#[test]
fn printed_figures_match_the_copy() {
    // Issue: the output gives MB/s and the I/O counts.
    let folder = Folder::new("figures");
    let src = folder.file("src", content(1 << 20));
    let said = copied(copy(&src, &folder.path("dst")).args(["--block-size", "64k", "--depth", "4"]));
    // Sixteen blocks read and written, and one sync.
    for words in ["copied 1.00 MiB in ", " MB/s, 4 coroutines, 16 reads, 16 writes, ", " for 33 requests ("] {
        assert!(said.contains(words), "no {words:?} in: {said}");
    }
}

#[test]
fn holes_are_preserved() {
    // Issue: holes and length are kept, also if the file ends with a hole.
    const MIB: u64 = 1 << 20;
    let folder = Folder::new("holes");
    let src = folder.path("src");
    let file = fs::File::create(&src).unwrap();
    for at in [5 * MIB + 777, 5 * MIB + 70_000, 9 * MIB] {
        file.write_all_at(&content(5000), at).unwrap();
    }
    file.set_len(16 * MIB + 3).unwrap();
    file.sync_all().unwrap();
    let allocated = |path: &Path| fs::metadata(path).unwrap().blocks() * 512;
    if allocated(&src) > MIB {
        eprintln!("skipped: the file system of {} does not support holes", folder.0.display());
        return;
    }
    for direct in ["auto", "never"] {
        for block_size in ["4k", "256k", "4M"] {
            let dst = folder.path("dst");
            let said = copied(copy(&src, &dst).args(["--direct", direct, "--block-size", block_size]));
            assert!(said.contains(" of holes)"), "{said}");
            assert!(allocated(&dst) <= MIB, "{} of {} bytes are allocated", allocated(&dst), 16 * MIB);
            assert!(fs::read(&dst).unwrap() == fs::read(&src).unwrap(), "another content");
        }
    }
}

#[test]
fn file_of_one_hole_is_copied() {
    // Issue: a file without data is copied with its length.
    let folder = Folder::new("hole");
    let src = folder.file("src", "");
    fs::File::options().write(true).open(&src).unwrap().set_len((1 << 30) + 1).unwrap();
    let said = copied(&mut copy(&src, &folder.path("dst")));
    assert_eq!(fs::metadata(folder.path("dst")).unwrap().len(), (1 << 30) + 1);
    assert!(said.contains(" 0 reads, 0 writes, "), "{said}");
}

#[test]
fn destination_is_interpreted_as_by_cp() {
    // Issue: an existing DST is replaced as cp does; a directory receives a file named like SRC; a
    // link is followed.
    let folder = Folder::new("dst");
    let src = folder.file("src", "new");
    fs::set_permissions(&src, Permissions::from_mode(0o754)).unwrap();
    let old = folder.file("old", "old, and longer");
    fs::hard_link(&old, folder.path("second name")).unwrap();
    symlink("old", folder.path("link")).unwrap();
    fs::create_dir(folder.path("into")).unwrap();

    copied(&mut copy(&src, &folder.path("link")));
    assert!(folder.path("link").is_symlink());
    assert_eq!(fs::read(&old).unwrap(), b"new");
    assert_eq!(fs::metadata(&old).unwrap().mode() & 0o7777, 0o754);
    assert_eq!(fs::read(folder.path("second name")).unwrap(), b"old, and longer", "replaced, not overwritten");

    copied(&mut copy(&src, &folder.path("into")));
    assert_eq!(fs::read(folder.path("into/src")).unwrap(), b"new");
    copied(copy(Path::new("src"), Path::new("relative")).current_dir(&folder.0));
    assert_eq!(folder.names(), ["into", "link", "old", "relative", "second name", "src"]);
}

#[test]
fn copy_onto_itself_is_rejected() {
    // Issue: SRC = DST is an error under any name, and the content is kept.
    let folder = Folder::new("same");
    let src = folder.file("src", "precious");
    symlink("src", folder.path("symlink")).unwrap();
    fs::hard_link(&src, folder.path("hardlink")).unwrap();
    for other in ["src", "symlink", "hardlink", ".", "./../"] {
        let dst =
            if other == "./../" { folder.path("..").join(folder.0.file_name().unwrap()) } else { folder.path(other) };
        refused(&mut copy(&src, &dst), &["are the same file"]);
        assert_eq!(fs::read(&src).unwrap(), b"precious");
    }
    refused(&mut copy(&folder.path("symlink"), &folder.path("hardlink")), &["are the same file"]);
    assert_eq!(folder.names(), ["hardlink", "src", "symlink"]);
}

#[test]
fn invalid_sources_are_rejected() {
    // Issue: a SRC that is missing, a directory or a device is a clear error; E14: cause and
    // remedy.
    let folder = Folder::new("src");
    folder.file("file", "x");
    let dst = folder.path("dst");
    for (src, words) in [
        ("missing", ["missing: No such file", "check the path"]),
        ("file/x", ["file/x: Not a directory", "check the path"]),
        (".", ["is a directory", "choose a file in it"]),
        ("/dev/null", ["/dev/null: is not a regular file", "cat"]),
        ("/proc/self/mounts", ["reports no length", "cat"]),
    ] {
        refused(&mut copy(&folder.path(src), &dst), &words);
    }
    assert_eq!(folder.names(), ["file"]);
}

#[test]
fn invalid_destinations_are_rejected() {
    // Issue: an invalid DST is a clear error; existing files are kept.
    let folder = Folder::new("nowhere");
    let src = folder.file("src", "x");
    fs::create_dir_all(folder.path("full/src")).unwrap();
    symlink("nothing", folder.path("dangling")).unwrap();
    for (dst, words) in [
        ("missing/dst", ["cannot create a file in", "check the path"]),
        ("missing/", ["no such directory", "mkdir"]),
        ("src/dst", ["Not a directory", "check the path"]),
        ("full", ["src: is a directory", "choose a file"]),
        ("dangling", ["dangling symbolic link", "choose another"]),
        ("/dev/null", ["not a regular file", "choose another"]),
    ] {
        refused(&mut copy(&src, &folder.path(dst)), &words);
    }
    assert_eq!(folder.names(), ["dangling", "full", "src"]);
}

#[test]
fn unreadable_source_is_reported() {
    // Issue: an unreadable SRC is a clear error.
    let folder = Folder::new("unreadable");
    let src = folder.file("src", "secret");
    fs::set_permissions(&src, Permissions::from_mode(0o0)).unwrap();
    let mut command = copy(&src, &folder.path("dst"));
    if fs::metadata("/proc/self").unwrap().uid() == 0 {
        // Root can read everything, so run as another user.
        let nobody = 65534;
        command.uid(nobody).gid(nobody);
        if command.output().is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied) {
            eprintln!("skipped: another user than root may not run {}", example("copy").display());
            return;
        }
    }
    refused(&mut command, &["Permission denied", "ls -l"]);
    assert_eq!(folder.names(), ["src"]);
}

#[test]
fn invalid_options_are_rejected() {
    // E14: invalid options are rejected, with a remedy, before any file is created.
    let folder = Folder::new("options");
    let src = folder.file("src", content(5000));
    for (options, words) in [
        (&["--depth", "0"][..], ["--depth 0", "must be at least 1"]),
        (&["--depth", "1000000", "--block-size", "4k"], ["--depth 1000000: ", "32768"]),
        (&["--depth", "1000", "--block-size", "1G"], ["exceeds 4 GiB", "reduce one"]),
        (&["--block-size", "0"], ["--block-size 0", "must be"]),
        (&["--block-size", "2G"], ["--block-size 2147483648", "to 1G"]),
    ] {
        refused(copy(&src, &folder.path("dst")).args(options), &words);
    }
    let misaligned = ["--block-size", "1000", "--direct", "always"];
    let output = copy(&src, &folder.path("dst")).args(misaligned).output().unwrap();
    // Not on tmpfs, which accepts direct I/O at any alignment.
    if output.status.success() {
        fs::remove_file(folder.path("dst")).unwrap();
    } else {
        refused(copy(&src, &folder.path("dst")).args(misaligned), &["direct I/O", "--direct never"]);
    }
    for usage in
        [&["src"][..], &["src", "dst", "more"], &["--block-size", "12x"], &["--scratch-dir", ".", "src", "dst"]]
    {
        let output = Command::new(example("copy")).args(usage).current_dir(&folder.0).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{usage:?}");
    }
    assert_eq!(folder.names(), ["src"]);
}

#[test]
fn full_disk_is_reported() {
    // Issue: a full disk leaves no partial file and an existing DST unchanged; a scratch run
    // reports the space it needs.
    let folder = Folder::new("full");
    folder.file("src", content(3 << 20));
    fs::create_dir(folder.path("disk")).unwrap();
    // In a mount namespace of its own: the mount is invisible outside and disappears with its last
    // process.
    let in_there = |then: &str| {
        let script = format!("mount -t tmpfs -o size=1m none disk || exit 99; echo old > disk/old; {then}");
        Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script, "sh"])
            .arg(example("copy"))
            .current_dir(&folder.0)
            .output()
    };
    match in_there("") {
        Ok(output) if output.status.success() => {}
        Ok(output) => return eprintln!("skipped: cannot create a mount namespace: {}", said(&output).1),
        Err(error) => return eprintln!("skipped, no unshare: {error}"),
    }
    for direct in ["auto", "never"] {
        for dst in ["disk/dst", "disk/old"] {
            let copy = format!("\"$1\" src {dst} --block-size 64k --direct {direct}");
            let (stdout, stderr) = said(&in_there(&format!("{copy}; echo $? && ls -A disk && cat disk/old")).unwrap());
            assert_eq!(stdout, "1\nold\nold\n", "exit code, files, content; {stderr}");
            assert!(stderr.starts_with("copy: src to "), "{stderr}");
            assert!(stderr.contains("No space left on device") && stderr.contains("free some space"), "{stderr}");
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
        }
    }
    let (stdout, stderr) = said(&in_there("\"$1\" --scratch-dir disk; echo $? && ls -A disk").unwrap());
    assert_eq!(stdout, "1\nold\n", "{stderr}");
    assert!(stderr.contains("the scratch files need 480 MiB") && stderr.contains("--scratch-dir"), "{stderr}");
}

#[test]
fn shrunken_source_is_reported() {
    // E10: a read that is short because the file ended is not taken for data; one coroutine's error
    // becomes the program's.
    let folder = Folder::new("short");
    let src = Path::new("/sys/kernel/uevent_seqnum");
    match fs::metadata(src) {
        Ok(there) if there.len() > 100 => {}
        _ => return eprintln!("skipped: no {} that reports a wrong length", src.display()),
    }
    for depth in ["1", "16"] {
        let mut command = copy(src, &folder.path("dst"));
        refused(command.args(["--block-size", "100", "--depth", depth]), &["the source ends at ", "retry"]);
        assert!(folder.names().is_empty());
    }
}

#[test]
fn signal_stops_the_copy() {
    // Issue: a signal, such as Ctrl-C, leaves no partial DST behind.
    let folder = Folder::new("signal");
    // In blocks of one byte the copy would take half a minute.
    let src = folder.file("src", vec![1; 16 << 20]);
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let dst = folder.file("dst", "old");
        let mut command = copy(&src, &dst);
        command.args(["--block-size", "1", "--direct", "never"]).stdout(Stdio::null()).stderr(Stdio::piped());
        // SAFETY: between fork and exec only signal is called. A test run in the background may
        // ignore SIGINT, and children inherit that.
        unsafe {
            command.pre_exec(move || match libc::signal(signal, libc::SIG_DFL) {
                libc::SIG_ERR => Err(io::Error::last_os_error()),
                _ => Ok(()),
            });
        }
        let mut child = command.spawn().unwrap();
        while !has_unnamed_file(child.id(), &folder) && !folder.names().iter().any(|name| name.ends_with(".part")) {
            assert!(child.try_wait().unwrap().is_none(), "the program ended before it created a file");
            std::thread::yield_now();
        }
        let kill = Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status();
        assert!(kill.unwrap().success());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(128 + signal), "signal {:?}", output.status.signal());
        assert!(said(&output).1.starts_with(&format!("copy: stopped by signal {signal}")));
        assert_eq!(folder.names(), ["dst", "src"]);
        assert_eq!(fs::read(&dst).unwrap(), b"old");
    }
}

#[test]
fn disks_in_images_are_copied() {
    // --from and --to copy the guest-visible content, as qemu-img compares it; holes take no space;
    // DST is complete or absent
    let folder = Folder::new("disks");
    let qemu_img = |args: &[&str]| Command::new("qemu-img").args(args).output();
    if qemu_img(&["--version"]).is_err() {
        eprintln!("skipped: no qemu-img");
        return;
    }
    let mut bytes = content(3 << 20);
    bytes[1 << 20..2 << 20].fill(0);
    let raw = folder.file("raw", bytes);
    let [packed, ours, back] = ["packed", "ours", "back"].map(|name| folder.text(name));
    let raw_name = raw.to_str().unwrap();
    let convert = ["convert", "-c", "-f", "raw", "-O", "qcow2", raw_name, &packed];
    assert!(qemu_img(&convert).unwrap().status.success());
    let said = copied(copy(packed.as_ref(), ours.as_ref()).args(["--from", "qcow2", "--to", "qcow2", "--depth", "5"]));
    assert!(said.contains("3.00 MiB (1.00 MiB of zeroes) from qcow2 to qcow2"), "{said}");
    copied(copy(ours.as_ref(), back.as_ref()).args(["--from", "qcow2", "--block-size", "4k"]));
    assert!(fs::read(&back).unwrap() == fs::read(&raw).unwrap());
    assert!(fs::metadata(&back).unwrap().blocks() * 512 < (5 << 20) / 2, "zeroes take no space");
    for (format, image) in [("qcow2", &packed), ("qcow2", &ours), ("raw", &back)] {
        let same = qemu_img(&["compare", "-q", "-f", "raw", "-F", format, raw_name, image]).unwrap();
        assert!(same.status.success(), "{image}: {same:?}");
    }
    assert!(qemu_img(&["check", "-q", &ours]).unwrap().status.success());

    refused(copy(&raw, &folder.path("none")).args(["--from", "qcow2"]), &["raw"]);
    assert!(!folder.path("none").exists());
}

#[test]
fn blocks_across_table_slices_are_copied() {
    // qcow2: blocks of 3 MiB cross the 32 MiB boundaries between the slices of a new image's L2
    // table
    let folder = Folder::new("blocks");
    let qemu_img = |args: &[&str]| Command::new("qemu-img").args(args).output();
    if qemu_img(&["--version"]).is_err() {
        eprintln!("skipped: no qemu-img");
        return;
    }
    let raw = folder.file("raw", content(64 << 10).repeat(2048));
    let image = folder.path("image");
    copied(copy(&raw, &image).args(["--from", "raw", "--to", "qcow2", "--block-size", "3M"]));
    let (raw, image) = (raw.to_str().unwrap(), image.to_str().unwrap());
    let same = qemu_img(&["compare", "-f", "raw", "-F", "qcow2", raw, image]).unwrap();
    assert!(same.status.success(), "{same:?}");
    let checked = qemu_img(&["check", "-f", "qcow2", image]).unwrap();
    assert!(checked.status.success(), "{checked:?}");
}

#[test]
fn copy_without_arguments_verifies_a_scratch_file() {
    // Issue: without SRC and DST the program creates a scratch file, copies it, verifies the
    // checksum, and cleans up.
    let folder = Folder::new("scratch");
    let output = Command::new(example("copy")).arg("--scratch-dir").arg(&folder.0).output().unwrap();
    let (stdout, stderr) = said(&output);
    assert!(folder.names().is_empty(), "left behind: {:?}", folder.names());
    assert!(output.status.success(), "{stderr}");
    assert!(stdout.starts_with("copied 256.00 MiB (16.00 MiB of holes) in "), "{stdout}");
    assert!(stdout.contains("\nverified: both files have checksum "), "{stdout}");
    assert_eq!(stderr, "");
}

/// Returns whether the process has an unnamed file open in the directory.
fn has_unnamed_file(process: u32, folder: &Folder) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{process}/fd")) else { return false };
    let target = |entry: io::Result<fs::DirEntry>| fs::read_link(entry.ok()?.path()).ok();
    open.filter_map(target).any(|path| path.starts_with(&folder.0) && path.to_string_lossy().ends_with(" (deleted)"))
}

#[test]
fn killed_copy_leaves_no_file() {
    // Issue: SIGKILL during a copy leaves no temporary file and an existing DST unchanged.
    let folder = Folder::new("killed");
    let unnamed = fs::OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).open(&folder.0);
    if let Err(error) = unnamed {
        return eprintln!("skipped: no unnamed files in {}: {error}", folder.0.display());
    }
    // In blocks of one byte the copy would take half a minute.
    let src = folder.file("src", vec![1; 16 << 20]);
    for old in [None, Some("old")] {
        old.into_iter().for_each(|old| _ = folder.file("dst", old));
        let mut child =
            copy(&src, &folder.path("dst")).args(["--block-size", "1", "--direct", "never"]).spawn().unwrap();
        while !has_unnamed_file(child.id(), &folder) {
            assert!(child.try_wait().unwrap().is_none(), "the program ended before it created a file");
            assert!(!folder.names().iter().any(|name| name.ends_with(".part")), "its file has a name");
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(folder.names(), [&["dst"][..old.map_or(0, |_| 1)], &["src"]].concat());
        assert_eq!(fs::read_to_string(folder.path("dst")).ok().as_deref(), old);
    }
}

#[test]
fn stale_temporary_names_are_removed() {
    // Issue: files left by killed programs are removed by the next copy that needs a temporary
    // name; files in use are kept.
    let folder = Folder::new("stale");
    let src = folder.file("src", content(5000));
    let dst = folder.file("dst", "old");
    folder.file(".coralio-copy-4000000-0.part", "stale");
    fs::create_dir(folder.path(".coralio-copy-4000000-1")).unwrap();
    folder.file(".coralio-copy-4000000-1/source", "stale");
    let used = fs::File::open(folder.file(".coralio-copy-4000000-2.part", "in use")).unwrap();
    used.lock().unwrap();
    folder.file(".coralio-copy-mine.part", "of somebody");
    copied(&mut copy(&src, &dst));
    assert!(fs::read(&dst).unwrap() == content(5000));
    assert_eq!(folder.names(), [".coralio-copy-4000000-2.part", ".coralio-copy-mine.part", "dst", "src"]);
}

#[test]
fn pipe_as_destination_is_named_as_a_pipe() {
    // E14: a pipe's link in /proc, which leads to no path, is not reported as a dangling link.
    let folder = Folder::new("pipe");
    let src = folder.file("src", "x");
    refused(copy(&src, Path::new("/proc/self/fd/1")).stdout(Stdio::piped()), &["not a regular file", "choose another"]);
}

#[test]
fn direct_always_error_names_the_option() {
    // E14: the remedy names an option of the program.
    let folder = Folder::new("always");
    let mut command = copy(Path::new("/proc/self/mounts"), &folder.path("dst"));
    command.args(["--direct", "always"]);
    refused(
        &mut command,
        &["/proc/self/mounts: its file system does not support direct I/O", "use --direct auto or never"],
    );
    assert!(folder.names().is_empty());
}
