//! The transaction that cancels an order.

use events::{OrderCancelled, OrderEvent, OrderStatus};
use sqlx::PgConnection;

use super::idempotency;
use crate::domain::{Answer, CancelOrder, Fingerprint, Operation, OrderView};

/// How the transaction went, before its commit.
pub(crate) enum Cancelled {
    /// Everything is written; commit it.
    Done(Answer),
    /// Someone has the key; roll back and look.
    KeyTaken,
    /// No such order for this client; roll back.
    NoSuchOrder,
}

/// Claims the key, then decides on the locked order. Atomic only as part of the caller's transaction.
///
/// The order's row is locked before the event draws its `seq`, so that within one order `seq` and
/// `version` follow the order of commits; the relay's reading rests on that.
pub(crate) async fn cancel(
    connection: &mut PgConnection,
    request: &CancelOrder,
) -> Result<Cancelled, sqlx::Error> {
    let CancelOrder { client, key, order_id, .. } = request;
    let fingerprint = Fingerprint::cancel(*order_id);
    if !idempotency::claim(connection, client, key, Operation::Cancel, &fingerprint, *order_id).await? {
        return Ok(Cancelled::KeyTaken);
    }
    let order = sqlx::query!(
        "select customer_id, amount_cents, currency, customer_email, status, version, created_at
           from orders where order_id = $1 and client_id = $2 for update",
        order_id.as_uuid(),
        client.as_str(),
    )
    .fetch_optional(&mut *connection)
    .await?;
    let Some(order) = order else { return Ok(Cancelled::NoSuchOrder) };
    if super::orders::status(&order.status) == OrderStatus::Cancelled {
        idempotency::store_answer(connection, client, key, &request.refusal).await?;
        return Ok(Cancelled::Done(request.refusal.clone()));
    }

    let view = OrderView {
        order_id: *order_id,
        status: OrderStatus::Cancelled,
        customer_id: order.customer_id,
        amount_cents: order.amount_cents,
        currency: order.currency,
        customer_email: order.customer_email,
        version: order.version + 1,
        created_at: order.created_at,
        cancelled_at: Some(request.at),
    };
    let event = OrderEvent::Cancelled(OrderCancelled {
        order_id: view.order_id,
        customer_id: view.customer_id,
        amount_cents: view.amount_cents,
        currency: view.currency.clone(),
        status: OrderStatus::Cancelled,
        cancelled_at: request.at,
    });
    let encode = |error: serde_json::Error| sqlx::Error::Encode(error.into());
    let answer = Answer {
        status: 200,
        headers: [("content-type".to_owned(), "application/json".to_owned())].into(),
        body: serde_json::to_vec(&view).map_err(encode)?,
    };

    sqlx::query!(
        "update orders set status = 'cancelled', version = $2, cancelled_at = $3 where order_id = $1",
        order_id.as_uuid(),
        view.version,
        request.at,
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "insert into outbox (event_id, aggregate_type, aggregate_id, version, type, payload, headers)
         values ($1, $2, $3, $4, $5, $6::text::json, $7)",
        request.event_id.as_uuid(),
        events::AGGREGATE_ORDER,
        order_id.as_uuid(),
        view.version,
        event.kind(),
        event.to_json().map_err(encode)?,
        serde_json::json!(request.trace),
    )
    .execute(&mut *connection)
    .await?;
    idempotency::store_answer(connection, client, key, &answer).await?;
    Ok(Cancelled::Done(answer))
}
