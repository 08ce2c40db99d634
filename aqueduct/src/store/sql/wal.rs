//! SQLite's write-ahead log: whether it is whole, before SQLite takes from it what it can and drops the rest.
//!
//! Every frame's checksum goes on from the one before. SQLite ends reading at the first that is wrong, as it must: a power
//! failure leaves such frames behind. But that can only be in the last transaction, since each is on the disk before the
//! next begins. A transaction behind a wrong frame says that one which was confirmed is damaged.
//!
//! The format: <https://sqlite.org/fileformat2.html#walformat>.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::error::StoreError;

const HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;
const MAGIC: u32 = 0x377f_0682;

/// Another process may be writing: what is found must be found again.
const LOOKS: usize = 8;

pub(super) fn path(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push("-wal");
    path.into()
}

/// Refuses a file whose write-ahead log is damaged before its end.
pub(super) fn check(database: &Path) -> Result<(), StoreError> {
    let path = path(database);
    let mut before = None;
    for _ in 0..LOOKS {
        // What cannot be read here SQLite cannot read either, and says why.
        let Ok(found @ Some(at)) = scan(&path) else { return Ok(()) };
        if before == found {
            return Err(StoreError::Refused(format!(
                "{} is damaged at byte {at}, and commits behind that would be lost: stop what uses the file, keep a copy, and restore a backup; `sqlite3 FILE 'pragma wal_checkpoint(truncate)'` goes on without them",
                path.display()
            )));
        }
        before = found;
    }
    Ok(())
}

/// Where the log is damaged, if it is.
fn scan(path: &Path) -> io::Result<Option<u64>> {
    let file = File::open(path)?;
    let frames_bytes = file.metadata()?.len().saturating_sub(HEADER_BYTES as u64);
    let mut file = BufReader::with_capacity(1 << 16, file);
    let mut header = [0; HEADER_BYTES];
    if frames_bytes == 0 || file.read_exact(&mut header).is_err() {
        return Ok(None);
    }
    let magic = word(&header, 0);
    let sums = Sums { big: magic & 1 == 1 };
    let page_bytes = word(&header, 8) as usize;
    let sum = sums.over((0, 0), &header[..24]);
    if magic & !1 != MAGIC || sum != pair(&header, 24) || !(512..=65_536).contains(&page_bytes) {
        return Ok(Some(0));
    }
    let salts = pair(&header, 16);
    let (mut frame, mut at) = (vec![0; FRAME_HEADER_BYTES + page_bytes], HEADER_BYTES as u64);
    let (mut chain, mut broken) = (sum, None);
    // Of the frame before: whether it ends a transaction of this log, and the sums from which the next may go on.
    let (mut ends, mut from) = (false, [sum; 2]);
    while file.read_exact(&mut frame).is_ok() {
        let ours = pair(&frame, 8) == salts;
        let (stored, sum_from) = (pair(&frame, 16), |from| sums.over(sums.over(from, &frame[..8]), &frame[24..]));
        let whole = |from| ours && sum_from(from) == stored;
        match broken {
            None if whole(chain) => chain = stored,
            None => {
                broken = Some(at);
                from = [stored, sum_from(chain)];
                ends = word(&frame, 4) != 0;
            }
            Some(damage) if ends && from.into_iter().any(whole) => return Ok(Some(damage)),
            Some(_) => {
                from = [stored; 2];
                ends = ours && word(&frame, 4) != 0;
            }
        }
        at += frame.len() as u64;
    }
    Ok(None)
}

/// SQLite's checksum, over words in one of two orders.
#[derive(Clone, Copy)]
struct Sums {
    big: bool,
}

impl Sums {
    fn over(self, (mut a, mut b): (u32, u32), bytes: &[u8]) -> (u32, u32) {
        for two in bytes.chunks_exact(8) {
            let [x, y] = [0, 4].map(|at| if self.big { word(two, at) } else { word(two, at).swap_bytes() });
            a = a.wrapping_add(x).wrapping_add(b);
            b = b.wrapping_add(y).wrapping_add(a);
        }
        (a, b)
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_be_bytes(word)
}

fn pair(bytes: &[u8], at: usize) -> (u32, u32) {
    (word(bytes, at), word(bytes, at + 4))
}
