//! HANDS. Carries out one decision after another: appends, lets the action act, appends what came of it.
//!
//! One loop owns a run. It asks [`crate::plan::decide`] what may be begun, journals the intent of each
//! (durable before the effect), and hands the effect to a task; the task never touches the journal, it
//! reports back to the loop. So there is one writer, and whatever kills the process leaves an open
//! attempt that the next owner observes. [`work`] is what the tasks do; [`inbox`] what operators may say.

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod found_tests;
pub mod inbox;
#[cfg(test)]
pub(crate) mod sim;
pub mod work;

use crate::journal::{Claim, Draft, Journal, JournalError, Stored};
use crate::model::{event::*, ids::*, plan::*, status::*};
use crate::plan::{
    decide::{AfterFailure, Decision, after_failure, decide},
    planted::{Defect, planted},
    state::{Phase, RunState, fold},
};
use crate::providers::{clock::Clock, port::WorldWrite};
use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{sync::watch, task::JoinSet};
use work::{Report, Work};

/// Why a run is paused that was paused because its process was told to stop.
pub const INTERRUPTED: &str = "interrupted (Ctrl-C or SIGTERM)";
/// How often the inbox is looked into.
const INBOX: Duration = Duration::from_millis(200);
/// How long an append is tried again while the store is in trouble, before the process gives the run up.
const APPEND_PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("the first event of {0} is not the creation of a run")]
    NotARun(RunId),
    #[error("the run's folder {folder} cannot be made: {why}")]
    Scratch { folder: String, why: String },
}

/// What an engine needs besides the run.
#[derive(Clone)]
pub struct Engine {
    pub journal: Arc<dyn Journal>,
    pub world: Arc<dyn WorldWrite>,
    pub clock: Arc<dyn Clock>,
    /// Who writes: `muster@host:pid`.
    pub actor: String,
    /// Where a run may keep files on this machine.
    pub scratch: PathBuf,
    /// Every event as it becomes durable.
    pub listener: Arc<dyn Fn(&Stored) + Send + Sync>,
    /// Set by Ctrl-C: settle what is in flight, pause.
    pub interrupt: watch::Receiver<bool>,
}

/// How a run was left.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub state: RunState,
    /// The hash of its last event.
    pub head: String,
}

impl Engine {
    /// Begins a run: its chain, its locks and its first event, all or nothing.
    pub async fn create(&self, plan: Plan, drill: Option<RunId>) -> Result<(Claim, Stored), EngineError> {
        let id = RunId(self.clock.new_id());
        let chain = crate::journal::NewChain {
            id,
            kind: crate::journal::ChainKind::Run,
            name: plan.runbook.to_string(),
            parent: drill.clone(),
            locks: plan.locks.clone(),
        };
        let first = self.draft(Body::RunCreated { plan: Box::new(plan), drill });
        let (claim, stored) = self.journal.create(chain, &self.actor, first).await?;
        (self.listener)(&stored);
        Ok((claim, stored))
    }

    /// Carries a run on until it ends or a person must act. `resume` lifts a pause.
    pub async fn carry_on(&self, claim: Claim, resume: bool) -> Result<Outcome, EngineError> {
        let events = self.journal.load(&claim.run, 0).await?;
        let head = events.last().map(|stored| stored.hash.clone()).unwrap_or_default();
        let state = RunState::of(events.iter().map(|stored| &stored.event)).ok_or_else(|| EngineError::NotARun(claim.run.clone()))?;
        if state.finished_at.is_some() {
            return Ok(Outcome { state, head });
        }
        let mut owner = Owner {
            engine: self.clone(),
            claim,
            state,
            head,
            in_flight: BTreeSet::new(),
            tasks: JoinSet::new(),
            begun: HashMap::new(),
            owned: Arc::new(AtomicBool::new(true)),
            waiting: watch::channel(false).0,
            reading: watch::channel(false).0,
        };
        let folder = self.scratch.join(owner.claim.run.as_str());
        std::fs::create_dir_all(&folder).map_err(|e| EngineError::Scratch { folder: folder.display().to_string(), why: e.to_string() })?;
        let mut begin = vec![Body::Claimed { owner: self.actor.clone() }];
        begin.extend(resume.then_some(Body::Resumed));
        owner.append(begin).await?;
        let outcome = owner.work().await;
        owner.owned.store(false, Ordering::SeqCst);
        let Owner { claim, state, head, .. } = owner;
        self.journal.release(claim).await;
        outcome.map(|()| Outcome { state, head })
    }

