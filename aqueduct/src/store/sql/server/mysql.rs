//! What MySQL and MariaDB do differently.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sqlx::error::DatabaseError;
use sqlx::mysql::{MySql, MySqlArguments, MySqlConnection, MySqlDatabaseError, MySqlRow, MySqlTransactionManager};
use sqlx::{AssertSqlSafe, Row, TypeInfo, ValueRef};

use super::errors::Meaning;
use super::outbox::Written;
use super::tx::{Begin, Ended};
use super::{Calls, OptionsOf, Server, ServerDatabase, ServerOptions, Statement};
use crate::error::StoreError;
use crate::outcome::BoxFuture;
use crate::store::sql::dialect::{Kind, SqlRow, Value};
use crate::store::sql::store::SqlStore;
use crate::topic::{Epoch, Text};

/// A MySQL (8.0.16 or later) or MariaDB (10.5 or later) database.
pub type MySqlDatabase = ServerDatabase<MySql>;

/// How a MySQL or MariaDB database is opened.
pub type MySqlOptions = ServerOptions<MySql>;

/// A store in a MySQL or MariaDB database.
///
/// ```no_run
/// # async fn f() -> Result<(), aqueduct::StoreError> {
/// use aqueduct::mysql::MySqlStore;
/// let store = MySqlStore::connect("mysql://shop:secret@localhost/shop").await?;
/// # Ok(()) }
/// ```
pub type MySqlStore = SqlStore<MySqlDatabase>;

/// Ends a statement whose answer is the id of the row that it inserted.
const ANSWERS_ID: &str = " /* id */";

/// Left to itself the database may look at the whole of a small table, and wait there for the rows of transactions that are
/// open: one that does nothing would stop the relay.
const DELETE_PUBLISHED: &str = "delete from aq_outbox where shard = ? and id ";
const DELETE_BY_ID: &str = "delete o from aq_outbox o force index (primary) where o.shard = ? and o.id ";

impl Server for MySql {}

impl Calls for MySql {
    type Manager = MySqlTransactionManager;

    const URL: &'static str = "mysql://user:password@host:3306/database";

