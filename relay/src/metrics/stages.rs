//! The counters that the stages move themselves.

use chrono::{DateTime, Utc};
use events::inbox::Pass;
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use super::{ClientMetrics, registered};
use crate::mail::Outcome;
use crate::publish::core::Verdict;

/// Seconds: from an idle pipeline to an outage of an hour.
const DELAY: [f64; 18] = [
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0, 300.0, 1800.0,
    3600.0,
];

/// The circuits of a process, one for each sink that a stage sends to.
pub(super) fn circuits() -> Result<IntGaugeVec, prometheus::Error> {
    IntGaugeVec::new(
        Opts::new("relay_circuit_open", "1 while nothing is sent because the sink takes nothing for now"),
        &["sink"],
    )
}

/// Of the `publish` stage.
#[derive(Clone, Debug)]
pub(crate) struct PublishMetrics {
    /// Events that Kafka has acknowledged, repeats included.
    pub(crate) published: IntCounter,
    /// From the row's `created_at`, on the database's clock, to the acknowledgement, on ours.
    pub(crate) commit_to_ack: Histogram,
    /// 1 while nothing is sent because Kafka would not take an event for now.
    pub(crate) circuit_open: IntGauge,
    /// What the producer says of itself.
    pub(crate) client: ClientMetrics,
    transient: IntCounter,
    permanent: IntCounter,
    fatal: IntCounter,
}

impl PublishMetrics {
    pub(super) fn new(registry: &Registry, circuit_open: IntGauge) -> Result<Self, prometheus::Error> {
        let failures = registered(
            registry,
            IntCounterVec::new(
                Opts::new(
                    "outbox_publish_failures_total",
                    "Events that Kafka did not take, by what that means",
                ),
                &["kind"],
            )?,
        )?;
        Ok(Self {
            published: registered(
                registry,
                IntCounter::new("outbox_published_total", "Events acknowledged by Kafka, repeats included")?,
            )?,
            commit_to_ack: registered(
                registry,
                Histogram::with_opts(
                    HistogramOpts::new(
                        "outbox_commit_to_ack_seconds",
                        "Time from an event's writing, on the database's clock, to Kafka's acknowledgement",
                    )
                    .buckets(DELAY.into()),
                )?,
            )?,
            circuit_open,
            client: ClientMetrics::new(registry)?,
            transient: failures.with_label_values(&["transient"]),
            permanent: failures.with_label_values(&["permanent"]),
            fatal: failures.with_label_values(&["fatal"]),
        })
    }

    /// Kafka did not take an event.
    pub(crate) fn refused(&self, verdict: Verdict) {
        match verdict {
            Verdict::Transient => self.transient.inc(),
            Verdict::Permanent => self.permanent.inc(),
            // One of many signs that the producer is beyond use, which is counted once.
            Verdict::Fatal => {}
        }
    }

    /// The producer is beyond use.
    pub(crate) fn beyond_use(&self) {
        self.fatal.inc();
    }
}

/// Of retention.
#[derive(Clone, Debug)]
pub(crate) struct RetentionMetrics {
    /// Rows removed from the outbox.
    pub(crate) outbox: IntCounter,
    /// Dedup keys removed from the inbox.
    pub(crate) inbox: IntCounter,
    /// Passes that failed.
    pub(crate) failures: IntCounter,
}

impl RetentionMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let removed = registered(
            registry,
            IntCounterVec::new(
                Opts::new("retention_removed_total", "Rows that this process removed because of their age"),
                &["table"],
            )?,
        )?;
        let failures = IntCounter::new("retention_failures_total", "Passes of retention that failed")?;
        Ok(Self {
            outbox: removed.with_label_values(&["outbox"]),
            inbox: removed.with_label_values(&["inbox"]),
            failures: registered(registry, failures)?,
        })
    }
}

/// What became of an event in the `notify` stage.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Notified {
    /// A notification was made.
    Made,
    /// The order has no address.
    NoAddress,
    /// The event is of a type that has no e-mail.
    Foreign,
    /// There was a notification already.
    Repeated,
}

/// Of the `notify` stage.
#[derive(Clone, Debug)]
pub(crate) struct NotifyMetrics {
    outcomes: IntCounterVec,
    delay: Histogram,
}

impl NotifyMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let outcomes = registered(
            registry,
            IntCounterVec::new(
                Opts::new("notifications_total", "Events handled by notify, by what became of them"),
                &["outcome"],
            )?,
        )?;
        for outcome in ["made", "no_address", "foreign", "unreadable", "repeated", "gap", "reordered"] {
            outcomes.with_label_values(&[outcome]);
        }
        let delay = HistogramOpts::new(
            "notify_delay_seconds",
            "Time from an event's timestamp on Kafka to its being handled by notify",
        );
        Ok(Self {
            outcomes,
            delay: registered(registry, Histogram::with_opts(delay.buckets(DELAY.into()))?)?,
        })
    }

    /// An event was handled for the first time; it lies on Kafka since `published`.
    pub(crate) fn handled(&self, outcome: Notified, published_millis: i64) {
        let outcome = match outcome {
            Notified::Made => "made",
            Notified::NoAddress => "no_address",
            Notified::Foreign => "foreign",
            Notified::Repeated => "repeated",
        };
        self.outcomes.with_label_values(&[outcome]).inc();
        if let Some(published) = DateTime::from_timestamp_millis(published_millis) {
            self.delay.observe(seconds_since(published, Utc::now()));
        }
    }

    /// What the inbox tells of a pass. An event after a gap, or out of order, was handled and is counted as that too.
    pub(crate) fn passed(&self, pass: &Pass) {
        for (outcome, events) in [
            ("repeated", pass.repeated),
            ("unreadable", pass.dead),
            ("gap", pass.gaps),
            ("reordered", pass.reordered),
        ] {
            self.outcomes.with_label_values(&[outcome]).inc_by(u64::try_from(events).unwrap_or(u64::MAX));
        }
    }
}

/// Of the `mail` stage.
#[derive(Clone, Debug)]
pub(crate) struct MailMetrics {
    /// 1 while nothing is sent because the mail server is away.
    pub(crate) circuit_open: IntGauge,
    attempts: IntCounterVec,
    unknown: IntCounter,
}

impl MailMetrics {
    pub(super) fn new(registry: &Registry, circuit_open: IntGauge) -> Result<Self, prometheus::Error> {
        let attempts = registered(
            registry,
            IntCounterVec::new(
                Opts::new("mail_attempts_total", "Attempts to send an e-mail, by the mail server's answer"),
                &["outcome"],
            )?,
        )?;
        for outcome in ["sent", "deferred", "failed", "unknown", "away"] {
            attempts.with_label_values(&[outcome]);
        }
        let unknown = IntCounter::new(
            "mail_unknown_total",
            "E-mails whose outcome became unknown because their sender was gone",
        )?;
        Ok(Self { circuit_open, attempts, unknown: registered(registry, unknown)? })
    }

    /// An attempt has ended.
    pub(crate) fn attempted(&self, outcome: &Outcome) {
        if let Some(outcome) = outcome.word() {
            self.attempts.with_label_values(&[outcome]).inc();
        }
    }

    /// The leases of so many e-mails ended while they were being sent.
    pub(crate) fn became_unknown(&self, mails: u64) {
        self.unknown.inc_by(mails);
    }
}

/// Two clocks may disagree: what would be negative is nothing.
pub(crate) fn seconds_since(then: DateTime<Utc>, now: DateTime<Utc>) -> f64 {
    now.signed_duration_since(then).to_std().unwrap_or_default().as_secs_f64()
}
