//! What handlers did, as lines of a file that knows nothing of Redis.
//!
//! Each begin and each end of a handler is one line, appended in one write. A killed process loses none that was
//! written, as the kernel has it. So what was done is known whatever becomes of servers, logs and results.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

/// How often the file is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// Nanoseconds since 1970. All processes of a test share one host and so one clock.
///
/// # Panics
/// The clock of the host stands before 1970.
#[must_use]
pub fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970");
    u64::try_from(since.as_nanos()).expect("it is earlier than 2554")
}

/// Where a handler was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It began: this is the effect.
    Begun,
    /// It returned with success.
    Done,
    /// It returned with a failure of its own. One that was told to stop says nothing.
    Failed,
}

/// A handler began, or came to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Effect {
    /// When, see [`now_ns`].
    pub at_ns: u64,
    /// Where it was.
    pub phase: Phase,
    /// The run.
    pub run: String,
    /// The step.
    pub step: String,
    /// Which deliberate execution of the step.
    pub generation: u32,
    /// Which try.
    pub attempt: u32,
    /// The job.
    pub job: String,
    /// The name of the worker process, which no other process ever has.
    pub worker: String,
}

/// Appends effects.
#[derive(Debug)]
pub struct Pen(File);

impl Pen {
    /// Opens the file, and makes it if it is not there.
    ///
    /// # Errors
    /// The system refuses.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        Ok(Self(file.with_context(|| format!("open `{}`", path.display()))?))
    }

    /// Appends one line.
    ///
    /// # Errors
    /// The system refuses.
    pub fn write(&self, effect: &Effect) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(effect)?;
        line.push(b'\n');
        // One write of a file that is opened to append: lines of several processes do not mix.
        (&self.0).write_all(&line)?;
        Ok(())
    }
}

/// Everything that was done so far, kept up to date by a task. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Effects(Arc<Mutex<Vec<Effect>>>);

impl Effects {
    /// Follows the file until `stop`.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn follow(path: PathBuf, stop: CancellationToken) -> anyhow::Result<Self> {
        Pen::open(&path)?;
        let mut file = File::open(&path)?;
        let effects = Self::default();
        let all = effects.clone();
        tokio::spawn(async move {
            let (mut rest, mut looks) = (Vec::new(), tokio::time::interval(LOOK));
            while !stop.is_cancelled() {
                looks.tick().await;
                let new = take_lines(&mut file, &mut rest);
                all.0.lock().expect("nobody panics with it").extend(new);
            }
        });
        Ok(effects)
    }

    /// Calls `look` with all of them, in the order of the file.
    ///
    /// # Panics
    /// An earlier look panicked.
    pub fn look<T>(&self, look: impl FnOnce(&[Effect]) -> T) -> T {
        look(&self.0.lock().expect("nobody panics with it"))
    }
}

/// The complete lines that came since the last look; half a line stays in `rest`.
fn take_lines(file: &mut File, rest: &mut Vec<u8>) -> Vec<Effect> {
    // What cannot be read now is read at the next look.
    let _unread = file.read_to_end(rest);
    let end = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let lines: Vec<u8> = rest.drain(..end).collect();
    lines.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn effect(job: &str) -> Effect {
        let (run, step, worker) = ("r".into(), "a".into(), "w".into());
        Effect { at_ns: 1, phase: Phase::Begun, run, step, generation: 1, attempt: 1, job: job.into(), worker }
    }

    #[test]
    fn half_a_line_waits_for_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("effects");
        Pen::open(&path).unwrap().write(&effect("1")).unwrap();
        let (mut file, mut rest) = (File::open(&path).unwrap(), Vec::new());
        let half = serde_json::to_string(&effect("2")).unwrap();
        let mut pen = OpenOptions::new().append(true).open(&path).unwrap();
        pen.write_all(&half.as_bytes()[..20]).unwrap();
        assert_eq!(take_lines(&mut file, &mut rest), [effect("1")]);
        pen.write_all(&half.as_bytes()[20..]).unwrap();
        pen.write_all(b"\n").unwrap();
        assert_eq!(take_lines(&mut file, &mut rest), [effect("2")]);
    }
}
