//! `database.rejoin` for a PostgreSQL server of one's own: the old primary's directory is taken back to where the two
//! histories part, and follows the new primary.
//!
//! **In this order**, each step looked at before it is taken, so that it may be cut off anywhere: nothing of the old
//! server lives; what it committed beyond that point is listed and kept (`stranded.rs`); its own configuration is kept
//! beside it; `pg_rewind`; its configuration back, and a standby's on top; a slot on the new primary; started. A server
//! that stopped in order before the other was promoted has nothing beyond that point, and is only started. Where it
//! cannot be rewound (no checksums and no `wal_log_hints`, a log with holes, an unrelated history) a new base backup
//! takes its place, and the old directory stays beside it: nothing is ever deleted. Its tablespaces go where they are told, or beside
//! the directory (`tablespace_places.rs`); where something is there already, nothing is begun. Where nobody can tell what it
//! committed beyond that point (a hole, a history that the new primary does not know, log that is not understood) it is not
//! rewound even if it could be: its directory is then the only account, stays whole, and the output says so and why.

use super::{
    contract::*,
    own_server::*,
    poolers,
    shared::*,
    stranded::{self, Stranded},
    switchover_steps::{answers, let_slot_go},
    tablespace_places,
};
use crate::model::{effect::*, ids::*};
use crate::providers::port::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

const PATIENCE: Duration = Duration::from_secs(20);
const REWIND: Duration = Duration::from_mins(30);
const COPY: Duration = Duration::from_hours(6);
const APART: Duration = Duration::from_mins(5);

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OwnIntent {
    database: DatabaseName,
    region: RegionName,
    primary: RegionName,
    system_identifier: String,
    /// Of the new primary.
    timeline: u32,
    /// On the new primary, for this standby.
    slot: String,
    /// The name beside the data directory under which the old one stays, if it must be replaced.
    kept: String,
    nothing: bool,
    /// The write lease is the new primary's: the old one may run, and acknowledges nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    leased: bool,
    /// The new primary's, should the directory have to be copied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tablespaces: Vec<Tablespace>,
}

/// How the old primary came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// It had nothing that the new primary lacks.
    Started,
    Rewound,
    /// By a new base backup.
    Copied,
}

/// What this machine remembers of the step for its report.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Notes {
    how: Option<How>,
    old_directory: Option<String>,
}

pub(super) struct Rejoined {
    pub instance: String,
    pub position: Option<Lsn>,
    pub how: Option<How>,
    pub old_directory: Option<String>,
    pub stranded: Option<Stranded>,
    /// Why nobody can tell what is stranded.
    pub unknown: Option<String>,
    pub poolers_left: Vec<String>,
}

pub(super) async fn prepare(
    cx: &ReadCx,
    name: DatabaseName,
    region: RegionName,
    primary: RegionName,
    said: &BTreeMap<String, PathBuf>,
) -> Result<Prepared<OwnIntent>, Refusal> {
    needs_machine(cx, &name, &region, "its directory cannot be taken back")?;
    not_patronis(cx, &name, &region).await?;
    let new = state_of(cx, &name, &primary).await?;
    if new.in_recovery {
        return Err(Refusal::no("not_primary", format!("the server of `{name}` in `{primary}` is a standby, not the primary")));
    }
    let allowed = allowed(cx, &name).await?;
    if allowed.as_deref().is_some_and(|allowed| allowed != primary.as_str()) {
        return Err(not_fenced(&name, &region, "the write lease is allowed to it"));
    }
    let leased = allowed.is_some();
    let machine = cx.world.machine(name.as_str(), region.as_str())?;
    let old = machine.look().await?;
    if old.system_identifier != new.system_identifier {
        return Err(Refusal::no(
            "another_cluster",
            format!("the directory of `{name}` in `{region}` belongs to another cluster ({})", old.system_identifier),
        ));
    }
    let mut nothing = false;
    if !old.dead() {
        match state_of(cx, &name, &region).await {
            Ok(state) if !state.in_recovery && !leased => return Err(not_fenced(&name, &region, "its server is a primary, and runs")),
            Ok(state) => nothing = state.in_recovery && state.streaming && state.timeline == new.timeline,
            Err(_) => {}
        }
    }
    let cluster = cx.world.cluster(name.as_str(), primary.as_str())?;
    let settings = cluster.settings(&["max_wal_senders", "max_replication_slots"]).await?;
    if let Some((setting, _)) = settings.iter().find(|(_, value)| *value == "0") {
        return Err(Refusal::no("no_replication", format!("`{setting}` is 0 on the primary in `{primary}`: nobody can follow it")));
    }
    let data = instance(cx, &name, &region)?.server.as_ref().map(|server| server.data.as_path());
    let tablespaces = tablespace_places::places(&cluster.tablespaces().await?, said, data.unwrap_or(Path::new("")), &short_key(cx))?;
    let kept = format!("before-{}", short_key(cx));
    let intent = OwnIntent {
        slot: slot_name(&region),
        system_identifier: new.system_identifier,
        timeline: new.timeline,
        database: name,
        region,
        primary,
        kept,
        nothing,
        leased,
        tablespaces,
    };
    let mut changes = Vec::new();
    if !nothing {
        let from = format!("{} on timeline {}", old.state, old.timeline);
        let to = format!("standby of {} on timeline {}", intent.primary, intent.timeline);
        changes.push(change(format!("{} in {}", intent.database, intent.region), Some(from), Some(to)));
    }
    let copied = || intent.tablespaces.iter().map(tablespace_places::note).collect();
    let notes = if nothing { vec!["it follows that primary already".to_owned()] } else { copied() };
    Ok(Prepared { intent, change: changes, notes })
}

