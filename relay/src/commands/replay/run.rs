//! The replay itself: page by page, each event after the earlier ones of its order, at a bounded rate.

use std::collections::HashSet;
use std::convert::Infallible;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use sqlx::PgPool;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;

use super::super::stop_signal;
use crate::config::ReplayArgs;
use crate::db::replays::{self, Attempt, Filter};
use crate::kafka::{Answer, Producer, Settings};
use crate::metrics;
use crate::publish::core::{Input, Verdict};
use crate::publish::gate::{Acknowledged, Gate};
use crate::sink::SinkName;

/// Events of a page, at most: no more than the gate keeps of one order.
const PAGE: i64 = 256;
/// Payload of a page.
const PAGE_BYTES: i64 = 16 << 20;
/// How long nothing is sent after a refusal that will pass.
const WAIT: Duration = Duration::from_millis(500);
/// How often a line says how far it is, where there is no terminal.
const LINES: Duration = Duration::from_secs(5);
/// How often it is noted that the replay runs: several times within the minute after which it counts as gone.
const SEEN: Duration = Duration::from_secs(10);

/// Why a replay ended before its end.
#[derive(Debug)]
pub(super) enum Stopped {
    /// By ctrl-c or SIGTERM.
    ByHand,
    /// PostgreSQL or Kafka is away.
    Away(String),
    /// It cannot go on.
    Failed(String),
    /// It slept for so long that another process has gone on with it.
    Overtaken,
}

impl From<sqlx::Error> for Stopped {
    fn from(error: sqlx::Error) -> Self {
        Self::Away(format!("PostgreSQL: {error}"))
    }
}

/// How far it is, for whoever watches: a bar on a terminal, lines elsewhere.
pub(super) struct Progress {
    bar: ProgressBar,
    terminal: bool,
    said: Instant,
}

impl Progress {
    pub(super) fn new(done: i64, total: i64) -> Self {
        let number = |n: i64| u64::try_from(n).unwrap_or(0);
        let terminal = std::io::stderr().is_terminal();
        let bar = if terminal { ProgressBar::new(number(total)) } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} {per_sec} ETA {eta}") {
            bar.set_style(style);
        }
        bar.set_length(number(total));
        bar.set_position(number(done));
        Self { bar, terminal, said: Instant::now() }
    }

    fn one_more(&mut self) {
        self.bar.inc(1);
        if !self.terminal && self.said.elapsed() >= LINES {
            self.said = Instant::now();
            eprintln!("{} of {}", self.bar.position(), self.bar.length().unwrap_or(0));
        }
    }
}

/// Publishes what `filter` means above `position`.
pub(super) async fn run(
    args: &ReplayArgs,
    pool: &PgPool,
    kafka: Settings,
    attempt: Attempt,
    filter: &Filter,
    position: i64,
    progress: Progress,
) -> Result<(), Stopped> {
    let sink = &args.target.sink.relay_sink;
    let metrics = metrics::unseen(sink.as_str()).map_err(|error| Stopped::Failed(error.to_string()))?;
    let (producer, answers) =
        Producer::for_replay(kafka, &metrics.client).map_err(|error| Stopped::Failed(error.to_string()))?;
    let mut sender = Sender {
        gate: Gate::new(usize::MAX, HashSet::new()),
        producer,
        answers,
        interval: Duration::from_secs(1) / args.rate,
        due: Instant::now(),
        patience: Duration::from_secs(args.timeout),
        trouble: "no answer".to_owned(),
        progress,
    };
    let pages = sender.pages(pool, sink, attempt, filter, position, i64::from(args.rate));
    let end = tokio::select! {
        end = pages => end,
        never = show(pool, attempt) => match never {},
        // What is with Kafka may arrive; it comes again with the page when the replay goes on.
        () = stop_signal() => Err(Stopped::ByHand),
    };
    sender.progress.bar.finish_and_clear();
    // Closing blocks for as long as the client library takes to let go.
    let producer = sender.producer;
    let _ = tokio::task::spawn_blocking(move || producer.discard()).await;
    end
}

