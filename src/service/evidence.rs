//! Is the record whole? The journal's chains, the signatures of people in them, and the files whose digests
//! stand in them.
//!
//! Every approval and override of a run whose estate lists people is verified against the key that the plan
//! itself carries: whoever rewrites a chain, hashes and all, cannot make those signatures. What they are over is the hash of
//! an intent; so each intent is held against its hash, and each request against the intent that stood then.
//!
//! A ledger of acknowledged writes is a file beside the journal; the event `measured` has its digest, so a
//! ledger that was changed afterwards is found. One that is gone is said to be gone: the record stands
//! without it, only nobody can count again.
//!
//! All of that holds together by itself, also for whoever makes all of it anew: with keys of his own in a plan of his
//! own. So the keys that signed are named, to be compared with those that the estate had, and what somebody kept
//! earlier is held against the record ([`crate::journal::anchor`]).

use super::{Muster, ServiceError, portable};
use crate::actions::find;
use crate::journal::{
    anchor::{self, Kept, Tip},
    chain::{Dump, EventRow, Verification, sha256_hex, verify},
};
use crate::model::{
    event::{Body, Event, LedgerDigest, RunRole},
    ids::RunId,
    measured,
    plan::{Scope, StepKind},
};
use crate::plan::{
    approval,
    state::{RunState, fold},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// What a verification found, of the journal and of the files beside it.
#[derive(Clone, Debug, Serialize)]
pub struct Evidence {
    /// `verified` and `problems` speak of both.
    #[serde(flatten)]
    pub journal: Verification,
    /// The last event of each chain that has not ended, of which the head knows only the beginning.
    pub open: Vec<Tip>,
    /// What was held against it, and is in it if `verified` is true.
    pub against: Option<String>,
    pub ledgers: Vec<Ledger>,
    /// Approvals and overrides whose signatures hold, and those that were given by name alone.
    pub signed: u64,
    pub unsigned: u64,
    /// Whose signatures these are. The keys stand in the record itself: compare them with what you know.
    pub signers: Vec<Signer>,
}

/// One key that signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Signer {
    pub by: String,
    /// `SHA256:…`
    pub key: String,
    pub signatures: u64,
}

