//! Stacks: carved from large mappings, guarded without a mapping each, and reused.
//!
//! ```text
//!   one region (one mapping)
//!   | guard | stack 0      | guard | stack 1      | guard | stack 2      | ...
//!           ^limit     top^
//! ```
//!
//! - A guard is one page made inaccessible by `MADV_GUARD_INSTALL` (Linux 6.13), which marks the
//!   page table and does not split the mapping: a million stacks fit under `vm.max_map_count`.
//!   Older kernels get `mprotect`, which splits the mapping, so the limit there is about 30,000
//!   stacks.
//! - The tops are *coloured*: each stack starts a few cache lines lower than its neighbour.
//!   Otherwise the hottest lines of all stacks, a power of two apart, would share the same few sets
//!   of the first-level cache.
//! - A suspended coroutine costs the pages it has touched: mostly one page of its stack, plus its
//!   control block and a share of a page table. A million of them on stacks of 128 KiB: 4.5 KiB
//!   each, 4.3 GiB in all, in 11 mappings; 5 us each to create, and as much to unwind and unmap
//!   (`tests/hundred_thousand.rs`).
//! - A used stack is handed out first, while it is warm. Regions are unmapped with their pool.

#![allow(unsafe_code)]

use std::alloc::Layout;
use std::cell::RefCell;
use std::ops::Range;
use std::{io, ptr};

use corosensei::stack::valgrind::ValgrindStackRegistration;
use corosensei::stack::{Stack, StackPointer};

/// The default stack size, in bytes, guard page included.
pub const DEFAULT_STACK_SIZE: usize = 128 * 1024;
/// The minimum stack size, in bytes: the guard and three pages.
pub const MIN_STACK_SIZE: usize = 16 * 1024;

pub(crate) const PAGE: usize = 4096;
/// The approximate size of a region. Overcommit checks apply to one mapping at a time, and this
/// size passes them.
const REGION: usize = 16 * 1024 * 1024;
/// `MADV_GUARD_INSTALL`, not in libc yet (`asm-generic/mman-common.h`, Linux 6.13).
const MADV_GUARD_INSTALL: libc::c_int = 102;
/// Colours: 40 steps of a cache line. The rest of the top page, 1.5 KiB, is enough for a coroutine
/// that does little, so most waiting coroutines touch one page only.
const COLOURS: usize = 40;
const COLOUR_STEP: usize = 64;

/// A stack leased from the pool. Plain numbers: the lessee must return it exactly once, to the same
/// pool.
#[derive(Clone, Copy)]
pub(crate) struct StackLease {
    /// Highest address, below the colour offset; 16-byte aligned.
    top: usize,
    /// Lowest address, guard page included.
    limit: StackPointer,
    class: u32,
}

impl StackLease {
    /// Returns the guard page.
    pub(crate) fn guard(&self) -> Range<usize> {
        self.limit.get()..self.limit.get() + PAGE
    }

    /// Returns the part that a coroutine may use.
    pub(crate) fn usable(&self) -> Range<usize> {
        self.limit.get() + PAGE..self.top
    }

    /// Returns the whole size in bytes, guard page and colour included.
    pub(crate) fn size(&self) -> usize {
        self.top.next_multiple_of(PAGE) - self.limit.get()
    }

    /// Cuts memory off the top, and returns its start. It belongs to the lease's owner, and outlives
    /// the coroutine that runs below it. Returns `None` if that is more than a sixteenth of the
    /// stack: unoptimised code moves a result half a dozen times on its way there.
    #[inline]
    pub(crate) fn carve(&mut self, layout: Layout) -> Option<*mut u8> {
        let limit = self.limit.get();
        let start = self.top.checked_sub(layout.size())? & !(layout.align().max(16) - 1);
        let fits = start >= limit + PAGE && self.top - start <= (self.top - limit) / 16;
        fits.then(|| self.cut(layout))
    }

    /// As `carve`, for less than a kibibyte, which each stack has.
    #[inline]
    pub(crate) fn cut(&mut self, layout: Layout) -> *mut u8 {
        self.top = (self.top - layout.size()) & !(layout.align().max(16) - 1);
        ptr::with_exposed_provenance_mut(self.top)
    }
}

