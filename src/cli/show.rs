//! `muster show`: one run or drill, with its steps, its timeline, and what to do about it.

use super::{
    Done,
    output::{self, Output, seconds},
};
use crate::drill::state::DrillState;
use crate::journal::{ChainKind, Journal, Stored};
use crate::model::{
    event::{Body, RunRole},
    ids::RunId,
    time::rfc3339_ms,
};
use crate::plan::state::RunState;
use crate::service::{
    Muster,
    drills::drill_view,
    next::{Next, Unknown, for_run, unknowns},
    runs::state_of,
    view,
};
use serde_json::json;

#[derive(clap::Args)]
pub struct Args {
    /// A run or drill, by the beginning of its identifier
    id: String,
}

pub async fn main(args: &Args, muster: &Muster, output: &Output) -> Done {
    let journal = muster.existing_journal().await?;
    let id = muster.find(&*journal, &args.id).await?;
    match journal.row(&id).await?.kind {
        ChainKind::Run => run(&id, &*journal, output).await,
        ChainKind::Drill => drill(&id, &*journal, output).await,
    }
}

/// What a person can do, a line each: what is the matter, and under it the commands.
#[must_use]
pub fn next(program: &str, run: &RunId, state: &RunState) -> Vec<String> {
    let line = |one: Next| std::iter::once(one.what).chain(one.commands.into_iter().map(|command| format!("    {command}")));
    for_run(program, run, state).into_iter().flat_map(line).collect()
}

/// The commands alone.
#[must_use]
pub fn commands(program: &str, run: &RunId, state: &RunState) -> Vec<String> {
    for_run(program, run, state).into_iter().flat_map(|one| one.commands).collect()
}

fn timeline(events: &[Stored], output: &Output) {
    for stored in events {
        if let Some((mark, text)) = output::sentence(&stored.event.body) {
            output.line(format!("{} {} {text}", stored.event.at.strftime("%H:%M:%S.%3fZ"), output::glyph(mark)));
        }
    }
}

