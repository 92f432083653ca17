//! A Redis user for each program, as `deploy/redis/users.acl` has them: what the programs need they may do, and what they do not
//! need is refused by the server.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use axum::{Router, routing::post};
use redis::{Value as Reply, aio::MultiplexedConnection};
use serde_json::json;
use stepfleet_protocol::{
    id::{PartitionId, RunId},
    keys::{GROUP, Keys, PartitionKeys},
    name::Name,
    state::State,
};
use stepfleet_tests::{
    Fsync, Server, ServerOptions, binary,
    lab::{Fleet, users},
    wait,
};

use crate::{breakers, commands, failures, flows, limits};

const SOON: Duration = Duration::from_secs(30);
/// A user that may do all that a worker may, but for one queue only.
const OF_ONE_QUEUE: &str = "worker-money";

/// As the lab's, but without users of its own.
fn durable() -> ServerOptions {
    ServerOptions::new().append_only(Fsync::No)
}

/// A server on which nobody may do anything without being one of the users.
async fn server(options: ServerOptions) -> anyhow::Result<Server> {
    let worker = users::all()?.into_iter().find(|user| user.name == "worker").expect("there is a worker");
    let rules = worker.rules.replace("}:jobs:*", "}:jobs:money");
    assert_ne!(rules, worker.rules);
    users::add(options)?.user(OF_ONE_QUEUE, users::PASSWORD, &rules).default_user_off().start().await
}

async fn fleet(server: &Server, workers: usize) -> anyhow::Result<Fleet> {
    let mut fleet = Fleet::at(&server.url(), 2).with_users();
    if let Some(file) = server.ca_file() {
        fleet = fleet.option("--redis-ca-file", file);
    }
    fleet.add_coordinator().await?;
    for _ in 0..workers {
        fleet.add_worker(&[])?;
    }
    Ok(fleet)
}

/// What the server refused to whom, as its own list has it.
async fn refusals(server: &Server) -> anyhow::Result<BTreeSet<String>> {
    let mut harness = server.connection().await?;
    let log: Vec<HashMap<String, Reply>> = redis::cmd("ACL").arg("LOG").arg(128).query_async(&mut harness).await?;
    let word = |entry: &HashMap<String, Reply>, field: &str| match entry.get(field) {
        Some(Reply::BulkString(text)) => String::from_utf8_lossy(text).into_owned(),
        other => format!("{other:?}"),
    };
    let one = |entry| format!("{} {} {}", word(entry, "username"), word(entry, "reason"), word(entry, "object"));
    // The look at the settings at a program's start is one that may be refused: INFO has what it must know.
    Ok(log.iter().map(one).filter(|text| !text.ends_with(" command config|get")).collect())
}

/// A step that asks another system in two phases, with its record.
async fn a_call_in_two_phases_is_on_record(fleet: &Fleet) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/pay", listener.local_addr().unwrap());
    let router = Router::new().route("/pay", post(async || "paid"));
    let bank = tokio::spawn(async move { axum::serve(listener, router).await.expect("the listener stays") });
    let definition = json!({ "workflow": "pay", "steps": { "work": { "handler": "http",
        "with": { "method": "POST", "url": url, "idempotency": "two-phase" } } } });
    let run = fleet.api().submit(&definition, json!(null)).await.unwrap();
    fleet.api().until_state(&run, "completed", SOON).await.unwrap();
    let calls = fleet.api().items(&format!("/api/v1/runs/{run}/calls")).await.unwrap();
    assert_eq!(calls.len(), 1, "{calls:#?}");
    bank.abort();
}

