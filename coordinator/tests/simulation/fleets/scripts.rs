//! What the scripts of the gates do, as models: the fleet's limits, its circuit breakers, its paused queues. The Lua itself is
//! tested on real servers; here it is what owners, pumps and workers make of the answers that is tried.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex},
};

use redis::Value;
use stepfleet_coordinator::store::{
    gates::{BREAKER, QUEUE_PAUSE},
    limits::LIMIT,
    memory::{Db, MemoryServer},
    reply,
};
use stepfleet_protocol::{
    codec,
    gate::{GateState, Stand},
};

/// A partition that is silent for longer has nothing of a limit, in milliseconds.
const GONE_MS: i64 = 60_000;
/// An older reign or call is not heard for so long after a newer one.
const SPEAKS_MS: i64 = 10_000;
const RAMP_MS: i64 = 10_000;
const TOKEN_MS: i64 = 30_000;

/// What one partition has of a limit.
#[derive(Debug, Clone, Copy)]
struct Part {
    reign: u64,
    call: u64,
    used: u64,
    wants: bool,
    at_ms: i64,
}

/// One circuit breaker.
#[derive(Debug, Clone, Default)]
pub(crate) struct Breaker {
    /// None is closed.
    pub(crate) stand: Option<Stand>,
    until_ms: i64,
    row: u64,
    passed: u64,
    pub(crate) tokens: BTreeMap<Vec<u8>, i64>,
}

/// The state of all gates.
#[derive(Debug, Default)]
pub(crate) struct Gates {
    limits: BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Part>>,
    pub(crate) breakers: BTreeMap<Vec<u8>, Breaker>,
}

impl fmt::Display for Gates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (gate, breaker) in &self.breakers {
            let Breaker { stand, until_ms, passed, tokens, .. } = breaker;
            let (gate, stand) = (String::from_utf8_lossy(gate), stand.map_or("closed", Stand::as_str));
            write!(f, "{gate} {stand} until {until_ms}, {passed} passed, {} try; ", tokens.len())?;
        }
        for (part, has) in self.limits.values().flatten() {
            let Part { used, wants, at_ms, .. } = has;
            write!(f, "partition {} has {used} and wants more: {wants}, at {at_ms}; ", String::from_utf8_lossy(part))?;
        }
        Ok(())
    }
}

/// Registers the models, which share the state that is returned.
pub(crate) fn register(server: &MemoryServer) -> Arc<Mutex<Gates>> {
    let gates = Arc::new(Mutex::new(Gates::default()));
    let (limits, breakers) = (gates.clone(), gates.clone());
    server.register_script(LIMIT, move |db, keys, argv| {
        refused(db).unwrap_or_else(|| limits.lock().expect("no panic").limit(db.now_ms(), &keys[0], argv))
    });
    server.register_script(BREAKER, move |db, keys, argv| {
        refused(db).unwrap_or_else(|| breakers.lock().expect("no panic").breaker(db, &keys[1], argv))
    });
    server.register_script(QUEUE_PAUSE, |db, keys, argv| {
        if argv[1] == b"pause" {
            show(db, &keys[0], &argv[0], Some((Stand::Paused, 0)));
        } else {
            show(db, &keys[0], &argv[0], None);
        }
        Value::Int(1)
    });
    gates
}

/// A full server refuses the first write of a script, and with it the script.
fn refused(db: &mut Db) -> Option<Value> {
    let written = db.call(&[b"SET", b"probe", b"1"]);
    reply::error(&written).is_some().then_some(written)
}

