//! Moving bytes between descriptors within the kernel: sendfile and splice.

use std::io;
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::SpliceFlags;

use super::CoFd;

/// The maximum number of bytes of one system call, so that it does not hold up the loop for long.
const CHUNK: u64 = 1 << 20;

impl<S: AsFd> CoFd<S> {
    /// Sends `len` bytes of a file, from `offset`, to this socket or pipe, without copying them to
    /// the program. Returns the number of bytes sent, which is less than `len` only if the file
    /// ends before. Waits whenever there is no space. The file's own position is not used.
    ///
    /// The kernel takes the bytes from the page cache, and blocks the thread while it reads bytes
    /// that are not cached. Read large files on slow disks through `coralio::File` instead.
    ///
    /// ```
    /// use coralio::spawn;
    /// use coralio::net::CoFd;
    /// use std::io::Read;
    /// use std::os::unix::net::UnixStream;
    ///
    /// let path = std::env::temp_dir().join(format!("coralio-sendfile-doc-{}", std::process::id()));
    /// std::fs::write(&path, "0123456789")?;
    /// let file = std::fs::File::open(&path)?;
    /// coralio::run(|| {
    ///     let (near, mut far) = UnixStream::pair()?;
    ///     let sent = spawn(move || CoFd::new(near)?.sendfile(&file, 7, 100));
    ///     assert_eq!(sent.join().unwrap()?, 3);
    ///     let mut received = String::new();
    ///     far.read_to_string(&mut received)?;
    ///     assert_eq!(received, "789");
    ///     Ok::<_, std::io::Error>(())
    /// })?;
    /// std::fs::remove_file(&path)
    /// # ; Ok::<_, std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The kernel's; `InvalidInput` if `file` cannot be mapped, as a socket. As
    /// [`wait_writable`](CoFd::wait_writable). An unknown number of bytes has been sent then.
    ///
    /// # Panics
    ///
    /// If it has to wait outside a coroutine.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn sendfile(&self, file: impl AsFd, offset: u64, len: u64) -> io::Result<u64> {
        let (file, mut at) = (file.as_fd(), offset);
        let end = offset.saturating_add(len);
        while at < end {
            let count = (end - at).min(CHUNK) as usize;
            let sent = self.write_calling(|to| Ok(rustix::fs::sendfile(to, file, Some(&mut at), count)?))?;
            if sent == 0 {
                break;
            }
        }
        Ok(at - offset)
    }
}

/// Moves up to `len` bytes from one descriptor to the other, of which at least one is a pipe,
/// without copying them to the program. Returns the number of bytes moved, 0 at end of file. Waits
/// for data in `from`, and for space in `to`.
///
/// ```
/// use coralio::net::{CoFd, splice};
/// use coralio::unblock;
/// use std::io::Write;
/// use std::os::unix::net::UnixStream;
/// use std::process::{Command, Stdio};
///
/// coralio::run(|| {
///     let mut cat = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
///     let pipe = CoFd::new(cat.stdin.take().expect("it is piped"))?;
///     let (mut far, near) = UnixStream::pair()?;
///     far.write_all(b"hello")?;
///     assert_eq!(splice(&CoFd::new(near)?, &pipe, 100)?, 5);
///     drop(pipe);
///     assert_eq!(unblock(move || cat.wait_with_output())??.stdout, b"hello");
///     std::io::Result::Ok(())
/// })
/// .unwrap();
/// ```
///
/// # Errors
///
/// `InvalidInput`: neither is a pipe. `Unsupported`: the peer has sent urgent data. Other errors of the kernel. As
/// [`wait_readable`](CoFd::wait_readable) and [`wait_writable`](CoFd::wait_writable).
///
/// # Panics
///
/// If it has to wait outside a coroutine.
///
/// # Control
///
/// May yield.
#[track_caller]
pub fn splice<A: AsFd, B: AsFd>(from: &CoFd<A>, to: &CoFd<B>, len: usize) -> io::Result<usize> {
    const ATTEMPTS: u32 = 16;
    let (source, target) = (from.reading(), to.writing());
    let mut refused_though_ready = 0;
    loop {
        from.wait_readable()?;
        to.wait_writable()?;
        // As for any call, edges are counted from before it.
        let before = (source.edges.count(), target.edges.count());
        let (input, output) = (from.inner().as_fd(), to.inner().as_fd());
        match rustix::pipe::splice(input, None, output, None, len, SpliceFlags::NONBLOCK) {
            // The kernel does not tell which of them would block.
            Err(Errno::AGAIN) if !is_ready(&input, PollFlags::IN)? => source.exhausted_at.set(before.0),
            Err(Errno::AGAIN) if !is_ready(&output, PollFlags::OUT)? => target.exhausted_at.set(before.1),
            // Either it has just become ready, or the kernel never passes these data on.
            Err(Errno::AGAIN) if refused_though_ready < ATTEMPTS => refused_though_ready += 1,
            Err(Errno::AGAIN) => {
                let why = "splice cannot pass on the urgent data of a socket; use read and write";
                return Err(io::Error::new(io::ErrorKind::Unsupported, why));
            }
            moved => return Ok(moved?),
        }
    }
}

fn is_ready(fd: &impl AsFd, events: PollFlags) -> io::Result<bool> {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    Ok(poll(&mut [PollFd::new(fd, events)], Some(&now))? > 0)
}
