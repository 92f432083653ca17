//! What can go wrong between a program and Redis. No text here ever contains a password.

use redis::{ErrorKind, RedisError};

/// A setting that cannot be meant, or a server that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is wrong. Trying again is useless.
    #[error("{field} is `{found}`; allowed: {allowed}")]
    Setting {
        /// The setting, as the user writes it.
        field: &'static str,
        /// What was found, without secrets.
        found: String,
        /// What would have been right.
        allowed: String,
    },
    /// No server answered, or the connection broke. Trying again may help.
    #[error("redis at `{node}` cannot be reached: {why}")]
    Unreachable {
        /// The address, or several.
        node: String,
        /// The reason given by the network or the client.
        why: String,
    },
    /// The server answered and said no: wrong password, missing permission, unknown command.
    #[error("redis at `{node}` refused: {why}")]
    Refused {
        /// The address.
        node: String,
        /// The server's own words.
        why: String,
    },
    /// The server at this address is not the primary. [`crate::Redis::refresh`] and try again.
    #[error("redis at `{node}` is `{role}`; allowed: a primary; hint: a failover is going on")]
    NotPrimary {
        /// The address.
        node: String,
        /// What the server says it is.
        role: String,
    },
    /// No node of the Cluster serves the slot now. [`crate::Redis::refresh`] and try again.
    #[error("no node serves slot `{slot}`; hint: the cluster is incomplete or failing over")]
    NoNode {
        /// The slot.
        slot: u16,
    },
    /// All pooled connections to a node were in use for longer than [`crate::limits::POOL_WAIT`].
    #[error("all connections to `{node}` are in use")]
    Busy {
        /// The address.
        node: String,
    },
}

impl Error {
    /// Sorts an error of the redis crate that was met while talking to `node`.
    pub(crate) fn of(node: &str, error: &RedisError) -> Self {
        let (node, why) = (node.to_owned(), error.to_string());
        match error.kind() {
            ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig | ErrorKind::Server(_) => {
                Self::Refused { node, why }
            }
            // An error code the crate does not know (WRONGPASS, NOAUTH) still came from the server.
            ErrorKind::Extension => Self::Refused { node, why },
            _ => Self::Unreachable { node, why },
        }
    }

    /// True if the same call may succeed later without anybody changing a setting.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Setting { .. } | Self::Refused { .. } => false,
            Self::Unreachable { .. } | Self::NotPrimary { .. } | Self::NoNode { .. } | Self::Busy { .. } => true,
        }
    }
}
