//! What is printed beside events: the form of the output, notices, progress, and the library's log.

use std::io::{self, Write};
use std::time::Duration;

use anstyle::AnsiColor;
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::failure::{Failure, unwritable};

/// For people or for programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Output {
    /// Words and tables.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

/// Writes to standard output. False if nobody reads any more, which is no failure.
pub(crate) fn write(text: &str) -> Result<bool, Failure> {
    let mut out = anstream::stdout().lock();
    delivered(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// The same, for whom it does not matter.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    write(text).map(drop)
}

/// What came of writing to standard output: false if nobody reads any more.
pub(crate) fn delivered(written: io::Result<()>) -> Result<bool, Failure> {
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(unwritable(&error)),
    }
}

/// Says something to a person, on standard error.
pub(crate) fn note(text: impl std::fmt::Display) {
    let style = AnsiColor::Yellow.on_default();
    anstream::eprintln!("{style}note:{style:#} {text}");
}

/// Prints the library's log on standard error: warnings, and with each `-v` more.
pub(crate) fn listen(verbose: u8) {
    let level = [LevelFilter::WARN, LevelFilter::INFO, LevelFilter::DEBUG, LevelFilter::TRACE];
    let targets = Targets::new().with_default(level[usize::from(verbose).min(3)]);
    // Who has the group is told once, as a note; the library would say it with every try.
    let quiet = verbose == 0;
    let targets = if quiet { targets.with_target("aqueduct::engine::serve", LevelFilter::ERROR) } else { targets };
    let colour = anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colour).with_target(!quiet);
    tracing_subscriber::registry().with(targets).with(lines).init();
}

/// A bar over so many bytes, or a count where their number is not known. Nothing where there is no terminal.
pub(crate) fn progress(bytes: Option<u64>) -> ProgressBar {
    let form = match bytes {
        Some(_) => "{bar:30} {bytes}/{total_bytes}, {msg}, {eta} left",
        None => "{spinner} {bytes}, {msg}",
    };
    let bar = ProgressBar::with_draw_target(bytes, ProgressDrawTarget::stderr_with_hz(10));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar.with_style(ProgressStyle::with_template(form).unwrap_or_else(|_| ProgressStyle::default_bar()))
}
