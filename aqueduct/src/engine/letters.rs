//! Dead letters that go to a topic.

use std::sync::Arc;
use std::time::Duration;

use super::core::Core;
use super::item::Item;
use super::lanes::{Head, LaneKey, LaneRef};
use super::mailbox::Note;
use crate::broker::Broker;
use crate::error::BrokerError;
use crate::format::Format;
use crate::message::Message;
use crate::store::Content;
use crate::topic::{Partition, Text, Topic};

/// Where dead letters go, and how they are written.
pub(crate) struct Letters {
    pub(super) broker: Arc<dyn Broker>,
    pub(super) topic: Topic,
    pub(super) formats: Vec<Arc<dyn Format>>,
    pub(super) consumer: Text,
}

/// What a header can be expected to hold.
const ERROR_CHARS_MAX: usize = 500;

/// The pause before a letter is sent again.
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);

impl Letters {
    /// The event as it was, with an id of its own, and beside it what became of it.
    fn message(&self, partition: &Partition, item: &Item) -> Result<(Message, Message), String> {
        let position = item.place.position.0;
        let dead = |id: String| Some(format!("dead:{}:{id}", self.consumer).into());
        let plain = match &item.content {
            Content::Event(event) => {
                let mut written = Err("no format is there".to_owned());
                for format in &self.formats {
                    written = written.or_else(|_| format.encode(event, &self.topic).map_err(|error| error.to_string()));
                }
                let mut message = written?;
                // A format that gives none knows why: repeats are not recognised there.
                message.dedup_id = message.dedup_id.and_then(|_| dead(format!("{}#{}", event.source, event.id)));
                message
            }
            Content::Undecodable(message) => {
                let (topic, dedup_id) = (self.topic.clone(), dead(format!("{partition}/{position}")));
                Message { topic, dedup_id, ..Message::clone(message) }
            }
        };
        let mut told = plain.clone();
        let error = item.failures.last().map_or("", |failure| failure.error.as_str());
        for (name, value) in [
            ("aqueduct-dead-consumer", self.consumer.to_string()),
            ("aqueduct-dead-topic", partition.topic.to_string()),
            ("aqueduct-dead-partition", partition.index.to_string()),
            ("aqueduct-dead-position", position.to_string()),
            ("aqueduct-dead-attempts", item.attempts.to_string()),
            ("aqueduct-dead-error", error.chars().take(ERROR_CHARS_MAX).collect()),
        ] {
            told.headers.set(name, value);
        }
        Ok((told, plain))
    }

    /// Sends it; without what became of it where it would be too large with that.
    async fn send(&self, (told, plain): &(Message, Message)) -> Result<(), BrokerError> {
        let send = async |message: &Message| self.broker.publish(vec![message.clone()]).await.into_iter().next();
        match send(told).await {
            Some(Err(BrokerError::TooLarge { .. })) => send(plain).await.unwrap_or(Err(BrokerError::Closed)).map(drop),
            answer => answer.unwrap_or(Err(BrokerError::Closed)).map(drop),
        }
    }
}

impl Core {
    /// The head of a lane goes to the topic of dead letters; its key waits until the broker has it.
    pub(super) fn send_letter(&mut self, key: LaneKey, lane: LaneRef, letters: Arc<Letters>) {
        let Some(owned) = self.owned.get_mut(&key.slot) else { return };
        let Some(item) = self.lanes.head(lane) else { return };
        let (partition, lease) = (owned.partition.clone(), owned.origin.lease.clone());
        let written = letters.message(&partition, item);
        owned.burying.insert(item.place.position);
        self.lanes.set(lane, Head::Writing);
        let (mailbox, clock, health) = (Arc::clone(&self.mailbox), self.clock.clone(), self.health.clone());
        let errors = self.metrics.broker_errors.clone();
        let sending = self.tasks.spawn(async move {
            let (slot, mut pause) = (key.slot, PAUSE);
            // A lease that has lapsed may hold again; if it does not, this ends with the ownership.
            loop {
                if !lease.holds(&clock) {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                let sent = match &written {
                    Ok(written) => letters.send(written).await.map_err(|error| error.to_string()),
                    Err(why) => Err(why.clone()),
                };
                let Err(error) = sent else {
                    health.waits_no_more(&partition);
                    mailbox.push(Note::Buried { slot, lane });
                    return;
                };
                errors.increment(1);
                if pause == PAUSE {
                    tracing::warn!(%partition, topic = %letters.topic, error, "a dead letter is not taken; it is sent again, and its event stays");
                }
                let topic = &letters.topic;
                health.waits(&partition, format!("a dead letter is not taken by topic {topic:?}: {error}"));
                tokio::time::sleep(pause / 2 + clock.jitter(pause / 2)).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        });
        owned.letters.retain(|task| !task.0.is_finished());
        owned.letters.push(sending);
    }
}
