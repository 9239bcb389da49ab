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

/// Creates a ring for `depth` requests, on a kernel that has all required features.
pub(super) fn set_up(depth: u32) -> io::Result<(io_uring::IoUring, Features)> {
    let ring = io_uring::IoUring::builder().build(depth).map_err(|error| refused(error, depth))?;
    // No overflow: at most `depth` requests and the poll request are in flight or on the ring.
    assert!(depth < ring.params().cq_entries(), "the completion ring must hold a completion for each request");
    let mut probe = Probe::new();
    // A kernel too old for the probe is treated as supporting nothing.
    let _ = ring.submitter().register_probe(&mut probe);
    let features = Features::of(ring.params(), &probe);
    match missing(features, &probe) {
        None => Ok((ring, features)),
        Some(what) => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!(
                "io_uring lacks {what}: it needs Linux 5.6 or later and a seccomp filter that allows \
                 io_uring_register; use native AIO (BackendKind::Aio)"
            ),
        )),
    }
}

/// The features of a ring that matter here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Features {
    /// Both rings are contiguous.
    pub(super) single_mmap: bool,
    /// No completion is lost.
    pub(super) nodrop: bool,
    /// Request data other than the buffers may be reused after submit.
    pub(super) submit_stable: bool,
    /// A sleep on the ring takes a timeout, and a poll request can be cancelled by a call without a
    /// completion. The latter came with Linux 6.0, as did the operation that indicates it.
    pub(super) sleep_on_ring: bool,
    /// A file removed from the ring's table is closed immediately. True since Linux 6.13; the first
    /// feature that indicates it came with 6.15.
    pub(super) lets_go_at_once: bool,
}

impl Features {
    fn of(params: &Parameters, probe: &Probe) -> Features {
        Features {
            single_mmap: params.is_feature_single_mmap(),
            nodrop: params.is_feature_nodrop(),
            submit_stable: params.is_feature_submit_stable(),
            lets_go_at_once: params.is_feature_no_iowait(),
            sleep_on_ring: params.is_feature_ext_arg() && probe.is_supported(opcode::SendZc::CODE),
        }
    }
}

/// Returns the first required feature that the kernel lacks.
pub(super) fn missing(features: Features, probe: &Probe) -> Option<&'static str> {
    let Features { single_mmap, nodrop, submit_stable, .. } = features;
    let features = [(single_mmap, "IORING_FEAT_SINGLE_MMAP"), (nodrop, "IORING_FEAT_NODROP")];
    let features = features.into_iter().chain([(submit_stable, "IORING_FEAT_SUBMIT_STABLE")]);
    let operations = OPERATIONS.into_iter().map(|(code, name)| (probe.is_supported(code), name));
    features.chain(operations).find(|(there, _)| !there).map(|(_, name)| name)
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
