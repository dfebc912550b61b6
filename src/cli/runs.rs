//! `muster runs`, `show`, `watch`: what is on record.

use super::{
    Done,
    output::{self, Output, ms, table},
};
use crate::journal::ChainKind;
use crate::model::{ids::RunId, time::rfc3339_ms};
use crate::plan::state::RunState;
use crate::service::{Muster, run_exit_code, runs::state_of, view};
use serde_json::json;
use std::time::Duration;

#[derive(clap::Args)]
pub struct ListArgs {
    /// How many
    #[arg(long, default_value_t = 50)]
    limit: u32,
}

#[derive(clap::Args)]
pub struct ShowArgs {
    /// A run, by the beginning of its identifier
    run: String,
}

#[derive(clap::Args)]
pub struct WatchArgs {
    /// A run or drill, by the beginning of its identifier
    run: String,
}

pub async fn list(args: &ListArgs, muster: &Muster, output: &Output) -> Done {
    let journal = muster.existing_journal().await?;
    let rows = journal.list(ChainKind::Run, args.limit).await?;
    if output.json {
        output.object(&json!({ "runs": rows.iter().map(view::row).collect::<Vec<_>>() }));
        return Ok(0);
    }
    let mut table = table(&["RUN", "RUNBOOK", "STATUS", "STARTED", "TOOK"]);
    for row in &rows {
        let took = row.finished_at.map(|end| end.duration_since(row.started_at).as_millis());
        table.add_row(vec![row.id.to_string(), row.name.clone(), row.status.clone(), rfc3339_ms(row.started_at), ms(took)]);
    }
    output.line(table.to_string());
    Ok(0)
}

/// The steps of a run as people read them.
#[must_use]
pub fn steps_table(state: &RunState) -> String {
    let mut table = table(&["STEP", "USES", "STATUS", "ATTEMPTS", "TOOK", "NOTE"]);
    for step in &state.plan.steps {
        let known = state.steps.get(&step.id).cloned().unwrap_or_default();
        let took = known.started_at.zip(known.ended_at).map(|(from, to)| to.duration_since(from).as_millis());
        let note = known.question.or(known.failure.map(|failure| failure.message)).or(known.skipped).unwrap_or_default();
        table.add_row(vec![
            step.id.to_string(),
            step.kind.uses().to_owned(),
            known.status.word().to_owned(),
            known.attempts.to_string(),
            ms(took),
            note,
        ]);
    }
    table.to_string()
}

pub async fn show(args: &ShowArgs, muster: &Muster, output: &Output) -> Done {
    let journal = muster.existing_journal().await?;
    let run = muster.find(&*journal, &args.run).await?;
    let events = journal.load(&run, 0).await?;
    let state = state_of(&*journal, &run).await?;
    if output.json {
        let evidence = view::evidence(&*journal, std::slice::from_ref(&run)).await?;
        let mut view = view::run(&run, &state, &evidence);
        if let Some(map) = view.as_object_mut() {
            map.insert("events".to_owned(), json!(events.iter().map(view::event).collect::<Vec<_>>()));
        }
        output.object(&view);
        return Ok(0);
    }
    output.line(format!("run      {run}"));
    output.line(format!("runbook  {} ({})", state.plan.runbook, state.plan.file));
    output.line(format!("status   {}{}", state.status.word(), state.reason.as_deref().map(|why| format!(": {why}")).unwrap_or_default()));
    for (name, value) in &state.plan.inputs {
        output.line(format!("input    {name} = {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned)));
    }
    output.line("");
    output.line(steps_table(&state));
    output.line("");
    for stored in &events {
        if let Some((_, text)) = output::sentence(&stored.event.body) {
            output.line(format!("{} {text}", rfc3339_ms(stored.event.at)));
        }
    }
    for line in super::run::what_now(&run, &state) {
        output.line(line);
    }
    Ok(0)
}

/// Tells events as other processes append them, until the run ends or waits for a person.
pub async fn watch(args: &WatchArgs, muster: &Muster, output: &Output) -> Done {
    let journal = muster.existing_journal().await?;
    let run: RunId = muster.find(&*journal, &args.run).await?;
    let tell = output.listener();
    let mut seen = 0;
    loop {
        for stored in journal.load(&run, seen).await? {
            seen = stored.event.seq;
            tell(&stored);
        }
        let row = journal.row(&run).await?;
        if row.finished_at.is_some() && row.seq == seen {
            let events = journal.load(&run, 0).await?;
            let state = RunState::of(events.iter().map(|stored| &stored.event));
            return Ok(state.map_or(0, |state| run_exit_code(state.status)));
        }
        muster.clock.sleep(Duration::from_millis(200)).await;
    }
}
