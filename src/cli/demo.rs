//! `muster demo`: the main job on one machine, from nothing to a verdict, and nothing left behind.
//!
//! It goes through the same commands as anyone would: the lab's estate, the shipped runbooks and drill,
//! in a directory of its own.

use super::{Done, demo_log::Log, lab, output::Output};
use crate::lab::{Lab, Servers};
use crate::service::{Muster, ServiceError, drills::Drilled};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  muster demo\n  muster demo --scenario freeze-region --json\n  muster demo --scenario kill-region --path data-plane\n  muster demo --servers rds   (Amazon's servers, as its API has them)\n  muster demo --keep   (leaves the lab up and the journal where it is)"
)]
pub struct Args {
    /// What is lost
    #[arg(long, default_value = "kill-region")]
    scenario: Scenario,
    /// How traffic moves: through the API of Route 53, or with that killed as well
    #[arg(long, default_value = "control-plane")]
    path: TrafficPath,
    /// Whose the database servers are: on one's own the way back is a switchover
    #[arg(long, default_value = "own")]
    servers: Servers,
    /// Hold replication up for so long before the loss, so that writes are lost
    #[arg(long, value_name = "DURATION")]
    delay_replication: Option<crate::model::time::Span>,
    /// Leave the lab up and the files where they are
    #[arg(long)]
    keep: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum TrafficPath {
    /// The record is changed through the API of Route 53
    ControlPlane,
    /// The API is killed with the region; the standby takes over by an object in its own bucket
    DataPlane,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Scenario {
    /// SIGKILL to every process of the region
    KillRegion,
    /// SIGSTOP to every process of the region: nothing answers, nothing resets
    FreezeRegion,
    /// SIGKILL to the region's database server
    LoseDatabase,
}

impl Scenario {
    fn fault(self) -> &'static str {
        match self {
            Self::KillRegion => "kill",
            Self::FreezeRegion => "freeze",
            Self::LoseDatabase => "lose-database",
        }
    }
}

const SHIPPED: [(&str, &str); 12] = [
    ("muster.yaml", include_str!("../../muster.yaml")),
    ("runbooks/regional-failover.yaml", include_str!("../../runbooks/regional-failover.yaml")),
    ("runbooks/failback.yaml", include_str!("../../runbooks/failback.yaml")),
    ("runbooks/data-plane-prepare.yaml", include_str!("../../runbooks/data-plane-prepare.yaml")),
    ("runbooks/data-plane-failover.yaml", include_str!("../../runbooks/data-plane-failover.yaml")),
    ("runbooks/data-plane-failback.yaml", include_str!("../../runbooks/data-plane-failback.yaml")),
    ("runbooks/protect.yaml", include_str!("../../runbooks/protect.yaml")),
    ("runbooks/own-servers-protect.yaml", include_str!("../../runbooks/own-servers-protect.yaml")),
    ("runbooks/own-servers-failback.yaml", include_str!("../../runbooks/own-servers-failback.yaml")),
    ("runbooks/database-restore.yaml", include_str!("../../runbooks/database-restore.yaml")),
    (REGION_LOSS, include_str!("../../drills/region-loss.yaml")),
    ("drills/database-restore.yaml", include_str!("../../drills/database-restore.yaml")),
];
const REGION_LOSS: &str = "drills/region-loss.yaml";

pub async fn main(args: Args, output: &Output) -> Done {
    // Before anything is made: whatever is interrupted from here on is also taken away again.
    let interrupt = super::output::interrupts();
    bury_the_dead(output).await;
    let id = crate::providers::clock::Clock::new_id(&crate::providers::clock::SystemClock::new());
    let home = std::env::temp_dir().join(format!("{PREFIX}{}", id.rsplit('-').next().unwrap_or_default()));
    let fail = |e: std::io::Error| ServiceError::Usage(format!("{} cannot be written: {e}", home.display()));
    for (name, text) in SHIPPED {
        let path = home.join(name);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(fail)?;
        }
        let text = match name {
            "muster.yaml" if args.path == TrafficPath::DataPlane => text.replace("    # standby:", "    standby:"),
            REGION_LOSS => scenario(text, &args),
            _ => text.to_owned(),
        };
        std::fs::write(&path, text).map_err(fail)?;
    }
    let _alive = alive(&home).map_err(fail)?;
    let mut muster = Muster::new(home.join("state"), home.join("muster.yaml"));
    muster.interrupt = interrupt.clone();
    let progress = super::progress::start(&mut muster, output);
    let done = whole(&mut muster, &args, output).await;
    drop(progress);
    let interrupted = *interrupt.borrow();
    if args.keep {
        std::fs::write(home.join(KEPT), "").map_err(fail)?;
        output.say(format!(
            "kept: {} (use --estate {} --state {}; `muster lab down` with the same ends it)",
            home.display(),
            muster.estate_file.display(),
            muster.state.display()
        ));
    } else {
        output.say("taking the lab down");
        Lab::down(&muster.state).await?;
        std::fs::remove_dir_all(&home).map_err(fail)?;
        if interrupted && !matches!(done, Ok(0 | 1)) {
            // The journal is gone with the rest: there is nothing that `resume` could go on with.
            return Err(ServiceError::Usage("interrupted; the lab is down again and nothing is left".to_owned()));
        }
    }
    done
}

