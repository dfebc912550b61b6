//! Runs: beginning one, going on with one, and what operators do to one.

use super::{
    Muster, ServiceError,
    files::Kind,
    notices,
    preempt::{Taker, is_live_failover},
    view,
};
use crate::engine::{Engine, EngineError, Outcome, inbox};
use crate::journal::{ChainKind, Claim, Command, Draft, Journal, JournalError, Stored, chain::sha256_hex};
use crate::model::{effect::Place, estate::Estate, event::Body, ids::*, plan::*};
use crate::plan::state::RunState;
use crate::providers::world::World;
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// How often it is looked whether an owner still lives.
const LOOK: Duration = Duration::from_millis(250);

/// A run as it was left, with its evidence.
pub struct Ran {
    pub run: RunId,
    pub state: RunState,
    pub evidence: Value,
}

/// How a run is begun.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// It may touch what is outside a lab; a failover that does is one for which others make way.
    pub live: bool,
    pub by: Option<String>,
    /// Take the place also of what cannot be settled, does not answer, or is itself a live failover.
    pub take_over: bool,
    /// Why this run may need what rule 7 forbids.
    pub waive: Option<String>,
}

impl Muster {
    /// An engine over an estate's world.
    pub async fn engine(&self, estate: &Arc<Estate>) -> Result<Engine, ServiceError> {
        let world = World::new(estate.clone(), self.clock.clone());
        let journal = self.journal().await?;
        // Absolute: a run may be gone on with from another directory.
        let state = std::path::absolute(&self.state).unwrap_or_else(|_| self.state.clone());
        Ok(Engine {
            journal,
            world: Arc::new(world),
            clock: self.clock.clone(),
            actor: self.actor(),
            scratch: state.join("runs"),
            listener: self.listener.clone(),
            interrupt: self.interrupt.clone(),
        })
    }

    /// Compiles a runbook, refusing what touches the world outside a lab without `live`.
    pub fn compile(&self, name: &str, inputs: &BTreeMap<String, String>, live: bool, waive: Option<&str>) -> Result<Plan, ServiceError> {
        let book = self.runbook(name, None)?;
        let addressed = self.estate();
        // What touches nothing of the estate runs also while the estate's lab is down.
        let estate = match &addressed {
            Ok(estate) => estate.clone(),
            Err(_) => self.written_estate()?,
        };
        let plan = self.plan(&book, &estate, inputs, Kind { scope: Scope::Live, live, waive })?;
        if touches(&plan).is_some() {
            addressed?;
        }
        Ok(plan)
    }

    /// Runs a runbook here until it ends or a person must act.
    pub async fn run(&self, name: &str, inputs: &BTreeMap<String, String>, live: bool) -> Result<Ran, ServiceError> {
        self.run_as(name, inputs, &Start { live, ..Start::default() }).await
    }

    /// The same in a person's name, who then is not the one to approve it; a live failover may make others make way.
    pub async fn run_as(&self, name: &str, inputs: &BTreeMap<String, String>, start: &Start) -> Result<Ran, ServiceError> {
        let plan = self.compile(name, inputs, start.live, start.waive.as_deref())?;
        if let Some(step) = outside_a_lab(&plan).filter(|_| !start.live) {
            return Err(ServiceError::Usage(format!(
                "step `{}` ({}) acts on what is outside a lab; say so with --live, or look first with `muster plan {name}`",
                step.id,
                step.kind.uses()
            )));
        }
        if start.take_over && !is_live_failover(&plan) {
            let text =
                "only a live failover takes the place of another run: --take-over goes with --live and a runbook of `mode: failover`";
            return Err(ServiceError::Usage(text.to_owned()));
        }
        let by = Self::named(&plan.estate, start.by.as_deref());
        Self::could_be_approved(&plan, &by)?;
        let engine = self.engine(&plan.estate).await?;
        let (claim, events) = self.begin(&engine, plan.into(), &by, start.take_over).await?;
        let run = claim.run.clone();
        let outcome = engine.carry_on_from(claim, events, false).await;
        self.left(&engine, run, outcome).await
    }

