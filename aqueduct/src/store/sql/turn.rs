//! Whose turn it is to write, among processes.
//!
//! SQLite's own waiting is a poll that gets longer and longer: among writers that hardly pause, one that waits can be
//! locked out for seconds. So writers queue at two file locks. Who waits for the turn stands at the door, and who has just
//! had the turn must pass the door again: nobody is overtaken twice.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

/// The two locks, each a file beside the database.
pub(super) struct Turnstile {
    door: Arc<File>,
    turn: Arc<File>,
    /// A thread that waits for a turn that nobody waits for any more.
    waiting: Option<JoinHandle<io::Result<Turn>>>,
}

/// The turn to write; dropping it passes it on.
#[must_use = "dropping it passes the turn on"]
pub(super) struct Turn(Arc<File>);

impl Drop for Turn {
    fn drop(&mut self) {
        // A lock that cannot be let go ends with the process; the database's own lock is what protects it.
        let _ = self.0.unlock();
    }
}

impl Turnstile {
    pub(super) fn open(database: &Path) -> io::Result<Self> {
        let file = |suffix: &str| {
            let mut path = database.as_os_str().to_owned();
            path.push(suffix);
            File::options().create(true).truncate(false).write(true).open(path).map(Arc::new)
        };
        Ok(Self { door: file("-aq-door")?, turn: file("-aq-turn")?, waiting: None })
    }

    /// Waits for the turn, at most for `patience`.
    pub(super) async fn enter(&mut self, patience: Duration) -> io::Result<Turn> {
        if self.waiting.is_none() {
            if let Some(turn) = self.try_enter()? {
                return Ok(turn);
            }
            let (door, turn) = (Arc::clone(&self.door), Arc::clone(&self.turn));
            self.waiting = Some(tokio::task::spawn_blocking(move || wait(&door, turn)));
        }
        let Some(waiting) = &mut self.waiting else { return Err(io::ErrorKind::WouldBlock.into()) };
        match tokio::time::timeout(patience, waiting).await {
            Ok(entered) => {
                self.waiting = None;
                entered.map_err(io::Error::other)?
            }
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    fn try_enter(&self) -> io::Result<Option<Turn>> {
        if !try_lock(&self.door)? {
            return Ok(None);
        }
        let entered = try_lock(&self.turn);
        self.door.unlock()?;
        Ok(entered?.then(|| Turn(Arc::clone(&self.turn))))
    }
}

fn wait(door: &File, turn: Arc<File>) -> io::Result<Turn> {
    door.lock()?;
    let entered = turn.lock();
    door.unlock()?;
    entered.map(|()| Turn(turn))
}

/// Takes the lock of a file; false if somebody has it.
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}
