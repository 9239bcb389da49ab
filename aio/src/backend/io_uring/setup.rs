//! Creating a ring: the required kernel, and error messages with cause and remedy.

use std::io;

use coralio_runtime::explained;
use io_uring::types;

const INSTEAD: &str = "use native AIO (BackendKind::Aio)";

/// Creates a ring for `depth` requests, on Linux 6.0 or later.
pub(super) fn set_up(depth: u32) -> io::Result<io_uring::IoUring> {
    let ring = io_uring::IoUring::builder().build(depth).map_err(|error| refused(error, depth))?;
    // No overflow: at most `depth` requests and the poll request are in flight or on the ring.
    assert!(depth < ring.params().cq_entries(), "the completion ring must hold a completion for each request");
    // The synchronous cancel is the newest of the required features. There is nothing to cancel yet.
    let (now, nothing) = (types::Timespec::new(), types::CancelBuilder::user_data(0));
    match ring.submitter().register_sync_cancel(Some(now), nothing) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Err(outdated(error)),
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(refused(error, depth)),
        _ => Ok(ring),
    }
}

fn outdated(error: io::Error) -> io::Error {
    let message = format!("io_uring is outdated: it needs Linux 6.0 or later, and this is {}; {INSTEAD}", release());
    explained(io::ErrorKind::Unsupported, message, error)
}

/// Returns the name of the running kernel.
fn release() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease");
    release.map_or_else(|_| "another".into(), |release| format!("Linux {}", release.trim()))
}

/// Explains the error of `io_uring_setup`, or of the call right after it, with cause and remedy.
pub(super) fn refused(error: io::Error, depth: u32) -> io::Error {
    const FILTER: &str =
        "a seccomp filter (common in containers: allow io_uring_setup, io_uring_enter, io_uring_register)";
    let (kind, message) = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            let cause = match std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").as_deref().map(str::trim) {
                Ok("2") => "kernel.io_uring_disabled is 2; as root: sysctl kernel.io_uring_disabled=0".into(),
                Ok("1") => "kernel.io_uring_disabled is 1: join the group named by kernel.io_uring_group; or as root: \
                     sysctl kernel.io_uring_disabled=0"
                    .into(),
                _ => format!("likely by {FILTER}"),
            };
            (io::ErrorKind::PermissionDenied, format!("io_uring is forbidden, {cause}; or {INSTEAD}"))
        }
        Some(libc::ENOSYS) => (
            io::ErrorKind::Unsupported,
            format!(
                "io_uring is not available: it needs Linux 6.0 or later, and this is {}; or the kernel was built \
                 without CONFIG_IO_URING, or {FILTER} hides it; {INSTEAD}",
                release()
            ),
        ),
        Some(libc::ENOMEM) => (
            io::ErrorKind::OutOfMemory,
            format!(
                "no memory for an io_uring of depth {depth}: it may count towards the limit on locked memory; raise \
                 the limit (ulimit -l), use a smaller depth, or {INSTEAD}"
            ),
        ),
        Some(libc::EMFILE | libc::ENFILE) => (
            error.kind(),
            format!("no descriptor left for an io_uring: {error}; raise the limit (ulimit -n), or {INSTEAD}"),
        ),
        _ => (error.kind(), format!("io_uring_setup with queue depth {depth}: {error}; {INSTEAD}")),
    };
    explained(kind, message, error)
}
