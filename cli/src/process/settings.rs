//! From what was written to what is meant: every problem of the settings at once, each with its source.

use std::collections::HashMap;
use std::fmt::Display;
use std::net::SocketAddr;

use clap::ArgMatches;
use clap::parser::ValueSource;

use crate::failure::Failure;

/// Who gave each setting: the command line, the environment, or nobody.
#[derive(Debug, Default)]
pub(crate) struct Given {
    sources: HashMap<String, ValueSource>,
}

impl Given {
    /// As parsed, of the innermost command.
    pub(crate) fn of(matches: &ArgMatches) -> Self {
        let mut innermost = matches;
        while let Some((_, inner)) = innermost.subcommand() {
            innermost = inner;
        }
        let ids = innermost.ids().map(clap::Id::as_str);
        // Groups have ids too, but no source of their own.
        let source =
            |id: &str| Some((id.to_owned(), innermost.try_contains_id(id).ok().and(innermost.value_source(id))?));
        Self { sources: ids.filter_map(source).collect() }
    }

    /// The setting as its writer knows it: `--listen`, or `STEPFLEET_LISTEN`.
    fn name(&self, id: &str) -> String {
        match self.sources.get(id) {
            Some(ValueSource::EnvVariable) => format!("STEPFLEET_{}", id.to_uppercase()),
            _ if id == "redis_url" => "--redis".to_owned(),
            _ => format!("--{}", id.replace('_', "-")),
        }
    }
}

/// Reads settings one by one and keeps every problem. Ids are the fields of the arguments; the environment variable of a
/// field is `STEPFLEET_` and its name.
#[derive(Debug)]
pub(crate) struct Checks<'a> {
    given: &'a Given,
    problems: Vec<String>,
}

impl<'a> Checks<'a> {
    /// Nothing read yet.
    pub(crate) fn new(given: &'a Given) -> Self {
        Self { given, problems: Vec::new() }
    }

    /// Reads one setting; `None` after a problem.
    pub(crate) fn read<T, E: Display>(
        &mut self,
        id: &str,
        text: &str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        read(text).map_err(|problem| self.problem(id, problem)).ok()
    }

    /// Reads a setting that may be missing; the outer `None` after a problem.
    pub(crate) fn maybe<T, E: Display>(
        &mut self,
        id: &str,
        text: Option<&str>,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<Option<T>> {
        text.map_or(Some(None), |text| self.read(id, text, read).map(Some))
    }

    /// Notes a problem of one setting.
    pub(crate) fn problem(&mut self, id: &str, problem: impl Display) {
        self.problems.push(format!("{}: {problem}", self.given.name(id)));
    }

    /// The settings as they are meant, if there was no problem.
    ///
    /// # Errors
    /// All problems; exit code 2.
    pub(crate) fn done<T>(self, config: Option<T>) -> Result<T, Failure> {
        let count = self.problems.len();
        let noun = if count == 1 { "problem" } else { "problems" };
        match config {
            Some(config) if count == 0 => Ok(config),
            _ => Err(Failure::usage(format!("{count} {noun} in the settings")).problems(self.problems)),
        }
    }
}

/// An address to listen at; `localhost` is 127.0.0.1.
///
/// # Errors
/// What was found and what is allowed.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    let numeric = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    numeric.as_deref().unwrap_or(text).parse().map_err(|_| {
        format!("bad address `{text}`: allowed is an IP address with a port, such as `127.0.0.1:7070` or `[::1]:7070`")
    })
}

/// A whole number of a range.
///
/// # Errors
/// What was found and what is allowed.
pub(super) fn number(text: &str, range: std::ops::RangeInclusive<u64>) -> Result<u64, String> {
    let found = text.parse().ok().filter(|number| range.contains(number));
    found.ok_or_else(|| format!("bad number `{text}`: allowed are {} to {}", range.start(), range.end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_kept_with_its_source() {
        let sources =
            [("listen".to_owned(), ValueSource::EnvVariable), ("drain_timeout".to_owned(), ValueSource::CommandLine)];
        let given = Given { sources: sources.into() };
        let mut checks = Checks::new(&given);
        assert_eq!(checks.read("listen", "here", address), None);
        assert_eq!(checks.read("drain_timeout", "9", |text| number(text, 1..=5)), None);
        assert_eq!(checks.maybe("partitions", None, address), Some(None));
        let failure = checks.done(Some(())).expect_err("two problems");
        assert_eq!(failure.text, "2 problems in the settings");
        assert!(failure.problems[0].starts_with("STEPFLEET_LISTEN: bad address `here`"), "{:?}", failure.problems);
        assert!(failure.problems[1].starts_with("--drain-timeout: bad number `9`"), "{:?}", failure.problems);
        assert_eq!(address("localhost:1"), Ok(SocketAddr::from(([127, 0, 0, 1], 1))));
    }
}
