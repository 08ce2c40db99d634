//! How often and when the modules try a task.

use std::time::Duration;

use crate::policy::Policy;

/// How long the modules wait after each failed delivery of a task; the one after the last of them is the last.
pub const TASK_DELAYS: [Duration; 10] = [
    Duration::from_secs(5),
    Duration::from_mins(1),
    Duration::from_mins(5),
    Duration::from_mins(30),
    Duration::from_hours(2),
    Duration::from_hours(6),
    Duration::from_hours(12),
    Duration::from_hours(24),
    Duration::from_hours(48),
    Duration::from_hours(72),
];

/// How long the modules wait after this delivery of a task, counted from 1, has failed; none after the last, which makes it
/// a failed task.
///
/// ```
/// use aqueduct::compat::tupic::task_delay;
/// assert_eq!((task_delay(1).map(|wait| wait.as_secs()), task_delay(11)), (Some(5), None));
/// ```
pub fn task_delay(delivery: u64) -> Option<Duration> {
    let index = usize::try_from(delivery.checked_sub(1)?).ok()?;
    TASK_DELAYS.get(index).copied()
}

/// As many attempts as the modules make at a task: one, and one after each of [`TASK_DELAYS`].
///
/// The waits of a policy double, from 5 s, and are no longer than 24 h. For those of the modules a handler returns its
/// error [with the wait](crate::Error::retry_after) of its attempt.
///
/// ```
/// use aqueduct::{Attempt, Error, compat::tupic};
/// fn failed(error: Error, attempt: Attempt) -> Error {
///     let wait = tupic::TASK_DELAYS.get(attempt.number as usize - 1);
///     match wait {
///         Some(wait) => error.retry_after(*wait),
///         None => error,
///     }
/// }
/// ```
pub fn task_policy() -> Policy {
    let [first, .., last] = TASK_DELAYS;
    let policy = Policy::ordered().quick_attempts(1).parked_delay(first).parked_delay_max(last);
    policy.max_attempts(10)
}
