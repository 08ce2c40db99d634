//! Lesson 4: order. Events of one key are handled one at a time and in order, whatever fails; different keys run at the
//! same time, and a key that fails holds nobody but itself.
//!
//! `cargo run --example 04-ordering`

use std::time::Duration;

use aqueduct::store::{Action, Command, MemoryStore, Query, Store};
use aqueduct::{Attempt, Consumer, Error, Event, FaultExt, Json, Key, MemoryBroker, Policy, Publisher, Result, Router};
use tokio::sync::mpsc;

/// Ann's second step fails until it has been tried four times. Bob's second step cannot succeed until somebody replays
/// it.
fn take_step(key: &Key, step: u32, attempt: Attempt) -> Result<()> {
    let result = match (key.as_str(), step) {
        ("ann", 2) if attempt.number < 5 => Err(Error::msg("not yet")),
        ("bob", 2) if !attempt.replay => Err(Error::msg("wrong address")).permanent(),
        _ => Ok(()),
    };
    println!("  {key} step {step}: {}", if result.is_ok() { "done" } else { "failed" });
    result
}

#[tokio::main]
async fn main() -> Result<()> {
    let (broker, store) = (MemoryBroker::new(), MemoryStore::new());
    let desk = Publisher::new("desk", broker.clone()).route("parcel.*", "parcels");
    for number in 1..=3 {
        for key in ["ann", "bob", "cyd"] {
            desk.publish(Event::new("parcel.step", &number)?.key(key)).await?;
        }
    }

    // `block`: a dead letter holds its key until somebody resolves it. Without it the key would go on.
    let policy = Policy::ordered().quick_attempts(1).parked_delay(Duration::from_millis(50)).block();
    let (tell, mut done) = mpsc::unbounded_channel();
    let handler = async move |Json(step): Json<u32>, key: Key, attempt: Attempt| -> Result<()> {
        take_step(&key, step, attempt)?;
        tell.send((key.to_string(), step))?;
        Ok(())
    };
    let serve = Consumer::new("courier", broker)
        .topics(["parcels"])
        .store(store.clone())
        .serve(Router::new().on("parcel.step", handler).policy(policy));

    println!("Cyd is not held up by Ann, who fails for a while, nor by Bob, who is stuck:");
    let lesson = async move {
        let mut order = Vec::new();
        // All but Bob's steps 2 and 3.
        while order.len() < 7 {
            order.extend(done.recv().await);
        }
        println!(
            "\nBob's step 3 waits behind his step 2, which is a dead letter. Somebody mends the address and replays:"
        );
        if let Err(error) = replay_dead_letters(&store).await {
            println!("{error}");
        }
        while order.len() < 9 {
            order.extend(done.recv().await);
        }
        println!("\nand in the end each key has kept its order:");
        for key in ["ann", "bob", "cyd"] {
            let steps: Vec<u32> = order.iter().filter(|(k, _)| k == key).map(|(_, step)| *step).collect();
            println!("  {key}: {steps:?}");
            assert_eq!(steps, [1, 2, 3], "{key} is out of order");
        }
    };
    serve.with_graceful_shutdown(lesson).await?;
    Ok(())
}

/// What an operator does: look at the dead letters, and leave a command. Whoever owns the partition carries it out, in
/// the order of the key, within a second.
async fn replay_dead_letters(store: &MemoryStore) -> Result<()> {
    let mut dead = Query::default();
    dead.dead = Some(true);
    for letter in store.browse(&dead).await? {
        store.command(&Command::new(&letter, Action::Replay, "operator", "the address was mended")).await?;
    }
    Ok(())
}
