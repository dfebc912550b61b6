//! One verification of a replica from start to report: its state first, then what it has beside rows, then rows. What
//! kind of replica it is shows by itself: a standby is in recovery, a logical replica has subscriptions.

use super::{
    replica::{Note, ReplicaState, Sight, judge, notes},
    replica_causes::{Cause, cure},
    replica_content::{self as content, Stop},
    replica_keys::{self as keys, Subject},
    replica_load::{Bounds, Watcher, patiently},
    replica_report::*,
    replica_structure as structure,
};
use crate::providers::{clock::Clock, port::*};
use std::{collections::BTreeSet, time::Duration};

/// Between two looks.
const MOMENT: Duration = Duration::from_millis(500);
/// What seems to stand still is looked at so often.
const LOOKS: u32 = 4;
/// Changes of the schema that are on their way.
const ROUNDS: u32 = 4;

#[derive(Clone, Debug, Default)]
pub(crate) struct Ask {
    /// All when empty.
    pub tables: Vec<String>,
    pub structure: bool,
    pub content: bool,
    /// What an earlier run has done already.
    pub done: Vec<TableReport>,
}

/// How the two stand.
pub(crate) struct Standing {
    pub state: ReplicaState,
    pub notes: Vec<Note>,
    pub how: ReplicaKind,
    /// A primary answered.
    pub primary: bool,
    here: Replication,
    there: Replication,
}

/// The state of a replica. No primary: then it is told up to the last contact.
pub(crate) async fn standing(primary: Option<&dyn SqlRead>, replica: &dyn SqlRead, clock: &dyn Clock) -> Result<Standing, PortError> {
    let before = asked(primary).await;
    let first = patiently!(clock, replica.state())?;
    let here = patiently!(clock, replica.replication())?;
    let there = match (primary, &before) {
        (Some(primary), Some(_)) => primary.replication().await.unwrap_or_default(),
        _ => Replication::default(),
    };
    let mut looks = 1;
    loop {
        clock.sleep(MOMENT).await;
        let now = asked(primary).await;
        let second = patiently!(clock, replica.state())?;
        // Asked anew: what replay waits for, and whether a pause has begun, is of this moment.
        let here = if looks > 1 { patiently!(clock, replica.replication())? } else { here.clone() };
        let both = before.as_ref().zip(now.as_ref());
        let sight = Sight { first: &first, second: &second, primary: both, here: &here, there: &there };
        let logical = !second.in_recovery && !here.subscriptions.is_empty();
        let state = if logical { subscribed(&sight) } else { judge(&sight) };
        let still = matches!(state.trouble(), Some((Cause::ReplayStuck | Cause::ReceiverStuck, _, _)));
        if still && looks < LOOKS {
            looks += 1;
            continue;
        }
        let notes = if logical { unsynced(&here) } else { notes(&sight) };
        let how = if logical { ReplicaKind::Logical } else { ReplicaKind::Physical };
        return Ok(Standing { state, notes, how, primary: both.is_some(), here, there });
    }
}

async fn asked(primary: Option<&dyn SqlRead>) -> Option<ServerState> {
    primary?.state().await.ok().filter(|state| !state.in_recovery)
}

/// A subscriber: each of its subscriptions must be at work, and its slot be there.
fn subscribed(sight: &Sight<'_>) -> ReplicaState {
    let mut lag_bytes = None;
    let not =
        |cause: Cause, why: String| ReplicaState::NotReplicating { cause, why, cure: cure(cause).into(), lag_bytes: None, lag_ms: None };
    for one in &sight.here.subscriptions {
        let slot = one.slot.as_deref().unwrap_or_default();
        let known = sight.there.slots.as_ref().map(|slots| slots.iter().find(|s| s.name == slot));
        if !one.enabled {
            return not(Cause::SubscriptionDisabled, format!("the subscription `{}` is disabled", one.name));
        }
        match known {
            Some(None) => {
                return not(Cause::SlotMissing, format!("the slot `{slot}` of subscription `{}` is not there on the publisher", one.name));
            }
            Some(Some(found)) if found.wal_status.as_deref() == Some("lost") => {
                return not(Cause::SlotLost, format!("the slot `{slot}` of subscription `{}` is lost", one.name));
            }
            Some(Some(found)) => {
                let behind = sight.primary.zip(found.confirmed).map(|((_, now), at)| now.position.0.saturating_sub(at.0));
                lag_bytes = lag_bytes.max(behind);
            }
            None => {}
        }
        if !one.working {
            let errors = one.errors.filter(|n| *n > 0).map(|n| format!("; it has failed {n} times")).unwrap_or_default();
            return not(Cause::NoReceiver, format!("nobody applies for the subscription `{}`{errors}", one.name));
        }
    }
    // In seconds it can only be told when there is none: nobody keeps the times of what a subscriber applied.
    ReplicaState::Streaming { lag_bytes, lag_ms: (lag_bytes == Some(0)).then_some(0) }
}

