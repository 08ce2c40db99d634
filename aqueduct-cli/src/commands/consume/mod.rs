//! `aqueduct consume`: a group handles the events of topics.

mod activity;

use std::future::IntoFuture;
use std::sync::Arc;

use aqueduct::format::CloudEvents;
use aqueduct::nats::{NatsBroker, NatsTopic};
use aqueduct::sqlite::{ConsumerStatus, SqliteBroker};
use aqueduct::{BrokerError, Consumer, Health, Publisher, Router};
use clap::{ArgMatches, Args};
use tokio::sync::oneshot;

use crate::broker::{Absent, AnyBroker, Open, open};
use crate::cli::Global;
use crate::config::{ConsumeSettings, Flags, FormatName, Settings, Span, load};
use crate::failure::{Exit, Failure, unwritable};
use crate::handler::{Delivery, Exec, Handle, Http, Limits, Print, Records, Results, Shared, Stream};
use crate::output::{Output, note};
use crate::program::{CommandLine, Groups};
use crate::service::{Stop, Systemd, tell};
use crate::suggest::did_you_mean;
use activity::Activity;

/// What it means that there is no store on NATS.
const NO_STORE: &str = "there is no store, so events that fail wait at the broker with what is behind them, and none becomes a dead letter: \
     name one with --store sqlite:PATH or --database";

const EXAMPLES: &str = include_str!("../help/consume.txt");

/// Handles the events of topics, as a group that remembers how far it has come.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Consume {
    /// The topics; `orders.*` is every topic of one more word, `>` every topic.
    #[arg(required = true, value_name = "TOPIC")]
    topics: Vec<String>,
    /// The name under which it remembers what is done.
    #[arg(short, long)]
    group: String,
    /// Stops when so many events are done. What stands before one of them in its partition is done too.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_events: Option<u64>,
    /// Stops when there was nothing to do for so long; events that are parked are not waited for.
    #[arg(long, value_name = "TIME")]
    exit_when_idle: Option<Span>,
    /// Fails if another process has the group, instead of waiting for it.
    #[arg(long)]
    no_wait: bool,
    /// Tells systemd when it is ready and when it stops; for units of `Type=notify`.
    #[arg(long)]
    sd_notify: bool,
    #[command(flatten)]
    what: What,
    #[command(flatten)]
    settings: ConsumeSettings,
}

/// What to do with an event.
#[derive(Args, Clone)]
#[group(multiple = false)]
#[command(next_help_heading = "What to do with an event")]
struct What {
    /// Prints it as a line of JSON. The default.
    #[arg(long)]
    print: bool,
    /// Runs this program for each.
    #[arg(long, value_name = "COMMAND")]
    exec: Option<String>,
    /// Sends it to a program that runs on and answers with a line for each.
    #[arg(long, value_name = "COMMAND")]
    exec_stream: Option<String>,
    /// Sends it in a POST to this address.
    #[arg(long, value_name = "URL")]
    http: Option<String>,
}

/// Handlers at the same time, unless it is said otherwise.
const CONCURRENCY: usize = aqueduct::defaults::CONCURRENCY;
/// The same for workers, which answer many at once.
const CONCURRENCY_STREAM: usize = 256;

impl Consume {
    pub(crate) async fn run(self, global: &Global, matches: &ArgMatches) -> Result<(), Failure> {
        let settings = load(global, Flags::of("consume", &self.settings, matches))?.settings;
        let consume = &settings.consume;
        let stop = Stop::on_signals()?;
        let opened = self.open(&settings).await?;
        let records = Records { broker: opened.broker.clone(), group: self.group.clone() };
        let broker = opened.broker.clone();
        let (handler, unwritten) = self.handler(consume, records)?;
        let results = consume.publish_results.as_deref();
        let results =
            results.map(|topic| Results::new(Publisher::new(self.group.as_str(), opened.broker.shared()), topic));
        let activity = Arc::new(Activity::new(self.max_events));
        let router = router(Arc::clone(&handler), results, Arc::clone(&activity));
        let serve = self.consumer(consume, opened).serve(router);
        let health = serve.health();
        let systemd = Systemd(self.sd_notify);
        let idle = idle(self.exit_when_idle, broker, self.group.clone(), Arc::clone(&activity), health.clone());
        let graceful = until_stop(stop.clone(), Arc::clone(&activity), idle);
        let graceful = async move {
            graceful.await;
            systemd.stopping();
        };
        let telling = tokio::spawn(tell(health, systemd));
        let serving = serve.with_graceful_shutdown(graceful).into_future();
        let ended = tokio::select! {
            biased;
            ended = serving => ended.map_err(|e| self.explain(e.into())),
            () = stop.at_once() => Err(Failure::new(Exit::Stopped, "stopped at once; what was in hand comes again")),
            // An error of the channel means that writing ended well. There is nothing to finish without an output.
            Ok(error) = unwritten => match error.kind() {
                std::io::ErrorKind::BrokenPipe => Ok(()),
                _ => Err(unwritable(&error).then("events that were not written come again")),
            },
        };
        telling.abort();
        handler.end().await;
        ended?;
        activity.print(global.output.unwrap_or_default());
        Ok(())
    }

