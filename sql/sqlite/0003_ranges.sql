-- Serials are written off by the run: a row is `serial` up to `last_serial`, or `serial` alone.
alter table seckill_void add column last_serial integer null;

-- What an operator decided with `restore`: how the sale went on, and what was accepted with it.
create table seckill_restore (
    item text not null,
    epoch text not null,
    term integer not null,
    serial integer not null,
    remaining integer not null,
    conflicts integer not null,
    newest text not null,
    restored_at text not null check (length(restored_at) = 26),
    primary key (item, epoch, term)
) strict;

-- Sales that were put away with `archive`, with their books as they were closed.
create table seckill_archive (
    item text not null,
    epoch text not null,
    seeded integer not null,
    remaining integer not null,
    sold integer not null,
    recorded integer not null,
    void integer not null,
    archived_at text not null check (length(archived_at) = 26),
    primary key (item, epoch)
) strict;

-- A sale begins once: looked for among the seeds, which are few, not among all rows.
create index journal_seed on journal ("offset") where kind = 'seed';
