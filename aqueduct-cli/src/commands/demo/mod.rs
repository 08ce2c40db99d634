//! `aqueduct demo`: real events, and everything goes wrong at once.

mod effects;
mod naive;
mod reliable;
mod story;
mod verdict;

use std::future::pending;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use aqueduct::Event;
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use crate::cli::Global;
use crate::failure::{Exit, Failure};
use crate::output::{Output, print};
use naive::Queue;
use reliable::{GROUP, Reliable};
use story::{DOWN, DOWN_FROM, DOWN_TO, KILLED, PUBLISHED, Story, Webhook, number, webhooks};
use verdict::{Verdict, table};

const EXAMPLES: &str = include_str!("../help/demo.txt");

/// Shows in 20 seconds what Aqueduct promises: 329 real webhook events, a service that is down for a while, a poison event, a
/// handler that panics, and a process that is killed in the middle.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Demo {
    /// Runs the same faults through a plain loop too, and compares.
    #[arg(long)]
    naive: bool,
    /// How long it takes.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(3..=3_600))]
    seconds: u64,
    /// Where its files go. A folder of its own among the temporary ones unless it is named.
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// The process of the handlers, which the demo starts by itself.
    #[arg(long, hide = true, value_name = "FILE")]
    worker: Option<PathBuf>,
    #[arg(long, hide = true, default_value_t = 0)]
    began: i64,
}

/// The two sides, as the demo drives them.
trait Scene {
    async fn publish(&mut self, webhook: &Webhook) -> aqueduct::Result<()>;
    /// Events that wait for another try.
    async fn waiting(&mut self) -> aqueduct::Result<usize>;
    /// The numbers of the events that are kept as dead letters.
    async fn dead(&mut self) -> aqueduct::Result<Vec<String>>;
    /// True if nothing is left to do, after so many were published and so many have taken effect.
    async fn is_through(&mut self, published: usize, handled: usize) -> aqueduct::Result<bool>;
}

impl Demo {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        let story = Story { began: self.began, lasts: Duration::from_secs(self.seconds) };
        if let Some(path) = &self.worker {
            return work(path, self.naive, story).await.map_err(|e| broken(&e));
        }
        let folder = self.folder()?;
        let all = webhooks().map_err(|e| broken(&e))?;
        let quiet = global.output == Some(Output::Json);
        let path = folder.join("demo.db");
        let scene = Reliable::new(&path).await.map_err(|e| broken(&e))?;
        let ours = Play::new(&self, &path, false, quiet).run(scene, &all).await.map_err(|e| broken(&e))?;
        let theirs = if self.naive {
            let path = folder.join("naive.db");
            let scene = Queue::open(&path).await.map_err(|e| broken(&e))?;
            Some(Play::new(&self, &path, true, quiet).run(scene, &all).await.map_err(|e| broken(&e))?)
        } else {
            None
        };
        report(&ours, theirs.as_ref(), &path, quiet)?;
        if ours.is_good() { Ok(()) } else { Err(Failure::new(Exit::Failed, "a promise was broken: please report it")) }
    }

    fn folder(&self) -> Result<PathBuf, Failure> {
        let folder = self
            .folder
            .clone()
            .unwrap_or_else(|| std::env::temp_dir().join(format!("aqueduct-demo-{}", std::process::id())));
        let used = |path: &Path| ["demo.db", "naive.db"].iter().any(|name| path.join(name).exists());
        if used(&folder) {
            let text = format!("{} has the files of an earlier demo", folder.display());
            return Err(Failure::new(Exit::Usage, text).fix("delete it, or name another with --folder"));
        }
        let failed = |e: std::io::Error| {
            let text = format!("the folder {} cannot be created", folder.display());
            Failure::new(Exit::Output, text).because(&e).fix("name another with --folder")
        };
        std::fs::create_dir_all(&folder).map_err(failed)?;
        Ok(folder)
    }
}

fn broken(error: &aqueduct::Error) -> Failure {
    Failure::new(Exit::Failed, format!("the demo cannot go on: {error}"))
}

/// Tells the process that shows the demo that an event has taken effect.
fn worked(event: &Event) {
    use std::io::Write;
    // Without a reader there is nobody to tell.
    let _ = writeln!(std::io::stdout(), "{}", number(event));
}

/// The process that handles events.
async fn work(path: &Path, naive: bool, story: Story) -> aqueduct::Result<()> {
    if naive {
        return naive::work(path, story).await;
    }
    let mut terminate = signal(SignalKind::terminate())?;
    reliable::work(path, story, async move { _ = terminate.recv().await }).await
}

/// One run of the story.
struct Play<'a> {
    demo: &'a Demo,
    path: &'a Path,
    naive: bool,
    bar: ProgressBar,
    quiet: bool,
}

/// The process of the handlers.
struct Worker {
    child: Child,
    told: Lines<BufReader<ChildStdout>>,
}

