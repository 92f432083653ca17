//! Reading what the fleet says about limits.

use stepfleet_protocol::{
    gate::{About, Gate},
    limits::{CONCURRENCY_MAX, POLICY_LIMITS_MAX},
    policy::LimitPolicy,
    rate::Rate,
};

use super::super::{
    fields::{Path, Reader},
    report::{Complaint, shown},
    tree::{Kind, Node},
};

/// The limits, by what they are about.
pub(super) fn read(r: &mut Reader, node: &Node, here: &Path<'_>) -> Vec<(String, LimitPolicy)> {
    let mut out = Vec::new();
    for entry in super::entries(r, node, here, POLICY_LIMITS_MAX) {
        let path = here.key(&entry.key);
        let gate = Gate::parse(&entry.key).ok().filter(|gate| !matches!(gate.about(), About::Queue(_)));
        let Some(gate) = gate else {
            let found = Complaint::new(format!("`{}` names nothing that can be limited", shown(&entry.key)));
            r.complain(entry.at, &path, found.allowed("`handler:<name>` and `target:<text>`"));
            continue;
        };
        if let Some(policy) = limit(r, &entry.value, &path) {
            out.push((gate.to_string(), policy));
        }
    }
    out
}

fn limit(r: &mut Reader, node: &Node, here: &Path<'_>) -> Option<LimitPolicy> {
    let fields = r.fields(node, here, &["concurrency", "rate", "burst"])?;
    let mut number = |name: &'static str| {
        let node = fields.set(name)?;
        let number = r.whole_number(node, &here.key(name), 1..=u64::from(CONCURRENCY_MAX))?;
        u32::try_from(number).ok()
    };
    let (concurrency, burst) = (number("concurrency"), number("burst"));
    let rate = fields.set("rate").and_then(|node| rate(r, node, &here.key("rate")));
    let says = |name| fields.set(name).is_some();
    if !says("concurrency") && !says("rate") {
        let found = Complaint::new("a limit without a number");
        r.complain(node.at, here, found.allowed("`concurrency`, `rate` or both"));
    } else if says("burst") && !says("rate") {
        let found = Complaint::new("`burst` without `rate`");
        r.complain(node.at, &here.key("burst"), found.allowed("`burst` beside a `rate`"));
    }
    Some(LimitPolicy { concurrency, rate, burst })
}

fn rate(r: &mut Reader, node: &Node, here: &Path<'_>) -> Option<Rate> {
    const ALLOWED: &str = "a whole number from 1 to 1000000 with `/s`, `/m` or `/h`, such as `100/s`";
    let Kind::Text(text) = &node.kind else {
        r.wrong_type(node, here, ALLOWED);
        return None;
    };
    let rate = Rate::parse(text);
    if rate.is_err() {
        r.complain(node.at, here, Complaint::new(format!("bad rate `{}`", shown(text))).allowed(ALLOWED));
    }
    rate.ok()
}
