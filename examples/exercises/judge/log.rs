//! Exercise 10: a write-ahead log.

use std::io;

use coralio::File;
use coralio::simulate::{Faults, Sim, Simulation};

use super::{Judged, judge_on, say};

/// A pair of numbers in a file, and a log with which a change of both is atomic.
pub trait Pair {
    /// Changes both numbers: `data` begins with them, 8 bytes each, little-endian. After a crash
    /// at any moment and a [`recover`](Self::recover), both are old or both new; and new once this
    /// has returned.
    ///
    /// `log` is for this method's own use.
    fn put(data: &File, log: &File, pair: [u64; 2]) -> io::Result<()>;

    /// Makes `data` consistent after a crash. A crash may interrupt this as well.
    fn recover(data: &File, log: &File) -> io::Result<()>;
}

/// Returns a checksum: it differs if any of the numbers differs.
pub fn checksum(pair: [u64; 2]) -> u64 {
    // The factor and the start are those of FNV-1a.
    let step = |sum: u64, byte: u8| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    pair.iter().flat_map(|number| number.to_le_bytes()).fold(0xcbf2_9ce4_8422_2325, step)
}

/// Writes numbers to a file, each with 8 bytes.
pub fn write_numbers(file: &File, numbers: &[u64]) -> io::Result<()> {
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    file.write_at(&bytes, 0).map(drop)
}

/// Reads numbers from a file; those beyond its end are 0.
pub fn read_numbers<const N: usize>(file: &File) -> io::Result<[u64; N]> {
    let mut bytes = vec![0; N * 8];
    file.read_at(&mut bytes, 0)?;
    let mut numbers = bytes.chunks_exact(8).map(|bytes| u64::from_le_bytes(bytes.try_into().expect("8 bytes")));
    Ok(std::array::from_fn(|_| numbers.next().expect("N numbers")))
}

const OLD: [u64; 2] = [1, 1];

/// Puts two pairs one after the other. The power fails meanwhile, and perhaps during the recovery.
pub fn is_correct<P: Pair>() -> Judged {
    let machine = Simulation::new().faults(Faults::none()).sector_size(8).crash_rate(0.1);
    judge_on(&machine, |sim: &Sim| {
        let open = || (sim.open("data").expect("it exists"), sim.open("log").expect("it exists"));
        let (data, _) = (sim.create("data", 16), sim.create("log", 0));
        write_numbers(&data, &OLD).and_then(|()| data.sync_data()).expect("the machine has no faults");

        let (data, log) = open();
        let mut done = [OLD].to_vec();
        let mut begun = done.clone();
        sim.crash_during(|| {
            for pair in [[2, 3], [0x0404_0404, 0x0505_0505]] {
                say(format!("puts {pair:?}"));
                begun.push(pair);
                P::put(&data, &log, pair)?;
                say("has put them");
                done.push(pair);
            }
            io::Result::Ok(())
        });
        say("power was lost, and is back");
        if sim.choose(2) == 1 {
            let (data, log) = open();
            sim.crash_during(|| P::recover(&data, &log));
            say("power was lost during the recovery, and is back");
        }
        let (data, log) = open();
        P::recover(&data, &log).expect("the machine has no faults");
        let found = read_numbers::<2>(&data).expect("the machine has no faults");
        say(format!("the numbers are {found:?}"));
        let (last, next) = (done.last().expect("the old pair"), begun.last().expect("the old pair"));
        assert!(
            found == *last || found == *next,
            "after the crash and the recovery the numbers are {found:?}; {last:?} were put, {next:?} begun."
        );
    })
}
