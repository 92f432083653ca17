//! A TCP proxy between one program and a server, that can be slow, lose, cut and reset.
//!
//! It works above TCP, so a lost packet is what TCP makes of it: a pause of everything behind it. A cut link swallows
//! what is sent and closes nothing, as a cable that was pulled.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use rand::RngExt;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Bytes that are passed on at once.
const CHUNK_BYTES: usize = 64 << 10;
/// How long a lost chunk takes to be sent again, in milliseconds.
const AGAIN_MS: std::ops::Range<u64> = 200..1_000;

/// What a link does to what passes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weather {
    /// Each chunk is held for so many milliseconds, give or take a half.
    pub latency_ms: u64,
    /// Of a hundred chunks so many are lost, and sent again later.
    pub loss_percent: u32,
    /// Nothing passes, and nobody is told.
    pub cut: bool,
}

/// A link of one program. Dropping it ends its connections.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    resets: watch::Sender<u64>,
    connections: Arc<AtomicU64>,
    _stop: DropGuard,
}

impl Link {
    /// Opens one at a free port of `ip` that leads to `target`.
    ///
    /// # Errors
    /// The port cannot be opened.
    pub async fn open(ip: &str, target: &str) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((ip, 0)).await.context("open a link")?;
        let target: SocketAddr = target.parse().context("the address of a server")?;
        let stop = CancellationToken::new();
        let link = Self {
            address: listener.local_addr()?,
            weather: watch::Sender::new(Weather::default()),
            resets: watch::Sender::new(0),
            connections: Arc::default(),
            _stop: stop.clone().drop_guard(),
        };
        let (weather, resets, connections) =
            (link.weather.subscribe(), link.resets.subscribe(), link.connections.clone());
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            while let Ok((near, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(carry(near, target, weather.clone(), resets.clone()));
            }
        }));
        Ok(link)
    }

    /// Where the program connects to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the weather, for connections that there are and that come.
    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// Resets (RST) every connection that there is now.
    pub fn reset(&self) {
        self.resets.send_modify(|count| *count += 1);
    }

    /// How many connections it was ever asked for.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }
}

/// Carries one connection until both ends close, or it is reset, or the link is gone.
async fn carry(
    mut near: TcpStream,
    target: SocketAddr,
    weather: watch::Receiver<Weather>,
    mut resets: watch::Receiver<u64>,
) {
    resets.mark_unchanged();
    let far = TcpStream::connect(target).await;
    let is_reset = match far {
        // As the server refuses: the program sees its connection reset.
        Err(_) => true,
        Ok(mut far) => {
            let (Ok(()), Ok(())) = (near.set_nodelay(true), far.set_nodelay(true)) else { return };
            let is_reset = {
                let ((near_in, near_out), (far_in, far_out)) = (near.split(), far.split());
                let there = pass(near_in, far_out, weather.clone());
                let back = pass(far_in, near_out, weather.clone());
                tokio::select! {
                    ((), ()) = async { tokio::join!(there, back) } => false,
                    _ = resets.changed() => true,
                }
            };
            if is_reset {
                let _gone = far.set_zero_linger();
            }
            is_reset
        }
    };
    if is_reset {
        let _gone = near.set_zero_linger();
    }
}

/// Passes one direction on. With an end closed the other is closed as well.
async fn pass(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, mut weather: watch::Receiver<Weather>) {
    let mut chunk = vec![0; CHUNK_BYTES];
    while let Ok(count @ 1..) = from.read(&mut chunk).await {
        let hold = hold_ms(*weather.borrow_and_update());
        if hold > 0 {
            tokio::time::sleep(Duration::from_millis(hold)).await;
        }
        if weather.wait_for(|weather| !weather.cut).await.is_err() || to.write_all(&chunk[..count]).await.is_err() {
            break;
        }
    }
    let _gone = to.shutdown().await;
}

fn hold_ms(weather: Weather) -> u64 {
    let mut random = rand::rng();
    let half = weather.latency_ms / 2;
    let latency = weather.latency_ms - half + if half > 0 { random.random_range(0..=2 * half) } else { 0 };
    let lost = weather.loss_percent > 0 && random.random_range(0..100) < weather.loss_percent;
    latency + if lost { random.random_range(AGAIN_MS) } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::wait;

    /// A server that sends back what it gets, and a connection to it over a link.
    async fn pair() -> (Link, TcpStream) {
        let echo = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = echo.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = echo.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        let link = Link::open("127.0.0.1", &address).await.unwrap();
        let stream = TcpStream::connect(link.address()).await.unwrap();
        (link, stream)
    }

    async fn echoed(stream: &mut TcpStream) -> std::io::Result<Duration> {
        let asked = Instant::now();
        stream.write_all(b"x").await?;
        stream.read_u8().await?;
        Ok(asked.elapsed())
    }

    #[tokio::test]
    async fn a_slow_link_holds_what_passes() {
        let (link, mut stream) = pair().await;
        echoed(&mut stream).await.unwrap();
        link.set(Weather { latency_ms: 40, ..Weather::default() });
        assert!(echoed(&mut stream).await.unwrap() >= Duration::from_millis(40), "20 ms at least each way");
        link.set(Weather { loss_percent: 100, ..Weather::default() });
        assert!(echoed(&mut stream).await.unwrap() >= Duration::from_millis(400));
        assert_eq!(link.connections(), 1);
    }

    #[tokio::test]
    async fn a_cut_link_says_nothing_and_passes_everything_on_when_it_is_mended() {
        let (link, mut stream) = pair().await;
        echoed(&mut stream).await.unwrap();
        link.set(Weather { cut: true, ..Weather::default() });
        assert!(tokio::time::timeout(Duration::from_millis(100), echoed(&mut stream)).await.is_err());
        link.set(Weather::default());
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
    }

    #[tokio::test]
    async fn a_reset_ends_what_is_there_and_not_what_comes() {
        let (link, mut stream) = pair().await;
        echoed(&mut stream).await.unwrap();
        link.reset();
        wait::until(Duration::from_secs(5), "the reset", async || {
            anyhow::ensure!(echoed(&mut stream).await.is_err(), "it still answers");
            Ok(())
        })
        .await
        .unwrap();
        let mut stream = TcpStream::connect(link.address()).await.unwrap();
        echoed(&mut stream).await.unwrap();
    }
}
