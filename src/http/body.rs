//! Reads the JSON of a request, strictly: duplicate, unknown, missing and null fields are errors,
//! and all of them are reported at once, each with its JSON pointer. Pure.

use std::fmt;

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::domain::{AmountCents, CreateOrder, CustomerEmail, CustomerId, Fingerprint, MAX_JSON_INTEGER};

/// Past this many errors the rest says nothing new.
const MAX_ERRORS: usize = 20;
/// A longer unknown name is not repeated to the client.
const MAX_NAME: usize = 100;

/// One thing that is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub(crate) struct FieldError {
    /// RFC 6901; empty for the document itself.
    pub(crate) pointer: String,
    /// What would be right.
    pub(crate) detail: String,
}

/// The body is not a valid request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BodyError {
    /// It is not JSON; says where and why.
    Malformed(String),
    /// It is JSON, but not a valid request.
    Invalid {
        /// What is wrong with it.
        errors: Vec<FieldError>,
        /// What a repeat of it is recognised by, when only the rules are against it: under the rules of
        /// another day it may have been accepted and stored.
        fingerprint: Option<Fingerprint>,
    },
}

/// The fields of a JSON object in the order in which they were sent, repeated names included.
struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;
        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::with_capacity(4);
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(FieldsVisitor)
    }
}

/// Reads the body of `POST /orders`.
pub(crate) fn create_order(body: &[u8]) -> Result<CreateOrder, BodyError> {
    let mut errors = Errors::default();
    let fields = fields(body, &["customerId", "amountCents", "currency", "customerEmail"], &mut errors)?;
    let field = |name| fields.iter().find(|(n, _)| n == name).map(|(_, value)| *value);

    // Each field is read, and then judged; the fingerprint is over what was read.
    let customer = errors.required("customerId", field("customerId").map(integer));
    let customer_id = errors.judge("customerId", customer, |n| CustomerId::new(n).ok_or_else(range));
    let amount = errors.required("amountCents", field("amountCents").map(integer));
    let amount_cents = errors.judge("amountCents", amount, |n| AmountCents::new(n).ok_or_else(range));
    let code = match field("currency") {
        Some(value) => errors.optional("currency", Some(string(value))),
        None => Some(events::Currency::USD.code().to_owned()),
    };
    let currency = errors.judge("currency", code.as_deref(), currency);
    let address = errors.optional("customerEmail", field("customerEmail").map(string));
    let customer_email = errors
        .judge("customerEmail", address.as_deref(), |text| CustomerEmail::parse(text).map_err(str::to_owned));

    let fingerprint = match (customer, amount, &code) {
        (Some(customer), Some(amount), Some(code)) if !errors.unreadable => {
            Some(Fingerprint::create(customer, amount, code, address.as_deref()))
        }
        _ => None,
    };
    match (fingerprint, customer_id, amount_cents, currency) {
        (Some(fingerprint), Some(customer_id), Some(amount_cents), Some(currency))
            if errors.list.is_empty() =>
        {
            Ok(CreateOrder { fingerprint, customer_id, amount_cents, currency, customer_email })
        }
        _ => Err(BodyError::Invalid { errors: errors.list, fingerprint }),
    }
}

/// Reads the body of a request that needs none: nothing at all, or `{}`.
pub(crate) fn nothing(body: &[u8]) -> Result<(), BodyError> {
    if body.trim_ascii().is_empty() {
        return Ok(());
    }
    let mut errors = Errors::default();
    fields(body, &[], &mut errors)?;
    if errors.list.is_empty() {
        Ok(())
    } else {
        Err(BodyError::Invalid { errors: errors.list, fingerprint: None })
    }
}

/// The object's fields; notes those that are unknown or repeated.
fn fields<'a>(
    body: &'a [u8],
    known: &[&str],
    errors: &mut Errors,
) -> Result<Vec<(String, &'a RawValue)>, BodyError> {
    let text = std::str::from_utf8(body)
        .map_err(|e| BodyError::Malformed(format!("the body is not UTF-8 from byte {}", e.valid_up_to())))?;
    let Fields(fields) = serde_json::from_str(text).map_err(|error| {
        // JSON of another kind is told from what is not JSON at all.
        match serde_json::from_str::<&RawValue>(text) {
            Ok(value) if !value.get().starts_with('{') => BodyError::Invalid {
                errors: vec![FieldError {
                    pointer: String::new(),
                    detail: "must be a JSON object".to_owned(),
                }],
                fingerprint: None,
            },
            _ => BodyError::Malformed(format!(
                "the body is not JSON: line {} column {}",
                error.line(),
                error.column()
            )),
        }
    })?;
    for (index, (name, _)) in fields.iter().enumerate() {
        if !known.contains(&name.as_str()) {
            errors.unreadable(name, "is not a field of this request".to_owned());
        } else if fields[..index].iter().any(|(earlier, _)| earlier == name) {
            errors.unreadable(name, "is given more than once".to_owned());
        }
    }
    Ok(fields)
}

