//! Drills: running one, going on with one, their calendar and their history.

use super::{Muster, ServiceError, files::Folder, notices, view};
use crate::drill::{conduct::Conductor, probe::ProbePorts, state::DrillState, summary::summary};
use crate::engine::Engine;
use crate::journal::{ChainKind, ChainRow, Claim, Draft, Journal, NewChain};
use crate::model::{
    drill::{Drill, DrillKind, Schedule},
    estate::Estate,
    event::{Body, RunRole},
    ids::*,
    objective::Verdict,
    plan::{Plan, PlanStep, StepKind},
    time::rfc3339_ms,
};
use crate::plan::schedule::{Cron, zone};
use serde_json::{Value, json};
use std::path::PathBuf;

/// A drill as it was left.
pub struct Drilled {
    pub state: DrillState,
    /// What `drill run --json` ends with.
    pub view: Value,
}

impl Drilled {
    /// Pass: 0. Fail, or inconclusive: 1. Skipped, since it could not run: 2.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        exit_code(&self.state)
    }
}

/// The exit code that a drill's verdict amounts to.
#[must_use]
pub fn exit_code(state: &DrillState) -> u8 {
    match &state.verdict {
        Some((Verdict::Pass, _)) => 0,
        Some(_) => 1,
        None => 2,
    }
}

/// A drill that is on record, and that this process owns.
pub struct Begun {
    conductor: Conductor,
    claim: Claim,
}

impl Begun {
    #[must_use]
    pub fn id(&self) -> &RunId {
        &self.claim.run
    }
}

/// A drill that has a schedule.
#[derive(Clone)]
pub struct Scheduled {
    pub drill: Drill,
    pub schedule: Schedule,
    pub file: PathBuf,
}

impl Muster {
    fn conductor(&self, engine: Engine) -> Conductor {
        let ports = ProbePorts { http: engine.world.http(), resolve: engine.world.resolver(), clock: self.clock.clone() };
        Conductor { engine, ports, faults: self.faults.clone(), dir: self.state.clone() }
    }

    /// Runs a drill here, from its steady state to its verdict.
    pub async fn drill_run(&self, name: &str, scheduled_for: Option<jiff::Timestamp>) -> Result<Drilled, ServiceError> {
        let begun = self.drill_begin(name, scheduled_for).await?;
        self.drill_go(begun, false).await
    }

    /// Puts a drill on record as begun, and owns it.
    pub async fn drill_begin(&self, name: &str, scheduled_for: Option<jiff::Timestamp>) -> Result<Begun, ServiceError> {
        let (path, loaded) = self.drill(name)?;
        let estate = self.estate()?;
        let mut drill = loaded.drill.clone();
        if matches!(drill.kind, DrillKind::Isolated | DrillKind::Tabletop) {
            let kind = serde_json::to_value(drill.kind).unwrap_or_default();
            return Err(ServiceError::Usage(format!("this version runs drills of the kinds failover, switchover and restore, not {kind}")));
        }
        if !drill.scenario.is_empty() && !estate.lab {
            return Err(ServiceError::Usage("faults are injected in a lab only, and this estate is not one".to_owned()));
        }
        let plans = self.drill_plans(&path, &loaded, &estate)?;
        harmless(drill.kind, &plans)?;
        inherit_objectives(&mut drill, &estate);
        let engine = self.engine(&plans.0.estate).await?;
        let conductor = self.conductor(engine);
        let id = scheduled_for.map_or_else(|| RunId(self.clock.new_id()), |at| scheduled_id(&drill.drill, at));
        let file = (path.display().to_string(), loaded.source.digest.clone());
        let claim = conductor.begin(id, drill, file, plans, scheduled_for).await?;
        Ok(Begun { conductor, claim })
    }

    /// Goes on with a drill that another process began.
    pub async fn drill_resume(&self, id: &RunId) -> Result<Drilled, ServiceError> {
        let journal = self.existing_journal().await?;
        // Whoever is patient enough to see that its owner has died may take it.
        let waited = self.claim(&*journal, id).await?;
        let begun = self.drill_with(id, Some(waited)).await?;
        self.drill_go(begun, true).await
    }

    /// Takes over a drill that another process began.
    pub async fn drill_take(&self, id: &RunId) -> Result<Begun, ServiceError> {
        self.drill_with(id, None).await
    }

    async fn drill_with(&self, id: &RunId, claimed: Option<Claim>) -> Result<Begun, ServiceError> {
        let journal = self.existing_journal().await?;
        let state = drill_state(&*journal, id).await?;
        let engine = self.engine(&state.context.estate).await?;
        let conductor = self.conductor(engine);
        let claim = match claimed {
            Some(claim) => claim,
            None => conductor.engine.journal.claim(id, &conductor.engine.actor).await?,
        };
        Ok(Begun { conductor, claim })
    }

    /// Goes on with a drill that this process has claimed.
    pub(super) async fn drill_end(&self, claim: Claim) -> Result<Drilled, ServiceError> {
        let journal = self.existing_journal().await?;
        let state = drill_state(&*journal, &claim.run).await?;
        let conductor = self.conductor(self.engine(&state.context.estate).await?);
        self.drill_go(Begun { conductor, claim }, true).await
    }

