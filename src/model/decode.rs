//! Reads a typed value out of a [`Node`] tree with `serde`, so that a scalar's meaning is decided by the
//! type that wants it and never guessed from its spelling, and every error names its line.
//!
//! Text becomes a number or a truth value only where the type asks for one. What carries no type of its
//! own (`serde_json::Value`, untagged enums) gets text as text.

use super::node::{Key, Node, NodeValue, Pos};
use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, Visitor};
use std::fmt;

/// A value that could not be read as the type that was wanted, and where it stood.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{}{message}", if path.is_empty() { String::new() } else { format!("{path}: ") })]
pub struct DecodeError {
    pub pos: Pos,
    /// `steps[2].with.region`, as far as it is known.
    pub path: String,
    pub message: String,
    /// The names that would have been valid here, when an unknown one was found.
    pub expected: Vec<String>,
    /// The unknown name.
    pub found: Option<String>,
    /// What kind of error it is, a word for machines: `unknown-key`, `missing-key`, `unknown-value`, `wrong-type`.
    pub code: &'static str,
}

/// Reads a typed value. Text becomes a number or a truth value only where the type asks for one.
pub fn decode<T: DeserializeOwned>(node: &Node) -> Result<T, DecodeError> {
    let plain = spread(node);
    T::deserialize(De { node: &plain }).map_err(|e| e.at(plain.pos))
}

/// The same tree in which typed lists and maps have become lists and maps of typed scalars.
#[must_use]
pub fn spread(node: &Node) -> Node {
    let value = match &node.value {
        NodeValue::List(items) => NodeValue::List(items.iter().map(spread).collect()),
        NodeValue::Map(entries) => NodeValue::Map(entries.iter().map(|(key, node)| (key.clone(), spread(node))).collect()),
        NodeValue::Typed(value) => return spread_json(value, node.pos),
        other => other.clone(),
    };
    Node { pos: node.pos, value }
}

fn spread_json(value: &serde_json::Value, pos: Pos) -> Node {
    let value = match value {
        serde_json::Value::Null => NodeValue::Null,
        serde_json::Value::Array(items) => NodeValue::List(items.iter().map(|item| spread_json(item, pos)).collect()),
        serde_json::Value::Object(entries) => {
            NodeValue::Map(entries.iter().map(|(name, item)| (Key { name: name.clone(), pos }, spread_json(item, pos))).collect())
        }
        scalar => NodeValue::Typed(scalar.clone()),
    };
    Node { pos, value }
}

/// The error while it travels outwards: place and path are added by whoever knows them.
#[derive(Debug)]
struct Fault(Box<DecodeError>, bool);

impl Fault {
    fn new(code: &'static str, message: String) -> Self {
        let error = DecodeError { pos: Pos::default(), path: String::new(), message, expected: Vec::new(), found: None, code };
        Self(Box::new(error), false)
    }
    fn names(mut self, found: Option<&str>, expected: &[&str]) -> Self {
        self.0.found = found.map(ToOwned::to_owned);
        self.0.expected = expected.iter().map(|name| (*name).to_owned()).collect();
        self
    }
    /// Takes the place, unless something further in has given one.
    fn placed(mut self, pos: Pos) -> Self {
        if !self.1 {
            self.0.pos = pos;
            self.1 = true;
        }
        self
    }
    fn at(self, pos: Pos) -> DecodeError {
        *self.placed(pos).0
    }
    fn below(mut self, part: &str) -> Self {
        let joint = if self.0.path.is_empty() || self.0.path.starts_with('[') { "" } else { "." };
        self.0.path = format!("{part}{joint}{}", self.0.path);
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new("wrong-type", message.to_string())
    }
    fn invalid_type(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new("wrong-type", format!("expected {expected}, found {}", unexpected(&found)))
    }
    fn invalid_value(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::invalid_type(found, expected)
    }
    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::new("unknown-key", format!("unknown key `{field}`")).names(Some(field), expected)
    }
    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::new("unknown-value", format!("`{variant}` is none of the values allowed here")).names(Some(variant), expected)
    }
    fn missing_field(field: &'static str) -> Self {
        Self::new("missing-key", format!("the key `{field}` is missing")).names(None, &[field])
    }
}

fn unexpected(found: &de::Unexpected<'_>) -> String {
    match found {
        de::Unexpected::Str(text) => format!("`{text}`"),
        de::Unexpected::Map => "a map".to_owned(),
        de::Unexpected::Seq => "a list".to_owned(),
        de::Unexpected::Unit => "nothing".to_owned(),
        other => other.to_string(),
    }
}

#[derive(Clone, Copy)]
struct De<'a> {
    node: &'a Node,
}

