//! The API's description, OpenAPI 3.1, made from the code: routes from the handlers, schemas from
//! the types that are sent, problems from the list of codes. Describes; decides nothing.

use std::collections::BTreeMap;
use std::process::ExitCode;

use axum::Json;
use serde_json::{Value, json};
use utoipa::openapi::example::ExampleBuilder;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi as Document, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{IntoParams, IntoResponses, Modify, OpenApi, ToSchema};

use super::problem::{self, Code};
use super::{docs, health, listing, measure, orders};
use crate::domain::{CustomerEmail, MAX_JSON_INTEGER, OrderView};

const ORDER_ID: &str = "019ddc1c-3f6b-7c5e-9d0a-6c1f0b7a2e11";
const JSON: &str = "application/json";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Orders",
        description = "Create orders and retry safely: every change takes an Idempotency-Key, and a repeat of \
                       the same request with the same key gets the first answer, byte for byte. \
                       Keys are promised for 24 hours.",
    ),
    paths(
        orders::create, listing::list, orders::show, orders::cancel, listing::events,
        health::alive, health::ready, measure::show, document, docs::page,
    ),
    components(schemas(problem::Problem, OrderView, listing::OrderPage, listing::History)),
    modifiers(&Extras),
)]
struct Api;

/// The whole description.
pub(crate) fn describe() -> Document {
    Api::openapi()
}

/// `orders openapi`: prints the description as JSON; gives the exit code.
#[must_use]
pub fn print() -> ExitCode {
    match describe().to_pretty_json() {
        Ok(document) => {
            println!("{document}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("orders: the description cannot be written: {error}");
            ExitCode::from(1)
        }
    }
}

/// `GET /openapi.json`
#[utoipa::path(get, path = "/openapi.json", tag = "operation", operation_id = "getDescription", summary = "This description",
    responses((status = 200, description = "This description, OpenAPI 3.1", content_type = "application/json",
               body = Object)))]
pub(crate) async fn document() -> Json<Document> {
    Json(describe())
}

/// What the macros cannot say.
struct Extras;

impl Modify for Extras {
    fn modify(&self, document: &mut Document) {
        let bearer = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .bearer_format("ordk_ and 64 hexadecimal digits")
            .description(Some("An API key, made with `orders keys create --client NAME`"));
        document
            .components
            .get_or_insert_default()
            .add_security_scheme("apiKey", SecurityScheme::Http(bearer.build()));
    }
}

/// The codes as a closed list.
pub(crate) fn code_schema() -> Schema {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some(Code::ALL.iter().map(|code| code.as_str())))
        .description(Some("What went wrong, for programs"))
        .build()
        .into()
}

/// Every currency that the parser knows: a list is asked of it, not kept beside it.
fn currency_schema() -> Schema {
    let letters = || 'A'..='Z';
    let words = letters()
        .flat_map(|a| letters().flat_map(move |b| letters().map(move |c| String::from_iter([a, b, c]))));
    ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some(words.filter(|word| events::Currency::from_code(word).is_some())))
        .default(Some(json!("USD")))
        .description(Some("ISO 4217"))
        .build()
        .into()
}

/// The body of `POST /orders`; unknown and repeated fields are refused.
#[derive(ToSchema)]
#[schema(example = json!({"customerId": 42, "amountCents": 2599, "currency": "EUR", "customerEmail": "ada@example.com"}))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "the parser in `body` reads this form; this describes it")]
pub(crate) struct OrderRequest {
    /// The customer's number in your system
    #[schema(minimum = 1, maximum = 9_007_199_254_740_991_i64)]
    customer_id: i64,
    /// The amount in minor units of the currency
    #[schema(minimum = 1, maximum = 9_007_199_254_740_991_i64)]
    amount_cents: i64,
    /// ISO 4217
    #[schema(required = false, schema_with = currency_schema)]
    currency: String,
    /// Where notifications go; none are sent without it
    #[schema(required = false, format = Email, max_length = 254)]
    customer_email: String,
}
const _: () = assert!(MAX_JSON_INTEGER == 9_007_199_254_740_991 && CustomerEmail::MAX_LENGTH == 254);

