//! Chains of another journal, taken into this one: the same bytes, the same hashes, and where they came from.
//!
//! Whoever ran without the shared journal brings the record of it afterwards. The chain is copied as it is; that
//! it was copied, from where and by whom, stands in the chain of heads. It is a record and no run to go on with:
//! nobody claims it here, and what is continued at its origin can be taken in again. What may be taken in is
//! decided here ([`judge`]), so that a store only inserts what it is given.

use super::{
    ChainRow, JournalError,
    chain::{Dump, EventRow, verify},
    project,
};
use crate::model::{
    effect::Resource,
    event::{Body, Event},
    ids::RunId,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What the owner of a chain that was taken in begins with.
const IMPORTED: &str = "imported from ";

/// Where a chain came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The journal: its machine and directory, or the file it came in.
    pub place: String,
    /// The last head of that journal, if it has come along.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<String>,
    /// Who took it in, and when.
    pub by: String,
    pub at: jiff::Timestamp,
}

/// One chain to be taken in, or the rest of one that is here in part.
#[derive(Clone, Debug)]
pub struct Adopted {
    /// As it is to stand in the list.
    pub row: ChainRow,
    /// In order; those that are here already are left out.
    pub events: Vec<EventRow>,
    /// A part of it is here.
    pub known: bool,
}

/// Was this chain written elsewhere?
#[must_use]
pub fn is_imported(row: &ChainRow) -> bool {
    row.owner.as_deref().is_some_and(is_origin)
}

/// Is it no owner, but where a chain was written?
#[must_use]
pub fn is_origin(owner: &str) -> bool {
    owner.starts_with(IMPORTED)
}

/// Nobody claims what was written elsewhere.
pub fn own(row: &ChainRow) -> Result<(), JournalError> {
    match &row.owner {
        Some(origin) if is_imported(row) => Err(JournalError::Imported { run: row.id.clone(), origin: origin.clone() }),
        _ => Ok(()),
    }
}

/// Two runs that held the same resource at the same time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Overlap {
    pub imported: RunId,
    pub here: RunId,
    pub resource: Resource,
    pub from: jiff::Timestamp,
    pub to: jiff::Timestamp,
}

/// A chain that is not taken in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Conflict {
    pub run: RunId,
    pub why: String,
}

/// What may be taken in, and what there is to say about it.
#[derive(Debug, Default)]
pub struct Judgement {
    pub adopted: Vec<Adopted>,
    pub present: Vec<RunId>,
    /// Chains that had not ended: records, not runs to go on with.
    pub unfinished: Vec<RunId>,
    pub conflicts: Vec<Conflict>,
    pub overlaps: Vec<Overlap>,
}

/// Compares what comes with what is here. What does not verify is refused as a whole.
pub fn judge(theirs: &Dump, ours: &Dump, origin: &Origin) -> Result<Judgement, Vec<String>> {
    let found = verify(theirs);
    if !found.verified {
        return Err(found.problems);
    }
    let (their_events, our_events) = (by_chain(theirs), by_chain(ours));
    let mut judgement = Judgement::default();
    for row in &theirs.rows {
        let events = their_events.get(&row.id).map(Vec::as_slice).unwrap_or_default();
        let ended = events.last().is_some_and(|last| matches!(body(last).and_then(|b| project(&b)), Some((_, true))));
        match ours.rows.iter().find(|mine| mine.id == row.id) {
            None => judgement.adopted.push(adopted(row, events, origin, false)),
            Some(mine) => {
                let here = our_events.get(&row.id).map(Vec::as_slice).unwrap_or_default();
                let same = here.iter().zip(events).all(|(a, b)| a.record == b.record && a.hash == b.hash);
                if same && events.len() <= here.len() {
                    judgement.present.push(row.id.clone());
                    continue;
                }
                if !same || !is_imported(mine) {
                    judgement.conflicts.push(conflict(&row.id, here, events));
                    continue;
                }
                judgement.adopted.push(adopted(row, events.get(here.len()..).unwrap_or_default(), origin, true));
            }
        }
        if !ended {
            judgement.unfinished.push(row.id.clone());
        }
        judgement.overlaps.extend(overlaps(&row.id, events, &our_events));
    }
    Ok(judgement)
}

