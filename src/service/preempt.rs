//! A live failover takes the place of what holds its resources: a drill, a rehearsal, a run that is stuck.
//!
//! The other run is asked to end; its owner settles what is under way, then ends it `aborted`. One without an
//! owner is claimed, settled and ended here. A drill's faults are healed first. What cannot be settled, an
//! owner that does not answer, and another live failover are left alone unless a person says `--take-over`:
//! then the run is seized under a new epoch, so that its owner can append nothing more, and what is not known
//! stays not known. Both chains say what happened.

use super::{
    Muster, ServiceError,
    drills::drill_state,
    runs::{Ran, state_of},
};
use crate::engine::Engine;
use crate::journal::{Claim, Command, Draft, Journal, JournalError};
use crate::model::{event::Body, ids::*, plan::*, runbook::Mode, status::*};
use crate::plan::state::{Phase, RunState};
use std::time::Duration;

/// How long an owner may take to settle what is under way and let go.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same where a person has said that it may be taken over.
const SHORT: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(200);
const TOLD_EVERY: Duration = Duration::from_secs(5);

/// Who takes the place, and how far it may go.
pub(super) struct Taker<'a> {
    pub muster: &'a Muster,
    pub run: RunId,
    pub plan: &'a Plan,
    pub by: &'a str,
    pub take_over: bool,
}

/// Is this a run for which others make way?
pub(super) fn is_live_failover(plan: &Plan) -> bool {
    plan.scope == Scope::Live && plan.live && plan.mode == Some(Mode::Failover)
}

