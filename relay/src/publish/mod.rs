//! The `publish` stage: moves rows of the outbox to Kafka. It knows nothing of orders.
//!
//! The decisions are made by [`core`], which does no I/O; this file is the thin shell around it
//! that reads, sends and checkpoints. One publisher is active per sink, by a lease; others stand by.

pub(crate) mod core;
pub(crate) mod frontier;
#[cfg(test)]
mod frontier_model;
pub(crate) mod gate;
pub(crate) mod row;
#[cfg(test)]
mod simulation;
pub(crate) mod source;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use prometheus::local::LocalHistogram;
use rdkafka::error::KafkaError;
use sqlx::PgPool;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::core::{Checkpoint, Command, Core, Input, Limits};
use self::row::Event;
use self::source::{Outbox, Source};
use crate::backoff::Backoff;
use crate::bell::{self, Bell};
use crate::db::foreign::Unreadable;
use crate::db::lease::{self, Acquired, Epoch, Fenced, Renewed, Standing};
use crate::health::StageHealth;
use crate::kafka::{self, Answer, Producer};
use crate::metrics::{PublishMetrics, seconds_since};
use crate::sink::SinkName;
use crate::traces::Traces;

/// How often the lease is prolonged.
const RENEW: Duration = Duration::from_secs(1);
/// How long a stop waits for what is with Kafka.
const DRAIN: Duration = Duration::from_secs(10);
/// How often to read while the bell can be heard: it is lost only with the process that was to ring it.
const POLL: Duration = Duration::from_secs(3);
/// How often to read while no bell can be heard.
const POLL_WITHOUT_BELL: Duration = Duration::from_millis(100);
/// How many commands are obeyed before the next look at what has happened.
const BURST: usize = 256;
/// How often a standby asks for the lease that may have been given up, when it would not hear of it.
const ASK_WITHOUT_BELL: Duration = Duration::from_secs(1);
/// Kafka is in trouble when it answers nothing for so long.
const SILENCE: Duration = Duration::from_secs(3);
/// The same when it answers others and not the oldest event.
const STUCK: Duration = Duration::from_secs(10);

/// The stage.
#[derive(Debug)]
pub(crate) struct Publisher {
    /// Its connections.
    pub pool: PgPool,
    /// Under what name it publishes.
    pub sink: SinkName,
    /// Which table it reads.
    pub outbox: Outbox,
    /// Where to publish.
    pub kafka: kafka::Settings,
    /// Bounds of memory and pace.
    pub limits: Limits,
    /// Time to live of the lease.
    pub lease: Duration,
    /// The name under which it holds the lease.
    pub holder: String,
    /// Whether a term ends when everything is published that was there when it began.
    pub once: bool,
    /// Where it says how it is.
    pub health: StageHealth,
    /// What it counts.
    pub metrics: PublishMetrics,
    /// The spans of its events.
    pub traces: Traces,
}

/// What the publisher listens to.
#[derive(Debug)]
pub(crate) struct Bells {
    /// Something was committed.
    outbox: Bell,
    /// The lease is free, or an operator asks for something.
    lease: Bell,
}

impl Bells {
    /// Bells that hear nothing until they listen.
    #[must_use]
    pub(crate) fn new() -> Self {
        Self { outbox: Bell::new(events::OUTBOX_CHANNEL), lease: Bell::new(bell::LEASE) }
    }
}

/// Why a term, or the wait for one, ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Somebody else publishes; ask again after this long.
    Standby(Duration),
    /// The lease went to somebody else.
    Lost,
    /// Stopped on request: drained, checkpointed, lease given up.
    Stopped,
}

