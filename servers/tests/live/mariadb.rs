//! MariaDB, started, crashed and suspended.

use std::time::Instant;

use aqueduct_servers::{MariaDb, Options};

use crate::{Folder, runs, silent_until_resumed};

fn start() -> MariaDb {
    MariaDb::start(Options::new()).unwrap()
}

#[test]
fn it_starts_and_answers_with_the_settings_of_the_test_and_the_usual_ones() {
    let begin = Instant::now();
    let server = MariaDb::start(Options::new().setting("innodb_lock_wait_timeout", "3")).unwrap();
    println!("MariaDB started in {:?}", begin.elapsed());
    let settings =
        "SELECT @@innodb_lock_wait_timeout, @@innodb_flush_log_at_trx_commit, @@max_connections, @@bind_address";
    assert_eq!(server.query("aqueduct", settings).unwrap(), "3\t1\t300\t127.0.0.1");
    assert_eq!(server.query("aqueduct", "SELECT @@socket, @@collation_server").unwrap(), "\tutf8mb4_general_ci");
    assert_eq!(server.query("aqueduct", "SELECT 'a' = 'A'").unwrap(), "1", "case makes no difference");
    assert!(server.log_tail(50).contains("ready for connections"));
    assert!(server.query("aqueduct", "SELECT nothing").unwrap_err().to_string().contains("nothing"));
}

#[test]
fn a_committed_row_outlives_a_crash_and_port_and_data_stay() {
    let server = start();
    let (port, pid) = (server.port(), server.pid().unwrap());
    let database = server.database().unwrap();
    database.query("CREATE TABLE a (b int); INSERT INTO a VALUES (7)").unwrap();
    server.kill().unwrap();
    assert!(!runs(pid));
    assert_eq!(server.pid(), None);
    server.start_again().unwrap();
    assert_eq!((database.query("SELECT b FROM a").unwrap().as_str(), server.port()), ("7", port));
    assert!(server.log_tail(80).contains("recovery"), "{}", server.log_tail(80));
    server.restart().unwrap();
    assert_eq!(database.query("SELECT b FROM a").unwrap(), "7");
}

#[test]
fn while_suspended_it_answers_nothing_and_afterwards_everything() {
    let server = start();
    server.suspend().unwrap();
    silent_until_resumed(server.port(), b"", || server.resume().unwrap());
    assert_eq!(server.query("aqueduct", "SELECT 2").unwrap(), "2");
}

#[test]
fn two_at_the_same_time_have_their_own_ports_and_data_and_leave_no_process_behind() {
    let (one, two) = std::thread::scope(|scope| {
        let (one, two) = (scope.spawn(start), scope.spawn(start));
        (one.join().unwrap(), two.join().unwrap())
    });
    let database = one.database().unwrap();
    assert!(one.query("aqueduct", "SHOW DATABASES").unwrap().contains(database.name()));
    assert!(!two.query("aqueduct", "SHOW DATABASES").unwrap().contains(database.name()));
    drop(database);
    let (pids, folder) = ([one.pid().unwrap(), two.pid().unwrap()], one.data().to_owned());
    two.suspend().unwrap();
    drop((one, two));
    assert!(!pids.iter().any(|p| runs(*p)) && !folder.exists());
}

#[test]
fn data_in_a_folder_of_the_test_stays_and_is_used_again() {
    let folder = Folder::new("mariadb");
    let options = Options::new().folder(folder.path());
    let server = MariaDb::start(options.clone()).unwrap();
    server.query("aqueduct", "CREATE DATABASE x; CREATE TABLE x.a AS SELECT 7 AS b").unwrap();
    server.stop().unwrap();
    drop(server);
    let server = MariaDb::start(options).unwrap();
    assert_eq!(server.query("x", "SELECT b FROM a").unwrap(), "7");
}

#[test]
fn a_server_that_cannot_start_says_what_its_log_says() {
    let error = MariaDb::start(Options::new().setting("no-such-thing", "1")).unwrap_err().to_string();
    assert!(error.contains("before it was ready") && error.contains("no-such-thing"), "{error}");
}