    const MIGRATIONS: [&'static str; 2] =
        [include_str!("../../../../migrations/mysql/0001.sql"), include_str!("../../../../migrations/mysql/0002.sql")];

    // A process that is stopped inside holds what others wait for, such as its session, no longer than a lease lasts; MySQL
    // itself has no such limit.
    const BEGIN: &'static str = "set @aq_own = 1 /*M!100300 , session idle_transaction_timeout = 4 */; \
         set transaction isolation level read committed; start transaction";
    // Of the connection, since each `create table` commits.
    const LOCK: &'static str = "select get_lock('aq_migrate', 60)";

    fn behind_pooler(options: OptionsOf<Self>) -> OptionsOf<Self> {
        options.statement_cache_capacity(0)
    }

    fn address(options: &OptionsOf<Self>) -> String {
        let database = options.get_database().unwrap_or("");
        format!("MySQL at {}:{}/{database}", options.get_host(), options.get_port())
    }

    fn translate(statement: &str) -> String {
        if statement.trim_start().starts_with("update aq_lanes set mark = (select max(position) from (") {
            return FORGET_MARKS.to_owned();
        }
        let statement =
            quoted(statement).replace("/*lock*/", "lock in share mode").replace(" returning id", ANSWERS_ID);
        upsert(&statement.replace(DELETE_PUBLISHED, DELETE_BY_ID))
    }

    fn execute<'a>(
        connection: &'a mut MySqlConnection,
        statement: &'a Statement,
        args: Vec<Value>,
    ) -> BoxFuture<'a, Result<u64, sqlx::Error>> {
        Box::pin(async move {
            let done = match plain(statement, &args) {
                Some(sql) => sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await?,
                None => query(statement, args).execute(connection).await?,
            };
            Ok(done.rows_affected())
        })
    }

    fn fetch<'a>(
        connection: &'a mut MySqlConnection,
        statement: &'a Statement,
        args: Vec<Value>,
    ) -> BoxFuture<'a, Result<Vec<SqlRow>, sqlx::Error>> {
        Box::pin(async move {
            if statement.sql.ends_with(ANSWERS_ID) {
                let done = query(statement, args).execute(connection).await?;
                return Ok(vec![SqlRow(vec![Value::Int(done.last_insert_id().cast_signed())])]);
            }
            let rows = match plain(statement, &args) {
                Some(sql) => sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(connection).await?,
                None => query(statement, args).fetch_all(connection).await?,
            };
            rows.iter().map(sql_row).collect()
        })
    }

    /// One by one, and what is there already is left: each of them commits, so one that failed in between is gone on from.
    fn run(connection: &mut MySqlConnection, sql: String) -> BoxFuture<'_, Result<(), sqlx::Error>> {
        Box::pin(async move {
            let sql: Vec<&str> = sql.lines().filter(|line| !line.starts_with("--")).collect();
            for statement in sql.join("\n").split(';').map(str::trim).filter(|part| !part.is_empty()) {
                let done = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut *connection).await;
                match done {
                    Err(sqlx::Error::Database(error)) if THERE_ALREADY.contains(&number(&*error)) => {}
                    done => {
                        done?;
                    }
                }
            }
            Ok(())
        })
    }

    const LACKS_STORE: &'static str = "`Tx<MySql>` needs a store in a MySQL or MariaDB database: give the consumer one with `.store(MySqlStore::connect(url).await?)`, or beside another store with `.transactions(..)`";

    const INBOX: &'static str =
        "insert into aq_inbox (consumer, source, id, topic, number, position, at) values (?, ?, ?, ?, ?, ?, ?)";

    /// The effects are found without a lock, and deleted by their keys: a handler that has written into the inbox is not
    /// waited for.
    const SWEEP: &'static str = "delete i from (
        select i.consumer, i.source, i.id from aq_inbox i
        join aq_shards s on s.consumer = i.consumer and s.topic = i.topic and s.number = i.number
        join aq_settled f on f.shard = s.id
        where i.at < ? and i.position <= f.floor
        and not exists (select 1 from aq_rows r where r.source = i.source and r.event_id = i.id) order by i.at limit 1000
        ) old join aq_inbox i on i.consumer = old.consumer and i.source = old.source and i.id = old.id";

    /// From the statistics. The name may have a database before a dot.
    const INBOX_ABOUT: &'static str = "select cast(max(table_rows) as signed) from information_schema.tables
        where concat(table_schema, '.', table_name) in ('aq_inbox', concat(database(), '.aq_inbox'))";

    /// True if the fence is that of the epoch. Each is looked up by itself: from a list the database might look at all of them,
    /// and wait for those of others.
    const FENCE: &'static str = "(select count(*) from aq_shards where id = ? and epoch = ? /*lock*/) = 1";

    fn begin_attempt(Begin { isolation, reads, limits, .. }: Begin) -> String {
        let isolation = isolation.sql();
        let begin = if reads {
            // The session has that of handlers that write, if its limits suit.
            format!("set transaction isolation level {isolation}; start transaction read only")
        } else {
            format!("start transaction; savepoint {IS_OPEN}")
        };
        let Some(limits) = limits else { return begin };
        let seconds = |limit: Duration| limit.as_secs().max(1);
        let (idle, lock, statement) = (seconds(limits.whole), seconds(limits.lock), limits.whole.as_millis().max(1));
        // The first comment is read by MariaDB alone, the second by MySQL alone.
        format!(
            "set session innodb_lock_wait_timeout = {lock} \
             /*M!100300 , idle_transaction_timeout = {idle}, max_statement_time = {statement}e-3 */ \
             /*!50799 , wait_timeout = {idle}, max_execution_time = {statement} */; \
             set session transaction isolation level {isolation}; {begin}"
        )
    }

    fn check(inbox: &[Value]) -> Result<(), StoreError> {
        for (value, most) in inbox.iter().zip(INBOX_BYTES) {
            if let Value::Text(text) = value
                && text.as_str().len() > most
            {
                let text = format!(
                    "consumer, source, id and topic of an event have at most {INBOX_BYTES:?} bytes in MySQL: one has {}",
                    text.as_str().len()
                );
                return Err(StoreError::Refused(text));
            }
        }
        Ok(())
    }

    fn in_text(insert: &Statement, args: Vec<Value>) -> Option<String> {
        Some(with_lists(&insert.sql, &args, true))
    }

    /// What is released is gone if the transaction is not the one that was begun. The look at the fences fails, by a subquery
    /// with too many rows, if one is not that of its epoch. Their arguments are put in as numbers, since the commit goes with
    /// them in one message.
    fn end<'a>(
        connection: &'a mut MySqlConnection,
        fence: &'a Statement,
        fences: &'a [(i64, Epoch)],
    ) -> BoxFuture<'a, Result<Ended, sqlx::Error>> {
        Box::pin(async move {
            let is_ours = |(shard, epoch): &(i64, Epoch)| {
                let fence = fence.sql.replacen('?', &shard.to_string(), 1).replacen('?', &epoch.0.to_string(), 1);
                format!(" and {fence}")
            };
            let ours: String = fences.iter().map(is_ours).collect();
            let sql = format!(
                "release savepoint {IS_OPEN}; select if(1 = 1{ours}, 1, (select 1 union all select 2)); commit"
            );
            let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection).await;
            match done {
                Err(sqlx::Error::Database(error)) if number(&*error) == TOO_MANY_ROWS => Ok(Ended::Replaced),
                Err(sqlx::Error::Database(error)) if number(&*error) == NO_SAVEPOINT => Ok(Ended::Gone),
                Err(error) => Err(error),
                Ok(_) => Ok(Ended::Committed),
            }
        })
    }

    fn send(connection: &mut MySqlConnection, sql: String) -> BoxFuture<'_, Result<u64, sqlx::Error>> {
        Box::pin(async move { Ok(sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await?.rows_affected()) })
    }

    /// A lock is a row that is written; the migration has made so many.
    fn lock_keys<'a>(
        connection: &'a mut MySqlConnection,
        prefix: &'a str,
        keys: Vec<i64>,
        kept: bool,
    ) -> BoxFuture<'a, Result<(), sqlx::Error>> {
        const LOCKS: i64 = 16_384;
        Box::pin(async move {
            let sql = format!("insert into {prefix}locks (slot) values (?) on duplicate key update slot = slot");
            let mut slots: Vec<i64> = keys.into_iter().map(|key| key.rem_euclid(LOCKS)).collect();
            slots.sort_unstable();
            slots.dedup();
            for slot in slots {
                sqlx::query(AssertSqlSafe(sql.clone())).persistent(kept).bind(slot).execute(&mut *connection).await?;
            }
            Ok(())
        })
    }

    fn insert_events<'a>(
        connection: &'a mut MySqlConnection,
        prefix: &'a str,
        rows: Vec<Written>,
        kept: bool,
    ) -> BoxFuture<'a, Result<(), sqlx::Error>> {
        Box::pin(async move {
            const COLUMNS: &str = "(topic, `key`, event_id, type, source, content)";
            if let ([(topic, key, id, kind, source, content)], true) = (&rows[..], kept) {
                let bytes = |text: &Text| text.as_str().as_bytes().to_vec();
                let sql = format!("insert into {prefix}outbox {COLUMNS} values (?, ?, ?, ?, ?, ?)");
                let query = sqlx::query(AssertSqlSafe(sql)).bind(bytes(topic)).bind(key.as_ref().map(bytes));
                let query = query.bind(bytes(id)).bind(bytes(kind)).bind(bytes(source)).bind(&content[..]);
                return query.execute(connection).await.map(drop);
            }
            let mut rows = rows.iter().peekable();
            while rows.peek().is_some() {
                let mut sql = format!("insert into {prefix}outbox {COLUMNS} values ");
                let begin = sql.len();
                while let Some((topic, key, id, kind, source, content)) = rows.next_if(|_| sql.len() < TEXT_MAX) {
                    sql.push_str(if sql.len() == begin { "(" } else { ", (" });
                    for text in [Some(topic), key.as_ref(), Some(id), Some(kind), Some(source)] {
                        push_hex(&mut sql, text.map(|text| text.as_str().as_bytes()));
                        sql.push_str(", ");
                    }
                    push_hex(&mut sql, Some(content));
                    sql.push(')');
                }
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection).await?;
            }
            Ok(())
        })
    }

    const READ_ONLY: Meaning = Meaning::Passes("the database is read-only, a replica perhaps: connect to the primary");

    fn meaning(error: &dyn DatabaseError) -> Option<Meaning> {
        meaning(number(error))
    }
}

