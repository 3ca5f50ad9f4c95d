//! The events that are with Kafka, as they are measured and traced: from hand-over to acknowledgement.
//! Decides nothing.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use prometheus::local::LocalHistogram;

use super::core::{Input, Verdict};
use super::gate::Due;
use super::row::{Event, Row};
use crate::metrics::{PublishMetrics, seconds_since};
use crate::traces::Traces;

/// What is under way with one producer.
pub(super) struct Flights {
    under_way: HashMap<i64, Flight>,
    metrics: PublishMetrics,
    commit_to_ack: LocalHistogram,
    traces: Traces,
}

struct Flight {
    created_at: DateTime<Utc>,
    /// Kept only when somebody collects spans.
    traced: Option<Arc<Row>>,
}

impl Flights {
    pub(super) fn new(metrics: PublishMetrics, traces: Traces) -> Self {
        let commit_to_ack = metrics.commit_to_ack.local();
        Self { under_way: HashMap::new(), metrics, commit_to_ack, traces }
    }

    /// An event was handed over, perhaps again. One of a foreign table is only counted: its row tells no time.
    pub(super) fn sent(&mut self, due: &Due) {
        let Event::Order(event) = &due.row.event else { return };
        let flight = Flight {
            created_at: event.created_at,
            traced: self.traces.are_exported().then(|| Arc::clone(&due.row)),
        };
        self.under_way.insert(due.row.seq, flight);
    }

    /// Kafka, or the client library, has answered at `now`.
    pub(super) fn answered(&mut self, input: &Input, now: DateTime<Utc>) {
        match input {
            Input::Acknowledged(seq) => {
                self.metrics.published.inc();
                if let Some(flight) = self.under_way.remove(seq) {
                    self.commit_to_ack.observe(seconds_since(flight.created_at, now));
                    if let Some(row) = flight.traced {
                        self.traces.published(&row);
                    }
                }
            }
            Input::Refused { seq, verdict, .. } => {
                self.metrics.refused(*verdict);
                if *verdict != Verdict::Transient {
                    self.under_way.remove(seq);
                }
            }
            _ => {}
        }
    }

    /// A batch of answers is through.
    pub(super) fn count(&mut self) {
        self.commit_to_ack.flush();
    }
}
