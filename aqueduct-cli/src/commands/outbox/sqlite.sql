-- Writes an event into the outbox. Run it inside the transaction of the change that the event tells of: if that is committed
-- the event is published, and otherwise it never was. Give your own values, as parameters; what is null may be left out.
-- Transactions that write events of one key at the same time must lock a row in common first, such as the order that the
-- events are about: then the events are published in the order in which the transactions are committed.
insert into aq_outbox (topic, key, event_id, type, source, time, content_type, headers, data) values (
    'orders',                        -- topic: where it is published
    'customer-7',                    -- key: events of one key are published in order. Null is none
    lower(hex(randomblob(16))),      -- event_id: the same event always has the same. Left out, it is made up
    'order.placed',                  -- type: what has happened. Never null
    'shop',                          -- source: who says so. Null is the source that the relay is started with
    '2026-01-05T09:00:07Z',          -- time: when it happened, as in RFC 3339. Null is when the row was written
    'application/json',              -- content_type: what the data are. Null is nothing said
    '{"tenant": "eu-1"}',            -- headers: a JSON object of texts. Null is none
    cast('{"order": 4711}' as blob)  -- data: any bytes. Null is none
);