/// The region that may hold the write lease, if there is one.
async fn allowed(cx: &ReadCx, name: &DatabaseName) -> Result<Option<String>, Refusal> {
    if database(cx, name)?.lease.is_none() {
        return Ok(None);
    }
    Ok(cx.world.lease(name.as_str())?.lease().await?.allowed)
}

fn not_fenced(name: &DatabaseName, region: &RegionName, why: &str) -> Refusal {
    Refusal::no("not_fenced", format!("`{name}` in `{region}` may still be written to: {why}"))
        .remedy("fence it first with `database.fence`")
}

pub(super) async fn apply(cx: &WriteCx, intent: &OwnIntent) -> Result<Rejoined, ApplyError> {
    // Those that were lost with the region send their clients where they did before. None keeps the standby from coming back.
    poolers::lead_what_can_be_led(cx, &intent.database, &intent.primary).await?;
    if intent.nothing || follows(cx, intent).await.is_ok_and(|state| state.is_some_and(|s| s.streaming)) {
        return Ok(rejoined(cx, intent, None).await);
    }
    let machine = cx.world()?.machine_mut(intent.database.as_str(), intent.region.as_str())?;
    let old = quiet(cx, intent, &*machine).await?;
    let cluster = cx.world()?.cluster_mut(intent.database.as_str(), intent.primary.as_str())?;
    // Until its first checkpoint a new primary's control file names the old timeline, and pg_rewind goes by that.
    cluster.checkpoint().await?;
    let up = upstream(cx, &intent.database, &intent.primary, false).map_err(definite)?;
    let begun = machine.read(&format!("{}.muster-own/complete", data(cx, intent)?)).await?.is_some();
    let plan = match begun {
        true if stranded::unknown(cx).is_some() => Plan::Copy,
        true => Plan::Rewind,
        false => keep_stranded(cx, intent, &*machine, &*cluster, &old).await?,
    };
    let half = |e: PortError| ApplyError::Unknown(failure(&e));
    let mut notes = Notes { how: Some(How::Started), old_directory: None };
    if plan != Plan::Start {
        let before = told(cx);
        let copied = begun && before.how == Some(How::Copied) && old.timeline == intent.timeline;
        if plan == Plan::Copy && !copied {
            // Before anything is done that an attempt with other folders would take for its own beginning.
            room(intent, &*machine).await?;
        }
        machine.keep_configuration().await?;
        notes = if copied { before } else { taken_back(cx, intent, &*machine, &up, plan).await? };
        machine.restore_configuration().await.map_err(half)?;
    }
    remember(cx, &notes);
    let from = upstream(cx, &intent.database, &intent.primary, true).map_err(definite)?;
    make_standby(&*machine, Some((&from, &intent.region))).await.map_err(half)?;
    cluster.make_slot(&intent.slot).await.map_err(half)?;
    cx.world()?;
    machine.start().await.map_err(half)?;
    // One that only started has the slot still in which it kept the log for the new primary.
    let kept = cluster.settings(&["primary_slot_name"]).await.ok().and_then(|mut all| all.remove("primary_slot_name")).unwrap_or_default();
    if answers(cx, &intent.database, &intent.region).await {
        let_slot_go(cx, &intent.database, &intent.region, &kept).await?;
    }
    Ok(rejoined(cx, intent, None).await)
}

