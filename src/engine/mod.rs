//! HANDS. Carries out one decision after another: appends, lets the action act, appends what came of it.
//!
//! One loop owns a run. It asks [`crate::plan::decide`] what may be begun, journals the intent of each
//! (durable before the effect), and hands the effect to a task; the task never touches the journal, it
//! reports back to the loop. So there is one writer, and whatever kills the process leaves an open
//! attempt that the next owner observes. [`work`] is what the tasks do; [`inbox`] what operators may say.
//!
//! Records with no effect between them share a commit: the outcome of one step goes with the intent of the
//! next. They are durable before anything is applied or undone, and before the loop waits for anything.

#[cfg(test)]
mod crash_tests;
pub mod durable;
pub mod facts;
#[cfg(test)]
mod found_tests;
pub mod inbox;
#[cfg(test)]
pub(crate) mod sim;
mod wheel;
pub mod work;

use crate::journal::{Bell, Claim, Draft, Journal, JournalError, Stored};
use crate::model::{effect::Effect, event::*, ids::*, plan::*, status::*};
use crate::plan::{
    decide::{AfterFailure, Decision, after_failure, decide},
    planted::{Defect, planted},
    state::{Phase, RunState, fold},
};
use crate::providers::{clock::Clock, port::WorldWrite};
use futures::FutureExt as _;
use std::{
    collections::{BTreeSet, HashMap},
    panic::AssertUnwindSafe,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};
use tokio::{sync::watch, task::JoinSet};
use work::{Report, Work};

