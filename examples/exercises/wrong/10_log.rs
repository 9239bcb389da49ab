//! Wrong solutions of exercise 10.

use std::io;

use coralio::File;

use crate::judge::log::{Pair, checksum, read_numbers, write_numbers};

fn repeat_if_complete(data: &File, log: &File) -> io::Result<()> {
    let [first, second, sum] = read_numbers(log)?;
    if sum == checksum([first, second]) {
        write_numbers(data, &[first, second])?;
        data.sync_data()?;
    }
    Ok(())
}

/// The log may reach the disk after the data: a torn change cannot be repeated.
pub struct LogNotSynced;

impl Pair for LogNotSynced {
    fn put(data: &File, log: &File, pair: [u64; 2]) -> io::Result<()> {
        write_numbers(log, &[pair[0], pair[1], checksum(pair)])?;
        write_numbers(data, &pair)?;
        log.sync_data()?;
        data.sync_data()
    }

    fn recover(data: &File, log: &File) -> io::Result<()> {
        repeat_if_complete(data, log)
    }
}

/// The next change overwrites the log before the data is durable.
pub struct DataNotSynced;

impl Pair for DataNotSynced {
    fn put(data: &File, log: &File, pair: [u64; 2]) -> io::Result<()> {
        write_numbers(log, &[pair[0], pair[1], checksum(pair)])?;
        log.sync_data()?;
        write_numbers(data, &pair)
    }

    fn recover(data: &File, log: &File) -> io::Result<()> {
        repeat_if_complete(data, log)
    }
}

/// Repeats a torn log: instead of a checksum, only a mark shows that the log is valid.
pub struct NoChecksum;

impl Pair for NoChecksum {
    fn put(data: &File, log: &File, pair: [u64; 2]) -> io::Result<()> {
        write_numbers(log, &[pair[0], pair[1], 1])?;
        log.sync_data()?;
        write_numbers(data, &pair)?;
        data.sync_data()
    }

    fn recover(data: &File, log: &File) -> io::Result<()> {
        let [first, second, mark] = read_numbers(log)?;
        if mark == 1 {
            write_numbers(data, &[first, second])?;
            data.sync_data()?;
        }
        Ok(())
    }
}

/// Does not use the log.
pub struct NoLog;

impl Pair for NoLog {
    fn put(data: &File, _log: &File, pair: [u64; 2]) -> io::Result<()> {
        write_numbers(data, &pair)?;
        data.sync_data()
    }

    fn recover(_data: &File, _log: &File) -> io::Result<()> {
        Ok(())
    }
}
