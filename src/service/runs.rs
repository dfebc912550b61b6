//! Runs: beginning one, going on with one, and what operators do to one.

use super::{Muster, ServiceError, notices, view};
use crate::engine::{Engine, EngineError, Outcome, inbox};
use crate::journal::{Claim, Command, Draft, Journal, JournalError};
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

impl Muster {
    /// An engine over an estate's world.
    pub async fn engine(&self, estate: &Estate) -> Result<Engine, ServiceError> {
        let world = World::new(Arc::new(estate.clone()), self.clock.clone());
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
    pub fn compile(&self, name: &str, inputs: &BTreeMap<String, String>, live: bool) -> Result<Plan, ServiceError> {
        let book = self.runbook(name, None)?;
        let addressed = self.estate();
        // What touches nothing of the estate runs also while the estate's lab is down.
        let estate = match &addressed {
            Ok(estate) => estate.clone(),
            Err(_) => self.written_estate()?,
        };
        let plan = self.plan(&book, &estate, inputs, Scope::Live, live)?;
        if touches(&plan).is_some() {
            addressed?;
        }
        Ok(plan)
    }

    /// Runs a runbook here until it ends or a person must act.
    pub async fn run(&self, name: &str, inputs: &BTreeMap<String, String>, live: bool) -> Result<Ran, ServiceError> {
        let plan = self.compile(name, inputs, live)?;
        if let Some(step) = outside_a_lab(&plan).filter(|_| !live) {
            return Err(ServiceError::Usage(format!(
                "step `{}` ({}) acts on what is outside a lab; say so with --live, or look first with `muster plan {name}`",
                step.id,
                step.kind.uses()
            )));
        }
        let engine = self.engine(&plan.estate).await?;
        let (claim, _) = engine.create(plan, None).await?;
        self.carry_on(&engine, claim, false).await
    }

    /// Goes on with a run that this process does not own yet.
    pub async fn resume_run(&self, run: &RunId) -> Result<Ran, ServiceError> {
        let journal = self.existing_journal().await?;
        let state = state_of(&*journal, run).await?;
        knows(run, &state.plan)?;
        let engine = self.engine(&state.plan.estate).await?;
        let claim = self.claim(&*engine.journal, run).await?;
        self.carry_on(&engine, claim, true).await
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

    pub(super) async fn carry_on(&self, engine: &Engine, claim: Claim, resume: bool) -> Result<Ran, ServiceError> {
        let run = claim.run.clone();
        let Outcome { state, .. } = match engine.carry_on(claim, resume).await {
            // The run is on record as far as it came, and somebody must go on with it.
            Err(why @ EngineError::Journal(_)) => {
                return Err(ServiceError::Stopped { run, why: Box::new(why), program: self.program() });
            }
            done => done?,
        };
        notices::run_left(engine, &run, &state).await;
        let evidence = view::evidence(&*engine.journal, std::slice::from_ref(&run)).await?;
        Ok(Ran { run, state, evidence })
    }

    /// What an operator asks of a run: to its owner if it has one, else taken down right away.
    pub async fn command(&self, run: &RunId, by: &str, command: &Command) -> Result<Told, ServiceError> {
        let journal = self.existing_journal().await?;
        let told = |state: &RunState| inbox::bodies(state, by, command, self.clock.now()).map_err(ServiceError::Usage);
        told(&state_of(&*journal, run).await?)?;
        match journal.claim(run, &self.actor()).await {
            Ok(claim) => {
                let record = async {
                    // It may have gone on between the look and the claim.
                    let state = state_of(&*journal, run).await?;
                    let draft = |body| Draft { at: self.clock.now(), actor: by.to_owned(), body };
                    let drafts = told(&state)?.into_iter().map(draft).collect();
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

/// The first step that touches a resource of the estate.
fn touches(plan: &Plan) -> Option<&PlanStep> {
    plan.steps.iter().find(|step| step.reach.iter().any(|reach| reach.place != Place::Here))
}

/// The first step that touches a resource outside a lab.
pub(super) fn outside_a_lab(plan: &Plan) -> Option<&PlanStep> {
    touches(plan).filter(|_| !plan.estate.lab)
}