/// The id in the path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "describes `OrderPath`")]
pub(crate) struct OrderIdParameter {
    /// The order
    #[param(rename = "orderId", format = Uuid, example = "019ddc1c-3f6b-7c5e-9d0a-6c1f0b7a2e11")]
    order_id: String,
}

/// The query of `GET /orders`.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `Page` parses")]
pub(crate) struct PageParameters {
    /// The most orders in the answer
    #[param(minimum = 1, maximum = 100, default = 20)]
    limit: Option<u8>,
    /// The `nextCursor` of an earlier answer, unchanged
    cursor: Option<String>,
    /// Only orders with this status
    #[param(value_type = Option<Status>, inline)]
    status: Option<String>,
}

/// What an order is now.
#[derive(ToSchema)]
#[schema(as = OrderStatus, rename_all = "snake_case")]
#[expect(dead_code, reason = "describes `events::OrderStatus`, which knows nothing of HTTP")]
pub(crate) enum Status {
    Created,
    Cancelled,
}

/// The headers of a request that changes something.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "describes headers that are read by hand")]
pub(crate) struct ChangeHeaders {
    /// One key per order or cancellation, 1 to 255 printable ASCII characters, for example a UUID; bare or as a quoted
    /// string (RFC 8941)
    #[param(
        rename = "Idempotency-Key",
        min_length = 1,
        max_length = 512,
        pattern = r#"^([!#-+\--~][!-+\--~]{0,254}|"([ !#-\[\]-~]|\\["\\]){1,255}")$"#,
        example = "8e03978e-40d5-43e8-bc93-6894a57f9324"
    )]
    key: String,
    /// W3C Trace Context; handed on to the order's event
    #[param(
        rename = "traceparent",
        nullable = false,
        example = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    )]
    traceparent: Option<String>,
    /// W3C Trace Context; handed on to the order's event
    #[param(rename = "tracestate", nullable = false, example = "vendor=value")]
    tracestate: Option<String>,
}

/// The header that asks for an order only when it has changed.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "describes a header that is read by hand")]
pub(crate) struct IfNoneMatch {
    /// The ETag of an earlier answer
    #[param(rename = "If-None-Match", nullable = false, example = "\"1\"")]
    if_none_match: Option<String>,
}

type Responses = BTreeMap<String, RefOr<Response>>;

/// `POST /orders`
pub(crate) struct CreateResponses;
/// `GET /orders`
pub(crate) struct ListResponses;
/// `GET /orders/{orderId}`
pub(crate) struct ShowResponses;
/// `POST /orders/{orderId}/cancel`
pub(crate) struct CancelResponses;
/// `GET /orders/{orderId}/events`
pub(crate) struct HistoryResponses;

/// Of every route under `/orders`.
const READ: &[Code] = &[
    Code::InvalidParameter,
    Code::Unauthorized,
    Code::RateLimited,
    Code::InternalError,
    Code::DatabaseUnavailable,
];
/// Of every route that takes a key.
const CHANGE: &[Code] = &[
    Code::IdempotencyKeyMissing,
    Code::IdempotencyKeyInvalid,
    Code::IdempotencyKeyReused,
    Code::RequestInProgress,
    Code::MalformedJson,
    Code::BodyIncomplete,
    Code::BodyTooSlow,
    Code::BodyTooLarge,
    Code::UnsupportedMediaType,
    Code::ValidationFailed,
    Code::Overloaded,
    Code::OutcomeUnknown,
];

impl IntoResponses for CreateResponses {
    fn responses() -> Responses {
        let created = keyed("Created now, or before: then `Idempotent-Replayed` says so and everything else is the first answer")
            .header("Location", header("The order", format!("/orders/{ORDER_ID}")))
            .content(JSON, content("Order", &[("created", "Created", order("created"))]));
        with(problems(&[READ, CHANGE]), "201", created)
    }
}

