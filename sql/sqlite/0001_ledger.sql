-- The embedded world's file: the ledger, with the tables and columns of sql/mysql, and the
-- journal that it is kept from. The checks stand for the limits that the types have there.

-- One row for every unit sold; its three unique keys make each exactly once.
create table seckill (
    id integer not null primary key,
    info text not null,
    "date" text not null check (length("date") = 26),
    topic text not null,
    "partition" integer not null,
    "offset" integer not null,
    order_id text not null check (length(order_id) = 36),
    item text not null check (length(item) <= 32),
    epoch text not null check (length(epoch) = 36),
    term integer not null,
    serial integer not null,
    remaining integer not null,
    attempt text null check (length(attempt) <= 128),
    buyer text null check (length(buyer) <= 128),
    constraint seckill_place unique (topic, "partition", "offset"),
    constraint seckill_unit unique (item, epoch, serial),
    constraint seckill_order unique (order_id)
) strict;

-- How far each partition is posted: written with the rows, in one transaction.
create table journal_offset (
    topic text not null,
    "partition" integer not null,
    next_offset integer not null,
    fingerprint text not null,
    primary key (topic, "partition")
) strict;

-- Sales whose unit or order is recorded otherwise, and sales that came too late.
create table seckill_conflict (
    id integer not null primary key,
    reason text not null check (length(reason) <= 64),
    info text not null,
    "date" text not null check (length("date") = 26),
    topic text not null,
    "partition" integer not null,
    "offset" integer not null,
    order_id text not null check (length(order_id) = 36),
    item text not null check (length(item) <= 32),
    epoch text not null check (length(epoch) = 36),
    term integer not null,
    serial integer not null,
    remaining integer not null,
    attempt text null check (length(attempt) <= 128),
    buyer text null check (length(buyer) <= 128),
    constraint seckill_conflict_place unique (topic, "partition", "offset")
) strict;

-- Messages that could not be read, or whose row was refused.
create table seckill_dead_letter (
    id integer not null primary key,
    topic text not null,
    "partition" integer not null,
    "offset" integer not null,
    bytes blob not null,
    error text not null,
    constraint seckill_dead_letter_place unique (topic, "partition", "offset")
) strict;

-- The sales that were begun, each with the term from which its messages count.
create table seckill_term (
    item text not null check (length(item) <= 32),
    epoch text not null check (length(epoch) = 36),
    term integer not null default 0,
    units integer not null,
    began_at text not null check (length(began_at) = 26),
    primary key (item, epoch)
) strict;

-- The journal of the embedded world: sales, and the seeds between them, in the order of commit.
create table journal (
    "offset" integer not null primary key,
    kind text not null check (kind in ('sale', 'seed')),
    value text not null
) strict;
