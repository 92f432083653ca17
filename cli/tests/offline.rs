//! The real program without any server: definitions, imports, settings, completions, help.

#[expect(dead_code, reason = "only a part is needed here")]
mod peer;

use std::path::PathBuf;

use peer::{Shown, run_in, run_with};

const GOOD: &str = "workflow: orders\nsteps:\n  fetch: { handler: sleep, with: { duration: 1s } }\n";
const BAD: &str =
    "workflow: orders\nsteps:\n  fetch: { handler: http, timeout: 5x }\n  parse: { handler: exec, needs: [fech] }\n";

fn run(words: &[&str]) -> Shown {
    run_with("http://127.0.0.1:1", words, "")
}

fn file(folder: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, text).expect("written");
    path
}

#[test]
fn definitions_are_checked_with_every_problem_at_its_place() {
    let folder = tempfile::tempdir().expect("a folder");
    let (good, bad) = (file(&folder, "good.yaml", GOOD), file(&folder, "bad.yaml", BAD));
    let (good, bad) = (good.to_str().expect("UTF-8"), bad.to_str().expect("UTF-8"));
    let shown = run(&["workflows", "check", good]);
    assert_eq!(shown.code, 0, "{shown:?}");
    assert!(shown.out.contains("ok (workflow `orders`, 1 step)"), "{shown:?}");
    let shown = run(&["workflows", "check", good, bad]);
    assert_eq!(shown.code, 1, "{shown:?}");
    assert!(shown.out.contains(&format!("{bad}:3:")) && shown.out.contains(&format!("{bad}:4:")), "{shown:?}");
    let json = run(&["workflows", "check", bad, "--output", "json"]);
    let report: serde_json::Value = serde_json::from_str(&json.out).expect("JSON");
    assert_eq!((json.code, report["problems"][0]["line"].as_u64()), (1, Some(3)), "{json:?}");
    assert_eq!(run_with("http://127.0.0.1:1", &["workflows", "check", "-"], GOOD).code, 0);
    assert_eq!(run(&["workflows", "check", "gone.yaml"]).code, 3);
    // The file is checked before anything is sent.
    let shown = run(&["runs", "start", "-f", bad]);
    assert_eq!(shown.code, 1, "{shown:?}");
    assert!(shown.err.contains(&format!("{bad}:3:")), "{shown:?}");
}

#[test]
fn policies_are_checked_before_anything_is_sent() {
    let folder = tempfile::tempdir().expect("a folder");
    let good = file(&folder, "good.yaml", "retry: { max_attempts: 5 }\n");
    let bad = file(&folder, "bad.yaml", "retry:\n  max_attempts: 5\n  max_atempts: 5\n");
    let (good, bad) = (good.to_str().expect("UTF-8"), bad.to_str().expect("UTF-8"));
    let shown = run(&["policies", "check", "-f", good]);
    assert_eq!((shown.code, shown.out.trim_end()), (0, format!("{good}: ok").as_str()), "{shown:?}");
    let shown = run(&["policies", "check", "-f", bad]);
    assert_eq!(shown.code, 1, "{shown:?}");
    assert!(shown.out.starts_with(&format!("{bad}:3:3: ")), "{shown:?}");
    let shown = run(&["policies", "apply", "-f", bad]);
    assert_eq!(shown.code, 1, "not 5, as nobody was asked: {shown:?}");
    assert!(shown.err.contains("nothing was applied") && shown.err.contains(&format!("{bad}:3:")), "{shown:?}");
    assert_eq!(run(&["policies", "apply", "-f", good]).code, 5);
    assert_eq!(run(&["policies", "apply"]).code, 2);
    let schema: serde_json::Value = serde_json::from_str(&run(&["policies", "schema"]).out).expect("JSON");
    assert_eq!(schema["title"], "Stepfleet policies");
}

#[test]
fn the_example_with_the_numbers_for_production_checks() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/catalogue.yaml");
    let shown = run(&["workflows", "check", example]);
    assert_eq!(shown.code, 0, "{shown:?}");
    assert!(shown.out.contains("ok (workflow `catalogue`, 7 steps)"), "{shown:?}");
}

