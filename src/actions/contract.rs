//! What an action is: the trait, the contexts it is lent, and the form in which the engine holds one.
//!
//! The intent holds every decision and identifier already chosen, and is journaled *before* `apply`.
//! [`ReadCx`] has no writing method, so a dry run cannot write, by type. [`WriteCx`] lends the writing
//! halves only through [`WriteCx::world`], which asks for a permit first: it fails once the run's
//! lease is in doubt.

use crate::model::{effect::*, estate::Estate, ids::*, node::Node, plan::Scope, runbook::UndoPolicy, time::Span};
use crate::providers::port::{PortError, WorldRead, WorldWrite};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

/// What an action says of itself.
#[derive(Clone, Debug)]
pub struct Spec {
    /// `dns.shift`: noun and verb, never renamed.
    pub name: &'static str,
    /// Of the forms of input and intent.
    pub version: u16,
    pub summary: &'static str,
    pub effect: Effect,
    pub danger: Danger,
    /// What undoing can do: the strongest policy a step may ask for.
    pub undo: UndoPolicy,
    pub timeout: Span,
    /// A step in YAML.
    pub example: &'static str,
}

/// How long a request to a provider may be on its way after its sender died. What a provider takes up is in its
/// answers at once; this is for the network and the provider's queue.
const IN_FLIGHT: Duration = Duration::from_secs(2);

/// The code of the failure of an attempt that was not made, because its process had lost the run.
pub const DEPOSED: &str = "deposed";

/// What one step of one run may look at.
#[derive(Clone)]
pub struct ReadCx {
    pub world: Arc<dyn WorldRead>,
    pub estate: Arc<Estate>,
    pub run: RunId,
    pub step: StepId,
    pub scope: Scope,
    /// The region that is lost, in an unplanned failover out of it.
    pub lost: Option<RegionName>,
    /// The same for every attempt of the same step: SHA-256 of run and step, in hexadecimal.
    pub key: String,
    /// What is left for this call.
    pub deadline: Duration,
    /// A directory of this run's own on this machine.
    pub scratch: std::path::PathBuf,
}

/// What one step of one run may change.
pub struct WriteCx {
    pub read: ReadCx,
    pub(crate) write: Arc<dyn WorldWrite>,
    pub(crate) permit: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl std::ops::Deref for WriteCx {
    type Target = ReadCx;
    fn deref(&self) -> &ReadCx {
        &self.read
    }
}

impl WriteCx {
    #[must_use]
    pub fn new(read: ReadCx, write: Arc<dyn WorldWrite>, permit: Arc<dyn Fn() -> bool + Send + Sync>) -> Self {
        Self { read, write, permit }
    }
    /// The writing halves, if this process still owns the run.
    pub fn world(&self) -> Result<&dyn WorldWrite, ApplyError> {
        if (self.permit)() {
            Ok(&*self.write)
        } else {
            Err(ApplyError::Definite(Failure::new(DEPOSED, "this process no longer owns the run; nothing was tried")))
        }
    }
}

/// What `prepare` found and chose.
#[derive(Clone, Debug)]
pub struct Prepared<I> {
    pub intent: I,
    pub change: Vec<Change>,
    pub notes: Vec<String>,
}

/// Why `prepare` would not go on: nothing was tried.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub failure: Failure,
    /// The world may look different soon.
    pub retry: bool,
}

impl Refusal {
    #[must_use]
    pub fn no(code: &str, message: impl Into<String>) -> Self {
        Self { failure: Failure::new(code, message), retry: false }
    }
    #[must_use]
    pub fn later(code: &str, message: impl Into<String>) -> Self {
        Self { failure: Failure::new(code, message), retry: true }
    }
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.failure = self.failure.remedy(remedy);
        self
    }
}

impl From<PortError> for Refusal {
    fn from(error: PortError) -> Self {
        let retry = matches!(error, PortError::Unreachable(_) | PortError::Throttled { .. } | PortError::Unknown(_));
        Self { failure: failure(&error), retry }
    }
}

#[derive(Clone, Debug)]
pub enum ApplyError {
    /// Certainly not applied.
    Definite(Failure),
    /// Certainly not applied; worth another try after so long.
    Retry { after: Duration, failure: Failure },
    /// May have been applied: never repeated without `observe`.
    Unknown(Failure),
}

impl From<PortError> for ApplyError {
    fn from(error: PortError) -> Self {
        let what = failure(&error);
        match error {
            PortError::Throttled { after, .. } => Self::Retry { after, failure: what },
            PortError::Unreachable(_) => Self::Retry { after: Duration::ZERO, failure: what },
            PortError::Unknown(_) => Self::Unknown(what),
            PortError::Refused(_) | PortError::Conflict { .. } | PortError::NotFound(_) | PortError::Config(_) | PortError::Corrupt(_) => {
                Self::Definite(what)
            }
        }
    }
}

