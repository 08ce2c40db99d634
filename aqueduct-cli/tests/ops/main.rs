//! The operators' commands as operators use them: real processes on real files, with a live owner and without.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod act;
mod doctor;
mod edit;
mod help;
mod list;
mod log;
mod outbox;
mod status;
#[path = "../cli/world.rs"]
#[allow(dead_code, reason = "the other tests need the rest of it")]
mod world;

use std::sync::Arc;

use aqueduct::sqlite::SqliteStore;
use aqueduct::store::{Content, Hold, Row, RowState, Store};
use aqueduct::{Event, Partition, Place, Timestamp};
use serde_json::Value;
use sqlx::ConnectOptions;
use world::{Running, Said, World};

/// Handles an event if the file `ok` is there, and else fails for good: it prints the number of the event.
const HANDLER: &str = r#"id=$CE_ID
cat > /dev/null
if [ -f ok ]; then echo "$id" >> handled; echo "handled $id" >&2; exit 0; fi
echo "the mail server is away" >&2
exit 65"#;

impl World {
    /// So many events of so many keys that group `mail` has as dead letters. Nobody runs it.
    fn with_dead(count: usize, keys: usize) -> Self {
        let world = Self::new();
        world.events(count, keys);
        world
            .run(&["consume", "t", "--group", "mail", "--exec", &world.handler(), "--exit-when-idle", "300ms"])
            .succeeded();
        assert_eq!(world.rows().iter().filter(|row| row.dead).count(), count);
        world
    }

    fn handler(&self) -> String {
        self.script("handler.sh", HANDLER)
    }

    /// Group `mail`, running.
    fn service(&self, more: &[&str]) -> Running {
        let handler = self.handler();
        self.start(&[&["consume", "t", "--group", "mail", "--exec", &handler], more].concat())
    }

    /// Waits until so many are dead: a service logs them a moment before they are stored.
    fn until_dead(&self, count: usize) {
        while self.json(&["status"])[0]["groups"][0]["dead"] != count {}
    }

    /// The handler succeeds from now on.
    fn mend(&self) {
        self.write("ok", "");
    }

    /// The numbers of the events that were handled, in their order.
    fn handled(&self) -> Vec<usize> {
        self.read("handled").lines().map(|line| line.parse().unwrap()).collect()
    }

    /// So many dead letters of one key, which group `mail` has without ever having handled them.
    fn bury(&self, count: u64) {
        let row = |n: u64| {
            let event = Event::raw("tick", "{}").id(n.to_string()).source("test").key("k");
            let (lane, at) = (event.key.as_ref().unwrap().lane(), Timestamp::from_unix_ms(0));
            let mut row = Row::new(Place::at(n + 1), lane, Content::Event(Arc::new(event)), at);
            row.state = RowState::Dead(Hold::Skip);
            row
        };
        let (rows, partition) = ((0..count).map(row).collect::<Vec<_>>(), Partition { topic: "t".into(), index: 0 });
        let path = self.path("aqueduct.db");
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let store = SqliteStore::open(path).await.unwrap();
            store.bury(&"mail".into(), &partition, &rows).await.unwrap();
        });
    }

    /// Changes the file behind the library's back.
    fn execute(&self, sql: &'static str) {
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(self.path("aqueduct.db"));
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let mut connection = options.connect().await.unwrap();
            sqlx::query(sql).execute(&mut connection).await.unwrap();
        });
    }

    fn json(&self, arguments: &[&str]) -> Vec<Value> {
        self.run(&[arguments, &["--output", "json"]].concat()).succeeded().values()
    }
}

impl Said {
    fn values(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// Each key's events are in their order.
#[track_caller]
fn in_order(handled: &[usize], keys: usize) {
    for key in 0..keys {
        let of_key: Vec<usize> = handled.iter().copied().filter(|n| n % keys == key).collect();
        assert!(of_key.is_sorted(), "{of_key:?}");
    }
}
