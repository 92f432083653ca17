//! The admin verbs: each asks the public API and shows the answer. None knows Redis, but for `doctor`.

pub(crate) mod audit;
pub(crate) mod breakers;
pub(crate) mod campaigns;
pub(crate) mod completions;
pub(crate) mod dead_letters;
pub(crate) mod doctor;
pub(crate) mod import;
pub(crate) mod limits;
pub(crate) mod partitions;
pub(crate) mod policies;
pub(crate) mod probe;
pub(crate) mod quarantine;
pub(crate) mod queues;
pub(crate) mod runs;
pub(crate) mod subscribers;
pub(crate) mod tokens;
pub(crate) mod workers;
pub(crate) mod workflows;

use clap::Args;
use serde::de::DeserializeOwned;
use stepfleet_coordinator::http::view::Page;

use crate::api::{Api, Call};
use crate::args::{Command, Global};
use crate::failure::{Exit, Failure};
use crate::out::Out;

/// Items that one page of a listing asks for at most.
const PAGE_ITEMS_MAX: usize = 100;

/// Runs an admin verb.
///
/// # Errors
/// Whatever kept it from its answer.
pub(crate) async fn run(command: Command, global: &Global, out: &Out) -> Result<Exit, Failure> {
    let ask = || Api::new(global, out).map(|api| Session { api, out, timeout: global.timeout.map(|t| t.std()) });
    match command {
        Command::Runs(verb) => runs::run(verb, &ask()?).await,
        // Some of its verbs work offline, so it makes its session itself.
        Command::Workflows(verb) => workflows::run(verb, out, ask).await,
        Command::DeadLetters(verb) => dead_letters::run(verb, &ask()?).await,
        Command::Workers(verb) => workers::run(verb, &ask()?).await,
        Command::Breakers(verb) => breakers::run(verb, &ask()?).await,
        Command::Limits(verb) => limits::run(verb, &ask()?).await,
        Command::Campaigns(verb) => campaigns::run(verb, &ask()?).await,
        Command::Queues(verb) => queues::run(verb, &ask()?).await,
        Command::Policies(verb) => policies::run(verb, out, ask).await,
        Command::Partitions(verb) => partitions::run(verb, &ask()?).await,
        Command::Quarantine(verb) => quarantine::run(verb, &ask()?).await,
        Command::Audit(verb) => audit::run(verb, &ask()?).await,
        Command::Subscribers(verb) => subscribers::run(verb, &ask()?).await,
        Command::Probe(args) => probe::run(args, out).await,
        Command::Doctor(args) => doctor::run(args, &ask()?).await,
        Command::Dev(_)
        | Command::Coordinator(_)
        | Command::Worker(_)
        | Command::Bench(_)
        | Command::Completions(_)
        | Command::Tokens(_)
        | Command::Import(_) => unreachable!("main runs these itself"),
    }
}

/// What every verb needs: whom to ask and where to answer.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    /// The API.
    pub(crate) api: Api,
    /// The two voices.
    pub(crate) out: &'a Out,
    /// How long to wait for a run, if there is a limit.
    pub(crate) timeout: Option<std::time::Duration>,
}

/// Options of listings.
#[derive(Debug, Args)]
pub(crate) struct Paging {
    /// Show at most this many.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// Begin where an earlier listing stopped (its `next`).
    #[arg(long, value_name = "CURSOR")]
    cursor: Option<String>,
}

impl Session<'_> {
    /// Items of a listing: page by page until the limit for a table. `call` makes the request of the first page anew for each.
    ///
    /// With `--output json` one page is written unchanged and nothing is returned.
    ///
    /// # Errors
    /// As every request.
    async fn list<'c, T: DeserializeOwned>(
        &self,
        call: impl Fn() -> Call<'c>,
        paging: &Paging,
    ) -> Result<Option<Page<T>>, Failure> {
        let limit = paging.limit as usize;
        let mut page = Page { items: Vec::new(), next: paging.cursor.clone() };
        loop {
            let wanted = (limit - page.items.len()).min(PAGE_ITEMS_MAX);
            let answer = call().query("limit", Some(wanted)).query("cursor", page.next.as_deref()).send().await?;
            if self.out.is_json() {
                self.out.line(answer.text.trim_end())?;
                return Ok(None);
            }
            let more: Page<T> = answer.read()?;
            page.items.extend(more.items);
            page.next = more.next;
            if page.next.is_none() || page.items.len() >= limit {
                return Ok(Some(page));
            }
        }
    }

    /// Says that there is more, and how to get it.
    fn more(&self, next: Option<&str>) {
        if let Some(next) = next {
            self.out.hint(&format!("there is more: `--cursor {next}`, or a larger `--limit`"));
        }
    }
}
