-- Serials are written off by the run: a row is `serial` up to `last_serial`, or `serial` alone.
-- An alter cannot be undone, and may be met again after an interruption: it looks first.
set @missing = (
    select count(*) = 0 from information_schema.columns
    where table_schema = database() and table_name = 'seckill_void' and column_name = 'last_serial'
);
set @change = if(@missing, "alter table seckill_void add column last_serial bigint null comment 'the last serial of the run; null: this one alone'", 'do 0');
prepare change_void from @change;
execute change_void;
deallocate prepare change_void;

-- What an operator decided with `restore`: how the sale went on, and what was accepted with it.
create table if not exists seckill_restore (
    item varchar(32) character set ascii collate ascii_bin not null,
    epoch char(36) character set ascii collate ascii_bin not null comment 'which sale of the item',
    term bigint not null comment 'of the sales made from then on',
    serial bigint not null comment 'the last serial',
    remaining bigint not null comment 'units left after it',
    conflicts bigint not null comment 'rows of seckill_conflict of this sale, known and accepted then',
    newest char(36) character set ascii collate ascii_bin not null comment 'the newest sale known then; this one goes on in its place',
    restored_at datetime(6) not null comment 'UTC',
    primary key (item, epoch, term)
) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin
  comment = 'restores, one row each';

-- Sales that were put away with `archive`, with their books as they were closed.
create table if not exists seckill_archive (
    item varchar(32) character set ascii collate ascii_bin not null,
    epoch char(36) character set ascii collate ascii_bin not null comment 'which sale of the item',
    seeded bigint not null comment 'units ever put on sale',
    remaining bigint not null comment 'units left over',
    sold bigint not null,
    recorded bigint not null comment 'rows of seckill',
    void bigint not null comment 'serials written off',
    archived_at datetime(6) not null comment 'UTC',
    primary key (item, epoch)
) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin
  comment = 'sales that were put away';
