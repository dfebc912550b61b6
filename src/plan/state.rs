//! What is known of a run: the fold of its events. Nothing about a run lives anywhere else.
//!
//! Each step is in one [`Phase`]. The two that matter after a crash: `Prepared` without `Applying` has
//! certainly not been applied, so a new owner prepares it afresh; `Applying` without an outcome may
//! have been, so it is observed before anything else.

use super::{approval, planted::*, undo::Tries};
use crate::model::{effect::*, event::*, ids::*, measured, plan::*, runbook::OnFailure, status::*};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

#[derive(Clone, Debug, PartialEq)]
pub struct RunState {
    /// Shared with whoever else goes by the same plan: thousands of open runs may.
    pub plan: Arc<Plan>,
    pub drill: Option<RunId>,
    /// Who started it: the actor of its first event.
    pub initiator: String,
    pub status: RunStatus,
    /// The last event folded in.
    pub seq: u64,
    /// Those that nothing was said of share one state.
    pub steps: BTreeMap<StepId, Arc<StepState>>,
    /// An operator, or a step that failed with `pause`, holds the run.
    pub paused: Option<String>,
    /// The step that holds it; `None` when a person does.
    pub paused_by: Option<StepId>,
    pub aborting: Option<String>,
    /// The live failover that it makes way for.
    pub made_way: Option<RunId>,
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

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Nothing was tried, or nothing stands of what was.
    #[default]
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

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UndoState {
    #[default]
    Not,
    Undoing,
    Undone,
    /// Left to a person, or nothing to undo.
    Left,
    Failed,
}

/// What people were asked: this very request is what they sign.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// Its place in the chain.
    pub seq: u64,
    pub over: String,
    pub expires_at: jiff::Timestamp,
    pub facts: BTreeMap<String, serde_json::Value>,
}

