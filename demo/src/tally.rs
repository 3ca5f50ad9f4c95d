//! The closing table: what the database committed, compared with what lies on Kafka and in the mailbox.

use std::collections::{HashMap, HashSet};
use std::fmt;

use sqlx::Row;
use uuid::Uuid;

use crate::Outcome;
use crate::burst::Accepted;
use crate::stack::Stack;

/// What became of the orders of this run.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Orders in the database.
    pub(crate) orders: usize,
    /// Answered with 201, and not in the database.
    vanished: usize,
    /// Orders that one request made beyond its first.
    doubled: usize,
    /// Different event ids on Kafka.
    pub(crate) events: usize,
    /// Orders of which a committed event is not on Kafka.
    lost: usize,
    /// Messages beyond the first with their event id.
    repeats: usize,
    /// Different Message-IDs in the mailbox, or notifications sent where there is none.
    pub(crate) mails: usize,
    /// Orders whose e-mail has not arrived.
    unmailed: usize,
    /// Mails beyond the first with their Message-ID.
    second_mails: usize,
    /// Recipients with more than one Message-ID.
    mailed_twice: usize,
    has_mailbox: bool,
}

impl Tally {
    /// Nothing lost, nothing missing, nothing twice.
    pub(crate) fn is_whole(&self) -> bool {
        let wrong = self.vanished + self.doubled + self.lost + self.unmailed + self.mailed_twice;
        wrong == 0 && self.orders > 0
    }

    /// Compares the stores. Only this run's orders count: a database that was given may hold more.
    pub(crate) async fn take(stack: &Stack, accepted: &Accepted) -> Outcome<Self> {
        let recipients: Vec<_> = accepted.keys().cloned().collect();
        let mut tally = Self { has_mailbox: stack.mailbox.is_some(), ..Self::default() };

        let mut orders: HashMap<Uuid, String> = HashMap::new();
        let rows = sqlx::query("select order_id, customer_email from orders where customer_email = any($1)")
            .bind(&recipients)
            .fetch_all(&stack.database)
            .await?;
        for row in rows {
            orders.insert(row.try_get(0)?, row.try_get(1)?);
        }
        let ordered_by: HashSet<_> = orders.values().collect();
        tally.orders = orders.len();
        tally.vanished = accepted.values().filter(|order| !orders.contains_key(order)).count();
        tally.doubled = orders.len() - ordered_by.len();

        let ids: Vec<_> = orders.keys().copied().collect();
        tally.compare_events(stack, &ids).await?;
        tally.compare_mails(stack, &ids, &orders).await?;
        Ok(tally)
    }

    async fn compare_events(&mut self, stack: &Stack, orders: &[Uuid]) -> Outcome<()> {
        let mut on_kafka: HashMap<Uuid, usize> = HashMap::new();
        let mut subjects: HashSet<Uuid> = HashSet::new();
        let known: HashSet<_> = orders.iter().copied().collect();
        stack.events.read(|seen| {
            for seen in seen {
                let header = |name| seen.message.header(name).and_then(|id| id.parse::<Uuid>().ok());
                if let (Some(event), Some(order)) = (header("ce_id"), header("ce_subject"))
                    && known.contains(&order)
                {
                    *on_kafka.entry(event).or_default() += 1;
                    subjects.insert(order);
                }
            }
        });
        self.events = on_kafka.len();
        self.repeats = on_kafka.values().sum::<usize>() - on_kafka.len();

        // An order counts as lost when one of its outbox events is not on Kafka, and also when it
        // has none there at all: an order without an outbox row would otherwise escape.
        let mut lost: HashSet<_> = known.difference(&subjects).copied().collect();
        let rows = sqlx::query("select event_id, aggregate_id from outbox where aggregate_id = any($1)")
            .bind(orders)
            .fetch_all(&stack.database)
            .await?;
        for row in rows {
            if !on_kafka.contains_key(&row.try_get(0)?) {
                lost.insert(row.try_get(1)?);
            }
        }
        self.lost = lost.len();
        Ok(())
    }

    async fn compare_mails(
        &mut self,
        stack: &Stack,
        ids: &[Uuid],
        orders: &HashMap<Uuid, String>,
    ) -> Outcome<()> {
        let rows = sqlx::query(
            "select order_id, message_id, state = 'sent' from notifications where order_id = any($1)",
        )
        .bind(ids)
        .fetch_all(&stack.database)
        .await?;
        let Some(mailbox) = &stack.mailbox else {
            self.mails = rows.iter().filter(|row| row.try_get(2).unwrap_or(false)).count();
            self.unmailed = orders.len().saturating_sub(self.mails);
            return Ok(());
        };

        // Recipient, then Message-ID, then how often it came.
        let mut arrived: HashMap<String, HashMap<String, usize>> =
            orders.values().map(|recipient| (recipient.clone(), HashMap::new())).collect();
        mailbox.read(|mails| {
            for mail in mails {
                for recipient in &mail.envelope_to {
                    if let Some(ids) = arrived.get_mut(recipient) {
                        *ids.entry(mail.message_id.clone()).or_default() += 1;
                    }
                }
            }
        });
        self.mails = arrived.values().map(HashMap::len).sum();
        self.second_mails = arrived.values().flat_map(HashMap::values).sum::<usize>() - self.mails;
        self.mailed_twice = arrived.values().filter(|ids| ids.len() > 1).count();

        let mut mailed: HashSet<Uuid> = HashSet::new();
        for row in rows {
            let (order, message_id): (Uuid, String) = (row.try_get(0)?, row.try_get(1)?);
            let message_id = message_id.trim_matches(['<', '>']);
            if arrived.get(&orders[&order]).is_some_and(|ids| ids.contains_key(message_id)) {
                mailed.insert(order);
            }
        }
        self.unmailed = ids.iter().filter(|order| !mailed.contains(order)).count();
        Ok(())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mails = if self.has_mailbox { "e-mails (different Message-IDs)" } else { "e-mails sent" };
        let mut rows = vec![
            ("orders committed", self.orders),
            ("events on Kafka (different ids)", self.events),
            ("lost", self.lost),
            ("repeats recognised by their id", self.repeats),
            (mails, self.mails),
        ];
        if self.has_mailbox {
            rows.push(("second e-mails recognised by their Message-ID", self.second_mails));
        }
        // Only when they are not as they must be.
        let wrong = [
            ("ANSWERED WITH 201 AND NOT IN THE DATABASE", self.vanished),
            ("ORDERS MADE TWICE", self.doubled),
            ("ORDERS WITHOUT E-MAIL", self.unmailed),
            ("CUSTOMERS WITH TWO DIFFERENT E-MAILS", self.mailed_twice),
        ];
        rows.extend(wrong.into_iter().filter(|(_, count)| *count > 0));
        for (name, count) in rows {
            writeln!(f, "  {name:<46}{count:>8}")?;
        }
        Ok(())
    }
}
