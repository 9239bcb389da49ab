//! The stack pointer; shared with the regressions.

/// Returns the stack pointer. Reads the register where possible rather than a local's address:
/// AddressSanitizer may keep locals elsewhere.
pub fn stack_pointer() -> usize {
    let local = 0u8;
    let mut here = (&raw const local).addr();
    #[cfg(target_arch = "x86_64")]
    // SAFETY: only reads a register.
    unsafe {
        std::arch::asm!("mov {}, rsp", out(reg) here, options(nomem, nostack, preserves_flags));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: only reads a register.
    unsafe {
        std::arch::asm!("mov {}, sp", out(reg) here, options(nomem, nostack, preserves_flags));
    }
    std::hint::black_box(&mut here);
    here
}
