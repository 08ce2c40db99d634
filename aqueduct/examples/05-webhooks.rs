//! Lesson 5: 329 real webhook events, and everything goes wrong at once.
//!
//! The events are deliveries of GitHub to 17 repositories and organisations; one of these sends most of them. While they
//! are handled, three things happen:
//!
//! - the service behind `octo-org/octo-repo` is down for a while: each of its events fails until it is back;
//! - one event is poison: no attempt on it can ever succeed;
//! - one event makes its handler panic, twice.
//!
//! In the end every event was handled or is a dead letter, and each repository's events were handled in their order. If
//! not, this program says so and exits with an error.
//!
//! `cargo run --example 05-webhooks`

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aqueduct::broker::Broker;
use aqueduct::format::{CloudEvents, Decoded, Format};
use aqueduct::store::{Content, MemoryStore, Query, Store};
use aqueduct::{
    Attempt, Consumer, Error, Event, FaultExt, Handler, Key, MemoryBroker, Message, Policy, Result, Router, State,
};
use parking_lot::Mutex;

const EVENTS: &str = include_str!("data/github-webhooks.ndjson");
/// The service behind this repository is down at first.
const DOWN: &str = "octo-org/octo-repo";
/// This event can never be handled.
const POISON: &str = "000140";
/// The handler of this event panics at first.
const PANICS: &str = "000100";

/// The world around the handlers: what works, and what they did.
#[derive(Default)]
struct World {
    is_back: AtomicBool,
    /// Repository and number of each event that was handled, in the order in which that happened.
    handled: Mutex<Vec<(String, String)>>,
    /// What was tried on each event, by its number.
    tries: Mutex<BTreeMap<String, Tries>>,
}

#[derive(Default)]
struct Tries {
    failed: u32,
    from_store: bool,
}

type Shared = State<Arc<World>>;

/// Handles every webhook.
async fn webhook(event: Event, attempt: Attempt, State(world): Shared) -> Result<()> {
    let number = number(&event);
    world.tries.lock().entry(number.clone()).or_default().from_store |= attempt.stored;
    let result = deliver(&event, attempt, &world);
    match &result {
        Ok(()) => world.handled.lock().push((repository(event.key.as_ref()), number)),
        Err(_) => world.tries.lock().entry(number).or_default().failed += 1,
    }
    result
}

/// The work itself, and what goes wrong with it.
fn deliver(event: &Event, attempt: Attempt, world: &World) -> Result<()> {
    let number = number(event);
    if event.key.as_ref().is_some_and(|key| key.as_str() == DOWN) && !world.is_back.load(Ordering::Relaxed) {
        return Err(Error::msg("connection refused"));
    }
    if number == POISON {
        return Err(Error::msg("this event makes no sense to anyone")).permanent();
    }
    if number == PANICS && attempt.number <= 2 {
        world.tries.lock().entry(number).or_default().failed += 1;
        panic!("attempt {} of event {PANICS} hits a bug (this panic is part of the lesson)", attempt.number);
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    // A panic in a handler is caught and counts as a failure; here it prints one line instead of a backtrace.
    std::panic::set_hook(Box::new(|panic| println!("  {}", panic.payload_as_str().unwrap_or_default())));
    let (broker, store, world) = (MemoryBroker::new(), MemoryStore::new(), Arc::new(World::default()));
    let published = publish(&broker).await?;
    println!(
        "{} webhook events are published; {DOWN} is down, one event is poison, one makes its handler panic",
        published.len()
    );

    let policy = Policy::ordered().quick_delay(Duration::from_millis(5)).parked_delay(Duration::from_millis(50));
    let app = Router::new()
        // Some types have handlers of their own, with settings of their own; the most specific pattern wins.
        .on("github.ping", webhook.timeout(Duration::from_secs(1)))
        .on("github.>", webhook)
        .policy(policy)
        .with_state(Arc::clone(&world));
    Consumer::new("webhooks", broker.clone())
        .topics(["webhooks"])
        .store(store.clone())
        // One repository sends 230 events. Above this many in memory a key's events would move to the store, to leave
        // room for others.
        .buffer_per_key(256)
        .serve(app)
        .with_graceful_shutdown(story(broker, store.clone(), Arc::clone(&world), published.len()))
        .await?;
    report(&published, &store, &world).await
}

/// What a gateway would do: each line of the file is an event in the structured form of CloudEvents.
async fn publish(broker: &MemoryBroker) -> Result<Vec<Event>> {
    let content_type = [("content-type", "application/cloudevents+json")];
    let as_message = |line: &'static str| {
        let mut message = Message::new("webhooks", line);
        message.headers = content_type.into_iter().collect();
        match CloudEvents::structured().decode(&message)? {
            Decoded::One(event) => {
                message.key = event.key.as_ref().map(Key::bytes);
                Ok((message, event))
            }
            Decoded::Batch(_) => Err(Error::msg("a line holds one event")),
        }
    };
    let (messages, events): (Vec<Message>, Vec<Event>) =
        EVENTS.lines().map(as_message).collect::<Result<Vec<_>>>()?.into_iter().unzip();
    broker.publish(messages).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(events)
}

