-- The tables of the inbox, for the database of a consumer. Safe to run again.

-- What a consumer has handled. The primary key tells a repeat; the version per order tells a gap
-- and a reordering; partition and offset say where the event lies on Kafka.
create table if not exists inbox (
  consumer      text        not null,
  event_id      uuid        not null,
  aggregate_id  uuid        not null,
  version       int         not null constraint inbox_version_positive check (version > 0),
  topic         text        not null,
  kafka_partition int       not null,
  kafka_offset  bigint      not null,
  published_at  timestamptz not null,
  handled_at    timestamptz not null default clock_timestamp(),
  constraint inbox_pkey primary key (consumer, event_id),
  constraint inbox_version_once unique (consumer, aggregate_id, version)
);

-- Old dedup keys, oldest first.
create index if not exists inbox_by_age on inbox (consumer, handled_at);

-- Orders that a consumer has taken aside: an event of theirs could not be handled, and the later
-- ones wait behind it.
create table if not exists inbox_blocked (
  consumer     text        not null,
  aggregate_id uuid        not null,
  reason       text        not null,
  blocked_at   timestamptz not null default clock_timestamp(),
  -- What the operator has asked for: handle everything again, or all but the first.
  release      text        constraint inbox_blocked_release_known check (release in ('retry', 'skip')),
  constraint inbox_blocked_pkey primary key (consumer, aggregate_id)
);

-- The events themselves, whole, so that no retention of a topic can take them away. What has no
-- readable order stands alone; everything else belongs to a blocked order.
create table if not exists inbox_dead (
  dead_id         bigint      generated always as identity constraint inbox_dead_pkey primary key,
  consumer        text        not null,
  aggregate_id    uuid,
  event_id        uuid,
  cause           text        not null constraint inbox_dead_cause_known check (cause in ('refused', 'behind')),
  reason          text        not null,
  topic           text        not null,
  kafka_partition int         not null,
  kafka_offset    bigint      not null,
  published_at    timestamptz not null,
  key             bytea,
  header_names    text[]      not null,
  header_values   bytea[]     not null,
  data            bytea,
  dead_at         timestamptz not null default clock_timestamp(),
  -- When it was acknowledged by the dead-letter topic.
  forwarded_at    timestamptz,
  constraint inbox_dead_order_blocked foreign key (consumer, aggregate_id) references inbox_blocked (consumer, aggregate_id),
  constraint inbox_dead_event_once unique (consumer, event_id),
  constraint inbox_dead_place_once unique (consumer, topic, kafka_partition, kafka_offset)
);
create index if not exists inbox_dead_by_order on inbox_dead (consumer, aggregate_id, dead_id);
create index if not exists inbox_dead_to_forward on inbox_dead (consumer, dead_id) where forwarded_at is null;
