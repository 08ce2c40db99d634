//! Leases in a key-value bucket: a key for each session of a consumer and for each of its partitions, written by
//! compare-and-set.
//!
//! A watch keeps the bucket in memory. What is answered is what it has shown once it has reached the write that was answered
//! for, so a view is never older than the beat that asked for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::kv::{self, CreateErrorKind, Operation, Store, UpdateErrorKind};
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{Config, DiscardPolicy, Info, StorageType};
use bytes::Bytes;
use futures_util::StreamExt;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::Shared;
use super::declare::api_error;
use super::names::{bucket, token};
use crate::clock::Timestamp;
use crate::error::{BoxError, BrokerError};
use crate::lease::{Beat, LeaseError, LeaseTable, Member, Record, Take, View};
use crate::outcome::BoxFuture;
use crate::topic::{Epoch, Position, Text};

/// After how long the marks of sessions that have ended are removed; a watch that is away for longer begins anew.
const MARKS: Duration = Duration::from_hours(1);

/// The pause before a watch that has ended is begun anew.
const WATCH_AGAIN: Duration = Duration::from_millis(250);

/// The buckets with the leases of consumers.
pub(super) struct NatsLeases {
    shared: Arc<Shared>,
    /// Copies of each bucket in the cluster.
    replicas: usize,
    buckets: Mutex<BTreeMap<Text, Arc<Bucket>>>,
    changes: watch::Sender<u64>,
}

/// The bucket of one group, and what is in it.
struct Bucket {
    shared: Arc<Shared>,
    store: Store,
    /// None before the watch has shown all that was there.
    seen: watch::Receiver<Option<Seen>>,
    watching: AbortHandle,
}

impl Drop for Bucket {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

/// What a watch has shown.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// Everything up to here.
    revision: u64,
    entries: BTreeMap<String, Entry>,
    /// Keys of which only a mark is left, and since when.
    marks: BTreeMap<String, Timestamp>,
}

#[derive(Clone, Debug)]
struct Entry {
    revision: u64,
    value: Value,
}

impl Entry {
    fn text(&self, name: &str) -> Option<Text> {
        Some(self.value.get(name)?.as_str()?.into())
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.value.get(name)?.as_u64()
    }

    fn record(&self) -> Option<(Text, Record)> {
        let (epoch, floor) = (Epoch(self.number("epoch")?), self.number("floor").map(Position));
        Some((self.text("part")?, Record { epoch, session: self.text("session"), floor }))
    }
}

impl Seen {
    fn take(&mut self, entry: &kv::Entry) {
        self.revision = self.revision.max(entry.revision);
        let value = (entry.operation == Operation::Put).then(|| serde_json::from_slice(&entry.value).ok()).flatten();
        if let Some(value) = value {
            self.marks.remove(&entry.key);
            self.entries.insert(entry.key.clone(), Entry { revision: entry.revision, value });
        } else {
            self.entries.remove(&entry.key);
            let at = i64::try_from(entry.created.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX);
            self.marks.insert(entry.key.clone(), Timestamp::from_unix_ms(at));
        }
    }

    fn view(&self) -> View {
        let (sessions, parts): (Vec<_>, Vec<_>) = self.entries.iter().partition(|(key, _)| key.starts_with(SESSION));
        let sessions = sessions.into_iter().filter_map(|(_, entry)| entry.text("session").zip(entry.number("beat")));
        let sessions: BTreeMap<Text, u64> = sessions.collect();
        let records = parts.into_iter().filter_map(|(_, entry)| {
            let (part, record) = entry.record()?;
            let session = record.session.filter(|session| sessions.contains_key(session));
            Some((part, Record { session, ..record }))
        });
        View { records: records.collect(), sessions }
    }

    fn record(&self, part: &Text) -> Option<(u64, Record)> {
        let entry = self.entries.get(&part_key(part))?;
        Some((entry.revision, entry.record()?.1))
    }
}

/// What keys of sessions, and of parts, begin with.
const SESSION: &str = "s.";
const PART: &str = "p.";

fn session_key(session: &Text) -> String {
    format!("{SESSION}{}", token(session))
}

fn part_key(part: &Text) -> String {
    format!("{PART}{}", token(part))
}

