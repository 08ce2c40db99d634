//! A batch on its way to the broker, wave by wave.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::task::{Context, Poll};

use tokio::time::Instant;

use super::gate::{Gate, LaneName, Pass};
use super::{Answer, PublishError};
use crate::broker::{Broker, Receipt};
use crate::clock::Clock;
use crate::error::BrokerError;
use crate::event::Event;
use crate::message::Message;
use crate::outcome::BoxFuture;
use crate::policy::defaults;
use crate::topic::Key;

/// An event on its way: as given, and as it goes over the wire.
pub(super) struct Prepared {
    pub(super) event: Event,
    pub(super) message: Message,
}

/// Events in the order of the caller, and the lanes that they form; an event without key is a lane of its own.
pub(super) struct Batch<'a> {
    broker: &'a dyn Broker,
    clock: &'a Clock,
    /// How many of a lane may be unconfirmed at once.
    window: usize,
    items: Vec<Item>,
    /// Those that are not finished.
    lanes: Vec<Lane>,
}

enum Item {
    /// It has no answer yet; `next` is the next one of its lane.
    Open {
        prepared: Box<Prepared>,
        next: Option<usize>,
    },
    Answered(Answer),
}

struct Lane {
    door: Door,
    /// The first one without an answer; none when the lane is finished.
    head: Option<usize>,
    /// How often the head has failed.
    failures: u32,
    not_before: Option<Instant>,
}

enum Door {
    Open,
    Waiting(BoxFuture<'static, Pass>),
    Held { _pass: Pass },
}

/// Where a keyed lane stands while the batch is put together.
#[derive(Clone, Copy)]
enum Tail {
    At(usize),
    Failed,
}

/// What of one lane goes out in a wave.
struct Sent {
    lane: usize,
    items: Vec<usize>,
}

impl<'a> Batch<'a> {
    /// Takes what could be prepared. The rest has its answer already, and so has what follows it in its lane.
    pub(super) fn new(
        broker: &'a dyn Broker,
        clock: &'a Clock,
        gate: &Gate,
        prepared: Vec<(Option<LaneName>, Result<Prepared, PublishError>)>,
    ) -> Self {
        let ordered = broker.abilities().ordered_publish;
        let window = if ordered { defaults::PUBLISH_WAVE } else { 1 };
        let mut batch = Self { broker, clock, window, items: Vec::with_capacity(prepared.len()), lanes: Vec::new() };
        let mut tails: BTreeMap<LaneName, Tail> = BTreeMap::new();
        for (name, prepared) in prepared {
            let tail = name.as_ref().and_then(|name| tails.get(name).copied());
            let door = || match name.clone() {
                Some(name) if !ordered => Door::Waiting(Box::pin(gate.clone().enter(name))),
                _ => Door::Open,
            };
            let tail = batch.push(prepared, tail, door);
            if let Some(name) = name {
                tails.insert(name, tail);
            }
        }
        batch
    }

    /// Adds an event to the lane that ends at `tail`, or to a new one.
    fn push(
        &mut self,
        prepared: Result<Prepared, PublishError>,
        tail: Option<Tail>,
        door: impl FnOnce() -> Door,
    ) -> Tail {
        let n = self.items.len();
        let item = match (prepared, tail) {
            (Err(error), _) => Item::Answered(Err(error)),
            (Ok(prepared), Some(Tail::Failed)) => Item::Answered(Err(earlier_failed(&prepared))),
            (Ok(prepared), Some(Tail::At(before))) => {
                if let Item::Open { next, .. } = &mut self.items[before] {
                    *next = Some(n);
                }
                Item::Open { prepared: Box::new(prepared), next: None }
            }
            (Ok(prepared), None) => {
                self.lanes.push(Lane { door: door(), head: Some(n), failures: 0, not_before: None });
                Item::Open { prepared: Box::new(prepared), next: None }
            }
        };
        let tail = if matches!(item, Item::Open { .. }) { Tail::At(n) } else { Tail::Failed };
        self.items.push(item);
        tail
    }

    /// Publishes everything; the answers are in the order of the events.
    pub(super) async fn run(mut self) -> Vec<Answer> {
        while !self.lanes.is_empty() {
            poll_fn(|cx| Poll::Ready(self.poll_doors(cx))).await;
            let wave = self.next_wave();
            if wave.is_empty() {
                self.wait().await;
                continue;
            }
            let messages = wave.iter().flat_map(|sent| &sent.items).filter_map(|n| self.message(*n)).collect();
            let mut answers = self.broker.publish(messages).await.into_iter();
            for sent in wave {
                let of_lane = sent.items.iter().map(|_| answers.next().unwrap_or_else(|| Err(no_answer()))).collect();
                self.settle(&sent, of_lane);
            }
            self.lanes.retain(|lane| lane.head.is_some());
        }
        let answer = |item| match item {
            Item::Answered(answer) => answer,
            Item::Open { prepared, .. } => Err(unconfirmed(*prepared, 0, no_answer())),
        };
        self.items.into_iter().map(answer).collect()
    }