/// Tables whose first copy is not done.
fn unsynced(here: &Replication) -> Vec<Note> {
    let mut all = Vec::new();
    for (one, (table, state)) in here.subscriptions.iter().flat_map(|s| s.tables.iter().map(move |t| (s, t))) {
        if state != "r" {
            all.push(Note {
                what: "not_ready".into(),
                detail: format!("table {table} of subscription `{}` is in state `{state}`: its first copy is not done", one.name),
                cure: "wait, or see the subscriber's log for why it cannot be copied".into(),
            });
        }
    }
    all
}

/// The whole of it. `primary` is one that is no standby; without one only the state can be told.
pub(crate) async fn verify(
    primary: Option<&dyn SqlRead>,
    replica: &dyn SqlRead,
    ask: &Ask,
    bounds: &Bounds,
    watcher: &dyn Watcher,
) -> Result<Report, PortError> {
    let standing = match standing(primary, replica, &*bounds.clock).await {
        Ok(standing) => standing,
        Err(e) => return Ok(unasked(ReplicaState::unknown(Cause::CannotAsk, e.to_string()))),
    };
    let mut report = Report {
        verdict: Verdict::Unknown,
        replication: standing.how,
        replica: standing.state.clone(),
        notes: standing.notes.clone(),
        structure: None,
        tables: None,
        resumed: !ask.done.is_empty(),
        interrupted: false,
    };
    let primary = primary.filter(|_| standing.primary);
    if primary.is_none() && (ask.structure || ask.content) {
        let detail = "no primary answers (or it is a standby itself), so nothing was compared".into();
        report.notes.push(Note { what: "no_primary".into(), detail, cure: cure(Cause::NoPrimary).into() });
    }
    // One that does not replay would never come to where the primary is.
    if let (Some(primary), None) = (primary, standing.state.trouble()) {
        if ask.structure {
            report.structure = Some(same_structure(primary, replica, &standing, bounds).await?);
        }
        if ask.content {
            match rows(primary, replica, &standing, ask, bounds, watcher).await {
                Ok(tables) => report.tables = Some(tables),
                Err(Stop::Port(e)) => return Err(e),
                Err(Stop::Stalled(at)) => {
                    let (why, cause) = (format!("it did not replay {at} in time"), Cause::ReplayStuck);
                    report.replica = ReplicaState::Stalled { cause, why, cure: cure(cause).into(), lag_bytes: None, lag_ms: None };
                }
            }
        }
    }
    report.interrupted = watcher.stopped();
    report.judge();
    let nothing = report.tables.is_none() && report.structure.is_none() && (ask.content || ask.structure);
    if nothing && report.verdict == Verdict::Good {
        report.verdict = Verdict::Unknown;
    }
    Ok(report)
}

/// Of a replica that does not answer.
fn unasked(replica: ReplicaState) -> Report {
    Report {
        verdict: Verdict::Unknown,
        replication: ReplicaKind::Physical,
        replica,
        notes: Vec::new(),
        structure: None,
        tables: None,
        resumed: false,
        interrupted: false,
    }
}

/// Differences that are still there when the replica has all that the primary had.
async fn same_structure(
    primary: &dyn SqlRead,
    replica: &dyn SqlRead,
    standing: &Standing,
    bounds: &Bounds,
) -> Result<Vec<Difference>, PortError> {
    let published = shared(standing);
    let (mut found, clock) = (Vec::new(), &bounds.clock);
    for _ in 0..ROUNDS {
        let ours = patiently!(clock, primary.inventory())?;
        let mut waited = 0;
        while standing.how == ReplicaKind::Physical && waited < 50 && patiently!(clock, replica.state())?.position < ours.at {
            clock.sleep(Duration::from_millis(100)).await;
            waited += 1;
        }
        let theirs = patiently!(clock, replica.inventory())?;
        found = structure::compare(&ours, &theirs, standing.how, &published);
        if !found.iter().any(|d| d.bad) {
            break;
        }
        clock.sleep(MOMENT).await;
    }
    Ok(found)
}

/// Tables that are published to the replica.
fn shared(standing: &Standing) -> BTreeSet<String> {
    let wanted: BTreeSet<&String> = standing.here.subscriptions.iter().flat_map(|s| &s.publications).collect();
    standing.there.published.iter().filter(|p| wanted.contains(&p.publication)).map(|p| p.table.clone()).collect()
}

