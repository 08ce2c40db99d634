//! What several callers bring while the writer is busy is done by one task of it.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use sqlx::sqlite::SqliteConnection;
use tokio::time::Instant;

use crate::error::StoreError;
use crate::outcome::BoxFuture;
use crate::store::sql::sqlite::SqliteFile;
use crate::store::sql::writer::AnyTask;

/// Work that is done for several callers at once.
pub(super) trait Merge: Send + Sync + 'static {
    /// What a caller brings, with its way back. Dropping it tells the caller that nothing will come of it.
    type Part: Send;
    /// What came of the work, when it is committed.
    type Done: Send;

    /// How much a part is, of [`COST_MAX`](Self::COST_MAX).
    fn cost(part: &Self::Part) -> usize;
    /// No further part is taken in when there is so much.
    const COST_MAX: usize;

    /// When the work may begin; at once if that is over.
    fn not_before(&self) -> Option<Instant>;

    /// Does it, inside a transaction. As [`AnyTask::run`] it may be called again.
    fn run<'a>(
        &'a self,
        file: &'a SqliteFile,
        parts: &'a [Self::Part],
        connection: &'a mut SqliteConnection,
    ) -> BoxFuture<'a, Result<Self::Done, StoreError>>;

    /// Answers all parts, but for those that are to be done anew, each alone.
    fn answer(&self, parts: Vec<Self::Part>, done: Result<Self::Done, StoreError>) -> Vec<Self::Part>;
}

/// What waits for the writer.
pub(super) struct Merged<M: Merge>(Arc<Shared<M>>);

struct Shared<M: Merge> {
    file: SqliteFile,
    merge: M,
    /// While something waits a task is on its way to the writer. The flag says that a part goes alone.
    waiting: Mutex<VecDeque<(bool, M::Part)>>,
}

impl<M: Merge> Clone for Merged<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M: Merge> Merged<M> {
    pub(super) fn new(file: &SqliteFile, merge: M) -> Self {
        Self(Arc::new(Shared { file: file.clone(), merge, waiting: Mutex::default() }))
    }

    pub(super) fn merge(&self) -> &M {
        &self.0.merge
    }

    /// Has a part done with those that wait.
    pub(super) fn push(&self, part: M::Part) {
        let first = {
            let mut waiting = self.0.waiting.lock();
            waiting.push_back((false, part));
            waiting.len() == 1
        };
        if first {
            self.go();
        }
    }

    /// Sends a task to the writer, on its runtime: whoever brings the first part may go, and its runtime too.
    fn go(&self) {
        let task = Task { merged: self.clone(), taken: None, done: None };
        self.0.file.hand_in_later(Box::new(task), self.0.merge.not_before());
    }

    /// Takes those that wait, as far as one task goes.
    fn take(&self) -> Vec<M::Part> {
        let mut waiting = self.0.waiting.lock();
        let (mut parts, mut cost) = (Vec::new(), 0_usize);
        let fits = |(alone, _): &mut (bool, M::Part), cost| cost == 0 || !*alone && cost < M::COST_MAX;
        while let Some((alone, part)) = waiting.pop_front_if(|next| fits(next, cost)) {
            cost = if alone { M::COST_MAX } else { cost.saturating_add(M::cost(&part)) };
            parts.push(part);
        }
        let more = !waiting.is_empty();
        drop(waiting);
        if more {
            self.go();
        }
        parts
    }

    /// Puts parts back before all others.
    fn put_back(&self, parts: Vec<M::Part>) {
        if parts.is_empty() {
            return;
        }
        let idle = {
            let mut waiting = self.0.waiting.lock();
            let idle = waiting.is_empty();
            for part in parts.into_iter().rev() {
                waiting.push_front((true, part));
            }
            idle
        };
        if idle {
            self.go();
        }
    }
}

/// Does what waits when its turn comes.
struct Task<M: Merge> {
    merged: Merged<M>,
    /// None before its turn came.
    taken: Option<Vec<M::Part>>,
    done: Option<M::Done>,
}

impl<M: Merge> AnyTask for Task<M> {
    fn run<'a>(&'a mut self, connection: &'a mut SqliteConnection) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let Self { merged, taken, done } = self;
            let parts = taken.get_or_insert_with(|| merged.take());
            *done = Some(merged.0.merge.run(&merged.0.file, parts, connection).await?);
            Ok(())
        })
    }

    fn answer(mut self: Box<Self>, committed: Result<(), StoreError>) {
        // Refused before its turn came: those that wait for it are told.
        let parts = self.taken.replace(Vec::new()).unwrap_or_else(|| self.merged.take());
        let done =
            committed.and_then(|()| self.done.take().ok_or_else(|| StoreError::Unavailable("it was not done".into())));
        let again = self.merged.0.merge.answer(parts, done);
        self.merged.put_back(again);
    }
}

/// The writer has ended with its runtime: those that wait are told so by the end of their ways back.
impl<M: Merge> Drop for Task<M> {
    fn drop(&mut self) {
        if self.taken.is_none() {
            let waiting = std::mem::take(&mut *self.merged.0.waiting.lock());
            drop(waiting);
        }
    }
}
