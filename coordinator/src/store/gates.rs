//! Circuit breakers and paused queues in Redis: the scripts that change them, and how they are read.

use std::collections::BTreeMap;

use redis::{Cmd, Value};
use stepfleet_protocol::{
    codec,
    gate::{Gate, GateState},
    keys::{Keys, slot_of},
};

use super::{
    ask::{self, AskError},
    client::{Client, ClientError},
    reply,
};
use crate::machine::rules::Breaker;

/// Source of the circuit breaker.
pub const BREAKER: &str = include_str!("breaker.lua");
/// Source of the pause of a queue.
pub const QUEUE_PAUSE: &str = include_str!("queue_pause.lua");

/// A circuit breaker as it is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stored {
    /// `closed`, `open`, `half_open` or `recovering`.
    pub state: String,
    /// Since when, in Unix milliseconds of the server; 0 if it never opened.
    pub since_ms: u64,
    /// When it is tried again; 0 if somebody has to say so.
    pub until_ms: u64,
    /// When it last opened; 0 if it never did.
    pub opened_ms: u64,
    /// How often it opened without having recovered in between.
    pub trips: u64,
    /// Failures in a row, as weights.
    pub row: u64,
    /// Successes in the window.
    pub ok: u64,
    /// Failures in the window, as weights.
    pub failed: u64,
    /// Jobs that try now.
    pub trying: u64,
    /// Why it stands as it does.
    pub reason: String,
    /// Who did it.
    pub actor: String,
}

/// What an operator does with a circuit breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Opens it, for so many milliseconds, or until somebody closes it (0).
    Open(u64),
    /// Closes it: what is parked is released in waves.
    Close,
    /// Closes it and forgets what was counted; what is parked is released at once.
    Reset,
}

impl Act {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Open(_) => "open",
            Self::Close => "close",
            Self::Reset => "reset",
        }
    }
}

/// The call of the breaker's script.
pub fn breaker(keys: &Keys, gate: &Gate, policy: &Breaker, op: &str) -> Cmd {
    let mut eval = redis::cmd("EVAL");
    eval.arg(BREAKER).arg(4).arg(keys.fleet_breaker(gate)).arg(keys.fleet_gates());
    eval.arg(keys.fleet_breakers()).arg(keys.fleet_audit()).arg(gate.as_str()).arg(op);
    eval.arg(u8::from(policy.enabled)).arg(policy.failures).arg(policy.ratio).arg(policy.minimum_calls);
    eval.arg(policy.window_ms).arg(policy.break_ms).arg(policy.break_cap_ms).arg(policy.canaries);
    eval
}

/// Reads the gates that are not simply open to everybody.
pub fn read_gates(value: Value) -> BTreeMap<Gate, GateState> {
    let known = |(name, state): (bytes::Bytes, bytes::Bytes)| {
        let gate = Gate::parse(std::str::from_utf8(&name).ok()?).ok()?;
        Some((gate, codec::unpack(&state).ok()?))
    };
    reply::pairs(value).into_iter().filter_map(known).collect()
}

