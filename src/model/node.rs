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

/// A value that could not be read as the type that was wanted, and where it stood.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct DecodeError {
    pub pos: Pos,
    /// `steps[2].with.region`, as far as it is known.
    pub path: String,
    pub message: String,
    /// The names that would have been valid here, when an unknown one was found.
    pub expected: Vec<String>,
    /// The unknown name.
    pub found: Option<String>,
}

/// Reads a typed value. Text becomes a number or a truth value only where the type asks for one.
pub fn decode<T: serde::de::DeserializeOwned>(node: &Node) -> Result<T, DecodeError> {
    let json = to_json(node);
    serde_json::from_value(json).map_err(|e| DecodeError {
        pos: node.pos,
        path: String::new(),
        message: e.to_string(),
        expected: Vec::new(),
        found: None,
    })
}

fn to_json(node: &Node) -> serde_json::Value {
    match &node.value {
        NodeValue::Null => serde_json::Value::Null,
        NodeValue::Text { text, .. } => serde_json::Value::String(text.clone()),
        NodeValue::List(items) => items.iter().map(to_json).collect(),
        NodeValue::Map(entries) => entries.iter().map(|(key, node)| (key.name.clone(), to_json(node))).collect(),
        NodeValue::Typed(value) => value.clone(),
    }
}
