//! A disk whose requests stay in flight for as long as a test wants, and that can be lost meanwhile. For root.
//!
//! ```text
//!   requests --> /dev/loopB --> a file on ext4 --> /dev/loopA --> an image on the disk
//!                               frozen: the first write waits here, and whatever is behind it waits in line
//! ```
//!
//! Nothing of it outlives the process, however that ends: mounts lie in a namespace of its own, loop devices end when they are
//! closed. A freeze would: it is ended by a helper, after a minute, should nobody else have done it.

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

/// Of `linux/fs.h` and `fs/ext4/ext4.h`: no argument, an ignored one, and a word of flags.
const FIFREEZE: u64 = 0xc004_5877;
const FITHAW: u64 = 0xc004_5878;
const EXT4_IOC_SHUTDOWN: u64 = 0x8004_587d;
/// At once, and what the journal has is lost.
const NOLOGFLUSH: u32 = 2;

/// As [`in_child`], the other way round: whether this is the process of this test alone, which may mount what nobody else sees.
pub(crate) fn in_child_with_mounts(test: &str) -> bool {
    if !is_root() {
        println!("skipped: loop devices and mounts take root");
        return false;
    }
    if in_child(test) {
        return false;
    }
    // SAFETY: a flag; and then two strings that end with a zero byte, where null means "as it is".
    let failed = unsafe {
        libc::unshare(libc::CLONE_NEWNS) != 0
            || libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), libc::MS_REC | libc::MS_PRIVATE, ptr::null()) != 0
    };
    if failed {
        println!("skipped: no mount namespace to be had: {}", std::io::Error::last_os_error());
    }
    !failed
}

/// A mounted file system.
pub(crate) struct Mount {
    folder: Temp,
}

impl Mount {
    /// An ext4 of its own, without a journal: that would write when it is told to stop.
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

    /// From now on whatever is asked of it fails.
    pub(crate) fn shut_down(&self) {
        ioctl(&self.folder.0, EXT4_IOC_SHUTDOWN, &mut { NOLOGFLUSH }).unwrap();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: a file may still be about to be closed by the kernel.
        tool("umount", &["--lazy", self.folder.0.to_str().unwrap()]);
    }
}

fn ioctl(path: &Path, request: u64, argument: &mut u32) -> std::io::Result<()> {
    let open = fs::File::open(path)?;
    // SAFETY: the requests above read one word at most.
    match unsafe { libc::ioctl(open.as_raw_fd(), request, ptr::from_mut(argument)) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// A loop device that was detached already: it is gone when the last descriptor is closed.
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

/// The disk. Parts go in this order.
pub(crate) struct HeldDisk {
    pub(crate) device: Device,
    pub(crate) below: Mount,
    _image: Temp,
}

impl HeldDisk {
    /// Of 16 MiB, with this at its beginning.
    pub(crate) fn with(content: &[u8]) -> Option<HeldDisk> {
        let image = Temp::at(&disk());
        fs::File::create(&image.0).unwrap().set_len(64 << 20).unwrap();
        let below = Mount::of_new_ext4(&image.0)?;
        let file = below.path("disk");
        fs::write(&file, content).unwrap();
        fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(16 << 20).unwrap();
        Some(HeldDisk { device: Device::over(&file)?, below, _image: image })
    }

    /// Whatever is written now stays in flight.
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
        // Its root is the folder's own inode, which a freeze lets one open.
        ioctl(&folder, FIFREEZE, &mut 0).unwrap();
        Freeze { folder, over: Arc::default(), helper }
    }
}

/// It ends with this.
pub(crate) struct Freeze {
    folder: PathBuf,
    over: Arc<AtomicBool>,
    helper: Child,
}

impl Freeze {
    /// True before anything that was held goes on.
    pub(crate) fn is_over(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.over)
    }
}

impl Drop for Freeze {
    fn drop(&mut self) {
        // SeqCst, here and there: one of them is a system call away from the other, and it is a test.
        self.over.store(true, Ordering::SeqCst);
        let thawed = ioctl(&self.folder, FITHAW, &mut 0);
        // SAFETY: the process group that this process has started, and not waited for yet.
        unsafe { libc::kill(-(self.helper.id() as i32), libc::SIGKILL) };
        self.helper.wait().unwrap();
        assert!(thawed.is_ok() || std::thread::panicking(), "it hung until the helper came: {thawed:?}");
    }
}
