//! `muster runs` and `watch`: what is on record, and what goes on.

use super::{
    Done,
    output::{Output, ms, seconds, short, table},
};
use crate::journal::{ChainKind, ChainRow, Journal, Stored};
use crate::model::{
    ids::RunId,
    status::{RunStatus, StepStatus},
};
use crate::plan::state::RunState;
use crate::service::{Muster, drills::drill_view, run_exit_code, runs::state_of, view};
use serde_json::json;
use std::{collections::BTreeMap, time::Duration};

#[derive(clap::Args)]
pub struct ListArgs {
    /// How many
    #[arg(long, default_value_t = 50)]
    limit: u32,
}

#[derive(clap::Args)]
pub struct WatchArgs {
    /// A run or drill, by the beginning of its identifier
    run: String,
}

pub async fn list(args: &ListArgs, muster: &Muster, output: &Output) -> Done {
    let journal = muster.existing_journal().await?;
    let rows = journal.list(ChainKind::Run, args.limit).await?;
    let ids: Vec<_> = rows.iter().map(|row| row.id.clone()).collect();
    let overridden = journal.holding(&ids, OVERRIDDEN).await?;
    if output.json {
        let view = |row| if muster.shared.is_some() { view::owned_row(row, &overridden) } else { view::row(row, &overridden) };
        output.object(&json!({ "runs": rows.iter().map(view).collect::<Vec<_>>() }));
        return Ok(0);
    }
    if rows.is_empty() {
        output.say("no run is on record");
        return Ok(0);
    }
    let mut names = vec!["RUN", "RUNBOOK", "STATUS", "STARTED", "TOOK", "DRILL"];
    names.extend(muster.shared.is_some().then_some("OWNER"));
    let mut table = table(&names);
    for row in &rows {
        let took = row.finished_at.map(|end| end.duration_since(row.started_at).as_millis());
        let drill = if row.parent.is_some() { "yes" } else { "no" };
        let mut cells = vec![
            short(&row.id),
            row.name.clone(),
            status(&row.status, overridden.contains(&row.id)) + left(row, &rows),
            seconds(row.started_at),
            ms(took),
            drill.to_owned(),
        ];
        cells.extend(muster.shared.is_some().then(|| row.owner.clone().unwrap_or_default()));
        table.add_row(cells);
    }
    output.line(table.trim_fmt());
    Ok(0)
}

/// The kind of event that marks a run for ever.
pub(super) const OVERRIDDEN: &str = "overridden";

/// It is open, waits for nobody, and yet no process goes on with it: the one that did has ended. A drill waits with its run,
/// which is among `others`.
pub(super) fn is_left(row: &ChainRow, others: &[ChainRow]) -> bool {
    let running = |row: &ChainRow| row.status == RunStatus::Running.word();
    let waits = |other: &ChainRow| other.parent.as_ref() == Some(&row.id) && other.finished_at.is_none() && !running(other);
    row.finished_at.is_none() && running(row) && row.owner.is_none() && !others.iter().any(waits)
}

/// What is said of that.
pub(super) fn left(row: &ChainRow, others: &[ChainRow]) -> &'static str {
    if is_left(row, others) { ", and the process that had it is gone" } else { "" }
}

/// A status as people read it; what was overridden is never without its mark.
pub(super) fn status(word: &str, overridden: bool) -> String {
    format!("{}{}", word.replace('_', " "), if overridden { " (overridden)" } else { "" })
}

