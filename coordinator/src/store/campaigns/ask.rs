//! What clients do with campaigns: begin, look, pause, resume, cancel, read the report.

use stepfleet_protocol::{
    audit::AuditEntry,
    codec,
    id::{PartitionId, StreamId},
    keys::slot_of,
};
use uuid::Uuid;

use super::{ACTIVE_MAX, Campaign, Item, Standing, Want, standing};
use crate::store::{
    ask::AskError,
    client::{Client, ClientError},
    reply,
};

/// Source of the begin of a campaign.
pub const CAMPAIGN_BEGIN: &str = include_str!("../campaign_begin.lua");
/// Source of a wish about a campaign.
pub const CAMPAIGN_WANT: &str = include_str!("../campaign_want.lua");

/// What became of the wish to begin a campaign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    /// It begins now.
    Fresh,
    /// It began before: the wish was repeated.
    Known,
    /// [`ACTIVE_MAX`] go on already.
    TooMany,
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

    /// Begins a campaign, with its audit entry, in one call. The same campaign begins once, however often it is sent.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn begin_campaign(&self, campaign: &Campaign, audit: &AuditEntry) -> Result<Begun, ClientError> {
        let key = self.keys.campaign(campaign.id);
        let mut eval = redis::cmd("EVAL");
        eval.arg(CAMPAIGN_BEGIN).arg(4).arg(&key).arg(self.keys.campaigns_active()).arg(self.keys.campaigns());
        eval.arg(self.keys.fleet_audit()).arg(campaign.id.to_string()).arg(codec::pack(campaign));
        eval.arg(campaign.at_ms).arg(ACTIVE_MAX).arg(codec::pack(audit));
        match reply::number(&self.ask_key(&key, eval).await?) {
            Some(1) => Ok(Begun::Fresh),
            Some(0) => Ok(Begun::Known),
            Some(-1) => Ok(Begun::TooMany),
            _ => Err(AskError::Unexpected("the begin of a campaign").into()),
        }
    }

    async fn ask_key(&self, key: &str, cmd: redis::Cmd) -> Result<redis::Value, ClientError> {
        let value = self.ask_all(vec![(slot_of(key.as_bytes()), cmd)]).await?.swap_remove(0);
        match reply::error(&value) {
            Some(text) => Err(AskError::Refused(text).into()),
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

    /// Says what operators want of a campaign that goes on, with the audit entry, in one call. False if it is ending or has
    /// ended; then the entry is not written.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn want_campaign(&self, id: Uuid, want: Want, audit: &AuditEntry) -> Result<bool, ClientError> {
        let key = self.keys.campaign(id);
        let mut eval = redis::cmd("EVAL");
        eval.arg(CAMPAIGN_WANT).arg(2).arg(&key).arg(self.keys.fleet_audit());
        eval.arg(want.as_str()).arg(codec::pack(audit));
        Ok(reply::number(&self.ask_key(&key, eval).await?) == Some(1))
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