#[derive(Default)]
struct Errors {
    list: Vec<FieldError>,
    /// A field could not be read at all: wrong type, missing, unknown or repeated.
    unreadable: bool,
}

impl Errors {
    fn add(&mut self, name: &str, detail: String) {
        let (pointer, detail) = if name.len() > MAX_NAME {
            (String::new(), "contains an unknown field with a very long name".to_owned())
        } else {
            (format!("/{}", name.replace('~', "~0").replace('/', "~1")), detail)
        };
        let error = FieldError { pointer, detail };
        if self.list.len() < MAX_ERRORS && !self.list.contains(&error) {
            self.list.push(error);
        }
    }

    fn unreadable(&mut self, name: &str, detail: String) {
        self.unreadable = true;
        self.add(name, detail);
    }

    fn required<T>(&mut self, name: &str, field: Option<Result<T, String>>) -> Option<T> {
        if field.is_none() {
            self.unreadable(name, "is required".to_owned());
        }
        self.optional(name, field)
    }

    fn optional<T>(&mut self, name: &str, field: Option<Result<T, String>>) -> Option<T> {
        field?.map_err(|detail| self.unreadable(name, detail)).ok()
    }

    fn judge<T, U>(
        &mut self,
        name: &str,
        field: Option<T>,
        rule: impl FnOnce(T) -> Result<U, String>,
    ) -> Option<U> {
        rule(field?).map_err(|detail| self.add(name, detail)).ok()
    }
}

fn range() -> String {
    format!("must be a whole number from 1 to {MAX_JSON_INTEGER}")
}

/// A whole number written as digits, with or without `.0` behind them. An exponent is refused:
/// where money is concerned `1e3` is more often a mistake than a thousand.
fn integer(value: &RawValue) -> Result<i64, String> {
    let text = value.get();
    if !text.starts_with(|c: char| c == '-' || c.is_ascii_digit()) {
        return Err(format!("must be a number, not {}", kind(text)));
    }
    if text.contains(['e', 'E']) {
        return Err("must be written without an exponent".to_owned());
    }
    let whole = match text.split_once('.') {
        Some((whole, fraction)) if fraction.bytes().all(|b| b == b'0') => whole,
        Some(_) => return Err("must be a whole number".to_owned()),
        None => text,
    };
    whole.parse().map_err(|_| range())
}

fn string(value: &RawValue) -> Result<String, String> {
    let text = value.get();
    if !text.starts_with('"') {
        return Err(format!("must be a string, not {}", kind(text)));
    }
    let string: String =
        serde_json::from_str(text).map_err(|_| "must be a string of valid Unicode characters".to_owned())?;
    if string.contains('\0') {
        return Err("must not contain the NUL character".to_owned());
    }
    Ok(string)
}

fn currency(code: &str) -> Result<events::Currency, String> {
    events::Currency::from_code(code)
        .ok_or_else(|| "must be an ISO 4217 code of three upper-case letters".to_owned())
}