/// No event is added to a statement that has so many bytes.
const TEXT_MAX: usize = 512 << 10;

/// A subquery has more than one row.
const TOO_MANY_ROWS: u16 = 1242;

const NO_SAVEPOINT: u16 = 1305;

/// A savepoint that is there for as long as the transaction is; handlers that share one have it too.
const IS_OPEN: &str = "aq_handler";

/// How long the texts of a row of the inbox may be. A server that is not strict cuts what is longer, and takes one event for
/// another.
const INBOX_BYTES: [usize; 4] = [255, 1_000, 1_000, 255];

/// A table, an index.
const THERE_ALREADY: [u16; 2] = [1050, 1061];

/// As the store's, without a table inside that looks out of itself, which MariaDB does not have.
const FORGET_MARKS: &str = "update aq_lanes set mark = nullif(greatest(
        coalesce((select max(r.position) from aq_rows r
            where r.shard = aq_lanes.shard and r.lane = aq_lanes.lane and r.state = 1), -1),
        coalesce((select max(r.position) from aq_rows r
            where r.shard = aq_lanes.shard and r.lane = aq_lanes.lane and r.state = 2), -1),
        coalesce((select max(r.position) from aq_rows r
            where r.shard = aq_lanes.shard and r.lane = aq_lanes.lane and r.state = 3 and r.position > ?), -1)), -1)
    where shard = ? and lane in (select lane from aq_rows where shard = ? and position <= ? and state = 3)";

