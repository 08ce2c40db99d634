//! What a newcomer can do wrong, and what the library says to it: the message names the fix, and the caller's line where
//! there is one.

use aqueduct::store::Content;
use aqueduct::testing::TestApp;
use aqueduct::{
    Consumer, Event, Extension, Handler, Json, Key, MemoryBroker, Message, Policy, PublishError, Publisher, Router,
    ServeError, Unknown,
};
use tower::limit::ConcurrencyLimitLayer;

/// Checks that a message has these words in it.
#[track_caller]
fn says(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "there is no {word:?} in: {message}");
    }
}

/// This file and a line of it, as messages name it.
fn here(line: u32) -> String {
    format!("tests/it/mistakes.rs:{line}:")
}

fn router() -> Router {
    Router::new().on("order.placed", async || ())
}

fn consumer() -> Consumer {
    Consumer::new("shop", MemoryBroker::new()).topics(["orders"])
}

/// Serves, and answers why that was refused; a service that starts all the same fails the test.
async fn refused(consumer: Consumer, router: Router) -> String {
    match consumer.serve(router).with_graceful_shutdown(async {}).await {
        Err(error) => error.to_string(),
        Ok(()) => panic!("the mistake was not found"),
    }
}

#[tokio::test]
async fn a_consumer_without_topics_is_told_to_name_them_and_where() {
    let line = line!() + 1;
    let serve = Consumer::new("shop", MemoryBroker::new()).serve(router());
    let error = serve.await.unwrap_err();
    assert!(matches!(error, ServeError::Wiring(_)));
    says(&error.to_string(), &["\"shop\" has no topics", ".topics([\"orders\"])", &here(line)]);
}

#[tokio::test]
async fn a_consumer_without_a_name_is_told_what_the_name_is_for() {
    let text = refused(Consumer::new("", MemoryBroker::new()).topics(["orders"]), router()).await;
    says(&text, &["the consumer has no name", "find each other by it", "mistakes.rs"]);
}

#[tokio::test]
async fn a_topic_that_no_broker_takes_is_named_with_its_fault() {
    for (topic, fault) in
        [("my orders", "white space"), ("", "it is empty"), (&*"x".repeat(250), "longer than 249 bytes")]
    {
        says(&refused(consumer().topics([topic]), router()).await, &[topic, fault, "mistakes.rs"]);
    }
    let publisher = Publisher::new("shop", MemoryBroker::new());
    let error = publisher.publish(Event::raw("order.placed", "").topic("my orders")).await.unwrap_err();
    says(&error.to_string(), &["\"my orders\"", "white space"]);
}

#[tokio::test]
async fn a_topic_that_does_not_exist_is_to_be_created_or_corrected() {
    let broker = MemoryBroker::new().require_topics().declare("orders");
    let fix = ["\"oders\" does not exist", "create it, or correct the name"];
    says(&refused(Consumer::new("shop", broker.clone()).topics(["oders"]), router()).await, &fix);
    let line = line!() + 1;
    let publisher = Publisher::new("shop", broker).route("order.*", "oders");
    says(&publisher.check().await.unwrap_err().to_string(), &[&fix[..], &["\"order.*\"", &here(line)]].concat());
    says(&publisher.publish(Event::raw("order.placed", "")).await.unwrap_err().to_string(), &fix);
}

#[tokio::test]
async fn a_router_without_routes_is_told_how_to_add_one() {
    let text = refused(consumer(), Router::new()).await;
    says(&text, &["the router has no routes", ".on(\"order.placed\", handler)", "mistakes.rs"]);
}

#[tokio::test]
async fn patterns_that_overlap_are_both_named_with_their_lines() {
    let line = line!() + 1;
    let router = Router::new().on("order.*", async || ());
    let router = router.on("*.placed", async || ());
    let text = refused(consumer(), router).await;
    says(&text, &["\"*.placed\" and \"order.*\"", "make one narrower", &here(line), &here(line + 1)]);
}

#[tokio::test]
async fn a_pattern_with_two_handlers_is_named_with_both_lines() {
    let line = line!() + 1;
    let router = Router::new().on("order.placed", async || ());
    let router = router.on("order.placed", async || ());
    let text = refused(consumer(), router).await;
    says(&text, &["\"order.placed\" has two handlers", "remove one", &here(line), &here(line + 1)]);
}

#[tokio::test]
async fn a_text_that_is_no_pattern_is_explained_at_its_line() {
    for (pattern, why) in [
        ("", "`>` matches every type"),
        ("order..placed", "a segment between dots is empty"),
        ("order.>.eu", "`>` must be the last segment"),
        ("order.pl*", "stand for whole segments"),
    ] {
        let line = line!() + 1;
        let text = refused(consumer(), Router::new().on(pattern, async || ())).await;
        says(&text, &[&format!("{pattern:?}"), why, &here(line)]);
        let line = line!() + 1;
        let text = refused(consumer().types([pattern]), router()).await;
        says(&text, &[&format!("{pattern:?}"), why, &here(line)]);
        let line = line!() + 1;
        let publisher = Publisher::new("shop", MemoryBroker::new()).route(pattern, "orders");
        says(&publisher.check().await.unwrap_err().to_string(), &[&format!("{pattern:?}"), why, &here(line)]);
    }
}

