//! PostgreSQL, started, crashed, suspended and followed.

use std::time::Instant;

use aqueduct_servers::{Options, Postgres};

use crate::{Folder, children, runs, silent_until_resumed, until};

fn start() -> Postgres {
    Postgres::start(Options::new()).unwrap()
}

#[test]
fn it_starts_and_answers_with_the_settings_of_the_test_and_the_usual_ones() {
    let begin = Instant::now();
    let server =
        Postgres::start(Options::new().settings(&[("max_connections", "17"), ("lock_timeout", "5s")])).unwrap();
    println!("PostgreSQL started in {:?}", begin.elapsed());
    let setting = |name: &str| server.query("postgres", &format!("SHOW {name}")).unwrap();
    assert_eq!(["max_connections", "lock_timeout", "fsync"].map(setting), ["17", "5s", "on"]);
    assert_eq!(["listen_addresses", "unix_socket_directories"].map(setting), ["127.0.0.1", ""]);
    assert_eq!(
        server.query("postgres", "SELECT 'a' < 'B', U&'\\00e9' < 'f'").unwrap(),
        "t|t",
        "text sorts as people do"
    );
    assert!(server.log_tail(50).contains("ready to accept connections"));
    assert!(server.query("postgres", "SELECT nothing").unwrap_err().to_string().contains("nothing"));
}

#[test]
fn a_committed_row_outlives_a_crash_and_port_and_data_stay() {
    let server = start();
    let (port, pid) = (server.port(), server.pid().unwrap());
    let database = server.database().unwrap();
    database.query("CREATE TABLE a (b int); INSERT INTO a VALUES (7)").unwrap();
    let processes = children(pid);
    assert!(processes.len() > 3, "{processes:?}");
    server.kill().unwrap();
    assert!(!runs(pid) && !processes.iter().any(|p| runs(*p)));
    assert_eq!(server.pid(), None);
    assert!(server.kill().unwrap_err().to_string().contains("does not run"));
    server.start_again().unwrap();
    assert_eq!((database.query("SELECT b FROM a").unwrap().as_str(), server.port()), ("7", port));
    assert!(server.log_tail(50).contains("was not properly shut down"), "{}", server.log_tail(50));
    assert!(server.start_again().unwrap_err().to_string().contains("runs already"));
    server.restart().unwrap();
    assert_eq!(database.query("SELECT b FROM a").unwrap(), "7");
}

#[test]
fn a_standby_follows_and_is_promoted_when_the_first_has_crashed() {
    let server = start();
    server.query("postgres", "CREATE TABLE a (b int); INSERT INTO a VALUES (7)").unwrap();
    let standby = server.standby().unwrap();
    server.query("postgres", "INSERT INTO a VALUES (8)").unwrap();
    let count = || standby.query("postgres", "SELECT count(*) FROM a").unwrap();
    until("the second row is on the standby", || count() == "2");
    assert!(standby.query("postgres", "INSERT INTO a VALUES (9)").unwrap_err().to_string().contains("read-only"));
    server.kill().unwrap();
    standby.promote().unwrap();
    standby.query("postgres", "INSERT INTO a VALUES (9)").unwrap();
    assert_eq!(count(), "3");
}

#[test]
fn while_suspended_it_answers_nothing_and_afterwards_everything() {
    let server = start();
    server.suspend().unwrap();
    // The question whether it speaks TLS.
    silent_until_resumed(server.port(), &[0, 0, 0, 8, 4, 210, 22, 47], || server.resume().unwrap());
    assert_eq!(server.query("postgres", "SELECT 2").unwrap(), "2");
}

/// The client itself, which must find the server by its address.
fn psql(url: &str, sql: &str) -> String {
    let psql = std::process::Command::new("psql").args([url, "-XAtc", sql]).output();
    String::from_utf8(psql.unwrap().stdout).unwrap()
}

#[test]
fn several_at_the_same_time_have_their_own_ports_and_data_and_leave_no_process_behind() {
    let servers: Vec<_> = std::thread::scope(|scope| {
        let starting: Vec<_> = (0..3).map(|_| scope.spawn(start)).collect();
        starting.into_iter().map(|s| s.join().unwrap()).collect()
    });
    for (i, server) in servers.iter().enumerate() {
        server.query("postgres", &format!("CREATE TABLE a AS SELECT {i} AS b")).unwrap();
    }
    for (i, server) in servers.iter().enumerate() {
        assert_eq!(psql(&server.url("postgres"), "SELECT b FROM a").trim(), i.to_string());
    }
    let folders: Vec<_> = servers.iter().map(|s| s.data().to_owned()).collect();
    let mut processes: Vec<_> = servers.iter().filter_map(|server| server.pid()).collect();
    processes.extend(processes.clone().into_iter().flat_map(children));
    servers[1].suspend().unwrap();
    drop(servers);
    assert!(processes.len() > 9 && !processes.iter().any(|p| runs(*p)));
    assert!(!folders.iter().any(|f| f.exists()));
}

#[test]
fn data_in_a_folder_of_the_test_stays_and_is_used_again() {
    let folder = Folder::new("postgres");
    let options = Options::new().folder(folder.path());
    let server = Postgres::start(options.clone()).unwrap();
    server.query("postgres", "CREATE TABLE a AS SELECT 7 AS b").unwrap();
    server.stop().unwrap();
    drop(server);
    let server = Postgres::start(options).unwrap();
    assert_eq!(server.query("postgres", "SELECT b FROM a").unwrap(), "7");
    assert!(server.data().starts_with(folder.path().canonicalize().unwrap()));
}

#[test]
fn a_server_that_cannot_start_says_what_its_log_says() {
    let error = Postgres::start(Options::new().setting("max_connections", "many")).unwrap_err().to_string();
    assert!(error.contains("before it was ready") && error.contains("max_connections"), "{error}");
}

#[test]
fn a_handle_that_was_made_on_a_thread_that_has_ended_keeps_its_server() {
    let server = std::thread::spawn(start).join().unwrap();
    assert_eq!(server.query("postgres", "SELECT 1").unwrap(), "1");
    server.restart().unwrap();
    assert_eq!(server.query("postgres", "SELECT 1").unwrap(), "1");
}
