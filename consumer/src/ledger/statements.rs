//! The SQL statements of the ledger, written once for both databases.
//!
//! sqlx gives each database its own types, so the same text is compiled for each. Backticks quote names in
//! both (`offset` and `partition` are reserved words).

/// A sale's columns, in the order of every insert.
macro_rules! columns {
    () => {
        "info, `date`, topic, `partition`, `offset`, order_id, item, epoch, term, serial, remaining, attempt, buyer"
    };
}

/// A sale's columns, as [`statements`] reads them back: a time is text of 26 characters.
macro_rules! select_sale {
    () => {
        "select cast(`date` as char(26)) as sold_at, topic, `partition`, `offset`, order_id, item, epoch, term, \
         serial, remaining, attempt, buyer from seckill where "
    };
}

/// Defines `$name`, the statements on a connection to `$database`. `$failed` classifies an error, `$words`
/// words a transient one, an insert of `$usual` rows is prepared once, `$lock` makes a select lock its row,
/// `$share` does so in shared mode.
macro_rules! statements {
    ($name:ident, $database:ty, $failed:path, $words:path, $usual:path, $lock:literal, $share:literal) => {
        /// The ledger's statements on one connection, inside a transaction or not.
        pub(super) struct $name<'c>(pub(super) &'c mut <$database as sqlx::Database>::Connection);

        type Builder = sqlx::QueryBuilder<$database>;
        type Values = <$database as sqlx::Database>::Arguments;
        type DatabaseRow = <$database as sqlx::Database>::Row;

        impl $name<'_> {
            /// Checks that every table has the columns used; the error names one that does not.
            pub(super) async fn well_shaped(&mut self) -> Result<(), LedgerError> {
                for (table, look) in TABLES {
                    sqlx::query(look).fetch_optional(&mut *self.0).await.map_err(|error| match failed(error) {
                        LedgerError::Broken(why) => LedgerError::Broken(format!("table {table}: {why}")),
                        other => other,
                    })?;
                }
                Ok(())
            }

            pub(super) async fn checkpoints(
                &mut self,
                topic: &str,
            ) -> Result<BTreeMap<i32, Checkpoint>, LedgerError> {
                let rows = sqlx::query(
                    "select `partition`, next_offset, fingerprint from journal_offset where topic = ?",
                )
                .bind(topic)
                .fetch_all(&mut *self.0)
                .await
                .map_err(failed)?;
                rows.iter()
                    .map(|row| Ok((row.try_get("partition").map_err(failed)?, checkpoint(row)?)))
                    .collect()
            }

            pub(super) async fn keys(&mut self, mine: &str, until: i64) -> Result<i64, LedgerError> {
                let add = sqlx::query("insert into seckill_key (name, used_until) values (?, ?)");
                noted(add.bind(mine).bind(until).execute(&mut *self.0).await.map(drop))?;
                let raise = sqlx::query("update seckill_key set used_until = ? where name = ? and used_until < ?");
                raise.bind(until).bind(mine).bind(until).execute(&mut *self.0).await.map_err(failed)?;
                sqlx::query_scalar("select coalesce(max(used_until), -1) from seckill_key where name <> ?")
                    .bind(mine)
                    .fetch_one(&mut *self.0)
                    .await
                    .map_err(failed)
            }

            pub(super) async fn find(&mut self, order: Uuid) -> Result<Option<Sale>, LedgerError> {
                let row = sqlx::query(concat!(select_sale!(), "order_id = ?"))
                    .bind(order.to_string())
                    .fetch_optional(&mut *self.0)
                    .await
                    .map_err(failed)?;
                Ok(row.as_ref().map(standing).transpose()?.map(|standing| standing.sale))
            }

            pub(super) async fn in_conflict(&mut self, order: Uuid) -> Result<bool, LedgerError> {
                let row = sqlx::query("select 1 from seckill_conflict where order_id = ? and reason <> 'late' limit 1");
                let row = row.bind(order.to_string()).fetch_optional(&mut *self.0).await.map_err(failed)?;
                Ok(row.is_some())
            }

            pub(super) async fn begin_sale(
                &mut self,
                item: &str,
                epoch: Uuid,
                units: u64,
                at: &str,
            ) -> Result<(), LedgerError> {
                let units = i64::try_from(units)
                    .map_err(|_| LedgerError::Broken(format!("{units} units are more than it can hold")))?;
                let inserted = sqlx::query("insert into seckill_term (item, epoch, units, began_at) values (?, ?, ?, ?)")
                    .bind(item)
                    .bind(epoch.to_string())
                    .bind(units)
                    .bind(at)
                    .execute(&mut *self.0)
                    .await;
                noted(inserted.map(drop))
            }

            pub(super) async fn withdraw_sale(&mut self, item: &str, epoch: Uuid) -> Result<(), LedgerError> {
                let epoch = epoch.to_string();
                sqlx::query(
                    "delete from seckill_term where item = ? and epoch = ? \
                     and not exists (select 1 from seckill where item = ? and epoch = ?)",
                )
                .bind(item)
                .bind(&epoch)
                .bind(item)
                .bind(&epoch)
                .execute(&mut *self.0)
                .await
                .map(drop)
                .map_err(failed)
            }

            /// Lists sales, of one item or of all.
            async fn listing(
                &mut self,
                select: &'static str,
                filter: &'static str,
                item: Option<&str>,
                rest: &'static str,
            ) -> Result<Vec<DatabaseRow>, LedgerError> {
                let mut query = Builder::new(select);
                query.push(filter);
                if let Some(item) = item {
                    query.push(if filter.is_empty() { " where item = " } else { " and item = " }).push_bind(item);
                }
                query.push(rest);
                query.build().fetch_all(&mut *self.0).await.map_err(failed)
            }

            pub(super) async fn sales(&mut self, item: Option<&str>) -> Result<Vec<SaleRecord>, LedgerError> {
                let mut sales = BTreeMap::new();
                for row in self.listing("select item, epoch from seckill_term", "", item, "").await? {
                    let (item, epoch) = sale_of(&row)?;
                    sales.entry((item.clone(), epoch)).or_insert_with(|| unrecorded(item, epoch));
                }
                // The databases skip from sale to sale with the index on (item, epoch, serial).
                let recorded = "select item, epoch, max(serial) as highest from seckill";
                for row in self.listing(recorded, "", item, " group by item, epoch").await? {
                    let (item, epoch) = sale_of(&row)?;
                    let sale = sales.entry((item.clone(), epoch)).or_insert_with(|| unrecorded(item, epoch));
                    sale.highest = unsigned(&row, "highest")?;
                }
                let conflicts = "select item, epoch, count(*) as conflicts from seckill_conflict";
                for row in self.listing(conflicts, " where reason <> 'late'", item, " group by item, epoch").await? {
                    let (item, epoch) = sale_of(&row)?;
                    let sale = sales.entry((item.clone(), epoch)).or_insert_with(|| unrecorded(item, epoch));
                    sale.conflicts = unsigned(&row, "conflicts")?;
                }
                let doubled = "select distinct item, epoch, serial from seckill_conflict";
                let first = " order by serial limit 1000";
                for row in self.listing(doubled, " where reason <> 'late'", item, first).await? {
                    let sale = sales.get_mut(&sale_of(&row)?);
                    let serial = unsigned(&row, "serial")?;
                    sale.into_iter().for_each(|sale| sale.doubled.push(serial));
                }
                let archived = self.archived(item).await?;
                sales.retain(|sale, _| !archived.contains(sale));
                Ok(sales.into_values().collect())
            }

            /// Every sale with recorded rows has a term row: the fence creates it.
            pub(super) async fn newest(&mut self) -> Result<BTreeMap<String, Uuid>, LedgerError> {
                let mut newest = BTreeMap::new();
                for table in [
                    "select item, max(epoch) as epoch from seckill_term",
                    "select item, max(epoch) as epoch from seckill_archive",
                ] {
                    for row in self.listing(table, "", None, " group by item").await? {
                        let (item, epoch) = sale_of(&row)?;
                        let known = newest.entry(item).or_insert(epoch);
                        *known = epoch.max(*known);
                    }
                }
                Ok(newest)
            }

            pub(super) async fn ahead(&mut self, sales: &[Standpoint]) -> Result<Vec<Standpoint>, LedgerError> {
                let mut ahead = Vec::new();
                for some in sales.chunks(SALES_AT_ONCE) {
                    let mut query = Builder::new("");
                    for (number, sale) in (0_i64..).zip(some) {
                        query.push(if number == 0 { "select " } else { " union all select " }).push(number);
                        query.push(" as number, exists (select 1 from seckill where item = ").push_bind(&sale.item);
                        query.push(" and epoch = ").push_bind(sale.epoch.to_string()).push(" and serial > ");
                        query.push_bind(signed(sale.serial)).push(" and serial <= ").push_bind(signed(crate::sale::HIGHEST_SOLD));
                        query.push(") + exists (select 1 from seckill_term where item = ").push_bind(&sale.item);
                        query.push(" and epoch = ").push_bind(sale.epoch.to_string()).push(" and term > ");
                        query.push_bind(signed(sale.term)).push(") as further");
                    }
                    for row in query.build().persistent(false).fetch_all(&mut *self.0).await.map_err(failed)? {
                        if unsigned(&row, "further")? > 0 {
                            ahead.extend(some.get(unsigned(&row, "number")? as usize).cloned());
                        }
                    }
                }
                Ok(ahead)
            }

            /// The sale's row exists already.
            pub(super) async fn raise_term(
                &mut self,
                item: &str,
                epoch: Uuid,
                from: u64,
            ) -> Result<bool, LedgerError> {
                let raised = sqlx::query(
                    "update seckill_term set term = term + 1 where item = ? and epoch = ? and term = ?",
                )
                .bind(item)
                .bind(epoch.to_string())
                .bind(signed(from))
                .execute(&mut *self.0)
                .await
                .map_err(failed)?;
                Ok(raised.rows_affected() > 0)
            }

            pub(super) async fn account(&mut self, item: &str, epoch: Uuid) -> Result<Account, LedgerError> {
                let epoch = epoch.to_string();
                let row = sqlx::query(
                    "select (select coalesce(max(term), 0) from seckill_term where item = ? and epoch = ?) as term, \
                     (select coalesce(max(units), 0) from seckill_term where item = ? and epoch = ?) as units, \
                     (select coalesce(max(serial), 0) from seckill where item = ? and epoch = ? and serial <= 1000000000000) as highest, \
                     (select coalesce(max(coalesce(last_serial, serial)), 0) from seckill_void where item = ? and epoch = ?) as void_upto, \
                     (select count(*) from seckill_conflict where reason <> 'late' and item = ? and epoch = ?) as conflicts, \
                     (select coalesce(max(conflicts), 0) from seckill_restore where item = ? and epoch = ?) as accepted, \
                     (select coalesce(max(newest), '') from seckill_restore where item = ? and epoch = ?) as decided, \
                     (select coalesce(max(epoch), '') from seckill_term where item = ? and epoch > ?) as begun, \
                     (select coalesce(max(epoch), '') from seckill where item = ? and epoch > ?) as sold",
                );
                let row = (0..9).fold(row, |row, _| row.bind(item).bind(&epoch));
                let row = row.fetch_one(&mut *self.0).await.map_err(failed)?;
                let last = sqlx::query("select remaining from seckill where item = ? and epoch = ? and serial = ?")
                    .bind(item)
                    .bind(&epoch)
                    .bind(row.try_get::<i64, _>("highest").map_err(failed)?)
                    .fetch_optional(&mut *self.0)
                    .await
                    .map_err(failed)?;
                let known = |column: &str| row.try_get::<String, _>(column).map_err(failed);
                let newer = known("begun")?.max(known("sold")?);
                Ok(Account {
                    term: unsigned(&row, "term")?,
                    highest: unsigned(&row, "highest")?,
                    void_upto: unsigned(&row, "void_upto")?,
                    remaining: match &last {
                        Some(last) => unsigned(last, "remaining")?,
                        None => unsigned(&row, "units")?,
                    },
                    newer: match newer > known("decided")? {
                        true => Some(newer.parse().map_err(|error| odd("epoch", error))?),
                        false => None,
                    },
                    disputed: unsigned(&row, "conflicts")?.saturating_sub(unsigned(&row, "accepted")?),
                })
            }

            pub(super) async fn page(
                &mut self,
                item: &str,
                epoch: Uuid,
                after: u64,
                serials: u32,
            ) -> Result<Page, LedgerError> {
                // The next serial by index alone, then a range between two serials: with one bound and a
                // limit, MariaDB may read the sale from its start for each page.
                let next = sqlx::query(
                    "select coalesce(min(serial), 0) as first from seckill where item = ? and epoch = ? and serial > ?",
                )
                .bind(item)
                .bind(epoch.to_string())
                .bind(signed(after))
                .fetch_one(&mut *self.0)
                .await
                .map_err(failed)?;
                let first = unsigned(&next, "first")?;
                if first == 0 {
                    return Ok(Page { rows: 0, last: 0 });
                }
                let row = sqlx::query(
                    "select count(*) as counted, coalesce(max(serial), 0) as last from seckill \
                     where item = ? and epoch = ? and serial >= ? and serial <= ?",
                )
                .bind(item)
                .bind(epoch.to_string())
                .bind(signed(first))
                .bind(signed(first.saturating_add(u64::from(serials) - 1)))
                .fetch_one(&mut *self.0)
                .await
                .map_err(failed)?;
                Ok(Page { rows: unsigned(&row, "counted")?, last: unsigned(&row, "last")? })
            }

            pub(super) async fn orders(
                &mut self,
                item: &str,
                epoch: Uuid,
                after: u64,
                upto: u64,
            ) -> Result<Vec<(u64, Uuid)>, LedgerError> {
                let rows = sqlx::query(
                    "select serial, order_id from seckill where item = ? and epoch = ? and serial > ? and serial <= ? \
                     order by serial",
                )
                .bind(item)
                .bind(epoch.to_string())
                .bind(signed(after))
                .bind(signed(upto))
                .fetch_all(&mut *self.0)
                .await
                .map_err(failed)?;
                rows.iter().map(|row| Ok((unsigned(row, "serial")?, uuid(row, "order_id")?))).collect()
            }

            pub(super) async fn voids(
                &mut self,
                item: &str,
                epoch: Uuid,
                after: u64,
                upto: u64,
            ) -> Result<Vec<RangeInclusive<u64>>, LedgerError> {
                let rows = sqlx::query(
                    "select serial, coalesce(last_serial, serial) as last from seckill_void where item = ? and epoch = ? \
                     and serial <= ? and coalesce(last_serial, serial) > ? order by serial",
                )
                .bind(item)
                .bind(epoch.to_string())
                .bind(signed(upto))
                .bind(signed(after))
                .fetch_all(&mut *self.0)
                .await
                .map_err(failed)?;
                rows.iter().map(|row| Ok(unsigned(row, "serial")?..=unsigned(row, "last")?)).collect()
            }

            pub(super) async fn void(
                &mut self,
                item: &str,
                epoch: Uuid,
                runs: &[RangeInclusive<u64>],
            ) -> Result<(), LedgerError> {
                for some in runs.chunks(RUNS_AT_ONCE) {
                    if self.void_all(item, epoch, some).await? == Written::Taken {
                        for run in some {
                            self.void_all(item, epoch, std::slice::from_ref(run)).await?;
                        }
                    }
                }
                Ok(())
            }

            /// Writes all runs or none.
            async fn void_all(
                &mut self,
                item: &str,
                epoch: Uuid,
                runs: &[RangeInclusive<u64>],
            ) -> Result<Written, LedgerError> {
                let epoch = epoch.to_string();
                let mut query = Builder::new("insert into seckill_void (item, epoch, serial, last_serial) ");
                query.push_values(runs, |mut row, run| {
                    row.push_bind(item).push_bind(&epoch).push_bind(signed(*run.start())).push_bind(signed(*run.end()));
                });
                match written(query.build().persistent(false).execute(&mut *self.0).await.map(drop))? {
                    Written::Refused(error) => Err(LedgerError::Broken(error)),
                    done => Ok(done),
                }
            }

            pub(super) async fn winners(
                &mut self,
                item: &str,
                epoch: Uuid,
                after: u64,
                upto: u64,
            ) -> Result<Vec<Sale>, LedgerError> {
                // Two bounds: with the lower one alone, MariaDB reads the whole sale for each page.
                let rows = sqlx::query(concat!(
                    select_sale!(),
                    "item = ? and epoch = ? and serial > ? and serial <= ? and attempt is not null order by serial"
                ))
                .bind(item)
                .bind(epoch.to_string())
                .bind(signed(after))
                .bind(signed(upto))
                .fetch_all(&mut *self.0)
                .await
                .map_err(failed)?;
                rows.iter().map(|row| Ok(standing(row)?.sale)).collect()
            }

            pub(super) async fn restored(
                &mut self,
                item: &str,
                epoch: Uuid,
                restored: Restored,
                at: &str,
            ) -> Result<(), LedgerError> {
                let known = self.newest().await?.get(item).map_or(epoch, |newest| epoch.max(*newest));
                let epoch = epoch.to_string();
                // A stock that loses nothing raises no term, so the same term may be restored again.
                let replaced = sqlx::query(
                    "replace into seckill_restore (item, epoch, term, serial, remaining, conflicts, newest, restored_at) \
                     select ?, ?, ?, ?, ?, count(*), ?, ? from seckill_conflict where reason <> 'late' and item = ? and epoch = ?",
                )
                .bind(item)
                .bind(&epoch)
                .bind(signed(restored.term))
                .bind(signed(restored.serial))
                .bind(signed(restored.remaining))
                .bind(known.to_string())
                .bind(at)
                .bind(item)
                .bind(&epoch)
                .execute(&mut *self.0)
                .await;
                replaced.map(drop).map_err(failed)
            }

            /// `settled` is the last undisputed state: the last conflict's id plus the number of conflicts,
            /// since one may become visible before another with a lower id.
            pub(super) async fn disputed(
                &mut self,
                settled: &AtomicI64,
            ) -> Result<Vec<(String, Uuid)>, LedgerError> {
                let last = sqlx::query_scalar("select coalesce(max(id), 0) + count(*) from seckill_conflict");
                let last: i64 = last.fetch_one(&mut *self.0).await.map_err(failed)?;
                if settled.load(Ordering::Acquire) == last {
                    return Ok(Vec::new());
                }
                let conflicts = "select item, epoch, count(*) as conflicts, (select coalesce(max(conflicts), 0) \
                     from seckill_restore as decided where decided.item = aside.item and decided.epoch = aside.epoch) as accepted \
                     from seckill_conflict as aside";
                let mut disputed = Vec::new();
                for row in self.listing(conflicts, " where reason <> 'late'", None, " group by item, epoch").await? {
                    if unsigned(&row, "conflicts")? > unsigned(&row, "accepted")? {
                        disputed.push(sale_of(&row)?);
                    }
                }
                if disputed.is_empty() {
                    settled.store(last, Ordering::Release);
                }
                Ok(disputed)
            }

            pub(super) async fn archive(
                &mut self,
                item: &str,
                epoch: Uuid,
                closed: Closed,
                at: &str,
            ) -> Result<(), LedgerError> {
                let inserted = sqlx::query(
                    "insert into seckill_archive (item, epoch, seeded, remaining, sold, recorded, void, archived_at) \
                     values (?, ?, ?, ?, ?, ?, ?, ?)",
                )
                .bind(item)
                .bind(epoch.to_string())
                .bind(signed(closed.seeded))
                .bind(signed(closed.remaining))
                .bind(signed(closed.sold))
                .bind(signed(closed.recorded))
                .bind(signed(closed.void))
                .bind(at)
                .execute(&mut *self.0)
                .await;
                noted(inserted.map(drop))
            }

            pub(super) async fn archived(
                &mut self,
                item: Option<&str>,
            ) -> Result<BTreeSet<(String, Uuid)>, LedgerError> {
                let rows = self.listing("select item, epoch from seckill_archive", "", item, "").await?;
                rows.iter().map(sale_of).collect()
            }

            pub(super) async fn faults(&mut self) -> Result<Faults, LedgerError> {
                let row = sqlx::query(
                    "select (select count(*) from seckill_conflict where reason <> 'late') as conflicts, \
                     (select count(*) from seckill_dead_letter) as dead_letters",
                )
                .fetch_one(&mut *self.0)
                .await
                .map_err(failed)?;
                Ok(Faults { conflicts: unsigned(&row, "conflicts")?, dead_letters: unsigned(&row, "dead_letters")? })
            }
        }

        #[async_trait]
        impl Tables for $name<'_> {
            async fn lock(&mut self, topic: &str, partition: i32) -> Result<Option<Checkpoint>, LedgerError> {
                let row = sqlx::query(concat!(
                    "select next_offset, fingerprint from journal_offset where topic = ? and `partition` = ?",
                    $lock
                ))
                .bind(topic)
                .bind(partition)
                .fetch_optional(&mut *self.0)
                .await
                .map_err(failed)?;
                row.as_ref().map(checkpoint).transpose()
            }

            async fn advance(
                &mut self,
                topic: &str,
                partition: i32,
                to: &Checkpoint,
                known: bool,
            ) -> Result<Written, LedgerError> {
                let statement = if known {
                    "update journal_offset set next_offset = ?, fingerprint = ? where topic = ? and `partition` = ?"
                } else {
                    "insert into journal_offset (next_offset, fingerprint, topic, `partition`) values (?, ?, ?, ?)"
                };
                let done = sqlx::query(statement)
                    .bind(to.next)
                    .bind(&to.fingerprint)
                    .bind(topic)
                    .bind(partition)
                    .execute(&mut *self.0)
                    .await;
                written(done.map(drop))
            }

            async fn fence(&mut self, item: &str, epoch: Uuid) -> Result<Option<u64>, LedgerError> {
                let fence = concat!("select term from seckill_term where item = ? and epoch = ?", $share);
                // A sale begun by hand has no row yet, and a missing row cannot be locked.
                for _ in 0..2 {
                    let row = sqlx::query(fence)
                        .bind(item)
                        .bind(epoch.to_string())
                        .fetch_optional(&mut *self.0)
                        .await
                        .map_err(failed)?;
                    if let Some(row) = row {
                        return unsigned(&row, "term").map(Some);
                    }
                    self.begin_sale(item, epoch, 0, &datetime(Timestamp::now())).await?;
                }
                Err(LedgerError::Away("the sale's row cannot be seen".into()))
            }

            async fn record(&mut self, rows: &[&Row<'_>]) -> Result<Written, LedgerError> {
                let mut values = Values::default();
                for row in rows {
                    add(&mut values, row).map_err(unwritable)?;
                }
                let insert = sqlx::query_with(sqlx::AssertSqlSafe(insert(rows.len())), values);
                written(insert.persistent(rows.len() == $usual).execute(&mut *self.0).await.map(drop))
            }

            async fn standing(&mut self, rows: &[&Row<'_>]) -> Result<Vec<Standing>, LedgerError> {
                let mut found = Vec::new();
                let mut by_order = Builder::new(concat!(select_sale!(), "order_id in ("));
                list(&mut by_order, rows.iter().map(|row| row.sale.order.to_string()));
                let mut units: BTreeMap<(&str, Uuid), Vec<i64>> = BTreeMap::new();
                let mut places: BTreeMap<(&str, i32), Vec<i64>> = BTreeMap::new();
                for row in rows {
                    units.entry((&row.sale.item, row.sale.epoch)).or_default().push(row.serial);
                    places.entry((row.topic, row.partition)).or_default().push(row.message.offset);
                }
                let by_unit = units.into_iter().map(|((item, epoch), serials)| {
                    let mut query = Builder::new(concat!(select_sale!(), "item = "));
                    query.push_bind(item).push(" and epoch = ").push_bind(epoch.to_string()).push(" and serial in (");
                    list(&mut query, serials.into_iter());
                    query
                });
                let by_place = places.into_iter().map(|((topic, partition), offsets)| {
                    let mut query = Builder::new(concat!(select_sale!(), "topic = "));
                    query.push_bind(topic).push(" and `partition` = ").push_bind(partition).push(" and `offset` in (");
                    list(&mut query, offsets.into_iter());
                    query
                });
                let queries: Vec<Builder> = std::iter::once(by_order).chain(by_unit).chain(by_place).collect();
                for mut query in queries {
                    let rows = query.build().persistent(false).fetch_all(&mut *self.0).await.map_err(failed)?;
                    for row in &rows {
                        found.push(standing(row)?);
                    }
                }
                Ok(found)
            }

            async fn set_aside(&mut self, row: &Row<'_>, reason: &str) -> Result<Written, LedgerError> {
                let mut values = Values::default();
                values.add(reason).and_then(|()| add(&mut values, row)).map_err(unwritable)?;
                written(sqlx::query_with(SET_ASIDE, values).execute(&mut *self.0).await.map(drop))
            }

            async fn bury(
                &mut self,
                topic: &str,
                partition: i32,
                message: &Message,
                error: &str,
            ) -> Result<Written, LedgerError> {
                let inserted = sqlx::query(
                    "insert into seckill_dead_letter (topic, `partition`, `offset`, bytes, error) values (?, ?, ?, ?, ?)",
                )
                .bind(topic)
                .bind(partition)
                .bind(message.offset)
                .bind(message.value.as_slice())
                .bind(error)
                .execute(&mut *self.0)
                .await;
                written(inserted.map(drop))
            }
        }

        /// Classifies an error outside of inserts: transient or permanent.
        fn failed(error: sqlx::Error) -> LedgerError {
            match $failed(&error) {
                Failure::Broken => LedgerError::Broken(broken(&error)),
                Failure::Away | Failure::Taken | Failure::Refused => LedgerError::Away($words(&error)),
            }
        }

        /// The outcome of an insert.
        fn written(result: Result<(), sqlx::Error>) -> Result<Written, LedgerError> {
            match result {
                Ok(()) => Ok(Written::Done),
                Err(error) => match $failed(&error) {
                    Failure::Taken => Ok(Written::Taken),
                    Failure::Refused => Ok(Written::Refused(error.to_string())),
                    Failure::Away | Failure::Broken => Err(failed(error)),
                },
            }
        }

        /// Idempotent insert: a taken key is fine.
        fn noted(result: Result<(), sqlx::Error>) -> Result<(), LedgerError> {
            match written(result)? {
                Written::Done | Written::Taken => Ok(()),
                Written::Refused(error) => Err(LedgerError::Broken(error)),
            }
        }

        /// Adds a row's values in column order.
        fn add(values: &mut Values, row: &Row<'_>) -> Result<(), sqlx::error::BoxDynError> {
            let mut text = Uuid::encode_buffer();
            values.add(row.info)?;
            values.add(row.sold_at.as_str())?;
            values.add(row.topic)?;
            values.add(row.partition)?;
            values.add(row.message.offset)?;
            values.add(&*row.sale.order.as_hyphenated().encode_lower(&mut text))?;
            values.add(row.sale.item.as_str())?;
            values.add(&*row.sale.epoch.as_hyphenated().encode_lower(&mut text))?;
            values.add(row.term)?;
            values.add(row.serial)?;
            values.add(row.remaining)?;
            values.add(row.sale.attempt.as_deref())?;
            values.add(row.sale.buyer.as_deref())
        }

        fn unwritable(error: sqlx::error::BoxDynError) -> LedgerError {
            failed(sqlx::Error::Encode(error))
        }

        fn list<T>(query: &mut Builder, values: impl Iterator<Item = T>)
        where
            T: for<'q> sqlx::Encode<'q, $database> + sqlx::Type<$database>,
        {
            let mut list = query.separated(", ");
            for value in values {
                list.push_bind(value);
            }
            list.push_unseparated(")");
        }

        fn checkpoint(row: &DatabaseRow) -> Result<Checkpoint, LedgerError> {
            Ok(Checkpoint {
                next: row.try_get("next_offset").map_err(failed)?,
                fingerprint: row.try_get("fingerprint").map_err(failed)?,
            })
        }

        fn standing(row: &DatabaseRow) -> Result<Standing, LedgerError> {
            let sold_at: String = row.try_get("sold_at").map_err(failed)?;
            let (item, epoch) = sale_of(row)?;
            Ok(Standing {
                topic: row.try_get("topic").map_err(failed)?,
                partition: row.try_get("partition").map_err(failed)?,
                offset: row.try_get("offset").map_err(failed)?,
                sale: Sale {
                    order: uuid(row, "order_id")?,
                    item,
                    epoch,
                    term: unsigned(row, "term")?,
                    serial: unsigned(row, "serial")?,
                    remaining: unsigned(row, "remaining")?,
                    attempt: row.try_get("attempt").map_err(failed)?,
                    buyer: row.try_get("buyer").map_err(failed)?,
                    sold_at: timestamp(&sold_at).map_err(|error| odd("date", error))?,
                },
            })
        }

        fn sale_of(row: &DatabaseRow) -> Result<(String, Uuid), LedgerError> {
            Ok((row.try_get("item").map_err(failed)?, uuid(row, "epoch")?))
        }

        fn uuid(row: &DatabaseRow, column: &str) -> Result<Uuid, LedgerError> {
            let text: String = row.try_get(column).map_err(failed)?;
            text.parse().map_err(|error| odd(column, error))
        }

        fn unsigned(row: &DatabaseRow, column: &str) -> Result<u64, LedgerError> {
            let number: i64 = row.try_get(column).map_err(failed)?;
            u64::try_from(number).map_err(|error| odd(column, error))
        }
    };
}

