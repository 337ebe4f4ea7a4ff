-- What `restore` writes off: serials that were taken, told to nobody, and lost with Redis.
create table if not exists seckill_void (
    item varchar(32) character set ascii collate ascii_bin not null,
    epoch char(36) character set ascii collate ascii_bin not null comment 'which sale of the item',
    serial bigint not null comment 'the unit within the sale',
    primary key (item, epoch, serial)
) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin
  comment = 'serials that were lost and told to nobody';