fn adopted(row: &ChainRow, events: &[&EventRow], origin: &Origin, known: bool) -> Adopted {
    let mut row = row.clone();
    row.owner = Some(format!("{IMPORTED}{}", origin.place));
    // Nothing goes on with it here, so it is not open.
    let last = events.last().and_then(|last| last.at.parse().ok());
    row.finished_at = row.finished_at.or(last).or(Some(row.started_at));
    Adopted { row, events: events.iter().map(|event| (*event).clone()).collect(), known }
}

fn conflict(run: &RunId, here: &[&EventRow], events: &[&EventRow]) -> Conflict {
    let at = here.iter().zip(events).position(|(a, b)| a.record != b.record || a.hash != b.hash);
    let why = match at {
        Some(at) => format!("this journal has another event {} of the same run: one of the two was not written by Muster", at + 1),
        None => format!("this journal wrote its first {} events itself, and somebody has gone on with it elsewhere", here.len()),
    };
    Conflict { run: run.clone(), why }
}

fn by_chain(dump: &Dump) -> BTreeMap<&RunId, Vec<&EventRow>> {
    let mut chains: BTreeMap<&RunId, Vec<&EventRow>> = BTreeMap::new();
    for event in &dump.events {
        chains.entry(&event.run).or_default().push(event);
    }
    chains
}

fn body(event: &EventRow) -> Option<Body> {
    serde_json::from_slice::<Event>(&event.record).ok().map(|event| event.body)
}

/// What a chain held, and when.
fn held(events: &[&EventRow]) -> Option<(Vec<Resource>, jiff::Timestamp, jiff::Timestamp)> {
    let (first, last) = (events.first()?, events.last()?);
    let locks = match body(first)? {
        Body::RunCreated { plan, .. } => plan.locks.clone(),
        Body::DrillCreated { context, .. } => context.main.locks,
        _ => Vec::new(),
    };
    Some((locks, first.at.parse().ok()?, last.at.parse().ok()?))
}