fn beaten(member: &Member, number: u64) -> Bytes {
    json!({"session": member.session.as_str(), "beat": number, "info": member.info.as_str()}).to_string().into()
}

fn recorded(part: &Text, record: &Record) -> Bytes {
    let session = record.session.as_ref().map(Text::as_str);
    let floor = record.floor.map(|floor| floor.0);
    json!({"part": part.as_str(), "epoch": record.epoch.0, "session": session, "floor": floor}).to_string().into()
}

/// What became of a write that expected a revision.
enum Written {
    At(u64),
    /// The key has another revision.
    Otherwise,
}

impl Bucket {
    async fn put(&self, key: &str, value: Bytes, revision: Option<u64>) -> Result<Written, LeaseError> {
        let Some(revision) = revision else {
            return match self.answer(key, self.store.create(key, value)).await? {
                Ok(revision) => Ok(Written::At(revision)),
                Err(error) if error.kind() == CreateErrorKind::AlreadyExists => Ok(Written::Otherwise),
                Err(error) => Err(away(error)),
            };
        };
        match self.answer(key, self.store.update(key, value, revision)).await? {
            Ok(revision) => Ok(Written::At(revision)),
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(Written::Otherwise),
            Err(error) => Err(away(error)),
        }
    }

    /// Removes a session that still has this revision.
    async fn remove(&self, key: &str, revision: u64) -> Result<(), LeaseError> {
        match self.answer(key, self.store.purge_expect_revision(key, Some(revision))).await? {
            Err(error) if error.kind() != UpdateErrorKind::WrongLastRevision => Err(away(error)),
            _ => Ok(()),
        }
    }

    /// The answer to a write, or why none will come.
    async fn answer<T>(&self, key: &str, write: impl Future<Output = T>) -> Result<T, LeaseError> {
        let (link, prefix) =
            (&self.shared.link, if self.store.use_jetstream_prefix { &self.shared.link.api } else { "" });
        let dot = if prefix.is_empty() { "" } else { "." };
        let subject = format!("{prefix}{dot}{}{key}", self.store.prefix);
        link.answer(link.mark(), &subject, write).await.map_err(failed)
    }

    /// What is in the bucket once the watch has come up to a revision.
    async fn seen(&self, revision: u64) -> Result<Seen, LeaseError> {
        let mut seen = self.seen.clone();
        let reached = seen.wait_for(|seen| seen.as_ref().is_some_and(|seen| seen.revision >= revision)).await;
        reached.map(|seen| seen.clone().unwrap_or_default()).map_err(away)
    }

    /// What is in the bucket now.
    async fn now(&self) -> Result<Seen, LeaseError> {
        let revision = self.store.stream.get_info().await.map_err(away)?.state.last_sequence;
        let seen = self.seen(revision).await?;
        // A watch goes on at the revision where it was.
        if seen.revision > revision
            && self.store.stream.get_info().await.map_err(away)?.state.last_sequence < seen.revision
        {
            return Err(away("the bucket was made anew"));
        }
        Ok(seen)
    }

    /// Removes what is left of sessions that ended long ago.
    async fn tidy(&self, now: Timestamp) -> Result<(), LeaseError> {
        let marks = self.seen(0).await?.marks;
        for (key, _) in marks.into_iter().filter(|(_, at)| now.since(*at) > MARKS) {
            let subject = format!("{}{key}", self.store.prefix);
            self.store.stream.purge().filter(subject).await.map_err(away)?;
        }
        Ok(())
    }
}

fn away(error: impl Into<BoxError>) -> LeaseError {
    LeaseError::Unavailable(error.into())
}

fn failed(error: BrokerError) -> LeaseError {
    match error {
        BrokerError::Refused(text) => LeaseError::Refused(text),
        error => away(error),
    }
}

impl NatsLeases {
    pub(super) fn new(shared: Arc<Shared>, replicas: usize) -> Self {
        Self { shared, replicas, buckets: Mutex::default(), changes: watch::Sender::new(0) }
    }

