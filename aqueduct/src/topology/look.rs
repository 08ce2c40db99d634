//! What is there on the server, as far as this user may look.

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::response::Response;
use serde_json::{Value, json};

use super::wanted::{Fields, Id, texts};
use crate::broker::nats::NatsBroker;
use crate::broker::nats::declare::api_error;
use crate::error::BrokerError;

/// What was found.
#[derive(Clone, Debug)]
pub(super) enum Look {
    There(Fields),
    Missing,
    /// It may not be looked at; what is missing to do so.
    Unseen(String),
}

/// Looks at a stream or a durable.
pub(super) async fn look(broker: &NatsBroker, id: &Id) -> Result<Look, BrokerError> {
    let request = match id {
        Id::Stream(stream) => format!("STREAM.INFO.{stream}"),
        Id::Durable(stream, durable) => format!("CONSUMER.INFO.{stream}.{durable}"),
    };
    let missing = [ErrorCode::STREAM_NOT_FOUND, ErrorCode::CONSUMER_NOT_FOUND];
    // Of durables it answers nothing that has another body than an empty one.
    match broker.0.ask::<Fields>(request, &json!({})).await {
        Ok(Response::Ok(info)) => Ok(Look::There(config(info))),
        Ok(Response::Err { error }) if missing.contains(&error.error_code()) => Ok(Look::Missing),
        Ok(Response::Err { error }) => Err(api_error(&error)),
        // Of all that may go wrong with a question, the server refuses only what is not permitted.
        Err(BrokerError::Refused(why)) => Ok(Look::Unseen(why)),
        Err(error) => Err(error),
    }
}

/// The configuration in an answer.
pub(super) fn config(mut info: Fields) -> Fields {
    match info.remove("config") {
        Some(Value::Object(config)) => config,
        _ => Fields::new(),
    }
}

/// The names and subjects of all streams.
#[derive(Clone, Debug)]
pub(super) enum Streams {
    Seen(Vec<(String, Vec<String>)>),
    Unseen(String),
}

pub(super) async fn streams(broker: &NatsBroker) -> Result<Streams, BrokerError> {
    let mut all = Vec::new();
    loop {
        let answer = match broker.0.ask::<Fields>("STREAM.LIST".to_owned(), &json!({"offset": all.len()})).await {
            Ok(Response::Ok(answer)) => answer,
            Ok(Response::Err { error }) => return Err(api_error(&error)),
            Err(BrokerError::Refused(why)) => return Ok(Streams::Unseen(why)),
            Err(error) => return Err(error),
        };
        let total = answer.get("total").and_then(Value::as_u64).unwrap_or_default();
        let page = answer.get("streams").and_then(Value::as_array).into_iter().flatten();
        let before = all.len();
        all.extend(page.filter_map(|stream| {
            let config = stream.get("config")?;
            let subjects = config.get("subjects").map(texts).unwrap_or_default();
            Some((config.get("name")?.as_str()?.to_owned(), subjects))
        }));
        if all.len() == before || all.len() as u64 >= total {
            return Ok(Streams::Seen(all));
        }
    }
}
