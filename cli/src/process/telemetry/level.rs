//! The log's filter from a file, read again and again: a mounted ConfigMap, or what a person writes there.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::io::AsyncReadExt;

use tracing_subscriber::{EnvFilter, Registry, reload};

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Bytes of a filter, at most.
const BYTES_MAX: usize = 4096;

/// Follows the file for ever; `usual` holds while it is missing or empty. What cannot be read is told once and changes nothing.
pub(super) async fn follow(path: PathBuf, usual: String, handle: reload::Handle<EnvFilter, Registry>) {
    let mut seen = usual.clone();
    let mut looks = tokio::time::interval(LOOK_EVERY);
    loop {
        looks.tick().await;
        let wanted = match read(&path).await {
            Ok(text) if text.trim().is_empty() => usual.clone(),
            Ok(text) => text.trim().to_owned(),
            Err(error) if error.kind() == ErrorKind::NotFound => usual.clone(),
            Err(error) => {
                tracing::debug!(file = %path.display(), %error, "the file with the log filter cannot be read");
                continue;
            }
        };
        if wanted == seen {
            continue;
        }
        let filter = match filter(&wanted) {
            Ok(filter) => filter,
            Err(why) => {
                tracing::warn!(file = %path.display(), why, "the log filter stays as it is");
                seen = wanted;
                continue;
            }
        };
        seen.clone_from(&wanted);
        // Before it changes, as the new one may not let this through.
        tracing::warn!(file = %path.display(), filter = wanted, "the log filter changes");
        if let Err(error) = handle.reload(filter) {
            tracing::warn!(%error, "the log filter stays as it is");
        }
    }
}

/// The text of the file, as far as one that is too long is told.
async fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let file = tokio::fs::File::open(path).await?;
    file.take(BYTES_MAX as u64 + 1).read_to_string(&mut text).await?;
    Ok(text)
}

fn filter(text: &str) -> Result<EnvFilter, String> {
    if text.len() > BYTES_MAX {
        return Err(format!("the file is too long; allowed are {BYTES_MAX} bytes"));
    }
    EnvFilter::try_new(text).map_err(|error| format!("bad filter `{text}`: {error}"))
}