impl Client {
    /// Sends one command to the server that holds what belongs to the fleet.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn fleet(&self, command: Cmd) -> Result<Value, AskError> {
        let mut pipe = redis::pipe();
        pipe.add_command(command);
        let slot = slot_of(self.keys.fleet_gates().as_bytes());
        let replies = ask::all_good(ask::ask(&self.redis, slot, &pipe).await?)?;
        replies.into_iter().next().ok_or(AskError::Unexpected("a command"))
    }

    /// The gates that are not simply open to everybody.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn gates(&self) -> Result<BTreeMap<Gate, GateState>, AskError> {
        let mut read = redis::cmd("HGETALL");
        read.arg(self.keys.fleet_gates());
        self.fleet(read).await.map(read_gates)
    }

    /// At most `limit` circuit breakers that were heard of within a day, by name, behind `after`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn breakers(&self, after: Option<&Gate>, limit: usize) -> Result<Vec<Gate>, ClientError> {
        let mut read = redis::cmd("ZRANGE");
        read.arg(self.keys.fleet_breakers()).arg(0).arg(-1);
        let found = self.fleet(read).await?;
        let names = reply::array(&found).unwrap_or_default().iter().filter_map(reply::text);
        let mut gates: Vec<Gate> = names.filter_map(|name| Gate::parse(name).ok()).collect();
        gates.sort_unstable();
        Ok(gates.into_iter().filter(|gate| after.is_none_or(|after| gate > after)).take(limit).collect())
    }

    /// One circuit breaker; one that nobody has heard of is closed.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn breaker(&self, gate: &Gate, policy: &Breaker) -> Result<Stored, ClientError> {
        // What time alone changes is changed first.
        let mut look = breaker(&self.keys, gate, policy, "report");
        look.arg(0).arg(0).arg(0).arg(0).arg(0);
        self.fleet(look).await?;
        let mut read = redis::cmd("HGETALL");
        read.arg(self.keys.fleet_breaker(gate));
        let fields = reply::pairs(self.fleet(read).await?);
        let now_ms = self.server_time_ms().await?;
        Ok(Stored::read(&fields, policy, now_ms))
    }

    /// Opens, closes or resets a circuit breaker. Returns its state after that.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn act_on_breaker(
        &self,
        gate: &Gate,
        policy: &Breaker,
        act: Act,
        (actor, reason): (&str, &str),
    ) -> Result<String, ClientError> {
        let mut eval = breaker(&self.keys, gate, policy, act.as_str());
        eval.arg(actor).arg(reason).arg(if let Act::Open(for_ms) = act { for_ms } else { 0 });
        let reply = self.fleet(eval).await?;
        let state = reply::array(&reply).and_then(|r| r.first()).and_then(reply::text);
        Ok(state.map(Into::into).ok_or(AskError::Unexpected("the breaker's script"))?)
    }

    /// Pauses or resumes a queue. False if it was so already.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn pause_queue(&self, gate: &Gate, pause: bool, actor: &str, reason: &str) -> Result<bool, ClientError> {
        let mut eval = redis::cmd("EVAL");
        eval.arg(QUEUE_PAUSE).arg(2).arg(self.keys.fleet_gates()).arg(self.keys.fleet_audit()).arg(gate.as_str());
        eval.arg(if pause { "pause" } else { "resume" }).arg(actor).arg(reason);
        Ok(reply::number(&self.fleet(eval).await?) == Some(1))
    }
}

impl Stored {
    fn read(fields: &[(bytes::Bytes, bytes::Bytes)], policy: &Breaker, now_ms: u64) -> Self {
        const SLOTS: u64 = 10;
        let text = |name: &str| {
            let found = fields.iter().find(|(field, _)| field == name.as_bytes());
            found.map(|(_, value)| String::from_utf8_lossy(value).into_owned())
        };
        let number = |name: &str| text(name).and_then(|t| t.parse::<u64>().ok()).unwrap_or(0);
        let bucket = now_ms * SLOTS / policy.window_ms.max(1);
        let in_window = |slot: &u64| number(&format!("b{slot}")) + SLOTS > bucket;
        let sum = |what: char| (0..SLOTS).filter(in_window).map(|slot| number(&format!("{what}{slot}"))).sum();
        Self {
            state: text("state").unwrap_or_else(|| "closed".into()),
            since_ms: number("since"),
            until_ms: number("until"),
            opened_ms: number("opened"),
            trips: number("trips"),
            row: number("row"),
            ok: sum('o'),
            failed: sum('f'),
            trying: fields.iter().filter(|(field, _)| field.starts_with(b"c:")).count() as u64,
            reason: text("reason").unwrap_or_default(),
            actor: text("actor").unwrap_or_default(),
        }
    }
}
