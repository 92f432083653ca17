//! Where the server programs and the built `stepfleet` are.
//!
//! The set-up (`make setup`) writes what it found to `.tools/env`. Looked at in this order: the environment variable, that
//! file, `.tools/` itself, the PATH. A missing program is an error that says how to get it; nothing is skipped.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

const SERVER: &str = "STEPFLEET_TEST_SERVER";
const SERVER_TLS: &str = "STEPFLEET_TEST_SERVER_TLS";
const PROGRAM: &str = "STEPFLEET_BIN";

/// The Valkey or Redis that tests start.
///
/// # Errors
/// There is none; the text says how to get one.
pub fn server() -> anyhow::Result<PathBuf> {
    named(SERVER)
        .or_else(|| existing(root().join(".tools/valkey-server")))
        .or_else(on_path)
        .with_context(|| format!("no server to test with; hint: run `make setup`, or set {SERVER} to a valkey-server"))
}

/// The same, built with TLS.
///
/// # Errors
/// There is none; the text says how to get one.
pub fn server_tls() -> anyhow::Result<PathBuf> {
    named(SERVER_TLS).with_context(|| {
        format!(
            "no server with TLS to test with; hint: run `make setup` as root on Debian, or install redis-server and run \
             `make setup`, or set {SERVER_TLS} to a redis-server that was built with TLS"
        )
    })
}

/// The built program: named by `STEPFLEET_BIN`, else the one in the same target folder as the running test.
///
/// # Errors
/// It is not built.
pub fn stepfleet() -> anyhow::Result<PathBuf> {
    if let Some(path) = from_environment(PROGRAM) {
        return Ok(path);
    }
    beside("stepfleet")
}

/// The program of that name in the same target folder as the running test.
///
/// # Errors
/// It is not built.
pub fn beside(name: &str) -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe()?;
    let mut folder = test.parent().context("a program is in a folder")?;
    if folder.ends_with("deps") {
        folder = folder.parent().context("deps is in a folder")?;
    }
    let path = folder.join(name);
    if !path.is_file() {
        bail!("`{}` does not exist; hint: run `cargo build --workspace --all-targets`, or `make test`", path.display());
    }
    Ok(path)
}

fn named(variable: &str) -> Option<PathBuf> {
    from_environment(variable).or_else(|| {
        let file = std::fs::read_to_string(root().join(".tools/env")).ok()?;
        existing(PathBuf::from(setting(&file, variable)?))
    })
}

fn from_environment(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// The value of `NAME='value'` in an env file; `None` if it is missing or empty.
fn setting<'a>(file: &'a str, name: &str) -> Option<&'a str> {
    let value = file.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
    Some(value.trim_matches('\'')).filter(|value| !value.is_empty())
}

fn on_path() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    ["valkey-server", "redis-server"]
        .iter()
        .find_map(|name| folders.iter().find_map(|folder| existing(folder.join(name))))
}

fn existing(path: PathBuf) -> Option<PathBuf> {
    path.is_file().then_some(path)
}

/// The top folder of the project.
#[must_use]
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are a folder of the project")
}

#[cfg(test)]
mod tests {
    use super::setting;

    #[test]
    fn an_empty_setting_counts_as_missing() {
        let file = "STEPFLEET_TEST_SERVER='/bin/a b'\nSTEPFLEET_TEST_SERVER_TLS=''\n";
        assert_eq!(setting(file, "STEPFLEET_TEST_SERVER"), Some("/bin/a b"));
        assert_eq!(setting(file, "STEPFLEET_TEST_SERVER_TLS"), None);
        assert_eq!(setting(file, "STEPFLEET"), None);
    }
}
