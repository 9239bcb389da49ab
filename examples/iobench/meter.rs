//! Clocks for a timed interval: wall time, and the CPU time of this process or of its children.
//! Also CPU pinning.

use std::io;
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

/// A point in time on all clocks.
pub struct Moment {
    /// `RUSAGE_SELF` or `RUSAGE_CHILDREN`.
    whose: i32,
    wall: Instant,
    cpu: Duration,
    user: Duration,
    system: Duration,
}

/// The time between two moments.
pub struct Spent {
    pub wall: Duration,
    /// User and system time together; exact for this process, in microseconds for children.
    pub cpu: Duration,
    /// The parts of `cpu`; on many kernels they are sampled at the timer tick.
    pub user: Duration,
    pub system: Duration,
}

impl Moment {
    /// Reads the clocks of this process.
    pub fn now() -> Moment {
        Moment::of(libc::RUSAGE_SELF)
    }

    /// Reads the clocks of the children that have ended and been waited for.
    pub fn of_children() -> Moment {
        Moment::of(libc::RUSAGE_CHILDREN)
    }

    fn of(whose: i32) -> Moment {
        let mut usage = MaybeUninit::<libc::rusage>::uninit();
        let mut cpu = MaybeUninit::<libc::timespec>::uninit();
        // SAFETY: both calls fill the struct that they are given, and fail only for an unknown
        // first argument.
        let (usage, cpu) = unsafe {
            libc::getrusage(whose, usage.as_mut_ptr());
            libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, cpu.as_mut_ptr());
            (usage.assume_init(), cpu.assume_init())
        };
        let span = |t: libc::timeval| Duration::from_secs(t.tv_sec as u64) + Duration::from_micros(t.tv_usec as u64);
        let (user, system) = (span(usage.ru_utime), span(usage.ru_stime));
        let exact = Duration::new(cpu.tv_sec as u64, cpu.tv_nsec as u32);
        let cpu = if whose == libc::RUSAGE_SELF { exact } else { user + system };
        Moment { whose, wall: Instant::now(), cpu, user, system }
    }

    /// Returns the time from this moment to now.
    pub fn spent(&self) -> Spent {
        let now = Moment::of(self.whose);
        Spent {
            wall: now.wall - self.wall,
            cpu: now.cpu - self.cpu,
            user: now.user - self.user,
            system: now.system - self.system,
        }
    }
}

impl Spent {
    /// Returns this interval minus `other`, at least zero.
    pub fn without(&self, other: &Spent) -> Spent {
        Spent {
            wall: self.wall.saturating_sub(other.wall),
            cpu: self.cpu.saturating_sub(other.cpu),
            user: self.user.saturating_sub(other.user),
            system: self.system.saturating_sub(other.system),
        }
    }
}

/// Pins this thread, and the threads and processes that it starts, to one CPU.
pub fn pin(cpu: usize) -> Result<(), String> {
    let why = if cpu < libc::CPU_SETSIZE as usize {
        // SAFETY: a cpu_set_t is plain bits, zero is the empty set, and the number is in range.
        let status = unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(cpu, &mut set);
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
        };
        if status == 0 {
            return Ok(());
        }
        io::Error::last_os_error().to_string()
    } else {
        "no such CPU".to_string()
    };
    Err(format!("--pin {cpu}: {why}; choose a CPU that `taskset -cp $$` lists"))
}