fn number(bytes: &[u8]) -> u64 {
    std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Writes how a gate stands, for owners and workers.
fn show(db: &mut Db, key: &[u8], gate: &[u8], stand: Option<(Stand, i64)>) {
    match stand {
        None => db.call(&[b"HDEL", key, gate]),
        Some((stand, until_ms)) => {
            let (reason, actor) = (String::new(), String::new());
            let (since_ms, until_ms) = (db.now_ms() as u64, until_ms as u64);
            let state = GateState { v: 1, stand, since_ms, until_ms, canaries: 2, reason, actor };
            db.call(&[b"HSET", key, gate, &codec::pack(&state)])
        }
    };
}

impl Gates {
    fn limit(&mut self, now_ms: i64, key: &[u8], argv: &[Vec<u8>]) -> Value {
        let [reign, call, used, want, most] = [1, 2, 3, 4, 5].map(|at| number(&argv[at]));
        let parts = self.limits.entry(key.to_vec()).or_default();
        let newer =
            |p: &Part| now_ms - p.at_ms < SPEAKS_MS && (p.reign > reign || (p.reign == reign && p.call >= call));
        if parts.get(&argv[0]).is_some_and(newer) {
            return Value::Array(vec![Value::Int(0); 4]);
        }
        parts.retain(|part, p| *part == argv[0] || now_ms - p.at_ms < GONE_MS);
        let others = parts.iter().filter(|(part, _)| **part != argv[0]).map(|(_, p)| p);
        let (in_use, waits) = others.fold((0, false), |(sum, waits), p| (sum + p.used, waits || p.wants));
        let granted = want.min(most.saturating_sub(in_use + used));
        let keep = if waits { most / 2 } else { most.saturating_sub(in_use) };
        let part = Part { reign, call, used: used + granted, wants: granted < want, at_ms: now_ms };
        parts.insert(argv[0].clone(), part);
        Value::Array([1, granted, keep, 0].map(|n| Value::Int(n as i64)).to_vec())
    }

    fn breaker(&mut self, db: &mut Db, view: &[u8], argv: &[Vec<u8>]) -> Value {
        let (now_ms, gate, op) = (db.now_ms(), argv[0].clone(), argv[1].clone());
        let [failures, span, canaries] = [3, 7, 9].map(|at| number(&argv[at]));
        let breaker = self.breakers.entry(gate.clone()).or_default();
        let before = breaker.stand;
        if breaker.until_ms > 0 && now_ms >= breaker.until_ms {
            let next = (breaker.stand == Some(Stand::Open)).then_some(Stand::HalfOpen);
            breaker.enter(next, 0);
        }
        let mut granted = Vec::new();
        match &op[..] {
            b"report" => breaker.report(now_ms, (failures, canaries, span as i64), &argv[10..]),
            b"take" => {
                breaker.tokens.retain(|_, ends| *ends > now_ms);
                for token in &argv[11..] {
                    let live = breaker.passed + breaker.tokens.len() as u64;
                    if breaker.stand == Some(Stand::HalfOpen) && live < canaries {
                        breaker.tokens.insert(token.clone(), now_ms + TOKEN_MS);
                        granted.push(Value::BulkString(token.clone()));
                    }
                }
            }
            b"open" => breaker.enter(Some(Stand::Open), now_ms + number(&argv[12]) as i64),
            b"close" if breaker.stand.is_some() => breaker.enter(Some(Stand::Recovering), now_ms + RAMP_MS),
            _ => {}
        }
        let (stand, until_ms) = (breaker.stand, breaker.until_ms);
        if stand != before {
            show(db, view, &gate, stand.map(|stand| (stand, until_ms)));
        }
        if op == b"take" {
            return Value::Array(granted);
        }
        let word = stand.map_or("closed", Stand::as_str);
        Value::Array(vec![Value::BulkString(word.into()), Value::Int(i64::from(stand != before))])
    }
}

impl Breaker {
    fn enter(&mut self, stand: Option<Stand>, until_ms: i64) {
        *self = Self { stand, until_ms, ..Self::default() };
    }

    fn report(&mut self, now_ms: i64, (failures, canaries, span): (u64, u64, i64), said: &[Vec<u8>]) {
        let [ok, failed, first, most, last] = [0, 1, 2, 3, 4].map(|at| number(&said[at]));
        if matches!(self.stand, None | Some(Stand::Recovering)) && ok + failed > 0 {
            let row = (self.row + first).max(most);
            self.row = if ok > 0 { last } else { self.row + failed };
            if failed > 0 && row >= failures {
                self.enter(Some(Stand::Open), now_ms + span);
            }
        }
        for pair in said[5..].chunks_exact(2) {
            if self.stand != Some(Stand::HalfOpen) || !self.tokens.contains_key(&pair[0]) {
                continue;
            }
            if pair[1] == b"held" {
                self.tokens.insert(pair[0].clone(), now_ms + TOKEN_MS);
                continue;
            }
            self.tokens.remove(&pair[0]);
            match &pair[1][..] {
                b"ok" => self.passed += 1,
                b"failed" => return self.enter(Some(Stand::Open), now_ms + span),
                _ => {}
            }
        }
        if self.stand == Some(Stand::HalfOpen) && self.passed >= canaries {
            self.enter(Some(Stand::Recovering), now_ms + RAMP_MS);
        }
    }
}
