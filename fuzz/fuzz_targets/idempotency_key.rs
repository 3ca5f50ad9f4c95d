//! No header makes the parser panic, and a key survives being quoted.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orders::domain::IdempotencyKey;
use orders::http::fuzzing::idempotency_key;

fuzz_target!(|value: &[u8]| {
    let Some(key) = idempotency_key(value) else { return };
    let text = key.as_str();
    assert!((1..=IdempotencyKey::MAX_LENGTH).contains(&text.len()));
    assert!(text.bytes().all(|b| (0x20..=0x7e).contains(&b)));
    let quoted = format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    assert_eq!(idempotency_key(quoted.as_bytes()).as_ref(), Some(&key));
});
