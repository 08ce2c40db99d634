//! Databases on the servers that all tests share.

use std::process::{Command, Stdio};

use aqueduct_servers::{
    MARIADB_VARIABLE, MariaDb, Options, POSTGRES_VARIABLE, Postgres, mariadb_database, postgres_database,
};

/// This very test in another process, where the variables are what the outer one says.
fn inner(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([name, "--exact", "--ignored", "--nocapture"]);
    command.env_remove(POSTGRES_VARIABLE).env_remove(MARIADB_VARIABLE);
    command
}

#[test]
fn each_test_has_a_database_of_its_own_which_goes_with_its_connections() {
    let postgres = Postgres::start(Options::new()).unwrap();
    let mariadb = MariaDb::start(Options::new()).unwrap();
    let before = (names(&postgres), mariadb.query("aqueduct", "SHOW DATABASES").unwrap());
    let mut run = inner("shared::in_a_process_that_is_told_of_the_servers");
    run.env(POSTGRES_VARIABLE, postgres.url("postgres")).env(MARIADB_VARIABLE, mariadb.url("aqueduct"));
    assert!(run.status().unwrap().success());
    assert_eq!((names(&postgres), mariadb.query("aqueduct", "SHOW DATABASES").unwrap()), before);
}

fn names(postgres: &Postgres) -> String {
    postgres.query("postgres", "SELECT datname FROM pg_database ORDER BY 1").unwrap()
}

#[test]
#[ignore = "another test runs it"]
fn in_a_process_that_is_told_of_the_servers() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        for start in [postgres_database, mariadb_database] {
            let (one, two) = (start().unwrap(), start().unwrap());
            assert_ne!(one.name(), two.name());
            one.query("CREATE TABLE a (b int)").unwrap();
            two.query("CREATE TABLE a (b int)").unwrap();
            assert!(one.url().ends_with(one.name()));
            hold_a_connection(&one);
        }
    });
}

/// A client that has a lock on a table while the database is dropped.
fn hold_a_connection(database: &aqueduct_servers::Database) {
    let url = database.url();
    let (place, name) = (url.rsplit_once('@').unwrap().1, database.name());
    let port = place.split([':', '/']).nth(1).unwrap();
    let mut client = if url.starts_with("postgres") {
        let mut psql = Command::new("psql");
        psql.args([&url, "-Xc", "BEGIN; LOCK TABLE a; SELECT pg_sleep(600)"]);
        psql
    } else {
        let mut mariadb = Command::new("mariadb");
        let port = format!("--port={port}");
        mariadb.args(["--no-defaults", "--protocol=tcp", "--host=127.0.0.1", &port, "--user=aqueduct"]);
        mariadb.args([name, "-paqueduct", "-e", "LOCK TABLE a WRITE; SELECT sleep(600)"]);
        mariadb
    };
    let mut child = client.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let asks = if url.starts_with("postgres") {
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND wait_event = 'PgSleep'"
    } else {
        "SELECT count(*) FROM information_schema.processlist WHERE info LIKE '%SELECT sleep%' AND state = 'User sleep'"
    };
    crate::until("the client sleeps", || database.query(asks).unwrap() == "1");
    // It ends when its connection does, which is after this test's last look.
    std::thread::spawn(move || child.wait());
}

#[test]
fn without_a_server_the_error_says_how_to_get_one() {
    assert!(inner("shared::in_a_process_that_is_told_of_no_server").status().unwrap().success());
}

#[test]
#[ignore = "another test runs it"]
fn in_a_process_that_is_told_of_no_server() {
    for (error, variable) in
        [(postgres_database().unwrap_err(), POSTGRES_VARIABLE), (mariadb_database().unwrap_err(), MARIADB_VARIABLE)]
    {
        let error = format!("{error:#}");
        for part in [variable, "cargo xtask test", "cargo xtask servers"] {
            assert!(error.contains(part), "{error} does not name {part}");
        }
    }
}
