//! `make test-real`: every recorded workflow graph of `WFINSTANCES` on a small fleet.
//!
//! Each `*.json` there is imported as a workflow of `sleep` steps, with the time scale chosen so that it takes some 20 s, and
//! run on two workers with 16 slots in all. Then: every task has one effect, none began before all its parents had ended, the run
//! completed, and the makespan lies between the bounds that the slots and the critical path set. The graphs run one after
//! another, each with all slots for itself.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use stepfleet_tests::{
    Program,
    lab::{self, Api, Fleet},
};

/// Slots of the fleet.
const SLOTS: f64 = 16.0;
/// What the middle between the two bounds is scaled to, in seconds.
const WANTED_S: f64 = 18.0;
/// The fleet's own share beyond the upper bound: a tenth, and two seconds.
const OVERHEAD: (f64, f64) = (1.1, 2.0);
/// After this long a run is given up.
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let folder =
        std::env::var("WFINSTANCES").context("WFINSTANCES is missing; set it to a folder of WfFormat graphs")?;
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .with_context(|| format!("read the folder `{folder}`"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|kind| kind == "json"))
        .collect();
    files.sort();
    ensure!(!files.is_empty(), "no *.json in `{folder}`");
    let server = lab::server().await?;
    let mut fleet = Fleet::start(&server.url(), 2, 0).await?;
    for _ in 0..2 {
        fleet.add_worker(&["--concurrency", "8"])?;
    }
    println!("{:<40} {:>6} {:>6} {:>9} {:>9} {:>9}", "graph", "tasks", "scale", "low s", "took s", "high s");
    for file in &files {
        one(&fleet, file).await.with_context(|| file.display().to_string())?;
    }
    fleet.stop().await
}

async fn one(fleet: &Fleet, file: &Path) -> anyhow::Result<()> {
    let plain = Graph::of(&import(file, 1.0).await?)?;
    let scale = ((plain.low() + plain.high()) / 2.0 / WANTED_S).max(0.001);
    let definition = import(file, scale).await?;
    let graph = Graph::of(&definition)?;
    let api = fleet.api();
    let run = api.submit(&definition, Value::Null).await?;
    let view = api.until_state(&run, "completed", PATIENCE).await?;
    let took = check(api, &run, &view, &graph).await?;
    let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let (low, high) = (graph.low(), graph.high() * OVERHEAD.0 + OVERHEAD.1);
    println!("{name:<40} {:>6} {scale:>6.1} {low:>9.2} {took:>9.2} {high:>9.2}", graph.steps.len());
    // Times are written in whole milliseconds.
    ensure!(took >= low - 0.01, "it took {took:.2} s, less than {low:.2} s");
    ensure!(took <= high, "it took {took:.2} s, more than {high:.2} s");
    Ok(())
}

/// Every step once and after its parents; how long the run took, in seconds.
async fn check(api: &Api, run: &str, view: &Value, graph: &Graph) -> anyhow::Result<f64> {
    let mut times: HashMap<String, (i64, i64)> = HashMap::new();
    for step in api.items(&format!("/api/v1/runs/{run}/steps")).await? {
        let name = text(&step, "name")?;
        ensure!(step["state"] == "completed" && step["attempts"] == 1, "{step:#}");
        times.insert(name.to_owned(), (millis(&step, "started_at")?, millis(&step, "finished_at")?));
    }
    ensure!(times.len() == graph.steps.len(), "{} of {} steps", times.len(), graph.steps.len());
    let mut completed: HashMap<String, usize> = HashMap::new();
    for entry in api.history(run).await? {
        if let (Some(step), true) = (entry["step"].as_str(), entry["to"] == "completed" && entry["from"] != "completed")
        {
            *completed.entry(step.to_owned()).or_default() += 1;
        }
    }
    for (name, step) in &graph.steps {
        ensure!(completed.get(name) == Some(&1), "`{name}` completed {:?} times", completed.get(name));
        for parent in &step.needs {
            let (ended, began) = (times[parent].1, times[name].0);
            ensure!(began >= ended, "`{name}` began {} ms before its parent `{parent}` ended", ended - began);
        }
    }
    Ok(view["duration_ms"].as_f64().context("a finished run has a duration")? / 1_000.0)
}

