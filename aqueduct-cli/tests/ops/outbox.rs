//! The outbox of a service whose database is an SQLite file: its tables, its relay, and rows that cannot be published.

use serde_json::Value;
use sqlx::{AssertSqlSafe, ConnectOptions};

use crate::world::World;

const DATABASE: [&str; 2] = ["--database", "sqlite:shop.db"];

impl World {
    /// What the service does in its own database.
    fn shop(&self, sql: &str) {
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(self.path("shop.db")).create_if_missing(true);
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let mut connection = options.connect().await.unwrap();
            sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
        });
    }

    fn outbox(&self) -> Value {
        self.json(&[&["outbox", "status"][..], &DATABASE].concat()).remove(0)
    }

    fn until_outbox(&self, pending: u64, parked: u64) {
        let until = std::time::Instant::now() + crate::world::LONG;
        loop {
            let status = self.outbox();
            if status["pending"] == pending && status["parked"] == parked {
                return;
            }
            assert!(std::time::Instant::now() < until, "{status}");
        }
    }
}

#[test]
fn a_file_that_is_the_database_has_an_outbox() {
    let world = World::new();
    let with = |arguments: &[&str]| world.run(&[arguments, &DATABASE].concat());
    with(&["outbox", "status"]).failed(66, &["there is no database at shop.db", "aqueduct migrate"]);
    assert!(with(&["migrate"]).succeeded().out.starts_with("made the tables, of version "));
    assert!(with(&["migrate"]).succeeded().out.ends_with(" already\n"));
    world.shop(&with(&["outbox", "sql"]).succeeded().out);
    world.shop("insert into aq_outbox (topic, event_id, type) values ('orders', 'wrong', '')");
    let mut relay = world.start(&[&["relay", "--source", "shop"][..], &DATABASE].concat());
    world.until_outbox(0, 1);
    relay.signal("TERM");
    assert!(relay.end().success(), "{}", relay.said);
    let tail = world.run(&["tail", "orders", "--from", "beginning", "--no-follow"]).succeeded().out;
    let event: Value = serde_json::from_str(tail.trim()).unwrap();
    assert_eq!((&event["type"], &event["data"]["order"]), (&"order.placed".into(), &4711.into()));
    let parked = world.json(&[&["outbox", "list"][..], &DATABASE].concat()).remove(0);
    assert_eq!((&parked["id"], &parked["rows"]), (&"wrong".into(), &1.into()));
    with(&["outbox", "discard", &parked["row"].to_string(), "--yes"]).succeeded();
    world.until_outbox(0, 0);
}

#[test]
fn one_file_may_be_broker_and_database() {
    let world = World::new();
    let database = ["--database", "sqlite:aqueduct.db"];
    let with = |arguments: &[&str]| world.run(&[arguments, &database].concat());
    with(&["migrate"]).succeeded();
    let mut relay = world.start(&[&["relay", "--name", "one"][..], &database].concat());
    relay.wait_or_end(std::time::Duration::from_millis(300));
    relay.signal("INT");
    assert!(relay.end().success(), "{}", relay.said);
    with(&["status"]).succeeded();
}

#[test]
fn the_printed_sql_makes_the_tables_of_a_file() {
    let world = World::new();
    let printed = world.run(&[&["migrate", "--print"][..], &DATABASE].concat()).succeeded();
    world.shop(&printed.out);
    let migrated = world.json(&[&["migrate"][..], &DATABASE].concat()).remove(0);
    assert_eq!(migrated["from"], migrated["to"]);
}

#[test]
fn what_is_wrong_with_a_database_is_said() {
    let world = World::new();
    world.run(&["migrate"]).failed(78, &["which database", "--database", "AQUEDUCT_DATABASE"]);
    let prefix = [&["migrate", "--table-prefix", "shop_"][..], &DATABASE].concat();
    world.run(&prefix).failed(78, &["begin with `aq_`", "--table-prefix"]);
    world.run(&["migrate", "--database", "s3cr3t"]).failed(78, &["`database`", "postgres://"]);
}

#[test]
fn the_sql_of_an_event_is_as_it_was_looked_at() {
    let world = World::new();
    for kind in ["postgres", "mysql", "sqlite"] {
        let url = if kind == "sqlite" { "sqlite:shop.db".to_owned() } else { format!("{kind}://") };
        let sql = world.run(&["outbox", "sql", "--database", &url]).succeeded().out;
        insta::assert_snapshot!(format!("outbox-sql-{kind}"), sql);
    }
}