pub(super) use {select_sale, statements};

/// Sales per statement.
pub(super) const SALES_AT_ONCE: usize = 50;

/// Voided runs per insert.
pub(super) const RUNS_AT_ONCE: usize = 500;

/// The number of [`columns`].
const COLUMNS: usize = 13;

/// Inserts so many rows.
pub(super) fn insert(rows: usize) -> String {
    let row = format!("({})", ["?"; COLUMNS].join(", "));
    let rows = vec![row; rows].join(", ");
    format!(concat!("insert into seckill (", columns!(), ") values {}"), rows)
}

/// Inserts a sale set aside.
pub(super) const SET_ASIDE: &str = concat!(
    "insert into seckill_conflict (reason, ",
    columns!(),
    ") values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
);

/// Every table, with a query for the columns in use.
pub(super) const TABLES: [(&str, &str); 9] = [
    ("seckill", concat!("select ", columns!(), " from seckill where 1 = 0")),
    ("journal_offset", "select topic, `partition`, next_offset, fingerprint from journal_offset where 1 = 0"),
    ("seckill_conflict", concat!("select reason, ", columns!(), " from seckill_conflict where 1 = 0")),
    (
        "seckill_dead_letter",
        "select topic, `partition`, `offset`, bytes, error from seckill_dead_letter where 1 = 0",
    ),
    ("seckill_term", "select item, epoch, term, units, began_at from seckill_term where 1 = 0"),
    ("seckill_void", "select item, epoch, serial, last_serial from seckill_void where 1 = 0"),
    (
        "seckill_restore",
        "select item, epoch, term, serial, remaining, conflicts, newest, restored_at from seckill_restore where 1 = 0",
    ),
    (
        "seckill_archive",
        "select item, epoch, seeded, remaining, sold, recorded, void, archived_at from seckill_archive where 1 = 0",
    ),
    ("seckill_key", "select name, used_until from seckill_key where 1 = 0"),
];

