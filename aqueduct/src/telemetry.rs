//! Names of metrics and spans, in one table.
//!
//! | name | kind | labels | meaning |
//! |---|---|---|---|
//! | `aqueduct_received_total` | counter | consumer | deliveries taken from the broker |
//! | `aqueduct_attempts_total` | counter | consumer, outcome (`done`, `failed`, `panicked`, `timed_out`, `cancelled`) | attempts that ended |
//! | `aqueduct_attempt_seconds` | histogram | consumer | how long attempts took |
//! | `aqueduct_parked_total` | counter | consumer | events moved to the store to be tried later |
//! | `aqueduct_dead_total` | counter | consumer | events that became dead letters |
//! | `aqueduct_dropped_total` | counter | consumer | events given up under `Policy::best_effort` |
//! | `aqueduct_filtered_total` | counter | consumer | deliveries settled without a handler: filtered, or of an ignored type |
//! | `aqueduct_running` | gauge | consumer | attempts running now |
//! | `aqueduct_buffered` | gauge | consumer | deliveries held in memory |
//! | `aqueduct_partitions` | gauge | consumer | partitions owned |
//! | `aqueduct_stuck` | gauge | consumer | attempts that run longer than the stall threshold |
//! | `aqueduct_store_errors_total` | counter | consumer | calls to the store that failed and are tried again |
//! | `aqueduct_broker_errors_total` | counter | consumer | calls to the broker that failed and are tried again |
//! | `aqueduct_published_total` | counter | publisher, outcome (`stored`, `duplicate`, `failed`) | events published |
//! | `aqueduct_relay_published_total` | counter | relay, outcome (`stored`, `duplicate`) | rows of the outbox that the broker has confirmed |
//! | `aqueduct_relay_refused_total` | counter | relay | attempts at rows that the broker refused, or that are no events |
//! | `aqueduct_relay_pending` | gauge | relay | rows of the whole outbox that wait to be published; above 10,000 estimated from their ids |
//! | `aqueduct_relay_oldest_seconds` | gauge | relay | how long the oldest of them has waited |
//! | `aqueduct_relay_parked` | gauge | relay | rows of the whole outbox that are parked |
//! | `aqueduct_relay_shards` | gauge | relay | shards owned |
//! | `aqueduct_relay_store_errors_total` | counter | relay | calls to the database that failed and are tried again |
//! | `aqueduct_relay_broker_errors_total` | counter | relay | calls to the broker that failed and are tried again |
//!
//! | span | level | fields |
//! |---|---|---|
//! | `aqueduct.handle` | info | `consumer`, `topic`, `type`, `id`, `attempt`, `trace_id` and `parent_id` (the event's `traceparent`), `link_trace_id` and `link_parent_id` (retries and replays) |
//! | `aqueduct.publish` | info | `publisher`, `events` |
//!
//! Neither spans nor log lines carry data or header values of events; errors are logged as handlers return them.
//!
//! With the feature `opentelemetry` and a `tracing_opentelemetry` layer, the trace context in an event's headers
//! (`traceparent` and `tracestate`, as W3C has them) becomes the parent of the span of its first attempt, and a link of the
//! spans of retries and replays, which are traces of their own. Published events get the context of `aqueduct.publish`
//! in their headers, unless they have one.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use tracing::Span;

use crate::call::Call;

/// The metrics of one consumer, looked up once.
pub(crate) struct ConsumerMetrics {
    pub(crate) received: Counter,
    pub(crate) parked: Counter,
    pub(crate) dead: Counter,
    pub(crate) dropped: Counter,
    pub(crate) filtered: Counter,
    pub(crate) store_errors: Counter,
    pub(crate) broker_errors: Counter,
    pub(crate) running: Gauge,
    pub(crate) buffered: Gauge,
    pub(crate) partitions: Gauge,
    pub(crate) stuck: Gauge,
    attempt_seconds: Histogram,
    attempts: [Counter; 5],
}

