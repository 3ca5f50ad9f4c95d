-- How far retention has come, in one row. `outbox_removed` are the numbers that it is done with: the
-- next rows to remove are what every sink has published, less these, so nothing ever searches for the
-- oldest row. A number that is not published yet leaves a gap here and is come back to.
-- `inbox_removed_until` is the time up to which dedup keys of `notify` are removed.
create table relay_retention (
  only_row            boolean        constraint relay_retention_pkey primary key default true
                                     constraint relay_retention_one_row check (only_row),
  outbox_removed      int8multirange not null default '{}',
  inbox_removed_until timestamptz    not null default '-infinity'
);
insert into relay_retention default values;

-- Vacuum after 2 % and not after 20: a week of events is many rows, and what is removed lies together at
-- the old end. `vacuum_truncate` off: giving empty pages back takes an exclusive lock that queues every
-- insert behind it, and new events fill those pages anyway.
alter table outbox set (autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_scale_factor = 0.02,
                        autovacuum_vacuum_cost_limit = 2000, vacuum_truncate = off);
alter table inbox  set (autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_scale_factor = 0.02,
                        autovacuum_vacuum_cost_limit = 2000, vacuum_truncate = off);

-- Old dedup keys, oldest first, of one consumer: the keys of other consumers are their own business.
create index inbox_by_age on inbox (consumer, handled_at);

-- Counting e-mails that are held must not read everything that was sent.
create index notifications_unknown on notifications (notification_id) where state = 'unknown';

-- The trace of the request, for the span of the e-mail.
alter table notifications add column traceparent text;
