//! What librdkafka's producer says of itself: a well-chosen few of its statistics
//! (<https://github.com/confluentinc/librdkafka/blob/master/STATISTICS.md>).

use prometheus::{GaugeVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use rdkafka::Statistics;

use super::registered;

/// How often librdkafka gives its statistics, in milliseconds.
pub(crate) const INTERVAL: &str = "5000";

/// The statistics as metrics. A producer that travels alone counts with the other.
#[derive(Clone, Debug)]
pub(crate) struct ClientMetrics {
    queue_messages: IntGauge,
    queue_bytes: IntGauge,
    up: IntGaugeVec,
    rtt: GaugeVec,
    waiting: IntGaugeVec,
    problems: IntCounterVec,
}

/// What was already counted of one client: its totals only ever grow, and begin at zero with it.
#[derive(Debug, Default)]
pub(crate) struct Counted {
    errors: u64,
    retries: u64,
    timeouts: u64,
}

impl ClientMetrics {
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let of_broker = |name: &str, help: &str| IntGaugeVec::new(Opts::new(name, help), &["broker"]);
        let problems = registered(
            registry,
            IntCounterVec::new(
                Opts::new("kafka_request_problems_total", "Requests of the producer that went wrong, by how"),
                &["kind"],
            )?,
        )?;
        for kind in ["error", "retry", "timeout"] {
            problems.with_label_values(&[kind]);
        }
        Ok(Self {
            queue_messages: registered(
                registry,
                IntGauge::new("kafka_producer_queue_messages", "Messages that the producer holds")?,
            )?,
            queue_bytes: registered(
                registry,
                IntGauge::new("kafka_producer_queue_bytes", "Bytes of the messages that the producer holds")?,
            )?,
            up: registered(
                registry,
                of_broker("kafka_broker_up", "1 when the producer is connected to the broker")?,
            )?,
            rtt: registered(
                registry,
                GaugeVec::new(
                    Opts::new(
                        "kafka_broker_rtt_seconds",
                        "Time that the broker takes for a request, over the last 5 s",
                    ),
                    &["broker", "quantile"],
                )?,
            )?,
            waiting: registered(
                registry,
                of_broker("kafka_broker_waiting_requests", "Requests to the broker that have no answer yet")?,
            )?,
            problems,
        })
    }

    /// Takes what a client says, `counted` being what it said before.
    pub(crate) fn take(&self, statistics: &Statistics, counted: &mut Counted) {
        let whole = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        self.queue_messages.set(whole(statistics.msg_cnt));
        self.queue_bytes.set(whole(statistics.msg_size));
        let mut now = Counted::default();
        for broker in statistics.brokers.values() {
            now.errors += broker.txerrs;
            now.retries += broker.txretries;
            now.timeouts += broker.req_timeouts;
            // Bootstrap addresses and the group's coordinator are connections to the same brokers.
            if broker.nodeid < 0 || broker.source == "logical" {
                continue;
            }
            let id = broker.nodeid.to_string();
            self.up.with_label_values(&[&id]).set(i64::from(broker.state == "UP"));
            self.waiting.with_label_values(&[&id]).set(broker.waitresp_cnt);
            if let Some(rtt) = &broker.rtt {
                for (quantile, micros) in [("0.5", rtt.p50), ("0.99", rtt.p99)] {
                    self.rtt.with_label_values(&[id.as_str(), quantile]).set(seconds(micros));
                }
            }
        }
        for (kind, before, now) in [
            ("error", &mut counted.errors, now.errors),
            ("retry", &mut counted.retries, now.retries),
            ("timeout", &mut counted.timeouts, now.timeouts),
        ] {
            self.problems.with_label_values(&[kind]).inc_by(now.saturating_sub(*before));
            *before = now;
        }
    }
}

fn seconds(micros: i64) -> f64 {
    micros as f64 / 1e6
}
