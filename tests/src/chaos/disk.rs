//! A small disk of its own for the servers, that can be filled: a tmpfs, which needs root.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use std::process::Command;

/// What is written at once.
static BLOCK: [u8; 64 << 10] = [0; 64 << 10];

/// A small disk. Dropping it takes it away; nothing may be open on it then.
#[derive(Debug)]
pub struct Disk(PathBuf);

impl Disk {
    /// Mounts one of so many MiB at a new folder.
    ///
    /// # Errors
    /// It cannot be done here; the text says why.
    pub fn mount(folder: PathBuf, mebibytes: u32) -> anyhow::Result<Self> {
        fs::create_dir_all(&folder)?;
        let size = format!("size={mebibytes}m");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&folder).output()?;
        ensure!(mount.status.success(), "mount: {}", String::from_utf8_lossy(&mount.stderr).trim());
        Ok(Self(folder))
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// Fills it to the last byte.
    ///
    /// # Errors
    /// It cannot be written to for another reason.
    pub fn fill(&self) -> anyhow::Result<()> {
        let mut file = fs::File::create(self.filler())?;
        loop {
            match file.write(&BLOCK) {
                Ok(1..) => {}
                Ok(0) => return Ok(()),
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error).context("fill the disk"),
            }
        }
    }

    /// Frees what [`Disk::fill`] took.
    ///
    /// # Errors
    /// The system refuses.
    pub fn free(&self) -> anyhow::Result<()> {
        Ok(fs::remove_file(self.filler())?)
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a server that is still ending keeps its files until then.
        let unmount = Command::new("umount").arg("-l").arg(&self.0).output();
        if !unmount.is_ok_and(|done| done.status.success()) {
            eprintln!("`{}` could not be unmounted", self.0.display());
        }
        let _not_empty = fs::remove_dir(&self.0);
    }
}
