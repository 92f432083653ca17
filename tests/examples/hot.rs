//! First figure of the hot path: coordinator and worker as processes, against the bare floor.
#![allow(missing_docs, clippy::unwrap_used)]
use std::{
    process::{Child, Command as Proc},
    time::{Duration, Instant},
};
use stepfleet_connect::{Redis, Settings};
use stepfleet_coordinator::shell::{cache::store_plan, fleet, metrics::Metrics, retention::Retention};
use stepfleet_protocol::{codec, id::*, keys::*, message::*, name::Name, workflow::Workflow};
use stepfleet_worker::{Attempt, Worker};

fn plan(n: usize) -> Workflow {
    let steps: serde_json::Map<String, serde_json::Value> = (0..n)
        .map(|i| {
            let needs: Vec<String> = if i == 0 { vec![] } else { vec![format!("s{}", i - 1)] };
            (format!("s{i}"), serde_json::json!({"handler": "noop", "needs": needs}))
        })
        .collect();
    serde_json::from_value(serde_json::json!({"workflow": format!("chain{n}"), "steps": steps})).unwrap()
}

async fn con(url: &str) -> redis::aio::MultiplexedConnection {
    let info = redis::IntoConnectionInfo::into_connection_info(url).unwrap();
    let info = info.set_tcp_settings(redis::io::tcp::TcpSettings::default().set_nodelay(true));
    let cfg = redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(60)));
    redis::Client::open(info).unwrap().get_multiplexed_async_connection_with_config(&cfg).await.unwrap()
}

fn cpu(pid: u32) -> f64 {
    let s = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let f: Vec<&str> = s[s.rfind(')').unwrap() + 2..].split(' ').collect();
    (f[11].parse::<f64>().unwrap() + f[12].parse::<f64>().unwrap()) / 100.0
}

async fn floor(url: &str, n: usize) -> f64 {
    let mut ad = con(url).await;
    let _: () = redis::cmd("FLUSHALL").query_async(&mut ad).await.unwrap();
    for s in ["jobs", "res"] {
        let _: redis::Value = redis::cmd("XGROUP")
            .arg("CREATE")
            .arg(s)
            .arg("g")
            .arg("0")
            .arg("MKSTREAM")
            .query_async(&mut ad)
            .await
            .unwrap();
    }
    let pay = [b'x'; 100];
    let t = Instant::now();
    let u = url.to_string();
    let prod = tokio::spawn(async move {
        let mut c = con(&u).await;
        for _ in 0..n / 100 {
            let mut p = redis::pipe();
            for _ in 0..100 {
                p.cmd("XADD").arg("jobs").arg("*").arg("d").arg(&pay[..]).ignore();
            }
            let _: () = p.query_async(&mut c).await.unwrap();
        }
    });
    let rd = |s: &'static str, me: &'static str| {
        let mut c = redis::cmd("XREADGROUP");
        c.arg("GROUP").arg("g").arg(me).arg("COUNT").arg(100).arg("BLOCK").arg(1000).arg("STREAMS").arg(s).arg(">");
        c
    };
    let u = url.to_string();
    let work = tokio::spawn(async move {
        let mut c = con(&u).await;
        let mut done = 0;
        while done < n {
            let r: redis::streams::StreamReadReply = match rd("jobs", "w").query_async(&mut c).await {
                Ok(r) => r,
                Err(_) => continue,
            };
            let ids: Vec<String> = r.keys.into_iter().flat_map(|k| k.ids).map(|e| e.id).collect();
            let mut p = redis::pipe();
            for id in &ids {
                p.cmd("XADD").arg("res").arg("*").arg("id").arg(id).arg("d").arg(&pay[..]).ignore();
            }
            let mut a = redis::cmd("XACK");
            a.arg("jobs").arg("g");
            for i in &ids {
                a.arg(i);
            }
            p.add_command(a).ignore();
            if let Some(l) = ids.last() {
                p.cmd("XTRIM").arg("jobs").arg("MINID").arg("~").arg(l).ignore();
            }
            let _: () = p.query_async(&mut c).await.unwrap();
            done += ids.len();
        }
    });
    let mut c = con(url).await;
    let mut done = 0;
    while done < n {
        let r: redis::streams::StreamReadReply = match rd("res", "c").query_async(&mut c).await {
            Ok(r) => r,
            Err(_) => continue,
        };
        let ids: Vec<String> = r.keys.into_iter().flat_map(|k| k.ids).map(|e| e.id).collect();
        let mut p = redis::pipe();
        let mut a = redis::cmd("XACK");
        a.arg("res").arg("g");
        for i in &ids {
            a.arg(i);
        }
        p.add_command(a).ignore();
        if let Some(l) = ids.last() {
            p.cmd("XTRIM").arg("res").arg("MINID").arg("~").arg(l).ignore();
        }
        let _: () = p.query_async(&mut c).await.unwrap();
        done += ids.len();
    }
    prod.await.unwrap();
    work.await.unwrap();
    n as f64 / t.elapsed().as_secs_f64()
}

