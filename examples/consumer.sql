-- What the three example consumers keep: totals per customer and currency, and, where the inbox of
-- the crate `events` is not at hand, the ids of the events that are already in them.
create table if not exists order_totals (
  customer_id  bigint not null,
  currency     text   not null,
  orders       bigint not null,
  amount_cents bigint not null,
  primary key (customer_id, currency)
);
create table if not exists handled_events (
  event_id   uuid        primary key,
  handled_at timestamptz not null default clock_timestamp()
);
