//! What is known of a run: the fold of its events. Nothing about a run lives anywhere else.
//!
//! Each step is in one [`Phase`]. The two that matter after a crash: `Prepared` without `Applying` has
//! certainly not been applied, so a new owner prepares it afresh; `Applying` without an outcome may
//! have been, so it is observed before anything else.

use crate::model::{effect::*, event::*, ids::*, plan::*, runbook::OnFailure, status::*};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug, PartialEq)]
pub struct RunState {
    pub plan: Plan,
    pub drill: Option<RunId>,
    pub status: RunStatus,
    /// The last event folded in.
    pub seq: u64,
    pub steps: BTreeMap<StepId, StepState>,
    /// An operator, or a step that failed with `pause`, holds the run.
    pub paused: Option<String>,
    /// The step that holds it; `None` when a person does.
    pub paused_by: Option<StepId>,
    pub aborting: Option<String>,
    /// A step failed with `stop` or `undo`.
    pub stopping: Option<Stopping>,
    pub reason: Option<String>,
    pub started_at: Option<jiff::Timestamp>,
    pub finished_at: Option<jiff::Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopping {
    pub because: StepId,
    pub undo: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing was tried, or nothing stands of what was.
    New,
    Prepared,
    Asked,
    /// The intent to act is durable; the outcome is not.
    Applying,
    /// The outcome of the last attempt is not known; this is what was heard of it.
    Unknown(Failure),
    /// Accepted by the other side; not yet seen to be complete.
    Applied,
    /// A person must say what happened.
    Held,
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UndoState {
    Not,
    Undoing,
    Undone,
    /// Left to a person, or nothing to undo.
    Left,
    Failed,
}

#[derive(Clone, Debug, PartialEq)]
pub struct StepState {
    pub status: StepStatus,
    pub phase: Phase,
    /// Attempts that were begun, refusals included.
    pub attempts: u32,
    /// The event that first began to apply it: what undo goes back by.
    pub first_applying: Option<u64>,
    pub intent: Option<serde_json::Value>,
    pub hash: Option<String>,
    pub change: Vec<Change>,
    pub notes: Vec<String>,
    pub output: Option<serde_json::Value>,
    pub failure: Option<Failure>,
    pub question: Option<String>,
    pub retry_at: Option<jiff::Timestamp>,
    pub approvals: BTreeSet<String>,
    pub rejected: Option<String>,
    pub expires_at: Option<jiff::Timestamp>,
    pub skipped: Option<String>,
    pub undo: UndoState,
    pub started_at: Option<jiff::Timestamp>,
    pub ended_at: Option<jiff::Timestamp>,
}

impl Default for StepState {
    fn default() -> Self {
        Self {
            status: StepStatus::Pending,
            phase: Phase::New,
            attempts: 0,
            first_applying: None,
            intent: None,
            hash: None,
            change: Vec::new(),
            notes: Vec::new(),
            output: None,
            failure: None,
            question: None,
            retry_at: None,
            approvals: BTreeSet::new(),
            rejected: None,
            expires_at: None,
            skipped: None,
            undo: UndoState::Not,
            started_at: None,
            ended_at: None,
        }
    }
}

impl StepState {
    fn begin(&mut self, at: jiff::Timestamp) {
        self.started_at.get_or_insert(at);
        self.status = StepStatus::Running;
    }
    fn end(&mut self, at: jiff::Timestamp, status: StepStatus) {
        self.started_at.get_or_insert(at);
        self.ended_at = Some(at);
        self.status = status;
        self.phase = Phase::Ended;
        self.retry_at = None;
        self.question = None;
    }
    fn again(&mut self) {
        self.phase = Phase::New;
        self.status = StepStatus::Pending;
        self.ended_at = None;
        self.retry_at = None;
        self.question = None;
    }
}

impl RunState {
    /// The state after a run's first event; `None` when it is not one.
    #[must_use]
    pub fn new(first: &Event) -> Option<Self> {
        let Body::RunCreated { plan, drill } = &first.body else { return None };
        let steps = plan.steps.iter().map(|step| (step.id.clone(), StepState::default())).collect();
        Some(Self {
            plan: (**plan).clone(),
            drill: drill.clone(),
            status: RunStatus::Running,
            seq: first.seq,
            steps,
            paused: None,
            paused_by: None,
            aborting: None,
            stopping: None,
            reason: None,
            started_at: Some(first.at),
            finished_at: None,
        })
    }

    /// The state after all of these events.
    #[must_use]
    pub fn of<'a>(events: impl IntoIterator<Item = &'a Event>) -> Option<Self> {
        let mut events = events.into_iter();
        let mut state = Self::new(events.next()?)?;
        for event in events {
            fold(&mut state, event);
        }
        Some(state)
    }

    /// A person holds the run: then nothing is waited for, either.
    #[must_use]
    pub fn interrupted(&self) -> bool {
        self.paused.is_some() && self.paused_by.is_none()
    }

    /// The steps whose wheel this run holds: what they took must still be there whenever something is changed.
    #[must_use]
    pub fn wheels(&self) -> Vec<&StepId> {
        let place = |known: &StepState| {
            let intent = known.intent.as_ref()?;
            Some((intent.get("bucket")?.clone(), intent.get("region")?.clone()))
        };
        let named = |name: &'static str| {
            let steps = self.plan.steps.iter().filter(move |step| step.kind.uses() == name);
            steps.filter_map(|step| Some((&step.id, self.steps.get(&step.id)?)))
        };
        let done = |known: &StepState| matches!(known.status, StepStatus::Succeeded | StepStatus::SucceededWithWarning);
        let released: Vec<_> = named(WHEEL_RELEASE).filter(|(_, known)| done(known)).filter_map(|(_, known)| place(known)).collect();
        let stands = |known: &StepState| {
            done(known)
                && matches!(known.undo, UndoState::Not | UndoState::Undoing)
                && place(known).is_some_and(|at| !released.contains(&at))
        };
        named(WHEEL_TAKE).filter(|(_, known)| stands(known)).map(|(id, _)| id).collect()
    }

