//! The handlers that list: a client's orders, and what became of one of them.

use axum::Json;
use axum::extract::{RawQuery, State};
use events::{OrderId, OrderStatus};
use serde::Serialize;
use sqlx::PgPool;
use utoipa::ToSchema;

use super::openapi::{HistoryResponses, ListResponses, OrderIdParameter, PageParameters};
use super::problem::ApiError;
use super::request::{Client, NoQuery, OrderPath};
use crate::db;
use crate::db::history::{EmailView, EventView};
use crate::domain::OrderView;

const DEFAULT_LIMIT: i64 = 20;
const MAX_LIMIT: i64 = 100;
/// Says which kind of cursor this is, so that another kind can come without breaking clients.
const CURSOR_PREFIX: &str = "c1.";

/// What `GET /orders` was asked for.
#[derive(Debug, PartialEq, Eq)]
struct Page {
    limit: i64,
    before: Option<OrderId>,
    status: Option<OrderStatus>,
}

impl Page {
    fn parse(query: &str) -> Result<Self, ApiError> {
        let (mut limit, mut before, mut status) = (None, None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let repeated = match name {
                "limit" => limit.replace(parse_limit(value)?).is_some(),
                "cursor" => before.replace(parse_cursor(value)?).is_some(),
                "status" => status.replace(parse_status(value)?).is_some(),
                _ => return Err(ApiError::Parameter("the query", "knows only limit, cursor and status")),
            };
            if repeated {
                return Err(ApiError::Parameter("the query", "must give each parameter once"));
            }
        }
        Ok(Self { limit: limit.unwrap_or(DEFAULT_LIMIT), before, status })
    }
}

fn parse_limit(value: &str) -> Result<i64, ApiError> {
    let limit = value.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
    limit.ok_or(ApiError::Parameter("limit", "must be a whole number from 1 to 100"))
}

fn parse_cursor(value: &str) -> Result<OrderId, ApiError> {
    let id = value.strip_prefix(CURSOR_PREFIX).and_then(|id| id.parse().ok());
    id.ok_or(ApiError::Parameter("cursor", "must be the nextCursor of an earlier answer, unchanged"))
}

fn parse_status(value: &str) -> Result<OrderStatus, ApiError> {
    [OrderStatus::Created, OrderStatus::Cancelled]
        .into_iter()
        .find(|status| status.as_str() == value)
        .ok_or(ApiError::Parameter("status", "must be created or cancelled"))
}

/// The answer of `GET /orders`.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OrderPage {
    orders: Vec<OrderView>,
    /// Continues behind the last order; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    next_cursor: Option<String>,
}

/// `GET /orders`
#[utoipa::path(get, path = "/orders", tag = "orders", operation_id = "listOrders", summary = "List orders", params(PageParameters),
    responses(ListResponses), security(("apiKey" = [])))]
pub(crate) async fn list(
    State(pool): State<PgPool>,
    Client(client): Client,
    RawQuery(query): RawQuery,
) -> Result<Json<OrderPage>, ApiError> {
    let page = Page::parse(query.as_deref().unwrap_or_default())?;
    let mut orders = db::orders::list(&pool, &client, page.before, page.status, page.limit + 1).await?;
    // One order more than asked for tells whether there is another page.
    let more = orders.len() as i64 > page.limit;
    orders.truncate(usize::try_from(page.limit).unwrap_or_default());
    let next_cursor = orders.last().filter(|_| more).map(|last| format!("{CURSOR_PREFIX}{}", last.order_id));
    Ok(Json(OrderPage { orders, next_cursor }))
}

/// The answer of `GET /orders/{orderId}/events`.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct History {
    #[schema(value_type = uuid::Uuid)]
    order_id: OrderId,
    /// By version. Published events are removed after a while and then left out.
    events: Vec<EventView>,
    emails: Vec<EmailView>,
}

/// `GET /orders/{orderId}/events`
#[utoipa::path(get, path = "/orders/{orderId}/events", tag = "orders", operation_id = "getOrderHistory", summary = "Show what became of an order",
    params(OrderIdParameter), responses(HistoryResponses), security(("apiKey" = [])))]
pub(crate) async fn events(
    State(pool): State<PgPool>,
    Client(client): Client,
    OrderPath(order_id): OrderPath,
    _: NoQuery,
) -> Result<Json<History>, ApiError> {
    db::orders::find(&pool, &client, order_id).await?.ok_or(ApiError::OrderNotFound)?;
    let events = db::history::events(&pool, order_id).await?;
    let emails = db::history::emails(&pool, order_id).await?;
    Ok(Json(History { order_id, events, emails }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_strictly() {
        let id = OrderId::new();
        let page = Page::parse(&format!("limit=5&cursor=c1.{id}&status=cancelled")).expect("valid");
        assert_eq!(page, Page { limit: 5, before: Some(id), status: Some(OrderStatus::Cancelled) });
        assert_eq!(Page::parse("").expect("valid").limit, DEFAULT_LIMIT);
        for broken in
            ["limit=0", "limit=101", "limit=x", "limit=1&limit=2", "cursor=x", "status=x", "page=2", "limit"]
        {
            assert!(Page::parse(broken).is_err(), "{broken}");
        }
    }
}