/// What stands there, in words.
fn found(node: &Node) -> String {
    match &node.value {
        NodeValue::Null => "nothing".to_owned(),
        NodeValue::Text { text, .. } => format!("`{text}`"),
        NodeValue::List(_) => "a list".to_owned(),
        NodeValue::Map(_) => "a map".to_owned(),
        NodeValue::Typed(value) => format!("`{value}`"),
    }
}

impl<'a> De<'a> {
    fn wrong(self, expected: &str) -> Fault {
        Fault::new("wrong-type", format!("expected {expected}, found {}", found(self.node))).placed(self.node.pos)
    }
    /// The scalar as text, whatever it holds; `None` for lists, maps and nothing.
    fn text(self) -> Option<String> {
        match &self.node.value {
            NodeValue::Text { text, .. } => Some(text.clone()),
            NodeValue::Typed(serde_json::Value::String(text)) => Some(text.clone()),
            NodeValue::Typed(value @ (serde_json::Value::Number(_) | serde_json::Value::Bool(_))) => Some(value.to_string()),
            _ => None,
        }
    }
    fn parsed<T: std::str::FromStr>(self, expected: &str) -> Result<T, Fault> {
        self.text().and_then(|text| text.parse().ok()).ok_or_else(|| self.wrong(expected))
    }
    fn entries(self) -> Option<&'a [(Key, Node)]> {
        match &self.node.value {
            NodeValue::Map(entries) => Some(entries),
            // `east:` with nothing behind it is a map without entries.
            NodeValue::Null => Some(&[]),
            _ => None,
        }
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $kind:ty, $words:literal;)+) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            let number: $kind = self.parsed($words)?;
            visitor.$visit(number).map_err(|e: Fault| e.placed(self.node.pos))
        }
    )+};
}

impl<'de> de::Deserializer<'de> for De<'_> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let done = match &self.node.value {
            NodeValue::Null => visitor.visit_unit(),
            NodeValue::Text { text, .. } => visitor.visit_str(text),
            NodeValue::List(_) => return self.deserialize_seq(visitor),
            NodeValue::Map(_) => return self.deserialize_map(visitor),
            NodeValue::Typed(serde_json::Value::Bool(value)) => visitor.visit_bool(*value),
            NodeValue::Typed(serde_json::Value::Number(number)) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
                (Some(value), _, _) => visitor.visit_u64(value),
                (None, Some(value), _) => visitor.visit_i64(value),
                (None, None, Some(value)) => visitor.visit_f64(value),
                _ => visitor.visit_string(number.to_string()),
            },
            NodeValue::Typed(serde_json::Value::String(text)) => visitor.visit_str(text),
            // Typed lists and maps have been spread, and a typed null is nothing.
            NodeValue::Typed(_) => visitor.visit_unit(),
        };
        done.map_err(|e: Fault| e.placed(self.node.pos))
    }

    numbers! {
        deserialize_u8 visit_u8 u8, "a whole number from 0 to 255";
        deserialize_u16 visit_u16 u16, "a whole number from 0 to 65535";
        deserialize_u32 visit_u32 u32, "a whole number, zero or more";
        deserialize_u64 visit_u64 u64, "a whole number, zero or more";
        deserialize_i8 visit_i8 i8, "a whole number";
        deserialize_i16 visit_i16 i16, "a whole number";
        deserialize_i32 visit_i32 i32, "a whole number";
        deserialize_i64 visit_i64 i64, "a whole number";
        deserialize_f32 visit_f32 f32, "a number";
        deserialize_f64 visit_f64 f64, "a number";
        deserialize_bool visit_bool bool, "`true` or `false`";
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let text = self.text().ok_or_else(|| self.wrong("text"))?;
        visitor.visit_string(text).map_err(|e: Fault| e.placed(self.node.pos))
    }
    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }
    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }
    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }
    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }
    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.node.value {
            NodeValue::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }
    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.node.value {
            NodeValue::Null => visitor.visit_unit(),
            _ => Err(self.wrong("nothing")),
        }
    }
    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_unit(visitor)
    }
    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let NodeValue::List(items) = &self.node.value else { return Err(self.wrong("a list")) };
        visitor.visit_seq(Items { items, at: 0 }).map_err(|e| e.placed(self.node.pos))
    }
    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_seq(visitor)
    }
    fn deserialize_tuple_struct<V: Visitor<'de>>(self, _: &'static str, _: usize, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_seq(visitor)
    }
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let entries = self.entries().ok_or_else(|| self.wrong("a map"))?;
        visitor.visit_map(Entries { entries, at: 0 }).map_err(|e| e.placed(self.node.pos))
    }
    fn deserialize_struct<V: Visitor<'de>>(self, _: &'static str, _: &'static [&'static str], visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_map(visitor)
    }
    fn deserialize_enum<V: Visitor<'de>>(self, _: &'static str, variants: &'static [&'static str], visitor: V) -> Result<V::Value, Fault> {
        let done = match (&self.node.value, self.text()) {
            (_, Some(name)) => visitor.visit_enum(Variant { name: &name, key: self.node.pos, node: None }),
            (NodeValue::Map(entries), None) => match entries.as_slice() {
                [(key, node)] => visitor.visit_enum(Variant { name: &key.name, key: key.pos, node: Some(node) }),
                _ => Err(self.wrong(&format!("exactly one of {}", listed(variants)))),
            },
            _ => Err(self.wrong(&format!("one of {}", listed(variants)))),
        };
        done.map_err(|e| e.placed(self.node.pos))
    }
    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_unit()
    }
}

