//! Error messages: the kernel's error, its likely cause, and the remedy (rule E14).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use coralio_runtime::{Cancelled, explained};

use super::Alignment;
use crate::backend::{Opcode, Operation};
use crate::engine::error_of;

/// Adds the operation, the likely cause and the remedy to the kernel's error. `descriptor` is the
/// file's descriptor (`operation` has the backend's number for the file instead); `None` for a
/// simulated file. `bytes` is the total length of the operation's buffers.
#[cold]
pub(crate) fn explain(
    errno: i32,
    operation: &Operation,
    bytes: u64,
    descriptor: Option<BorrowedFd<'_>>,
    alignment: Alignment,
) -> io::Error {
    let cause = error_of(errno);
    let Operation { opcode, fd: _, addr, len, offset } = *operation;
    let what = match opcode {
        Opcode::Read => format!("reading {len} bytes at {offset}"),
        Opcode::Write => format!("writing {len} bytes at {offset}"),
        Opcode::ReadVectored => format!("reading into {len} buffers at {offset}"),
        Opcode::WriteVectored => format!("writing from {len} buffers at {offset}"),
        Opcode::SyncData | Opcode::SyncAll => "syncing".into(),
    };
    let Alignment { memory, block } = alignment;
    let why = match errno {
        libc::EINVAL if offset.checked_add(bytes).is_none_or(|end| end > i64::MAX as u64) => {
            "; the range exceeds the largest file size, 2^63 - 1".into()
        }
        libc::EINVAL if block > 1 => format!(
            "; direct I/O needs offsets and lengths in multiples of {block} bytes and memory aligned to {memory} (this \
             buffer is at {addr:#x}); use AlignedBuf, or Direct::Never"
        ),
        libc::EINVAL => "; the file does not support this kind of I/O: is it a regular file or a block device?".into(),
        libc::EBADF => {
            let closed = descriptor
                .map_or_else(String::new, |fd| format!("descriptor {} was closed by other code, or ", fd.as_raw_fd()));
            format!("; {closed}is not open for this: open the file with File::options().read(true).write(true)")
        }
        libc::EFAULT => "; the buffer is outside the memory of this process".into(),
        libc::ENOSPC => "; the file system is full: free some space, then write the rest again".into(),
        libc::EDQUOT => "; the disk quota is exhausted: free some space, or raise the quota".into(),
        libc::EFBIG => "; the file would exceed the process's file-size limit (ulimit -f) or the file system's".into(),
        libc::EIO => "; the device failed: see the kernel log".into(),
        libc::ENOTCONN => ELSEWHERE.into(),
        libc::EOPNOTSUPP => "; the file system does not support this".into(),
        libc::EAGAIN => "; the file system refused it repeatedly: retry later".into(),
        _ => String::new(),
    };
    failed(cause, what, why)
}

/// Likely cause and remedy of `ENOTCONN`.
pub(crate) const ELSEWHERE: &str = "; the file belongs to a context that has ended, runs on another thread, or has its \
     engine detached: open the file in the context that uses it, or move it there with File::detach";

/// Error: `path` could not be opened.
pub(crate) fn cannot_open(cause: io::Error, path: &std::path::Path) -> io::Error {
    failed(cause, format!("cannot open {}", path.display()), String::new())
}

/// Adds the failed operation, the likely cause and the remedy. The system's error code remains
/// available through [`OsCode`](coralio_runtime::OsCode). A cancellation is passed on as it is.
pub(crate) fn failed(cause: io::Error, what: String, why: String) -> io::Error {
    if Cancelled::is_cause_of(&cause) {
        return cause;
    }
    explained(cause.kind(), format!("{what}: {cause}{why}"), cause)
}