/// What ends a term by a failure; it is tried again after a while.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PublishError {
    /// PostgreSQL did not answer, or refused.
    #[error("PostgreSQL: {0}")]
    Database(#[from] sqlx::Error),
    /// librdkafka refused its configuration.
    #[error("Kafka: {0}")]
    Producer(#[from] KafkaError),
    /// The outbox table cannot be read.
    #[error(transparent)]
    Source(#[from] Unreadable),
    /// The sink is that of another table.
    #[error("RELAY_SINK={sink} reads {source_of_sink}: another table needs a sink of its own")]
    OtherSource {
        /// The sink.
        sink: SinkName,
        /// The table that it reads.
        source_of_sink: String,
    },
}

impl Publisher {
    /// Publishes, or stands by, until shutdown.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let bells = Bells::new();
        // A bell that nobody rings is not listened to, and so polling makes up for it.
        let rings = async {
            if self.outbox.rings() {
                bells.outbox.listen(self.pool.clone()).await
            } else {
                std::future::pending().await
            }
        };
        tokio::select! {
            () = rings => {}
            () = bells.lease.listen(self.pool.clone()) => {}
            () = self.terms(&bells, &shutdown) => {}
        }
    }

    async fn terms(&self, bells: &Bells, shutdown: &CancellationToken) {
        let mut backoff = Backoff::for_outage();
        while !shutdown.is_cancelled() {
            let wait = match self.run_once(bells, shutdown).await {
                Ok(Outcome::Stopped) => return,
                Ok(Outcome::Standby(left)) => {
                    backoff.reset();
                    self.health.well("standing by");
                    let at_most = if bells.lease.is_connected() { left } else { ASK_WITHOUT_BELL };
                    left.min(at_most).max(Duration::from_millis(20))
                }
                Ok(Outcome::Lost) => {
                    tracing::warn!("the lease is lost, to another relay or with a restart of PostgreSQL");
                    Duration::ZERO
                }
                Err(error) => {
                    self.health.trouble(error.to_string());
                    backoff.next_wait()
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = bells.lease.heard() => {}
                () = shutdown.cancelled() => {}
            }
        }
    }

    /// One term: takes the lease if it is free, publishes until it is lost or until shutdown.
    ///
    /// # Errors
    /// When the term cannot begin.
    pub(crate) async fn run_once(
        &self,
        bells: &Bells,
        shutdown: &CancellationToken,
    ) -> Result<Outcome, PublishError> {
        let source = self.outbox.open(&self.pool).await?;
        let asked = lease::acquire(&self.pool, &self.sink, source.name(), &self.holder, self.lease);
        let epoch = match asked.await? {
            Acquired::Standby(left) => return Ok(Outcome::Standby(left)),
            Acquired::OtherSource(source_of_sink) => {
                return Err(PublishError::OtherSource { sink: self.sink.clone(), source_of_sink });
            }
            Acquired::Leader(epoch) => epoch,
        };
        tracing::info!(relay.sink = %self.sink, relay.holder = self.holder, "publishing");
        let mut backoff = Backoff::for_outage();
        let mut doubt = None;
        loop {
            match self.lead(&source, &epoch, doubt.as_deref(), bells, shutdown).await? {
                Ended::Lost => return Ok(Outcome::Lost),
                Ended::Drained => return Ok(self.give_up(&epoch).await),
                Ended::Rebuild { reason, worked } => {
                    tracing::error!(reason, "the Kafka producer is beyond use: making a new one");
                    self.metrics.beyond_use();
                    let reason = format!("Kafka: {reason}");
                    self.health.trouble(reason.clone());
                    if worked {
                        backoff.reset();
                    }
                    if let Fenced::Lost = self.wait(&epoch, &reason, backoff.next_wait(), shutdown).await? {
                        return Ok(Outcome::Lost);
                    }
                    if shutdown.is_cancelled() {
                        return Ok(self.give_up(&epoch).await);
                    }
                    doubt = Some(reason);
                }
            }
        }
    }

    /// Waits, for shutdown at most, and keeps the lease meanwhile.
    async fn wait(
        &self,
        epoch: &Epoch,
        trouble: &str,
        time: Duration,
        shutdown: &CancellationToken,
    ) -> Result<Fenced, PublishError> {
        let until = Instant::now() + time;
        loop {
            let renewed = lease::renew(&self.pool, &self.sink, epoch, self.lease, Some(trouble)).await?;
            if renewed == Renewed::Lost {
                return Ok(Fenced::Lost);
            }
            let next = until.min(Instant::now() + RENEW);
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = shutdown.cancelled() => return Ok(Fenced::Held),
            }
            if next == until {
                return Ok(Fenced::Held);
            }
        }
    }

    /// Gives the lease up after everything is drained. Whoever has lost it by then knows nothing of
    /// what there is now.
    async fn give_up(&self, epoch: &Epoch) -> Outcome {
        let given_up = async {
            let fenced = lease::release(&self.pool, &self.sink, epoch).await?;
            bell::ring(&self.pool, bell::LEASE).await?;
            Ok::<_, sqlx::Error>(fenced)
        };
        match given_up.await {
            Ok(Fenced::Held) => Outcome::Stopped,
            Ok(Fenced::Lost) => Outcome::Lost,
            Err(error) => {
                tracing::warn!(%error, "the lease could not be given up; it ends by itself");
                Outcome::Stopped
            }
        }
    }

    /// Publishes with one producer, from what is checkpointed. `doubt` is what made the producer before
    /// it useless.
    async fn lead(
        &self,
        source: &Source,
        epoch: &Epoch,
        doubt: Option<&str>,
        bells: &Bells,
        shutdown: &CancellationToken,
    ) -> Result<Ended, PublishError> {
        let Renewed::Held(standing) = lease::renew(&self.pool, &self.sink, epoch, self.lease, doubt).await?
        else {
            return Ok(Ended::Lost);
        };
        let settled = lease::published(&self.pool, &self.sink).await?;
        let parked = lease::parked_orders(&self.pool, &self.sink).await?;
        let mut core = Core::new(self.limits.clone(), &settled, parked);
        if self.once {
            core.handle(Duration::ZERO, Input::DrainWhenPublished);
        }
        let (mut producer, answers) = Producer::new(self.kafka.clone(), &self.metrics.client)?;
        let mut term = Term::new(self, source, epoch, doubt, core, answers);
        term.stands(standing);
        let ended = term.run(&mut producer, bells, shutdown).await;
        self.metrics.circuit_open.set(0);
        // Closing blocks for as long as the client library takes to let go.
        let closing = tokio::task::spawn_blocking(move || producer.discard());
        if closing.await.is_err() {
            tracing::error!("closing the Kafka producer failed");
        }
        Ok(ended)
    }
}

/// Why [`Publisher::lead`] ended.
enum Ended {
    Drained,
    Lost,
    Rebuild {
        reason: String,
        /// Whether Kafka has acknowledged anything since the producer was made.
        worked: bool,
    },
}

/// A question to the database that is under way in a task of its own.
type Asked<T> = AbortOnDropHandle<T>;

/// Whom and what a question to the database is about.
#[derive(Clone)]
struct Of {
    pool: PgPool,
    source: Source,
    sink: SinkName,
    epoch: Epoch,
}

/// The shell around one [`Core`].
struct Term<'a> {
    publisher: &'a Publisher,
    of: Of,
    core: Core,
    commit_to_ack: LocalHistogram,
    answers: UnboundedReceiver<Answer>,
    started: Instant,
    /// The read, or the look at the locks, that is under way.
    reader: Option<Asked<Input>>,
    /// The checkpoint that is under way.
    saver: Option<Asked<Fenced>>,
    /// The renewal of the lease that is under way.
    renewer: Option<Asked<Renewed>>,
    /// Why an operator has it stand still.
    paused: Option<String>,
    /// Held once more by each question that the database has refused and not answered since.
    refused: Arc<()>,
    /// When the database was last heard of, and Kafka.
    database_answered: Instant,
    kafka_answered: Instant,
    kafka_said: String,
    /// The oldest event that is with Kafka, and since when it has been that.
    oldest: Option<(i64, Instant)>,
    /// What made the producer before this one useless, until this one has proven itself.
    doubt: Option<String>,
    worked: bool,
}

