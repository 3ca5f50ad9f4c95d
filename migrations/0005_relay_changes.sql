-- What operators have changed by command: who, when, what and why. Only ever added to.
create table relay_changes (
  change_id   bigint      generated always as identity constraint relay_changes_pkey primary key,
  changed_at  timestamptz not null default clock_timestamp(),
  changed_by  text        not null constraint relay_changes_by_length check (length(changed_by) between 1 and 200),
  command     text        not null,
  reason      text        constraint relay_changes_reason_length check (length(reason) between 1 and 1000),
  details     jsonb       not null default '{}' constraint relay_changes_details_object check (jsonb_typeof(details) = 'object')
);
