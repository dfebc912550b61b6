//! The chain itself: how an event becomes bytes and a hash, and how a whole journal is verified.
//!
//! `hash = SHA-256(record)`, where `record` is the event in JSON exactly as stored and holds the hash
//! of the record before it in `prev`. The chain of heads is made the same way; it has a record when a
//! chain begins and one when it ends, so that removing a chain as a whole leaves a hole.

use super::{
    ChainKind, ChainRow, Draft, JournalError, Stored,
    adopt::{Origin, is_imported},
    project,
};
use crate::model::{
    event::{Body, Event},
    ids::RunId,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// SHA-256 in lower-case hexadecimal.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    hexadecimal(&digest(bytes))
}

pub(super) fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// The engine asks for it a dozen times a step; a general encoder takes as long as the hash itself.
pub(super) fn hexadecimal(digest: &[u8; 32]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |n: u8| char::from(DIGITS[usize::from(n & 15)]);
    let mut text = String::with_capacity(64);
    for byte in digest {
        text.push(digit(byte >> 4));
        text.push(digit(*byte));
    }
    text
}

/// One record of the chain of heads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub n: u64,
    pub run: RunId,
    pub kind: ChainKind,
    pub name: String,
    /// The last event and its hash when this was written.
    pub seq: u64,
    pub hash: String,
    pub ended: bool,
    /// Where the chain was written, if not here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    pub prev: String,
}

/// An event as it goes into the store.
pub struct Sealed {
    pub stored: Stored,
    pub record: Vec<u8>,
    /// What `stored.hash` says in hexadecimal.
    pub digest: [u8; 32],
    /// The `kind` in the record, for the column.
    pub kind: String,
}

/// Gives drafts their places in a chain that ends with event `after`, whose hash is `prev`.
pub fn seal(run: &RunId, epoch: u64, after: u64, prev: &str, drafts: Vec<Draft>) -> Result<Vec<Sealed>, JournalError> {
    let mut prev = prev.to_owned();
    let mut sealed = Vec::with_capacity(drafts.len());
    for (n, draft) in (after + 1..).zip(drafts) {
        let event = Event { run: run.clone(), seq: n, at: draft.at, actor: draft.actor, epoch, body: draft.body, prev };
        let corrupt = |why: String| JournalError::Corrupt { run: run.clone(), seq: n, why };
        // Most records are shorter than this.
        let mut record = Vec::with_capacity(768);
        serde_json::to_writer(&mut record, &event).map_err(|e| corrupt(e.to_string()))?;
        let one = Sealed::new(event, record);
        prev = one.stored.hash.clone();
        sealed.push(one);
    }
    Ok(sealed)
}

impl Sealed {
    /// An event and exactly the bytes that it is kept as.
    #[must_use]
    pub fn new(event: Event, record: Vec<u8>) -> Self {
        let kind = kind_of(&record).unwrap_or_default().to_owned();
        let digest = digest(&record);
        Self { stored: Stored { event, hash: hexadecimal(&digest) }, record, digest, kind }
    }
}

/// The `kind` that stands in a record. Its tag is written first, and the text before it cannot occur within
/// a string, where its quotes would be escaped.
#[must_use]
pub fn kind_of(record: &[u8]) -> Option<&str> {
    const BEFORE: &[u8] = br#""body":{"kind":""#;
    let begin = record.windows(BEFORE.len()).position(|part| part == BEFORE)? + BEFORE.len();
    let rest = record.get(begin..)?;
    let end = rest.iter().position(|byte| *byte == b'"')?;
    std::str::from_utf8(rest.get(..end)?).ok()
}

impl From<&Sealed> for EventRow {
    fn from(one: &Sealed) -> Self {
        let event = &one.stored.event;
        Self {
            run: event.run.clone(),
            seq: event.seq,
            at: event.at.to_string(),
            actor: event.actor.clone(),
            epoch: event.epoch,
            kind: one.kind.clone(),
            prev: event.prev.clone(),
            hash: one.stored.hash.clone(),
            record: one.record.clone(),
        }
    }
}

/// As they lie in a store.
#[must_use]
pub fn rows(sealed: &[Sealed]) -> Vec<EventRow> {
    sealed.iter().map(EventRow::from).collect()
}

/// A record for the chain of heads.
#[must_use]
pub fn seal_head(n: u64, prev: &str, row: &ChainRow, ended: bool) -> (Vec<u8>, String) {
    sealed_head(n, prev, row, ended, None)
}

/// The same for a chain that was taken in.
#[must_use]
pub fn seal_adopted(n: u64, prev: &str, row: &ChainRow, origin: &Origin) -> (Vec<u8>, String) {
    sealed_head(n, prev, row, false, Some(origin))
}

