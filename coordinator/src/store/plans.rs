//! How plans come and go with the runs that follow them, as parts of a commit.
//!
//! A plan that no run follows is not deleted but moved to another key first. So a submitter's `SET … NX` writes it anew, and
//! what was submitted before still finds it; only the copy aside is ever deleted. When that is safe is the shell's affair.

use std::collections::BTreeMap;

use super::commit::Commands;

/// What a commit does with a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlanMove {
    /// No run follows it any more: it goes aside.
    Aside {
        /// Since when, in Unix milliseconds of the server.
        at_ms: u64,
    },
    /// A run follows it again: it comes back, unless it was written anew.
    Back,
    /// What was aside is deleted.
    Gone,
}

/// Appends the commands. COPY and not RENAME, which would be an error inside EXEC if the key is not there.
pub(super) fn write(moves: &BTreeMap<String, PlanMove>, out: &mut Commands) {
    for (hash, moved) in moves {
        let (plan, aside, list) = (out.keys.plan(hash), out.keys.plan_aside(hash), out.keys.plans_aside());
        match moved {
            PlanMove::Aside { at_ms } => {
                let uses = out.keys.plan_uses();
                out.cmd("COPY").arg(&plan).arg(&aside).arg("REPLACE");
                out.cmd("UNLINK").arg(&plan);
                out.cmd("HDEL").arg(uses).arg(hash);
                out.cmd("ZADD").arg(list).arg(*at_ms).arg(hash);
            }
            PlanMove::Back => {
                out.cmd("COPY").arg(&aside).arg(&plan);
                out.cmd("UNLINK").arg(&aside);
                out.cmd("ZREM").arg(list).arg(hash);
            }
            PlanMove::Gone => {
                out.cmd("UNLINK").arg(&aside);
                out.cmd("ZREM").arg(list).arg(hash);
            }
        }
    }
}
