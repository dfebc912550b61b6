//! What goes where: results to stdout, the story to stderr, JSON alone when asked for.

use crate::journal::Stored;
use crate::model::{
    event::Body,
    ids::{RunId, StepId},
    status::StepStatus,
};
use crate::service::{Listener, ServiceError, view};
use comfy_table::{ColumnConstraint, ContentArrangement, Table, presets};
use serde_json::{Value, json};
use std::{
    io::{IsTerminal, Write},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};
use tokio::sync::watch;

/// To the beginning of the line, and nothing left on it.
const ERASE: &str = "\r\u{1b}[2K";

/// Why a part of the result could not be written, if so.
static UNWRITTEN: OnceLock<String> = OnceLock::new();

/// Why a part of the result is not where stdout leads, if so: a full disk must not look like an answer.
#[must_use]
pub fn unwritten() -> Option<&'static str> {
    UNWRITTEN.get().map(String::as_str)
}

/// Bytes of the result, to stdout.
pub fn write(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        // A reader that has gone away is no error of ours.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            let _ = UNWRITTEN.set(error.to_string());
        }
        _ => {}
    }
}

#[derive(Clone)]
pub struct Output {
    pub json: bool,
    colour: bool,
    /// How Muster is called for the same state directory, for the commands that are printed.
    pub program: String,
    /// What stands on the last line of a terminal while a drill goes on.
    live: Arc<Mutex<Option<String>>>,
}

impl Output {
    #[must_use]
    pub fn new(json: bool, program: String) -> Self {
        let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { json, colour, program, live: Arc::default() }
    }

    /// One line of the result.
    #[allow(clippy::unused_self)] // stdout is this one's alone, by convention
    pub fn line(&self, text: impl AsRef<str>) {
        write(format!("{}\n", text.as_ref()).as_bytes());
    }

    /// The result as JSON, if that was asked for.
    pub fn object(&self, value: &Value) {
        if self.json {
            self.line(value.to_string());
        }
    }

    /// A sentence of the story.
    pub fn say(&self, text: impl AsRef<str>) {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let mut err = std::io::stderr().lock();
        let _ = match live.as_ref() {
            Some(live) => write!(err, "{ERASE}{}\n{live}", text.as_ref()),
            None => writeln!(err, "{}", text.as_ref()),
        };
        let _ = err.flush();
    }

    /// Puts this on the last line of the terminal, or takes away what stands there.
    pub fn live(&self, text: Option<String>) {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        if live.is_some() || text.is_some() {
            let _ = write!(std::io::stderr(), "{ERASE}{}", text.as_deref().unwrap_or_default());
            let _ = std::io::stderr().flush();
        }
        *live = text;
    }

