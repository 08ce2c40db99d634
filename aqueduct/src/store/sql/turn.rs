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

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// The two locks, each a file beside the database.
pub(super) struct Turnstile {
    door: Arc<File>,
    turn: Arc<File>,
    waiting: Arc<Mutex<Waiting>>,
}

/// The thread that waits for the turn. There is one at most, since a lock belongs to the open file and not to a thread.
#[derive(Default)]
struct Waiting {
    runs: bool,
    /// Who wants the turn that it waits for; if nobody does by then, it is passed on at once.
    wanted: Option<oneshot::Sender<io::Result<Turn>>>,
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
        Ok(Self { door: file("-aq-door")?, turn: file("-aq-turn")?, waiting: Arc::default() })
    }

    /// Waits for the turn, at most for `patience`.
    pub(super) async fn enter(&mut self, patience: Duration) -> io::Result<Turn> {
        let entered = {
            let mut waiting = self.waiting.lock();
            if !waiting.runs {
                if let Some(turn) = self.try_enter()? {
                    return Ok(turn);
                }
                self.wait_in_a_thread()?;
                waiting.runs = true;
            }
            let (wanted, entered) = oneshot::channel();
            waiting.wanted = Some(wanted);
            entered
        };
        let Ok(entered) = tokio::time::timeout(patience, entered).await else {
            self.waiting.lock().wanted = None;
            return Err(io::ErrorKind::TimedOut.into());
        };
        entered.map_err(io::Error::other)?
    }

    /// A thread of its own: a task that blocks would keep the runtime from ending while another process has the turn.
    fn wait_in_a_thread(&self) -> io::Result<()> {
        let (door, turn, waiting) = (Arc::clone(&self.door), Arc::clone(&self.turn), Arc::clone(&self.waiting));
        let thread = std::thread::Builder::new().name("aqueduct-turn".into());
        let wait = move || {
            let entered = wait(&door, turn);
            let mut waiting = waiting.lock();
            waiting.runs = false;
            if let Some(wanted) = waiting.wanted.take() {
                // Who has gone meanwhile drops it, which passes it on.
                let _ = wanted.send(entered);
            }
        };
        thread.spawn(wait).map(drop)
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

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_mins(1);

    #[tokio::test]
    async fn a_turn_that_nobody_wants_any_more_is_passed_on() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Turnstile::open(&folder.path().join("file.db")).unwrap();
        let (mut first, mut second, mut third) = (open(), open(), open());
        let turn = first.enter(LONG).await.unwrap();
        let late = second.enter(Duration::from_millis(20)).await;
        assert!(late.is_err_and(|e| e.kind() == io::ErrorKind::TimedOut));
        drop(turn);
        let turn = third.enter(LONG).await.unwrap();
        assert!(second.enter(Duration::from_millis(20)).await.is_err());
        drop(turn);
        drop(second.enter(LONG).await.unwrap());
        drop(first.enter(LONG).await.unwrap());
    }
}
