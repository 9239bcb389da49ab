//! Clusters that are freed while requests still use them, on the simulated backend: no request
//! accesses data of another cluster.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use coralio::simulate::{Faults, Sim, Simulation};
use coralio::{AlignedBuf, sleep, spawn};
use coralio_qcow2::{CreateOptions, Image, Options, Qcow2, open};

const CLUSTER: usize = 512;

fn buffer(value: u8) -> AlignedBuf {
    let mut buf = AlignedBuf::new(CLUSTER, 4096);
    buf.fill(value);
    buf
}

/// One coroutine repeatedly calls `use_it` on the first cluster; the caller discards this cluster
/// and writes others, which may be allocated in its place.
fn run(sim: &Sim, use_it: fn(&dyn Image)) -> std::io::Result<()> {
    sim.set_faults(Faults::none());
    Qcow2::create("image", &CreateOptions { cluster_size: 512, ..CreateOptions::new(20 * CLUSTER as u64) })?;
    let image = open("image", &Options { write: true, ..Options::default() })?;
    let running = Rc::new(Cell::new(true));
    let user = spawn({
        let (image, running) = (Rc::clone(&image), Rc::clone(&running));
        move || {
            while running.get() {
                use_it(&*image);
                // Lets others run: reading an unallocated cluster does not wait.
                sleep(Duration::from_micros(20)).expect("the sleep is not cancelled");
            }
        }
    });
    for other in 1..10 {
        image.write_at(&buffer(1), 0)?;
        image.flush()?;
        image.discard(0, CLUSTER as u64)?;
        image.flush()?;
        image.write_at(&buffer(2), other * CLUSTER as u64)?;
    }
    running.set(false);
    user.join().expect("the reader saw only its own data");
    for other in 1..10 {
        let mut buf = buffer(9);
        image.read_at(&mut buf, other * CLUSTER as u64)?;
        assert!(buf.iter().all(|&byte| byte == 2), "cluster {other} contains data written to the first: {}", buf[0]);
    }
    Ok(())
}

#[test]
fn reader_sees_no_bytes_of_a_reused_cluster() {
    // qcow2: a cluster is discarded and reused for other data while a read of it is in flight.
    Simulation::new().run(0..40, |sim| {
        run(sim, |image| {
            let mut buf = buffer(9);
            image.read_at(&mut buf, 0).unwrap();
            assert!(buf.iter().all(|&byte| byte < 2), "another cluster's bytes: {}", buf[0]);
        })
    });
}

#[test]
fn writer_does_not_write_a_reused_cluster() {
    // qcow2: the same with a write in flight.
    Simulation::new().run(0..40, |sim| run(sim, |image| image.write_at(&buffer(1), 0).unwrap()));
}
