//! `TestApp`, and through it what operators' commands do in the engine.

use std::sync::Arc;
use std::time::Duration;

use aqueduct::broker::{MemoryBroker, Ownership};
use aqueduct::store::{Action, CommandState, Hold, RowState};
use aqueduct::testing::{Fate, TestApp};
use aqueduct::{
    Attempt, Error, Event, FaultExt, Json, Key, Policy, Publisher, Result, Router, ServeError, State, StoreError,
    Unknown,
};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

const SECOND: Duration = Duration::from_secs(1);

/// What was handled, in order.
type Seen = Arc<Mutex<Vec<i64>>>;

/// Fails for good on what is negative.
async fn only_positive(Json(n): Json<i64>, State(seen): State<Seen>) -> Result<()> {
    if n < 0 {
        return Err(Error::msg(format!("{n} is negative"))).permanent();
    }
    seen.lock().push(n);
    Ok(())
}

fn event(n: i64) -> Event {
    Event::new("n", &n).unwrap().key("k")
}

/// The kinds of ownership that keep keys in order.
const ORDERED: [Ownership; 2] = [Ownership::Floor, Ownership::AckEach];

/// Handles events of one key in order; a negative one is a dead letter that holds its key.
async fn positive_app(ownership: Ownership, numbers: &[i64]) -> (TestApp, Seen) {
    let seen = Seen::default();
    let router = Router::new().on("n", only_positive).policy(Policy::ordered().block());
    let app = TestApp::builder(router.with_state(Arc::clone(&seen)));
    let app = app.broker(MemoryBroker::new().ownership(ownership)).start();
    for n in numbers {
        app.publish(event(*n)).await;
    }
    app.wait_idle().await;
    (app, seen)
}

fn fates(handled: &[aqueduct::testing::Handled]) -> Vec<Fate> {
    handled.iter().map(|h| h.fate).collect()
}

#[tokio::test(start_paused = true)]
async fn it_says_what_each_event_came_to() {
    async fn handle(Json(n): Json<u32>, attempt: Attempt) -> Result<()> {
        match (n, attempt.number) {
            (1, 1) => panic!("dropped it"),
            (2, _) => Err(Error::msg("always")),
            (3, 1) => std::future::pending().await,
            _ => Ok(()),
        }
    }
    let router =
        Router::new().on("n", handle).on("poison", async || -> Result<()> { Err(Error::msg("bad")).permanent() });
    let app = TestApp::builder(router).consumer(|c| c.timeout(SECOND).skip_source("us")).start();
    for n in 0..4 {
        app.publish(Event::new("n", &n).unwrap()).await;
    }
    app.publish(Event::new("poison", "x").unwrap()).await;
    app.publish(Event::new("unheard.of", "x").unwrap()).await;
    app.publish(Event::new("n", &0).unwrap().source("us")).await;
    app.wait_idle().await;
    let handled = app.outcomes().await;
    let expected = [Fate::Done, Fate::Done, Fate::Parked, Fate::Done, Fate::Dead, Fate::Dead, Fate::Dropped];
    assert_eq!(fates(&handled), expected);
    assert_eq!(handled.iter().map(|h| h.done).collect::<Vec<_>>(), [1, 1, 0, 1, 0, 0, 0]);
    let errors: Vec<usize> = handled.iter().map(|h| h.errors.len()).collect();
    assert_eq!(errors, [0, 1, 3, 1, 1, 1, 0]);
    for (n, text) in [(1, "dropped it"), (2, "always"), (3, "at its deadline"), (4, "bad"), (5, "no route")] {
        assert!(handled[n].errors[0].contains(text), "{:?}", handled[n]);
    }
    assert_eq!((app.parked().await.len(), app.dead().await.len()), (1, 2));
    assert!(app.health().is_ready());
    app.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn hours_of_retries_pass_at_once_and_each_at_its_time() {
    let times = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&times);
    let handler = async move || -> Result<()> {
        log.lock().push(tokio::time::Instant::now());
        Err(Error::msg("never"))
    };
    let policy = Policy::ordered().quick_attempts(1).max_attempts(6);
    let app = TestApp::new(Router::new().on("n", handler).policy(policy));
    app.publish(event(1)).await;
    app.wait_idle().await;
    assert_eq!(app.parked().await.len(), 1);
    assert_eq!(times.lock().len(), 1);
    let before = app.clock().now();
    app.advance(Duration::from_hours(1)).await;
    assert!(app.clock().now().since(before) >= Duration::from_hours(1));
    let waits: Vec<u64> = times.lock().windows(2).map(|pair| (pair[1] - pair[0]).as_secs()).collect();
    assert_eq!(waits, [1, 2, 4, 8, 16, 32]);
    assert_eq!(app.outcomes().await[0].fate, Fate::Dead);
    app.stop().await.unwrap();
}

