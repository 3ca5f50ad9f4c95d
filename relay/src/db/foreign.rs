//! Outbox tables of other programs. Their names and columns are known only at run time, so the
//! statements that read them are made here and nowhere else: every identifier in them was quoted by
//! PostgreSQL itself and comes from its catalog, never from a setting.

use std::ops::RangeInclusive;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;

use super::outbox::{self, Read};
use super::status::{Backlog, COUNTED, GAPS};
use crate::foreign::{Column, ForeignOutbox, Sequence, Table, TopicTemplate};
use crate::publish::core::ParkedEvent;
use crate::publish::row::{Event, ForeignEvent, Row};
use crate::sink::SinkName;

/// The catalog's description of a table; none when there is none of that name.
///
/// # Errors
/// Whatever the database says, of a name that is no name too.
pub(crate) async fn describe(pool: &PgPool, name: &str) -> Result<Option<Table>, sqlx::Error> {
    let Some(table) = sqlx::query!(
        r#"
        select format('%I.%I', nspname, relname) as "name!",
               relkind = 'r' and not relispartition
                   and not exists (select from pg_inherits where inhparent = class.oid) as "is_ordinary!",
               relpersistence = 'p' as "is_logged!",
               row_security_active(class.oid) as "hides_rows!",
               has_table_privilege(class.oid, 'select') as "is_readable!",
               exists (
                   select from pg_index join pg_attribute on attrelid = indrelid and attname = 'seq'
                   where indrelid = class.oid and indisunique and indisvalid and indnkeyatts = 1
                     and indkey[0] = attnum and indpred is null
               ) as "has_unique_seq!"
        from pg_class as class join pg_namespace as namespace on namespace.oid = relnamespace
        where class.oid = to_regclass($1)
        "#,
        name,
    )
    .fetch_optional(pool)
    .await?
    else {
        return Ok(None);
    };
    let columns = sqlx::query_as!(
        Column,
        r#"
        select attname::text as "name!", quote_ident(attname) as "quoted!",
               format_type(coalesce(nullif(typbasetype, 0), atttypid), null) as "kind!",
               attnotnull as "not_null!"
        from pg_attribute join pg_type on pg_type.oid = atttypid
        where attrelid = to_regclass($1) and attnum > 0 and not attisdropped
        order by attnum
        "#,
        name,
    )
    .fetch_all(pool)
    .await?;
    // What belongs to the column: an internal dependency of an identity, or one that `owned by` made.
    let sequence = sqlx::query_as!(
        Sequence,
        r#"
        select seqcache as "cache!", seqincrement as "increment!", seqcycle as "cycles!"
        from pg_sequence
        join pg_depend on objid = seqrelid and classid = 'pg_class'::regclass and deptype in ('a', 'i')
        join pg_attribute on attrelid = refobjid and attnum = refobjsubid
        where refobjid = to_regclass($1) and attname = 'seq'
        "#,
        name,
    )
    .fetch_optional(pool)
    .await?;
    Ok(Some(Table {
        name: table.name,
        is_ordinary: table.is_ordinary,
        is_logged: table.is_logged,
        hides_rows: table.hides_rows,
        is_readable: table.is_readable,
        columns,
        sequence,
        has_unique_seq: table.has_unique_seq,
    }))
}

/// A foreign outbox table that can be read.
#[derive(Clone, Debug)]
pub(crate) struct ForeignTable {
    name: String,
    topic: TopicTemplate,
    headers: Vec<Arc<str>>,
    read: Arc<str>,
    park: Arc<str>,
}

/// Why a foreign outbox table cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    /// PostgreSQL did not answer, or refused.
    #[error("PostgreSQL: {0}")]
    Database(#[from] sqlx::Error),
    /// The table is not what it must be.
    #[error("OUTBOX_TABLE={table}: {reason}; `relay adopt` says more")]
    Unfit {
        /// The setting.
        table: String,
        /// What is wrong.
        reason: String,
    },
}

impl ForeignTable {
    /// Looks at the table and makes the statements that read it.
    ///
    /// # Errors
    /// [`Unreadable`]
    pub(crate) async fn open(pool: &PgPool, outbox: &ForeignOutbox) -> Result<Self, Unreadable> {
        let unfit = |reason| Unreadable::Unfit { table: outbox.table.clone(), reason };
        let table =
            describe(pool, &outbox.table).await?.ok_or_else(|| unfit("there is no such table".to_owned()))?;
        let unreadable = (!table.is_readable).then(|| "this role may not read it".to_owned());
        let misfit = table.misfits(&outbox.headers).into_iter().next();
        match unreadable.or(misfit).or_else(|| table.misnumbered()) {
            Some(reason) => Err(unfit(reason)),
            None => Ok(Self::new(&table, outbox)),
        }
    }

