//! A plan is carried out, and compared again.

use async_nats::jetstream;
use async_nats::jetstream::response::Response;
use serde_json::{Value, json};

use super::look::{Look, look};
use super::plan::{Action, Plan, Step, Weight, plan};
use super::wanted::{Fields, Id};
use crate::broker::nats::NatsBroker;
use crate::error::BrokerError;

impl Plan {
    /// Does what has to be done, and looks again whether all is as declared.
    ///
    /// Nothing is done while something is refused or could not be seen, or if something that is to be changed is not as it was when
    /// the plan was made. An update is everything that is there with the declared settings written into it. Where a step fails,
    /// the ones before it stay done, and the error counts them: a new plan goes on from there.
    ///
    /// The trap: the server has no compare-and-set for settings. What somebody else changes within the same milliseconds is
    /// overwritten.
    pub async fn apply(&self, broker: &NatsBroker) -> Result<(), BrokerError> {
        let refuses = |finding: &&super::Finding| finding.weight != Weight::Warning;
        let against: Vec<_> = self.findings.iter().filter(refuses).map(ToString::to_string).collect();
        if !against.is_empty() {
            let text = format!("the topology cannot be applied, and nothing was changed: {}", against.join("; "));
            return Err(BrokerError::Refused(text));
        }
        broker.0.ready().await?;
        for step in self.steps.iter().filter(|step| step.action == Action::Update) {
            step.unchanged(broker).await?;
        }
        for (done, step) in self.steps.iter().enumerate() {
            let so_far =
                |why: String| format!("{} ({done} of {} steps are done): {why}", step.object, self.steps.len());
            step.carry_out(broker).await.map_err(|error| match error {
                BrokerError::Refused(why) => BrokerError::Refused(so_far(why)),
                error => BrokerError::Unavailable(so_far(error.to_string()).into()),
            })?;
        }
        let after = plan(broker, self.wanted.clone()).await?;
        after.agreed().map_err(|error| {
            BrokerError::Refused(format!("it was applied, and looked at again it is not as it was to be: {error}"))
        })
    }
}

impl Step {
    /// Nobody has changed it since the plan was made.
    async fn unchanged(&self, broker: &NatsBroker) -> Result<(), BrokerError> {
        match look(broker, &self.id).await? {
            Look::There(there) if Some(&there) == self.seen.as_ref() => Ok(()),
            Look::Unseen(why) => Err(BrokerError::Refused(format!("{}: {why}", self.object))),
            _ => {
                let text = format!("{} is not as it was when the plan was made: make a new one", self.object);
                Err(BrokerError::Refused(text))
            }
        }
    }

    async fn carry_out(&self, broker: &NatsBroker) -> Result<(), BrokerError> {
        let (request, body) = match (&self.id, self.action) {
            (Id::Stream(stream), Action::Create) => {
                (format!("STREAM.CREATE.{stream}"), Value::Object(self.config.clone()))
            }
            (Id::Stream(stream), Action::Update) => {
                (format!("STREAM.UPDATE.{stream}"), Value::Object(self.config.clone()))
            }
            (Id::Durable(stream, durable), action) => {
                let action = if action == Action::Create { "create" } else { "update" };
                let body = json!({"stream_name": stream, "config": self.config, "action": action});
                (durable_request(stream, durable, &self.config), body)
            }
        };
        match broker.0.ask::<Fields>(request, &body).await? {
            Response::Ok(_) => Ok(()),
            Response::Err { error } => Err(failed(&error)),
        }
    }
}

/// Where a durable is made and changed: a single filter is part of the subject, so that a permission can name it.
pub(super) fn durable_request(stream: &str, durable: &str, config: &Fields) -> String {
    let filter = config.get("filter_subject").and_then(Value::as_str).filter(|filter| !filter.is_empty());
    let dot = filter.map(|filter| format!(".{filter}")).unwrap_or_default();
    format!("CONSUMER.CREATE.{stream}.{durable}{dot}")
}

/// No number of replicas other than one.
const NO_CLUSTER: u64 = 10_074;

/// What the server did not do. Its words name the setting.
fn failed(error: &jetstream::Error) -> BrokerError {
    let hint = if error.error_code().0 == NO_CLUSTER { ": declare 1 replica, or run a cluster" } else { "" };
    BrokerError::Refused(format!("{error}{hint}"))
}
