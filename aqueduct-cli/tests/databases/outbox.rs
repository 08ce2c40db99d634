//! The outbox, its relay, and what operators do about rows that cannot be published.

use crate::fresh::{Fresh, on_each_server};

on_each_server! {
    a_row_of_the_printed_sql_travels
    a_row_that_is_wrong_is_parked_tried_again_and_discarded
    the_outbox_of_another_system_is_published
}

fn a_row_of_the_printed_sql_travels(fresh: &Fresh) {
    fresh.run(&["migrate"]).succeeded();
    let sql = fresh.run(&["outbox", "sql"]).succeeded().out;
    fresh.sql(&sql);
    fresh.sql("insert into aq_outbox (topic, type) values ('orders', 'order.paid')");
    assert_eq!(fresh.json(&["outbox", "status"])[0]["pending"], 2);
    let mut relay = fresh.start(&["relay", "--source", "billing", "--audit", "1h"]);
    fresh.until_outbox(0, 0);
    relay.signal("TERM");
    assert!(relay.end().success(), "{}", relay.said);
    relay.said.find("stopping").unwrap();
    let mut events = fresh.tail("orders");
    events.sort_by_key(|event| event["type"] == "order.paid");
    let [placed, paid] = &events[..] else { panic!("{events:#?}") };
    assert_eq!((&placed["type"], &placed["source"]), (&"order.placed".into(), &"shop".into()));
    assert_eq!((&placed["partitionkey"], &placed["time"]), (&"customer-7".into(), &"2026-01-05T09:00:07Z".into()));
    assert_eq!((&placed["data"]["order"], &placed["tenant"]), (&4711.into(), &"eu-1".into()));
    assert_eq!((&paid["type"], &paid["source"]), (&"order.paid".into(), &"billing".into()));
    assert!(events.iter().all(|event| event["id"].as_str().unwrap().len() == 36), "{events:#?}");
    assert_eq!(fresh.sql("select count(*) from aq_outbox_sent").trim(), "2");
}

