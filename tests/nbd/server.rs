//! The program `nbd_server`, with a directory of its own.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};

/// A directory for one test, removed on drop.
pub struct Folder(PathBuf);

impl Folder {
    /// Keeps the path short: a socket's path has 108 bytes at most.
    pub fn new(test: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("coralio-nbd-{}-{test}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Folder(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Creates a file that is one hole.
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

/// A running, listening server, killed on drop.
pub struct Server {
    child: Child,
    /// The address that it listens on: a path, or host and port.
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

/// How the server's address becomes known.
enum Announcement {
    Read,
    /// Standard output and error have no readers.
    Unread,
}

impl Server {
    /// Starts a server on a socket in `folder`, or wherever `args` say.
    pub fn start(folder: &Folder, args: &[&str]) -> Server {
        Server::spawn(folder, Command::new(program()), args, Announcement::Read).unwrap_or_else(|said| panic!("{said}"))
    }

    /// Starts a server with at most `descriptors` descriptors.
    pub fn start_limited(folder: &Folder, args: &[&str], descriptors: u32) -> Server {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit -n {descriptors} && exec \"$0\" \"$@\"")]).arg(program());
        Server::spawn(folder, command, args, Announcement::Read).unwrap_or_else(|said| panic!("{said}"))
    }

    /// Starts a server for one image whose output has no readers.
    pub fn start_mute(folder: &Folder, image: &Path) -> Server {
        let args = [image.to_str().unwrap()];
        Server::spawn(folder, Command::new(program()), &args, Announcement::Unread)
            .unwrap_or_else(|said| panic!("{said}"))
    }

    /// Starts a server that must fail, and returns its message.
    pub fn refused(folder: &Folder, args: &[&str]) -> String {
        let started = Server::spawn(folder, Command::new(program()), args, Announcement::Read);
        started.err().expect("the server listens although it should not")
    }

    fn spawn(
        folder: &Folder,
        mut command: Command,
        args: &[&str],
        announcement: Announcement,
    ) -> Result<Server, String> {
        let socket = folder.path("s");
        if !args.contains(&"--listen") && !args.contains(&"--socket") {
            command.arg("--socket").arg(&socket);
        }
        let mut child = command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        if let Announcement::Unread = announcement {
            drop((child.stdout.take(), child.stderr.take()));
            while std::os::unix::net::UnixStream::connect(&socket).is_err() {
                assert!(child.try_wait().unwrap().is_none(), "the server has ended");
                std::thread::yield_now();
            }
            return Ok(Server { child, at: socket.to_str().unwrap().into() });
        }
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let Some((_, at)) = line.trim_end().rsplit_once(" on ") else {
            let mut said = String::new();
            child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            let _ = child.wait();
            return Err(format!("the server does not listen: {line}{said}"));
        };
        Ok(Server { at: at.trim_start_matches("unix:").to_string(), child })
    }

    /// Starts a server for one image without a name.
    pub fn of(folder: &Folder, image: &Path) -> Server {
        Server::start(folder, &[image.to_str().unwrap()])
    }

    /// Returns the URI of the export `name`, for other programs.
    pub fn uri(&self, name: &str) -> String {
        match self.at.starts_with('/') {
            true => format!("nbd+unix:///{name}?socket={}", self.at),
            false => format!("nbd://{}/{name}", self.at),
        }
    }

    /// Returns the server's resident memory in bytes.
    pub fn memory(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// Returns the server's peak resident memory in bytes.
    pub fn peak(&self) -> u64 {
        self.status("VmHWM:")
    }

    /// Returns how often the server's first thread has slept.
    pub fn sleeps(&self) -> u64 {
        self.status("voluntary_ctxt_switches:") >> 10
    }

    fn status(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    /// Takes standard error, so that `ended` returns nothing.
    pub fn take_stderr(&mut self) -> ChildStderr {
        self.child.stderr.take().unwrap()
    }

    /// Sets the server's limit on descriptors. Returns the former limit.
    pub fn limit_descriptors(&self, limit: u64) -> u64 {
        let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: each call reads or writes one structure; the child has not been waited for, so
        // the number is its own.
        unsafe {
            let id = self.child.id() as libc::pid_t;
            assert_eq!(libc::prlimit(id, libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut before), 0);
            let changed = libc::rlimit { rlim_cur: limit, ..before };
            assert_eq!(libc::prlimit(id, libc::RLIMIT_NOFILE, &raw const changed, std::ptr::null_mut()), 0);
        }
        before.rlim_cur
    }

    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: takes no pointers; the child has not been waited for, so the number is still its
        // own.
        assert_eq!(unsafe { libc::kill(self.child.id() as libc::pid_t, signal) }, 0);
    }

    /// Sends SIGTERM, waits for the server's end, and returns what it wrote to standard error.
    pub fn stop(self) -> String {
        self.signal(libc::SIGTERM);
        self.ended()
    }

    /// Waits for the server's end, asserts success, and returns what it wrote to standard error.
    pub fn ended(mut self) -> String {
        let mut said = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut said).unwrap();
        }
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
