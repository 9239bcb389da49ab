//! The protocol: the handshake, each command, each kind of reply, and errors that do not end the
//! connection.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};

use coralio_qcow2::{CreateOptions, Qcow2};

use super::client::*;
use super::server::{Folder, Server};

const MIB: u32 = 1 << 20;

#[test]
fn every_command_works_with_both_kinds_of_reply() {
    // P1: read, write, flush, FUA, trim, zeroes, cache: written data is read back, and a rejected
    // request leaves the connection usable
    let folder = Folder::new("commands");
    let image = folder.image("disk", 8 << 20);
    let server = Server::of(&folder, &image);
    let mut client = Client::plain(&server, "");
    // Flush, FUA, trim, zeroes, many connections, cache, fast zero; no DF without structured
    // replies.
    assert_eq!((client.size, client.flags), (8 << 20, 0b1101_0110_1101));
    let data: Vec<u8> = (0..5000u32).map(|i| (i % 251) as u8).collect();
    client.write(4090, &data).unwrap();
    assert_eq!(client.read(4090, 5000).unwrap(), data);
    assert_eq!(client.read(0, 4090).unwrap(), vec![0; 4090]);
    let large = vec![7; 3 * MIB as usize + 17];
    client.write(1 << 20, &large).unwrap();
    assert_eq!(client.read(1 << 20, large.len() as u32).unwrap(), large);
    client.command(WRITE_ZEROES, FUA, 1 << 20, MIB).unwrap();
    client.command(WRITE_ZEROES, NO_HOLE, 2 << 20, MIB).unwrap();
    assert_eq!(client.read(1 << 20, 2 * MIB).unwrap(), vec![0; 2 << 20]);
    assert!([0, 95].contains(&client.command(WRITE_ZEROES, FAST_ZERO, 2 << 20, MIB).err().unwrap_or(0)));
    client.command(TRIM, 0, 3 << 20, MIB).unwrap();
    client.command(CACHE, 0, 0, 8 * MIB).unwrap();
    client.command(FLUSH, 0, 0, 0).unwrap();
    client.ask(WRITE, FUA, 3, 100, 4);
    client.say(b"fast");
    assert_eq!(client.reply(), (0, 3));
    assert_eq!(client.read(100, 4).unwrap(), b"fast");
    client.write(0, &[]).unwrap();
    assert_eq!(client.read(8 << 20, 0).unwrap(), []);
    client.ask(DISCONNECT, 0, 0, 0, 0);
    assert!(client.is_sent_away());
    server.stop();
    let mut found = vec![0; 5000];
    fs::File::open(image).unwrap().read_exact_at(&mut found, 4090).unwrap();
    assert_eq!(found, data);
}

#[test]
fn structured_replies_report_block_status() {
    // P2: structured replies carry data with its offset, errors with a text, and extents that
    // distinguish data from holes; one extent on request
    let folder = Folder::new("structured");
    let image = folder.image("disk", 8 << 20);
    let server = Server::of(&folder, &image);
    let mut client = Client::structured(&server, "");
    assert_eq!(client.flags & 1 << 7, 1 << 7, "DF");
    client.ask(WRITE, 0, 1, 1 << 20, 65536);
    client.say(&[9; 65536]);
    assert_eq!(client.chunk(), Chunk { done: true, kind: 0, cookie: 1, data: vec![] });
    client.ask(READ, DF, 2, (1 << 20) - 2, 4);
    let offset = ((1u64 << 20) - 2).to_be_bytes();
    let data = [&offset[..], &[0, 0, 9, 9]].concat();
    assert_eq!(client.chunk(), Chunk { done: true, kind: 1, cookie: 2, data });
    client.ask(READ, 0, 3, 8 << 20, 1);
    let error = client.chunk();
    assert_eq!((error.done, error.kind, error.cookie, &error.data[..4]), (true, 0x8001, 3, &22u32.to_be_bytes()[..]));
    let text = std::str::from_utf8(&error.data[6..]).unwrap();
    assert!(text.contains("8388608"), "{text}");
    client.ask(BLOCK_STATUS, 0, 4, 0, 8 * MIB);
    let status = client.chunk();
    let words: Vec<_> = status.data.as_chunks().0.iter().map(|word| u32::from_be_bytes(*word)).collect();
    assert_eq!((status.done, status.kind), (true, 5));
    assert_eq!(words, [1, MIB, 3, 65536, 0, 7 * MIB - 65536, 3]);
    client.ask(BLOCK_STATUS, ONE, 5, (1 << 20) + 512, 8192);
    let one = client.chunk().data;
    assert_eq!(one[4..], [8192u32.to_be_bytes(), 0u32.to_be_bytes()].concat());
    client.ask(BLOCK_STATUS, 0, 6, 0, 0);
    assert_eq!(client.chunk().kind, 0x8001);
    // The image is still sparse: only the written part is allocated.
    assert!(fs::metadata(&image).unwrap().blocks() * 512 < 1 << 20);
}

