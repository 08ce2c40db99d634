//! What `--help` says.

use crate::world::World;

#[test]
fn every_help_is_as_it_was_looked_at() {
    let world = World::new();
    let actions = ["list", "show", "replay", "skip", "discard", "edit"].map(|action| format!("dead-letters {action}"));
    let outbox = ["sql", "status", "list", "retry", "discard"].map(|action| format!("outbox {action}"));
    let commands = [
        "status",
        "parked",
        "dead-letters",
        "tail",
        "purge",
        "forget",
        "doctor",
        "relay",
        "outbox",
        "migrate",
        "rewind",
        "inbox",
        "inbox status",
        "inbox forget",
        "topology",
        "topology plan",
        "topology apply",
        "topology verify",
        "topology permissions",
    ];
    for command in commands.map(str::to_owned).into_iter().chain(actions).chain(outbox) {
        let arguments: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let help = world.run(&arguments).succeeded().out;
        insta::assert_snapshot!(format!("help {command}").replace(' ', "-"), help);
    }
}