impl<'a> Term<'a> {
    fn new(
        publisher: &'a Publisher,
        source: &Source,
        epoch: &Epoch,
        doubt: Option<&str>,
        core: Core,
        answers: UnboundedReceiver<Answer>,
    ) -> Self {
        let now = Instant::now();
        let (pool, sink) = (publisher.pool.clone(), publisher.sink.clone());
        Self {
            publisher,
            of: Of { pool, source: source.clone(), sink, epoch: epoch.clone() },
            core,
            commit_to_ack: publisher.metrics.commit_to_ack.local(),
            answers,
            started: now,
            reader: None,
            saver: None,
            renewer: None,
            paused: None,
            refused: Arc::new(()),
            database_answered: now,
            kafka_answered: now,
            kafka_said: "no answer".to_owned(),
            oldest: None,
            doubt: doubt.map(str::to_owned),
            worked: false,
        }
    }

    async fn run(mut self, producer: &mut Producer, bells: &Bells, shutdown: &CancellationToken) -> Ended {
        let mut heard = Vec::new();
        let mut renew = tokio::time::interval(RENEW);
        renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut drain_until = None;
        loop {
            let more = match self.obey(producer) {
                ControlFlow::Break(ended) => return ended,
                ControlFlow::Continue(more) => more,
            };
            if more {
                // What the database was just asked begins on this thread, when the loop lets go of it.
                tokio::task::yield_now().await;
            }
            let wake = self.core.wake_at().map(|at| self.started + at);
            tokio::select! {
                count = self.answers.recv_many(&mut heard, 4096) => self.answered(heard.drain(..count)),
                input = finish(&mut self.reader) => {
                    self.database_answered = Instant::now();
                    self.happened(input);
                }
                fenced = finish(&mut self.saver) => {
                    self.database_answered = Instant::now();
                    if fenced == Fenced::Lost {
                        return Ended::Lost;
                    }
                    self.happened(Input::Saved);
                }
                renewed = finish(&mut self.renewer) => {
                    self.database_answered = Instant::now();
                    match renewed {
                        Renewed::Held(standing) => self.stands(standing),
                        Renewed::Lost => return Ended::Lost,
                    }
                }
                () = bells.outbox.heard() => self.happened(Input::Bell),
                () = bells.lease.heard(), if self.renewer.is_none() => {
                    let trouble = self.tell_health();
                    self.renewer = Some(self.renew(trouble));
                }
                () = std::future::ready(()), if more => {}
                () = until(wake) => {}
                _ = renew.tick() => {
                    self.core.poll_every(if bells.outbox.is_connected() { POLL } else { POLL_WITHOUT_BELL });
                    let trouble = self.tell_health();
                    if self.renewer.is_none() {
                        self.renewer = Some(self.renew(trouble));
                    }
                }
                () = shutdown.cancelled(), if drain_until.is_none() => {
                    drain_until = Some(Instant::now() + DRAIN);
                    self.happened(Input::Drain);
                }
                () = until(drain_until) => {
                    tracing::warn!(in_flight = self.core.in_flight(), "stopping with events unanswered by Kafka; they are published again");
                    return Ended::Drained;
                }
            }
        }
    }