#[test]
fn holes_are_reported_and_not_sent() {
    // P23: large reads report holes as such, each part with its offset, the last one marked; a
    // client that asks for one piece, or has simple replies, gets one piece
    const AT: usize = 3 << 20;
    let folder = Folder::new("holes");
    let [raw, qcow2] = ["disk", "q"].map(|name| folder.path(name));
    folder.image("disk", 8 << 20);
    coralio::run(|| Qcow2::create(&qcow2, &CreateOptions::new(8 << 20)).unwrap());
    for image in [raw, qcow2] {
        let server = Server::of(&folder, &image);
        let mut plain = Client::plain(&server, "");
        let data: Vec<u8> = (0..MIB).map(|i| (i % 253) as u8).collect();
        plain.write(AT as u64, &data).unwrap();
        let mut client = Client::structured(&server, "");
        client.ask(READ, 0, 1, 0, 8 * MIB);
        let chunk = |done, kind, offset: usize, more: &[u8]| {
            let data = [&(offset as u64).to_be_bytes()[..], more].concat();
            Chunk { done, kind, cookie: 1, data }
        };
        assert_eq!(client.chunk(), chunk(false, 2, 0, &(3 * MIB).to_be_bytes()));
        assert!(client.chunk() == chunk(false, 1, AT, &data));
        assert_eq!(client.chunk(), chunk(true, 2, 4 << 20, &(4 * MIB).to_be_bytes()));
        let holes = [&vec![0; AT][..], &data, &vec![0; 4 << 20]].concat();
        client.ask(READ, DF, 1, 0, 8 * MIB);
        assert!(client.chunk() == chunk(true, 1, 0, &holes), "in one piece");
        client.ask(READ, 0, 1, AT as u64, MIB);
        assert!(client.chunk() == chunk(true, 1, AT, &data), "all of it is data");
        client.ask(READ, 0, 1, 0, 4096);
        assert_eq!(client.chunk(), chunk(true, 1, 0, &[0; 4096]), "not worth looking");
        client.ask(READ, 0, 1, 7 << 20, 2 * MIB);
        assert_eq!(client.chunk().kind, 0x8001);
        assert!(plain.read(0, 8 * MIB).unwrap() == holes);
        server.stop();
    }
    // The truncated part of a file is not a hole.
    let image = folder.image("cut", 8 << 20);
    let server = Server::of(&folder, &image);
    let mut client = Client::structured(&server, "");
    fs::File::options().write(true).open(&image).unwrap().set_len(1 << 20).unwrap();
    client.ask(READ, 0, 1, 0, 8 * MIB);
    assert_eq!(client.chunk().kind, 0x8001);
    client.ask(READ, 0, 1, 0, MIB);
    assert_eq!(client.chunk().kind, 2);
    server.stop();
}

