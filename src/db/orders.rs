//! Orders as their client reads them. Every query is limited to the client.

use events::{OrderId, OrderStatus};
use sqlx::PgPool;

use crate::domain::{ClientId, OrderView};

struct Row {
    order_id: uuid::Uuid,
    customer_id: i64,
    amount_cents: i64,
    currency: String,
    customer_email: Option<String>,
    status: String,
    version: i32,
    created_at: chrono::DateTime<chrono::Utc>,
    cancelled_at: Option<chrono::DateTime<chrono::Utc>>,
}

impl From<Row> for OrderView {
    fn from(row: Row) -> Self {
        Self {
            order_id: row.order_id.into(),
            status: status(&row.status),
            customer_id: row.customer_id,
            amount_cents: row.amount_cents,
            currency: row.currency,
            customer_email: row.customer_email,
            version: row.version,
            created_at: row.created_at,
            cancelled_at: row.cancelled_at,
        }
    }
}

/// The constraint `orders_status_known` allows two words.
pub(crate) fn status(word: &str) -> OrderStatus {
    if word == OrderStatus::Cancelled.as_str() { OrderStatus::Cancelled } else { OrderStatus::Created }
}

/// One order of a client.
pub(crate) async fn find(
    pool: &PgPool,
    client: &ClientId,
    order: OrderId,
) -> Result<Option<OrderView>, sqlx::Error> {
    let row = sqlx::query_as!(
        Row,
        "select order_id, customer_id, amount_cents, currency, customer_email, status, version,
                created_at, cancelled_at
           from orders where order_id = $1 and client_id = $2",
        order.as_uuid(),
        client.as_str(),
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.map(OrderView::from))
}

/// A client's orders, newest first, from below `before`. Ids are UUIDv7: their order is the order
/// of creation, so the cursor stays right while orders are added.
pub(crate) async fn list(
    pool: &PgPool,
    client: &ClientId,
    before: Option<OrderId>,
    status: Option<OrderStatus>,
    limit: i64,
) -> Result<Vec<OrderView>, sqlx::Error> {
    let rows = sqlx::query_as!(
        Row,
        "select order_id, customer_id, amount_cents, currency, customer_email, status, version,
                created_at, cancelled_at
           from orders
          where client_id = $1
            and order_id < coalesce($2, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid)
            and ($3::text is null or status = $3)
          order by order_id desc
          limit $4",
        client.as_str(),
        before.map(|id| id.as_uuid()),
        status.map(OrderStatus::as_str),
        limit,
    )
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(OrderView::from).collect())
}