impl IntoResponses for CancelResponses {
    fn responses() -> Responses {
        let cancelled = keyed("Cancelled now, or before under this key: then `Idempotent-Replayed` says so")
            .content(JSON, content("Order", &[("cancelled", "Cancelled", order("cancelled"))]));
        with(problems(&[READ, CHANGE, &[Code::OrderNotFound, Code::OrderNotCancellable]]), "200", cancelled)
    }
}

impl IntoResponses for ListResponses {
    fn responses() -> Responses {
        let example = json!({"orders": [order("created")], "nextCursor": format!("c1.{ORDER_ID}")});
        let page = limited("The orders of this client, newest first")
            .content(JSON, content("OrderPage", &[("page", "A page with another behind it", example)]));
        with(problems(&[READ]), "200", page)
    }
}

impl IntoResponses for ShowResponses {
    fn responses() -> Responses {
        let tag = || header("Changes with the order; for If-None-Match", "\"1\"");
        let shown = limited("The order as it is now")
            .header("ETag", tag())
            .content(JSON, content("Order", &[("created", "An order", order("created"))]));
        let unchanged = limited("The order still has the ETag of If-None-Match").header("ETag", tag());
        let problems = problems(&[READ, &[Code::OrderNotFound]]);
        with(with(problems, "200", shown), "304", unchanged)
    }
}

impl IntoResponses for HistoryResponses {
    fn responses() -> Responses {
        let event = |version: u8, kind: &str, state: &str| {
            json!({"eventId": "019ddc1c-3f6b-7c5e-9d0a-6c1f0b7a2e12", "version": version, "type": kind,
                   "time": "2026-05-01T09:30:00.123456Z", "state": state})
        };
        let mut published = event(1, "order.created.v1", "published");
        published["published"] = json!({"partition": 3, "offset": 77, "time": "2026-05-01T09:30:00.127Z"});
        let example = json!({
            "orderId": ORDER_ID,
            "events": [published, event(2, "order.cancelled.v1", "pending")],
            "emails": [{"kind": "order_created", "state": "sent", "sentAt": "2026-05-01T09:30:00.31Z"}],
        });
        let history = limited("What became of the order: its events on their way to Kafka, its e-mails")
            .content(JSON, content("History", &[("history", "A cancelled order", example)]));
        with(problems(&[READ, &[Code::OrderNotFound]]), "200", history)
    }
}

/// An answer that is stored with its key.
fn keyed(description: &str) -> ResponseBuilder {
    limited(description)
        .header("Idempotency-Key", header("The key, as it was sent", "8e03978e-40d5-43e8-bc93-6894a57f9324"))
        .header("Idempotent-Replayed", header("Present when this answer was given before", "true"))
}

/// An answer to a client whose requests may be limited.
fn limited(description: &str) -> ResponseBuilder {
    ResponseBuilder::new()
        .description(description)
        .header("RateLimit", header("What is left; only when requests are limited", "\"default\";r=99;t=1"))
        .header("RateLimit-Policy", header("The limit; only when there is one", "\"default\";q=100;w=2"))
}

fn with(mut responses: Responses, status: &str, response: ResponseBuilder) -> Responses {
    responses.insert(status.to_owned(), response.build().into());
    responses
}

/// One response per status, with an example of each code.
fn problems(codes: &[&[Code]]) -> Responses {
    let mut by_status: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
    for code in codes.iter().copied().flatten() {
        by_status.entry(code.status().as_u16()).or_default().push(*code);
    }
    by_status.into_iter().map(|(status, codes)| (status.to_string(), refusal(&codes).into())).collect()
}

