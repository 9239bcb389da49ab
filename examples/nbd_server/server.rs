//! Threads: the first one listens and negotiates, and passes each client to the thread that serves
//! it.
//!
//! ```text
//!   first thread    listens --> negotiates --+--> serves
//!   the others                               +--> serves     each with its own loop, engine and open images
//! ```

use std::cell::Cell;
use std::fmt::{self, Display};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use coralio::net::CoFd;
use coralio::sync::{
    channel,
    channel::{Receiver, Sender},
};
use coralio::task::{Cancelled, check_cancelled};
use coralio::{sleep, spawn, timeout, yield_now};
use coralio_runtime::report;

use crate::budget::MemoryBudget;
use crate::connection;
use crate::export::{Catalog, Exports, open_all};
use crate::limits::{self, Slot, Slots};
use crate::negotiate::{Agreed, Socket, negotiate};
use crate::options::Options;
use crate::signals;
use crate::socket_file::SocketFile;
use crate::task_group::TaskGroup;

/// Capacity of each thread's channel of new clients.
const ON_THE_WAY: usize = 64;
/// Delay before accept is retried after a failure.
const RETRY: Duration = Duration::from_millis(100);
/// Maximum number of reports about clients per second: a client that reconnects endlessly must not
/// fill the disk with log lines.
const LINES_A_SECOND: u32 = 10;
/// Maximum duration of a handshake while other clients wait for a slot.
const FULL_HANDSHAKE: Duration = Duration::from_secs(1);

/// A client that has selected an export.
struct Client {
    socket: Socket,
    agreed: Agreed,
    slot: Slot,
}

/// Serves until a signal arrives, then completes all requests that have been read and flushes the
/// images.
pub fn serve_all(options: &Options) -> Result<(), String> {
    let exports = open_all(options, true)?;
    let catalog = Rc::new(Catalog::of(&exports));
    let (told, tell) = UnixStream::pair().map_err(|error| format!("cannot wait for signals: {error}"))?;
    let listener = Listener::bind(options)?;
    let fit = limits::connections_that_fit().map_err(|error| format!("cannot read the descriptor limit: {error}"))?;
    let slots = Slots::new(options.connections(fit)?);
    // Last: an error before this finds no coroutines that would have to be unwound.
    let mut workers = Workers::spawn(options, exports)?;
    // Catch signals before the message: a reader of it may send one right away.
    signals::listen(Some(tell.into()));
    let mut output = io::stdout();
    // Serve even if standard output is closed.
    let _ = writeln!(output, "nbd_server: {} on {listener}", describe(&catalog)).and_then(|()| output.flush());

    let negotiators = TaskGroup::default();
    let reception = Reception {
        catalog,
        queues: workers.queues.clone(),
        options: options.clone(),
        slots,
        negotiators: negotiators.clone(),
    };
    let listening = TaskGroup::default();
    listening.spawn("listener", move || Rc::new(reception).accept_clients(&listener));

    let told = CoFd::new(told).map_err(|error| format!("cannot wait for signals: {error}"))?;
    (&told).read_exact(&mut [0]).map_err(|error| format!("cannot wait for signals: {error}"))?;
    // The listener first, because it spawns negotiators.
    listening.shutdown();
    negotiators.shutdown();
    workers.shutdown()
}

fn describe(catalog: &Catalog) -> String {
    let one = |listing: &crate::export::Listing| format!("{:?} ({} bytes)", listing.name, listing.size);
    format!("serves {}", catalog.0.iter().map(one).collect::<Vec<_>>().join(", "))
}

/// Accepts clients, negotiates, and passes them on.
struct Reception {
    catalog: Rc<Catalog>,
    queues: Vec<Sender<Client>>,
    options: Options,
    slots: Slots,
    negotiators: TaskGroup,
}

impl Reception {
    /// Accepts clients until the coroutine is cancelled. Errors do not end it.
    fn accept_clients(self: Rc<Self>, listener: &Listener) {
        let (refused, full) = (State::default(), State::default());
        for turn in 0.. {
            let accepted = listener.accept(|| refused.leave("accepting connections again"));
            let socket = match accepted {
                Ok(socket) => socket,
                Err(error) if error.raw_os_error().is_none() => return,
                Err(error) if is_of_one_client(&error) => {
                    yield_now();
                    continue;
                }
                // If descriptors or memory are exhausted, a client that leaves makes room.
                Err(error) => {
                    refused.enter(format_args!(
                        "cannot accept connections: {error}; retrying until resources are available"
                    ));
                    if sleep(RETRY).is_err() {
                        return;
                    }
                    continue;
                }
            };
            let Ok(slot) = self.take_slot(&full) else { return };
            let this = Rc::clone(&self);
            self.negotiators.spawn("negotiation", move || note(this.receive(socket, slot, turn)));
            // Lets the existing coroutines run before the next client is accepted.
            yield_now();
        }
    }

