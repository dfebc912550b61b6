//! Who may approve what, what exactly is signed, and whether a fact is within its bounds.
//!
//! A statement binds run, step, the very request (its place in the chain), the person, the digest of plan
//! and inputs, what the approval is over, every fact as shown with its bounds, and the end of its time. So
//! it is worth nothing for another run, request, plan, set of facts or person. [`check`] is asked when an
//! approval is given, when the owner takes it, when the record is folded and when it is verified.

use super::state::{RunState, StepState};
use crate::model::{estate::Estate, ids::*, plan::*, signing::*, time::rfc3339_ms};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// The digest of plan and inputs.
#[must_use]
pub fn plan_digest(plan: &Plan) -> String {
    hex::encode(Sha256::digest(serde_json::to_vec(plan).unwrap_or_default()))
}

/// What a statement says beside who and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act<'a> {
    Approve,
    /// With the reason.
    Override(&'a str),
}

/// The text that a person signs; `None` when there is nothing in this state that the act could be about.
#[must_use]
pub fn statement(state: &RunState, run: &RunId, step: &StepId, by: &str, act: Act<'_>) -> Option<String> {
    let (planned, known) = (state.plan.step(step)?, state.step(step)?);
    let word = match act {
        Act::Approve => "approve",
        Act::Override(_) => "override",
    };
    let mut lines = vec![
        "muster statement 1".to_owned(),
        format!("act: {word}"),
        format!("run: {}", plain(run.as_str())),
        format!("runbook: {}", plain(state.plan.runbook.as_str())),
        format!("step: {}", plain(step.as_str())),
        format!("by: {}", plain(by)),
        format!("plan: sha256:{}", plan_digest(&state.plan)),
    ];
    match act {
        Act::Approve => {
            let asked = known.asked.as_ref()?;
            lines.push(format!("request: {}", asked.seq));
            lines.push(format!("over: sha256:{}", asked.over));
            lines.extend(asked.facts.iter().map(|(name, value)| format!("fact: {}", fact_line(planned, name, value))));
            lines.push(format!("expires: {}", rfc3339_ms(asked.expires_at)));
        }
        Act::Override(reason) => {
            lines.push(format!("request: {}", known.mark));
            lines.push(format!("status: {}", known.status.word()));
            lines.push(format!("reason: {}", Value::from(reason)));
        }
    }
    Some(lines.join("\n") + "\n")
}

/// A word as it stands when it can be nothing else, in quotes otherwise: no value can pretend to be a line.
fn plain(text: &str) -> String {
    let harmless = |c: char| c.is_ascii_alphanumeric() || "-_.@/+:".contains(c);
    if !text.is_empty() && text.chars().all(harmless) { text.to_owned() } else { Value::from(text).to_string() }
}

/// A fact as it is shown and signed: its value, and its bounds.
#[must_use]
pub fn fact_line(step: &PlanStep, name: &str, value: &Value) -> String {
    let bounds = step.asks().and_then(|approval| approval.facts.get(name)).map(bounds).unwrap_or_default();
    format!("{} = {value}{bounds}", plain(name))
}

fn bounds(fact: &Fact) -> String {
    let all = [
        ("at most", fact.at_most.as_ref().map(|b| &b.0)),
        ("at least", fact.at_least.as_ref().map(|b| &b.0)),
        ("equals", fact.equals.as_ref()),
    ];
    let said = all.into_iter().filter_map(|(word, bound)| Some(format!("; {word} {}", bound?)));
    said.collect()
}

