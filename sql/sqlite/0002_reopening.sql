-- What `restore` writes off: serials that were taken, told to nobody, and lost with Redis.
create table seckill_void (
    item text not null,
    epoch text not null,
    serial integer not null,
    primary key (item, epoch, serial)
);
