//! Creating a ring: the required kernel features, and error messages with cause and remedy.

use std::io;

use coralio_runtime::explained;
use io_uring::{Parameters, Probe, opcode};

/// The operations in use.
const OPERATIONS: [(u8, &str); 5] = [
    (opcode::Read::CODE, "read"),
    (opcode::Write::CODE, "write"),
    (opcode::Readv::CODE, "vectored read"),
    (opcode::Writev::CODE, "vectored write"),
    (opcode::Fsync::CODE, "sync"),
];

/// Creates a ring for `depth` requests, on a kernel that has all required features. Returns also
/// whether to sleep on the ring: a sleep there takes a timeout, and a poll request can be cancelled
/// by a call without a completion. The latter came with Linux 6.0, as did the operation that
/// indicates it.
pub(super) fn set_up(depth: u32) -> io::Result<(io_uring::IoUring, bool)> {
    let ring = io_uring::IoUring::builder().build(depth).map_err(|error| refused(error, depth))?;
    let params = ring.params();
    // No overflow: at most `depth` requests and the poll request are in flight or on the ring.
    assert!(depth < params.cq_entries(), "the completion ring must hold a completion for each request");
    let mut probe = Probe::new();
    // A kernel too old for the probe is treated as supporting nothing.
    let _ = ring.submitter().register_probe(&mut probe);
    if let Some(what) = missing(params, &probe) {
        let message = format!(
            "io_uring lacks {what}: it needs Linux 5.6 or later and a seccomp filter that allows io_uring_register; \
             use native AIO (BackendKind::Aio)"
        );
        return Err(io::Error::new(io::ErrorKind::Unsupported, message));
    }
    let sleeps_on_ring = params.is_feature_ext_arg() && probe.is_supported(opcode::SendZc::CODE);
    Ok((ring, sleeps_on_ring))
}

/// Returns the first required feature that the kernel lacks.
pub(super) fn missing(params: &Parameters, probe: &Probe) -> Option<&'static str> {
    let features = [
        // Both rings are contiguous.
        (params.is_feature_single_mmap(), "IORING_FEAT_SINGLE_MMAP"),
        // No completion is lost.
        (params.is_feature_nodrop(), "IORING_FEAT_NODROP"),
        // Request data other than the buffers may be reused after submit.
        (params.is_feature_submit_stable(), "IORING_FEAT_SUBMIT_STABLE"),
    ];
    let operations = OPERATIONS.map(|(code, name)| (probe.is_supported(code), name));
    features.into_iter().chain(operations).find(|(there, _)| !there).map(|(_, name)| name)
}

/// Explains the error of `io_uring_setup`, with cause and remedy.
pub(super) fn refused(error: io::Error, depth: u32) -> io::Error {
    const INSTEAD: &str = "or use native AIO (BackendKind::Aio)";
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
            (io::ErrorKind::PermissionDenied, format!("io_uring is forbidden, {cause}; {INSTEAD}"))
        }
        Some(libc::ENOSYS) => (
            io::ErrorKind::Unsupported,
            format!(
                "io_uring is not available: Linux before 5.6, built without CONFIG_IO_URING, or {FILTER} hides it; \
                 {INSTEAD}"
            ),
        ),
        Some(libc::ENOMEM) => (
            io::ErrorKind::OutOfMemory,
            format!(
                "no memory for an io_uring of depth {depth}: it may count towards the limit on locked memory; raise \
                 the limit (ulimit -l), use a smaller depth, {INSTEAD}"
            ),
        ),
        Some(libc::EMFILE | libc::ENFILE) => (
            error.kind(),
            format!("no descriptor left for an io_uring: {error}; raise the limit (ulimit -n), {INSTEAD}"),
        ),
        _ => (error.kind(), format!("io_uring_setup with queue depth {depth}: {error}; {INSTEAD}")),
    };
    explained(kind, message, error)
}