/// The definition that the import makes.
async fn import(file: &Path, scale: f64) -> anyhow::Result<Value> {
    let scale = scale.to_string();
    let words = ["import".into(), "wfformat".into(), file.as_os_str().to_owned(), "--time-scale".into(), scale.into()];
    let mut program = Program::stepfleet(words)?.start()?;
    let status = program.wait(PATIENCE).await?;
    ensure!(status.success(), "the import ended with {status}: {}", program.stderr());
    Ok(serde_json::from_str(&program.stdout())?)
}

struct Step {
    seconds: f64,
    needs: Vec<String>,
}

/// A graph of sleeps.
struct Graph {
    steps: HashMap<String, Step>,
    /// The longest way through it, in seconds.
    path: f64,
    /// All sleeps together, in seconds.
    sum: f64,
}

impl Graph {
    fn of(definition: &Value) -> anyhow::Result<Self> {
        let mut steps = HashMap::new();
        for (name, step) in definition["steps"].as_object().context("a definition has steps")? {
            let needs = step["needs"].as_array().into_iter().flatten();
            let needs = needs.filter_map(|need| Some(need.as_str()?.to_owned())).collect();
            steps.insert(name.clone(), Step { seconds: seconds(text(&step["with"], "duration")?)?, needs });
        }
        let mut ends = HashMap::new();
        let path = steps.keys().map(|name| end_of(name, &steps, &mut ends)).fold(0.0, f64::max);
        let sum = steps.values().map(|step| step.seconds).sum();
        Ok(Self { steps, path, sum })
    }

    /// No schedule is shorter.
    fn low(&self) -> f64 {
        self.path.max(self.sum / SLOTS)
    }

    /// No schedule that keeps no slot idle without need is longer.
    fn high(&self) -> f64 {
        self.sum / SLOTS + self.path * (1.0 - 1.0 / SLOTS)
    }
}

/// When a step ends at the earliest. The definition was checked, so there is no cycle; the graphs are shallow.
fn end_of(name: &str, steps: &HashMap<String, Step>, ends: &mut HashMap<String, f64>) -> f64 {
    if let Some(end) = ends.get(name) {
        return *end;
    }
    let step = &steps[name];
    let end = step.seconds + step.needs.iter().map(|need| end_of(need, steps, ends)).fold(0.0, f64::max);
    ends.insert(name.to_owned(), end);
    end
}

fn seconds(text: &str) -> anyhow::Result<f64> {
    let (mut rest, mut total) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).context("a duration has a unit")?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let factor = match &tail[..unit] {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            "d" => 86_400.0,
            other => bail!("the unit `{other}` in `{text}`"),
        };
        total += number.parse::<f64>()? * factor;
        rest = &tail[unit..];
    }
    Ok(total)
}

/// Milliseconds of the day that a time of the API says, `2026-01-31T12:34:56.789Z`, with the days counted by their number in the
/// month; a run does not last from one month into the next but for once.
fn millis(value: &Value, field: &str) -> anyhow::Result<i64> {
    let time = text(value, field)?;
    let number = |from: usize, to: usize| -> anyhow::Result<i64> {
        Ok(time.get(from..to).with_context(|| format!("a time, not `{time}`"))?.parse()?)
    };
    let (day, hour, minute, second) = (number(8, 10)?, number(11, 13)?, number(14, 16)?, number(17, 19)?);
    Ok((((day * 24 + hour) * 60 + minute) * 60 + second) * 1_000 + number(20, 23)?)
}

fn text<'a>(value: &'a Value, field: &str) -> anyhow::Result<&'a str> {
    value[field].as_str().with_context(|| format!("no `{field}` in {value}"))
}
