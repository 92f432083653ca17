//! Campaigns over dead letters, as they are stored. What clients do with them is in [`ask`], the runner is in the shell.
//!
//! A campaign's hash has the definition, what operators want of it, and how far it is. Only its runner writes the latter, under
//! a WATCH with the number of its reign over the campaign; only clients write `want`. Everything of campaigns shares the slot of
//! the fleet's audit, so that no change is without its entry.

pub mod ask;

use serde::{Deserialize, Serialize};
use stepfleet_protocol::{
    codec,
    id::{CommandId, PartitionId, RunId, StreamId},
};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{letters::Filter, read::PlacedId};

/// Campaigns that go on at the same time.
pub const ACTIVE_MAX: u64 = 20;
/// Letters of one campaign, at most.
pub const LETTERS_MAX: u64 = 1_000_000;
/// Bytes of a patch of inputs: every look at a campaign reads it.
pub const PATCH_BYTES_MAX: usize = stepfleet_protocol::limits::INLINE_BYTES_MAX;
/// How long a campaign is kept after its end, in milliseconds: 30 days.
pub const KEPT_MS: u64 = 30 * 86_400_000;
/// Campaigns that are kept; beyond it the oldest that have ended go.
pub const KEPT_MAX: u64 = 1_000;
/// Field of a campaign: its definition.
pub const FIELD_DEFINITION: &str = "d";
/// Field: what operators want, a [`Want`].
pub const FIELD_WANT: &str = "want";
/// Field: its [`Phase`].
pub const FIELD_PHASE: &str = "phase";
/// Field: why it is in that phase.
pub const FIELD_WHY: &str = "why";
/// Field: the number of the runner's reign.
pub const FIELD_FENCE: &str = "fence";
/// Field: since when it is ending or has ended, in Unix milliseconds of the server.
pub const FIELD_ENDING: &str = "ending";
/// Begin of the fields with the place in the letters of a partition.
pub const FIELD_AT: &str = "at:";
/// Begin of the fields with how many letters had an outcome.
pub const FIELD_COUNT: &str = "n:";

/// What a campaign does with each letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Replays it.
    Replay,
    /// Closes it for good.
    Discard,
}

/// What operators want of a campaign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Want {
    /// It goes on.
    Running,
    /// It takes up no more letters for now.
    Paused,
    /// It ends.
    Cancelled,
}

/// Where a campaign stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It takes up letters.
    Running,
    /// The first letters are tried, and it waits for what becomes of them.
    Canary,
    /// An operator holds it.
    Paused,
    /// No live worker has the version that it waits for.
    Waiting,
    /// Too many of its letters failed again: it takes up no more, and tells what becomes of those that are under way.
    Stopping,
    /// Too many of its letters failed again.
    Stopped,
    /// Every letter was taken up and has its outcome.
    Completed,
    /// An operator ended it: it takes up no more, and tells what becomes of those that are under way.
    Cancelling,
    /// An operator ended it.
    Cancelled,
}

macro_rules! words {
    ($($type:ident: $($variant:ident = $word:literal),*;)*) => {
        $(impl $type {
            /// The word, as it is stored.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }

            /// From the word.
            pub fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)* _ => None }
            }
        })*
    };
}

words! {
    Want: Running = "running", Paused = "paused", Cancelled = "cancelled";
    Phase: Running = "running", Canary = "canary", Paused = "paused", Waiting = "waiting", Stopping = "stopping",
        Stopped = "stopped", Completed = "completed", Cancelling = "cancelling", Cancelled = "cancelled";
    Outcome: Completed = "completed", FailedAgain = "failed_again", Discarded = "discarded", Skipped = "skipped",
        Cancelled = "cancelled", Unknown = "unknown";
}

impl Phase {
    /// Whether nothing more happens.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Stopped | Self::Completed | Self::Cancelled)
    }

    /// Whether it only waits for the outcomes of what is under way.
    pub const fn is_ending(self) -> bool {
        matches!(self, Self::Stopping | Self::Cancelling)
    }
}

/// What became of a letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Its step is completed.
    Completed,
    /// Its step gave up again.
    FailedAgain,
    /// It was closed for good.
    Discarded,
    /// It was left alone: the note says why.
    Skipped,
    /// Its step was cancelled after the replay.
    Cancelled,
    /// Its run is gone, or the campaign ended before it was known.
    Unknown,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 6] =
        [Self::Completed, Self::FailedAgain, Self::Discarded, Self::Skipped, Self::Cancelled, Self::Unknown];
}

