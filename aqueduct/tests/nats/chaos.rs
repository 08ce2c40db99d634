//! Instances of a consumer that join, leave, are killed and stopped, and servers that are killed, hang and fall silent under them.

use std::collections::BTreeSet;
use std::time::Duration;

use aqueduct::Clock;
use aqueduct_servers::{NatsCluster, Options};

use crate::fleet::{Fleet, KEYS, Layout, Servers, partition};
use crate::fresh::pass;
use crate::judge::Run;
use crate::process::LONG;
use crate::proxy::Proxy;

/// What `cargo xtask chaos` asks for; 20 s in a usual test run.
fn length() -> Duration {
    let seconds = std::env::var("AQUEDUCT_CHAOS_SECONDS").map_or(20, |value| value.parse().unwrap());
    Duration::from_secs(seconds)
}

/// From 15 to 30 s, and long enough to be struck off in a short run.
fn standstill(clock: &Clock, length: Duration) -> u64 {
    let (least, more) = if length >= Duration::from_mins(1) { (15, 15) } else { (7, 3) };
    (least * 1_000 + clock.random(more * 1_000)) * 1_000_000
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_to_instances_nothing_is_lost_and_keys_keep_their_order() {
    whatever_happens(Layout::Declared).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_to_instances_on_a_work_queue_nothing_is_lost_and_keys_keep_their_order() {
    whatever_happens(Layout::WorkQueue).await;
}

async fn whatever_happens(layout: Layout) {
    let (length, clock) = (length(), Clock::system());
    let (mut fleet, load) = Fleet::new(layout).await;
    for _ in 0..5 {
        fleet.join();
    }
    let begun = clock.boot();
    let end = begun.after(length);
    let mut server_killed = false;
    while clock.boot() < end {
        pass(Duration::from_millis(1_000 + clock.random(2_000))).await;
        let now = clock.boot();
        for index in (0..fleet.still.len()).rev() {
            if now.0 - fleet.still[index].0 > standstill(&clock, length) {
                fleet.resume(index);
            }
        }
        if !server_killed && now.since(begun) > length / 2 {
            server_killed = true;
            let server = &fleet.servers.all()[0];
            server.kill().unwrap();
            server.start_again().unwrap();
            continue;
        }
        let dice = clock.random(8);
        match fleet.running.len() {
            0..=2 => fleet.join(),
            3..=6 if dice < 2 => fleet.kill(),
            3..=6 if dice < 4 => fleet.suspend(),
            3..=6 if dice < 6 => fleet.join(),
            _ => fleet.leave(),
        }
    }
    let story = fleet.end_well(load).await;
    let pauses = |names: &[String]| names.iter().map(|name| story.longest_pause(name, partition)).max().unwrap_or(0);
    println!(
        "{layout:?}: {} events, {} instances: {} killed, {} stopped, {} left; {} repeats; a partition stood still for {} ms after a crash, \
         {} ms after a leave",
        story.runs.len() - story.repeats(),
        fleet.names.len(),
        fleet.crashed.len(),
        fleet.stills.len(),
        fleet.left.len(),
        story.repeats(),
        pauses(&fleet.crashed),
        pauses(&fleet.left),
    );
}

/// One of two instances stands still until the other has taken over, and goes on.
async fn a_zombie(unguarded: bool) -> Vec<String> {
    let (mut fleet, load) = Fleet::new(Layout::Declared).await;
    (fleet.unguarded, fleet.work_us) = (unguarded, 50_000);
    fleet.join();
    fleet.join();
    let both = async {
        while fleet.story().runs.iter().filter(|run| run.process == fleet.names[1]).count() < 100 {
            pass(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LONG, both).await.expect("both work");
    let first = fleet.running.remove(0);
    fleet.running.push(first);
    fleet.suspend();
    let (since, stopped) = (fleet.still[0].0, fleet.still[0].1.name.clone());
    let taken = async {
        loop {
            let story = fleet.story();
            let of = |run: &&Run| run.process == stopped;
            let partitions: BTreeSet<u32> = story.runs.iter().filter(of).map(|run| partition(run.key)).collect();
            let taken: BTreeSet<u32> = story
                .runs
                .iter()
                .filter(|run| run.process != stopped && run.effect > since)
                .map(|run| partition(run.key))
                .collect();
            if partitions.is_subset(&taken) {
                return;
            }
            pass(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LONG, taken).await.expect("the other takes over");
    fleet.resume(0);
    let (story, each) = fleet.end(load).await;
    story.faults(&fleet.stills, (KEYS, each), false)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_goes_on_after_it_was_replaced_does_nothing_more() {
    assert_eq!(a_zombie(false).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_guard_its_effects_are_found() {
    let faults = a_zombie(true).await;
    assert!(faults.iter().any(|fault| fault.contains("starts the same key")), "{faults:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_instances_are_restarted_one_after_another() {
    let (clock, (mut fleet, load)) = (Clock::system(), Fleet::new(Layout::Declared).await);
    for _ in 0..3 {
        fleet.join();
    }
    fleet.more(2_000).await;
    let begun = clock.boot().0;
    for _ in 0..3 {
        let oldest = fleet.running.remove(0);
        fleet.leaves(oldest);
        fleet.join();
        fleet.more(1_000).await;
    }
    let ended = clock.boot().0;
    let story = fleet.end_well(load).await;
    let standstill = story.longest_standstill((begun, ended), partition);
    println!("a partition stood still for {standstill} ms at most, {} repeats", story.repeats());
    assert_eq!(story.repeats(), 0, "who leaves finishes what it has begun");
    assert!(standstill < 3_000, "nothing waits for a lease to lapse: {standstill} ms");
}

async fn one_crashes_and_one_leaves(layout: Layout) {
    let (mut fleet, load) = Fleet::new(layout).await;
    for _ in 0..4 {
        fleet.join();
    }
    fleet.more(3_000).await;
    fleet.kill();
    // At the publisher's pace that is longer than a take-over takes.
    fleet.more(10_000).await;
    fleet.leave();
    fleet.more(2_000).await;
    let story = fleet.end_well(load).await;
    let [crash, leave] = [&fleet.crashed[0], &fleet.left[0]].map(|name| story.longest_pause(name, partition));
    println!("{layout:?}: a partition stood still for {crash} ms after a crash, {leave} ms after a leave");
    assert!(crash < 9_000 && leave < 2_000, "{crash} and {leave} ms");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_crash_is_made_good_in_seconds_and_a_leave_at_once() {
    one_crashes_and_one_leaves(Layout::Declared).await;
    one_crashes_and_one_leaves(Layout::WorkQueue).await;
}

async fn the_server_is_killed(layout: Layout) {
    let (mut fleet, load) = Fleet::new(layout).await;
    for _ in 0..3 {
        fleet.join();
    }
    for _ in 0..5 {
        fleet.more(1_000).await;
        let server = &fleet.servers.all()[0];
        server.kill().unwrap();
        server.start_again().unwrap();
    }
    fleet.more(1_000).await;
    let story = fleet.end_well(load).await;
    println!("{layout:?}: five times, {} events, {} repeats", story.runs.len(), story.repeats());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_under_instances_loses_nothing() {
    the_server_is_killed(Layout::Declared).await;
    the_server_is_killed(Layout::WorkQueue).await;
}

/// Nothing gets through to the server and back, and no connection ends.
async fn in_the_dark(layout: Layout) {
    let (clock, (mut fleet, load)) = (Clock::system(), Fleet::new(layout).await);
    let proxy = Proxy::to(fleet.servers.all()[0].port()).await;
    fleet.url = Some(proxy.url());
    for _ in 0..3 {
        fleet.join();
    }
    fleet.more(1_000).await;
    proxy.be_dark(true);
    // Longer than leases hold.
    pass(if length() >= Duration::from_mins(1) { Duration::from_secs(20) } else { Duration::from_secs(8) }).await;
    proxy.be_dark(false);
    let since = clock.boot();
    fleet.more(1_000).await;
    let recovered = clock.boot().since(since);
    let story = fleet.end_well(load).await;
    println!("{layout:?}: events again {recovered:?} after the dark, {} repeats", story.repeats());
    assert!(recovered < Duration::from_secs(10), "{recovered:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_loses_nothing_and_is_left_soon() {
    in_the_dark(Layout::Declared).await;
    in_the_dark(Layout::WorkQueue).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_whose_servers_are_killed_and_hang_loses_nothing() {
    let (length, clock) = (length(), Clock::system());
    let cluster = NatsCluster::start(&Options::new()).unwrap();
    let (mut fleet, load) = Fleet::on(Servers::Cluster(cluster), Layout::Declared).await;
    for _ in 0..3 {
        fleet.join();
    }
    let end = clock.boot().after(length);
    let mut rounds = 0;
    while clock.boot() < end {
        for server in fleet.servers.all() {
            fleet.more(500).await;
            if rounds % 2 == 0 {
                server.kill().unwrap();
                fleet.more(500).await;
                server.start_again().unwrap();
            } else {
                server.suspend().unwrap();
                fleet.more(500).await;
                server.resume().unwrap();
            }
        }
        rounds += 1;
    }
    let story = fleet.end_well(load).await;
    println!("{rounds} rounds over three servers, {} events, {} repeats", story.runs.len(), story.repeats());
}
