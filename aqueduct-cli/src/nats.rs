//! The broker on NATS: connecting, and a broker that goes by what topics are like there.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use aqueduct::broker::{Abilities, Broker, Membership, Receipt, Subscription};
use aqueduct::nats::{NatsBroker, NatsOptions};
use aqueduct::{BoxFuture, BrokerError, Message, Topic};

use crate::config::Settings;
use crate::failure::{Exit, Failure};
use crate::location::{Location, Servers};

/// A broker on NATS. Nobody tells the program how many partitions a topic has, so it looks before the first event.
#[derive(Clone)]
pub(crate) struct Nats {
    broker: NatsBroker,
    found: Arc<Mutex<BTreeSet<Topic>>>,
}

/// Connects to the servers that are the broker.
pub(crate) async fn connect(servers: &Servers, settings: &Settings) -> Result<NatsBroker, Failure> {
    let options = NatsOptions::new(servers.addresses()).name("aqueduct");
    if let Some(path) = settings.credentials.as_ref().filter(|path| !path.exists()) {
        let text = format!("there is no file of credentials {}", path.display());
        return Err(Failure::new(Exit::Missing, text).fix("correct the path after --credentials"));
    }
    let options = settings.credentials.iter().fold(options, NatsOptions::credentials_file);
    let broker = options.connect().await.map_err(|error| Failure::from(error).with_exit(Exit::Config))?;
    match broker.connection().why {
        None => Ok(broker),
        Some(why) => Err(Failure::new(Exit::Unusable, format!("there is no connection to NATS at {servers}: {why}"))
            .fix("check that it runs there, and the user, password or token in the address, or --credentials")),
    }
}

/// The same for commands that nothing but NATS has.
pub(crate) async fn connect_only(settings: &Settings) -> Result<NatsBroker, Failure> {
    match &settings.broker {
        Location::Nats(servers) => connect(servers, settings).await,
        Location::Sqlite(_) => Err(Failure::new(Exit::Config, "which NATS server is not said").fix(
            "name it with --broker nats://host:4222, or with the variable AQUEDUCT_BROKER, which others do not see",
        )),
    }
}

impl Nats {
    pub(crate) fn new(broker: NatsBroker) -> Self {
        Self { broker, found: Arc::default() }
    }

    pub(crate) fn broker(&self) -> &NatsBroker {
        &self.broker
    }

    /// Looks at topics that were not looked at yet. What is wrong with one is said when it is used.
    async fn find<'a>(&self, topics: impl Iterator<Item = &'a Topic>) {
        for topic in topics.collect::<BTreeSet<_>>() {
            let is_found = self.found.lock().unwrap_or_else(PoisonError::into_inner).contains(topic);
            if !is_found && self.broker.find(topic.clone()).await.is_ok() {
                self.found.lock().unwrap_or_else(PoisonError::into_inner).insert(topic.clone());
            }
        }
    }
}

impl Broker for Nats {
    fn abilities(&self) -> Abilities {
        self.broker.abilities()
    }

    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Vec<Result<Receipt, BrokerError>>> {
        Box::pin(async move {
            self.find(messages.iter().map(|message| &message.topic)).await;
            self.broker.publish(messages).await
        })
    }

    fn check_topic<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async move { self.broker.find(topic.clone()).await.map(drop) })
    }

    fn join(&self, subscription: Subscription) -> BoxFuture<'_, Result<Arc<dyn Membership>, BrokerError>> {
        Box::pin(async move {
            self.find(subscription.topics.iter()).await;
            self.broker.join(subscription).await
        })
    }
}
