//! What a user writes to say where Redis is: one URL, and the files of TLS.
//!
//! Secrets are held by [`Secret`], which no `Debug` or `Display` prints.

use std::fmt;
use std::path::PathBuf;

use crate::error::Error;
use crate::limits::SEEDS_MAX;

const FIELD: &str = "redis.url";
const FORMS: &str = "`redis://[user:password@]host:port[/db]`, `redis-sentinel://[user:password@]host:port,…/service`, \
                     `redis-cluster://[user:password@]host:port,…`, each also as `rediss…://` for TLS";

/// How the servers are arranged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topology {
    /// One server with a fixed address.
    Single,
    /// A primary that Sentinel names.
    Sentinel,
    /// Redis Cluster.
    Cluster,
}

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Where Redis is and how to log in. `Display` gives the URL with the password replaced by `***`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// How the servers are arranged, from the URL's scheme.
    pub topology: Topology,
    /// The addresses of the URL, host and port. Never empty; exactly one for `Single`.
    pub seeds: Vec<(String, u16)>,
    /// The name of the primary, for Sentinel only.
    pub service: Option<String>,
    /// The database number; always 0 on Cluster.
    pub db: i64,
    /// The ACL user; `None` is `default`.
    pub user: Option<String>,
    /// The password of the data servers.
    pub password: Option<Secret>,
    /// The password of the Sentinels themselves, which usually have none. Not part of the URL.
    pub sentinel_password: Option<Secret>,
    /// TLS on every connection, Sentinels included.
    pub tls: bool,
    /// PEM file with the authorities to trust instead of the public ones. TLS only.
    pub ca_file: Option<PathBuf>,
    /// PEM file with the client's certificate chain. TLS only, together with `client_key_file`.
    pub client_cert_file: Option<PathBuf>,
    /// PEM file with the client's key. TLS only, together with `client_cert_file`.
    pub client_key_file: Option<PathBuf>,
}

impl Settings {
    /// Reads a URL.
    ///
    /// User and password may be percent-encoded (`%40` for `@`). A missing port is 6379, for Sentinel 26379.
    ///
    /// # Errors
    /// [`Error::Setting`] that names the part, what was found and what is allowed; never with the password.
    pub fn parse(url: &str) -> Result<Self, Error> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong(FIELD, "a text without `://`", FORMS))?;
        let (topology, tls) = scheme_of(scheme)?;
        if rest.contains(['?', '#']) {
            return Err(wrong(
                "the query of redis.url",
                "present",
                "no `?` and no `#`; encode them in a password as `%3F` and `%23`",
            ));
        }
        let (login, rest) = match rest.rsplit_once('@') {
            Some((login, rest)) => (Some(login), rest),
            None => (None, rest),
        };
        let (user, password) = login.map_or(Ok((None, None)), login_of)?;
        let (hosts, path) = match rest.split_once('/') {
            Some((hosts, path)) => (hosts, path),
            None => (rest, ""),
        };
        let seeds = seeds_of(hosts, topology)?;
        let (service, db) = path_of(path, topology)?;
        Ok(Self {
            topology,
            seeds,
            service,
            db,
            user,
            password,
            sentinel_password: None,
            tls,
            ca_file: None,
            client_cert_file: None,
            client_key_file: None,
        })
    }

    /// Checks what the fields must be together: TLS files only with TLS, certificate and key only in a pair.
    ///
    /// # Errors
    /// [`Error::Setting`] for the first relation that does not hold.
    pub fn check(&self) -> Result<(), Error> {
        let files = [&self.ca_file, &self.client_cert_file, &self.client_key_file];
        if let (false, Some(file)) = (self.tls, files.into_iter().flatten().next()) {
            let found = file.display().to_string();
            return Err(wrong("a TLS file of redis", &found, "none without TLS; hint: write `rediss` in redis.url"));
        }
        if self.client_cert_file.is_some() != self.client_key_file.is_some() {
            return Err(wrong(
                "the client certificate of redis",
                "half a pair",
                "both the certificate and its key, or neither",
            ));
        }
        Ok(())
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.topology {
            Topology::Single => "",
            Topology::Sentinel => "-sentinel",
            Topology::Cluster => "-cluster",
        };
        write!(f, "redis{}{kind}://", if self.tls { "s" } else { "" })?;
        if self.password.is_some() {
            write!(f, "{}:***@", self.user.as_deref().unwrap_or(""))?;
        }
        for (at, (host, port)) in self.seeds.iter().enumerate() {
            write!(f, "{}{}", if at == 0 { "" } else { "," }, address(host, *port))?;
        }
        match &self.service {
            Some(service) => write!(f, "/{service}"),
            None if self.db != 0 => write!(f, "/{}", self.db),
            None => Ok(()),
        }
    }
}

