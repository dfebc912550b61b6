//! What goes where: results to stdout, the story to stderr, JSON alone when asked for.

use crate::journal::Stored;
use crate::model::{event::Body, ids::StepId, status::StepStatus};
use crate::service::{Listener, ServiceError, view};
use comfy_table::{Table, presets};
use serde_json::{Value, json};
use std::{
    io::{IsTerminal, Write},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::watch;

#[derive(Clone)]
pub struct Output {
    pub json: bool,
    colour: bool,
}

impl Output {
    #[must_use]
    pub fn new(json: bool) -> Self {
        let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { json, colour }
    }

    /// One line of the result.
    #[allow(clippy::unused_self)] // stdout is this one's alone, by convention
    pub fn line(&self, text: impl AsRef<str>) {
        // A reader that has gone away is no error of ours.
        let _ = writeln!(std::io::stdout(), "{}", text.as_ref());
    }

    /// The result as JSON, if that was asked for.
    pub fn object(&self, value: &Value) {
        if self.json {
            self.line(value.to_string());
        }
    }

    /// A sentence of the story.
    #[allow(clippy::unused_self)]
    pub fn say(&self, text: impl AsRef<str>) {
        let _ = writeln!(std::io::stderr(), "{}", text.as_ref());
    }

    /// Prints an error; gives its exit code.
    #[must_use]
    pub fn error(&self, error: &ServiceError) -> u8 {
        if let ServiceError::Invalid(found) = error {
            self.diagnostics(found);
        } else {
            self.say(format!("{} {error}", self.paint("error:", "1;31")));
        }
        if self.json {
            let diagnostics = if let ServiceError::Invalid(found) = error { json!(found) } else { Value::Null };
            self.line(json!({ "error": { "code": error.code(), "message": error.to_string(), "diagnostics": diagnostics } }).to_string());
        }
        error.exit_code()
    }

    pub fn diagnostics(&self, found: &[crate::runbook::diagnostic::Diagnostic]) {
        for one in found {
            self.say(format!("{one}\n"));
        }
    }

    #[must_use]
    pub fn paint(&self, text: &str, code: &str) -> String {
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    /// Tells each event as it becomes durable: JSON lines on stdout, or sentences on stderr.
    #[must_use]
    pub fn listener(&self) -> Listener {
        let output = self.clone();
        let first = Mutex::new(None);
        Arc::new(move |stored: &Stored| {
            if output.json {
                output.line(json!({ "event": brief(stored) }).to_string());
                return;
            }
            let at = stored.event.at;
            let begun = *first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(at);
            if let Some((mark, text)) = sentence(&stored.event.body) {
                let after = at.duration_since(begun).as_secs_f64();
                let mark = match mark {
                    '+' => output.paint("✓", "32"),
                    '!' => output.paint("✗", "31"),
                    '?' => output.paint("?", "33"),
                    _ => output.paint("·", "2"),
                };
                output.say(format!("{after:>9.3}s {mark} {text}"));
            }
        })
    }
}

/// An event without the plan and the estate, which would drown everything else.
#[must_use]
pub fn brief(stored: &Stored) -> Value {
    let mut event = view::event(stored);
    if let Some(body) = event.get_mut("body").and_then(Value::as_object_mut) {
        for large in ["plan", "context", "drill", "intent", "notes", "summary"] {
            if body.get(large).is_some_and(|value| value.is_object() || value.is_array()) {
                body.remove(large);
            }
        }
    }
    event
}

fn named(step: &StepId) -> String {
    format!("{step:<12}")
}

/// What an event says to a person, if it is worth a line.
#[must_use]
pub fn sentence(body: &Body) -> Option<(char, String)> {
    Some(match body {
        Body::RunCreated { plan, .. } => ('.', format!("run of {} begins", plan.runbook)),
        Body::PauseRequested { reason } => ('?', format!("pausing: {reason}")),
        Body::Resumed => ('.', "resumed".to_owned()),
        Body::AbortRequested { reason } => ('!', format!("aborting: {reason}")),
        Body::Parked { status, reason } => ('?', format!("the run is {}: {reason}", status.word())),
        Body::RunFinished { status, reason } => {
            let good = *status == crate::model::status::RunStatus::Succeeded;
            let why = reason.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
            (if good { '+' } else { '!' }, format!("the run has {}{why}", status.word()))
        }
        other => return step_sentence(other).or_else(|| drill_sentence(other)),
    })
}

fn step_sentence(body: &Body) -> Option<(char, String)> {
    Some(match body {
        Body::Skipped { step, reason } => ('.', format!("{} skipped: {reason}", named(step))),
        Body::Refused { step, failure, .. } => ('!', format!("{} refused: {failure}", named(step))),
        Body::ApprovalAsked { step, approvers, .. } => ('?', format!("{} waits for {approvers} approvals", named(step))),
        Body::Approved { step, by, .. } => ('+', format!("{} approved by {by}", named(step))),
        Body::Rejected { step, by, reason } => ('!', format!("{} rejected by {by}: {reason}", named(step))),
        Body::Applying { step, attempt, .. } if *attempt > 1 => ('.', format!("{} attempt {attempt}", named(step))),
        Body::Applying { step, .. } => ('.', format!("{} begins", named(step))),
        Body::ApplyFailed { step, failure, .. } => ('!', format!("{} failed: {failure}", named(step))),
        Body::ApplyUnknown { step, failure, .. } => ('?', format!("{} may or may not have happened: {failure}; looking", named(step))),
        Body::Verified { step, .. } => ('+', format!("{} done", named(step))),
        Body::StepEnded { step, status, .. } => {
            let mark = if *status == StepStatus::Succeeded { '+' } else { '!' };
            (mark, format!("{} {}", named(step), status.word()))
        }
        Body::Indeterminate { step, question } => ('?', format!("{} indeterminate: {question}", named(step))),
        Body::Resolved { step, done, by, .. } => {
            ('?', format!("{} resolved as {} by {by}", named(step), if *done { "done" } else { "not done" }))
        }
        Body::Undoing { step } => ('.', format!("{} being undone", named(step))),
        Body::Undone { step } => ('+', format!("{} undone", named(step))),
        Body::UndoFailed { step, failure } => ('!', format!("{} could not be undone: {failure}", named(step))),
        Body::UndoLeft { step, reason } => ('?', format!("{} not undone: {reason}", named(step))),
        _ => return None,
    })
}

fn drill_sentence(body: &Body) -> Option<(char, String)> {
    Some(match body {
        Body::DrillCreated { drill, .. } => ('.', format!("drill {} begins", drill.drill)),
        Body::DrillSkipped { reason } => ('?', format!("skipped: {reason}")),
        Body::SteadyState { good, note } => (if *good { '+' } else { '!' }, format!("steady state: {note}")),
        Body::Injecting { fault } => ('!', format!("fault: {} {}", fault.word(), fault.target().region)),
        Body::Detected { missed, .. } => ('+', format!("detected: {missed} probes in a row without a good answer")),
        Body::Healing => ('.', "healing".to_owned()),
        Body::Healed { note } => ('+', format!("healed: {note}")),
        Body::Hole { reason } => ('?', format!("a hole in the measurement: {reason}")),
        Body::AsFound { same: true, .. } => ('+', "the estate is as it was found".to_owned()),
        Body::AsFound { differences, .. } => ('!', format!("the estate is not as it was found: {}", differences.join("; "))),
        Body::DrillFinished { verdict, reasons, .. } => {
            let good = *verdict == crate::model::objective::Verdict::Pass;
            let why = if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join("; ")) };
            (if good { '+' } else { '!' }, format!("verdict {}{why}", format!("{verdict:?}").to_lowercase()))
        }
        _ => return None,
    })
}

