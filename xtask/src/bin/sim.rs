//! Runs the simulator over many seeds, one thread a core, and says which of them fail and how to run one again.
//!
//! `cargo xtask sim` and `cargo xtask chaos` build and start it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::catch_unwind;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aqueduct::testing::sim;
use clap::Parser;

/// Failing seeds after which no new one is begun.
const FAILURES_MAX: usize = 20;
/// Broken promises shown of a failing seed.
const LINES_MAX: usize = 5;
/// A seed that takes longer hangs.
const HANG: Duration = Duration::from_mins(1);
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

#[derive(Parser)]
struct Args {
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// How many seeds. Defaults to no end.
    #[arg(long, default_value_t = u64::MAX)]
    seeds: u64,
    /// No new seed after so many seconds. Defaults to no end.
    #[arg(long)]
    seconds: Option<u64>,
}

/// Which seeds are still to be run.
struct Plan {
    next: AtomicU64,
    end: u64,
    until: Option<Instant>,
}

impl Plan {
    fn take(&self) -> Option<u64> {
        if self.until.is_some_and(|until| Instant::now() >= until) {
            return None;
        }
        Some(self.next.fetch_add(1, Ordering::Relaxed)).filter(|seed| *seed < self.end)
    }

    fn stop(&self) {
        self.next.store(self.end, Ordering::Relaxed);
    }
}

/// The seeds that run now, and since when.
#[derive(Clone, Default)]
struct Running(Arc<Mutex<BTreeMap<u64, Instant>>>);

impl Running {
    fn begin(&self, seed: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(seed, Instant::now());
    }

    fn end(&self, seed: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&seed);
    }

    fn hanging(&self) -> Option<u64> {
        let running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        running.iter().find(|(_, since)| since.elapsed() > HANG).map(|(seed, _)| *seed)
    }
}

/// What became of a seed.
struct Ran {
    seed: u64,
    failures: Vec<String>,
    report: String,
}

/// What became of all.
#[derive(Default)]
struct Tally {
    ran: u64,
    failed: Vec<u64>,
    hanging: Option<u64>,
}

thread_local! {
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

fn main() -> ExitCode {
    let args = Args::parse();
    // Simulated handlers panic on purpose: a panic is shown only if it ends the simulation itself.
    std::panic::set_hook(Box::new(|panic| LAST_PANIC.with_borrow_mut(|last| *last = panic.to_string())));
    let begin = Instant::now();
    let plan = Arc::new(Plan {
        next: AtomicU64::new(args.from),
        end: args.from.saturating_add(args.seeds),
        until: args.seconds.map(|s| begin + Duration::from_secs(s)),
    });
    let running = Running::default();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let results = start(threads, &plan, &running);
    let tally = collect(&results, &plan, &running, args.seeds == 1, begin);
    print_end(&tally, args.from, threads, begin);
    if tally.failed.is_empty() && tally.hanging.is_none() && tally.ran > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn start(threads: usize, plan: &Arc<Plan>, running: &Running) -> Receiver<Ran> {
    let (sender, results) = channel();
    for _ in 0..threads {
        let (plan, running, sender) = (plan.clone(), running.clone(), sender.clone());
        std::thread::spawn(move || work(&plan, &running, &sender));
    }
    results
}

fn work(plan: &Plan, running: &Running, results: &Sender<Ran>) {
    while let Some(seed) = plan.take() {
        running.begin(seed);
        let ran = run(seed);
        running.end(seed);
        if results.send(ran).is_err() {
            return;
        }
    }
}

fn run(seed: u64) -> Ran {
    match catch_unwind(|| sim::run(seed)) {
        Ok(report) => {
            let failures = report.failures.iter().map(ToString::to_string).collect();
            Ran { seed, report: report.to_string(), failures }
        }
        Err(_) => Ran { seed, report: String::new(), failures: vec![LAST_PANIC.with_borrow(Clone::clone)] },
    }
}

/// Prints failures and progress until every thread has ended, or one hangs.
fn collect(results: &Receiver<Ran>, plan: &Plan, running: &Running, whole: bool, begin: Instant) -> Tally {
    let mut tally = Tally::default();
    let mut progress = Instant::now();
    loop {
        match results.recv_timeout(Duration::from_secs(1)) {
            Ok(ran) => {
                tally.ran += 1;
                if whole {
                    println!("{}", ran.report);
                }
                if !ran.failures.is_empty() {
                    print_failed(&ran);
                    tally.failed.push(ran.seed);
                    if tally.failed.len() == FAILURES_MAX {
                        println!("{FAILURES_MAX} seeds have failed: no more are begun");
                        plan.stop();
                    }
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return tally,
        }
        tally.hanging = running.hanging();
        if tally.hanging.is_some() {
            return tally;
        }
        if progress.elapsed() >= PROGRESS_EVERY {
            progress = Instant::now();
            println!("{} seeds in {:.0} s, {} failed", tally.ran, begin.elapsed().as_secs_f64(), tally.failed.len());
        }
    }
}

fn print_failed(ran: &Ran) {
    println!("seed {} FAILED: {}", ran.seed, replay(ran.seed));
    for failure in ran.failures.iter().take(LINES_MAX) {
        println!("    {failure}");
    }
    if let Some(more) = ran.failures.len().checked_sub(LINES_MAX).filter(|more| *more > 0) {
        println!("    and {more} more");
    }
}

fn replay(seed: u64) -> String {
    format!("`cargo xtask sim --seeds 1 --from {seed}` runs it again")
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn print_end(tally: &Tally, from: u64, threads: usize, begin: Instant) {
    let ran = tally.ran.max(1) as f64;
    let (wall, cpu) = (begin.elapsed().as_secs_f64(), cpu_time().as_secs_f64());
    println!(
        "{} seeds from {from} on {threads} threads in {wall:.1} s: {:.0} seeds/s, {:.2} ms of CPU a seed (bar 20), {} failed",
        tally.ran,
        ran / wall,
        cpu * 1_000.0 / ran,
        tally.failed.len(),
    );
    if let Some(seed) = tally.hanging {
        println!("seed {seed} HANGS for more than {} s: {}", HANG.as_secs(), replay(seed));
    }
    if !tally.failed.is_empty() {
        println!("failed: {:?}", tally.failed);
    }
}

/// The CPU time of this process, all threads together.
fn cpu_time() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(t.tv_sec).unwrap_or(0), u32::try_from(t.tv_nsec).unwrap_or(0))
}
