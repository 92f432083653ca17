//! The history of a test: who asked for what and what came back, as JSON lines and in the form that Jepsen's checkers
//! read.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Mutex;

use anyhow::Context as _;
use serde::Serialize;

use crate::chaos::effects::now_ns;

/// What became of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It was asked for.
    Invoke,
    /// It was done.
    Ok,
    /// It was not done, for certain.
    Fail,
    /// Nobody knows.
    Info,
}

/// The operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum F {
    /// A run is submitted.
    Enqueue,
    /// A run is found ended.
    Dequeue,
}

/// One line of the history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Op {
    /// Who: a process does one thing after the other.
    pub process: usize,
    /// What became of it.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// What.
    pub f: F,
    /// The idempotency key of the run.
    pub value: String,
    /// Nanoseconds since the test began.
    pub time: u64,
}

impl Op {
    /// The line of an EDN history.
    #[must_use]
    pub fn edn(&self, index: usize) -> String {
        let kind = match self.kind {
            Kind::Invoke => "invoke",
            Kind::Ok => "ok",
            Kind::Fail => "fail",
            Kind::Info => "info",
        };
        let f = match self.f {
            F::Enqueue => "enqueue",
            F::Dequeue => "dequeue",
        };
        let Self { process, value, time, .. } = self;
        format!("{{:index {index}, :process {process}, :type :{kind}, :f :{f}, :value {value:?}, :time {time}}}")
    }
}

/// The history of one test, in memory and in two files.
#[derive(Debug)]
pub struct History {
    began_ns: u64,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    ops: Vec<Op>,
    lines: File,
    edn: File,
}

impl History {
    /// Begins one, in `history.jsonl` and `history.edn` of this folder.
    ///
    /// # Errors
    /// The files cannot be made.
    pub fn begin(folder: &Path) -> anyhow::Result<Self> {
        let create = |name| File::create(folder.join(name)).with_context(|| format!("create `{name}`"));
        let kept = Kept { ops: Vec::new(), lines: create("history.jsonl")?, edn: create("history.edn")? };
        Ok(Self { began_ns: now_ns(), kept: Mutex::new(kept) })
    }

    /// When it began.
    #[must_use]
    pub fn began_ns(&self) -> u64 {
        self.began_ns
    }

    /// Writes a line.
    ///
    /// # Panics
    /// The disk is full: a history with a gap proves nothing.
    pub fn note(&self, process: usize, kind: Kind, f: F, value: &str) {
        let mut kept = self.kept.lock().expect("nobody panics with it");
        let op = Op { process, kind, f, value: value.to_owned(), time: now_ns() - self.began_ns };
        let (line, edn) = (serde_json::to_string(&op).expect("an operation is JSON"), op.edn(kept.ops.len()));
        writeln!(kept.lines, "{line}").expect("there is room for the history");
        writeln!(kept.edn, "{edn}").expect("there is room for the history");
        kept.ops.push(op);
    }

    /// Everything so far.
    ///
    /// # Panics
    /// An earlier call panicked.
    #[must_use]
    pub fn ops(&self) -> Vec<Op> {
        self.kept.lock().expect("nobody panics with it").ops.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_reads_as_jepsen_writes_it() {
        let op = Op { process: 3, kind: Kind::Info, f: F::Enqueue, value: "c3-17".into(), time: 12 };
        let line = r#"{:index 5, :process 3, :type :info, :f :enqueue, :value "c3-17", :time 12}"#;
        assert_eq!(op.edn(5), line);
        let line = r#"{"process":3,"type":"info","f":"enqueue","value":"c3-17","time":12}"#;
        assert_eq!(serde_json::to_string(&op).unwrap(), line);
    }
}