#[tokio::test]
async fn a_type_that_is_asked_for_and_has_no_route_is_named() {
    let text = refused(consumer().types(["order.placed", "order.paid"]), router()).await;
    says(&text, &["no route for the type \"order.paid\"", "`Router::on`", "leave the type out", "mistakes.rs"]);
}

#[tokio::test]
async fn a_layer_before_the_routes_that_it_is_for_is_found() {
    let line = line!() + 1;
    let router = Router::new().layer(ConcurrencyLimitLayer::new(1)).on("order.placed", async || ());
    says(&refused(consumer(), router).await, &["wraps nothing", "after the routes", &here(line)]);
}

#[tokio::test]
async fn fallbacks_that_contradict_each_other_or_would_not_count_are_found() {
    let inner = router().fallback(Unknown::Ignore);
    let line = line!() + 1;
    let nested = Router::new().nest("shop", inner.clone());
    says(&refused(consumer(), nested).await, &["\"shop\" has a fallback", "set it on the outer router", &here(line)]);
    let line = line!() + 1;
    let merged = Router::new().on("a", async || ()).fallback(Unknown::Park).merge(inner);
    says(&refused(consumer(), merged).await, &["Park and Ignore", "leave one of them out", &here(line)]);
}

#[tokio::test]
async fn an_event_without_a_topic_is_told_two_ways_to_give_it_one() {
    let error = Publisher::new("shop", MemoryBroker::new()).publish(Event::raw("order.placed", "")).await.unwrap_err();
    assert!(matches!(error, PublishError::NoTopic { .. }));
    says(&error.to_string(), &["\"order.placed\" have no topic", "`.topic(..)`", "`.route(\"order.placed\", ..)`"]);
}

#[tokio::test]
async fn an_event_that_is_too_large_is_told_the_limit_and_what_to_publish_instead() {
    let broker = MemoryBroker::new();
    let event = Event::raw("film.cut", vec![0; 2 << 20]).id("f-1").topic("films");
    let error = Publisher::new("studio", broker.clone()).publish(event).await.unwrap_err();
    assert!(matches!(error, PublishError::TooLarge { .. }));
    says(&error.to_string(), &["\"film.cut\" event \"f-1\"", "takes 1048576", "publish a reference"]);
    assert!(broker.log(&"films".into()).is_empty());
}

#[tokio::test]
async fn an_id_that_is_used_for_two_events_is_reported() {
    let publisher = Publisher::new("shop", MemoryBroker::new()).route(">", "orders");
    publisher.publish(Event::raw("order.placed", "1").id("7")).await.unwrap();
    let error = publisher.publish(Event::raw("order.placed", "2").id("7")).await.unwrap_err();
    says(&error.to_string(), &["\"shop#7\"", "another body", "give each event its own id"]);
}

/// What the only dead letter says.
async fn last_words(router: Router, event: Event) -> String {
    let app = TestApp::new(router);
    app.publish(event.id("e-1")).await;
    app.wait_idle().await;
    let dead = app.dead().await;
    assert_eq!((dead.len(), dead[0].row.history.len()), (1, 1), "{dead:?}");
    assert!(matches!(dead[0].row.content, Content::Event(_)));
    app.stop().await.unwrap();
    dead[0].row.history[0].error.to_string()
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_without_a_route_says_how_to_add_one() {
    let text = last_words(router(), Event::raw("order.paid", "")).await;
    says(&text, &["no route for events of type \"order.paid\"", "`Router::on`", "`Router::fallback`"]);
}

#[tokio::test(start_paused = true)]
async fn data_that_is_not_the_json_expected_is_a_dead_letter_that_says_where() {
    let router = || Router::new().on("order.placed", async |Json(_): Json<Vec<u32>>| ());
    let text = last_words(router(), Event::raw("order.placed", "[1,\n \"two\"]")).await;
    says(&text, &["\"order.placed\" event \"e-1\"", "expected u32", "line 2 column"]);
    says(&last_words(router(), Event::raw("order.placed", "")).await, &["EOF while parsing"]);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_needs_a_key_says_so_of_an_event_without_one() {
    let text = last_words(Router::new().on("order.placed", async |_: Key| ()), Event::raw("order.placed", "")).await;
    says(&text, &["event \"e-1\" has no key", "the handler needs one"]);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_needs_a_layer_says_what_the_layer_should_have_left() {
    let policy = Policy::fast().quick_attempts(1);
    let handler = (async |_: Extension<u8>| ()).policy(policy);
    let text = last_words(Router::new().on("order.placed", handler), Event::raw("order.placed", "")).await;
    says(&text, &["no layer of this route has left a `u8`"]);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_no_event_is_a_dead_letter_that_says_what_is_missing() {
    use aqueduct::broker::Broker;
    let app = TestApp::new(router());
    for receipt in app.broker().publish(vec![Message::new("events", "{\"order\": 1}")]).await {
        receipt.unwrap();
    }
    app.wait_idle().await;
    let dead = app.dead().await;
    assert!(matches!(dead[0].row.content, Content::Undecodable(_)));
    says(dead[0].row.history[0].error.as_str(), &["CloudEvents", "ce-"]);
    app.stop().await.unwrap();
}
