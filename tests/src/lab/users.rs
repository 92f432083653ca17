//! The users of `deploy/redis/users.acl`: on the server of a test, and for the programs of its fleet.
//!
//! With `STEPFLEET_TEST_USERS=1` every server of the lab has them and every program of a fleet is one of them, so that the whole
//! end-to-end suite shows whether they may do what they need.

use anyhow::Context;

use crate::{ServerOptions, binary};

/// The password that each of them has in a test.
pub const PASSWORD: &str = "of-the-test";
const VARIABLE: &str = "STEPFLEET_TEST_USERS";

/// A user and the rest of its line behind `on`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its name.
    pub name: String,
    /// What it may do.
    pub rules: String,
}

/// The text of the file.
///
/// # Errors
/// It cannot be read.
pub fn text() -> anyhow::Result<String> {
    let path = binary::root().join("deploy/redis/users.acl");
    std::fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// The users of the programs, in the order of the file.
///
/// # Errors
/// The file cannot be read, or a line is something else.
pub fn all() -> anyhow::Result<Vec<User>> {
    let user = |line: &str| -> anyhow::Result<User> {
        let (name, rules) =
            line.strip_prefix("user ").and_then(|rest| rest.split_once(" on ")).context("not `user`")?;
        Ok(User { name: name.to_owned(), rules: rules.to_owned() })
    };
    let text = text()?;
    let lines = text.lines().filter(|line| !line.starts_with("user default ") && !line.is_empty());
    lines.map(|line| user(line).with_context(|| line.to_owned())).collect()
}

/// Adds them to a server.
///
/// # Errors
/// As [`all`].
pub fn add(options: ServerOptions) -> anyhow::Result<ServerOptions> {
    Ok(all()?.iter().fold(options, |options, user| options.user(&user.name, PASSWORD, &user.rules)))
}

/// The URL for one of them if the environment asks for them everywhere, else as it is.
#[must_use]
pub fn login_if_wanted(url: &str, user: &str) -> String {
    if wanted() { login(url, user) } else { url.to_owned() }
}

/// Whether the environment asks for them everywhere.
pub(crate) fn wanted() -> bool {
    std::env::var_os(VARIABLE).is_some_and(|value| !value.is_empty())
}

/// The URL for one of them; one that names a user stays as it is.
#[must_use]
pub fn login(url: &str, user: &str) -> String {
    match url.split_once("://") {
        Some((scheme, hosts)) if !hosts.contains('@') => format!("{scheme}://{user}:{PASSWORD}@{hosts}"),
        _ => url.to_owned(),
    }
}