    #[must_use]
    pub fn step(&self, id: &StepId) -> Option<&StepState> {
        self.steps.get(id)
    }
}

/// Takes one more event in.
pub fn fold(state: &mut RunState, event: &Event) {
    state.seq = event.seq;
    if let Some(id) = step_of(&event.body) {
        let planned = state.plan.step(id);
        let policy = planned.map(|step| step.on_failure);
        let repeatable = planned.is_some_and(|step| matches!(step.kind, StepKind::Action { effect: Effect::Repeatable, .. }));
        if let Some(step) = state.steps.get_mut(id) {
            // Not seen, but the same intent twice is once: what was prepared still stands.
            let unseen = matches!(event.body, Body::Observed { seen: Seen::CannotTell { .. }, .. });
            if unseen && repeatable && step.phase != Phase::Applied {
                step.phase = Phase::Prepared;
            }
            fold_step(step, event);
            if matches!(event.body, Body::StepEnded { .. }) && step.status.is_failure() {
                hold_or_stop(state, id.clone(), policy);
            }
        }
        if matches!(event.body, Body::RetryRequested { .. } | Body::SkipRequested { .. }) {
            relieve(state, id);
        }
        return;
    }
    match &event.body {
        Body::Claimed { .. } => {
            state.status = RunStatus::Running;
            for step in state.steps.values_mut().filter(|step| step.phase == Phase::Prepared) {
                step.again();
            }
        }
        Body::PauseRequested { reason } => {
            state.paused = Some(reason.clone());
            state.paused_by = None;
        }
        Body::Resumed => {
            state.paused = None;
            state.paused_by = None;
            state.status = RunStatus::Running;
        }
        Body::AbortRequested { reason } => state.aborting = Some(reason.clone()),
        Body::Parked { status, reason } => {
            state.status = *status;
            state.reason = Some(reason.clone());
        }
        Body::RunFinished { status, reason } => {
            state.status = *status;
            state.reason.clone_from(reason);
            state.finished_at = Some(event.at);
        }
        _ => {}
    }
}

fn hold_or_stop(state: &mut RunState, id: StepId, policy: Option<OnFailure>) {
    match policy {
        // A pause that a person asked for stays that person's.
        Some(OnFailure::Pause) if state.paused.is_some() => {}
        Some(OnFailure::Pause) => {
            state.paused = Some(format!("step `{id}` failed"));
            state.paused_by = Some(id);
        }
        Some(OnFailure::Undo) => state.stopping = Some(Stopping { because: id, undo: true }),
        Some(OnFailure::Stop | OnFailure::Continue) | None => {
            state.stopping.get_or_insert(Stopping { because: id, undo: false });
        }
    }
}

/// A person took care of one step: what that step alone held up goes on, what others hold up does not.
fn relieve(state: &mut RunState, id: &StepId) {
    if state.paused_by.as_ref() == Some(id) {
        state.paused = None;
        state.paused_by = None;
    }
    if state.stopping.is_none() {
        return;
    }
    let failed = |step: &&PlanStep| state.steps.get(&step.id).is_some_and(|known| known.status.is_failure());
    let mut stops: Vec<_> = state.plan.steps.iter().filter(failed).collect();
    stops.retain(|step| matches!(step.on_failure, OnFailure::Stop | OnFailure::Undo));
    let first = stops.iter().find(|step| step.on_failure == OnFailure::Undo).or(stops.first());
    state.stopping = first.map(|step| Stopping { because: step.id.clone(), undo: step.on_failure == OnFailure::Undo });
}