fn refusal(codes: &[Code]) -> Response {
    let titles: Vec<_> = codes.iter().map(|code| code.title()).collect();
    let examples: Vec<_> = codes.iter().map(|code| (code.as_str(), code.title(), example(*code))).collect();
    let has = |code| codes.contains(&code);
    let mut response = if has(Code::Unauthorized) { ResponseBuilder::new() } else { limited("") }
        .description(titles.join("; "));
    if has(Code::OrderNotCancellable) {
        let replayed = "Present when this refusal was given before; only with order_not_cancellable";
        response = response.header("Idempotent-Replayed", header(replayed, "true")).header(
            "Idempotency-Key",
            header("The key, as it was sent; only with order_not_cancellable", "cancel-1"),
        );
    }
    if has(Code::Unauthorized) {
        let challenge = header("How to prove who you are (RFC 6750)", r#"Bearer realm="orders""#);
        response = response.header("WWW-Authenticate", challenge);
    }
    if codes.iter().any(|code| code.retry_after()) {
        let seconds = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0));
        let wait = HeaderBuilder::new()
            .schema(Some(seconds))
            .description(Some("Seconds to wait; only when the same request may be sent again"))
            .example(Some(json!(1)));
        response = response.header("Retry-After", wait.build());
    }
    response.content(problem::MEDIA_TYPE, content("Problem", &examples)).build()
}

fn example(code: Code) -> Value {
    let mut problem = json!({
        "type": format!("/problems/{}", code.as_str()), "title": code.title(), "status": code.status().as_u16(),
        "detail": code.title(), "code": code.as_str(), "retryable": code.retryable(),
    });
    if code == Code::ValidationFailed {
        problem["errors"] = json!([{"pointer": "/amountCents", "detail": "is required"}]);
    }
    problem
}

fn order(status: &str) -> Value {
    let mut order = json!({
        "orderId": ORDER_ID, "status": status, "customerId": 42, "amountCents": 2599, "currency": "USD",
        "version": 1, "createdAt": "2026-05-01T09:30:00.123456Z",
    });
    if status == "cancelled" {
        order["version"] = json!(2);
        order["cancelledAt"] = json!("2026-05-01T09:31:00.5Z");
    }
    order
}

fn content(schema: &str, examples: &[(&str, &str, Value)]) -> utoipa::openapi::Content {
    let examples = examples.iter().map(|(name, summary, value)| {
        (*name, ExampleBuilder::new().summary(*summary).value(Some(value.clone())).build())
    });
    ContentBuilder::new().schema(Some(Ref::from_schema_name(schema))).examples_from_iter(examples).build()
}

