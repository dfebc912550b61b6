//! Runs: beginning one, going on with one, and what operators do to one.

use super::{Muster, ServiceError, notices, view};
use crate::engine::{Engine, EngineError, Outcome, inbox};
use crate::journal::{ChainKind, Command, Draft, Journal, JournalError};
use crate::model::{effect::Place, estate::Estate, event::Body, ids::*, plan::*};
use crate::plan::state::RunState;
use crate::providers::world::World;
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc};

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
        let (claim, first) = engine.create(plan, None).await?;
        let run = claim.run.clone();
        let outcome = engine.start(claim, first).await?;
        self.left(&engine, run, outcome).await
    }

    /// Goes on with a run that this process does not own yet.
    pub async fn resume_run(&self, run: &RunId) -> Result<Ran, ServiceError> {
        let journal = self.existing_journal().await?;
        if journal.row(run).await?.kind == ChainKind::Drill {
            state_of(&*journal, run).await?;
        }
        let claim = journal.claim(run, &self.actor()).await?;
        let events = journal.load(run, 0).await?;
        let Some(Body::RunCreated { plan, .. }) = events.first().map(|stored| &stored.event.body) else {
            return Err(EngineError::NotARun(run.clone()).into());
        };
        let engine = self.engine(&plan.estate).await?;
        let run = claim.run.clone();
        let outcome = engine.carry_on_from(claim, events, true).await?;
        self.left(&engine, run, outcome).await
    }

    async fn left(&self, engine: &Engine, run: RunId, Outcome { state, .. }: Outcome) -> Result<Ran, ServiceError> {
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