    fn draft(&self, body: Body) -> Draft {
        Draft { at: self.clock.now(), actor: self.actor.clone(), body }
    }
}

/// The one loop that owns a run.
struct Owner {
    engine: Engine,
    claim: Claim,
    state: RunState,
    head: String,
    in_flight: BTreeSet<StepId>,
    tasks: JoinSet<(StepId, Report)>,
    /// What each task is about, should it die.
    begun: HashMap<tokio::task::Id, (StepId, Work)>,
    /// False once the store refused us: every permit fails from then on.
    owned: Arc<AtomicBool>,
    /// True tells tasks that only wait to stop waiting, and tasks that only read to stop reading.
    waiting: watch::Sender<bool>,
    reading: watch::Sender<bool>,
}

impl Owner {
    async fn work(&mut self) -> Result<(), EngineError> {
        loop {
            if !self.claim.hold.permits(self.engine.clock.monotonic()) {
                return self.let_go().await;
            }
            self.read_inbox().await?;
            self.heed_interrupt().await?;
            let decisions = decide(&self.state, &self.in_flight, self.engine.clock.now());
            let mut wake = None;
            let mut moved = false;
            for decision in decisions {
                match decision {
                    Decision::WakeAt(at) => wake = Some(wake.map_or(at, |other: jiff::Timestamp| other.min(at))),
                    Decision::Park { status, reason } => {
                        self.append(vec![Body::Parked { status, reason }]).await?;
                        return Ok(());
                    }
                    Decision::Finish { status, reason } => {
                        self.append(vec![Body::RunFinished { status, reason }]).await?;
                        return Ok(());
                    }
                    other => {
                        // A step that fails may stop the run: what else was to be begun is asked for anew.
                        let ends = matches!(&other, Decision::End { status, .. } if *status != StepStatus::Cancelled);
                        self.carry_out(other).await?;
                        moved = true;
                        if ends {
                            break;
                        }
                    }
                }
            }
            if !moved {
                self.wait(wake).await?;
            }
        }
    }

    /// The lease has run out: nothing is begun any more. What is under way is seen to its end, and put on
    /// record if nobody has taken the run over meanwhile.
    async fn let_go(&mut self) -> Result<(), EngineError> {
        self.waiting.send_replace(true);
        self.reading.send_replace(true);
        while let Some(done) = self.tasks.join_next_with_id().await {
            self.settle(done).await?;
        }
        Err(JournalError::Lapsed { run: self.claim.run.clone() }.into())
    }

    /// Until a task reports, it is time for a retry, or the inbox is due.
    async fn wait(&mut self, wake: Option<jiff::Timestamp>) -> Result<(), EngineError> {
        let until = wake.map(|at| self.engine.clock.now().duration_until(at));
        let until = until.and_then(|left| Duration::try_from(left).ok()).unwrap_or(INBOX).min(INBOX);
        let clock = self.engine.clock.clone();
        // In this order, so that a simulated run can be replayed.
        tokio::select! {
            biased;
            Some(done) = self.tasks.join_next_with_id(), if !self.in_flight.is_empty() => self.settle(done).await,
            () = clock.sleep(until) => Ok(()),
        }
    }

    async fn heed_interrupt(&mut self) -> Result<(), EngineError> {
        if *self.engine.interrupt.borrow() && !self.state.interrupted() {
            self.append(vec![Body::PauseRequested { reason: INTERRUPTED.to_owned() }]).await?;
        }
        self.waiting.send_replace(self.state.interrupted());
        self.reading.send_replace(self.state.interrupted() || self.state.aborting.is_some());
        Ok(())
    }

