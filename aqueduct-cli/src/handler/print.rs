//! `--print`: events as lines on standard output. An event is done when its line has been written.

use std::io::{self, Write};

use aqueduct::{BoxFuture, Error, Event, Result};
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::{Delivery, Handle};

/// Lines that are written at once.
const LINES_MAX: usize = 1_024;

type Line = (Bytes, oneshot::Sender<()>);

pub(crate) struct Print {
    lines: mpsc::Sender<Line>,
}

impl Print {
    /// Begins to write; the second part answers when writing has become impossible.
    pub(crate) fn new() -> (Self, oneshot::Receiver<io::Error>) {
        let (lines, queue) = mpsc::channel(LINES_MAX);
        let (fail, failed) = oneshot::channel();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = write(queue) {
                let _ = fail.send(error);
            }
        });
        (Self { lines }, failed)
    }
}

/// Writes all lines that wait with one call, and then says so to each.
fn write(mut queue: mpsc::Receiver<Line>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let (mut lines, mut text) = (Vec::new(), Vec::new());
    while queue.blocking_recv_many(&mut lines, LINES_MAX) > 0 {
        text.clear();
        for (line, _) in &lines {
            text.extend_from_slice(line);
            text.push(b'\n');
        }
        out.write_all(&text)?;
        out.flush()?;
        for (_, written) in lines.drain(..) {
            let _ = written.send(());
        }
    }
    Ok(())
}

impl Handle for Print {
    fn handle(&self, delivery: Delivery) -> BoxFuture<'_, Result<Vec<Event>>> {
        Box::pin(async move {
            let (written, wait) = oneshot::channel();
            let sent = self.lines.send((delivery.json()?, written)).await;
            if sent.is_err() || wait.await.is_err() {
                return Err(Error::msg("standard output cannot be written").uncounted());
            }
            Ok(Vec::new())
        })
    }
}