#[test]
fn handshake_reports_exports_and_rejects_errors() {
    // P3: list, info, meta contexts, unknown options and exports, options out of order: each is
    // answered, and the handshake continues
    let folder = Folder::new("handshake");
    let [one, two] = ["one", "two"].map(|name| folder.image(name, 1 << 20));
    let exports = [&one, &two].map(|path| format!("{}={}", path.file_name().unwrap().display(), path.display()));
    let server = Server::start(&folder, &["--export", &exports[0], "--export", &exports[1], "--read-only"]);
    let mut client = Client::greeted(&server);
    client.say(&3u32.to_be_bytes());
    client.option(3, &[]);
    assert_eq!(client.answer(3), (2, counted("one")));
    assert_eq!(client.answer(3), (2, counted("two")));
    assert_eq!(client.answer(3), (1, vec![]));
    client.option(3, b"x");
    assert_eq!(client.answer(3).0, 0x8000_0003);
    client.option(99, &[]);
    assert_eq!(client.answer(99).0, 0x8000_0001);
    client.option(5, &[]);
    assert_eq!(client.answer(5).0, 0x8000_0001, "no TLS here");
    client.option(7, &[&counted("three")[..], &[0, 0]].concat());
    assert_eq!(client.answer(7).0, 0x8000_0006);
    client.option(7, &[0, 0, 0, 9, b'o']);
    assert_eq!(client.answer(7).0, 0x8000_0003);
    let set = [&counted("two")[..], &1u32.to_be_bytes(), &counted("base:allocation")].concat();
    client.option(10, &set);
    assert_eq!(client.answer(10).0, 0x8000_0003, "structured replies first");
    client.option(9, &[&counted("two")[..], &0u32.to_be_bytes()].concat());
    assert_eq!(client.answer(9), (4, b"\0\0\0\0base:allocation".to_vec()));
    assert_eq!(client.answer(9).0, 1);
    client.option(6, &[&counted("two")[..], &[0, 2, 0, 3, 0, 1]].concat());
    let (kind, info) = client.answer(6);
    // Read-only: no trim, no zeroes.
    assert_eq!((kind, &info[..]), (3, &[0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0b101, 0b0000_1111][..]));
    assert_eq!(client.answer(6), (3, b"\0\x01two".to_vec()));
    let (_, sizes) = client.answer(6);
    assert_eq!((&sizes[..6], &sizes[10..]), (&[0, 3, 0, 0, 0, 1][..], &(32 * MIB).to_be_bytes()[..]));
    assert_eq!(client.answer(6).0, 1);
    client.option(2, &[]);
    assert_eq!(client.answer(2), (1, vec![]));
    assert!(client.is_sent_away());

    // The first export is also the one without a name. A write is refused, and its data skipped.
    let mut client = Client::plain(&server, "");
    assert_eq!(client.write(0, &[1; 4096]), Err(1));
    assert_eq!(client.command(TRIM, 0, 0, 4096), Err(1));
    assert_eq!(client.command(WRITE_ZEROES, 0, 0, 4096), Err(1));
    assert_eq!(client.write(1 << 20, &[1]), Err(1), "beyond the end, too");
    assert_eq!(client.read(0, 512).unwrap(), [0; 512]);
    // Block status without the context; and with that of another export.
    let mut other = Client::greeted(&server);
    other.say(&3u32.to_be_bytes());
    other.option(8, &[]);
    assert_eq!(other.answer(8).0, 1);
    other.option(10, &set);
    assert_eq!((other.answer(10).0, other.answer(10).0), (4, 1));
    other.option(7, &[&counted("one")[..], &[0, 0]].concat());
    assert_eq!((other.answer(7).0, other.answer(7).0), (3, 1));
    other.ask(BLOCK_STATUS, 0, 1, 0, 4096);
    assert_eq!(other.chunk().kind, 0x8001);
    assert_eq!(client.command(BLOCK_STATUS, 0, 0, 4096), Err(22));
    server.stop();
}

#[test]
fn invalid_exports_are_rejected_at_the_start() {
    // P4: a missing image, an invalid qcow2 image, a duplicate name or a socket in use is an error
    // that names the cause, and the server does not start
    let folder = Folder::new("start");
    let image = folder.image("disk", 1 << 20);
    let image = image.to_str().unwrap();
    let server = Server::start(&folder, &[image]);
    let failing = |args: &[&str]| {
        let panic = std::panic::catch_unwind(|| drop(Server::start(&folder, args))).unwrap_err();
        panic.downcast_ref::<String>().unwrap().clone()
    };
    let other = folder.image("other", 1 << 20);
    let other = other.to_str().unwrap();
    let said = failing(&[other]);
    assert!(said.contains("another process uses the socket") && !said.contains("unwinds"), "{said}");
    let said = failing(&["--listen", "127.0.0.1:0", "/nowhere/disk"]);
    assert!(said.contains("/nowhere/disk"), "{said}");
    let said =
        failing(&["--listen", "127.0.0.1:0", "--export", &format!("a={image}"), "--export", &format!("a={image}")]);
    assert!(said.contains("duplicate name"), "{said}");
    let said = failing(&["--listen", "127.0.0.1:0", "--max-connections", "4000000000", other]);
    assert!(said.contains("ulimit -n"), "{said}");
    fs::write(folder.path("q"), b"QFI\xfb and more").unwrap();
    let said = failing(&["--listen", "127.0.0.1:0", folder.path("q").to_str().unwrap()]);
    assert!(said.contains("invalid cluster size 2^0 bytes"), "{said}");
    // A socket left behind by a killed server is replaced.
    drop(server);
    assert!(folder.path("s").exists());
    let server = Server::start(&folder, &[image]);
    assert_eq!(Client::plain(&server, "").size, 1 << 20);
    server.stop();
    assert!(!folder.path("s").exists(), "the server removes its socket");
}