fn sealed_head(n: u64, prev: &str, row: &ChainRow, ended: bool, origin: Option<&Origin>) -> (Vec<u8>, String) {
    let head = Head {
        n,
        run: row.id.clone(),
        kind: row.kind,
        name: row.name.clone(),
        seq: row.seq,
        hash: row.head.clone(),
        ended,
        origin: origin.cloned(),
        prev: prev.to_owned(),
    };
    // A struct of strings and numbers always serialises.
    let record = serde_json::to_vec(&head).unwrap_or_default();
    let hash = sha256_hex(&record);
    (record, hash)
}

/// Everything in the store, columns and all.
#[derive(Clone, Debug, Default)]
pub struct Dump {
    pub rows: Vec<ChainRow>,
    pub events: Vec<EventRow>,
    /// Left out when only some chains were asked for.
    pub heads: Option<Vec<HeadRow>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRow {
    pub run: RunId,
    pub seq: u64,
    pub at: String,
    pub actor: String,
    pub epoch: u64,
    pub kind: String,
    pub prev: String,
    pub hash: String,
    #[serde(with = "text")]
    pub record: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadRow {
    pub n: u64,
    pub run: RunId,
    pub prev: String,
    pub hash: String,
    #[serde(with = "text")]
    pub record: Vec<u8>,
}

/// A record is JSON in UTF-8: in a file it stands as a text, whose bytes are the record's.
mod text {
    use serde::{Deserialize, Deserializer, Serializer, ser::Error};

    pub fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(std::str::from_utf8(bytes).map_err(S::Error::custom)?)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        String::deserialize(from).map(String::into_bytes)
    }
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verification {
    pub verified: bool,
    pub chains: u64,
    pub events: u64,
    /// The last hash of the chain of heads: keep it elsewhere, and a later cut is found.
    pub head: Option<String>,
    pub problems: Vec<String>,
}

/// Verifies every chain of a journal, and the chain of heads over them.
#[must_use]
pub fn verify(dump: &Dump) -> Verification {
    let mut problems = Vec::new();
    let mut chains: BTreeMap<&RunId, Vec<&EventRow>> = BTreeMap::new();
    for event in &dump.events {
        chains.entry(&event.run).or_default().push(event);
    }
    let rows: BTreeMap<&RunId, &ChainRow> = dump.rows.iter().map(|row| (&row.id, row)).collect();
    for (run, events) in &chains {
        verify_chain(run, events, rows.get(run).copied(), &mut problems);
    }
    for row in dump.rows.iter().filter(|row| !chains.contains_key(&row.id)) {
        problems.push(format!("{}: all its events are gone", row.id));
    }
    let head = dump.heads.as_ref().and_then(|heads| verify_heads(heads, &chains, &rows, &mut problems));
    Verification {
        verified: problems.is_empty(),
        chains: chains.len() as u64,
        events: dump.events.len() as u64,
        head: head.map(|hash| format!("sha256:{hash}")),
        problems,
    }
}

fn verify_chain(run: &RunId, events: &[&EventRow], row: Option<&ChainRow>, problems: &mut Vec<String>) {
    let mut prev = String::new();
    let mut status = None;
    let mut ended = None;
    let mut epoch = 0;
    for (expected, stored) in (1..).zip(events) {
        if stored.seq != expected {
            problems.push(format!("{run}: event {expected} is missing (the next one is {})", stored.seq));
            return;
        }
        let place = format!("{run} event {expected}");
        if sha256_hex(&stored.record) != stored.hash {
            problems.push(format!("{place}: its bytes do not have the hash on record"));
        }
        if stored.prev != prev {
            problems.push(format!("{place}: it does not follow the event before it"));
        }
        prev.clone_from(&stored.hash);
        match serde_json::from_slice::<Event>(&stored.record) {
            Err(error) => problems.push(format!("{place}: it cannot be read: {error}")),
            Ok(event) => {
                compare_columns(&place, stored, &event, problems);
                if event.epoch < epoch {
                    problems.push(format!("{place}: written under epoch {}, after epoch {epoch}", event.epoch));
                }
                epoch = event.epoch;
                if let Some(end) = ended {
                    problems.push(format!("{place}: it comes after the end of the chain at event {end}"));
                }
                if let Some((word, end)) = project(&event.body) {
                    status = Some(word);
                    ended = end.then_some(expected);
                }
                if let Some(row) = row {
                    compare_list(run, row, &event, problems);
                    if expected == events.len() as u64 {
                        compare_end(run, row, ended.is_some(), event.at, problems);
                    }
                }
            }
        }
    }
    match row {
        None => problems.push(format!("{run}: its entry in the list is gone")),
        Some(row) => {
            if row.head != prev || row.seq != events.len() as u64 {
                problems.push(format!(
                    "{run}: the list says that it ends with event {}, and its events end with {}",
                    row.seq,
                    events.len()
                ));
            }
            if status.is_some_and(|status| status != row.status) {
                problems.push(format!("{run}: the list says `{}`, its events say otherwise", row.status));
            }
        }
    }
}

fn compare_columns(place: &str, stored: &EventRow, event: &Event, problems: &mut Vec<String>) {
    let kind = kind_of(&stored.record);
    let same = event.run == stored.run
        && event.seq == stored.seq
        && event.at.to_string() == stored.at
        && event.actor == stored.actor
        && event.epoch == stored.epoch
        && event.prev == stored.prev
        && kind == Some(stored.kind.as_str());
    if !same {
        problems.push(format!("{place}: the columns beside it do not say what it says"));
    }
}

/// What the list tells of a chain's beginning. Nothing is decided by it, but it is what people are shown.
fn compare_list(run: &RunId, row: &ChainRow, event: &Event, problems: &mut Vec<String>) {
    if event.seq != 1 {
        return;
    }
    if row.started_at != event.at {
        problems.push(format!("{run}: the list says that it began at {}, and its first event is of {}", row.started_at, event.at));
    }
    if let Body::RunCreated { drill, .. } = &event.body
        && row.parent != *drill
    {
        problems.push(format!("{run}: the list does not name the drill that it belongs to as its first event does"));
    }
}

/// And of its end. What was taken in from elsewhere is not open here, whether it had ended or not.
fn compare_end(run: &RunId, row: &ChainRow, ended: bool, last: jiff::Timestamp, problems: &mut Vec<String>) {
    let same = match row.finished_at {
        Some(at) => at == last && (ended || is_imported(row)),
        None => !ended,
    };
    if !same {
        let said = row.finished_at.map_or_else(|| "that it has not ended".to_owned(), |at| format!("that it ended at {at}"));
        problems.push(format!("{run}: the list says {said}, its events say otherwise"));
    }
}

/// What a head says of its chain, held against the list.
fn compare_head(place: &str, head: &Head, row: Option<&ChainRow>, problems: &mut Vec<String>) {
    let Some(row) = row else { return };
    if row.name != head.name || row.kind != head.kind {
        problems.push(format!("{place}: {} was begun as the {:?} `{}`, and the list says otherwise", head.run, head.kind, head.name));
    }
    if is_imported(row) && !head.ended && head.origin.is_none() {
        problems.push(format!("{place}: {} was begun here, and the list says that it was imported", head.run));
    }
}

fn has_ended(events: &[&EventRow]) -> bool {
    let last = events.last().and_then(|last| serde_json::from_slice::<Event>(&last.record).ok());
    last.and_then(|event| project(&event.body)).is_some_and(|(_, ended)| ended)
}

fn verify_heads(
    heads: &[HeadRow],
    chains: &BTreeMap<&RunId, Vec<&EventRow>>,
    rows: &BTreeMap<&RunId, &ChainRow>,
    problems: &mut Vec<String>,
) -> Option<String> {
    let mut prev = String::new();
    let (mut begun, mut closed) = (BTreeSet::new(), BTreeSet::new());
    for (expected, stored) in (1..).zip(heads) {
        let place = format!("head {expected}");
        if stored.n != expected {
            problems.push(format!("{place} is missing (the next one is {})", stored.n));
            return Some(prev);
        }
        if sha256_hex(&stored.record) != stored.hash || stored.prev != prev {
            problems.push(format!("{place}: it was changed, or does not follow the one before it"));
        }
        prev.clone_from(&stored.hash);
        let Ok(head) = serde_json::from_slice::<Head>(&stored.record) else {
            problems.push(format!("{place}: it cannot be read"));
            continue;
        };
        if head.prev != stored.prev || head.run != stored.run || head.n != stored.n {
            problems.push(format!("{place}: the columns beside it do not say what it says"));
        }
        compare_head(&place, &head, rows.get(&head.run).copied(), problems);
        begun.insert(head.run.clone());
        match chains.get(&head.run) {
            None => problems.push(format!("{place}: {} {} is gone", head.name, head.run)),
            Some(events) => {
                if events.len() as u64 == head.seq {
                    closed.insert(head.run.clone());
                }
                let at = events.iter().find(|event| event.seq == head.seq);
                if at.is_none_or(|event| event.hash != head.hash) {
                    problems.push(format!("{place}: {} no longer has event {} as it was", head.run, head.seq));
                }
                if head.ended && events.len() as u64 != head.seq {
                    problems.push(format!("{place}: {} had ended with event {}", head.run, head.seq));
                }
            }
        }
    }
    for run in chains.keys().filter(|run| !begun.contains(**run)) {
        problems.push(format!("{run}: the chain of heads does not know of it"));
    }
    for (run, events) in chains {
        if begun.contains(*run) && !closed.contains(*run) && has_ended(events) {
            problems.push(format!("{run}: it has ended, and the chain of heads does not know of that"));
        }
    }
    heads.last().map(|head| head.hash.clone())
}
