-- The janitor of the API deletes idempotency keys oldest first. A btree and not BRIN: rows move
-- into pages that earlier deletions freed, so after the first 72 hours every block range would hold
-- old and new keys, and each look for expired ones would read the whole table. The btree grows at
-- its right end only, which is the cheapest place for an insert.
create index idempotency_keys_by_expiry on idempotency_keys (expires_at);
