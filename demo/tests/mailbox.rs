//! The mailbox, by a raw SMTP conversation.

#![allow(clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use demo::mailbox::Mailbox;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

struct Client(BufReader<TcpStream>);

impl Client {
    async fn connect(mailbox: &Mailbox) -> Self {
        let address = mailbox.smtp_url().strip_prefix("smtp://").unwrap().to_owned();
        let mut client = Self(BufReader::new(TcpStream::connect(address).await.unwrap()));
        assert!(client.answer().await.starts_with("220 "));
        client
    }

    /// The last line of an answer.
    async fn answer(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert!(self.0.read_line(&mut line).await.unwrap() > 0, "the connection is open");
            if line.as_bytes()[3] == b' ' {
                return line;
            }
        }
    }

    async fn say(&mut self, line: &str, code: &str) {
        self.0.write_all(format!("{line}\r\n").as_bytes()).await.unwrap();
        let answer = self.answer().await;
        assert!(answer.starts_with(code), "{line}: {answer}");
    }

    async fn send(&mut self, message: &str) {
        self.say("MAIL FROM:<orders@example.com> BODY=8BITMIME", "250").await;
        self.say("RCPT TO:<customer@example.com>", "250").await;
        self.say("DATA", "354").await;
        self.say(&format!("{message}\r\n."), "250").await;
    }
}

const MESSAGE: &str = "From: Orders <orders@example.com>\r\nTo: <customer@example.com>\r\n\
    Subject: =?utf-8?q?Your_order_=E2=82=AC_25=2E99?=\r\nMessage-ID: <order-1@example.com>\r\n\
    Date: Tue, 24 Nov 2026 12:00:00 +0000\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Content-Transfer-Encoding: quoted-printable\r\n\r\nThank =\r\nyou.\r\n..dots\r\n";

#[tokio::test]
async fn a_mail_is_taken_whole_and_decoded() {
    let mailbox = Mailbox::start(0).await.unwrap();
    let mut client = Client::connect(&mailbox).await;
    client.say("EHLO [127.0.0.1]", "250").await;
    client.send(MESSAGE).await;
    client.send(MESSAGE).await;
    client.say("QUIT", "221").await;

    let mails = mailbox.wait_for(2, Duration::from_secs(5)).await.unwrap();
    let mail = &mails[0];
    assert_eq!(mail.envelope_from, "orders@example.com");
    assert_eq!(mail.envelope_to, ["customer@example.com"]);
    assert_eq!(mail.from, "Orders <orders@example.com>");
    assert_eq!(mail.subject, "Your order € 25.99");
    assert_eq!(mail.message_id, "order-1@example.com");
    assert_eq!(mail.date.as_deref(), Some("2026-11-24T12:00:00Z"));
    assert_eq!(mail.text.trim_end(), "Thank you.\r\n.dots");
    assert_eq!(mailbox.message_ids()["order-1@example.com"], 2, "a repeat is counted");
}

#[tokio::test]
async fn a_stopped_mailbox_refuses_and_closes_and_keeps_its_mail() {
    let mut mailbox = Mailbox::start(0).await.unwrap();
    let mut client = Client::connect(&mailbox).await;
    client.say("HELO example.com", "250").await;
    client.send(MESSAGE).await;
    let address = mailbox.smtp_url().strip_prefix("smtp://").unwrap().to_owned();

    mailbox.stop().await;

    assert!(TcpStream::connect(&address).await.is_err(), "it refuses");
    let mut rest = Vec::new();
    let end = client.0.read_to_end(&mut rest).await;
    assert!(end.is_err() || rest.is_empty(), "the open connection is closed");

    mailbox.start_again().await.unwrap();
    let mut client = Client::connect(&mailbox).await;
    client.say("HELO example.com", "250").await;
    client.send(MESSAGE).await;
    assert_eq!(mailbox.count(), 2);
    assert!(mailbox.wait_for(3, Duration::from_millis(1)).await.is_err());
}

#[tokio::test]
async fn the_page_shows_the_mail_as_json_too() {
    let mut mailbox = Mailbox::start(0).await.unwrap();
    let url = mailbox.serve_page(0).await.unwrap();
    let mut client = Client::connect(&mailbox).await;
    client.say("HELO example.com", "250").await;
    client.send(MESSAGE).await;

    let page = reqwest::get(&url).await.unwrap().text().await.unwrap();
    assert!(page.contains("Your order € 25.99"));
    let json: serde_json::Value =
        reqwest::get(format!("{url}/messages?limit=1")).await.unwrap().json().await.unwrap();
    assert_eq!(json["count"], 1);
    assert_eq!(json["messages"][0]["messageId"], "order-1@example.com");
}
