//! A value in a file against the JSON Schema of an action's input, as `schemars` writes such schemas.
//!
//! Scalars that hold an expression are taken on trust: what they give is checked when it is known. Where
//! the schema names a type of the estate (`RegionName`, `DatabaseName`, ...), the name must be in it.

use super::{
    diagnostic::{Diagnostic, suggest},
    expr::has_expression,
    parse::Source,
};
use crate::model::{
    decode::spread,
    estate::Estate,
    node::{Node, NodeValue},
    time::Span,
};
use serde_json::Value;

/// How deep references are followed, so that a schema which refers to itself ends.
const MAX_DEPTH: usize = 64;

pub(super) struct SchemaCheck<'a> {
    pub source: &'a Source,
    /// The whole schema, to which `$ref` is relative.
    pub root: &'a Value,
    pub estate: Option<&'a Estate>,
}

type Found = Vec<Diagnostic>;

impl<'a> SchemaCheck<'a> {
    /// All that is wrong with a value.
    pub fn check(&self, node: &Node) -> Found {
        let mut found = Vec::new();
        self.walk(&spread(node), self.root, "with", 0, &mut found);
        found
    }

    fn resolve(&self, reference: &str) -> Option<&'a Value> {
        self.root.pointer(reference.strip_prefix('#')?)
    }

    fn wrong(&self, node: &Node, path: &str, expected: &str) -> Diagnostic {
        let shown = match &node.value {
            NodeValue::Null => "nothing".to_owned(),
            NodeValue::Text { text, .. } => format!("`{text}`"),
            NodeValue::List(_) => "a list".to_owned(),
            NodeValue::Map(_) => "a map".to_owned(),
            NodeValue::Typed(value) => format!("`{value}`"),
        };
        self.source.error(node.pos, "wrong-type", format!("expected {expected}, found {shown} (in `{path}`)"))
    }

    fn walk(&self, node: &Node, schema: &'a Value, path: &str, depth: usize, found: &mut Found) {
        let trusted = matches!(&node.value, NodeValue::Text { text, .. } if has_expression(text));
        if trusted || depth > MAX_DEPTH {
            return;
        }
        if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
            if let Some(target) = self.resolve(reference) {
                let name = reference.rsplit('/').next().unwrap_or_default();
                self.named(node, name, path, found);
                self.walk(node, target, path, depth + 1, found);
            }
            return;
        }
        for word in ["anyOf", "oneOf"] {
            if let Some(choices) = schema.get(word).and_then(Value::as_array) {
                self.choice(node, choices, path, depth, found);
            }
        }
        self.constants(node, schema, path, found);
        self.typed(node, schema, path, depth, found);
    }

    /// A choice holds if one of its branches does. If none does, the errors of the branch that was
    /// meant are shown, else the words that would do.
    fn choice(&self, node: &Node, choices: &'a [Value], path: &str, depth: usize, found: &mut Found) {
        if let Some(sets) = choices.iter().map(keys_alone).collect::<Option<Vec<_>>>() {
            found.extend(self.one_set(node, &sets, path));
            return;
        }
        let mut nearest: Option<Found> = None;
        for choice in choices {
            let mut inner = Vec::new();
            self.walk(node, choice, path, depth + 1, &mut inner);
            if inner.is_empty() {
                return;
            }
            if meant(node, choice) && nearest.as_ref().is_none_or(|best| best.len() > inner.len()) {
                nearest = Some(inner);
            }
        }
        if let Some(errors) = nearest {
            found.extend(errors);
            return;
        }
        let words: Vec<&str> = choices.iter().flat_map(words).collect();
        let made = if words.is_empty() { self.wrong(node, path, "another kind of value") } else { self.none_of(node, path) };
        found.push(made.maybe_help(suggest(&text_of(node).unwrap_or_default(), words)));
    }

    /// Of several sets of keys exactly one, and nothing of the others.
    fn one_set(&self, node: &Node, sets: &[Vec<&str>], path: &str) -> Option<Diagnostic> {
        let NodeValue::Map(entries) = &node.value else { return None };
        let given: Vec<&str> = entries.iter().map(|(key, _)| key.name.as_str()).filter(|name| sets.concat().contains(name)).collect();
        if sets.iter().any(|set| set.len() == given.len() && set.iter().all(|name| given.contains(name))) {
            return None;
        }
        let each = sets.iter().map(|set| set.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" and "));
        let wanted = each.collect::<Vec<_>>().join(", or ");
        let found = if given.is_empty() { "none of them".to_owned() } else { format!("`{}`", given.join("`, `")) };
        Some(self.source.error(node.pos, "missing-key", format!("expected either {wanted}; found {found} (in `{path}`)")))
    }

    fn none_of(&self, node: &Node, path: &str) -> Diagnostic {
        let text = text_of(node).unwrap_or_default();
        self.source.error(node.pos, "unknown-value", format!("`{text}` is none of the values allowed here (in `{path}`)"))
    }

    fn constants(&self, node: &Node, schema: &'a Value, path: &str, found: &mut Found) {
        let valid: Vec<&str> = words(schema);
        let listed = schema.get("enum").is_some() || schema.get("const").is_some_and(Value::is_string);
        if listed && !valid.is_empty() && !text_of(node).is_some_and(|text| valid.contains(&text.as_str())) {
            let made = self.none_of(node, path);
            found.push(made.maybe_help(suggest(&text_of(node).unwrap_or_default(), valid)));
        }
    }

    fn typed(&self, node: &Node, schema: &'a Value, path: &str, depth: usize, found: &mut Found) {
        let kinds = kinds(schema);
        if kinds.is_empty() || (node.value == NodeValue::Null && kinds.contains(&"null")) {
            return;
        }
        let fits = kinds.iter().any(|kind| fits(node, kind));
        if !fits {
            let words: Vec<&str> = kinds.iter().filter(|kind| **kind != "null").map(|kind| words_for(kind)).collect();
            found.push(self.wrong(node, path, &words.join(" or ")));
            return;
        }
        match &node.value {
            NodeValue::Map(_) | NodeValue::Null => self.object(node, schema, path, depth, found),
            NodeValue::List(items) => {
                if let Some(inner) = schema.get("items") {
                    for (index, item) in items.iter().enumerate() {
                        self.walk(item, inner, &format!("{path}[{index}]"), depth + 1, found);
                    }
                }
                if schema.get("minItems").and_then(Value::as_u64).is_some_and(|least| (items.len() as u64) < least) {
                    found.push(self.wrong(node, path, "a longer list"));
                }
            }
            _ => self.bounds(node, schema, path, found),
        }
    }

    fn bounds(&self, node: &Node, schema: &Value, path: &str, found: &mut Found) {
        let text = text_of(node).unwrap_or_default();
        if let Ok(number) = text.parse::<f64>() {
            let limit = |word: &str| schema.get(word).and_then(Value::as_f64);
            if limit("minimum").is_some_and(|least| number < least) || limit("maximum").is_some_and(|most| number > most) {
                let least = limit("minimum").map_or(String::new(), |least| format!(" from {least}"));
                let most = limit("maximum").map_or(String::new(), |most| format!(" up to {most}"));
                found.push(self.wrong(node, path, &format!("a number{least}{most}")));
            }
        }
        if schema.get("format").and_then(Value::as_str) == Some("uri") && url::Url::parse(&text).is_err() {
            found.push(self.wrong(node, path, "an address such as `https://example.com/path`"));
        }
    }

    fn object(&self, node: &Node, schema: &'a Value, path: &str, depth: usize, found: &mut Found) {
        let empty = Vec::new();
        let entries = match &node.value {
            NodeValue::Map(entries) => entries,
            _ => &empty,
        };
        let properties = schema.get("properties").and_then(Value::as_object);
        for (key, value) in entries {
            let below = format!("{path}.{}", key.name);
            match (properties.and_then(|all| all.get(&key.name)), schema.get("additionalProperties")) {
                (Some(inner), _) => self.walk(value, inner, &below, depth + 1, found),
                (None, Some(Value::Bool(false))) => {
                    let made = self.source.error(key.pos, "unknown-key", format!("unknown key `{}` (in `{path}`)", key.name));
                    let valid = properties.into_iter().flat_map(|all| all.keys().map(String::as_str));
                    found.push(made.maybe_help(suggest(&key.name, valid)));
                }
                (None, Some(inner)) => self.walk(value, inner, &below, depth + 1, found),
                (None, None) => {}
            }
        }
        for name in schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
            if !entries.iter().any(|(key, _)| key.name == name) {
                let made = self.source.error(node.pos, "missing-key", format!("the key `{name}` is missing (in `{path}`)"));
                found.push(made.help(format!("add `{name}: ...` to this map")));
            }
        }
    }

    /// Types that mean more than their JSON form says.
    fn named(&self, node: &Node, name: &str, path: &str, found: &mut Found) {
        let Some(text) = text_of(node) else { return };
        if name == "Duration" {
            if let Err(why) = text.parse::<Span>() {
                found.push(self.source.error(node.pos, "wrong-type", format!("{why} (in `{path}`)")));
            }
        } else if let Some(estate) = self.estate
            && let Some((what, valid)) = estate_names(estate, name)
            && !valid.contains(&text.as_str())
        {
            let made = self.source.error(node.pos, "dangling-reference", format!("the estate has no {what} `{text}` (in `{path}`)"));
            found.push(made.maybe_help(suggest(&text, valid)));
        }
    }
}

