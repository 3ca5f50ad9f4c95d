//! The handlers of one order: create, show, cancel.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::ETAG;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use chrono::{SubsecRound, Utc};
use events::{EventId, OrderCreated, OrderEvent, OrderId, OrderStatus};
use sqlx::PgPool;

use super::body::BodyError;
use super::idempotency_key::{self, HEADER};
use super::openapi::{self, CancelResponses, ChangeHeaders, CreateResponses, IfNoneMatch};
use super::problem::{self, ApiError, Problem};
use super::request::{Client, NoQuery, OrderPath, read_body, require_json};
use super::{body, etag, trace, trace_context};
use crate::db;
use crate::domain::{Answer, CancelOrder, ClientId, CreateOrder, IdempotencyKey, NewOrder};
use crate::domain::{Operation, OrderView, Outcome, TraceContext};
use crate::metrics::Metrics;
use crate::writer::Writer;

/// `POST /orders`
#[utoipa::path(post, path = "/orders", tag = "orders", operation_id = "createOrder", summary = "Create an order", params(ChangeHeaders),
    request_body = openapi::OrderRequest, responses(CreateResponses), security(("apiKey" = [])))]
pub(crate) async fn create(
    State(writer): State<Writer>,
    State(pool): State<PgPool>,
    State(metrics): State<Arc<Metrics>>,
    Client(client): Client,
    _: NoQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let key = idempotency_key::from_headers(&headers)?;
    require_json(&headers)?;
    let request = match body::create_order(&read_body(&headers, body).await?) {
        Ok(request) => request,
        Err(error) => {
            let stored = stored_although_invalid(&pool, &client, &key, &error).await?.ok_or(error)?;
            metrics.judged(Operation::Create, &Ok(stored.clone()));
            return answer(stored, &headers);
        }
    };
    let order = new_order(client, key, request, trace::handed_on(trace_context::from_headers(&headers)))?;
    let reply = writer.create(order).await;
    metrics.judged(Operation::Create, &reply);
    answer(reply?, &headers)
}

/// `GET /orders/{orderId}`
#[utoipa::path(get, path = "/orders/{orderId}", tag = "orders", operation_id = "getOrder", summary = "Show an order",
    params(openapi::OrderIdParameter, IfNoneMatch), responses(openapi::ShowResponses), security(("apiKey" = [])))]
pub(crate) async fn show(
    State(pool): State<PgPool>,
    Client(client): Client,
    OrderPath(order): OrderPath,
    _: NoQuery,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let order = db::orders::find(&pool, &client, order).await?.ok_or(ApiError::OrderNotFound)?;
    let tag = etag::of_version(order.version);
    Ok(if etag::none_match_has(&headers, &tag) {
        (StatusCode::NOT_MODIFIED, [(ETAG, tag)]).into_response()
    } else {
        ([(ETAG, tag)], Json(order)).into_response()
    })
}

/// `POST /orders/{orderId}/cancel`
#[utoipa::path(post, path = "/orders/{orderId}/cancel", tag = "orders", operation_id = "cancelOrder", summary = "Cancel an order",
    params(openapi::OrderIdParameter, ChangeHeaders), responses(CancelResponses), security(("apiKey" = [])))]
pub(crate) async fn cancel(
    State(writer): State<Writer>,
    State(metrics): State<Arc<Metrics>>,
    Client(client): Client,
    OrderPath(order_id): OrderPath,
    _: NoQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let key = idempotency_key::from_headers(&headers)?;
    let body = read_body(&headers, body).await?;
    if !body.is_empty() {
        require_json(&headers)?;
    }
    body::nothing(&body)?;
    let request = CancelOrder {
        client,
        key,
        order_id,
        event_id: EventId::new(),
        at: Utc::now().trunc_subsecs(6),
        refusal: Answer {
            status: StatusCode::CONFLICT.as_u16(),
            headers: [("content-type".to_owned(), problem::MEDIA_TYPE.to_owned())].into(),
            body: Problem::not_cancellable().to_json(),
        },
        trace: trace::handed_on(trace_context::from_headers(&headers)),
    };
    let reply = writer.cancel(request).await;
    metrics.judged(Operation::Cancel, &reply);
    answer(reply?, &headers)
}

/// What is not valid today may have been when it was stored; the client that repeats it gets its answer.
async fn stored_although_invalid(
    pool: &PgPool,
    client: &ClientId,
    key: &IdempotencyKey,
    error: &BodyError,
) -> Result<Option<Outcome>, ApiError> {
    let BodyError::Invalid { fingerprint: Some(fingerprint), .. } = error else { return Ok(None) };
    let stored = db::idempotency::lookup(pool, &[(client, key)]).await?.into_values().next();
    Ok(stored
        .filter(|stored| !stored.expired)
        .map(|stored| stored.judge(Operation::Create, fingerprint, None))
        .filter(|outcome| matches!(outcome, Outcome::Replayed(_))))
}

/// Makes everything that the order will write, its answer included.
fn new_order(
    client: ClientId,
    key: IdempotencyKey,
    request: CreateOrder,
    trace: TraceContext,
) -> Result<NewOrder, ApiError> {
    let order_id = OrderId::new();
    let created_at = Utc::now().trunc_subsecs(6);
    let view = OrderView {
        order_id,
        status: OrderStatus::Created,
        customer_id: request.customer_id.get(),
        amount_cents: request.amount_cents.get(),
        currency: request.currency.code().to_owned(),
        customer_email: request.customer_email.as_ref().map(|email| email.as_str().to_owned()),
        version: 1,
        created_at,
        cancelled_at: None,
    };
    let event = OrderEvent::Created(OrderCreated {
        order_id,
        customer_id: view.customer_id,
        amount_cents: view.amount_cents,
        currency: view.currency.clone(),
        status: OrderStatus::Created,
        created_at,
    });
    let unserialisable = |error: serde_json::Error| {
        tracing::error!(%error, "an order could not be serialised");
        ApiError::Internal
    };
    let headers = [
        ("content-type".to_owned(), "application/json".to_owned()),
        ("location".to_owned(), format!("/orders/{order_id}")),
    ];
    Ok(NewOrder {
        client,
        key,
        request,
        order_id,
        event_id: EventId::new(),
        created_at,
        payload: event.to_json().map_err(unserialisable)?,
        trace,
        answer: Answer {
            status: StatusCode::CREATED.as_u16(),
            headers: headers.into(),
            body: serde_json::to_vec(&view).map_err(unserialisable)?,
        },
    })
}

/// An outcome as a client gets it; the key is echoed as it was sent.
fn answer(outcome: Outcome, request: &HeaderMap) -> Result<Response, ApiError> {
    let (answer, replayed) = match outcome {
        Outcome::Done(answer) => (answer, false),
        Outcome::Replayed(answer) => (answer, true),
        Outcome::KeyReused => return Err(ApiError::KeyReused),
        Outcome::InProgress => return Err(ApiError::InProgress),
        Outcome::NoSuchOrder => return Err(ApiError::OrderNotFound),
    };
    let mut response = Response::new(Body::from(answer.body));
    *response.status_mut() = StatusCode::from_u16(answer.status).map_err(|_| ApiError::Internal)?;
    let headers = response.headers_mut();
    for (name, value) in answer.headers {
        // Stored by this program, so both always parse.
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            headers.insert(name, value);
        }
    }
    if let Some(key) = request.get(HEADER) {
        headers.insert(HeaderName::from_static(HEADER), key.clone());
    }
    if replayed {
        headers.insert(HeaderName::from_static("idempotent-replayed"), HeaderValue::from_static("true"));
    }
    Ok(response)
}
