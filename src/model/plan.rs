//! A runbook compiled for one run: every reference resolved, every default filled in. It is stored in
//! the run's first event, and the run executes exactly this, whatever becomes of the files.

use super::{effect::*, estate::Estate, ids::*, node::Node, runbook::*, time::Span};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};

/// In which world a run acts. It changes guards (approvals, default `on_failure`), never steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    Drill,
    Live,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub runbook: RunbookName,
    /// The runbook's file, for people; nothing is read from it again.
    pub file: String,
    /// SHA-256 of the file's bytes, in hexadecimal.
    pub digest: String,
    pub mode: Option<Mode>,
    pub scope: Scope,
    /// May touch what is outside a lab.
    pub live: bool,
    pub inputs: BTreeMap<String, serde_json::Value>,
    pub waive: Vec<Waiver>,
    pub estate: Arc<Estate>,
    /// Resources that the run locks at its start, sorted.
    pub locks: Vec<Resource>,
    /// In the order of the file; `needs` refers to earlier and later ones alike, without a cycle.
    pub steps: Vec<PlanStep>,
}

impl Plan {
    /// The region that is lost, where it is an unplanned failover out of one: its input `from`.
    #[must_use]
    pub fn lost(&self) -> Option<RegionName> {
        let from = self.inputs.get("from").filter(|_| self.mode == Some(Mode::Failover));
        from.and_then(serde_json::Value::as_str).map(RegionName::from)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanStep {
    pub id: StepId,
    pub kind: StepKind,
    pub needs: Vec<StepId>,
    pub with: Node,
    pub when: Option<String>,
    pub retry: Retry,
    pub timeout: Span,
    pub on_failure: OnFailure,
    pub undo: UndoPolicy,
    pub reach: Vec<Reach>,
    /// Live, what it is about to do is approved before it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approve: Option<Approval>,
    pub pos: super::node::Pos,
}

impl PlanStep {
    /// What people are asked before this step: it is an approval, or has one of its own.
    #[must_use]
    pub fn asks(&self) -> Option<&Approval> {
        match &self.kind {
            StepKind::Approval(approval) => Some(approval),
            StepKind::Action { .. } => self.approve.as_ref(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    Action { name: String, version: u16, effect: Effect },
    Approval(Approval),
}

/// What keeps two operators without a common journal from acting at once.
pub const WHEEL_TAKE: &str = "wheel.take";
pub const WHEEL_RELEASE: &str = "wheel.release";

impl StepKind {
    /// What stands in `uses:`.
    #[must_use]
    pub fn uses(&self) -> &str {
        match self {
            Self::Action { name, .. } => name,
            Self::Approval(_) => "approval",
        }
    }
}

/// What an `approval` step, or `approve:` on a step, asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// How many different people must approve.
    #[serde(default = "one")]
    pub approvers: u32,
    /// Each of them must have one of these roles; anyone that the estate lists when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<String>,
    /// After so long an approval counts no more and the step fails.
    #[serde(default = "fifteen_minutes")]
    pub expires: Span,
    /// Shown to whoever approves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What is shown to whoever approves, and the bounds outside which no approval counts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub facts: BTreeMap<String, Fact>,
}

impl Default for Approval {
    fn default() -> Self {
        Self { approvers: one(), roles: Vec::new(), expires: fifteen_minutes(), message: None, facts: BTreeMap::new() }
    }
}

/// One fact, and its bounds. A bound is a number, or a length of time (then the fact is in milliseconds, or
/// a length of time itself).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fact {
    /// Mostly an expression over what a check before it gave: `"{{ steps.readiness.replicas[0].lag_ms }}"`.
    pub value: serde_json::Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_most: Option<Bound>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_least: Option<Bound>,
    /// Exactly this text, number or truth value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub equals: Option<serde_json::Value>,
}

/// A number or a length of time, as it was written.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Bound(pub serde_json::Value);

impl Bound {
    /// A quantity: a number as it stands, a length of time in milliseconds.
    #[must_use]
    pub fn quantity(value: &serde_json::Value) -> Option<f64> {
        match value {
            serde_json::Value::Number(number) => number.as_f64(),
            serde_json::Value::String(text) => {
                let plain = text.parse::<f64>().ok().filter(|number| number.is_finite());
                plain.or_else(|| text.parse::<Span>().ok().map(|span| span.ms as f64))
            }
            _ => None,
        }
    }
}

impl<'de> Deserialize<'de> for Bound {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(from)?;
        let wrong = || serde::de::Error::custom("a bound is a number or a length of time, such as `5` or `30s`");
        Self::quantity(&value).map(|_| Self(value.clone())).ok_or_else(wrong)
    }
}

impl schemars::JsonSchema for Bound {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Bound".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": ["number", "string"], "description": "A number, or a length of time such as `30s`." })
    }
}

fn one() -> u32 {
    1
}
fn fifteen_minutes() -> Span {
    Span::from_secs(15 * 60)
}

impl Plan {
    #[must_use]
    pub fn step(&self, id: &StepId) -> Option<&PlanStep> {
        self.steps.iter().find(|step| step.id == *id)
    }
}
