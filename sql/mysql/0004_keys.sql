-- Until when order ids were made with which key.
create table if not exists seckill_key (
    name varchar(16) character set ascii collate ascii_bin not null comment 'a name of the key; empty: none',
    used_until bigint not null comment 'Unix milliseconds',
    primary key (name)
) engine = InnoDB default character set utf8mb4 collate utf8mb4_bin
  comment = 'keys of order ids';

-- Where there were sales there are ids without a check, and perhaps nodes that still make them.
insert ignore into seckill_key (name, used_until)
select '', (unix_timestamp() + 86400) * 1000 from dual
where exists (select 1 from seckill_term) or exists (select 1 from seckill);