/// A port's error as a journaled failure.
#[must_use]
pub fn failure(error: &PortError) -> Failure {
    let code = match error {
        PortError::Unreachable(_) => "unreachable",
        PortError::Throttled { .. } => "throttled",
        PortError::Refused(_) => "refused",
        PortError::Conflict { .. } => "conflict",
        PortError::NotFound(_) => "not_found",
        PortError::Unknown(_) => "unknown",
        PortError::Config(_) => "config",
        PortError::Corrupt(_) => "corrupt",
    };
    Failure::new(code, error.to_string())
}

/// An action. One file holds all that it is; the catalogue in `mod.rs` gains one line.
pub trait Action: Send + Sync + 'static {
    type Input: DeserializeOwned + JsonSchema + Send + Sync;
    /// Enough to do it, recognise it and undo it after a restart on another machine.
    type Intent: Serialize + DeserializeOwned + Send + Sync;
    type Output: Serialize + DeserializeOwned + JsonSchema + Send + Sync;

    fn spec() -> Spec;
    /// What a lost answer means, where that depends on the input.
    fn effect(_with: &Node) -> Effect {
        Self::spec().effect
    }
    /// What undoing can do, where that depends on the input.
    fn undo_policy(_with: &Node) -> UndoPolicy {
        Self::spec().undo
    }
    /// Can `observe` see anything of it? Where not, the answer of `apply` is all there is.
    fn observes(_with: &Node) -> bool {
        !matches!(Self::spec().effect, Effect::Read | Effect::OneShot)
    }
    /// Does it leave alone all that serves: it reads, or writes only beside it? Such steps alone may stand in a restore
    /// drill outside a lab.
    fn aside(with: &Node) -> bool {
        Self::effect(with) == Effect::Read
    }
    /// How long after its sender was last heard of a request may still take effect. An attempt without an
    /// outcome that is not to be seen counts as failed, and is made again, only after that; one that may be sent
    /// twice is sent again at once, and waited for only where nothing is sent any more.
    fn lands_within(with: &Node) -> Duration {
        if matches!(Self::effect(with), Effect::Observable | Effect::Repeatable) { IN_FLIGHT } else { Duration::ZERO }
    }
    /// The fields of the intent that say how the world stood and not what will be done, by their paths (`asked`, `wheel.since`):
    /// who approves the step does not approve them. They are read anew at each preparation, and what they are changes nothing of what
    /// the rest of the intent decides.
    fn measured() -> &'static [&'static str] {
        &[]
    }
    /// What it depends on, and where, as far as the input says. `with` may still hold expressions
    /// over other steps' outputs.
    fn reach(with: &Node, estate: &Estate) -> Vec<Reach>;
    /// What it may change.
    fn locks(with: &Node) -> Vec<Resource>;
    /// Read-only: preconditions, every choice made, the diff. A dry run stops here.
    fn prepare(cx: &ReadCx, input: Self::Input) -> impl Future<Output = Result<Prepared<Self::Intent>, Refusal>> + Send;
    /// The only method that may change anything. Returns once the change was accepted; what takes time
    /// after that is `observe`'s to see. For `Effect::Read` it is the check itself.
    fn apply(cx: &WriteCx, intent: &Self::Intent) -> impl Future<Output = Result<Self::Output, ApplyError>> + Send;
    /// Read-only: did this intent happen, and is it complete? Asked after `apply` until it is `Done`,
    /// after an unknown outcome, and after a restart. Never asked for `Effect::Read`.
    fn observe(cx: &ReadCx, intent: &Self::Intent) -> impl Future<Output = Seen<Self::Output>> + Send;
    /// Backs out what was, or may have been, applied; must accept "never happened" and "half".
    fn undo(cx: &WriteCx, intent: &Self::Intent, output: Option<Self::Output>) -> impl Future<Output = Result<(), ApplyError>> + Send;
    /// It succeeded, and this a person must hear of all the same: the step then ends `succeeded_with_warning`, which stops nothing.
    fn warnings(_output: &Self::Output) -> Vec<String> {
        Vec::new()
    }
}

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// An action with its types erased: JSON at the edge.
pub trait DynAction: Send + Sync {
    fn spec(&self) -> Spec;
    fn input_schema(&self) -> schemars::Schema;
    fn output_schema(&self) -> schemars::Schema;
    fn effect(&self, with: &Node) -> Effect;
    fn undo_policy(&self, with: &Node) -> UndoPolicy;
    fn observes(&self, with: &Node) -> bool;
    fn aside(&self, with: &Node) -> bool;
    fn lands_within(&self, with: &Node) -> Duration;
    fn measured(&self) -> &'static [&'static str];
    fn reach(&self, with: &Node, estate: &Estate) -> Vec<Reach>;
    fn locks(&self, with: &Node) -> Vec<Resource>;
    fn prepare<'a>(&'a self, cx: &'a ReadCx, with: &'a Node) -> BoxFuture<'a, Result<Prepared<serde_json::Value>, Refusal>>;
    fn apply<'a>(&'a self, cx: &'a WriteCx, intent: &'a serde_json::Value) -> BoxFuture<'a, Result<serde_json::Value, ApplyError>>;
    fn observe<'a>(&'a self, cx: &'a ReadCx, intent: &'a serde_json::Value) -> BoxFuture<'a, Seen<serde_json::Value>>;
    fn undo<'a>(
        &'a self,
        cx: &'a WriteCx,
        intent: &'a serde_json::Value,
        output: Option<serde_json::Value>,
    ) -> BoxFuture<'a, Result<(), ApplyError>>;
    fn warnings(&self, output: &serde_json::Value) -> Vec<String>;
}

