//! Dead letters that go to a topic.

use std::future::IntoFuture;

use aqueduct::broker::{Arrival, Broker, Room, Start, Subscription};
use aqueduct::store::{Query, Store};
use aqueduct::{
    Consumer, Error, Event, FaultExt, Handler, MemoryBroker, MemoryStore, Message, Policy, Publisher, Router,
};
use tokio::sync::mpsc;

fn order(number: u64) -> Event {
    Event::raw("order.placed", number.to_string()).id(number.to_string()).topic("orders").key("k")
}

/// The messages of a topic, read by another consumer.
async fn letters(broker: &MemoryBroker, count: usize) -> Vec<Message> {
    let mut subscription = Subscription::new("operators", vec!["orders.dead".into()]);
    subscription.start = Start::Beginning;
    let membership = broker.join(subscription).await.unwrap();
    let mut found = Vec::new();
    while found.len() < count {
        if let Arrival::Batch { deliveries, .. } = membership.next(Room::new(100, &[])).await.unwrap() {
            found.extend(deliveries.into_iter().map(|delivery| delivery.message));
        }
    }
    found
}

#[tokio::test(start_paused = true)]
async fn a_topic_gets_them_with_what_became_of_them_and_their_key_goes_on() {
    let broker = MemoryBroker::new();
    let (tell, mut told) = mpsc::unbounded_channel();
    let handler = async move |event: Event| -> aqueduct::Result<()> {
        if &event.data[..] == b"1" {
            return Err(Error::msg("no such customer")).permanent();
        }
        tell.send(String::from_utf8_lossy(&event.data).into_owned()).unwrap();
        Ok(())
    };
    let router = Router::new().on("order.placed", handler.policy(Policy::fast()));
    let consumer = Consumer::new("stock", broker.clone()).topics(["orders"]).dead_letters_to("orders.dead");
    let serving = tokio::spawn(consumer.serve(router).into_future());
    let publisher = Publisher::new("shop", broker.clone());
    for number in 0..3 {
        publisher.publish(order(number)).await.unwrap();
    }
    broker.publish(vec![Message::new("orders", "no event")]).await.remove(0).unwrap();
    assert_eq!((told.recv().await.unwrap(), told.recv().await.unwrap()), ("0".to_owned(), "2".to_owned()));
    let mut letters = letters(&broker, 2).await;
    letters.sort_by_key(|letter| letter.body.len());
    let header =
        |letter: &Message, name: &str| letter.headers.text(&format!("aqueduct-dead-{name}")).unwrap().to_owned();
    assert_eq!(&letters[0].body[..], b"1");
    assert_eq!(letters[0].headers.text("ce-id"), Some("1"));
    assert_eq!(
        ["consumer", "topic", "attempts", "error"].map(|name| header(&letters[0], name)),
        ["stock", "orders", "1", "no such customer"]
    );
    assert_eq!(&letters[1].body[..], b"no event", "as it was");
    assert!(header(&letters[1], "error").contains("CloudEvents"));
    serving.abort();
}

#[tokio::test(start_paused = true)]
async fn an_event_that_was_parked_goes_there_after_its_last_attempt() {
    let (broker, store) = (MemoryBroker::new(), MemoryStore::new());
    let (tell, mut told) = mpsc::unbounded_channel();
    let handler = async move |event: Event| -> aqueduct::Result<()> {
        if &event.data[..] == b"0" {
            return Err(Error::msg("not this time"));
        }
        tell.send(event).unwrap();
        Ok(())
    };
    let router = Router::new().on("order.placed", handler.policy(Policy::ordered().quick_attempts(1).max_attempts(3)));
    let consumer = Consumer::new("stock", broker.clone()).topics(["orders"]).store(store.clone());
    let serving = tokio::spawn(consumer.dead_letters_to("orders.dead").serve(router).into_future());
    let publisher = Publisher::new("shop", broker.clone());
    for number in 0..2 {
        publisher.publish(order(number)).await.unwrap();
    }
    let letters = letters(&broker, 1).await;
    assert_eq!((&letters[0].body[..], letters[0].headers.text("aqueduct-dead-attempts")), (b"0".as_slice(), Some("4")));
    assert_eq!(&told.recv().await.unwrap().data[..], b"1");
    let mut query = Query::default();
    query.dead = Some(true);
    let dead = store.browse(&query).await.unwrap();
    assert!(dead.is_empty(), "{dead:?}");
    serving.abort();
}

#[tokio::test]
async fn a_consumer_that_would_read_its_own_is_refused() {
    let consumer = Consumer::new("stock", MemoryBroker::new()).topics(["orders"]).dead_letters_to("orders");
    let error = consumer.serve(Router::new()).await.unwrap_err().to_string();
    assert!(error.contains("its own topic of dead letters"), "{error}");
}
