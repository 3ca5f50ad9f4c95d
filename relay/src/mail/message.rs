//! The e-mail itself. Pure: the same notification always gives the same message.

use events::{Currency, OrderEvent, UnknownEvent};
use lettre::Message;
use lettre::message::Mailbox;
use lettre::message::header::{ContentType, HeaderName, HeaderValue};

use super::Kind;
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
    /// The parts do not make a message.
    #[error("the message cannot be built: {0}")]
    Message(#[from] lettre::error::Error),
}

/// Builds the message of a notification. Message-ID and Date are the notification's own.
pub(super) fn build(from: &Mailbox, mail: &Leased) -> Result<Message, BuildError> {
    let event_kind = match mail.kind.as_str() {
        kind if kind == Kind::Confirmation.as_str() => OrderEvent::CREATED,
        kind if kind == Kind::Cancellation.as_str() => OrderEvent::CANCELLED,
        other => return Err(BuildError::Kind(other.to_owned())),
    };
    let (becomes, order, minor, currency) = match OrderEvent::from_json(event_kind, mail.data.as_bytes())? {
        OrderEvent::Created(data) => ("confirmed", data.order_id, data.amount_cents, data.currency),
        OrderEvent::Cancelled(data) => ("cancelled", data.order_id, data.amount_cents, data.currency),
    };
    let subject = format!("Your order {order} is {becomes}");
    let text = format!("Your order is {becomes}.\n\nOrder:  {order}\nAmount: {}\n", amount(minor, &currency));
    let mut message = Message::builder()
        .from(from.clone())
        .to(Mailbox::new(None, mail.recipient.parse().map_err(BuildError::Recipient)?))
        .subject(subject)
        .message_id(Some(mail.message_id.clone()))
        .date(mail.created_at.into())
        .header(ContentType::TEXT_PLAIN)
        .body(text)?;
    // RFC 3834: nobody's autoresponder shall answer.
    let auto_submitted = HeaderName::new_from_ascii_str("Auto-Submitted");
    message.headers_mut().insert_raw(HeaderValue::new(auto_submitted, "auto-generated".to_owned()));
    Ok(message)
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

    fn leased() -> Leased {
        Leased {
            notification_id: Uuid::from_u128(1),
            kind: "confirmation".into(),
            recipient: "ada@example.com".into(),
            message_id: "<confirmation.1.1@localhost>".into(),
            data: r#"{"orderId":"0198a2a0-0000-7000-8000-000000000001","customerId":42,"amountCents":2599,
                "currency":"USD","status":"created","createdAt":"2026-01-01T00:00:00Z"}"#
                .into(),
            attempts: 0,
            created_at: DateTime::UNIX_EPOCH,
            traceparent: None,
        }
    }

    #[test]
    fn a_notification_always_gives_the_same_message() {
        let from: Mailbox = "Orders <orders@localhost>".parse().expect("an address");
        let first = build(&from, &leased()).expect("built").formatted();
        assert_eq!(build(&from, &leased()).expect("built").formatted(), first);
        let text = String::from_utf8(first).expect("UTF-8");
        for part in [
            "Message-ID: <confirmation.1.1@localhost>\r\n",
            "Date: Thu, 01 Jan 1970 00:00:00 +0000\r\n",
            "Auto-Submitted: auto-generated\r\n",
            "To: ada@example.com\r\n",
            "25.99 USD",
        ] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
    }

    #[test]
    fn an_address_that_smuggles_a_header_makes_no_message() {
        let from: Mailbox = "Orders <orders@localhost>".parse().expect("an address");
        let mail = Leased { recipient: "a@example.com\r\nBcc: b@example.com".into(), ..leased() };
        assert!(matches!(build(&from, &mail), Err(BuildError::Recipient(_))));
    }
}