    /// Is there a person who watches, rather than a program that reads?
    #[must_use]
    pub fn is_watched(&self) -> bool {
        !self.json && std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
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
                let colour = match mark {
                    '+' => "32",
                    '!' => "31",
                    '?' => "33",
                    _ => "2",
                };
                let mark = output.paint(glyph(mark), colour);
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
        for large in ["plan", "context", "drill", "intent", "measured", "notes", "signed", "summary"] {
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
        Body::CommandRefused { by, command, step, why } => {
            let step = step.as_ref().map(|step| format!(" {step}")).unwrap_or_default();
            ('?', format!("refused: {command}{step} by {by}: {why}"))
        }
        Body::Preempted { run, how } => ('!', format!("run {run} made way: {how}")),
        Body::MakeWay { to } => ('!', format!("making way for run {to}, a live failover")),
        Body::AbortRequested { reason } => ('!', format!("aborting: {reason}")),
        Body::Parked { status, reason } => ('?', format!("the run is {}: {reason}", status.word().replace('_', " "))),
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
        Body::ApprovalAsked { step, approvers, .. } => {
            ('?', format!("{} waits for {approvers} approval{}", named(step), if *approvers == 1 { "" } else { "s" }))
        }
        Body::RetryRequested { step, by } => ('.', format!("{} to be tried again, says {by}", named(step))),
        Body::SkipRequested { step, by, reason } => ('!', format!("{} skipped by {by}: {reason}", named(step))),
        Body::Approved { step, by, signed, .. } => {
            let key = signed.as_ref().map_or("by name alone, unsigned", |signed| signed.key.as_str());
            ('+', format!("{} approved by {by} ({key})", named(step)))
        }
        Body::FactsConfirmed { step, .. } => ('+', format!("{} the facts are within their bounds", named(step))),
        Body::ApprovalVoid { step, why, .. } => ('!', format!("{} the approval is void: {why}", named(step))),
        Body::ApprovalSkipped { step, reason } => ('.', format!("{} not approved: {reason}", named(step))),
        Body::Overridden { step, by, reason, was, signed, .. } => {
            let how = if signed.is_some() { "signed" } else { "unsigned" };
            ('!', format!("{} OVERRIDDEN by {by} ({how}); it was {was}: {reason}", named(step)))
        }
        Body::Rejected { step, by, reason } => ('!', format!("{} rejected by {by}: {reason}", named(step))),
        Body::Applying { step, attempt, .. } if *attempt > 1 => ('.', format!("{} attempt {attempt}", named(step))),
        Body::Applying { step, .. } => ('.', format!("{} begins", named(step))),
        Body::ApplyFailed { step, failure, .. } => ('!', format!("{} failed: {failure}", named(step))),
        Body::ApplyUnknown { step, failure, .. } => ('?', format!("{} may or may not have happened: {failure}; looking", named(step))),
        Body::Verified { step, warnings, .. } if !warnings.is_empty() => {
            ('!', format!("{} done, but {}", named(step), warnings.join("; ")))
        }
        Body::Verified { step, .. } => ('+', format!("{} done", named(step))),
        // The failure itself has been told, in its own words, by what came before.
        Body::StepEnded { status: StepStatus::Failed, failure: None, .. } => return None,
        Body::StepEnded { step, status, failure } => {
            let mark = if *status == StepStatus::Succeeded { '+' } else { '!' };
            let why = failure.as_ref().map(|failure| format!(": {failure}")).unwrap_or_default();
            (mark, format!("{} {}{why}", named(step), status.word().replace('_', " ")))
        }
        Body::Indeterminate { step, question } => ('?', format!("{} indeterminate: {question}", named(step))),
        Body::Resolved { step, done, by, reason } => {
            ('?', format!("{} resolved as {} by {by}: {reason}", named(step), if *done { "done" } else { "not done" }))
        }
        Body::Undoing { step, .. } => ('.', format!("{} being undone", named(step))),
        Body::UndoRetry { step, failure, .. } => ('!', format!("{} not undone yet, and tried again: {failure}", named(step))),
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
        Body::DrillPreempted { reason, .. } => ('!', format!("the drill makes way: {reason}")),
        Body::DrillMissed { drill, reason, .. } => ('?', format!("drill {drill} was missed: {reason}")),
        Body::DrillFinished { verdict, reasons, .. } => {
            let good = *verdict == crate::model::objective::Verdict::Pass;
            let why = if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join("; ")) };
            (if good { '+' } else { '!' }, format!("verdict {}{why}", format!("{verdict:?}").to_lowercase()))
        }
        _ => return None,
    })
}

/// A table without frills. On a terminal the last column gives way when the others leave it too little room;
/// an identifier is never broken, so that it can be copied.
#[must_use]
pub fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(head.to_vec());
    if table.width().is_some() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
        let keep = head.len().saturating_sub(1);
        table.column_iter_mut().take(keep).for_each(|column| {
            column.set_constraint(ColumnConstraint::ContentWidth);
        });
    }
    // The frame that is not there leaves a blank at the left edge.
    if let Some(first) = table.column_mut(0) {
        first.set_padding((0, 1));
    }
    table
}

/// An identifier for lists. The first 13 characters of a UUIDv7 are its millisecond, which is enough to find
/// a run by; a name and an instant are left whole.
#[must_use]
pub fn short(id: &RunId) -> String {
    let is_uuid = id.as_str().parse::<uuid::Uuid>().is_ok();
    id.as_str().get(..13).filter(|_| is_uuid).unwrap_or(id.as_str()).to_owned()
}

/// An instant for lists: UTC, to the second.
#[must_use]
pub fn seconds(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// What stands before a sentence.
#[must_use]
pub fn glyph(mark: char) -> &'static str {
    match mark {
        '+' => "✓",
        '!' => "✗",
        '?' => "?",
        _ => "·",
    }
}

/// A length as a person reads it.
#[must_use]
pub fn ms(value: Option<i128>) -> String {
    match value {
        None => "-".to_owned(),
        Some(ms) if ms.abs() < 1_000 => format!("{ms} ms"),
        // Cut, not rounded, as in the report.
        Some(ms) if ms.abs() < 60_000 => format!("{}.{:02} s", ms / 1_000, ms.abs() % 1_000 / 10),
        Some(ms) if ms.abs() < 3_600_000 => format!("{} min {:02} s", ms / 60_000, ms.abs() % 60_000 / 1_000),
        Some(ms) => format!("{} h {:02} min", ms / 3_600_000, ms.abs() % 3_600_000 / 60_000),
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
                let _ = writeln!(
                    std::io::stderr(),
                    "left at once: what was under way may or may not have happened; a run goes on with `muster resume`"
                );
                std::process::exit(3);
            }
            let _ = writeln!(std::io::stderr(), "interrupted: what is under way is settled, then Muster stops; once more to leave at once");
            tell.send_replace(true);
        }
    });
    told
}
