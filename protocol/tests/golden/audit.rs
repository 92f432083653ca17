//! What is kept of who did what, and of which program it was.

use stepfleet_protocol::{
    audit::{AuditEntry, action},
    beat::CoordinatorBeat,
    failure::{Category, Failure, Origin},
    message::{Audit, Body, LogEntry},
    missing::Missing,
};

use crate::{job_id, keep::check, run_id};

#[test]
fn audit_entries_and_accounts_of_programs_keep_their_bytes() {
    let entry = AuditEntry::new("cli:ann", action::RUN_CANCEL, format!("run:{}", run_id()), 1_800_000_000_123);
    let full = entry.clone().because(Some("a duplicate".into())).refused(Some("it is completed".into()));
    check("audit-entry", &entry);
    check("audit-entry-refused", &full.with_detail("{\"step\":2}".into()));
    let audit = |audit| LogEntry::new(Body::Audit(audit));
    check("log-audit-job", &audit(Audit { job: Some(job_id()), ..Audit::of_step(run_id(), 2) }));
    check("log-audit-timeout", &audit(Audit::of_run(run_id()).without(Missing::Timeout)));
    check("log-audit-work", &audit(Audit::of_run(run_id()).without(Missing::Work)));
    check("coordinator", &CoordinatorBeat { v: 1, version: "0.2.0".into(), policies: 12 });
    let origin = Some(Box::new(Origin { version: "0.1.0".into(), host: "pod-1".into() }));
    check("failure-origin", &Failure { origin, ..Failure::new(Category::System, "the disk is full") });
}
