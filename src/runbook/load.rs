//! A file to an estate, a runbook or a drill. All that is wrong with its form is collected: after each
//! error the offending entry is taken out of the tree and the rest read again.
//!
//! # Order of steps
//! A step without `needs` needs the item above it: the step, or every member of the `parallel:` group.
//! A member of a group without `needs` of its own needs what the group needs: the group's own `needs`,
//! or the item above the group. `needs: []` needs nothing.

use super::{
    diagnostic::{Diagnostic, suggest},
    parse::{Source, parse},
};
use crate::model::{
    drill::Drill,
    estate::Estate,
    ids::{RunbookName, StepId},
    node::{DecodeError, Key, Node, NodeValue, Pos, decode},
    runbook::{InputSpec, Mode, OnFailure, Retry, Runbook, Step, UndoPolicy, Waiver},
    time::Span,
};
use serde::{
    Deserialize,
    de::{DeserializeOwned, IgnoredAny},
};
use std::collections::BTreeMap;

/// What a file is, by its top-level keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Estate,
    Runbook,
    Drill,
}

#[derive(Clone, Debug)]
pub struct LoadedEstate {
    pub source: Source,
    pub estate: Estate,
    /// What does not keep it from being used.
    pub warnings: Found,
}

/// A runbook that could be read. What is wrong with its parts is kept for [`super::lint::check_runbook`],
/// so that one look shows all of it.
#[derive(Clone, Debug)]
pub struct LoadedRunbook {
    pub source: Source,
    pub runbook: Runbook,
    pub(super) root: Node,
    /// One for each step.
    pub(super) nodes: Vec<Node>,
    pub(super) diagnostics: Vec<Diagnostic>,
}

/// A drill that could be read; kept like a runbook.
#[derive(Clone, Debug)]
pub struct LoadedDrill {
    pub source: Source,
    pub drill: Drill,
    pub(super) root: Node,
}

#[derive(Clone, Debug)]
pub enum Loaded {
    Estate(LoadedEstate),
    Runbook(LoadedRunbook),
    Drill(Box<LoadedDrill>),
}

type Found = Vec<Diagnostic>;

/// Reads a file as what its top-level keys say it is.
pub fn load(file: &str, bytes: &[u8]) -> Result<Loaded, Found> {
    let (source, root, found) = tree(file, bytes)?;
    if root.value == NodeValue::Null {
        // Of three kinds none; most likely it was cut off.
        let made = source.error(root.pos, "empty", "the file holds nothing");
        return Err(vec![made.help("a runbook begins with `runbook: NAME`, a drill with `drill: NAME`, an estate with what it protects")]);
    }
    match kind_of(&root) {
        Kind::Estate => estate(source, &root, found).map(Loaded::Estate),
        Kind::Runbook => runbook(source, root, found).map(Loaded::Runbook),
        Kind::Drill => drill(source, root, found).map(|drill| Loaded::Drill(Box::new(drill))),
    }
}

pub fn load_estate(file: &str, bytes: &[u8]) -> Result<LoadedEstate, Found> {
    let (source, root, found) = tree(file, bytes)?;
    expect(&source, &root, Kind::Estate)?;
    estate(source, &root, found)
}

pub fn load_runbook(file: &str, bytes: &[u8]) -> Result<LoadedRunbook, Found> {
    let (source, root, found) = tree(file, bytes)?;
    expect(&source, &root, Kind::Runbook)?;
    runbook(source, root, found)
}

pub fn load_drill(file: &str, bytes: &[u8]) -> Result<LoadedDrill, Found> {
    let (source, root, found) = tree(file, bytes)?;
    expect(&source, &root, Kind::Drill)?;
    drill(source, root, found)
}

fn tree(file: &str, bytes: &[u8]) -> Result<(Source, Node, Found), Found> {
    let source = Source::new(file, bytes).map_err(|e| vec![*e])?;
    let (root, found) = parse(&source);
    match root {
        Some(root) if matches!(root.value, NodeValue::Map(_) | NodeValue::Null) => Ok((source, root, found)),
        Some(root) => {
            let made = source.error(root.pos, "wrong-type", "a file of Muster's is a map of keys and values");
            Err(found.into_iter().chain([made]).collect())
        }
        None => Err(found),
    }
}

/// What the top-level keys say the file is: `drill:` comes first, since a drill names its runbook by
/// the key `runbook:`.
fn kind_of(root: &Node) -> Kind {
    // A drill whose own key is missing or misspelled is better told so than called a runbook.
    let like_a_drill = || root.get("kind").is_some() && root.get("steps").is_none();
    if root.get("drill").is_some() || like_a_drill() {
        Kind::Drill
    } else if root.get("runbook").is_some() || root.get("steps").is_some() {
        Kind::Runbook
    } else {
        Kind::Estate
    }
}

