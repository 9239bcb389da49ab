//! Who does what: the first thread listens and negotiates, and hands each client on to a thread that serves it.
//!
//! ```text
//!   first thread    listens --> negotiates --+--> serves
//!   the others                               +--> serves     each with a loop, an engine and open images of its own
//! ```

use std::fs;
use std::io::{self, Read};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use coralio_aio::{CoFd, Receiver, Sender, channel, sleep, spawn};

use crate::budget::Budget;
use crate::connection;
use crate::crew::Crew;
use crate::export::{Catalog, Exports, open_all};
use crate::negotiate::{Agreed, negotiate};
use crate::options::Options;
use crate::signals;

/// Clients on their way to a thread that is busy.
const ON_THE_WAY: usize = 64;

/// A client that has said what it wants.
struct Client {
    socket: fs::File,
    agreed: Agreed,
}

/// Serves until a signal comes; all that was asked for is done and flushed then.
pub fn serve_all(options: &Options) -> Result<(), String> {
    let exports = open_all(options, true)?;
    let catalog = Rc::new(Catalog::of(&exports));
    let mut staff = Staff::hire(options, exports)?;
    let (told, tell) = UnixStream::pair().map_err(|error| format!("cannot wait for signals: {error}"))?;
    let listener = Listener::bind(options)?;
    // Whoever reads that it serves may end it at once.
    signals::listen(Some(tell.into()));
    println!("nbd_server: {} on {listener}", describe(&catalog));

    let negotiators = Crew::default();
    let (desks, crew) = (Rc::new(staff.desks.clone()), negotiators.clone());
    negotiators.hire("listener", move || {
        let mut next = 0;
        loop {
            match listener.accept() {
                Ok(socket) => {
                    let (catalog, desks) = (Rc::clone(&catalog), Rc::clone(&desks));
                    next = (next + 1) % desks.len();
                    let turn = next;
                    crew.hire("negotiation", move || note(receive(socket, &catalog, &desks, turn)));
                }
                // Too many are there: one that goes makes room.
                Err(error) if error.raw_os_error().is_some() => {
                    eprintln!("nbd_server: cannot take a client: {error}; raise the limit (ulimit -n)");
                    if sleep(Duration::from_millis(100)).is_err() {
                        return;
                    }
                }
                Err(_cancelled) => return,
            }
        }
    });

    let told = CoFd::new(told).map_err(|error| format!("cannot wait for signals: {error}"))?;
    (&told).read_exact(&mut [0]).map_err(|error| format!("cannot wait for signals: {error}"))?;
    negotiators.dismiss();
    staff.dismiss()
}

fn describe(catalog: &Catalog) -> String {
    let one = |listing: &crate::export::Listing| format!("{:?} ({} bytes)", listing.name, listing.size);
    format!("serves {}", catalog.0.iter().map(one).collect::<Vec<_>>().join(", "))
}

/// Finds out what a client wants, and hands it on to who serves that.
fn receive(socket: fs::File, catalog: &Catalog, desks: &[Sender<Client>], turn: usize) -> io::Result<()> {
    let socket = CoFd::new(socket)?;
    if let Some(agreed) = negotiate(&socket, catalog)? {
        let desk = if catalog.0[agreed.export].on_one_thread { 0 } else { turn };
        // Refused only when the server ends.
        let _ = desks[desk].send(Client { socket: socket.into_inner(), agreed });
    }
    Ok(())
}

/// Serves those who come, until nobody can come any more; then finishes, and flushes.
fn serve_clients(exports: &Exports, clients: &Receiver<Client>, budget: &Arc<Budget>) -> Result<(), String> {
    let crew = Crew::default();
    for Client { socket, agreed } in clients.iter() {
        let export = exports[agreed.export].clone().expect("its clients are sent to who has it");
        let budget = Arc::clone(budget);
        crew.hire("connection", move || note(connection::serve(socket, &export, agreed, &budget)));
    }
    crew.dismiss();
    exports
        .iter()
        .flatten()
        .try_for_each(|export| export.image.flush())
        .map_err(|error| format!("cannot flush: {error}"))
}

