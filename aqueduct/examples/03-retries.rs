//! Lesson 3: what happens when a handler fails.
//!
//! An error is taken to be transient: the event is tried again, first a few times in quick succession, then from the
//! store, where it is parked with growing waits. What cannot succeed, or has used up its attempts, becomes a dead letter,
//! with the history of its attempts.
//!
//! `cargo run --example 03-retries`

use std::time::Duration;

use aqueduct::store::{Listed, MemoryStore, Query, Store};
use aqueduct::{Attempt, Consumer, Error, Event, FaultExt, Json, Key, MemoryBroker, Policy, Publisher, Result, Router};

async fn charge(Json(cents): Json<String>, key: Key, attempt: Attempt) -> Result<()> {
    let from = if attempt.stored { "the store" } else { "the broker" };
    println!("  {key}: attempt {} (from {from})", attempt.number);
    // Data that makes no sense will make none tomorrow: trying again cannot help.
    let cents: u64 = cents.parse().permanent()?;
    match (key.as_str(), attempt.number) {
        // An error says nothing of itself: it is transient, and the policy decides when to try again.
        ("flaky-bank", 1..=4) => Err(Error::msg("the bank does not answer")),
        // It knows better than the policy when to come back.
        ("busy-bank", 1) => Err(Error::msg("too many requests").retry_after(Duration::from_millis(300))),
        ("closed-bank", _) => Err(Error::msg("the account was closed")),
        _ => {
            println!("  {key}: charged {cents}");
            Ok(())
        }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let (broker, store) = (MemoryBroker::new(), MemoryStore::new());
    let bank = Publisher::new("bank", broker.clone()).route("payment.*", "payments");
    for (key, cents) in [("flaky-bank", "100"), ("busy-bank", "200"), ("closed-bank", "300"), ("typo", "4oo")] {
        bank.publish(Event::new("payment.due", cents)?.key(key)).await?;
    }

    // Short waits, so that the lesson is over soon. The defaults are in `aqueduct::defaults`.
    let policy = Policy::ordered()
        .quick_attempts(2)
        .quick_delay(Duration::from_millis(5))
        .parked_delay(Duration::from_millis(50))
        .max_attempts(4);
    println!("attempts, in the order in which they happen:");
    Consumer::new("charger", broker.clone())
        .topics(["payments"])
        .store(store.clone())
        .serve(Router::new().on("payment.due", charge).policy(policy))
        .with_graceful_shutdown({
            let store = store.clone();
            // Parked events are settled as far as the broker is concerned, so both are asked.
            async move {
                broker.wait_settled("charger").await;
                nothing_parked(&store).await;
            }
        })
        .await?;

    println!("\ndead letters, for somebody to look at:");
    for Listed { row, partition, .. } in store.browse(&Query::default()).await? {
        let key = row.content.key().map_or("", Key::as_str);
        println!("  {key} in {partition}, {:?} after {} attempts", row.state, row.attempts);
        for failure in &row.history {
            println!("    attempt {}: {}", failure.attempt, failure.error);
        }
    }
    Ok(())
}

/// Waits until nothing is left to be tried again.
async fn nothing_parked(store: &MemoryStore) {
    let mut parked = Query::default();
    parked.dead = Some(false);
    loop {
        let changed = store.changed();
        if store.browse(&parked).await.is_ok_and(|rows| rows.is_empty()) {
            return;
        }
        changed.await;
    }
}