fn listed(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

struct Items<'a> {
    items: &'a [Node],
    at: usize,
}

impl<'de> de::SeqAccess<'de> for Items<'_> {
    type Error = Fault;
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        let Some(node) = self.items.get(self.at) else { return Ok(None) };
        let index = self.at;
        self.at += 1;
        seed.deserialize(De { node }).map(Some).map_err(|e| e.placed(node.pos).below(&format!("[{index}]")))
    }
    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len().saturating_sub(self.at))
    }
}

struct Entries<'a> {
    entries: &'a [(Key, Node)],
    at: usize,
}

impl<'de> de::MapAccess<'de> for Entries<'_> {
    type Error = Fault;
    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        let Some((key, _)) = self.entries.get(self.at) else { return Ok(None) };
        // As a node, so that a map whose keys are numbers reads them as any other text.
        let node = Node { pos: key.pos, value: NodeValue::Text { text: key.name.clone(), quoted: true } };
        seed.deserialize(De { node: &node }).map(Some).map_err(|e| e.placed(key.pos))
    }
    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Fault> {
        let Some((key, node)) = self.entries.get(self.at) else { return Err(de::Error::custom("a value without a key")) };
        self.at += 1;
        seed.deserialize(De { node }).map_err(|e| e.placed(node.pos).below(&key.name))
    }
    fn size_hint(&self) -> Option<usize> {
        Some(self.entries.len().saturating_sub(self.at))
    }
}

struct Variant<'a> {
    name: &'a str,
    key: Pos,
    /// What stands behind the variant's key; nothing if the variant was written as text.
    node: Option<&'a Node>,
}

impl<'de> de::EnumAccess<'de> for Variant<'_> {
    type Error = Fault;
    type Variant = Self;
    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, Self), Fault> {
        let name: de::value::StrDeserializer<'_, Fault> = self.name.into_deserializer();
        let value = seed.deserialize(name).map_err(|e| e.placed(self.key))?;
        Ok((value, self))
    }
}

impl<'a> Variant<'a> {
    fn content(&self) -> Result<De<'a>, Fault> {
        let lacks = || Fault::new("wrong-type", format!("`{}` needs a value: write `{}: ...`", self.name, self.name)).placed(self.key);
        self.node.map(|node| De { node }).ok_or_else(lacks)
    }
}

