//! The task that keeps an instance's leases: it beats, does what the group concludes, and tells its user what it owns.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;

use super::group::{Action, Group, SOON, Sent};
use super::{Beat, LeaseError, LeaseTable, Member};
use crate::clock::{Boot, Clock, Lease};
use crate::outcome::BoxFuture;
use crate::topic::{Epoch, Position, Text};

/// How long the table has to answer a call. A lease outlives one that does not.
const CALL: Duration = Duration::from_secs(2);

/// The pause after a beat that failed: doubling, and short enough to be heard again before watchers strike.
const RETRY: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// How long leaving takes at most; who has not answered by then is struck off.
const LEAVE: Duration = Duration::from_secs(5);

/// A part that this instance owns.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    /// Above all before; what it writes elsewhere is fenced by it.
    pub(crate) epoch: Epoch,
    /// Until when it is owned. One that has lapsed may hold again: in between nobody else could have owned it.
    pub(crate) lease: Lease,
    /// Another is to own it: finish or cancel its work, and [let go](Keeper::let_go). May be taken back.
    pub(crate) revoking: bool,
    /// What an owner before has written down.
    #[cfg_attr(not(feature = "nats"), allow(dead_code, reason = "elsewhere the floor lies with the log"))]
    pub(crate) floor: Option<Position>,
}

/// Keeps one instance's leases on parts of a group's work, in a task of its own.
///
/// Parts come and go through [`owned`](Self::owned). Dropping it is a crash: what it owns goes to others when it has been
/// struck off. The trap: that a part is in the map does not say that it is owned at this moment, only its lease does.
#[derive(Debug)]
pub(crate) struct Keeper {
    owned: watch::Receiver<BTreeMap<Text, Held>>,
    requests: mpsc::Sender<Request>,
    task: AbortHandle,
}

/// What an owner leaves behind that lets go of a part.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LastWords {
    /// Everything up to here is settled.
    pub(crate) floor: Option<Position>,
    /// If it is taken again here, under an epoch above this one.
    pub(crate) above: Option<Epoch>,
}

/// What the user asks of the task.
#[derive(Debug)]
enum Request {
    LetGo(Text, LastWords, oneshot::Sender<()>),
    Leave(oneshot::Sender<()>),
}

impl Keeper {
    /// Joins a group that shares these parts. All its instances must name the same ones.
    pub(crate) fn start(table: Arc<dyn LeaseTable>, group: Text, parts: Vec<Text>, info: Text, clock: Clock) -> Self {
        Self::start_on(table, (group, info), parts, clock, |task| tokio::spawn(task).abort_handle())
    }

