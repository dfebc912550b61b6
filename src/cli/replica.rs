//! `muster replica verify`.

use super::{
    Done,
    output::{Output, glyph, ms},
};
use crate::model::time::Span;
use crate::service::{
    Muster,
    replica::{Difference, Kind, ReplicaReport, ReplicaTold, TableReport, TableState, Teller, Verdict, VerifyReplica, could_not_run},
};
use secrecy::SecretString;
use serde_json::json;
use std::sync::{Arc, Mutex, PoisonError};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Compare a replica with its primary: state, schema, settings, and every row, while both go on
    Verify(VerifyArgs),
}

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  muster replica verify predictions                        the replica of a database of the estate\n  muster replica verify predictions --state-only           does it stream, and how far is it behind?\n  muster replica verify predictions --table orders --max-load 20\n  muster replica verify --primary-url postgres://muster@db1/app --standby-url postgres://muster@db2/app\nIt only reads. The user it connects as needs: CREATE ROLE muster LOGIN; GRANT pg_monitor, pg_read_all_data TO muster;\n(and BYPASSRLS where tables have row security).\nExit codes: 0 it streams and holds what its primary holds, 1 it does not, 2 could not run, 3 interrupted (--resume goes on)."
)]
struct VerifyArgs {
    /// A database of the estate; the only one if left out
    #[arg(value_name = "DATABASE", conflicts_with_all = ["primary_url", "standby_url"])]
    database: Option<String>,
    /// The region whose instance is the primary; the one that accepts writes if left out
    #[arg(long, value_name = "REGION")]
    primary: Option<String>,
    /// The region whose instance is the replica
    #[arg(long, value_name = "REGION")]
    standby: Option<String>,
    /// The primary by its address, without an estate; with a password only in the environment
    #[arg(long, value_name = "URL", env = "MUSTER_PRIMARY_URL", hide_env_values = true, conflicts_with_all = ["primary", "standby"])]
    primary_url: Option<SecretString>,
    /// The replica by its address
    #[arg(long, value_name = "URL", env = "MUSTER_STANDBY_URL", hide_env_values = true, conflicts_with_all = ["primary", "standby"])]
    standby_url: Option<SecretString>,
    /// Only this table (again for more); those of the estate, or all, if left out
    #[arg(long = "table", value_name = "TABLE")]
    tables: Vec<String>,
    /// The share of the time that each server may be busy with this
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u8).range(1..=100))]
    max_load: u8,
    /// Only the state of replication: no schema, no settings, no rows
    #[arg(long)]
    state_only: bool,
    /// Go on where a verification of the same two servers was stopped
    #[arg(long, conflicts_with = "state_only")]
    resume: bool,
    /// How many differing rows of a table are listed
    #[arg(long, value_name = "ROWS", default_value_t = 100)]
    limit: usize,
    /// How long rows that are being written may take to settle
    #[arg(long, value_name = "TIME", default_value = "60s")]
    settle: Span,
}

pub async fn main(args: Args, mut muster: Muster, output: &Output) -> Done {
    muster.interrupt = super::output::interrupts();
    let Command::Verify(args) = args.command;
    let asked = VerifyReplica {
        database: args.database,
        primary: args.primary,
        standby: args.standby,
        primary_url: args.primary_url,
        standby_url: args.standby_url,
        tables: args.tables,
        max_load: args.max_load,
        state_only: args.state_only,
        resume: args.resume,
        limit: args.limit,
        settle: args.settle.duration(),
    };
    let done = muster.verify_replica(&asked, teller(&muster, output)).await;
    output.live(None);
    let done = done?;
    if output.json {
        output.object(&json!(done));
    } else {
        told(&done, output);
    }
    let report = &done.report;
    Ok(match report.verdict {
        _ if report.interrupted => 3,
        Verdict::Good => 0,
        Verdict::Unknown if could_not_run(report) => 2,
        _ => 1,
    })
}

/// Progress: JSON lines at most four times a second, or one line on a terminal.
fn teller(muster: &Muster, output: &Output) -> Teller {
    let (clock, output) = (muster.clock.clone(), output.clone());
    let last = Mutex::new(None);
    Arc::new(move |told| {
        let ReplicaTold::Progress(stand) = told else {
            output.object(&json!(told));
            return;
        };
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock.monotonic();
        if last.is_some_and(|at| now.saturating_sub(at).as_millis() < 250) {
            return;
        }
        *last = Some(now);
        if output.is_watched() {
            let share = (stand.blocks_done * 100).checked_div(stand.blocks).map(|share| format!(" · {share:3}%")).unwrap_or_default();
            output.live(Some(format!("comparing{share} · {} of {} tables · {} rows", stand.tables_done, stand.tables, stand.rows)));
        } else {
            output.object(&json!(told));
        }
    })
}

