//! Lesson 1: one event, one handler, no server.
//!
//! `cargo run --example 01-hello`

use std::sync::Arc;

use aqueduct::{Consumer, Event, Json, MemoryBroker, Publisher, Result, Router, State};
use tokio::sync::Notify;

/// A handler is an async function. Its arguments say what it needs: here the event's data, read as JSON, and the state
/// that was given to the router. Returning `Ok` settles the event; an error means that it is tried again.
async fn greet(Json(name): Json<String>, State(greeted): State<Arc<Notify>>) -> Result<()> {
    println!("Hello, {name}!");
    greeted.notify_one();
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    // A broker carries events. This one lives in the process; nothing else in this program knows that.
    let broker = MemoryBroker::new();

    // An event has a type, data, a topic to travel on, and a key: events of one key keep their order.
    let arrival = Event::new("guest.arrived", "Ada")?.topic("guests").key("ada");
    Publisher::new("door", broker.clone()).publish(arrival).await?;

    // A router sends events to handlers by their type.
    let greeted = Arc::new(Notify::new());
    let app = Router::new().on("guest.arrived", greet).with_state(Arc::clone(&greeted));

    // A consumer is a named group of instances that share the work of some topics. This is one instance. It runs until
    // its signal comes, then finishes what it has begun, and leaves.
    Consumer::new("greeter", broker)
        .topics(["guests"])
        .serve(app)
        .with_graceful_shutdown(async move { greeted.notified().await })
        .await?;
    Ok(())
}
