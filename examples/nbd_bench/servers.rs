//! Starts the servers to compare, and reads their CPU time from the kernel.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::ValueEnum;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Which {
    Ours,
    QemuNbd,
    Nbdkit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Raw,
    Qcow2,
}

/// A running server, terminated when dropped.
pub struct Server {
    child: Child,
    pub socket: PathBuf,
}

impl Server {
    pub fn start(which: Which, file: &Path, format: Format, direct: bool, extra: &[String]) -> Result<Server, String> {
        let socket = std::env::temp_dir().join(format!("nbd-bench-{}-{which:?}", std::process::id()));
        let _ = fs::remove_file(&socket);
        let format = match format {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        };
        let mut command = match which {
            Which::Ours => {
                let me = std::env::current_exe().map_err(|error| error.to_string())?;
                let mut command = Command::new(me.with_file_name("nbd_server"));
                command.args(["--format", format, "--socket"]).arg(&socket).args(extra).arg(file);
                command
            }
            Which::QemuNbd => {
                let mut command = Command::new("qemu-nbd");
                let cache = if direct { &["--aio=native", "--cache=none"][..] } else { &["--cache=writeback"] };
                command.args(["--format", format, "--persistent", "--shared=0"]).args(cache);
                command.arg("--socket").arg(&socket).arg(file);
                command
            }
            Which::Nbdkit => {
                let mut command = Command::new("nbdkit");
                command.args(["--foreground", "--unix"]).arg(&socket).arg("file").arg(file);
                command
            }
        };
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.map_err(|error| format!("cannot start {which:?}: {error}; build or install it first"))?;
        let mut server = Server { child, socket };
        server
            .wait_until_it_listens()
            .map_err(|error| format!("{which:?}: {error}; run it by hand to see why: {command:?}"))?;
        Ok(server)
    }

    fn wait_until_it_listens(&mut self) -> io::Result<()> {
        let began = Instant::now();
        while UnixStream::connect(&self.socket).is_err() {
            if let Some(status) = self.child.try_wait()? {
                return Err(io::Error::other(format!("exited during startup: {status}")));
            }
            if began.elapsed() > Duration::from_secs(10) {
                return Err(io::Error::other("does not listen"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Returns the CPU time used so far by all threads of the server.
    pub fn cpu(&self) -> io::Result<Duration> {
        let mut total = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            // The thread may have ended in the meantime.
            let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
            total += text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(Duration::from_nanos(total))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Terminate instead of kill: the server may still have data to write.
        // SAFETY: takes no pointers; the child has not been reaped, so the process ID is still its
        // own.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.socket);
    }
}
