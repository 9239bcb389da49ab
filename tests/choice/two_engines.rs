//! Two engines under `Auto`: io_uring, and native AIO for files on tmpfs.

use std::rc::Rc;

use coralio::driver::{self, BackendKind, stats};
use coralio::fs::Direct;
use coralio::{run, spawn};

use crate::common::{has, skipped};
use crate::refused::has_uring;
use crate::seccomp::forbid;
use crate::{Temp, chosen, in_child, page};

fn on_tmpfs() -> Temp {
    Temp::at("/dev/shm".into())
}

/// Returns whether this machine allows both engines, and has both kinds of file systems.
fn has_both() -> bool {
    if !has_uring() || !has(BackendKind::Aio, 1) {
        return false;
    }
    let temp = Temp::on_disk();
    let is_on_disk = run(|| temp.open(Direct::Never).backend().unwrap().backend() == BackendKind::Uring);
    if !is_on_disk {
        skipped("the directory for temporary files is on tmpfs");
    }
    is_on_disk
}

#[test]
fn each_file_names_its_backend() {
    // E16: files on disk use io_uring, files on tmpfs native AIO; each tells why
    if !has_both() {
        return;
    }
    let (disk, tmpfs) = (Temp::on_disk(), on_tmpfs());
    run(|| {
        let files = [disk.open(Direct::Auto), tmpfs.open(Direct::Auto), tmpfs.open(Direct::Never)];
        let shown = files.each_ref().map(|file| file.backend().unwrap().to_string());
        let on_tmpfs = "native AIO, since io_uring passes each request on tmpfs to a worker thread";
        assert_eq!(shown, ["io_uring", on_tmpfs, on_tmpfs]);
        assert_eq!(chosen().to_string(), "io_uring, with native AIO for files on tmpfs");
    });
}

#[test]
fn io_uring_serves_tmpfs_without_native_aio() {
    // E14, E16: if native AIO is refused, files on tmpfs work on io_uring
    if !has_both() || in_child("two_engines::io_uring_serves_tmpfs_without_native_aio") {
        return;
    }
    forbid(&[(libc::SYS_io_setup, libc::EPERM)]);
    let temp = on_tmpfs();
    run(|| {
        let file = temp.open(Direct::Auto);
        file.write_at(&page(7), 0).unwrap();
        file.sync_all().unwrap();
        assert_eq!(file.backend().unwrap().backend(), BackendKind::Uring);
    });
    assert_eq!(std::fs::read(&temp.0).unwrap(), [7; 4096]);
}

#[test]
fn completions_of_both_engines_end_the_sleep() {
    // E2, E9, W3: the loop sleeps while both engines, or either one, have requests in flight
    if !has_both() {
        return;
    }
    let temps = [Temp::on_disk(), on_tmpfs()];
    run(|| {
        let files = temps.each_ref().map(|temp| Rc::new(temp.open(Direct::Auto)));
        for together in [1, 2, 16] {
            let workers = (0..together).map(|number| {
                let file = Rc::clone(&files[number % 2]);
                spawn(move || {
                    for round in 0..20_u8 {
                        let at = number as u64 * 4096;
                        file.write_at(&page(round), at).unwrap();
                        file.sync_data().unwrap();
                        let mut back = page(0xff);
                        file.read_exact_at(&mut back, at).unwrap();
                        assert!(back.iter().all(|&byte| byte == round));
                    }
                })
            });
            workers.collect::<Vec<_>>().into_iter().for_each(|worker| worker.join().unwrap());
        }
        (0..20).for_each(|_| files[1].sync_all().unwrap());
        let stats = stats();
        assert_eq!((stats.requests, stats.completions, stats.in_flight), (19 * 60 + 20, 19 * 60 + 20, 0), "{stats:?}");
    });
}

#[test]
fn plug_holds_requests_of_both_engines() {
    // E7: requests on both kinds of files wait for the end of the plug
    if !has_both() {
        return;
    }
    let temps = [Temp::on_disk(), on_tmpfs()];
    run(|| {
        let files = temps.each_ref().map(|temp| Rc::new(temp.open(Direct::Never)));
        let plug = driver::plug().unwrap();
        let before = stats().submits;
        let writers = files.each_ref().map(|file| {
            let file = Rc::clone(file);
            spawn(move || file.write_at(&[1; 10], 0).unwrap())
        });
        coralio::yield_now();
        coralio::yield_now();
        assert_eq!((stats().pending, stats().submits - before), (2, 0));
        drop(plug);
        writers.into_iter().for_each(|writer| assert_eq!(writer.join().unwrap(), 10));
    });
}

#[test]
fn both_engines_move_together() {
    // E12: a detached engine takes its companion along
    if !has_both() {
        return;
    }
    let temp = on_tmpfs();
    let detached = run(|| {
        temp.open(Direct::Auto).write_at(&page(3), 0).unwrap();
        driver::detach().unwrap()
    });
    coralio::context::AioContext::builder()
        .run_coroutine(|_| {
            detached.attach().unwrap();
            let file = temp.open(Direct::Auto);
            let mut back = page(0);
            file.read_exact_at(&mut back, 0).unwrap();
            file.sync_all().unwrap();
            assert!(back.iter().all(|&byte| byte == 3));
            assert_eq!(file.backend().unwrap().backend(), BackendKind::Aio);
            assert_eq!(stats().requests, 3);
        })
        .unwrap();
}