fn fold_step(step: &mut StepState, event: &Event) {
    let at = event.at;
    match &event.body {
        Body::Skipped { reason, .. } => {
            step.skipped = Some(reason.clone());
            step.end(at, StepStatus::Skipped);
        }
        Body::SkipRequested { reason, by, .. } => {
            step.skipped = Some(format!("skipped by {by}: {reason}"));
            step.end(at, StepStatus::Skipped);
        }
        Body::Prepared { intent, hash, change, notes, .. } => {
            step.begin(at);
            step.phase = Phase::Prepared;
            step.intent = Some(intent.clone());
            step.hash = Some(hash.clone());
            step.change.clone_from(change);
            step.notes.clone_from(notes);
        }
        Body::Refused { attempt, failure, .. } => {
            step.begin(at);
            step.attempts = *attempt;
            step.failure = Some(failure.clone());
            step.phase = Phase::New;
        }
        Body::ApprovalAsked { over, expires_at, .. } => {
            step.begin(at);
            step.phase = Phase::Asked;
            step.status = StepStatus::WaitingApproval;
            step.hash = Some(over.clone());
            step.expires_at = Some(*expires_at);
            step.approvals.clear();
            step.rejected = None;
        }
        Body::Approved { by, over, .. } if step.phase == Phase::Asked && step.hash.as_ref() == Some(over) => {
            // One that came too late counts for nothing, whenever the run is gone on with.
            if step.expires_at.is_none_or(|end| at < end) {
                step.approvals.insert(by.clone());
            }
        }
        Body::Rejected { by, reason, .. } => step.rejected = Some(format!("rejected by {by}: {reason}")),
        Body::Applying { attempt, .. } => {
            step.begin(at);
            step.first_applying.get_or_insert(event.seq);
            step.attempts = *attempt;
            step.retry_at = None;
            step.phase = Phase::Applying;
        }
        Body::Applied { output, .. } => {
            step.output = Some(output.clone());
            step.phase = Phase::Applied;
        }
        _ => fold_outcome(step, event),
    }
}

fn fold_outcome(step: &mut StepState, event: &Event) {
    let at = event.at;
    match &event.body {
        Body::ApplyFailed { failure, .. } => {
            step.failure = Some(failure.clone());
            step.phase = Phase::New;
        }
        Body::ApplyUnknown { failure, .. } => {
            step.failure = Some(failure.clone());
            step.phase = Phase::Unknown(failure.clone());
        }
        // It certainly did not happen: what was prepared still stands.
        Body::Observed { seen: Seen::Absent, .. } if step.phase != Phase::Applied => step.phase = Phase::Prepared,
        Body::Verified { output, warnings, .. } => {
            step.output = Some(output.clone());
            step.failure = None;
            step.notes.extend(warnings.iter().cloned());
            step.end(at, if warnings.is_empty() { StepStatus::Succeeded } else { StepStatus::SucceededWithWarning });
        }
        Body::RetryAt { at, .. } => {
            step.retry_at = Some(*at);
            step.phase = Phase::New;
            step.status = StepStatus::Ready;
        }
        Body::StepEnded { status, failure, .. } => {
            if failure.is_some() {
                step.failure.clone_from(failure);
            }
            step.end(at, *status);
        }
        Body::Indeterminate { question, .. } => {
            step.status = StepStatus::Indeterminate;
            step.phase = Phase::Held;
            step.question = Some(question.clone());
        }
        Body::Resolved { done: true, by, reason, .. } => {
            step.notes.push(format!("resolved as done by {by}: {reason}"));
            step.end(at, StepStatus::SucceededWithWarning);
        }
        Body::Resolved { done: false, .. } | Body::RetryRequested { .. } => {
            step.attempts = 0;
            step.again();
        }
        Body::Undoing { .. } => step.undo = UndoState::Undoing,
        Body::Undone { .. } => {
            step.undo = UndoState::Undone;
            step.status = StepStatus::Undone;
        }
        Body::UndoFailed { failure, .. } => {
            step.undo = UndoState::Failed;
            step.failure = Some(failure.clone());
        }
        Body::UndoLeft { .. } => step.undo = UndoState::Left,
        _ => {}
    }
}

/// The step that an event is about.
#[must_use]
pub fn step_of(body: &Body) -> Option<&StepId> {
    match body {
        Body::Skipped { step, .. }
        | Body::Prepared { step, .. }
        | Body::Refused { step, .. }
        | Body::ApprovalAsked { step, .. }
        | Body::Approved { step, .. }
        | Body::Rejected { step, .. }
        | Body::Applying { step, .. }
        | Body::Applied { step, .. }
        | Body::ApplyFailed { step, .. }
        | Body::ApplyUnknown { step, .. }
        | Body::Observed { step, .. }
        | Body::Verified { step, .. }
        | Body::RetryAt { step, .. }
        | Body::StepEnded { step, .. }
        | Body::Indeterminate { step, .. }
        | Body::Resolved { step, .. }
        | Body::RetryRequested { step, .. }
        | Body::SkipRequested { step, .. }
        | Body::Undoing { step }
        | Body::Undone { step }
        | Body::UndoFailed { step, .. }
        | Body::UndoLeft { step, .. } => Some(step),
        _ => None,
    }
}
