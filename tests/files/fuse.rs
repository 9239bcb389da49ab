//! A file system in user space, whose requests complete with errors that no disk returns.

use std::collections::VecDeque;
use std::ffi::CString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex};
use std::thread;

use coralio::File;
use coralio::driver::{BackendKind, selected_backend};
use coralio::fs::Direct;
use coralio::task::OsCode;

use crate::{Temp, aligned, disk, on_each_backend, pattern};

/// Name and length of the only file.
const NAME: &[u8] = b"file\0";
const LEN: usize = 64 * 1024;

/// Questions of the kernel.
pub(crate) const GETATTR: u32 = 3;
pub(crate) const OPEN: u32 = 14;
pub(crate) const STATFS: u32 = 17;

/// A mounted file system. The next reads, writes and syncs fail with these errors.
pub(crate) struct Fuse {
    pub(crate) folder: Temp,
    errors: Arc<Mutex<VecDeque<i32>>>,
    asked: Arc<Mutex<Vec<(u32, i32)>>>,
}

impl Fuse {
    pub(crate) fn mount() -> io::Result<Fuse> {
        let device = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
        let folder = Temp::at(&disk());
        fs::create_dir(&folder.0)?;
        let target = CString::new(folder.0.as_os_str().as_bytes())?;
        let options = CString::new(format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd()))?;
        // SAFETY: the strings end with a zero byte and outlive the call.
        let mounted =
            unsafe { libc::mount(c"none".as_ptr(), target.as_ptr(), c"fuse".as_ptr(), 0, options.as_ptr().cast()) };
        if mounted != 0 {
            return Err(io::Error::last_os_error());
        }
        let errors = Arc::new(Mutex::new(VecDeque::new()));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (served, told) = (Arc::clone(&errors), Arc::clone(&asked));
        thread::spawn(move || serve(&device, &served, &told));
        Ok(Fuse { folder, errors, asked })
    }

    /// Returns the opcode and the thread of each question since the last call.
    pub(crate) fn asked(&self) -> Vec<(u32, i32)> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    fn fail(&self, errno: i32, times: usize) {
        *self.errors.lock().unwrap() = [errno].repeat(times).into();
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        let target = CString::new(self.folder.0.as_os_str().as_bytes()).unwrap();
        // SAFETY: the string ends with a zero byte and outlives the call.
        unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    }
}

/// Answers the kernel until the file system is unmounted.
fn serve(mut device: &fs::File, errors: &Mutex<VecDeque<i32>>, asked: &Mutex<Vec<(u32, i32)>>) {
    let (mut request, mut content) = (vec![0; 1 << 20], vec![0; LEN]);
    loop {
        match device.read(&mut request) {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::ENOENT)) => continue,
            Err(_) => return,
        }
        let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_ne_bytes(request[at..at + 8].try_into().unwrap());
        let (opcode, unique, node, body) = (word(4), long(8), long(16), 40);
        asked.lock().unwrap().push((opcode, word(32) as i32));
        let (start, len) = (long(body + 8) as usize, word(body + 16) as usize);
        let error = matches!(opcode, 15 | 16 | 20).then(|| errors.lock().unwrap().pop_front()).flatten();
        let answer = match (opcode, error) {
            (_, Some(errno)) => Err(errno),
            // LOOKUP: the name may be cached for an hour.
            (1, _) if request[body..].starts_with(NAME) => Ok([&words(&[2, 0, 3600, 0, 0]), &*attributes(2)].concat()),
            (1, _) => Err(libc::ENOENT),
            // FORGET, INTERRUPT, BATCH_FORGET: no answer is expected.
            (2 | 36 | 42, _) => continue,
            (GETATTR | 4, _) => Ok([&words(&[0, 0]), &*attributes(node)].concat()),
            // OPEN and OPENDIR: bypass the page cache.
            (OPEN | 27, _) => Ok(words(&[0, 1])),
            (15, _) => Ok(content[start.min(LEN)..(start + len).min(LEN)].to_vec()),
            (16, _) => {
                content[start..start + len].copy_from_slice(&request[body + 40..body + 40 + len]);
                Ok(words(&[len as u64]))
            }
            // FSYNC, FLUSH, RELEASE, RELEASEDIR.
            (18 | 20 | 25 | 29, _) => Ok(Vec::new()),
            // STATFS: all zero.
            (STATFS, _) => Ok(words(&[0; 10])),
            // INIT: version 7.31, no read-ahead, no flags, writes up to 64 KiB.
            (26, _) => Ok(words(&[7 | 31 << 32, 0, 65536 << 32, 1, 0, 0, 0, 0])),
            _ => Err(libc::ENOSYS),
        };
        let (errno, answer) = answer.map_or_else(|errno| (-errno, Vec::new()), |answer| (0, answer));
        let header = (16 + answer.len()) as u64 | u64::from(errno as u32) << 32;
        let _ = device.write(&[&words(&[header, unique]), &*answer].concat());
    }
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Returns the attributes of the file (node 2), or of its directory.
fn attributes(node: u64) -> Vec<u8> {
    let (len, mode) = if node == 2 { (LEN as u64, libc::S_IFREG | 0o666) } else { (0, libc::S_IFDIR | 0o777) };
    // Number, length, blocks, times; then in pairs: nanoseconds, mode, links, owners, device, block
    // size.
    words(&[node, len, len / 512, 0, 0, 0, 0, u64::from(mode) << 32, 1, 0, 4096])
}

#[test]
fn interrupted_requests_are_retried_on_every_backend() {
    // E10: reads, writes and syncs of a real file system are retried on EINTR without a limit, and
    // on EAGAIN up to a limit
    let fuse = match Fuse::mount() {
        Ok(fuse) => fuse,
        Err(error) => return eprintln!("skipped: cannot mount a FUSE file system: {error}"),
    };
    on_each_backend(|| {
        for direct in [Direct::Auto, Direct::Never] {
            let open = File::options().read(true).write(true).direct(direct).clone();
            let file = open.open(fuse.folder.0.join("file")).unwrap();
            for (errno, times) in [(libc::EINTR, 40), (libc::EAGAIN, 15)] {
                let data = aligned(&pattern(times as u64, 8192));
                fuse.fail(errno, times);
                assert_eq!(file.write_at(&data, 4096).unwrap(), data.len());
                let mut back = aligned(&[0; 8192]);
                fuse.fail(errno, times);
                file.read_exact_at(&mut back, 4096).unwrap();
                assert!(back[..] == data[..]);
                fuse.fail(errno, times);
                file.sync_data().unwrap();
            }
            // io_uring's own workers retry EAGAIN without a limit.
            if selected_backend().unwrap().backend() == BackendKind::Uring {
                continue;
            }
            fuse.fail(libc::EAGAIN, 100);
            let error = file.read_at(&mut aligned(&[0; 4096]), 0).unwrap_err();
            assert_eq!((error.kind(), error.os_code()), (io::ErrorKind::WouldBlock, Some(libc::EAGAIN)));
            fuse.fail(0, 0);
        }
    });
}