fn kind(text: &str) -> &'static str {
    match text.as_bytes().first() {
        Some(b'"') => "a string",
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pointers(body: &str) -> Vec<String> {
        match create_order(body.as_bytes()) {
            Err(BodyError::Invalid { errors, .. }) => errors.into_iter().map(|e| e.pointer).collect(),
            other => panic!("{body}: {other:?}"),
        }
    }

    #[test]
    fn all_errors_are_reported_at_once() {
        assert_eq!(
            pointers(r#"{"customerId":"1","amountCents":0,"currency":"usd","a/b~":1,"customerEmail":null}"#),
            ["/a~1b~0", "/customerId", "/amountCents", "/currency", "/customerEmail"]
        );
        assert_eq!(pointers("[]"), [""]);
        assert_eq!(pointers(r#"{"customerId":1,"amountCents":1,"amountCents":2}"#), ["/amountCents"]);
    }

    #[test]
    fn what_is_not_json_is_told_from_what_does_not_fit() {
        let bodies: [&[u8]; 7] =
            [b"", b"{", b"nonsense", b"{\"a\":\"\xff\"}", b"{}x", b"\xef\xbb\xbf{}", br#"{"\ud800":1}"#];
        for body in bodies {
            assert!(matches!(create_order(body), Err(BodyError::Malformed(_))), "{}", body.escape_ascii());
        }
    }

    #[test]
    fn deep_nesting_ends_in_an_error() {
        let bomb = format!("{{\"customerId\":{}", "[".repeat(60_000));
        assert!(matches!(create_order(bomb.as_bytes()), Err(BodyError::Malformed(_))));
        let closed = format!("{{\"customerId\":{}{}}}", "[".repeat(30_000), "]".repeat(30_000));
        assert!(create_order(closed.as_bytes()).is_err());
    }

    #[test]
    fn spelling_does_not_change_the_fingerprint() {
        let fingerprint = |body: &str| create_order(body.as_bytes()).expect("valid").fingerprint;
        let plain = fingerprint(r#"{"customerId":42,"amountCents":2599}"#);
        for same in [
            r#"{ "amountCents" : 2599.0, "customerId":42.00 }"#,
            r#"{"customerId":42,"amountCents":2599,"currency":"USD"}"#,
            r#"{"customer\u0049d":42,"amountCents":2599,"currency":"\u0055SD"}"#,
        ] {
            assert_eq!(fingerprint(same), plain, "{same}");
        }
        assert_ne!(fingerprint(r#"{"customerId":42,"amountCents":2600}"#), plain);
    }

    #[test]
    fn a_request_that_only_breaks_a_rule_keeps_its_fingerprint() {
        let fingerprint = |body: &str| match create_order(body.as_bytes()) {
            Err(BodyError::Invalid { fingerprint, .. }) => fingerprint,
            other => panic!("{body}: {other:?}"),
        };
        assert_eq!(
            fingerprint(r#"{"customerId":1,"amountCents":0,"currency":"ZZZ","customerEmail":"nobody"}"#),
            Some(Fingerprint::create(1, 0, "ZZZ", Some("nobody")))
        );
        for unreadable in [
            r#"{"customerId":1,"amountCents":0,"x":1}"#,
            r#"{"customerId":1,"amountCents":0,"amountCents":0}"#,
            r#"{"customerId":1,"amountCents":"0"}"#,
            r#"{"customerId":1}"#,
            r#"{"customerId":0,"amountCents":1,"currency":null}"#,
            r#"{"customerId":0,"amountCents":1,"customerEmail":1}"#,
        ] {
            assert_eq!(fingerprint(unreadable), None, "{unreadable}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_request_or_an_error(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = create_order(&body);
        }

        #[test]
        fn any_text_in_any_field_gives_a_request_or_named_errors(
            name in "customerId|amountCents|currency|customerEmail|[a-z~/]{1,5}",
            value in "-?[0-9]{1,20}(\\.[0-9]{1,3})?([eE][0-9])?|null|true|\"[ -!#-\\[\\]-~]{0,10}\"|\\{\\}|\\[\\]",
        ) {
            let known = |n: &str, v: &str| if name == n { String::new() } else { format!("\"{n}\":{v},") };
            let body = format!("{{{}{}\"{name}\":{value}}}", known("customerId", "1"), known("amountCents", "1"));
            match create_order(body.as_bytes()) {
                Ok(order) => prop_assert!(order.amount_cents.get() > 0 && order.customer_id.get() > 0),
                Err(BodyError::Invalid { errors, .. }) => {
                    prop_assert_eq!(errors.len(), 1, "{}", body);
                    prop_assert_eq!(&errors[0].pointer, &format!("/{}", name.replace('~', "~0").replace('/', "~1")));
                }
                // A number with a leading zero is not JSON.
                Err(BodyError::Malformed(_)) => prop_assert!(value.trim_start_matches('-').starts_with('0')),
            }
        }

        #[test]
        fn every_amount_in_range_is_read_exactly(amount in 1..=MAX_JSON_INTEGER, zeros in "|\\.0{1,4}") {
            let body = format!("{{\"customerId\":1,\"amountCents\":{amount}{zeros}}}");
            prop_assert_eq!(create_order(body.as_bytes()).expect("valid").amount_cents.get(), amount);
        }
    }
}
