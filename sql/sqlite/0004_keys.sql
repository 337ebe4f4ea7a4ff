-- Until when order ids were made with which key, in Unix milliseconds; '' stands for none.
create table seckill_key (
    name text not null primary key check (length(name) <= 16),
    used_until integer not null
) strict;

-- In a file with sales there are ids without a check, and perhaps a program that still makes them.
insert into seckill_key (name, used_until)
select '', (unixepoch() + 86400) * 1000 where exists (select 1 from journal);

-- This file's own key.
create table order_key (
    id integer not null primary key check (id = 1),
    hex text not null check (length(hex) = 32)
) strict;

insert into order_key (id, hex) values (1, lower(hex(randomblob(16))));
