//! One drill, phase by phase: steady state, faults, detection, the runbook, the measurement, healing,
//! the way back, the comparison with what was found, the verdict.
//!
//! Each phase is journaled before and after, and skipped when the journal has it already: that is how
//! another process goes on. The runbook starts on the detector's verdict, never on the injection. A
//! process that picks a drill up journals a hole; the figures that span it are null, and the estate is
//! healed and led back all the same.

use super::{
    as_found,
    probe::{Feed, ProbePorts, ProbeSpec, Prober},
    state::DrillState,
};
use crate::engine::{Engine, EngineError, needs_a_person};
use crate::journal::{ChainKind, Claim, Draft, JournalError, NewChain};
use crate::model::{drill::*, event::*, ids::*, plan::Plan, status::*};
use crate::plan::{measure::Detector, verdict};
use crate::providers::port::{Faults, PortError};
use std::{path::PathBuf, sync::Arc, time::Duration};

/// How long the steady state may take to come.
const STEADY_WITHIN: Duration = Duration::from_secs(30);
/// How long a stand-still between two samples is believed.
const SILENCE: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum DrillError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("the first event of {0} is not the creation of a drill")]
    NotADrill(RunId),
    #[error("the fault could not be injected: {0}")]
    Fault(PortError),
    #[error("this drill injects faults, and there is no lab to inject them into; start one with `muster lab up`")]
    NoLab,
    #[error(transparent)]
    Ledger(#[from] super::probe_ledger::LedgerError),
    #[error("the drill's folder {0} cannot be made: {1}")]
    Folder(String, String),
    #[error("the estate has no endpoint `{0}`")]
    NoEndpoint(EndpointName),
    #[error("interrupted; go on with `muster resume {0}`")]
    Interrupted(RunId),
    #[error("run {run} is {}; go on with `muster show {run}`", status.word())]
    NeedsAPerson { drill: RunId, run: RunId, status: RunStatus },
}

/// What a drill needs besides its engine.
#[derive(Clone)]
pub struct Conductor {
    pub engine: Engine,
    pub ports: ProbePorts,
    /// Who can inject the scenario's faults, if anybody can.
    pub faults: Option<Arc<dyn Faults>>,
    /// Outside the failure domain: the state directory.
    pub dir: PathBuf,
}

impl Conductor {
    /// Puts the drill on record, with what the estate looks like before it.
    pub async fn begin(
        &self,
        id: RunId,
        drill: Drill,
        file: (String, String),
        plans: (Plan, Option<Plan>),
        scheduled_for: Option<jiff::Timestamp>,
    ) -> Result<Claim, DrillError> {
        if !drill.scenario.is_empty() && self.faults.is_none() {
            return Err(DrillError::NoLab);
        }
        let (main, then) = plans;
        let estate = main.estate.clone();
        // A restore touches nothing that serves, and must not wait for what it does not need.
        let found = if drill.kind == DrillKind::Restore && then.is_none() {
            as_found::Facts::new()
        } else {
            as_found::capture(&*self.engine.world, &estate).await
        };
        let as_found = serde_json::to_value(found).unwrap_or_default();
        let chain = NewChain { id, kind: ChainKind::Drill, name: drill.drill.to_string(), parent: None, locks: Vec::new() };
        let context = Box::new(DrillContext { estate, main, then, as_found });
        let body = Body::DrillCreated { drill: Box::new(drill), file: file.0, digest: file.1, scheduled_for, context };
        let first = Draft { at: self.engine.clock.now(), actor: self.engine.actor.clone(), body };
        let (claim, stored) = self.engine.begin_chain(chain, first).await?;
        (self.engine.listener)(&stored);
        Ok(claim)
    }

    /// Goes through what is left of the drill. `resumed`: another process began it.
    pub async fn carry_on(&self, claim: Claim, resumed: bool) -> Result<DrillState, DrillError> {
        let events = self.engine.journal.load(&claim.run, 0).await?;
        let state = DrillState::of(&events).ok_or_else(|| DrillError::NotADrill(claim.run.clone()))?;
        let mut drill = Underway { conductor: self.clone(), claim, state, control_plane_calls: None };
        if drill.state.finished_at.is_none() {
            if resumed {
                drill.append(vec![Body::Hole { reason: "the process that ran the drill, and its probes, ended".to_owned() }]).await?;
            }
            drill.go().await?;
        }
        Ok(drill.state)
    }
}

