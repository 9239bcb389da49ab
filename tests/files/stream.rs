//! Files as `std::io` streams. The reference is `std::fs::File`.

use std::io::{BufRead, BufReader, BufWriter, ErrorKind, IoSlice, IoSliceMut, Read, Seek, SeekFrom, Write};

use coralio::File;
use coralio::fs::{Direct, FileCursor};

use crate::{Temp, disk, everywhere, on_real_files, pattern};

#[test]
fn cursor_behaves_like_std_file() {
    // E15: a sequence of reads, writes and seeks behaves as std's on a copy
    on_real_files(|place, direct| {
        let [ours, theirs] = [(); 2].map(|()| Temp::with(place, &pattern(3, 10_000)));
        let mut ours = FileCursor::new(ours.open(direct));
        let mut theirs = std::fs::OpenOptions::new().read(true).write(true).open(&theirs.0).unwrap();
        let mut random = pattern(4, 3000).into_iter().map(u64::from);
        let mut next = || random.next().unwrap() * 40;
        for round in 0..200 {
            let (at, len) = (next(), next() as usize / 4);
            let to = match round % 4 {
                0 => SeekFrom::Start(at),
                1 => SeekFrom::End(-(at as i64) / 3),
                2 => SeekFrom::Current(at as i64 / 2 - 2000),
                _ => SeekFrom::Current(0),
            };
            match (ours.seek(to), theirs.seek(to)) {
                (Ok(a), Ok(b)) => assert_eq!(a, b),
                (Err(a), Err(b)) => assert_eq!(a.kind(), b.kind()),
                (a, b) => panic!("{to:?}: {a:?}, {b:?}"),
            }
            if round % 3 == 0 {
                let data = pattern(round, len);
                ours.write_all(&data).unwrap();
                theirs.write_all(&data).unwrap();
            } else {
                let (mut a, mut b) = (vec![0; len], vec![0; len]);
                assert_eq!(ours.read(&mut a).unwrap(), theirs.read(&mut b).unwrap());
                assert!(a == b);
            }
            assert_eq!(ours.stream_position().unwrap(), theirs.stream_position().unwrap());
        }
        ours.flush().unwrap();
        let (mut a, mut b) = (Vec::new(), Vec::new());
        ours.rewind().unwrap();
        theirs.rewind().unwrap();
        ours.read_to_end(&mut a).unwrap();
        theirs.read_to_end(&mut b).unwrap();
        assert!(a == b);
    });
}

#[test]
fn invalid_seeks_are_rejected() {
    // E14: an invalid seek is an error and leaves the position unchanged
    let temp = Temp::with(&disk(), b"four");
    coralio::run(|| {
        let mut stream = FileCursor::at(temp.open(Direct::Auto), 3);
        for (to, from, by) in [
            (SeekFrom::Current(-4), 3, -4),
            (SeekFrom::End(-5), 4, -5),
            (SeekFrom::Current(i64::MAX), 3, i64::MAX),
            (SeekFrom::Start(1 << 63), 1u64 << 63, 0),
        ] {
            let error = stream.seek(to).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains(&format!("cannot seek by {by} from {from}")), "{error}");
            assert_eq!(stream.stream_position().unwrap(), 3);
        }
        // Beyond the end is valid: writing there leaves a hole.
        stream.seek(SeekFrom::End(2)).unwrap();
        assert_eq!(stream.read(&mut [0; 4]).unwrap(), 0);
        stream.write_all(b"seven").unwrap();
        assert_eq!(temp.content(), b"four\0\0seven");
        assert_eq!(stream.get_ref().len().unwrap(), 11);
        assert_eq!(stream.into_inner().len().unwrap(), 11);
    });
}

#[test]
fn errors_leave_the_position() {
    // E10, E14: a failed write reports the kernel's reason and leaves the position unchanged
    let temp = Temp::with(&disk(), b"read-only");
    coralio::run(|| {
        let mut stream = FileCursor::at(File::open(&temp.0).unwrap(), 5);
        let error = stream.write(b"x").unwrap_err();
        assert!(error.to_string().contains("not open for this"), "{error}");
        assert_eq!(stream.stream_position().unwrap(), 5);
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "only");
    });
}

#[test]
fn vectored_and_buffered_io_works() {
    // E15: vectored and buffered streams transfer the same bytes as one buffer
    everywhere(|place, direct| {
        let temp = Temp::at(place);
        let file = temp.open(direct);
        let mut stream = FileCursor::new(&file);
        assert_eq!(stream.write_vectored(&[IoSlice::new(b"one\n"), IoSlice::new(b"two\n")]).unwrap(), 8);
        {
            let mut lines = BufWriter::new(&mut stream);
            (3..2000).for_each(|number| writeln!(lines, "{number}").unwrap());
        }
        stream.rewind().unwrap();
        let (mut a, mut b) = ([0; 2], [0; 4]);
        assert_eq!(stream.read_vectored(&mut [IoSliceMut::new(&mut a), IoSliceMut::new(&mut b)]).unwrap(), 6);
        assert_eq!((&a, &b), (b"on", b"e\ntw"));
        stream.rewind().unwrap();
        let lines: Vec<_> = BufReader::new(stream).lines().map(Result::unwrap).collect();
        assert_eq!(&lines[..3], ["one", "two", "3"]);
        assert_eq!((lines.len(), lines[1998].as_str()), (1999, "1999"));
    });
}
