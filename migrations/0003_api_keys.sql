-- Who may call the API. The token itself is nowhere: only its SHA-256, which is enough for 256
-- random bits and cannot be turned back.
create table api_keys (
  key_id       uuid        constraint api_keys_pkey primary key,
  client_id    text        not null constraint api_keys_client_length check (length(client_id) between 1 and 100),
  token_hash   bytea       not null constraint api_keys_hash_sha256 check (length(token_hash) = 32)
                           constraint api_keys_hash_once unique,
  created_at   timestamptz not null default clock_timestamp(),
  -- Coarse: moved at most once an hour.
  last_used_at timestamptz,
  revoked_at   timestamptz
);
