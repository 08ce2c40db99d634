//! `aqueduct relay`: the events of an outbox travel to the broker.

use std::future::IntoFuture;

use aqueduct::compat::{jetstream_bridge, tupic};
use aqueduct::format::{CloudEvents, PlainJson};
use aqueduct::{OutboxTable, Relay};
use clap::{ArgMatches, Args};

use crate::broker::{Absent, AnyBroker, open_broker, open_database};
use crate::cli::Global;
use crate::config::{Flags, FormatName, RelaySettings, System, load};
use crate::failure::{Exit, Failure};
use crate::output::note;
use crate::service::{Stop, Systemd, tell};

const EXAMPLES: &str = include_str!("help/relay.txt");

/// Publishes the events that services leave in the outbox of their database, when and only when their transactions are
/// committed.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Relaying {
    /// Tells systemd when it is ready and when it stops; for units of `Type=notify`.
    #[arg(long)]
    sd_notify: bool,
    #[command(flatten)]
    settings: RelaySettings,
}

impl Relaying {
    pub(crate) async fn run(self, global: &Global, matches: &ArgMatches) -> Result<(), Failure> {
        let settings = load(global, Flags::of("relay", &self.settings, matches))?.settings;
        settings.database()?;
        let stop = Stop::on_signals()?;
        let absent = if settings.relay.existing_topic { Absent::Refuse } else { Absent::Create };
        let broker = open_broker(&settings, absent).await?;
        let store = open_database(&settings, broker.file()).await?;
        let serve = relay(store.outbox(&settings.relay.table)?, broker, &settings.relay)?.serve();
        let (health, systemd, graceful) = (serve.health(), Systemd(self.sd_notify), stop.clone());
        let serving = serve.with_graceful_shutdown(async move {
            graceful.graceful().await;
            note("stopping; a second signal stops at once");
            systemd.stopping();
        });
        let telling = tokio::spawn(tell(health, systemd));
        let ended = tokio::select! {
            biased;
            ended = serving.into_future() => ended.map_err(Failure::from),
            () = stop.at_once() => {
                Err(Failure::new(Exit::Stopped, "stopped at once; what was in hand may be published again"))
            }
        };
        telling.abort();
        ended
    }
}

fn relay(table: OutboxTable, broker: AnyBroker, settings: &RelaySettings) -> Result<Relay, Failure> {
    let relay = match (broker, settings.table.outbox) {
        (AnyBroker::Nats(broker), System::JetstreamBridge | System::Tupic) => {
            as_the_system(Relay::new(table, broker.broker().foreign()), settings)?
        }
        (broker, _) => in_format(Relay::new(table, broker.shared()), settings.format),
    };
    let relay = relay.name(settings.name.as_str());
    let relay = settings.source.iter().fold(relay, |relay, source| relay.source(source.as_str()));
    Ok(settings.audit.iter().fold(relay, |relay, audit| relay.audit(audit.0)))
}

fn in_format(relay: Relay, format: FormatName) -> Relay {
    match format {
        FormatName::Cloudevents => relay,
        FormatName::CloudeventsStructured => relay.format(CloudEvents::structured()),
        FormatName::Json => relay.format(PlainJson::new()),
    }
}

/// On NATS the peers of a system read what its own relay would send them: the envelope in the row, under the row's id. With
/// another id the gem's consumers lose dead letters.
fn as_the_system(relay: Relay, settings: &RelaySettings) -> Result<Relay, Failure> {
    if settings.format != FormatName::Cloudevents {
        let text = "the rows of another system travel on NATS as that system sends them, in no other format";
        return Err(Failure::new(Exit::Usage, text).fix("leave out --format and `format` in the section [relay]"));
    }
    Ok(match (settings.table.outbox, &settings.table.outbox_prefix) {
        (System::Tupic, prefix) => relay.format(tupic::Envelope::new(prefix.clone().unwrap_or_default()).whole(true)),
        _ => relay.format(jetstream_bridge::Envelope::new().whole(true)),
    })
}
