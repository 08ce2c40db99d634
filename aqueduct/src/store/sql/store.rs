//! stand-in
use super::sqlite::SqliteFile;
use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::outcome::BoxFuture;
use crate::store::memory::MemoryStore;
use crate::store::*;
use crate::topic::*;
#[derive(Clone)]
pub struct SqliteStore(SqliteFile, MemoryStore);
impl SqliteStore {
    pub fn new(f: &SqliteFile) -> Self {
        Self(f.clone(), MemoryStore::new())
    }
    pub(crate) fn file(&self) -> &SqliteFile {
        &self.0
    }
}
impl Store for SqliteStore {
    fn abilities(&self) -> StoreAbilities {
        StoreAbilities::new(true)
    }
    fn take_over<'a>(&'a self, c: &'a Claim, f: Option<Position>) -> BoxFuture<'a, Result<TakeOver, StoreError>> {
        self.1.take_over(c, f)
    }
    fn apply<'a>(&'a self, c: &'a Claim, o: &'a [Op]) -> BoxFuture<'a, Result<Vec<Applied>, StoreError>> {
        self.1.apply(c, o)
    }
    fn bury<'a>(&'a self, c: &'a Text, p: &'a Partition, r: &'a [Row]) -> BoxFuture<'a, Result<(), StoreError>> {
        self.1.bury(c, p, r)
    }
    fn due<'a>(&'a self, c: &'a Claim, n: Timestamp, l: usize) -> BoxFuture<'a, Result<Due, StoreError>> {
        self.1.due(c, n, l)
    }
    fn browse<'a>(&'a self, q: &'a Query) -> BoxFuture<'a, Result<Vec<Listed>, StoreError>> {
        self.1.browse(q)
    }
    fn command<'a>(&'a self, c: &'a Command) -> BoxFuture<'a, Result<CommandId, StoreError>> {
        self.1.command(c)
    }
    fn command_result(&self, i: CommandId) -> BoxFuture<'_, Result<Option<CommandState>, StoreError>> {
        self.1.command_result(i)
    }
}