#[test]
fn a_recorded_graph_becomes_a_definition_that_checks() {
    let folder = tempfile::tempdir().expect("a folder");
    let graph = r#"{"name":"g","workflow":{"specification":{"tasks":[{"id":"a"},{"id":"b","parents":["a"]}]},
        "execution":{"tasks":[{"id":"a","runtimeInSeconds":10}]}}}"#;
    let (graph, to) = (file(&folder, "g.json", graph), folder.path().join("g.workflow.json"));
    let shown = run(&[
        "import",
        "wfformat",
        graph.to_str().expect("UTF-8"),
        "--time-scale",
        "10",
        "-o",
        to.to_str().expect("UTF-8"),
    ]);
    assert_eq!(shown.code, 0, "{shown:?}");
    assert_eq!(run(&["workflows", "check", to.to_str().expect("UTF-8")]).code, 0);
}

#[test]
fn settings_show_all_their_problems_at_once() {
    let shown = run(&["coordinator", "--redis", "http://x", "--listen", "0.0.0.0:7070", "--partitions", "0"]);
    assert_eq!(shown.code, 2, "{shown:?}");
    for part in [
        "3 problems in the settings",
        "--redis: ",
        "--listen: `0.0.0.0:7070` is not loopback",
        "--partitions: bad number `0`",
    ] {
        assert!(shown.err.contains(part), "{part}: {shown:?}");
    }
    let shown = run(&["worker", "--concurrency", "many", "--queue", "a b"]);
    assert_eq!(shown.code, 2, "{shown:?}");
    assert!(shown.err.contains("3 problems in the settings") && shown.err.contains("STEPFLEET_REDIS_URL"), "{shown:?}");
    let shown = run(&["worker", "--redis", "redis://127.0.0.1:1"]);
    assert_eq!(shown.code, 5, "{shown:?}");
    let shown = run(&["dev", "--port", "0", "--workers", "-1"]);
    assert_eq!(shown.code, 2, "{shown:?}");
}

#[test]
fn what_is_kept_is_a_setting_with_limits() {
    let env = [("STEPFLEET_RETAIN_COMPLETED", "1h"), ("STEPFLEET_RETAIN_RUNS", "5")];
    let flags = ["--retain-runs", "0", "--retain-dead-letters", "9x", "--retain-events", "many"];
    let shown = run_in(&env, &[&["coordinator", "--redis", "redis://127.0.0.1:1"], &flags[..]].concat(), "");
    assert_eq!(shown.code, 2, "{shown:?}");
    for part in [
        "4 problems in the settings",
        "STEPFLEET_RETAIN_COMPLETED: `1h` is too short: allowed are 25h to 3650d, as long as idempotency keys",
        "--retain-runs: bad number `0`: allowed are 1 to ",
        "--retain-dead-letters: bad duration `9x`",
        "--retain-events: bad number `many`: allowed are 1 to ",
    ] {
        assert!(shown.err.contains(part), "{part}: {shown:?}");
    }
    let fine = ["--retain-completed", "25h", "--retain-dead-letters-max", "1"];
    let shown = run_in(&env, &[&["coordinator", "--redis", "redis://127.0.0.1:1"], &fine[..]].concat(), "");
    assert_eq!(shown.code, 5, "flags win, and only the server is missing: {shown:?}");
    // For trying things out runs may go at once.
    let shown = run_in(&env, &["dev", "--retain-events", "0", "--retain-completed", "0"], "");
    assert_eq!(shown.code, 2, "{shown:?}");
    assert!(shown.err.contains("--retain-completed: `0ms` is too short: allowed are 1s to 3650d"), "{shown:?}");
    assert!(shown.err.contains("2 problems"), "{shown:?}");
    for words in [["coordinator", "--help"], ["dev", "--help"]] {
        let help = run(&words).out;
        for part in ["--retain-completed", "90d", "STEPFLEET_RETAIN_DEAD_LETTERS_MAX", "365d", "1000000"] {
            assert!(help.contains(part), "{part}: {help}");
        }
    }
}