#[tokio::test]
async fn it_works_in_real_time_and_with_a_broker_of_ones_own() {
    let broker = MemoryBroker::new().ownership(Ownership::AckEach);
    let echo = Publisher::new("echo", broker.clone());
    let router = Router::new()
        .on("ping", async move |key: Key, State(echo): State<Publisher>| -> Result<()> {
            echo.publish(Event::new("pong", "!")?.topic("answers").key(&key)).await?;
            Ok(())
        })
        .on("pong", async || ())
        .with_state(echo);
    let app = TestApp::builder(router).broker(broker).topics(["questions", "answers"]).start();
    app.publish(Event::new("ping", "?").unwrap().key("k")).await;
    app.wait_idle().await;
    let handled = app.outcomes().await;
    assert_eq!(handled.iter().map(|h| (h.event.kind.as_str(), h.done)).collect::<Vec<_>>(), [("ping", 1), ("pong", 1)]);
    app.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_service_that_cannot_start_fails_the_test_that_waits_for_it() {
    let app = TestApp::new(Router::new());
    let panic = tokio::spawn(async move { app.wait_idle().await }).await.unwrap_err().into_panic();
    let text = panic.downcast::<String>().unwrap();
    assert!(text.contains("the router has no routes") && text.contains("test_app.rs"), "{text}");
    assert!(matches!(TestApp::new(Router::new()).stop().await, Err(ServeError::Wiring(_))));
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_lets_its_key_pass_can_be_replayed() {
    let fixed = Arc::new(Mutex::new(false));
    let flag = Arc::clone(&fixed);
    let handler = async move |Json(n): Json<i64>, attempt: Attempt| -> Result<()> {
        if n == 2 && !*flag.lock() {
            return Err(Error::msg("a bug")).permanent();
        }
        assert_eq!(attempt.replay, n == 2);
        Ok(())
    };
    let app = TestApp::new(Router::new().on("n", handler));
    for n in 1..=3 {
        app.publish(event(n)).await;
    }
    app.wait_idle().await;
    let dead = app.dead().await;
    assert_eq!((dead.len(), dead[0].row.state), (1, RowState::Dead(Hold::Skip)));
    assert_eq!(fates(&app.outcomes().await), [Fate::Done, Fate::Dead, Fate::Done]);

    // Nothing is mended yet, and so it is dead again.
    assert!(matches!(app.command(&dead[0], Action::Replay).await, Ok(CommandState::Done { .. })));
    app.wait_idle().await;
    let dead = app.dead().await;
    assert_eq!((dead.len(), dead[0].row.history.len()), (1, 2));

    *fixed.lock() = true;
    app.command(&dead[0], Action::Replay).await.unwrap();
    app.wait_idle().await;
    let outcomes = app.outcomes().await;
    assert_eq!(fates(&outcomes), [Fate::Done; 3]);
    assert_eq!((outcomes[1].done, outcomes[1].errors.len()), (1, 2));
    assert!(app.store().is_empty());
    app.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn those_behind_a_blocking_dead_letter_follow_its_replay_in_order() {
    for ownership in ORDERED {
        let fixed = Arc::new(Mutex::new(false));
        let (flag, seen) = (Arc::clone(&fixed), Seen::default());
        let log = Arc::clone(&seen);
        let handler = async move |Json(n): Json<i64>| -> Result<()> {
            if n == 2 && !*flag.lock() {
                return Err(Error::msg("a bug")).permanent();
            }
            log.lock().push(n);
            Ok(())
        };
        let router = Router::new().on("n", handler).policy(Policy::ordered().block());
        let app = TestApp::builder(router).broker(MemoryBroker::new().ownership(ownership)).start();
        for n in 1..=5 {
            app.publish(event(n)).await;
        }
        app.advance(Duration::from_mins(10)).await;
        assert_eq!(*seen.lock(), [1]);
        let dead = app.dead().await;
        assert_eq!((dead.len(), dead[0].row.state), (1, RowState::Dead(Hold::Block)));
        assert_eq!(app.parked().await.len(), 3);

        *fixed.lock() = true;
        app.command(&dead[0], Action::Replay).await.unwrap();
        app.publish(event(6)).await;
        app.wait_idle().await;
        assert_eq!(*seen.lock(), [1, 2, 3, 4, 5, 6]);
        assert!(app.store().is_empty());
        app.stop().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn skipping_a_blocking_dead_letter_lets_its_key_pass_and_keeps_the_letter() {
    for ownership in ORDERED {
        let (app, seen) = positive_app(ownership, &[1, -2, 3, 4]).await;
        assert_eq!(*seen.lock(), [1]);
        let dead = app.dead().await;
        app.command(&dead[0], Action::Skip).await.unwrap();
        app.publish(event(5)).await;
        app.wait_idle().await;
        assert_eq!(*seen.lock(), [1, 3, 4, 5]);
        assert_eq!(app.dead().await[0].row.state, RowState::Dead(Hold::Skip));
        assert!(app.parked().await.is_empty());

        // It lets its key pass already.
        let again = app.command(&app.dead().await[0], Action::Skip).await.unwrap();
        assert!(matches!(&again, CommandState::Refused { why, .. } if why.as_str().contains("blocks")), "{again:?}");
        app.stop().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_discarded_is_gone_and_its_key_passes() {
    for ownership in ORDERED {
        let (app, seen) = positive_app(ownership, &[1, -2, 3]).await;
        app.command(&app.dead().await[0], Action::Discard).await.unwrap();
        app.wait_idle().await;
        app.publish(event(4)).await;
        app.wait_idle().await;
        assert_eq!(*seen.lock(), [1, 3, 4]);
        assert_eq!(fates(&app.outcomes().await), [Fate::Done, Fate::Dropped, Fate::Done, Fate::Done]);
        assert!(app.dead().await.is_empty() && app.parked().await.is_empty());
        app.stop().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_edited_event_is_handled_as_edited_and_keeps_its_key() {
    for ownership in ORDERED {
        let (app, seen) = positive_app(ownership, &[1, -2, 3]).await;
        let dead = app.dead().await;
        let moved = Arc::new(event(2).key("another"));
        let refused = app.command(&dead[0], Action::Edit(moved)).await.unwrap();
        assert!(matches!(&refused, CommandState::Refused { why, .. } if why.as_str().contains("keeps the key")));

        let edit = Action::Edit(Arc::new(event(2).id("edited").source("operator")));
        assert!(matches!(app.command(&dead[0], edit).await, Ok(CommandState::Done { .. })));
        app.wait_idle().await;
        assert_eq!(*seen.lock(), [1]);
        app.command(&app.dead().await[0], Action::Replay).await.unwrap();
        app.wait_idle().await;
        assert_eq!(*seen.lock(), [1, 2, 3]);
        app.stop().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_command_about_an_event_that_is_being_tried_is_refused() {
    let (started, gate) = (Arc::new(Notify::new()), Arc::new(Semaphore::new(0)));
    let (tell, wait) = (Arc::clone(&started), Arc::clone(&gate));
    let handler = async move |attempt: Attempt| -> Result<()> {
        if !attempt.stored {
            return Err(Error::msg("not at first"));
        }
        tell.notify_one();
        wait.acquire().await?.forget();
        Ok(())
    };
    let app = TestApp::new(Router::new().on("n", handler));
    app.publish(event(1)).await;
    started.notified().await;
    let parked = app.parked().await;
    for action in [Action::Skip, Action::Discard, Action::Replay, Action::Edit(Arc::new(event(2)))] {
        let state = app.command(&parked[0], action).await.unwrap();
        assert!(
            matches!(&state, CommandState::Refused { why, .. } if why.as_str().contains("is running")),
            "{state:?}"
        );
    }
    gate.add_permits(1);
    app.wait_idle().await;
    assert_eq!((app.outcomes().await[0].done, app.outcomes().await[0].fate), (1, Fate::Done));
    app.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_command_about_an_old_version_of_a_row_is_refused() {
    let app = TestApp::new(Router::new().on("n", async || -> Result<()> { Err(Error::msg("no")) }));
    app.publish(event(1)).await;
    app.wait_idle().await;
    let old = app.parked().await;
    app.advance(SECOND).await;
    let new = app.parked().await;
    assert!(new[0].row.version > old[0].row.version);
    let error = app.command(&old[0], Action::Discard).await.unwrap_err();
    assert!(matches!(&error, StoreError::Refused(why) if why.contains("look at it again")), "{error}");
    assert_eq!(app.parked().await, new);
    app.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn of_two_commands_about_one_version_the_second_is_refused() {
    use aqueduct::store::{Command, Store};
    let (app, _) = positive_app(Ownership::Floor, &[-1]).await;
    let dead = app.dead().await;
    let first = app.store().command(&Command::new(&dead[0], Action::Discard, "ann", "spam")).await.unwrap();
    let second = app.command(&dead[0], Action::Replay).await.unwrap();
    assert!(matches!(second, CommandState::Refused { .. }), "{second:?}");
    assert!(matches!(app.store().command_result(first).await, Ok(Some(CommandState::Done { .. }))));
    app.wait_idle().await;
    assert_eq!(app.outcomes().await[0].fate, Fate::Dropped);
    app.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_unknown_type_can_wait_until_its_attempts_run_out() {
    let router = Router::new().on("n", async || ()).fallback(Unknown::Park);
    let app = TestApp::new(router.policy(Policy::ordered()));
    app.publish(Event::new("new.type", &1).unwrap().key("k")).await;
    app.publish(event(2)).await;
    app.wait_idle().await;
    assert_eq!(fates(&app.outcomes().await), [Fate::Parked, Fate::Parked]);
    app.advance(Duration::from_hours(24)).await;
    assert_eq!(fates(&app.outcomes().await), [Fate::Dead, Fate::Done]);
    app.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn without_owners_an_event_comes_back_until_it_is_done_or_dead() {
    let judge = async |Json(n): Json<u32>, attempt: Attempt| -> Result<()> {
        if n == 1 && attempt.number == 5 { Ok(()) } else { Err(Error::msg("not yet")) }
    };
    let policy = Policy::ordered().max_attempts(4);
    let app = TestApp::builder(Router::new().on("n", judge).policy(policy))
        .broker(MemoryBroker::new().ownership(Ownership::Competing))
        .start();
    for n in 1..=2 {
        app.publish(Event::new("n", &n).unwrap()).await;
    }
    app.wait_idle().await;
    let handled = app.outcomes().await;
    assert_eq!(fates(&handled), [Fate::Done, Fate::Dead]);
    assert_eq!(handled.iter().map(|h| h.errors.len()).collect::<Vec<_>>(), [4, 7]);
    app.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_event_that_is_parked_and_edited_is_tried_as_edited() {
    let judge =
        async |Json(n): Json<i64>| -> Result<()> { if n < 0 { Err(Error::msg("it is negative")) } else { Ok(()) } };
    for ownership in ORDERED {
        let router = Router::new().on("n", judge);
        let app = TestApp::builder(router).broker(MemoryBroker::new().ownership(ownership)).start();
        for n in [-1, 2] {
            app.publish(event(n)).await;
        }
        app.advance(Duration::from_secs(8)).await;
        let parked = app.parked().await;
        assert_eq!(parked.len(), 2);
        let edit = Action::Edit(Arc::new(event(1).id("edited").source("operator")));
        assert!(matches!(app.command(&parked[0], edit).await, Ok(CommandState::Done { .. })));
        app.advance(Duration::from_secs(8)).await;
        let handled = app.outcomes().await;
        assert_eq!(fates(&handled), [Fate::Done; 2], "{handled:?}");
        assert_eq!((handled[0].event.data.as_ref(), handled[0].done), (&b"1"[..], 1));
        assert!(app.store().is_empty());
        app.stop().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_app_that_is_dropped_stops() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel::<()>();
    let app = TestApp::new(Router::new().on("n", async move || drop(tell.clone())));
    app.publish(event(1)).await;
    app.wait_idle().await;
    let health = app.health();
    drop(app);
    // The handler, and what it holds, is gone with its service.
    assert_eq!(told.recv().await, None);
    assert!(!health.is_live());
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_never_idle_fails_the_test_that_waits_for_it() {
    let broker = MemoryBroker::new();
    let echo = Publisher::new("echo", broker.clone()).route(">", "events");
    let again = async move || -> Result<()> {
        echo.publish(Event::new("n", &1)?.key("k")).await?;
        Ok(())
    };
    let app = TestApp::builder(Router::new().on("n", again)).broker(broker).start();
    app.publish(event(1)).await;
    let panic = tokio::spawn(async move { app.wait_idle().await }).await.unwrap_err().into_panic();
    let text = panic.downcast::<String>().unwrap();
    assert!(text.contains("it was not idle after 100000 attempts"), "{text}");
}
