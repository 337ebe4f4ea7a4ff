-- The ledger: what was sold, where it stood in the journal, and what had to be put aside.
-- For MySQL 8.4 and MariaDB 10.11; sql/sqlite has the same tables with the same columns.
-- MySQL cannot undo a table: what is made here can be made again after an interruption.
-- Names that decide are compared byte by byte (ascii_bin), never by the rules of a language.

-- One row for every unit sold; its three unique keys make each exactly once.
create table if not exists seckill (
    id bigint not null auto_increment,
    info mediumtext not null comment 'the message as read',
    `date` datetime(6) not null comment 'when it was sold, UTC',
    topic varchar(249) character set ascii collate ascii_bin not null,
    `partition` int not null,
    `offset` bigint not null,
    order_id char(36) character set ascii collate ascii_bin not null,
    item varchar(32) character set ascii collate ascii_bin not null,
    epoch char(36) character set ascii collate ascii_bin not null comment 'which sale of the item',
    term bigint not null comment 'raised when the books were reopened',
    serial bigint not null comment 'the unit within the sale, from 1',
    remaining bigint not null comment 'units left after it',
    attempt varchar(128) character set utf8mb4 collate utf8mb4_bin null,
    buyer varchar(128) character set utf8mb4 collate utf8mb4_bin null,
    primary key (id),
    unique key seckill_place (topic, `partition`, `offset`),
    unique key seckill_unit (item, epoch, serial),
    unique key seckill_order (order_id)
) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin
  comment = 'one row for every unit sold';

-- How far each partition is posted: written with the rows, in one transaction.
create table if not exists journal_offset (
    topic varchar(249) character set ascii collate ascii_bin not null,
    `partition` int not null,
    next_offset bigint not null comment 'to be read next',
    fingerprint char(32) character set ascii collate ascii_bin not null comment 'of the message before it',
    primary key (topic, `partition`)
) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin
  comment = 'how far each partition is posted';

-- Sales whose unit or order is recorded otherwise, and sales that came too late.
create table if not exists seckill_conflict (
    id bigint not null auto_increment,
    reason varchar(64) character set ascii collate ascii_bin not null,
    info mediumtext not null comment 'the message as read',
    `date` datetime(6) not null comment 'when it was sold, UTC',
    topic varchar(249) character set ascii collate ascii_bin not null,
    `partition` int not null,
    `offset` bigint not null,
    order_id char(36) character set ascii collate ascii_bin not null,
    item varchar(32) character set ascii collate ascii_bin not null,
    epoch char(36) character set ascii collate ascii_bin not null,
    term bigint not null,
    serial bigint not null,
    remaining bigint not null,
    attempt varchar(128) character set utf8mb4 collate utf8mb4_bin null,
    buyer varchar(128) character set utf8mb4 collate utf8mb4_bin null,
    primary key (id),
    unique key seckill_conflict_place (topic, `partition`, `offset`)
) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin
  comment = 'sales in conflict with a recorded one';

-- Messages that could not be read, or whose row was refused.
create table if not exists seckill_dead_letter (
    id bigint not null auto_increment,
    topic varchar(249) character set ascii collate ascii_bin not null,
    `partition` int not null,
    `offset` bigint not null,
    bytes mediumblob not null comment 'the message as read',
    error text character set utf8mb4 collate utf8mb4_bin not null,
    primary key (id),
    unique key seckill_dead_letter_place (topic, `partition`, `offset`)
) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin
  comment = 'messages that could not be recorded';

-- The sales that were begun, each with the term from which its messages count.
create table if not exists seckill_term (
    item varchar(32) character set ascii collate ascii_bin not null,
    epoch char(36) character set ascii collate ascii_bin not null,
    term bigint not null default 0,
    units bigint not null comment 'on sale at the beginning',
    began_at datetime(6) not null comment 'UTC',
    primary key (item, epoch)
) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin
  comment = 'the sales that were begun';
