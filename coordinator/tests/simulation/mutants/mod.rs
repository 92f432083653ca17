//! Whether the simulation finds bugs: every deliberate one of the list has to be caught by one of its first seeds. Built by
//! `make mutants` alone.

mod list;

use std::{
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use list::{ALL, By, Mutant};

/// Seeds that a bug may hide from.
const SEEDS: u64 = 200;
/// Longest time for one bug.
const PATIENCE: Duration = Duration::from_secs(400);

/// How one was caught: the seed, and the checker that said so.
type Caught = Result<(u64, String), String>;

#[test]
fn every_mutant_is_caught() {
    let only = std::env::var("MUTANT").ok();
    let mut lines = vec!["| bug | trap | what it does | seed | checker |".to_owned(), "|--|--|--|--|--|".to_owned()];
    let mut survived = Vec::new();
    for mutant in ALL.iter().filter(|mutant| only.as_deref().is_none_or(|only| only == mutant.0)) {
        let begun = Instant::now();
        let found = hunt(mutant);
        let (seed, checker) = match &found {
            Ok((seed, checker)) => (seed.to_string(), format!("`{checker}`")),
            Err(why) => ("-".into(), why.clone()),
        };
        let Mutant(name, trap, what, _) = mutant;
        println!("{name}: seed {seed}, {checker} ({:.0} s)", begun.elapsed().as_secs_f64());
        lines.push(format!("| `{name}` | {trap} | {what} | {seed} | {checker} |"));
        survived.extend(found.is_err().then_some(*name));
    }
    let table = lines.join("\n");
    println!("{table}");
    if std::env::var("REPORT").is_ok_and(|word| word == "1") && only.is_none() {
        write_report(&table);
    }
    assert!(survived.is_empty(), "nobody caught {survived:?}");
}

/// Runs the stories with one bug until a seed shows it.
fn hunt(Mutant(name, _, _, by): &Mutant) -> Caught {
    let test = match by {
        By::Fleets => "no_seed_of_faults_loses_doubles_or_disorders_anything",
        By::Campaigns => "campaigns::a_campaign_neither_skips_nor_doubles",
    };
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let seeds = std::env::var("SEEDS").unwrap_or(SEEDS.to_string());
    let mut command = Command::new(program);
    command.args(["--exact", test, "--nocapture"]).env("STEPFLEET_MUTANT", name).env("SEEDS", seeds);
    command.env_remove("SEED").env("RUST_BACKTRACE", "0").stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| e.to_string())?;
    let stderr = child.stderr.take().ok_or("no output")?;
    let reader = std::thread::spawn(move || std::io::read_to_string(stderr).unwrap_or_default());
    let begun = Instant::now();
    while child.try_wait().map_err(|e| e.to_string())?.is_none() {
        if begun.elapsed() > PATIENCE {
            drop((child.kill(), child.wait()));
            return Err("hangs".into());
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
    let text = reader.join().map_err(|_| "no output")?;
    let caught = text.lines().rev().find_map(|line| {
        let (seed, rest) = line.strip_prefix("seed ")?.split_once(": checker `")?;
        Some((seed.parse().ok()?, rest.split('`').next()?.to_owned()))
    });
    caught.ok_or_else(|| "survives".into())
}

/// Puts the table where people read it.
fn write_report(table: &str) {
    const BEGIN: &str = "<!-- mutants: written by `make mutants REPORT=1` -->";
    const END: &str = "<!-- /mutants -->";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reliability.md");
    let text = std::fs::read_to_string(&path).expect("the document is there");
    let (before, rest) = text.split_once(BEGIN).expect("the table has its place");
    let (_, after) = rest.split_once(END).expect("the place has an end");
    std::fs::write(&path, format!("{before}{BEGIN}\n{table}\n{END}{after}")).expect("it can be written");
}
