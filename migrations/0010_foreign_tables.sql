-- Which table a sink reads: numbers settled in one table mean nothing in another, so a publisher that
-- is started with another table under the same name is refused.
alter table relay_sinks add column source text not null default 'outbox'
  constraint relay_sinks_source_length check (length(source) between 1 and 200);

-- Dead letters of an outbox table of another program. Its ids and keys are any text and its payload
-- any bytes, so they are kept beside the columns of our own shape, which hold for such an event:
-- `event_id` its id, or a hash of it when it is no UUID; `aggregate_id` a hash of aggregate type and
-- id, what is kept in order; `version` 0, there is none; `payload` null; `headers` those that are mapped.
alter table relay_dead
  add column source_id text,
  add column source_key text,
  add column source_value bytea,
  add constraint relay_dead_source_whole check ((source_id is null) = (source_key is null)),
  add constraint relay_dead_value_has_source check (source_value is null or source_id is not null);
