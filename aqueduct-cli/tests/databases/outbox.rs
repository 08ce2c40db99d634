//! The outbox, its relay, and what operators do about rows that cannot be published.

use crate::fresh::{Fresh, on_each_server};

on_each_server! {
    a_row_of_the_printed_sql_travels
    a_row_that_is_wrong_is_parked_tried_again_and_discarded
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
