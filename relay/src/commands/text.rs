//! How numbers, times and spans of time are written for people.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};

/// `1,234,567`
pub(super) fn number(n: i64) -> String {
    let digits = n.unsigned_abs().to_string();
    let mut text = String::from(if n < 0 { "-" } else { "" });
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 event`, `2 events`
pub(super) fn count(n: i64, what: &str) -> String {
    format!("{} {what}{}", number(n), if n == 1 { "" } else { "s" })
}

/// `2026-01-31T12:00:00.123Z`
pub(super) fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// `4.2 ms`, `3.1 s`, `5 min`, `7.5 h`, `12 days`
pub(super) fn span(seconds: f64) -> String {
    match seconds.abs() {
        s if s < 1.0 => format!("{:.1} ms", seconds * 1e3),
        s if s < 120.0 => format!("{seconds:.1} s"),
        s if s < 7_200.0 => format!("{:.0} min", seconds / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", seconds / 3600.0),
        _ => format!("{:.0} days", seconds / 86_400.0),
    }
}

/// Seconds from one time to another; negative when their clocks disagree.
pub(super) fn seconds(from: DateTime<Utc>, to: DateTime<Utc>) -> f64 {
    let span = to - from;
    let whole = Duration::from_micros(span.num_microseconds().unwrap_or(i64::MAX).unsigned_abs());
    if span < chrono::TimeDelta::zero() { -whole.as_secs_f64() } else { whole.as_secs_f64() }
}

/// The same text with everything left out that looks like an e-mail address: a mail server's words
/// often repeat it.
pub(super) fn without_addresses(text: &str) -> String {
    let is_part = |c: char| !c.is_whitespace() && !"<>()[]\"',;:".contains(c);
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(is_part) {
        let end = rest[start..].find(|c| !is_part(c)).map_or(rest.len(), |length| start + length);
        masked.push_str(&rest[..start]);
        let word = &rest[start..end];
        masked.push_str(if word.contains('@') { "…" } else { word });
        rest = &rest[end..];
    }
    masked + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_spans_are_written_as_people_read_them() {
        assert_eq!([0, 999, 1_000, -1_234_567].map(number), ["0", "999", "1,000", "-1,234,567"]);
        assert_eq!(
            [0.0042, 3.12, 300.0, 27_000.0, 1e6].map(span),
            ["4.2 ms", "3.1 s", "5 min", "7.5 h", "12 days"]
        );
        assert_eq!(span(-0.5), "-500.0 ms");
    }

    #[test]
    fn no_address_is_left_in_the_words_of_a_mail_server() {
        assert_eq!(
            without_addresses("550 5.1.1 <ada@example.com>: no ada@example.com, here"),
            "550 5.1.1 <…>: no …, here"
        );
        assert_eq!(without_addresses("nothing to hide"), "nothing to hide");
    }
}
