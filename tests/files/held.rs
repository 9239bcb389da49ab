//! A disk whose requests stay in flight as long as a test wants, and that can be lost meanwhile.
//! For root.
//!
//! ```text
//!   requests --> /dev/loopB --> a file on ext4 --> /dev/loopA --> an image on the disk
//!                               frozen: the first write blocks here, all others queue behind it
//! ```
//!
//! Nothing of it outlives the process, however that ends: the mounts are in a namespace of its own,
//! and the loop devices end when they are closed. A freeze would outlive it, so a helper process
//! ends the freeze after a minute if the test has not.

#![allow(unsafe_code)]

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Temp, disk, in_child, is_root, tool};

/// From `linux/fs.h` and `fs/ext4/ext4.h`: no argument, an ignored one, and a word of flags.
const FIFREEZE: u64 = 0xc004_5877;
const FITHAW: u64 = 0xc004_5878;
const EXT4_IOC_SHUTDOWN: u64 = 0x8004_587d;
/// Shuts down immediately and discards the journal.
const NOLOGFLUSH: u32 = 2;

/// Inverts [`in_child`]: returns whether this is the process of this test alone, which may create
/// mounts that are invisible outside.
pub(crate) fn in_child_with_mounts(test: &str) -> bool {
    if !is_root() {
        println!("skipped: loop devices and mounts take root");
        return false;
    }
    if in_child(test) {
        return false;
    }
    // SAFETY: a flag; then two strings that end with a zero byte, where null means "unchanged".
    let failed = unsafe {
        libc::unshare(libc::CLONE_NEWNS) != 0
            || libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), libc::MS_REC | libc::MS_PRIVATE, ptr::null()) != 0
    };
    if failed {
        println!("skipped: cannot create a mount namespace: {}", std::io::Error::last_os_error());
    }
    !failed
}

/// A mounted file system.
pub(crate) struct Mount {
    folder: Temp,
}

impl Mount {
    /// Mounts a new ext4 without a journal: the journal would write during shutdown.
    pub(crate) fn of_new_ext4(path: &Path) -> Option<Mount> {
        let path = path.to_str()?;
        tool("mkfs.ext4", &["-q", "-F", "-O", "^has_journal", path])?;
        let mount = Mount { folder: Temp::at(&disk()) };
        fs::create_dir(&mount.folder.0).unwrap();
        // An image gets a loop device that goes with the mount.
        tool("mount", &["-t", "ext4", path, mount.folder.0.to_str()?])?;
        Some(mount)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.0.join(name)
    }

    /// Makes every later operation on the file system fail.
    pub(crate) fn shut_down(&self) {
        ioctl(&self.folder.0, EXT4_IOC_SHUTDOWN, &mut { NOLOGFLUSH }).unwrap();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: the kernel may still be closing a file.
        tool("umount", &["--lazy", self.folder.0.to_str().unwrap()]);
    }
}

fn ioctl(path: &Path, request: u64, argument: &mut u32) -> std::io::Result<()> {
    let open = fs::File::open(path)?;
    // SAFETY: the requests above read at most one word.
    match unsafe { libc::ioctl(open.as_raw_fd(), request, ptr::from_mut(argument)) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// A loop device that is already detached: it disappears when the last descriptor is closed.
pub(crate) struct Device {
    pub(crate) path: PathBuf,
    _open: fs::File,
}

impl Device {
    pub(crate) fn over(file: &Path) -> Option<Device> {
        let said = tool("losetup", &["--find", "--show", file.to_str()?])?;
        let path = PathBuf::from(String::from_utf8(said.stdout).unwrap().trim());
        let device = Device { _open: fs::OpenOptions::new().read(true).write(true).open(&path).unwrap(), path };
        device.detach();
        Some(device)
    }

    pub(crate) fn detach(&self) {
        tool("losetup", &["--detach", self.path.to_str().unwrap()]).expect("it is ours");
    }
}

/// The disk. Fields are dropped in this order.
pub(crate) struct HeldDisk {
    pub(crate) device: Device,
    pub(crate) below: Mount,
    _image: Temp,
}

impl HeldDisk {
    /// Creates a disk of 16 MiB that begins with `content`.
    pub(crate) fn with(content: &[u8]) -> Option<HeldDisk> {
        let image = Temp::at(&disk());
        fs::File::create(&image.0).unwrap().set_len(64 << 20).unwrap();
        let below = Mount::of_new_ext4(&image.0)?;
        let file = below.path("disk");
        fs::write(&file, content).unwrap();
        fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(16 << 20).unwrap();
        Some(HeldDisk { device: Device::over(&file)?, below, _image: image })
    }

    /// Freezes the disk: writes from now on stay in flight.
    pub(crate) fn freeze(&self) -> Freeze {
        let folder = self.below.folder.0.clone();
        let helper = Command::new("sh")
            .args(["-c", "sleep 60; exec fsfreeze --unfreeze \"$0\"", folder.to_str().unwrap()])
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The file system's root is this directory's own inode, which can be opened during a
        // freeze.
        ioctl(&folder, FIFREEZE, &mut 0).unwrap();
        Freeze { folder, over: Arc::default(), helper }
    }
}

/// A freeze, ended on drop.
pub(crate) struct Freeze {
    folder: PathBuf,
    over: Arc<AtomicBool>,
    helper: Child,
}

impl Freeze {
    /// Returns a flag that becomes true before any held request continues.
    pub(crate) fn is_over(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.over)
    }
}

impl Drop for Freeze {
    fn drop(&mut self) {
        // SeqCst on both sides: the accesses are a system call apart, and this is a test.
        self.over.store(true, Ordering::SeqCst);
        let thawed = ioctl(&self.folder, FITHAW, &mut 0);
        // SAFETY: the process group was started by this process, which has not waited for it yet.
        unsafe { libc::kill(-(self.helper.id() as i32), libc::SIGKILL) };
        self.helper.wait().unwrap();
        assert!(thawed.is_ok() || std::thread::panicking(), "it hung until the helper came: {thawed:?}");
    }
}