#[test]
fn image_in_use_is_rejected() {
    // P24: a qcow2 image that another process writes is not served, and qemu-img cannot open one
    // that is served; --no-lock overrides
    let folder = Folder::new("use");
    let image = folder.path("q");
    coralio::run(|| Qcow2::create(&image, &CreateOptions::new(1 << 20)).unwrap());
    let image = image.to_str().unwrap();
    let failing = |args: &[&str]| {
        let panic = std::panic::catch_unwind(|| drop(Server::start(&folder, args))).unwrap_err();
        panic.downcast_ref::<String>().unwrap().clone()
    };
    let twice = ["--export", &format!("a={image}"), "--export", &format!("b={image}")];
    assert!(failing(&twice).contains("open it twice"));
    let server = Server::start(&folder, &["--threads", "2", image]);
    let said = failing(&["--listen", "127.0.0.1:0", image]);
    assert!(said.contains("open for writing") && said.contains("--no-lock"), "{said}");
    let info = std::process::Command::new("qemu-img").args(["info", image]).output();
    assert!(info.is_err() || !info.unwrap().status.success(), "a reader opened an image that is being written");
    Server::start(&folder, &["--listen", "127.0.0.1:0", "--no-lock", "--read-only", image]).stop();
    server.stop();
    // Readers do not exclude each other.
    let server = Server::start(&folder, &["--read-only", image]);
    Server::start(&folder, &["--listen", "127.0.0.1:0", "--read-only", image]).stop();
    server.stop();
}

#[test]
fn reads_of_no_bytes_have_no_data_chunk() {
    // P28: a structured read of 0 bytes succeeds without a data chunk, which would be empty; a
    // simple one is answered like any other
    let folder = Folder::new("empty");
    let server = Server::of(&folder, &folder.image("disk", 1 << 20));
    let mut client = Client::structured(&server, "");
    for flags in [0, DF] {
        client.ask(READ, flags, 7, 4096, 0);
        assert_eq!(client.chunk(), Chunk { done: true, kind: 0, cookie: 7, data: vec![] });
    }
    assert_eq!(Client::plain(&server, "").read(4096, 0).unwrap(), []);
    server.stop();
}

#[test]
fn unknown_requests_are_invalid() {
    // P28: unknown flags, a flush with a range, and DF without structured replies are EINVAL (22),
    // whatever the command; a range beyond the end is ENOSPC (28) for writes only
    let folder = Folder::new("invalid");
    let server = Server::of(&folder, &folder.image("disk", 1 << 20));
    let mut client = Client::plain(&server, "");
    for command in [TRIM, CACHE, WRITE_ZEROES, READ, FLUSH] {
        let len = if command == FLUSH { 0 } else { 512 };
        assert_eq!(client.command(command, 1 << 14, 0, len), Err(22), "command {command}");
    }
    client.ask(WRITE, 1 << 14, 2, 0, 512);
    client.say(&[1; 512]);
    assert_eq!(client.reply(), (22, 2));
    assert_eq!(client.command(FLUSH, 0, 0, 512), Err(22));
    assert_eq!(client.command(FLUSH, 0, 512, 0), Err(22));
    assert_eq!(client.command(READ, DF, 0, 512), Err(22));
    assert_eq!(client.write((1 << 20) - 1, &[1; 2]), Err(28));
    assert_eq!(client.command(WRITE_ZEROES, 0, (1 << 20) - 1, 2), Err(28));
    assert_eq!(client.command(TRIM, 0, (1 << 20) - 1, 2), Err(22));
    assert_eq!(client.command(CACHE, 0, (1 << 20) - 1, 2), Err(22));
    assert_eq!(client.command(FLUSH, 0, 0, 0), Ok(()));
    assert_eq!(client.read(0, 512).unwrap(), [0; 512], "nothing was written");
    let mut client = Client::structured(&server, "");
    client.ask(READ, DF, 1, 0, 512);
    assert_eq!(client.chunk().kind, 1);
    server.stop();
}

