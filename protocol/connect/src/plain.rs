//! One plain connection to one node: never shared, never reconnecting, all or nothing.
//!
//! A partition's owner reads and commits on one of these, so that its WATCH, EXEC and XREAD can never be on different
//! servers. Whatever goes wrong, or a future that is dropped half-way, ends the connection for good.

use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, Pipeline, ProtocolVersion, RedisError, Value};

use crate::error::Error;
use crate::link::{Dialer, Party, hello, patience};
use crate::topology::NodeId;

/// Why a trip gave no answer. What the server did with the commands is unknown; the connection is dead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TripError {
    /// The connection broke, or had died before.
    #[error("the connection to redis is lost: {0}")]
    Lost(String),
    /// No complete answer within the response time-out.
    #[error("redis did not answer in time")]
    TimedOut,
}

/// A plain connection to the primary that served a slot when it was opened. It speaks RESP2.
#[derive(Debug)]
pub struct Plain {
    connection: MultiplexedConnection,
    node: NodeId,
    alive: bool,
}

impl Plain {
    pub(crate) async fn open(dialer: &Dialer, node: NodeId, response_timeout: Duration) -> Result<Self, Error> {
        let config = patience(response_timeout);
        let mut connection = dialer.dial(node.target(), Party::Data, ProtocolVersion::RESP2, config).await?;
        let role = hello(&mut connection, &node.to_string()).await?.role;
        if role != "master" {
            return Err(Error::NotPrimary { node: node.to_string(), role });
        }
        Ok(Self { connection, node, alive: true })
    }

    /// The node at the other end.
    #[must_use]
    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// Sends all commands in one write and returns one reply per command, in order. A command that the server refused
    /// has [`Value::ServerError`] in its own place, inside the array of EXEC too; the others are not affected.
    ///
    /// The response time-out is for the whole trip, blocking commands included. MULTI and EXEC are sent as commands:
    /// do not use `Pipeline::atomic`.
    ///
    /// # Errors
    /// [`TripError`]: nothing is known about any command, and every later trip fails with `Lost`.
    ///
    /// # Panics
    /// If the pipeline is `atomic`, whose replies would not be one per command.
    pub async fn trip(&mut self, pipeline: &Pipeline) -> Result<Vec<Value>, TripError> {
        assert!(!pipeline.is_transaction(), "MULTI and EXEC are sent as commands");
        if pipeline.is_empty() {
            return Ok(Vec::new());
        }
        self.begin()?;
        let count = pipeline.len();
        let replies = self.connection.req_packed_commands(pipeline, 0, count).await.map_err(|error| sorted(&error))?;
        self.alive = true;
        assert_eq!(replies.len(), count, "one reply per command");
        Ok(replies)
    }

    /// Sends one command. A refusal is [`Value::ServerError`].
    ///
    /// # Errors
    /// As [`Plain::trip`].
    pub async fn one(&mut self, command: &Cmd) -> Result<Value, TripError> {
        self.begin()?;
        let reply = self.connection.send_packed_command(command).await.map_err(|error| sorted(&error))?;
        self.alive = true;
        Ok(reply)
    }

    /// Marks the connection dead until the reply is there: a future that is dropped in between must not leave replies
    /// behind that the next trip would take for its own.
    fn begin(&mut self) -> Result<(), TripError> {
        if std::mem::replace(&mut self.alive, false) {
            Ok(())
        } else {
            Err(TripError::Lost("an earlier trip failed or was given up".to_owned()))
        }
    }
}

fn sorted(error: &RedisError) -> TripError {
    if error.is_timeout() { TripError::TimedOut } else { TripError::Lost(error.to_string()) }
}