    /// Begins a run; for a live failover, whoever holds its resources makes way first.
    async fn begin(&self, engine: &Engine, plan: Arc<Plan>, by: &str, take_over: bool) -> Result<(Claim, Vec<Stored>), ServiceError> {
        let run = RunId(self.clock.new_id());
        let mut moved = Vec::new();
        let (claim, first) = loop {
            match engine.create_as(run.clone(), plan.clone(), None, by).await {
                Ok(created) => break created,
                // Each holder at most once: whoever takes the lock anew meanwhile is somebody else's failover.
                Err(EngineError::Journal(JournalError::Locked { resource, holder }))
                    if is_live_failover(&plan) && !moved.iter().any(|(other, _)| *other == holder) =>
                {
                    let taker = Taker { muster: self, run: run.clone(), plan: &plan, by, take_over };
                    let how = taker.take(&*engine.journal, &resource.0, &holder).await?;
                    moved.push((holder, how));
                }
                Err(other) => return Err(other.into()),
            }
        };
        let drafts: Vec<_> = moved
            .into_iter()
            .map(|(run, how)| Draft { at: self.clock.now(), actor: engine.actor.clone(), body: Body::Preempted { run, how } })
            .collect();
        let mut events = vec![first];
        if !drafts.is_empty() {
            let stored = engine.journal.append(&claim, 1, drafts).await?;
            for one in &stored {
                (engine.listener)(one);
            }
            events.extend(stored);
        }
        Ok((claim, events))
    }

    /// Goes on with a run that this process does not own yet.
    pub async fn resume_run(&self, run: &RunId) -> Result<Ran, ServiceError> {
        self.go_on(run, false).await
    }

    /// The same, whoever owns it: its owner's next record is refused, but what it has under way may still happen.
    pub async fn take_over_run(&self, run: &RunId) -> Result<Ran, ServiceError> {
        self.go_on(run, true).await
    }

    async fn go_on(&self, run: &RunId, by_force: bool) -> Result<Ran, ServiceError> {
        let journal = self.existing_journal().await?;
        let row = journal.row(run).await?;
        if row.kind == ChainKind::Drill {
            state_of(&*journal, run).await?;
        }
        // Read before it is claimed: what this version does not understand, it does not take.
        let first = journal.load(run, 0).await?;
        let Some(Body::RunCreated { plan, .. }) = first.first().map(|stored| &stored.event.body) else {
            return Err(EngineError::NotARun(run.clone()).into());
        };
        knows(run, plan)?;
        let engine = self.engine(&plan.estate).await?;
        let claim = if by_force { journal.seize(run, &self.actor()).await? } else { self.claim(&*journal, run).await? };
        // Whoever had it may have written more until the claim was ours.
        let end = first.last().map_or(0, |last| last.event.seq);
        let more = journal.load(run, end).await?;
        let outcome = engine.carry_on_from(claim, [first, more].concat(), true).await;
        self.left(&engine, run.clone(), outcome).await
    }

    /// Takes a run or drill over. On a shared journal an owner that has died is known only when its lease has
    /// run out: it is waited for, and one that lives renews it meanwhile.
    pub(super) async fn claim(&self, journal: &dyn Journal, run: &RunId) -> Result<Claim, ServiceError> {
        let begun = self.clock.monotonic();
        let mut told = false;
        loop {
            let patience = self.shared.as_ref().map_or(Duration::ZERO, |shared| shared.lease() + Duration::from_secs(1));
            match journal.claim(run, &self.actor()).await {
                Err(JournalError::Owned { owner, .. }) if self.clock.monotonic().saturating_sub(begun) < patience => {
                    if !told {
                        tracing::warn!("{owner} owns {run}; waiting to see whether it still lives, for {} s", patience.as_secs());
                        told = true;
                    }
                    self.clock.sleep(LOOK).await;
                }
                done => return Ok(done?),
            }
        }
    }

    /// Goes on with a run of which all that was written before this claim was read.
    pub(super) async fn carry_on(&self, engine: &Engine, claim: Claim, events: Vec<Stored>, resume: bool) -> Result<Ran, ServiceError> {
        let run = claim.run.clone();
        let outcome = engine.carry_on_from(claim, events, resume).await;
        self.left(engine, run, outcome).await
    }

