//! Everything that changes an order goes through here: a bounded queue, then one owner.
//!
//! A request that was accepted is finished whether or not its client still waits. The queue is
//! where overload shows: it never waits, it refuses.

mod cancel;
mod lane;
mod settle;

use std::sync::Arc;
use std::time::Duration;
use std::{io, thread};

use prometheus::Histogram;
use sqlx::PgPool;
use sqlx::postgres::PgConnectOptions;
use tokio::runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::bell::Bell;
use crate::domain::{CancelOrder, NewOrder, Outcome};
use settle::Settler;

/// How long a request waits in all for another transaction that holds its key.
const KEY_WAIT: Duration = Duration::from_millis(500);
/// No statement of ours takes this long on a database that works.
const STATEMENT_DEADLINE: Duration = Duration::from_secs(10);
/// Cancellations that wait for their turn; they are rare beside orders.
const CANCEL_QUEUE: usize = 256;

/// Why a request was not answered. The causes are in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The queue is full; nothing was done.
    #[error("too many requests are waiting")]
    Overloaded,
    /// The database cannot do it now; nothing was done.
    #[error("the database is not available")]
    Unavailable,
    /// The connection broke between the statement and its answer, and asking again failed too.
    #[error("whether the request was done is unknown")]
    OutcomeUnknown,
    /// The database refused for good; nothing was done.
    #[error("the request could not be written")]
    Failed,
}

/// Whether a request's statement may have been committed without our knowing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    /// It was not sent, or its failure was seen.
    No,
    /// It was sent and the connection broke.
    Unknown,
}

impl Sent {
    /// What "it does not work now" means for the request.
    fn unavailable(self) -> WriteError {
        match self {
            Self::No => WriteError::Unavailable,
            Self::Unknown => WriteError::OutcomeUnknown,
        }
    }
}

type Reply = Result<Outcome, WriteError>;

/// A request that waits for its outcome.
#[derive(Debug)]
struct Job<T> {
    request: T,
    reply: oneshot::Sender<Reply>,
    accepted: Instant,
    /// The span of the request.
    span: tracing::Span,
}

impl<T> Job<T> {
    /// Hands the outcome over; a client that is gone does not need it.
    fn finish(self, reply: Reply) {
        let _ = self.reply.send(reply);
    }
}

/// Accepts requests. The tasks behind it finish what was accepted and end when the last clone
/// is dropped.
#[derive(Clone, Debug)]
pub struct Writer {
    orders: mpsc::Sender<Job<NewOrder>>,
    cancellations: mpsc::Sender<Job<CancelOrder>>,
}

impl Writer {
    /// Starts the tasks of a writer, with room for `queue` orders that wait. `readers` serves
    /// look-ups; waits for locks happen on `waiters`, so that they cannot hold reads up.
    ///
    /// The lane has a thread of its own: as a task among the connections' tasks it would get PostgreSQL's
    /// answer only after all of them had their turn, and with a thousand connections PostgreSQL would
    /// wait for it (docs/performance.md).
    ///
    /// # Errors
    /// When the system has no more threads or descriptors.
    pub(crate) fn start(
        tasks: &mut JoinSet<&'static str>,
        options: PgConnectOptions,
        (readers, waiters): (PgPool, PgPool),
        bell: Bell,
        batch_size: Histogram,
        queue: usize,
    ) -> io::Result<Self> {
        let settler = Arc::new(Settler::new(readers, waiters, bell.clone()));
        let (orders, waiting_orders) = mpsc::channel(queue);
        let (cancellations, waiting_cancellations) = mpsc::channel(CANCEL_QUEUE);
        let lane = lane::Lane::new(options, settler.clone(), bell, batch_size, runtime::Handle::current());
        let own = runtime::Builder::new_current_thread().enable_all().build()?;
        let (running, ended) = oneshot::channel::<()>();
        thread::Builder::new().name("writer".to_owned()).spawn(move || {
            own.block_on(lane.run(waiting_orders));
            drop(running);
        })?;
        tasks.spawn(async move {
            // Nothing is ever sent: it ends when the thread has.
            let _ = ended.await;
            "writer"
        });
        tasks.spawn(async move {
            cancel::run(settler, waiting_cancellations).await;
            "cancellations"
        });
        Ok(Self { orders, cancellations })
    }

    /// Orders that wait to be written.
    pub(crate) fn queued(&self) -> usize {
        self.orders.max_capacity() - self.orders.capacity()
    }

    /// Creates an order, or tells what became of its key.
    ///
    /// # Errors
    /// [`WriteError`]; only `OutcomeUnknown` leaves open whether the order exists.
    pub(crate) async fn create(&self, order: NewOrder) -> Reply {
        submit(&self.orders, order).await
    }

    /// Cancels an order, or tells what became of the request's key.
    ///
    /// # Errors
    /// [`WriteError`]; only `OutcomeUnknown` leaves open whether the order was cancelled.
    pub(crate) async fn cancel(&self, request: CancelOrder) -> Reply {
        submit(&self.cancellations, request).await
    }
}

async fn submit<T>(queue: &mpsc::Sender<Job<T>>, request: T) -> Reply {
    let (reply, outcome) = oneshot::channel();
    let job = Job { request, reply, accepted: Instant::now(), span: tracing::Span::current() };
    queue.try_send(job).map_err(|_| WriteError::Overloaded)?;
    // The owner drops a job unanswered only when it dies in the middle.
    outcome.await.unwrap_or(Err(WriteError::OutcomeUnknown))
}