fn expect(source: &Source, root: &Node, wanted: Kind) -> Result<(), Found> {
    let kind = kind_of(root);
    if kind == wanted {
        return Ok(());
    }
    let word = |kind| match kind {
        Kind::Estate => "an estate",
        Kind::Runbook => "a runbook",
        Kind::Drill => "a drill",
    };
    let made = source.error(root.pos, "wrong-kind", format!("this file is {}; {} was wanted here", word(kind), word(wanted)));
    let help = "a runbook has the top-level keys `runbook` and `steps`, a drill has `drill`, an estate neither";
    Err(vec![made.help(help)])
}

/// A form error as a diagnostic, with the nearest valid name.
pub(super) fn decode_diagnostic(source: &Source, error: &DecodeError) -> Diagnostic {
    let place = if error.path.is_empty() { String::new() } else { format!(" (in `{}`)", error.path) };
    let made = source.error(error.pos, error.code, format!("{}{place}", error.message));
    match &error.found {
        Some(found) => made.maybe_help(suggest(found, error.expected.iter().map(String::as_str))),
        None if error.code == "missing-key" => {
            let key = error.expected.first().map_or("", String::as_str);
            made.help(format!("add `{key}: ...` to this map"))
        }
        None => made,
    }
}

/// Reads a value as far as it can be read, and tells all that had to be left out.
pub(super) fn decode_all<T: DeserializeOwned>(source: &Source, node: &Node, found: &mut Found) -> Option<T> {
    const MOST: usize = 50;
    let mut tree = node.clone();
    let mut removed: Vec<(Pos, String)> = Vec::new();
    for _ in 0..MOST {
        let error = match decode::<T>(&tree) {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        // What is wrong only because something was just taken out is no second error.
        let robbed = removed.iter().any(|(parent, name)| {
            *parent == error.pos && (error.code == "wrong-type" || (error.code == "missing-key" && error.expected.contains(name)))
        });
        let made = decode_diagnostic(source, &error);
        if !robbed && !found.contains(&made) {
            found.push(made);
        }
        removed.push(remove(&mut tree, error.pos, error.code == "missing-key")?);
    }
    None
}

/// Takes what stands at a place out of its parent: the innermost entry or item, or the `whole` map that
/// begins there (a map in block form begins where its first key does). Gives the parent's place and the
/// entry's name.
fn remove(node: &mut Node, at: Pos, whole: bool) -> Option<(Pos, String)> {
    let parent = node.pos;
    let is_map = |child: &Node| child.pos == at && matches!(child.value, NodeValue::Map(_) | NodeValue::Null);
    match &mut node.value {
        NodeValue::Map(entries) => {
            let outer = entries.iter().position(|(_, child)| whole && is_map(child));
            if outer.is_none()
                && let Some(done) = entries.iter_mut().find_map(|(_, child)| remove(child, at, whole))
            {
                return Some(done);
            }
            let index = outer.or_else(|| entries.iter().position(|(key, child)| !whole && (key.pos == at || child.pos == at)))?;
            let (key, _) = entries.remove(index);
            Some((parent, key.name))
        }
        NodeValue::List(items) => {
            let outer = items.iter().position(|item| whole && is_map(item));
            if outer.is_none()
                && let Some(done) = items.iter_mut().find_map(|item| remove(item, at, whole))
            {
                return Some(done);
            }
            let index = outer.or_else(|| items.iter().position(|item| item.pos == at))?;
            items.remove(index);
            Some((parent, String::new()))
        }
        _ => None,
    }
}

fn estate(source: Source, root: &Node, mut found: Found) -> Result<LoadedEstate, Found> {
    let estate: Option<Estate> = decode_all(&source, root, &mut found);
    if let Some(estate) = &estate {
        super::lint_estate::check(&source, root, estate, &mut found);
    }
    found.sort_by_key(|one| (one.pos.line, one.pos.column));
    match estate {
        Some(estate) if !found.iter().any(Diagnostic::is_error) => Ok(LoadedEstate { source, estate, warnings: found }),
        _ => Err(found),
    }
}

fn drill(source: Source, root: Node, mut found: Found) -> Result<LoadedDrill, Found> {
    let drill: Option<Drill> = decode_all(&source, &root, &mut found);
    found.sort_by_key(|one| (one.pos.line, one.pos.column));
    match drill {
        Some(drill) if found.is_empty() => Ok(LoadedDrill { source, drill, root }),
        _ => Err(found),
    }
}

/// The runbook's keys; the steps are read one by one, with their places.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    #[serde(default)]
    runbook: Option<RunbookName>,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    mode: Option<Mode>,
    #[serde(default)]
    waive: Vec<Waiver>,
    #[serde(default)]
    inputs: BTreeMap<String, InputSpec>,
    #[serde(default, rename = "steps")]
    _steps: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStep {
    id: StepId,
    uses: String,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    needs: Option<Vec<StepId>>,
    #[serde(default, rename = "with")]
    _with: IgnoredAny,
    #[serde(default)]
    when: Option<String>,
    #[serde(default)]
    retry: Retry,
    #[serde(default)]
    timeout: Option<Span>,
    #[serde(default)]
    on_failure: Option<OnFailure>,
    #[serde(default)]
    undo: Option<UndoPolicy>,
    #[serde(default, rename = "approve")]
    _approve: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGroup {
    #[serde(rename = "parallel")]
    _parallel: IgnoredAny,
    #[serde(default)]
    needs: Option<Vec<StepId>>,
}

fn runbook(source: Source, root: Node, mut found: Found) -> Result<LoadedRunbook, Found> {
    let Some(head) = decode_all::<Head>(&source, &root, &mut found) else { return Err(found) };
    let name = if let Some(name) = head.runbook {
        name
    } else {
        found.push(source.error(root.pos, "missing-key", "the key `runbook` is missing").help("begin with `runbook: NAME`"));
        RunbookName::from("")
    };
    let mut reader = Reader { source: &source, found, steps: Vec::new(), nodes: Vec::new() };
    match root.get("steps").map(|steps| (&steps.value, steps.pos)) {
        Some((NodeValue::List(items), _)) if !items.is_empty() => reader.items(items),
        Some((_, pos)) => reader.error(pos, "wrong-type", "`steps` must be a list of one step or more"),
        None => reader.error(root.pos, "missing-key", "the key `steps` is missing"),
    }
    let Reader { found, steps, nodes, .. } = reader;
    let Head { description, mode, waive, inputs, .. } = head;
    let runbook = Runbook { runbook: name, description, mode, waive, inputs, steps };
    Ok(LoadedRunbook { source, runbook, root, nodes, diagnostics: found })
}

struct Reader<'a> {
    source: &'a Source,
    found: Found,
    steps: Vec<Step>,
    nodes: Vec<Node>,
}

impl Reader<'_> {
    fn error(&mut self, pos: Pos, code: &'static str, message: &str) {
        self.found.push(self.source.error(pos, code, message));
    }

    fn items(&mut self, items: &[Node]) {
        let mut above: Vec<StepId> = Vec::new();
        for item in items {
            if item.get("parallel").is_some() {
                above = self.group(item, &above);
            } else if let Some(id) = self.step(item, &above) {
                above = vec![id];
            }
        }
    }

    fn group(&mut self, item: &Node, above: &[StepId]) -> Vec<StepId> {
        let own = decode_all::<RawGroup>(self.source, item, &mut self.found).and_then(|group| group.needs);
        let needs = own.unwrap_or_else(|| above.to_vec());
        let Some(NodeValue::List(members)) = item.get("parallel").map(|members| &members.value) else {
            self.error(item.pos, "wrong-type", "`parallel` must be a list of steps");
            return above.to_vec();
        };
        let mut ids = Vec::new();
        for member in members {
            if member.get("parallel").is_some() {
                self.error(member.pos, "nested-parallel", "a `parallel` group holds steps, not groups; use `needs` for other shapes");
            } else {
                ids.extend(self.step(member, &needs));
            }
        }
        ids
    }

    fn step(&mut self, item: &Node, above: &[StepId]) -> Option<StepId> {
        let raw = decode_all::<RawStep>(self.source, item, &mut self.found)?;
        let id = raw.id.clone();
        let with = match item.get("with") {
            Some(with) if with.value != NodeValue::Null => with.clone(),
            _ => Node { pos: item.pos, value: NodeValue::Map(Vec::new()) },
        };
        self.steps.push(Step {
            id: raw.id,
            uses: raw.uses,
            description: raw.description,
            needs: raw.needs.unwrap_or_else(|| above.to_vec()),
            with,
            when: raw.when,
            retry: raw.retry,
            timeout: raw.timeout,
            on_failure: raw.on_failure,
            undo: raw.undo,
            approve: item.get("approve").filter(|node| node.value != NodeValue::Null).cloned(),
            pos: item.pos,
        });
        self.nodes.push(item.clone());
        Some(id)
    }
}

/// The place of a map's entry's value; the map's own if it has none of that name.
pub(super) fn place(node: &Node, name: &str) -> Pos {
    node.get(name).map_or(node.pos, |value| value.pos)
}

/// The key of a map's entry.
pub(super) fn key<'a>(node: &'a Node, name: &str) -> Option<&'a Key> {
    match &node.value {
        NodeValue::Map(entries) => entries.iter().find(|(key, _)| key.name == name).map(|(key, _)| key),
        _ => None,
    }
}
