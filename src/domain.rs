//! What a client may ask for and how it can end. Pure: no HTTP, no SQL, no clock, so that every
//! other module can speak these words without depending on its neighbours.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use events::{Currency, EventId, OrderId, OrderStatus};
use serde::Serialize;
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

/// 2^53 - 1: the largest integer that every JSON reader keeps exact.
pub const MAX_JSON_INTEGER: i64 = (1 << 53) - 1;

/// Fingerprints made under another version never match; raise it when the meaning of a request changes.
const FINGERPRINT_VERSION: u8 = 1;

/// The authenticated client; keys and orders belong to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClientId(String);

impl ClientId {
    /// The client that everybody is when authentication is off.
    #[must_use]
    pub fn anonymous() -> Self {
        Self("anonymous".to_owned())
    }

    /// The client that a looked-up API key belongs to.
    pub(crate) fn authenticated(client: String) -> Self {
        Self(client)
    }

    /// As the database knows it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a client proves itself with: 256 random bits in hexadecimal behind a prefix that secret
/// scanners can know.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

/// SHA-256 of a [`Token`]: all that is stored of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Token {
    const PREFIX: &str = "ordk_";

    /// A new token.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub(crate) fn generate() -> Result<Self, getrandom::Error> {
        let mut bits = [0; 32];
        getrandom::fill(&mut bits)?;
        let digits: String = bits.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self(format!("{}{digits}", Self::PREFIX)))
    }

    /// `None` for what cannot be a token, so that it costs no query.
    #[must_use]
    pub fn parse(token: &str) -> Option<Self> {
        let digits = token.strip_prefix(Self::PREFIX)?;
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (digits.len() == 64 && digits.bytes().all(hex)).then(|| Self(token.to_owned()))
    }

    /// What is stored. No salt and no stretching: there is nothing to guess in 256 random bits.
    #[must_use]
    pub fn hash(&self) -> TokenHash {
        TokenHash(Sha256::digest(&self.0).into())
    }

    /// The token itself, to be shown once.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

/// An idempotency key: 1 to 255 printable ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// The longest key, in characters.
    pub const MAX_LENGTH: usize = 255;

    /// Takes the unquoted key; `None` when it is empty, too long or not printable ASCII.
    #[must_use]
    pub fn new(key: String) -> Option<Self> {
        let printable = key.bytes().all(|b| (0x20..=0x7e).contains(&b));
        ((1..=Self::MAX_LENGTH).contains(&key.len()) && printable).then_some(Self(key))
    }

    /// The unquoted key, as the database knows it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A customer's number in the client's system, 1 to 2^53 - 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct CustomerId(i64);

/// An amount in minor units of its currency, 1 to 2^53 - 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct AmountCents(i64);

macro_rules! positive {
    ($name:ident) => {
        impl $name {
            /// `None` outside 1 to 2^53 - 1.
            #[must_use]
            pub fn new(value: i64) -> Option<Self> {
                (1..=MAX_JSON_INTEGER).contains(&value).then_some(Self(value))
            }

            /// The number.
            #[must_use]
            pub fn get(self) -> i64 {
                self.0
            }
        }
    };
}
positive!(CustomerId);
positive!(AmountCents);

/// An address to which mail can be sent: ASCII, at most 254 characters (RFC 5321 path limit).
#[derive(Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct CustomerEmail(String);

impl std::fmt::Debug for CustomerEmail {
    // An address is personal data and must not reach a log by way of `{:?}`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CustomerEmail(…)")
    }
}

impl CustomerEmail {
    /// The longest address, in characters.
    pub const MAX_LENGTH: usize = 254;

    /// Parses an address; the error says what is wrong, for the client.
    ///
    /// # Errors
    /// When it is too long, not ASCII or not `local@domain`.
    pub fn parse(address: &str) -> Result<Self, &'static str> {
        if !address.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("must consist of printable ASCII characters without spaces");
        }
        if address.len() > Self::MAX_LENGTH {
            return Err("must have at most 254 characters");
        }
        let plain = email_address::Options::default().without_display_text().with_required_tld();
        email_address::EmailAddress::parse_with_options(address, plain)
            .map(|_| Self(address.to_owned()))
            .map_err(|_| "must be an e-mail address like name@example.com")
    }

    /// The address.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A valid request for an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOrder {
    /// What a repeat of it is recognised by.
    pub fingerprint: Fingerprint,
    /// Whose order it is.
    pub customer_id: CustomerId,
    /// How much.
    pub amount_cents: AmountCents,
    /// Of which currency.
    pub currency: Currency,
    /// Where notifications go; none are sent without it.
    pub customer_email: Option<CustomerEmail>,
}

