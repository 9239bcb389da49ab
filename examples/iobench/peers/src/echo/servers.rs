//! The servers: the plain loop of each runtime. `epoll` has no tasks, and shows what the kernel
//! costs.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

pub fn coralio(listener: TcpListener, connections: usize, buffer: usize) -> io::Result<()> {
    use coralio::{net, spawn};

    coralio::run(move || {
        let listener = net::TcpListener::try_from(listener)?;
        let mut tasks = Vec::new();
        for _ in 0..connections {
            let (mut stream, _) = listener.accept()?;
            stream.set_nodelay(true)?;
            tasks.push(spawn(move || -> io::Result<()> {
                let mut message = vec![0; buffer];
                loop {
                    match stream.read(&mut message)? {
                        0 => return Ok(()),
                        count => stream.write_all(&message[..count])?,
                    }
                }
            }));
        }
        tasks.into_iter().try_for_each(|task| task.join().expect("no task panics"))
    })
}

pub fn tokio(listener: TcpListener, connections: usize, buffer: usize) -> io::Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::{net, runtime, task};

    let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
    listener.set_nonblocking(true)?;
    task::LocalSet::new().block_on(&runtime, async {
        let listener = net::TcpListener::from_std(listener)?;
        let mut tasks = Vec::new();
        for _ in 0..connections {
            let (mut stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tasks.push(task::spawn_local(async move {
                let mut message = vec![0; buffer];
                loop {
                    match stream.read(&mut message).await? {
                        0 => return io::Result::Ok(()),
                        count => stream.write_all(&message[..count]).await?,
                    }
                }
            }));
        }
        for task in tasks {
            task.await??;
        }
        Ok(())
    })
}

pub fn monoio(listener: TcpListener, connections: usize, buffer: usize) -> io::Result<()> {
    use monoio::buf::IoBuf;
    use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
    use monoio::{IoUringDriver, RuntimeBuilder, net, spawn};

    RuntimeBuilder::<IoUringDriver>::new().with_entries(1024).build()?.block_on(async {
        let listener = net::TcpListener::from_std(listener)?;
        let mut tasks = Vec::new();
        for _ in 0..connections {
            let (mut stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tasks.push(spawn(async move {
                let mut message = vec![0; buffer];
                loop {
                    let (result, back) = stream.read(message).await;
                    let count = match result? {
                        0 => return io::Result::Ok(()),
                        count => count,
                    };
                    let (result, slice) = stream.write_all(back.slice(..count)).await;
                    result?;
                    message = slice.into_inner();
                }
            }));
        }
        for task in tasks {
            task.await?;
        }
        Ok(())
    })
}

pub fn epoll(listener: TcpListener, connections: usize, buffer: usize) -> io::Result<()> {
    // SAFETY: the descriptor is new, and owned by nothing else.
    let epoll = unsafe { OwnedFd::from_raw_fd(libc::epoll_create1(libc::EPOLL_CLOEXEC)) };
    let mut streams: Vec<TcpStream> = Vec::new();
    for number in 0..connections {
        let (stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: number as u64 };
        // SAFETY: both descriptors are open, and the event is a local variable.
        unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, stream.as_raw_fd(), &mut event) };
        streams.push(stream);
    }
    let mut message = vec![0; buffer];
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; 1024];
    let mut open = connections;
    while open > 0 {
        // SAFETY: the array has room for that many events.
        let ready = unsafe { libc::epoll_wait(epoll.as_raw_fd(), events.as_mut_ptr(), 1024, -1) };
        let ready = usize::try_from(ready).map_err(|_| io::Error::last_os_error())?;
        for event in &events[..ready] {
            let mut stream = &streams[event.u64 as usize];
            match stream.read(&mut message)? {
                0 => {
                    let none = std::ptr::null_mut();
                    // SAFETY: both descriptors are open, and this operation takes no event.
                    unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_DEL, stream.as_raw_fd(), none) };
                    open -= 1;
                }
                count => stream.write_all(&message[..count])?,
            }
        }
    }
    Ok(())
}
