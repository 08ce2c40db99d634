//! `--exec`: a program for each event, which has the event on its standard input and says by its exit code what became of
//! it.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use aqueduct::{BoxFuture, Error, Event, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin};

use super::{Delivery, Handle, Limits, Records};
use crate::program::{CommandLine, Group, Groups, Tail};

/// The exit code that says that trying again cannot help (`EX_DATAERR`).
const PERMANENT: i32 = 65;

/// The largest answer that is taken.
const ANSWER_MAX: usize = 16 << 20;

/// How long what a program wrote is waited for after its end, where something it started in a group of its own still
/// holds its outputs.
const LINGER: Duration = Duration::from_millis(500);

pub(crate) struct Exec {
    pub(crate) command: CommandLine,
    pub(crate) limits: Limits,
    pub(crate) records: Records,
    pub(crate) groups: Groups,
    /// Its standard output is an answer, and not passed on.
    pub(crate) answers: bool,
}

impl Handle for Exec {
    fn handle(&self, delivery: Delivery) -> BoxFuture<'_, Result<Vec<Event>>> {
        Box::pin(async move {
            self.groups.quiet().await;
            let tail = Tail::default();
            let mut child = self.start(&delivery)?;
            let ends = (child.stdin.take(), child.stdout.take(), child.stderr.take());
            let children = self.records.children();
            let mut group = self.groups.adopt(child, children.as_ref(), self.limits.timeout).await?;
            let mut answer = Vec::new();
            let text = delivery.json()?;
            let io = async {
                let (stdin, stdout, stderr) = ends;
                let followed = async {
                    if let Some(stderr) = stderr {
                        tail.clone().follow(stderr).await;
                    }
                };
                tokio::join!(feed(stdin, &text), collect(stdout, &mut answer), followed);
            };
            let ended = tokio::time::timeout(self.limits.timeout, until_end(&mut group, io)).await;
            if let Ok(status) = ended {
                return self.outcome(&delivery, status, &answer, &tail);
            }
            group.end().await;
            let limit = humantime::format_duration(self.limits.timeout);
            Err(Error::msg(with_tail(format!("it had not ended after {limit} and was ended"), &tail)))
        })
    }

    fn end(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.groups.none())
    }
}

impl Exec {
    fn start(&self, delivery: &Delivery) -> Result<Child> {
        let mut command = self.command.command();
        command.envs(delivery.variables());
        command.stdout(if self.answers { Stdio::piped() } else { Stdio::inherit() });
        // No event is at fault: the program is gone, or the system has no room for one more.
        command.spawn().map_err(|e| not_started(self.command.program(), &e))
    }

    fn outcome(
        &self,
        delivery: &Delivery,
        status: io::Result<ExitStatus>,
        answer: &[u8],
        tail: &Tail,
    ) -> Result<Vec<Event>> {
        let status = status?;
        let failed = || Error::msg(with_tail(said(status), tail));
        match status.code() {
            Some(0) if answer.len() > ANSWER_MAX => Err(Error::msg("it answered with more than 16 MiB")),
            Some(0) if self.answers => delivery.results(answer),
            Some(0) => Ok(Vec::new()),
            Some(PERMANENT) => Err(failed().permanent()),
            _ => Err(failed()),
        }
    }
}

/// The program could not be started, which is no event's fault: it is told, and tried again.
pub(crate) fn not_started(program: &str, error: &io::Error) -> Error {
    tracing::warn!(program, %error, "the program cannot be started; it is tried again and no attempt is spent");
    Error::msg(format!("`{program}` cannot be started: {error}")).uncounted()
}

/// How a program ended, in words.
pub(crate) fn said(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("exit code {code}"),
        None => status.to_string(),
    }
}

pub(crate) fn with_tail(text: String, tail: &Tail) -> String {
    let words = tail.text();
    if words.is_empty() { text } else { format!("{text}: {words}") }
}

/// Waits until the program has ended, and for what it wrote until then.
async fn until_end(group: &mut Group, io: impl Future<Output = ()>) -> io::Result<ExitStatus> {
    let (mut io, mut written) = (std::pin::pin!(io), false);
    let status = {
        let mut end = std::pin::pin!(group.wait());
        loop {
            tokio::select! {
                biased;
                () = &mut io, if !written => written = true,
                status = &mut end => break status,
            }
        }
    };
    if !written {
        let _ = tokio::time::timeout(LINGER, io).await;
    }
    status
}

/// Writes the event. A program that does not read it, or not all, may do so.
async fn feed(stdin: Option<ChildStdin>, text: &[u8]) {
    if let Some(mut stdin) = stdin
        && stdin.write_all(text).await.is_ok()
    {
        let _ = stdin.write_all(b"\n").await;
    }
}

/// Reads everything, and keeps a little more than is allowed of it.
async fn collect(stdout: Option<impl AsyncRead + Unpin>, answer: &mut Vec<u8>) {
    let Some(mut stdout) = stdout else { return };
    let mut buffer = vec![0; 8_192];
    while let Ok(read @ 1..) = stdout.read(&mut buffer).await {
        if answer.len() <= ANSWER_MAX {
            answer.extend_from_slice(&buffer[..read]);
        }
    }
}