/// Quotes the column `key`, which is a word of the language here.
fn quoted(statement: &str) -> String {
    let mut sql = String::with_capacity(statement.len() + 8);
    let mut rest = statement;
    while let Some(at) = rest.find("key") {
        let end = at + "key".len();
        let inside = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
        let word = !inside(rest[..at].chars().next_back()) && !inside(rest[end..].chars().next());
        sql.push_str(&rest[..at]);
        sql.push_str(if word { "`key`" } else { "key" });
        rest = &rest[end..];
    }
    sql.push_str(rest);
    sql
}

/// `on conflict (a, ..) do nothing` and `do update set x = excluded.x`, as MySQL says it.
fn upsert(statement: &str) -> String {
    let Some((insert, conflict)) = statement.split_once("on conflict") else { return statement.to_owned() };
    let table = insert.split_whitespace().nth(2).unwrap_or_default();
    let Some((columns, action)) = conflict.split_once(')') else { return statement.to_owned() };
    let first = columns.trim_start_matches([' ', '(']).split(',').next().unwrap_or_default();
    let action = action.trim_start();
    let (update, rest) = match action.strip_prefix("do update set") {
        Some(set) => (values(set), ""),
        None => (format!(" {table}.{first} = {table}.{first}"), action.strip_prefix("do nothing").unwrap_or_default()),
    };
    format!("{insert}on duplicate key update{update}{rest}")
}

/// `excluded.x` is `values(x)`.
fn values(set: &str) -> String {
    let mut parts = set.split("excluded.");
    let mut sql = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(part.len());
        sql.push_str("values(");
        sql.push_str(&part[..end]);
        sql.push(')');
        sql.push_str(&part[end..]);
    }
    sql
}