    /// Opens broker and store, and refuses topics that do not exist unless they are to be created.
    async fn open(&self, settings: &Settings) -> Result<Open, Failure> {
        let absent = if settings.consume.create_topics { Absent::Create } else { Absent::Refuse };
        let mut opened = open(settings, absent).await?;
        match &mut opened.broker {
            AnyBroker::Sqlite(broker) => self.topics_in_file(broker, settings, absent).await?,
            AnyBroker::Nats(_) if self.no_wait => {
                let failure =
                    Failure::new(Exit::Usage, "on NATS no process has a group alone, so --no-wait says nothing");
                return Err(failure.fix("leave out --no-wait: the processes of a group share its partitions"));
            }
            AnyBroker::Nats(broker) => {
                let results = settings.consume.publish_results.iter();
                for topic in self.topics.iter().chain(results) {
                    self.topic_on_nats(broker.broker(), topic, settings, absent).await?;
                }
                if opened.store.is_none() {
                    note(NO_STORE);
                }
            }
        }
        Ok(opened)
    }

    async fn topics_in_file(
        &self,
        broker: &mut SqliteBroker,
        settings: &Settings,
        absent: Absent,
    ) -> Result<(), Failure> {
        if absent == Absent::Refuse {
            let known = broker.topics().await?;
            let known: Vec<&str> = known.iter().map(aqueduct::Topic::as_str).collect();
            let wild = |topic: &str| topic.split('.').any(|part| matches!(part, "*" | ">"));
            if let Some(topic) = self.topics.iter().find(|topic| !wild(topic) && !known.contains(&topic.as_str())) {
                let question = did_you_mean(topic, known).map(|question| question + " ").unwrap_or_default();
                return Err(settings
                    .broker
                    .lacks(topic)
                    .fix(format!("{question}Publish to it first, or let --create-topics create it")));
            }
        }
        if let Some(results) = &settings.consume.publish_results {
            broker.declare(results.as_str()).await?;
        }
        if self.no_wait {
            *broker = broker.clone().refuse_to_wait();
        }
        Ok(())
    }

    async fn topic_on_nats(
        &self,
        broker: &NatsBroker,
        topic: &str,
        settings: &Settings,
        absent: Absent,
    ) -> Result<(), Failure> {
        if topic.contains(['*', '>']) {
            let failure = Failure::new(Exit::Usage, format!("`{topic}` is a pattern, and on NATS topics are named"));
            return Err(failure.fix("name each topic; `aqueduct status` lists them"));
        }
        match broker.find(topic).await {
            Ok(_) => Ok(()),
            Err(BrokerError::NoSuchTopic { .. }) if absent == Absent::Create => {
                Ok(broker.declare(NatsTopic::new(topic)).await?)
            }
            Err(BrokerError::NoSuchTopic { .. }) => Err(settings.broker.lacks(topic)),
            Err(error) => Err(error.into()),
        }
    }

    fn consumer(&self, settings: &ConsumeSettings, opened: Open) -> Consumer {
        let default = if self.what.exec_stream.is_some() { CONCURRENCY_STREAM } else { CONCURRENCY };
        let concurrency = settings.concurrency.unwrap_or(default);
        let consumer = Consumer::new(self.group.as_str(), opened.broker.shared())
            .topics(self.topics.iter().map(String::as_str))
            .start(settings.from.0)
            .types(settings.types.iter().map(String::as_str))
            .policy(settings.failing.policy())
            .timeout(limits(settings).engine())
            .shutdown(settings.shutdown.0)
            .concurrency(concurrency)
            .buffer(aqueduct::defaults::BUFFER.max(concurrency.saturating_mul(4)));
        let consumer = opened.store.into_iter().fold(consumer, |consumer, store| store.give_to(consumer));
        settings.format.iter().fold(consumer, |consumer, format| match format {
            FormatName::Cloudevents => consumer.format(CloudEvents::binary()),
            FormatName::CloudeventsStructured => consumer.format(CloudEvents::structured()),
            FormatName::Json => consumer.format(settings.plain_json()),
        })
    }

