//! Decisions about requests: whether they are accepted, their outcome, and how long they take.

use std::time::Duration;

use super::directory::{MAX_LEN, Open};
use super::faults::{Fault, Faults, Times};
use super::machine::Machine;
use crate::backend::Opcode;
use crate::backend::io_buffers::IoBuffers;

const STALL: Duration = Duration::from_secs(1);
/// Time between completions with `all_orders`. Repeated halving leaves it far above the time of a
/// look at the ring.
const TURN: Duration = Duration::from_millis(1);
/// Maximum number of refused submits in a row.
const MAX_REFUSED: u32 = 3;

/// The outcome of a request.
#[derive(Clone, Copy)]
pub(super) enum Outcome {
    /// Transfers at most this many bytes.
    Transfers(usize),
    Fails(i32),
}

impl Machine {
    /// Decides whether a fault with this rate happens.
    pub(super) fn goes_wrong(&mut self, rate: fn(&Faults) -> f64) -> bool {
        let happens = self.faults_so_far < self.faults.max_faults && self.tape.chance(rate(&self.faults));
        self.faults_so_far += u32::from(happens);
        happens
    }

    /// Takes the first injected fault of this kind.
    pub(super) fn scripted(&mut self, of_submit: bool) -> Option<Fault> {
        let place = self.script.iter().position(|fault| fault.is_of_submit() == of_submit)?;
        self.script.remove(place)
    }

    /// Decides how many of the offered requests a submit accepts, or the error if none.
    pub(super) fn draw_most(&mut self, offered: usize) -> Result<usize, i32> {
        if self.refused_in_row < MAX_REFUSED && self.goes_wrong(|faults| faults.refused) {
            self.refused_in_row += 1;
            return Err(libc::EAGAIN);
        }
        if self.goes_wrong(|faults| faults.invalid) {
            return Err(libc::EINVAL);
        }
        let part = offered > 1 && self.goes_wrong(|faults| faults.partial);
        Ok(if part { offered - 1 - self.tape.choose(offered as u32 - 1) as usize } else { offered })
    }

    /// Decides the outcome of a request and how long it takes.
    pub(super) fn decide(&mut self, opcode: Opcode, offset: u64, open: &Open, lent: &IoBuffers) -> (Outcome, Duration) {
        let scripted = self.scripted(false);
        let len = lent.len();
        let unit = if open.access.direct { self.settings.sector_size } else { 1 };
        let mask = unit - 1;
        let fate = match scripted {
            _ if open.lost => Outcome::Fails(libc::EIO),
            // Unaligned direct I/O is accepted, and fails.
            _ if lent.touches(mask) || offset & mask as u64 != 0 => Outcome::Fails(libc::EINVAL),
            _ if offset.saturating_add(len as u64) > MAX_LEN => Outcome::Fails(libc::EINVAL),
            Some(Fault::Error(errno)) => Outcome::Fails(errno),
            Some(Fault::Short(most)) => Outcome::Transfers(most.min(len)),
            Some(_) => Outcome::Transfers(len),
            None if self.goes_wrong(|faults| faults.errors) => {
                let full = opcode.is_write() && self.tape.choose(2) == 1;
                Outcome::Fails(if full { libc::ENOSPC } else { libc::EIO })
            }
            None if len > unit && self.goes_wrong(|faults| faults.short) => {
                let half = (len / 2).next_multiple_of(unit).min(len - unit);
                let mut parts = vec![len - unit, half, unit];
                parts.dedup();
                Outcome::Transfers(parts[self.tape.choose(parts.len() as u32) as usize])
            }
            None => Outcome::Transfers(len),
        };
        let time = match scripted {
            Some(Fault::AtOnce) => Duration::ZERO,
            Some(Fault::Delay(delay)) => self.draw_latency().saturating_add(delay),
            _ if self.goes_wrong(|faults| faults.at_once) => Duration::ZERO,
            _ if self.goes_wrong(|faults| faults.stalled) => self.draw_latency().saturating_add(STALL),
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

    /// Draws a latency that places the request after the last of those in flight, or before one of
    /// them.
    fn draw_place(&mut self) -> Duration {
        let now = self.now();
        let due: Vec<_> = self.in_flight.keys().map(|&(due, _)| due.saturating_sub(now)).collect();
        let place = due.len() - self.tape.choose(due.len() as u32 + 1) as usize;
        let before = place.checked_sub(1).map_or(Duration::ZERO, |last| due[last]);
        before.saturating_add(due.get(place).map_or(TURN, |next| (*next - before) / 2))
    }

    /// Whether the number of requests that complete is itself a choice.
    pub(super) fn is_in_any_order(&self) -> bool {
        self.settings.latency.times() == &Times::AnyOrder
    }
}
