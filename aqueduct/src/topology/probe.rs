//! What can be verified with no right to JetStream's API.

use std::fmt::Write as _;

use async_nats::{HeaderMap, Request, RequestErrorKind, StatusCode};
use serde_json::Value;
use tokio::time::timeout;

use super::Topology;
use super::plan::{Finding, Plan, Weight};
use super::wanted::{Fields, Id, Wanted};
use crate::broker::nats::NatsBroker;
use crate::error::BrokerError;

/// No stream has it: streams refuse what expects another stream, and say who they are.
const NO_STREAM: &str = "aqueduct.no.stream";

/// Who answered.
enum Answer {
    Stream(String),
    Nobody,
    Unknown(String),
}

impl Topology {
    /// Looks at what is there, as [`plan`](Self::plan) does; for programs that may change nothing, and perhaps not even look.
    ///
    /// Of a stream whose settings this user may not see, it verifies that it takes its subjects: by messages that expect a
    /// stream which does not exist, so that the server refuses them, and names the stream.
    ///
    /// The trap: subscribers without JetStream to these subjects, if there are any, do receive such a message, with an empty body.
    ///
    /// ```no_run
    /// # async fn verify(broker: aqueduct::nats::NatsBroker) -> Result<(), aqueduct::BrokerError> {
    /// use aqueduct::topology::{Topology, Weight};
    /// let plan = Topology::new().topic("orders").verify(&broker).await?;
    /// let unseen = plan.findings().iter().filter(|finding| finding.weight == Weight::Unseen);
    /// unseen.for_each(|finding| println!("{finding}"));
    /// plan.agreed()?;
    /// # Ok(()) }
    /// ```
    pub async fn verify(&self, broker: &NatsBroker) -> Result<Plan, BrokerError> {
        let mut plan = self.plan(broker).await?;
        let mut more = Vec::new();
        for finding in plan.findings.iter_mut().filter(|finding| finding.weight == Weight::Unseen) {
            let Some(wanted) = plan.wanted.iter().find(|wanted| wanted.id.to_string() == finding.object) else {
                continue;
            };
            more.extend(probe(broker, wanted, finding).await?);
        }
        plan.findings.extend(more);
        plan.findings.sort_by_key(|finding| finding.weight);
        Ok(plan)
    }
}

/// Adds to a finding what messages to the stream's subjects find, and answers what is wrong.
async fn probe(broker: &NatsBroker, wanted: &Wanted, unseen: &mut Finding) -> Result<Vec<Finding>, BrokerError> {
    let Id::Stream(stream) = &wanted.id else { return Ok(Vec::new()) };
    let (mut wrong, mut taken) = (Vec::new(), Vec::new());
    for subject in wanted.list("subjects") {
        let one = subject.split('.').map(|token| if matches!(token, "*" | ">") { "0" } else { token });
        let text = match ask(broker, one.collect::<Vec<_>>().join(".")).await? {
            Answer::Stream(owner) if owner == *stream => {
                taken.push(subject);
                continue;
            }
            Answer::Stream(owner) => format!("its subject {subject} is taken by the stream {owner}"),
            Answer::Nobody => format!("no stream takes its subject {subject}"),
            Answer::Unknown(why) => {
                let _ = write!(unseen.text, "; whether it takes {subject} is not known either: {why}");
                continue;
            }
        };
        wrong.push(Finding::new(Weight::Refused, &wanted.id, text, "let somebody who may apply the topology"));
    }
    if !taken.is_empty() {
        let _ = write!(unseen.text, "; it does take {}", taken.join(", "));
    }
    Ok(wrong)
}

async fn ask(broker: &NatsBroker, subject: String) -> Result<Answer, BrokerError> {
    let (link, limit) = (&broker.0.link, broker.0.options.ack_timeout);
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Expected-Stream", NO_STREAM);
    let request = Request::new().headers(headers).payload("".into()).timeout(Some(limit));
    let mark = link.mark();
    let sent = timeout(limit, link.answer(mark, &subject, link.client.send_request(subject.clone(), request))).await;
    Ok(match sent {
        Ok(Ok(Ok(answer))) if answer.status == Some(StatusCode::NO_RESPONDERS) => Answer::Nobody,
        Ok(Ok(Ok(answer))) => {
            let answer: Option<Fields> = serde_json::from_slice(&answer.payload).ok();
            match answer.as_ref().and_then(|answer| answer.get("stream")).and_then(Value::as_str) {
                Some(stream) => Answer::Stream(stream.to_owned()),
                None => Answer::Unknown(format!("on {subject} answers something that is no stream")),
            }
        }
        Ok(Ok(Err(error))) if error.kind() == RequestErrorKind::NoResponders => Answer::Nobody,
        Ok(Ok(Err(error))) => Answer::Unknown(error.to_string()),
        Ok(Err(BrokerError::Refused(why))) => Answer::Unknown(why),
        Ok(Err(error)) => return Err(error),
        Err(_) => Answer::Unknown(format!("no answer on {subject} within {limit:?}")),
    })
}
