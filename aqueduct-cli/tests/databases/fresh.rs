//! A folder with the program, and a database of its own.

use aqueduct_servers::{Database, mariadb_database, postgres_database};
use serde_json::Value;

use crate::world::{Running, Said, World};

pub(crate) struct Fresh {
    pub(crate) world: World,
    pub(crate) database: Database,
}

impl Fresh {
    pub(crate) fn postgres() -> Self {
        Self { world: World::new(), database: postgres_database().unwrap() }
    }

    pub(crate) fn mariadb() -> Self {
        Self { world: World::new(), database: mariadb_database().unwrap() }
    }

    /// With Aqueduct's tables in it.
    pub(crate) fn migrated(self) -> Self {
        self.run(&["migrate"]).succeeded();
        self
    }

    fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = self.world.command(arguments);
        command.env("AQUEDUCT_DATABASE", self.database.url());
        command
    }

    /// Runs the program, which knows the database by its environment.
    pub(crate) fn run(&self, arguments: &[&str]) -> Said {
        Said::of(self.command(arguments))
    }

    pub(crate) fn start(&self, arguments: &[&str]) -> Running {
        Running::start(self.command(arguments))
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Vec<Value> {
        values(&self.run(&[arguments, &["--output", "json"]].concat()).succeeded().out)
    }

    /// Runs SQL by the program that comes with the server.
    pub(crate) fn sql(&self, sql: &str) -> String {
        self.database.query(sql).unwrap()
    }

    /// Waits until the outbox has these numbers of rows that wait and that are parked.
    pub(crate) fn until_outbox(&self, pending: u64, parked: u64) {
        self.until(&format!("{pending} pending and {parked} parked"), || {
            let status = &self.json(&["outbox", "status"])[0];
            status["pending"] == pending && status["parked"] == parked
        });
    }

    pub(crate) fn until(&self, what: &str, reached: impl Fn() -> bool) {
        let until = std::time::Instant::now() + crate::world::LONG;
        while !reached() {
            let status = self.run(&["outbox", "status"]);
            assert!(std::time::Instant::now() < until, "{what}: {status:?}");
        }
    }

    /// The events of a topic.
    pub(crate) fn tail(&self, topic: &str) -> Vec<Value> {
        values(&self.world.run(&["tail", topic, "--from", "beginning", "--no-follow"]).succeeded().out)
    }
}

fn values(lines: &str) -> Vec<Value> {
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The same tests with a database of each server.
macro_rules! on_each_server {
    ($($name:ident)*) => {
        mod postgres {
            $(#[test]
            fn $name() {
                super::$name(&crate::fresh::Fresh::postgres());
            })*
        }

        mod mariadb {
            $(#[test]
            fn $name() {
                super::$name(&crate::fresh::Fresh::mariadb());
            })*
        }
    };
}
pub(crate) use on_each_server;