fn header(description: &str, example: impl Into<Value>) -> utoipa::openapi::header::Header {
    let text = ObjectBuilder::new().schema_type(Type::String);
    HeaderBuilder::new()
        .schema(Some(text))
        .description(Some(description))
        .example(Some(example.into()))
        .build()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::http::body;

    fn described() -> Value {
        serde_json::to_value(describe()).expect("JSON")
    }

    /// A schema of the description, with everything that it refers to.
    fn validator(schema: &str) -> jsonschema::Validator {
        let document = json!({
            "$ref": format!("#/components/schemas/{schema}"), "components": described()["components"],
        });
        jsonschema::options().should_validate_formats(true).build(&document).expect("a valid schema")
    }

    #[test]
    fn the_description_has_exactly_the_routes_of_the_router() {
        let routes: BTreeSet<_> = include_str!("mod.rs")
            .split(".route(\"")
            .skip(1)
            .flat_map(|route| {
                let (path, handlers) = route.split_once('"').expect("a path");
                let handlers = handlers.lines().next().unwrap_or_default().to_owned();
                let path = path.replace("{order_id}", "{orderId}");
                ["get", "post", "put", "patch", "delete"]
                    .into_iter()
                    .filter(move |method| handlers.contains(&format!("{method}(")))
                    .map(move |method| format!("{method} {path}"))
            })
            .collect();
        let document = described();
        let operations: BTreeSet<_> = document["paths"]
            .as_object()
            .expect("paths")
            .iter()
            .flat_map(|(path, item)| {
                item.as_object().expect("operations").keys().map(move |method| format!("{method} {path}"))
            })
            .collect();
        assert_eq!(operations, routes);
        assert_eq!(document["openapi"], "3.1.0");
    }

    #[test]
    fn every_example_in_the_description_fits_its_schema() {
        let document = described();
        let mut checked = 0;
        for (path, item) in document["paths"].as_object().expect("paths") {
            for (method, operation) in item.as_object().expect("operations") {
                for (status, response) in operation["responses"].as_object().expect("responses") {
                    for content in response["content"].as_object().into_iter().flat_map(|c| c.values()) {
                        let Some(schema) = content["schema"]["$ref"].as_str() else { continue };
                        let schema = validator(schema.trim_start_matches("#/components/schemas/"));
                        for (name, example) in content["examples"].as_object().expect("examples") {
                            let error = schema.validate(&example["value"]).err();
                            assert!(error.is_none(), "{method} {path} {status} {name}: {error:?}");
                            checked += 1;
                        }
                    }
                }
            }
        }
        assert!(checked > 50, "{checked}");
    }

    #[test]
    fn every_reference_in_the_description_leads_somewhere() {
        fn follow(at: &Value, document: &Value) {
            if let Some(reference) = at["$ref"].as_str() {
                assert!(document.pointer(&reference[1..]).is_some(), "{reference}");
            }
            let members = at.as_object().into_iter().flat_map(|object| object.values());
            for child in members.chain(at.as_array().into_iter().flatten()) {
                follow(child, document);
            }
        }
        let document = described();
        follow(&document, &document);
    }

    #[test]
    fn the_described_key_is_what_the_parser_takes() {
        let parameters = described()["paths"]["/orders"]["post"]["parameters"].clone();
        let key = parameters.as_array().expect("parameters").iter().find(|p| p["name"] == "Idempotency-Key");
        let schema = jsonschema::validator_for(&key.expect("the key")["schema"]).expect("a valid schema");
        let mut keys: Vec<String> = (b' '..=b'~').map(|byte| char::from(byte).to_string()).collect();
        keys.retain(|key| key != " ");
        for key in [
            "order-1",
            "a b",
            "a,b",
            "a\"b",
            "\"a, b\"",
            "\"",
            "\"\"",
            "\"a",
            "\"a\"b",
            r#""a\"b""#,
            r#""a\b""#,
            r#""\\""#,
            "ä",
        ] {
            keys.push(key.to_owned());
        }
        for length in [255, 256] {
            keys.push("k".repeat(length));
            keys.push(format!("\"{}\"", " ".repeat(length)));
        }
        for key in keys {
            let taken = crate::http::idempotency_key::parse(key.as_bytes()).is_ok();
            assert_eq!(schema.is_valid(&json!(key)), taken, "{key}");
        }
    }

    #[test]
    fn the_described_request_is_what_the_parser_takes() {
        let described_example = described()["components"]["schemas"]["OrderRequest"]["example"].clone();
        let schema = validator("OrderRequest");
        let max = MAX_JSON_INTEGER;
        for (request, fits) in [
            (described_example, true),
            (json!({"customerId": 1, "amountCents": max}), true),
            (json!({"customerId": 1, "amountCents": max + 1}), false),
            (json!({"customerId": 1, "amountCents": 0}), false),
            (json!({"customerId": 1, "amountCents": "1"}), false),
            (json!({"customerId": 1}), false),
            (json!({"customerId": 1, "amountCents": 1, "currency": null}), false),
            (json!({"customerId": 1, "amountCents": 1, "currency": "usd"}), false),
            (json!({"customerId": 1, "amountCents": 1, "currency": "GWH"}), false),
            (json!({"customerId": 1, "amountCents": 1, "customerEmail": "nobody"}), false),
            (json!({"customerId": 1, "amountCents": 1, "note": "x"}), false),
            (json!([]), false),
        ] {
            assert_eq!(schema.is_valid(&request), fits, "schema: {request}");
            assert_eq!(body::create_order(request.to_string().as_bytes()).is_ok(), fits, "parser: {request}");
        }
    }
}
