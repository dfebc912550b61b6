//! What the language needs to know of the actions, without knowing them.

use super::{effect::*, estate::Estate, node::Node, runbook::UndoPolicy, time::Span};

/// One action, as `validate`, `plan` and `muster actions` see it.
#[derive(Clone, Debug)]
pub struct ActionInfo {
    pub name: &'static str,
    pub version: u16,
    pub summary: &'static str,
    pub effect: Effect,
    pub danger: Danger,
    pub undo: UndoPolicy,
    pub timeout: Span,
    /// A step in YAML.
    pub example: &'static str,
    /// JSON Schemas of `with` and of what stands in `steps.ID`.
    pub input: serde_json::Value,
    pub output: serde_json::Value,
}

/// The catalogue of actions, lent to the language. In every `with`, the inputs' expressions have been
/// rendered; those that need another step's output still stand as text.
pub trait Catalogue: Send + Sync {
    fn names(&self) -> Vec<&'static str>;
    fn info(&self, action: &str) -> Option<ActionInfo>;
    /// What undoing can do with this input.
    fn undo(&self, action: &str, _with: &Node) -> UndoPolicy {
        self.info(action).map_or(UndoPolicy::None, |info| info.undo)
    }
    /// For most actions that of its `ActionInfo`; for some it depends on the input.
    fn effect(&self, action: &str, with: &Node) -> Effect;
    fn reach(&self, action: &str, with: &Node, estate: &Estate) -> Vec<Reach>;
    fn locks(&self, action: &str, with: &Node) -> Vec<Resource>;
}
