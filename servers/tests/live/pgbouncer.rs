//! PgBouncer before PostgreSQL.

use aqueduct_servers::{Options, PgBouncer, Postgres};

use crate::runs;

#[test]
fn transactions_reach_the_server_behind_it() {
    let postgres = Postgres::start(Options::new()).unwrap();
    let database = postgres.database().unwrap();
    let bouncer = PgBouncer::start(&postgres.url("postgres")).unwrap();
    let url = bouncer.url(database.name());
    let through = |sql: &str| {
        let psql = std::process::Command::new("psql").args([&url, "-XAtc", sql]).output().unwrap();
        assert!(psql.status.success(), "{}", String::from_utf8_lossy(&psql.stderr));
        String::from_utf8(psql.stdout).unwrap().trim().to_owned()
    };
    through("CREATE TABLE a AS SELECT 7 AS b");
    assert_eq!(database.query("SELECT b FROM a").unwrap(), "7");
    assert_eq!(through("SELECT inet_server_port()"), postgres.port().to_string());
    bouncer.kill().unwrap();
    bouncer.start_again().unwrap();
    assert_eq!(through("SELECT b FROM a"), "7");
    let pid = bouncer.pid().unwrap();
    drop(bouncer);
    assert!(!runs(pid));
}
