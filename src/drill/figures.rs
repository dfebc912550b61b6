//! The figures of a drill: from the probe's log, the ledger, the run's events and the database to what
//! is journaled as measured.

use super::{
    as_found,
    conduct::{DrillError, Underway},
    probe::{ProbeLog, Prober},
    probe_ledger,
    probe_watch::ResolverWatch,
};
use crate::model::{drill::DrillKind, effect::Effect, event::*, ids::*, objective::*, plan::*, status::RunStatus};
use crate::plan::{
    measure::{LedgerEntry, Recovery, instants, longest_pause, rpo, rto},
    verdict::Facts,
};
use crate::providers::port::HttpRequest;
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// How long the database may take to tell which writes it has.
const LOOKUP: Duration = Duration::from_mins(1);
/// How long the estate may take to come to rest as it was found.
const SETTLE: Duration = Duration::from_secs(30);
/// How many writes are tried on a region that came back fenced.
const STRAY_TRIES: u32 = 10;

/// What a run's own events say of its recovery.
#[derive(Default)]
struct RunInstants {
    first_applying: Option<jiff::Timestamp>,
    traffic_sent: Option<jiff::Timestamp>,
    traffic_applied: Option<jiff::Timestamp>,
    traffic_calls: u64,
}

impl Underway {
    /// The input `to` of a run, if it names a region.
    fn region(&self, role: RunRole) -> Option<RegionName> {
        let context = &self.state.context;
        let plan = if role == RunRole::Main { Some(&context.main) } else { context.then.as_ref() };
        let to = plan?.inputs.get("to")?.as_str()?;
        context.estate.regions.contains_key(to).then(|| RegionName::from(to))
    }

    /// Where the endpoint points after a run.
    pub(super) fn target(&self, role: RunRole) -> Option<IpAddr> {
        let http = self.state.drill.probes.http.as_ref()?;
        let endpoint = self.state.context.estate.endpoints.get(&http.endpoint)?;
        endpoint.targets.get(&self.region(role)?).copied()
    }

    async fn run_instants(&self, role: RunRole) -> Result<RunInstants, DrillError> {
        let mut found = RunInstants::default();
        let Some((run, _)) = self.state.runs.get(&role) else { return Ok(found) };
        let plan = if role == RunRole::Main { Some(&self.state.context.main) } else { self.state.context.then.as_ref() };
        let kind = |step: &StepId| plan.and_then(|plan| plan.step(step)).map(|step| &step.kind);
        let changes = |step: &StepId| matches!(kind(step), Some(StepKind::Action { effect, .. }) if *effect != Effect::Read);
        let traffic = |step: &StepId| kind(step).is_some_and(|kind| kind.uses().starts_with("dns.") || kind.uses().starts_with("traffic."));
        for stored in self.conductor.engine.journal.load(run, 0).await? {
            match &stored.event.body {
                Body::Applying { step, .. } if changes(step) => {
                    found.first_applying.get_or_insert(stored.event.at);
                    if traffic(step) {
                        found.traffic_sent = Some(stored.event.at);
                        found.traffic_calls += 1;
                    }
                }
                Body::Applied { step, .. } if traffic(step) => found.traffic_applied = Some(stored.event.at),
                _ => {}
            }
        }
        Ok(found)
    }

    /// Which of the ledger's writes are in the database that the run made primary.
    async fn present(&self, role: RunRole, entries: &[LedgerEntry]) -> Result<BTreeSet<String>, String> {
        let ledger = self.state.drill.probes.ledger.as_ref().ok_or("the drill keeps no ledger")?;
        let region = self.region(role).ok_or("the runbook has no input `to` that names a region")?;
        let world = &self.conductor.engine.world;
        let sql = world.sql(ledger.database.as_str(), region.as_str()).map_err(|e| e.to_string())?;
        let ids: Vec<String> = entries.iter().map(|entry| entry.id.clone()).collect();
        let asked = tokio::time::timeout(LOOKUP, sql.present(&ledger.table, &ledger.column, &ids)).await;
        asked
            .map_err(|_| "the database did not answer in time".to_owned())?
            .map(|found| found.into_iter().collect())
            .map_err(|e| e.to_string())
    }

    async fn loss(&self, role: RunRole, log: &ProbeLog, fault: Option<jiff::Timestamp>, hole: bool) -> (Rpo, Option<String>) {
        let objective = self.state.drill.objectives.rpo;
        if self.state.drill.probes.ledger.is_none() {
            return (rpo(objective, None, None, None), None);
        }
        let entries = probe_ledger::read(&self.ledger_file(role));
        let trusted = match (&entries, &log.ledger_error, hole) {
            (Ok(entries), None, false) => entries,
            (Err(error), ..) => return (rpo(objective, None, None, None), Some(error.to_string())),
            (_, Some(error), _) => return (rpo(objective, None, None, None), Some(error.clone())),
            (.., true) => return (rpo(objective, None, None, None), Some("the ledger has a hole".to_owned())),
        };
        match self.present(role, trusted).await {
            Ok(present) => (rpo(objective, Some(trusted), Some(&present), fault), None),
            Err(why) => (rpo(objective, Some(trusted), None, fault), Some(why)),
        }
    }