/// What lies outside its bounds, in words.
#[must_use]
pub fn outside(approval: &Approval, facts: &BTreeMap<String, Value>) -> Vec<String> {
    let mut out = Vec::new();
    for (name, fact) in &approval.facts {
        let Some(value) = facts.get(name) else {
            out.push(format!("{name} is not known"));
            continue;
        };
        let quantity = Bound::quantity(value);
        let limits = [(&fact.at_most, "at most", std::cmp::Ordering::Greater), (&fact.at_least, "at least", std::cmp::Ordering::Less)];
        for (bound, word, beyond) in limits {
            let Some(bound) = bound else { continue };
            let order = quantity.zip(Bound::quantity(&bound.0)).and_then(|(value, bound)| value.partial_cmp(&bound));
            // What cannot be compared is not within its bound.
            if order.is_none_or(|order| order == beyond) {
                out.push(format!("{name} is {value}, and must be {word} {}", text(&bound.0)));
            }
        }
        if let Some(wanted) = fact.equals.as_ref().filter(|wanted| text(wanted) != text(value)) {
            out.push(format!("{name} is {value}, and must be {}", text(wanted)));
        }
    }
    out
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// May this person approve, as far as the estate and the run's beginning go?
pub fn may(estate: &Estate, approval: &Approval, initiator: &str, by: &str) -> Result<(), String> {
    let Some(person) = estate.people.get(&PersonName::from(by)) else {
        let names: Vec<_> = estate.people.keys().map(PersonName::as_str).collect();
        return Err(format!("the estate lists no person `{by}`; it lists {}", names.join(", ")));
    };
    if !approval.roles.is_empty() && !person.roles.iter().any(|role| approval.roles.contains(role)) {
        let roles = if person.roles.is_empty() { "no role".to_owned() } else { person.roles.join(", ") };
        return Err(format!("`{by}` has {roles}; this takes {}", approval.roles.join(" or ")));
    }
    if by == initiator {
        return Err(format!("`{by}` started the run; somebody else has to approve it"));
    }
    Ok(())
}

/// Who could approve a run that this person started.
#[must_use]
pub fn eligible<'e>(estate: &'e Estate, approval: &Approval, initiator: &str) -> Vec<&'e str> {
    let people = estate.people.iter().filter(|(_, person)| !person.keys.is_empty());
    people.map(|(name, _)| name.as_str()).filter(|name| may(estate, approval, initiator, name).is_ok()).collect()
}

/// Does this approval count in this state? Where the estate lists nobody, a name is all there is.
pub fn check(state: &RunState, run: &RunId, step: &StepId, by: &str, signed: Option<&Signed>, at: jiff::Timestamp) -> Result<(), String> {
    let (Some(planned), Some(known)) = (state.plan.step(step), state.step(step)) else { return Err(format!("there is no step `{step}`")) };
    let (Some(approval), Some(asked)) = (planned.asks(), known.asked.as_ref()) else {
        return Err(format!("step `{step}` is {}; it does not wait for approval", known.status.word()));
    };
    if asked.expires_at <= at {
        return Err(format!(
            "the time to approve step `{step}` ended at {}: `resume` ends the step, and after `retry` it is asked for anew",
            rfc3339_ms(asked.expires_at)
        ));
    }
    if known.approvals.contains(by) {
        return Err(format!("{by} has approved step `{step}` already"));
    }
    if state.plan.estate.people.is_empty() {
        return Ok(());
    }
    may(&state.plan.estate, approval, &state.initiator, by)?;
    genuine(state, run, step, by, Act::Approve, signed, known)
}

/// The same of an override: by a listed person, of the roles that the approval asks for, over this very failure.
pub fn check_override(state: &RunState, run: &RunId, step: &StepId, by: &str, reason: &str, signed: Option<&Signed>) -> Result<(), String> {
    let (Some(planned), Some(known)) = (state.plan.step(step), state.step(step)) else { return Err(format!("there is no step `{step}`")) };
    if state.plan.estate.people.is_empty() {
        return Ok(());
    }
    // Who started the run may override: that it was the same person stands on the record.
    let approval = planned.asks().cloned().unwrap_or_default();
    may(&state.plan.estate, &approval, "", by)?;
    genuine(state, run, step, by, Act::Override(reason), signed, known)
}

fn genuine(
    state: &RunState,
    run: &RunId,
    step: &StepId,
    by: &str,
    act: Act<'_>,
    signed: Option<&Signed>,
    known: &StepState,
) -> Result<(), String> {
    let Some(signed) = signed else {
        return Err(
            "the estate lists people, so this must be signed: give --key FILE, or --signature FILE over what --print shows".to_owned()
        );
    };
    let expected = statement(state, run, step, by, act).ok_or_else(|| format!("step `{step}` is {}", known.status.word()))?;
    if signed.statement != expected {
        return Err(format!("what was signed is not what step `{step}` asks now; print it anew and sign that"));
    }
    let key = verify(&state.plan.estate, by, &signed.statement, &signed.signature)?;
    if key == signed.key { Ok(()) } else { Err(format!("it names the key {}, and was signed with {key}", signed.key)) }
}

#[cfg(test)]
#[path = "approval_tests.rs"]
mod tests;