/// Waits until all the healthy events are through, mends the service, and waits until the rest is.
async fn story(broker: MemoryBroker, store: MemoryStore, world: Arc<World>, count: usize) {
    // Settled: handled, parked or dead. The service that is down holds nobody else up.
    broker.wait_settled("webhooks").await;
    let parked = parked(&store).await;
    let handled = world.handled.lock().len();
    println!("the broker has nothing left: {handled} of {count} events are handled, {parked} are parked in the store");
    world.is_back.store(true, Ordering::Relaxed);
    println!("{DOWN} is back");
    loop {
        let changed = store.changed();
        if self::parked(&store).await == 0 {
            return;
        }
        changed.await;
    }
}

async fn parked(store: &MemoryStore) -> usize {
    rows(store, false).await.len()
}

/// The numbers of the events that are parked, or of those that are dead.
async fn rows(store: &MemoryStore, dead: bool) -> Vec<String> {
    let mut query = Query::default();
    (query.dead, query.limit) = (Some(dead), usize::MAX);
    let rows = store.browse(&query).await.unwrap_or_default();
    let event = |content| if let Content::Event(event) = content { Some(number(&event)) } else { None };
    rows.into_iter().filter_map(|listed| event(listed.row.content)).collect()
}

/// What happened to the events of one repository.
#[derive(Default)]
struct Line {
    published: Vec<String>,
    handled: Vec<String>,
    retried: usize,
    parked: usize,
    dead: Vec<String>,
}

impl Line {
    fn is_complete(&self) -> bool {
        self.handled.len() + self.dead.len() == self.published.len()
    }

    /// What was handled is what was published, in its order, but for what is dead.
    fn kept_order(&self) -> bool {
        self.published.iter().filter(|number| !self.dead.contains(number)).eq(&self.handled)
    }
}

/// Prints what happened, and fails if an event was lost, handled twice, or overtaken by one of its key.
async fn report(published: &[Event], store: &MemoryStore, world: &World) -> Result<()> {
    let dead = rows(store, true).await;
    let mut lines: BTreeMap<String, Line> = BTreeMap::new();
    for event in published {
        let line = lines.entry(repository(event.key.as_ref())).or_default();
        line.published.push(number(event));
        line.dead.extend(dead.iter().filter(|dead| **dead == number(event)).cloned());
    }
    for (repository, number) in &*world.handled.lock() {
        let line = lines.entry(repository.clone()).or_default();
        line.handled.push(number.clone());
        if let Some(tries) = world.tries.lock().get(number).filter(|tries| tries.failed > 0 || tries.from_store) {
            line.retried += usize::from(!tries.from_store);
            line.parked += usize::from(tries.from_store);
        }
    }
    println!("\n{:54}{:>7}{:>9}{:>10}{:>7}   order", "repository", "handled", "retried", "parked*", "dead");
    let mut failed = Vec::new();
    for (repository, line) in &lines {
        let (handled, dead) = (line.handled.len(), line.dead.len());
        // Events without a key have no order to keep.
        let order = if repository == NO_KEY {
            "-"
        } else if line.kept_order() {
            "kept"
        } else {
            "BROKEN"
        };
        println!("{repository:54}{handled:>7}{:>9}{:>10}{dead:>7}   {order}", line.retried, line.parked);
        if !line.is_complete() || order == "BROKEN" {
            failed.push(repository.as_str());
        }
    }
    println!("* waited in the store, because they failed or stood behind one that did, and were handled from there");
    let handled: usize = lines.values().map(|line| line.handled.len()).sum();
    println!("\n{} published = {handled} handled + {} dead", published.len(), dead.len());
    if !failed.is_empty() || dead != [POISON] {
        return Err(Error::msg(format!("a promise was broken for {failed:?}, dead: {dead:?}")));
    }
    println!("nothing was lost, nothing was handled twice, and each repository kept its order");
    Ok(())
}

const NO_KEY: &str = "(no key)";

fn repository(key: Option<&Key>) -> String {
    key.map_or_else(|| NO_KEY.to_owned(), Key::to_string)
}

/// The event's number in the file.
fn number(event: &Event) -> String {
    event.headers.text("ce-sequence").unwrap_or_default().to_owned()
}
