//! `aqueduct relay` to NATS: rows of Aqueduct's own outbox, and of other systems as their peers read them.

use std::time::Duration;

use aqueduct::Message;
use aqueduct::broker::{Arrival, Broker, Room, Subscription};
use aqueduct::nats::{ForeignStream, NatsBroker};
use aqueduct_servers::{Database, nats_url, postgres_database};

use crate::shore::Shore;
use crate::world::LONG;

struct Shop {
    shore: Shore,
    database: Database,
    url: String,
}

impl Shop {
    fn new(shore: Shore) -> Self {
        let database = postgres_database().unwrap();
        let shop = Self { shore, url: database.url(), database };
        shop.shore.run(&shop.with(&["migrate"])).succeeded();
        shop
    }

    fn with<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        [arguments, &["--database", &self.url]].concat()
    }

    /// Runs a relay until nothing is pending any more.
    fn relay(&self, flags: &[&str]) {
        let mut relay = self.shore.start(&self.with(&[&["relay"], flags].concat()));
        let until = std::time::Instant::now() + LONG;
        while self.shore.json(&self.with(&[&["outbox", "status"], flags].concat()))["pending"] != 0 {
            assert!(std::time::Instant::now() < until, "{}", relay.said);
        }
        relay.signal("TERM");
        assert!(relay.end().success(), "{}", relay.said);
    }
}

/// What is on a plain subject.
fn on_subject(stream: &str, subject: &str) -> Message {
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let nats = NatsBroker::connect(nats_url().unwrap()).await.unwrap();
        let broker = nats.foreign().read(subject, ForeignStream::new(stream));
        let member = broker.join(Subscription::new(format!("{stream}_look"), vec![subject.into()])).await.unwrap();
        loop {
            let arrival = tokio::time::timeout(LONG, member.next(Room::new(1, &[]))).await.unwrap().unwrap();
            if let Arrival::Batch { mut deliveries, .. } = arrival {
                let _ = tokio::time::timeout(Duration::from_secs(5), member.leave()).await;
                return deliveries.remove(0).message;
            }
        }
    })
}

#[test]
fn rows_travel_to_a_topic_of_any_number_of_partitions() {
    let shop = Shop::new(Shore::new());
    let name = &shop.shore.name;
    shop.database
        .query(&format!("insert into aq_outbox (topic, type, key) values ('{name}', 'order.paid', 'a')"))
        .unwrap();
    shop.relay(&[]);
    let said = shop.shore.run(&shop.shore.consume(&["--max-events", "1"])).succeeded();
    assert!(said.out.contains("order.paid"), "{}", said.out);
}

#[test]
fn rows_of_the_gem_travel_as_the_gem_sends_them() {
    let shore = Shore::bare();
    shore.declare("[[stream]]\nname = \"T\"\nsubjects = [\"T.sync.>\"]\n");
    let shop = Shop::new(shore);
    let name = &shop.shore.name;
    shop.database.query(
        "create table jetstream_bridge_outbox_events (id bigserial primary key, event_id varchar(255) not null unique, subject varchar(255) not null,
         payload jsonb not null, status varchar(255) not null, attempts integer not null default 0, last_error text,
         sent_at timestamp null, created_at timestamp null, updated_at timestamp null)").unwrap();
    let body = r#"{"event_id": "e1", "event_type": "order.paid", "resource_id": 7, "resource_type": "order"}"#;
    shop.database
        .query(&format!(
            "insert into jetstream_bridge_outbox_events (event_id, subject, payload, status, created_at, updated_at)
         values ('e1', '{name}.sync.stock', '{body}', 'pending', '2026-01-02 03:04:05', '2026-01-02 03:04:05')"
        ))
        .unwrap();
    let gem = ["--outbox", "jetstream_bridge", "--outbox-table", "jetstream_bridge_outbox_events"];
    let said = shop.shore.run(&shop.with(&[&["relay", "--format", "json"], &gem[..]].concat()));
    said.failed(2, &["as that system sends them", "leave out --format"]);
    shop.relay(&gem);
    let message = on_subject(name, &format!("{name}.sync.stock"));
    let read: serde_json::Value = serde_json::from_slice(&message.body).unwrap();
    assert_eq!(read, serde_json::from_str::<serde_json::Value>(body).unwrap());
    assert!(message.headers.iter().all(|(name, _)| !name.as_str().starts_with("ce")), "{message:?}");
    assert!(message.dedup_id.is_none_or(|id| id == "e1"));
}

#[test]
fn rows_of_the_modules_travel_as_the_modules_send_them() {
    let shore = Shore::bare();
    shore.declare("[[stream]]\nname = \"T\"\nsubjects = [\"T.events.>\"]\n");
    let shop = Shop::new(shore);
    let name = &shop.shore.name;
    shop.database.query(
        "create table outbox_events (id bigserial primary key, message_id char(36) not null, subject varchar(255) not null, version varchar(20),
         payload jsonb not null, occurred_at timestamp null, published_at timestamp null, error text, failed_at timestamp null)").unwrap();
    shop.database.query("insert into outbox_events (message_id, subject, version, payload, occurred_at) values ('m1', 'events.a', '1', '1', '2026-01-02 03:04:05')").unwrap();
    shop.relay(&["--outbox", "tupic", "--outbox-prefix", name, "--outbox-app", "assets"]);
    let message = on_subject(name, &format!("{name}.events.a"));
    let read: serde_json::Value = serde_json::from_slice(&message.body).unwrap();
    assert_eq!((&read["source"], &read["data"], &read["version"]), (&"assets".into(), &1.into(), &"1".into()));
    assert_eq!(message.dedup_id.unwrap().as_str().trim(), "m1");
}
