//! Bytes to a [`Node`] tree in which every key and value knows its place and scalars are text as written.
//!
//! It stands on the events of `granit-parser` (the parser beneath `serde-saphyr`), since only they tell a
//! quoted scalar from a plain one and an anchor from its use. What makes YAML surprising or dangerous is
//! refused, each with a diagnostic of its own: anchors and aliases, tags, merge keys, duplicate keys,
//! several documents, keys that are not text (an unquoted `{{ x }}` is one), deep nesting, large files.

use super::diagnostic::Diagnostic;
use crate::model::node::{Key, Node, NodeValue, Pos};
use granit_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput, StructureStyle};
use sha2::{Digest, Sha256};
use std::{collections::HashMap, sync::Arc};

/// No file of the language is larger.
pub const MAX_BYTES: usize = 1 << 20;
const MAX_DEPTH: usize = 64;

/// An error after which nothing more can be read.
pub type Fatal = Box<Diagnostic>;

/// A file's name and text: what diagnostics quote.
#[derive(Clone, Debug)]
pub struct Source {
    pub file: String,
    pub text: Arc<str>,
    /// SHA-256 of the bytes, in hexadecimal.
    pub digest: String,
}

impl Source {
    /// Refuses what is too large or not UTF-8.
    pub fn new(file: &str, bytes: &[u8]) -> Result<Self, Fatal> {
        check_size(file, u64::try_from(bytes.len()).unwrap_or(u64::MAX))?;
        let text = std::str::from_utf8(bytes).map_err(|e| Box::new(not_utf8(file, bytes, e.valid_up_to())))?;
        Ok(Self { file: file.to_owned(), text: text.into(), digest: hex::encode(Sha256::digest(bytes)) })
    }
    /// An error at a place in this file.
    #[must_use]
    pub fn error(&self, pos: Pos, code: &'static str, message: impl Into<String>) -> Diagnostic {
        Diagnostic::error(&self.file, code, message).at(pos, &self.text)
    }
}

/// Refuses a file by its size alone, so that a reader need not load it first.
pub fn check_size(file: &str, bytes: u64) -> Result<(), Fatal> {
    if bytes <= MAX_BYTES as u64 {
        return Ok(());
    }
    let made = Diagnostic::error(file, "too-large", format!("the file has {bytes} bytes; at most {MAX_BYTES} (1 MiB) are read"));
    Err(Box::new(made.help("an estate, a runbook or a drill is a few kilobytes; is this the right file?")))
}

fn not_utf8(file: &str, bytes: &[u8], valid: usize) -> Diagnostic {
    let good = bytes.get(..valid).unwrap_or_default();
    let line = good.split(|byte| *byte == b'\n').count();
    let start = good.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let column = String::from_utf8_lossy(good.get(start..).unwrap_or_default()).chars().count() + 1;
    let wrong = bytes.get(valid).copied().unwrap_or_default();
    let text = String::from_utf8_lossy(bytes);
    Diagnostic::error(file, "not-utf8", format!("byte {valid} (0x{wrong:02x}) is not valid UTF-8"))
        .at(Pos { line: small(line), column: small(column) }, &text)
        .help("save the file as UTF-8, without special characters from another encoding")
}

