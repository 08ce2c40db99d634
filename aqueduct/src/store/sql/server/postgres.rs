//! What PostgreSQL does differently.

use std::fmt::Write;
use std::sync::Arc;

use bytes::Bytes;
use sqlx::error::DatabaseError;
use sqlx::postgres::{PgArguments, PgConnection, PgRow, PgTransactionManager, Postgres};
use sqlx::{AssertSqlSafe, Row, TypeInfo, ValueRef};

use super::errors::Meaning;
use super::outbox::Written;
use super::tx::{Begin, Ended};
use super::{Calls, OptionsOf, Server, ServerDatabase, ServerOptions, Statement};
use crate::outcome::BoxFuture;
use crate::store::sql::dialect::{Kind, SqlRow, Value};
use crate::store::sql::store::SqlStore;
use crate::topic::{Epoch, Text};

/// A PostgreSQL database, 13 or later.
pub type PgDatabase = ServerDatabase<Postgres>;

/// How a PostgreSQL database is opened.
pub type PgOptions = ServerOptions<Postgres>;

/// A store in a PostgreSQL database.
///
/// ```no_run
/// # async fn f() -> Result<(), aqueduct::StoreError> {
/// use aqueduct::postgres::PgStore;
/// let store = PgStore::connect("postgres://shop:secret@localhost/shop").await?;
/// # Ok(()) }
/// ```
pub type PgStore = SqlStore<PgDatabase>;

/// The longest limit that there is.
const MILLIS_MAX: u128 = i32::MAX as u128;

/// What the fence says, somewhere in an error whose language and quotes are the server's.
const ENDED: &str = "the transaction was ended";
const REPLACED: &str = "the owner was replaced";

/// A value as it is written in a statement; none if it cannot be.
fn literal(value: Value) -> Option<String> {
    match value {
        Value::Int(int) => Some(int.to_string()),
        Value::Text(text) if !text.as_str().contains('\0') => {
            Some(format!("E'{}'", text.as_str().replace('\\', r"\\").replace('\'', "''")))
        }
        _ => None,
    }
}

impl Server for Postgres {}

impl Calls for Postgres {
    type Manager = PgTransactionManager;

    const URL: &'static str = "postgres://user:password@host:5432/database";

    const MIGRATIONS: [&'static str; 2] = [
        include_str!("../../../../migrations/postgres/0001.sql"),
        include_str!("../../../../migrations/postgres/0002.sql"),
    ];

    // A process that is stopped inside holds what others wait for, such as its session, no longer than a lease lasts.
    const BEGIN: &'static str =
        "begin isolation level read committed; set local idle_in_transaction_session_timeout = '4s'";
    const LOCK: &'static str = "select pg_advisory_xact_lock(4716242310)";

    fn behind_pooler(options: OptionsOf<Self>) -> OptionsOf<Self> {
        options.statement_cache_capacity(0)
    }

    fn address(options: &OptionsOf<Self>) -> String {
        let database = options.get_database().unwrap_or(options.get_username());
        format!("PostgreSQL at {}:{}/{database}", options.get_host(), options.get_port())
    }

    fn translate(statement: &str) -> String {
        let mut sql = String::with_capacity(statement.len() + 16);
        let mut number = 0;
        for (index, part) in
            statement.replace("in_ints(?)", "= any(?)").replace("/*lock*/", "for share").split('?').enumerate()
        {
            if index > 0 {
                number += 1;
                // Writing to a string cannot fail.
                let _ = write!(sql, "${number}");
            }
            sql.push_str(part);
        }
        sql
    }