/// `host:port`, with brackets around an IPv6 address.
pub(crate) fn address(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn wrong(field: &'static str, found: &str, allowed: &str) -> Error {
    Error::Setting { field, found: found.to_owned(), allowed: allowed.to_owned() }
}

fn scheme_of(scheme: &str) -> Result<(Topology, bool), Error> {
    match scheme {
        "redis" | "valkey" => Ok((Topology::Single, false)),
        "rediss" | "valkeys" => Ok((Topology::Single, true)),
        "redis-sentinel" => Ok((Topology::Sentinel, false)),
        "rediss-sentinel" => Ok((Topology::Sentinel, true)),
        "redis-cluster" => Ok((Topology::Cluster, false)),
        "rediss-cluster" => Ok((Topology::Cluster, true)),
        other => Err(wrong("the scheme of redis.url", other, FORMS)),
    }
}

fn login_of(login: &str) -> Result<(Option<String>, Option<Secret>), Error> {
    const LOGIN: &str = "the login of redis.url";
    let (user, password) = login
        .split_once(':')
        .ok_or_else(|| wrong(LOGIN, "a name without a password", "`user:password@` or `:password@`"))?;
    let decode =
        |text| decoded(text).ok_or_else(|| wrong(LOGIN, "a broken `%` escape", "`%` and two hex digits, UTF-8"));
    let (user, password) = (decode(user)?, decode(password)?);
    if password.is_empty() {
        return Err(wrong(LOGIN, "an empty password", "`user:password@`, or no login at all"));
    }
    Ok(((!user.is_empty()).then_some(user), Some(Secret(password))))
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        if *first == b'%' {
            let digits = tail.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

fn seeds_of(hosts: &str, topology: Topology) -> Result<Vec<(String, u16)>, Error> {
    let default = if topology == Topology::Sentinel { 26379 } else { 6379 };
    let seeds = hosts.split(',').map(|host| seed_of(host, default)).collect::<Result<Vec<_>, _>>()?;
    let most = if topology == Topology::Single { 1 } else { SEEDS_MAX };
    if seeds.len() > most {
        let hint = "hint: several servers need `redis-cluster://` or `redis-sentinel://`";
        return Err(wrong(
            "the hosts of redis.url",
            &format!("{} hosts", seeds.len()),
            &format!("1 to {most}; {hint}"),
        ));
    }
    Ok(seeds)
}

fn seed_of(text: &str, default: u16) -> Result<(String, u16), Error> {
    let bad = |allowed: &str| wrong("a host of redis.url", text, allowed);
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or_else(|| bad("`[ipv6]:port`"))?;
            (host, port.strip_prefix(':').or(port.is_empty().then_some("")).ok_or_else(|| bad("`[ipv6]:port`"))?)
        }
        None => text.split_once(':').unwrap_or((text, "")),
    };
    if host.is_empty() || host == "0.0.0.0" || host.contains(char::is_whitespace) {
        return Err(bad("`host:port` with a host that can be connected to"));
    }
    let port = if port.is_empty() { Some(default) } else { port.parse().ok().filter(|port| *port > 0) };
    Ok((host.to_owned(), port.ok_or_else(|| bad("a port from 1 to 65535; IPv6 in brackets"))?))
}

fn path_of(path: &str, topology: Topology) -> Result<(Option<String>, i64), Error> {
    const PATH: &str = "the path of redis.url";
    match topology {
        Topology::Single if path.is_empty() => Ok((None, 0)),
        Topology::Single => {
            let db =
                path.parse::<u16>().map_err(|_| wrong(PATH, path, "a database number from 0 to 65535, or nothing"))?;
            Ok((None, i64::from(db)))
        }
        Topology::Sentinel if path.is_empty() || path.contains('/') => {
            Err(wrong(PATH, path, "`/service`, the name of the primary at the Sentinels, such as `/mymaster`"))
        }
        Topology::Sentinel => Ok((Some(path.to_owned()), 0)),
        Topology::Cluster if path.is_empty() || path == "0" => Ok((None, 0)),
        Topology::Cluster => Err(wrong(PATH, path, "nothing; Redis Cluster has only database 0")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(url: &str, shown: &str) -> Settings {
        let settings = Settings::parse(url).expect("the URL is right");
        assert_eq!(settings.to_string(), shown);
        settings
    }

    #[test]
    fn every_form_is_understood() {
        let one = check("redis://127.0.0.1:7000/3", "redis://127.0.0.1:7000/3");
        assert_eq!((one.topology, one.tls, one.db), (Topology::Single, false, 3));
        check("redis://localhost", "redis://localhost:6379");
        check("redis://[::1]:7000", "redis://[::1]:7000");
        assert!(check("rediss://fleet:s@redis.example:6380", "rediss://fleet:***@redis.example:6380").tls);
        let sentinel = check("redis-sentinel://:s@a:1,b/mymaster", "redis-sentinel://:***@a:1,b:26379/mymaster");
        assert_eq!(sentinel.service.as_deref(), Some("mymaster"));
        assert!(check("rediss-sentinel://a/m", "rediss-sentinel://a:26379/m").tls);
        let cluster = check("redis-cluster://a:1,b:2,c:3", "redis-cluster://a:1,b:2,c:3");
        assert_eq!(cluster.seeds.len(), 3);
        assert!(check("rediss-cluster://a", "rediss-cluster://a:6379").tls);
    }

    #[test]
    fn a_password_is_decoded_and_never_shown() {
        let settings = check("redis://fleet:p%40ss%2Fw%C3%A9@h:1", "redis://fleet:***@h:1");
        assert_eq!(settings.password.as_ref().map(Secret::expose), Some("p@ss/wé"));
        let debug = format!("{settings:?}");
        assert!(!debug.contains("p@ss") && debug.contains("***"), "{debug}");
    }

    #[test]
    fn a_wrong_url_names_the_part_and_hides_the_password() {
        for (url, part) in [
            ("127.0.0.1:6379", "redis.url is"),
            ("http://:hunter2@h", "the scheme of redis.url is `http`"),
            ("redis://hunter2@h:1", "the login of redis.url"),
            ("redis://u:@h:1", "an empty password"),
            ("redis://u:hunter2%zz@h:1", "a broken `%` escape"),
            ("redis://u:hunter2@h:99999", "a host of redis.url is `h:99999`"),
            ("redis://u:hunter2@:1", "a host of redis.url is `:1`"),
            ("redis://0.0.0.0:1", "a host of redis.url is `0.0.0.0:1`"),
            ("redis://u:hunter2@a:1,b:2", "the hosts of redis.url is `2 hosts`"),
            ("redis://u:hunter2@a:1/x", "the path of redis.url is `x`"),
            ("redis://a:1?hunter2=1", "the query of redis.url"),
            ("redis-sentinel://a:1", "the path of redis.url is ``"),
            ("redis-cluster://a:1/2", "the path of redis.url is `2`"),
        ] {
            let error = Settings::parse(url).expect_err(url).to_string();
            assert!(error.contains(part) && error.contains("allowed: "), "{url}: {error}");
            assert!(!error.contains("hunter2"), "{url}: {error}");
        }
    }

    #[test]
    fn tls_files_need_tls_and_certificates_need_keys() {
        let mut settings = check("redis://h:1", "redis://h:1");
        settings.ca_file = Some("ca.pem".into());
        assert!(settings.check().is_err());
        settings.tls = true;
        assert!(settings.check().is_ok());
        settings.client_cert_file = Some("me.pem".into());
        assert!(settings.check().is_err());
    }
}
