//! What a person can do about a run or drill that waits for one: the exact commands.
//!
//! The same words stand in `show`, in what `run` prints last and in every notice, so that whoever is woken
//! by one can paste the command.

use crate::engine::needs_a_person;
use crate::journal::Command;
use crate::model::{
    effect::{Change, Seen},
    event::Body,
    ids::{RunId, StepId},
    plan::StepKind,
    status::{RunStatus, StepStatus},
};
use crate::plan::{
    approval::{eligible, fact_line},
    state::{Phase, RunState, StepState},
};
use serde::Serialize;
use std::path::Path;

/// One thing that a person has to decide.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Next {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<StepId>,
    /// What is the matter.
    pub what: String,
    /// Each of these is a way on.
    pub commands: Vec<String>,
}

/// How `muster` is called for this state directory: the usual one needs no mention.
#[must_use]
pub fn program(state: &Path) -> String {
    if state == Path::new(".muster") { "muster".to_owned() } else { format!("muster --state {}", quoted(&state.display().to_string())) }
}

/// A word as a shell takes it.
pub(super) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

/// What there is to do about a run; nothing while it goes on by itself or has ended.
#[must_use]
pub fn for_run(muster: &str, run: &RunId, state: &RunState) -> Vec<Next> {
    let mut next = Vec::new();
    for (id, step) in &state.steps {
        let mut push = |what: String, commands: Vec<String>| next.push(Next { step: Some(id.clone()), what, commands });
        let quoted = quoted(id.as_str());
        if step.status == StepStatus::Indeterminate {
            let question = step.question.as_deref().unwrap_or("its outcome was not seen");
            push(
                format!("step {id}: whether it happened is not known: {question}. Find out, then say so:"),
                vec![
                    format!("{muster} resolve {run} {quoted} --as done --reason TEXT"),
                    format!("{muster} resolve {run} {quoted} --as not-done --reason TEXT"),
                ],
            );
        }
        if step.status == StepStatus::WaitingApproval {
            let refuse = format!("{muster} reject {run} {quoted} --reason TEXT");
            match (given(state, id), waited(state, id, step)) {
                (Some((have, wanted)), (what, _)) if have >= wanted => push(what, vec![refuse]),
                (_, (what, vouch)) => push(what, vec![format!("{muster} approve {run} {quoted}{vouch}"), refuse]),
            }
        }
        if step.status.is_failure() && state.status == RunStatus::Paused {
            let why = step.failure.as_ref().map(ToString::to_string).unwrap_or_default();
            push(
                format!("step {id} {}: {why}. Try it again, go on without it, or end the run:", step.status.word().replace('_', " ")),
                vec![format!("{muster} retry {run} {quoted}"), without(muster, run, state, id), format!("{muster} abort {run}")],
            );
        }
    }
    if needs_a_person(state.status) {
        let what = if next.is_empty() { "go on with it:" } else { "then go on with:" };
        next.push(Next { step: None, what: what.to_owned(), commands: vec![format!("{muster} resume {run}")] });
    }
    next
}

/// How many approvals a step that waits for them has, and how many it takes.
fn given(state: &RunState, id: &StepId) -> Option<(usize, usize)> {
    let known = state.step(id).filter(|known| known.status == StepStatus::WaitingApproval)?;
    Some((known.approvals.len(), state.plan.step(id)?.asks()?.approvers as usize))
}

/// What is said to whoever gave a command that no process is there to act on.
#[must_use]
pub fn on_record(muster: &str, run: &RunId, state: &RunState, command: &Command) -> String {
    if let Command::Approve { step, .. } = command
        && let Some((have, wanted)) = given(state, step).filter(|(have, wanted)| have < wanted)
    {
        return format!("on record, {have} of {wanted}: it takes {} more before `{muster} resume {run}` goes on", wanted - have);
    }
    format!("on record; go on with: {muster} resume {run}")
}

/// How a run goes on without a step: an approval is not skipped but overridden.
fn without(muster: &str, run: &RunId, state: &RunState, id: &StepId) -> String {
    let approval = state.plan.step(id).is_some_and(|step| matches!(step.kind, StepKind::Approval(_)));
    let (word, vouch) = match approval {
        true if state.plan.estate.people.is_empty() => ("override", ""),
        true => ("override", SIGN),
        false => ("skip", ""),
    };
    format!("{muster} {word} {run} {} --reason TEXT{vouch}", quoted(id.as_str()))
}

/// What a command has to have where the estate lists people.
const SIGN: &str = " --by PERSON --key FILE";