/// A drill that this process conducts.
pub(super) struct Underway {
    pub(super) conductor: Conductor,
    pub(super) claim: Claim,
    pub(super) state: DrillState,
    /// What the drilled run sent to a control plane of DNS, as counted on the wire by this process.
    pub(super) control_plane_calls: Option<u64>,
}

impl Underway {
    async fn go(&mut self) -> Result<(), DrillError> {
        if self.state.preempted.is_some() {
            return self.give_way().await;
        }
        if !self.state.measured.contains_key(&RunRole::Main) {
            let prober = self.start_probe(RunRole::Main)?;
            let mut feed = prober.as_ref().map(Prober::subscribe);
            if !self.steady(feed.as_mut()).await? {
                return Ok(());
            }
            self.inject().await?;
            let watch = self.detect(feed.as_mut()).await?;
            if self.state.detected.is_some() || self.state.drill.scenario.is_empty() {
                self.run(RunRole::Main).await?;
                if self.state.preempted.is_some() {
                    return self.give_way().await;
                }
                self.await_recovery(feed.as_mut(), RunRole::Main).await;
            }
            if self.state.drill.kind == DrillKind::Restore {
                self.measure_restore().await?;
            } else {
                self.measure(RunRole::Main, prober, watch).await?;
            }
        }
        self.heal().await?;
        if self.state.context.then.is_some() && self.state.runs.contains_key(&RunRole::Main) {
            self.way_back().await?;
        }
        if self.state.preempted.is_some() { self.give_way().await } else { self.finish().await }
    }

    pub(super) async fn append(&mut self, bodies: Vec<Body>) -> Result<(), DrillError> {
        let stored = self.conductor.engine.append_for(&self.claim, self.state.seq, bodies).await?;
        for one in &stored {
            self.state.fold(&one.event, &one.hash);
            (self.conductor.engine.listener)(one);
        }
        Ok(())
    }

    fn start_probe(&self, role: RunRole) -> Result<Option<Prober>, DrillError> {
        let Some(http) = &self.state.drill.probes.http else { return Ok(None) };
        let endpoint =
            self.state.context.estate.endpoints.get(&http.endpoint).ok_or_else(|| DrillError::NoEndpoint(http.endpoint.clone()))?;
        let ledger = self.state.drill.probes.ledger.as_ref().map(|_| self.ledger_file(role));
        if let Some(folder) = ledger.as_deref().and_then(std::path::Path::parent) {
            std::fs::create_dir_all(folder).map_err(|e| DrillError::Folder(folder.display().to_string(), e.to_string()))?;
        }
        let spec = ProbeSpec::new(endpoint, http);
        Ok(Some(Prober::start(self.conductor.ports.clone(), spec, ledger.as_deref())?))
    }

    pub(super) fn ledger_file(&self, role: RunRole) -> PathBuf {
        let word = if role == RunRole::Main { "main" } else { "then" };
        self.conductor.dir.join("drills").join(self.state.id.as_str()).join(format!("ledger-{word}.jsonl"))
    }

    fn interrupted(&self) -> Result<(), DrillError> {
        self.owned()?;
        if *self.conductor.engine.interrupt.borrow() { Err(DrillError::Interrupted(self.state.id.clone())) } else { Ok(()) }
    }

    /// Nothing is done to the estate once another process may go on with the drill.
    fn owned(&self) -> Result<(), DrillError> {
        let holds = self.claim.hold.permits(self.conductor.engine.clock.monotonic());
        if holds { Ok(()) } else { Err(JournalError::Lapsed { run: self.state.id.clone() }.into()) }
    }

    /// The next sample; `None` when none came for so long that something is wrong with the probe itself.
    async fn sample(&self, feed: &mut Feed) -> Option<crate::plan::measure::ProbeSample> {
        tokio::select! {
            sample = feed.recv() => sample,
            () = self.conductor.engine.clock.sleep(SILENCE) => None,
        }
    }

