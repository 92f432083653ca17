//! A TCP proxy to the server that holds back what clients send.
//!
//! It has threads of its own: the timers of the runtime are only as fine as a millisecond, which is what is to be added. What
//! the server answers is not held back, so a round trip takes as much longer as was asked for, not twice that.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes that are taken at once.
const PIECE_BYTES: usize = 64 << 10;
/// Pieces under way on one connection.
const PIECES: usize = 4_096;

/// The proxy. New connections end with this value; those that are there end with their peers.
pub(super) struct Proxy {
    address: SocketAddr,
    stopped: Arc<AtomicBool>,
}

impl Proxy {
    /// To a port of this host, with so much more of latency.
    ///
    /// # Errors
    /// No port.
    pub(super) fn start(server: u16, delay: Duration) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let proxy = Self { address: listener.local_addr()?, stopped: Arc::default() };
        let stopped = proxy.stopped.clone();
        thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                // A client whose connection cannot be passed on sees it closed.
                let _closed = pass_on(client, server, delay);
            }
        });
        Ok(proxy)
    }

    /// As a Redis URL.
    pub(super) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _woken = TcpStream::connect(self.address);
    }
}

fn pass_on(client: TcpStream, server: u16, delay: Duration) -> std::io::Result<()> {
    let upstream = TcpStream::connect((Ipv4Addr::LOCALHOST, server))?;
    client.set_nodelay(true)?;
    upstream.set_nodelay(true)?;
    let (mut answers, mut to_client) = (upstream.try_clone()?, client.try_clone()?);
    thread::spawn(move || {
        let _broken = std::io::copy(&mut answers, &mut to_client);
        let _gone = (answers.shutdown(Shutdown::Both), to_client.shutdown(Shutdown::Both));
    });
    let (pieces, due) = sync_channel::<(Instant, Vec<u8>)>(PIECES);
    thread::spawn(move || send_when_due(&due, upstream));
    thread::spawn(move || {
        let mut client = client;
        let mut piece = vec![0; PIECE_BYTES];
        while let Ok(bytes @ 1..) = client.read(&mut piece) {
            if pieces.send((Instant::now() + delay, piece[..bytes].to_vec())).is_err() {
                return;
            }
        }
    });
    Ok(())
}

fn send_when_due(pieces: &Receiver<(Instant, Vec<u8>)>, mut upstream: TcpStream) {
    while let Ok((due, piece)) = pieces.recv() {
        while let Some(left) = due.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            thread::park_timeout(left);
        }
        if upstream.write_all(&piece).is_err() {
            break;
        }
    }
    let _gone = upstream.shutdown(Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_takes_longer_by_what_was_asked_for_and_nothing_is_changed() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = server.local_addr().expect("an address").port();
        thread::spawn(move || {
            let (mut client, _) = server.accept().expect("a client");
            let mut word = [0; 4];
            while client.read_exact(&mut word).is_ok() {
                client.write_all(&word).expect("answered");
            }
        });
        let proxy = Proxy::start(port, Duration::from_millis(5)).expect("a proxy");
        let mut client = TcpStream::connect(proxy.address).expect("connected");
        for word in [b"ping", b"pong"] {
            let began = Instant::now();
            client.write_all(word).expect("sent");
            let mut answer = [0; 4];
            client.read_exact(&mut answer).expect("answered");
            assert_eq!(&answer, word);
            assert!(began.elapsed() >= Duration::from_millis(5), "{:?}", began.elapsed());
        }
    }
}
