//! Lines of an input, as slices of what was read: nothing is copied but what stands across two reads.

use std::io::{self, Read};

use bytes::{Bytes, BytesMut};

/// What is read at once.
const READ: usize = 1 << 18;

/// The longest line that is read; the broker takes less by far.
const LINE_MAX: usize = 64 << 20;

/// A line without its end, and its number from 1.
pub(crate) struct Line {
    pub(crate) number: u64,
    pub(crate) text: Bytes,
}

/// Reads lines. Blocks, so it runs on a thread where that is allowed.
pub(crate) struct Lines<R> {
    input: R,
    buffer: BytesMut,
    /// Up to here there is no end of a line in the buffer.
    searched: usize,
    number: u64,
    ended: bool,
}

impl<R: Read> Lines<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, buffer: BytesMut::new(), searched: 0, number: 0, ended: false }
    }

    /// The next line that is not blank; none at the end.
    pub(crate) fn next(&mut self) -> io::Result<Option<Line>> {
        loop {
            let text = match memchr::memchr(b'\n', &self.buffer[self.searched..]) {
                Some(at) => {
                    let line = self.buffer.split_to(self.searched + at + 1).freeze();
                    line.slice(..line.len() - 1)
                }
                None if self.ended && self.buffer.is_empty() => return Ok(None),
                None if self.ended => self.buffer.split().freeze(),
                None => {
                    self.searched = self.buffer.len();
                    self.read()?;
                    continue;
                }
            };
            self.searched = 0;
            self.number += 1;
            let text = if self.number == 1 { without_mark(text) } else { text };
            if !text.trim_ascii().is_empty() {
                return Ok(Some(Line { number: self.number, text }));
            }
        }
    }

    /// True if the next line is here, so that asking for it does not wait for the input.
    pub(crate) fn has_line(&self) -> bool {
        memchr::memchr(b'\n', &self.buffer).is_some()
    }

    fn read(&mut self) -> io::Result<()> {
        if self.buffer.len() > LINE_MAX {
            return Err(io::Error::other(format!("line {} is longer than 64 MiB", self.number + 1)));
        }
        let filled = self.buffer.len();
        self.buffer.resize(filled + READ, 0);
        let read = loop {
            match self.input.read(&mut self.buffer[filled..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        self.buffer.truncate(filled + read.as_ref().copied().unwrap_or(0));
        self.ended = read? == 0;
        Ok(())
    }
}

/// Without the byte order mark that some programs begin a file with.
fn without_mark(text: Bytes) -> Bytes {
    if text.starts_with(b"\xef\xbb\xbf") { text.slice(3..) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a few bytes at a time.
    struct Slowly<'a>(&'a [u8]);

    impl Read for Slowly<'_> {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            let len = self.0.len().min(3);
            self.0.read(&mut to[..len])
        }
    }

    #[test]
    fn lines_are_numbered_from_one_and_blank_ones_are_passed_over() {
        let text = "\u{feff}one\r\n\n  \ntwo, which is longer\nlast";
        for read in [&mut Slowly(text.as_bytes()) as &mut dyn Read, &mut text.as_bytes()] {
            let mut lines = Lines::new(read);
            let mut found = Vec::new();
            while let Some(line) = lines.next().unwrap() {
                found.push((line.number, String::from_utf8(line.text.trim_ascii().to_vec()).unwrap()));
            }
            let expected = [(1, "one"), (4, "two, which is longer"), (5, "last")];
            assert_eq!(found, expected.map(|(n, text)| (n, text.to_owned())));
        }
    }
}
