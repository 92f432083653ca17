//! Hosts: network namespaces on one bridge, so that a partition is one of the kernel's.
//!
//! Each program has a namespace with one end of a veth pair; the other end is a port of the bridge, whose address is
//! where servers listen. A host is cut off by taking its port off the bridge: packets vanish, and nobody is told. Two
//! hosts are parted by a route of each that leads nowhere. It needs root and `ip`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};

/// Where `ip` may be.
const IP: [&str; 4] = ["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip", "/bin/ip"];

/// A bridge and the hosts on it. Dropping it takes all of it away.
#[derive(Debug)]
pub struct Hosts {
    ip: PathBuf,
    number: u8,
    count: usize,
}

impl Hosts {
    /// Makes `count` of them.
    ///
    /// # Errors
    /// It cannot be done here; the text says why.
    pub fn make(count: usize) -> anyhow::Result<Self> {
        ensure!(count < 200, "at most 200 hosts are on one bridge");
        let ip = IP.iter().map(PathBuf::from).find(|path| path.is_file()).context("there is no program `ip`")?;
        let free = (1..=250_u8).find(|number| !Path::new(&format!("/sys/class/net/sfc{number}")).exists());
        let hosts = Self { ip, number: free.context("all bridges are in use")?, count };
        hosts.build().map(|()| hosts)
    }

    /// The address at which all hosts reach the servers.
    #[must_use]
    pub fn center(&self) -> String {
        format!("10.213.{}.1", self.number)
    }

    /// The address of a host, counted from 0.
    #[must_use]
    pub fn address(&self, host: usize) -> String {
        format!("10.213.{}.{}", self.number, host + 10)
    }

    /// The words before a program that make it run on a host.
    #[must_use]
    pub fn enter(&self, host: usize) -> Vec<String> {
        let ip = self.ip.display().to_string();
        vec![ip, "netns".into(), "exec".into(), self.namespace(host)]
    }

    /// Cuts a host off.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn cut(&self, host: usize) -> anyhow::Result<()> {
        self.run(&["link", "set", &self.port(host), "nomaster"])
    }

    /// Joins a host again.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn join(&self, host: usize) -> anyhow::Result<()> {
        self.run(&["link", "set", &self.port(host), "master", &self.bridge()])
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Drops what a host sends to one address; the rest of the world is there as before.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn block(&self, host: usize, address: &str) -> anyhow::Result<()> {
        self.route(host, "add", address)
    }

    /// Ends a [`Hosts::block`].
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn unblock(&self, host: usize, address: &str) -> anyhow::Result<()> {
        self.route(host, "del", address)
    }

    fn route(&self, host: usize, verb: &str, address: &str) -> anyhow::Result<()> {
        self.run(&["-n", &self.namespace(host), "route", verb, "blackhole", &format!("{address}/32")])
    }

    fn build(&self) -> anyhow::Result<()> {
        let bridge = self.bridge();
        self.run(&["link", "add", &bridge, "type", "bridge"])?;
        self.run(&["addr", "add", &format!("{}/24", self.center()), "dev", &bridge])?;
        self.run(&["link", "set", &bridge, "up"])?;
        for host in 0..self.count {
            let (space, port, inner) = (self.namespace(host), self.port(host), format!("{}i", self.port(host)));
            self.run(&["netns", "add", &space])?;
            self.run(&["link", "add", &port, "type", "veth", "peer", "name", &inner])?;
            self.run(&["link", "set", &inner, "netns", &space])?;
            self.run(&["-n", &space, "addr", "add", &format!("{}/24", self.address(host)), "dev", &inner])?;
            self.run(&["-n", &space, "link", "set", &inner, "up"])?;
            self.run(&["-n", &space, "link", "set", "lo", "up"])?;
            self.run(&["link", "set", &port, "up"])?;
            self.join(host)?;
        }
        Ok(())
    }

    fn bridge(&self) -> String {
        format!("sfc{}", self.number)
    }

    fn namespace(&self, host: usize) -> String {
        format!("sfc{}h{host}", self.number)
    }

    /// The bridge's end of a host's cable. The kernel allows 15 characters.
    fn port(&self, host: usize) -> String {
        format!("sfc{}p{host}", self.number)
    }

    fn run(&self, words: &[&str]) -> anyhow::Result<()> {
        let done = Command::new(&self.ip).args(words).stdin(Stdio::null()).output()?;
        if !done.status.success() {
            bail!("ip {}: {}", words.join(" "), String::from_utf8_lossy(&done.stderr).trim());
        }
        Ok(())
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in 0..self.count {
            // What was never made cannot be taken away, which is just as well.
            let _never_made = self.run(&["link", "del", &self.port(host)]);
            let _never_made = self.run(&["netns", "del", &self.namespace(host)]);
        }
        let _never_made = self.run(&["link", "del", &self.bridge()]);
    }
}
