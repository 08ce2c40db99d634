-- Aqueduct, schema version 1. Every row carries the version of its own encoding. Times are milliseconds since 1970. Texts are
-- bytes of UTF-8, since no collation is exact on both MySQL and MariaDB.

-- The store: one shard for each consumer and partition, with its fence: null until somebody has taken over.
create table aq_shards (
    id bigint not null auto_increment primary key,
    consumer varbinary(255) not null,
    topic varbinary(255) not null,
    number bigint not null,
    epoch bigint,
    unique (consumer, topic, number)
) engine = InnoDB default character set utf8mb4;
-- The lanes that have rows of any kind. The head is the first row that holds the lane; due unless it is dead. The mark is
-- the highest position of a dead or discarded row.
create table aq_lanes (
    shard bigint not null,
    lane bigint not null,
    head_position bigint,
    head_index bigint,
    next_at bigint,
    mark bigint,
    primary key (shard, lane)
) engine = InnoDB default character set utf8mb4;
create index aq_lanes_due on aq_lanes (shard, next_at, head_position, head_index);
-- Parked events and dead letters. State: 0 parked, 1 dead and passed, 2 dead and blocking, 3 discarded. Key, source, id and
-- type of the event are for people and for queries; the event itself is in the content.
create table aq_rows (
    id bigint not null auto_increment primary key,
    shard bigint not null,
    position bigint not null,
    idx bigint not null,
    lane bigint not null,
    state bigint not null,
    revision bigint not null,
    attempts bigint not null,
    next_at bigint not null,
    parked_at bigint not null,
    replay bigint not null,
    `key` mediumblob,
    source mediumblob,
    event_id mediumblob,
    kind mediumblob,
    content longblob not null,
    history longblob not null,
    checksum bigint not null,
    version bigint not null
) engine = InnoDB default character set utf8mb4;
create unique index aq_rows_place on aq_rows (shard, position, idx);
create index aq_rows_lane on aq_rows (shard, lane, state, position, idx);
create index aq_rows_state on aq_rows (shard, state, position, idx);
create index aq_rows_identity on aq_rows (source(500), event_id(500));
-- What operators asked for, and what became of it: also the audit trail. State: 0 waiting, 1 done, 2 refused.
create table aq_commands (
    id bigint not null auto_increment primary key,
    shard bigint not null,
    position bigint not null,
    idx bigint not null,
    lane bigint not null,
    revision bigint not null,
    action bigint not null,
    event longblob,
    who blob not null,
    why blob not null,
    state bigint not null,
    ended_at bigint,
    refusal blob,
    version bigint not null
) engine = InnoDB default character set utf8mb4;
create index aq_commands_waiting on aq_commands (state, shard, id);
-- Events from the clock: each runs in its lane when it is due.
create table aq_timers (
    id bigint not null auto_increment primary key,
    shard bigint not null,
    lane bigint not null,
    `key` mediumblob,
    name varbinary(1000) not null,
    due_at bigint not null,
    data longblob not null,
    version bigint not null
) engine = InnoDB default character set utf8mb4;
create unique index aq_timers_name on aq_timers (shard, lane, name);
create index aq_timers_due on aq_timers (shard, due_at);
-- Which events have taken effect, for handlers that take a transaction.
create table aq_inbox (
    consumer varbinary(255) not null,
    source varbinary(1000) not null,
    id varbinary(1000) not null,
    topic varbinary(255) not null,
    number bigint not null,
    position bigint not null,
    at bigint not null,
    primary key (consumer, source, id)
) engine = InnoDB default character set utf8mb4;
create index aq_inbox_age on aq_inbox (at);