    /// Does what the core has to do now, and says whether there is more: what happens meanwhile is not
    /// kept waiting, above all a read that is done and of which the next one waits.
    fn obey(&mut self, producer: &mut Producer) -> ControlFlow<Ended, bool> {
        let now = self.started.elapsed();
        for _ in 0..BURST {
            let Some(command) = self.core.next(now) else { return ControlFlow::Continue(false) };
            match command {
                Command::Send(due) => {
                    if self.core.in_flight() == 1 {
                        self.kafka_answered = Instant::now();
                    }
                    producer.send(&due);
                }
                Command::Read { open, above, limit, bytes } => {
                    self.reader = Some(self.database("reading the outbox", move |of| {
                        let open = open.clone();
                        async move {
                            let read =
                                of.source.read(&of.pool, &of.epoch, &open, above, limit, bytes).await?;
                            Ok(Input::Rows { rows: read.rows, cut: read.cut })
                        }
                    }));
                    return ControlFlow::Continue(true);
                }
                Command::ReadRetries { limit, bytes } => {
                    self.reader = Some(self.database("reading dead letters", move |of| async move {
                        of.source.retries(&of.pool, &of.sink, limit, bytes).await.map(Input::Retries)
                    }));
                }
                Command::LookUpHolders => {
                    self.reader = Some(self.database("looking at the writers' locks", |of| async move {
                        of.source.lock_holders(&of.pool).await.map(Input::Holders)
                    }));
                }
                Command::Checkpoint(checkpoint) => self.saver = Some(self.save(checkpoint)),
                Command::Rebuild(words) => {
                    let reason = producer.fatal_reason().unwrap_or(words);
                    return ControlFlow::Break(Ended::Rebuild { reason, worked: self.worked });
                }
                Command::Done => return ControlFlow::Break(Ended::Drained),
            }
        }
        ControlFlow::Continue(true)
    }