/// What a fleet does in its life, one after the other where it changes what holds for everybody.
async fn a_whole_life(fleet: &mut Fleet) {
    let same = &*fleet;
    tokio::join!(
        flows::a_chain_hands_its_outputs_on(same),
        flows::a_diamond_and_a_fan_join_what_their_branches_gave(same),
        flows::large_values_reach_the_steps_that_need_them(same),
        failures::a_failing_step_is_tried_again_after_its_backoff(same),
        failures::limits_of_time_end_steps_and_runs(same),
        failures::a_dead_letter_tells_everything_and_its_replay_ends_the_run(same),
        commands::a_cancel_stops_the_handler_at_once(same),
        a_call_in_two_phases_is_on_record(same),
    );
    commands::a_suspended_run_starts_nothing_until_it_is_resumed(fleet).await;
    breakers::an_operator_opens_and_closes_a_breaker_and_a_fallback_does_the_work_meanwhile(fleet).await;
    breakers::a_paused_queue_waits_for_its_operator_and_the_audit_knows_both(fleet).await;
    limits::a_rate_is_kept_and_what_waits_says_why(fleet).await;
    // A second coordinator takes its share, one worker is drained, and the doctor looks at everything.
    fleet.add_coordinator().await.unwrap();
    let workers = fleet.verb(&["workers", "list"]).await.unwrap();
    let workers: serde_json::Value = serde_json::from_str(&workers).unwrap();
    let first = workers["items"][0]["id"].as_str().unwrap_or_else(|| panic!("{workers:#}")).to_owned();
    fleet.verb(&["workers", "drain", &first, "--yes"]).await.unwrap();
    // While partitions go from one coordinator to the other they have no owner, and it says so.
    wait::until(SOON, "the doctor to find nothing", async || fleet.verb(&["doctor"]).await).await.unwrap();
    flows::a_chain_hands_its_outputs_on(fleet).await;
}

#[tokio::test]
async fn a_fleet_needs_no_more_than_its_users_may() {
    let server = server(durable()).await.unwrap();
    let mut fleet = fleet(&server, 3).await.unwrap();
    a_whole_life(&mut fleet).await;
    fleet.stop().await.unwrap();
    assert_eq!(refusals(&server).await.unwrap(), BTreeSet::new());
}

#[tokio::test]
async fn a_fleet_needs_no_more_than_its_users_may_on_redis_with_tls() {
    let server = server(durable().tls()).await.unwrap();
    let mut fleet = fleet(&server, 3).await.unwrap();
    a_whole_life(&mut fleet).await;
    fleet.stop().await.unwrap();
    assert_eq!(refusals(&server).await.unwrap(), BTreeSet::new());
}

#[tokio::test]
async fn a_worker_for_one_queue_gets_the_jobs_of_no_other() {
    let server = server(durable()).await.unwrap();
    let mut fleet = Fleet::at(&server.url(), 2).with_users().workers_as(OF_ONE_QUEUE);
    fleet.add_coordinator().await.unwrap();
    fleet.add_worker(&["--queue", "money"]).unwrap();
    let step = json!({ "handler": "exec", "queue": "money", "with": { "command": ["printf", "paid"] } });
    let definition = json!({ "workflow": "pay", "steps": { "work": step } });
    let run = fleet.api().submit(&definition, json!(null)).await.unwrap();
    fleet.api().until_state(&run, "completed", SOON).await.unwrap();
    let stream = keys(0).jobs(&Name::new("default").unwrap());
    let why = refused(&server, OF_ONE_QUEUE, &["XGROUP", "CREATE", &stream, GROUP, "0", "MKSTREAM"]).await;
    assert!(why.contains("key"), "{why}");
    // One that is told to read another queue does not get far.
    let greedy = fleet.add_worker(&["--queue", "default"]).unwrap();
    greedy.wait_for_line(|line| line.to_lowercase().contains("noperm"), SOON).await.unwrap();
}

fn keys(partition: u16) -> PartitionKeys {
    Keys::default().partition(PartitionId(partition))
}

