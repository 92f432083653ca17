//! `make demo`: a real pipeline on one server, one coordinator and three worker processes, one of them killed.
//!
//! Each run of the pipeline writes texts into a folder, counts their words side by side, adds the counts up and seals the report
//! with a checksum. One worker is killed in the middle of a count; one run reads a file that is not there. Nothing is left
//! running and nothing is left on disk.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use stepfleet_tests::{
    Fsync, Server,
    lab::{Api, Fleet},
    wait,
};

/// Texts of one run, each counted by a step of its own.
const TEXTS: usize = 4;
/// How long anything here may take before the demo gives up.
const PATIENCE: Duration = Duration::from_secs(110);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let began = Instant::now();
    let say = |text: &str| println!("{:>5.1} s  {text}", began.elapsed().as_secs_f64());
    let folder = tempfile::Builder::new().prefix("stepfleet-demo-").tempdir()?;
    let server = Server::options().append_only(Fsync::EverySecond).start().await?;
    say(&format!("a server runs on port {}", server.port()));
    let fleet = Fleet::start(&server.url(), 2, 3).await?;
    let api = fleet.api().clone();
    say(&format!("a coordinator serves its API at {}; the workers w1, w2 and w3 have four slots each", api.base()));
    let mut show = Show { fleet, api, folder: folder.path(), runs: Vec::new() };

    show.plain_runs(3).await?;
    say("3 runs of the pipeline completed: texts written, words counted side by side, added up, sealed");
    let stuck = show.start("slow", json!({ "pause": 3, "extra": "" })).await?;
    let victim = show.kill_a_worker(&stuck).await?;
    let killed = Instant::now();
    say(&format!(
        "killed {victim} with -9 in the middle of its work; its jobs go elsewhere within seconds once the fleet is up for 30 s, else when it missed its beats for 30 s"
    ));
    let letter = show.fail_and_replay(&say).await?;
    let mut told = Instant::now();
    while show.api.run(&stuck).await?["state"] != "completed" {
        ensure!(killed.elapsed() < PATIENCE, "the lost work was not taken over: {:#}", show.api.run(&stuck).await?);
        show.plain_runs(1).await?;
        if told.elapsed() > Duration::from_secs(8) {
            told = Instant::now();
            say(&format!(
                "… meanwhile {} runs in all; the work of {victim} still waits for its death",
                show.runs.len()
            ));
        }
    }
    let lost = killed.elapsed();
    say("another worker took the lost work over, and its run completed");
    show.check_reports()?;
    let history = show.api.history(&stuck).await?;
    let why = history.iter().find(|entry| entry["reason"] == "worker_lost").context("the history says why")?;
    say(&format!(
        "the history says why: step `{}` went {} -> {}, worker_lost",
        text(why, "step"),
        text(why, "from"),
        text(why, "to")
    ));
    summary(&show, began.elapsed(), lost, &letter).await?;
    // The killed one is gone already.
    show.fleet.stop().await?;
    drop(server);
    Ok(())
}

struct Show<'a> {
    fleet: Fleet,
    api: Api,
    folder: &'a Path,
    runs: Vec<String>,
}