/// Shows again and again that the replay runs. A time that fails is made up for by the next one, and
/// when the database stays away the pages say so.
async fn show(pool: &PgPool, attempt: Attempt) -> Infallible {
    loop {
        tokio::time::sleep(SEEN).await;
        let _ = replays::seen(pool, attempt).await;
    }
}

/// What a page became.
#[derive(Default)]
struct Done {
    published: i64,
    refused: i64,
}

struct Sender {
    gate: Gate,
    producer: Producer,
    answers: UnboundedReceiver<Answer>,
    /// Between two events.
    interval: Duration,
    /// When the next event may go.
    due: Instant,
    /// How long Kafka may be silent.
    patience: Duration,
    trouble: String,
    progress: Progress,
}

impl Sender {
    async fn pages(
        &mut self,
        pool: &PgPool,
        sink: &SinkName,
        attempt: Attempt,
        filter: &Filter,
        mut position: i64,
        rate: i64,
    ) -> Result<(), Stopped> {
        loop {
            // About a second each, so that a replay that is stopped repeats little.
            let rows = replays::page(pool, sink, filter, position, rate.min(PAGE), PAGE_BYTES).await?;
            let Some(last) = rows.last().map(|row| row.seq) else { return Ok(()) };
            let mut done = Done::default();
            for row in rows {
                // Behind an event that was refused.
                done.refused += i64::from(self.gate.admit(row).is_some());
            }
            self.send(&mut done).await?;
            if !replays::advance(pool, attempt, last, done.published, done.refused).await? {
                return Err(Stopped::Overtaken);
            }
            position = last;
        }
    }

    /// Sends everything that is in the gate, and waits for the answers.
    async fn send(&mut self, done: &mut Done) -> Result<(), Stopped> {
        let mut silent_since = Instant::now();
        while self.gate.unsettled() > 0 {
            let mut wake = silent_since + self.patience;
            if Instant::now() < self.due {
                wake = wake.min(self.due);
            } else if let Some(due) = self.gate.send_next() {
                self.producer.send(&due);
                // A delay is not made up for by a burst.
                self.due = self.due.max(Instant::now() - self.interval) + self.interval;
                continue;
            }
            tokio::select! {
                answer = self.answers.recv() => match answer {
                    Some(Answer::Event(input)) => {
                        if self.answered(input, done)? {
                            silent_since = Instant::now();
                        }
                    }
                    Some(Answer::Trouble(words)) => self.trouble = words,
                    None => return Err(Stopped::Failed("the Kafka producer ended".to_owned())),
                },
                () = tokio::time::sleep_until(wake) => {}
            }
            if silent_since.elapsed() >= self.patience {
                return Err(Stopped::Away(format!("Kafka: {}", self.trouble)));
            }
        }
        Ok(())
    }

    /// Takes an answer; whether it settles anything.
    fn answered(&mut self, input: Input, done: &mut Done) -> Result<bool, Stopped> {
        match input {
            Input::Acknowledged(event) => {
                if self.gate.acknowledged(&event) == Acknowledged::Event {
                    done.published += 1;
                    self.progress.one_more();
                }
                Ok(true)
            }
            Input::Refused { event, verdict: Verdict::Transient, detail } => {
                self.gate.put_back(&event);
                self.due = Instant::now() + WAIT;
                self.trouble = detail;
                Ok(false)
            }
            Input::Refused { event, verdict: Verdict::Permanent, detail } => {
                let parked = self.gate.refused(&event);
                if parked.refused.is_some() {
                    eprintln!(
                        "Kafka refused event number {}, and it is left out with the later ones of its order: {detail}",
                        event.seq
                    );
                    done.refused += 1 + i64::try_from(parked.behind.len()).unwrap_or(i64::MAX);
                }
                Ok(true)
            }
            Input::Refused { verdict: Verdict::Fatal, detail, .. } | Input::BeyondUse(detail) => {
                Err(Stopped::Failed(format!("Kafka: {detail}")))
            }
            _ => Ok(false),
        }
    }
}
