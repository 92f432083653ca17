//! Campaigns over dead letters, as they are stored, and what clients do with them: begin, look, pause, resume, cancel. The
//! runner is in the shell.
//!
//! A campaign's hash has the definition, what operators want of it, and how far it is. Only its runner writes the latter, under
//! a WATCH with the number of its reign over the campaign; only clients write `want`.

use serde::{Deserialize, Serialize};
use stepfleet_protocol::{
    codec,
    id::{CommandId, PartitionId, RunId, StreamId},
    keys::slot_of,
};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    client::{Client, ClientError},
    letters::Filter,
    read::PlacedId,
    reply,
};

/// Campaigns that go on at the same time.
pub const ACTIVE_MAX: u64 = 20;
/// Letters of one campaign, at most.
pub const LETTERS_MAX: u64 = 1_000_000;
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
    /// Too many of its letters failed again.
    Stopped,
    /// Every letter was taken up and has its outcome.
    Completed,
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
    Phase: Running = "running", Canary = "canary", Paused = "paused", Stopped = "stopped", Completed = "completed",
        Cancelled = "cancelled";
    Outcome: Completed = "completed", FailedAgain = "failed_again", Discarded = "discarded", Skipped = "skipped",
        Cancelled = "cancelled", Unknown = "unknown";
}

impl Phase {
    /// Whether nothing more happens.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Stopped | Self::Completed | Self::Cancelled)
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
    /// Its run is gone, or the campaign ended first.
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
    })
}

impl Client {
    /// The last letter of every partition: what a campaign that begins now ends with.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn letter_ends(&self) -> Result<Vec<StreamId>, ClientError> {
        let partitions = self.all_partitions().await?;
        let last = |p: &PartitionId| {
            let mut cmd = redis::cmd("XREVRANGE");
            cmd.arg(self.keys.partition(*p).dead()).arg("+").arg("-").arg("COUNT").arg(1);
            (stepfleet_protocol::keys::slot(*p), cmd)
        };
        let found = self.ask_all(partitions.iter().map(last).collect()).await?;
        let id = |value| reply::entries(value).first().map_or(StreamId::ZERO, |(id, _)| *id);
        Ok(found.into_iter().map(id).collect())
    }

    /// Begins a campaign. False if too many go on already.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn begin_campaign(&self, campaign: &Campaign) -> Result<bool, ClientError> {
        let (key, active, all) = (self.keys.campaign(campaign.id), self.keys.campaigns_active(), self.keys.campaigns());
        let count = self.ask_key(&active, redis::cmd("ZCARD").arg(&active).clone()).await?;
        if reply::number(&count).unwrap_or(0) as u64 >= ACTIVE_MAX {
            return Ok(false);
        }
        let mut set = redis::cmd("HSET");
        set.arg(&key).arg(FIELD_DEFINITION).arg(codec::pack(campaign)).arg(FIELD_WANT).arg(Want::Running.as_str());
        set.arg(FIELD_PHASE).arg(Phase::Running.as_str());
        self.ask_key(&key, set).await?;
        for index in [all, active] {
            let add = redis::cmd("ZADD").arg(&index).arg(campaign.at_ms).arg(campaign.id.to_string()).clone();
            self.ask_key(&index, add).await?;
        }
        Ok(true)
    }

    async fn ask_key(&self, key: &str, cmd: redis::Cmd) -> Result<redis::Value, ClientError> {
        let value = self.ask_all(vec![(slot_of(key.as_bytes()), cmd)]).await?.swap_remove(0);
        match reply::error(&value) {
            Some(text) => Err(super::AskError::Refused(text).into()),
            None => Ok(value),
        }
    }

    /// A campaign; none if there is none.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn campaign(&self, id: Uuid) -> Result<Option<Standing>, ClientError> {
        let (key, open) = (self.keys.campaign(id), self.keys.campaign_open(id));
        let fields = self.ask_key(&key, redis::cmd("HGETALL").arg(&key).clone()).await?;
        let open = self.ask_key(&key, redis::cmd("HLEN").arg(&open).clone()).await?;
        Ok(standing(&reply::pairs(fields), reply::number(&open).unwrap_or(0).max(0) as u64))
    }

    /// The newest campaigns, at most `limit`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn campaigns(&self, from: usize, limit: usize) -> Result<Vec<Standing>, ClientError> {
        let key = self.keys.campaigns();
        let found =
            self.ask_key(&key, redis::cmd("ZREVRANGE").arg(&key).arg(from).arg(from + limit - 1).clone()).await?;
        let mut out = Vec::new();
        for id in reply::array(&found).unwrap_or_default().iter().filter_map(reply::text) {
            let Ok(id) = id.parse() else { continue };
            out.extend(self.campaign(id).await?);
        }
        Ok(out)
    }

    /// Says what operators want of a campaign that goes on.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn want_campaign(&self, id: Uuid, want: Want) -> Result<(), ClientError> {
        let key = self.keys.campaign(id);
        self.ask_key(&key, redis::cmd("HSET").arg(&key).arg(FIELD_WANT).arg(want.as_str()).clone()).await?;
        Ok(())
    }

    /// At most `limit` outcomes from the place `from` on, in the order in which they were known.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn campaign_items(&self, id: Uuid, from: u64, limit: usize) -> Result<Vec<Item>, ClientError> {
        let key = self.keys.campaign_items(id);
        let mut range = redis::cmd("LRANGE");
        range.arg(&key).arg(from).arg(from + limit as u64 - 1);
        let found = self.ask_key(&key, range).await?;
        let items = reply::array(&found).unwrap_or_default().iter().filter_map(reply::bytes);
        items.map(|bytes| codec::unpack(bytes).map_err(|_| ClientError::Broken("an item of a campaign"))).collect()
    }
}
