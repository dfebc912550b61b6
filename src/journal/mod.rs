//! MEMORY. Append-only, hash-chained events, one chain a run or drill; who owns it; what operators ask.
//!
//! Every append is conditional on the chain's sequence *and* on the owner's epoch: a deposed owner's
//! append is refused by the store, not by good manners. The stored bytes of an event are what its hash
//! covers; nothing is re-serialised to verify it. Every store passes one conformance suite. [`lease`] is how
//! long a process may believe that it owns a chain, where the store is not on its own machine.

pub mod adopt;
pub mod anchor;
mod bells;
pub mod chain;
#[cfg(test)]
mod conformance;
#[cfg(debug_assertions)]
pub mod failpoint;
pub mod lease;
pub mod mem;
pub mod postgres;
mod postgres_adopt;
mod postgres_link;
mod postgres_rows;
mod postgres_session;
#[cfg(test)]
mod postgres_tests;
pub mod sqlite;

use crate::model::{effect::Resource, event::*, ids::RunId, status::RunStatus};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::any::Any;

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("no run or drill `{0}` in this journal: `muster runs` and `muster drill history` list them")]
    NoSuchRun(RunId),
    #[error("`{0}` is ambiguous: several runs or drills begin so; give more of it (`muster runs`)")]
    Ambiguous(String),
    #[error(
        "another process owns {run} ({owner}); `muster pause`, `muster abort` and the like reach it there, and if it is frozen or out of reach, `muster resume {run} --take-over` goes on without it"
    )]
    Owned { run: RunId, owner: String },
    #[error("this process no longer owns {run}: another has taken it over (the epoch is {now}, not {ours}); see `muster show {run}`")]
    Fenced { run: RunId, ours: u64, now: u64 },
    #[error("the lease on {run} could not be renewed in time; another process may go on with it: `muster resume {run}`")]
    Lapsed { run: RunId },
    #[error("{run} has gone on meanwhile: its last event is {now}, not {ours}")]
    Behind { run: RunId, ours: u64, now: u64 },
    #[error(
        "the journal has lost what it acknowledged: the last event of {run} is {now}, and {ours} were written; a server took over that did not have them. Nothing more is done; look at what happened after event {now} before you go on with: muster resume {run}"
    )]
    Lost { run: RunId, ours: u64, now: u64 },
    #[error("event {seq} of {run} is of a form that this Muster does not know ({why}): a newer one wrote it; go on with that one")]
    Newer { run: RunId, seq: u64, why: String },
    #[error("`{resource}` is held by run {holder}; resume or abort that run first", resource = resource.0)]
    Locked { resource: Resource, holder: RunId },
    #[error("{run} was {origin}: it is a record here; go on with it where it was begun, and import it again")]
    Imported { run: RunId, origin: String },
    #[error("{run} exists already")]
    Exists { run: RunId },
    #[error("event {seq} of {run} cannot be read: {why}; see `muster evidence verify`")]
    Corrupt { run: RunId, seq: u64, why: String },
    #[error("the journal in {place} cannot be used: {why}")]
    Store { place: String, why: String },
}

/// The right to append to one chain. Dropping it lets go of it, at the latest when its lease has run out;
/// [`Journal::release`] does so at once.
pub struct Claim {
    pub run: RunId,
    pub epoch: u64,
    pub owner: String,
    /// How long an effect may be begun under it.
    pub hold: lease::Hold,
    /// What holds the lock while this lives.
    pub(crate) _guard: Box<dyn Any + Send + Sync>,
}

impl Claim {
    /// What the store keeps with it, if this store made it.
    #[allow(clippy::used_underscore_binding)] // named so because most stores only keep it
    pub(crate) fn kept<T: Any>(&self) -> Option<&T> {
        self._guard.downcast_ref()
    }
}

impl std::fmt::Debug for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Claim({} epoch {})", self.run, self.epoch)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChainKind {
    Run,
    Drill,
}

/// A chain that is about to begin.
#[derive(Clone, Debug)]
pub struct NewChain {
    pub id: RunId,
    pub kind: ChainKind,
    pub name: String,
    /// The drill that a run belongs to.
    pub parent: Option<RunId>,
    pub locks: Vec<Resource>,
}

/// What lists show of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainRow {
    pub id: RunId,
    pub kind: ChainKind,
    pub name: String,
    pub parent: Option<RunId>,
    /// A `RunStatus` for runs; `running`, `finished`, `skipped` or `missed` and the verdict for drills.
    pub status: String,
    pub started_at: jiff::Timestamp,
    pub finished_at: Option<jiff::Timestamp>,
    pub seq: u64,
    pub head: String,
    pub owner: Option<String>,
}