/// Rewinds the directory, or puts a new base backup in its place.
async fn taken_back(cx: &WriteCx, intent: &OwnIntent, machine: &dyn MachineWrite, up: &Upstream, plan: Plan) -> Result<Notes, ApplyError> {
    let half = |e: PortError| ApplyError::Unknown(failure(&e));
    if plan == Plan::Rewind {
        match machine.rewind(up, REWIND.min(cx.deadline)).await {
            Ok(()) => return Ok(Notes { how: Some(How::Rewound), old_directory: None }),
            Err(PortError::Refused(_)) => {}
            Err(e) => return Err(half(e)),
        }
    }
    room(intent, machine).await?;
    let from = upstream(cx, &intent.database, &intent.primary, true).map_err(definite)?;
    let mut notes = Notes { how: Some(How::Copied), old_directory: Some(format!("{}.{}", data(cx, intent)?, intent.kept)) };
    // Whoever goes on after a crash finds a directory of the new history, and must not take it for one that was rewound.
    remember(cx, &notes);
    notes.old_directory = Some(machine.copy(&from, &intent.kept, &intent.tablespaces, COPY.min(cx.deadline)).await.map_err(half)?);
    Ok(notes)
}

/// A tablespace that has nowhere to go is no half copy.
async fn room(intent: &OwnIntent, machine: &dyn MachineWrite) -> Result<(), ApplyError> {
    match machine.no_room_for(&intent.tablespaces).await? {
        none if none.is_empty() => Ok(()),
        full => {
            let failure = Failure::new("tablespaces", format!("it cannot be copied: {}", full.join("; ")))
                .remedy("empty that folder, or name another one under `tablespaces`, by the tablespace's number");
            Err(ApplyError::Definite(failure))
        }
    }
}

fn data(cx: &ReadCx, intent: &OwnIntent) -> Result<String, ApplyError> {
    let server = instance(cx, &intent.database, &intent.region).map_err(definite)?.server.as_ref();
    Ok(server.map(|s| s.data.display().to_string()).unwrap_or_default())
}

