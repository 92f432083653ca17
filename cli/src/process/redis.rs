//! Where Redis is, as the programs are told it, and whether it is fit.

use std::path::PathBuf;

use clap::Args;
use stepfleet_connect::{Finding, Redis, Secret, Settings, Severity, preflight};
use stepfleet_protocol::keys::PREFIX_DEFAULT;

use super::Checks;
use crate::failure::{Exit, Failure};
use crate::out::Out;

const URL_HELP: &str = "\
`redis://host:port`, `redis-sentinel://host:port,…/service` or `redis-cluster://host:port,…`; `rediss…` for TLS, \
`user:password@` before the hosts";

/// Where Redis is.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Redis")]
pub(crate) struct RedisArgs {
    #[arg(long = "redis", value_name = "URL", env = "STEPFLEET_REDIS_URL", hide_env_values = true, help = URL_HELP)]
    pub(super) redis_url: Option<String>,
    /// Prefix of every key; the same for all programs of a fleet.
    #[arg(long, value_name = "TEXT", env = "STEPFLEET_REDIS_PREFIX", default_value = PREFIX_DEFAULT)]
    pub(super) redis_prefix: String,
    /// Password of the Sentinels themselves, if they have one.
    #[arg(long, value_name = "PASSWORD", env = "STEPFLEET_SENTINEL_PASSWORD", hide_env_values = true)]
    sentinel_password: Option<String>,
    /// PEM file with the authorities to trust instead of the public ones.
    #[arg(long, value_name = "FILE", env = "STEPFLEET_REDIS_CA_FILE")]
    redis_ca_file: Option<PathBuf>,
    /// PEM file with the client's certificate.
    #[arg(long, value_name = "FILE", env = "STEPFLEET_REDIS_CERT_FILE")]
    redis_cert_file: Option<PathBuf>,
    /// PEM file with the client's key.
    #[arg(long, value_name = "FILE", env = "STEPFLEET_REDIS_KEY_FILE")]
    redis_key_file: Option<PathBuf>,
}

impl RedisArgs {
    /// Reads the settings; `None` after a problem.
    pub(crate) fn check(&self, checks: &mut Checks<'_>) -> Option<Settings> {
        let Some(url) = self.redis_url.as_deref() else {
            checks.problem("redis_url", "missing; set it or STEPFLEET_REDIS_URL, as `redis://127.0.0.1:6379`");
            return None;
        };
        if self.redis_prefix.contains(['{', '}']) || self.redis_prefix.chars().any(char::is_whitespace) {
            let found = &self.redis_prefix;
            checks
                .problem("redis_prefix", format!("bad prefix `{found}`: allowed is a text without braces and spaces"));
        }
        let mut settings = checks.read("redis_url", url, Settings::parse)?;
        settings.sentinel_password = self.sentinel_password.as_ref().map(Secret::new);
        settings.ca_file.clone_from(&self.redis_ca_file);
        settings.client_cert_file.clone_from(&self.redis_cert_file);
        settings.client_key_file.clone_from(&self.redis_key_file);
        checks.read("redis_url", "", |_| settings.check())?;
        Some(settings)
    }

    /// Whether somebody said where Redis is.
    pub(crate) fn is_given(&self) -> bool {
        self.redis_url.is_some()
    }
}

/// Finds the servers.
///
/// # Errors
/// Exit code 5 when none can be reached, 2 when the settings do not fit, 6 when the server refuses.
pub(crate) async fn connect(settings: Settings) -> Result<Redis, Failure> {
    Redis::connect(settings).await.map_err(|error| failure(&error))
}

/// What an error of the connection means for the exit code.
pub(crate) fn failure(error: &stepfleet_connect::Error) -> Failure {
    use stepfleet_connect::Error;
    let exit = match error {
        Error::Setting { .. } => Exit::Usage,
        Error::Refused { .. } => Exit::NotAllowed,
        _ => Exit::Unreachable,
    };
    Failure::new(exit, error.to_string())
}

/// The findings about the servers.
///
/// # Errors
/// As [`connect`].
pub(crate) async fn findings(redis: &Redis, is_dev: bool) -> Result<Vec<Finding>, Failure> {
    Ok(preflight(&redis.facts().await.map_err(|error| failure(&error))?, is_dev))
}

/// Warns about servers that are not set up well.
///
/// # Errors
/// Exit code 2 when a program must not start on them.
pub(super) async fn fit(redis: &Redis, is_dev: bool, out: &Out) -> Result<(), Failure> {
    let findings = findings(redis, is_dev).await?;
    let (errors, warnings): (Vec<_>, Vec<_>) = findings.iter().partition(|found| found.severity == Severity::Error);
    warnings.iter().for_each(|found| out.warn(&found.to_string()));
    if errors.is_empty() {
        return Ok(());
    }
    let problems = errors.iter().map(|found| found.to_string()).collect();
    Err(Failure::usage("the server is not set up for this").problems(problems))
}