fn small(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Reads one document. Errors that leave the tree whole (a key given twice) are collected; any other
/// ends the reading.
pub fn parse(source: &Source) -> (Option<Node>, Vec<Diagnostic>) {
    let options = granit_parser::options! { emit_anchor_events: true, emit_unresolved_aliases: true, emit_comments: false };
    let mut builder = Builder { parser: Parser::new_from_str_with_options(&source.text, options), source, found: Vec::new(), ahead: None };
    match builder.document() {
        Ok(node) => (Some(node), builder.found),
        Err(diagnostic) => {
            builder.found.push(*diagnostic);
            (None, builder.found)
        }
    }
}

struct Builder<'a> {
    parser: Parser<'a, StrInput<'a>>,
    source: &'a Source,
    found: Vec<Diagnostic>,
    ahead: Option<(Event<'a>, Span)>,
}

fn pos(span: &Span) -> Pos {
    Pos { line: small(span.start.line()), column: small(span.start.col() + 1) }
}

impl<'a> Builder<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), Fatal> {
        if let Some(event) = self.ahead.take() {
            return Ok(event);
        }
        let (event, span) = match self.parser.next_event() {
            Some(Ok(event)) => event,
            Some(Err(e)) => return Err(self.syntax(&e)),
            None => return Ok((Event::StreamEnd, Span::default())),
        };
        match &event {
            Event::Anchor(_, name) => Err(self.refuse(&span, "anchor", format!("anchors are not part of the language: `&{name}`"))),
            Event::Alias(_) | Event::UnresolvedAlias(_) => {
                Err(self.refuse(&span, "anchor", "aliases are not part of the language".to_owned()))
            }
            Event::Scalar(_, _, _, Some(tag)) | Event::SequenceStart(_, _, Some(tag)) | Event::MappingStart(_, _, Some(tag)) => {
                let message = format!("tags are not part of the language: `{}`", tag.original());
                let help = "leave it out: the key decides the type of its value";
                Err(Box::new(self.source.error(pos(&span), "tag", message).help(help)))
            }
            _ => Ok((event, span)),
        }
    }

    fn refuse(&self, span: &Span, code: &'static str, message: String) -> Fatal {
        Box::new(self.source.error(pos(span), code, message).help("write the value out where it is needed"))
    }

    fn syntax(&self, error: &ScanError) -> Fatal {
        let at = Pos { line: small(error.marker().line()), column: small(error.marker().col() + 1) };
        let made = self.source.error(at, "syntax", format!("this is not valid YAML: {}", error.info()));
        let line = made.line_text.clone().unwrap_or_default();
        let help = if line.contains("{{") {
            Some("quote a value that holds an expression: \"{{ ... }}\"")
        } else if line.contains('\t') {
            Some("YAML is indented with spaces, never with tabs")
        } else {
            None
        };
        Box::new(made.maybe_help(help.map(ToOwned::to_owned)))
    }

    fn document(&mut self) -> Result<Node, Fatal> {
        let mut root = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => break,
                Event::StreamStart | Event::DocumentEnd => {}
                Event::DocumentStart(..) if root.is_some() => {
                    let made = self.source.error(pos(&span), "several-documents", "a second document begins here");
                    return Err(Box::new(made.help("one file holds one document: move what follows to a file of its own")));
                }
                Event::DocumentStart(..) => {
                    let (event, span) = self.next()?;
                    root = Some(self.node(event, &span, 0)?);
                }
                _ => {}
            }
        }
        Ok(root.unwrap_or(Node { pos: Pos { line: 1, column: 1 }, value: NodeValue::Null }))
    }

    fn node(&mut self, event: Event<'a>, span: &Span, depth: usize) -> Result<Node, Fatal> {
        if depth > MAX_DEPTH {
            let made = self.source.error(pos(span), "too-deep", format!("nested more than {MAX_DEPTH} levels deep"));
            return Err(Box::new(made.help("nothing in the language is that deep; is a bracket missing?")));
        }
        let value = match event {
            Event::Scalar(text, style, ..) => scalar(&text, style),
            Event::SequenceStart(..) => self.list(depth)?,
            Event::MappingStart(style, ..) => self.map(style, span, depth)?,
            _ => NodeValue::Null,
        };
        Ok(Node { pos: pos(span), value })
    }

    fn list(&mut self, depth: usize) -> Result<NodeValue, Fatal> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd | Event::StreamEnd, _) => return Ok(NodeValue::List(items)),
                (event, span) => items.push(self.node(event, &span, depth + 1)?),
            }
        }
    }

    fn map(&mut self, style: StructureStyle, outer: &Span, depth: usize) -> Result<NodeValue, Fatal> {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        let mut seen: HashMap<String, Pos> = HashMap::new();
        loop {
            let (key, at) = match self.next()? {
                (Event::MappingEnd | Event::StreamEnd, _) => return Ok(NodeValue::Map(entries)),
                (Event::Scalar(text, key_style, ..), span) => {
                    if key_style == ScalarStyle::Plain && text == "<<" {
                        return Err(self.refuse(&span, "merge-key", "merge keys (`<<`) are not part of the language".to_owned()));
                    }
                    (text.into_owned(), pos(&span))
                }
                (_, span) => return Err(self.key_not_text(style, outer, &span)),
            };
            let (event, span) = self.next()?;
            let value = self.node(event, &span, depth + 1)?;
            if let Some(first) = seen.get(&key) {
                let message = format!("the key `{key}` is given twice; the first is at {}:{}", first.line, first.column);
                self.found.push(self.source.error(at, "duplicate-key", message).help("keep one of them"));
            } else {
                seen.insert(key.clone(), at);
                entries.push((Key { name: key, pos: at }, value));
            }
        }
    }

    /// `{{ x }}` without quotes is a map whose key is a map.
    fn key_not_text(&self, style: StructureStyle, outer: &Span, key: &Span) -> Fatal {
        if style == StructureStyle::Flow && key.start.index() == outer.start.index() + 1 {
            let made = self.source.error(pos(outer), "unquoted-expression", "YAML reads `{{ ... }}` without quotes as a map");
            return Box::new(made.help("quote it: \"{{ ... }}\""));
        }
        Box::new(self.source.error(pos(key), "key-not-text", "a key must be text").help("write `name: value`"))
    }
}