/// How a campaign was begun.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Campaign {
    /// Version of the record.
    pub v: u8,
    /// Its id.
    pub id: Uuid,
    /// What it does.
    pub kind: Kind,
    /// With which letters.
    pub filter: Filter,
    /// Who began it.
    pub actor: String,
    /// Why.
    #[serde(default)]
    pub reason: Option<String>,
    /// When, in Unix milliseconds of the server.
    pub at_ms: u64,
    /// The last letter of each partition when it began: later ones are not its business.
    pub ends: Vec<StreamId>,
    /// Letters that are tried first; 0 for none.
    #[serde(default)]
    pub canary: u32,
    /// Letters a second; 0 for no limit.
    #[serde(default)]
    pub rate: u32,
    /// It stops when so many per cent of the letters that ended failed again, 10 of them at least; 0 for never.
    #[serde(default)]
    pub stop_when_failing: u8,
    /// Letters that it takes up, at most.
    pub max: u64,
    /// A letter whose step came back so often is left alone.
    pub returns_max: u32,
    /// The rate grows over so many milliseconds, from a tenth of it.
    #[serde(default)]
    pub ramp_ms: u64,
    /// JSON merge patch of the input with which each step is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patch: Option<serde_json::Value>,
    /// A letter waits for a live worker of its handler and queue whose version fits this requirement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when_version: Option<String>,
}

impl Campaign {
    /// The partition whose owner runs it.
    pub fn home(&self) -> PartitionId {
        let count = self.ends.len().max(1) as u128;
        PartitionId((self.id.as_u128() % count) as u16)
    }

    /// The id of the command for a letter: the same whoever sends it, and however often.
    pub fn command(&self, letter: PlacedId) -> CommandId {
        use sha2::Digest;
        let digest = sha2::Sha256::digest(format!("{} {letter}", self.id));
        CommandId(Uuid::from_bytes(std::array::from_fn(|place| digest[place])))
    }
}

/// A letter that was taken up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Taken {
    /// Its run.
    pub run: RunId,
    /// Its step's number.
    pub index: u32,
    /// Its step's name.
    pub step: String,
    /// Its command was done. Known for good, because the answer itself is kept for a time only.
    #[serde(default)]
    pub answered: bool,
}

/// What became of a letter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// The letter.
    pub letter: PlacedId,
    /// Its run.
    pub run: RunId,
    /// Its step's name.
    pub step: String,
    /// What became of it.
    pub outcome: Outcome,
    /// More about that.
    #[serde(default)]
    pub note: Option<String>,
}

/// A campaign and how far it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    /// How it was begun.
    pub campaign: Campaign,
    /// What operators want.
    pub want: Want,
    /// Where it stands.
    pub phase: Phase,
    /// Why it is there.
    pub why: Option<String>,
    /// Letters by outcome.
    pub counts: Vec<(Outcome, u64)>,
    /// Letters that were taken up and have no outcome yet.
    pub open: u64,
    /// Since when it is ending or has ended, in Unix milliseconds of the server; 0 while it goes on.
    pub ending_ms: u64,
}

/// Reads the fields of a campaign, and how many letters are open; none if it is none of ours.
pub fn standing(fields: &[(bytes::Bytes, bytes::Bytes)], open: u64) -> Option<Standing> {
    let get = |name: &str| fields.iter().find(|(field, _)| field == name.as_bytes()).map(|(_, value)| &value[..]);
    let word = |name: &str| get(name).and_then(|value| std::str::from_utf8(value).ok());
    let counted = |outcome: &Outcome| {
        let count = word(&format!("{FIELD_COUNT}{}", outcome.as_str())).and_then(|text| text.parse().ok()).unwrap_or(0);
        (*outcome, count)
    };
    Some(Standing {
        campaign: codec::unpack(get(FIELD_DEFINITION)?).ok()?,
        want: word(FIELD_WANT).and_then(Want::from_word)?,
        phase: word(FIELD_PHASE).and_then(Phase::from_word)?,
        why: word(FIELD_WHY).filter(|why| !why.is_empty()).map(str::to_owned),
        counts: Outcome::ALL.iter().map(counted).collect(),
        open,
        ending_ms: word(FIELD_ENDING).and_then(|text| text.parse().ok()).unwrap_or(0),
    })
}