/// How attempts end, as the label `outcome` says it.
#[derive(Clone, Copy)]
pub(crate) enum AttemptEnd {
    Done,
    Failed,
    Panicked,
    TimedOut,
    Cancelled,
}

impl ConsumerMetrics {
    pub(crate) fn new(consumer: &str) -> Self {
        let name = consumer.to_owned();
        let of = |metric: &'static str| counter!(metric, "consumer" => name.clone());
        let level = |metric: &'static str| gauge!(metric, "consumer" => name.clone());
        let attempts = |outcome| counter!("aqueduct_attempts_total", "consumer" => name.clone(), "outcome" => outcome);
        Self {
            received: of("aqueduct_received_total"),
            parked: of("aqueduct_parked_total"),
            dead: of("aqueduct_dead_total"),
            dropped: of("aqueduct_dropped_total"),
            filtered: of("aqueduct_filtered_total"),
            store_errors: of("aqueduct_store_errors_total"),
            broker_errors: of("aqueduct_broker_errors_total"),
            running: level("aqueduct_running"),
            buffered: level("aqueduct_buffered"),
            partitions: level("aqueduct_partitions"),
            stuck: level("aqueduct_stuck"),
            attempt_seconds: histogram!("aqueduct_attempt_seconds", "consumer" => name.clone()),
            attempts: ["done", "failed", "panicked", "timed_out", "cancelled"].map(attempts),
        }
    }

    pub(crate) fn attempt(&self, end: AttemptEnd, took: Duration) {
        self.attempts[end as usize].increment(1);
        self.attempt_seconds.record(took.as_secs_f64());
    }
}

impl Drop for ConsumerMetrics {
    /// A consumer that has ended has nothing in hand.
    fn drop(&mut self) {
        for gauge in [&self.running, &self.buffered, &self.partitions, &self.stuck] {
            gauge.set(0.0);
        }
    }
}

/// The metrics of one relay, looked up once.
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
pub(crate) struct RelayMetrics {
    pub(crate) refused: Counter,
    pub(crate) store_errors: Counter,
    pub(crate) broker_errors: Counter,
    pub(crate) pending: Gauge,
    pub(crate) oldest_seconds: Gauge,
    pub(crate) parked: Gauge,
    pub(crate) shards: Gauge,
    published: [Counter; 2],
}

#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
impl RelayMetrics {
    pub(crate) fn new(relay: &str) -> Self {
        let name = relay.to_owned();
        let of = |metric: &'static str| counter!(metric, "relay" => name.clone());
        let level = |metric: &'static str| gauge!(metric, "relay" => name.clone());
        let published =
            |outcome| counter!("aqueduct_relay_published_total", "relay" => name.clone(), "outcome" => outcome);
        Self {
            refused: of("aqueduct_relay_refused_total"),
            store_errors: of("aqueduct_relay_store_errors_total"),
            broker_errors: of("aqueduct_relay_broker_errors_total"),
            pending: level("aqueduct_relay_pending"),
            oldest_seconds: level("aqueduct_relay_oldest_seconds"),
            parked: level("aqueduct_relay_parked"),
            shards: level("aqueduct_relay_shards"),
            published: ["stored", "duplicate"].map(published),
        }
    }

    pub(crate) fn published(&self, stored: u64, duplicates: u64) {
        self.published[0].increment(stored);
        self.published[1].increment(duplicates);
    }
}

#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
impl Drop for RelayMetrics {
    /// A relay that has ended owns nothing and sees nothing.
    fn drop(&mut self) {
        for gauge in [&self.pending, &self.oldest_seconds, &self.parked, &self.shards] {
            gauge.set(0.0);
        }
    }
}