    /// Takes a slot for a connection. If none becomes free for a while, ends the handshakes in
    /// progress.
    fn take_slot(&self, full: &State) -> Result<Slot, Cancelled> {
        if let Some(slot) = self.slots.try_take() {
            full.leave("below the connection limit again");
            return Ok(slot);
        }
        full.enter("connection limit reached (--max-connections or the descriptor limit); further clients wait");
        loop {
            let under_way = self.negotiators.next_serial();
            match timeout(FULL_HANDSHAKE, || self.slots.take()) {
                Ok(slot) => return slot,
                Err(_) => self.negotiators.cancel_before(under_way),
            }
            check_cancelled()?;
        }
    }

    /// Negotiates with a client and passes it to the thread that serves the export.
    fn receive(&self, socket: Socket, slot: Slot, turn: usize) -> io::Result<()> {
        let socket = CoFd::from_sole_handle(socket)?;
        let limit = self.options.handshake_limit;
        let agreed =
            timeout(limit, || negotiate(&socket, &self.catalog, self.options.max_options)).unwrap_or_else(|_| {
                let why = format!("handshake takes longer than {} s (--handshake-limit)", limit.as_secs_f64());
                Err(io::Error::new(io::ErrorKind::InvalidData, why))
            })?;
        if let Some(agreed) = agreed {
            let queue = if self.catalog.0[agreed.export].on_one_thread { 0 } else { turn % self.queues.len() };
            // Fails only when the server ends.
            let _ = self.queues[queue].send(Client { socket: socket.into_inner(), agreed, slot });
        }
        Ok(())
    }
}

/// Returns whether accept failed because of a single client, so that the next one may already be
/// waiting (accept(2)).
fn is_of_one_client(error: &io::Error) -> bool {
    const CODES: [i32; 12] = [
        libc::ECONNABORTED,
        libc::EINTR,
        libc::EPERM,
        libc::EPROTO,
        libc::ENETDOWN,
        libc::ENOPROTOOPT,
        libc::EHOSTDOWN,
        libc::ENONET,
        libc::EHOSTUNREACH,
        libc::EOPNOTSUPP,
        libc::ENETUNREACH,
        libc::ETIMEDOUT,
    ];
    error.raw_os_error().is_some_and(|code| CODES.contains(&code))
}

/// A condition that is reported with one line when it begins and one when it ends.
#[derive(Default)]
struct State(Cell<bool>);

impl State {
    fn enter(&self, message: impl Display) {
        if !self.0.replace(true) {
            report(format_args!("nbd_server: {message}"));
        }
    }

    fn leave(&self, message: impl Display) {
        if self.0.replace(false) {
            report(format_args!("nbd_server: {message}"));
        }
    }
}

/// Serves clients until the channel is closed, then cancels the connections, waits for them and
/// flushes.
fn serve_clients(
    exports: &Exports,
    clients: &Receiver<Client>,
    budget: &Arc<MemoryBudget>,
    idle_limit: Option<Duration>,
) -> Result<(), String> {
    let group = TaskGroup::default();
    for Client { socket, agreed, slot } in clients.iter() {
        let export = exports[agreed.export].clone().expect("clients of an export reach the thread that serves it");
        let budget = Arc::clone(budget);
        group.spawn("connection", move || {
            let _slot = slot;
            note(connection::serve(socket, &export, agreed, &budget, idle_limit));
        });
    }
    group.shutdown();
    exports
        .iter()
        .flatten()
        .try_for_each(|export| export.image.flush())
        .map_err(|error| format!("cannot flush: {error}"))
}

/// Reports a client's misbehaviour. Disconnects and the end of the server are not reported.
fn note(outcome: io::Result<()>) {
    /// Start of the current second, and the number of clients disconnected in it.
    static PRESENT: Mutex<Option<(Instant, u32)>> = Mutex::new(None);
    let Err(error) = outcome else { return };
    if !matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::TimedOut) {
        return;
    }
    let now = Instant::now();
    let mut present = PRESENT.lock().unwrap_or_else(PoisonError::into_inner);
    let (began, count) = match *present {
        Some((began, count)) if now - began < Duration::from_secs(1) => (began, count),
        earlier => {
            let unreported = earlier.map_or(0, |(_, count)| count.saturating_sub(LINES_A_SECOND));
            if unreported > 0 {
                report(format_args!("nbd_server: disconnected {unreported} more clients"));
            }
            (now, 0)
        }
    };
    *present = Some((began, count + 1));
    if count < LINES_A_SECOND {
        report(format_args!("nbd_server: disconnected a client: {error}"));
    }
}