    pub(super) fn start_on(
        table: Arc<dyn LeaseTable>,
        (group, info): (Text, Text),
        parts: Vec<Text>,
        clock: Clock,
        spawn: impl FnOnce(BoxFuture<'static, ()>) -> AbortHandle,
    ) -> Self {
        let member = Member { group, session: clock.uuid().into(), info };
        let group = Group::new(parts, member.session.clone());
        let (told, owned) = watch::channel(BTreeMap::new());
        let (requests, asked) = mpsc::channel(1);
        let changes = table.changes();
        let (number, joined, failures) = (0, false, 0);
        let task = Task { table, member, group, clock, told, asked, changes, number, joined, failures };
        Self { owned, requests, task: spawn(Box::pin(task.run())) }
    }

    /// What is owned now, and each change of it. A part leaves the map when it is lost or let go of, and its lease ends.
    pub(crate) fn owned(&self) -> watch::Receiver<BTreeMap<Text, Held>> {
        self.owned.clone()
    }

    /// Gives a part to others at once, or to this instance again under a higher epoch if nobody else is to have it. Its
    /// work must have ended.
    ///
    /// Answers when the table has been told, or could not be; then it is told again.
    pub(crate) async fn let_go(&self, part: &Text, words: LastWords) {
        let (done, answer) = oneshot::channel();
        if self.requests.send(Request::LetGo(part.clone(), words, done)).await.is_ok() {
            // A task that has ended holds nothing.
            let _ = answer.await;
        }
    }

    /// Gives everything to others at once and leaves the group. All work must have ended. Takes 5 s at most.
    pub(crate) async fn leave(&self) {
        let (done, answer) = oneshot::channel();
        let leave = async {
            if self.requests.send(Request::Leave(done)).await.is_ok() {
                let _ = answer.await;
            }
        };
        if tokio::time::timeout(LEAVE, leave).await.is_err() {
            tracing::warn!(
                "the table of leases does not answer; this instance leaves without a word and is struck off"
            );
        }
        self.task.abort();
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Task {
    table: Arc<dyn LeaseTable>,
    member: Member,
    group: Group,
    clock: Clock,
    told: watch::Sender<BTreeMap<Text, Held>>,
    asked: mpsc::Receiver<Request>,
    changes: Option<watch::Receiver<u64>>,
    /// Of the last beat that was sent.
    number: u64,
    /// The session is in the table, or was struck off it.
    joined: bool,
    /// Beats that failed since the last that did not.
    failures: u32,
}

impl Task {
    async fn run(mut self) {
        loop {
            let next = self.beat().await;
            if self.wait(next).await.is_break() {
                return;
            }
        }
    }

    /// Sends a beat and does what its answer asks for. Answers when the next is due.
    async fn beat(&mut self) -> Boot {
        self.number += 1;
        let (sent, beat) = (self.clock.boot(), Beat { number: self.number, joins: !self.joined });
        let view = match answered(self.table.beat(&self.member, beat)).await {
            Ok(view) => view,
            Err(error) => return self.failed(&error),
        };
        self.joined = true;
        let actions = self.group.observe(&view, Sent { number: self.number, at: sent }, self.clock.boot());
        self.tell();
        let acted = !actions.is_empty();
        for action in actions {
            if let Err(error) = self.act(action).await {
                return self.failed(&error);
            }
        }
        self.failures = 0;
        // What was done counts when a view shows it.
        if acted { self.clock.boot().after(SOON) } else { self.group.next_beat(sent) }
    }

    async fn act(&mut self, action: Action) -> Result<(), LeaseError> {
        let (table, member) = (&self.table, &self.member);
        match action {
            Action::Rejoin => {
                tracing::warn!(group = %member.group, session = %member.session, "this instance was silent for too long and was struck off; it joins again");
                self.member.session = self.clock.uuid().into();
                self.group.rejoin(self.member.session.clone());
                self.joined = false;
                Ok(())
            }
            Action::Strike { session, beat } => {
                tracing::warn!(group = %member.group, %session, "an instance has fallen silent and is struck off");
                answered(table.strike(&member.group, &session, beat)).await
            }
            Action::LetGo { part, epoch, floor } => answered(table.let_go(member, &part, epoch, floor)).await,
            Action::Take(takes) => answered(table.take(member, &takes)).await,
        }
    }

    /// Says that the table is away; the leases lapse by themselves. Answers when the next beat is due.
    fn failed(&mut self, error: &LeaseError) -> Boot {
        let doubled = RETRY.saturating_mul(1 << self.failures.min(8)).min(RETRY_MAX);
        if self.failures == 0 {
            tracing::warn!(group = %self.member.group, %error, "leases cannot be kept; it is tried again");
        }
        self.failures += 1;
        self.clock.boot().after(doubled / 2 + self.clock.jitter(doubled / 2))
    }

    /// Waits for the next beat and does meanwhile what is asked. Breaks when the instance has left.
    async fn wait(&mut self, mut next: Boot) -> ControlFlow<()> {
        loop {
            let left = next.since(self.clock.boot());
            tokio::select! {
                biased;
                request = self.asked.recv() => match request {
                    Some(Request::LetGo(part, words, done)) => {
                        self.let_go(&part, words).await;
                        // Who does not wait any more does not need to know.
                        let _ = done.send(());
                    }
                    Some(Request::Leave(done)) => {
                        self.leave().await;
                        let _ = done.send(());
                        return ControlFlow::Break(());
                    }
                    None => return ControlFlow::Break(()),
                },
                () = changed(&mut self.changes), if left > SOON => next = self.clock.boot().after(SOON),
                () = tokio::time::sleep(left) => return ControlFlow::Continue(()),
            }
        }
    }

    async fn let_go(&mut self, part: &Text, words: LastWords) {
        let Some(epoch) = self.group.let_go(part, words) else { return };
        self.tell();
        if let Err(error) = answered(self.table.let_go(&self.member, part, epoch, words.floor)).await {
            tracing::warn!(group = %self.member.group, %part, %error, "a part was not let go of; it is tried again");
        }
    }

    async fn leave(&mut self) {
        self.group.lose_all();
        self.tell();
        while let Err(error) = answered(self.table.leave(&self.member)).await {
            tracing::warn!(group = %self.member.group, %error, "the group was not left; it is tried again");
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Tells the user what it owns, if that has changed.
    fn tell(&self) {
        let held = self.group.held();
        let stands = |held: &Held| (held.epoch, held.revoking);
        self.told.send_if_modified(|told| {
            let same = told.keys().eq(held.keys()) && told.values().map(stands).eq(held.values().map(stands));
            if !same {
                told.clone_from(held);
            }
            !same
        });
    }
}

/// The answer to a call, within its time.
async fn answered<T>(call: BoxFuture<'_, Result<T, LeaseError>>) -> Result<T, LeaseError> {
    let late = |_| LeaseError::Unavailable(format!("no answer within {CALL:?}").into());
    tokio::time::timeout(CALL, call).await.map_err(late)?
}

/// Resolves when the table has changed; never if it does not tell.
async fn changed(changes: &mut Option<watch::Receiver<u64>>) {
    if let Some(changes) = changes
        && changes.changed().await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}
