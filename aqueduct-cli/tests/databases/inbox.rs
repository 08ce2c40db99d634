//! What a database knows as settled: it is looked at, forgotten, and read again where its end was lost.

use crate::fresh::{Fresh, on_each_server};

on_each_server! {
    a_group_reads_again_what_its_database_has_lost
    what_a_group_has_had_is_shown_and_forgotten
}

fn a_group_reads_again_what_its_database_has_lost(fresh: &Fresh) {
    fresh.run(&["migrate"]).succeeded();
    fresh.world.events(10, 1);
    let handler = fresh.world.script("handler.sh", "cat > /dev/null; echo $CE_ID >> handled");
    let consume = ["consume", "t", "--group", "mail", "--exec", &handler, "--exit-when-idle", "300ms"];
    fresh.run(&consume).succeeded();
    let lines = || fresh.world.read("handled").lines().count();
    assert_eq!(lines(), 10);
    // All are in one partition, and the last two are lost.
    let shard = fresh.sql("select max(shard) from aq_settled where floor >= 3");
    fresh.sql(&format!("update aq_settled set floor = floor - 2 where shard = {shard}"));
    let mut stands = fresh.start(&["consume", "t", "--group", "mail", "--exec", &handler]);
    let said = stands.wait_for("aqueduct rewind");
    stands.signal("TERM");
    stands.end();
    let command = said.split('`').find(|part| part.starts_with("aqueduct rewind")).unwrap();
    let command: Vec<&str> = command.split(' ').skip(1).collect();
    fresh.run(&command).failed(2, &["nobody can be asked"]);
    let done = fresh.run(&[&command[..], &["--yes"]].concat()).succeeded().out;
    assert!(done.contains("group mail reads t/"), "{done}");
    fresh.run(&consume).succeeded();
    assert_eq!(lines(), 12);
    let further = ["rewind", "--group", "mail", "--topic", "t", "--partition", "0", "--to", "4711", "--yes"];
    fresh.run(&further).failed(65, &["is not settled that far", "aqueduct status"]);
}

fn what_a_group_has_had_is_shown_and_forgotten(fresh: &Fresh) {
    fresh.run(&["migrate"]).succeeded();
    fresh.sql("insert into aq_inbox (consumer, source, id, topic, number, position, at) values ('mail', 'shop', '1', 't', 0, 7, 1)");
    let status = &fresh.json(&["inbox", "status"])[0];
    assert_eq!((&status["effects"], &status["effects_is_estimate"]), (&1.into(), &false.into()));
    assert!(status["oldest"].as_str().unwrap().starts_with("1970-01-01"), "{status}");
    let forget = ["inbox", "forget", "--group", "mail", "--topic", "t"];
    fresh.run(&forget).failed(2, &["nobody can be asked"]);
    fresh.run(&[&forget[..], &["--yes"]].concat()).succeeded();
    assert_eq!(fresh.json(&["inbox", "status"])[0]["effects"], 1, "effects are kept unless --effects says otherwise");
    fresh.run(&[&forget[..], &["--effects", "--yes"]].concat()).succeeded();
    assert_eq!(fresh.json(&["inbox", "status"])[0]["effects"], 0);
    let file = fresh.world.run(&["inbox", "status", "--database", "sqlite:shop.db"]);
    file.failed(66, &["there is no database"]);
    fresh.world.run(&["migrate", "--database", "sqlite:shop.db"]).succeeded();
    fresh.world.run(&["inbox", "status", "--database", "sqlite:shop.db"]).failed(78, &["--database postgres://"]);
}
