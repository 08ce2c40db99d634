//! The simulator: the real engine on the memory broker and store, in simulated time, with everything going wrong.
//!
//! One seed decides everything: what is published and when, what handlers do, how long calls take, which fail with or
//! without having taken effect, which instances crash at which step, freeze, stop and join. The same seed repeats the
//! same run exactly. At the end a checker reads the history and says which promises were broken.
//!
//! Run your own handlers in it:
//!
//! ```
//! use aqueduct::testing::sim::Sim;
//! use aqueduct::{Event, Router};
//!
//! let events = (0..20).map(|n| Event::raw("order.placed", n.to_string()).topic("orders").key("order-7"));
//! for seed in 0..10 {
//!     let router = || Router::new().on("order.*", async |_: Event| ());
//!     Sim::new(seed).router(router).events(events.clone()).run().assert_ok();
//! }
//! ```

mod bounds;
mod broker;
mod checker;
#[cfg(test)]
mod checker_tests;
#[cfg(test)]
mod crash_tests;
mod director;
mod exclusion;
mod faults;
mod history;
mod life;
mod order;
#[cfg(test)]
mod planted;
mod probe;
mod publishing;
mod report;
mod run;
mod script;
mod store;
#[cfg(test)]
mod tests;
mod world;

pub use checker::{Invariant, Violation};
pub use faults::CALLS;
pub use report::Report;
pub use run::{Sim, run, run_crash};