fn a_row_that_is_wrong_is_parked_tried_again_and_discarded(fresh: &Fresh) {
    fresh.run(&["migrate"]).succeeded();
    let key = if fresh.database.url().starts_with("mysql") { "`key`" } else { "key" };
    for (key_of, id, kind) in [("a", "1", ""), ("a", "2", "tick"), ("b", "3", "tick")] {
        let columns = format!("topic, {key}, event_id, type");
        fresh.sql(&format!("insert into aq_outbox ({columns}) values ('t', '{key_of}', '{id}', '{kind}')"));
    }
    let mut relay = fresh.start(&["relay"]);
    fresh.until_outbox(0, 2);
    let status = &fresh.json(&["outbox", "status"])[0];
    assert_eq!((&status["parked_keys"], &status["oldest"]), (&1.into(), &serde_json::Value::Null));
    let parked = fresh.json(&["outbox", "list"]).remove(0);
    assert!(parked["error"].as_str().unwrap().contains("`type` is empty"), "{parked}");
    assert_eq!((&parked["id"], &parked["key"], &parked["rows"]), (&"1".into(), &"a".into(), &2.into()));
    assert!(fresh.run(&["outbox", "list"]).succeeded().out.contains("`type` is empty"));
    let (row, attempts) = (parked["row"].to_string(), parked["attempts"].as_u64().unwrap());

    assert_eq!(fresh.run(&["outbox", "retry", &row, "--dry-run"]).succeeded().out, "would retry 1 parked row\n");
    fresh.run(&["outbox", "retry", &row]).succeeded();
    let tried = || fresh.json(&["outbox", "list"])[0]["attempts"].as_u64().unwrap() > attempts;
    fresh.until("another attempt", tried);
    fresh.run(&["outbox", "retry", "--all"]).succeeded();
    fresh.run(&["outbox", "retry"]).failed(2, &["--all"]);
    fresh.run(&["outbox", "retry", "4711"]).failed(66, &["no parked row has the number 4711", "aqueduct outbox list"]);

    fresh.run(&["outbox", "discard", &row]).failed(2, &["discard 1 row", "--yes"]);
    let discard = ["outbox", "discard", &row, "--yes", "--who", "ada", "--why", "it has no type"];
    let done = fresh.run(&discard).succeeded().says(&["ada", "it has no type"]);
    assert_eq!(done.out, format!("discarded row {row}: topic t, key a, id 1, type \n"));
    fresh.until_outbox(0, 0);
    fresh.run(&discard).failed(66, &[&row]);
    relay.signal("INT");
    assert!(relay.end().success(), "{}", relay.said);
    let mut ids: Vec<String> = fresh.tail("t").iter().map(|event| event["id"].to_string()).collect();
    ids.sort();
    assert_eq!(ids, [r#""2""#, r#""3""#]);
}

/// Tables as the gem and the modules have them.
fn the_outbox_of_another_system_is_published(fresh: &Fresh) {
    fresh.run(&["migrate"]).succeeded();
    let [id, json] = if fresh.database.url().starts_with("mysql") {
        ["bigint auto_increment primary key", "json"]
    } else {
        ["bigserial primary key", "jsonb"]
    };
    fresh.sql(&format!(
        "create table jetstream_outbox_events (id {id}, event_id varchar(255) not null unique, subject varchar(255) not null,
         payload {json} not null, status varchar(255) not null, attempts integer not null default 0, last_error text,
         sent_at timestamp null, created_at timestamp null, updated_at timestamp null)"
    ));
    fresh.sql(&format!(
        "create table outbox_events (id {id}, message_id char(36) not null, subject varchar(255) not null, version varchar(20),
         payload {json} not null, occurred_at timestamp null, published_at timestamp null, error text, failed_at timestamp null)"
    ));
    let row = |id: &str, payload: &str| {
        let columns = "event_id, subject, payload, status, created_at, updated_at";
        let times = "'2026-01-02 03:04:05', '2026-01-02 03:04:05'";
        fresh.sql(&format!(
            "insert into jetstream_outbox_events ({columns}) values ('{id}', 'orders.sync.warehouse', '{payload}', 'pending', {times})"
        ));
    };
    row("1", r#"{"event_type": "order.paid", "resource_type": "order", "resource_id": 7}"#);
    row("2", "[]");
    fresh.sql("insert into outbox_events (message_id, subject, version, payload, occurred_at) values ('3', 'events.a', '1', '1', '2026-01-02 03:04:05')");
    let gem = ["--outbox", "jetstream_bridge", "--outbox-table", "jetstream_outbox_events"];
    let modules = ["--outbox", "tupic", "--outbox-prefix", "acme", "--outbox-app", "assets"];
    let waits = |flags: &[&str]| {
        let status = &fresh.json(&[&["outbox", "status"], flags].concat())[0];
        (status["pending"].as_u64().unwrap(), status["parked"].as_u64().unwrap())
    };
    assert_eq!((waits(&gem), waits(&modules)), ((2, 0), (1, 0)));
    for (flags, wanted) in [(&gem[..], (0, 1)), (&modules, (0, 0))] {
        let mut relay = fresh.start(&[&["relay"], flags].concat());
        fresh.until(&format!("{wanted:?} of {flags:?}"), || waits(flags) == wanted);
        relay.signal("TERM");
        assert!(relay.end().success(), "{}", relay.said);
    }
    let [paid] = &fresh.tail("orders.sync.warehouse")[..] else { panic!("one is an event") };
    assert_eq!((&paid["id"], &paid["partitionkey"]), (&"1".into(), &"order/7".into()));
    let [thing] = &fresh.tail("acme.events.a")[..] else { panic!("it is an event") };
    assert_eq!((&thing["type"], &thing["data"]["source"]), (&"events.a".into(), &"assets".into()));
    assert!(fresh.run(&[&["outbox", "list"], &gem[..]].concat()).succeeded().out.contains("no JSON object"));
    fresh.run(&[&["outbox"], &gem[..], &["discard", "2", "--yes", "--why", "no event"]].concat()).succeeded();
    assert_eq!(
        (waits(&gem), fresh.sql("select count(*) from jetstream_outbox_events where status = 'failed'").trim()),
        ((0, 0), "1")
    );
    fresh.run(&["relay", "--outbox", "tupic"]).failed(78, &["--outbox-prefix"]);
    fresh.run(&["outbox", "status", "--outbox", "tupik"]).failed(2, &["tupic"]);
}