#[test]
fn clients_without_flags_can_name_an_export() {
    // P28: a client without the fixed-newstyle flag may send EXPORT_NAME, and no other option;
    // without NO_ZEROES it gets 124 zeroes
    let folder = Folder::new("unfixed");
    let server = Server::of(&folder, &folder.image("disk", 1 << 20));
    for flags in 0..4u32 {
        let mut client = Client::greeted(&server);
        client.say(&flags.to_be_bytes());
        client.option(1, b"");
        assert_eq!(client.take(10)[..8], (1u64 << 20).to_be_bytes());
        if flags & 2 == 0 {
            assert_eq!(client.take(124), [0; 124]);
        }
        assert_eq!(client.read(0, 512).unwrap(), [0; 512]);
    }
    let mut client = Client::greeted(&server);
    client.say(&0u32.to_be_bytes());
    client.option(7, &[0; 6]);
    assert!(client.is_sent_away());
    server.stop();
}

#[test]
fn failed_meta_context_voids_the_earlier_one() {
    // P28: a SET_META_CONTEXT that fails, or that finds nothing, leaves no context; options with
    // excess data are invalid
    let folder = Folder::new("void");
    let server = Server::of(&folder, &folder.image("disk", 1 << 20));
    let query = |name: &str, context: &str| [&counted(name)[..], &1u32.to_be_bytes(), &counted(context)].concat();
    let go = [&counted("")[..], &[0, 0]].concat();
    let failures = [
        (query("none", "base:allocation"), 0x8000_0006),
        (query("", "other:context"), 1),
        (b"short".to_vec(), 0x8000_0003),
        ([query("", "base:allocation"), vec![0]].concat(), 0x8000_0003),
    ];
    for (failure, answer) in failures {
        let mut client = Client::greeted(&server);
        client.say(&3u32.to_be_bytes());
        client.option(8, &[]);
        assert_eq!(client.answer(8).0, 1);
        client.option(10, &query("", "base:allocation"));
        assert_eq!((client.answer(10).0, client.answer(10).0), (4, 1));
        client.option(10, &failure);
        assert_eq!(client.answer(10).0, answer);
        client.option(7, &[&go[..], &[0]].concat());
        assert_eq!(client.answer(7).0, 0x8000_0003);
        client.option(7, &go);
        assert_eq!((client.answer(7).0, client.answer(7).0), (3, 1));
        client.ask(BLOCK_STATUS, 0, 1, 0, 4096);
        let chunk = client.chunk();
        assert_eq!((chunk.kind, &chunk.data[..4]), (0x8001, &22u32.to_be_bytes()[..]));
    }
    server.stop();
}

#[test]
fn size_is_the_exact_length_of_the_image() {
    // P28: an image whose length is not a multiple of 512 has its exact length, and its last bytes
    // are read and written
    let folder = Folder::new("odd");
    let image = folder.path("disk");
    fs::write(&image, vec![5; 1300]).unwrap();
    let server = Server::of(&folder, &image);
    let mut client = Client::plain(&server, "");
    assert_eq!(client.size, 1300);
    assert_eq!(client.read(1024, 276).unwrap(), [5; 276]);
    assert_eq!(client.read(1024, 277), Err(22));
    client.write(1298, &[6, 7]).unwrap();
    assert_eq!(client.write(1299, &[6, 7]), Err(28));
    client.command(WRITE_ZEROES, 0, 1024, 275).unwrap();
    server.stop();
    let found = fs::read(&image).unwrap();
    assert_eq!((found.len(), &found[1298..]), (1300, &[0, 7][..]));
}