async fn as_user(server: &Server, user: &str) -> MultiplexedConnection {
    let client = redis::Client::open(server.url_for(user, users::PASSWORD)).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

async fn asked(server: &Server, user: &str, words: &[&str]) -> redis::RedisResult<Reply> {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.query_async(&mut as_user(server, user).await).await
}

/// Why the server does not do it for the user.
async fn refused(server: &Server, user: &str, words: &[&str]) -> String {
    let Err(error) = asked(server, user, words).await else { panic!("{user} may do {words:?}") };
    let (code, text) = (error.code().unwrap_or_default().to_owned(), error.to_string());
    let in_script = text.contains("ACL failure in script") || text.contains("can't access at least one of the keys");
    assert!(code == "NOPERM" || in_script, "{user} {words:?}: {text}");
    text
}

#[tokio::test]
async fn a_worker_cannot_touch_what_is_not_its_own() {
    let server = server(durable()).await.unwrap();
    let (all, of) = (Keys::default(), keys(0));
    let run = RunId::new(PartitionId(0), 1, 1);
    let queue = Name::new("default").unwrap();
    let (jobs, record, calls) = (of.jobs(&queue), of.run(&run), of.calls(&run));
    let set = |key: String| vec!["HSET".to_owned(), key, "f".to_owned(), "v".to_owned()];
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let mut attempts = vec![
        // The state of runs, what was decided and when: neither read nor written.
        words(&["HGETALL", &record]),
        words(&["HGET", &record, "state"]),
        set(record.clone()),
        words(&["DEL", &record]),
        words(&["GET", &of.history(&run)]),
        words(&["XRANGE", &of.log(), "-", "+"]),
        words(&["XTRIM", &of.log(), "MAXLEN", "0"]),
        words(&["HGETALL", &of.head()]),
        set(of.head()),
        words(&["SET", &of.lease(), "me"]),
        words(&["GET", &of.lease()]),
        words(&["ZADD", &of.timers(), "0", "x"]),
        words(&["ZRANGE", &of.ready(&queue), "0", "-1"]),
        words(&["ZRANGE", &of.runs(State::Failed), "0", "-1"]),
        words(&["XRANGE", &of.dead(), "-", "+"]),
        words(&["XRANGE", &of.events(), "-", "+"]),
        words(&["XADD", &of.events(), "*", "f", "v"]),
        words(&["XADD", &of.audit(), "*", "f", "v"]),
        words(&["XRANGE", &of.quarantine(), "-", "+"]),
        words(&["SADD", &of.cancels(), "x"]),
        // Jobs are read through the group and by nobody else, added by nobody, and never taken off.
        words(&["XADD", &jobs, "*", "f", "v"]),
        words(&["XRANGE", &jobs, "-", "+"]),
        words(&["XACK", &jobs, GROUP, "1-1"]),
        words(&["XCLAIM", &jobs, GROUP, "me", "0", "1-1"]),
        words(&["XGROUP", "DESTROY", &jobs, GROUP]),
        words(&["DEL", &jobs]),
        words(&["DEL", &of.value("x")]),
        // What holds for the whole fleet.
        set(all.meta()),
        set(all.fleet_gates()),
        set(all.fleet_policies()),
        words(&["HGETALL", &all.fleet_policies()]),
        words(&["XADD", &all.fleet_audit(), "*", "f", "v"]),
        words(&["XRANGE", &all.fleet_audit(), "-", "+"]),
        words(&["HGETALL", &all.fleet_intents()]),
        set(all.campaign("x")),
        set(all.workflow(&queue)),
        words(&["HGETALL", &all.workflow(&queue)]),
        words(&["SMEMBERS", &all.workflows()]),
        set(all.queues()),
        words(&["GET", &all.idempotency("run", "x")]),
        words(&["ZRANGE", &all.coordinators(), "0", "-1"]),
        words(&["SET", &all.coordinator("c"), "x"]),
        words(&["ZRANGE", &all.workers(), "0", "-1"]),
        words(&["HGETALL", &all.worker("other")]),
        // Nobody is told anything in another's name.
        words(&["SPUBLISH", &of.control(), "x"]),
        words(&["SPUBLISH", &of.replies(), "x"]),
        words(&["SSUBSCRIBE", &of.replies()]),
        words(&["SUBSCRIBE", "any"]),
        // Keys of others on the same server, and the server itself.
        words(&["SET", "else", "x"]),
        words(&["GET", "else"]),
        words(&["SCAN", "0"]),
        words(&["KEYS", "*"]),
        words(&["FLUSHALL"]),
        words(&["CONFIG", "GET", "*"]),
        words(&["CONFIG", "SET", "maxmemory", "1"]),
        words(&["ACL", "LIST"]),
        words(&["CLIENT", "LIST"]),
        words(&["CLIENT", "KILL", "TYPE", "normal"]),
        words(&["CLIENT", "TRACKING", "ON", "BCAST"]),
        words(&["MONITOR"]),
        words(&["DEBUG", "SLEEP", "0"]),
        words(&["SCRIPT", "FLUSH"]),
        words(&["SHUTDOWN", "NOSAVE"]),
    ];
    // A script may do no more than its caller, whatever it says its keys are.
    for script in
        ["redis.call('HGETALL', ARGV[1])", "redis.call('HSET', ARGV[1], 'f', 'v')", "redis.call('DEL', ARGV[1])"]
    {
        attempts.push(words(&["EVAL", script, "1", &calls, &record]));
    }
    attempts.push(words(&["EVAL", "return 1", "1", &record]));
    for words in &attempts {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        refused(&server, "worker", &words).await;
    }
    // And what it needs it may do.
    for good in [
        vec!["XADD", &of.log(), "*", "f", "v"],
        vec!["XGROUP", "CREATE", &jobs, GROUP, "0", "MKSTREAM"],
        vec!["EXISTS", &record],
        vec!["EVAL", "return redis.call('EXISTS', ARGV[1])", "1", &calls, &record],
        vec!["SET", &of.value("x"), "v"],
        vec!["HGET", &all.meta(), "partitions"],
    ] {
        asked(&server, "worker", &good).await.unwrap_or_else(|error| panic!("{good:?}: {error}"));
    }
}

#[tokio::test]
async fn keda_sees_the_length_of_queues_and_a_viewer_changes_nothing() {
    let server = server(durable()).await.unwrap();
    let (all, of) = (Keys::default(), keys(0));
    let jobs = of.jobs(&Name::new("default").unwrap());
    asked(&server, "coordinator", &["XGROUP", "CREATE", &jobs, GROUP, "0", "MKSTREAM"]).await.unwrap();
    for user in ["keda", "viewer"] {
        for good in [
            vec!["PING"],
            vec!["INFO", "server"],
            vec!["XLEN", &jobs],
            vec!["XPENDING", &jobs, GROUP],
            vec!["XINFO", "GROUPS", &jobs],
        ] {
            asked(&server, user, &good).await.unwrap_or_else(|error| panic!("{user} {good:?}: {error}"));
        }
        for bad in [
            vec!["XADD", &jobs, "*", "f", "v"],
            vec!["XREADGROUP", "GROUP", GROUP, "me", "STREAMS", &jobs, ">"],
            vec!["DEL", &jobs],
            vec!["SET", &of.lease(), "me"],
            vec!["SPUBLISH", &of.control(), "x"],
            vec!["EVAL", "return 1", "0"],
            vec!["KEYS", "*"],
            vec!["FLUSHALL"],
            vec!["CONFIG", "GET", "requirepass"],
            vec!["GET", "else"],
        ] {
            refused(&server, user, &bad).await;
        }
    }
    refused(&server, "keda", &["XRANGE", &jobs, "-", "+"]).await;
    refused(&server, "keda", &["HGETALL", &all.meta()]).await;
    asked(&server, "viewer", &["HGETALL", &all.meta()]).await.unwrap();
    // Coordinators rule over their keys, not over the server and other keys on it.
    for bad in
        [vec!["SET", "else", "x"], vec!["FLUSHALL"], vec!["CONFIG", "GET", "*"], vec!["ACL", "LIST"], vec!["KEYS", "*"]]
    {
        refused(&server, "coordinator", &bad).await;
    }
}

#[tokio::test]
async fn the_file_is_one_that_servers_load_as_it_is() {
    let text = users::text().unwrap();
    for options in [ServerOptions::new(), ServerOptions::new().tls()] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users.acl");
        // Only who tests comes in; the programs' users have no password yet, so that nobody is one of them.
        let open = text
            .replace("user default off resetpass resetkeys resetchannels -@all", "user default on nopass ~* &* +@all");
        assert_ne!(open, text);
        std::fs::write(&path, open).unwrap();
        let server = options.setting("aclfile", path.to_str().unwrap()).start().await.unwrap();
        let mut harness = server.connection().await.unwrap();
        let names: BTreeSet<String> = redis::cmd("ACL").arg("USERS").query_async(&mut harness).await.unwrap();
        let expected = ["coordinator", "default", "keda", "viewer", "worker"].map(str::to_owned);
        assert_eq!(names, expected.into());
        let login = redis::cmd("AUTH").arg("worker").arg("").query_async::<Reply>(&mut harness).await;
        assert_eq!(login.expect_err("no password").code(), Some("WRONGPASS"));
    }
}

