//! Bad input gets a 4xx that says what would be right, and writes no row.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::time::Duration;

use demo::testing::Database;
use reqwest::Method;
use support::{Api, ORDER, rows};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

const JSON: (&str, &[u8]) = ("content-type", b"application/json");
const KEY: (&str, &[u8]) = ("idempotency-key", b"k-1");

#[tokio::test]
async fn every_bad_body_names_its_field_and_writes_no_row() {
    let database = Database::create().await;
    let api = Api::start(database.url()).await;
    let long_email =
        format!(r#"{{"customerId":1,"amountCents":1,"customerEmail":"{}@example.com"}}"#, "a".repeat(250));
    let invalid: &[(&str, &str)] = &[
        (r#"{"amountCents":1}"#, "/customerId"),
        (r#"{"customerId":1}"#, "/amountCents"),
        (r#"{"customerId":null,"amountCents":1}"#, "/customerId"),
        (r#"{"customerId":"1","amountCents":1}"#, "/customerId"),
        (r#"{"customerId":0,"amountCents":1}"#, "/customerId"),
        (r#"{"customerId":[1],"amountCents":1}"#, "/customerId"),
        (r#"{"customerId":1,"amountCents":0}"#, "/amountCents"),
        (r#"{"customerId":1,"amountCents":-5}"#, "/amountCents"),
        (r#"{"customerId":1,"amountCents":1.5}"#, "/amountCents"),
        (r#"{"customerId":1,"amountCents":1e3}"#, "/amountCents"),
        (r#"{"customerId":1,"amountCents":9007199254740992}"#, "/amountCents"),
        (r#"{"customerId":1,"amountCents":99999999999999999999999}"#, "/amountCents"),
        (r#"{"customerId":1,"amountCents":"2599"}"#, "/amountCents"),
        (r#"{"customerId":1,"amountCents":true}"#, "/amountCents"),
        (r#"{"customerId":1,"amountCents":1,"currency":"usd"}"#, "/currency"),
        (r#"{"customerId":1,"amountCents":1,"currency":"ZZZ"}"#, "/currency"),
        (r#"{"customerId":1,"amountCents":1,"currency":null}"#, "/currency"),
        (r#"{"customerId":1,"amountCents":1,"currency":840}"#, "/currency"),
        (r#"{"customerId":1,"amountCents":1,"customerEmail":"nobody"}"#, "/customerEmail"),
        (r#"{"customerId":1,"amountCents":1,"customerEmail":"a@b@example.com"}"#, "/customerEmail"),
        (r#"{"customerId":1,"amountCents":1,"customerEmail":"Ada <ada@example.com>"}"#, "/customerEmail"),
        (
            r#"{"customerId":1,"amountCents":1,"customerEmail":"a@example.com\r\nBcc: b@example.com"}"#,
            "/customerEmail",
        ),
        (r#"{"customerId":1,"amountCents":1,"customerEmail":"ada\u0000@example.com"}"#, "/customerEmail"),
        (r#"{"customerId":1,"amountCents":1,"customerEmail":"\ud800@example.com"}"#, "/customerEmail"),
        (r#"{"customerId":1,"amountCents":1,"customerEmail":"jürgen@example.com"}"#, "/customerEmail"),
        (r#"{"customerId":1,"amountCents":1,"customerEmail":null}"#, "/customerEmail"),
        (&long_email, "/customerEmail"),
        (r#"{"customerId":1,"amountCents":1,"note":"x"}"#, "/note"),
        (r#"{"customerId":1,"amountCents":1,"a/b~c":"x"}"#, "/a~1b~0c"),
        (r#"{"customerId":1,"amountCents":1,"customerId":1}"#, "/customerId"),
        (r#"[{"customerId":1,"amountCents":1}]"#, ""),
        ("null", ""),
        ("42", ""),
    ];
    for (body, pointer) in invalid {
        let answer = api.send(Method::POST, "/orders", &[JSON, KEY], (*body).to_owned()).await;
        let json = answer.is_problem(422, "validation_failed").json();
        let errors = json["errors"].as_array().unwrap();
        assert_eq!((errors.len(), errors[0]["pointer"].as_str()), (1, Some(*pointer)), "{body}: {json}");
        assert!(errors[0]["detail"].is_string());
    }
    let malformed: [&[u8]; 6] =
        [b"", b"{", b"customerId=1", b"{\"customerId\":1,}", b"{\"customerId\":\xff}", b"\xef\xbb\xbf{}"];
    for body in malformed {
        api.send(Method::POST, "/orders", &[JSON, KEY], body.to_vec())
            .await
            .is_problem(400, "malformed_json");
    }
    let nested = format!(r#"{{"customerId":{}{}}}"#, "[".repeat(30_000), "]".repeat(30_000));
    let answer = api.send(Method::POST, "/orders", &[JSON, KEY], nested).await;
    assert!(matches!(answer.status, 400 | 422), "{answer:?}");
    assert_eq!(rows(&database.pool().await).await, (0, 0, 0));
    api.stop().await;
}

#[tokio::test]
async fn every_bad_key_is_told_what_is_wrong() {
    let database = Database::create().await;
    let api = Api::start(database.url()).await;
    let long = vec![b'k'; 256];
    let missing = api.send(Method::POST, "/orders", &[JSON], ORDER).await;
    missing.is_problem(400, "idempotency_key_missing");
    let repeated = api.send(Method::POST, "/orders", &[JSON, KEY, ("idempotency-key", b"k-2")], ORDER).await;
    repeated.is_problem(400, "idempotency_key_invalid");
    assert!(repeated.json()["detail"].as_str().unwrap().contains("repeated"));
    let keys: [(&[u8], &str); 7] = [
        (b"", "empty"),
        (b"\"\"", "empty"),
        (&long, "255"),
        (b"a\tb", "control"),
        ("schl\u{fc}ssel".as_bytes(), "ASCII"),
        (b"\"open", "closing quote"),
        (b"k-1, k-2", "quoted"),
    ];
    for (key, word) in keys {
        for path in ["/orders".to_owned(), format!("/orders/{}/cancel", events::OrderId::new())] {
            let answer = api.send(Method::POST, &path, &[JSON, ("idempotency-key", key)], "").await;
            let detail = answer.is_problem(400, "idempotency_key_invalid").json()["detail"].clone();
            assert!(detail.as_str().unwrap().contains(word), "{detail}");
        }
    }
    assert_eq!(rows(&database.pool().await).await, (0, 0, 0));
    api.stop().await;
}

#[tokio::test]
async fn what_is_not_a_request_of_this_api_gets_a_problem_too() {
    let database = Database::create().await;
    let api = Api::start(database.url()).await;
    let order = format!("/orders/{}", events::OrderId::new());
    for content in ["text/plain", "application/json; charset=latin1", "application/jsonx", ""] {
        let headers = [("content-type", content.as_bytes()), KEY];
        api.send(Method::POST, "/orders", &headers, ORDER).await.is_problem(415, "unsupported_media_type");
    }
    api.send(Method::POST, "/orders", &[KEY], ORDER).await.is_problem(415, "unsupported_media_type");

    let padded = |length: usize| format!("{ORDER}{}", " ".repeat(length - ORDER.len()));
    api.send(Method::POST, "/orders", &[JSON, KEY], padded(65_537)).await.is_problem(413, "body_too_large");

    api.get("/nothing").await.is_problem(404, "not_found");
    api.get("/orders/").await.is_problem(404, "not_found");
    for (method, path, allow) in [
        (Method::DELETE, "/orders", vec!["GET", "POST"]),
        (Method::POST, order.as_str(), vec!["GET"]),
        (Method::GET, &format!("{order}/cancel"), vec!["POST"]),
        (Method::PUT, &format!("{order}/events"), vec!["GET"]),
    ] {
        let answer = api.send(method, path, &[], "").await;
        let allowed = answer.is_problem(405, "method_not_allowed").header("allow").unwrap().to_owned();
        for method in allow {
            assert!(allowed.split(',').any(|a| a.trim() == method), "{path}: {allowed}");
        }
    }
    for query in [
        "limit=0",
        "limit=1000",
        "limit=x",
        "cursor=broken",
        "cursor=c1.0",
        "status=lost",
        "page=2",
        "limit=1&limit=2",
    ] {
        api.get(&format!("/orders?{query}")).await.is_problem(400, "invalid_parameter");
    }
    api.get(&format!("{order}?x=1")).await.is_problem(400, "invalid_parameter");
    let cancel = format!("{order}/cancel");
    api.send(Method::POST, &cancel, &[JSON, KEY], r#"{"why":1}"#).await.is_problem(422, "validation_failed");
    assert_eq!(rows(&database.pool().await).await, (0, 0, 0));

    let fits = api.send(Method::POST, "/orders", &[JSON, KEY], padded(65_536)).await;
    assert_eq!(fits.status, 201);
    api.stop().await;
}

/// Sends the beginning of a request; gives what comes back until the server has answered.
async fn unfinished(api: &Api, head: &str, begun: &str) -> String {
    let mut stream = TcpStream::connect(api.address).await.unwrap();
    let request = format!(
        "POST /orders HTTP/1.1\r\nhost: api\r\ncontent-type: application/json\r\nidempotency-key: k-1\r\n{head}\r\n\r\n{begun}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !String::from_utf8_lossy(&answer).contains("\"code\"") {
        let n = stream.read_buf(&mut answer).await.unwrap();
        assert!(n > 0, "closed after {}", String::from_utf8_lossy(&answer));
    }
    String::from_utf8(answer).unwrap()
}

/// Sends bytes that no client library would send; gives the whole answer.
async fn raw(api: &Api, key: &[u8]) -> String {
    let mut stream = TcpStream::connect(api.address).await.unwrap();
    let mut request = b"POST /orders HTTP/1.1\r\nhost: api\r\nconnection: close\r\n\
        content-type: application/json\r\ncontent-length: 39\r\nidempotency-key: "
        .to_vec();
    request.extend_from_slice(key);
    request.extend_from_slice(b"\r\n\r\n");
    request.extend_from_slice(ORDER.as_bytes());
    stream.write_all(&request).await.unwrap();
    let mut answer = Vec::new();
    // A server that closes before it has read everything may reset the connection.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn a_control_character_in_the_key_is_400_whoever_sees_it_first() {
    let database = Database::create().await;
    let api = Api::start(database.url()).await;
    assert_eq!(ORDER.len(), 39);
    // What HTTP itself forbids in a header is refused by the HTTP server, before any of our code
    // and so without a problem document.
    for key in [b"a\0b".as_slice(), b"a\x01b", b"a\x1bb", b"a\x7fb", b"a\rb"] {
        let answer = raw(&api, key).await;
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{}: {answer}", key.escape_ascii());
        assert!(answer.ends_with("\r\n\r\n"), "no body: {answer}");
    }
    // A tab and bytes above 0x7f are allowed in a header and refused by us.
    for key in [b"a\tb".as_slice(), b"a\x80b", b"a\xffb"] {
        let answer = raw(&api, key).await;
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{}: {answer}", key.escape_ascii());
        assert!(answer.contains("idempotency_key_invalid"), "{answer}");
    }
    assert_eq!(rows(&database.pool().await).await, (0, 0, 0));
    assert!(raw(&api, b"a-b").await.starts_with("HTTP/1.1 201 "));
    api.stop().await;
}

#[tokio::test]
async fn a_body_that_does_not_arrive_is_given_up_after_ten_seconds() {
    let database = Database::create().await;
    let api = Api::start(database.url()).await;
    let began = Instant::now();
    let answer = unfinished(&api, "content-length: 39", "{\"customerId\":").await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("body_too_slow"), "{answer}");
    assert!(began.elapsed() >= Duration::from_secs(9));
    assert_eq!(rows(&database.pool().await).await, (0, 0, 0));
    api.stop().await;
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_before_it_has_arrived() {
    let database = Database::create().await;
    let api = Api::start(database.url()).await;
    let declared = unfinished(&api, "content-length: 100000000", "").await;
    assert!(declared.starts_with("HTTP/1.1 413 ") && declared.contains("body_too_large"), "{declared}");
    let chunk = format!("{:x}\r\n{}\r\n", 70_000, " ".repeat(70_000));
    let chunked = unfinished(&api, "transfer-encoding: chunked", &chunk).await;
    assert!(chunked.starts_with("HTTP/1.1 413 "), "{chunked}");
    api.stop().await;
}
