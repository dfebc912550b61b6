//! `muster drill`: run, list, next, history, report.

use super::{
    Done,
    output::{Output, ms, seconds, short, table},
};
use crate::model::{drill::Drill, ids::RunId, time::rfc3339_ms};
use crate::service::{Muster, ServiceError, drills::Drilled};
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Run a drill here, from its steady state to its verdict
    #[command(after_help = "Examples:\n  muster drill run region-loss\n  muster drill run drills/region-loss.yaml --json")]
    Run {
        /// A path, or a name in drills/
        drill: String,
    },
    /// The drills beside the estate
    #[command(after_help = "Example:\n  muster drill list")]
    List,
    /// When drills are due
    #[command(after_help = "Examples:\n  muster drill next\n  muster drill next region-loss --from 2027-01-01T00:00:00Z --count 12")]
    Next {
        /// A path, or a name in drills/; all that have a schedule if left out
        drill: Option<String>,
        /// After this instant (RFC 3339), not at it; now if left out
        #[arg(long)]
        from: Option<String>,
        /// How many
        #[arg(long, default_value_t = 5)]
        count: usize,
    },
    /// The drills on record, newest first
    #[command(after_help = "Examples:\n  muster drill history\n  muster drill history --limit 500 --json")]
    History {
        /// How many
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// One drill as a page of HTML that needs nothing else
    #[command(after_help = "Examples:\n  muster drill report\n  muster drill report 0198f2 --output report.html")]
    Report {
        /// A drill, by the beginning of its identifier; the last one if left out
        id: Option<String>,
        /// Where to write it; a file in the state directory if left out, `-` for stdout
        #[arg(long, short)]
        output: Option<PathBuf>,
    },
}

pub async fn main(args: Args, muster: &Muster, output: &Output) -> Done {
    match args.command {
        Command::Run { drill } => {
            let drilled = muster.drill_run(&drill, None).await?;
            Ok(told(&drilled, output))
        }
        Command::List => list(muster, output),
        Command::Next { drill, from, count } => next(muster, drill.as_deref(), from.as_deref(), count, output),
        Command::History { limit } => history(muster, limit, output).await,
        Command::Report { id, output: file } => report(muster, id.as_deref(), file, output).await,
    }
}

/// Prints how a drill was left.
pub fn told(drilled: &Drilled, output: &Output) -> u8 {
    if output.json {
        output.object(&drilled.view);
    } else {
        figures(&drilled.view, output);
    }
    drilled.exit_code()
}

/// The figures of a drill as people read them.
pub fn figures(view: &Value, output: &Output) {
    let (rto, rpo) = (&view["rto"], &view["rpo"]);
    let nothing = [rto, rpo].iter().all(|figure| figure["actual_ms"].is_null() && figure["objective_ms"].is_null());
    if nothing {
        output.line("nothing was measured, and no objective is set");
    } else {
        measured(view, output);
    }
    steps(&view["steps"], output);
    then(&view["then"], output);
    for reason in view["reasons"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        output.line(format!("- {reason}"));
    }
    let evidence = &view["evidence"];
    let verified = if evidence["verified"] == json!(true) { "verified" } else { "NOT verified" };
    output.line(format!("evidence: {} events, {verified}, head\n  {}", evidence["events"], evidence["head"].as_str().unwrap_or_default()));
    let unfinished = if view["status"] == json!("skipped") { "skipped" } else { "not finished" };
    let verdict = view["verdict"].as_str().unwrap_or(unfinished);
    output.line(format!("drill {} {}: {verdict}", view["drill"].as_str().unwrap_or_default(), view["id"].as_str().unwrap_or_default()));
}

fn count(value: &Value) -> String {
    value.as_u64().map_or("not measured".to_owned(), |n| n.to_string())
}

fn shown(value: &Value) -> String {
    value.as_i64().map_or("not measured".to_owned(), |n| ms(Some(n.into())))
}

