//! The harness keeps its own promises, on real servers.

use std::time::Duration;

use redis::AsyncCommands;
use stepfleet_tests::cluster::{ClusterOptions, SLOTS};
use stepfleet_tests::{Cluster, Fsync, Program, Sentinel, Server, Signal, sentinel, wait};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn what_was_answered_survives_kill_9_with_the_append_only_file() -> anyhow::Result<()> {
    let mut server = Server::options().append_only(Fsync::Always).start().await?;
    let (url, pid) = (server.url(), server.pid());
    let _: () = server.connection().await?.set("kept", 7).await?;
    server.kill_9()?;
    assert!(server.connection().await.is_err(), "a killed server does not answer");
    server.restart().await?;
    assert_eq!(server.url(), url, "the address stays");
    assert_ne!(server.pid(), pid, "the process is a new one");
    assert_eq!(server.connection().await?.get::<_, Option<u32>>("kept").await?, Some(7));
    server.stop().await?;
    assert!(server.stop().await.is_err(), "a stopped server cannot be stopped again");
    Ok(())
}

#[tokio::test]
async fn without_the_append_only_file_a_restart_forgets() -> anyhow::Result<()> {
    let mut server = Server::start().await?;
    let _: () = server.connection().await?.set("lost", 7).await?;
    server.restart().await?;
    assert_eq!(server.connection().await?.get::<_, Option<u32>>("lost").await?, None);
    Ok(())
}

#[tokio::test]
async fn a_paused_server_is_silent_until_it_is_resumed() -> anyhow::Result<()> {
    let mut server = Server::start().await?;
    let mut connection = server.connection().await?;
    server.pause()?;
    let ping = redis::cmd("PING");
    let mut answer = tokio::spawn(async move { ping.query_async::<String>(&mut connection).await });
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut answer).await.is_err());
    server.resume()?;
    assert_eq!(answer.await??, "PONG");
    Ok(())
}

#[tokio::test]
async fn a_full_server_refuses_writes() -> anyhow::Result<()> {
    let server = Server::options().maxmemory(1).start().await?;
    let refused = server.connection().await?.set::<_, _, ()>("key", "value").await.expect_err("it is full");
    assert_eq!(refused.code(), Some("OOM"), "{refused}");
    Ok(())
}

#[tokio::test]
async fn a_cluster_of_three_answers_on_every_slot() -> anyhow::Result<()> {
    let cluster = Cluster::start(3).await?;
    let mut keys = vec![None; usize::from(SLOTS)];
    let mut missing = keys.len();
    for number in 0u32.. {
        let key = number.to_string();
        let slot = slot(key.as_bytes());
        missing -= usize::from(keys[slot].replace(key).is_none());
        if missing == 0 {
            break;
        }
    }
    for (place, node) in cluster.nodes().iter().enumerate() {
        let mut reads = redis::pipe();
        for slot in cluster.slots_of(place) {
            assert_eq!(cluster.primary_of(slot), place);
            reads.get(keys[usize::from(slot)].as_ref().expect("every slot has a key"));
        }
        // A node that does not serve a slot answers MOVED, which fails the pipeline.
        let values: Vec<Option<u32>> = reads.query_async(&mut node.connection().await?).await?;
        assert_eq!(values.len(), cluster.slots_of(place).len());
    }
    let mut whole = cluster.client()?.get_async_connection().await?;
    for key in 0..500 {
        let _: () = whole.set(format!("key {key}"), key).await?;
        assert_eq!(whole.get::<_, u32>(format!("key {key}")).await?, key);
    }
    Ok(())
}

/// CRC16 (XMODEM) of a key without a tag, as the Cluster specification has it.
fn slot(key: &[u8]) -> usize {
    let mut crc = 0u16;
    for byte in key {
        crc ^= u16::from(*byte) << 8;
        for _ in 0..8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
        }
    }
    usize::from(crc % SLOTS)
}

#[tokio::test]
async fn a_replica_of_a_cluster_takes_over_and_the_old_primary_comes_back() -> anyhow::Result<()> {
    let options =
        ClusterOptions { replicas_each: 1, node_timeout: Duration::from_secs(1), ..ClusterOptions::default() };
    let mut cluster = Cluster::launch(options).await?;
    let role = async |cluster: &Cluster, place: usize| -> anyhow::Result<bool> {
        let mut connection = cluster.nodes()[place].connection().await?;
        let info: String = redis::cmd("INFO").arg("replication").query_async(&mut connection).await?;
        Ok(info.contains("role:master"))
    };
    assert!(role(&cluster, 0).await? && !role(&cluster, 3).await?);
    cluster.node_mut(0).kill_9()?;
    wait::until(SOON, "the replica to be primary", async || {
        anyhow::ensure!(role(&cluster, 3).await?, "it still follows");
        Ok(())
    })
    .await?;
    cluster.node_mut(0).restart().await?;
    cluster.wait_until_ok(SOON).await
}

