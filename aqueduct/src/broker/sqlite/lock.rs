//! stand-in until the lock is merged
use crate::clock::Timestamp;
use std::fs::File;
use std::io;
use std::path::Path;
pub(crate) struct ConsumerLock(#[expect(dead_code)] File);
#[derive(Debug)]
pub(crate) struct Held(String);
impl std::fmt::Display for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl Held {
    pub(crate) fn end_overdue(&self, _: Timestamp) -> Vec<String> {
        Vec::new()
    }
}
impl ConsumerLock {
    pub(crate) fn try_take(database: &Path, consumer: &str) -> io::Result<Result<Self, Held>> {
        let mut p = database.as_os_str().to_owned();
        p.push(format!(".{consumer}.lock"));
        let f = File::options().create(true).truncate(false).write(true).open(p)?;
        match f.try_lock() {
            Ok(()) => Ok(Ok(Self(f))),
            Err(_) => Ok(Err(Held("held".into()))),
        }
    }
}