    fn execute<'a>(
        connection: &'a mut PgConnection,
        statement: &'a Statement,
        args: Vec<Value>,
    ) -> BoxFuture<'a, Result<u64, sqlx::Error>> {
        Box::pin(async move { Ok(query(statement, args).execute(connection).await?.rows_affected()) })
    }

    fn fetch<'a>(
        connection: &'a mut PgConnection,
        statement: &'a Statement,
        args: Vec<Value>,
    ) -> BoxFuture<'a, Result<Vec<SqlRow>, sqlx::Error>> {
        Box::pin(async move {
            let rows = query(statement, args).fetch_all(connection).await?;
            rows.iter().map(sql_row).collect()
        })
    }

    const LACKS_STORE: &'static str = "`Tx<Postgres>` needs a store in a PostgreSQL database: give the consumer one with `.store(PgStore::connect(url).await?)`, or beside another store with `.transactions(..)`";

    const INBOX: &'static str = "insert into aq_inbox (consumer, source, id, topic, number, position, at)
        values (?, ?, ?, ?, ?, ?, ?) on conflict (consumer, source, id) do nothing";

    const SWEEP: &'static str = "delete from aq_inbox where (consumer, source, id) in (
        select i.consumer, i.source, i.id from aq_inbox i
        join aq_shards s on s.consumer = i.consumer and s.topic = i.topic and s.number = i.number
        join aq_settled f on f.shard = s.id
        where i.at < ? and i.position <= f.floor
        and not exists (select 1 from aq_rows r where r.source = i.source and r.event_id = i.id) limit 1000)";

    /// From the statistics, which every `analyze` renews.
    const INBOX_ABOUT: &'static str = "select reltuples::bigint from pg_class where oid = 'aq_inbox'::regclass";

    /// It fails by a text that is no number, which says why.
    const FENCE: &'static str = "select cast(case
        when current_setting('aq.attempt', true) is distinct from '1' then 'the transaction was ended'
        when (select count(*) from (select 1 from aq_shards where id = ? and epoch = ? /*lock*/) ours) = 1 then '1'
        else 'the owner was replaced' end as int)";

    /// To plan them costs more than to run them.
    fn prepare(fence: &str, inbox: &str) -> Option<String> {
        Some(format!(
            "prepare aq_fence (bigint, bigint) as {fence}; \
             prepare aq_inbox (text, text, text, text, bigint, bigint, bigint) as {inbox}"
        ))
    }

    fn in_text(insert: &Statement, args: Vec<Value>) -> Option<String> {
        if !insert.kept {
            return None;
        }
        let args = args.into_iter().map(literal).collect::<Option<Vec<_>>>()?;
        Some(format!("execute aq_inbox ({})", args.join(", ")))
    }

    fn begin_attempt(Begin { isolation, reads, limits, behind_pooler }: Begin) -> String {
        let then = if reads { " read only" } else { "; set local aq.attempt = '1'" };
        let begin = format!("begin isolation level {}{then}", isolation.sql());
        let Some(limits) = limits else { return begin };
        let [whole, lock] = [limits.whole, limits.lock].map(|limit| limit.as_millis().clamp(1, MILLIS_MAX));
        let scope = if behind_pooler { "local" } else { "session" };
        format!(
            "{begin}; set {scope} idle_in_transaction_session_timeout = {whole}; \
             set {scope} statement_timeout = {whole}; set {scope} lock_timeout = {lock}"
        )
    }

    fn end<'a>(
        connection: &'a mut PgConnection,
        fence: &'a Statement,
        fences: &'a [(i64, Epoch)],
    ) -> BoxFuture<'a, Result<Ended, sqlx::Error>> {
        Box::pin(async move {
            let mut sql = String::new();
            for (shard, epoch) in fences {
                let (shard, epoch) = (shard.to_string(), epoch.0.to_string());
                // Named statements are another connection's behind a pooler.
                if fence.kept {
                    sql.extend(["execute aq_fence (", &shard, ", ", &epoch, "); "]);
                } else {
                    sql.extend([&fence.sql.replacen("$1", &shard, 1).replacen("$2", &epoch, 1), "; "]);
                }
            }
            match Self::send(connection, sql + "commit").await {
                Ok(_) => Ok(Ended::Committed),
                Err(sqlx::Error::Database(error)) if error.message().contains(REPLACED) => Ok(Ended::Replaced),
                Err(sqlx::Error::Database(error)) if error.message().contains(ENDED) => Ok(Ended::Before),
                Err(error) => Err(error),
            }
        })
    }

    fn send(connection: &mut PgConnection, sql: String) -> BoxFuture<'_, Result<u64, sqlx::Error>> {
        Box::pin(async move { Ok(sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await?.rows_affected()) })
    }

    fn lock_keys<'a>(
        connection: &'a mut PgConnection,
        _: &'a str,
        keys: Vec<i64>,
        kept: bool,
    ) -> BoxFuture<'a, Result<(), sqlx::Error>> {
        Box::pin(async move {
            for key in keys {
                sqlx::query("select pg_advisory_xact_lock($1)")
                    .persistent(kept)
                    .bind(key)
                    .execute(&mut *connection)
                    .await?;
            }
            Ok(())
        })
    }

    fn insert_events<'a>(
        connection: &'a mut PgConnection,
        prefix: &'a str,
        rows: Vec<Written>,
        kept: bool,
    ) -> BoxFuture<'a, Result<(), sqlx::Error>> {
        const COLUMNS: &str = "topic, key, event_id, type, source, content";
        Box::pin(async move {
            let text = |text: Text| text.as_str().to_owned();
            if rows.len() == 1 {
                let sql = format!("insert into {prefix}outbox ({COLUMNS}) values ($1, $2, $3, $4, $5, $6)");
                for (topic, key, id, kind, source, content) in rows {
                    let query = sqlx::query(AssertSqlSafe(sql.clone())).persistent(kept);
                    let query = query.bind(text(topic)).bind(key.map(text));
                    let query = query.bind(text(id)).bind(text(kind)).bind(text(source)).bind(content);
                    query.execute(&mut *connection).await?;
                }
                return Ok(());
            }
            let (mut topics, mut keys, mut ids, mut kinds, mut sources, mut contents) =
                <(Vec<_>, Vec<_>, Vec<_>, Vec<_>, Vec<_>, Vec<_>)>::default();
            for (topic, key, id, kind, source, content) in rows {
                topics.push(text(topic));
                keys.push(key.map(text));
                ids.push(text(id));
                kinds.push(text(kind));
                sources.push(text(source));
                contents.push(content);
            }
            let sql = format!(
                "insert into {prefix}outbox ({COLUMNS}) select {COLUMNS} from unnest($1::text[], $2::text[], $3::text[], \
                 $4::text[], $5::text[], $6::bytea[]) with ordinality as e ({COLUMNS}, at) order by at"
            );
            let query = sqlx::query(AssertSqlSafe(sql)).persistent(kept);
            let query = query.bind(topics).bind(keys).bind(ids).bind(kinds).bind(sources);
            query.bind(contents).execute(connection).await.map(drop)
        })
    }

    const READ_ONLY: Meaning = Meaning::Passes("the database is read-only, a standby perhaps: connect to the primary");

    fn meaning(error: &dyn DatabaseError) -> Option<Meaning> {
        meaning(&error.code()?)
    }
}

