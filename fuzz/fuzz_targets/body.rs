//! No body makes the parser panic, and what it accepts keeps its promises.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orders::domain::{CustomerEmail, MAX_JSON_INTEGER};
use orders::http::fuzzing::create_order;

fuzz_target!(|bytes: &[u8]| {
    let Some(order) = create_order(bytes) else { return };
    assert!((1..=MAX_JSON_INTEGER).contains(&order.customer_id.get()));
    assert!((1..=MAX_JSON_INTEGER).contains(&order.amount_cents.get()));
    if let Some(email) = &order.customer_email {
        assert!(email.as_str().len() <= CustomerEmail::MAX_LENGTH && email.as_str().contains('@'));
        assert!(email.as_str().bytes().all(|b| b.is_ascii_graphic()));
    }
});