/// One ledger that the journal speaks of.
#[derive(Clone, Debug, Serialize)]
pub struct Ledger {
    pub drill: RunId,
    pub phase: RunRole,
    pub file: PathBuf,
    pub entries: u64,
    pub state: LedgerState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LedgerState {
    /// As it was when it was measured.
    Same,
    Changed,
    /// Not beside the journal.
    Missing,
}

impl Muster {
    /// Verifies the whole journal, and every ledger beside it.
    pub async fn evidence_verify(&self, against: Option<&str>) -> Result<Evidence, ServiceError> {
        let kept = against.map(kept).transpose()?;
        let dump = self.existing_journal().await?.dump(None).await?;
        if dump.events.is_empty() && dump.rows.is_empty() && dump.heads.as_ref().is_none_or(Vec::is_empty) {
            let place = self.state.display();
            return Err(ServiceError::Usage(format!(
                "the journal in {place} holds nothing: nothing ever ran here, or all of it was cut off"
            )));
        }
        Ok(judged(&dump, &self.state, kept, against))
    }
}

/// The same of a file that was exported: no journal is needed, and none is touched.
pub fn evidence_verify_file(file: &Path, against: Option<&str>) -> Result<Evidence, ServiceError> {
    let kept = against.map(kept).transpose()?;
    if file.is_dir() {
        return Err(ServiceError::Usage(format!("{0} is a directory: `--state {0}` verifies the journal in it", file.display())));
    }
    let (dump, _, _) = portable::read(file)?;
    if dump.events.is_empty() {
        return Err(ServiceError::Usage(format!("{} holds no event", file.display())));
    }
    if dump.heads.is_none() && kept.as_ref().is_some_and(|kept| kept.head.is_some()) {
        let text = format!("{} holds some runs only, and no chain of heads that what was kept could be held against", file.display());
        return Err(ServiceError::Usage(text));
    }
    Ok(judged(&dump, file.parent().unwrap_or(Path::new("")), kept, against))
}

/// Of an earlier answer, what is held against the journal.
#[derive(Deserialize)]
struct Said {
    verified: bool,
    head: Option<String>,
    /// An earlier version did not say it.
    #[serde(default)]
    open: Vec<Tip>,
}

/// What somebody kept: a head, what `evidence verify --json` said, or an export.
fn kept(what: &str) -> Result<Kept, ServiceError> {
    if let Some(head) = anchor::head(what) {
        return Ok(Kept { head: Some(head), tips: Vec::new() });
    }
    let file = Path::new(what);
    let wrong = |why: String| ServiceError::Usage(format!("--against takes a head (sha256:…) or a file that was kept; {what}: {why}"));
    let text = std::fs::read_to_string(file).map_err(|e| wrong(e.to_string()))?;
    if let Some(head) = anchor::head(&text) {
        return Ok(Kept { head: Some(head), tips: Vec::new() });
    }
    if let Ok(Said { verified, head, open }) = serde_json::from_str(&text) {
        if !verified {
            return Err(wrong("it is about a journal that did not verify".to_owned()));
        }
        let none = || wrong("it has no head: of an export of some runs, or of an empty journal; keep the export itself".to_owned());
        let head = anchor::head(&head.ok_or_else(none)?).ok_or_else(|| wrong("its head is not the hash of one".to_owned()))?;
        return Ok(Kept { head: Some(head), tips: open });
    }
    let (dump, _, _) = portable::read(file)?;
    let found = verify(&dump);
    if !found.verified {
        return Err(wrong(format!("it does not verify itself: {}", found.problems.join("; "))));
    }
    let tips = dump.events.iter().map(|one| Tip { run: one.run.clone(), seq: one.seq, hash: one.hash.clone() }).collect();
    Ok(Kept { head: found.head.as_deref().and_then(anchor::head), tips })
}

fn judged(dump: &Dump, beside: &Path, kept: Option<Kept>, against: Option<&str>) -> Evidence {
    let mut journal = verify(dump);
    let ledgers = ledgers(dump, beside);
    for ledger in ledgers.iter().filter(|ledger| ledger.state == LedgerState::Changed) {
        journal.problems.push(format!("{}: its ledger {} is not as it was measured", ledger.drill, ledger.file.display()));
    }
    let vouched = vouched(dump, &mut journal.problems);
    journal.problems.extend(kept.map(|kept| anchor::missing(dump, &kept)).unwrap_or_default());
    journal.verified = journal.problems.is_empty();
    let signer = |((by, key), signatures)| Signer { by, key, signatures };
    Evidence {
        journal,
        open: anchor::open_tips(dump),
        against: against.map(str::to_owned),
        ledgers,
        signed: vouched.signed,
        unsigned: vouched.unsigned,
        signers: vouched.signers.into_iter().map(signer).collect(),
    }
}

#[derive(Default)]
struct Vouched {
    signed: u64,
    unsigned: u64,
    signers: BTreeMap<(String, String), u64>,
}

/// Holds every approval and override against the state in which it was given.
fn vouched(dump: &Dump, problems: &mut Vec<String>) -> Vouched {
    let mut vouched = Vouched::default();
    let mut state: Option<RunState> = None;
    let mut of: Option<RunId> = None;
    // In the order of a file that somebody wrote, one run's approvals might follow another's beginning.
    let mut rows: Vec<_> = dump.events.iter().collect();
    rows.sort_by(|a, b| (&a.run, a.seq).cmp(&(&b.run, b.seq)));
    for row in rows {
        let Ok(event) = serde_json::from_slice::<Event>(&row.record) else { continue };
        if event.seq == 1 {
            state = RunState::new(&event);
            of = Some(event.run);
            continue;
        }
        // What follows a first event that is missing has been told of already.
        let Some(state) = state.as_mut().filter(|_| of.as_ref() == Some(&event.run)) else { continue };
        let (by, signed, checked) = match &event.body {
            Body::Approved { step, by, signed, .. } => {
                (by, signed, approval::check(state, &event.run, step, by, signed.as_ref(), event.at))
            }
            Body::Overridden { step, by, reason, signed, .. } => {
                (by, signed, approval::check_override(state, &event.run, step, by, reason, signed.as_ref()))
            }
            _ => {
                problems.extend(unlike(row, &event, state).map(|what| format!("{} event {}: {what}", event.run, event.seq)));
                fold(state, &event);
                continue;
            }
        };
        match checked {
            Err(why) if !state.plan.estate.people.is_empty() => {
                problems.push(format!("{} event {}: what `{by}` is said to have signed does not hold: {why}", event.run, event.seq));
            }
            _ if state.plan.estate.people.is_empty() => vouched.unsigned += 1,
            _ => {
                vouched.signed += 1;
                let key = signed.as_ref().map(|signed| signed.key.clone()).unwrap_or_default();
                *vouched.signers.entry((by.clone(), key)).or_default() += 1;
            }
        }
        fold(state, &event);
    }
    vouched
}

/// What a person approves is a hash: is it that of what stands on record to be done?
fn unlike(row: &EventRow, event: &Event, state: &RunState) -> Option<String> {
    match &event.body {
        Body::Prepared { step, intent, hash, measured: found, .. } => {
            let paths = state.plan.step(step).and_then(|planned| find(planned.kind.uses())).map(|action| action.measured());
            if found.is_some() && !apart(intent, found.as_ref(), paths.unwrap_or_default()) {
                return Some(format!("what is said to have been measured for step `{step}` is more than its action measures"));
            }
            // By the bytes themselves, as they were hashed: a number that is read and written again may be another.
            let told = serde_json::from_slice::<Written<'_>>(&row.record).ok()?;
            let same = sha256_hex(told.body.intent.get().as_bytes()) == *hash;
            (!same).then(|| format!("what step `{step}` was to do does not have the hash that is on record for it"))
        }
        Body::ApprovalAsked { step, over, .. } => {
            let acts = state.plan.step(step).is_some_and(|step| matches!(step.kind, StepKind::Action { .. }));
            let prepared = state.step(step).and_then(|known| known.hash.as_deref());
            (acts && prepared != Some(over)).then(|| format!("step `{step}` was approved for something else than it was to do"))
        }
        Body::Applying { step, .. } => {
            let (planned, known) = (state.plan.step(step)?, state.step(step)?);
            let gated = state.plan.scope == Scope::Live && known.overridden.is_none();
            let approval = planned.approve.as_ref().filter(|_| gated)?;
            let given = known.asked.as_ref().is_some_and(|asked| Some(&asked.over) == known.hash.as_ref());
            let enough = given && known.approvals.len() >= approval.approvers as usize;
            (!enough).then(|| format!("step `{step}` was begun without the approval that it asks for"))
        }
        _ => None,
    }
}

/// Is what was measured that alone, beside what was decided?
fn apart(intent: &serde_json::Value, found: Option<&serde_json::Value>, paths: &[&str]) -> bool {
    let mut whole = measured::put_back(intent.clone(), found);
    let took = measured::take(&mut whole, paths);
    whole == *intent && took.as_ref() == found
}

/// A record of what was prepared, as far as its hash goes.
#[derive(Deserialize)]
struct Written<'a> {
    #[serde(borrow)]
    body: Intent<'a>,
}