impl ChainRow {
    /// Brings the row up to events that were just appended; true when the chain has ended with them.
    fn advance(&mut self, sealed: &[chain::Sealed]) -> bool {
        let mut ended = false;
        for one in sealed {
            self.seq = one.stored.event.seq;
            self.head.clone_from(&one.stored.hash);
            if let Some((status, end)) = project(&one.stored.event.body) {
                self.status = status;
                if end {
                    self.finished_at = Some(one.stored.event.at);
                }
                ended |= end;
            }
        }
        ended
    }
}

/// What was left by processes that ended.
#[derive(Clone, Debug, Default)]
pub struct Orphans {
    pub rows: Vec<ChainRow>,
    /// How many nodes there are to go on with it.
    pub nodes: usize,
}

/// What an operator asks of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Command {
    Pause {
        reason: String,
    },
    Abort {
        reason: String,
    },
    /// A live failover needs what the run holds.
    MakeWay {
        to: RunId,
        reason: String,
    },
    Approve {
        step: crate::model::ids::StepId,
        #[serde(default)]
        signed: Option<crate::model::signing::Signed>,
        /// The place of the request that was answered; without it the one that stands.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request: Option<u64>,
    },
    Override {
        step: crate::model::ids::StepId,
        reason: String,
        #[serde(default)]
        signed: Option<crate::model::signing::Signed>,
    },
    Reject {
        step: crate::model::ids::StepId,
        reason: String,
    },
    Retry {
        step: crate::model::ids::StepId,
    },
    Skip {
        step: crate::model::ids::StepId,
        reason: String,
    },
    Resolve {
        step: crate::model::ids::StepId,
        done: bool,
        reason: String,
        /// The event that asked, as it stood when the answer was given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        question: Option<u64>,
    },
}

#[derive(Clone, Debug)]
pub struct Letter {
    pub id: i64,
    pub actor: String,
    pub command: Command,
}

/// Rings for one run, as long as it is kept.
pub struct Bell {
    pub(crate) rung: std::sync::Arc<tokio::sync::Notify>,
    /// Takes the bell down when it is dropped.
    pub(crate) _hung: Box<dyn Any + Send + Sync>,
}

impl Bell {
    /// Until there are letters, or have been since the last time.
    pub async fn rung(&self) {
        self.rung.notified().await;
    }
}

/// One event before it has its place in the chain.
#[derive(Clone, Debug)]
pub struct Draft {
    pub at: jiff::Timestamp,
    pub actor: String,
    pub body: Body,
}

/// An event and the bytes it is kept as.
#[derive(Clone, Debug)]
pub struct Stored {
    pub event: Event,
    pub hash: String,
}

#[async_trait]
pub trait Journal: Send + Sync {
    /// Begins a chain with its first event, takes its locks and the claim on it, all or nothing.
    async fn create(&self, chain: NewChain, owner: &str, first: Draft) -> Result<(Claim, Stored), JournalError>;
    /// Takes a chain over if nobody owns it; the epoch grows by one.
    async fn claim(&self, run: &RunId, owner: &str) -> Result<Claim, JournalError>;
    /// Takes a chain over whoever owns it: the epoch grows by one, so that the owner's next append is refused.
    /// What its owner has under way is not stopped by it; that is for a person to judge, or for a lease.
    async fn seize(&self, run: &RunId, owner: &str) -> Result<Claim, JournalError>;
    /// Lets go of a chain, so that the next owner need not wait.
    async fn release(&self, claim: Claim) {
        drop(claim);
    }
    /// Appends, if the epoch is still ours and the last event is `after`.
    async fn append(&self, claim: &Claim, after: u64, drafts: Vec<Draft>) -> Result<Vec<Stored>, JournalError>;
    /// Frees what the store keeps back for the last words of a run whose disk is full; false when there is none.
    async fn make_room(&self) -> bool {
        false
    }
    /// Every event after `after`, in order.
    async fn load(&self, run: &RunId, after: u64) -> Result<Vec<Stored>, JournalError>;
    async fn row(&self, run: &RunId) -> Result<ChainRow, JournalError>;
    /// Newest first.
    async fn list(&self, kind: ChainKind, limit: u32) -> Result<Vec<ChainRow>, JournalError>;
    async fn children(&self, parent: &RunId) -> Result<Vec<ChainRow>, JournalError>;
    /// Chains that have not ended, oldest first.
    async fn open(&self) -> Result<Vec<ChainRow>, JournalError>;
    /// Those of these chains that hold an event of this kind.
    async fn holding(&self, chains: &[RunId], kind: &str) -> Result<Vec<RunId>, JournalError> {
        let dump = self.dump(Some(chains)).await?;
        let mut found: Vec<_> = dump.events.into_iter().filter(|event| event.kind == kind).map(|event| event.run).collect();
        found.dedup();
        Ok(found)
    }
    /// Open chains that no living process owns and nobody has to decide about. Where the store is on one
    /// machine, these are looked for when a process begins, and not all the time. Who asks takes part.
    async fn orphans(&self, _owner: &str) -> Result<Orphans, JournalError> {
        Ok(Orphans::default())
    }
    /// Takes something for as long as this process lives; false while another one that lives has it.
    async fn reserve(&self, _what: &str, _owner: &str) -> Result<bool, JournalError> {
        Ok(true)
    }
    /// Lets go of what was reserved.
    async fn free(&self, _what: &str) -> Result<(), JournalError> {
        Ok(())
    }
    /// The whole identifier for a unique beginning of one.
    async fn find(&self, prefix: &str) -> Result<RunId, JournalError>;

