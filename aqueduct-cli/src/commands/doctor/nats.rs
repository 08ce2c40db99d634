//! What is wrong with a broker on NATS, and with the store beside it.

use aqueduct::BrokerError;
use aqueduct::nats::NatsStatus;

use super::{Report, clock, open_existing, stored};
use crate::cli::Global;
use crate::config::Settings;
use crate::location::{DECLARE, Servers};
use crate::nats::connect;
use crate::table::count;

pub(super) async fn examine(global: &Global, servers: &Servers, settings: &Settings, report: &mut Report) {
    let broker = match connect(servers, settings).await {
        Ok(broker) => broker,
        Err(failure) => return report.failed("connection", &failure),
    };
    report.ok("connection", format!("{servers} answers"));
    match broker.status().await {
        Ok(status) => server(&status, report),
        Err(error) => {
            let fix = match error {
                BrokerError::Refused(_) => "permit this user to list streams and their consumers, or look as another",
                _ => "enable JetStream on the server and for this account, and look at the server's log",
            };
            report.fail("JetStream", error.to_string(), fix);
        }
    }
    if settings.store.is_none() && settings.database.is_none() {
        let text = "there is none, so events that fail wait at the broker, and none becomes a dead letter";
        return report.warn("store", text, "name that of the groups with --store sqlite:PATH or --database");
    }
    let opened = match open_existing(global).await {
        Ok(opened) => opened,
        Err(failure) => return report.failed("store", &failure),
    };
    if let Err(failure) = stored(&opened.store, None, report).await {
        report.failed("store", &failure);
    }
}

fn server(status: &NatsStatus, report: &mut Report) {
    report.ok("JetStream", "it answers");
    match status.topics.len() {
        0 => report.warn("topics", "no topic is declared", format!("declare what is published to: {DECLARE}")),
        topics => report.ok("topics", format!("{} declared", count(topics as u64, "topic"))),
    }
    clock(status.topics.iter().map(|topic| (format!("topic {}", topic.topic), topic.newest)), report);
    for fault in &status.faults {
        // What is wrong, and what to do, are one sentence.
        let (text, fix) = fault.split_once(": ").unwrap_or((fault, "mend it"));
        report.fail("durables", text, fix);
    }
    report.else_ok("durables", "none hands events out again before they can be handled");
}