fn told(done: &ReplicaReport, output: &Output) {
    let report = &done.report;
    let state = &report.replica;
    let lag = match (state.lag_bytes(), state.lag_ms()) {
        (None, _) => "lag not known".to_owned(),
        (Some(bytes), None) => format!("{bytes} bytes behind, in seconds not known"),
        (Some(bytes), Some(time)) => format!("{bytes} bytes, {} behind", ms(Some(time.into()))),
    };
    let mark = if state.trouble().is_none() { '+' } else { '!' };
    output.line(format!("{} {} is {}: {lag}", glyph(mark), done.standby, state.word().replace('_', " ")));
    if let Some((_, why, cure)) = state.trouble() {
        output.line(format!("    {why}"));
        output.line(format!("    to do: {cure}"));
    }
    for note in &report.notes {
        output.line(format!("{} {}: {}; {}", glyph('?'), note.what, note.detail, note.cure));
    }
    for one in report.structure.iter().flatten() {
        output.line(difference(one));
    }
    for table in report.tables.iter().flatten() {
        lines(table).into_iter().for_each(|line| output.line(line));
    }
    output.line(last(done, output));
}

fn difference(one: &Difference) -> String {
    let side = |value: &Option<String>| value.clone().unwrap_or_else(|| "absent".to_owned());
    let both = if one.primary.is_none() && one.replica.is_none() {
        String::new()
    } else {
        format!(" (primary: {}; replica: {})", side(&one.primary), side(&one.replica))
    };
    format!("{} {}{both}: {}", glyph(if one.bad { '!' } else { '?' }), one.what, one.why)
}

fn lines(table: &TableReport) -> Vec<String> {
    let (name, rows) = (&table.table, table.rows);
    let at = table.at.map(|at| format!(" at {at}")).unwrap_or_default();
    let why = table.why.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
    let earlier = if table.resumed { ", by an earlier run" } else { "" };
    let (mark, text) = match table.state {
        TableState::Equal => ('+', format!("{name}: {rows} rows equal{at}{earlier}")),
        TableState::NotReplicated => ('?', format!("{name} is not replicated{why}")),
        TableState::Unknown => ('!', format!("{name} could not be compared{why}")),
        TableState::Different => ('!', format!("{name} differs in {} rows{at}{why}", table.different_rows())),
    };
    let mut all = vec![format!("{} {text}", glyph(mark))];
    for one in &table.differences {
        let key: Vec<String> = one.key.iter().map(|(name, value)| format!("{name}={}", value.as_deref().unwrap_or("null"))).collect();
        let key = match (key.is_empty(), &one.place) {
            (true, Some(place)) => format!("the row at {place}"),
            (true, None) => "a row".to_owned(),
            (false, _) => key.join(", "),
        };
        all.push(match one.kind {
            Kind::Missing => format!("    {key}: missing on the replica"),
            Kind::Extra => format!("    {key}: on the replica alone"),
            Kind::Changed if one.columns.is_empty() => format!("    {key}: other content"),
            Kind::Changed => format!("    {key}: other content in {}", one.columns.join(", ")),
        });
    }
    if table.more > 0 {
        all.push(format!("    and {} rows more", table.more));
    }
    for damage in &table.damage {
        let block = damage.block.map(|block| format!(" block {block}")).unwrap_or_default();
        all.push(format!("    damaged on the {}{block}: {}", damage.side, damage.message));
    }
    all
}

fn last(done: &ReplicaReport, output: &Output) -> String {
    let report = &done.report;
    let word = match report.verdict {
        Verdict::Good => "good",
        Verdict::Different => "NOT equal",
        Verdict::NotStreaming => "NOT streaming",
        Verdict::Unknown => "NOT known",
    };
    let tables = report.tables.as_ref().map(|all| {
        let rows: u64 = all.iter().map(|t| t.rows).sum();
        let equal = all.iter().filter(|t| t.state == TableState::Equal).count();
        format!("; {equal} of {} tables equal, {rows} rows compared", all.len())
    });
    let resumed = if report.resumed { "; gone on with an earlier run, so this is no picture of one moment" } else { "" };
    let stopped =
        if report.interrupted { format!("; interrupted: {} replica verify … --resume goes on", output.program) } else { String::new() };
    format!(
        "{word}: {} and {}{}; {}{resumed}{stopped}",
        done.primary.as_deref().unwrap_or("no primary"),
        done.standby,
        tables.unwrap_or_default(),
        ms(Some(done.duration_ms.into()))
    )
}