    /// True if a door has opened.
    fn poll_doors(&mut self, cx: &mut Context<'_>) -> bool {
        let mut opened = false;
        for lane in &mut self.lanes {
            if let Door::Waiting(turn) = &mut lane.door
                && let Poll::Ready(pass) = turn.as_mut().poll(cx)
            {
                lane.door = Door::Held { _pass: pass };
                opened = true;
            }
        }
        opened
    }

    /// What can be sent now.
    fn next_wave(&self) -> Vec<Sent> {
        let now = Instant::now();
        let mut room = defaults::PUBLISH_WAVE;
        let mut wave = Vec::new();
        for (n, lane) in self.lanes.iter().enumerate() {
            if matches!(lane.door, Door::Waiting(_)) || lane.not_before.is_some_and(|t| now < t) {
                continue;
            }
            let items: Vec<usize> =
                std::iter::successors(lane.head, |item| self.next(*item)).take(self.window.min(room)).collect();
            room -= items.len();
            wave.push(Sent { lane: n, items });
            if room == 0 {
                break;
            }
        }
        wave
    }

    /// Waits until a door opens or a lane is to be tried again.
    async fn wait(&mut self) {
        let again = self.lanes.iter().filter_map(|lane| lane.not_before).min();
        let door = poll_fn(|cx| if self.poll_doors(cx) { Poll::Ready(()) } else { Poll::Pending });
        let Some(again) = again else { return door.await };
        tokio::select! {
            biased;
            () = door => {}
            () = tokio::time::sleep_until(again) => {}
        }
    }

    /// Takes the broker's answers for what was sent of one lane, and decides how the lane goes on.
    fn settle(&mut self, sent: &Sent, answers: Vec<Result<Receipt, BrokerError>>) {
        // Nothing that stands before a confirmed event may be sent again: the order would break.
        let confirmed = answers.iter().rposition(Result::is_ok).map_or(0, |last| last + 1);
        let failures = self.lanes[sent.lane].failures + 1;
        let mut next = None;
        let mut failed = false;
        for (position, (item, answer)) in sent.items.iter().zip(answers).enumerate() {
            next = self.next(*item);
            let tries = if position == 0 { failures } else { 1 };
            if position >= confirmed && !failed {
                match &answer {
                    Err(e) if e.is_transient() && tries <= defaults::PUBLISH_RETRIES => {
                        return self.retry(sent.lane, *item, tries);
                    }
                    _ => failed = true,
                }
            }
            self.finish(*item, answer, tries);
        }
        if failed {
            self.fail_from(next);
            next = None;
        }
        let lane = &mut self.lanes[sent.lane];
        (lane.head, lane.failures, lane.not_before) = (next, 0, None);
    }

    /// Lets the lane go on from `item` after a while.
    fn retry(&mut self, lane: usize, item: usize, failures: u32) {
        let wait_max = defaults::PUBLISH_DELAY * (1 << (failures - 1));
        let not_before = Some(Instant::now() + self.clock.jitter(wait_max));
        let lane = &mut self.lanes[lane];
        (lane.head, lane.failures, lane.not_before) = (Some(item), failures, not_before);
    }

    fn finish(&mut self, item: usize, answer: Result<Receipt, BrokerError>, tries: u32) {
        let open = std::mem::replace(&mut self.items[item], Item::Answered(Err(PublishError::Broker(no_answer()))));
        self.items[item] = match (open, answer) {
            (Item::Open { .. }, Ok(receipt)) => Item::Answered(Ok(receipt)),
            (Item::Open { prepared, .. }, Err(e)) if e.is_transient() => {
                Item::Answered(Err(unconfirmed(*prepared, tries, e)))
            }
            (Item::Open { .. }, Err(e)) => Item::Answered(Err(PublishError::Broker(e))),
            (answered, _) => answered,
        };
    }

    /// Answers what is left of a lane after one of it has failed.
    fn fail_from(&mut self, mut rest: Option<usize>) {
        while let Some(item) = rest {
            rest = self.next(item);
            if let Item::Open { prepared, .. } = &self.items[item] {
                self.items[item] = Item::Answered(Err(earlier_failed(prepared)));
            }
        }
    }

    fn next(&self, item: usize) -> Option<usize> {
        match &self.items[item] {
            Item::Open { next, .. } => *next,
            Item::Answered(_) => None,
        }
    }

    fn message(&self, item: usize) -> Option<Message> {
        match &self.items[item] {
            Item::Open { prepared, .. } => Some(prepared.message.clone()),
            Item::Answered(_) => None,
        }
    }
}

fn earlier_failed(prepared: &Prepared) -> PublishError {
    PublishError::EarlierFailed {
        topic: prepared.message.topic.clone(),
        key: prepared.event.key.as_ref().map_or("", Key::as_str).into(),
    }
}

fn unconfirmed(prepared: Prepared, tries: u32, source: BrokerError) -> PublishError {
    PublishError::Unconfirmed { event: Box::new(prepared.event), tries, source }
}

fn no_answer() -> BrokerError {
    BrokerError::Unavailable("the broker gave no answer for this message".into())
}
