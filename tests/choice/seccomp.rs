//! Seccomp filters like those of containers. Also used by `.ci/forbid.rs`.

/// Builds a filter that answers each of these system calls with its action and allows all others.
pub(crate) fn filter(calls: &[(libc::c_long, u32)]) -> Vec<libc::sock_filter> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const IS: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, k, jf| libc::sock_filter { code, jt: 0, jf, k };
    // A filter's data begins with the system call's number.
    let mut filter = vec![step(LOAD, 0, 0)];
    for &(call, action) in calls {
        filter.push(step(IS, call as u32, 1));
        filter.push(step(RETURN, action, 0));
    }
    filter.push(step(RETURN, libc::SECCOMP_RET_ALLOW, 0));
    filter
}

/// Makes these system calls fail with these error numbers, from now on, in this thread and in the
/// threads and processes that it starts.
pub(crate) fn forbid(calls: &[(libc::c_long, i32)]) {
    let actions: Vec<_> = calls.iter().map(|&(call, errno)| (call, libc::SECCOMP_RET_ERRNO | errno as u32)).collect();
    let mut filter = filter(&actions);
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its filter outlive the calls, which copy them.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program), 0);
    }
}