    /// Journals what was measured over the drilled runbook.
    pub(super) async fn measure(&mut self, role: RunRole, prober: Option<Prober>, watch: Option<ResolverWatch>) -> Result<(), DrillError> {
        let log = match prober {
            Some(prober) => prober.stop().await,
            None => ProbeLog::default(),
        };
        let resolvers = match watch {
            Some(watch) => watch.stop().await,
            None => Vec::new(),
        };
        let run = self.run_instants(role).await?;
        let hole = !self.state.holes.is_empty();
        let recovery = Recovery {
            samples: &log.samples,
            resolvers: &resolvers,
            fault: self.state.fault_at,
            detected: self.state.detected,
            first_applying: run.first_applying,
            traffic_sent: run.traffic_sent,
            traffic_applied: run.traffic_applied,
            target: self.target(role),
            good: self.state.drill.probes.http.as_ref().map_or(1, |http| http.good),
        };
        let found = instants(&recovery);
        let mut time = rto(&found, self.state.drill.objectives.rto, hole);
        let succeeded = self.state.ended(role) == Some(RunStatus::Succeeded);
        if self.state.drill.scenario.is_empty() && succeeded && !hole {
            // Planned: nothing was lost, nothing detected; what clients felt is the pause.
            let pause = longest_pause(&log.samples, self.state.started_at, self.conductor.engine.clock.now()).map(|span| span.ms);
            time.actual_ms = pause;
            time.met = time.objective_ms.zip(pause).map(|(objective, pause)| pause <= objective);
        }
        let (loss, why) = self.loss(role, &log, self.state.fault_at.or(self.state.detected), hole).await;
        let mut notes = probe_notes(&log);
        notes.insert("traffic_calls".to_owned(), json!(run.traffic_calls));
        // What another process sent is not known here.
        notes.insert("control_plane_calls".to_owned(), json!(self.control_plane_calls.filter(|_| !hole)));
        if let Some(why) = why {
            notes.insert("loss_not_measured".to_owned(), json!(why));
        }
        let strip: Vec<_> =
            log.samples.iter().map(|s| json!([s.sent.as_millisecond(), s.done.as_millisecond(), u8::from(s.good)])).collect();
        notes.insert("samples".to_owned(), json!(strip));
        self.append(vec![Body::Measured { phase: role, instants: found, rto: time, rpo: loss, ledger: log.ledger, notes }]).await
    }

    /// Journals what was measured over the way back.
    pub(super) async fn measure_then(&mut self, prober: Option<Prober>, stray: Option<u64>) -> Result<(), DrillError> {
        let begun = self.conductor.engine.clock.now();
        let log = match prober {
            Some(prober) => prober.stop().await,
            None => ProbeLog::default(),
        };
        // A hole spans this phase when the run was begun by another process: its claim says so.
        let hole = self.hole_in_then().await?;
        let (loss, why) = self.loss(RunRole::Then, &log, None, hole).await;
        let first = log.samples.first().map_or(begun, |sample| sample.sent);
        let pause = if hole { None } else { longest_pause(&log.samples, first, begun).map(|span| span.ms) };
        let mut notes = probe_notes(&log);
        notes.insert("write_pause_ms".to_owned(), json!(pause));
        notes.insert("stray_writes".to_owned(), json!(stray));
        if let Some(why) = why {
            notes.insert("loss_not_measured".to_owned(), json!(why));
        }
        let bodies = vec![Body::Measured {
            phase: RunRole::Then,
            instants: Instants::default(),
            rto: Rto::default(),
            rpo: loss,
            ledger: log.ledger,
            notes,
        }];
        self.append(bodies).await
    }

    async fn hole_in_then(&self) -> Result<bool, DrillError> {
        let Some((run, _)) = self.state.runs.get(&RunRole::Then) else { return Ok(true) };
        let events = self.conductor.engine.journal.load(run, 0).await?;
        Ok(events.iter().filter(|stored| matches!(stored.event.body, Body::Claimed { .. })).count() > 1)
    }