async fn rows(
    primary: &dyn SqlRead,
    replica: &dyn SqlRead,
    standing: &Standing,
    ask: &Ask,
    bounds: &Bounds,
    watcher: &dyn Watcher,
) -> Result<Vec<TableReport>, Stop> {
    let tables = primary.rows().await?.tables(&ask.tables).await?;
    let mut reports: Vec<TableReport> = Vec::new();
    let mut todo = Vec::new();
    for table in tables {
        if let Some(done) = ask.done.iter().find(|done| done.table == table.name) {
            reports.push(TableReport { resumed: true, ..done.clone() });
        } else if table.unlogged {
            let why = Some("it is unlogged: its content is not replicated, and empty after a failover".to_owned());
            reports.push(TableReport { why, ..TableReport::new(&table.name, TableState::NotReplicated) });
        } else {
            todo.push(table);
        }
    }
    let compared = match standing.how {
        ReplicaKind::Physical => content::compare(primary, replica, todo, bounds, watcher).await?,
        ReplicaKind::Logical => {
            let theirs = patiently!(bounds.clock, async { replica.rows().await?.tables(&[]).await })?;
            reports.extend(roots(standing, ask, &todo));
            let (subjects, others) = subjects(standing, todo, &theirs);
            reports.extend(others);
            keys::compare(primary, replica, subjects, bounds, watcher).await?
        }
    };
    reports.extend(compared);
    reports.sort_by(|a, b| a.table.cmp(&b.table));
    Ok(reports)
}

/// Partitioned tables that are published as a whole.
fn roots(standing: &Standing, ask: &Ask, tables: &[TableFile]) -> Vec<TableReport> {
    let why = "it is published through its root, and compared by key are only tables that are published themselves";
    let seen = |name: &String| tables.iter().any(|t| t.name == *name) || ask.done.iter().any(|d| d.table == *name);
    let asked = shared(standing).into_iter().filter(|name| ask.tables.is_empty() && !seen(name));
    asked.map(|name| TableReport::unknown(&name, why)).collect()
}

/// The tables that can be compared by key, and reports of those that cannot.
fn subjects(standing: &Standing, tables: Vec<TableFile>, theirs: &[TableFile]) -> (Vec<Subject>, Vec<TableReport>) {
    let (mut subjects, mut others) = (Vec::new(), Vec::new());
    for table in tables {
        let subscription = standing.here.subscriptions.iter().find(|s| s.tables.contains_key(&table.name));
        let published = |s: &&Subscription| {
            let of = |p: &&Published| s.publications.contains(&p.publication) && p.table == table.name;
            standing.there.published.iter().find(of)
        };
        let (Some(subscription), Some(copy)) = (subscription, theirs.iter().find(|t| t.name == table.name)) else {
            let why = Some("no subscription of the replica has it".to_owned());
            others.push(TableReport { why, ..TableReport::new(&table.name, TableState::NotReplicated) });
            continue;
        };
        let state = subscription.tables.get(&table.name).map_or("", String::as_str);
        if state != "r" {
            others.push(TableReport::unknown(&table.name, format!("its first copy is not done (state `{state}`)")));
            continue;
        }
        if table.key.is_empty() {
            others.push(TableReport::unknown(&table.name, "it has no primary key, by which a logical replica is compared"));
            continue;
        }
        let how = by_key(&table, copy, published(&subscription));
        subjects.push(Subject { how, slot: subscription.slot.clone().unwrap_or_default() });
    }
    (subjects, others)
}

/// How both are asked. A column that is of another type at the subscriber is compared as text.
fn by_key(table: &TableFile, copy: &TableFile, published: Option<&Published>) -> ByKey {
    let chosen = published.and_then(|p| p.columns.as_ref());
    let wanted = |column: &&Column| chosen.is_none_or(|names| names.contains(&column.name));
    let both = |column: &Column| {
        let there = copy.columns.iter().find(|c| c.name == column.name)?;
        let kind = if there.kind == column.kind { column.kind.clone() } else { "text".to_owned() };
        Some(Column { name: column.name.clone(), kind, nullable: column.nullable || there.nullable })
    };
    let kind = |name: &String| table.columns.iter().find(|c| c.name == *name).map_or("text", |c| &c.kind).to_owned();
    ByKey {
        table: table.name.clone(),
        columns: table.columns.iter().filter(wanted).filter_map(both).collect(),
        key: table.key.iter().map(|name| (name.clone(), kind(name))).collect(),
        filter: published.and_then(|p| p.filter.clone()),
        bytewise: table.sorted != copy.sorted,
    }
}