/// Says what was wrong with a client. That one has gone, or is sent home, is nothing to be told.
fn note(outcome: io::Result<()>) {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            eprintln!("nbd_server: sent a client away: {error}");
        }
        _ => {}
    }
}

/// Those who serve: this thread, and the others.
struct Staff {
    desks: Vec<Sender<Client>>,
    here: Option<coralio_aio::JoinHandle<Result<(), String>>>,
    elsewhere: Vec<thread::JoinHandle<Result<(), String>>>,
}

impl Staff {
    fn hire(options: &Options, exports: Exports) -> Result<Staff, String> {
        let (desk, clients) = channel(ON_THE_WAY);
        let budget = options.budget();
        let shared = Arc::clone(&budget);
        let here = spawn(move || serve_clients(&exports, &clients, &shared));
        let mut staff = Staff { desks: vec![desk], here: Some(here), elsewhere: Vec::new() };
        for number in 1..options.threads {
            let (desk, clients) = channel(ON_THE_WAY);
            let (ready, started) = channel(1);
            let (options, runner, budget) = (options.clone(), options.runner()?, Arc::clone(&budget));
            let work = move || {
                runner
                    .run(|| {
                        let exports = open_all(&options, false)?;
                        let _ = ready.send(());
                        serve_clients(&exports, &clients, &budget)
                    })
                    .map_err(|error| format!("--threads: {error}"))
                    .flatten()
            };
            let thread = thread::Builder::new().name(format!("loop {number}")).spawn(work);
            staff.elsewhere.push(thread.map_err(|error| format!("--threads: {error}"))?);
            staff.desks.push(desk);
            if started.recv().is_err() {
                return Err(staff.dismiss().err().unwrap_or_else(|| "a thread has ended at once".into()));
            }
        }
        Ok(staff)
    }

    /// Waits until all have finished what they do.
    fn dismiss(&mut self) -> Result<(), String> {
        self.desks.clear();
        let here = self.here.take().map_or(Ok(()), |here| here.join().unwrap_or_else(|_| Err("serving failed".into())));
        // The first thread has nothing else to do any more.
        let others = self.elsewhere.drain(..);
        others.fold(here, |outcome, thread| {
            let ended = thread.join().unwrap_or_else(|_| Err("a thread failed".into()));
            outcome.and(ended)
        })
    }
}

enum Listener {
    Unix(CoFd<UnixListener>, PathBuf),
    Tcp(CoFd<TcpListener>),
}

impl Listener {
    fn bind(options: &Options) -> Result<Listener, String> {
        match &options.socket {
            Some(path) => bind_unix(path)
                .and_then(|listener| Ok(Listener::Unix(CoFd::new(listener)?, path.clone())))
                .map_err(|error| format!("--socket {}: {error}", path.display())),
            None => TcpListener::bind(options.listen)
                .and_then(|listener| CoFd::new(listener).map(Listener::Tcp))
                .map_err(|error| format!("--listen {}: {error}", options.listen)),
        }
    }

    fn accept(&self) -> io::Result<fs::File> {
        let socket: OwnedFd = match self {
            Listener::Unix(listener, _) => listener.read_with(UnixListener::accept)?.0.into(),
            Listener::Tcp(listener) => {
                let (stream, _): (TcpStream, _) = listener.read_with(TcpListener::accept)?;
                stream.set_nodelay(true)?;
                stream.into()
            }
        };
        Ok(socket.into())
    }
}

/// A socket file that a server left behind is taken over; one that somebody listens on is not.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    let refused = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => error,
        bound => return bound,
    };
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        _ => Err(refused),
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listener::Unix(_, path) = self {
            let _ = fs::remove_file(path);
        }
    }
}

impl std::fmt::Display for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Listener::Unix(_, path) => write!(f, "unix:{}", path.display()),
            // Port 0 is one that the system chooses.
            Listener::Tcp(listener) => match listener.get_ref().local_addr() {
                Ok(address) => write!(f, "{address}"),
                Err(error) => write!(f, "({error})"),
            },
        }
    }
}
