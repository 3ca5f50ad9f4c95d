//! Reads W3C Trace Context. A header that is not well formed is left out, as the standard says:
//! a broken trace must never break an order.

use axum::http::HeaderMap;

use crate::domain::TraceContext;

/// The standard lets an implementation drop a longer `tracestate`.
const MAX_TRACESTATE: usize = 512;

/// The trace context of a request; empty when there is none or it is malformed.
pub(crate) fn from_headers(headers: &HeaderMap) -> TraceContext {
    let mut parents = headers.get_all("traceparent").iter();
    let (Some(parent), None) = (parents.next(), parents.next()) else {
        return TraceContext::default();
    };
    let Some(traceparent) = parent.to_str().ok().filter(|p| is_traceparent(p)) else {
        return TraceContext::default();
    };
    let states: Option<Vec<&str>> =
        headers.get_all("tracestate").iter().map(|state| state.to_str().ok()).collect();
    // Repeated `tracestate` headers are one list (section 3.3.1).
    let tracestate = states.map(|s| s.join(",")).filter(|s| is_tracestate(s));
    TraceContext { traceparent: Some(traceparent.to_owned()), tracestate }
}

fn is_traceparent(value: &str) -> bool {
    let mut parts = value.split('-');
    let mut hex = |length| {
        parts.next().filter(|p| {
            p.len() == length && p.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        })
    };
    let (Some(version), Some(trace), Some(parent), Some(_flags)) = (hex(2), hex(32), hex(16), hex(2)) else {
        return false;
    };
    let zero = |id: &str| id.bytes().all(|b| b == b'0');
    // Only a version that is not known yet may have more fields.
    version != "ff" && !zero(trace) && !zero(parent) && (version != "00" || parts.next().is_none())
}

fn is_tracestate(value: &str) -> bool {
    let members = value.split(',').map(str::trim).filter(|m| !m.is_empty());
    !value.trim().is_empty()
        && value.len() <= MAX_TRACESTATE
        && value.bytes().all(|b| (0x20..=0x7e).contains(&b) || b == b'\t')
        && members.clone().count() <= 32
        && members.clone().all(|m| m.split_once('=').is_some_and(|(k, v)| !k.is_empty() && !v.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_well_formed_trace_parents_are_taken() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert!(is_traceparent(good));
        assert!(is_traceparent(&format!("01{}-more", &good[2..])));
        for bad in [
            "",
            &good.to_uppercase(),
            &format!("{good}-more"),
            &format!("ff{}", &good[2..]),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        ] {
            assert!(!is_traceparent(bad), "{bad}");
        }
        assert!(is_tracestate("a=1,b=2"));
        assert!(!is_tracestate("a"));
    }
}
