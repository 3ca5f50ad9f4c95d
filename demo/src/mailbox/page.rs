//! The page to read the mail, and the same as JSON.

use std::fmt::Write;

use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;

use super::{Mail, Store};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem;\
color:#222;background:#fff}h1{font-size:1.3rem}details{border-top:1px solid #ccc;padding:.5rem 0}\
summary{cursor:pointer}summary span,dt{color:#666}dl{display:grid;grid-template-columns:8rem 1fr;margin:.5rem 0}\
dd{margin:0;overflow-wrap:anywhere}pre{white-space:pre-wrap;background:#f5f5f5;padding:1rem}\
@media(prefers-color-scheme:dark){body{color:#ddd;background:#161616}pre{background:#242424}summary span,dt{color:#999}}";

pub(super) fn router(store: Store) -> Router {
    Router::new().route("/", get(page)).route("/messages", get(messages)).with_state(store)
}

#[derive(Deserialize)]
struct Window {
    /// How many, newest first.
    #[serde(default = "window")]
    limit: usize,
}

fn window() -> usize {
    100
}

async fn messages(State(store): State<Store>, Query(window): Query<Window>) -> impl IntoResponse {
    let (count, newest) = newest(&store, window.limit);
    Json(json!({ "count": count, "messages": newest }))
}

async fn page(State(store): State<Store>, Query(window): Query<Window>) -> impl IntoResponse {
    let (count, newest) = newest(&store, window.limit);
    // Nothing in a mail can run: there is no script on this page.
    let policy = [(header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'")];
    (policy, Html(render(count, &newest)))
}

fn newest(store: &Store, limit: usize) -> (usize, Vec<Mail>) {
    store.read(|mails| (mails.len(), mails.iter().rev().take(limit).cloned().collect()))
}

fn render(count: usize, newest: &[Mail]) -> String {
    let mut page = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>\
         <title>Mailbox ({count})</title><style>{STYLE}</style><h1>{count} mails</h1>\
         <p>The newest {} are shown; <a href=/messages>the same as JSON</a>.</p>",
        newest.len()
    );
    for mail in newest {
        // Writing to a string cannot fail.
        let _ = write!(
            page,
            "<details><summary>{} <span>to {}, {}</span></summary><dl><dt>From<dd>{}<dt>To<dd>{}<dt>Message-ID<dd>{}\
             <dt>Date<dd>{}</dl><pre>{}</pre></details>",
            escape(&mail.subject),
            escape(&mail.envelope_to.join(", ")),
            mail.received(),
            escape(&mail.from),
            escape(&mail.to),
            escape(&mail.message_id),
            escape(mail.date.as_deref().unwrap_or_default()),
            escape(&mail.text),
        );
    }
    page
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_mail_says_is_text_and_never_markup() {
        let raw =
            b"Subject: <script>alert(1)</script>\r\nFrom: \"a\" <a@example.com>\r\n\r\n<img src=x>&\r\n";
        let mail = Mail::parse("a@example.com".into(), vec!["b@example.com".into()], raw.to_vec());
        let page = render(1, &[mail]);
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
        assert!(page.contains("&lt;img src=x&gt;&amp;"));
        assert!(!page.contains("<script") && !page.contains("<img"));
    }
}