fn number(error: &dyn DatabaseError) -> u16 {
    error.try_downcast_ref::<MySqlDatabaseError>().map_or(0, MySqlDatabaseError::number)
}

/// From the lists of error codes, <https://dev.mysql.com/doc/mysql-errors/8.4/en/server-error-reference.html> and
/// <https://mariadb.com/docs/server/reference/error-codes>.
fn meaning(number: u16) -> Option<Meaning> {
    Some(match number {
        1213 => {
            Meaning::GivenUp("two transactions waited for each other, and this one was given up; it is tried again")
        }
        1020 => Meaning::GivenUp("another transaction changed what this one had read; it is tried again"),
        1053 | 1152 | 1158..=1161 | 1184 | 1927 | 4031 => {
            Meaning::Gone("the database is shutting down, or has ended the connection")
        }
        1146 => Meaning::Missing,
        1062 => Meaning::Duplicate,
        1205 => Meaning::Passes("another transaction holds what this one needs"),
        1317 | 1969 | 3024 => Meaning::Passes("the statement took longer than it may, and was cancelled"),
        1290 | 1792 | 1836 => MySql::READ_ONLY,
        1021 | 1114 => {
            Meaning::Passes("the database's disk, or the table, is full: free some space, and it goes on by itself")
        }
        1040 | 1203 | 1226 => {
            Meaning::Passes("the database has too many connections: allow more there, or use fewer here")
        }
        1044 | 1045 | 1698 => Meaning::Passes("the database refuses the user or the password"),
        1049 => Meaning::Passes("there is no such database: create it"),
        1142 | 1143 => Meaning::Passes("the user may not do this: grant it the tables of Aqueduct"),
        1054 => Meaning::Passes("the tables are not those of this version: run `aqueduct migrate`"),
        1406 => Meaning::Stays(
            "a text is longer than its column takes: 255 bytes for names of consumers and topics, 1,000 for the source or the id of an event",
        ),
        1153 | 1301 => Meaning::Stays(
            "the event is larger than the database's `max_allowed_packet`: raise it, or publish a reference to the data",
        ),
        1264 | 1366 => Meaning::Stays("the database refuses a value"),
        _ => return None,
    })
}

type Query<'q> = sqlx::query::Query<'q, MySql, MySqlArguments>;

fn query(statement: &Statement, args: Vec<Value>) -> Query<'_> {
    let lists = args.iter().any(|arg| matches!(arg, Value::Ints(_)));
    let sql = if lists { with_lists(&statement.sql, &args, false).into() } else { Arc::clone(&statement.sql) };
    let query = sqlx::query(AssertSqlSafe(sql)).persistent(statement.kept && !lists);
    args.into_iter().fold(query, |query, value| match value {
        Value::Ints(_) => query,
        Value::Null(Kind::Int) => query.bind(None::<i64>),
        Value::Null(Kind::Text | Kind::Blob) => query.bind(None::<Vec<u8>>),
        Value::Int(int) => query.bind(int),
        Value::Text(text) => query.bind(text.as_str().as_bytes().to_vec()),
        Value::Blob(blob) => query.bind(Vec::from(blob)),
    })
}

/// A statement with lists that has numbers only, to be sent as it is. Prepared for one use it would be closed afterwards, by a
/// message without an answer, and what is sent next would wait 40 ms for the server to acknowledge that: sqlx's sockets send
/// nothing small before (Nagle's algorithm).
fn plain(statement: &Statement, args: &[Value]) -> Option<String> {
    let numbers = args.iter().all(|arg| matches!(arg, Value::Ints(_) | Value::Int(_)));
    let lists = args.iter().any(|arg| matches!(arg, Value::Ints(_)));
    (lists && numbers).then(|| with_lists(&statement.sql, args, true))
}

/// A value as a statement's text has it. Sent so for the same reason as with [`plain`]: there are too many lengths of inserts for
/// each to stay prepared.
fn push_hex(sql: &mut String, value: Option<&[u8]>) {
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    let Some(bytes) = value else { return sql.push_str("null") };
    sql.push_str("x'");
    sql.extend(bytes.iter().flat_map(|b| [b >> 4, b & 15]).map(|digit| char::from(DIGITS[usize::from(digit)])));
    sql.push('\'');
}

