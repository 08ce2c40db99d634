//! What a test wants otherwise than usual.

use std::path::{Path, PathBuf};

/// How a server is started.
#[derive(Clone, Debug, Default)]
pub struct Options {
    folder: Option<PathBuf>,
    settings: Vec<(String, String)>,
}

impl Options {
    /// The usual ones.
    pub fn new() -> Self {
        Self::default()
    }

    /// Where the server keeps its data, in `data` below this folder, such as the mount of a small tmpfs. What is there already is
    /// used; nothing is deleted afterwards. The folder is given to the account that the server runs as, which must be allowed to
    /// reach it. The log is elsewhere, so that it goes on when the folder is full. Defaults to a temporary folder, which is deleted
    /// with the handle.
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// A setting in the server's own words, such as `max_connections` or `innodb_lock_wait_timeout`; it is given on the command
    /// line, so `ALTER SYSTEM` does not change it. To NATS it is given as `name: value` in its configuration file, where the value may
    /// be a block in braces; `jetstream.name` stands for a name in that block. Defaults to few settings that keep a server small
    /// and its commits durable.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Several settings at once; see [`setting`](Self::setting).
    pub fn settings<V: AsRef<str>>(self, settings: &[(&str, V)]) -> Self {
        settings.iter().fold(self, |options, (name, value)| options.setting(name, value.as_ref()))
    }

    pub(crate) fn own_folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    pub(crate) fn all_settings(&self) -> &[(String, String)] {
        &self.settings
    }

    /// The same for a second server, whose data must lie elsewhere.
    pub(crate) fn elsewhere(&self) -> Self {
        Self { folder: None, settings: self.settings.clone() }
    }
}