    fn new(table: &Table, outbox: &ForeignOutbox) -> Self {
        let is = |column: &str, kind: &str| table.column(column).is_some_and(|column| column.kind == kind);
        // What Kafka gets: the bytes of bytea, the text of everything else.
        let payload = if is("payload", "bytea") { "payload" } else { "convert_to(payload::text, 'UTF8')" };
        let event_id = if is("id", "uuid") { "id".to_owned() } else { hashed(&["id"]) };
        let aggregate = hashed(&["aggregatetype", "aggregateid"]);
        let headers: Vec<String> = outbox
            .headers
            .iter()
            .filter_map(|pair| table.column(&pair.column))
            .map(|column| format!("{}::text", column.quoted))
            .collect();
        let (headers, name) = (headers.join(", "), &table.name);
        let read = format!(
            "select seq, {aggregate}, id::text, aggregatetype::text, aggregateid::text, {payload}, array[{headers}]::text[]
             from (
                 (select event.*
                  from unnest($1::int8[], $2::int8[]) as open(from_seq, to_seq)
                  cross join lateral (
                      select * from {name} where seq between open.from_seq and open.to_seq order by seq limit $4
                  ) as event
                  order by event.seq
                  limit $4)
                 union all
                 (select * from {name} where seq > $3 order by seq limit $4)
             ) as source
             where pg_postmaster_start_time() = $5
             order by seq
             limit $4"
        );
        let park = format!(
            "insert into relay_dead (sink, seq, event_id, aggregate_type, aggregate_id, version, type, payload, headers,
                                     created_at, cause, detail, source_id, source_key, source_value)
             select $1, seq, {event_id}, aggregatetype, {aggregate}, 0, coalesce(type, ''), 'null',
                    jsonb_object($4::text[], array[{headers}]::text[]), clock_timestamp(),
                    case when parked.refusal is null then 'behind' else 'refused' end,
                    coalesce(parked.refusal, 'an earlier event of this order is parked'), id::text, aggregateid::text, {payload}
             from {name} as source join unnest($2::int8[], $3::text[]) as parked(seq, refusal) using (seq)
             on conflict on constraint relay_dead_pkey do nothing"
        );
        Self {
            name: table.name.clone(),
            topic: outbox.topic.clone(),
            headers: outbox.headers.iter().map(|pair| pair.header.as_str().into()).collect(),
            read: read.into(),
            park: park.into(),
        }
    }

    /// Schema and name, quoted where they need it.
    #[must_use]
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The topic of an aggregate type.
    #[must_use]
    pub(crate) fn topic(&self, aggregate_type: &str) -> String {
        self.topic.topic(aggregate_type)
    }

    /// The rows in `open` and those above `above`, ascending: `limit` at most, and no more once `bytes` are
    /// spent; in one statement and as a stream for the reasons of [`outbox::read`].
    ///
    /// # Errors
    /// Whatever the database says; the read can be repeated.
    pub(crate) async fn read(
        &self,
        pool: &PgPool,
        server_started: DateTime<Utc>,
        open: &[RangeInclusive<i64>],
        above: i64,
        limit: usize,
        bytes: usize,
    ) -> Result<Read, sqlx::Error> {
        type Columns = (i64, Uuid, String, String, String, Option<Vec<u8>>, Vec<Option<String>>);
        let (from, to) = outbox::ends(open);
        let row = |(seq, aggregate_id, id, aggregate_type, key, payload, values): Columns| Row {
            seq,
            aggregate_id,
            event: Event::Foreign(ForeignEvent {
                topic: self.topic.topic(&aggregate_type),
                id,
                key,
                payload,
                headers: self.headers.iter().cloned().zip(values).collect(),
            }),
        };
        let mut connection = pool.acquire().await?;
        let rows = sqlx::query_as(AssertSqlSafe(Arc::clone(&self.read)))
            .bind(from)
            .bind(to)
            .bind(above)
            .bind(i64::try_from(limit).unwrap_or(i64::MAX))
            .bind(server_started)
            .fetch(&mut *connection)
            .map_ok(row);
        let (read, ended) = outbox::take(rows, limit, bytes).await?;
        if !ended {
            outbox::abandon(connection);
        }
        Ok(read)
    }

    /// Copies events to the dead letters. One that is no longer in the table is not copied: who
    /// deletes an event before it is published takes it back. One that was retried in vain is there
    /// already, perhaps there alone, and gets its new cause.
    ///
    /// # Errors
    /// Whatever the database says.
    pub(crate) async fn park(
        &self,
        connection: &mut PgConnection,
        sink: &SinkName,
        parked: &[ParkedEvent],
    ) -> Result<(), sqlx::Error> {
        let (seqs, details): (Vec<i64>, Vec<Option<String>>) =
            parked.iter().map(|event| (event.seq, event.refusal.clone())).unzip();
        sqlx::query!(
            "update relay_dead
             set cause = case when refusal is null then 'behind' else 'refused' end,
                 detail = coalesce(refusal, 'an earlier event of this order is parked')
             from unnest($2::int8[], $3::text[]) as parked(seq, refusal)
             where relay_dead.sink = $1 and relay_dead.seq = parked.seq",
            sink.as_str(),
            &seqs,
            &details as &[Option<String>],
        )
        .execute(&mut *connection)
        .await?;
        sqlx::query(AssertSqlSafe(Arc::clone(&self.park)))
            .bind(sink.as_str())
            .bind(seqs)
            .bind(details)
            .bind(self.headers.iter().map(|header| header.to_string()).collect::<Vec<_>>())
            .execute(connection)
            .await
            .map(drop)
    }
}