/// A scalar stays text, whatever it looks like. Nothing at all, `~` and `null` are nothing.
fn scalar(text: &str, style: ScalarStyle) -> NodeValue {
    let quoted = style != ScalarStyle::Plain;
    if !quoted && matches!(text, "" | "~" | "null") {
        return NodeValue::Null;
    }
    NodeValue::Text { text: text.to_owned(), quoted }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::node::decode;
    use proptest::prelude::*;

    fn read(text: &str) -> Node {
        let source = Source::new("test.yaml", text.as_bytes()).expect("it is UTF-8");
        let (node, found) = parse(&source);
        assert!(found.is_empty(), "{}", found[0]);
        node.expect("a tree")
    }

    #[test]
    fn scalars_keep_their_spelling_and_their_place() {
        let node = read("a: no\nb: [012, \"1.10\"]\nc:\n  d: yes # why\n");
        let NodeValue::Map(entries) = &node.value else { panic!("{node:?}") };
        assert_eq!(entries[0].1.value, NodeValue::Text { text: "no".into(), quoted: false });
        let NodeValue::List(items) = &entries[1].1.value else { panic!("{node:?}") };
        assert_eq!(items[0].value, NodeValue::Text { text: "012".into(), quoted: false });
        assert_eq!(items[1].value, NodeValue::Text { text: "1.10".into(), quoted: true });
        assert_eq!(items[1].pos, Pos { line: 2, column: 10 });
        let inner = node.get("c").and_then(|c| c.get("d")).expect("c.d");
        assert_eq!(inner.pos, Pos { line: 4, column: 6 });
        assert_eq!(entries[2].0.pos, Pos { line: 3, column: 1 });
    }

    #[test]
    fn an_empty_file_holds_nothing() {
        assert_eq!(read("# only a comment\n").value, NodeValue::Null);
        assert_eq!(read("").value, NodeValue::Null);
    }

    #[test]
    fn a_large_file_is_refused_from_its_size() {
        let bytes = vec![b'a'; 10 << 20];
        assert_eq!(Source::new("big.yaml", &bytes).expect_err("too large").code, "too-large");
    }

    #[test]
    fn an_expression_without_quotes_is_told_as_such_wherever_it_stands() {
        for text in ["a: {{ x }}\n", "a: {{ x.y }}-z\n", "- {{ x }}\n", "a: [{{ x }}]\n", "a: {{x}}\n"] {
            let source = Source::new("test.yaml", text.as_bytes()).expect("it is UTF-8");
            let (node, found) = parse(&source);
            assert!(node.is_none());
            assert_eq!(found.iter().map(|one| one.code).collect::<Vec<_>>(), ["unquoted-expression"], "{text}");
        }
        assert_eq!(read("a: at {{ x }}\n").get("a").map(|n| n.pos.column), Some(4), "inside plain text it needs no quotes");
    }

    #[test]
    fn lines_may_end_as_on_windows() {
        let node = read("a: 1\r\nb: x\r\n");
        assert_eq!(node.get("b").map(|n| (n.pos.line, n.pos.column)), Some((2, 4)));
        assert_eq!(node.get("b").map(|n| n.value.clone()), Some(NodeValue::Text { text: "x".into(), quoted: false }));
    }

    proptest! {
        #[test]
        fn a_plain_scalar_never_changes(text in "[A-Za-z0-9][A-Za-z0-9_.+-]{0,20}") {
            prop_assume!(text != "null");
            let node = read(&format!("key: {text}\n"));
            let value: std::collections::BTreeMap<String, String> = decode(&node).expect("text");
            prop_assert_eq!(&value["key"], &text);
        }

        #[test]
        fn a_quoted_scalar_never_changes(text in "\\PC{0,40}") {
            let node = read(&format!("key: {}\n", serde_json::to_string(&text).expect("json")));
            let value: std::collections::BTreeMap<String, String> = decode(&node).expect("text");
            prop_assert_eq!(&value["key"], &text);
        }

        #[test]
        fn no_input_makes_it_panic(text in "[-a-z:{}\\[\\],&*!|>'\"%@` \t\n#]{0,200}") {
            let source = Source::new("test.yaml", text.as_bytes()).expect("it is UTF-8");
            let (node, found) = parse(&source);
            prop_assert!(node.is_some() || !found.is_empty());
        }
    }
}