/// What an approval still waits for, and how it is vouched for.
fn waited(state: &RunState, id: &StepId, step: &StepState) -> (String, &'static str) {
    let plain = format!("step {id} waits for approval; approve or refuse it:");
    let (Some(planned), Some(asked)) = (state.plan.step(id), step.asked.as_ref()) else { return (plain, "") };
    let Some(approval) = planned.asks() else { return (plain, "") };
    let given: Vec<_> = step.approvals.iter().map(String::as_str).collect();
    let until = crate::model::time::rfc3339_ms(asked.expires_at);
    let (have, wanted) = (given.len(), approval.approvers as usize);
    if have >= wanted {
        let by = given.join(", ");
        return (
            format!("step {id} is approved ({have} of {wanted}, by {by}); the run goes on with it until {until}, unless it is refused:"),
            "",
        );
    }
    let given = if given.is_empty() { String::new() } else { format!(", given by {}", given.join(", ")) };
    let mut what = format!("step {id} waits for approval ({} of {}{given}) until {until}", step.approvals.len(), approval.approvers);
    what.extend(approval.message.iter().map(|message| format!("; asked: {message}")));
    what.extend(asked.facts.iter().map(|(name, value)| format!("; {}", fact_line(planned, name, value))));
    if state.plan.estate.people.is_empty() {
        return (format!("{what}; approve or refuse it:"), "");
    }
    let may: Vec<_> =
        eligible(&state.plan.estate, approval, &state.initiator).into_iter().filter(|name| !step.approvals.contains(*name)).collect();
    let may = if may.is_empty() { "nobody that the estate lists".to_owned() } else { may.join(", ") };
    (format!("{what}; {may} may approve it, signed, or anyone refuse it:"), SIGN)
}

/// One step whose outcome is not known: everything that a person can begin with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unknown {
    pub step: StepId,
    /// What is not known.
    pub question: String,
    /// What the step was to change.
    pub change: Vec<Change>,
    pub intent: Option<serde_json::Value>,
    /// Which attempt it is about, begun when, by which owner, under which epoch, with which idempotency key.
    pub attempt: Option<Attempt>,
    /// Who looked, when, and what was seen, oldest first.
    pub observed: Vec<Observed>,
    pub commands: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attempt {
    pub attempt: u32,
    pub at: String,
    pub owner: String,
    pub epoch: u64,
    pub key: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Observed {
    pub at: String,
    pub by: String,
    pub epoch: u64,
    pub what: String,
}

/// What is not known of a run.
#[must_use]
pub fn unknowns(muster: &str, run: &RunId, state: &RunState, events: &[crate::journal::Stored]) -> Vec<Unknown> {
    let held =
        state.plan.steps.iter().filter_map(|step| Some((&step.id, state.step(&step.id).filter(|known| known.phase == Phase::Held)?)));
    held.map(|(id, known)| {
        let begun = events.iter().rev().find_map(|stored| match &stored.event.body {
            Body::Applying { step, attempt, epoch, key } if step == id => Some(Attempt {
                attempt: *attempt,
                at: crate::model::time::rfc3339_ms(stored.event.at),
                owner: stored.event.actor.clone(),
                epoch: *epoch,
                key: key.clone(),
            }),
            _ => None,
        });
        let commands = for_run(muster, run, state).into_iter().filter(|next| next.step.as_ref() == Some(id) || next.step.is_none());
        Unknown {
            step: id.clone(),
            question: known.question.clone().unwrap_or_else(|| "its outcome was not seen".to_owned()),
            change: known.change.clone(),
            intent: known.intent.clone(),
            attempt: begun,
            observed: looks(events, id),
            commands: commands.flat_map(|next| next.commands).collect(),
        }
    })
    .collect()
}

/// What was seen of a step by those who looked, oldest first: what a person begins with.
fn looks(events: &[crate::journal::Stored], step: &StepId) -> Vec<Observed> {
    let seen = |seen: &Seen<serde_json::Value>| match seen {
        Seen::Absent => "looked: it has not happened".to_owned(),
        Seen::Pending { note, .. } => format!("looked: under way ({note})"),
        Seen::Done(_) => "looked: it has happened".to_owned(),
        Seen::Differs { found } => format!("looked: something else was found: {found}"),
        Seen::CannotTell { why } => format!("looked: cannot tell: {why}"),
    };
    let line = |stored: &crate::journal::Stored| {
        let text = match &stored.event.body {
            Body::Applying { step: id, attempt, epoch, .. } if id == step => format!("attempt {attempt} begun under epoch {epoch}"),
            Body::ApplyUnknown { step: id, failure, .. } if id == step => format!("the answer was lost: {failure}"),
            Body::Observed { step: id, seen: what } if id == step => seen(what),
            _ => return None,
        };
        let at = crate::model::time::rfc3339_ms(stored.event.at);
        Some(Observed { at, by: stored.event.actor.clone(), epoch: stored.event.epoch, what: text })
    };
    events.iter().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_can_be_pasted() {
        assert_eq!(program(Path::new(".muster")), "muster");
        assert_eq!(program(Path::new("/var/lib/muster")), "muster --state /var/lib/muster");
        assert_eq!(program(Path::new("/srv/it's here")), r"muster --state '/srv/it'\''s here'");
    }
}
