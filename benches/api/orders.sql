-- The statement of the API (src/db/create.rs) with its values made by the server: the key, the
-- order and the event of `:orders` orders in one statement, so one transaction and one round trip.
with request as (
  select 'anonymous' as client_id, gen_random_uuid()::text as key, sha256('a request') as fingerprint,
         uuidv7() as order_id, uuidv7() as event_id, 42::bigint as customer_id, 2599::bigint as amount_cents,
         'USD' as currency, 'customer@example.com' as customer_email, clock_timestamp() as created_at,
         '{"orderId":"01890a5d-ac96-774b-bcce-b302099a8057","customerId":42,"amountCents":2599,"currency":"USD","status":"created","createdAt":"2026-01-01T00:00:00.000000Z"}' as payload,
         '{}'::jsonb as trace, 201::smallint as status,
         '{"content-type":"application/json","location":"/orders/01890a5d-ac96-774b-bcce-b302099a8057"}'::jsonb as headers,
         '{"orderId":"01890a5d-ac96-774b-bcce-b302099a8057","status":"created","customerId":42,"amountCents":2599,"currency":"USD","customerEmail":"customer@example.com","version":1,"createdAt":"2026-01-01T00:00:00.000000Z"}'::bytea as body
    from generate_series(1, :orders)),
claimed as (
  insert into idempotency_keys (client_id, key, operation, fingerprint, order_id, response_status,
                                response_headers, response_body, expires_at)
  select client_id, key, 'orders.create', fingerprint, order_id, status, headers, body,
         clock_timestamp() + make_interval(hours => 72)
    from request order by client_id, key
  on conflict (client_id, key) do nothing
  returning client_id, key),
ordered as (
  insert into orders (order_id, client_id, customer_id, amount_cents, currency, customer_email, status, version,
                      created_at)
  select order_id, client_id, customer_id, amount_cents, currency, customer_email, 'created', 1, created_at
    from request join claimed using (client_id, key)),
emitted as (
  insert into outbox (event_id, aggregate_type, aggregate_id, version, type, payload, headers)
  select event_id, 'order', order_id, 1, 'order.created.v1', payload::json, trace
    from request join claimed using (client_id, key))
select client_id, key from claimed;