/// What a sink has still to do in its foreign table, counted as [`status::backlog`] counts; none when the
/// table is not there, is not numbered or may not be read by this role. Its rows tell no time.
///
/// # Errors
/// Whatever the database says.
pub(crate) async fn backlog(pool: &PgPool, sink: &str, source: &str) -> Result<Option<Backlog>, sqlx::Error> {
    let name = sqlx::query_scalar!(
        r#"
        select format('%I.%I', nspname, relname) as "name!"
        from pg_class as class
        join pg_namespace as namespace on namespace.oid = relnamespace
        join pg_attribute on attrelid = class.oid
        where class.oid = to_regclass($1) and attname = 'seq' and atttypid = 'int8'::regtype
          and has_table_privilege(class.oid, 'select')
        "#,
        source,
    )
    .fetch_optional(pool)
    .await?;
    let Some(name) = name else { return Ok(None) };
    let counted = format!(
        "with sink as materialized (
             select published, coalesce(upper(published), 1) as next from relay_sinks where sink = $1
         ), gap as materialized (
             select lower(range) as from_seq, upper(range) - 1 as to_seq
             from sink, unnest(int8multirange(int8range(1, greatest(next, 1))) - published) as range
             order by 1
         ), open as (
             (select from_seq, to_seq, true as below from gap limit $3)
             union all
             select next, 9223372036854775807, false from sink
         ), event as materialized (
             select open.below
             from open cross join lateral (
                 select from {name} as source
                 where source.seq between open.from_seq and open.to_seq order by source.seq limit $2
             ) as pending
             limit $2
         ), drawn as (
             select count(*) as gaps, coalesce(sum(to_seq - from_seq + 1), 0)::int8 as numbers from gap
         )
         select count(*), count(*) filter (where below), (select gaps from drawn), (select numbers from drawn),
                greatest(coalesce((select max(seq) from {name} as source), 0) + 1 - (select next from sink), 0)
         from event"
    );
    let (counted, below, gaps, drawn, above) =
        sqlx::query_as(AssertSqlSafe(counted)).bind(sink).bind(COUNTED).bind(GAPS).fetch_one(pool).await?;
    Ok(Some(Backlog { counted, below, gaps, drawn, above, oldest: None }))
}

/// SQL for what stands for some columns' text where a UUID is needed: the first half of a SHA-256. Each
/// text is preceded by its length, so that no two lists give the same.
fn hashed(columns: &[&str]) -> String {
    let parts: Vec<String> = columns
        .iter()
        .map(|column| format!("octet_length({column}::text) || ':' || {column}::text"))
        .collect();
    format!("encode(substr(sha256(convert_to({}, 'UTF8')), 1, 16), 'hex')::uuid", parts.join(" || "))
}