/// From the table of error codes, <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
fn meaning(code: &str) -> Option<Meaning> {
    Some(match code {
        "40001" => Meaning::GivenUp("another transaction changed what this one had read; it is tried again"),
        "40P01" => {
            Meaning::GivenUp("two transactions waited for each other, and this one was given up; it is tried again")
        }
        "57P01" | "57P02" | "57P03" | "57P05" => Meaning::Gone("the database is shutting down or starting"),
        "25P03" => {
            Meaning::Gone("the transaction did nothing for longer than its attempt may take, and the database ended it")
        }
        "25P04" => Meaning::Gone("the transaction took longer than the database allows"),
        "42P01" | "3F000" => Meaning::Missing,
        "23505" => Meaning::Duplicate,
        "25P02" => Meaning::Aborted,
        "42P05" | "26000" => Meaning::Passes(
            "a pooler mixes up the prepared statements of its clients: open the database with `behind_pooler`, and make a handler's own statements with `.persistent(false)`",
        ),
        "55P03" => Meaning::Passes("another transaction holds what this one needs"),
        "57014" => Meaning::Passes("the statement took longer than it may, and was cancelled"),
        "25006" => Postgres::READ_ONLY,
        "53100" => Meaning::Passes("the database's disk is full: free some space, and it goes on by itself"),
        "53300" => Meaning::Passes("the database has too many connections: allow more there, or use fewer here"),
        "28P01" | "28000" => Meaning::Passes("the database refuses the user or the password"),
        "3D000" => Meaning::Passes("there is no such database: create it"),
        "42501" => Meaning::Passes("the user may not do this: grant it the tables of Aqueduct"),
        "42703" | "42P10" | "42883" => {
            Meaning::Passes("the tables are not those of this version: run `aqueduct migrate`")
        }
        "54000" => Meaning::Stays("the source or the id of the event is longer than an index takes, some 2,700 bytes"),
        "22021" => Meaning::Stays("a text has a zero byte, which PostgreSQL does not take"),
        _ if code.starts_with("08") => Meaning::Gone("the connection was lost"),
        _ if code.starts_with("53") => Meaning::Passes("the database lacks resources"),
        _ if code.starts_with("22") => Meaning::Stays("the database refuses a value"),
        _ => return None,
    })
}