    async fn left(&self, engine: &Engine, run: RunId, outcome: Result<Outcome, EngineError>) -> Result<Ran, ServiceError> {
        let Outcome { state, .. } = outcome.map_err(|error| match error {
            // The run is on record as far as it came, and somebody must go on with it.
            EngineError::Journal(why @ (JournalError::Store { .. } | JournalError::Lapsed { .. } | JournalError::Lost { .. })) => {
                ServiceError::Stopped { run: run.clone(), why, program: self.program() }
            }
            other => other.into(),
        })?;
        notices::run_left(engine, &self.program_anywhere(), &run, &state).await;
        let evidence = view::evidence(&*engine.journal, std::slice::from_ref(&run)).await?;
        Ok(Ran { run, state, evidence })
    }

    /// What an operator asks of a run: to its owner if it has one, else taken down right away.
    pub async fn command(&self, run: &RunId, by: &str, command: &Command) -> Result<Told, ServiceError> {
        let journal = self.existing_journal().await?;
        let told =
            |state: &RunState, command: &Command| inbox::bodies(state, run, by, command, self.clock.now()).map_err(ServiceError::Usage);
        let seen = state_of(&*journal, run).await?;
        told(&seen, command)?;
        let command = &inbox::bound(command, &seen);
        match journal.claim(run, &self.actor()).await {
            Ok(claim) => {
                let record = async {
                    // It may have gone on between the look and the claim.
                    let state = state_of(&*journal, run).await?;
                    let draft = |body| Draft { at: self.clock.now(), actor: by.to_owned(), body };
                    let drafts = told(&state, command)?.into_iter().map(draft).collect();
                    journal.append(&claim, state.seq, drafts).await.map_err(ServiceError::from)
                };
                let appended = record.await;
                journal.release(claim).await;
                appended.map(|_| Told::OnRecord)
            }
            Err(JournalError::Owned { owner, .. }) => {
                journal.post(run, self.clock.now(), by, command).await?;
                Ok(Told::Owner(owner))
            }
            Err(other) => Err(other.into()),
        }
    }
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// No process owns the run: it is in the journal, and `resume` acts on it.
    OnRecord,
    /// Left for the process that owns the run.
    Owner(String),
}

/// A run with an action that this Muster does not have is another Muster's to go on with: nothing of it is
/// touched, rather than done by halves.
pub(super) fn knows(run: &RunId, plan: &Plan) -> Result<(), ServiceError> {
    let unknown = plan.steps.iter().find(|step| {
        let StepKind::Action { name, version, .. } = &step.kind else { return false };
        crate::actions::find(name).is_none_or(|action| action.spec().version < *version)
    });
    match unknown {
        Some(step) => Err(ServiceError::Usage(format!(
            "run {run} has a step `{}` with the action `{}`, which this version of muster does not have; go on with the version that began it",
            step.id,
            step.kind.uses()
        ))),
        None => Ok(()),
    }
}

/// The fold of a run's events.
pub async fn state_of(journal: &dyn Journal, run: &RunId) -> Result<RunState, ServiceError> {
    let events = journal.load(run, 0).await?;
    if events.is_empty() {
        return Err(JournalError::NoSuchRun(run.clone()).into());
    }
    let drill = matches!(events.first().map(|stored| &stored.event.body), Some(Body::DrillCreated { .. }));
    RunState::of(events.iter().map(|stored| &stored.event)).ok_or_else(|| {
        let what = if drill { "a drill, not a run; its runs are in `muster drill report`" } else { "not a run" };
        ServiceError::Usage(format!("{run} is {what}"))
    })
}

/// Is the runbook's file another by now than the one that this plan was made of? One that is not there says nothing.
#[must_use]
pub fn edited(plan: &Plan) -> bool {
    std::fs::read(&plan.file).is_ok_and(|now| sha256_hex(&now) != plan.digest)
}

/// The first step that touches a resource of the estate.
fn touches(plan: &Plan) -> Option<&PlanStep> {
    plan.steps.iter().find(|step| step.reach.iter().any(|reach| reach.place != Place::Here))
}

/// The first step that touches a resource outside a lab.
pub(super) fn outside_a_lab(plan: &Plan) -> Option<&PlanStep> {
    touches(plan).filter(|_| !plan.estate.lab)
}
