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
//!
//! | span | level | fields |
//! |---|---|---|
//! | `aqueduct.handle` | info | consumer, topic, type, id, attempt, trace_id, parent_id (the event's `traceparent`), link_trace_id, link_parent_id (retries and replays) |
//! | `aqueduct.publish` | info | publisher, events |