/// SQLSTATE of a missing column or table, and SQLite's code of a statement that does not fit the tables.
const MISSHAPEN: [&str; 3] = ["42S22", "42S02", "1"];

/// The error with its remedy, where one is known.
pub(super) fn broken(error: &sqlx::Error) -> String {
    let code = error.as_database_error().and_then(|error| error.code());
    if code.is_some_and(|code| MISSHAPEN.contains(&&*code)) {
        format!(
            "{error}; put back what is missing (sql/ has the tables) and start again: nothing was skipped"
        )
    } else {
        error.to_string()
    }
}

use uuid::Uuid;

use super::{LedgerError, SaleRecord};

/// The class of a database error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// Unreachable, busy, temporarily refusing: retry.
    Away,
    /// A unique key is taken.
    Taken,
    /// A value itself is refused.
    Refused,
    /// Retrying does not help.
    Broken,
}

/// A value that no row of ours has.
pub(super) fn odd(column: &str, error: impl std::fmt::Display) -> LedgerError {
    LedgerError::Broken(format!("column {column} holds what was never written there: {error}"))
}

/// A sale without recorded rows.
pub(super) fn unrecorded(item: String, epoch: Uuid) -> SaleRecord {
    SaleRecord { item, epoch, highest: 0, conflicts: 0, doubled: Vec::new() }
}

/// A number in the column's type; a larger one is above every row.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
