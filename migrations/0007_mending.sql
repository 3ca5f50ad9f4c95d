-- What operators ask of a publisher, and what became of it.

-- Orders whose dead letters are to be published again, in version order, by the publisher itself: it
-- alone knows what of an order is under way. One row per order, and none for a single event: what joins
-- the order's dead letters meanwhile is meant as well, unless `until_seq` says where to end. An order
-- whose last dead letter was discarded is asked for in the same way, so that the publisher lets it go.
create table relay_retries (
  retry_id     uuid        constraint relay_retries_pkey primary key,
  sink         text        not null constraint relay_retries_sink_known references relay_sinks (sink),
  aggregate_id uuid        not null,
  until_seq    bigint,
  requested_at timestamptz not null default clock_timestamp(),
  constraint relay_retries_once unique (sink, aggregate_id)
);

-- An order's dead letters are read in the order of their numbers.
drop index relay_dead_by_aggregate;
create index relay_dead_by_aggregate on relay_dead (sink, aggregate_id, seq);

-- Events that an operator took out of the dead letters for good; `event` is the whole dead letter.
create table relay_discarded (
  sink         text        not null,
  seq          bigint      not null,
  event_id     uuid        not null,
  aggregate_id uuid        not null,
  version      int         not null,
  event        json        not null,
  reason       text        not null constraint relay_discarded_reason_length check (length(reason) between 1 and 1000),
  discarded_by text        not null,
  discarded_at timestamptz not null default clock_timestamp(),
  constraint relay_discarded_pkey primary key (sink, seq)
);

-- Publishing once more what was published before. `position` is the highest number that is done: a
-- replay that was stopped goes on behind it.
create table relay_replays (
  replay_id  bigint      generated always as identity constraint relay_replays_pkey primary key,
  sink       text        not null constraint relay_replays_sink_known references relay_sinks (sink),
  topic      text        not null,
  orders     uuid[]      not null,
  types      text[]      not null,
  from_time  timestamptz,
  to_time    timestamptz,
  from_seq   bigint      not null,
  to_seq     bigint      not null,
  position   bigint      not null,
  total      bigint      not null,
  published  bigint      not null default 0,
  refused    bigint      not null default 0,
  state      text        not null default 'running'
                         constraint relay_replays_state_known check (state in ('running', 'stopped', 'done')),
  started_by text        not null,
  started_at timestamptz not null default clock_timestamp(),
  -- The latest sign of life of the command that runs it.
  seen_at    timestamptz not null default clock_timestamp(),
  ended_at   timestamptz,
  constraint relay_replays_running_has_no_end check ((state = 'running') = (ended_at is null))
);
