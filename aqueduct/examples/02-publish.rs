//! Lesson 2: publishing. A route table, receipts, duplicates, batches, and what is refused before it is sent.
//!
//! `cargo run --example 02-publish`

use aqueduct::{Event, MemoryBroker, Publisher, Result};

#[tokio::main]
async fn main() -> Result<()> {
    // This broker refuses topics that were not made before, as most servers do.
    let broker = MemoryBroker::new().require_topics().declare("orders").declare("payments");

    // The route table says which types go to which topic; the most specific pattern wins. `check` belongs into the start
    // of a program: a wrong pattern or a missing topic is found there and not at the first event.
    let shop = Publisher::new("shop", broker).route("order.*", "orders").route("payment.>", "payments");
    shop.check().await?;

    // When `publish` answers, the broker has confirmed the event. What was left unset is filled in: an id, the source
    // ("shop"), the time, and the topic by the table.
    let placed = Event::new("order.placed", &["tea", "cake"])?.key("order-1").id("o-1");
    let receipt = shop.publish(placed.clone()).await?;
    println!("order-1 is in {} at position {}", receipt.partition, receipt.position.0);

    // An event is known by its source and id. Publishing it again is harmless, which is what makes trying again safe.
    let again = shop.publish(placed).await?;
    println!("once more: duplicate = {}, still at position {}", again.duplicate, again.position.0);

    // A batch is confirmed event by event. Events of one key go out in order, one when the one before is confirmed.
    let batch: Vec<Event> = ["due", "reminded", "received"]
        .into_iter()
        .map(|step| Ok(Event::new(format!("payment.{step}"), &1)?.key("order-1")))
        .collect::<Result<_>>()?;
    for receipt in shop.publish_all(batch).await {
        let receipt = receipt?;
        println!("payment event in {} at position {}", receipt.partition, receipt.position.0);
    }

    // Errors say what to do.
    let stray = shop.publish(Event::new("refund.wanted", &1)?).await;
    println!("refused: {}", stray.err().map_or_else(String::new, |e| e.to_string()));
    let lost = shop.publish(Event::new("refund.wanted", &1)?.topic("refunds")).await;
    println!("refused: {}", lost.err().map_or_else(String::new, |e| e.to_string()));
    Ok(())
}
