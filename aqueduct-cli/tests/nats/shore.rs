//! A folder with the program, and a topic of its own on the server.

use aqueduct_servers::{fresh_name, nats_url};
use serde_json::Value;

use crate::world::{Running, Said, World};

pub(crate) struct Shore {
    pub(crate) world: World,
    /// A name that no other test has: of the topic, and of the group.
    pub(crate) name: String,
}

impl Shore {
    /// With nothing declared.
    pub(crate) fn bare() -> Self {
        Self { world: World::new(), name: fresh_name().unwrap() }
    }

    /// With a topic of 4 partitions, which is not the usual number.
    pub(crate) fn new() -> Self {
        let shore = Self::bare();
        shore.declare("[[topic]]\nname = \"T\"\npartitions = 4\n");
        shore
    }

    /// Applies a topology in which `T` stands for the name.
    pub(crate) fn declare(&self, text: &str) {
        self.world.write("topology.toml", &text.replace('T', &self.name));
        self.run(&["topology", "apply", "--yes"]).succeeded();
    }

    fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = self.world.command(arguments);
        command.env("AQUEDUCT_BROKER", nats_url().unwrap());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Said {
        Said::of(self.command(arguments))
    }

    pub(crate) fn start(&self, arguments: &[&str]) -> Running {
        Running::start(self.command(arguments))
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.run(&[arguments, &["--output", "json"]].concat()).succeeded().out).unwrap()
    }

    /// What `status` says of the topic or the group.
    pub(crate) fn status(&self, what: &str, name: &str, more: &[&str]) -> Value {
        let status = self.json(&[&["status"], more].concat());
        let mut all = status[what].as_array().unwrap().iter();
        all.find(|one| one[name] == self.name.as_str()).unwrap_or(&status).clone()
    }

    /// Publishes so many small events of so many keys, with ids from 0.
    pub(crate) fn publish(&self, count: usize, keys: usize) -> Said {
        let line = |n: usize| format!("{{\"n\":{n},\"k\":\"key-{}\"}}\n", n % keys);
        self.world.write("events", &(0..count).map(line).collect::<String>());
        self.run(&["publish", "events", "--topic", &self.name, "--type", "tick", "--id", "n", "--key", "k"])
    }

    /// The arguments of a group that is called as the topic.
    pub(crate) fn consume<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        [&["consume", &self.name, "--group", &self.name, "--quick-delay", "1ms"], more].concat()
    }
}