/// Held locked for as long as a demo lives.
const ALIVE: &str = "alive";
/// In a directory that was left on purpose.
const KEPT: &str = "kept";
const PREFIX: &str = "muster-demo-";

fn alive(home: &Path) -> std::io::Result<std::fs::File> {
    let file = std::fs::File::create(home.join(ALIVE))?;
    file.try_lock().map_err(std::io::Error::from)?;
    Ok(file)
}

/// Takes away what demos left behind whose process was killed.
async fn bury_the_dead(output: &Output) {
    let entries = std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
    let demo = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
    for home in entries.filter(demo).filter(|home| home.join(ALIVE).is_file() && !home.join(KEPT).exists()) {
        // Somebody else's, or one that lives: neither is ours to touch.
        if alive(&home).is_err() {
            continue;
        }
        output.say(format!("taking away what a demo that was killed left in {}", home.display()));
        let gone = Lab::down(&home.join("state")).await.is_ok() && std::fs::remove_dir_all(&home).is_ok();
        if !gone {
            output.say(format!("  it could not be taken away; try `muster lab down --state {}`", home.join("state").display()));
        }
    }
}

/// The shipped drill with another fault in its scenario.
fn scenario(drill: &str, args: &Args) -> String {
    let delay = args.delay_replication.map(|hold| format!("\n  - delay-replication: {{ region: east, hold: {hold} }}")).unwrap_or_default();
    let control = if args.path == TrafficPath::DataPlane { "\n  - lose-control-plane: { region: east }" } else { "" };
    let drill =
        drill.replace("\n  - kill: { region: east }", &format!("{delay}{control}\n  - {}: {{ region: east }}", args.scenario.fault()));
    match args.path {
        TrafficPath::ControlPlane if args.servers == Servers::Own => drill.replace("runbook: failback", "runbook: own-servers-failback"),
        TrafficPath::ControlPlane => drill,
        TrafficPath::DataPlane => drill
            .replace("runbook: regional-failover", "runbook: data-plane-failover")
            .replace("runbook: failback", "runbook: data-plane-failback"),
    }
}

