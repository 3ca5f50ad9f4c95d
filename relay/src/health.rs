//! What each stage says of itself, and the pages that show it: `/healthz` (the process is alive),
//! `/readyz` (503 with the reason when a stage has work and makes no progress) and `/metrics`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// What a stage does that stands still on request.
const PAUSED: &str = "paused";

/// The state of all stages of this process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Health(Arc<Mutex<BTreeMap<&'static str, StageState>>>);

#[derive(Clone, Debug, Default, Serialize)]
struct StageState {
    doing: &'static str,
    problem: Option<String>,
    /// Why it was told to stand still, or what is wrong beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// One stage's own part of [`Health`].
#[derive(Clone, Debug)]
pub(crate) struct StageHealth {
    all: Health,
    stage: &'static str,
}

impl Health {
    /// The part of a stage; from now on it is listed as starting.
    #[must_use]
    pub(crate) fn stage(&self, stage: &'static str) -> StageHealth {
        self.lock().insert(stage, StageState { doing: "starting", ..StageState::default() });
        StageHealth { all: self.clone(), stage }
    }

    /// Each stage, and whether it is without a problem.
    pub(crate) fn ready(&self) -> Vec<(&'static str, bool)> {
        self.lock().iter().map(|(stage, state)| (*stage, state.problem.is_none())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, StageState>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StageHealth {
    /// The stage works, or has nothing to do. Logs once when a trouble is over.
    pub(crate) fn well(&self, doing: &'static str) {
        self.tell(StageState { doing, ..StageState::default() });
    }

    /// The stage works, and something beside it does not: shown, and no trouble. Logs once, when that begins.
    pub(crate) fn well_but(&self, doing: &'static str, reason: String) {
        let told = self.all.lock().get(self.stage).is_some_and(|state| state.reason.is_some());
        if !told {
            tracing::warn!(stage = self.stage, "{reason}");
        }
        self.tell(StageState { doing, problem: None, reason: Some(reason) });
    }

    /// The stage stands still because an operator wants it to: no trouble, but shown.
    pub(crate) fn paused(&self, reason: &str) {
        self.tell(StageState { doing: PAUSED, problem: None, reason: Some(reason.to_owned()) });
    }

    /// What keeps the stage from making progress, if so.
    #[must_use]
    pub(crate) fn problem(&self) -> Option<String> {
        self.all.lock().get(self.stage).and_then(|state| state.problem.clone())
    }

    fn tell(&self, state: StageState) {
        let doing = state.doing;
        let before = self.all.lock().insert(self.stage, state);
        if before.is_some_and(|state| state.problem.is_some()) {
            tracing::info!(stage = self.stage, "trouble is over: {doing}");
        }
    }

    /// The stage has work and makes no progress. Logs once, when the trouble begins.
    pub(crate) fn trouble(&self, problem: impl Into<String>) {
        let problem = problem.into();
        let mut all = self.all.lock();
        let state = all.entry(self.stage).or_default();
        if state.problem.is_none() {
            tracing::warn!(stage = self.stage, "no progress, and waiting: {problem}");
        }
        state.problem = Some(problem);
    }
}

/// What the pages show.
#[derive(Clone)]
struct Shown {
    health: Health,
    metrics: Metrics,
}

fn router(health: Health, metrics: Metrics) -> Router {
    Router::new()
        .route("/healthz", get(|| async { Json(serde_json::json!({"status": "alive"})) }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(counts))
        .with_state(Shown { health, metrics })
}

async fn readyz(State(shown): State<Shown>) -> impl IntoResponse {
    let stages = shown.health.lock().clone();
    let (status, word) = if stages.values().any(|stage| stage.problem.is_some()) {
        (StatusCode::SERVICE_UNAVAILABLE, "no progress")
    } else if stages.values().any(|stage| stage.doing == PAUSED) {
        // Somebody wants it so: whoever waits for 200 has nothing to mend.
        (StatusCode::OK, PAUSED)
    } else {
        (StatusCode::OK, "ready")
    };
    (status, Json(serde_json::json!({"status": word, "stages": stages})))
}

async fn counts(State(shown): State<Shown>) -> Response {
    match shown.metrics.render(&shown.health).await {
        Ok(text) => ([(CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "the metrics could not be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// Serves the pages until shutdown.
///
/// # Errors
/// When the listener fails.
pub(crate) async fn serve(
    listener: TcpListener,
    health: Health,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> Result<(), std::io::Error> {
    axum::serve(listener, router(health, metrics)).with_graceful_shutdown(shutdown.cancelled_owned()).await
}
