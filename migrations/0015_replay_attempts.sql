-- Which run of a replay is the present one: each that goes on counts it up, and what an earlier one
-- writes, that slept meanwhile, changes nothing.
alter table relay_replays
  add column attempt int not null default 1
    constraint relay_replays_attempt_positive check (attempt > 0);