    /// What handles events, and what tells that printing has become impossible.
    fn handler(
        &self,
        settings: &ConsumeSettings,
        records: Records,
    ) -> Result<(Arc<dyn Handle>, oneshot::Receiver<std::io::Error>), Failure> {
        let (limits, answers) = (limits(settings), settings.publish_results.is_some());
        let groups = Groups::new(limits.kill_after);
        // Who does not print cannot fail to.
        let (_, silent) = oneshot::channel();
        let handler: Arc<dyn Handle> = match &self.what {
            What { exec: Some(command), .. } => {
                Arc::new(Exec { command: CommandLine::parse(command)?, limits, records, groups, answers })
            }
            What { exec_stream: Some(command), .. } => {
                let shared = Shared { command: CommandLine::parse(command)?, limits, records, groups };
                Arc::new(Stream::start(shared, settings.workers, answers))
            }
            What { http: Some(url), .. } => Arc::new(Http::new(url, &settings.http_header, limits, answers)?),
            _ => {
                let (print, failed) = Print::new();
                return Ok((Arc::new(print), failed));
            }
        };
        Ok((handler, silent))
    }

    /// Says what this command can do about a failure.
    fn explain(&self, failure: Failure) -> Failure {
        if self.no_wait && failure.text().contains("runs consumer") {
            return failure
                .with_exit(Exit::Busy)
                .fix("stop that process, take another --group, or leave out --no-wait to wait for it");
        }
        failure
    }
}

fn limits(settings: &ConsumeSettings) -> Limits {
    Limits { timeout: settings.timeout.0, kill_after: settings.kill_after.0 }
}

/// One route for all: take a place among `--max-events`, handle, publish the results.
fn router(handler: Arc<dyn Handle>, results: Option<Results>, activity: Arc<Activity>) -> Router {
    let results = Arc::new(results);
    Router::new().on(">", move |delivery: Delivery| {
        let (handler, results, activity) = (Arc::clone(&handler), Arc::clone(&results), Arc::clone(&activity));
        async move {
            let turn = activity.begin().await?;
            let answer = handler.handle(delivery).await?;
            if let (Some(results), false) = (&*results, answer.is_empty()) {
                results.publish(answer).await?;
            }
            turn.done();
            Ok::<(), aqueduct::Error>(())
        }
    })
}

/// Resolves when nothing has run for so long and everything is settled; or for ten times as long, since what another instance
/// holds, or an operator must mend, is not waited for.
async fn idle(quiet: Option<Span>, broker: AnyBroker, group: String, activity: Arc<Activity>, health: Health) {
    let Some(Span(quiet)) = quiet else { return std::future::pending().await };
    let is_done = async || lag(&broker, &group).await == 0;
    let mut tries = 0;
    while tries < 10 {
        activity.idle(quiet, || health.is_ready()).await;
        let done = activity.count_done();
        if is_done().await {
            return;
        }
        tokio::time::sleep(quiet).await;
        tries = if activity.count_done() == done { tries + 1 } else { 0 };
    }
}

/// What a group has to do still; nothing if that cannot be seen.
async fn lag(broker: &AnyBroker, group: &str) -> u64 {
    match broker {
        AnyBroker::Sqlite(broker) => {
            let consumers = broker.status().await.map(|status| status.consumers).unwrap_or_default();
            consumers.iter().find(|consumer| consumer.consumer == group).map_or(0, ConsumerStatus::lag)
        }
        AnyBroker::Nats(broker) => {
            let consumers = broker.broker().status().await.map(|status| status.consumers).unwrap_or_default();
            consumers.iter().filter(|consumer| consumer.consumer == group).map(|consumer| consumer.lag).sum()
        }
    }
}

/// Resolves at a signal, when enough events are done, or when there is nothing to do.
async fn until_stop(stop: Stop, activity: Arc<Activity>, idle: impl Future<Output = ()>) {
    tokio::select! {
        biased;
        () = stop.graceful() => note("stopping; a second signal stops at once"),
        () = activity.enough() => {}
        () = idle => {}
    }
}

impl Activity {
    /// A summary on standard error, since events may be on standard output.
    fn print(&self, output: Output) {
        let (done, failed) = (self.count_done(), self.count_failed());
        match output {
            Output::Json => anstream::eprintln!("{}", serde_json::json!({ "done": done, "failed_attempts": failed })),
            Output::Text => anstream::eprintln!("done {done}, failed attempts {failed}"),
        }
    }
}