    /// Makes the bucket of a group if there is none, so that a right that is missing is said at once.
    pub(super) async fn open(&self, group: &Text) -> Result<(), BrokerError> {
        self.make(&bucket(group)).await?;
        let seen = async { self.bucket(group).await?.seen(0).await.map(drop) };
        let (link, limit) = (&self.shared.link, self.shared.options.ack_timeout);
        let watched = format!("{}.CONSUMER.CREATE.KV_{}", link.api, bucket(group));
        let seen = link.answer(link.mark(), &watched, tokio::time::timeout(limit, seen)).await?;
        let seen = seen.map_err(|_| format!("no answer within {limit:?}"));
        let why = match seen {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(late) => late,
        };
        let text = format!("the key-value bucket {} cannot be watched: {why}", bucket(group));
        Err(BrokerError::Unavailable(text.into()))
    }

    /// Makes a bucket. One that is there already is as good.
    async fn make(&self, name: &str) -> Result<(), BrokerError> {
        let stream = format!("KV_{name}");
        match self.shared.ask::<Info>(format!("STREAM.INFO.{stream}"), &()).await? {
            Response::Ok(_) => return Ok(()),
            Response::Err { error } if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {}
            Response::Err { error } => return Err(api_error(&error)),
        }
        let config = Config {
            name: stream.clone(),
            description: Some("leases of a consumer, by Aqueduct".to_owned()),
            subjects: vec![format!("$KV.{name}.>")],
            max_messages_per_subject: 1,
            max_messages: -1,
            max_bytes: -1,
            discard: DiscardPolicy::New,
            storage: StorageType::File,
            num_replicas: self.replicas,
            allow_rollup: true,
            deny_delete: true,
            allow_direct: true,
            ..Config::default()
        };
        match self.shared.ask::<Info>(format!("STREAM.CREATE.{stream}"), &config).await? {
            Response::Err { error } if error.error_code() != ErrorCode::STREAM_NAME_EXIST => Err(api_error(&error)),
            _ => Ok(()),
        }
    }

    /// The bucket of a group, made if there is none.
    async fn bucket(&self, group: &Text) -> Result<Arc<Bucket>, LeaseError> {
        if let Some(bucket) = self.buckets.lock().get(group) {
            return Ok(Arc::clone(bucket));
        }
        let name = bucket(group);
        self.make(&name).await.map_err(failed)?;
        let store = self.shared.link.context.get_key_value(&name).await.map_err(away)?;
        let (told, seen) = watch::channel(None);
        let watching = tokio::spawn(follow(store.clone(), told, self.changes.clone())).abort_handle();
        let bucket = Arc::new(Bucket { shared: Arc::clone(&self.shared), store, seen, watching });
        self.buckets.lock().insert(group.clone(), Arc::clone(&bucket));
        Ok(bucket)
    }

    /// The bucket for one call; after one that fails it is opened anew, since it may be another by then.
    async fn within<T>(
        &self,
        group: &Text,
        call: impl AsyncFnOnce(Arc<Bucket>) -> Result<T, LeaseError>,
    ) -> Result<T, LeaseError> {
        let bucket = self.bucket(group).await?;
        let fresh = OnlyIfDone { leases: self, group, done: false };
        let answer = call(bucket).await;
        fresh.done(answer.is_ok());
        answer
    }
}

/// Forgets a bucket unless the call on it has succeeded; it may also have been given up.
struct OnlyIfDone<'a> {
    leases: &'a NatsLeases,
    group: &'a Text,
    done: bool,
}

impl OnlyIfDone<'_> {
    fn done(mut self, done: bool) {
        self.done = done;
    }
}

impl Drop for OnlyIfDone<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.leases.buckets.lock().remove(self.group);
        }
    }
}

/// Keeps in memory what is in a bucket, and tells when parts may have become nobody's.
async fn follow(store: Store, told: watch::Sender<Option<Seen>>, changes: watch::Sender<u64>) {
    loop {
        if let Ok(there) = store.stream.get_info().await
            && let Ok(mut watch) = store.watch_with_history(">").await
        {
            // What was there before and is not any more is not shown.
            let mut first = Some(Seen { revision: there.state.last_sequence, ..Seen::default() });
            if there.state.messages == 0 {
                told.send_replace(first.take());
            }
            while let Some(Ok(entry)) = watch.next().await {
                let frees = entry.operation != Operation::Put || !entry.key.starts_with(SESSION);
                match &mut first {
                    Some(seen) => {
                        seen.take(&entry);
                        if entry.delta == 0 {
                            told.send_replace(first.take());
                        }
                    }
                    None => told.send_modify(|seen| {
                        if let Some(seen) = seen {
                            seen.take(&entry);
                        }
                    }),
                }
                if frees {
                    changes.send_modify(|count| *count += 1);
                }
            }
        }
        tokio::time::sleep(WATCH_AGAIN).await;
    }
}