fn child(mode: &str, url: &str) -> Child {
    Proc::new(std::env::current_exe().unwrap()).arg(mode).arg(url).spawn().unwrap()
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let a: Vec<String> = std::env::args().collect();
    let (mode, url) = (a[1].as_str(), a[2].clone());
    match mode {
        "coordinator" => {
            let redis = Redis::connect(Settings::parse(&url).unwrap()).await.unwrap();
            let config = fleet::Config {
                name: "c1".into(),
                keys: Keys::default(),
                partitions: 1,
                retention: Retention::default(),
            };
            fleet::run(redis, config, Metrics::new(), tokio_util::sync::CancellationToken::new()).await;
        }
        "worker" => {
            let conc = std::env::var("CONC").ok().and_then(|c| c.parse().ok()).unwrap_or(256);
            Worker::builder()
                .redis(&url)
                .name("w")
                .queue("default")
                .concurrency(conc)
                .handler("noop", |_: Attempt, (): ()| async { Ok::<(), stepfleet_worker::Failure>(()) })
                .build()
                .unwrap()
                .run()
                .await
                .unwrap();
        }
        _ => drive(&url, &a).await,
    }
}

async fn drive(url: &str, a: &[String]) {
    let n: usize = a[3].parse().unwrap();
    let fl = floor(url, 200_000).await;
    println!("floor {fl:.0} jobs/s");
    let mut c = con(url).await;
    for (runs, len) in [(n, 1usize), (n / 5, 10)] {
        let _: () = redis::cmd("FLUSHALL").query_async(&mut c).await.unwrap();
        let (mut co, mut wo) = (child("coordinator", url), child("worker", url));
        let info: String = redis::cmd("INFO").arg("server").query_async(&mut c).await.unwrap();
        let rpid: u32 = info.lines().find_map(|l| l.strip_prefix("process_id:")).unwrap().trim().parse().unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        let keys = Keys::default().partition(PartitionId(0));
        let (hash, stored) = store_plan(&plan(len));
        let _: redis::Value = redis::cmd("SET").arg(keys.plan(&hash)).arg(stored).query_async(&mut c).await.unwrap();
        let _: redis::Value = redis::cmd("CONFIG").arg("RESETSTAT").query_async(&mut c).await.unwrap();
        let (c0, w0, r0, t) = (cpu(co.id()), cpu(wo.id()), cpu(rpid), Instant::now());
        let per: usize = std::env::var("PER").ok().and_then(|c| c.parse().ok()).unwrap_or(100);
        let mut id = 0u64;
        let mut sub = con(url).await;
        let h = hash.clone();
        let k2 = keys.clone();
        tokio::spawn(async move {
            while (id as usize) < runs {
                let mut p = redis::pipe();
                for _ in 0..4 {
                    let list: Vec<NewRun> = (0..per)
                        .map(|_| {
                            id += 1;
                            NewRun {
                                run: RunId::new(PartitionId(0), 1_795_000_000_000 + id / 100, id),
                                plan: h.clone(),
                                version: None,
                                input: None,
                                traceparent: None,
                            }
                        })
                        .collect();
                    let body = Body::Submit(Submit {
                        id: CommandId(uuid::Uuid::now_v7()),
                        actor: "bench".into(),
                        runs: list,
                        again: false,
                    });
                    let w = codec::encode(&LogEntry::new(body));
                    p.cmd("XADD").arg(k2.log()).arg("*").arg(w.field).arg(w.bytes).ignore();
                }
                let _: () = p.query_async(&mut sub).await.unwrap();
            }
        });
        loop {
            let done: usize = redis::cmd("ZCARD")
                .arg(keys.runs(stepfleet_protocol::state::State::Completed))
                .query_async(&mut c)
                .await
                .unwrap();
            if done >= runs {
                break;
            }
            if t.elapsed() > Duration::from_secs(60) {
                println!("STUCK at {done}");
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let el = t.elapsed().as_secs_f64();
        let steps = (runs * len) as f64;
        let us = |x: f64| x * 1e6 / steps;
        let stats: String = redis::cmd("INFO").arg("commandstats").query_async(&mut c).await.unwrap();
        let mut rows: Vec<(f64, String)> = stats
            .lines()
            .filter_map(|l| l.strip_prefix("cmdstat_"))
            .map(|l| {
                let (n, r) = l.split_once(':').unwrap();
                let f: Vec<f64> = r.split(',').take(2).map(|z| z.split_once('=').unwrap().1.parse().unwrap()).collect();
                (f[1] / steps, format!("{n} {:.2} calls {:.2} us", f[0] / steps, f[1] / steps))
            })
            .collect();
        rows.sort_by(|a, b| b.0.total_cmp(&a.0));
        println!(
            "len {len}: {:.0} steps/s ratio {:.2}; us/step: redis {:.1} coordinator {:.1} worker {:.1}",
            steps / el,
            steps / el / fl,
            us(cpu(rpid) - r0),
            us(cpu(co.id()) - c0),
            us(cpu(wo.id()) - w0)
        );
        for (_, r) in rows.iter().take(14) {
            println!("    {r}");
        }
        let m: String = redis::cmd("INFO").arg("memory").query_async(&mut c).await.unwrap();
        println!(
            "    {} bytes/run",
            m.lines().find_map(|l| l.strip_prefix("used_memory:")).unwrap().trim().parse::<f64>().unwrap()
                / runs as f64
        );
        let _ = Name::new("x");
        co.kill().unwrap();
        wo.kill().unwrap();
        co.wait().unwrap();
        wo.wait().unwrap();
    }
}
