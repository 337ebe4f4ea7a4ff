#!/usr/bin/env bash
# Makes the database and its two users when MySQL starts on an empty volume: one for daily
# work, which cannot change a table, and one for `consumer migrate`, which can.
set -euo pipefail

# The passwords stand in SQL below and in the programs' addresses; these characters mean
# nothing in either.
for name in MYSQL_SECKILL_PASSWORD MYSQL_MIGRATE_PASSWORD; do
  if [[ ! ${!name-} =~ ^[A-Za-z0-9._~-]+$ ]]; then
    printf 'error: %s: letters, digits and . _ ~ - only, at least one\n' "$name" >&2
    exit 1
  fi
done

# In the environment, where `ps` does not show it.
MYSQL_PWD=$MYSQL_ROOT_PASSWORD mysql --user=root <<SQL
create database if not exists seckill character set utf8mb4;
create user if not exists seckill@'%' identified by '$MYSQL_SECKILL_PASSWORD';
create user if not exists seckill_migrate@'%' identified by '$MYSQL_MIGRATE_PASSWORD';
grant select, insert, update, delete on seckill.* to seckill@'%';
grant select, insert, update, delete, create, alter, drop, index, references
  on seckill.* to seckill_migrate@'%';
SQL