/// Why a run is paused that was paused because its process was told to stop.
pub const INTERRUPTED: &str = "interrupted (Ctrl-C or SIGTERM)";
/// Why a drill goes past an approval.
const UNASKED: &str = "a drill does not ask for approval";
/// How often the inbox is looked into.
const INBOX: Duration = Duration::from_millis(200);
/// How often a loop that is called when there are letters looks up all the same: clocks are set now and then.
const IDLE: Duration = Duration::from_secs(5);
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
    pub async fn create(&self, plan: impl Into<Arc<Plan>>, drill: Option<RunId>) -> Result<(Claim, Stored), EngineError> {
        self.create_by(plan, drill, &self.actor).await
    }

    /// The same in a person's name: who starts a run is who may not approve it.
    pub async fn create_by(&self, plan: impl Into<Arc<Plan>>, drill: Option<RunId>, by: &str) -> Result<(Claim, Stored), EngineError> {
        self.create_as(RunId(self.clock.new_id()), plan.into(), drill, by).await
    }

    /// The same under an identifier that others have been told already.
    pub async fn create_as(&self, id: RunId, plan: Arc<Plan>, drill: Option<RunId>, by: &str) -> Result<(Claim, Stored), EngineError> {
        let chain = crate::journal::NewChain {
            id,
            kind: crate::journal::ChainKind::Run,
            name: plan.runbook.to_string(),
            parent: drill.clone(),
            locks: plan.locks.clone(),
        };
        let first = Draft { actor: by.to_owned(), ..self.draft(Body::RunCreated { plan, drill }) };
        let (claim, stored) = self.begin_chain(chain, first).await?;
        (self.listener)(&stored);
        Ok((claim, stored))
    }

    /// Carries a run on until it ends or a person must act. `resume` lifts a pause.
    pub async fn carry_on(&self, claim: Claim, resume: bool) -> Result<Outcome, EngineError> {
        let events = self.journal.load(&claim.run, 0).await?;
        self.carry_on_from(claim, events, resume).await
    }

    /// Carries a run on that this process has just created.
    pub async fn start(&self, claim: Claim, first: Stored) -> Result<Outcome, EngineError> {
        self.carry_on_from(claim, vec![first], false).await
    }

    /// The same, when all of its events were read under this very claim.
    pub async fn carry_on_from(&self, claim: Claim, events: Vec<Stored>, resume: bool) -> Result<Outcome, EngineError> {
        let head = events.last().map(|stored| stored.hash.clone()).unwrap_or_default();
        let state = RunState::of(events.iter().map(|stored| &stored.event)).ok_or_else(|| EngineError::NotARun(claim.run.clone()))?;
        // A run may be open for days: what is known of it is in the state.
        drop(events);
        if state.finished_at.is_some() {
            return Ok(Outcome { state, head });
        }
        let bell = self.journal.bell(&claim.run);
        let mut owner = Box::new(Owner {
            engine: self.clone(),
            // The bell rings by itself for what is waiting.
            looked: bell.as_ref().map(|_| self.clock.monotonic()),
            bell,
            claim,
            durable: state.seq,
            state,
            head,
            pending: Vec::new(),
            in_flight: BTreeSet::new(),
            tasks: JoinSet::new(),
            begun: HashMap::new(),
            owned: Arc::new(AtomicBool::new(true)),
            spent: None,
            waiting: watch::channel(false).0,
            reading: watch::channel(false).0,
        });
        let mut begin = vec![Body::Claimed { owner: self.actor.clone() }];
        begin.extend(resume.then_some(Body::Resumed));
        owner.note(begin);
        let outcome = owner.work().await;
        owner.owned.store(false, Ordering::SeqCst);
        let Owner { claim, state, head, .. } = *owner;
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
    /// Rings when there are letters; without one the inbox is looked into from time to time.
    bell: Option<Bell>,
    /// When it was last looked into.
    looked: Option<Duration>,
    /// With what is pending folded in.
    state: RunState,
    /// What is not durable yet. No effect is begun and nothing is waited for while there is any.
    pending: Vec<Draft>,
    /// The last event that is, and its hash.
    durable: u64,
    head: String,
    in_flight: BTreeSet<StepId>,
    tasks: JoinSet<(StepId, Report)>,
    /// What each task is about, should it die.
    begun: HashMap<tokio::task::Id, (StepId, Work)>,
    /// False once the store refused us: every permit fails from then on.
    owned: Arc<AtomicBool>,
    /// The store took no more, and took this only with what it keeps in reserve: why.
    spent: Option<String>,
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
            self.heed_interrupt();
            let decisions = decide(&self.state, &self.in_flight, self.engine.clock.now());
            let mut wake = None;
            let mut moved = false;
            for decision in decisions {
                match decision {
                    Decision::WakeAt(at) => wake = Some(wake.map_or(at, |other: jiff::Timestamp| other.min(at))),
                    Decision::Park { status, reason } => {
                        self.note(vec![Body::Parked { status, reason }]);
                        return self.flush().await;
                    }
                    Decision::Finish { status, reason } => {
                        self.note(vec![Body::RunFinished { status, reason }]);
                        return self.flush().await;
                    }
                    other => {
                        moved = true;
                        // A step that fails may stop the run: what else was to be begun is asked for anew.
                        let ends = matches!(&other, Decision::End { status, .. } if *status != StepStatus::Cancelled);
                        if self.carry_out(other).await? || ends {
                            // Something is known that was not when this was decided.
                            break;
                        }
                    }
                }
            }
            if !moved {
                self.flush().await?;
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
            self.settle(done);
        }
        self.flush().await?;
        Err(JournalError::Lapsed { run: self.claim.run.clone() }.into())
    }

    /// Until a task reports, it is time for a retry, there are letters, or everything is told to stop.
    async fn wait(&mut self, wake: Option<jiff::Timestamp>) -> Result<(), EngineError> {
        // The end of a lease is to be noticed as soon as a letter.
        let most = if self.bell.is_some() && !self.claim.hold.may_end() { IDLE } else { INBOX };
        let until = wake.map(|at| self.engine.clock.now().duration_until(at));
        let until = until.and_then(|left| Duration::try_from(left).ok()).unwrap_or(most).min(most);
        let (clock, mut interrupt) = (self.engine.clock.clone(), self.engine.interrupt.clone());
        let heeded = *interrupt.borrow();
        // In this order, so that a simulated run can be replayed.
        tokio::select! {
            biased;
            Some(done) = self.tasks.join_next_with_id(), if !self.in_flight.is_empty() => self.settle(done),
            () = rung(self.bell.as_ref()) => self.looked = None,
            () = work::truth(&mut interrupt), if !heeded => {}
            () = clock.sleep(until) => {}
        }
        Ok(())
    }

    fn heed_interrupt(&mut self) {
        if *self.engine.interrupt.borrow() && !self.state.interrupted() {
            self.note(vec![Body::PauseRequested { reason: INTERRUPTED.to_owned() }]);
        }
        let waiting = self.state.interrupted();
        let reading = waiting || self.state.aborting.is_some();
        for (tell, what) in [(&self.waiting, waiting), (&self.reading, reading)] {
            tell.send_if_modified(|told| std::mem::replace(told, what) != what);
        }
        if let Some(reason) = self.spent.clone().filter(|_| !self.state.interrupted()) {
            self.note(vec![Body::PauseRequested { reason }]);
        }
    }

    async fn read_inbox(&mut self) -> Result<(), EngineError> {
        let now = self.engine.clock.monotonic();
        let due = self.looked.is_none_or(|then| self.bell.is_none() && now.saturating_sub(then) >= INBOX);
        if !due {
            return Ok(());
        }
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
            let now = self.engine.clock.now();
            match inbox::bodies(&self.state, &self.claim.run, &letter.actor, &letter.command, now) {
                Ok(bodies) => self.note_as(&letter.actor, bodies),
                // It came too late, twice, or beside another: whoever gave it finds the answer on record.
                Err(why) => self.note(vec![inbox::refused(&letter.actor, &letter.command, why)]),
            }
            self.flush().await?;
            self.engine.journal.taken(letter.id).await?;
        }
        self.looked = Some(now);
        Ok(())
    }

    /// True when it came to something at once that the next decision must know.
    async fn carry_out(&mut self, decision: Decision) -> Result<bool, EngineError> {
        match decision {
            Decision::SkipApproval(step) => self.note(vec![Body::Skipped { step, reason: UNASKED.to_owned() }]),
            Decision::Confirm(step) => return Ok(self.begin(step, Work::Facts { confirm: true }).await),
            Decision::Void { step, why } => self.note(vec![Body::ApprovalVoid { step, why, facts: facts::Facts::new() }]),
            Decision::Ask(step) => return Ok(self.ask(step).await),
            Decision::End { step, status, failure } => self.note(vec![Body::StepEnded { step, status, failure }]),
            Decision::LeaveUndo { step, reason } => self.note(vec![Body::UndoLeft { step, reason }]),
            Decision::EndUndo { step, failure } => self.note(vec![Body::UndoFailed { step, failure }]),
            Decision::Prepare(step) => return Ok(self.begin(step, Work::Prepare).await),
            Decision::Apply { step, attempt } => {
                self.room_for(&step)?;
                let key = work::key(&self.claim.run, &step);
                let applying = Body::Applying { step: step.clone(), attempt, epoch: self.claim.epoch, key };
                if planted(Defect::EffectBeforeIntent) {
                    let done = self.begin(step, Work::Apply { attempt }).await;
                    self.note(vec![applying]);
                    self.flush().await?;
                    return Ok(done);
                }
                let unasked =
                    self.state.plan.scope == Scope::Drill && self.state.plan.step(&step).is_some_and(|step| step.approve.is_some());
                let skipped = Body::ApprovalSkipped { step: step.clone(), reason: UNASKED.to_owned() };
                self.note((unasked && attempt == 1).then_some(skipped).into_iter().chain([applying]).collect());
                self.flush().await?;
                return Ok(self.begin(step, Work::Apply { attempt }).await);
            }
            Decision::Observe(step) => {
                let known = self.state.step(&step).map(|known| known.phase.clone());
                return Ok(self.begin(step, Work::Observe { accepted: known == Some(Phase::Applied) }).await);
            }
            Decision::Undo(step) => {
                self.room_for(&step)?;
                let attempt = self.state.step(&step).map_or(0, |known| known.undo_tries.attempts) + 1;
                self.note(vec![Body::Undoing { step: step.clone(), attempt }]);
                self.flush().await?;
                return Ok(self.begin(step, Work::Undo).await);
            }
            Decision::WakeAt(_) | Decision::Park { .. } | Decision::Finish { .. } => {}
        }
        Ok(false)
    }

    /// The run's folder on this machine, for a step that may need it: what only reads keeps no files.
    fn room_for(&self, step: &StepId) -> Result<(), EngineError> {
        let reads = |step: &PlanStep| matches!(step.kind, StepKind::Action { effect: Effect::Read, .. });
        if self.state.plan.step(step).is_some_and(reads) {
            return Ok(());
        }
        let folder = self.engine.scratch.join(self.claim.run.as_str());
        std::fs::create_dir_all(&folder).map_err(|e| EngineError::Scratch { folder: folder.display().to_string(), why: e.to_string() })
    }

    async fn ask(&mut self, step: StepId) -> bool {
        let (Some(planned), Some(known)) = (self.state.plan.step(&step), self.state.step(&step)) else { return false };
        // An action's `when` has been asked before it was prepared.
        if matches!(planned.kind, StepKind::Approval(_)) {
            let ends = match work::holds(&self.state, &self.claim, planned) {
                Ok(true) => None,
                Ok(false) => Some(Body::Skipped { step: step.clone(), reason: "its `when` is false".to_owned() }),
                Err(why) => {
                    let failure = Some(crate::model::effect::Failure::new("expression", why));
                    Some(Body::StepEnded { step: step.clone(), status: StepStatus::Failed, failure })
                }
            };
            if let Some(end) = ends {
                self.note(vec![end]);
                return true;
            }
        }
        if facts::needed(planned) {
            return self.begin(step, Work::Facts { confirm: false }).await;
        }
        let asked = facts::asked(planned, known, &self.state, facts::Facts::new(), self.engine.clock.now());
        self.note(vec![asked]);
        false
    }

    /// Begins a piece of work. What needs no waiting is done at once, without a task of its own: then true.
    async fn begin(&mut self, step: StepId, work: Work) -> bool {
        let told = work::Told { waiting: self.waiting.subscribe(), reading: self.reading.subscribe() };
        let doing = work::Doing { engine: &self.engine, state: &self.state, claim: &self.claim, owned: &self.owned };
        let Some(mut task) = work::task(&doing, &step, work, told) else {
            return false;
        };
        let first = std::future::poll_fn(|cx| Poll::Ready(task.as_mut().poll(cx)));
        match AssertUnwindSafe(first).catch_unwind().await {
            Ok(Poll::Pending) => {}
            Ok(Poll::Ready(report)) => {
                self.report(&step, report);
                return true;
            }
            Err(_) => {
                self.report(&step, work::died(work, "it panicked"));
                return true;
            }
        }
        self.in_flight.insert(step.clone());
        let known = step.clone();
        let handle = self.tasks.spawn(async move { (step, task.await) });
        self.begun.insert(handle.id(), (known, work));
        false
    }

    /// Takes down what a task reported.
    fn settle(&mut self, done: Result<(tokio::task::Id, (StepId, Report)), tokio::task::JoinError>) {
        let (step, report) = match done {
            Ok((id, (step, report))) => {
                self.begun.remove(&id);
                (step, report)
            }
            // A defect of ours: what the task was about may or may not have happened.
            Err(died) => match self.begun.remove(&died.id()) {
                Some((step, work)) => (step, work::died(work, &died.to_string())),
                None => return,
            },
        };
        self.in_flight.remove(&step);
        self.report(&step, report);
    }

    fn report(&mut self, step: &StepId, report: Report) {
        let bodies = self.outcome(step, report);
        self.note(bodies);
    }

    fn outcome(&self, step: &StepId, report: Report) -> Vec<Body> {
        let (Some(planned), Some(known)) = (self.state.plan.step(step), self.state.step(step)) else { return Vec::new() };
        let context = work::Context { planned, known, now: self.engine.clock.now() };
        let at = |after_ms| {
            let jitter = 0.8 + 0.4 * self.engine.clock.jitter();
            let ms = std::time::Duration::from_millis(after_ms).mul_f64(jitter);
            self.engine.clock.now() + jiff::SignedDuration::try_from(ms).unwrap_or_default()
        };
        match report {
            Report::Facts { confirm, facts } => facts::bodies(&context, &self.state, confirm, facts, at),
            report => work::bodies(&context, report, at),
        }
    }

    /// Takes something down, to be durable with what follows.
    fn note(&mut self, bodies: Vec<Body>) {
        let actor = self.engine.actor.clone();
        self.note_as(&actor, bodies);
    }

    fn note_as(&mut self, actor: &str, bodies: Vec<Body>) {
        let (at, epoch) = (self.engine.clock.now(), self.claim.epoch);
        for body in bodies {
            // What it will be once it is stored: one owner appends, in this order. Its hash is the store's to give.
            let (run, seq) = (self.claim.run.clone(), self.state.seq + 1);
            let event = Event { run, seq, at, actor: actor.to_owned(), epoch, body, prev: String::new() };
            fold(&mut self.state, &event);
            self.pending.push(Draft { at, actor: event.actor, body: event.body });
        }
    }

    /// Makes everything durable that was taken down. A store in trouble is tried again for a while: nothing
    /// new is begun meanwhile, since this loop is the only one that begins anything.
    async fn flush(&mut self) -> Result<(), EngineError> {
        let drafts = std::mem::take(&mut self.pending);
        if drafts.is_empty() {
            return Ok(());
        }
        let begun = self.engine.clock.monotonic();
        let mut unheard = false;
        let stored = loop {
            let now = self.engine.clock.monotonic();
            let patient = now.saturating_sub(begun) < APPEND_PATIENCE && self.claim.hold.permits(now);
            match self.engine.journal.append(&self.claim, self.durable, drafts.clone()).await {
                Ok(stored) => break stored,
                Err(JournalError::Store { place, why }) if patient => {
                    if !unheard {
                        tracing::warn!("the journal in {place} does not take what happened ({why}); nothing is begun until it does");
                    }
                    unheard = true;
                    self.engine.clock.sleep(INBOX).await;
                }
                // Room for the last words: what is under way is put on record, and the run pauses.
                Err(JournalError::Store { place, why }) if self.spent.is_none() && self.engine.journal.make_room().await => {
                    self.spent = Some(format!("the journal in {place} took no more: {why}"));
                    unheard = true;
                }
                // The store took it, and its answer was lost.
                Err(JournalError::Behind { .. }) if unheard && self.is_ours(&drafts).await? => {
                    break self.engine.journal.load(&self.claim.run, self.durable).await?;
                }
                Err(error) => {
                    self.owned.store(false, Ordering::SeqCst);
                    return Err(error.into());
                }
            }
        };
        for one in &stored {
            self.durable = one.event.seq;
            self.head.clone_from(&one.hash);
            (self.engine.listener)(one);
        }
        Ok(())
    }

    /// Is what follows our last event exactly what we tried to append, under our epoch?
    async fn is_ours(&self, drafts: &[Draft]) -> Result<bool, EngineError> {
        let there = self.engine.journal.load(&self.claim.run, self.durable).await?;
        Ok(are_ours(&self.claim, &there, drafts))
    }
}

/// Are these events exactly what was to be appended, under this claim?
fn are_ours(claim: &Claim, there: &[Stored], drafts: &[Draft]) -> bool {
    let same = |(one, draft): (&Stored, &Draft)| {
        one.event.epoch == claim.epoch && one.event.body == draft.body && one.event.at == draft.at && one.event.actor == draft.actor
    };
    there.len() == drafts.len() && there.iter().zip(drafts).all(same)
}

/// Until the bell rings; for ever without one.
async fn rung(bell: Option<&Bell>) {
    match bell {
        Some(bell) => bell.rung().await,
        None => std::future::pending().await,
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
