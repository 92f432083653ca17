//! `probe`: whether a program of the fleet on this host is alive, for images that have no shell and no `curl`.

use std::time::Duration;

use clap::Args;

use crate::failure::{Exit, Failure};
use crate::out::Out;

/// How long the answer may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// Where a program of this environment says how it is: the first that is set; the port of the API if none is.
const ADDRESSES: [&str; 3] = ["STEPFLEET_METRICS_LISTEN", "STEPFLEET_HEALTH_LISTEN", "STEPFLEET_LISTEN"];
const ADDRESS_DEFAULT: &str = "127.0.0.1:7070";

/// `probe`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  stepfleet probe
  stepfleet probe http://127.0.0.1:9091/readyz")]
pub(crate) struct ProbeArgs {
    /// What to ask; `/livez` at the address that STEPFLEET_METRICS_LISTEN, STEPFLEET_HEALTH_LISTEN or STEPFLEET_LISTEN names if
    /// not given, else at 127.0.0.1:7070.
    #[arg(value_name = "URL")]
    url: Option<String>,
}

/// Asks once. Exit code 0 when the answer is a success.
///
/// # Errors
/// No answer, or another one.
pub(crate) async fn run(args: ProbeArgs, out: &Out) -> Result<Exit, Failure> {
    let set = || ADDRESSES.iter().find_map(|name| std::env::var(name).ok().filter(|text| !text.is_empty()));
    let url = args.url.unwrap_or_else(|| url_of(&set().unwrap_or_else(|| ADDRESS_DEFAULT.to_owned())));
    let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build();
    let client = client.map_err(|error| Failure::failed(format!("no client: {error}")))?;
    let unreachable = |error: reqwest::Error| Failure::failed(format!("no answer from `{url}`: {error}"));
    let answer = client.get(&url).send().await.map_err(unreachable)?;
    let status = answer.status();
    let text = answer.text().await.map_err(unreachable)?;
    if !status.is_success() {
        return Err(Failure::failed(format!("`{url}` answers {status}: {}", text.trim_end())));
    }
    out.line(text.trim_end())?;
    Ok(Exit::Done)
}

/// `/livez` of whoever listens there; at every address is at loopback too.
fn url_of(address: &str) -> String {
    let address = match address.rsplit_once(':') {
        Some(("0.0.0.0" | "[::]", port)) => format!("127.0.0.1:{port}"),
        _ => address.to_owned(),
    };
    format!("http://{address}/livez")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_for_all_is_asked_at_loopback() {
        assert_eq!(url_of("0.0.0.0:9090"), "http://127.0.0.1:9090/livez");
        assert_eq!(url_of("[::]:9091"), "http://127.0.0.1:9091/livez");
        assert_eq!(url_of("10.0.0.7:7070"), "http://10.0.0.7:7070/livez");
    }
}
