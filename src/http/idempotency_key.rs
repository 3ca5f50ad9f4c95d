//! Reads the `Idempotency-Key` header: as a structured-field string (`"abc"`, RFC 8941) or bare
//! (`abc`), which name the same key. Pure; decides nothing about what a key means.

use axum::http::HeaderMap;

use crate::domain::IdempotencyKey;

/// The header's name.
pub(crate) const HEADER: &str = "idempotency-key";

/// Why there is no usable key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KeyError {
    #[error("the Idempotency-Key header is missing: send one key per order, for example a UUID")]
    Missing,
    #[error("the Idempotency-Key header is repeated: send it once")]
    Repeated,
    #[error("the idempotency key is empty")]
    Empty,
    #[error("the idempotency key has more than 255 characters")]
    TooLong,
    #[error("the idempotency key contains a control character")]
    Control,
    #[error("the idempotency key contains a character outside ASCII")]
    NotAscii,
    #[error("a space or comma is only allowed in the quoted form of an idempotency key, \"like, this\"")]
    NeedsQuotes,
    #[error("the quoted idempotency key does not end with its closing quote")]
    Unterminated,
    #[error("a backslash in a quoted idempotency key must be followed by \\ or \"")]
    BadEscape,
}

/// The key of a request.
pub(crate) fn from_headers(headers: &HeaderMap) -> Result<IdempotencyKey, KeyError> {
    let mut values = headers.get_all(HEADER).iter();
    let value = values.next().ok_or(KeyError::Missing)?;
    if values.next().is_some() {
        return Err(KeyError::Repeated);
    }
    parse(value.as_bytes())
}

/// The key in a header's value.
pub(crate) fn parse(value: &[u8]) -> Result<IdempotencyKey, KeyError> {
    let value = value.trim_ascii();
    if value.iter().any(|b| !b.is_ascii()) {
        return Err(KeyError::NotAscii);
    }
    if value.iter().any(u8::is_ascii_control) {
        return Err(KeyError::Control);
    }
    let key = match value.strip_prefix(b"\"") {
        Some(quoted) => unquote(quoted)?,
        // A bare comma is what a repeated header looks like after a proxy has joined it.
        None if value.iter().any(|b| matches!(b, b' ' | b',')) => return Err(KeyError::NeedsQuotes),
        None => value.iter().copied().map(char::from).collect(),
    };
    match key.len() {
        0 => Err(KeyError::Empty),
        length if length > IdempotencyKey::MAX_LENGTH => Err(KeyError::TooLong),
        _ => IdempotencyKey::new(key).ok_or(KeyError::Control),
    }
}

/// What stands between the quotes; `quoted` begins after the opening one.
fn unquote(quoted: &[u8]) -> Result<String, KeyError> {
    let mut key = String::with_capacity(quoted.len());
    let mut rest = quoted.iter();
    while let Some(&byte) = rest.next() {
        match byte {
            // Parameters after a key have no meaning here; ignoring them would hide a mistake.
            b'"' if rest.len() == 0 => return Ok(key),
            b'"' => return Err(KeyError::Unterminated),
            b'\\' => match rest.next() {
                Some(&escaped @ (b'"' | b'\\')) => key.push(char::from(escaped)),
                _ => return Err(KeyError::BadEscape),
            },
            other => key.push(char::from(other)),
        }
    }
    Err(KeyError::Unterminated)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quote(key: &str) -> String {
        format!("\"{}\"", key.replace('\\', "\\\\").replace('"', "\\\""))
    }

    #[test]
    fn bare_and_quoted_are_the_same_key() {
        assert_eq!(parse(b"abc"), parse(b"\"abc\""));
        assert_eq!(parse(b"a\\b"), parse(b"\"a\\\\b\""));
        assert_eq!(parse(b"  abc "), parse(b"abc"));
    }

    #[test]
    fn each_malformed_key_is_told_what_is_wrong() {
        let long = "k".repeat(256);
        let cases: [(&[u8], KeyError); 13] = [
            (b"", KeyError::Empty),
            (b"   ", KeyError::Empty),
            (b"\"\"", KeyError::Empty),
            (long.as_bytes(), KeyError::TooLong),
            (b"a\x01b", KeyError::Control),
            (b"a\tb", KeyError::Control),
            (b"\"a\x7fb\"", KeyError::Control),
            ("schl\u{fc}ssel".as_bytes(), KeyError::NotAscii),
            (b"a, b", KeyError::NeedsQuotes),
            (b"\"a", KeyError::Unterminated),
            (b"\"a\", \"b\"", KeyError::Unterminated),
            (b"\"a\";p=1", KeyError::Unterminated),
            (b"\"a\\n\"", KeyError::BadEscape),
        ];
        for (value, error) in cases {
            assert_eq!(parse(value), Err(error), "{}", String::from_utf8_lossy(value));
        }
        assert!(parse("k".repeat(255).as_bytes()).is_ok());
        assert!(parse(quote(&"\"".repeat(255)).as_bytes()).is_ok(), "escapes do not count");
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_key_or_an_error(value in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(key) = parse(&value) {
                prop_assert!((1..=255).contains(&key.as_str().len()));
                prop_assert!(key.as_str().bytes().all(|b| (0x20..=0x7e).contains(&b)));
            }
        }

        #[test]
        fn every_printable_key_survives_quoting(key in "[ -~]{1,255}") {
            let parsed = parse(quote(&key).as_bytes()).expect("a key");
            prop_assert_eq!(parsed.as_str(), key);
        }

        #[test]
        fn every_bare_key_equals_its_quoted_form(key in "[!#-+\\--~][!-+\\--~]{0,254}") {
            prop_assert_eq!(parse(key.as_bytes()).expect("a key"), parse(quote(&key).as_bytes()).expect("a key"));
        }
    }
}