/// Who let the run go on past what, and why.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Override {
    pub by: String,
    pub reason: String,
    /// What the step was when it was overridden.
    pub was: String,
    /// Was it signed with a key that the estate lists?
    pub signed: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepState {
    pub status: StepStatus,
    pub phase: Phase,
    /// Attempts that were begun, refusals included.
    pub attempts: u32,
    /// The other side took the last attempt, and nothing has shown since that it came to nothing.
    pub accepted: bool,
    /// An earlier attempt, that may be sent twice, was not looked for long enough, or could not be seen: it may stand.
    pub doubt: bool,
    /// The event that first began to apply it: what undo goes back by.
    pub first_applying: Option<u64>,
    /// With what was measured when it was prepared.
    pub intent: Option<serde_json::Value>,
    /// Of the intent without that: what an approval is over.
    pub hash: Option<String>,
    pub change: Vec<Change>,
    pub notes: Vec<String>,
    /// What its action wanted heard of a success.
    pub warnings: Vec<String>,
    pub output: Option<serde_json::Value>,
    pub failure: Option<Failure>,
    pub question: Option<String>,
    pub retry_at: Option<jiff::Timestamp>,
    /// When that was decided: before it no clock that has not been set back can stand.
    pub retry_from: Option<jiff::Timestamp>,
    pub approvals: BTreeSet<String>,
    pub rejected: Option<String>,
    pub expires_at: Option<jiff::Timestamp>,
    pub asked: Option<Asked>,
    /// The facts were within their bounds when the last approval was there.
    pub confirmed: bool,
    pub overridden: Option<Override>,
    /// Who said what had happened, when it was not known.
    pub resolved: Option<String>,
    /// The event that last ended it, or asked: what an override is about.
    pub mark: u64,
    pub skipped: Option<String>,
    pub undo: UndoState,
    pub undo_tries: Tries,
    pub started_at: Option<jiff::Timestamp>,
    pub ended_at: Option<jiff::Timestamp>,
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
        self.doubt = false;
        self.retry_at = None;
        self.question = None;
    }
    /// What was asked counts no more.
    fn withdraw(&mut self) {
        self.asked = None;
        if !planted(Defect::ApprovalReplayed) {
            self.approvals.clear();
        }
        self.rejected = None;
        self.confirmed = false;
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
        let untouched = Arc::<StepState>::default();
        let steps = plan.steps.iter().map(|step| (step.id.clone(), untouched.clone())).collect();
        Some(Self {
            plan: plan.clone(),
            drill: drill.clone(),
            initiator: first.actor.clone(),
            status: RunStatus::Running,
            seq: first.seq,
            steps,
            paused: None,
            paused_by: None,
            aborting: None,
            made_way: None,
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

    /// The steps that a person let the run go on past, in the order of the file.
    #[must_use]
    pub fn overridden(&self) -> Vec<(&StepId, &Override)> {
        self.plan.steps.iter().filter_map(|step| Some((&step.id, self.steps.get(&step.id)?.overridden.as_ref()?))).collect()
    }

    /// The steps whose wheel this run holds: what they took must still be there whenever something is changed.
    #[must_use]
    pub fn wheels(&self) -> Vec<&StepId> {
        let place = |known: &StepState| {
            let intent = known.intent.as_ref()?;
            let at = ["bucket", "region", "database"].map(|part| intent.get(part).cloned());
            at.iter().any(Option::is_some).then_some(at)
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
        self.steps.get(id).map(|known| &**known)
    }
}

/// Takes one more event in.
pub fn fold(state: &mut RunState, event: &Event) {
    state.seq = event.seq;
    if !counts(state, event) {
        return;
    }
    if let Some(id) = step_of(&event.body) {
        let planned = state.plan.step(id);
        let policy = planned.map(|step| step.on_failure);
        let effect = planned.and_then(|step| match step.kind {
            StepKind::Action { effect, .. } => Some(effect),
            StepKind::Approval(_) => None,
        });
        if let Some(step) = state.steps.get_mut(id).map(Arc::make_mut) {
            // Not seen, but the same intent twice is once: what was prepared still stands.
            let unseen = matches!(event.body, Body::Observed { seen: Seen::CannotTell { .. }, .. });
            if let Body::Observed { seen, .. } = &event.body {
                let early = matches!((seen, &step.phase), (Seen::Absent | Seen::CannotTell { .. }, Phase::Applying));
                let blind = matches!((seen, &step.phase), (Seen::CannotTell { .. }, Phase::Unknown(_)));
                step.doubt = effect == Some(Effect::Repeatable) && (early || blind);
            }
            if unseen && effect == Some(Effect::Repeatable) && step.phase != Phase::Applied {
                step.phase = Phase::Prepared;
            }
            // It was accepted and took too long: trying again is looking again, since it cannot be sent twice.
            let waits = effect == Some(Effect::Observable) && step.accepted && matches!(event.body, Body::RetryRequested { .. });
            fold_step(step, event);
            if matches!(event.body, Body::StepEnded { .. } | Body::ApprovalAsked { .. } | Body::Indeterminate { .. }) {
                step.mark = event.seq;
            }
            if matches!(event.body, Body::Overridden { .. }) && planned.is_some_and(|step| step.approve.is_some()) {
                // The guard of this step gave way; the step itself is still to be done.
                step.withdraw();
                step.again();
            }
            if waits {
                step.accepted = true;
                step.status = StepStatus::Running;
                step.phase = Phase::Applied;
            }
            if matches!(event.body, Body::StepEnded { .. }) && step.status.is_failure() {
                hold_or_stop(state, id.clone(), policy);
            }
        }
        if matches!(event.body, Body::RetryRequested { .. } | Body::SkipRequested { .. } | Body::Overridden { .. }) {
            relieve(state, id);
        }
        return;
    }
    fold_run(state, event);
}

/// What is about the run as a whole.
fn fold_run(state: &mut RunState, event: &Event) {
    match &event.body {
        Body::Claimed { .. } => {
            state.status = RunStatus::Running;
            // Those that this changes nothing of stay shared.
            let touched = |known: &&mut Arc<StepState>| known.phase != Phase::New || known.confirmed || known.undo != UndoState::Not;
            for planned in &state.plan.steps {
                let Some(step) = state.steps.get_mut(&planned.id).filter(touched).map(Arc::make_mut) else { continue };
                // What waits for its approval is prepared afresh as well: the approval stands if it comes to the same.
                let asks = step.phase == Phase::Asked && planned.approve.is_some();
                if step.phase == Phase::Prepared && step.doubt {
                    step.phase = Phase::Applying;
                } else if step.phase == Phase::Prepared || asks {
                    step.again();
                }
                if step.phase != Phase::Ended {
                    step.confirmed = false;
                }
                step.undo_tries.taken_over();
                if planted(Defect::UndoTwice) && step.undo == UndoState::Undone {
                    step.undo = UndoState::Not;
                }
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
        Body::MakeWay { to } => state.made_way = Some(to.clone()),
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

/// An approval or an override without its signature, where one is needed, is as if it were not there.
fn counts(state: &RunState, event: &Event) -> bool {
    match &event.body {
        Body::Approved { step, by, signed, .. } => approval::check(state, &event.run, step, by, signed.as_ref(), event.at).is_ok(),
        Body::Overridden { step, by, reason, signed, .. } => {
            approval::check_override(state, &event.run, step, by, reason, signed.as_ref()).is_ok()
        }
        _ => true,
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
        Body::Prepared { intent, hash, measured: found, change, notes, .. } => {
            step.begin(at);
            step.phase = Phase::Prepared;
            if step.asked.as_ref().is_some_and(|asked| asked.over == *hash) {
                step.phase = Phase::Asked;
                step.status = StepStatus::WaitingApproval;
            }
            step.intent = Some(measured::put_back(intent.clone(), found.as_ref()));
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
        Body::Applying { attempt, .. } => {
            step.begin(at);
            step.first_applying.get_or_insert(event.seq);
            step.attempts = *attempt;
            step.retry_at = None;
            step.accepted = false;
            step.phase = Phase::Applying;
        }
        Body::Applied { output, .. } => {
            step.output = Some(output.clone());
            step.accepted = true;
            step.doubt = false;
            step.phase = Phase::Applied;
        }
        _ => fold_outcome(step, event),
    }
}

/// What people are asked, and what they say.
fn fold_guard(step: &mut StepState, event: &Event) {
    let at = event.at;
    match &event.body {
        Body::ApprovalAsked { over, expires_at, facts, .. } => {
            step.asked = Some(Asked { seq: event.seq, over: over.clone(), expires_at: *expires_at, facts: facts.clone() });
            step.confirmed = false;
            step.begin(at);
            step.phase = Phase::Asked;
            step.status = StepStatus::WaitingApproval;
            step.hash = Some(over.clone());
            step.expires_at = Some(*expires_at);
            if !planted(Defect::ApprovalReplayed) {
                step.approvals.clear();
            }
            step.rejected = None;
        }
        // One that came too late counts for nothing, whenever the run is gone on with.
        Body::Approved { by, over, .. }
            if step.phase == Phase::Asked && step.hash.as_ref() == Some(over) && step.expires_at.is_none_or(|end| at < end) =>
        {
            step.approvals.insert(by.clone());
        }
        Body::Rejected { by, reason, .. } => step.rejected = Some(format!("rejected by {by}: {reason}")),
        Body::FactsConfirmed { .. } => step.confirmed = true,
        Body::ApprovalVoid { why, .. } => {
            step.notes.push(format!("the approval is void: {why}"));
            step.withdraw();
            step.again();
        }
        Body::ApprovalSkipped { reason, .. } => step.notes.push(format!("not approved: {reason}")),
        Body::Overridden { by, reason, was, output, signed, .. } => {
            step.overridden = Some(Override { by: by.clone(), reason: reason.clone(), was: was.clone(), signed: signed.is_some() });
            step.skipped = Some(format!("overridden by {by} ({was}): {reason}"));
            step.output.clone_from(output);
            step.end(at, StepStatus::Skipped);
        }
        _ => {}
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
            step.warnings.clone_from(warnings);
            let clean = warnings.is_empty() && step.overridden.is_none();
            step.end(at, if clean { StepStatus::Succeeded } else { StepStatus::SucceededWithWarning });
        }
        Body::RetryAt { at: due, .. } => {
            step.retry_at = Some(*due);
            step.retry_from = Some(at);
            step.phase = Phase::New;
            step.status = StepStatus::Ready;
        }
        Body::StepEnded { status, failure, .. } => {
            // What became of an earlier request is not what became of this one.
            if failure.is_some() || *status == StepStatus::Succeeded {
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
            step.resolved = Some(format!("done, says {by}: {reason}"));
            step.end(at, StepStatus::SucceededWithWarning);
        }
        Body::Resolved { done: false, by, reason, .. } => {
            step.resolved = Some(format!("not done, says {by}: {reason}"));
            step.accepted = false;
            step.doubt &= matches!(event.body, Body::RetryRequested { .. });
            step.attempts = 0;
            step.again();
        }
        Body::RetryRequested { .. } => {
            step.accepted = false;
            step.withdraw();
            step.attempts = 0;
            step.again();
        }
        Body::Undoing { .. } | Body::UndoRetry { .. } | Body::Undone { .. } | Body::UndoFailed { .. } | Body::UndoLeft { .. } => {
            fold_undo(step, event);
        }
        _ => fold_guard(step, event),
    }
}

fn fold_undo(step: &mut StepState, event: &Event) {
    step.undo_tries.fold(event);
    match &event.body {
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
        | Body::FactsConfirmed { step, .. }
        | Body::ApprovalVoid { step, .. }
        | Body::ApprovalSkipped { step, .. }
        | Body::Overridden { step, .. }
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
        | Body::Undoing { step, .. }
        | Body::UndoRetry { step, .. }
        | Body::Undone { step }
        | Body::UndoFailed { step, .. }
        | Body::UndoLeft { step, .. } => Some(step),
        _ => None,
    }
}
