//! Campaigns over dead letters.

use serde::{Deserialize, Serialize};
use stepfleet_protocol::id::RunId;
use utoipa::ToSchema;

use crate::store::{
    campaigns::{Kind, Outcome, Phase},
    letters::Filter,
};

/// Begins a campaign.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CampaignRequest {
    /// What it does with each letter.
    pub kind: Kind,
    /// Which letters.
    #[serde(default)]
    pub filter: Filter,
    /// Must be true where the filter is empty: it says that every open letter is meant.
    #[serde(default)]
    pub all: bool,
    /// Why: in the history of every run. A campaign of discards must have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Letters that are tried first; the others follow if none of them failed again.
    #[serde(default)]
    pub canary: u32,
    /// Letters a second; 0 for no limit.
    #[serde(default)]
    pub rate: u32,
    /// The rate grows over so many milliseconds, from a tenth of it; 0 for the whole rate at once, at most 86,400,000.
    #[serde(default)]
    pub ramp_ms: u64,
    /// JSON merge patch (RFC 7386) of the input with which each step is tried again; at most 8 KiB. Only for replays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub patch: Option<serde_json::Value>,
    /// A letter waits for a live worker of its handler and queue whose version fits: `>=1.4`. Only for replays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when_version: Option<String>,
    /// It stops when so many per cent of the letters that ended, 10 at least, failed again; 0 for never, at most 100.
    #[serde(default)]
    pub stop_when_failing: u8,
    /// Letters that it takes up, at most; 1,000,000 if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u64>,
    /// Also letters whose step came back three times or more.
    #[serde(default)]
    pub force: bool,
    /// Only count the letters that are meant.
    #[serde(default)]
    pub dry_run: bool,
}

/// What a campaign would be about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CampaignDryRun {
    /// Letters that are meant.
    pub matched: u64,
    /// There are more than were counted.
    #[serde(default)]
    pub more: bool,
}

/// Letters of a campaign by outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Outcomes {
    /// Their steps are completed.
    pub completed: u64,
    /// Their steps gave up again.
    pub failed_again: u64,
    /// They were closed for good.
    pub discarded: u64,
    /// They were left alone.
    pub skipped: u64,
    /// Their steps were cancelled after the replay.
    pub cancelled: u64,
    /// Their runs are gone.
    pub unknown: u64,
}

/// A campaign and how far it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CampaignView {
    /// Its id.
    pub id: String,
    /// What it does.
    pub kind: Kind,
    /// With which letters.
    pub filter: Filter,
    /// Where it stands.
    pub phase: Phase,
    /// Why it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Who began it.
    pub actor: String,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When.
    pub at: String,
    /// Letters a second; 0 for no limit.
    #[serde(default)]
    pub rate: u32,
    /// Milliseconds over which the rate grows.
    #[serde(default)]
    pub ramp_ms: u64,
    /// The change of the inputs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub patch: Option<serde_json::Value>,
    /// The version of workers that letters wait for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when_version: Option<String>,
    /// Letters that have an outcome.
    pub outcomes: Outcomes,
    /// Letters that were taken up and have none yet.
    pub open: u64,
}

/// What became of one letter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CampaignItem {
    /// The letter.
    pub letter: String,
    /// Its run.
    #[schema(value_type = String)]
    pub run: RunId,
    /// Its step.
    pub step: String,
    /// What became of it.
    pub outcome: Outcome,
    /// Why it was left alone, or the letter with which it failed again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}