#[tokio::test]
async fn sentinels_fail_over_and_the_old_primary_comes_back_as_replica() -> anyhow::Result<()> {
    let mut fleet = Sentinel::start(3).await?;
    let old = fleet.primary().await?;
    let mut connection = fleet.servers()[old].connection().await?;
    let _: () = connection.set("kept", 7).await?;
    // WAIT is about the writes of its own connection. With the replica's acknowledgement the fail-over cannot lose the key.
    let replicas: u32 = redis::cmd("WAIT").arg(1).arg(10_000).query_async(&mut connection).await?;
    assert_eq!(replicas, 1);
    let new = fleet.fail_over().await?;
    assert_ne!(new, old);
    assert_eq!(fleet.servers()[new].connection().await?.get::<_, u32>("kept").await?, 7);

    let mut client = redis::sentinel::SentinelClient::build(
        fleet.urls(),
        sentinel::NAME,
        None,
        redis::sentinel::SentinelServerType::Master,
    )?;
    let _: () = client.get_async_connection().await?.set("kept", 8).await?;

    fleet.server_mut(old).restart().await?;
    wait::until(SOON, "the old primary to follow", async || {
        let mut connection = fleet.servers()[old].connection().await?;
        let info: String = redis::cmd("INFO").arg("replication").query_async(&mut connection).await?;
        anyhow::ensure!(info.contains("master_link_status:up"), "it says\n{info}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn tls_and_users_work_together() -> anyhow::Result<()> {
    let server = Server::options()
        .tls()
        .default_user_off()
        .user("fleet", "secret", "~sf:* &sf:* +@all -@dangerous")
        .start()
        .await?;
    assert!(server.url().starts_with("rediss://"));
    let client = server.client_for("fleet", "secret")?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    let _: () = connection.set("sf:mine", 1).await?;
    let foreign = connection.set::<_, _, ()>("other", 1).await.expect_err("not its key");
    assert_eq!(foreign.code(), Some("NOPERM"), "{foreign}");
    assert!(server.client_for("fleet", "wrong")?.get_multiplexed_async_connection().await.is_err());
    let stranger = redis::Client::open(server.url_for("fleet", "secret"))?;
    assert!(stranger.get_multiplexed_async_connection().await.is_err(), "an unknown authority is not trusted");
    Ok(())
}

#[tokio::test]
async fn a_program_is_watched_signalled_and_ended() -> anyhow::Result<()> {
    let script = "trap 'echo bye >&2; exit 3' TERM; echo ready; while :; do read -t 1 line <&3; done 3<>fifo";
    let folder = tempfile::tempdir()?;
    let made = Program::at("mkfifo", ["fifo"]).folder(folder.path()).start()?.wait(SOON).await?;
    assert!(made.success());
    let mut program = Program::at("bash", ["-c", script]).folder(folder.path()).env("NAME", "value").start()?;
    assert_eq!(program.wait_for_line(|line| line == "ready", SOON).await?, "ready");
    assert!(program.is_running()?);
    program.signal(Signal::SIGTERM)?;
    assert_eq!(program.wait_for_line(|line| line == "bye", SOON).await?, "bye");
    assert_eq!(program.wait(SOON).await?.code(), Some(3));
    let error = program.wait_for_line(|line| line == "never", SOON).await.expect_err("it has ended");
    assert!(format!("{error:#}").contains("ready"), "the error shows what was written: {error:#}");
    Ok(())
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn what_a_dropped_program_started_ends_with_it() -> anyhow::Result<()> {
    let mut program = Program::at("bash", ["-c", "sleep 1000 & echo $!; wait"]).start()?;
    let child = program.wait_for_line(|_| true, SOON).await?;
    drop(program);
    wait_until_gone(&child).await
}

/// Waits until no process has the id, or only one that waits to be reaped, which has no command line.
#[cfg(target_os = "linux")]
async fn wait_until_gone(pid: &str) -> anyhow::Result<()> {
    let command_line = format!("/proc/{pid}/cmdline");
    wait::until(SOON, "a process to be gone", async || {
        let gone = std::fs::read(&command_line).map_or(true, |line| line.is_empty());
        anyhow::ensure!(gone, "it still runs");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn settings_of_the_caller_are_not_passed_on_to_a_program() -> anyhow::Result<()> {
    let mut program = Program::at("env", Vec::<String>::new()).env("STEPFLEET_GIVEN", "1").start()?;
    assert!(program.wait(SOON).await?.success());
    let passed: Vec<String> =
        program.stdout().lines().filter(|l| l.starts_with("STEPFLEET_")).map(String::from).collect();
    assert_eq!(passed, ["STEPFLEET_GIVEN=1"]);
    Ok(())
}

#[tokio::test]
async fn waiting_in_vain_says_for_what_and_what_was_seen() {
    let error =
        wait::until(Duration::from_millis(30), "rain", async || anyhow::bail!("only sun") as anyhow::Result<()>)
            .await
            .expect_err("it never rains");
    assert_eq!(format!("{error:#}"), "waited 30ms in vain for rain: only sun");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_kernel_ends_the_children_of_a_killed_test() -> anyhow::Result<()> {
    if std::env::var_os("HARNESS_VICTIM").is_some() {
        let server = Server::start().await?;
        println!("\nserver {}", server.pid().expect("it runs"));
        return std::future::pending().await;
    }
    let this = std::env::current_exe()?;
    let args = ["--exact", "--nocapture", "the_kernel_ends_the_children_of_a_killed_test"];
    // Nobody removes the folder of the victim's server; so it is put in one that is removed here.
    let folder = tempfile::tempdir()?;
    let victim = Program::at(this, args).env("HARNESS_VICTIM", "1").env("TMPDIR", folder.path());
    let mut victim = victim.start()?;
    let line = victim.wait_for_line(|line| line.starts_with("server "), SOON).await?;
    let pid = line.trim_start_matches("server ");
    assert!(std::path::Path::new("/proc").join(pid).exists());
    victim.kill_9()?;
    wait_until_gone(pid).await
}
