//! Where a drill stands, on the last line of a terminal: the phase, and for how long. Elsewhere nothing but
//! the plain sentences.

use super::output::Output;
use crate::journal::Stored;
use crate::model::event::{Body, RunRole};
use crate::plan::state::step_of;
use crate::service::Muster;
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::task::JoinHandle;

const REDRAW: Duration = Duration::from_millis(100);

/// Takes the line away again when it is dropped.
pub struct Progress {
    task: JoinHandle<()>,
    output: Output,
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.task.abort();
        self.output.live(None);
    }
}

/// What is known of where things stand.
#[derive(Default)]
struct Stand {
    phase: Option<&'static str>,
    /// When the drill began, and the phase.
    since: Option<(jiff::Timestamp, jiff::Timestamp)>,
    steps: BTreeSet<String>,
}

impl Stand {
    fn heed(&mut self, stored: &Stored) {
        let body = &stored.event.body;
        let phase = match body {
            Body::DrillCreated { .. } => Some("watching the steady state"),
            Body::Injecting { .. } => Some("injecting the fault"),
            Body::Injected { .. } => Some("waiting for the probe to notice"),
            Body::Detected { .. } | Body::RunCreated { .. } => Some("running the runbook"),
            Body::RunEnded { role: RunRole::Main, .. } => Some("waiting for clients to recover, and measuring"),
            Body::Healing => Some("healing"),
            Body::Healed { .. } => Some("waiting for what was healed"),
            Body::RunStarted { role: RunRole::Then, .. } => Some("leading back"),
            Body::RunEnded { .. } => Some("comparing with what was found"),
            Body::DrillFinished { .. } | Body::DrillSkipped { .. } => Some("done"),
            _ => None,
        };
        if let Some(phase) = phase {
            let begun = self.since.map_or(stored.event.at, |(begun, _)| begun);
            self.since = Some((begun, stored.event.at));
            self.phase = Some(phase);
        }
        if let Some(step) = step_of(body) {
            if matches!(body, Body::Applying { .. } | Body::Undoing { .. }) {
                self.steps.insert(step.to_string());
            } else if !matches!(body, Body::Applied { .. } | Body::Observed { .. } | Body::Prepared { .. }) {
                self.steps.remove(step.as_str());
            }
        }
    }

    fn line(&self, now: jiff::Timestamp) -> Option<String> {
        let ((begun, since), phase) = self.since.zip(self.phase)?;
        let seconds = |from| now.duration_since(from).as_secs_f64().max(0.0);
        let steps = self.steps.iter().cloned().collect::<Vec<_>>().join(", ");
        let steps = if steps.is_empty() { steps } else { format!(" · {steps}") };
        // Short enough for one line of any terminal: a line that wraps cannot be taken away.
        let line: String = format!("{:>9.1}s … {phase} ({:.1}s){steps}", seconds(begun), seconds(since)).chars().take(78).collect();
        (phase != "done").then_some(line)
    }
}

/// Makes the listener of a command that conducts a drill; on a terminal, with the line below its sentences.
#[must_use]
pub fn start(muster: &mut Muster, output: &Output) -> Option<Progress> {
    let tell = output.listener();
    if !output.is_watched() {
        muster.listener = tell;
        return None;
    }
    let stand = Arc::new(Mutex::new(Stand::default()));
    let heed = stand.clone();
    muster.listener = Arc::new(move |stored| {
        heed.lock().unwrap_or_else(PoisonError::into_inner).heed(stored);
        tell(stored);
    });
    let (clock, screen) = (muster.clock.clone(), output.clone());
    let task = tokio::spawn(async move {
        loop {
            let line = stand.lock().unwrap_or_else(PoisonError::into_inner).line(clock.now());
            screen.live(line);
            clock.sleep(REDRAW).await;
        }
    });
    Some(Progress { task, output: output.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{event::Event, ids::*};

    fn heed(stand: &mut Stand, at: &str, body: Body) {
        let event =
            Event { run: RunId::from("r"), seq: 1, at: at.parse().unwrap(), actor: String::new(), epoch: 1, body, prev: String::new() };
        stand.heed(&Stored { event, hash: String::new() });
    }

    #[test]
    fn the_line_says_what_goes_on_and_for_how_long() {
        let mut stand = Stand::default();
        let now = "2026-01-01T00:00:10Z".parse().unwrap();
        assert_eq!(stand.line(now), None);
        heed(&mut stand, "2026-01-01T00:00:00Z", Body::Healing);
        heed(&mut stand, "2026-01-01T00:00:08Z", Body::RunStarted { run: RunId::from("x"), role: RunRole::Then });
        let step = || StepId::from("promote");
        heed(&mut stand, "2026-01-01T00:00:09Z", Body::Applying { step: step(), attempt: 1, epoch: 1, key: String::new() });
        assert_eq!(stand.line(now).as_deref(), Some("     10.0s … leading back (2.0s) · promote"));
        heed(&mut stand, "2026-01-01T00:00:10Z", Body::Verified { step: step(), output: serde_json::Value::Null, warnings: Vec::new() });
        assert_eq!(stand.line(now).as_deref(), Some("     10.0s … leading back (2.0s)"));
        heed(&mut stand, "2026-01-01T00:00:10Z", Body::DrillSkipped { reason: String::new() });
        assert_eq!(stand.line(now), None);
    }
}
