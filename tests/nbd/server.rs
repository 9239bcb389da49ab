//! The program `nbd_server`, with a folder of its own.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

/// A test's own folder, gone when it ends.
pub struct Folder(PathBuf);

impl Folder {
    /// Its path is short: a socket's has 108 bytes at most.
    pub fn new(test: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("coralio-nbd-{}-{test}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Folder(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A file that is a hole.
    pub fn image(&self, name: &str, len: u64) -> PathBuf {
        fs::File::create(self.path(name)).unwrap().set_len(len).unwrap();
        self.path(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// It runs, and listens. Killed when dropped.
pub struct Server {
    child: Child,
    /// What it listens on: a path, or an address.
    pub at: String,
}

fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().and_then(Path::parent).unwrap().join("examples/nbd_server");
    assert!(
        program.is_file(),
        "no {}; make it first: cargo build --example nbd_server (cargo test does)",
        program.display()
    );
    program
}

impl Server {
    /// On a socket in `folder`, or wherever `args` say.
    pub fn start(folder: &Folder, args: &[&str]) -> Server {
        let mut command = Command::new(program());
        if !args.contains(&"--listen") {
            command.arg("--socket").arg(folder.path("s"));
        }
        let mut child = command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let Some((_, at)) = line.trim_end().rsplit_once(" on ") else {
            let mut said = String::new();
            child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            panic!("the server does not listen: {line}{said}");
        };
        Server { at: at.trim_start_matches("unix:").to_string(), child }
    }

    /// One image without a name.
    pub fn of(folder: &Folder, image: &Path) -> Server {
        Server::start(folder, &[image.to_str().unwrap()])
    }

    /// For programs that take one. `name` is the export's.
    pub fn uri(&self, name: &str) -> String {
        match self.at.starts_with('/') {
            true => format!("nbd+unix:///{name}?socket={}", self.at),
            false => format!("nbd://{}/{name}", self.at),
        }
    }

    /// Physical memory that it has, in bytes.
    pub fn memory(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// The most that it has had.
    pub fn peak(&self) -> u64 {
        self.status("VmHWM:")
    }

    fn status(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: takes no pointers; the child has not been waited for, so the number is still its own.
        assert_eq!(unsafe { libc::kill(self.child.id() as libc::pid_t, signal) }, 0);
    }

    /// Sends a signal that asks it to end, and waits until it has. Returns what it said.
    pub fn stop(self) -> String {
        self.signal(libc::SIGTERM);
        self.ended()
    }

    /// Waits until it has ended, as it should.
    pub fn ended(mut self) -> String {
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        let status: ExitStatus = self.child.wait().unwrap();
        assert!(status.success(), "exit {:?}, signal {:?}: {said}", status.code(), status.signal());
        said
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
