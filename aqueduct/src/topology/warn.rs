//! Settings under which a promise holds less far than one may think.

use std::time::Duration;

use serde_json::Value;

use super::plan::{Finding, Weight};
use super::wanted::{Fields, Id, Purpose, Wanted};

/// How long a consumer may be away without anybody having noticed.
const WEEKEND: Duration = Duration::from_hours(72);

/// No worker is that quick under load.
const ACK_WAIT_MIN: Duration = Duration::from_secs(1);

/// What is to be known about what there will be.
pub(super) fn warnings(wanted: &Wanted, config: &Fields, publish_timeout: Duration) -> Vec<Finding> {
    let config = Config(config);
    let mut found: Vec<(String, &str)> = Vec::new();
    match (&wanted.id, &wanted.purpose) {
        (Id::Durable(..), _) => durable(&config, &mut found),
        // Who finds a bucket of leases made anew goes on above the epochs of the readers.
        (Id::Stream(name), Purpose::Other) if name.starts_with("KV_") => {}
        (Id::Stream(_), purpose) => {
            durability(&config, &mut found);
            match purpose {
                Purpose::Topic(_) => topic(&config, publish_timeout, &mut found),
                Purpose::DeadLetters => dead_letters(&config, &mut found),
                Purpose::Other => {}
            }
        }
    }
    found.into_iter().map(|(text, fix)| Finding::new(Weight::Warning, &wanted.id, text, fix)).collect()
}

type Found<'a> = Vec<(String, &'a str)>;

struct Config<'a>(&'a Fields);

impl Config<'_> {
    fn number(&self, field: &str) -> i64 {
        self.0.get(field).and_then(Value::as_i64).unwrap_or_default()
    }

    fn time(&self, field: &str) -> Duration {
        Duration::from_nanos(u64::try_from(self.number(field)).unwrap_or_default())
    }

    fn is(&self, field: &str, value: &str) -> bool {
        self.0.get(field).and_then(Value::as_str) == Some(value)
    }

    /// Whether the oldest messages are dropped when it is full.
    fn drops(&self) -> bool {
        let limited = ["max_bytes", "max_msgs", "max_msgs_per_subject"].iter().any(|field| self.number(field) > 0);
        limited && !self.is("discard", "new")
    }
}

fn durability(config: &Config<'_>, found: &mut Found<'_>) {
    if config.number("num_replicas") < 2 {
        let text = "there is one copy: a machine that dies takes up to two minutes of confirmed events with it, unless its \
                    server has `sync_interval: always`, which clients cannot see";
        found.push((text.to_owned(), "declare 3 replicas on a cluster, or set that"));
    }
    if config.is("storage", "memory") {
        found
            .push(("it is kept in memory: with the server goes what was confirmed".to_owned(), "declare file storage"));
    }
    if config.is("persist_mode", "async") {
        found.push(("it confirms what is not written yet".to_owned(), "leave `persist_mode` as it is by default"));
    }
    if config.0.get("no_ack") == Some(&Value::Bool(true)) {
        found.push(("it confirms nothing, and publishers wait in vain".to_owned(), "set `no_ack` to false"));
    }
}

fn topic(config: &Config<'_>, publish_timeout: Duration, found: &mut Found<'_>) {
    let (age, window) = (config.time("max_age"), config.time("duplicate_window"));
    if !age.is_zero() && age < WEEKEND {
        let text =
            format!("events are deleted after {age:?}, read or not: a consumer that is away for longer loses them");
        found.push((text, "keep them for longer than anybody may be away"));
    }
    if config.drops() {
        let text = "when it is full it drops its oldest events, read or not";
        found.push((text.to_owned(), "declare `max_bytes`, with which it refuses new ones, or no limit"));
    }
    if window <= publish_timeout {
        let text = format!(
            "repeats are recognised for {window:?}, and publishing is tried for {publish_timeout:?}: what is sent again late is stored twice"
        );
        found.push((text, "declare a longer `dedup_window`"));
    }
}

fn dead_letters(config: &Config<'_>, found: &mut Found<'_>) {
    let age = config.time("max_age");
    if !age.is_zero() {
        found.push((format!("dead letters are deleted after {age:?}, looked at or not"), "declare no `max_age`"));
    }
    if config.drops() {
        found.push((
            "when it is full it drops dead letters that nobody has looked at".to_owned(),
            "let it refuse new ones",
        ));
    }
    if config.is("retention", "interest") || config.is("retention", "workqueue") {
        found.push(("dead letters are gone once somebody has read them".to_owned(), "declare `Retention::Limits`"));
    }
}

