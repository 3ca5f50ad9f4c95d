//! One connection's worth of sending: takes mails one at a time and reports what became of each.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use governor::DefaultDirectRateLimiter;
use tokio::sync::mpsc::UnboundedSender;
use tokio_util::sync::CancellationToken;

use super::outcome::{Attempt, Outcome, Server};
use super::smtp::{Connection, Failure, Server as SmtpServer, Step, Trouble, Verdict};
use super::{Letterhead, STOP_TIME, message};
use crate::db::notifications::Leased;
use crate::traces::Traces;

/// A connection without work is closed after so long; servers do it after minutes, and without a word.
const IDLE: Duration = Duration::from_secs(30);

/// A sender and its connection.
pub(super) struct Sender {
    server: SmtpServer,
    letterhead: Arc<Letterhead>,
    rate: Option<Arc<DefaultDirectRateLimiter>>,
    mails: async_channel::Receiver<Leased>,
    report: UnboundedSender<Outcome>,
    traces: Traces,
    shutdown: CancellationToken,
    connection: Option<Connection>,
}

impl Sender {
    pub(super) fn new(
        server: SmtpServer,
        letterhead: Arc<Letterhead>,
        rate: Option<Arc<DefaultDirectRateLimiter>>,
        mails: async_channel::Receiver<Leased>,
        report: UnboundedSender<Outcome>,
        traces: Traces,
        shutdown: CancellationToken,
    ) -> Self {
        Self { server, letterhead, rate, mails, report, traces, shutdown, connection: None }
    }

    /// Sends until nothing can come any more.
    pub(super) async fn run(mut self) {
        loop {
            match tokio::time::timeout(IDLE, self.mails.recv()).await {
                Ok(Ok(mail)) => {
                    let began = SystemTime::now();
                    let (attempt, server) = self.send(&mail).await;
                    let outcome = Outcome::new(&mail, attempt, server);
                    self.traces.mailed(&mail, &outcome, began);
                    // The desk is gone only when the stage is being torn down: the lease runs out.
                    let _ = self.report.send(outcome);
                }
                Ok(Err(_)) => return self.hang_up().await,
                Err(_) => self.hang_up().await,
            }
        }
    }

    async fn hang_up(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.quit().await;
        }
    }

    async fn send(&mut self, mail: &Leased) -> (Attempt, Server) {
        fail::fail_point!("mail leased");
        let message = match message::build(&self.letterhead, mail) {
            Ok(message) => message,
            Err(error) => return (Attempt::Failed(error.to_string()), Server::NotAsked),
        };
        let stop = self.shutdown.clone();
        if let Some(rate) = &self.rate
            && stop.run_until_cancelled(rate.until_ready()).await.is_none()
        {
            return (Attempt::NotTried, Server::NotAsked);
        }
        loop {
            let (mut connection, used) = match self.connection.take() {
                Some(connection) => (connection, true),
                None => match stop.run_until_cancelled(Box::pin(self.server.connect())).await {
                    None => return (Attempt::NotTried, Server::NotAsked),
                    Some(Ok(connection)) => (connection, false),
                    Some(Err(failure)) => return (Attempt::NotTried, Server::Away(failure.words)),
                },
            };
            let begun = match stop.run_until_cancelled(connection.begin(message.envelope())).await {
                // Before 354 nothing is taken, so dropping the connection is harmless.
                None => return (Attempt::NotTried, Server::NotAsked),
                Some(begun) => begun,
            };
            fail::fail_point!("mail begun");
            let done = match begun {
                Ok(()) => self.finish(&mut connection, &message.formatted()).await,
                Err(failure) => Err(failure),
            };
            fail::fail_point!("mail answered");
            return match done {
                Ok(()) => {
                    self.connection = Some(connection);
                    (Attempt::Sent, Server::Answered)
                }
                // Servers hang up on connections that are idle or have carried enough: that says nothing of them.
                Err(failure) if used && failure.step == Step::Sender => continue,
                Err(failure) => self.judge(connection, failure).await,
            };
        }
    }

    /// Hands the message over. A stop cuts the wait for the answer short, but not at once.
    async fn finish(&self, connection: &mut Connection, message: &[u8]) -> Result<(), Failure> {
        let patience = async {
            self.shutdown.cancelled().await;
            tokio::time::sleep(STOP_TIME).await;
        };
        tokio::select! {
            done = connection.finish(message) => done,
            () = patience => Err(Failure {
                step: Step::Message,
                trouble: Trouble::Broken,
                words: "message: no answer before the stop".to_owned(),
            }),
        }
    }

    /// What a failure means for the mail and says of the server.
    async fn judge(&mut self, connection: Connection, failure: Failure) -> (Attempt, Server) {
        let verdict = failure.verdict();
        let server = match failure.trouble {
            Trouble::Transient | Trouble::Permanent => {
                self.connection = connection.reset().await;
                Server::Answered
            }
            Trouble::Closing | Trouble::Broken if verdict == Verdict::Outage => Server::NotAsked,
            Trouble::Closing | Trouble::Broken => self.ask_again().await,
        };
        let words = failure.words;
        match (verdict, server) {
            (Verdict::Outage, _) => (Attempt::NotTried, Server::Away(words)),
            (Verdict::Doubtful, Server::Answered) => (Attempt::Deferred(words), Server::Answered),
            (Verdict::Doubtful, server) => (Attempt::PutBack(words), server),
            (Verdict::Deferred, server) => (Attempt::Deferred(words), server),
            (Verdict::Failed, server) => (Attempt::Failed(words), server),
            (Verdict::Unknown, server) => (Attempt::Unknown(words), server),
        }
    }

    /// After a break, a new connection tells whether the server has gone.
    async fn ask_again(&mut self) -> Server {
        match self.shutdown.run_until_cancelled(Box::pin(self.server.connect())).await {
            Some(Ok(connection)) => {
                self.connection = Some(connection);
                Server::Answered
            }
            Some(Err(away)) => Server::Away(away.words),
            None => Server::NotAsked,
        }
    }
}