impl Taker<'_> {
    fn reason(&self) -> String {
        format!("pre-empted by run {} ({})", self.run, self.plan.runbook)
    }

    /// Makes the holder of a resource let go of it; gives how.
    pub async fn take(&self, journal: &dyn Journal, resource: &str, holder: &RunId) -> Result<String, ServiceError> {
        let state = state_of(journal, holder).await?;
        let row = journal.row(holder).await?;
        if is_live_failover(&state.plan) && row.parent.is_none() && !self.take_over {
            return Err(ServiceError::Usage(format!(
                "`{resource}` is held by run {holder} ({}), another live failover that is {}: look at it with `muster show {holder}`; \
                 only with --take-over does this run take its place",
                state.plan.runbook,
                state.status.word().replace('_', " ")
            )));
        }
        tracing::warn!("`{resource}` is held by run {holder} ({}); it is asked to make way", state.plan.runbook);
        let how = match &row.parent {
            Some(drill) => self.free_drill(journal, drill, holder).await?,
            None => self.free_run(journal, holder).await?,
        };
        tracing::warn!("run {holder}: {how}");
        Ok(how)
    }

    /// Until the run has ended, by its owner's hand or ours.
    async fn free_run(&self, journal: &dyn Journal, holder: &RunId) -> Result<String, ServiceError> {
        let clock = &self.muster.clock;
        let (begun, patience) = (clock.monotonic(), if self.take_over { SHORT } else { PATIENCE });
        let (mut told, mut asked) = (begun, false);
        loop {
            if journal.row(holder).await?.finished_at.is_some() {
                return Ok("its owner settled what was under way and ended it".to_owned());
            }
            let waited = clock.monotonic().saturating_sub(begun);
            match journal.claim(holder, &self.muster.actor()).await {
                Ok(claim) => return self.settle(journal, claim).await,
                Err(JournalError::Owned { owner, .. }) if waited >= patience => {
                    if !self.take_over {
                        return Err(ServiceError::Usage(format!(
                            "run {holder} was asked to make way, and its owner {owner} has not ended it within {} s; it may be frozen. Look at \
                             it with `muster show {holder}`; if it can do no more harm, take its place with --take-over",
                            PATIENCE.as_secs()
                        )));
                    }
                    tracing::warn!("{owner} does not answer; run {holder} is taken over");
                    let claim = journal.seize(holder, &self.muster.actor()).await?;
                    return self.settle(journal, claim).await;
                }
                Err(JournalError::Owned { .. }) if !asked => {
                    journal.post(holder, clock.now(), self.by, &self.command()).await?;
                    asked = true;
                }
                Err(JournalError::Owned { owner, .. }) => {
                    if clock.monotonic().saturating_sub(told) >= TOLD_EVERY {
                        told = clock.monotonic();
                        tracing::warn!("waiting for {owner} to settle run {holder} ({} s)", waited.as_secs());
                    }
                }
                Err(other) => return Err(other.into()),
            }
            clock.sleep(LOOK).await;
        }
    }

    fn command(&self) -> Command {
        Command::MakeWay { to: self.run.clone(), reason: self.reason() }
    }

    /// Ends a run that is ours now: what is open is observed first; what cannot be told is left in the open.
    async fn settle(&self, journal: &dyn Journal, claim: Claim) -> Result<String, ServiceError> {
        let holder = claim.run.clone();
        let state = state_of(journal, &holder).await?;
        if state.made_way.is_none() && state.finished_at.is_none() {
            let ask = crate::engine::inbox::bodies(&state, &holder, self.by, &self.command(), self.muster.clock.now());
            self.append(journal, &claim, state.seq, ask.map_err(ServiceError::Usage)?).await?;
        }
        let left = self.settled_in_time(&state, claim).await?;
        if left.state.finished_at.is_some() {
            return Ok("nobody owned it; it was settled and ended here".to_owned());
        }
        let status = left.state.status.word().replace('_', " ");
        if !self.take_over {
            return Err(ServiceError::Usage(format!(
                "run {holder} was asked to make way and is {status}: what it had under way cannot be told. Settle it (`muster show {holder}`), \
                 or take its place all the same with --take-over"
            )));
        }
        let claim = journal.seize(&holder, &self.muster.actor()).await?;
        self.force(journal, claim).await
    }

    /// Goes on with the other run until it has ended, or has had its time: a step may be watched for far longer
    /// than an incident allows.
    async fn settled_in_time(&self, state: &RunState, claim: Claim) -> Result<Ran, ServiceError> {
        let (enough, told) = tokio::sync::watch::channel(false);
        let engine = Engine { interrupt: told, ..self.muster.engine(&state.plan.estate).await? };
        let events = engine.journal.load(&claim.run, 0).await?;
        let (clock, mut stopped) = (self.muster.clock.clone(), self.muster.interrupt.clone());
        let patience = if self.take_over { SHORT } else { PATIENCE };
        let stop = async {
            let asked = async {
                if stopped.wait_for(|stop| *stop).await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = clock.sleep(patience) => {}
                () = asked => {}
            }
            enough.send_replace(true);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            left = self.muster.carry_on(&engine, claim, events, true) => left,
            () = stop => Err(ServiceError::Usage("the other run was let go of".to_owned())),
        }
    }

    /// The end of a run whose open attempt nobody can tell of: the step stays `indeterminate`.
    async fn force(&self, journal: &dyn Journal, claim: Claim) -> Result<String, ServiceError> {
        let state = state_of(journal, &claim.run).await?;
        let unknown = unknown(&state);
        let open = state.plan.steps.iter().filter(|step| {
            let known = state.step(&step.id);
            known.is_some_and(|known| known.phase != Phase::Ended) && !unknown.contains(&step.id)
        });
        let cancel = |step: &PlanStep| Body::StepEnded { step: step.id.clone(), status: StepStatus::Cancelled, failure: None };
        let mut bodies: Vec<_> = open.map(cancel).collect();
        let names: Vec<_> = unknown.iter().map(|id| format!("`{id}`")).collect();
        let rest = if names.is_empty() { String::new() } else { format!("; whether step {} happened is not known", names.join(", ")) };
        bodies.push(Body::RunFinished { status: RunStatus::Aborted, reason: Some(format!("{}, taken over{rest}", self.reason())) });
        self.append(journal, &claim, state.seq, bodies).await?;
        journal.release(claim).await;
        Ok(format!("taken over{rest}"))
    }

    async fn append(&self, journal: &dyn Journal, claim: &Claim, after: u64, bodies: Vec<Body>) -> Result<(), ServiceError> {
        let at = self.muster.clock.now();
        let drafts = bodies.into_iter().map(|body| Draft { at, actor: self.by.to_owned(), body }).collect();
        journal.append(claim, after, drafts).await?;
        Ok(())
    }

    /// A drill makes way as a whole: its run ends, its faults are healed, nothing is led back.
    async fn free_drill(&self, journal: &dyn Journal, drill: &RunId, holder: &RunId) -> Result<String, ServiceError> {
        if journal.row(drill).await?.finished_at.is_some() {
            return self.free_run(journal, holder).await;
        }
        let claim = match journal.claim(drill, &self.muster.actor()).await {
            Ok(claim) => claim,
            Err(JournalError::Owned { .. }) => return self.free_owned_drill(journal, drill, holder).await,
            Err(other) => return Err(other.into()),
        };
        self.end_drill(journal, claim, holder).await
    }

    /// Its owner ends the run, heals, and closes the drill; both are waited for.
    async fn free_owned_drill(&self, journal: &dyn Journal, drill: &RunId, holder: &RunId) -> Result<String, ServiceError> {
        let clock = &self.muster.clock;
        let how = self.free_run(journal, holder).await?;
        let begun = clock.monotonic();
        let patience = if self.take_over { SHORT } else { PATIENCE };
        while journal.row(drill).await?.finished_at.is_none() {
            if clock.monotonic().saturating_sub(begun) >= patience {
                if !self.take_over {
                    return Err(ServiceError::Usage(format!(
                        "drill {drill} was asked to make way and its run {holder} has ended, but its owner has not healed the drill's faults \
                         within {} s. Look at it with `muster show {drill}`, or take its place with --take-over",
                        PATIENCE.as_secs()
                    )));
                }
                let claim = journal.seize(drill, &self.muster.actor()).await?;
                return self.end_drill(journal, claim, holder).await;
            }
            clock.sleep(LOOK).await;
        }
        Ok(format!("{how}; its drill was healed and closed"))
    }

    async fn end_drill(&self, journal: &dyn Journal, claim: Claim, holder: &RunId) -> Result<String, ServiceError> {
        let drill = claim.run.clone();
        let state = drill_state(journal, &drill).await?;
        if state.preempted.is_none() {
            let body = Body::DrillPreempted { by: self.run.clone(), reason: self.reason() };
            self.append(journal, &claim, state.seq, vec![body]).await?;
        }
        let how = self.free_run(journal, holder).await?;
        self.muster.drill_end(claim).await?;
        Ok(format!("{how}; its drill was healed and closed here"))
    }
}

/// Steps of which nobody can say whether they happened.
fn unknown(state: &RunState) -> Vec<StepId> {
    let open = |phase: &Phase| matches!(phase, Phase::Applying | Phase::Unknown(_) | Phase::Applied | Phase::Held);
    state
        .plan
        .steps
        .iter()
        .filter(|step| state.step(&step.id).is_some_and(|known| open(&known.phase)))
        .map(|step| step.id.clone())
        .collect()
}
