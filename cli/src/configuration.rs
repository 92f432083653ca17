//! docs/configuration.md, written from the arguments themselves, so that it is complete.

use clap::CommandFactory;

use crate::args::Cli;

const HEAD: &str = "\
# Configuration

Every setting of the programs that run a fleet, written from their arguments by a test (`UPDATE=1 cargo test --workspace --bin stepfleet
configuration`). A flag goes before the environment, the environment before the default. All problems of the settings are told at
once, each with its source, and the program ends with code 2. `--help` says the same.

What is not a setting of a program: how steps are tried again, time-outs, priorities and limits belong to workflows
([workflows.md](workflows.md)) and to the fleet's policies ([policies.md](policies.md)), which change without a restart.
`STEPFLEET_LOG` sets the log filter of every program, as `info` or `info,stepfleet_coordinator=debug`. Traces are set by the standard
variables of OpenTelemetry ([tracing.md](tracing.md#settings)).
";

const OLDER: &str = "
## Names that other systems use

Whoever comes from a workflow engine that is configured by these names finds the same here:

| there | here |
|---|---|
| `WORKFLOW_MAX_RETRIES=3` | `retry.max_attempts: 3` of a step, of a workflow's `defaults`, or of the policies. It counts all tries, the first included |
| `WORKFLOW_RETRY_BACKOFF=60` | `retry.backoff: { base: 60s }` in the same places; seconds are written as `60s` |
| `WORKFLOW_PROCESSING_TIMEOUT=300` | `timeout: 300s` of a step or of a workflow's `defaults`; `timeout` of the workflow is that of a run |
| `WORKFLOW_NUM_WORKERS=4` | `--concurrency` (`STEPFLEET_CONCURRENCY`) for the jobs at once of one worker, `replicas` of a pool for the number of workers |
| `ENABLE_WORKFLOW_NOTIFICATIONS=true`, `enable_notifications` | `retry.notify: true` of the policies, and `--escalation-command` (`STEPFLEET_ESCALATION_COMMAND`) for who is told |
| `ENABLE_WORKFLOW_METRICS=true`, `enable_metrics` | always on: `/metrics` of the API; `--metrics-listen` (`STEPFLEET_METRICS_LISTEN`) and `--health-listen` (`STEPFLEET_HEALTH_LISTEN`) give ports of their own |
| `ENABLE_DISTRIBUTED_LOCKING=true` | always on: each partition has one owner, and each commit is fenced |
| `log_level` | `STEPFLEET_LOG`, `info` unless set |
| sections `parallel_execution`, `retry`, `timeout`, `monitoring`, `performance` | `--concurrency` and limits of the policies; `retry`; `timeout`; the ports above; `--partitions`, `--threads` |
| `WorkflowResilience` | `retry`, `breaker` and `limits` of the policies |
| `Workflow.OutboxProcessing` | `--outbox-batch`, `--outbox-interval` |
| `Workflow.TimerProcessing` | nothing to set: an owner sleeps until its next timer, and decides what is due in batches of at most 400 |
| `Workflow.Cleanup` | `--retain-completed`, `--retain-runs`, `--retain-dead-letters`, `--retain-dead-letters-max`, `--retain-events`, `--retain-audit` |
";

/// The page.
fn page() -> String {
    let mut cli = Cli::command();
    cli.build();
    let mut text = HEAD.to_owned();
    for name in ["coordinator", "worker", "dev"] {
        let command = cli.find_subcommand(name).expect("it is a command");
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        text.push_str(&format!(
            "\n## `stepfleet {name}`\n\n{about}.\n\n| flag | environment | default | says |\n|---|---|---|---|\n"
        ));
        for arg in command.get_arguments().filter(|arg| !arg.is_global_set() && arg.get_id() != "help") {
            let Some(flag) = arg.get_long() else { continue };
            let value = match arg.get_value_names().unwrap_or_default().first() {
                Some(name) if arg.get_action().takes_values() => format!(" {name}"),
                _ => String::new(),
            };
            let env = arg.get_env().map(|env| format!("`{}`", env.to_string_lossy())).unwrap_or_default();
            let defaults: Vec<String> =
                arg.get_default_values().iter().map(|value| format!("`{}`", value.to_string_lossy())).collect();
            let default = if arg.get_action().takes_values() { defaults.join(", ") } else { String::new() };
            let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
            let help = help.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
            let help = help.trim_end_matches('.');
            text.push_str(&format!("| `--{flag}{value}` | {env} | {default} | {help} |\n"));
        }
    }
    text + OLDER
}

#[test]
fn the_published_settings_are_those_of_the_programs() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
    let text = page();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, &text).expect("docs can be written");
    }
    let published = std::fs::read_to_string(path).expect("the settings are published");
    assert_eq!(published, text, "run the test again with UPDATE=1");
}

#[test]
fn every_setting_of_a_program_that_runs_in_a_container_can_come_from_the_environment() {
    let mut cli = Cli::command();
    cli.build();
    for name in ["coordinator", "worker"] {
        let command = cli.find_subcommand(name).expect("it is a command");
        for arg in command.get_arguments().filter(|arg| !arg.is_global_set() && arg.get_id() != "help") {
            assert!(arg.get_env().is_some(), "`{name}`: `{}` has no variable", arg.get_id());
        }
    }
}