async fn whole(muster: &mut Muster, args: &Args, output: &Output) -> Done {
    output.say("starting two regions on this machine");
    let lab = lab::start(&muster.state, args.servers, muster.interrupt.clone(), output).await?;
    let plan = lab.plan().clone();
    muster.faults = Some(Arc::new(lab));
    output.say("backing up and verifying what would be failed over to");
    let protect = if args.servers == Servers::Own { "own-servers-protect" } else { "protect" };
    if let Some(code) = ahead(muster, protect, args, output).await? {
        return Ok(code);
    }
    if args.path == TrafficPath::DataPlane {
        output.say("preparing a failover that needs no control plane of DNS: health check, failover records, switch");
        if let Some(code) = ahead(muster, "data-plane-prepare", args, output).await? {
            return Ok(code);
        }
    }
    let log = Log::receive(muster, &plan, output)?;
    output.say("the drill: load, loss, recovery, and the way back");
    let drilled = muster.drill_run("region-loss", None).await?;
    let restored = restored(muster, args, drilled.exit_code(), output).await?;
    if let Some(log) = log {
        log.end(output).await;
    }
    let (id, html) = muster.drill_report(Some(drilled.state.id.as_str())).await?;
    let report = report_path(muster, args, id.as_str());
    std::fs::write(&report, html).map_err(|e| ServiceError::Usage(format!("{} cannot be written: {e}", report.display())))?;
    let verified = muster.evidence_verify().await?.journal;
    let mut view = drilled.view.clone();
    if let Some(map) = view.as_object_mut() {
        map.insert("report".to_owned(), json!(report));
        map.insert("evidence_problems".to_owned(), json!(verified.problems));
        map.insert("database_restore".to_owned(), restored.as_ref().map_or(Value::Null, |restored| restored.view.clone()));
    }
    if output.json {
        output.object(&view);
    } else {
        told(&view, &report, output);
    }
    let code = drilled.exit_code().max(restored.map_or(0, |restored| restored.exit_code()));
    Ok(if verified.verified { code } else { 1 })
}

/// The database from its backup and its log alone: what is left where no region is. Amazon's servers take their own snapshots instead.
async fn restored(muster: &Muster, args: &Args, code: u8, output: &Output) -> Result<Option<Drilled>, ServiceError> {
    if args.servers != Servers::Own || code != 0 || *muster.interrupt.borrow() {
        return Ok(None);
    }
    output.say("a second drill: the database from its backup and its log alone, on a throwaway server");
    muster.drill_run("database-restore", None).await.map(Some)
}

/// What is done before the drill; the code to end with if it did not succeed.
async fn ahead(muster: &Muster, runbook: &str, args: &Args, output: &Output) -> Result<Option<u8>, ServiceError> {
    let ran = muster.run(runbook, &BTreeMap::new(), false).await?;
    if ran.state.status == crate::model::status::RunStatus::Succeeded {
        return Ok(None);
    }
    let gone = *muster.interrupt.borrow() && !args.keep;
    Ok(Some(if gone { crate::service::run_exit_code(ran.state.status) } else { super::run::told(&ran, output) }))
}

fn report_path(muster: &Muster, args: &Args, id: &str) -> PathBuf {
    if args.keep {
        return muster.state.join("drills").join(id).join("report.html");
    }
    // What is looked at afterwards must outlive the demo's own directory.
    std::env::temp_dir().join(format!("muster-demo-report-{id}.html"))
}

fn told(view: &Value, report: &Path, output: &Output) {
    super::drill::figures(view, output);
    let restore = &view["database_restore"];
    if !restore.is_null() {
        let shown = |figure: &Value| figure["actual_ms"].as_i64().map_or("not measured".to_owned(), |n| super::output::ms(Some(n.into())));
        output.line(format!(
            "the database from its backup and its log alone: {} to the first answer, {}; pages and indexes checked: {}",
            shown(&restore["rto"]),
            lost(&restore["rpo"], &shown(&restore["rpo"])),
            restore["verdict"].as_str().unwrap_or("not finished")
        ));
    }
    output.line(format!("report: {}", report.display()));
}

/// The loss of a restore: against the primary's newest commit, or as the age of what came back.
fn lost(rpo: &Value, time: &str) -> String {
    let most = if rpo["upper_bound"] == json!(false) { "" } else { "at most " };
    let counted = match rpo["lost_commits"].as_u64() {
        Some(0) => " (none of the primary's transactions is missing)".to_owned(),
        Some(n) => format!(" ({n} transactions that the primary had)"),
        None => String::new(),
    };
    format!("{most}{time} of commits lost{counted}")
}
