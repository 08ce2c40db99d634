//! A consumer that is killed in the middle, and the next one.

use std::collections::{BTreeMap, BTreeSet};

use crate::shore::Shore;

/// Says on standard error what it has handled, which `consume` passes on. While there is a gate it waits there, in the middle.
const WORKER: &str = "import json, os, sys\n\
for count, line in enumerate(sys.stdin):\n    ask = json.loads(line)\n    event = ask['event']\n\
\x20   if count == 500 and os.path.exists('gate'):\n\
\x20       print('in the middle', file=sys.stderr, flush=True)\n\
\x20       open('gate').read()\n\
\x20   print('handled', event['partitionkey'], event['data']['n'], file=sys.stderr, flush=True)\n\
\x20   print(json.dumps(dict(id=ask['id'], result='done')), flush=True)\n";

const EVENTS: usize = 2_000;
const KEYS: usize = 50;

#[test]
fn killed_in_the_middle_it_loses_nothing_and_keys_stay_in_order() {
    let shore = Shore::new();
    shore.publish(EVENTS, KEYS).succeeded();
    let program = format!("python3 {}", shore.world.write("worker.py", WORKER).display());
    let arguments = shore.consume(&["--exec-stream", &program, "--store", "sqlite:store.db"]);
    let gate = shore.world.path("gate");
    assert!(std::process::Command::new("mkfifo").arg(&gate).status().unwrap().success());
    let mut first = shore.start(&arguments);
    first.wait_for("in the middle");
    assert!(first.kill(), "it was to be killed in the middle");
    // The worker is an orphan now: it says what it had in hand still, and ends when nobody takes its answers.
    std::fs::write(&gate, "go").unwrap();
    first.end();
    std::fs::remove_file(&gate).unwrap();
    let mut handled: Vec<_> = first.said.lines().filter_map(of_line).collect();
    let crash = handled.len();
    assert!((500..EVENTS).contains(&crash), "{crash} were handled before it was killed");
    // What is not settled yet is waited for, and so are the leases of the one that was killed.
    let mut second = shore.start(&[&arguments[..], &["--exit-when-idle", "2s"]].concat());
    assert!(second.end().success(), "{}", second.said);
    handled.extend(second.said.lines().filter_map(of_line));
    let different: BTreeSet<usize> = handled.iter().map(|(_, n)| *n).collect();
    assert_eq!(different.len(), EVENTS);
    check_order(&handled[..crash], &handled[crash..]);
    let group = shore.status("groups", "group", &["--store", "sqlite:store.db"]);
    let left = ["lag", "parked", "dead"].map(|what| group[what].as_u64());
    assert_eq!(left, [Some(0); 3], "{group}");
}

fn of_line(line: &str) -> Option<(String, usize)> {
    let [.., key, n] = line.split(' ').collect::<Vec<_>>()[..] else { return None };
    line.contains("handled ").then(|| Some((key.to_owned(), n.parse().ok()?)))?
}

/// Numbers of a key rise one by one from run to run; the second may begin with some of the first.
fn check_order(first: &[(String, usize)], second: &[(String, usize)]) {
    let mut last = BTreeMap::<&str, usize>::new();
    for (run, handled) in [first, second].into_iter().enumerate() {
        let mut of_run = BTreeSet::new();
        for (key, n) in handled {
            let begins = of_run.insert(key.as_str());
            let expected = last.get(key.as_str()).map(|last| last + KEYS);
            match expected {
                None => assert!(*n < KEYS, "{key} begins with {n}"),
                Some(expected) if run == 1 && begins => {
                    assert!(*n <= expected, "{key} goes on with {n}, not {expected}");
                }
                Some(expected) => assert_eq!(*n, expected, "{key}"),
            }
            last.insert(key, *n);
        }
    }
    assert!(last.values().all(|n| *n >= EVENTS - KEYS), "{last:?}");
}
