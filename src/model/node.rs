//! A YAML tree that still knows where each key and value stood, and how to read a typed value from it.
//!
//! Scalars stay text until a type asks for them, so `no`, `012` and `1.10` never change their meaning
//! on the way (the "Norway problem"). The tree is also what a compiled plan carries as a step's `with`,
//! so that an error found while the plan runs can still name the line.

use serde::{Deserialize, Serialize};

/// A place in a file; both count from one. Zero means that the value came from no file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Pos {
    pub line: u32,
    pub column: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    pub pos: Pos,
    pub value: NodeValue,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeValue {
    Null,
    /// A scalar as written; `quoted` when it stood in quotes or in a block.
    Text {
        text: String,
        quoted: bool,
    },
    List(Vec<Node>),
    /// Keys in the order of the file, each with its own place.
    Map(Vec<(Key, Node)>),
    /// What an expression gave: already typed.
    Typed(serde_json::Value),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    pub name: String,
    pub pos: Pos,
}

impl Node {
    #[must_use]
    pub fn empty_map() -> Self {
        Self { pos: Pos::default(), value: NodeValue::Map(Vec::new()) }
    }
    #[must_use]
    pub fn typed(value: serde_json::Value) -> Self {
        Self { pos: Pos::default(), value: NodeValue::Typed(value) }
    }
    /// The entry of a map, if this is a map that has it.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Node> {
        match &self.value {
            NodeValue::Map(entries) => entries.iter().find(|(key, _)| key.name == name).map(|(_, node)| node),
            _ => None,
        }
    }
}

pub use super::decode::{DecodeError, decode};
