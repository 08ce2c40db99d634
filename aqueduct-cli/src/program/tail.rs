//! The last words of a program: what it wrote to standard error is passed on, and its end becomes the error.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt};

/// What is kept.
const BYTES: usize = 2_048;

/// The end of what was written so far.
#[derive(Clone, Default)]
pub(crate) struct Tail(Arc<Mutex<Vec<u8>>>);

impl Tail {
    /// Reads until the end, passes it on, and keeps the last of it.
    pub(crate) async fn follow(self, mut from: impl AsyncRead + Unpin) {
        let mut buffer = vec![0; 4_096];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            let text = &buffer[..read];
            // Standard error may be closed; the program must not suffer for it.
            let _ = std::io::stderr().write_all(text);
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend_from_slice(text);
            let over = kept.len().saturating_sub(BYTES);
            kept.drain(..over);
        }
    }

    /// What it says, on one line; empty if nothing.
    pub(crate) fn text(&self) -> String {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&kept);
        text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" | ")
    }
}
