//! NATS, started, crashed, suspended and as a cluster.

use std::time::Instant;

use aqueduct_servers::{Nats, NatsCluster, Options, fresh_name};

use crate::{Folder, runs, silent_until_resumed};

fn start() -> Nats {
    Nats::start(Options::new()).unwrap()
}

#[test]
fn it_starts_with_the_settings_of_the_test() {
    let begin = Instant::now();
    let options = Options::new().setting("max_payload", "64KB").setting("jetstream.max_file_store", "10MB");
    let server = Nats::start(options).unwrap();
    println!("NATS started in {:?}", begin.elapsed());
    let log = server.log_tail(100);
    assert!(log.contains("Server is ready") && log.contains("10.00 MB"), "{log}");
    assert!(server.data().join("jetstream").exists());
}

#[test]
fn after_a_crash_port_and_data_stay() {
    let server = start();
    let (port, pid) = (server.port(), server.pid().unwrap());
    server.kill().unwrap();
    assert!(!runs(pid) && server.pid().is_none());
    server.set("max_payload", "32KB");
    server.start_again().unwrap();
    assert_eq!(server.port(), port);
    server.restart().unwrap();
    assert_ne!(server.pid().unwrap(), pid);
}

#[test]
fn while_suspended_it_answers_nothing() {
    let server = start();
    server.suspend().unwrap();
    silent_until_resumed(server.port(), b"PING\r\n", || server.resume().unwrap());
}

#[test]
fn three_keep_copies_for_each_other_and_leave_no_process_behind() {
    let begin = Instant::now();
    let cluster = NatsCluster::start(&Options::new()).unwrap();
    println!("a cluster started in {:?}", begin.elapsed());
    let pids: Vec<u32> = cluster.servers().iter().map(|server| server.pid().unwrap()).collect();
    assert_eq!(cluster.url().split(',').count(), 3);
    drop(cluster);
    assert!(!pids.iter().any(|pid| runs(*pid)));
}

#[test]
fn data_in_a_folder_of_the_test_stays() {
    let folder = Folder::new("nats");
    drop(Nats::start(Options::new().folder(folder.path())).unwrap());
    assert!(folder.path().join("data/jetstream").exists());
    assert_ne!(fresh_name().unwrap(), fresh_name().unwrap());
}

#[test]
fn a_server_that_cannot_start_says_what_its_log_says() {
    let error = Nats::start(Options::new().setting("max_payload", "nonsense")).unwrap_err().to_string();
    assert!(error.contains("before it was ready") && error.contains("nats.conf:4"), "{error}");
}
