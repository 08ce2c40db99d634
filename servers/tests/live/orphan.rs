//! What becomes of a server whose starter is killed. Only Linux tells it.

#![cfg(target_os = "linux")]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use aqueduct_servers::{MariaDb, Options, Postgres};

use crate::{children, runs, until};

#[test]
fn servers_end_when_their_starter_is_killed_and_their_folders_go_with_the_next_start() {
    let mut starter = Command::new(std::env::current_exe().unwrap());
    starter.args(["orphan::a_starter_that_waits_to_be_killed", "--exact", "--ignored", "--nocapture"]);
    let mut starter = starter.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(starter.stdout.take().unwrap()).lines();
    let line = lines.map(Result::unwrap).find_map(|l| Some(l.split_once("started ")?.1.to_owned())).unwrap();
    let words: Vec<_> = line.split(' ').collect();
    let mut processes: Vec<u32> = words[..2].iter().map(|w| w.parse().unwrap()).collect();
    processes.extend(children(processes[0]));
    assert!(processes.iter().all(|p| runs(*p)));
    starter.kill().unwrap();
    starter.wait().unwrap();
    until("the servers end", || !processes.iter().any(|p| runs(*p)));
    let folder = std::path::Path::new(words[2]);
    assert!(folder.exists());
    drop(Postgres::start(Options::new()).unwrap());
    assert!(!folder.exists());
}

#[test]
#[ignore = "another test runs it"]
fn a_starter_that_waits_to_be_killed() {
    let (postgres, mariadb) = (Postgres::start(Options::new()).unwrap(), MariaDb::start(Options::new()).unwrap());
    println!("started {} {} {}", postgres.pid().unwrap(), mariadb.pid().unwrap(), mariadb.data().display());
    std::io::stdin().read_line(&mut String::new()).unwrap();
}
