//! What the tape decides of requests: whether they are taken, what they come to, and how long they
//! take.

use std::time::Duration;

use super::faults::{Fault, Faults, Times};
use super::machine::Machine;
use super::names::Open;
use crate::kernel::Opcode;
use crate::kernel::lent::Lent;

const STALL: Duration = Duration::from_secs(1);
/// From one completion to the next, in any order. Halved again and again, it stays far above what a
/// look at the ring takes.
const TURN: Duration = Duration::from_millis(1);
/// Refusals in a row.
const MOST_REFUSED: u32 = 3;

/// What a request will come to.
#[derive(Clone, Copy)]
pub(super) enum Fate {
    /// At most so many bytes.
    Transfers(usize),
    Fails(i32),
}

impl Machine {
    /// Whether something goes wrong that does at this rate.
    pub(super) fn goes_wrong(&mut self, rate: fn(&Faults) -> f64) -> bool {
        let happens = self.faults_so_far < self.faults.most && self.tape.chance(rate(&self.faults));
        self.faults_so_far += u32::from(happens);
        happens
    }

    /// Takes the first fault of this kind off the script.
    pub(super) fn scripted(&mut self, of_submit: bool) -> Option<Fault> {
        let place = self.script.iter().position(|fault| fault.is_of_submit() == of_submit)?;
        self.script.remove(place)
    }

    /// How many of those that are offered a submit takes; or why none.
    pub(super) fn draw_most(&mut self, offered: usize) -> Result<usize, i32> {
        if self.refused_in_row < MOST_REFUSED && self.goes_wrong(|faults| faults.refused) {
            self.refused_in_row += 1;
            return Err(libc::EAGAIN);
        }
        if self.goes_wrong(|faults| faults.invalid) {
            return Err(libc::EINVAL);
        }
        let part = offered > 1 && self.goes_wrong(|faults| faults.partial);
        Ok(if part { offered - 1 - self.tape.choose(offered as u32 - 1) as usize } else { offered })
    }

    /// What the request will come to, and how long it takes.
    pub(super) fn decide(&mut self, opcode: Opcode, offset: u64, open: &Open, lent: &Lent) -> (Fate, Duration) {
        let scripted = self.scripted(false);
        let len = lent.len();
        let unit = if open.access.direct { self.settings.sector } else { 1 };
        let mask = unit - 1;
        let fate = match scripted {
            _ if open.lost => Fate::Fails(libc::EIO),
            // Direct I/O that is not aligned is taken, and fails.
            _ if lent.touches(mask) || offset & mask as u64 != 0 => Fate::Fails(libc::EINVAL),
            Some(Fault::Error(errno)) => Fate::Fails(errno),
            Some(Fault::Short(most)) => Fate::Transfers(most.min(len)),
            Some(_) => Fate::Transfers(len),
            None if self.goes_wrong(|faults| faults.errors) => {
                let full = opcode.is_write() && self.tape.choose(2) == 1;
                Fate::Fails(if full { libc::ENOSPC } else { libc::EIO })
            }
            None if len > unit && self.goes_wrong(|faults| faults.short) => {
                let half = (len / 2).next_multiple_of(unit).min(len - unit);
                let mut parts = vec![len - unit, half, unit];
                parts.dedup();
                Fate::Transfers(parts[self.tape.choose(parts.len() as u32) as usize])
            }
            None => Fate::Transfers(len),
        };
        let time = match scripted {
            Some(Fault::AtOnce) => Duration::ZERO,
            Some(Fault::Delay(delay)) => self.draw_latency() + delay,
            _ if self.goes_wrong(|faults| faults.at_once) => Duration::ZERO,
            _ if self.goes_wrong(|faults| faults.stalled) => self.draw_latency() + STALL,
            _ => self.draw_latency(),
        };
        (fate, time)
    }

    fn draw_latency(&mut self) -> Duration {
        match self.settings.latency.times() {
            Times::Of(times) => times[self.tape.choose(times.len() as u32) as usize],
            Times::AnyOrder => self.draw_place(),
        }
    }

    /// How long it takes to be behind the last of those in flight, or before one of them.
    fn draw_place(&mut self) -> Duration {
        let now = self.now();
        let due: Vec<_> = self.in_flight.keys().map(|&(due, _)| due.saturating_sub(now)).collect();
        let place = due.len() - self.tape.choose(due.len() as u32 + 1) as usize;
        let before = place.checked_sub(1).map_or(Duration::ZERO, |last| due[last]);
        before + due.get(place).map_or(TURN, |next| (*next - before) / 2)
    }

    /// Whether how many complete is a choice wherever any may.
    pub(super) fn is_in_any_order(&self) -> bool {
        self.settings.latency.times() == &Times::AnyOrder
    }
}