fn measured(view: &Value, output: &Output) {
    let (rto, rpo) = (&view["rto"], &view["rpo"]);
    let number = |value: &Value| value.as_i64().map(i128::from);
    let met = |value: &Value| match value.as_bool() {
        Some(true) => "met",
        Some(false) => "MISSED",
        None => "",
    };
    let mut table = table(&["", "MEASURED", "OBJECTIVE", ""]);
    table.add_row(vec![
        "recovery time".to_owned(),
        shown(&rto["actual_ms"]),
        ms(number(&rto["objective_ms"])),
        met(&rto["met"]).to_owned(),
    ]);
    let restore = view["kind"] == json!("restore");
    // A restore detects nothing and moves no traffic.
    let parts: &[&str] = if restore { &["act", "verify"] } else { &["detect", "decide", "act", "propagate", "verify"] };
    for part in parts {
        table.add_row(vec![format!("  {part}"), shown(&rto["parts_ms"][part]), String::new(), String::new()]);
    }
    let most = if rpo["upper_bound"] == json!(true) && !rpo["actual_ms"].is_null() { "at most " } else { "" };
    let lost = format!("{most}{}", shown(&rpo["actual_ms"]));
    table.add_row(vec!["data loss".to_owned(), lost, ms(number(&rpo["objective_ms"])), met(&rpo["met"]).to_owned()]);
    let mut row = |what: &str, value: String| {
        table.add_row(vec![what.to_owned(), value, String::new(), String::new()]);
    };
    if restore {
        row("  recovered point", view["restore"]["recovered_point"].as_str().unwrap_or("not measured").to_owned());
        if !rpo["lost_bytes"].is_null() {
            row("  transactions lost", count(&rpo["lost_commits"]));
            row("  bytes of log lost", count(&rpo["lost_bytes"]));
        }
        row("  files restored", count(&view["restore"]["files"]));
    } else {
        row("  writes acknowledged", count(&rpo["acknowledged_writes"]));
        row("  of them lost", count(&rpo["lost_writes"]));
    }
    output.line(table.trim_fmt());
}

fn then(then: &Value, output: &Output) {
    if !then.is_object() {
        return;
    }
    let writes = match (then["acknowledged_writes"].as_u64(), then["lost_writes"].as_u64()) {
        (Some(all), Some(lost)) => format!("{all} writes acknowledged, {lost} lost"),
        _ => "writes not measured".to_owned(),
    };
    let pause =
        then["write_pause_ms"].as_i64().map_or("pause not measured".to_owned(), |pause| format!("pause {}", ms(Some(pause.into()))));
    let as_found = then["as_found"].as_bool().map_or("not known", |same| if same { "yes" } else { "no" });
    output.line(format!("way back {}: {writes}, {pause}, as found: {as_found}", then["status"].as_str().unwrap_or("not run")));
}

