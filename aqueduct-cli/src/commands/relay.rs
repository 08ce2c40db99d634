//! `aqueduct relay`: the events of an outbox travel to the broker.

use std::future::IntoFuture;

use aqueduct::Relay;
use aqueduct::format::{CloudEvents, PlainJson};
use aqueduct::sqlite::SqliteBroker;
use clap::{ArgMatches, Args};

use crate::broker::{Absent, open_broker, open_database};
use crate::cli::Global;
use crate::config::{Flags, FormatName, RelaySettings, load};
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
        let file = open_broker(&settings, absent).await?;
        let store = open_database(&settings, &file).await?;
        let serve =
            configured(Relay::new(store.outbox(&settings.relay.table)?, SqliteBroker::new(&file)), &settings.relay)
                .serve();
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

fn configured(relay: Relay, settings: &RelaySettings) -> Relay {
    let relay = relay.name(settings.name.as_str());
    let relay = match settings.format {
        FormatName::Cloudevents => relay,
        FormatName::CloudeventsStructured => relay.format(CloudEvents::structured()),
        FormatName::Json => relay.format(PlainJson::new()),
    };
    let relay = settings.source.iter().fold(relay, |relay, source| relay.source(source.as_str()));
    settings.audit.iter().fold(relay, |relay, audit| relay.audit(audit.0))
}