/// SHA-256 over a version, the operation and the typed request: white space, key order, `1` or
/// `1.0` and escapes in the raw JSON make no difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of a request for an order, by its fields as they were read and before any rule is asked: a
    /// request that was valid when it was stored is recognised when the rules have changed.
    #[must_use]
    pub fn create(customer_id: i64, amount_cents: i64, currency: &str, customer_email: Option<&str>) -> Self {
        let canonical = serde_json::json!([customer_id, amount_cents, currency, customer_email]);
        Self::over(Operation::Create, &canonical.to_string())
    }

    /// Of a request to cancel an order.
    #[must_use]
    pub fn cancel(order: OrderId) -> Self {
        Self::over(Operation::Cancel, &order.to_string())
    }

    fn over(operation: Operation, canonical: &str) -> Self {
        let mut hash = Sha256::new();
        hash.update([FINGERPRINT_VERSION]);
        hash.update(operation.as_str());
        hash.update([0]);
        hash.update(canonical);
        Self(hash.finalize().into())
    }

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// What a key was used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `POST /orders`
    Create,
    /// `POST /orders/{orderId}/cancel`
    Cancel,
}

impl Operation {
    /// As the database knows it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "orders.create",
            Self::Cancel => "orders.cancel",
        }
    }
}

/// An answer that every repeat of its request gets, byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The headers that belong to the answer, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: Vec<u8>,
}

/// How a request with an idempotency key ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done now; the answer was stored with it.
    Done(Answer),
    /// Done before; this is the first answer.
    Replayed(Answer),
    /// The key belongs to another request of this client.
    KeyReused,
    /// A transaction elsewhere holds the key and has not ended within the wait.
    InProgress,
    /// There is no such order for this client; nothing was stored.
    NoSuchOrder,
}

/// An order as clients see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Order)]
#[serde(rename_all = "camelCase")]
pub struct OrderView {
    /// The order.
    #[schema(value_type = uuid::Uuid)]
    pub order_id: OrderId,
    /// What it is now.
    #[schema(value_type = crate::http::openapi::Status)]
    pub status: OrderStatus,
    /// The customer's number in the client's system.
    pub customer_id: i64,
    /// Integer of the currency's minor unit.
    pub amount_cents: i64,
    /// ISO 4217.
    pub currency: String,
    /// Where notifications go.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub customer_email: Option<String>,
    /// Counts the changes: 1, 2, 3 …
    pub version: i32,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// When it was cancelled.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub cancelled_at: Option<DateTime<Utc>>,
}

/// Everything that one accepted request for an order writes. All of it is made before the
/// statement runs, so that a second run writes the same and recognises its own row.
#[derive(Clone, Debug)]
pub struct NewOrder {
    /// Who asks.
    pub client: ClientId,
    /// Under which key.
    pub key: IdempotencyKey,
    /// For what.
    pub request: CreateOrder,
    /// The order that comes of it.
    pub order_id: OrderId,
    /// The event that tells of it.
    pub event_id: EventId,
    /// When, in microseconds: what PostgreSQL keeps.
    pub created_at: DateTime<Utc>,
    /// The event's data, JSON.
    pub payload: String,
    /// The event's trace headers.
    pub trace: TraceContext,
    /// The answer.
    pub answer: Answer,
}

/// A request to cancel an order.
#[derive(Clone, Debug)]
pub struct CancelOrder {
    /// Who asks.
    pub client: ClientId,
    /// Under which key.
    pub key: IdempotencyKey,
    /// Which order.
    pub order_id: OrderId,
    /// The event that tells of it, if it can be cancelled.
    pub event_id: EventId,
    /// When, in microseconds.
    pub at: DateTime<Utc>,
    /// The answer if it is cancelled already; stored and replayed like a success.
    pub refusal: Answer,
    /// The event's trace headers.
    pub trace: TraceContext,
}

/// W3C Trace Context of a request, when it was well formed; travels with the event.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TraceContext {
    /// `traceparent`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// `tracestate`, only beside a `traceparent`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tracestate: Option<String>,
}