#[inline]
fn nonzero(address: usize) -> StackPointer {
    StackPointer::new(address).expect("a mapping is never at address 0")
}

/// The stack type on which corosensei runs a coroutine.
pub(crate) struct RunningStack {
    base: StackPointer,
    limit: StackPointer,
}

impl RunningStack {
    #[inline]
    pub(crate) fn new(lease: &StackLease) -> RunningStack {
        RunningStack { base: nonzero(lease.top), limit: lease.limit }
    }
}

// SAFETY: *guarded*: the lowest page at `limit` is inaccessible (see `Region::guard`), and between
// it and `base` there are more than corosensei's MIN_STACK_SIZE bytes (`carve` and `cut` leave 14 of
// 16 KiB). Both ends are 16-byte aligned.
unsafe impl Stack for RunningStack {
    fn base(&self) -> StackPointer {
        self.base
    }

    fn limit(&self) -> StackPointer {
        self.limit
    }
}

/// One mapping that many stacks are carved from.
struct Region {
    start: usize,
    len: usize,
    /// Valgrind must know each stack, or it mistakes a switch for a stack that grew by megabytes.
    registrations: Vec<ValgrindStackRegistration>,
}

impl Region {
    fn map(len: usize) -> io::Result<Region> {
        // SAFETY: a fresh private mapping, at an address that the kernel chooses: no other memory
        // is touched.
        unsafe {
            let start = libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK,
                -1,
                0,
            );
            if start == libc::MAP_FAILED {
                return Err(no_memory(len, &io::Error::last_os_error()));
            }
            // With a huge page the first touch of one stack would pay for sixteen. Failure only
            // costs memory.
            libc::madvise(start, len, libc::MADV_NOHUGEPAGE);
            Ok(Region { start: start.expose_provenance(), len, registrations: Vec::new() })
        }
    }

    /// Turns the page at `address` into a guard.
    fn guard(&mut self, address: usize, size: usize) -> io::Result<()> {
        let page = ptr::with_exposed_provenance_mut::<libc::c_void>(address);
        // SAFETY: the page lies in this region, in a stack that has not been handed out yet and so
        // is unused.
        unsafe {
            if libc::madvise(page, PAGE, MADV_GUARD_INSTALL) != 0 && libc::mprotect(page, PAGE, libc::PROT_NONE) != 0 {
                return Err(no_memory(PAGE, &io::Error::last_os_error()));
            }
        }
        self.registrations.push(ValgrindStackRegistration::new(page.cast::<u8>(), size));
        Ok(())
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the region is exactly the mapping made by `map`, and the pool is dropped only
        // after all its stacks were returned (*home outlives its stacks*).
        let result = unsafe { libc::munmap(ptr::with_exposed_provenance_mut(self.start), self.len) };
        debug_assert_eq!(result, 0);
    }
}

fn no_memory(bytes: usize, cause: &io::Error) -> io::Error {
    io::Error::new(
        io::ErrorKind::OutOfMemory,
        format!(
            "cannot map {bytes} bytes for coroutine stacks: {cause}; run fewer coroutines at once, reduce stack_size, \
             or raise vm.max_map_count or vm.overcommit_memory"
        ),
    )
}

/// Stacks of one size: the free ones, and how far the newest region has been carved.
struct Class {
    size: usize,
    free: Vec<StackLease>,
    next: usize,
    end: usize,
    made: usize,
}

/// All stacks of one context. The first class is the default size.
pub(crate) struct StackPool {
    classes: RefCell<Vec<Class>>,
    regions: RefCell<Vec<Region>>,
    /// Whether stacks are measured by default.
    pub(crate) measure: bool,
}

impl StackPool {
    /// Creates a pool with the given default size and the given default for measuring.
    pub(crate) fn new(default_size: usize, measure: bool) -> StackPool {
        StackPool { classes: RefCell::new(vec![Class::new(default_size)]), regions: RefCell::default(), measure }
    }