    async fn read_inbox(&mut self) -> Result<(), EngineError> {
        let letters = match self.engine.journal.letters(&self.claim.run).await {
            Ok(letters) => letters,
            // What people ask can wait for the store. What is under way must not be dropped because of it.
            Err(JournalError::Store { place, why }) => {
                tracing::warn!("the inbox in {place} cannot be read ({why})");
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        for letter in letters {
            let bodies = inbox::bodies(&self.state, &letter.actor, &letter.command, self.engine.clock.now()).unwrap_or_default();
            if !bodies.is_empty() {
                self.append_as(&letter.actor, bodies).await?;
            }
            self.engine.journal.taken(letter.id).await?;
        }
        Ok(())
    }

    async fn carry_out(&mut self, decision: Decision) -> Result<(), EngineError> {
        match decision {
            Decision::SkipApproval(step) => {
                self.append(vec![Body::Skipped { step, reason: "a drill does not ask for approval".to_owned() }]).await
            }
            Decision::Ask(step) => self.ask(step).await,
            Decision::End { step, status, failure } => self.append(vec![Body::StepEnded { step, status, failure }]).await,
            Decision::LeaveUndo { step, reason } => self.append(vec![Body::UndoLeft { step, reason }]).await,
            Decision::Prepare(step) => {
                self.begin(step, Work::Prepare);
                Ok(())
            }
            Decision::Apply { step, attempt } => {
                let key = work::key(&self.claim.run, &step);
                let applying = Body::Applying { step: step.clone(), attempt, epoch: self.claim.epoch, key };
                if planted(Defect::EffectBeforeIntent) {
                    self.begin(step, Work::Apply { attempt });
                    return self.append(vec![applying]).await;
                }
                self.append(vec![applying]).await?;
                self.begin(step, Work::Apply { attempt });
                Ok(())
            }
            Decision::Observe(step) => {
                let known = self.state.step(&step).map(|known| known.phase.clone());
                self.begin(step, Work::Observe { accepted: known == Some(Phase::Applied) });
                Ok(())
            }
            Decision::Undo(step) => {
                self.append(vec![Body::Undoing { step: step.clone() }]).await?;
                self.begin(step, Work::Undo);
                Ok(())
            }
            Decision::WakeAt(_) | Decision::Park { .. } | Decision::Finish { .. } => Ok(()),
        }
    }

    async fn ask(&mut self, step: StepId) -> Result<(), EngineError> {
        let Some(StepKind::Approval(approval)) = self.state.plan.step(&step).map(|step| step.kind.clone()) else { return Ok(()) };
        let over = work::plan_digest(&self.state.plan);
        let expires_at = self.engine.clock.now() + approval.expires.signed();
        let asked = Body::ApprovalAsked { step, over, approvers: approval.approvers, expires_at, message: approval.message };
        self.append(vec![asked]).await
    }

    fn begin(&mut self, step: StepId, work: Work) {
        let told = work::Told { waiting: self.waiting.subscribe(), reading: self.reading.subscribe() };
        let Some(task) = work::task(&self.engine, &self.state, &self.claim, &step, work, &self.owned, told) else {
            return;
        };
        self.in_flight.insert(step.clone());
        let known = step.clone();
        let handle = self.tasks.spawn(async move { (step, task.await) });
        self.begun.insert(handle.id(), (known, work));
    }

    /// Journals what a task reported.
    async fn settle(&mut self, done: Result<(tokio::task::Id, (StepId, Report)), tokio::task::JoinError>) -> Result<(), EngineError> {
        let (step, report) = match done {
            Ok((id, (step, report))) => {
                self.begun.remove(&id);
                (step, report)
            }
            // A defect of ours: what the task was about may or may not have happened.
            Err(died) => match self.begun.remove(&died.id()) {
                Some((step, work)) => (step, work::died(work, &died.to_string())),
                None => return Ok(()),
            },
        };
        self.in_flight.remove(&step);
        let bodies = self.outcome(&step, report);
        if bodies.is_empty() { Ok(()) } else { self.append(bodies).await }
    }

    fn outcome(&self, step: &StepId, report: Report) -> Vec<Body> {
        let (Some(planned), Some(known)) = (self.state.plan.step(step), self.state.step(step)) else { return Vec::new() };
        let jitter = 0.8 + 0.4 * self.engine.clock.jitter();
        let context = work::Context { planned, known, now: self.engine.clock.now() };
        work::bodies(&context, report, |after_ms| {
            let ms = std::time::Duration::from_millis(after_ms).mul_f64(jitter);
            self.engine.clock.now() + jiff::SignedDuration::try_from(ms).unwrap_or_default()
        })
    }

    async fn append(&mut self, bodies: Vec<Body>) -> Result<(), EngineError> {
        let actor = self.engine.actor.clone();
        self.append_as(&actor, bodies).await
    }

    /// Durable before anything that follows. A store in trouble is tried again for a while: nothing new is
    /// begun meanwhile, since this loop is the only one that begins anything.
    async fn append_as(&mut self, actor: &str, bodies: Vec<Body>) -> Result<(), EngineError> {
        let at = self.engine.clock.now();
        let drafts: Vec<_> = bodies.into_iter().map(|body| Draft { at, actor: actor.to_owned(), body }).collect();
        let begun = self.engine.clock.monotonic();
        let mut unheard = false;
        let stored = loop {
            let now = self.engine.clock.monotonic();
            let patient = now.saturating_sub(begun) < APPEND_PATIENCE && self.claim.hold.permits(now);
            match self.engine.journal.append(&self.claim, self.state.seq, drafts.clone()).await {
                Ok(stored) => break stored,
                Err(JournalError::Store { place, why }) if patient => {
                    tracing::warn!("the journal in {place} does not take what happened ({why}); trying again");
                    unheard = true;
                    self.engine.clock.sleep(INBOX).await;
                }
                // The store took it, and its answer was lost.
                Err(JournalError::Behind { .. }) if unheard && self.is_ours(&drafts).await? => {
                    break self.engine.journal.load(&self.claim.run, self.state.seq).await?;
                }
                Err(error) => {
                    self.owned.store(false, Ordering::SeqCst);
                    return Err(error.into());
                }
            }
        };
        for one in &stored {
            fold(&mut self.state, &one.event);
            self.head.clone_from(&one.hash);
            (self.engine.listener)(one);
        }
        Ok(())
    }

    /// Is what follows our last event exactly what we tried to append, under our epoch?
    async fn is_ours(&self, drafts: &[Draft]) -> Result<bool, EngineError> {
        let there = self.engine.journal.load(&self.claim.run, self.state.seq).await?;
        let same = |(one, draft): (&Stored, &Draft)| {
            one.event.epoch == self.claim.epoch
                && one.event.body == draft.body
                && one.event.at == draft.at
                && one.event.actor == draft.actor
        };
        Ok(there.len() == drafts.len() && there.iter().zip(drafts).all(same))
    }
}

/// What follows a failed attempt, as events.
fn failed(
    planned: &PlanStep,
    step: &StepId,
    attempt: u32,
    failure: &crate::model::effect::Failure,
    retry: Retry,
    at: impl Fn(u64) -> jiff::Timestamp,
) -> Body {
    match after_failure(planned, attempt, retry.allowed, retry.timed_out, retry.hint_ms) {
        AfterFailure::Retry { after_ms } => Body::RetryAt { step: step.clone(), at: at(after_ms) },
        AfterFailure::End(status) => Body::StepEnded { step: step.clone(), status, failure: Some(failure.clone()) },
    }
}

/// What a failed attempt allows.
#[derive(Clone, Copy, Default)]
struct Retry {
    allowed: bool,
    timed_out: bool,
    hint_ms: Option<u64>,
}

/// Is this status one that a person must act on?
#[must_use]
pub fn needs_a_person(status: RunStatus) -> bool {
    matches!(status, RunStatus::Paused | RunStatus::WaitingApproval | RunStatus::Indeterminate)
}
