//! The e-mail itself. Pure: the same notification always gives the same message.

use std::str::FromStr;

use askama::Template;
use events::{Currency, OrderEvent, OrderId, UnknownEvent};
use lettre::Message;
use lettre::message::header::{HeaderName, HeaderValue};
use lettre::message::{Mailbox, MultiPart, SinglePart};
use url::Url;

use super::{Kind, Letterhead};
use crate::db::notifications::Leased;

/// No message can be made of this notification, now or later.
#[derive(Debug, thiserror::Error)]
pub(super) enum BuildError {
    /// The kind is none of ours.
    #[error("unknown kind of notification `{0}`")]
    Kind(String),
    /// The event's data cannot be read.
    #[error(transparent)]
    Data(#[from] UnknownEvent),
    /// The recipient is no address that can be mailed to.
    #[error("the recipient's address cannot be used")]
    Recipient(#[source] lettre::address::AddressError),
    /// The words cannot be filled in.
    #[error("the template cannot be filled in: {0}")]
    Template(#[from] askama::Error),
    /// The parts do not make a message.
    #[error("the message cannot be built: {0}")]
    Message(#[from] lettre::error::Error),
}

/// What the templates say.
struct Facts {
    subject: String,
    order: OrderId,
    amount: String,
}

/// The text part.
#[derive(Template)]
enum Text<'a> {
    #[template(path = "confirmation.txt")]
    Confirmation { facts: &'a Facts },
    #[template(path = "cancellation.txt")]
    Cancellation { facts: &'a Facts },
}

/// The HTML part; what is filled in is escaped.
#[derive(Template)]
enum Html<'a> {
    #[template(path = "confirmation.html")]
    Confirmation { facts: &'a Facts },
    #[template(path = "cancellation.html")]
    Cancellation { facts: &'a Facts },
}

/// Builds the message of a notification. Message-ID and Date are the notification's own.
pub(super) fn build(letterhead: &Letterhead, mail: &Leased) -> Result<Message, BuildError> {
    let kind = [Kind::Confirmation, Kind::Cancellation].into_iter().find(|kind| kind.as_str() == mail.kind);
    let (kind, becomes, event) = match kind {
        Some(Kind::Confirmation) => (Kind::Confirmation, "confirmed", OrderEvent::CREATED),
        Some(Kind::Cancellation) => (Kind::Cancellation, "cancelled", OrderEvent::CANCELLED),
        None => return Err(BuildError::Kind(mail.kind.clone())),
    };
    let (order, minor, currency) = match OrderEvent::from_json(event, mail.data.as_bytes())? {
        OrderEvent::Created(data) => (data.order_id, data.amount_cents, data.currency),
        OrderEvent::Cancelled(data) => (data.order_id, data.amount_cents, data.currency),
    };
    let subject = format!("Your order {order} is {becomes}");
    let facts = &Facts { subject: subject.clone(), order, amount: amount(minor, &currency) };
    let (text, html) = match kind {
        Kind::Confirmation => {
            (Text::Confirmation { facts }.render()?, Html::Confirmation { facts }.render()?)
        }
        Kind::Cancellation => {
            (Text::Cancellation { facts }.render()?, Html::Cancellation { facts }.render()?)
        }
    };
    let parts = MultiPart::alternative()
        // Fixed, so that a resend is the same message: lettre would draw one.
        .boundary(format!("part-{}", mail.notification_id.simple()))
        .singlepart(SinglePart::plain(text))
        .singlepart(SinglePart::html(html));
    let mut message = Message::builder()
        .from(letterhead.from.clone())
        .to(Mailbox::new(None, mail.recipient.parse().map_err(BuildError::Recipient)?))
        .subject(subject)
        .message_id(Some(mail.message_id.clone()))
        .date(mail.created_at.into())
        .multipart(parts)?;
    let mut header = |name, value| {
        message.headers_mut().insert_raw(HeaderValue::new(HeaderName::new_from_ascii_str(name), value));
    };
    // RFC 3834: nobody's autoresponder shall answer.
    header("Auto-Submitted", "auto-generated".to_owned());
    if let Some(unsubscribe) = &letterhead.unsubscribe {
        header("List-Unsubscribe", format!("<{}>", unsubscribe.of(order)));
        if unsubscribe.is_one_click() {
            header("List-Unsubscribe-Post", "List-Unsubscribe=One-Click".to_owned());
        }
    }
    Ok(message)
}

/// Where a recipient unsubscribes (RFC 2369), an `https:` or `mailto:` URI. `{order}` in it stands for the
/// order's id. An https one is said to take a POST (RFC 8058).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsubscribe(String);

impl Unsubscribe {
    fn of(&self, order: OrderId) -> String {
        self.0.replace("{order}", &order.to_string())
    }

    fn is_one_click(&self) -> bool {
        self.0.starts_with("https:")
    }
}

impl FromStr for Unsubscribe {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // What a header cannot hold, or what would end the URI in it.
        let plain = text.bytes().all(|b| b.is_ascii_graphic() && !b"<>\",".contains(&b));
        let known = Url::parse(text).is_ok_and(|url| match url.scheme() {
            "https" => url.has_host(),
            "mailto" => url.path().contains('@'),
            _ => false,
        });
        let written = text.starts_with("https:") || text.starts_with("mailto:");
        if plain && known && written {
            Ok(Self(text.to_owned()))
        } else {
            Err(
                "must be a URI like https://shop.example/unsubscribe?order={order} or mailto:stop@shop.example",
            )
        }
    }
}

impl std::fmt::Display for Unsubscribe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// An integer of minor units, written in the currency's own: JPY has no decimals, BHD three.
fn amount(minor: i64, currency: &str) -> String {
    let digits = Currency::from_code(currency).and_then(|c| c.exponent()).map_or(2, usize::from);
    let text = format!("{minor:0width$}", width = digits + 1);
    let (whole, fraction) = text.split_at(text.len() - digits);
    if fraction.is_empty() { format!("{whole} {currency}") } else { format!("{whole}.{fraction} {currency}") }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn amounts_are_written_in_the_minor_units_of_their_currency() {
        assert_eq!(amount(2599, "USD"), "25.99 USD");
        assert_eq!(amount(5, "EUR"), "0.05 EUR");
        assert_eq!(amount(2599, "JPY"), "2599 JPY");
        assert_eq!(amount(2599, "BHD"), "2.599 BHD");
    }

    fn letterhead(unsubscribe: Option<&str>) -> Letterhead {
        Letterhead {
            from: "Orders <orders@localhost>".parse().expect("an address"),
            unsubscribe: unsubscribe.map(|uri| uri.parse().expect("a URI")),
        }
    }

    const CREATED: &str = r#"{"orderId":"0198a2a0-0000-7000-8000-000000000001","customerId":42,"amountCents":2599,
        "currency":"BHD","status":"created","createdAt":"2026-01-01T00:00:00Z"}"#;
    const CANCELLED: &str = r#"{"orderId":"0198a2a0-0000-7000-8000-000000000001","customerId":42,
        "amountCents":2599,"currency":"JPY","status":"cancelled","cancelledAt":"2026-01-02T00:00:00Z"}"#;

    fn leased(kind: Kind, data: &str) -> Leased {
        Leased {
            notification_id: Uuid::from_u128(1),
            kind: kind.as_str().into(),
            recipient: "ada@example.com".into(),
            message_id: format!("<{kind}.1.1@localhost>"),
            data: data.into(),
            attempts: 0,
            created_at: DateTime::UNIX_EPOCH,
            traceparent: None,
        }
    }

    /// The whole message with plain line ends.
    fn written(letterhead: &Letterhead, mail: &Leased) -> String {
        let message = build(letterhead, mail).expect("built").formatted();
        String::from_utf8(message).expect("UTF-8").replace("\r\n", "\n")
    }

    #[test]
    fn a_confirmation_is_written_like_this() {
        let mail = leased(Kind::Confirmation, CREATED);
        insta::assert_snapshot!(written(&letterhead(None), &mail));
    }

    #[test]
    fn a_cancellation_with_a_place_to_unsubscribe_is_written_like_this() {
        let mail = leased(Kind::Cancellation, CANCELLED);
        let letterhead = letterhead(Some("https://shop.example/stop?order={order}"));
        insta::assert_snapshot!(written(&letterhead, &mail));
    }

    #[test]
    fn a_notification_always_gives_the_same_message() {
        let mail = leased(Kind::Confirmation, CREATED);
        assert_eq!(written(&letterhead(None), &mail), written(&letterhead(None), &mail));
    }

    #[test]
    fn what_is_filled_into_html_is_escaped() {
        let mail = leased(Kind::Confirmation, &CREATED.replace("BHD", "<b>&"));
        let text = written(&letterhead(None), &mail);
        let (plain, html) = text.split_once("text/html").expect("two parts");
        assert!(plain.contains("<b>&"), "{plain}");
        assert!(html.contains("&#60;b&#62;&#38;") && !html.contains("<b>"), "{html}");
    }

    #[test]
    fn nothing_of_a_notification_smuggles_a_header_in() {
        let mail = Leased {
            recipient: "a@example.com\r\nBcc: b@example.com".into(),
            ..leased(Kind::Confirmation, CREATED)
        };
        assert!(matches!(build(&letterhead(None), &mail), Err(BuildError::Recipient(_))));
        for smuggler in [
            leased(Kind::Confirmation, &CREATED.replace("BHD", r"X\r\nBcc: b@example.com")),
            Leased {
                message_id: "<1@localhost>\r\nBcc: b@example.com".into(),
                ..leased(Kind::Confirmation, CREATED)
            },
        ] {
            let text = written(&letterhead(None), &smuggler);
            let (headers, _) = text.split_once("\n\n").expect("headers");
            assert!(!headers.lines().any(|line| line.starts_with("Bcc")), "{headers}");
        }
    }

    #[test]
    fn an_https_uri_to_unsubscribe_takes_one_click_and_what_is_no_uri_is_refused() {
        let head = |uri| written(&letterhead(Some(uri)), &leased(Kind::Confirmation, CREATED));
        assert!(
            head("https://shop.example/stop")
                .contains("\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\n")
        );
        assert!(!head("mailto:stop@shop.example").contains("List-Unsubscribe-Post"));
        for wrong in [
            "",
            "shop.example",
            "http://shop.example",
            "mailto:",
            "https://a b",
            "https://a>,<https://b",
            "https://a\r\nBcc: b",
        ] {
            assert!(wrong.parse::<Unsubscribe>().is_err(), "{wrong:?}");
        }
    }
}