fn steps(steps: &Value, output: &Output) {
    let mut table = table(&["STEP", "USES", "STATUS", "ATTEMPTS", "TOOK", "NOTE"]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if steps.as_array().is_none_or(Vec::is_empty) {
        return;
    }
    for step in steps.as_array().into_iter().flatten() {
        let took = step["duration_ms"].as_i64().map(i128::from);
        let note = [&step["question"], &step["failure"]["message"], &step["skipped"], &step["warnings"][0]]
            .into_iter()
            .find_map(Value::as_str)
            .unwrap_or_default();
        let status = text(&step["status"]).replace('_', " ");
        table.add_row(vec![text(&step["id"]), text(&step["uses"]), status, step["attempts"].to_string(), ms(took), note.to_owned()]);
    }
    output.line(format!("\n{}\n", table.trim_fmt()));
}

/// A file that cannot be read is told, and does not hide the others.
fn list(muster: &Muster, output: &Output) -> Done {
    let (drills, wrong) = muster.drill_list();
    if output.json {
        let one = |(path, drill): &(PathBuf, Drill)| json!({ "drill": drill.drill, "kind": drill.kind, "runbook": drill.runbook, "schedule": drill.schedule, "file": path });
        output.object(&json!({ "drills": drills.iter().map(one).collect::<Vec<_>>(), "wrong": wrong.iter().map(ToString::to_string).collect::<Vec<_>>() }));
    } else {
        if drills.is_empty() && wrong.is_empty() {
            output.say("no drill beside the estate; they are sought in drills/");
        } else if !drills.is_empty() {
            listed(muster, &drills, output);
        }
        for error in &wrong {
            output.say(format!("{error}\n"));
        }
    }
    Ok(if wrong.is_empty() { 0 } else { 2 })
}

fn listed(muster: &Muster, drills: &[(PathBuf, Drill)], output: &Output) {
    let mut table = table(&["DRILL", "KIND", "NEXT", "SCHEDULE", "RUNBOOK"]);
    for (path, drill) in drills {
        let schedule = drill.schedule.as_ref().map_or("-".to_owned(), |schedule| format!("{} ({})", schedule.cron, schedule.timezone));
        let kind = json!(drill.kind).as_str().unwrap_or_default().to_owned();
        let next = muster.drill_next(path.to_str(), muster.clock.now(), 1).ok().and_then(|next| next.first().map(|(_, at)| seconds(*at)));
        table.add_row(vec![drill.drill.to_string(), kind, next.unwrap_or("-".to_owned()), schedule, drill.runbook.clone()]);
    }
    output.line(table.trim_fmt());
}

fn next(muster: &Muster, drill: Option<&str>, from: Option<&str>, count: usize, output: &Output) -> Done {
    let wrong = |text: &str| ServiceError::Usage(format!("`--from {text}` is not an instant such as 2026-11-23T03:00:00Z"));
    let from = from.map_or(Ok(muster.clock.now()), |text| text.parse().map_err(|_| wrong(text)))?;
    let next = muster.drill_next(drill, from, count)?;
    // One that is left out here is never due either.
    for error in drill.is_none().then(|| muster.drill_list().1).into_iter().flatten() {
        output.say(format!("{error}\n"));
    }
    if output.json {
        let one = |(drill, at): &(_, jiff::Timestamp)| json!({ "drill": drill, "at": rfc3339_ms(*at) });
        output.object(&json!({ "next": next.iter().map(one).collect::<Vec<_>>() }));
        return Ok(0);
    }
    for (drill, at) in &next {
        output.line(format!("{}  {drill}", seconds(*at)));
    }
    if next.is_empty() {
        let what = drill.map_or("no drill has a schedule".to_owned(), |drill| format!("{drill} has no schedule"));
        output.say(format!("nothing is due: {what}, or none that comes before the year 2100"));
    }
    Ok(0)
}

async fn history(muster: &Muster, limit: u32, output: &Output) -> Done {
    let history = muster.drill_history(limit).await?;
    if output.json {
        output.object(&json!({ "drills": history }));
        return Ok(0);
    }
    if history.is_empty() {
        output.say("no drill is on record");
        return Ok(0);
    }
    let mut table = table(&["DRILL", "STATUS", "STARTED", "RECOVERY", "LOST", "ID"]);
    for entry in &history {
        let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        let rto = entry["rto"]["actual_ms"].as_i64().map(i128::from);
        // What a restore loses is time: the age of the point that it recovered.
        let lost = match entry["kind"].as_str() {
            Some("restore") => ms(entry["rpo"]["actual_ms"].as_i64().map(i128::from)),
            _ => entry["rpo"]["lost_writes"].as_u64().map_or("-".to_owned(), |n| n.to_string()),
        };
        let started = text("started_at").parse().map_or_else(|_| text("started_at"), seconds);
        table.add_row(vec![text("drill"), text("status"), started, ms(rto), lost, short(&RunId(text("id")))]);
    }
    output.line(table.trim_fmt());
    Ok(0)
}

async fn report(muster: &Muster, id: Option<&str>, file: Option<PathBuf>, output: &Output) -> Done {
    let (id, html) = muster.drill_report(id).await?;
    if file.as_ref().is_some_and(|file| file.as_os_str() == "-") {
        output.line(html);
        return Ok(0);
    }
    let path = file.unwrap_or_else(|| muster.state.join("drills").join(id.as_str()).join("report.html"));
    let fail = |e: std::io::Error| ServiceError::Usage(format!("{} cannot be written: {e}", path.display()));
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(fail)?;
    }
    std::fs::write(&path, html).map_err(fail)?;
    output.object(&json!({ "id": id, "report": path }));
    if !output.json {
        output.line(path.display().to_string());
    }
    Ok(0)
}