    async fn post(&self, run: &RunId, at: jiff::Timestamp, actor: &str, command: &Command) -> Result<i64, JournalError>;
    async fn letters(&self, run: &RunId) -> Result<Vec<Letter>, JournalError>;
    async fn taken(&self, letter: i64) -> Result<(), JournalError>;
    /// Rings when there are letters for a run, so that its owner need not look again and again; a store that
    /// has none is asked for letters from time to time.
    fn bell(&self, _run: &RunId) -> Option<Bell> {
        None
    }

    async fn considered(&self, drill: &str) -> Result<Option<jiff::Timestamp>, JournalError>;
    async fn consider(&self, drill: &str, until: jiff::Timestamp) -> Result<(), JournalError>;

    /// Takes in chains that were written elsewhere, and notes in the chain of heads where they came from, all or
    /// nothing. What may be taken in is [`adopt::judge`]'s to say. A store that keeps only its own chains refuses.
    async fn adopt(&self, chains: Vec<adopt::Adopted>, origin: &adopt::Origin) -> Result<(), JournalError> {
        let why = format!("it takes in no chains of others ({} came from {})", chains.len(), origin.place);
        Err(JournalError::Store { place: "this store".to_owned(), why })
    }

    /// The journal as it lies in the store, for verification: the whole, or these chains without the heads.
    async fn dump(&self, only: Option<&[RunId]>) -> Result<chain::Dump, JournalError>;
}

/// An event from the bytes that the store kept, if they are what their hash says.
fn open_record(run: &RunId, seq: u64, hash: &[u8], record: &[u8]) -> Result<Stored, JournalError> {
    let digest = chain::digest(record);
    if digest.as_slice() != hash {
        let why = "its bytes do not have the hash on record".to_owned();
        return Err(JournalError::Corrupt { run: run.clone(), seq, why });
    }
    // They are what was written, so whoever wrote them knew a form that we do not.
    let event = serde_json::from_slice(record).map_err(|e| JournalError::Newer { run: run.clone(), seq, why: e.to_string() })?;
    Ok(Stored { event, hash: chain::hexadecimal(&digest) })
}

/// How a chain's row follows from an event: the new status, and whether the chain has ended with it.
#[must_use]
pub fn project(body: &Body) -> Option<(String, bool)> {
    match body {
        Body::RunCreated { .. } => Some((RunStatus::Running.word().to_owned(), false)),
        Body::Claimed { .. } | Body::DrillCreated { .. } => Some(("running".to_owned(), false)),
        Body::Parked { status, .. } => Some((status.word().to_owned(), false)),
        Body::Resumed => Some((RunStatus::Running.word().to_owned(), false)),
        Body::RunFinished { status, .. } => Some((status.word().to_owned(), true)),
        Body::DrillSkipped { .. } => Some(("skipped".to_owned(), true)),
        Body::DrillMissed { .. } => Some(("missed".to_owned(), true)),
        Body::DrillFinished { verdict, .. } => Some((
            match verdict {
                crate::model::objective::Verdict::Pass => "pass",
                crate::model::objective::Verdict::Fail => "fail",
                crate::model::objective::Verdict::Inconclusive => "inconclusive",
            }
            .to_owned(),
            true,
        )),
        _ => None,
    }
}