/// The names that the estate has for a type of its own.
pub(super) fn estate_names<'e>(estate: &'e Estate, kind: &str) -> Option<(&'static str, Vec<&'e str>)> {
    Some(match kind {
        "RegionName" => ("region", estate.regions.keys().map(crate::model::ids::RegionName::as_str).collect()),
        "ServiceName" => ("service", estate.services.keys().map(crate::model::ids::ServiceName::as_str).collect()),
        "DatabaseName" => ("database", estate.databases.keys().map(crate::model::ids::DatabaseName::as_str).collect()),
        "BucketName" => ("bucket", estate.buckets.keys().map(crate::model::ids::BucketName::as_str).collect()),
        "EndpointName" => ("endpoint", estate.endpoints.keys().map(crate::model::ids::EndpointName::as_str).collect()),
        "RepositoryName" => ("repository", estate.repositories.keys().map(crate::model::ids::RepositoryName::as_str).collect()),
        _ => return None,
    })
}

fn text_of(node: &Node) -> Option<String> {
    match &node.value {
        NodeValue::Text { text, .. } | NodeValue::Typed(Value::String(text)) => Some(text.clone()),
        NodeValue::Typed(value @ (Value::Bool(_) | Value::Number(_))) => Some(value.to_string()),
        _ => None,
    }
}