    /// Only a service that is well can be drilled; what is not is put on record as skipped.
    async fn steady(&mut self, feed: Option<&mut Feed>) -> Result<bool, DrillError> {
        if self.state.steady.is_some() || self.state.injecting > 0 {
            return Ok(true);
        }
        let (Some(feed), Some(http)) = (feed, self.state.drill.probes.http.clone()) else {
            self.append(vec![Body::SteadyState { good: true, note: "not watched: the drill has no probe".to_owned() }]).await?;
            return Ok(true);
        };
        let clock = self.conductor.engine.clock.clone();
        let begun = clock.monotonic();
        let mut good_since = None;
        let mut last_bad = "no answer yet".to_owned();
        while clock.monotonic().saturating_sub(begun) < STEADY_WITHIN + http.steady.duration() {
            self.interrupted()?;
            let Some(sample) = self.sample(feed).await else { break };
            if !sample.good {
                last_bad = sample.why_bad.unwrap_or_default();
                good_since = None;
                continue;
            }
            let since = *good_since.get_or_insert(sample.done);
            if sample.done.duration_since(since) >= http.steady.signed() {
                let note = format!("only good answers for {}", http.steady);
                self.append(vec![Body::SteadyState { good: true, note }]).await?;
                return Ok(true);
            }
        }
        let reason = format!("the service was not in its steady state before the fault: {last_bad}");
        self.append(vec![Body::SteadyState { good: false, note: last_bad }, Body::DrillSkipped { reason }]).await?;
        Ok(false)
    }

    /// The scenario's faults, each on record before it is injected. One whose injection may or may not
    /// have happened is injected again: every fault here may happen twice.
    async fn inject(&mut self) -> Result<(), DrillError> {
        let faults = self.state.drill.scenario.clone();
        for (n, fault) in faults.iter().enumerate().skip(self.state.injected) {
            let Some(injector) = self.conductor.faults.clone() else { return Err(DrillError::NoLab) };
            self.interrupted()?;
            if self.state.injecting <= n {
                self.append(vec![Body::Injecting { fault: fault.clone() }]).await?;
            }
            self.owned()?;
            injector.inject(fault).await.map_err(DrillError::Fault)?;
            self.append(vec![Body::Injected { fault: fault.clone() }]).await?;
            if let Some(hold) = fault.target().hold {
                self.conductor.engine.clock.sleep(hold.duration()).await;
            }
        }
        Ok(())
    }

    /// Waits for the probe to call the service lost. Gives the watch over the resolvers, begun with the verdict.
    async fn detect(&mut self, feed: Option<&mut Feed>) -> Result<Option<super::probe_watch::ResolverWatch>, DrillError> {
        let (Some(feed), Some(http)) = (feed, self.state.drill.probes.http.clone()) else { return Ok(None) };
        if self.state.detected.is_none() && !self.state.drill.scenario.is_empty() && !self.state.runs.contains_key(&RunRole::Main) {
            let rule = self.state.drill.detect.clone();
            let mut detector = Detector::new(rule.good_probes_missed);
            let clock = self.conductor.engine.clock.clone();
            let begun = clock.monotonic();
            while clock.monotonic().saturating_sub(begun) < rule.within.duration() {
                self.interrupted()?;
                let Some(sample) = self.sample(feed).await else { break };
                if let Some(lost) = detector.feed(&sample) {
                    self.append(vec![Body::Detected { missed: lost.missed, last_good: lost.last_good, at: lost.at }]).await?;
                    break;
                }
            }
        }
        let endpoint = self.state.context.estate.endpoints.get(&http.endpoint);
        let ports = &self.conductor.ports;
        Ok(endpoint.map(|e| super::probe_watch::ResolverWatch::start(&ports.resolve, &ports.clock, &e.name, &e.resolvers)))
    }

