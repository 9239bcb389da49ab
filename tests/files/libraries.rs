//! Libraries that know nothing of coroutines: `flate2` and `tar` use `Read` and `Write`, `csv` uses
//! `Seek` too. Unchanged, they do I/O that suspends the coroutine: several work concurrently on one
//! thread while another coroutine runs.

use std::cell::{Cell, RefCell};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

use coralio::fs::{Direct, FileCursor, remove_file};
use coralio::{File, RuntimeBuilder, spawn, yield_now};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

/// A directory, removed on drop.
struct Folder(PathBuf);

impl Folder {
    fn new(place: &Path) -> Rc<Folder> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = place.join(format!("coralio-libraries-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Rc::new(Folder(path))
    }

    fn create(&self, name: &str) -> FileCursor<File> {
        let options = File::options().read(true).write(true).create(true).truncate(true);
        FileCursor::new(options.direct(Direct::Auto).open(self.0.join(name)).unwrap())
    }

    fn open(&self, name: &str) -> FileCursor<File> {
        FileCursor::new(File::open(self.0.join(name)).unwrap())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs `f` on the disk, and in memory, where every request completes immediately.
fn everywhere(f: impl Fn(Rc<Folder>)) {
    for place in [std::env::temp_dir(), "/dev/shm".into()] {
        let folder = Folder::new(&place);
        // A compressor briefly keeps its tables on the stack.
        RuntimeBuilder::new().stack_size(1 << 20).run(|| f(Rc::clone(&folder))).unwrap();
    }
}

/// Returns text that differs for each number, compresses, and does not repeat.
fn text(number: usize, lines: usize) -> String {
    (0..lines).map(|line| format!("{number}/{line}: {:x}\n", (line * 7919 + number).wrapping_pow(3))).collect()
}

/// Logs each read and write with its coroutine and the number of turns that another coroutine has
/// had.
struct Noted<S> {
    stream: S,
    who: usize,
    log: Rc<RefCell<Vec<(usize, u64)>>>,
    turns: Rc<Cell<u64>>,
}

impl<S> Noted<S> {
    fn note(&self) {
        self.log.borrow_mut().push((self.who, self.turns.get()));
    }
}

impl<S: Read> Read for Noted<S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(buf);
        self.note();
        read
    }
}

impl<S: Write> Write for Noted<S> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.stream.write(buf);
        self.note();
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[test]
fn compression_lets_other_coroutines_run() {
    // E15: four coroutines compress with gzip from file to file; by the log they were interleaved,
    // and the ticker ran between any ten reads of one
    const COROUTINES: usize = 4;
    everywhere(|folder| {
        for number in 0..COROUTINES {
            std::fs::write(folder.0.join(format!("{number}.txt")), text(number, 20_000)).unwrap();
        }
        let (log, turns, over) = (Rc::default(), Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
        let ticker = spawn({
            let (turns, over) = (Rc::clone(&turns), Rc::clone(&over));
            move || {
                while !over.get() {
                    turns.set(turns.get() + 1);
                    yield_now();
                }
            }
        });
        let workers: Vec<_> = (0..COROUTINES)
            .map(|who| {
                let (folder, log, turns) = (Rc::clone(&folder), Rc::clone(&log), Rc::clone(&turns));
                spawn(move || {
                    let stream = folder.open(&format!("{who}.txt"));
                    let mut source = Noted { stream, who, log, turns };
                    let target = BufWriter::new(folder.create(&format!("{who}.gz")));
                    let mut encoder = GzEncoder::new(target, Compression::fast());
                    io::copy(&mut source, &mut encoder).unwrap();
                    encoder.finish().unwrap().into_inner().unwrap();
                })
            })
            .collect();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        over.set(true);
        ticker.join().unwrap();

        // A read suspends its coroutine, or is one of a few in place.
        let log: Vec<(usize, u64)> = Rc::try_unwrap(log).unwrap().into_inner();
        for who in 0..COROUTINES {
            let mine: Vec<_> = log.iter().filter(|&&(other, _)| other == who).map(|&(_, turn)| turn).collect();
            assert!(mine.len() > 20 && mine.windows(10).all(|turns| turns[0] < turns[9]), "{mine:?}");
        }
        // They ran concurrently: none ended before all had started.
        let first = |who| log.iter().position(|&(other, _)| other == who).unwrap();
        let last = |who| log.iter().rposition(|&(other, _)| other == who).unwrap();
        let (begun, ended) = ((0..COROUTINES).map(first).max(), (0..COROUTINES).map(last).min());
        assert!(begun < ended, "{begun:?}, {ended:?}");

        for number in 0..COROUTINES {
            let mut back = String::new();
            GzDecoder::new(BufReader::new(folder.open(&format!("{number}.gz")))).read_to_string(&mut back).unwrap();
            assert!(back == text(number, 20_000));
            // An independent program reads it too.
            match Command::new("gzip").arg("-t").arg(folder.0.join(format!("{number}.gz"))).status() {
                Ok(status) => assert!(status.success()),
                Err(error) => println!("skipped: gzip: {error}"),
            }
        }
    });
}

#[test]
fn archives_are_written_and_read() {
    // E15: several coroutines write and read tar in gzip, on files that are open at the same time
    everywhere(|folder| {
        let writers: Vec<_> = (0..3)
            .map(|archive| {
                let folder = Rc::clone(&folder);
                spawn(move || {
                    let target = BufWriter::new(folder.create(&format!("{archive}.tgz")));
                    let mut builder = tar::Builder::new(GzEncoder::new(target, Compression::fast()));
                    for number in 0..5 {
                        let name = format!("{archive}-{number}");
                        let mut member = folder.create(&name);
                        member.write_all(text(number, 300 * archive).as_bytes()).unwrap();
                        let mut header = tar::Header::new_gnu();
                        header.set_size(member.get_ref().len().unwrap());
                        header.set_mode(0o644);
                        header.set_cksum();
                        let member = FileCursor::new(member.into_inner());
                        builder.append_data(&mut header, &name, member).unwrap();
                        remove_file(folder.0.join(name)).unwrap();
                    }
                    builder.into_inner().unwrap().finish().unwrap().flush().unwrap();
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        let readers: Vec<_> = (0..3)
            .map(|archive| {
                let folder = Rc::clone(&folder);
                spawn(move || {
                    let source = GzDecoder::new(BufReader::new(folder.open(&format!("{archive}.tgz"))));
                    let mut seen = 0;
                    for (number, entry) in tar::Archive::new(source).entries().unwrap().enumerate() {
                        let mut entry = entry.unwrap();
                        assert_eq!(entry.path().unwrap().to_str().unwrap(), format!("{archive}-{number}"));
                        let mut content = String::new();
                        entry.read_to_string(&mut content).unwrap();
                        assert!(content == text(number, 300 * archive));
                        seen += 1;
                    }
                    seen
                })
            })
            .collect();
        assert!(readers.into_iter().all(|reader| reader.join().unwrap() == 5));
    });
}

#[test]
fn csv_tables_are_read_by_index() {
    // E15: csv seeks: coroutines read one shared file at positions of their own
    everywhere(|folder| {
        let mut writer = csv::Writer::from_writer(BufWriter::new(folder.create("table.csv")));
        for row in 0..5000u32 {
            writer.write_record([row.to_string(), format!("a \"quoted\", {row}"), (row * row).to_string()]).unwrap();
        }
        writer.into_inner().unwrap().into_inner().unwrap();
        let table = Rc::new(folder.open("table.csv").into_inner());
        let reader = || csv::ReaderBuilder::new().has_headers(false).from_reader(FileCursor::new(Rc::clone(&table)));
        let places: Rc<Vec<_>> = {
            let mut reader = reader();
            let positions = reader.records().map(|record| record.unwrap().position().unwrap().clone());
            Rc::new(positions.collect())
        };
        assert_eq!(places.len(), 5000);
        let lookups: Vec<_> = (0..10)
            .map(|who| {
                let (mut reader, places) = (reader(), Rc::clone(&places));
                spawn(move || {
                    for step in 0..20u32 {
                        let row = (step * 1237 + who * 411) % 5000;
                        reader.seek(places[row as usize].clone()).unwrap();
                        let record = reader.records().next().unwrap().unwrap();
                        assert_eq!(record[0].parse(), Ok(row));
                        assert_eq!(&record[1], format!("a \"quoted\", {row}"));
                        assert_eq!(record[2].parse(), Ok(row * row));
                    }
                })
            })
            .collect();
        lookups.into_iter().for_each(|lookup| lookup.join().unwrap());
    });
}