fn kinds(schema: &Value) -> Vec<&str> {
    match schema.get("type") {
        Some(Value::String(kind)) => vec![kind],
        Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

fn fits(node: &Node, kind: &str) -> bool {
    let text = text_of(node);
    match kind {
        "string" => text.is_some(),
        "integer" => text.is_some_and(|text| text.parse::<i128>().is_ok()),
        "number" => text.is_some_and(|text| text.parse::<f64>().is_ok_and(f64::is_finite)),
        "boolean" => text.is_some_and(|text| text == "true" || text == "false"),
        "array" => matches!(node.value, NodeValue::List(_)),
        "object" => matches!(node.value, NodeValue::Map(_) | NodeValue::Null),
        "null" => node.value == NodeValue::Null,
        _ => true,
    }
}

fn words_for(kind: &str) -> &str {
    match kind {
        "string" => "text",
        "integer" => "a whole number",
        "number" => "a number",
        "boolean" => "`true` or `false`",
        "array" => "a list",
        "object" => "a map",
        other => other,
    }
}

/// The keys that a branch asks for, if that is all that it says.
fn keys_alone(schema: &Value) -> Option<Vec<&str>> {
    if schema.get("properties").is_some() {
        return None;
    }
    schema.get("required")?.as_array().map(|keys| keys.iter().filter_map(Value::as_str).collect())
}

/// The words that a schema allows.
fn words(schema: &Value) -> Vec<&str> {
    let listed = schema.get("enum").and_then(Value::as_array).into_iter().flatten();
    listed.chain(schema.get("const")).filter_map(Value::as_str).collect()
}

/// Whether a branch of a choice is the one that was meant: a map shares a key with it, a list or a
/// scalar is what it takes, and it is more than "nothing".
fn meant(node: &Node, schema: &Value) -> bool {
    if schema.get("$ref").is_some() {
        return true;
    }
    match &node.value {
        NodeValue::Map(entries) => schema
            .get("properties")
            .and_then(Value::as_object)
            .is_some_and(|properties| entries.iter().any(|(key, _)| properties.contains_key(&key.name))),
        NodeValue::List(_) => kinds(schema).contains(&"array"),
        _ => words(schema).is_empty() && kinds(schema).iter().any(|kind| matches!(*kind, "string" | "integer" | "number" | "boolean")),
    }
}
