//! What the API takes and gives, as types: a promise to every client, the command line among them.
//!
//! Requests refuse unknown fields; answers may grow. Times are RFC 3339 in UTC with milliseconds, ids and states are text,
//! spans of time end in `_ms`. A page has `items` and, if there is more, an opaque `next` for `?cursor=`.

mod audit;
mod calls;
mod campaigns;
mod doctor;
mod explain;
mod fleet;
mod gates;
mod letters;
mod partitions;
mod policies;
mod problem;
mod runs;
mod subscribers;
mod values;
mod workflows;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use crate::store::letters::Filter as LetterFilter;
pub use audit::AuditView;
pub use calls::CallView;
pub use campaigns::{CampaignDryRun, CampaignItem, CampaignRequest, CampaignView, Outcomes};
pub use doctor::{DoctorFinding, DoctorFixed, DoctorView, FindingLevel, SweepView};
pub use explain::{Explanation, RunExplanation, StepExplanation};
pub use fleet::{
    Draining, FleetHealth, FleetStats, HeldView, Level, QueueStats, QueueView, Range, RunMetrics, WorkerView,
};
pub use gates::{BreakerView, LimitView, OpenRequest, PauseView, QueueTaken};
pub use letters::{
    AttemptView, DiscardRequest, GroupPage, GroupView, LetterDiscarded, LetterView, ReplayRequest, Replayed,
};
pub use partitions::{AddPartitions, Discarded, PartitionView, QuarantineView};
pub use policies::{CategoryView, EffectivePolicies, PoliciesApplied, PoliciesView, Setting};
pub use problem::{FieldProblem, Problem};
pub use runs::{
    BulkAnswer, CommandRequest, CommandTaken, HistoryView, LegacyStatus, ResolveRequest, RetryRequest, RunSummary,
    RunView, StepCounts, StepView, SubmitRequest, Submitted, SuspendRequest,
};
pub use subscribers::{FollowedFleet, FollowedPartition, SubscriberView, UndeliveredView};
pub use values::ValueView;
pub use workflows::{Checked, Registered, VersionView, WorkflowDetail, WorkflowSummary};

/// One page of a listing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// What was found.
    pub items: Vec<T>,
    /// Where the next page begins; none at the end. A page that is not full may have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}
