//! What happened: the events of a run or a drill, and the record that chains them.
//!
//! One step goes through `Prepared -> [ApprovalAsked -> Approved] -> Applying -> Applied | ApplyFailed |
//! ApplyUnknown -> [Observed...] -> Verified`; each is durable before any effect that follows it.

use super::{drill::*, effect::*, ids::*, objective::*, plan::*, signing::Signed, status::*};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};

/// One canonical record. Its hash is SHA-256 over exactly the bytes that the journal keeps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub run: RunId,
    /// From 1, without a gap.
    pub seq: u64,
    pub at: jiff::Timestamp,
    /// Who: `muster@host:pid`, or a person.
    pub actor: String,
    /// The epoch of the lease under which it was written.
    pub epoch: u64,
    pub body: Body,
    /// The hash of the record before it; of the empty string for the first.
    pub prev: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Body {
    // ---- the run
    RunCreated {
        plan: Arc<Plan>,
        drill: Option<RunId>,
    },
    /// A process took the run over (also its first).
    Claimed {
        owner: String,
    },
    PauseRequested {
        reason: String,
    },
    Resumed,
    AbortRequested {
        reason: String,
    },
    /// What a person asked for no longer applied when the run's owner came to it.
    CommandRefused {
        by: String,
        command: String,
        step: Option<StepId>,
        why: String,
    },
    /// A live failover needs what this run holds: it is to end, settled.
    MakeWay {
        to: RunId,
    },
    /// This run took the place of another that held its resources.
    Preempted {
        run: RunId,
        how: String,
    },
    /// The run stopped, and a person must act.
    Parked {
        status: RunStatus,
        reason: String,
    },
    RunFinished {
        status: RunStatus,
        reason: Option<String>,
    },

    // ---- one step
    Skipped {
        step: StepId,
        reason: String,
    },
    Prepared {
        step: StepId,
        /// What would be done, and all that an approval is given over.
        intent: serde_json::Value,
        /// Of the intent's bytes, as they stand in the record.
        hash: String,
        /// How the world stood, by the same names as in the intent, which it is put back into for whoever acts. It differs from one
        /// look to the next. Records from before it stood apart have it in the intent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        measured: Option<serde_json::Value>,
        change: Vec<Change>,
        notes: Vec<String>,
    },
    /// Preconditions were not met, or could not be read; nothing was tried.
    Refused {
        step: StepId,
        attempt: u32,
        failure: Failure,
        retry: bool,
    },
    ApprovalAsked {
        step: StepId,
        over: String,
        approvers: u32,
        expires_at: jiff::Timestamp,
        message: Option<String>,
        /// As they were shown; their bounds stand in the plan.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        facts: BTreeMap<String, serde_json::Value>,
    },
    Approved {
        step: StepId,
        by: String,
        over: String,
        /// Where the estate lists people, this is what makes it count.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signed: Option<Signed>,
    },
    /// All approvals are there, and the facts, looked at once more, are within their bounds.
    FactsConfirmed {
        step: StepId,
        facts: BTreeMap<String, serde_json::Value>,
    },
    /// What was approved counts no more: a fact left its bounds, or its time ended before it was used.
    ApprovalVoid {
        step: StepId,
        why: String,
        facts: BTreeMap<String, serde_json::Value>,
    },
    /// A drill does not ask: the approval of this step's intent was left out.
    ApprovalSkipped {
        step: StepId,
        reason: String,
    },
    /// A person lets the run go on past a guard that did not hold. It never becomes a success.
    Overridden {
        step: StepId,
        by: String,
        reason: String,
        /// What the step was when it was overridden.
        was: String,
        /// What the person vouches for in place of the step's own output.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        output: Option<serde_json::Value>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signed: Option<Signed>,
    },
    Rejected {
        step: StepId,
        by: String,
        reason: String,
    },
    Applying {
        step: StepId,
        attempt: u32,
        epoch: u64,
        key: String,
    },
    Applied {
        step: StepId,
        attempt: u32,
        output: serde_json::Value,
    },
    ApplyFailed {
        step: StepId,
        attempt: u32,
        failure: Failure,
        retry_after_ms: Option<u64>,
    },
    ApplyUnknown {
        step: StepId,
        attempt: u32,
        failure: Failure,
    },
    Observed {
        step: StepId,
        seen: Seen<serde_json::Value>,
    },
    Verified {
        step: StepId,
        output: serde_json::Value,
        warnings: Vec<String>,
    },
    /// Not before this instant.
    RetryAt {
        step: StepId,
        at: jiff::Timestamp,
    },
    StepEnded {
        step: StepId,
        status: StepStatus,
        failure: Option<Failure>,
    },
    /// What is not known, and what was looked at.
    Indeterminate {
        step: StepId,
        question: String,
    },
    Resolved {
        step: StepId,
        done: bool,
        by: String,
        reason: String,
    },
    RetryRequested {
        step: StepId,
        by: String,
    },
    SkipRequested {
        step: StepId,
        by: String,
        reason: String,
    },
    /// Records from before undos were tried again name no attempt: there was one.
    Undoing {
        step: StepId,
        #[serde(default = "first")]
        attempt: u32,
    },
    Undone {
        step: StepId,
    },
    /// An attempt failed in a way that may pass, and is made again, not before this instant.
    UndoRetry {
        step: StepId,
        attempt: u32,
        failure: Failure,
        /// It may have been carried out, or an attempt before it.
        unknown: bool,
        at: jiff::Timestamp,
    },
    UndoFailed {
        step: StepId,
        failure: Failure,
    },
    UndoLeft {
        step: StepId,
        reason: String,
    },

    // ---- a drill
    DrillCreated {
        drill: Box<Drill>,
        file: String,
        digest: String,
        scheduled_for: Option<jiff::Timestamp>,
        context: Box<DrillContext>,
    },
    DrillSkipped {
        reason: String,
    },
    /// A live failover took its place: its faults are healed, nothing else of it goes on.
    DrillPreempted {
        by: RunId,
        reason: String,
    },
    DrillMissed {
        drill: DrillName,
        scheduled_for: jiff::Timestamp,
        reason: String,
    },
    SteadyState {
        good: bool,
        note: String,
    },
    Injecting {
        fault: Fault,
    },
    Injected {
        fault: Fault,
    },
    Healing,
    Healed {
        note: String,
    },
    /// A process picked the drill up again; what was measured in between is lost.
    Hole {
        reason: String,
    },
    Detected {
        missed: u32,
        last_good: Option<jiff::Timestamp>,
        at: jiff::Timestamp,
    },
    RunStarted {
        run: RunId,
        role: RunRole,
    },
    RunEnded {
        run: RunId,
        role: RunRole,
        status: RunStatus,
    },
    Measured {
        phase: RunRole,
        instants: Instants,
        rto: Rto,
        rpo: Rpo,
        ledger: Option<LedgerDigest>,
        notes: BTreeMap<String, serde_json::Value>,
    },
    AsFound {
        same: bool,
        differences: Vec<String>,
    },
    DrillFinished {
        verdict: Verdict,
        reasons: Vec<String>,
        summary: serde_json::Value,
    },
}

fn first() -> u32 {
    1
}

/// Which of a drill's runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunRole {
    /// The runbook that is drilled.
    Main,
    /// What leaves the estate as it was found.
    Then,
}

/// What the ledger of acknowledged writes held, so that anyone who has its file can count again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerDigest {
    pub file: String,
    pub sha256: String,
    pub entries: u64,
}

/// What a drill needs to go on in another process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DrillContext {
    pub estate: Arc<super::estate::Estate>,
    /// Compiled when the drill began.
    pub main: Plan,
    pub then: Option<Plan>,
    /// What the estate looked like before anything was done to it.
    pub as_found: serde_json::Value,
}