type Query<'q> = sqlx::query::Query<'q, Postgres, PgArguments>;

fn query(statement: &Statement, args: Vec<Value>) -> Query<'_> {
    let query = sqlx::query(AssertSqlSafe(Arc::clone(&statement.sql))).persistent(statement.kept);
    args.into_iter().fold(query, |query, value| match value {
        Value::Null(Kind::Int) => query.bind(None::<i64>),
        Value::Null(Kind::Text) => query.bind(None::<String>),
        Value::Null(Kind::Blob) => query.bind(None::<Vec<u8>>),
        Value::Int(int) => query.bind(int),
        Value::Text(text) => query.bind(text.as_str().to_owned()),
        Value::Blob(blob) => query.bind(Vec::from(blob)),
        Value::Ints(ints) => query.bind(ints),
    })
}

/// Decodes by hand what the binary protocol has: big-endian numbers, texts and bytes as they are.
fn sql_row(row: &PgRow) -> Result<SqlRow, sqlx::Error> {
    let value = |column| {
        let raw = row.try_get_raw(column)?;
        if raw.is_null() {
            return Ok(Value::Null(Kind::Int));
        }
        let bytes = raw.as_bytes().map_err(sqlx::Error::Decode)?;
        let unexpected = || sqlx::Error::Decode(format!("column {column} is of a type that is not expected").into());
        Ok(match raw.type_info().name() {
            "INT8" => Value::Int(i64::from_be_bytes(bytes.try_into().map_err(|_| unexpected())?)),
            "INT4" => Value::Int(i32::from_be_bytes(bytes.try_into().map_err(|_| unexpected())?).into()),
            "INT2" => Value::Int(i16::from_be_bytes(bytes.try_into().map_err(|_| unexpected())?).into()),
            "BYTEA" => Value::Blob(Bytes::copy_from_slice(bytes)),
            "TEXT" | "VARCHAR" | "CHAR" | "NAME" => {
                let bytes = Bytes::copy_from_slice(bytes);
                Text::try_from(bytes.clone()).map_or(Value::Blob(bytes), Value::Text)
            }
            _ => return Err(unexpected()),
        })
    };
    (0..row.len()).map(value).collect::<Result<_, sqlx::Error>>().map(SqlRow)
}