/// The span of an attempt: the event's trace is its parent, or for retries and replays a link. Costs next to nothing
/// while nobody listens.
pub(crate) fn attempt_span(call: &Call) -> Span {
    let (event, origin) = (call.event(), call.origin());
    let span = tracing::info_span!(
        parent: None,
        "aqueduct.handle",
        consumer = origin.consumer.as_str(),
        topic = origin.partition.topic.as_str(),
        r#type = event.kind.as_str(),
        id = event.id.as_str(),
        attempt = call.attempt().number,
        trace_id = tracing::field::Empty,
        parent_id = tracing::field::Empty,
        link_trace_id = tracing::field::Empty,
        link_parent_id = tracing::field::Empty,
    );
    if span.is_disabled() {
        return span;
    }
    if let Some((trace, parent, _flags)) = event.headers.text(TRACEPARENT).and_then(traceparent) {
        let first = call.attempt().number == 1 && !call.attempt().stored;
        let names = if first { ["trace_id", "parent_id"] } else { ["link_trace_id", "link_parent_id"] };
        span.record(names[0], trace).record(names[1], parent);
        #[cfg(feature = "opentelemetry")]
        context::relate(&span, &event.headers, first);
    }
    span
}

/// The header that names an event's trace, as W3C Trace Context has it.
const TRACEPARENT: &str = "traceparent";

/// Trace id, parent id and flags of a W3C `traceparent` header of version 00.
fn traceparent(text: &str) -> Option<(&str, &str, &str)> {
    let mut parts = text.split('-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |s: &str, len| s.len() == len && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let id = |s: &str, len| hex(s, len) && s.bytes().any(|b| b != b'0');
    let known = version == "00" && parts.next().is_none();
    (known && id(trace, 32) && id(parent, 16) && hex(flags, 2)).then_some((trace, parent, flags))
}

/// Trace contexts of OpenTelemetry, from headers and into them.
#[cfg(feature = "opentelemetry")]
pub(crate) mod context {
    use opentelemetry::Context;
    use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
    use tracing::Span;
    use tracing_opentelemetry::OpenTelemetrySpanExt;

    use super::{TRACEPARENT, traceparent};
    use crate::headers::Headers;

    const TRACESTATE: &str = "tracestate";

    /// Makes the trace in the headers the span's parent, or a link of it.
    pub(super) fn relate(span: &Span, headers: &Headers, parent: bool) {
        let Some(remote) = extract(headers) else { return };
        if parent {
            // Without a layer for OpenTelemetry there is nothing to be the parent of.
            let _ = span.set_parent(Context::new().with_remote_span_context(remote));
        } else {
            span.add_link(remote);
        }
    }

    /// The context that is current within `span`; none without a trace.
    pub(crate) fn within(span: &Span) -> Option<SpanContext> {
        let of = |context: Context| Some(context.span().span_context().clone()).filter(SpanContext::is_valid);
        of(span.context()).or_else(|| of(Span::current().context())).or_else(|| of(Context::current()))
    }

    /// Writes a context into headers that have none.
    pub(crate) fn inject(context: &SpanContext, headers: &mut Headers) {
        if headers.get(TRACEPARENT).is_some() {
            return;
        }
        let (trace, span, flags) = (context.trace_id(), context.span_id(), context.trace_flags().to_u8());
        headers.set(TRACEPARENT, format!("00-{trace}-{span}-{flags:02x}"));
        let state = context.trace_state().header();
        if !state.is_empty() {
            headers.set(TRACESTATE, state);
        }
    }

    fn extract(headers: &Headers) -> Option<SpanContext> {
        let (trace, span, flags) = traceparent(headers.text(TRACEPARENT)?)?;
        let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
        let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?);
        // A state that cannot be read is dropped, the trace goes on.
        let state = headers.text(TRACESTATE).and_then(|text| text.parse::<TraceState>().ok()).unwrap_or_default();
        Some(SpanContext::new(trace, span, flags, true, state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_read_or_ignored() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(traceparent(good), Some(("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", "01")));
        let zero = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
        let altered =
            [good.replace("00-4", "ff-4"), good.replace('b', "B"), good.replace("-01", ""), format!("{good}-")];
        for bad in ["", "00-1-2-3", zero].into_iter().chain(altered.iter().map(String::as_str)) {
            assert_eq!(traceparent(bad), None, "{bad}");
        }
    }
}
