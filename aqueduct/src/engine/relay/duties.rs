//! What a relay does beside its rounds: gauges, and the end of what was kept for an audit.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;

use super::round::Tools;
use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::store::outbox::Held;
use crate::topic::Text;

const GAUGE_EVERY: Duration = Duration::from_secs(10);
const FORGET_EVERY: Duration = Duration::from_mins(1);

/// Sets the gauges once in a while. An outbox in which nothing happens is not asked.
pub(super) async fn gauge(tools: Arc<Tools>) {
    let mut waiting = true;
    loop {
        if tools.saw_rows.swap(false, Ordering::Relaxed) || waiting {
            // Rounds meet the same failures, and tell.
            if let Ok(status) = tools.source.status().await {
                waiting = status.pending > 0;
                set(&tools, status.pending, status.parked, status.oldest);
            }
        }
        tokio::time::sleep(GAUGE_EVERY).await;
    }
}

#[expect(clippy::cast_precision_loss, reason = "gauges are floats; the counts are far below 2^52")]
fn set(tools: &Tools, pending: u64, parked: u64, oldest: Option<Timestamp>) {
    let age = oldest.map_or(Duration::ZERO, |oldest| tools.clock.now().since(oldest));
    tools.metrics.pending.set(pending as f64);
    tools.metrics.parked.set(parked as f64);
    tools.metrics.oldest_seconds.set(age.as_secs_f64());
}

/// Deletes what has been kept long enough, chunk by chunk. Of several relays the owner of the first shard does it.
pub(super) async fn forget(tools: Arc<Tools>, owned: watch::Receiver<BTreeMap<Text, Held>>, retention: Duration) {
    loop {
        tokio::time::sleep(FORGET_EVERY).await;
        if !owned.borrow().contains_key(&Text::from_static("0")) {
            continue;
        }
        if let Err(error) = forget_once(&tools, retention).await {
            tracing::warn!(relay = %tools.group, %error, "old rows of the audit were not deleted; it is tried again");
        }
    }
}

async fn forget_once(tools: &Tools, retention: Duration) -> Result<(), StoreError> {
    let retention = i64::try_from(retention.as_millis()).unwrap_or(i64::MAX);
    let before = Timestamp::from_unix_ms(tools.clock.now().unix_ms().saturating_sub(retention));
    while tools.source.forget_sent(before).await? {}
    Ok(())
}
