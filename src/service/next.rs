//! What a person can do about a run or drill that waits for one: the exact commands.
//!
//! The same words stand in `show`, in what `run` prints last and in every notice, so that whoever is woken
//! by one can paste the command.

use crate::engine::needs_a_person;
use crate::model::{
    effect::Seen,
    event::Body,
    ids::{RunId, StepId},
    status::{RunStatus, StepStatus},
};
use crate::plan::state::RunState;
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
            push(
                format!("step {id} waits for approval; approve or refuse it:"),
                vec![format!("{muster} approve {run} {quoted}"), format!("{muster} reject {run} {quoted} --reason TEXT")],
            );
        }
        if step.status.is_failure() && state.status == RunStatus::Paused {
            let why = step.failure.as_ref().map(ToString::to_string).unwrap_or_default();
            push(
                format!("step {id} {}: {why}. Try it again, go on without it, or end the run:", step.status.word().replace('_', " ")),
                vec![
                    format!("{muster} retry {run} {quoted}"),
                    format!("{muster} skip {run} {quoted} --reason TEXT"),
                    format!("{muster} abort {run}"),
                ],
            );
        }
    }
    if needs_a_person(state.status) {
        let what = if next.is_empty() { "go on with it:" } else { "then go on with:" };
        next.push(Next { step: None, what: what.to_owned(), commands: vec![format!("{muster} resume {run}")] });
    }
    next
}

/// What was seen of a step by those who looked, oldest first: what a person begins with.
#[must_use]
pub fn observed(events: &[crate::journal::Stored], step: &StepId) -> Vec<String> {
    let seen = |seen: &Seen<serde_json::Value>| match seen {
        Seen::Absent => "looked: it has not happened".to_owned(),
        Seen::Pending { note, .. } => format!("looked: under way ({note})"),
        Seen::Done(_) => "looked: it has happened".to_owned(),
        Seen::Differs { found } => format!("looked: something else was found: {found}"),
        Seen::CannotTell { why } => format!("looked: cannot tell: {why}"),
    };
    let line = |stored: &crate::journal::Stored| {
        let text = match &stored.event.body {
            Body::Applying { step: id, attempt, .. } if id == step => format!("attempt {attempt} begun by {}", stored.event.actor),
            Body::ApplyUnknown { step: id, failure, .. } if id == step => format!("the answer was lost: {failure}"),
            Body::Observed { step: id, seen: what } if id == step => seen(what),
            _ => return None,
        };
        Some(format!("{} {text}", crate::model::time::rfc3339_ms(stored.event.at)))
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
