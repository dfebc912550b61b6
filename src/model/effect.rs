//! What kind of trouble a lost answer is. Every action names one; recovery follows from it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a lost answer means. Decides recovery; there is no default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Reads only: run again freely.
    Read,
    /// Declarative or compare-and-swap: the same intent twice is once.
    Repeatable,
    /// Not repeatable, but `observe` can tell whether this very intent happened.
    Observable,
    /// Neither: after an unknown outcome the run is held and a person asked.
    OneShot,
}

/// What the action may destroy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Danger {
    None,
    Reversible,
    Irreversible,
}

/// What a step depends on in a region: the data plane answers requests, the control plane changes things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Plane {
    Control,
    Data,
}

/// Where a dependency lives.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    Region(super::ids::RegionName),
    /// One for all regions, as the Route 53 API is.
    Global,
    /// The machine that Muster runs on, and what a person pointed it to.
    Here,
    /// Each of several, of which those in a lost region may be left out as long as there is another.
    Each(Vec<Site>),
}

/// One of several servers, and the region that it stands in, where it stands in one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Site {
    pub server: String,
    pub region: Option<super::ids::RegionName>,
}

/// One thing a step needs to be up.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Reach {
    pub place: Place,
    pub plane: Plane,
}

/// A resource that a run locks before it may change it: `database/predictions`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Resource(pub String);

/// What an error means to whoever reads the record of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Failure {
    /// A stable word for machines: `unreachable`, `refused`, `not_fenced`, `golden_differs`.
    pub code: String,
    /// One sentence for people.
    pub message: String,
    /// What to do now, if anything is known to help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Failure {
    #[must_use]
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), remedy: None }
    }
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)?;
        match &self.remedy {
            Some(remedy) => write!(f, " ({remedy})"),
            None => Ok(()),
        }
    }
}

/// What `observe` saw of one intent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seen<O> {
    /// It certainly did not happen.
    Absent,
    /// It is under way; look again after so long.
    Pending {
        poll_after_ms: u64,
        note: String,
    },
    Done(O),
    /// Something else is there: a person must look.
    Differs {
        found: String,
    },
    CannotTell {
        why: String,
    },
}

impl<O> Seen<O> {
    pub fn map<P>(self, of: impl FnOnce(O) -> P) -> Seen<P> {
        match self {
            Self::Absent => Seen::Absent,
            Self::Pending { poll_after_ms, note } => Seen::Pending { poll_after_ms, note },
            Self::Done(output) => Seen::Done(of(output)),
            Self::Differs { found } => Seen::Differs { found },
            Self::CannotTell { why } => Seen::CannotTell { why },
        }
    }
}

/// One line of what a step would change, for plans, approvals and records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Change {
    /// What changes: `api.scoring.test A`.
    pub what: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}
