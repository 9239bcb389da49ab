//! The server killed under load, repeatedly: the image is consistent each time, and contains all
//! flushed data.
//!
//! The page cache outlives the process. The kill loses the state in the server's memory: tables
//! changed and not yet written. So these tests check the order in which it writes them; the effects
//! of a power failure are tested on the simulated backend, in `examples/qcow2/tests/crash.rs`.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;

use super::client::*;
use super::server::{Folder, Server};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 4096;
const SECTOR: usize = 512;
/// The number of writes and flushes under way.
const DEPTH: usize = 16;

/// splitmix64
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

/// The versions that a block may contain: the first was flushed, the others were written later. A
/// new image contains version 0.
type Versions = Vec<u64>;

/// A flag in a version: the block was zeroed.
const ZEROED: u64 = 1 << 63;

enum Asked {
    /// The block.
    Write(u64),
    /// The version of each block that was acknowledged when the flush was sent.
    Flush(Vec<(u64, u64)>),
}

struct Load {
    random: Random,
    versions: HashMap<u64, Versions>,
    /// The last version of each block that was acknowledged.
    acknowledged: HashMap<u64, u64>,
    asked: HashMap<u64, Asked>,
    next: u64,
}

fn contents(block: u64, version: u64) -> Vec<u8> {
    if version == 0 || version & ZEROED != 0 {
        return vec![0; BLOCK as usize];
    }
    [block, version].map(u64::to_le_bytes).concat().repeat(BLOCK as usize / 16)
}

impl Load {
    /// Returns the next request, and records it.
    fn ask(&mut self) -> Vec<u8> {
        self.next += 1;
        let cookie = self.next;
        let kind = self.random.below(20);
        if kind == 0 {
            let flushed = self.acknowledged.iter().map(|(&block, &version)| (block, version)).collect();
            self.asked.insert(cookie, Asked::Flush(flushed));
            return request(FLUSH, 0, cookie, 0, 0);
        }
        let block = loop {
            let block = self.random.below(BLOCKS);
            // Two concurrent writes to one block have no order.
            if !self.asked.values().any(|asked| matches!(asked, Asked::Write(other) if *other == block)) {
                break block;
            }
        };
        let zero = kind == 1;
        let version = if zero { cookie | ZEROED } else { cookie };
        self.versions.entry(block).or_insert_with(|| vec![0]).push(version);
        self.asked.insert(cookie, Asked::Write(block));
        let offset = block * BLOCK;
        match zero {
            true => request(WRITE_ZEROES, 0, cookie, offset, BLOCK as u32),
            false => [request(WRITE, 0, cookie, offset, BLOCK as u32), contents(block, version)].concat(),
        }
    }

    fn answered(&mut self, cookie: u64) {
        match self.asked.remove(&cookie).expect("it was asked for") {
            Asked::Write(block) => {
                let last = *self.versions[&block].last().unwrap();
                self.acknowledged.insert(block, last);
            }
            // Versions older than the flushed one must not be found any more.
            Asked::Flush(flushed) => {
                for (block, version) in flushed {
                    let versions = self.versions.get_mut(&block).unwrap();
                    let at = versions.iter().rposition(|&one| one == version).unwrap_or(0);
                    versions.drain(..at);
                }
            }
        }
    }

    /// Runs until `replies` replies have come.
    fn run(&mut self, client: &mut Client, replies: u64) {
        for _ in 0..DEPTH {
            let bytes = self.ask();
            client.say(&bytes);
        }
        for _ in 0..replies {
            let (error, cookie) = client.reply();
            assert_eq!(error, 0, "request {cookie}");
            self.answered(cookie);
            let bytes = self.ask();
            client.socket.write_all(&bytes).unwrap();
        }
    }

    /// Checks that after the kill each block contains one of its possible versions, and keeps only
    /// the versions found. A write that was not answered may be there in part, since writes are
    /// atomic by sectors.
    fn check(&mut self, raw: &Path, seed: u64) {
        let mut file = fs::File::open(raw).unwrap();
        let mut found = vec![0; BLOCK as usize];
        for block in 0..BLOCKS {
            file.read_exact(&mut found).unwrap();
            let versions = self.versions.entry(block).or_insert_with(|| vec![0]);
            let mut there = Vec::new();
            for (number, sector) in found.chunks(SECTOR).enumerate() {
                let at = number * SECTOR..(number + 1) * SECTOR;
                let is = |version: &u64| contents(block, *version)[at.clone()] == *sector;
                let Some(version) = versions.iter().copied().find(is) else {
                    panic!("seed {seed}: block {block} has {:?}.., and may have {versions:?}", &sector[..16]);
                };
                there.push(version);
            }
            versions.retain(|version| there.contains(version));
        }
        self.acknowledged.clear();
        self.asked.clear();
    }
}

#[test]
fn killed_server_loses_no_acknowledged_write() {
    // P20: after SIGKILL under a load of writes, zeroes and flushes, qemu-img check finds leaks at
    // most, and flushed data is there. CORALIO_KILLS sets the number of kills, CORALIO_KILL_SEED
    // the first seed
    let number = |name, default| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (kills, first): (u64, u64) = (number("CORALIO_KILLS", 10), number("CORALIO_KILL_SEED", 1));
    let folder = Folder::new("kill");
    let (image, raw) = (folder.path("image"), folder.path("raw"));
    let (image_name, raw_name) = (image.to_str().unwrap(), raw.to_str().unwrap());
    let qemu_img = |args: &[&str]| Command::new("qemu-img").args(args).output();
    if qemu_img(&["--version"]).is_err() {
        eprintln!("skipped: no qemu-img");
        return;
    }
    let (mut leaks, mut load) = (0, None);
    for seed in first..first + kills {
        let mut random = Random(seed);
        // Sometimes creates a new image; otherwise continues with the last one.
        if load.is_none() || random.below(4) == 0 {
            let cluster = ["cluster_size=512", "cluster_size=4k", "cluster_size=64k"][random.below(3) as usize];
            let options = ["create", "-q", "-f", "qcow2", "-o", cluster, image_name, "16M"];
            assert!(qemu_img(&options).unwrap().status.success());
            load = Some(Load {
                random: Random(seed),
                versions: HashMap::new(),
                acknowledged: HashMap::new(),
                asked: HashMap::new(),
                next: 0,
            });
        }
        let load = load.as_mut().unwrap();
        let server = Server::start(&folder, &["--format", "qcow2", image_name]);
        let mut client = Client::plain(&server, "");
        load.run(&mut client, 50 + random.below(2000));
        server.signal(libc::SIGKILL);
        drop(server);
        let checked = qemu_img(&["check", image_name]).unwrap();
        let said = String::from_utf8_lossy(&checked.stdout);
        match checked.status.code() {
            Some(0) => {}
            // Clusters without a reference: lost space, and nothing else.
            Some(3) => leaks += 1,
            code => panic!("seed {seed}: qemu-img check: {code:?}\n{said}{}", String::from_utf8_lossy(&checked.stderr)),
        }
        let converted = qemu_img(&["convert", "-f", "qcow2", "-O", "raw", image_name, raw_name]).unwrap();
        assert!(converted.status.success(), "seed {seed}: {}", String::from_utf8_lossy(&converted.stderr));
        load.check(&raw, seed);
    }
    println!("killed {kills} times, seeds {first} to {}: leaks {leaks} times", first + kills - 1);
}