/// Holds an action's type, so that it can stand in the catalogue.
pub struct Erased<A>(std::marker::PhantomData<fn() -> A>);

impl<A: Action> Erased<A> {
    #[must_use]
    pub fn boxed() -> Box<dyn DynAction> {
        Box::new(Self(std::marker::PhantomData))
    }
}

fn broken<E: std::fmt::Display>(what: &str, error: E) -> Failure {
    Failure::new("journal_form", format!("the recorded {what} cannot be read by this version: {error}"))
}

impl<A: Action> DynAction for Erased<A> {
    fn spec(&self) -> Spec {
        A::spec()
    }
    fn input_schema(&self) -> schemars::Schema {
        schemars::schema_for!(A::Input)
    }
    fn output_schema(&self) -> schemars::Schema {
        schemars::schema_for!(A::Output)
    }
    fn effect(&self, with: &Node) -> Effect {
        A::effect(with)
    }
    fn undo_policy(&self, with: &Node) -> UndoPolicy {
        A::undo_policy(with)
    }
    fn observes(&self, with: &Node) -> bool {
        A::observes(with)
    }
    fn aside(&self, with: &Node) -> bool {
        A::aside(with)
    }
    fn lands_within(&self, with: &Node) -> Duration {
        A::lands_within(with)
    }
    fn measured(&self) -> &'static [&'static str] {
        A::measured()
    }
    fn reach(&self, with: &Node, estate: &Estate) -> Vec<Reach> {
        A::reach(with, estate)
    }
    fn locks(&self, with: &Node) -> Vec<Resource> {
        A::locks(with)
    }
    fn prepare<'a>(&'a self, cx: &'a ReadCx, with: &'a Node) -> BoxFuture<'a, Result<Prepared<serde_json::Value>, Refusal>> {
        Box::pin(async move {
            let input = crate::model::node::decode::<A::Input>(with).map_err(|e| Refusal::no("input", e.to_string()))?;
            let prepared = A::prepare(cx, input).await?;
            let intent = serde_json::to_value(&prepared.intent).map_err(|e| Refusal { failure: broken("intent", e), retry: false })?;
            Ok(Prepared { intent, change: prepared.change, notes: prepared.notes })
        })
    }
    fn apply<'a>(&'a self, cx: &'a WriteCx, intent: &'a serde_json::Value) -> BoxFuture<'a, Result<serde_json::Value, ApplyError>> {
        Box::pin(async move {
            let intent = A::Intent::deserialize(intent).map_err(|e| ApplyError::Definite(broken("intent", e)))?;
            let output = A::apply(cx, &intent).await?;
            serde_json::to_value(&output).map_err(|e| ApplyError::Unknown(broken("output", e)))
        })
    }
    fn observe<'a>(&'a self, cx: &'a ReadCx, intent: &'a serde_json::Value) -> BoxFuture<'a, Seen<serde_json::Value>> {
        Box::pin(async move {
            let intent = match A::Intent::deserialize(intent) {
                Ok(intent) => intent,
                Err(e) => return Seen::CannotTell { why: broken("intent", e).message },
            };
            match A::observe(cx, &intent).await {
                Seen::Absent => Seen::Absent,
                Seen::Pending { poll_after_ms, note } => Seen::Pending { poll_after_ms, note },
                Seen::Differs { found } => Seen::Differs { found },
                Seen::CannotTell { why } => Seen::CannotTell { why },
                Seen::Done(output) => match serde_json::to_value(&output) {
                    Ok(value) => Seen::Done(value),
                    Err(e) => Seen::CannotTell { why: broken("output", e).message },
                },
            }
        })
    }
    fn undo<'a>(
        &'a self,
        cx: &'a WriteCx,
        intent: &'a serde_json::Value,
        output: Option<serde_json::Value>,
    ) -> BoxFuture<'a, Result<(), ApplyError>> {
        Box::pin(async move {
            let intent = A::Intent::deserialize(intent).map_err(|e| ApplyError::Definite(broken("intent", e)))?;
            let output = output.map(A::Output::deserialize).transpose().map_err(|e| ApplyError::Definite(broken("output", e)))?;
            A::undo(cx, &intent, output).await
        })
    }
    fn warnings(&self, output: &serde_json::Value) -> Vec<String> {
        A::Output::deserialize(output).map(|output| A::warnings(&output)).unwrap_or_default()
    }
}
