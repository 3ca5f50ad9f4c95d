-- The one schema, shared by the API and the relay. Every state and every invariant is held by a
-- named constraint, so that a mistake in either program is an error here and not a wrong row.

create table orders (
  order_id       uuid        constraint orders_pkey primary key,
  client_id      text        not null,
  customer_id    bigint      not null constraint orders_customer_positive check (customer_id > 0),
  amount_cents   bigint      not null constraint orders_amount_positive check (amount_cents > 0),
  currency       text        not null constraint orders_currency_is_alpha3 check (currency ~ '^[A-Z]{3}$'),
  customer_email text        constraint orders_email_length check (length(customer_email) between 3 and 254),
  status         text        not null constraint orders_status_known check (status in ('created', 'cancelled')),
  version        int         not null constraint orders_version_positive check (version > 0),
  created_at     timestamptz not null,
  cancelled_at   timestamptz,
  constraint orders_cancelled_has_time check ((status = 'cancelled') = (cancelled_at is not null))
);

-- The answer that every repeat of a request gets, byte for byte. One row per client and key:
-- the primary key is what makes "one key, one order" true.
create table idempotency_keys (
  client_id        text        not null,
  key              text        not null constraint idempotency_keys_key_length check (length(key) between 1 and 255),
  operation        text        not null,
  fingerprint      bytea       not null constraint idempotency_keys_fingerprint_sha256 check (length(fingerprint) = 32),
  order_id         uuid        not null,
  response_status  smallint    not null constraint idempotency_keys_status_final check (response_status between 200 and 499),
  response_headers jsonb       not null constraint idempotency_keys_headers_object check (jsonb_typeof(response_headers) = 'object'),
  response_body    bytea       not null,
  created_at       timestamptz not null default clock_timestamp(),
  expires_at       timestamptz not null,
  constraint idempotency_keys_pkey primary key (client_id, key),
  constraint idempotency_keys_expires_later check (expires_at > created_at)
);

-- An append-only log. Nobody updates a row; retention deletes from the old end.
-- The sequence cache stays 1 and `seq` is drawn after the order's row lock, so that within one
-- order `seq` follows commit order; the relay's reading rests on both.
create table outbox (
  seq            bigint      generated always as identity constraint outbox_pkey primary key,
  event_id       uuid        not null constraint outbox_event_id_once unique,
  aggregate_type text        not null,
  aggregate_id   uuid        not null,
  version        int         not null constraint outbox_version_positive check (version > 0),
  type           text        not null,
  payload        json        not null,
  headers        jsonb       not null default '{}' constraint outbox_headers_object check (jsonb_typeof(headers) = 'object'),
  created_at     timestamptz not null default clock_timestamp(),
  constraint outbox_version_once unique (aggregate_id, version)
);

-- What each sink has settled (acknowledged by Kafka, parked, or proven never to have been
-- committed) is one value; who may move it is the lease beside it, fenced by the epoch.
create table relay_sinks (
  sink         text           constraint relay_sinks_pkey primary key,
  published    int8multirange not null default '{}',
  epoch        bigint         not null default 0 constraint relay_sinks_epoch_not_negative check (epoch >= 0),
  holder       text,
  lease_until  timestamptz,
  paused_at    timestamptz,
  pause_reason text,
  constraint relay_sinks_lease_whole check ((holder is null) = (lease_until is null)),
  constraint relay_sinks_pause_has_reason check ((paused_at is null) = (pause_reason is null))
);

-- Dead letters: events that Kafka refused for good, and the later events of the same order behind
-- them. The event is copied whole, so that retention of the outbox cannot take it away.
create table relay_dead (
  sink           text        not null constraint relay_dead_sink_known references relay_sinks (sink),
  seq            bigint      not null,
  event_id       uuid        not null,
  aggregate_type text        not null,
  aggregate_id   uuid        not null,
  version        int         not null,
  type           text        not null,
  payload        json        not null,
  headers        jsonb       not null,
  created_at     timestamptz not null,
  cause          text        not null constraint relay_dead_cause_known check (cause in ('refused', 'behind')),
  detail         text        not null,
  parked_at      timestamptz not null default clock_timestamp(),
  constraint relay_dead_pkey primary key (sink, seq)
);
create index relay_dead_by_aggregate on relay_dead (sink, aggregate_id);

-- What a consumer has handled. The primary key tells a repeat; the version per order tells a gap
-- and a reordering; partition and offset say where the event lies on Kafka.
create table inbox (
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

-- One row per e-mail. (kind, order, version) is the dedup key; Message-ID and Date are fixed when
-- the row is made, so that a resend is recognisable as the same message.
-- pending -> sending -> sent | pending (transient) | failed (permanent) | unknown (crash while sending)
create table notifications (
  notification_id uuid       constraint notifications_pkey primary key,
  kind           text        not null,
  order_id       uuid        not null,
  order_version  int         not null,
  recipient      text        not null,
  message_id     text        not null constraint notifications_message_id_once unique,
  data           jsonb       not null,
  state          text        not null default 'pending'
                             constraint notifications_state_known check (state in ('pending', 'sending', 'sent', 'failed', 'unknown')),
  attempts       int         not null default 0 constraint notifications_attempts_not_negative check (attempts >= 0),
  next_attempt_at timestamptz not null default clock_timestamp(),
  holder         text,
  lease_until    timestamptz,
  last_error     text,
  created_at     timestamptz not null default clock_timestamp(),
  sent_at        timestamptz,
  failed_at      timestamptz,
  -- The order first: one index serves the dedup key and an order's history.
  constraint notifications_once unique (order_id, order_version, kind),
  constraint notifications_sending_is_leased check ((state = 'sending') = (holder is not null)
                                                and (state = 'sending') = (lease_until is not null)),
  constraint notifications_sent_has_time check ((state = 'sent') = (sent_at is not null)),
  constraint notifications_failed_has_time check ((state = 'failed') = (failed_at is not null)),
  constraint notifications_failed_has_error check (state <> 'failed' or last_error is not null)
);
create index notifications_due on notifications (next_attempt_at) where state in ('pending', 'unknown');
create index notifications_leased on notifications (lease_until) where state = 'sending';
