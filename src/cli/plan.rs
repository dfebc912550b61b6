//! `muster plan`: what a runbook would do. Nothing is changed: the actions' `prepare` cannot write, by type.

use super::{
    Done,
    output::{Output, table},
    run::Inputs,
};
use crate::actions::contract::ReadCx;
use crate::engine::work::key;
use crate::model::{effect::Change, ids::RunId, plan::*};
use crate::runbook::{
    expr,
    reach::{lint_reach, path},
};
use crate::service::Muster;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

#[derive(clap::Args)]
#[command(after_help = "Example:\n  muster plan regional-failover -i from=east -i to=west")]
pub struct Args {
    /// A path, or a name in runbooks/
    runbook: String,
    #[command(flatten)]
    inputs: Inputs,
    /// Let it need the failed region or a global control plane all the same; the reason stands on the record of its run
    #[arg(long, value_name = "REASON")]
    waive: Option<String>,
}

/// How long one step's look at the world may take.
const LOOK: Duration = Duration::from_secs(20);

pub async fn main(args: &Args, muster: &Muster, output: &Output) -> Done {
    let plan = muster.compile(&args.runbook, &args.inputs.read()?, false, args.waive.as_deref())?;
    let (warnings, path) = (lint_reach(&plan), path(&plan));
    let world = Arc::new(crate::providers::world::World::new(plan.estate.clone(), muster.clock.clone()));
    let run = RunId::from("plan");
    let cx = |step: &PlanStep| ReadCx {
        world: world.clone(),
        estate: plan.estate.clone(),
        run: run.clone(),
        step: step.id.clone(),
        scope: plan.scope,
        lost: plan.lost(),
        key: key(&run, &step.id),
        deadline: LOOK,
        scratch: muster.state.join("plan"),
    };
    let mut steps = Vec::new();
    for step in &plan.steps {
        steps.push((step, look(step, &plan, cx(step)).await));
    }
    output.diagnostics(&warnings);
    let slowest = critical_path(&plan);
    if output.json {
        let steps: Vec<_> = steps.iter().map(|(step, seen)| step_view(step, seen)).collect();
        let longest: Vec<_> = slowest.iter().map(|step| &step.id).collect();
        let bound: u64 = slowest.iter().map(|step| step.timeout.ms).sum();
        output.object(&json!({ "runbook": plan.runbook, "mode": plan.mode, "inputs": plan.inputs, "locks": plan.locks, "steps": steps,
            "path": path, "critical_path": { "steps": longest, "timeouts_ms": bound }, "warnings": warnings, "waive": plan.waive }));
    } else {
        print(&plan, &steps, &slowest, output);
        output.line(path.told());
        output.line("nothing was changed");
    }
    Ok(0)
}

/// What can be said of a step before anything has run.
enum Seen {
    Changes(Vec<Change>, Vec<String>),
    Refused(String),
    /// It needs what another step gives.
    Later,
    Approval,
}

async fn look(step: &PlanStep, plan: &Plan, cx: ReadCx) -> Seen {
    let StepKind::Action { name, .. } = &step.kind else { return Seen::Approval };
    let context = expr::Context::new(&plan.inputs);
    let (Some(action), Ok(with)) = (crate::actions::find(name), expr::render(&step.with, &context)) else { return Seen::Later };
    match tokio::time::timeout(LOOK, action.prepare(&cx, &with)).await {
        Ok(Ok(prepared)) => Seen::Changes(prepared.change, prepared.notes),
        Ok(Err(refusal)) => Seen::Refused(refusal.failure.to_string()),
        Err(_) => Seen::Refused(format!("no answer within {LOOK:?}")),
    }
}

fn step_view(step: &PlanStep, seen: &Seen) -> Value {
    let (state, changes, notes) = match seen {
        Seen::Changes(changes, notes) => ("prepared", json!(changes), json!(notes)),
        Seen::Refused(why) => ("refused_now", json!([]), json!([why])),
        Seen::Later => ("needs_outputs", json!([]), json!([])),
        Seen::Approval => ("approval", json!([]), json!([])),
    };
    json!({ "id": step.id, "uses": step.kind.uses(), "needs": step.needs, "timeout_ms": step.timeout.ms, "reach": step.reach,
        "state": state, "changes": changes, "notes": notes })
}

/// The chain of steps whose timeouts add up to most: the longest that the run can take.
fn critical_path(plan: &Plan) -> Vec<&PlanStep> {
    let mut best: std::collections::BTreeMap<&str, (u64, Option<&str>)> = std::collections::BTreeMap::new();
    // A step's needs may stand later in the file; as many rounds as there are steps settle all.
    for _ in &plan.steps {
        for step in &plan.steps {
            let before = step.needs.iter().filter_map(|need| best.get(need.as_str()).map(|(ms, _)| (*ms, need.as_str()))).max();
            let total = step.timeout.ms + before.map_or(0, |(ms, _)| ms);
            best.insert(step.id.as_str(), (total, before.map(|(_, id)| id)));
        }
    }
    let mut at = best.iter().max_by_key(|(_, (ms, _))| *ms).map(|(id, _)| *id);
    let mut path = Vec::new();
    while let Some(step) = at.and_then(|id| plan.steps.iter().find(|step| step.id.as_str() == id)) {
        path.push(step);
        at = best.get(step.id.as_str()).and_then(|(_, before)| *before);
    }
    path.reverse();
    path
}

fn print(plan: &Plan, steps: &[(&PlanStep, Seen)], slowest: &[&PlanStep], output: &Output) {
    output.line(format!("{} ({})", plan.runbook, plan.file));
    for waiver in &plan.waive {
        output.line(format!("waived: {}: {}", json!(waiver.rule).as_str().unwrap_or_default(), waiver.reason));
    }
    let mut table = table(&["STEP", "USES", "AFTER", "WOULD"]);
    for (step, seen) in steps {
        let needs = step.needs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let would = match seen {
            Seen::Changes(changes, notes) if changes.is_empty() => {
                if notes.is_empty() {
                    "change nothing".to_owned()
                } else {
                    notes.join("; ")
                }
            }
            Seen::Changes(changes, _) => changes.iter().map(change).collect::<Vec<_>>().join("\n"),
            Seen::Refused(why) => format!("be refused as things are: {why}"),
            Seen::Later => "depend on what earlier steps give".to_owned(),
            Seen::Approval => "wait for approval".to_owned(),
        };
        table.add_row(vec![step.id.to_string(), step.kind.uses().to_owned(), needs, would]);
    }
    output.line(table.to_string());
    let names = slowest.iter().map(|step| step.id.as_str()).collect::<Vec<_>>().join(" -> ");
    let total = crate::model::time::Span::from_ms(slowest.iter().map(|step| step.timeout.ms).sum());
    output.line(format!("longest path: {names}; at most {total} by its timeouts"));
}

fn change(change: &Change) -> String {
    let from = change.from.as_deref().map(|from| format!("{from} -> ")).unwrap_or_default();
    format!("{}: {from}{}", change.what, change.to.as_deref().unwrap_or("nothing"))
}
