//! How one connection to one address is opened: login, TLS, TCP_NODELAY and time-outs, the same everywhere.
//!
//! The redis crate leaves TCP_NODELAY off and gives every command 500 ms; both are set here for every connection.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo,
    ProtocolVersion, RedisConnectionInfo, TlsCertificates, Value,
};

use crate::error::Error;
use crate::limits::CONNECT_TIMEOUT;
use crate::settings::{Secret, Settings, address};

/// Opens connections for one set of [`Settings`]; certificate files are read once.
pub(crate) struct Dialer {
    settings: Settings,
    certificates: Option<TlsCertificates>,
}

/// Who a connection is for, which decides the login.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Party {
    Data,
    Sentinel,
}

impl Dialer {
    /// Reads the certificate files.
    pub(crate) fn new(settings: Settings) -> Result<Self, Error> {
        settings.check()?;
        let certificates = if settings.tls { Some(certificates_of(&settings)?) } else { None };
        if certificates.is_some() {
            // An error only means that the program has chosen its provider already, which is as good.
            let _chosen_before = rustls::crypto::aws_lc_rs::default_provider().install_default();
        }
        Ok(Self { settings, certificates })
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// A client for one address; it connects to nothing yet.
    pub(crate) fn client(
        &self,
        host: &str,
        port: u16,
        party: Party,
        protocol: ProtocolVersion,
    ) -> Result<Client, Error> {
        let node = address(host, port);
        let addr = if self.settings.tls {
            ConnectionAddr::TcpTls { host: host.to_owned(), port, insecure: false, tls_params: None }
        } else {
            ConnectionAddr::Tcp(host.to_owned(), port)
        };
        let refused = |error| Error::of(&node, &error);
        let target: ConnectionInfo = addr
            .into_connection_info()
            .map_err(refused)?
            .set_tcp_settings(TcpSettings::default().set_nodelay(true))
            .set_redis_settings(self.login(party, protocol));
        match &self.certificates {
            Some(certificates) => Client::build_with_tls(target, certificates.clone()).map_err(refused),
            None => Client::open(target).map_err(refused),
        }
    }

    /// Opens one connection with this response time-out for each of its commands.
    pub(crate) async fn dial(
        &self,
        (host, port): (&str, u16),
        party: Party,
        protocol: ProtocolVersion,
        config: AsyncConnectionConfig,
    ) -> Result<MultiplexedConnection, Error> {
        let client = self.client(host, port, party, protocol)?;
        client
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .map_err(|error| Error::of(&address(host, port), &error))
    }

    fn login(&self, party: Party, protocol: ProtocolVersion) -> RedisConnectionInfo {
        let settings = &self.settings;
        let mut login = RedisConnectionInfo::default().set_protocol(protocol);
        let password = match party {
            Party::Data => {
                login = login.set_db(settings.db);
                if let Some(user) = &settings.user {
                    login = login.set_username(user);
                }
                settings.password.as_ref()
            }
            Party::Sentinel => settings.sentinel_password.as_ref(),
        };
        match password.map(Secret::expose) {
            Some(password) => login.set_password(password),
            None => login,
        }
    }
}

/// The time-outs of a connection whose commands may each take this long.
pub(crate) fn patience(response_timeout: Duration) -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(response_timeout))
}

/// Asks one question and expects an answer that is not an error.
pub(crate) async fn ask(connection: &mut MultiplexedConnection, node: &str, command: &Cmd) -> Result<Value, Error> {
    match connection.send_packed_command(command).await {
        Ok(Value::ServerError(error)) => Err(Error::Refused { node: node.to_owned(), why: error.to_string() }),
        Ok(value) => Ok(value),
        Err(error) => Err(Error::of(node, &error)),
    }
}

/// What a server says of itself in its answer to `HELLO`, which every logged-in user may send.
pub(crate) struct Hello {
    /// `master` or `replica`.
    pub(crate) role: String,
    /// `standalone`, `sentinel` or `cluster`.
    pub(crate) mode: String,
}

/// Asks a server who it is.
pub(crate) async fn hello(connection: &mut MultiplexedConnection, node: &str) -> Result<Hello, Error> {
    let answer = ask(connection, node, &redis::cmd("HELLO")).await?;
    let mut fields: std::collections::HashMap<String, Value> = redis::from_redis_value(answer)
        .map_err(|error| Error::Refused { node: node.to_owned(), why: error.to_string() })?;
    let mut text =
        |name: &str| fields.remove(name).and_then(|value| redis::from_redis_value(value).ok()).unwrap_or_default();
    Ok(Hello { role: text("role"), mode: text("mode") })
}

fn certificates_of(settings: &Settings) -> Result<TlsCertificates, Error> {
    let read = |field, path: &std::path::PathBuf| {
        std::fs::read(path).map_err(|error| Error::Setting {
            field,
            found: format!("{}: {error}", path.display()),
            allowed: "a readable PEM file".to_owned(),
        })
    };
    let root_cert = settings.ca_file.as_ref().map(|path| read("redis.ca_file", path)).transpose()?;
    let client_tls = match (&settings.client_cert_file, &settings.client_key_file) {
        (Some(certificate), Some(key)) => Some(ClientTlsConfig {
            client_cert: read("redis.client_cert_file", certificate)?,
            client_key: read("redis.client_key_file", key)?,
        }),
        _ => None,
    };
    Ok(TlsCertificates { client_tls, root_cert })
}