/// The steps of a run as people read them.
#[must_use]
pub fn steps_table(state: &RunState) -> String {
    let mut table = table(&["STEP", "USES", "STATUS", "ATTEMPTS", "TOOK", "NOTE"]);
    for step in &state.plan.steps {
        let known = state.steps.get(&step.id).cloned().unwrap_or_default();
        let took = known.started_at.zip(known.ended_at).map(|(from, to)| to.duration_since(from).as_millis());
        let overridden = known.overridden.as_ref().map(|by| format!("overridden by {} ({}): {}", by.by, by.was, by.reason));
        let note = overridden
            .or(known.question.clone())
            .or(known.skipped.clone().filter(|_| known.status == StepStatus::Skipped))
            .or(known.failure.as_ref().map(|failure| failure.message.clone()))
            .or(known.skipped.clone())
            .or(Some(known.warnings.join("; ")).filter(|said| !said.is_empty()));
        table.add_row(vec![
            step.id.to_string(),
            step.kind.uses().to_owned(),
            status(known.status.word(), known.overridden.is_some()),
            known.attempts.to_string(),
            ms(took),
            note.unwrap_or_default(),
        ]);
    }
    table.trim_fmt()
}

/// How many more looks a run that waits for a person is given: a second.
const LINGER: u32 = 5;

/// What a watcher has told already of each chain.
type Seen = BTreeMap<RunId, u64>;

/// Tells events as other processes append them, until the run or drill ends or waits for a person.
pub async fn watch(args: &WatchArgs, muster: &Muster, output: &Output) -> Done {
    let journal = muster.existing_journal().await?;
    let id: RunId = muster.find(&*journal, &args.run).await?;
    let tell = output.listener();
    let mut seen = Seen::new();
    let mut still = 0;
    loop {
        // Read before the events, so that none comes between: what has ended has all its events by now.
        let row = journal.row(&id).await?;
        let mut chains = vec![id.clone()];
        let mut parked = None;
        for child in journal.children(&id).await? {
            parked = parked.or((child.finished_at.is_none() && waits(&child.status)).then(|| child.id.clone()));
            chains.push(child.id);
        }
        if row.finished_at.is_none() && row.kind == ChainKind::Run && waits(&row.status) {
            parked = Some(id.clone());
        }
        for stored in news(&*journal, &chains, &mut seen).await? {
            tell(&stored);
        }
        if row.finished_at.is_some() {
            return ended(&*journal, &row.id, row.kind, output).await;
        }
        // One that is gone on with at once is followed to the next process.
        still = if parked.is_some() { still + 1 } else { 0 };
        if let Some(run) = parked.filter(|_| still > LINGER) {
            let state = state_of(&*journal, &run).await?;
            if crate::engine::needs_a_person(state.status) {
                for line in super::show::next(&output.program, &run, &state) {
                    output.say(line);
                }
                let mut view = view::run(&run, &state, &view::evidence(&*journal, std::slice::from_ref(&run)).await?);
                view["next"] = json!(super::show::commands(&output.program, &run, &state));
                output.object(&view);
                return Ok(run_exit_code(state.status));
            }
        }
        muster.clock.sleep(Duration::from_millis(200)).await;
    }
}

fn waits(status: &str) -> bool {
    [RunStatus::Paused, RunStatus::WaitingApproval, RunStatus::Indeterminate].iter().any(|parked| parked.word() == status)
}

/// What is new in these chains, in the order in which it happened.
async fn news(journal: &dyn Journal, chains: &[RunId], seen: &mut Seen) -> Result<Vec<Stored>, crate::journal::JournalError> {
    let mut news = Vec::new();
    for chain in chains {
        let from = seen.entry(chain.clone()).or_default();
        for stored in journal.load(chain, *from).await? {
            *from = stored.event.seq;
            news.push(stored);
        }
    }
    news.sort_by_key(|stored| stored.event.at);
    Ok(news)
}

async fn ended(journal: &dyn Journal, id: &RunId, kind: ChainKind, output: &Output) -> Done {
    if kind == ChainKind::Run {
        let state = state_of(journal, id).await?;
        output.object(&view::run(id, &state, &view::evidence(journal, std::slice::from_ref(id)).await?));
        return Ok(run_exit_code(state.status));
    }
    let Some(state) = crate::drill::state::DrillState::of(&journal.load(id, 0).await?) else {
        // Missed: there is nothing more to it than its one event.
        output.object(&json!({ "id": id, "status": "missed" }));
        return Ok(2);
    };
    output.object(&drill_view(journal, &state).await?);
    Ok(crate::service::drills::exit_code(&state))
}