fn overlaps(run: &RunId, events: &[&EventRow], ours: &BTreeMap<&RunId, Vec<&EventRow>>) -> Vec<Overlap> {
    let Some((locks, began, ended)) = held(events) else { return Vec::new() };
    let mut found = Vec::new();
    for (here, events) in ours.iter().filter(|(here, _)| **here != run) {
        let Some((other, from, to)) = held(events) else { continue };
        let (from, to) = (began.max(from), ended.min(to));
        let shared = locks.iter().filter(|lock| from <= to && other.contains(lock));
        found.extend(shared.map(|lock| Overlap { imported: run.clone(), here: (*here).clone(), resource: lock.clone(), from, to }));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{ChainKind, Draft, Journal, JournalError, NewChain, mem::MemJournal};
    use crate::model::{estate::Estate, plan::*, status::RunStatus};

    fn at(second: i64) -> jiff::Timestamp {
        jiff::Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn origin() -> Origin {
        Origin { place: "laptop:/tmp/state".into(), head: None, by: "ana".into(), at: at(100) }
    }

    /// A run from one second to another on a resource; it does not end if it is not told to.
    async fn run(journal: &MemJournal, id: &str, lock: &str, from: i64, to: Option<i64>) {
        let locks = vec![Resource(lock.to_owned())];
        let mut plan: Plan = serde_json::from_value(serde_json::json!({
            "runbook": "r", "file": "r", "digest": "", "mode": null, "scope": "live", "live": false, "inputs": {}, "waive": [],
            "estate": Estate::default(), "locks": [], "steps": [],
        }))
        .unwrap();
        plan.locks.clone_from(&locks);
        let draft = |second, body| Draft { at: at(second), actor: "tester".into(), body };
        let new = NewChain { id: id.into(), kind: ChainKind::Run, name: "r".into(), parent: None, locks };
        let first = draft(from, Body::RunCreated { plan: plan.into(), drill: None });
        let (claim, _) = journal.create(new, "tester", first).await.unwrap();
        let body = match to {
            Some(_) => Body::RunFinished { status: RunStatus::Succeeded, reason: None },
            None => Body::Resumed,
        };
        journal.append(&claim, 1, vec![draft(to.unwrap_or(from + 1), body)]).await.unwrap();
    }

    async fn take_in(theirs: &Dump, ours: &MemJournal) -> Judgement {
        let mut judgement = judge(theirs, &ours.dump(None).await.unwrap(), &origin()).unwrap();
        ours.adopt(std::mem::take(&mut judgement.adopted), &origin()).await.unwrap();
        judgement
    }

    #[tokio::test]
    async fn a_chain_keeps_its_bytes_and_comes_once() {
        let (theirs, ours) = (MemJournal::default(), MemJournal::default());
        run(&theirs, "a", "database/x", 0, Some(9)).await;
        run(&theirs, "b", "database/y", 10, None).await;
        let dump = theirs.dump(None).await.unwrap();
        let first = take_in(&dump, &ours).await;
        assert_eq!((first.unfinished, first.present.len()), (vec!["b".into()], 0));
        let there = ours.dump(None).await.unwrap();
        assert_eq!(verify(&there).problems, Vec::<String>::new());
        let bytes = |dump: &Dump| dump.events.iter().map(|event| (event.hash.clone(), event.record.clone())).collect::<Vec<_>>();
        assert_eq!(bytes(&there), bytes(&dump));
        assert!(String::from_utf8(there.heads.unwrap()[0].record.clone()).unwrap().contains("laptop:/tmp/state"));
        let again = take_in(&dump, &ours).await;
        assert_eq!((again.present.len(), again.unfinished.len()), (2, 0));
        assert_eq!(ours.dump(None).await.unwrap().heads.unwrap().len(), 2, "nothing was added");
        // A record: nobody goes on with it here.
        assert!(ours.open().await.unwrap().is_empty());
        for claim in [ours.claim(&"b".into(), "me").await, ours.seize(&"b".into(), "me").await] {
            assert!(matches!(claim, Err(JournalError::Imported { .. })));
        }
    }

    #[tokio::test]
    async fn what_went_on_at_its_origin_is_taken_in_again() {
        let (theirs, ours) = (MemJournal::default(), MemJournal::default());
        run(&theirs, "b", "database/y", 10, None).await;
        take_in(&theirs.dump(None).await.unwrap(), &ours).await;
        let claim = theirs.claim(&"b".into(), "tester").await.unwrap();
        let end = Body::RunFinished { status: RunStatus::Aborted, reason: None };
        theirs.append(&claim, 2, vec![Draft { at: at(20), actor: "tester".into(), body: end }]).await.unwrap();
        let more = take_in(&theirs.dump(None).await.unwrap(), &ours).await;
        assert!(more.unfinished.is_empty() && more.conflicts.is_empty());
        let row = ours.row(&"b".into()).await.unwrap();
        assert_eq!((row.status.as_str(), row.seq, row.finished_at), ("aborted", 3, Some(at(20))));
        assert_eq!(verify(&ours.dump(None).await.unwrap()).problems, Vec::<String>::new());
    }

    #[tokio::test]
    async fn overlaps_and_conflicts_are_named_and_what_does_not_verify_is_refused() {
        let (theirs, ours) = (MemJournal::default(), MemJournal::default());
        run(&ours, "here", "database/x", 5, Some(15)).await;
        run(&ours, "same", "bucket/m", 0, Some(1)).await;
        run(&theirs, "a", "database/x", 0, Some(9)).await;
        run(&theirs, "later", "database/x", 20, Some(30)).await;
        run(&theirs, "same", "bucket/m", 0, Some(2)).await;
        let mut dump = theirs.dump(None).await.unwrap();
        let found = take_in(&dump, &ours).await;
        let overlap =
            Overlap { imported: "a".into(), here: "here".into(), resource: Resource("database/x".into()), from: at(5), to: at(9) };
        assert_eq!(found.overlaps, [overlap]);
        assert_eq!(found.conflicts.iter().map(|c| c.run.as_str()).collect::<Vec<_>>(), ["same"]);
        assert_eq!(ours.row(&"same".into()).await.unwrap().seq, 2);
        assert_eq!(verify(&ours.dump(None).await.unwrap()).problems, Vec::<String>::new());
        // A run of this journal's own that somebody went on with elsewhere is a conflict as well.
        let copied = MemJournal::default();
        run(&copied, "open", "database/z", 40, None).await;
        let mut ours = ours.dump(None).await.unwrap();
        let theirs = copied.dump(None).await.unwrap();
        ours.rows.extend(theirs.rows.clone());
        ours.events.extend(theirs.events.iter().filter(|event| event.seq == 1).cloned());
        let found = judge(&theirs, &ours, &origin()).unwrap();
        assert!(found.conflicts[0].why.contains("wrote its first 1 events itself"), "{:?}", found.conflicts);
        dump.events[1].record[5] ^= 1;
        assert!(judge(&dump, &Dump::default(), &origin()).is_err());
    }
}
