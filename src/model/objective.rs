//! What recovery is held to, and what was measured of it. A figure that was not measured is `None`.

use super::time::Span;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The objectives of a service or a drill.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Objectives {
    /// Recovery time objective: how long the service may be gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rto: Option<Span>,
    /// Recovery point objective: how old the oldest lost write may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpo: Option<Span>,
}

/// The measured recovery time and its parts (rule 4 of the architecture).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rto {
    pub objective_ms: Option<u64>,
    pub actual_ms: Option<u64>,
    /// `None` when either side is missing.
    pub met: Option<bool>,
    pub parts_ms: RtoParts,
}

/// Differences of the six instants: detect = T1-T0, decide = T2-T1, act = T3-T2, propagate = T4-T3, verify = T5-T4.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtoParts {
    pub detect: Option<i64>,
    pub decide: Option<i64>,
    pub act: Option<i64>,
    pub propagate: Option<i64>,
    pub verify: Option<i64>,
}

/// The measured data loss.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rpo {
    pub objective_ms: Option<u64>,
    /// The age, at the moment of loss, of the oldest acknowledged write that was lost; 0 when none was. Of a
    /// restore: from the newest commit that came back to the newest that there was; if that was not to be learnt, the age
    /// of the point it recovered.
    pub actual_ms: Option<u64>,
    pub met: Option<bool>,
    pub acknowledged_writes: Option<u64>,
    pub lost_writes: Option<u64>,
    /// Of a restore: that age, and no more than that was lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upper_bound: Option<bool>,
    /// Of a restore whose primary was asked: what it had and the recovery lacks, in log and in transactions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_commits: Option<u64>,
}

/// The instants that a recovery time is made of, each from its own source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instants {
    /// T0: the last good answer that a client saw before the fault.
    pub last_good: Option<jiff::Timestamp>,
    /// T1: the detector's verdict.
    pub detected: Option<jiff::Timestamp>,
    /// T2: the first `Applying` of a step that changes something.
    pub first_applying: Option<jiff::Timestamp>,
    /// T3: the last traffic change applied.
    pub traffic_applied: Option<jiff::Timestamp>,
    /// T4: the first resolver that gave the new answer.
    pub resolver_moved: Option<jiff::Timestamp>,
    /// T5: the first of k good answers after it. Of a restore: when all that came back was verified.
    pub recovered: Option<jiff::Timestamp>,
    /// Of a restore: the moment of loss, which in a drill is the instant at which it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<jiff::Timestamp>,
    /// Of a restore: the instant at which what came back had stood.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovered_point: Option<jiff::Timestamp>,
    /// Of a restore: the first file or table that was back and verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_back: Option<jiff::Timestamp>,
    /// Of a restore: when all was back, and its verification began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<jiff::Timestamp>,
}

/// How a drill ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Pass,
    Fail,
    /// Something that should have been measured was not.
    Inconclusive,
}
