//! What an operator may do to a run: resume, pause, abort, reject, retry, skip, resolve. What is signed
//! stands in `approve.rs`.

use super::{Done, output::Output};
use crate::journal::{ChainKind, Command};
use crate::model::{ids::*, status::RunStatus};
use crate::service::{
    Muster, ServiceError,
    next::on_record,
    runs::{Told, edited, state_of},
};
use serde_json::json;

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  muster resume                      everything that is open\n  muster resume 0198f2                one run, by the beginning of its identifier\n  muster resume 0198f2 --take-over    one whose owner is frozen or out of reach"
)]
pub struct ResumeArgs {
    /// A run or drill, by the beginning of its identifier; everything that is open if left out
    run: Option<String>,
    /// Go on with the run although another process owns it: that one is refused from now on, but what it
    /// has under way may still happen
    #[arg(long, requires = "run")]
    take_over: bool,
}

#[derive(clap::Args)]
pub struct ReasonArgs {
    /// A run, by the beginning of its identifier
    run: String,
    /// Why; it stands on the record
    #[arg(long, default_value = "asked for by an operator")]
    reason: String,
}

#[derive(clap::Args)]
pub struct StepArgs {
    /// A run, by the beginning of its identifier
    run: String,
    /// The step, by its id in the runbook
    step: String,
    /// In whose name; the user of this machine if left out
    #[arg(long = "by", value_name = "PERSON")]
    by: Option<String>,
}

#[derive(clap::Args)]
pub struct StepReasonArgs {
    /// A run, by the beginning of its identifier
    run: String,
    /// The step, by its id in the runbook
    step: String,
    /// Why; it stands on the record
    #[arg(long)]
    reason: String,
    /// In whose name; the user of this machine if left out
    #[arg(long = "by", value_name = "PERSON")]
    by: Option<String>,
}

#[derive(clap::Args)]
pub struct ResolveArgs {
    /// A run, by the beginning of its identifier
    run: String,
    /// The step, by its id in the runbook
    step: String,
    /// What happened
    #[arg(long = "as", value_name = "WHAT")]
    outcome: Happened,
    /// How you know; it stands on the record
    #[arg(long)]
    reason: String,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Happened {
    Done,
    NotDone,
}

pub async fn pause(args: ReasonArgs, muster: &Muster, output: &Output) -> Done {
    tell(&args.run, None, Command::Pause { reason: args.reason }, muster, output).await
}

/// With no owner left, an aborted run is also brought to its end here.
pub async fn abort(args: ReasonArgs, muster: &Muster, output: &Output) -> Done {
    let (run, told) = give(&args.run, None, &Command::Abort { reason: args.reason }, muster, output).await?;
    if let Told::Owner(owner) = &told {
        left_for(owner, output);
    }
    match muster.resume_run(&run).await {
        Ok(ran) if ran.state.status == RunStatus::Aborted => {
            if told == Told::OnRecord && !output.json {
                output.line(format!("on record; run {run} has ended: aborted"));
            }
            Ok(0)
        }
        Ok(ran) => Ok(super::run::told(&ran, output)),
        // Its owner ends it.
        Err(ServiceError::Journal(crate::journal::JournalError::Owned { .. })) => Ok(0),
        Err(error) => Err(error),
    }
}

pub async fn reject(args: StepReasonArgs, muster: &Muster, output: &Output) -> Done {
    tell(&args.run, args.by, Command::Reject { step: StepId(args.step), reason: args.reason }, muster, output).await
}

pub async fn retry(args: StepArgs, muster: &Muster, output: &Output) -> Done {
    tell(&args.run, args.by, Command::Retry { step: StepId(args.step) }, muster, output).await
}

pub async fn skip(args: StepReasonArgs, muster: &Muster, output: &Output) -> Done {
    tell(&args.run, args.by, Command::Skip { step: StepId(args.step), reason: args.reason }, muster, output).await
}

pub async fn resolve(args: ResolveArgs, muster: &Muster, output: &Output) -> Done {
    let done = args.outcome == Happened::Done;
    tell(&args.run, None, Command::Resolve { step: StepId(args.step), done, reason: args.reason, question: None }, muster, output).await
}

pub(super) async fn tell(run: &str, by: Option<String>, command: Command, muster: &Muster, output: &Output) -> Done {
    match give(run, by, &command, muster, output).await? {
        (_, Told::Owner(owner)) => left_for(&owner, output),
        (run, Told::OnRecord) if !output.json => {
            let state = state_of(&*muster.existing_journal().await?, &run).await?;
            output.line(on_record(&output.program, &run, &state, &command));
        }
        _ => {}
    }
    Ok(0)
}

fn left_for(owner: &str, output: &Output) {
    if !output.json {
        output.line(format!("left for {owner}, which owns the run"));
    }
}

/// Hands a command in, and says as JSON what became of it.
async fn give(run: &str, by: Option<String>, command: &Command, muster: &Muster, output: &Output) -> Result<(RunId, Told), ServiceError> {
    let journal = muster.existing_journal().await?;
    let run = muster.find(&*journal, run).await?;
    let by = by.unwrap_or_else(Muster::person);
    let told = muster.command(&run, &by, command).await?;
    output.object(&json!({ "run": run, "by": by, "command": command, "owner": matches!(told, Told::Owner(_)) }));
    Ok((run, told))
}

/// Goes on with one, or with all that is open; the worst exit code counts.
pub async fn resume(args: &ResumeArgs, muster: &Muster, output: &Output) -> Done {
    let journal = muster.existing_journal().await?;
    let rows = match &args.run {
        Some(prefix) => {
            let id = muster.find(&*journal, prefix).await?;
            let row = journal.row(&id).await?;
            if row.finished_at.is_some() {
                return Err(ServiceError::Usage(format!("{id} has ended: {}", row.status)));
            }
            vec![row]
        }
        None => journal.open().await?,
    };
    // A drill goes on with its own runs.
    let drills: Vec<_> = rows.iter().filter(|row| row.kind == ChainKind::Drill).map(|row| row.id.clone()).collect();
    let mut worst = 0;
    for row in rows.iter().filter(|row| row.parent.as_ref().is_none_or(|parent| !drills.contains(parent))) {
        let code = match (row.kind, &row.parent) {
            (ChainKind::Run, None) if args.take_over => {
                let owner = row.owner.as_deref().unwrap_or("nobody");
                output.say(format!("taking {} over from {owner}: what that process has under way may still happen", row.id));
                super::run::told(&muster.take_over_run(&row.id).await?, output)
            }
            _ if args.take_over => {
                let why = "a drill and its runs are not taken over; end the process that owns it, then resume the drill";
                return Err(ServiceError::Usage(why.to_owned()));
            }
            (ChainKind::Drill, _) => super::drill::told(&muster.drill_resume(&row.id).await?, output),
            // A drill's run is resumed with its drill, so that the drill is healed and led back.
            (ChainKind::Run, Some(drill)) if journal.row(drill).await?.finished_at.is_none() => {
                super::drill::told(&muster.drill_resume(drill).await?, output)
            }
            (ChainKind::Run, _) => {
                let plan = state_of(&*journal, &row.id).await?.plan;
                if edited(&plan) {
                    let what = "is not as it was when the run began; the run goes on by what it began with, and only a new one takes what was changed";
                    output.say(format!("{} {what}", plan.file));
                }
                super::run::told(&muster.resume_run(&row.id).await?, output)
            }
        };
        worst = worst.max(code);
    }
    if rows.is_empty() {
        output.say("nothing is open");
        output.object(&json!({ "resumed": [] }));
    }
    Ok(worst)
}
