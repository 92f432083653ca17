//! Free loopback ports.

use std::net::{Ipv4Addr, TcpListener};

use rand::RngExt;

/// Where ports are taken from: below the range from which a kernel takes the local ports of outgoing connections. A client
/// that dials the port of a stopped server could otherwise be connected to itself, and keep the server from coming back.
const RANGE: std::ops::Range<u16> = 11_000..32_000;

/// A port on which nobody listened a moment ago. RACE: another process may bind it before our child does; then the child
/// ends, and whoever started it asks for another port.
#[must_use]
pub fn free() -> u16 {
    loop {
        let port = rand::rng().random_range(RANGE);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}