    /// Returns a stack of `size` bytes, guard included, or of the default size; preferably a warm
    /// one.
    #[inline]
    pub(crate) fn take(&self, size: Option<usize>) -> io::Result<StackLease> {
        let mut classes = self.classes.borrow_mut();
        let index = match size {
            None => 0,
            Some(size) => Class::index(&mut classes, rounded(size)),
        };
        let class = &mut classes[index];
        match class.free.pop() {
            Some(lease) => Ok(lease),
            None => class.make(index as u32, &mut self.regions.borrow_mut()),
        }
    }

    /// Takes back a stack, unchanged from how it was leased.
    #[inline]
    pub(crate) fn give_back(&self, lease: StackLease) {
        self.classes.borrow_mut()[lease.class as usize].free.push(lease);
    }
}

impl Class {
    fn new(size: usize) -> Class {
        Class { size: rounded(size), free: Vec::new(), next: 0, end: 0, made: 0 }
    }

    /// Returns the index of the class with stacks of `size` bytes, adding the class if necessary.
    fn index(classes: &mut Vec<Class>, size: usize) -> usize {
        classes.iter().position(|class| class.size == size).unwrap_or_else(|| {
            classes.push(Class::new(size));
            classes.len() - 1
        })
    }

    #[cold]
    fn make(&mut self, class: u32, regions: &mut Vec<Region>) -> io::Result<StackLease> {
        if self.next == self.end {
            let region = Region::map((REGION / self.size).max(1) * self.size)?;
            (self.next, self.end) = (region.start, region.start + region.len);
            regions.push(region);
        }
        // The stack lies in the newest region of its class, which need not be the newest of all.
        let region = regions
            .iter_mut()
            .rfind(|region| (region.start..region.start + region.len).contains(&self.next))
            .expect("`next` lies in a region while it is not `end`");
        region.guard(self.next, self.size)?;
        let colour = self.made % COLOURS * COLOUR_STEP;
        let lease = StackLease { top: self.next + self.size - colour, limit: nonzero(self.next), class };
        self.next += self.size;
        self.made += 1;
        Ok(lease)
    }
}

/// Rounds up to whole pages, and to at least the minimum.
fn rounded(size: usize) -> usize {
    // A mapping of this size fails, and reports why.
    size.clamp(MIN_STACK_SIZE, isize::MAX as usize).next_multiple_of(PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_stacks_are_reused_first_and_sizes_do_not_mix() {
        // C10: an ended coroutine's stack returns to the pool and is reused.
        let pool = StackPool::new(DEFAULT_STACK_SIZE, false);
        let first = pool.take(None).unwrap();
        let large = pool.take(Some(1 << 20)).unwrap();
        assert_eq!(large.size(), 1 << 20);
        pool.give_back(first);
        pool.give_back(large);
        assert_eq!(pool.take(None).unwrap().limit, first.limit);
        assert_eq!(pool.take(Some(1 << 20)).unwrap().limit, large.limit);
    }

    #[test]
    fn impossible_stack_is_an_error() {
        // C11: a size that cannot be rounded up to whole pages is refused like any that is too
        // large.
        let pool = StackPool::new(usize::MAX, false);
        for size in [None, Some(usize::MAX - PAGE)] {
            assert_eq!(pool.take(size).err().map(|error| error.kind()), Some(io::ErrorKind::OutOfMemory));
        }
        assert!(pool.take(Some(MIN_STACK_SIZE)).is_ok());
    }

    #[test]
    fn stacks_do_not_overlap() {
        // C11: each stack has its own guard page below it.
        let pool = StackPool::new(64 * 1024, false);
        let mut leases: Vec<_> = (0..1000).map(|_| pool.take(None).unwrap()).collect();
        leases.sort_by_key(|lease| lease.limit);
        for pair in leases.windows(2) {
            assert!(pair[0].top <= pair[1].limit.get());
        }
    }

    #[test]
    fn carving_leaves_most_of_the_stack() {
        // C10: results live on the stack, and must not crowd out the coroutine.
        let pool = StackPool::new(MIN_STACK_SIZE, false);
        let mut lease = pool.take(None).unwrap();
        let layout = |size, align| Layout::from_size_align(size, align).unwrap();
        assert!(lease.carve(layout(MIN_STACK_SIZE, 16)).is_none());
        let place = lease.carve(layout(100, 64)).unwrap();
        assert_eq!(place as usize % 64, 0);
    }
}
