//! The one program: `dev`, `coordinator` and `worker` run the fleet; every other verb is a client of the public API.
//!
//! stdout is data, stderr is talk. Exit codes are in [`failure::Exit`]; nothing else ends the program.

mod api;
mod args;
#[cfg(test)]
mod configuration;
mod failure;
mod input;
mod out;
mod process;
mod table;
mod time;
mod token;
mod verbs;
mod wfformat;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use args::{Cli, Command};
use failure::{Exit, Failure};
use out::Out;

/// A hot loop of small messages: the C library's allocator was 45 % of the coordinator's time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let out = Out::new(&cli.global);
    match run(cli, &matches, &out) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            out.failure(&failure);
            failure.exit().into()
        }
    }
}

fn run(cli: Cli, matches: &clap::ArgMatches, out: &Out) -> Result<Exit, Failure> {
    let given = process::Given::of(matches);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if let Command::Worker(args) = &cli.command {
        runtime.worker_threads(args.threads.into());
    }
    let runtime = runtime.enable_all().build().map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    match cli.command {
        Command::Dev(args) => runtime.block_on(process::dev::run(args, &given, out)),
        Command::Coordinator(args) => runtime.block_on(process::coordinator::run(args, &given, out)),
        Command::Worker(args) => runtime.block_on(process::worker::run(args, &given, out)),
        Command::Bench(args) => runtime.block_on(process::bench::run(args, &given, out)),
        Command::Completions(args) => verbs::completions::run(&args, out),
        Command::Import(args) => verbs::import::run(&args, out),
        Command::Tokens(verb) => verbs::tokens::run(&verb, out),
        command => runtime.block_on(verbs::run(command, &cli.global, out)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_of_commands_is_sound_and_every_help_has_examples() {
        let mut command = Cli::command();
        command.clone().debug_assert();
        command.build();
        every_leaf(&command, &mut |leaf| {
            let help = leaf.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.starts_with("Examples:"), "`{}` has no examples in its help", leaf.get_name());
        });
    }

    fn every_leaf(command: &clap::Command, look: &mut dyn FnMut(&clap::Command)) {
        let mut verbs = command.get_subcommands().filter(|verb| verb.get_name() != "help").peekable();
        if verbs.peek().is_none() {
            return look(command);
        }
        for verb in verbs {
            every_leaf(verb, look);
        }
    }
}
