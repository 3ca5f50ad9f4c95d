//! The one statement that creates orders.

use std::collections::HashSet;

use sqlx::PgConnection;

use crate::domain::{NewOrder, Operation};

/// The (client, key) pairs that this run claimed; the others belong to someone.
pub(crate) type Claims = HashSet<(String, String)>;

/// Claims the keys and, for each key claimed, writes the order and its event: all of it or, for
/// the whole batch, nothing, because it is one statement and so one transaction.
///
/// No (client, key) may occur twice in `orders`: the join would give each of the two an order.
///
/// Keys are taken in the same order by every process, so two batches cannot deadlock. The number
/// `outbox.seq` needs no row lock here: nobody else can know of an order that is not committed.
pub(crate) async fn create(
    connection: &mut PgConnection,
    orders: &[&NewOrder],
) -> Result<Claims, sqlx::Error> {
    let column =
        |of: fn(&NewOrder) -> &str| -> Vec<String> { orders.iter().map(|o| of(o).to_owned()).collect() };
    let fingerprints: Vec<&[u8]> = orders.iter().map(|o| o.request.fingerprint.as_bytes()).collect();
    let order_ids: Vec<_> = orders.iter().map(|o| o.order_id.as_uuid()).collect();
    let event_ids: Vec<_> = orders.iter().map(|o| o.event_id.as_uuid()).collect();
    let customers: Vec<_> = orders.iter().map(|o| o.request.customer_id.get()).collect();
    let amounts: Vec<_> = orders.iter().map(|o| o.request.amount_cents.get()).collect();
    let emails: Vec<Option<String>> =
        orders.iter().map(|o| o.request.customer_email.as_ref().map(|e| e.as_str().to_owned())).collect();
    let created: Vec<_> = orders.iter().map(|o| o.created_at).collect();
    let traces: Vec<_> = orders.iter().map(|o| serde_json::json!(o.trace)).collect();
    let statuses: Vec<_> = orders.iter().map(|o| super::idempotency::status_column(&o.answer)).collect();
    let headers: Vec<_> = orders.iter().map(|o| serde_json::json!(o.answer.headers)).collect();
    let bodies: Vec<&[u8]> = orders.iter().map(|o| o.answer.body.as_slice()).collect();

    let claimed = sqlx::query!(
        r#"with request as (
             select * from unnest($1::text[], $2::text[], $3::bytea[], $4::uuid[], $5::uuid[], $6::bigint[],
                                  $7::bigint[], $8::text[], $9::text[], $10::timestamptz[], $11::text[],
                                  $12::jsonb[], $13::smallint[], $14::jsonb[], $15::bytea[])
               as t(client_id, key, fingerprint, order_id, event_id, customer_id, amount_cents, currency,
                    customer_email, created_at, payload, trace, status, headers, body)),
           claimed as (
             insert into idempotency_keys (client_id, key, operation, fingerprint, order_id,
                                           response_status, response_headers, response_body, expires_at)
             select client_id, key, $16, fingerprint, order_id, status, headers, body,
                    clock_timestamp() + make_interval(hours => $17)
               from request order by client_id, key
             on conflict (client_id, key) do nothing
             returning client_id, key),
           ordered as (
             insert into orders (order_id, client_id, customer_id, amount_cents, currency, customer_email,
                                 status, version, created_at)
             select order_id, client_id, customer_id, amount_cents, currency, customer_email,
                    'created', 1, created_at
               from request join claimed using (client_id, key)),
           emitted as (
             insert into outbox (event_id, aggregate_type, aggregate_id, version, type, payload, headers)
             select event_id, $18, order_id, 1, $19, payload::json, trace
               from request join claimed using (client_id, key))
           select client_id, key from claimed"#,
        &column(|o| o.client.as_str()),
        &column(|o| o.key.as_str()),
        &fingerprints as &[&[u8]],
        &order_ids,
        &event_ids,
        &customers,
        &amounts,
        &column(|o| o.request.currency.code()),
        &emails as &[Option<String>],
        &created,
        &column(|o| o.payload.as_str()),
        &traces,
        &statuses,
        &headers,
        &bodies as &[&[u8]],
        Operation::Create.as_str(),
        super::idempotency::KEPT_HOURS,
        events::AGGREGATE_ORDER,
        events::OrderEvent::CREATED,
    )
    .fetch_all(connection)
    .await?;
    Ok(claimed.into_iter().map(|row| (row.client_id, row.key)).collect())
}
