//! The ownership of a relay that is the only one: it raises the fence of every shard once, and holds them until another does.

use std::collections::BTreeMap;

use tokio::sync::watch;

use super::dialect::Session;
use super::ops::one;
use super::store::{Home, SqlStore, Step};
use crate::clock::{Clock, Lease};
use crate::error::StoreError;
use crate::outcome::BoxFuture;
use crate::store::outbox::{Held, Keeper};
use crate::topic::{Epoch, Text};

const TAKE: &str = "
    insert into aq_leases (grp, part, epoch, session) values (?, ?, 1, ?)
    on conflict (grp, part) do update set epoch = aq_leases.epoch + 1, session = excluded.session;
    select epoch from aq_leases where grp = ? and part = ?";

pub(super) struct Sole(watch::Sender<BTreeMap<Text, Held>>);

impl Sole {
    pub(super) async fn take<H: Home>(
        store: &SqlStore<H>,
        group: &Text,
        shards: u32,
        clock: &Clock,
    ) -> Result<Self, StoreError> {
        let epochs = store.write(Take { group: group.clone(), session: clock.uuid().into(), shards }).await?;
        let held = |(part, epoch)| (part, Held { epoch, lease: Lease::forever(), revoking: false });
        Ok(Self(watch::Sender::new(epochs.into_iter().map(held).collect())))
    }
}

impl Keeper for Sole {
    fn owned(&self) -> watch::Receiver<BTreeMap<Text, Held>> {
        self.0.subscribe()
    }

    fn let_go<'a>(&'a self, shard: &'a Text) -> BoxFuture<'a, ()> {
        self.0.send_modify(|held| drop(held.remove(shard)));
        Box::pin(std::future::ready(()))
    }

    fn leave(&self) -> BoxFuture<'_, ()> {
        self.0.send_modify(BTreeMap::clear);
        Box::pin(std::future::ready(()))
    }
}

struct Take {
    group: Text,
    session: Text,
    shards: u32,
}

impl Step for Take {
    type Answer = Vec<(Text, Epoch)>;

    fn run<'a>(&'a mut self, session: &'a mut dyn Session) -> BoxFuture<'a, Result<Self::Answer, StoreError>> {
        Box::pin(async move {
            let mut epochs = Vec::new();
            for shard in 0..self.shards {
                let part = Text::from(shard.to_string());
                let names = [&self.group, &part, &self.session, &self.group, &part];
                let found = session.fetch(TAKE, names.map(Into::into).into()).await?;
                epochs.push((part, Epoch(one(&found)?.int(0)?.cast_unsigned())));
            }
            Ok(epochs)
        })
    }
}
