-- Aqueduct, schema version 2: the outbox with its relay, leases, and floors of transactional handlers.

-- Which file this is, so that one that was made anew is told from it.
create table aq_file (identity text not null);
insert into aq_file (identity) values (lower(hex(randomblob(16))));

-- Events that the relay publishes. A row of the library carries its event whole in `content`; a row of a program in another
-- language leaves `content` null and fills in the columns beside it. The order of `id` is the order of publishing in a key.
create table aq_outbox (
    id integer primary key autoincrement,
    shard integer not null default 0,
    topic text not null,
    key text,
    event_id text not null default (lower(hex(randomblob(16)))),
    type text not null,
    source text,
    time text,
    content_type text,
    headers text,
    data blob,
    content blob,
    written_at integer not null default (cast(unixepoch('subsec') * 1000 as integer))
);
create index aq_outbox_shard on aq_outbox (shard, id);
-- Rows that the broker refused, and the later rows of their keys: each key's line, in the order of `id`. The lane is the
-- hash of topic and key. Only the head of a line has an error.
create table aq_outbox_parked (
    id integer primary key,
    shard integer not null,
    lane integer not null,
    topic text not null,
    key text,
    event_id text not null,
    type text not null,
    source text,
    time text,
    content_type text,
    headers text,
    data blob,
    content blob,
    written_at integer not null,
    attempts integer not null,
    next_at integer not null,
    error text
);
create index aq_outbox_parked_shard on aq_outbox_parked (shard, lane, id);
-- What was published, for who wants an audit.
create table aq_outbox_sent (
    id integer primary key,
    topic text not null,
    key text,
    event_id text not null,
    type text not null,
    source text,
    written_at integer not null,
    sent_at integer not null
);
create index aq_outbox_sent_age on aq_outbox_sent (sent_at);
-- Instances that are alive count their beats; each part of a group's work has a record with its epoch and its owner.
create table aq_sessions (
    grp text not null,
    session text not null,
    beat integer not null,
    info text,
    primary key (grp, session)
) without rowid;
create table aq_leases (
    grp text not null,
    part text not null,
    epoch integer not null,
    session text,
    floor integer,
    primary key (grp, part)
) without rowid;
-- Up to where a consumer's transactional handlers have settled a partition, and of which stream: never behind the broker.
create table aq_settled (
    shard integer primary key,
    stream text not null,
    floor integer,
    at integer not null
);