/// Lists of numbers have no argument of their own here: they are put in, and everything else too if that is wanted.
fn with_lists(sql: &str, args: &[Value], all: bool) -> String {
    let mut parts = sql.split('?');
    let mut with = parts.next().unwrap_or_default().to_owned();
    for (part, arg) in parts.zip(args) {
        match (arg, with.strip_suffix("in_ints(")) {
            (Value::Ints(ints), Some(before)) => {
                let mut list = String::with_capacity(ints.len() * 8);
                for int in ints {
                    // Writing to a string cannot fail.
                    let _ = write!(list, "{}{int}", if list.is_empty() { "" } else { ", " });
                }
                // An empty list is no list in SQL.
                let list = if list.is_empty() { "null" } else { &list };
                with = format!("{before}in ({list}");
            }
            (Value::Int(int), _) if all => {
                let _ = write!(with, "{int}");
            }
            (Value::Text(text), _) if all => push_hex(&mut with, Some(text.as_str().as_bytes())),
            (Value::Blob(bytes), _) if all => push_hex(&mut with, Some(bytes)),
            (Value::Null(_), _) if all => push_hex(&mut with, None),
            _ => with.push('?'),
        }
        with.push_str(part);
    }
    with
}

/// Texts are bytes here; who expects a text makes one of them.
fn sql_row(row: &MySqlRow) -> Result<SqlRow, sqlx::Error> {
    let value = |column| {
        let raw = row.try_get_raw(column)?;
        Ok(match raw.type_info().name() {
            _ if raw.is_null() => Value::Null(Kind::Int),
            "BIGINT" | "INT" | "MEDIUMINT" | "SMALLINT" | "TINYINT" | "BOOLEAN" | "BIGINT UNSIGNED"
            | "INT UNSIGNED" => Value::Int(row.try_get_unchecked(column)?),
            _ => Value::Blob(Bytes::from(row.try_get_unchecked::<Vec<u8>, _>(column)?)),
        })
    };
    (0..row.len()).map(value).collect::<Result<_, sqlx::Error>>().map(SqlRow)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_numbers_are_put_in() {
        let args = [Value::Int(-3), Value::Ints(vec![1, 22]), Value::Int(7)];
        let sql = "select a from t where b = ? and c in_ints(?) limit ?";
        assert_eq!(with_lists(sql, &args, true), "select a from t where b = -3 and c in (1, 22) limit 7");
        assert_eq!(with_lists(sql, &args, false), "select a from t where b = ? and c in (1, 22) limit ?");
        let nothing = [Value::Int(3), Value::Ints(Vec::new()), Value::Int(7)];
        assert_eq!(with_lists(sql, &nothing, true), "select a from t where b = 3 and c in (null) limit 7");
    }

    #[test]
    fn statements_of_the_store_become_those_of_mysql() {
        let says = |portable: &str, mysql: &str| assert_eq!(MySql::translate(portable), mysql);
        says("insert into t (a, key) values (?, ?) returning id", "insert into t (a, `key`) values (?, ?) /* id */");
        says(
            "insert into t (a, b) values (?, ?) on conflict (a, b) do nothing",
            "insert into t (a, b) values (?, ?) on duplicate key update t.a = t.a",
        );
        says(
            "insert into t (a, b) values (?, ?) on conflict (a) do update set b = excluded.b, c = excluded.c_1",
            "insert into t (a, b) values (?, ?) on duplicate key update b = values(b), c = values(c_1)",
        );
        says(
            "delete from aq_outbox where shard = ? and id in_ints(?)",
            "delete o from aq_outbox o force index (primary) where o.shard = ? and o.id in_ints(?)",
        );
        says("select keys, r.key from r /*lock*/", "select keys, r.`key` from r lock in share mode");
    }
}