    fn happened(&mut self, input: Input) {
        self.core.handle(self.started.elapsed(), input);
    }

    fn answered(&mut self, answers: impl Iterator<Item = Answer>) {
        let (now, clock) = (self.started.elapsed(), Utc::now());
        for answer in answers {
            match answer {
                Answer::Event(input) => {
                    self.kafka_answered = Instant::now();
                    self.count(&input, clock);
                    self.core.handle(now, input);
                }
                Answer::Trouble(words) => self.kafka_said = words,
            }
        }
        self.commit_to_ack.flush();
    }

    /// Measures and traces what Kafka has answered at `now`. The row of a foreign table tells no time.
    fn count(&mut self, input: &Input, now: DateTime<Utc>) {
        let Publisher { metrics, traces, .. } = self.publisher;
        match input {
            Input::Acknowledged(row) => {
                (self.worked, self.doubt) = (true, None);
                metrics.published.inc();
                tracing::trace!(order.id = %row.aggregate_id, outbox.seq = row.seq, "acknowledged");
                if let Event::Order(event) = &row.event {
                    self.commit_to_ack.observe(seconds_since(event.created_at, now));
                }
                traces.published(row);
            }
            Input::Refused { verdict, .. } => metrics.refused(*verdict),
            _ => {}
        }
    }

    fn save(&self, checkpoint: Checkpoint) -> Asked<Fenced> {
        for event in &checkpoint.parked {
            tracing::error!(outbox.seq = event.seq, reason = event.refusal.as_deref(), "event parked");
        }
        let (ttl, checkpoint) = (self.publisher.lease, Arc::new(checkpoint));
        self.database("checkpointing", move |of| {
            let checkpoint = Arc::clone(&checkpoint);
            async move { of.source.checkpoint(&of.pool, &of.sink, &of.epoch, ttl, &checkpoint).await }
        })
    }

    /// Takes what an operator asks for, as the sink's row tells it.
    fn stands(&mut self, standing: Standing) {
        match (&self.paused, &standing.paused) {
            (None, Some(reason)) => {
                tracing::warn!(reason, "paused by an operator");
                // Nobody waits for the end of a pause in a cron job.
                self.happened(if self.publisher.once { Input::Drain } else { Input::Pause });
            }
            (Some(_), None) => {
                tracing::info!("resumed by an operator");
                self.happened(Input::Resume);
            }
            _ => {}
        }
        if standing.retries {
            self.happened(Input::RetriesWait);
        }
        if self.paused != standing.paused {
            self.paused = standing.paused;
            let _ = self.tell_health();
        }
    }