    /// Writes sent straight to the region that was lost, now that it is back: a fenced one acknowledges none. Where its
    /// service writes into the new primary instead, what it acknowledges is there, and is no stray.
    pub(super) async fn stray_writes(&self) -> Option<u64> {
        let probes = &self.state.drill.probes;
        // Without a ledger the probe may ask for no write at all, and an answer is no acknowledgement of one.
        let http = probes.http.as_ref().filter(|http| http.body.is_some() && probes.ledger.is_some())?;
        let endpoint = self.state.context.estate.endpoints.get(&http.endpoint)?;
        let fault = self.state.drill.scenario.first()?;
        let address = endpoint.targets.get(&fault.target().region).copied()?;
        let spec = super::probe::ProbeSpec::new(endpoint, http);
        let (clock, client) = (&self.conductor.ports.clock, &self.conductor.ports.http);
        let mut acknowledged = Vec::new();
        for _ in 0..STRAY_TRIES {
            let id = clock.new_id();
            let request = HttpRequest {
                method: "POST".to_owned(),
                url: spec.url.clone(),
                headers: BTreeMap::from([("content-type".to_owned(), "application/json".to_owned())]),
                body: spec.body.as_ref().map(|body| body.replace("$ID", &id).into_bytes()),
                connect_to: Some(SocketAddr::new(address, spec.port)),
                timeout: Some(Duration::from_millis(500)),
            };
            let answer = client.send(request).await;
            if answer.is_ok_and(|answer| (200..300).contains(&answer.status)) {
                let now = clock.now();
                acknowledged.push(LedgerEntry { id, sent: now, acked: now });
            }
            clock.sleep(Duration::from_millis(50)).await;
        }
        // Where it cannot be asked what the new primary has, none of them is known to be there.
        let there =
            if acknowledged.is_empty() { BTreeSet::new() } else { self.present(RunRole::Main, &acknowledged).await.unwrap_or_default() };
        Some(acknowledged.iter().filter(|entry| !there.contains(&entry.id)).count() as u64)
    }

    pub(super) async fn compare_with_found(&mut self) -> Result<(), DrillError> {
        let before: as_found::Facts = serde_json::from_value(self.state.context.as_found.clone()).unwrap_or_default();
        let clock = self.conductor.engine.clock.clone();
        let begun = clock.monotonic();
        let differences = loop {
            let after = as_found::capture(&*self.conductor.engine.world, &self.state.context.estate).await;
            let differences = as_found::differences(&before, &after);
            if differences.is_empty() || clock.monotonic().saturating_sub(begun) > SETTLE {
                break differences;
            }
            clock.sleep(Duration::from_millis(200)).await;
        };
        self.append(vec![Body::AsFound { same: differences.is_empty(), differences }]).await
    }

    /// Why the drilled runbook did not succeed, in its own words: the failures of its steps.
    pub(super) async fn main_failure(&self) -> Result<Option<String>, DrillError> {
        let Some((run, Some(status))) = self.state.runs.get(&RunRole::Main) else { return Ok(None) };
        if *status == RunStatus::Succeeded {
            return Ok(None);
        }
        let events = self.conductor.engine.journal.load(run, 0).await?;
        let state = crate::plan::state::RunState::of(events.iter().map(|stored| &stored.event));
        let steps = state.map(|state| state.steps).unwrap_or_default();
        let failed = steps.iter().filter(|(_, step)| step.status.is_failure());
        let words: Vec<_> = failed.filter_map(|(id, step)| Some(format!("step `{id}`: {}", step.failure.as_ref()?))).collect();
        Ok((!words.is_empty()).then(|| words.join("; ")))
    }

    pub(super) fn facts(&self, reason: Option<String>) -> Facts {
        let state = &self.state;
        let main = state.measured.get(&RunRole::Main);
        let then = state.measured.get(&RunRole::Then);
        Facts {
            main: state.ended(RunRole::Main).map(|status| (status, reason)),
            rto: main.map(|m| m.rto.clone()).unwrap_or_default(),
            rpo: main.map(|m| m.rpo.clone()).unwrap_or_default(),
            restore: state.drill.kind == DrillKind::Restore,
            probed: state.drill.probes.http.is_some(),
            ledgered: state.drill.probes.ledger.is_some(),
            hole: !state.holes.is_empty(),
            then: state.context.then.as_ref().map(|_| state.ended(RunRole::Then)),
            then_lost: then.and_then(|m| m.rpo.lost_writes),
            as_found: state.as_found.as_ref().map(|(same, _)| *same),
            stray_writes: then.and_then(|m| m.notes.get("stray_writes")?.as_u64()),
        }
    }
}

fn probe_notes(log: &ProbeLog) -> BTreeMap<String, serde_json::Value> {
    let good = log.samples.iter().filter(|sample| sample.good).count();
    BTreeMap::from([
        ("probes".to_owned(), json!(log.samples.len())),
        ("good_probes".to_owned(), json!(good)),
        ("probes_not_sent".to_owned(), json!(log.not_sent)),
        ("probes_stalled".to_owned(), json!(log.stalled)),
    ])
}