impl<'de> de::VariantAccess<'de> for Variant<'_> {
    type Error = Fault;
    fn unit_variant(self) -> Result<(), Fault> {
        match self.node {
            None => Ok(()),
            Some(node) if node.value == NodeValue::Null => Ok(()),
            Some(node) => Err(Fault::new("wrong-type", format!("`{}` takes no value", self.name)).placed(node.pos)),
        }
    }
    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Fault> {
        let content = self.content()?;
        seed.deserialize(content).map_err(|e| e.placed(content.node.pos).below(self.name))
    }
    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Fault> {
        de::Deserializer::deserialize_seq(self.content()?, visitor).map_err(|e| e.below(self.name))
    }
    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], visitor: V) -> Result<V::Value, Fault> {
        de::Deserializer::deserialize_map(self.content()?, visitor).map_err(|e| e.below(self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        drill::Fault as Injected,
        estate::{Bucket, SecretRef},
        ids::RegionName,
        time::Span,
    };
    use serde::Deserialize;
    use std::collections::BTreeMap;

    fn text(text: &str, line: u32) -> Node {
        Node { pos: Pos { line, column: 5 }, value: NodeValue::Text { text: text.into(), quoted: false } }
    }
    fn map(entries: Vec<(&str, Node)>) -> Node {
        let pos = Pos { line: 1, column: 1 };
        let keyed = |(name, node): (&str, Node)| (Key { name: name.into(), pos: Pos { line: node.pos.line, column: 1 } }, node);
        Node { pos, value: NodeValue::Map(entries.into_iter().map(keyed).collect()) }
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Wanted {
        count: u32,
        name: String,
        #[serde(default)]
        wait: Option<Span>,
        #[serde(default)]
        at: Option<std::net::SocketAddr>,
        #[serde(default)]
        url: Option<url::Url>,
        #[serde(default)]
        any: serde_json::Value,
    }

    #[test]
    fn the_type_decides_what_text_means() {
        let node = map(vec![
            ("count", text("12", 2)),
            ("name", text("012", 3)),
            ("wait", text("5s", 4)),
            ("at", text("127.0.0.1:53", 5)),
            ("url", text("http://localhost/x", 6)),
            ("any", text("1.10", 7)),
        ]);
        let wanted: Wanted = decode(&node).expect("decodes");
        assert_eq!((wanted.count, wanted.name.as_str(), wanted.wait), (12, "012", Some(Span::from_secs(5))));
        assert_eq!(wanted.any, serde_json::json!("1.10"));
        assert_eq!(wanted.url.expect("a url").path(), "/x");
    }

    #[test]
    fn typed_values_keep_their_type_and_fit_where_text_is_wanted() {
        let typed = |value| Node { pos: Pos { line: 9, column: 9 }, value: NodeValue::Typed(value) };
        let node = map(vec![
            ("count", typed(serde_json::json!(7))),
            ("name", typed(serde_json::json!(1.5))),
            ("any", typed(serde_json::json!({"a": [1, -2, 0.5, null, true]}))),
        ]);
        let wanted: Wanted = decode(&node).expect("decodes");
        assert_eq!((wanted.count, wanted.name.as_str()), (7, "1.5"));
        assert_eq!(wanted.any, serde_json::json!({"a": [1, -2, 0.5, null, true]}));
    }

    #[test]
    fn every_error_names_its_place() {
        let wrong = decode::<Wanted>(&map(vec![("count", text("many", 2)), ("name", text("x", 3))])).expect_err("not a number");
        assert_eq!((wrong.pos.line, wrong.path.as_str(), wrong.code), (2, "count", "wrong-type"));
        assert!(wrong.message.contains("`many`"), "{wrong}");
        let unknown = decode::<Wanted>(&map(vec![("count", text("1", 2)), ("nmae", text("x", 3))])).expect_err("unknown");
        assert_eq!((unknown.pos, unknown.code, unknown.found.as_deref()), (Pos { line: 3, column: 1 }, "unknown-key", Some("nmae")));
        assert!(unknown.expected.contains(&"name".to_owned()));
        let missing = decode::<BTreeMap<String, Wanted>>(&map(vec![("a", map(vec![("count", text("1", 2))]))])).expect_err("missing");
        assert_eq!((missing.code, missing.expected, missing.path.as_str()), ("missing-key", vec!["name".to_owned()], "a"));
        let span = decode::<BTreeMap<String, Vec<Span>>>(&map(vec![(
            "a",
            Node { pos: Pos { line: 4, column: 1 }, value: NodeValue::List(vec![text("5s", 5), text("soon", 6)]) },
        )]))
        .expect_err("not a length of time");
        assert_eq!((span.pos.line, span.path.as_str()), (6, "a[1]"));
    }

    #[test]
    fn enums_are_words_or_maps_of_one_key() {
        assert_eq!(decode::<SecretRef>(&map(vec![("env", text("NAME", 1))])), Ok(SecretRef::Env("NAME".into())));
        let fault: Injected = decode(&map(vec![("kill", map(vec![("region", text("east", 2))]))])).expect("a fault");
        assert_eq!(fault.target().region, RegionName::from("east"));
        let wrong = decode::<SecretRef>(&map(vec![("evn", text("NAME", 3))])).expect_err("unknown variant");
        assert_eq!((wrong.pos.line, wrong.code), (3, "unknown-value"));
        let bare = decode::<SecretRef>(&text("env", 4)).expect_err("needs a value");
        assert!(bare.message.contains("needs a value"), "{bare}");
    }

    #[test]
    fn nothing_behind_a_key_is_an_empty_map() {
        let nothing = Node { pos: Pos { line: 2, column: 3 }, value: NodeValue::Null };
        let missing = decode::<BTreeMap<String, Bucket>>(&map(vec![("east", nothing)])).expect_err("bucket is missing");
        assert_eq!((missing.code, missing.path.as_str()), ("missing-key", "east"));
    }
}
