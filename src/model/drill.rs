//! A drill as written: a runbook, a fault, what is measured meanwhile, and how the estate is left.

use super::{ids::*, objective::Objectives, time::Span};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Drill {
    pub drill: DrillName,
    pub kind: DrillKind,
    /// The runbook's name or path.
    pub runbook: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
    #[serde(default)]
    pub inputs: BTreeMap<String, String>,
    /// The faults, in order.
    #[serde(default)]
    pub scenario: Vec<Fault>,
    #[serde(default)]
    pub probes: Probes,
    /// Tighter than the service's, if given.
    #[serde(default)]
    pub objectives: Objectives,
    #[serde(default)]
    pub detect: Detect,
    /// What is run after the measurement, to leave the estate as it was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub then: Option<Then>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DrillKind {
    Restore,
    Isolated,
    Failover,
    Switchover,
    Tabletop,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Five fields as in crontab(5): minute, hour, day of month, month, day of week.
    pub cron: String,
    /// An IANA time zone.
    #[serde(default = "utc")]
    pub timezone: String,
    /// What becomes of fires that went by while no scheduler ran. Each is on record either way.
    #[serde(default)]
    pub missed: Missed,
    /// Spans of time in which nothing is started.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blackout: Vec<Blackout>,
}

fn utc() -> String {
    "UTC".to_owned()
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Missed {
    /// Record it as missed and wait for the next.
    #[default]
    Skip,
    /// Record it as missed, and start the latest missed one now.
    RunOnce,
}

/// From one instant (inclusive) to another (exclusive), RFC 3339.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Blackout {
    #[schemars(with = "String")]
    pub from: jiff::Timestamp,
    #[schemars(with = "String")]
    pub until: jiff::Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// One fault: exactly one of the keys. Only in a lab, or on targets tagged for drills.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// SIGKILL to every process of a region.
    Kill(FaultTarget),
    /// SIGSTOP to every process of a region: nothing answers, nothing resets.
    Freeze(FaultTarget),
    /// SIGKILL to the region's database server alone.
    LoseDatabase(FaultTarget),
    /// SIGKILL to what changes things in the region and serves nobody; in the region where the control planes of global
    /// services stand (`us-east-1`), to that of DNS as well.
    LoseControlPlane(FaultTarget),
    /// Replication from the region's primary is held up from now on.
    DelayReplication(FaultTarget),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FaultTarget {
    pub region: RegionName,
    /// How long before the next fault of the scenario.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<Span>,
}

impl Fault {
    #[must_use]
    pub fn target(&self) -> &FaultTarget {
        match self {
            Self::Kill(t) | Self::Freeze(t) | Self::LoseDatabase(t) | Self::LoseControlPlane(t) | Self::DelayReplication(t) => t,
        }
    }
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Kill(_) => "kill",
            Self::Freeze(_) => "freeze",
            Self::LoseDatabase(_) => "lose-database",
            Self::LoseControlPlane(_) => "lose-control-plane",
            Self::DelayReplication(_) => "delay-replication",
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Probes {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpProbe>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ledger: Option<LedgerProbe>,
}

/// A client outside the regions that asks on a fixed cadence (open loop).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpProbe {
    pub endpoint: EndpointName,
    pub path: String,
    /// Sent by POST as JSON, each time with `$ID` replaced by a new identifier; without it the probe
    /// is a GET. A good answer is 2xx, and its JSON's `id` (if a body was sent) is the same one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    #[serde(default = "hundred_ms")]
    pub every: Span,
    /// How many good answers in a row make a recovery.
    #[serde(default = "three")]
    pub good: u32,
    /// When an answer counts as missed.
    #[serde(default = "one_second")]
    pub timeout: Span,
    /// How long the steady state is watched before the fault.
    #[serde(default = "three_seconds")]
    pub steady: Span,
}

fn hundred_ms() -> Span {
    Span::from_ms(100)
}
fn three() -> u32 {
    3
}
fn one_second() -> Span {
    Span::from_secs(1)
}
fn three_seconds() -> Span {
    Span::from_secs(3)
}

/// Every acknowledged write is kept outside the failure domain and looked for after recovery.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LedgerProbe {
    pub database: DatabaseName,
    /// Where an acknowledged write's identifier must be found again.
    #[serde(default = "predictions_word")]
    pub table: String,
    #[serde(default = "id_word")]
    pub column: String,
}

fn predictions_word() -> String {
    "predictions".to_owned()
}
fn id_word() -> String {
    "id".to_owned()
}

/// What decides that the region is lost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Detect {
    /// So many probes in a row without a good answer.
    #[serde(default = "three")]
    pub good_probes_missed: u32,
    /// Give up, and call the drill inconclusive, when nothing was detected for so long after the fault.
    #[serde(default = "one_minute")]
    pub within: Span,
}

fn one_minute() -> Span {
    Span::from_secs(60)
}

impl Default for Detect {
    fn default() -> Self {
        Self { good_probes_missed: three(), within: one_minute() }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Then {
    pub runbook: String,
    #[serde(default)]
    pub inputs: BTreeMap<String, String>,
}
