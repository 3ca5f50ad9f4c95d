-- What keeps the publisher from making progress, in its own words, so that `relay status` can tell
-- it from any machine. Written with the renewal of the lease, under its epoch.
alter table relay_sinks
  add column trouble       text,
  add column trouble_since timestamptz,
  add constraint relay_sinks_trouble_has_time check ((trouble is null) = (trouble_since is null));
-- Counting what was refused for good must not read everything that was sent.
create index notifications_failed on notifications (failed_at) where state = 'failed';
