//! A consumer that is killed in the middle, and the next one.

use std::collections::{BTreeMap, BTreeSet};

use crate::shore::Shore;
use crate::world::Running;

/// Says on standard error what it has handled, which `consume` passes on.
const WORKER: &str = "import json, sys\n\
for line in sys.stdin:\n    ask = json.loads(line)\n    event = ask['event']\n\
\x20   print('handled', event['partitionkey'], event['data']['n'], file=sys.stderr, flush=True)\n\
\x20   print(json.dumps(dict(id=ask['id'], result='done')), flush=True)\n";

const EVENTS: usize = 2_000;
const KEYS: usize = 50;

/// Takes in what is handled until `enough` are.
fn follow(running: &mut Running, handled: &mut Vec<(String, usize)>, enough: usize) {
    let mut done: BTreeSet<usize> = handled.iter().map(|(_, n)| *n).collect();
    while done.len() < enough {
        let line = running.wait_for("handled ");
        let [.., key, n] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let n = n.parse().unwrap();
        done.insert(n);
        handled.push((key.to_owned(), n));
    }
}

#[test]
fn killed_in_the_middle_it_loses_nothing_and_keys_stay_in_order() {
    let shore = Shore::new();
    shore.publish(EVENTS, KEYS).succeeded();
    let program = format!("python3 {}", shore.world.write("worker.py", WORKER).display());
    let arguments = shore.consume(&["--exec-stream", &program, "--store", "sqlite:store.db"]);
    let mut handled = Vec::new();
    let mut first = shore.start(&arguments);
    follow(&mut first, &mut handled, EVENTS / 4);
    assert!(first.kill(), "it was to be killed in the middle");
    // What its worker had in hand still is said, until that ends too.
    first.end();
    handled.clear();
    handled.extend(first.said.lines().filter_map(of_line));
    let crash = handled.len();
    assert!(crash < EVENTS, "it had done everything before it was killed");
    let mut second = shore.start(&arguments);
    follow(&mut second, &mut handled, EVENTS);
    second.signal("TERM");
    assert!(second.end().success(), "{}", second.said);
    check_order(&handled[..crash], &handled[crash..]);
    assert!(
        shore.world.read("store.db").is_empty()
            || shore.json(&["status", "--store", "sqlite:store.db"])["groups"][0]["dead"] == 0
    );
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
