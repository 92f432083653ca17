//! `completions`: what a shell needs to complete commands.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::args::Cli;
use crate::failure::{Exit, Failure};
use crate::out::Out;

/// `completions`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stepfleet completions bash > ~/.local/share/bash-completion/completions/stepfleet
  stepfleet completions zsh > ~/.zfunc/_stepfleet
  stepfleet completions fish > ~/.config/fish/completions/stepfleet.fish")]
pub(crate) struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

/// Prints the completions.
///
/// # Errors
/// stdout is closed or broken.
pub(crate) fn run(args: &CompletionsArgs, out: &Out) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "stepfleet", &mut script);
    out.line(String::from_utf8_lossy(&script).trim_end())?;
    Ok(Exit::Done)
}