fn durable(config: &Config<'_>, found: &mut Found<'_>) {
    let (wait, most) = (config.time("ack_wait"), config.number("max_deliver"));
    let backoff = config.0.get("backoff").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    if backoff {
        let text = "the first time in `backoff` takes the place of `ack_wait`, and a negative acknowledgement without a delay \
                    does not wait for any of them";
        found.push((text.to_owned(), "set it to null, and let workers ask for delays"));
    } else if config.0.contains_key("ack_wait") && wait < ACK_WAIT_MIN {
        let text = format!("after {wait:?} a message goes to the next worker, while the first is still at work");
        found.push((text, "declare a longer `ack_wait`"));
    }
    if most > 0 {
        let text =
            format!("after {most} deliveries a message is never delivered again, and a work queue keeps it for ever");
        found.push((text, "watch the server's advisories, or declare no `max_deliver`"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{NatsDurable, NatsStream, NatsTopic, Retention, Topology};
    use super::*;

    /// What is said of the only thing that a topology has, if it is there as declared but for one setting.
    fn warned(topology: &Topology, setting: &str, value: Value) -> String {
        let wanted = topology.wanted(16).unwrap();
        let mut config = wanted[0].config();
        config.insert("num_replicas".into(), json!(3));
        config.insert(setting.into(), value);
        let found = warnings(&wanted[0], &config, Duration::from_secs(30));
        found.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn what_undercuts_a_promise_is_said() {
        let topic = Topology::new().topic("orders");
        let dead = Topology::new().dead_letters(NatsStream::new("dead"));
        let durable = Topology::new().durable(NatsDurable::new("jobs", "billing"));
        let hours = |hours: u64| json!(hours * 3_600_000_000_000);
        for (topology, setting, value, part) in [
            (&topic, "num_replicas", json!(1), "sync_interval: always"),
            (&topic, "storage", json!("memory"), "kept in memory"),
            (&topic, "persist_mode", json!("async"), "not written yet"),
            (&topic, "no_ack", json!(true), "confirms nothing"),
            (&topic, "max_age", hours(24), "deleted after 86400s, read or not"),
            (&topic, "discard", json!("old"), ""),
            (&topic, "max_msgs_per_subject", json!(1), ""),
            (
                &topic,
                "duplicate_window",
                json!(20_000_000_000_u64),
                "recognised for 20s, and publishing is tried for 30s",
            ),
            (&dead, "max_age", hours(9_000), "looked at or not"),
            (&dead, "retention", json!("workqueue"), "gone once somebody has read them"),
            (&durable, "backoff", json!([1_000]), "takes the place of `ack_wait`"),
            (&durable, "ack_wait", json!(1_000), "after 1µs a message goes to the next worker"),
            (&durable, "max_deliver", json!(5), "after 5 deliveries"),
            (&topic, "max_age", hours(73), ""),
            (&durable, "max_ack_pending", json!(5), ""),
        ] {
            let said = warned(topology, setting, value.clone());
            let fits = if part.is_empty() { said.is_empty() } else { said.contains(part) && said.lines().count() == 1 };
            assert!(fits, "{setting} {value}: {said:?}");
        }
        let full = Topology::new().dead_letters(NatsStream::new("dead").max_bytes(9));
        assert!(warned(&full, "discard", json!("old")).contains("nobody has looked at"));
        let full = Topology::new().topic(NatsTopic::new("orders").max_bytes(9));
        assert!(warned(&full, "discard", json!("old")).contains("drops its oldest events"));
    }

    #[test]
    fn streams_of_others_make_no_promises_but_to_last() {
        let jobs = Topology::new().stream(NatsStream::new("jobs").retention(Retention::Interest).max_bytes(9));
        assert_eq!(warned(&jobs, "max_age", json!(1_000)), "");
        assert!(warned(&jobs, "num_replicas", json!(1)).contains("one copy"));
        let leases = Topology::new().consumer("mail", ["orders"]);
        assert_eq!(warned(&leases, "num_replicas", json!(1)), "");
    }
}
