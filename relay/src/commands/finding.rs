//! What a check found, and how it is shown.

use std::fmt::Write as _;

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Severity {
    /// As it should be.
    Ok,
    /// It works, and a guarantee hangs by less than it should.
    Warning,
    /// A guarantee is undone, or something will not work.
    Error,
    /// A server does not answer, so nothing more can be said of it.
    Down,
}

/// One thing that was checked.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Finding {
    /// What was checked: `postgresql fsync`, `topic replication`.
    pub(super) check: String,
    pub(super) severity: Severity,
    /// How it is.
    pub(super) found: String,
    /// What to do, when it is not as it should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mend: Option<String>,
}

impl Finding {
    pub(super) fn ok(check: &str, found: impl Into<String>) -> Self {
        Self { check: check.to_owned(), severity: Severity::Ok, found: found.into(), mend: None }
    }

    pub(super) fn warning(check: &str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, mend: Some(mend.into()), ..Self::ok(check, found) }
    }

    pub(super) fn error(check: &str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { severity: Severity::Error, mend: Some(mend.into()), ..Self::ok(check, found) }
    }

    pub(super) fn down(check: &str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { severity: Severity::Down, mend: Some(mend.into()), ..Self::ok(check, found) }
    }
}

/// The worst of them.
pub(super) fn worst(findings: &[Finding]) -> Severity {
    findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Ok)
}

/// A line for each, and one more for what to do.
pub(super) fn shown(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or_default();
    let mut text = String::new();
    for Finding { check, severity, found, mend } in findings {
        let word = match severity {
            Severity::Ok => "ok",
            Severity::Warning => "WARNING",
            Severity::Error => "ERROR",
            Severity::Down => "DOWN",
        };
        let _ = writeln!(text, "{word:<8} {check:<width$}  {found}");
        if let Some(mend) = mend {
            let _ = writeln!(text, "{:<8} {:<width$}  -> {mend}", "", "");
        }
    }
    text
}