    fn renew(&self, trouble: Option<String>) -> Asked<Renewed> {
        let ttl = self.publisher.lease;
        self.database("renewing the lease", move |of| {
            let trouble = trouble.clone();
            async move { lease::renew(&of.pool, &of.sink, &of.epoch, ttl, trouble.as_deref()).await }
        })
    }

    /// Does something on the database, and again until the database has answered: everything the
    /// publisher asks of it can be repeated. In a task of its own, so that the next rows are decoded
    /// while those before them are handed to Kafka.
    fn database<T, F>(&self, what: &'static str, ask: impl Fn(Of) -> F + Send + 'static) -> Asked<T>
    where
        F: Future<Output = Result<T, sqlx::Error>> + Send,
        T: Send + 'static,
    {
        let (of, health) = (self.of.clone(), self.publisher.health.clone());
        let refused = Arc::downgrade(&self.refused);
        #[expect(clippy::disallowed_methods, reason = "the term waits for it, and drops it with itself")]
        let task = tokio::spawn(async move {
            let mut backoff = Backoff::for_outage();
            let mut _refused = None;
            loop {
                match ask(of.clone()).await {
                    Ok(answer) => return answer,
                    Err(error) => {
                        _refused = refused.upgrade();
                        health.trouble(format!("PostgreSQL, {what}: {error}"));
                    }
                }
                tokio::time::sleep(backoff.next_wait()).await;
            }
        });
        AbortOnDropHandle::new(task)
    }

    /// Says how it is, and gives the trouble that Kafka makes, if it does.
    fn tell_health(&mut self) -> Option<String> {
        let stands = self.paused.is_some() && self.core.in_flight() == 0;
        let trouble = if stands { None } else { self.kafka_trouble() };
        let health = &self.publisher.health;
        self.publisher.metrics.circuit_open.set(i64::from(trouble.is_some()));
        if Arc::strong_count(&self.refused) > 1 {
            // What the database said is told already.
        } else if self.database_answered.elapsed() > RENEW + SILENCE {
            health.trouble("PostgreSQL: no answer".to_owned());
        } else if stands {
            health.paused(self.paused.as_deref().unwrap_or_default());
        } else if let Some(trouble) = &trouble {
            health.trouble(trouble.clone());
        } else {
            health.well("publishing");
        }
        trouble
    }

    /// Why Kafka takes nothing, or not everything, if so.
    fn kafka_trouble(&mut self) -> Option<String> {
        let oldest = self.core.oldest_in_flight();
        if self.oldest.map(|(seq, _)| seq) != oldest {
            self.oldest = oldest.map(|seq| (seq, Instant::now()));
        }
        if let Some(reason) = self.core.circuit_reason() {
            return Some(format!("Kafka: {reason}"));
        }
        if self.core.in_flight() > 0 && self.kafka_answered.elapsed() > SILENCE {
            return Some(format!("Kafka: {} events unanswered: {}", self.core.in_flight(), self.kafka_said));
        }
        // Others may be answered all the same, those of other partitions.
        if let Some((seq, since)) = self.oldest.filter(|(_, since)| since.elapsed() > STUCK) {
            let seconds = since.elapsed().as_secs();
            return Some(format!("Kafka: event {seq} unanswered for {seconds} s: {}", self.kafka_said));
        }
        if oldest.is_none() && self.started.elapsed() > STUCK {
            self.doubt = None;
        }
        self.doubt.clone()
    }
}

/// Waits for what is under way, and clears it; for ever when nothing is. Cancelling loses nothing.
async fn finish<T>(slot: &mut Option<Asked<T>>) -> T {
    let Some(asked) = slot else { return std::future::pending().await };
    let answer = asked.await;
    *slot = None;
    match answer {
        Ok(answer) => answer,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // Only the end of the process cancels it.
        Err(_) => std::future::pending().await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