    /// Conducts a drill to its end, or until a person must act; tells the channels how it was left.
    pub async fn drill_go(&self, begun: Begun, resumed: bool) -> Result<Drilled, ServiceError> {
        let Begun { conductor, claim } = begun;
        let (engine, id) = (conductor.engine.clone(), claim.run.clone());
        match conductor.carry_on(claim, resumed).await {
            Ok(state) => {
                let view = drill_view(&*engine.journal, &state).await?;
                notices::drill_ended(&engine, &self.program_anywhere(), &state).await;
                Ok(Drilled { state, view })
            }
            Err(error) => {
                if let Ok(state) = drill_state(&*engine.journal, &id).await {
                    notices::drill_stopped(&engine, &self.program_anywhere(), &state, &error).await;
                }
                Err(error.into())
            }
        }
    }

    /// Every drill beside the estate, and what is wrong with those that cannot be read, or never be due.
    #[must_use]
    pub fn drill_list(&self) -> (Vec<(PathBuf, Drill)>, Vec<ServiceError>) {
        let (mut drills, mut wrong) = (Vec::new(), Vec::new());
        for path in self.folder(Folder::Drills) {
            match self.drill(&path.display().to_string()) {
                Ok((path, loaded)) => match loaded.drill.schedule.as_ref().map(calendar) {
                    Some(Err(error)) => wrong.push(ServiceError::Usage(format!("{}: {error}", path.display()))),
                    _ => drills.push((path, loaded.drill)),
                },
                Err(error) => wrong.push(error),
            }
        }
        (drills, wrong)
    }

    /// The drills that have a schedule; of these, only those named if any are.
    pub fn scheduled(&self, only: Option<&str>) -> Result<Vec<Scheduled>, ServiceError> {
        let drills = match only {
            Some(name) => {
                let (path, loaded) = self.drill(name)?;
                vec![(path, loaded.drill)]
            }
            None => self.drill_list().0,
        };
        let scheduled = drills.into_iter().filter_map(|(file, drill)| Some(Scheduled { schedule: drill.schedule.clone()?, drill, file }));
        Ok(scheduled.collect())
    }

    /// The next fires, soonest first.
    pub fn drill_next(
        &self,
        only: Option<&str>,
        from: jiff::Timestamp,
        count: usize,
    ) -> Result<Vec<(DrillName, jiff::Timestamp)>, ServiceError> {
        let mut next = Vec::new();
        for one in self.scheduled(only)? {
            let (cron, zone) = calendar(&one.schedule)?;
            let mut at = from;
            for _ in 0..count {
                let Some(fire) = cron.next_after(&zone, at) else { break };
                next.push((one.drill.drill.clone(), fire));
                at = fire;
            }
        }
        next.sort_by(|a, b| (a.1, a.0.as_str()).cmp(&(b.1, b.0.as_str())));
        next.truncate(count);
        Ok(next)
    }

    /// The drills on record, newest first.
    pub async fn drill_history(&self, limit: u32) -> Result<Vec<Value>, ServiceError> {
        let journal = self.existing_journal().await?;
        let mut history = Vec::new();
        for row in journal.list(ChainKind::Drill, limit).await? {
            history.push(history_entry(&*journal, &row).await?);
        }
        Ok(history)
    }

    /// Puts a fire on record that started nothing; false when it is on record already.
    pub async fn put_on_record(&self, drill: &DrillName, at: jiff::Timestamp, reason: &str) -> Result<bool, ServiceError> {
        let engine = self.engine(&std::sync::Arc::default()).await?;
        let id = RunId(format!("{}-missed", scheduled_id(drill, at)));
        let chain = NewChain { id, kind: ChainKind::Drill, name: drill.to_string(), parent: None, locks: Vec::new() };
        let body = Body::DrillMissed { drill: drill.clone(), scheduled_for: at, reason: reason.to_owned() };
        let first = Draft { at: self.clock.now(), actor: self.actor(), body };
        match engine.begin_chain(chain, first).await {
            // Another process, or this one before it was killed, has put it down already.
            Err(crate::journal::JournalError::Exists { .. }) => Ok(false),
            other => Ok(other.map(|_| true)?),
        }
    }
}

/// A drill is the real runbook: outside a lab it would be the real thing. A restore is none if each of its steps leaves
/// alone what serves.
fn harmless(kind: DrillKind, plans: &(Plan, Option<Plan>)) -> Result<(), ServiceError> {
    let plans = [Some(&plans.0), plans.1.as_ref()].into_iter().flatten();
    if kind == DrillKind::Restore {
        let acts = |step: &&PlanStep| match &step.kind {
            StepKind::Action { name, .. } => !crate::actions::find(name).is_some_and(|action| action.aside(&step.with)),
            StepKind::Approval(_) => false,
        };
        let Some(step) = plans.filter(|plan| !plan.estate.lab).find_map(|plan| plan.steps.iter().find(acts)) else { return Ok(()) };
        return Err(ServiceError::Usage(format!(
            "step `{}` ({}) may change what serves; outside a lab a restore drill only reads, restores into scratch and proves",
            step.id,
            step.kind.uses()
        )));
    }
    let Some(step) = plans.into_iter().find_map(super::runs::outside_a_lab) else { return Ok(()) };
    Err(ServiceError::Usage(format!(
        "step `{}` ({}) acts on what is outside a lab; this version drills in a lab only (`muster run --live` is for the real event)",
        step.id,
        step.kind.uses()
    )))
}

