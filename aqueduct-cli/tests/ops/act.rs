//! `replay`, `skip` and `discard`.

use crate::in_order;
use crate::world::World;

#[test]
fn a_live_owner_replays_what_it_is_told_to() {
    let world = World::new();
    world.events(12, 3);
    let mut service = world.service(&[]);
    world.until_dead(12);
    world.mend();
    let said = world.run(&["dead-letters", "replay", "--group", "mail", "--yes", "--why", "it is back"]).succeeded();
    assert_eq!(said.out, "replay: 12 events done, 0 refused (3 keys)\n");
    assert_eq!(said.err, "");
    for _ in 0..12 {
        service.wait_for("handled");
    }
    service.signal("TERM");
    service.end();
    assert_eq!(world.handled().len(), 12);
    in_order(&world.handled(), 3);
    assert!(world.rows().is_empty());
}

#[test]
fn without_an_owner_the_program_stands_in_and_the_service_runs_it_later() {
    let world = World::with_dead(30, 3);
    let said = world.run(&["dead-letters", "replay", "--error", "mail server", "--yes"]).succeeded();
    assert_eq!(said.out, "replay: 30 events done, 0 refused (3 keys)\n");
    said.says(&["nobody runs mail, so this program did it", "runs when it is started"]);
    assert!(world.rows().iter().all(|row| !row.dead));
    assert!(world.handled().is_empty());
    let shown = world.json(&["parked", "show", "7"]);
    let command = &shown[0]["commands"][0];
    assert_eq!((&command["action"], &command["result"]), (&"replay".into(), &"done".into()));
    assert_eq!(command["why"], "dead-letters replay --error mail server --yes");
    assert!(command["who"].as_str().unwrap().contains('@'));

    world.mend();
    let mut service = world.service(&[]);
    for _ in 0..30 {
        service.wait_for("handled");
    }
    in_order(&world.handled(), 3);
}

#[test]
fn one_that_is_named_is_replayed_without_asking_and_on_record() {
    let world = World::with_dead(3, 3);
    let by = ["--who", "ada", "--why", "smtp is back"];
    let said = world.run(&[&["dlq", "replay", "1", "--output", "json"], &by[..]].concat()).succeeded().values();
    assert_eq!((&said[0]["done"], &said[0]["stood_in_for"][0]), (&1.into(), &"mail".into()));
    let text = world.run(&["parked", "show", "1"]).succeeded().out;
    assert!(text.contains("replay by ada (smtp is back): done"), "{text}");
    world.run(&["dlq", "replay", "1"]).failed(66, &["no dead letter `1`"]);
}

#[test]
fn many_are_counted_and_asked_about() {
    let world = World::with_dead(9, 3);
    world.run(&["dlq", "replay"]).failed(2, &["which ones are to be replayed is not said", "--all"]);
    let asked = ["without a terminal: replay 9 events of 3 keys, group mail", "nothing was done", "--yes"];
    world.run(&["dlq", "replay", "--all"]).failed(2, &asked);
    world.run(&["dlq", "discard", "4"]).failed(2, &["discard 1 event of 1 key"]);
    let said = world.run(&["dlq", "discard", "--key", "key-2", "--dry-run"]).succeeded();
    assert_eq!(said.out, "would discard 3 events of 1 key, group mail\n");
    assert_eq!(world.rows().iter().filter(|row| row.dead).count(), 9);
    assert_eq!(world.json(&["status"])[0]["groups"][0]["commands_waiting"], 0);
    let said = world.run(&["dlq", "replay", "--key", "nobody", "--yes"]).succeeded();
    assert_eq!(said.out, "replay: 0 events done, 0 refused (0 keys)\n");
}

#[test]
fn a_discard_forgets_those_and_no_others() {
    let world = World::with_dead(9, 3);
    world.run(&["dlq", "discard", "--key", "key-2", "--yes"]).succeeded().says(&["nobody runs mail"]);
    let left: Vec<String> = world.json(&["dlq", "list"]).iter().map(|row| row["id"].to_string()).collect();
    assert_eq!(left.len(), 6);
    assert!(!left.contains(&"\"2\"".to_owned()), "{left:?}");
}

#[test]
fn a_skip_lets_a_key_go_on_behind_a_dead_letter_that_blocks() {
    let world = World::new();
    world.events(4, 1);
    let handler = world.handler();
    let block = ["consume", "t", "--group", "mail", "--exec", &handler, "--block"];
    world.run(&[&block[..], &["--exit-when-idle", "300ms"]].concat()).succeeded();
    assert_eq!(world.rows().iter().filter(|row| row.dead).count(), 1);
    world.run(&["doctor"]).succeeded();
    assert!(world.run(&["doctor"]).succeeded().out.contains("1 dead letter hold"));
    world.mend();
    let said = world.run(&["parked", "skip", "2"]).succeeded();
    said.says(&["only a dead letter that blocks can be skipped"]);
    let mut service = world.start(&block);
    let said = world.run(&["dead-letters", "skip", "--all", "--yes"]).succeeded();
    assert_eq!(said.out, "skip: 1 event done, 0 refused (1 key)\n");
    service.wait_for("handled 3");
    assert_eq!(world.handled(), [1, 2, 3]);
    // A dead letter that lets its key pass need not be skipped.
    world.run(&["dead-letters", "skip", "0"]).succeeded().says(&["none of these does"]);
}

#[test]
fn what_is_being_handled_is_refused_and_told() {
    let world = World::new();
    world.events(1, 1);
    let handler = world.script(
        "slow.sh",
        "cat > /dev/null; [ $AQUEDUCT_ATTEMPT = 1 ] && exit 75; echo running >&2; while [ ! -f ok ]; do sleep 0.05; done",
    );
    let quick = ["--quick-attempts", "1", "--parked-delay", "10ms"];
    let mut service = world.start(&[&["consume", "t", "--group", "mail", "--exec", &handler], &quick[..]].concat());
    service.wait_for("running");
    let said = world.run(&["parked", "discard", "0", "--yes"]);
    said.failed(1, &["an attempt on it is running", "1 event refused", "look again"]);
    let kept = world.json(&["parked", "show", "0"]);
    assert_eq!(kept[0]["commands"][0]["result"], "refused");
    world.mend();
}

#[test]
fn an_owner_that_does_not_answer_is_named_and_does_it_when_it_goes_on() {
    let world = World::new();
    world.events(2, 2);
    let mut service = world.service(&[]);
    world.until_dead(2);
    service.signal("STOP");
    world.mend();
    let pid = format!("(pid {})", service.pid());
    let said = world.run(&["dead-letters", "replay", "--all", "--yes", "--wait", "1s"]);
    said.failed(1, &["2 events still wait for aqueduct", &pid, "aqueduct status"]);
    assert_eq!(world.json(&["status"])[0]["groups"][0]["commands_waiting"], 2);
    service.signal("CONT");
    service.wait_for("handled");
    service.wait_for("handled");
}

#[test]
fn more_than_the_store_takes_at_once_is_commanded_in_portions() {
    let world = World::new();
    world.events(1, 1);
    world.bury(12_001);
    let said = world.run(&["dead-letters", "discard", "--all", "--yes"]).succeeded();
    assert_eq!(said.out, "discard: 12,001 events done, 0 refused (1 key)\n");
    assert!(world.json(&["dlq", "list"]).is_empty());
}