/// Makes sure that nothing of the old server lives. A primary that runs is stopped here only where the write lease, which is
/// the new primary's at this very moment, fences it: as one that was killed or frozen, and came back as what it was.
async fn quiet(cx: &WriteCx, intent: &OwnIntent, machine: &dyn MachineWrite) -> Result<MachineState, ApplyError> {
    if machine.read(&format!("{}.muster-isolated/socket", data(cx, intent)?)).await?.is_some() {
        machine.isolated_no_more().await?;
    }
    let state = machine.look().await?;
    if state.dead() {
        return Ok(state);
    }
    let tool = state.processes.iter().find(|p| p.name.starts_with("pg_rewind") || p.name.starts_with("pg_basebackup"));
    if let Some(tool) = tool {
        return Err(ApplyError::Unknown(Failure::new(
            "under_way",
            format!("{} of an earlier attempt still runs (process {})", tool.name, tool.pid),
        )));
    }
    match state_of(cx, &intent.database, &intent.region).await {
        Ok(state) if !state.in_recovery => {
            let fenced = intent.leased && allowed(cx, &intent.database).await.map_err(definite)?.as_ref() == Some(&intent.primary.0);
            if !fenced {
                return Err(definite(not_fenced(&intent.database, &intent.region, "its server is a primary, and runs")));
            }
            Ok(stop(cx, machine, PATIENCE).await?)
        }
        // A standby of nobody or of another; or backends without a postmaster.
        _ => Ok(stop(cx, machine, PATIENCE).await?),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    Start,
    Rewind,
    Copy,
}

/// Lists what is stranded and decides how the directory comes back.
async fn keep_stranded(
    cx: &WriteCx,
    intent: &OwnIntent,
    machine: &dyn MachineWrite,
    cluster: &dyn ClusterWrite,
    old: &MachineState,
) -> Result<Plan, ApplyError> {
    let history = cluster.history(intent.timeline).await?;
    if old.timeline == intent.timeline {
        let own = machine.read(&format!("pg_wal/{:08X}.history", old.timeline)).await?;
        return match own.as_deref().and_then(begins) {
            Some(begun) if history.last().is_some_and(|theirs| *theirs != begun) => {
                let why = format!(
                    "it is on a timeline {0} that began at {1}, and the new primary on another timeline {0}",
                    old.timeline, begun.1
                );
                whole(cx, &why)
            }
            // It is of the new history already: it was a standby, or came back before.
            _ => Ok(Plan::Start),
        };
    }
    let Some((_, parted)) = history.iter().find(|(timeline, _)| *timeline == old.timeline).copied() else {
        let why =
            format!("timeline {}, which it is on, is not in the history of the new primary (timeline {})", old.timeline, intent.timeline);
        return whole(cx, &why);
    };
    if old.state == "shut down" && old.checkpoint < parted {
        return Ok(Plan::Start);
    }
    let beyond = match stranded::beyond(cx, machine, old.timeline, parted).await {
        Ok(beyond) => beyond,
        Err(PortError::Refused(why)) => return whole(cx, &format!("its log from {parted} on cannot be read: {why}")),
        Err(e) => return Err(e.into()),
    };
    if let Some(strange) = &beyond.log.strange {
        return whole(cx, &format!("its log has a record that is not understood: {strange}"));
    }
    if old.checkpoint >= parted && beyond.log.last.is_none_or(|last| last < old.checkpoint) {
        let end = beyond.log.last.unwrap_or(parted);
        return whole(cx, &format!("its log can be read to {end} only, and its latest checkpoint is at {}", old.checkpoint));
    }
    let Some(last) = beyond.log.last else { return Ok(Plan::Start) };
    let clean = old.state.starts_with("shut down");
    if !beyond.log.committed.is_empty() && stranded::kept(cx).is_none() || !clean {
        // Started apart it also comes to an orderly end, which pg_rewind asks for.
        let up = upstream(cx, &intent.database, &intent.region, false).map_err(definite)?;
        make_standby(machine, None).await?;
        let asked = match machine.isolate(last, &up.user, APART.min(cx.deadline)).await {
            Ok(()) if beyond.log.committed.is_empty() => Ok(()),
            Ok(()) => stranded::keep(cx, machine, &beyond, &intent.database, &intent.region).await.map(drop).map_err(definite),
            Err(e) => Err(e.into()),
        };
        machine.isolated_no_more().await?;
        asked?;
    }
    stranded::known(cx);
    Ok(if old.rewindable { Plan::Rewind } else { Plan::Copy })
}

/// The timeline that a history file says it left last, and where.
fn begins(history: &str) -> Option<(u32, Lsn)> {
    let mut words = history.lines().rfind(|line| !line.trim().is_empty() && !line.starts_with('#'))?.split_whitespace();
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

/// Nobody can tell what is stranded: that goes on record before anything is done, and the directory is kept whole.
fn whole(cx: &ReadCx, why: &str) -> Result<Plan, ApplyError> {
    stranded::cannot_tell(cx, why)?;
    Ok(Plan::Copy)
}

fn remember(cx: &ReadCx, notes: &Notes) {
    if let Ok(text) = serde_json::to_vec(notes) {
        // Only the report would miss it.
        let _ = std::fs::write(stranded::place(cx, "how"), text);
    }
}

fn told(cx: &ReadCx) -> Notes {
    std::fs::read(stranded::place(cx, "how")).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

async fn rejoined(cx: &ReadCx, intent: &OwnIntent, position: Option<Lsn>) -> Rejoined {
    let Notes { how, old_directory } = told(cx);
    let instance = format!("{} in {}", intent.database, intent.region);
    let poolers_left = poolers::astray(cx, &intent.database, &intent.primary).await;
    Rejoined { instance, position, how, old_directory, stranded: stranded::kept(cx), unknown: stranded::unknown(cx), poolers_left }
}

/// The server's state, if it is a standby that looks for its log in this step's slot.
async fn follows(cx: &ReadCx, intent: &OwnIntent) -> PortResult<Option<ServerState>> {
    let state = state_of(cx, &intent.database, &intent.region).await?;
    if !state.in_recovery {
        return Ok(None);
    }
    let settings = cx.world.cluster(intent.database.as_str(), intent.region.as_str())?.settings(&["primary_slot_name"]).await?;
    let ours = intent.nothing || settings.get("primary_slot_name") == Some(&intent.slot);
    Ok(ours.then_some(state))
}

pub(super) async fn observe(cx: &ReadCx, intent: &OwnIntent) -> Seen<Rejoined> {
    match follows(cx, intent).await {
        Ok(Some(state)) if state.system_identifier != intent.system_identifier => {
            Seen::Differs { found: "another cluster answers there".into() }
        }
        Ok(Some(state)) if state.streaming && state.timeline >= intent.timeline => {
            Seen::Done(rejoined(cx, intent, Some(state.position)).await)
        }
        Ok(Some(_)) => pending(100, "the standby does not stream yet"),
        Ok(None) | Err(PortError::Unreachable(_)) => Seen::Absent,
        Err(e) => cannot_tell(&e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_says_where_its_timeline_begins() {
        let text = "1\t0/3000148\tno recovery target specified\n\n2\t0/50000A0\tno recovery target specified\n";
        assert_eq!(begins(text), Some((2, Lsn(0x0500_00A0))));
        assert_eq!((begins(""), begins("words\n")), (None, None));
    }
}