/// One identifier for one fire of one drill, so that no fire starts twice.
#[must_use]
pub fn scheduled_id(drill: &DrillName, at: jiff::Timestamp) -> RunId {
    RunId(format!("{drill}-{}", at.strftime("%Y%m%dT%H%M%SZ")))
}

/// A schedule's cron line and time zone, ready to be asked.
pub fn calendar(schedule: &Schedule) -> Result<(Cron, jiff::tz::TimeZone), ServiceError> {
    let wrong = |e: crate::plan::schedule::ScheduleError| ServiceError::Usage(e.to_string());
    let cron = Cron::parse(&schedule.cron).map_err(|e| wrong(e.into()))?;
    Ok((cron, zone(&schedule.timezone).map_err(wrong)?))
}

/// What the drill does not say is taken from the service that uses the probed endpoint.
fn inherit_objectives(drill: &mut Drill, estate: &Estate) {
    let endpoint = drill.probes.http.as_ref().map(|http| http.endpoint.as_str());
    let service = estate.services.values().find(|service| service.uses.iter().any(|name| Some(name.as_str()) == endpoint));
    if let Some(service) = service {
        drill.objectives.rto = drill.objectives.rto.or(service.objectives.rto);
        // Held only to what it measures: a drill without a ledger says nothing of data loss.
        if drill.probes.ledger.is_some() {
            drill.objectives.rpo = drill.objectives.rpo.or(service.objectives.rpo);
        }
    }
}

/// The fold of a drill's events.
pub async fn drill_state(journal: &dyn Journal, id: &RunId) -> Result<DrillState, ServiceError> {
    let events = journal.load(id, 0).await?;
    DrillState::of(&events).ok_or_else(|| ServiceError::Usage(format!("{id} is not a drill that ran; see `muster drill history`")))
}

/// The object of the command line's contract, for a drill in whatever state.
pub async fn drill_view(journal: &dyn Journal, state: &DrillState) -> Result<Value, ServiceError> {
    let verdict = state.verdict.as_ref().map_or(Verdict::Inconclusive, |(verdict, _)| *verdict);
    let mut view = summary(state, verdict);
    let mut chains = vec![state.id.clone()];
    chains.extend(state.runs.values().map(|(run, _)| run.clone()));
    let steps = match state.runs.get(&RunRole::Main) {
        Some((run, _)) => view::steps(&super::runs::state_of(journal, run).await?),
        None => Vec::new(),
    };
    let evidence = view::evidence(journal, &chains).await?;
    if let Some(map) = view.as_object_mut() {
        if state.verdict.is_none() {
            map.insert("verdict".to_owned(), Value::Null);
        }
        map.insert("status".to_owned(), json!(journal.row(&state.id).await?.status));
        map.insert("reasons".to_owned(), json!(reasons(state)));
        map.insert("steps".to_owned(), json!(steps));
        map.insert("evidence".to_owned(), evidence);
    }
    Ok(view)
}

fn reasons(state: &DrillState) -> Vec<String> {
    let verdict = state.verdict.iter().flat_map(|(_, reasons)| reasons.clone());
    state.skipped.iter().cloned().chain(verdict).collect()
}

async fn history_entry(journal: &dyn Journal, row: &ChainRow) -> Result<Value, ServiceError> {
    let mut entry = json!({
        "id": row.id,
        "drill": row.name,
        "kind": null,
        "status": row.status,
        "verdict": null,
        "started_at": rfc3339_ms(row.started_at),
        "finished_at": row.finished_at.map(rfc3339_ms),
        "rto": null,
        "rpo": null,
        "reasons": [],
    });
    let events = journal.load(&row.id, 0).await?;
    let mut more = json!({});
    if let Some(state) = DrillState::of(&events) {
        let main = state.measured.get(&RunRole::Main);
        more = json!({
            "kind": state.drill.kind,
            "verdict": state.verdict.as_ref().map(|(verdict, _)| verdict),
            "run": state.runs.get(&RunRole::Main).map(|(run, _)| run),
            "scheduled_for": state.scheduled_for.map(rfc3339_ms),
            "rto": main.map(|m| &m.rto),
            "rpo": main.map(|m| &m.rpo),
            "reasons": reasons(&state),
        });
    } else if let Some(Body::DrillMissed { scheduled_for, reason, .. }) = events.first().map(|stored| &stored.event.body) {
        more = json!({ "scheduled_for": rfc3339_ms(*scheduled_for), "reasons": [reason] });
    }
    if let (Some(entry), Some(more)) = (entry.as_object_mut(), more.as_object_mut()) {
        entry.append(more);
    }
    Ok(entry)
}
