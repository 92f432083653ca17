//! What the objects of pods say about ends of workers. No I/O.

use std::collections::{HashMap, HashSet};

use kube::core::{NotUsed, Object};
use serde::{Deserialize, Deserializer};
use stepfleet_protocol::{
    failure::cut,
    pod::{POD_MESSAGE_MAX, PodEnd},
};

/// A pod, as far as it is looked at.
pub(super) type Pod = Object<NotUsed, PodStatus>;

/// How it goes. A server may write `null` for what is not set, as for the times of a container that a kubelet lost.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PodStatus {
    #[serde(deserialize_with = "or_default")]
    phase: String,
    #[serde(deserialize_with = "or_default")]
    reason: String,
    #[serde(deserialize_with = "or_default")]
    message: String,
    #[serde(deserialize_with = "or_default")]
    container_statuses: Vec<ContainerStatus>,
}

/// How one of its containers goes.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ContainerStatus {
    #[serde(deserialize_with = "or_default")]
    name: String,
    #[serde(deserialize_with = "or_default")]
    restart_count: u32,
    #[serde(deserialize_with = "or_default")]
    state: ContainerState,
    /// The end of the container that this one came after.
    #[serde(deserialize_with = "or_default")]
    last_state: ContainerState,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ContainerState {
    terminated: Option<Terminated>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Terminated {
    #[serde(rename = "containerID", deserialize_with = "or_default")]
    container_id: String,
    #[serde(deserialize_with = "or_default")]
    exit_code: i32,
    #[serde(deserialize_with = "or_default")]
    reason: String,
    #[serde(deserialize_with = "or_default")]
    message: String,
}

fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// The pods that are there, and which of their ends were told.
#[derive(Debug)]
pub(super) struct Known {
    container: String,
    pods: HashMap<String, Seen>,
}

#[derive(Debug)]
struct Seen {
    name: String,
    /// The last end that was told: one container comes after the other.
    told: Option<String>,
    /// The worker's container has ended, and none has come after it.
    has_ended: bool,
}

/// An end, and the uid of its pod.
pub(super) type End = (String, PodEnd);

impl Known {
    /// None yet. In pods of several containers the worker is in the one of this name.
    pub(super) fn new(container: &str) -> Self {
        Self { container: container.to_owned(), pods: HashMap::new() }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.pods.len()
    }

    /// All pods that there are now. Who was there and is not any more was deleted.
    pub(super) fn listed(&mut self, pods: Vec<Pod>) -> Vec<End> {
        let here: HashSet<&str> = pods.iter().filter_map(|pod| pod.metadata.uid.as_deref()).collect();
        let gone: Vec<String> = self.pods.keys().filter(|uid| !here.contains(uid.as_str())).cloned().collect();
        let mut ends: Vec<End> = gone.iter().filter_map(|uid| self.gone(uid)).collect();
        ends.extend(pods.iter().filter_map(|pod| self.saw(pod)));
        ends
    }

    /// A pod is there, or has changed. How the containers before the first one that was seen ended is not told: nobody waits
    /// for that.
    pub(super) fn saw(&mut self, pod: &Pod) -> Option<End> {
        let (uid, name) = (pod.metadata.uid.as_ref()?, pod.metadata.name.as_ref()?);
        let is_new = !self.pods.contains_key(uid);
        let new = || Seen { name: name.clone(), told: None, has_ended: false };
        let seen = self.pods.entry(uid.clone()).or_insert_with(new);
        let found = ended(pod, name, &self.container);
        seen.has_ended = found.as_ref().is_some_and(|ended| !ended.is_past);
        let Ended { id, is_past, end } = found?;
        let is_news = seen.told.as_ref() != Some(&id) && !(is_new && is_past);
        seen.told = Some(id);
        is_news.then(|| (uid.clone(), end))
    }

    /// A pod was deleted, and is not there any more.
    pub(super) fn deleted(&mut self, pod: &Pod) -> Vec<End> {
        // Its last state may say more than that it is gone.
        let last = self.saw(pod);
        let gone = pod.metadata.uid.as_ref().and_then(|uid| self.gone(uid));
        last.into_iter().chain(gone).collect()
    }

    fn gone(&mut self, uid: &str) -> Option<End> {
        let seen = self.pods.remove(uid)?;
        if seen.has_ended {
            return None;
        }
        let end = PodEnd { pod: seen.name, reason: "Deleted".to_owned(), exit_code: None, message: None };
        Some((uid.to_owned(), end))
    }
}

/// How the worker's last container ended.
struct Ended {
    /// What tells this end from others of the pod.
    id: String,
    /// Another container has come since.
    is_past: bool,
    end: PodEnd,
}

/// None if no container of the worker has ended. Being deleted is no end: the worker drains.
fn ended(pod: &Pod, name: &str, container: &str) -> Option<Ended> {
    let status = pod.status.as_ref()?;
    let is_evicted = status.reason == "Evicted";
    let is_deleted = pod.metadata.deletion_timestamp.is_some();
    let named = |reason: &str, exit_code: Option<i32>, message: &str| {
        let reason = match reason {
            "OOMKilled" => "OOMKilled",
            _ if is_evicted => "Evicted",
            // At the end of its time, or by itself: what a pod that is deleted does.
            _ if is_deleted && matches!(exit_code, None | Some(0 | 137 | 143)) => "Deleted",
            "" => "Error",
            other => other,
        };
        let message = if message.is_empty() { status.message.as_str() } else { message };
        let message = Some(line(message)).filter(|message| !message.is_empty());
        PodEnd { pod: name.to_owned(), reason: line(reason), exit_code, message }
    };
    let statuses = &status.container_statuses;
    let ours = match statuses.as_slice() {
        [only] => Some(only),
        several => several.iter().find(|one| one.name == container),
    };
    match ours {
        Some(ours) => {
            let (now, past) = (ours.state.terminated.as_ref(), ours.last_state.terminated.as_ref());
            let t = now.or(past)?;
            let ends = ours.restart_count + u32::from(now.is_some());
            let id = if t.container_id.is_empty() { format!("end {ends}") } else { t.container_id.clone() };
            Some(Ended { id, is_past: now.is_none(), end: named(&t.reason, Some(t.exit_code), &t.message) })
        }
        // A kubelet that never saw the containers, or has forgotten them.
        None if statuses.is_empty() && matches!(status.phase.as_str(), "Failed" | "Succeeded") => {
            let end = named(&status.reason, None, "");
            Some(Ended { id: status.phase.clone(), is_past: false, end })
        }
        None => None,
    }
}

/// A text in one line, cut.
fn line(text: &str) -> String {
    cut(text.split_whitespace().collect::<Vec<_>>().join(" "), POD_MESSAGE_MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A pod as an API server shows it, with more than is looked at.
    fn pod(uid: &str, status: Value) -> Pod {
        let value = json!({ "apiVersion": "v1", "kind": "Pod", "status": status,
            "metadata": { "name": format!("pool-{uid}"), "namespace": "fleet", "uid": uid, "resourceVersion": "7" },
            "spec": { "containers": [{ "name": "worker", "image": "stepfleet" }], "nodeName": "n1" } });
        serde_json::from_value(value).expect("a pod")
    }

    fn running() -> Value {
        json!({ "name": "worker", "ready": true, "restartCount": 0, "lastState": {}, "image": "stepfleet",
            "imageID": "x", "started": true, "state": { "running": { "startedAt": "2026-01-01T00:00:00Z" } } })
    }

    fn terminated(id: &str, reason: &str, code: i32) -> Value {
        json!({ "terminated": { "containerID": id, "exitCode": code, "reason": reason,
            "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:01:00Z" } })
    }

    fn with(state: Value, last: Value) -> Value {
        let mut container = running();
        (container["state"], container["lastState"]) = (state, last);
        json!({ "phase": "Running", "containerStatuses": [container] })
    }

    fn said(ends: impl IntoIterator<Item = End>) -> Vec<String> {
        ends.into_iter().map(|(uid, end)| format!("{uid} {end}")).collect()
    }

    #[test]
    fn each_end_of_a_container_is_told_once_whether_it_is_seen_before_its_successor_or_after() {
        let mut known = Known::new("worker");
        assert!(
            known.listed(vec![pod("a", json!({ "phase": "Running", "containerStatuses": [running()] }))]).is_empty()
        );
        let oom = pod("a", with(terminated("c1", "OOMKilled", 137), json!({})));
        assert_eq!(said(known.saw(&oom)), ["a its pod `pool-a`: OOMKilled, exit code 137"]);
        assert!(known.saw(&oom).is_none());
        let ended = Known::new("worker").listed(vec![oom]);
        assert_eq!(said(ended), ["a its pod `pool-a`: OOMKilled, exit code 137"], "it has ended, whenever that was");
        let waiting = json!({ "waiting": { "reason": "CrashLoopBackOff" } });
        assert!(known.saw(&pod("a", with(waiting, terminated("c1", "OOMKilled", 137)))).is_none());
        let again = pod("a", with(running()["state"].clone(), terminated("c2", "Error", 1)));
        assert_eq!(said(known.saw(&again)), ["a its pod `pool-a`: Error, exit code 1"]);
        assert!(known.listed(vec![again.clone()]).is_empty(), "a list tells nothing twice");
        assert!(Known::new("worker").listed(vec![again]).is_empty(), "the worker that runs is another one");
        assert!(
            known.deleted(&pod("a", with(terminated("c3", "Error", 2), json!({})))).len() == 1,
            "its end, and no more"
        );
    }

    #[test]
    fn a_container_that_the_kubelet_has_lost_has_no_times_and_no_id() {
        let lost = |restarts: u32| {
            let mut status = with(json!({}), json!({}));
            let ended = json!({ "terminated": { "exitCode": 137, "reason": "ContainerStatusUnknown",
                "message": "The container could not be located", "startedAt": null, "finishedAt": null } });
            status["containerStatuses"][0]["state"] = ended;
            status["containerStatuses"][0]["lastState"] = Value::Null;
            status["containerStatuses"][0]["restartCount"] = json!(restarts);
            pod("a", status)
        };
        let mut known = Known::new("worker");
        let told = "a its pod `pool-a`: ContainerStatusUnknown, exit code 137 (The container could not be located)";
        assert_eq!(said(known.listed(vec![lost(0)])), [told]);
        assert!(known.saw(&lost(0)).is_none());
        assert_eq!(said(known.saw(&lost(1))), [told], "and the next one too");
        let empty = json!({ "phase": null, "reason": null, "message": null, "containerStatuses": null });
        assert!(known.saw(&pod("b", empty)).is_none());
    }

    #[test]
    fn an_evicted_pod_says_so_with_or_without_its_containers() {
        let mut known = Known::new("worker");
        let message = "The node was low on\nresource: memory.";
        let bare = json!({ "phase": "Failed", "reason": "Evicted", "message": message });
        let told = "its pod `pool-a`: Evicted (The node was low on resource: memory.)";
        assert_eq!(said(known.saw(&pod("a", bare))), [format!("a {told}")]);
        let mut full = with(terminated("c1", "Error", 137), json!({}));
        (full["reason"], full["message"]) = (json!("Evicted"), json!(message));
        let told = "its pod `pool-b`: Evicted, exit code 137 (The node was low on resource: memory.)";
        assert_eq!(said(known.saw(&pod("b", full))), [format!("b {told}")]);
    }

    #[test]
    fn a_pod_that_is_not_ready_or_still_drains_has_not_ended_and_one_that_is_gone_has() {
        let mut known = Known::new("worker");
        let mut unready = running();
        unready["ready"] = json!(false);
        let mut drains = pod("a", json!({ "phase": "Running", "containerStatuses": [unready] }));
        let at = json!("2026-01-01T00:00:00Z");
        drains.metadata.deletion_timestamp = serde_json::from_value(at).expect("a time");
        assert!(known.saw(&drains).is_none());
        assert_eq!(said(known.deleted(&drains)), ["a its pod `pool-a`: Deleted"]);
        assert!(known.deleted(&drains).len() <= 1 && known.len() == 0);
        let lives = || pod("b", json!({ "phase": "Running", "containerStatuses": [running()] }));
        known.listed(vec![lives(), pod("c", json!({ "phase": "Pending" }))]);
        assert_eq!(said(known.listed(vec![lives()])), ["c its pod `pool-c`: Deleted"], "it went while nobody watched");
    }

    #[test]
    fn the_end_of_a_container_beside_the_worker_is_none() {
        let mut known = Known::new("worker");
        let mut beside = running();
        (beside["name"], beside["state"]) = (json!("proxy"), terminated("c9", "OOMKilled", 137));
        let both = json!({ "phase": "Running", "containerStatuses": [beside, running()] });
        assert!(known.saw(&pod("a", both)).is_none());
    }
}