/// The serving side: this thread's server coroutine, and the other threads.
struct Workers {
    queues: Vec<Sender<Client>>,
    here: Option<coralio::JoinHandle<Result<(), String>>>,
    elsewhere: Vec<thread::JoinHandle<Result<(), String>>>,
}

impl Workers {
    fn spawn(options: &Options, exports: Exports) -> Result<Workers, String> {
        let (queue, clients) = channel::bounded(ON_THE_WAY);
        let budget = options.budget();
        let (shared, idle_limit) = (Arc::clone(&budget), options.idle_limit);
        let here = spawn(move || serve_clients(&exports, &clients, &shared, idle_limit));
        let mut workers = Workers { queues: vec![queue], here: Some(here), elsewhere: Vec::new() };
        for number in 1..options.threads {
            let (queue, clients) = channel::bounded(ON_THE_WAY);
            let (ready, started) = channel::bounded(1);
            let (options, runner, budget) = (options.clone(), options.builder()?, Arc::clone(&budget));
            let work = move || {
                runner
                    .run(|| {
                        let exports = open_all(&options, false)?;
                        let _ = ready.send(());
                        serve_clients(&exports, &clients, &budget, options.idle_limit)
                    })
                    .map_err(|error| format!("--threads: {error}"))
                    .flatten()
            };
            let thread = thread::Builder::new().name(format!("loop {number}")).spawn(work);
            workers.elsewhere.push(thread.map_err(|error| format!("--threads: {error}"))?);
            workers.queues.push(queue);
            if started.recv().is_err() {
                return Err(workers.shutdown().err().unwrap_or_else(|| "a thread ended during startup".into()));
            }
        }
        Ok(workers)
    }

    /// Closes the channels and waits until all threads have finished.
    fn shutdown(&mut self) -> Result<(), String> {
        self.queues.clear();
        let here = self.here.take().map_or(Ok(()), |here| here.join().unwrap_or_else(|_| Err("serving failed".into())));
        // Blocking joins are fine here: the first thread has no other work left.
        let others = self.elsewhere.drain(..);
        others.fold(here, |outcome, thread| {
            let ended = thread.join().unwrap_or_else(|_| Err("a thread failed".into()));
            outcome.and(ended)
        })
    }
}

enum Listener {
    Unix(CoFd<UnixListener>, SocketFile),
    Tcp(CoFd<TcpListener>, Duration),
}

impl Listener {
    fn bind(options: &Options) -> Result<Listener, String> {
        match &options.socket {
            Some(path) => SocketFile::bind(path)
                .and_then(|(listener, file)| Ok(Listener::Unix(CoFd::new(listener)?, file)))
                .map_err(|error| format!("--socket {}: {error}", path.display())),
            None => TcpListener::bind(options.listen)
                .and_then(|listener| Ok(Listener::Tcp(CoFd::new(listener)?, options.keepalive)))
                .map_err(|error| format!("--listen {}: {error}", options.listen)),
        }
    }

    /// Waits for the next client. Calls `nobody_waits` when the backlog is empty.
    fn accept(&self, nobody_waits: impl Fn()) -> io::Result<Socket> {
        let socket: OwnedFd = match self {
            Listener::Unix(listener, _) => accept(listener, UnixListener::accept, nobody_waits)?.into(),
            Listener::Tcp(listener, keepalive) => {
                let stream: TcpStream = accept(listener, TcpListener::accept, nobody_waits)?;
                // Fails if the client has already disconnected; a read will find that.
                let _ = stream.set_nodelay(true);
                if !keepalive.is_zero() {
                    let _ = limits::keep_alive(&stream, *keepalive);
                }
                stream.into()
            }
        };
        Ok(socket.into())
    }
}

fn accept<L, S, A>(
    listener: &CoFd<L>,
    accept: impl Fn(&L) -> io::Result<(S, A)>,
    nobody_waits: impl Fn(),
) -> io::Result<S> {
    let accepted = listener.read_with(|listener| {
        let accepted = accept(listener);
        if accepted.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            nobody_waits();
        }
        accepted
    });
    accepted.map(|(socket, _)| socket)
}

impl Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listener::Unix(_, file) => write!(f, "unix:{}", file.path().display()),
            // With port 0 the system chooses the port.
            Listener::Tcp(listener, _) => match listener.get_ref().local_addr() {
                Ok(address) => write!(f, "{address}"),
                Err(error) => write!(f, "({error})"),
            },
        }
    }
}
