//! `--http`: each event is a POST in the binary mode of `CloudEvents`.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use aqueduct::format::{CloudEvents, Format};
use aqueduct::{BoxError, BoxFuture, Error, Event, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Response, StatusCode, Uri, body::Incoming};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::{Delivery, Handle, Limits};
use crate::failure::{Exit, Failure};
use crate::handler::results::excerpt;

/// The largest answer that is taken.
const ANSWER_MAX: usize = 16 << 20;

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);

/// How long a connection is kept that nothing goes over.
const IDLE: Duration = Duration::from_mins(1);

pub(crate) struct Http {
    target: Uri,
    /// Of every request.
    headers: HeaderMap,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    limits: Limits,
    answers: bool,
}

impl Http {
    pub(crate) fn new(target: &str, headers: &[String], limits: Limits, answers: bool) -> Result<Self, Failure> {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT.min(limits.timeout)));
        let roots = HttpsConnectorBuilder::new().with_native_roots();
        let roots =
            roots.map_err(|e| Failure::new(Exit::Failed, "the system's certificates cannot be read").because(&e))?;
        let connector = roots.https_or_http().enable_http1().wrap_connector(connector);
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_idle_timeout(IDLE).pool_timer(TokioTimer::new());
        let client = builder.build(connector);
        Ok(Self { target: parse(target)?, headers: parse_headers(headers)?, client, limits, answers })
    }

    fn request(&self, delivery: &Delivery) -> Result<Request<Full<Bytes>>> {
        let message = CloudEvents::binary().encode(&delivery.whole(), &delivery.origin.partition.topic)?;
        let mut request = Request::post(self.target.clone()).body(Full::new(message.body))?;
        let headers = request.headers_mut();
        for (name, value) in message.headers.iter() {
            let attribute = name.as_str().starts_with("ce-");
            let value = if attribute { HeaderValue::from_str(&percent(value)) } else { HeaderValue::from_bytes(value) };
            let name = HeaderName::from_bytes(name.as_str().as_bytes());
            // A header that HTTP cannot carry, or that is its own, stays behind; an attribute always fits.
            if let (Ok(name), Ok(value)) = (name, value)
                && !is_of_http(&name)
            {
                headers.append(name, value);
            }
        }
        headers.insert("aqueduct-attempt", delivery.attempt.number.into());
        headers.insert("aqueduct-epoch", delivery.origin.epoch.0.into());
        headers.extend(self.headers.clone());
        Ok(request)
    }

    async fn send(&self, delivery: &Delivery) -> Result<Vec<Event>> {
        let request = self.request(delivery).map_err(Error::permanent)?;
        let response = self.client.request(request).await.map_err(|e| Error::boxed(e.into()))?;
        let (status, wait) = (response.status(), retry_after(response.headers()));
        let moved = location(&response);
        let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
        let body = body.map_err(|e: BoxError| Error::boxed(e))?.to_bytes();
        if status.is_success() {
            return if self.answers { delivery.results(&body) } else { Ok(Vec::new()) };
        }
        if status.is_redirection() {
            let text =
                format!("answered {status} and redirects{moved}, which is not followed: give the address itself");
            return Err(Error::msg(text).permanent());
        }
        let said = excerpt(body.trim_ascii());
        let error = Error::msg(if said.is_empty() {
            format!("answered {status}")
        } else {
            format!("answered {status}: {said}")
        });
        match wait {
            _ if !may_pass(status) => Err(error.permanent()),
            Some(wait) => Err(error.retry_after(wait)),
            None => Err(error),
        }
    }
}

impl Handle for Http {
    fn handle(&self, delivery: Delivery) -> BoxFuture<'_, Result<Vec<Event>>> {
        Box::pin(async move {
            let limit = self.limits.timeout;
            let sent = tokio::time::timeout(limit, self.send(&delivery)).await;
            let late = |_| Error::msg(format!("no answer after {}", humantime::format_duration(limit)));
            sent.map_err(late)?
        })
    }
}

/// True for what may be otherwise when it is tried again.
fn may_pass(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429) || status.is_server_error()
}

/// How long the target wants to be left alone: seconds, or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(text).ok()?;
    Some(at.duration_since(SystemTime::now()).unwrap_or_default())
}

fn location(response: &Response<Incoming>) -> String {
    let to = response.headers().get(header::LOCATION).map(|to| excerpt(to.as_bytes()));
    to.map_or_else(String::new, |to| format!(" to {to}"))
}

/// Headers that belong to one connection, or that the client writes by itself.
fn is_of_http(name: &HeaderName) -> bool {
    [
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::HOST,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::EXPECT,
    ]
    .contains(name)
}

/// The value of an attribute as the HTTP binding of `CloudEvents` has it: what is not printable ASCII, spaces, quotes and
/// percent signs are percent-encoded.
fn percent(value: &[u8]) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value {
        match byte {
            b'"' | b'%' | ..=b' ' | 0x7f.. => _ = write!(text, "%{byte:02X}"),
            _ => text.push(char::from(*byte)),
        }
    }
    text
}

fn parse(target: &str) -> Result<Uri, Failure> {
    let wrong = |text: &str| Failure::new(Exit::Usage, format!("--http: {text}")).fix("write --http https://host/path");
    let uri: Uri =
        target.parse().map_err(|e: hyper::http::uri::InvalidUri| wrong("the address is none").because(&e))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(wrong("the address must begin with http:// or https://"));
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        let failure = wrong("the address has a name or a password in it, which would be shown in logs");
        return Err(failure.fix("give them with --http-header 'Authorization: Basic ...', or in the configuration"));
    }
    Ok(uri)
}

fn parse_headers(lines: &[String]) -> Result<HeaderMap, Failure> {
    let mut headers = HeaderMap::new();
    for line in lines {
        let parsed = line.split_once(':').and_then(|(name, value)| {
            let mut value = HeaderValue::from_str(value.trim()).ok()?;
            value.set_sensitive(true);
            Some((HeaderName::from_bytes(name.trim().as_bytes()).ok()?, value))
        });
        // The line may be a secret, so it is not shown.
        let Some((name, value)) = parsed else {
            let failure = Failure::new(Exit::Usage, "a header of --http-header cannot be sent");
            return Err(failure.fix("write it as `Name: value`"));
        };
        headers.append(name, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_percent_encoded_as_the_binding_says() {
        assert_eq!(percent("Euro € 100% \"q\" ~".as_bytes()), "Euro%20%E2%82%AC%20100%25%20%22q%22%20~");
    }

    #[test]
    fn a_wait_is_seconds_or_a_date() {
        let of = |text: &str| retry_after(&HeaderMap::from_iter([(header::RETRY_AFTER, text.parse().unwrap())]));
        assert_eq!(of("7"), Some(Duration::from_secs(7)));
        assert_eq!(of("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert_eq!(of("soon"), None);
    }

    #[test]
    fn addresses_that_cannot_be_used_say_why() {
        for bad in ["localhost:8080", "ftp://h/", "http://user:secret@h/", "http://"] {
            let failure = parse(bad).err().unwrap();
            assert!(!format!("{failure:?}").contains("secret"), "{bad}");
        }
        assert!(parse("http://localhost:8080/hook?x=1").is_ok());
    }
}
