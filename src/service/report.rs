//! A drill's report, filled from the journal: what the page shows is what is on record.

use super::{Muster, ServiceError, drills::drill_state, runs::state_of, view};
use crate::drill::{
    report::{ReportData, ReportEvidence, ReportSkip, ReportStep, ReportThen, ReportTraffic, render},
    state::{DrillState, Measurement},
    summary,
};
use crate::journal::{ChainKind, Journal};
use crate::model::{event::RunRole, ids::*, plan::Plan, status::*};
use crate::plan::{measure::ProbeSample, state::RunState};
use serde_json::Value;

impl Muster {
    /// The report of a drill; of the last one that ran, if none is named.
    pub async fn drill_report(&self, id: Option<&str>) -> Result<(RunId, String), ServiceError> {
        let journal = self.existing_journal().await?;
        let id = if let Some(prefix) = id {
            self.find(&*journal, prefix).await?
        } else {
            let rows = journal.list(ChainKind::Drill, 50).await?;
            let ran = rows.into_iter().find(|row| row.status != "missed");
            ran.map(|row| row.id).ok_or_else(|| ServiceError::Usage("no drill is on record that ran".to_owned()))?
        };
        let state = drill_state(&*journal, &id).await?;
        let data = data(&*journal, &state).await?;
        Ok((id, render(&data)))
    }
}

async fn data(journal: &dyn Journal, state: &DrillState) -> Result<ReportData, ServiceError> {
    let mut steps = Vec::new();
    let mut skipped = Vec::new();
    let mut chains = vec![state.id.clone()];
    for (role, (run, _)) in &state.runs {
        let known = state_of(journal, run).await?;
        chains.push(run.clone());
        for step in &known.plan.steps {
            let found = report_step(&known, &step.id, step.kind.uses(), *role);
            if let Some(why) = known.step(&step.id).and_then(|step| step.skipped.clone()) {
                skipped.push(ReportSkip { what: format!("step {}", step.id), why });
            }
            steps.extend(found);
        }
    }
    let evidence = view::evidence(journal, &chains).await?;
    let main = state.measured.get(&RunRole::Main);
    let mut findings: Vec<String> = state.holes.iter().map(|hole| format!("a hole in the measurement: {hole}")).collect();
    findings.extend(state.context.main.waive.iter().map(|waiver| waived(&state.context.main, waiver)));
    if let Some(then) = &state.context.then {
        findings.extend(then.waive.iter().map(|waiver| waived(then, waiver)));
    }
    findings.extend(main.iter().flat_map(|m| untold(m)));
    findings.extend(state.healed.iter().map(|note| format!("healed: {note}")));
    let traffic = main.and_then(summary::traffic).and_then(|(path, calls)| Some((path?, calls)));
    Ok(ReportData {
        drill: state.drill.drill.to_string(),
        description: state.drill.description.clone(),
        id: state.id.to_string(),
        run: state.runs.get(&RunRole::Main).map(|(run, _)| run.to_string()),
        runbook: state.context.main.runbook.to_string(),
        kind: state.drill.kind,
        verdict: state.verdict.as_ref().map(|(verdict, _)| *verdict),
        reasons: state.skipped.iter().cloned().chain(state.verdict.iter().flat_map(|(_, reasons)| reasons.clone())).collect(),
        scheduled_for: state.scheduled_for,
        started_at: state.started_at,
        finished_at: state.finished_at,
        scenario: state.drill.scenario.iter().map(|fault| format!("{} {}", fault.word(), fault.target().region)).collect(),
        fault_at: state.fault_at,
        instants: main.map(|m| m.instants.clone()).unwrap_or_default(),
        rto: main.map(|m| m.rto.clone()).unwrap_or_default(),
        rpo: main.map(|m| m.rpo.clone()).unwrap_or_default(),
        steps,
        samples: main.map(samples).unwrap_or_default(),
        findings,
        skipped,
        traffic: traffic.map(|(path, calls)| ReportTraffic { path: path.to_owned(), control_plane_calls: calls }),
        then: then(state),
        evidence: ReportEvidence {
            events: evidence["events"].as_u64().unwrap_or_default(),
            head: evidence["head"].as_str().unwrap_or_default().to_owned(),
            verified: evidence["verified"].as_bool(),
            ledger: main.and_then(|m| m.ledger.clone()),
        },
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

/// What a restoring step could not tell of the data loss.
fn untold(measured: &Measurement) -> Vec<String> {
    let losses = measured.notes.get("losses").and_then(Value::as_object).into_iter().flatten();
    losses.filter_map(|(step, loss)| Some(format!("the data loss of step {step}: {}", loss.get("why")?.as_str()?))).collect()
}

/// A rule of the house that a runbook sets aside, as the runbook spells it.
fn waived(plan: &Plan, waiver: &crate::model::runbook::Waiver) -> String {
    let rule = serde_json::to_value(waiver.rule).ok().and_then(|rule| rule.as_str().map(str::to_owned)).unwrap_or_default();
    format!("waived by {}: {rule}: {}", plan.runbook, waiver.reason)
}

fn report_step(state: &RunState, id: &StepId, uses: &str, role: RunRole) -> Option<ReportStep> {
    let known = state.step(id)?;
    let duration = known.started_at.zip(known.ended_at).and_then(|(from, to)| u64::try_from(to.duration_since(from).as_millis()).ok());
    let overridden = known.overridden.as_ref().map(|by| format!("OVERRIDDEN by {} ({}): {}", by.by, by.was, by.reason));
    // What was noted before it was begun is no warning, if there are any.
    let said = if known.warnings.is_empty() { &known.notes } else { &known.warnings };
    let warnings = Some(said.join("; ")).filter(|said| !said.is_empty() && known.status == StepStatus::SucceededWithWarning);
    Some(ReportStep {
        id: id.to_string(),
        uses: uses.to_owned(),
        role,
        status: known.status,
        attempts: known.attempts,
        started_at: known.started_at,
        duration_ms: duration,
        note: overridden.or(known.failure.as_ref().map(ToString::to_string)).or(known.question.clone()).or(warnings),
    })
}

/// The probe's samples as they stand in the journal: sent, done, good.
fn samples(measured: &Measurement) -> Vec<ProbeSample> {
    let rows = measured.notes.get("samples").and_then(Value::as_array).cloned().unwrap_or_default();
    let sample = |(seq, row): (u64, &Value)| {
        let at = |n: usize| row.get(n)?.as_i64().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        let good = row.get(2)?.as_u64()? == 1;
        Some(ProbeSample { seq, sent: at(0)?, done: at(1)?, good, address: None, why_bad: None, id: None })
    };
    (0..).zip(&rows).filter_map(sample).collect()
}

fn then(state: &DrillState) -> Option<ReportThen> {
    let plan = state.context.then.as_ref()?;
    let (run, status) = state.runs.get(&RunRole::Then)?;
    let measured = state.measured.get(&RunRole::Then);
    Some(ReportThen {
        run: Some(run.to_string()),
        runbook: plan.runbook.to_string(),
        status: status.unwrap_or(RunStatus::Running),
        acknowledged_writes: measured.and_then(|m| m.rpo.acknowledged_writes),
        lost_writes: measured.and_then(|m| m.rpo.lost_writes),
        write_pause_ms: measured.and_then(|m| m.notes.get("write_pause_ms")?.as_u64()),
        as_found: state.as_found.as_ref().map(|(same, _)| *same),
        differences: state.as_found.as_ref().map(|(_, differences)| differences.clone()).unwrap_or_default(),
    })
}
