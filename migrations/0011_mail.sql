-- The mail stage: how long a server has been refusing a mail, and addresses that are erased once
-- nothing is to be sent to them any more.
alter table notifications
  add column refused_since timestamptz,
  add column erased_at     timestamptz,
  alter column recipient drop not null,
  add constraint notifications_erased_has_time check ((recipient is null) = (erased_at is not null)),
  add constraint notifications_erased_is_done check (recipient is not null or state in ('sent', 'failed'));
-- What is left to erase, oldest first; a row leaves it when it is erased.
create index notifications_to_erase on notifications (coalesce(sent_at, failed_at))
  where recipient is not null and state in ('sent', 'failed');