async fn run(id: &RunId, journal: &dyn Journal, output: &Output) -> Done {
    let events = journal.load(id, 0).await?;
    let state = state_of(journal, id).await?;
    let row = journal.row(id).await?;
    let abandoned = super::runs::is_left(&row, &[]);
    // A run of a drill goes on with its drill.
    let go_on = abandoned.then(|| format!("{} resume {}", output.program, row.parent.as_ref().unwrap_or(id)));
    let unknowns = unknowns(&output.program, id, &state, &events);
    // What only a person can say.
    let code = if unknowns.is_empty() { 0 } else { 3 };
    if output.json {
        let evidence = view::evidence(journal, std::slice::from_ref(id)).await?;
        let mut view = view::run(id, &state, &evidence);
        view["next"] = json!(commands(&output.program, id, &state).into_iter().chain(go_on).collect::<Vec<_>>());
        view["unknown"] = json!(unknowns);
        view["abandoned"] = json!(abandoned);
        view["events"] = json!(events.iter().map(view::event).collect::<Vec<_>>());
        output.object(&view);
        return Ok(code);
    }
    output.line(format!("run       {id}"));
    output.line(format!("runbook   {} ({})", state.plan.runbook, state.plan.file));
    if let Some(drill) = row.parent {
        output.line(format!("drill     {drill}"));
    }
    let why = state.reason.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
    output.line(format!("status    {}{why}", super::runs::status(state.status.word(), !state.overridden().is_empty())));
    output.line(format!("by        {}", state.initiator));
    span("started", state.started_at, output);
    span("finished", state.finished_at, output);
    for (name, value) in &state.plan.inputs {
        output.line(format!("input     {name} = {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned)));
    }
    output.line(format!("\n{}\n", super::runs::steps_table(&state)));
    timeline(&events, output);
    for (step, known) in &state.steps {
        if let Some(resolved) = &known.resolved {
            output.line(format!("\nstep {step}: what had happened was not known; {resolved}"));
        }
    }
    for unknown in &unknowns {
        not_known(unknown, output);
    }
    let mut next = next(&output.program, id, &state);
    if let Some(command) = go_on {
        next.extend([
            "the process that had it has ended; what it had under way is looked at when the run goes on:".to_owned(),
            format!("    {command}"),
        ]);
    }
    if !next.is_empty() {
        output.line(format!("\n{}", next.join("\n")));
    }
    Ok(code)
}

/// What is not known, which attempt it is about, and what everybody saw who looked.
fn not_known(unknown: &Unknown, output: &Output) {
    output.line(format!("\nstep {}: whether it happened is not known: {}", unknown.step, unknown.question));
    if let Some(attempt) = &unknown.attempt {
        output
            .line(format!("  attempt {} was begun at {} by {} under epoch {}", attempt.attempt, attempt.at, attempt.owner, attempt.epoch));
        output.line(format!("  its idempotency key is {}", attempt.key));
    }
    for change in &unknown.change {
        output.line(format!("  it was to change {}", sentence_of(change)));
    }
    for seen in &unknown.observed {
        output.line(format!("  {} {} (by {})", seen.at, seen.what, seen.by));
    }
}

pub(super) fn sentence_of(change: &crate::model::effect::Change) -> String {
    match (&change.from, &change.to) {
        (Some(from), Some(to)) => format!("{}: from {from} to {to}", change.what),
        (None, Some(to)) => format!("{}: to {to}", change.what),
        (Some(from), None) => format!("{}: from {from}", change.what),
        (None, None) => change.what.clone(),
    }
}

fn span(name: &str, at: Option<jiff::Timestamp>, output: &Output) {
    if let Some(at) = at {
        output.line(format!("{name:<9} {}", rfc3339_ms(at)));
    }
}

async fn drill(id: &RunId, journal: &dyn Journal, output: &Output) -> Done {
    let own = journal.load(id, 0).await?;
    let Some(state) = DrillState::of(&own) else { return missed(id, &own, output) };
    let mut events = own;
    let mut open = Vec::new();
    let children = journal.children(id).await?;
    let abandoned = super::runs::is_left(&journal.row(id).await?, &children);
    let go_on = abandoned.then(|| format!("{} resume {id}", output.program));
    for child in children {
        events.extend(journal.load(&child.id, 0).await?);
        if child.finished_at.is_none() {
            open.push((child.id.clone(), state_of(journal, &child.id).await?));
        }
    }
    events.sort_by_key(|stored| stored.event.at);
    let view = drill_view(journal, &state).await?;
    if output.json {
        let mut view = view;
        view["next"] = json!(open.iter().flat_map(|(run, state)| commands(&output.program, run, state)).chain(go_on).collect::<Vec<_>>());
        view["abandoned"] = json!(abandoned);
        view["events"] = json!(events.iter().map(view::event).collect::<Vec<_>>());
        output.object(&view);
        return Ok(0);
    }
    output.line(format!("drill     {} ({})", state.drill.drill, view["kind"].as_str().unwrap_or_default()));
    output.line(format!("id        {id}"));
    output.line(format!("file      {}", state.file));
    if let Some(at) = state.scheduled_for {
        output.line(format!("due       {}", seconds(at)));
    }
    span("started", Some(state.started_at), output);
    span("finished", state.finished_at, output);
    for (role, (run, status)) in &state.runs {
        let (word, plan) = match role {
            RunRole::Main => ("run", Some(&state.context.main)),
            RunRole::Then => ("way back", state.context.then.as_ref()),
        };
        let runbook = plan.map(|plan| plan.runbook.to_string()).unwrap_or_default();
        let status = status.map_or("open".to_owned(), |status| status.word().replace('_', " "));
        output.line(format!("{word:<9} {run} ({runbook}): {status}"));
    }
    output.line("");
    timeline(&events, output);
    output.line("");
    super::drill::figures(&view, output);
    for (run, state) in &open {
        for line in next(&output.program, run, state) {
            output.line(line);
        }
    }
    if let Some(command) = go_on {
        output.line("the process that had it has ended; what it had under way is looked at when the drill goes on:");
        output.line(format!("    {command}"));
    }
    Ok(0)
}

fn missed(id: &RunId, events: &[Stored], output: &Output) -> Done {
    let Some(Body::DrillMissed { drill, scheduled_for, reason }) = events.first().map(|stored| &stored.event.body) else {
        return Err(crate::journal::JournalError::NoSuchRun(id.clone()).into());
    };
    output
        .object(&json!({ "id": id, "drill": drill, "status": "missed", "scheduled_for": rfc3339_ms(*scheduled_for), "reasons": [reason] }));
    if !output.json {
        output.line(format!("drill     {drill}\nid        {id}\nstatus    missed: {reason}\ndue       {}", seconds(*scheduled_for)));
    }
    Ok(0)
}