    /// Runs one of the drill's runbooks to its end, or goes on with it.
    async fn run(&mut self, role: RunRole) -> Result<(), DrillError> {
        if self.state.ended(role).is_some() {
            return Ok(());
        }
        let engine = self.conductor.engine.clone();
        let adopted = self.adopt(role).await?;
        let resume = adopted.is_some();
        let claim = if let Some(run) = adopted {
            engine.journal.claim(&run, &engine.actor).await?
        } else {
            let plan = if role == RunRole::Main { Some(&self.state.context.main) } else { self.state.context.then.as_ref() };
            let Some(plan) = plan.cloned() else { return Ok(()) };
            let (claim, _) = match engine.create(plan, Some(self.state.id.clone())).await {
                // No drill goes on during an incident: what it broke is healed, and that is all.
                Err(EngineError::Journal(JournalError::Locked { holder, .. })) if self.for_real(&holder).await? => {
                    return self.makes_way(Some(&holder)).await;
                }
                other => other?,
            };
            self.append(vec![Body::RunStarted { run: claim.run.clone(), role }]).await?;
            claim
        };
        let run = claim.run.clone();
        let before = engine.world.control_plane_calls();
        let left = engine.carry_on(claim, resume).await?.state;
        if role == RunRole::Main {
            self.control_plane_calls = engine.world.control_plane_calls().zip(before).map(|(now, before)| now - before);
        }
        let status = left.status;
        if needs_a_person(status) {
            self.interrupted()?;
            return Err(DrillError::NeedsAPerson { drill: self.state.id.clone(), run, status });
        }
        self.append(vec![Body::RunEnded { run, role, status }]).await?;
        self.makes_way(left.made_way.as_ref()).await
    }

    /// Is this run no part of a drill?
    async fn for_real(&self, run: &RunId) -> Result<bool, DrillError> {
        Ok(self.conductor.engine.journal.row(run).await?.parent.is_none())
    }

    /// A run that was begun before: on record here, or made by a process that ended before it said so.
    async fn adopt(&mut self, role: RunRole) -> Result<Option<RunId>, DrillError> {
        if let Some((run, _)) = self.state.runs.get(&role) {
            return Ok(Some(run.clone()));
        }
        let children = self.conductor.engine.journal.children(&self.state.id).await?;
        let known: Vec<_> = self.state.runs.values().map(|(run, _)| run.clone()).collect();
        let Some(orphan) = children.into_iter().find(|child| !known.contains(&child.id)) else { return Ok(None) };
        self.append(vec![Body::RunStarted { run: orphan.id.clone(), role }]).await?;
        Ok(Some(orphan.id))
    }

    /// Until clients have had enough good answers in a row from where the service is now.
    async fn await_recovery(&self, feed: Option<&mut Feed>, role: RunRole) {
        let (Some(feed), Some(http)) = (feed, &self.state.drill.probes.http) else { return };
        if self.state.ended(role) != Some(RunStatus::Succeeded) {
            return;
        }
        let target = self.target(role);
        let clock = self.conductor.engine.clock.clone();
        let begun = clock.monotonic();
        let mut good = 0;
        while good < http.good && clock.monotonic().saturating_sub(begun) < STEADY_WITHIN {
            let Some(sample) = self.sample(feed).await else { return };
            let counts = sample.good && (target.is_none() || sample.address == target);
            good = if counts { good + 1 } else { 0 };
        }
    }

    /// Takes the faults back. Also when the runbook failed, and also when nothing was detected.
    pub(super) async fn heal(&mut self) -> Result<(), DrillError> {
        if self.state.healed.is_some() || self.state.injecting == 0 {
            return Ok(());
        }
        let Some(injector) = self.conductor.faults.clone() else { return Err(DrillError::NoLab) };
        self.append(vec![Body::Healing]).await?;
        self.owned()?;
        let note = injector.heal().await.map_err(DrillError::Fault)?;
        self.append(vec![Body::Healed { note }]).await
    }

    async fn way_back(&mut self) -> Result<(), DrillError> {
        if !self.state.measured.contains_key(&RunRole::Then) {
            // Once the way back is under way the region may have the lease again, and rightly acknowledges.
            let begun = self.state.runs.contains_key(&RunRole::Then);
            let stray = if begun { None } else { self.stray_writes().await };
            let prober = self.start_probe(RunRole::Then)?;
            let mut feed = prober.as_ref().map(Prober::subscribe);
            self.run(RunRole::Then).await?;
            if self.state.preempted.is_some() {
                return Ok(());
            }
            self.await_recovery(feed.as_mut(), RunRole::Then).await;
            self.measure_then(prober, stray).await?;
        }
        if self.state.as_found.is_none() {
            self.compare_with_found().await?;
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), DrillError> {
        let reason = self.main_failure().await?;
        let facts = self.facts(reason);
        let (verdict, reasons) = verdict::verdict(&facts);
        let summary = super::summary::summary(&self.state, verdict);
        self.append(vec![Body::DrillFinished { verdict, reasons, summary }]).await
    }
}