#[derive(Deserialize)]
struct Intent<'a> {
    #[serde(borrow)]
    intent: &'a RawValue,
}

fn ledgers(dump: &Dump, state: &Path) -> Vec<Ledger> {
    let measured = |row: &EventRow| {
        // By its own bytes, not by the column beside them.
        let event = serde_json::from_slice::<Event>(&row.record).ok()?;
        let Body::Measured { phase, ledger: Some(ledger), .. } = event.body else { return None };
        Some(check(event.run, phase, &ledger, state))
    };
    dump.events.iter().filter_map(measured).collect()
}

fn check(drill: RunId, phase: RunRole, ledger: &LedgerDigest, state: &Path) -> Ledger {
    // The state directory may have been moved since: the file's own name counts, in the drill's folder.
    let name = Path::new(&ledger.file).file_name().unwrap_or_default();
    let file = state.join("drills").join(drill.as_str()).join(name);
    let state = match std::fs::read(&file) {
        Ok(bytes) if sha256_hex(&bytes) == ledger.sha256 => LedgerState::Same,
        Ok(_) => LedgerState::Changed,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => LedgerState::Missing,
        // It is there and cannot be read: that it is the same cannot be said.
        Err(_) => LedgerState::Changed,
    };
    Ledger { drill, phase, file, entries: ledger.entries, state }
}

#[cfg(test)]
#[path = "evidence_tests.rs"]
mod tests;
