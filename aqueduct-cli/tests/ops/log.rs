//! `tail`, `purge` and `forget`.

use crate::world::World;

#[test]
fn a_tail_prints_what_consume_prints_and_leaves_nothing_behind() {
    let world = World::new();
    world.run(&["publish", "--topic", "hooks", crate::world::WEBHOOKS]).succeeded();
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let tail = world.run(&["tail", "hooks", "--from", "beginning", "--no-follow"]).succeeded().out;
    assert!(world.json(&["status"])[0]["groups"].as_array().unwrap().is_empty());
    let consumed = world.run(&["consume", "hooks", "--group", "look", "--exit-when-idle", "300ms"]).succeeded().out;
    assert_eq!(sorted(&tail), sorted(&consumed));
}

#[test]
fn a_tail_follows_and_ends_when_nobody_reads() {
    let world = World::new();
    world.events(1, 1);
    let mut tail = world.start(&["tail", "t", "--lines", "1"]);
    tail.wait_for("\"id\":\"0\"");
    world.events(3, 1);
    tail.wait_for("\"id\":\"2\"");
    assert_eq!(tail.said.lines().count(), 3, "{}", tail.said);
    let mut head = world.command(&[]);
    head = {
        let program = head.get_program().to_owned();
        let mut shell = std::process::Command::new("sh");
        let line = format!("{} tail t --from beginning | head -1", program.to_string_lossy());
        shell.args(["-c", &line]).current_dir(world.path(""));
        shell
    };
    assert!(crate::world::Said::of(head).succeeded().out.contains("\"id\":\"0\""));
}

#[test]
fn a_tail_goes_back_by_lines_or_to_a_time() {
    let world = World::new();
    world.events(20, 5);
    let ids = |arguments: &[&str]| {
        let said = world.run(&[&["tail", "t", "--no-follow"], arguments].concat()).succeeded();
        said.values().iter().map(|event| event["id"].as_str().unwrap().parse().unwrap()).collect::<Vec<usize>>()
    };
    assert_eq!(ids(&["--lines", "7"]).len(), 7);
    assert_eq!(ids(&["--lines", "700"]).len(), 20);
    crate::in_order(&ids(&["--from", "2020-01-01T00:00:00Z"]), 5);
    assert!(ids(&["--from", "2999-01-01T00:00:00Z"]).is_empty());
    assert!(ids(&[]).is_empty());
    world.run(&["tail", "tt"]).failed(66, &["topic `tt` does not exist", "did you mean `t`?"]);
}

#[test]
fn a_purge_deletes_what_was_counted_and_nothing_that_is_unread() {
    let world = World::new();
    world.events(10, 2);
    let purge = |more: &[&str]| world.run(&[&["purge", "t"], more].concat());
    purge(&[]).failed(2, &["--before", "--all"]);
    purge(&["--keep-bytes", "many"]).failed(2, &["no number of bytes such as"]);
    purge(&["--all"]).failed(2, &["nobody can be asked", "purge 10 events", "--yes"]);
    assert!(purge(&["--all", "--dry-run"]).succeeded().out.starts_with("would purge 10 events ("));
    assert!(purge(&["--older", "1h", "--yes"]).succeeded().out.starts_with("purged 0 events"));
    assert!(purge(&["--keep-bytes", "1M", "--yes"]).succeeded().out.starts_with("purged 0 events"));
    // A group that has read nothing.
    let mut waiting = world.start(&[
        "consume",
        "t",
        "--group",
        "slow",
        "--exec",
        &world.script("w.sh", "echo up >&2; cat >&2; exit 75"),
    ]);
    waiting.wait_for("up");
    waiting.kill();
    let unread = || world.json(&["status"])[0]["groups"][0]["lag"].as_u64().unwrap();
    let lag = unread();
    assert!(lag > 0);
    let said = purge(&["--all", "--yes"]).succeeded();
    said.says(&["stay, since a group has not read them"]);
    assert_eq!(unread(), lag);
    purge(&["--all", "--drop-unread"]).failed(2, &[&format!("{lag} of which group slow has not read")]);
    purge(&["--all", "--drop-unread", "--yes"]).succeeded();
    assert_eq!(world.json(&["status"])[0]["topics"][0]["events"], 0);
    world.run(&["purge", "tt", "--all"]).failed(66, &["tt"]);
}

#[test]
fn a_group_is_forgotten_unless_it_runs() {
    let world = World::with_dead(1, 1);
    let mut service = world.service(&[]);
    while world.json(&["status"])[0]["groups"][0]["owner"]["kind"] != "process" {}
    world.run(&["forget", "mail", "--yes"]).failed(75, &["cannot be forgotten while it runs", "stop it first"]);
    service.signal("TERM");
    service.end();
    world.run(&["forget", "mail"]).failed(2, &["nobody can be asked", "0 events not read yet"]);
    assert_eq!(world.run(&["forget", "mail", "--yes"]).succeeded().out, "forgot group mail\n");
    world.run(&["forget", "mail", "--yes"]).failed(66, &["there is no group `mail`"]);
    assert_eq!(world.json(&["dlq", "list"]).len(), 1);
    // What it has in the store can still be mended, and that does not make it hold the log.
    world.run(&["dlq", "replay", "0"]).succeeded().says(&["nobody runs mail"]);
    assert!(world.json(&["status"])[0]["groups"][0]["partitions"].as_array().unwrap().is_empty());
}
