//! The facts of an approval: what they come to, looked at afresh where a check gave them.
//!
//! A check that gave a fact is made again before the fact is believed: reads may be made at any time. What
//! a step that acts gave is taken from the record.

use super::work::{self, Report, Told};
use crate::actions::contract::*;
use crate::model::{effect::*, event::*, ids::*, plan::*};
use crate::plan::{
    approval::{outside, plan_digest},
    state::{RunState, StepState},
};
use serde_json::Value;
use std::{collections::BTreeMap, future::Future, pin::Pin, time::Duration};

/// What a check gave so lately need not be looked at again before people are asked.
const FRESH: jiff::SignedDuration = jiff::SignedDuration::from_secs(30);

pub type Facts = BTreeMap<String, Value>;

/// One check that is to be made again.
struct Again {
    step: StepId,
    action: Box<dyn DynAction>,
    read: ReadCx,
    write: WriteCx,
    with: Result<Option<crate::model::node::Node>, String>,
    limit: Duration,
}

/// Looks at every fact of a step's approval. `confirm`: the approvals are there, and this decides whether they count.
pub fn task(cx: &work::Doing<'_>, step: &PlanStep, confirm: bool, told: Told) -> Option<Pin<Box<dyn Future<Output = Report> + Send>>> {
    let approval = step.asks()?.clone();
    let context = work::context(cx.state, &cx.claim.run);
    let now = cx.engine.clock.now();
    let sources = sources(&approval);
    // Whoever was asked before is asked again because something changed.
    let anew = confirm || cx.state.step(&step.id).is_some_and(|known| known.mark > 0);
    let due = |id: &StepId| {
        let ended = cx.state.step(id).and_then(|known| known.ended_at);
        anew || ended.is_none_or(|at| now.duration_since(at) > FRESH)
    };
    let named = cx.state.plan.steps.iter().filter(|step| sources.contains(&step.id) && due(&step.id));
    let checks: Vec<Again> = named.filter_map(|step| again(cx, step)).collect();
    Some(Box::pin(work::unless_told(told.reading, async move {
        let mut context = context;
        for check in checks {
            let id = check.step.clone();
            match look(check).await {
                Ok(output) => context = context.with_step(id.as_str(), output),
                Err(why) => {
                    return Report::Facts {
                        confirm,
                        facts: Err(Failure::new("fact_unknown", format!("step `{id}` was made again: {why}"))),
                    };
                }
            }
        }
        let facts = approval.facts.iter().map(|(name, fact)| {
            let value = work::value(&fact.value, &context).map_err(|why| Failure::new("fact_unknown", format!("the fact `{name}`: {why}")));
            Ok((name.clone(), value?))
        });
        Report::Facts { confirm, facts: facts.collect() }
    })))
}

/// The steps that an approval's facts are taken from.
fn sources(approval: &Approval) -> Vec<StepId> {
    let texts = approval.facts.values().filter_map(|fact| fact.value.as_str());
    let paths = texts.flat_map(work::variables);
    paths.filter_map(|path| path.strip_prefix("steps.").and_then(|rest| rest.split('.').next()).map(StepId::from)).collect()
}

fn again(cx: &work::Doing<'_>, step: &PlanStep) -> Option<Again> {
    let StepKind::Action { name, effect: Effect::Read, .. } = &step.kind else { return None };
    cx.state.step(&step.id).filter(|known| known.output.is_some())?;
    let action = crate::actions::find(name)?;
    let (read, write) = work::contexts(cx, step);
    Some(Again { step: step.id.clone(), action, read, write, with: work::render(cx.state, cx.claim, step), limit: step.timeout.duration() })
}

async fn look(check: Again) -> Result<Value, String> {
    let Again { action, read, write, with, limit, .. } = check;
    let with = with?.ok_or("its `when` is false now")?;
    let looked = async {
        let prepared = action.prepare(&read, &with).await.map_err(|refusal| refusal.failure.to_string())?;
        action.apply(&write, &prepared.intent).await.map_err(|error| match error {
            ApplyError::Definite(failure) | ApplyError::Retry { failure, .. } | ApplyError::Unknown(failure) => failure.to_string(),
        })
    };
    tokio::time::timeout(limit, looked).await.unwrap_or_else(|_| Err("no answer in time".to_owned()))
}

/// The events that a look at the facts amounts to.
pub fn bodies(
    cx: &work::Context<'_>,
    state: &RunState,
    confirm: bool,
    facts: Result<Facts, Failure>,
    at: impl Fn(u64) -> jiff::Timestamp,
) -> Vec<Body> {
    let step = cx.planned.id.clone();
    let Some(approval) = cx.planned.asks() else { return Vec::new() };
    let judged = facts.and_then(|facts| {
        let beyond = outside(approval, &facts);
        if beyond.is_empty() { Ok(facts) } else { Err(Failure::new("out_of_bounds", beyond.join("; "))) }
    });
    match judged {
        Ok(facts) if confirm => {
            let mut bodies = vec![Body::FactsConfirmed { step: step.clone(), facts }];
            if matches!(cx.planned.kind, StepKind::Approval(_)) {
                bodies.push(Body::StepEnded { step, status: crate::model::status::StepStatus::Succeeded, failure: None });
            }
            bodies
        }
        Ok(facts) => vec![asked(cx.planned, cx.known, state, facts, cx.now)],
        Err(failure) if confirm => vec![Body::ApprovalVoid { step, why: failure.message, facts: Facts::new() }],
        Err(failure) => {
            let attempt = cx.known.attempts + 1;
            let next =
                super::failed(cx.planned, &step, attempt, &failure, super::Retry { allowed: true, timed_out: false, hint_ms: None }, at);
            vec![Body::Refused { step, attempt, failure, retry: true }, next]
        }
    }
}

/// The request itself: over the plan, or over the intent that was prepared.
pub fn asked(planned: &PlanStep, known: &StepState, state: &RunState, facts: Facts, now: jiff::Timestamp) -> Body {
    let approval = planned.asks().cloned().unwrap_or_default();
    let over = match planned.kind {
        StepKind::Approval(_) => plan_digest(&state.plan),
        StepKind::Action { .. } => known.hash.clone().unwrap_or_default(),
    };
    Body::ApprovalAsked {
        step: planned.id.clone(),
        over,
        approvers: approval.approvers,
        expires_at: now + approval.expires.signed(),
        message: approval.message,
        facts,
    }
}

/// Is a look needed at all, or can people be asked at once?
#[must_use]
pub fn needed(step: &PlanStep) -> bool {
    step.asks().is_some_and(|approval| !approval.facts.is_empty())
}
