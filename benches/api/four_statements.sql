-- The same rows as orders.sql the way they are usually written: a transaction with a statement each.
-- The key is claimed first; the ids are a counter per client, so that they fall in order as UUIDv7 do.
\set n :n + 1
begin;
insert into idempotency_keys (client_id, key, operation, fingerprint, order_id, response_status, response_headers,
                              response_body, expires_at)
values ('anonymous', gen_random_uuid()::text, 'orders.create', sha256('a request'),
        (lpad(to_hex(:client_id::bigint), 8, '0') || lpad(to_hex(:n::bigint), 24, '0'))::uuid, 201,
        '{"content-type":"application/json","location":"/orders/01890a5d-ac96-774b-bcce-b302099a8057"}',
        '{"orderId":"01890a5d-ac96-774b-bcce-b302099a8057","status":"created","customerId":42,"amountCents":2599,"currency":"USD","customerEmail":"customer@example.com","version":1,"createdAt":"2026-01-01T00:00:00.000000Z"}',
        clock_timestamp() + make_interval(hours => 72));
insert into orders (order_id, client_id, customer_id, amount_cents, currency, customer_email, status, version, created_at)
values ((lpad(to_hex(:client_id::bigint), 8, '0') || lpad(to_hex(:n::bigint), 24, '0'))::uuid,
        'anonymous', 42, 2599, 'USD', 'customer@example.com', 'created', 1, clock_timestamp());
insert into outbox (event_id, aggregate_type, aggregate_id, version, type, payload, headers)
values (uuidv7(), 'order',
        (lpad(to_hex(:client_id::bigint), 8, '0') || lpad(to_hex(:n::bigint), 24, '0'))::uuid,
        1, 'order.created.v1',
        '{"orderId":"01890a5d-ac96-774b-bcce-b302099a8057","customerId":42,"amountCents":2599,"currency":"USD","status":"created","createdAt":"2026-01-01T00:00:00.000000Z"}',
        '{}');
commit;