/// A command that somebody adds to a program and forgets to allow is found here, and not by a user.
#[test]
fn every_command_of_the_source_is_allowed_to_its_program() {
    let connection = ["PING", "CLIENT", "WAIT", "WAITAOF", "SELECT", "READONLY"];
    for (user, folder) in [("coordinator", "coordinator/src"), ("worker", "worker/src")] {
        let rules = users::all().unwrap().into_iter().find(|found| found.name == user).unwrap().rules;
        let allowed: BTreeSet<String> = rules
            .split([' ', '(', ')'])
            .filter_map(|word| word.strip_prefix('+'))
            .map(|word| word.split('|').next().unwrap_or_default().to_uppercase())
            .collect();
        let mut source = String::new();
        collect(&binary::root().join(folder), &mut source);
        let built = commands_of(&source);
        assert!(built.len() >= 15, "{built:?}");
        let missing: Vec<&String> =
            built.iter().filter(|c| !allowed.contains(*c) && !connection.contains(&c.as_str())).collect();
        assert!(missing.is_empty(), "deploy/redis/users.acl does not allow {missing:?} to `{user}`");
        let is_named = |c: &str| source.contains(&format!("\"{c}\"")) || source.contains(&format!("'{c}'"));
        let is_used = |c: &str| c.starts_with('@') || SPOKEN_BY_LIBRARIES.contains(&c) || is_named(c);
        let unused: Vec<&String> = allowed.iter().filter(|c| !is_used(c)).collect();
        assert!(unused.is_empty(), "deploy/redis/users.acl allows {unused:?} to `{user}`, which it does not use");
    }
}

/// What the way to Redis and its library say for the programs.
const SPOKEN_BY_LIBRARIES: [&str; 5] = ["INFO", "UNWATCH", "CLUSTER", "SSUBSCRIBE", "SUNSUBSCRIBE"];

/// The text of the files of a folder, but for tests and the store in memory, which is no server.
fn collect(folder: &std::path::Path, source: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "memory" {
            collect(&path, source);
        } else if !name.ends_with("tests.rs") && (name.ends_with(".rs") || name.ends_with(".lua")) {
            let text = std::fs::read_to_string(&path).unwrap();
            *source += text.split("#[cfg(test)]").next().unwrap_or_default();
        }
    }
}

/// The commands that a source builds.
fn commands_of(source: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for opening in ["cmd(\"", "redis.call('", "redis.pcall('"] {
        for (at, _) in source.match_indices(opening) {
            let word: String = source[at + opening.len()..].chars().take_while(char::is_ascii_uppercase).collect();
            found.extend((!word.is_empty()).then_some(word));
        }
    }
    found
}
