-- Aqueduct, schema version 1. Every row carries the version of its own encoding.

-- The log of the embedded broker. `at` is the order of insertion, so that new rows always go to the end of the file.
create table aq_topics (
    id integer primary key,
    name text not null unique,
    partitions integer not null,
    checksum integer not null
);
-- Positions from first up to, not including, next are in the log, all of them: what is missing there is damage. Retention
-- moves first. The seal is a weighted sum of the other columns, so that each update can carry it along.
create table aq_partitions (
    topic integer not null,
    number integer not null,
    first integer not null,
    next integer not null,
    bytes integer not null,
    seal integer not null,
    primary key (topic, number)
) without rowid;
-- Messages lie in batches: what one append brought one partition, up to a limit. `last` is the position of its last message,
-- `bytes` what its messages have together.
create table aq_log (
    at integer primary key,
    topic integer not null,
    number integer not null,
    last integer not null,
    count integer not null,
    bytes integer not null,
    stored_at integer not null,
    checksum integer not null,
    version integer not null,
    content blob not null
);
create unique index aq_log_place on aq_log (topic, number, last);
-- The position of each identity. One below its partition's first position is forgotten.
create table aq_identities (
    topic integer not null,
    dedup_id text not null,
    number integer not null,
    position integer not null,
    primary key (topic, dedup_id)
) without rowid;

-- Consumers of the log: how often one was started, and up to where it has settled each partition.
create table aq_consumers (
    name text primary key,
    epoch integer not null
) without rowid;
create table aq_floors (
    consumer text not null,
    topic integer not null,
    number integer not null,
    epoch integer not null,
    floor integer not null,
    seal integer not null,
    primary key (consumer, topic, number)
) without rowid;

-- The store: one shard for each consumer and partition, with its fence: null until somebody has taken over.
create table aq_shards (
    id integer primary key,
    consumer text not null,
    topic text not null,
    number integer not null,
    epoch integer,
    unique (consumer, topic, number)
);
-- The lanes that have rows of any kind. The head is the first row that holds the lane; due unless it is dead. The mark is
-- the highest position of a dead or discarded row.
create table aq_lanes (
    shard integer not null,
    lane integer not null,
    head_position integer,
    head_index integer,
    next_at integer,
    mark integer,
    primary key (shard, lane)
) without rowid;
create index aq_lanes_due on aq_lanes (shard, next_at, head_position, head_index) where next_at is not null;
-- Parked events and dead letters. State: 0 parked, 1 dead and passed, 2 dead and blocking, 3 discarded. Key, source, id and
-- type of the event are for people and for queries; the event itself is in the content.
create table aq_rows (
    id integer primary key,
    shard integer not null,
    position integer not null,
    idx integer not null,
    lane integer not null,
    state integer not null,
    revision integer not null,
    attempts integer not null,
    next_at integer not null,
    parked_at integer not null,
    replay integer not null,
    key text,
    source text,
    event_id text,
    kind text,
    content blob not null,
    history blob not null,
    checksum integer not null,
    version integer not null
);
create unique index aq_rows_place on aq_rows (shard, position, idx);
create index aq_rows_lane on aq_rows (shard, lane, state, position, idx);
create index aq_rows_dead on aq_rows (shard, position, idx) where state in (1, 2);
create index aq_rows_discarded on aq_rows (shard, position, lane) where state = 3;
create index aq_rows_identity on aq_rows (source, event_id);
-- What operators asked for, and what became of it: also the audit trail. State: 0 waiting, 1 done, 2 refused.
create table aq_commands (
    id integer primary key autoincrement,
    shard integer not null,
    position integer not null,
    idx integer not null,
    lane integer not null,
    revision integer not null,
    action integer not null,
    event blob,
    who text not null,
    why text not null,
    state integer not null,
    ended_at integer,
    refusal text,
    version integer not null
);
create index aq_commands_waiting on aq_commands (shard, id) where state = 0;
-- Events from the clock: each runs in its lane when it is due.
create table aq_timers (
    id integer primary key,
    shard integer not null,
    lane integer not null,
    key text,
    name text not null,
    due_at integer not null,
    data blob not null,
    version integer not null
);
create unique index aq_timers_name on aq_timers (shard, lane, name);
create index aq_timers_due on aq_timers (shard, due_at);
-- Which events have taken effect, for handlers that take a transaction.
create table aq_inbox (
    consumer text not null,
    source text not null,
    id text not null,
    topic text not null,
    number integer not null,
    position integer not null,
    at integer not null,
    primary key (consumer, source, id)
) without rowid;
create index aq_inbox_age on aq_inbox (at);
