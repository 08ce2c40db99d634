//! The last delivery that a durable makes of an event, and events that are left behind after it.
//!
//! After `max_deliver` deliveries the server forgets an event: it stays in its stream, and comes no more. So a last delivery is never given
//! back to the server; it is kept, extended, and handed out again here. What is left behind all the same, since an instance crashed on a last
//! delivery, the server tells in an advisory; in a work queue it is also found by looking for what should not be there any more.

use std::collections::BTreeSet;
use std::sync::Weak;
use std::time::Duration;

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use async_nats::{HeaderMap, Message};
use serde_json::Value;
use tokio::time::Instant;

use super::super::member::Inner;
use super::super::wire;
use super::Durable;
use crate::broker::{Delivery, Settle, Ticket};
use crate::error::{BoxError, BrokerError};
use crate::outcome::BoxFuture;
use crate::topic::{Epoch, Partition, Position};

/// A tag has the delivery's sequence in its lower bits; above it are marks of this module.
pub(super) const SEQUENCE: u64 = (1 << 48) - 1;

/// Counts how often a last delivery was handed out again.
const AGAIN: u64 = 1 << 48;

/// It was left behind: the durable does not know it any more.
pub(super) const LEFT: u64 = 1 << 63;

/// Hands a delivery out again after its delay, and keeps it from the server meanwhile.
pub(in super::super) fn hand_out_again(
    inner: Weak<Inner>,
    (partition, epoch): (Partition, Epoch),
    mut delivery: Delivery,
    delay: Duration,
) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let (due, wait) = (Instant::now() + delay, delivery.ticket.ack_wait.unwrap_or(delay) / 3);
        loop {
            let left = due.saturating_duration_since(Instant::now());
            tokio::time::sleep(left.min(wait)).await;
            let Some(inner) = inner.upgrade() else { return };
            // Who owns it by then has it from the server; a lease that has lapsed may hold again.
            if let Err(BrokerError::Lost { .. }) = inner.settle(&partition, &[Settle::Extend(delivery.ticket)]).await {
                return;
            }
            if left <= wait {
                let tag = delivery.ticket.tag;
                delivery.ticket.tag = tag & (LEFT | SEQUENCE) | (tag.wrapping_add(AGAIN) & !(LEFT | SEQUENCE));
                delivery.ticket.deliveries = delivery.ticket.deliveries.saturating_add(1);
                inner.push(&partition, epoch, delivery, true);
                return;
            }
        }
    })
}

impl Durable {
    /// The subject of the advisories about events that are left behind.
    pub(super) fn advisories(&self) -> String {
        format!("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.{}.{}", self.stream, self.name)
    }

    /// The event that an advisory is about, if it is still there.
    pub(super) async fn told(&self, stream: &Stream, advisory: &Message) -> Result<Option<Delivery>, BoxError> {
        let told: Value = serde_json::from_slice(&advisory.payload)?;
        let Some(sequence) = told["stream_seq"].as_u64() else { return Ok(None) };
        match stream.get_raw_message(sequence).await {
            Ok(message) => Ok(Some(self.left(&message, told["deliveries"].as_u64().unwrap_or(1)))),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The events of a work queue up to a position that did not come again.
    pub(super) async fn left_behind(
        &self,
        stream: &Stream,
        filter: &str,
        to: u64,
        came: &BTreeSet<u64>,
    ) -> Result<Vec<Delivery>, BoxError> {
        let (mut left, mut from) = (Vec::new(), stream.get_info().await?.state.first_sequence);
        while from <= to {
            match stream.get_first_raw_message_by_subject(filter, from).await {
                Ok(message) if message.sequence > to => break,
                Ok(message) => {
                    if !came.contains(&message.sequence) {
                        left.push(self.left(&message, 1));
                    }
                    from = message.sequence + 1;
                }
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(left)
    }

    fn left(&self, stored: &StreamMessage, deliveries: u64) -> Delivery {
        tracing::warn!(
            stream = %self.stream, durable = %self.name, position = stored.sequence,
            "an event was left behind after the last delivery that its durable makes; it is handled all the same"
        );
        let read = Message {
            subject: stored.subject.clone(),
            reply: None,
            payload: stored.payload.clone(),
            headers: Some(stored.headers.clone()).filter(|headers| headers != &HeaderMap::new()),
            status: None,
            description: None,
            length: 0,
        };
        let mut ticket = Ticket::new(Position(stored.sequence), LEFT | stored.sequence);
        ticket.deliveries = u32::try_from(deliveries).unwrap_or(u32::MAX);
        let message = wire::foreign_message(&self.topic, &read, stored.time.unix_timestamp_nanos());
        Delivery { message, ticket }
    }
}