impl<'a> Play<'a> {
    fn new(demo: &'a Demo, path: &'a Path, naive: bool, quiet: bool) -> Self {
        let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        let style = ProgressStyle::with_template("  {bar:30} {pos} of {len} events {msg}");
        Self { demo, path, naive, bar: bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())), quiet }
    }

    /// Says what happens, and when.
    fn say(&self, story: &Story, text: &str) {
        if !self.quiet {
            let seconds = story.passed().as_secs_f64();
            self.bar.suspend(|| anstream::eprintln!("{seconds:>6.1} s  {text}"));
        }
    }

    fn start(&self, story: &Story) -> aqueduct::Result<Worker> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("demo").arg("--worker").arg(self.path).args(["--began", &story.began.to_string()]);
        command.args(["--seconds", &self.demo.seconds.to_string()]);
        if self.naive {
            command.arg("--naive");
        }
        // What it warns of is what is shown here anyway.
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true).spawn()?;
        let stdout = child.stdout.take().ok_or_else(|| aqueduct::Error::msg("the worker has no output"))?;
        Ok(Worker { child, told: BufReader::new(stdout).lines() })
    }

    async fn run(&self, mut scene: impl Scene, all: &[Webhook]) -> aqueduct::Result<Verdict> {
        let mut effects = effects::create(self.path).await?;
        if !self.quiet {
            let how = if self.naive { "A plain loop" } else { "Aqueduct" };
            anstream::eprintln!(
                "{how}: {} real webhook events of GitHub, handled in a process of their own\n",
                all.len()
            );
        }
        let story = Story::begin(Duration::from_secs(self.demo.seconds));
        let began = Instant::now();
        let mut worker = self.start(&story)?;
        self.bar.set_length(all.len() as u64);
        let mut published = 0;
        let mut turns = Turns::new(self, &story);
        let deadline = began + story.share(3.0) + Duration::from_secs(30);
        let tick = Duration::from_millis(100);
        let mut looked = began;
        loop {
            let next = if published < all.len() { began + publish_at(&story, published, all.len()) } else { deadline };
            tokio::select! {
                biased;
                told = worker.next() => {
                    told?;
                    if turns.kills() {
                        worker.child.kill().await?;
                        self.say(&story, "the process of the handlers is killed (kill -9), in the middle of its work");
                        tokio::time::sleep(story.share(0.03)).await;
                        worker = self.start(&story)?;
                        self.say(&story, "it is started again");
                    }
                }
                () = sleep_until(next), if published < all.len() => {
                    scene.publish(&all[published]).await?;
                    published += 1;
                }
                () = sleep_until(looked + tick) => {
                    looked = Instant::now();
                    turns.tell();
                    let done = effects::all(&mut effects).await?;
                    let handled = done.iter().collect::<std::collections::BTreeSet<_>>().len();
                    self.bar.set_position(handled as u64);
                    self.bar.set_message(format!("handled, {} wait for another try", scene.waiting().await?));
                    if published == all.len() && scene.is_through(published, handled).await? || looked > deadline {
                        break;
                    }
                }
            }
        }
        self.bar.finish_and_clear();
        worker.child.kill().await?;
        let done = effects::all(&mut effects).await?;
        self.say(&story, "nothing is left to do");
        Ok(Verdict::new(all, &done, &scene.dead().await?))
    }
}

impl Worker {
    /// Waits until an event has taken effect. A process that says no more is waited for by nobody.
    async fn next(&mut self) -> aqueduct::Result<()> {
        match self.told.next_line().await? {
            Some(_) => Ok(()),
            None => pending().await,
        }
    }
}

/// When an event is published: all in equal steps.
fn publish_at(story: &Story, number: usize, count: usize) -> Duration {
    let step = story.share(PUBLISHED) / u32::try_from(count.max(1)).unwrap_or(u32::MAX);
    step * u32::try_from(number).unwrap_or(u32::MAX)
}

/// What happens when, and what of it was told.
struct Turns<'a> {
    play: &'a Play<'a>,
    story: &'a Story,
    told: usize,
    killed: bool,
}

impl<'a> Turns<'a> {
    fn new(play: &'a Play<'a>, story: &'a Story) -> Self {
        Self { play, story, told: 0, killed: false }
    }

    /// True if the process is to be killed now, just after an event has taken effect.
    fn kills(&mut self) -> bool {
        let now = !self.killed && self.story.passed() > self.story.share(KILLED);
        self.killed |= now;
        now
    }

    fn tell(&mut self) {
        let down = format!("the service behind {DOWN} goes down: its events fail from now on");
        let up = format!("the service behind {DOWN} is back");
        let turns = [(DOWN_FROM, down), (DOWN_TO, up), (PUBLISHED, "all events are published".to_owned())];
        for (at, text) in turns.into_iter().skip(self.told) {
            if self.story.passed() < self.story.share(at) {
                return;
            }
            self.play.say(self.story, &text);
            self.told += 1;
        }
    }
}

/// The table, and how to look further.
fn report(ours: &Verdict, theirs: Option<&Verdict>, path: &Path, json: bool) -> Result<(), Failure> {
    if json {
        let line = serde_json::json!({ "aqueduct": ours, "plain_loop": theirs, "file": path });
        return print(&format!("{line}\n"));
    }
    let mut columns = vec![("Aqueduct", ours)];
    columns.extend(theirs.map(|theirs| ("plain loop", theirs)));
    let file = path.display();
    print(&format!(
        "\n{}
The dead letter is the poison event: somebody can look at it and mend it. Look further:

  aqueduct --broker sqlite:{file} dead-letters list --group {GROUP}
  aqueduct --broker sqlite:{file} status
  aqueduct --broker sqlite:{file} consume webhooks --group me --exit-when-idle 1s
",
        table(&columns)
    ))
}
