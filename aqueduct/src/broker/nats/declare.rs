//! What JetStream is asked about the streams of topics, and how one is known as a topic's.

use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{Config, Info};
use async_nats::jetstream::{self, ErrorCode};
use serde_core::Serialize;
use serde_core::de::DeserializeOwned;

use super::Shared;
use super::layout::Layout;
use crate::error::BrokerError;
use crate::topic::Topic;

/// The version of the layout, in the stream's metadata.
const LAYOUT: u32 = 1;
const LAYOUT_KEY: &str = "aqueduct.layout";
const TOPIC_KEY: &str = "aqueduct.topic";
const PARTITIONS_KEY: &str = "aqueduct.partitions";

/// By which the stream of a topic is known.
pub(crate) fn metadata(layout: &Layout) -> [(&'static str, String); 3] {
    [
        (LAYOUT_KEY, LAYOUT.to_string()),
        (TOPIC_KEY, layout.topic().to_string()),
        (PARTITIONS_KEY, layout.partitions().to_string()),
    ]
}

/// The topic that a stream says it is of, and its partitions.
pub(super) fn declared(there: &Config) -> Option<(Topic, u32)> {
    let partitions = there.metadata.get(PARTITIONS_KEY)?.parse().ok()?;
    Some((Topic::from(there.metadata.get(TOPIC_KEY)?.as_str()), partitions))
}

/// Says whether a stream is this topic's, in this layout.
pub(crate) fn check_layout(there: &Config, layout: &Layout) -> Result<(), BrokerError> {
    let (topic, stream) = (layout.topic(), &there.name);
    let number = |key: &str| there.metadata.get(key).and_then(|value| value.parse::<u32>().ok());
    let refused = |why: String| Err(BrokerError::Refused(format!("topic {topic:?}: {why}")));
    match (number(LAYOUT_KEY), number(PARTITIONS_KEY)) {
        (Some(version), _) if version > LAYOUT => refused(format!(
            "the stream {stream} has layout {version} and this program knows {LAYOUT}: use a newer version of the program"
        )),
        (Some(_), Some(partitions)) if partitions != layout.partitions() => refused(format!(
            "the stream {stream} has {partitions} partitions and this program {}: set `partitions({partitions})`",
            layout.partitions()
        )),
        (Some(_), Some(_)) if there.subjects.contains(&layout.subjects()) => Ok(()),
        _ => refused(format!(
            "the stream {stream} was not made by `NatsBroker::declare`: it must have the subject {} and the metadata \
             {LAYOUT_KEY}={LAYOUT}, {PARTITIONS_KEY}={}",
            layout.subjects(),
            layout.partitions()
        )),
    }
}

impl Shared {
    /// The settings of the stream of a topic, if there is one.
    pub(super) async fn stream(&self, layout: &Layout) -> Result<Option<Config>, BrokerError> {
        Ok(self.info(layout).await?.map(|info| info.config))
    }

    /// The stream of a topic, if there is one.
    pub(super) async fn info(&self, layout: &Layout) -> Result<Option<Info>, BrokerError> {
        match self.ask::<Info>(format!("STREAM.INFO.{}", layout.stream()), &()).await? {
            Response::Ok(info) => Ok(Some(info)),
            Response::Err { error } if error.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(None),
            Response::Err { error } => Err(api_error(&error)),
        }
    }

    /// A request to JetStream's API.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        request: String,
        body: &impl Serialize,
    ) -> Result<Response<T>, BrokerError> {
        let (link, subject) = (&self.link, format!("{}.{request}", self.link.api));
        let answer = link.answer(link.mark(), &subject, link.context.request(request, body)).await?;
        answer.map_err(|error| {
            let text = format!(
                "JetStream does not answer on {subject}: {error}; is it enabled on the server and for this account?"
            );
            BrokerError::Unavailable(text.into())
        })
    }
}

/// What JetStream answers, where it means the same for every request.
pub(crate) fn api_error(error: &jetstream::Error) -> BrokerError {
    match error.error_code() {
        ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => {
            BrokerError::Refused(format!("{error}: enable JetStream on the server and for this account"))
        }
        _ if error.code() >= 500 => BrokerError::Unavailable(error.to_string().into()),
        _ => BrokerError::Refused(error.to_string()),
    }
}