/// A table without frills.
#[must_use]
pub fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(head.to_vec());
    table
}

/// A length as a person reads it.
#[must_use]
pub fn ms(value: Option<i128>) -> String {
    match value {
        None => "-".to_owned(),
        Some(ms) if ms.abs() < 1_000 => format!("{ms} ms"),
        #[allow(clippy::cast_precision_loss)]
        Some(ms) => format!("{:.2} s", ms as f64 / 1_000.0),
    }
}

/// Log lines go to stderr; `MUSTER_LOG` says which, in the form of `tracing`'s filters.
pub fn logging(verbose: u8) {
    let default = match verbose {
        0 => "muster=warn",
        1 => "muster=info",
        _ => "muster=debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("MUSTER_LOG").unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
}

/// Ctrl-C or SIGTERM once: true from then on. Twice: the process leaves at once; nothing is undone.
#[must_use]
pub fn interrupts() -> watch::Receiver<bool> {
    let (tell, told) = watch::channel(false);
    tokio::spawn(async move {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).ok();
        for count in 1.. {
            let term = async {
                match terminate.as_mut() {
                    Some(signal) => signal.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = term => {}
            }
            if count > 1 {
                std::process::exit(3);
            }
            let _ = writeln!(std::io::stderr(), "interrupted: what is under way is settled, then Muster stops; once more to leave at once");
            tell.send_replace(true);
        }
    });
    told
}