impl Show<'_> {
    /// Submits the pipeline for a folder of its own.
    async fn start(&mut self, name: &str, mut input: Value) -> anyhow::Result<String> {
        let folder = self.folder.join(name);
        std::fs::create_dir_all(&folder)?;
        input["folder"] = json!(folder.display().to_string());
        let run = self.api.submit(&pipeline(), input).await?;
        self.runs.push(run.clone());
        Ok(run)
    }

    /// Runs the pipeline some times, side by side, to the end.
    async fn plain_runs(&mut self, count: usize) -> anyhow::Result<()> {
        let mut runs = Vec::new();
        for _ in 0..count {
            let name = format!("run{}", self.runs.len());
            runs.push(self.start(&name, json!({ "pause": 0, "extra": "" })).await?);
        }
        self.api.until_all(&runs, "completed", PATIENCE).await
    }

    /// Waits until a worker counts for this run, and kills it; its name.
    async fn kill_a_worker(&mut self, run: &str) -> anyhow::Result<String> {
        let holder = wait::until(PATIENCE, "a worker to be in the middle of a count", async || {
            let view = self.api.run(run).await?;
            let steps = view["step_list"].as_array().context("a run has steps")?;
            let step =
                steps.iter().find(|step| step["state"] == "processing" && text(step, "name").starts_with("count"));
            Ok(text(step.with_context(|| format!("{view:#}"))?, "worker").to_owned())
        })
        .await?;
        let name = holder.split('@').next().unwrap_or_default().to_owned();
        let place: usize = name.trim_start_matches('w').parse().context("workers are named w1, w2, w3")?;
        self.fleet.workers[place - 1].kill_9()?;
        Ok(name)
    }

    /// Lets one run fail for want of a file, writes the file, and replays the dead letter with the CLI; its id.
    async fn fail_and_replay(&mut self, say: &impl Fn(&str)) -> anyhow::Result<String> {
        let extra = self.folder.join("extra.txt");
        let run = self.start("short", json!({ "pause": 0, "extra": extra.display().to_string() })).await?;
        self.api.until_state(&run, "failed", PATIENCE).await?;
        let letters = self.api.items("/api/v1/dead-letters").await?;
        let letter = letters.iter().find(|letter| letter["run"] == run.as_str()).context("a dead letter")?;
        let id = text(letter, "id").to_owned();
        say(&format!(
            "a step gave up, dead letter {id}: step `{}`, {}",
            text(letter, "step"),
            text(letter, "message").trim()
        ));
        std::fs::write(&extra, "these words were missing\n")?;
        self.fleet.verb(&["dead-letters", "replay", &id, "--yes"]).await?;
        self.api.until_state(&run, "completed", PATIENCE).await?;
        say(&format!("wrote the missing file; `stepfleet dead-letters replay {id}`: the run completed"));
        Ok(id)
    }

    /// Every run left a report whose seal is right.
    fn check_reports(&self) -> anyhow::Result<()> {
        for folder in std::fs::read_dir(self.folder)? {
            let folder = folder?.path();
            if folder.is_dir() {
                let report = std::fs::read_to_string(folder.join("report"))?;
                let total: usize =
                    report.trim().parse().with_context(|| format!("{}: {report:?}", folder.display()))?;
                ensure!(total >= TEXTS * 100, "{}: only {total} words", folder.display());
                ensure!(std::fs::read_to_string(folder.join("seal"))?.contains("report"), "no seal");
            }
        }
        Ok(())
    }
}

/// Write texts, count the words of each, add up, seal.
fn pipeline() -> Value {
    let sh = |needs: &[String], script: &str| {
        json!({ "handler": "exec", "needs": needs, "retry": { "backoff": { "base": "200ms", "cap": "1s" } },
            "with": { "command": ["sh", "-ec", script, "step", "${{ string(input.pause) }}", "${{ input.extra }}"],
                "cwd": "${{ input.folder }}" } })
    };
    let mut steps = json!({});
    let mut counts = Vec::new();
    for place in 1..=TEXTS {
        let (write, count) = (format!("write{place}"), format!("count{place}"));
        steps[&write] = sh(&[], &format!("seq 1 {} > text{place}.tmp; mv text{place}.tmp text{place}", 100 * place));
        steps[&count] = sh(&[write], &format!("sleep \"$1\"; wc -w < text{place} > count{place}"));
        counts.push(count);
    }
    steps["extra"] = sh(&[], "[ -z \"$2\" ] || cat \"$2\" > extra");
    counts.push("extra".to_owned());
    steps["merge"] = sh(&counts, "cat count? | awk '{ sum += $1 } END { print sum }' > report");
    steps["seal"] = sh(&["merge".to_owned()], "cksum report > seal");
    json!({ "workflow": "word-count", "steps": steps })
}

async fn summary(show: &Show<'_>, all: Duration, lost: Duration, letter: &str) -> anyhow::Result<()> {
    let (mut steps, mut attempts, mut losses) = (0, 0, 0);
    for run in &show.runs {
        let view = show.api.run(run).await?;
        ensure!(view["state"] == "completed", "run {run} is {}", view["state"]);
        for step in view["step_list"].as_array().context("a run has steps")? {
            steps += 1;
            attempts += step["attempts"].as_u64().unwrap_or(0);
            losses += step["losses"].as_u64().unwrap_or(0);
        }
    }
    let open = show.api.items("/api/v1/dead-letters").await?.len();
    println!();
    println!("  runs            {}, all completed", show.runs.len());
    println!("  steps           {steps}");
    println!("  attempts        {attempts}, and {losses} lost with the killed worker");
    println!("  dead letters    1 ({letter}), replayed; {open} open");
    println!("  time to redo    {:.1} s from the kill to the end of the run that was hit", lost.as_secs_f64());
    let rate = f64::from(steps) / all.as_secs_f64();
    println!("  steps/s         {rate:.1} (each step here is a process that works on files)");
    Ok(())
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}
