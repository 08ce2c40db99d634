-- Aqueduct, schema version 2: the outbox with its relay, leases, and floors of transactional handlers.

-- Up to where a consumer's transactional handlers have settled a partition, and of which stream: never behind the broker.
create table aq_settled (
    shard bigint primary key,
    stream varbinary(1000) not null,
    floor bigint,
    at bigint not null
) engine = InnoDB default character set utf8mb4;
-- Events that the relay publishes. A row of the library carries its event whole in `content`; a row of a program in another
-- language leaves `content` null and fills in the columns beside it. The order of `id` is the order of publishing in a key.
create table aq_outbox (
    id bigint not null auto_increment primary key,
    shard smallint as (crc32(coalesce(`key`, event_id)) & 15) stored,
    topic varbinary(255) not null,
    `key` mediumblob,
    event_id mediumblob not null default (uuid()),
    type mediumblob not null,
    source mediumblob,
    time blob,
    content_type blob,
    headers mediumblob,
    data longblob,
    content longblob,
    written_at bigint not null default (floor(unix_timestamp(current_timestamp(3)) * 1000))
) engine = InnoDB default character set utf8mb4;
create index aq_outbox_shard on aq_outbox (shard, id);
-- Rows that the broker refused, and the later rows of their keys: each key's line, in the order of `id`. The lane is the
-- hash of topic and key. Only the head of a line has an error.
create table aq_outbox_parked (
    id bigint primary key,
    shard smallint not null,
    lane bigint not null,
    topic varbinary(255) not null,
    `key` mediumblob,
    event_id mediumblob not null,
    type mediumblob not null,
    source mediumblob,
    time blob,
    content_type blob,
    headers mediumblob,
    data longblob,
    content longblob,
    written_at bigint not null,
    attempts bigint not null,
    next_at bigint not null,
    error blob
) engine = InnoDB default character set utf8mb4;
create index aq_outbox_parked_shard on aq_outbox_parked (shard, lane, id);
-- What was published, for who wants an audit.
create table aq_outbox_sent (
    id bigint primary key,
    topic varbinary(255) not null,
    `key` mediumblob,
    event_id mediumblob not null,
    type mediumblob not null,
    source mediumblob,
    written_at bigint not null,
    sent_at bigint not null
) engine = InnoDB default character set utf8mb4;
create index aq_outbox_sent_age on aq_outbox_sent (sent_at);
-- Instances that are alive count their beats; each part of a group's work has a record with its epoch and its owner.
create table aq_sessions (
    grp varbinary(255) not null,
    session varbinary(255) not null,
    beat bigint not null,
    info blob,
    primary key (grp, session)
) engine = InnoDB default character set utf8mb4;
create table aq_leases (
    grp varbinary(255) not null,
    part varbinary(255) not null,
    epoch bigint not null,
    session varbinary(255),
    floor bigint,
    primary key (grp, part)
) engine = InnoDB default character set utf8mb4;
-- Locks of keys, each held until the end of the transaction that wrote it last.
create table aq_locks (
    slot bigint not null primary key
) engine = InnoDB default character set utf8mb4;
-- All of them are there from the start: when a row's first transaction is rolled back the row goes with it, and two that
-- wait for it would wait for each other.
insert ignore into aq_locks (slot) values (0), (1), (2), (3), (4), (5), (6), (7);
insert ignore into aq_locks (slot) select a.slot + 8 * b.slot from aq_locks a, aq_locks b where a.slot < 8 and b.slot < 8;
insert ignore into aq_locks (slot) select a.slot + 64 * b.slot from aq_locks a, aq_locks b where a.slot < 64 and b.slot < 64;
insert ignore into aq_locks (slot) select a.slot + 4096 * b.slot from aq_locks a, aq_locks b where a.slot < 4096 and b.slot < 4;
