//! Whatever operators do, and whenever: each key keeps its order, and nothing is handled twice or lost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aqueduct::broker::{MemoryBroker, Ownership};
use aqueduct::store::{Action, Command, Content, Hold, Listed, RowState, Store};
use aqueduct::testing::{Fate, TestApp};
use aqueduct::{Attempt, Error, Event, FaultExt, Key, Policy, Result, Router};
use parking_lot::Mutex;
use proptest::prelude::*;

/// What a test does.
#[derive(Clone, Debug)]
enum Step {
    /// Publishes an event of a key, with a fault.
    Publish(u8, Kind),
    /// Lets time pass.
    Pass(u64),
    /// Gives a command about one of the rows, without waiting for what follows.
    Command(usize, Deed),
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Good,
    /// Fails so many times.
    Flaky(u32),
    /// Fails until an operator replays it.
    Stuck,
}

#[derive(Clone, Copy, Debug)]
enum Deed {
    Replay,
    Skip,
    Discard,
    Edit,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let kind = prop_oneof![3 => Just(Kind::Good), 2 => (1u32..6).prop_map(Kind::Flaky), 2 => Just(Kind::Stuck)];
    let deed =
        prop_oneof![4 => Just(Deed::Replay), 1 => Just(Deed::Skip), 1 => Just(Deed::Discard), 1 => Just(Deed::Edit)];
    let step = prop_oneof![
        5 => (0u8..3, kind).prop_map(|(key, kind)| Step::Publish(key, kind)),
        2 => (1u64..3_000).prop_map(Step::Pass),
        3 => (0usize..8, deed).prop_map(|(row, deed)| Step::Command(row, deed)),
    ];
    prop::collection::vec(step, 1..60)
}

/// Keys and numbers of events in the order in which they were done, replays of skipped ones left out.
type Done = Arc<Mutex<Vec<(String, u64)>>>;

fn app(ownership: Ownership, done: &Done) -> TestApp {
    let done = Arc::clone(done);
    let handler = async move |event: Event, key: Key, attempt: Attempt| -> Result<()> {
        tokio::time::sleep(Duration::from_millis(3)).await;
        match event.kind.as_str().strip_prefix("flaky.") {
            Some(times) if attempt.number <= times.parse::<u32>()? && !attempt.replay => {
                return Err(Error::msg("not yet"));
            }
            None if event.kind == "stuck" && !attempt.replay => return Err(Error::msg("never")).permanent(),
            _ => {}
        }
        done.lock().push((key.to_string(), event.id.as_str().parse()?));
        Ok(())
    };
    let router = Router::new().on(">", handler).policy(Policy::ordered().block());
    // Several keys a partition, and little room a key, so that lanes spill.
    let broker = MemoryBroker::new().partitions(1).ownership(ownership);
    TestApp::builder(router).broker(broker).consumer(|c| c.buffer_per_key(3)).start()
}

/// Gives a command about a row; the state that it was in is nobody's business here: it may be refused.
async fn command(app: &TestApp, on: &Listed, deed: Deed, skipped: &mut Vec<u64>) {
    let Content::Event(event) = &on.row.content else { panic!("all can be decoded") };
    let id: u64 = event.id.as_str().parse().unwrap();
    let action = match deed {
        Deed::Replay if on.row.state == RowState::Dead(Hold::Skip) => {
            skipped.push(id);
            Action::Replay
        }
        Deed::Replay => Action::Replay,
        Deed::Skip => Action::Skip,
        Deed::Discard => Action::Discard,
        Deed::Edit => Action::Edit(Arc::clone(event)),
    };
    // Nobody waits for it, so that several are on their way; an error says that the row has changed since it was listed.
    let _ = app.store().command(&Command::new(on, action, "ann", "to see what happens")).await;
}

async fn run(ownership: Ownership, steps: &[Step]) {
    let done = Done::default();
    let app = app(ownership, &done);
    let (mut count, mut skipped) = (0_u64, Vec::new());
    for step in steps {
        match step {
            Step::Publish(key, kind) => {
                let kind = match kind {
                    Kind::Good => "good".to_owned(),
                    Kind::Flaky(times) => format!("flaky.{times}"),
                    Kind::Stuck => "stuck".to_owned(),
                };
                let event = Event::raw(kind, "").id(count.to_string()).key(format!("k{key}"));
                app.publish(event).await;
                count += 1;
            }
            Step::Pass(ms) => tokio::time::sleep(Duration::from_millis(*ms)).await,
            Step::Command(row, deed) => {
                let rows = [app.dead().await, app.parked().await].concat();
                if let Some(on) = rows.get(*row) {
                    command(&app, on, *deed, &mut skipped).await;
                }
            }
        }
    }
    // Everything is mended in the end.
    app.advance(Duration::from_mins(2)).await;
    while let Some(letter) = app.dead().await.first() {
        command(&app, letter, Deed::Replay, &mut skipped).await;
        app.advance(Duration::from_mins(2)).await;
    }
    let order = done.lock().clone();
    check(&app, &order, &skipped).await;
    app.stop().await.unwrap();
}

async fn check(app: &TestApp, done: &[(String, u64)], skipped: &[u64]) {
    assert_eq!(app.parked().await, []);
    for handled in app.outcomes().await {
        let expected = match handled.fate {
            Fate::Dropped => 0,
            Fate::Done => 1,
            fate => panic!("{fate:?}: {handled:?}"),
        };
        assert_eq!(handled.done, expected, "{handled:?}");
    }
    let mut keys: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for (key, id) in done.iter().filter(|(_, id)| !skipped.contains(id)) {
        keys.entry(key).or_default().push(*id);
    }
    for (key, ids) in keys {
        assert!(ids.is_sorted(), "{key} is out of order: {ids:?}");
    }
}

fn run_on_each_kind_of_ownership(steps: &[Step]) {
    for ownership in [Ownership::Floor, Ownership::AckEach] {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(run(ownership, steps));
    }
}

#[test]
fn a_row_is_not_tried_while_a_command_about_it_is_on_its_way() {
    let flaky = Step::Publish(1, Kind::Flaky(4));
    let good = || Step::Publish(1, Kind::Good);
    // The discarded head lets the second row become due just when the command about it is being written.
    let commands = [Step::Command(0, Deed::Discard), good(), good(), Step::Command(1, Deed::Replay)];
    run_on_each_kind_of_ownership(&[&[flaky, good(), Step::Pass(46)], &commands[..]].concat());
}

proptest! {
    #[test]
    fn whatever_operators_do_keys_keep_their_order_and_nothing_is_lost_or_done_twice(steps in steps()) {
        run_on_each_kind_of_ownership(&steps);
    }
}