impl LeaseTable for NatsLeases {
    fn beat<'a>(&'a self, member: &'a Member, beat: Beat) -> BoxFuture<'a, Result<View, LeaseError>> {
        Box::pin(self.within(&member.group, async move |bucket| {
            let (key, value) = (session_key(&member.session), beaten(member, beat.number));
            if beat.joins {
                bucket.tidy(self.shared.options.clock.now()).await?;
                if let Written::At(revision) = bucket.put(&key, value.clone(), None).await? {
                    return Ok(bucket.seen(revision).await?.view());
                }
            }
            let (mut seen, mut looked) = (bucket.seen(0).await?, false);
            loop {
                let counts = |entry: &&Entry| entry.number("beat").is_some_and(|last| last < beat.number);
                match seen.entries.get(&key).filter(counts).map(|entry| entry.revision) {
                    Some(revision) => {
                        if let Written::At(revision) = bucket.put(&key, value.clone(), Some(revision)).await? {
                            return Ok(bucket.seen(revision).await?.view());
                        }
                    }
                    None if looked => return Ok(seen.view()),
                    None => {}
                }
                (seen, looked) = (bucket.now().await?, true);
            }
        }))
    }

    fn take<'a>(&'a self, member: &'a Member, takes: &'a [Take]) -> BoxFuture<'a, Result<(), LeaseError>> {
        Box::pin(self.within(&member.group, async move |bucket| {
            let seen = bucket.now().await?;
            let taking = takes.iter().filter_map(|take| {
                let (revision, there) = seen.record(&take.part).unzip();
                (there.as_ref().map(|record| record.epoch) == take.from).then_some(())?;
                let floor = there.and_then(|record| record.floor);
                let record = Record { epoch: take.to, session: Some(member.session.clone()), floor };
                Some((part_key(&take.part), recorded(&take.part, &record), revision))
            });
            let taking = taking.map(|(key, value, revision)| {
                let bucket = &bucket;
                async move { bucket.put(&key, value, revision).await }
            });
            futures_util::future::try_join_all(taking).await.map(drop)
        }))
    }

    fn let_go<'a>(
        &'a self,
        member: &'a Member,
        part: &'a Text,
        epoch: Epoch,
        floor: Option<Position>,
    ) -> BoxFuture<'a, Result<(), LeaseError>> {
        Box::pin(self.within(&member.group, async move |bucket| {
            loop {
                let Some((revision, record)) = bucket.now().await?.record(part) else { return Ok(()) };
                if record.epoch != epoch || record.session.as_ref() != Some(&member.session) {
                    return Ok(());
                }
                let record = Record { epoch, session: None, floor: floor.or(record.floor) };
                if let Written::At(_) = bucket.put(&part_key(part), recorded(part, &record), Some(revision)).await? {
                    return Ok(());
                }
            }
        }))
    }

    fn strike<'a>(&'a self, group: &'a Text, session: &'a Text, beat: u64) -> BoxFuture<'a, Result<(), LeaseError>> {
        Box::pin(self.within(group, async move |bucket| {
            let (seen, key) = (bucket.now().await?, session_key(session));
            match seen.entries.get(&key).filter(|entry| entry.number("beat") == Some(beat)) {
                Some(entry) => bucket.remove(&key, entry.revision).await,
                None => Ok(()),
            }
        }))
    }

    fn leave<'a>(&'a self, member: &'a Member) -> BoxFuture<'a, Result<(), LeaseError>> {
        Box::pin(self.within(&member.group, async move |bucket| {
            let key = session_key(&member.session);
            bucket.answer(&key, bucket.store.purge(&key)).await?.map_err(away)
        }))
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        Some(self.changes.subscribe())
    }
}
