//! Entity tags of orders (RFC 9110, sections 8.8.3 and 13.1.2). Pure.

use axum::http::header::IF_NONE_MATCH;
use axum::http::{HeaderMap, HeaderValue};

/// The strong tag of an order's version.
pub(crate) fn of_version(version: i32) -> HeaderValue {
    HeaderValue::try_from(format!("\"{version}\"")).unwrap_or(HeaderValue::from_static("\"\""))
}

/// Whether the client already has what `tag` stands for. A malformed list names nothing from where
/// it stops making sense, so the answer is the whole order.
pub(crate) fn none_match_has(headers: &HeaderMap, tag: &HeaderValue) -> bool {
    headers.get_all(IF_NONE_MATCH).iter().any(|list| list.as_bytes().trim_ascii() == b"*" || names(list, tag))
}

/// Weak comparison, as `If-None-Match` asks for: `W/` in front makes no difference.
fn names(list: &HeaderValue, tag: &HeaderValue) -> bool {
    let mut rest = list.as_bytes();
    loop {
        rest = rest.trim_ascii_start();
        let quoted = rest.strip_prefix(b"W/").unwrap_or(rest);
        // A comma may stand inside the quotes, so the list is not split at commas.
        let Some(end) = quoted.strip_prefix(b"\"").and_then(|inner| inner.iter().position(|b| *b == b'"'))
        else {
            return false;
        };
        let (found, behind) = quoted.split_at(end + 2);
        if found == tag.as_bytes() {
            return true;
        }
        match behind.trim_ascii_start().strip_prefix(b",") {
            Some(next) => rest = next,
            None => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_compared_weakly_and_a_broken_one_names_nothing() {
        let tag = of_version(2);
        for (list, has) in [
            ("\"2\"", true),
            ("W/\"2\"", true),
            ("\"1\", \"2\"", true),
            ("\"1\",W/\"2\" , \"3\"", true),
            ("\"a,b\", \"2\"", true),
            (" * ", true),
            ("\"1\"", false),
            ("\"22\"", false),
            ("2", false),
            ("\"2", false),
            ("\"1\" \"2\"", false),
            ("w/\"2\"", false),
            ("\"1, \"2\"", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.append(IF_NONE_MATCH, HeaderValue::from_static(list));
            assert_eq!(none_match_has(&headers, &tag), has, "{list}");
        }
        let mut headers = HeaderMap::new();
        headers.append(IF_NONE_MATCH, HeaderValue::from_static("\"1\""));
        assert!(!none_match_has(&headers, &tag));
        headers.append(IF_NONE_MATCH, HeaderValue::from_static("\"2\""));
        assert!(none_match_has(&headers, &tag), "several fields are one list");
        assert!(!none_match_has(&HeaderMap::new(), &tag));
    }
}