#[test]
fn wrong_use_is_told_and_typos_are_guessed() {
    let shown = run(&["rns", "list"]);
    assert_eq!(shown.code, 2);
    assert!(shown.err.contains("'runs'"), "{shown:?}");
    assert_eq!(run(&["runs", "start"]).code, 2);
    assert_eq!(run(&["runs", "start", "orders", "-f", "x"]).code, 2);
    assert_eq!(run(&["dead-letters", "replay"]).code, 2);
    assert_eq!(run(&["runs", "start", "orders", "--input", "{"]).code, 2);
    assert_eq!(run_with("ftp://x", &["runs", "list"], "").code, 2);
}

#[test]
fn schema_completions_and_help_are_there() {
    let schema = run(&["workflows", "schema"]);
    assert!(
        serde_json::from_str::<serde_json::Value>(&schema.out).is_ok_and(|schema| schema.is_object()),
        "{schema:?}"
    );
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let shown = run(&["completions", shell]);
        assert!(shown.code == 0 && shown.out.contains("dead-letters"), "{shell}");
    }
    let shown = run(&["--help"]);
    assert!(shown.code == 0 && shown.out.contains("Exit codes:") && shown.out.contains("Examples:"), "{shown:?}");
    for words in
        [vec!["runs", "start"], vec!["dev"], vec!["coordinator"], vec!["worker"], vec!["bench"], vec!["doctor"]]
    {
        let shown = run(&[&words[..], &["--help"]].concat());
        assert!(shown.code == 0 && shown.out.contains("Examples:"), "{words:?}: {shown:?}");
    }
}

#[test]
fn a_token_is_made_with_its_line_and_the_file_of_lines_is_checked() {
    let folder = tempfile::tempdir().expect("a folder");
    let shown = run(&["tokens", "create", "--name", "ops-anna", "--role", "operator"]);
    assert_eq!(shown.code, 0, "{shown:?}");
    assert!(shown.out.starts_with("  - { name: \"ops-anna\", role: operator, sha256: \""), "{shown:?}");
    let token = shown.err.lines().find_map(|line| line.strip_prefix("the token, shown only now: ")).expect("the token");
    assert!(token.len() >= 20 && !shown.out.contains(token), "{shown:?}");
    // A second one is another one, and goes into a file that only its owner reads.
    let path = folder.path().join("anna.token");
    let to = path.to_str().expect("UTF-8");
    let second = run(&["tokens", "create", "--name", "ops-anna", "--role", "operator", "--to", to, "--quiet"]);
    assert_eq!((second.code, second.err.as_str()), (0, ""), "{second:?}");
    let written = std::fs::read_to_string(&path).expect("written");
    assert!(written.trim() != token && written.trim().len() >= 20, "{written}");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).expect("there").permissions());
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(
        run(&["tokens", "create", "--name", "x", "--role", "viewer", "--to", to]).code,
        2,
        "it is not written over"
    );
    assert_eq!(std::fs::read_to_string(&path).expect("still there"), written);

    let good = file(&folder, "good.yaml", &format!("tokens:\n{}{}", shown.out, second.out));
    let shown = run(&["tokens", "check", good.to_str().expect("UTF-8"), "--output", "json"]);
    assert_eq!(shown.code, 0, "{shown:?}");
    let entry = serde_json::json!({ "name": "ops-anna", "role": "operator" });
    assert_eq!(serde_json::from_str::<serde_json::Value>(&shown.out).expect("JSON"), serde_json::json!([entry, entry]));
    let bad = file(&folder, "bad.yaml", "tokens:\n  - { name: a b, role: operater, sha256: 12 }\n");
    let shown = run(&["tokens", "check", bad.to_str().expect("UTF-8")]);
    assert_eq!((shown.code, shown.err.matches("tokens[0].").count()), (1, 3), "{shown:?}");
    assert_eq!(run(&["tokens", "check", "gone.yaml"]).code, 3);
    for words in [["--name", "a b", "--role", "admin"], ["--name", "ann", "--role", "root"]] {
        assert_eq!(run(&[&["tokens", "create"][..], &words].concat()).code, 2, "{words:?}");
    }
}
