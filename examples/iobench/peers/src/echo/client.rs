//! The client: each connection sends a message when its last one has come back. One thread, epoll.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::MESSAGE;
use crate::work::{Limit, Pattern, WARM_UP, Work};

pub struct Client {
    streams: Vec<TcpStream>,
    epoll: OwnedFd,
}

impl Client {
    pub fn connect(address: SocketAddr, connections: usize) -> io::Result<Client> {
        // SAFETY: the descriptor is new, and owned by nothing else.
        let epoll = unsafe { OwnedFd::from_raw_fd(libc::epoll_create1(libc::EPOLL_CLOEXEC)) };
        let mut streams = Vec::new();
        for number in 0..connections {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: number as u64 };
            // SAFETY: both descriptors are open, and the event is a local variable.
            if unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, stream.as_raw_fd(), &mut event) } != 0 {
                return Err(io::Error::last_os_error());
            }
            streams.push(stream);
        }
        Ok(Client { streams, epoll })
    }

    /// Lets all connections be accepted, and faults in the memory.
    pub fn warm_up(&mut self) -> io::Result<()> {
        self.run(Limit::Ops(WARM_UP.max(8 * self.streams.len() as u64))).map(drop)
    }

    /// Echoes until the limit, and returns the number of echoes. Nothing is under way afterwards.
    pub fn run(&mut self, limit: Limit) -> io::Result<u64> {
        let work = Work::new(1, 1, Pattern::Steps { blocks: 1 }, None);
        work.begin(limit);
        let mut message = [b'x'; MESSAGE];
        let mut under_way = 0;
        for (i, mut stream) in self.streams.iter().enumerate() {
            if work.next(i).is_some() {
                stream.write_all(&message)?;
                under_way += 1;
            }
        }
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 1024];
        while under_way > 0 {
            // SAFETY: the array has room for that many events.
            let ready = unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr(), 1024, -1) };
            let ready = usize::try_from(ready).map_err(|_| io::Error::last_os_error())?;
            for event in &events[..ready] {
                let mut stream = &self.streams[event.u64 as usize];
                stream.read_exact(&mut message)?;
                match work.next(event.u64 as usize) {
                    Some(_) => stream.write_all(&message)?,
                    None => under_way -= 1,
                }
            }
        }
        Ok(work.done())
    }
}
