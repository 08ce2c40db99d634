//! One consumer, one instance, by a lease in a table in place of the lock: an instance that was stopped loses it, and may
//! resume beside its successor.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::broker_error;
use super::consumer::{Enter, Right};
use super::member::{Inner, RELEASE_RETRY};
use crate::clock::Clock;
use crate::error::BrokerError;
use crate::lease::{Held, Keeper, LastWords, LeaseTable};
use crate::topic::Text;

/// A consumer is one part of its group's work.
const WHOLE: Text = Text::from_static("all");

type Owned = watch::Receiver<BTreeMap<Text, Held>>;

/// The lease on a consumer, or the wait for it.
pub(super) struct Leased {
    keeper: Keeper,
    clock: Clock,
    following: Option<AbortHandle>,
}

impl Drop for Leased {
    fn drop(&mut self) {
        self.following.iter().for_each(AbortHandle::abort);
    }
}

impl Leased {
    pub(super) fn join(table: &Arc<dyn LeaseTable>, consumer: &Text, clock: &Clock) -> Self {
        let (group, info) = (format!("consumer {consumer}").into(), format!("pid {}", std::process::id()).into());
        let keeper = Keeper::start(Arc::clone(table), group, vec![WHOLE], info, clock.clone());
        Self { keeper, clock: clock.clone(), following: None }
    }

    /// Waits until the consumer is this instance's.
    pub(super) async fn right(&self) -> Result<Right, BrokerError> {
        let mut owned = self.keeper.owned();
        loop {
            if let Some(held) = owned.borrow_and_update().get(&WHOLE) {
                return Ok(right(held, &self.clock));
            }
            owned.changed().await.map_err(|_| BrokerError::Closed)?;
        }
    }

    /// Tells the member from now on when it has lost the consumer, and when it owns it again.
    pub(super) fn follow(&mut self, member: &Arc<Inner>) {
        let (member, owned, clock) = (Arc::clone(member), self.keeper.owned(), self.clock.clone());
        self.following = Some(tokio::spawn(follow(member, owned, clock)).abort_handle());
    }

    /// Another instance has written under a higher epoch: whoever is to own it then does so under one above that.
    pub(super) async fn give_up(&self) {
        self.keeper.let_go(&WHOLE, LastWords::default()).await;
    }

    pub(super) async fn leave(&self) {
        self.keeper.leave().await;
    }
}

fn right(held: &Held, clock: &Clock) -> Right {
    Right { lease: held.lease.clone(), clock: clock.clone(), least: held.epoch }
}

async fn follow(member: Arc<Inner>, mut owned: Owned, clock: Clock) {
    loop {
        let held = owned.borrow_and_update().get(&WHOLE).map(|held| right(held, &clock));
        let known = member.state.lock().right.least;
        if held.as_ref().map(|right| right.least) != Some(known) {
            member.state.lock().lose_all();
            member.arrived.notify_one();
        }
        let again = match held.filter(|right| right.least != known) {
            Some(right) => enter_again(&member, right).await.is_err(),
            None => false,
        };
        tokio::select! {
            biased;
            changed = owned.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RELEASE_RETRY), if again => {}
        }
    }
}

/// Owns everything that was entered before, under an epoch of this right.
async fn enter_again(member: &Inner, right: Right) -> Result<(), BrokerError> {
    let Inner { consumer, file, start, .. } = member;
    let (consumer, topics, start) = (consumer.clone(), member.state.lock().topics(), *start);
    let enter = Enter { consumer, topics, start, epoch: None, right: right.clone(), file: file.clone() };
    let (epoch, floors) = file.write_with(enter).await.map_err(|e| broker_error(&e))?;
    {
        let mut state = member.state.lock();
        state.right = right;
        state.assign(epoch, floors);
    }
    member.arrived.notify_one();
    member.wanted.notify_one();
    Ok(())
}
