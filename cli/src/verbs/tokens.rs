//! `tokens`: make API tokens, and check the file of them. Offline.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;
use stepfleet_coordinator::http::tokens::{Role, Tokens, digest};
use stepfleet_protocol::name::Name;
use uuid::Uuid;

use crate::failure::{Exit, Failure};
use crate::out::Out;

/// `tokens …`
#[derive(Debug, Subcommand)]
pub(crate) enum TokenVerb {
    /// Make a token and the line of the tokens file that lets it in. The token is shown once and kept nowhere.
    #[command(after_help = "\
Examples:
  stepfleet tokens create --name ops-anna --role operator
  stepfleet tokens create --name ci --role operator --to ci.token >> tokens.yaml
  stepfleet tokens create --name prometheus --role viewer --output json | jq -r .token")]
    Create(CreateArgs),
    /// Check a tokens file: every problem, or who is let in. A coordinator that runs keeps the old tokens when the file is wrong.
    #[command(after_help = "\
Examples:
  stepfleet tokens check tokens.yaml
  stepfleet tokens check tokens.yaml --output json")]
    Check(CheckArgs),
}

/// `tokens create`
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Who holds it: the actor in history and audit.
    #[arg(long, value_name = "NAME", value_parser = Name::new)]
    name: Name,
    /// What the holder may do: `viewer` looks, `operator` acts on runs and queues, `admin` changes what holds for all.
    #[arg(long, value_name = "ROLE", value_parser = str::parse::<Role>)]
    role: Role,
    /// Write the token into this new file, readable by its owner only, instead of showing it.
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

/// `tokens check`
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// The tokens file.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Runs a verb of `tokens`.
///
/// # Errors
/// The file has problems, or cannot be read or written.
pub(crate) fn run(verb: &TokenVerb, out: &Out) -> Result<Exit, Failure> {
    match verb {
        TokenVerb::Create(args) => create(args, out),
        TokenVerb::Check(args) => check(args, out),
    }
}

fn create(args: &CreateArgs, out: &Out) -> Result<Exit, Failure> {
    // 244 random bits from the system.
    let token = format!("sf_{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
    let (name, role) = (&args.name, args.role);
    let sha256: String = digest(&token).iter().map(|byte| format!("{byte:02x}")).collect();
    let line = format!("  - {{ name: \"{name}\", role: {role}, sha256: \"{sha256}\" }}");
    if let Some(path) = &args.to {
        write_secret(path, &token)?;
    }
    if out.is_json() {
        let mut made = json!({ "name": name, "role": role, "sha256": sha256, "line": line });
        if args.to.is_none() {
            made["token"] = token.into();
        }
        out.json(&made)?;
    } else {
        out.line(&line)?;
        match &args.to {
            Some(path) => out.say(&format!("the token is in `{}`", path.display())),
            None => out.tell(&format!("the token, shown only now: {token}")),
        }
        out.hint("the line belongs under `tokens:` in the file of --tokens-file; coordinators see it within seconds");
    }
    Ok(Exit::Done)
}

/// Never over another file: it may be the token that somebody still uses.
fn write_secret(path: &Path, token: &str) -> Result<(), Failure> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| writeln!(file, "{token}"))
        .map_err(|error| Failure::usage(format!("cannot write the token into `{}`: {error}", path.display())))
}

fn check(args: &CheckArgs, out: &Out) -> Result<Exit, Failure> {
    let file = args.file.display();
    let tokens = Tokens::open(&args.file).map_err(|error| {
        let exit = if args.file.exists() { Exit::Failed } else { Exit::NotFound };
        Failure::new(exit, format!("`{file}` cannot be used")).problems(error.problems())
    })?;
    let known = tokens.known();
    if out.is_json() {
        let entries = known.iter().map(|entry| json!({ "name": entry.name, "role": entry.role }));
        out.json(&entries.collect::<Vec<_>>())?;
    } else {
        for entry in known.iter() {
            out.line(&format!("{:<8}  {}", entry.role.as_str(), entry.name))?;
        }
        out.say(&format!("`{file}` is right, with {} tokens", known.len()));
    }
    Ok(Exit::Done)
}
