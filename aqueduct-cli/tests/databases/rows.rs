//! A database that is the store: what is dead there is looked at and mended as in a file.

use crate::fresh::{Fresh, on_each_server};

on_each_server! {
    what_is_dead_in_a_database_is_mended_and_no_record_has_the_password
}

fn what_is_dead_in_a_database_is_mended_and_no_record_has_the_password(fresh: &Fresh) {
    fresh.run(&["migrate"]).succeeded();
    fresh.world.events(3, 3);
    let handler = fresh.world.script("handler.sh", "cat > /dev/null; [ -f ok ] || exit 65; echo $CE_ID >> handled");
    let consume = ["consume", "t", "--group", "mail", "--exec", &handler, "--exit-when-idle", "300ms"];
    fresh.run(&consume).succeeded();
    assert!(fresh.world.rows().is_empty(), "they are in the file of the broker");
    assert_eq!(fresh.json(&["dead-letters", "list"]).len(), 3);
    assert_eq!(fresh.json(&["status"])[0]["groups"][0]["dead"], 3);

    let url = fresh.database.url();
    let replay = ["dead-letters", "replay", "1", "--database", &url];
    fresh.world.run(&replay).succeeded();
    let rest = ["dead-letters", "discard", "--all", "--yes", "--why", "only a test"];
    assert!(fresh.run(&rest).succeeded().out.contains("2 events done"));
    let password = url.split(':').nth(2).unwrap().split('@').next().unwrap();
    let commands = fresh.sql("select * from aq_commands");
    assert!(commands.contains("://(hidden)"), "{commands}");
    assert!(!commands.contains(&format!(":{password}@")), "{commands}");
    fresh.world.write("ok", "");
    fresh.run(&consume).succeeded();
    assert_eq!(fresh.world.read("handled"), "1\n");
}
