//! TCP echo of 64 bytes: a server of one runtime in its own process, and the same client for all.

mod client;
mod servers;

use std::io::{self, BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::Arguments;
use client::Client;

/// The size of each message.
const MESSAGE: usize = 64;

/// A started server: its clock is read by its process id.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the servers in turns, and returns a table of the server's CPU time per echo.
pub fn compare(servers: &[&str], arguments: &Arguments) -> Result<String, String> {
    let connections: usize = arguments.get("connections", 100)?;
    let mut times = vec![Vec::new(); servers.len()];
    for _ in 0..arguments.get("rounds", 7)? {
        for (server, times) in servers.iter().zip(&mut times) {
            times.push(round(server, connections, arguments).map_err(|error| format!("{server}: {error}"))?);
        }
    }
    let mut text = format!("{connections} connections: CPU time of the server per echo, median (least to most)\n");
    for (server, mut times) in servers.iter().zip(times) {
        times.sort_by(f64::total_cmp);
        let (median, most) = (times[times.len() / 2], times[times.len() - 1]);
        text += &format!("{server:10} {median:8.0} ns ({:.0} to {most:.0})\n", times[0]);
    }
    Ok(text)
}

/// Runs one round. Returns the nanoseconds per echo.
fn round(server: &str, connections: usize, arguments: &Arguments) -> Result<f64, String> {
    let limit = arguments.limit()?;
    let [count, buffer] = [connections, arguments.get("buffer", 4096)?].map(|number| number.to_string());
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut child = Command::new(this);
    child.args(["serve", server, "--connections", &count, "--buffer", &buffer]).stdout(Stdio::piped());
    let mut server = Server(child.spawn().map_err(|error| error.to_string())?);
    let address = address(server.0.stdout.take()).map_err(|error| error.to_string())?;
    let measure = || {
        let mut client = Client::connect(address, connections)?;
        client.warm_up()?;
        let before = cpu_time(server.0.id())?;
        let echoes = client.run(limit)?;
        Ok((cpu_time(server.0.id())? - before) as f64 / echoes as f64)
    };
    measure().map_err(|error: io::Error| error.to_string())
}

fn address(output: Option<ChildStdout>) -> io::Result<SocketAddr> {
    let mut line = String::new();
    BufReader::new(output.expect("piped")).read_line(&mut line)?;
    line.trim().parse().map_err(|_| io::Error::other("the server has not started"))
}

/// Returns the CPU time of a process in nanoseconds: exact, unlike the clocks of `getrusage`.
fn cpu_time(process: u32) -> io::Result<u64> {
    let (mut clock, mut time) = (0, libc::timespec { tv_sec: 0, tv_nsec: 0 });
    // SAFETY: both calls fill the variable that they are given.
    let failed = unsafe {
        libc::clock_getcpuclockid(process as i32, &mut clock) != 0 || libc::clock_gettime(clock, &mut time) != 0
    };
    if failed {
        return Err(io::Error::last_os_error());
    }
    Ok(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// Runs a server: prints its address, and returns when all connections have ended.
pub fn serve(server: &str, arguments: &Arguments) -> Result<(), String> {
    let connections = arguments.get("connections", 100)?;
    let buffer = arguments.get("buffer", 4096)?;
    let run = match server {
        "coralio" => servers::coralio,
        "tokio" => servers::tokio,
        "monoio" => servers::monoio,
        "epoll" => servers::epoll,
        _ => return Err(format!("{server} is not a server: coralio, tokio, monoio or epoll")),
    };
    let listen = || {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        // SAFETY: listens again at a valid listener, with a longer queue.
        unsafe { libc::listen(std::os::fd::AsRawFd::as_raw_fd(&listener), connections as i32) };
        println!("{}", listener.local_addr()?);
        Ok(listener)
    };
    listen().and_then(|listener| run(listener, connections, buffer)).map_err(|error: io::Error| error.to_string())
}

/// Runs the client alone, for a server that runs under a profiler.
pub fn load(arguments: &Arguments) -> Result<String, String> {
    let address = arguments.given("address")?.ok_or("load needs --address ADDRESS")?;
    let limit = arguments.limit()?;
    let connections = arguments.get("connections", 100)?;
    let echoes = Client::connect(address, connections).and_then(|mut client| client.run(limit));
    echoes.map(|echoes| format!("{echoes} echoes\n")).map_err(|error| error.to_string())
}
