//! `import`: workflows from what other systems recorded. Offline.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::failure::{Exit, Failure};
use crate::input;
use crate::out::Out;
use crate::wfformat::workflow_from_wfformat;

/// `import …`
#[derive(Debug, Subcommand)]
pub(crate) enum Import {
    /// A WfCommons WfFormat 1.5 graph becomes a workflow of `sleep` steps with the same shape and times.
    #[command(after_help = "\
Examples:
  stepfleet import wfformat montage.json > montage.workflow.json
  stepfleet import wfformat montage.json --time-scale 100 -o montage.workflow.json
  stepfleet import wfformat montage.json --time-scale 100 | stepfleet runs start -f - --wait")]
    Wfformat(WfformatArgs),
}

/// `import wfformat`
#[derive(Debug, Args)]
pub(crate) struct WfformatArgs {
    /// The WfFormat instance; `-` for stdin.
    #[arg(value_name = "FILE")]
    file: String,
    /// Divide every recorded time by this.
    #[arg(long, value_name = "K", default_value_t = 1.0)]
    time_scale: f64,
    /// Write the definition here instead of to stdout.
    #[arg(short = 'o', long = "to", value_name = "FILE")]
    to: Option<PathBuf>,
}

/// Runs a verb of `import`.
///
/// # Errors
/// The file is not what it should be, or the definition cannot be written.
pub(crate) fn run(verb: &Import, out: &Out) -> Result<Exit, Failure> {
    let Import::Wfformat(args) = verb;
    let text = input::file(&args.file)?;
    let workflow = workflow_from_wfformat(&text, args.time_scale)
        .map_err(|error| Failure::failed(format!("`{}`: {error:#}", args.file)))?;
    let definition = serde_json::to_string_pretty(&workflow).map_err(|error| Failure::failed(error.to_string()))?;
    match &args.to {
        None => out.line(&definition)?,
        Some(path) => std::fs::write(path, definition + "\n")
            .map_err(|error| Failure::failed(format!("cannot write `{}`: {error}", path.display())))?,
    }
    out.say(&format!("workflow `{}` with {} steps", workflow.workflow, workflow.steps.len()));
    Ok(Exit::Done)
}
