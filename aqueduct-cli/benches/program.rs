//! The program beside what it is made of: publishing a file beside the library's own publishing, a worker in Python, and a
//! program for each event beside a shell loop that starts the same program.
//!
//! `cargo xtask bench program`; each line is `name: value (bar B)`, and a bar that is missed ends it with an error. Both sides
//! of a comparison alternate, each on a fresh file, and what is compared is the median of each.

#![allow(clippy::expect_used, reason = "a benchmark that cannot run has failed")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use aqueduct::format::{CloudEvents, Decoded, Format};
use aqueduct::sqlite::SqliteBroker;
use aqueduct::{Event, Message, Publisher};

/// Rounds of each side.
const ROUNDS: usize = 3;

/// Events that are published, of about 1 KB, and how many of them the library takes in one call.
const EVENTS: usize = 500_000;
const BATCH: usize = 1_000;

/// Events that a worker handles.
const STREAMED: usize = 200_000;

/// Events for each of which a program is started.
const STARTED: usize = 2_000;

/// As in `docs/exec-stream.md`, without the work.
const WORKER: &str = "import json, sys
for line in sys.stdin:
    print(json.dumps({'id': json.loads(line)['id'], 'result': 'done'}), flush=True)
";

/// Writes a file of events, one a line.
fn events(path: &Path, count: usize, bytes: usize) {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).expect("a fresh folder"));
    let pad = "x".repeat(bytes);
    for n in 0..count {
        let key = n.wrapping_mul(7_919) % 10_000;
        let line = format!(
            r#"{{"specversion":"1.0","id":"{n:012}","source":"shop","type":"order.placed","partitionkey":"{key}","datacontenttype":"application/json","data":{{"pad":"{pad}"}}}}"#
        );
        writeln!(file, "{line}").expect("room on the disk");
    }
    file.flush().expect("room on the disk");
}

/// Runs the program in a folder; answers the seconds that it took.
fn aqueduct(folder: &Path, arguments: &[&str]) -> f64 {
    let begin = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_aqueduct"));
    let said = command.args(arguments).current_dir(folder).stdin(Stdio::null()).output().expect("it starts");
    assert!(said.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&said.stderr));
    begin.elapsed().as_secs_f64()
}

/// The library alone: the same events, read before the time counts.
fn library(path: &Path, file: &Path) -> f64 {
    let text = std::fs::read_to_string(path).expect("it was written");
    let read = |line: &str| -> Event {
        let mut message = Message::new("orders", line.to_owned());
        message.headers = [("content-type", "application/cloudevents+json")].into_iter().collect();
        match CloudEvents::structured().decode(&message).expect("an event") {
            Decoded::One(event) => event.topic("orders"),
            Decoded::Batch(_) => unreachable!("a line holds one event"),
        }
    };
    let lines: Vec<&str> = text.lines().collect();
    let batches: Vec<Vec<Event>> =
        lines.chunks(BATCH).map(|lines| lines.iter().map(|line| read(line)).collect()).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let publisher = Publisher::new("shop", SqliteBroker::open(file).await.expect("a fresh file"));
        let begin = Instant::now();
        for batch in batches {
            publisher.publish_all(batch).await.into_iter().for_each(|receipt| drop(receipt.expect("stored")));
        }
        begin.elapsed().as_secs_f64()
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Prints a figure; false if it misses its bar.
fn figure(name: &str, value: f64, bar: Option<f64>) -> bool {
    let bar_text = bar.map_or_else(|| "none".to_owned(), |bar| bar.to_string());
    println!("{name}: {value:.2} (bar {bar_text})");
    bar.is_none_or(|bar| value >= bar)
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn rate(count: usize, seconds: f64) -> f64 {
    count as f64 / seconds
}

fn publish(folder: &Path) -> bool {
    let lines = folder.join("events.ndjson");
    events(&lines, EVENTS, 850);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let (program, alone) = (format!("sqlite:program-{round}.db"), folder.join(format!("library-{round}.db")));
        ours.push(aqueduct(folder, &["--broker", &program, "publish", "--topic", "orders", "events.ndjson"]));
        theirs.push(library(&lines, &alone));
        for name in [format!("program-{round}.db"), format!("library-{round}.db")] {
            std::fs::remove_file(folder.join(name)).expect("it was written");
        }
    }
    let (ours, theirs) = (rate(EVENTS, median(ours)), rate(EVENTS, median(theirs)));
    figure("program_publish_per_s", ours, None);
    figure("program_publish_library_per_s", theirs, None);
    figure("program_publish_ratio", ours / theirs, Some(0.8))
}

fn stream(folder: &Path) -> bool {
    std::fs::write(folder.join("worker.py"), WORKER).expect("room on the disk");
    events(&folder.join("small.ndjson"), STREAMED, 10);
    aqueduct(folder, &["publish", "--topic", "small", "small.ndjson"]);
    let count = STREAMED.to_string();
    let run = |n: usize| {
        let group = format!("stream-{n}");
        let arguments = ["consume", "small", "--group", &group, "--exec-stream", "python3 worker.py"];
        aqueduct(folder, &[&arguments[..], &["--max-events", &count]].concat())
    };
    figure("program_exec_stream_per_s", rate(STREAMED, median((0..ROUNDS).map(run).collect())), Some(20_000.0))
}

fn exec(folder: &Path) -> bool {
    let script = folder.join("handler");
    std::fs::write(&script, "#!/bin/sh\ncat > /dev/null\n").expect("room on the disk");
    assert!(Command::new("chmod").arg("+x").arg(&script).status().expect("it starts").success());
    events(&folder.join("few.ndjson"), STARTED, 10);
    aqueduct(folder, &["publish", "--topic", "few", "few.ndjson"]);
    let (mut one, mut many, mut shell) = (Vec::new(), Vec::new(), Vec::new());
    let count = STARTED.to_string();
    for round in 0..ROUNDS {
        for (name, concurrency, seconds) in [("one", "1", &mut one), ("many", "32", &mut many)] {
            let group = format!("{name}-{round}");
            let arguments = ["consume", "few", "--group", &group, "--exec", "./handler", "--concurrency", concurrency];
            seconds.push(aqueduct(folder, &[&arguments[..], &["--max-events", &count]].concat()));
        }
        let line = "while read -r line; do echo \"$line\" | ./handler; done < few.ndjson";
        let begin = Instant::now();
        assert!(Command::new("sh").args(["-c", line]).current_dir(folder).status().expect("it starts").success());
        shell.push(begin.elapsed().as_secs_f64());
    }
    let [one, many, shell] = [one, many, shell].map(|seconds| rate(STARTED, median(seconds)));
    figure("program_exec_shell_loop_per_s", shell, None);
    let alone = figure("program_exec_one_at_a_time_ratio", one / shell, Some(0.8));
    figure("program_exec_ratio", many / shell, Some(0.8)) && alone
}

fn main() -> ExitCode {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let done = [publish, stream, exec].map(|bench| bench(folder.path()));
    if done.iter().all(|done| *done) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
