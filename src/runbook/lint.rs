//! What is wrong with a runbook or a drill that could be read: names that lead nowhere, values of the
//! wrong type, steps in a circle, expressions over what will not be there. All of it is found before
//! anything runs.

use super::{
    diagnostic::{Diagnostic, suggest},
    expr::{self, ExprError, ROOTS, has_expression},
    lint_estate::item_place,
    lint_schema::{SchemaCheck, estate_names},
    load::{LoadedDrill, LoadedRunbook, decode_all, place},
};
use crate::model::{
    catalogue::Catalogue,
    drill::DrillKind,
    effect::Effect,
    estate::Estate,
    ids::StepId,
    node::{Node, NodeValue, Pos},
    plan::{Approval, WHEEL_TAKE},
    runbook::{InputSpec, InputType, Mode, Step, UndoPolicy},
    time::Span,
};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The step kind that is no action.
pub const APPROVAL: &str = "approval";

type Found = Vec<Diagnostic>;

/// Everything that is wrong with a runbook, its form included. Without an estate, names of resources
/// are taken on trust.
pub fn check_runbook(loaded: &LoadedRunbook, estate: Option<&Estate>, catalogue: &dyn Catalogue) -> Found {
    let mut lint = Lint { loaded, estate, catalogue, found: loaded.diagnostics.clone(), upstream: BTreeMap::new() };
    lint.ids();
    lint.inputs();
    lint.needs();
    // Two steps of one name would look like a circle.
    if !lint.found.iter().any(|one| one.code == "duplicate-id") {
        lint.cycles();
    }
    for (step, node) in loaded.runbook.steps.iter().zip(&loaded.nodes) {
        lint.action(step, node);
        lint.policy(step, node);
        lint.expressions(step, node);
    }
    lint.wheel();
    let mut found = lint.found;
    found.sort_by_key(|one| (one.pos.line, one.pos.column));
    found
}

struct Lint<'a> {
    loaded: &'a LoadedRunbook,
    estate: Option<&'a Estate>,
    catalogue: &'a dyn Catalogue,
    found: Found,
    /// For each step all that certainly comes before it; empty when the steps form a circle.
    upstream: BTreeMap<StepId, BTreeSet<StepId>>,
}

impl Lint<'_> {
    fn error(&mut self, pos: Pos, code: &'static str, message: String, help: Option<String>) {
        self.found.push(self.loaded.source.error(pos, code, message).maybe_help(help));
    }

    /// Two operators without a common journal are kept apart only by a lock that lies in the region itself.
    fn wheel(&mut self) {
        let loaded = self.loaded;
        let moves = matches!(loaded.runbook.mode, Some(Mode::Failover | Mode::Switchover | Mode::Failback));
        let buckets = self.estate.is_some_and(|estate| !estate.buckets.is_empty());
        let taken = loaded.runbook.steps.iter().any(|step| step.uses == WHEEL_TAKE);
        let changes = |step: &Step| step.uses != APPROVAL && self.catalogue.effect(&step.uses, &step.with) != Effect::Read;
        let mut changing = loaded.runbook.steps.iter().filter(|step| changes(step));
        if let Some(first) = changing.next().filter(|_| moves && buckets && !taken) {
            let message =
                format!("nothing keeps two operators on two machines from running this at once: `{}` is not preceded by a wheel", first.id);
            let help = "begin with `uses: wheel.take` in the region that takes over, and end with `wheel.release`";
            let made = self.loaded.source.error(first.pos, "no-wheel", message).warning();
            self.found.push(made.help(help));
        }
    }

    fn ids(&mut self) {
        let mut seen: BTreeMap<&str, Pos> = BTreeMap::new();
        let loaded = self.loaded;
        for (step, node) in loaded.runbook.steps.iter().zip(&loaded.nodes) {
            let (id, pos) = (step.id.as_str(), place(node, "id"));
            if !is_name(id) {
                let help = "begin with a small letter; go on with small letters, digits and `_`, so that expressions can say `steps.ID`";
                self.error(pos, "bad-id", format!("`{id}` cannot be the id of a step"), Some(help.to_owned()));
            }
            match seen.get(id) {
                Some(first) => {
                    let message = format!("the step id `{id}` is used twice; the first is at {}:{}", first.line, first.column);
                    self.error(pos, "duplicate-id", message, Some("give each step an id of its own".to_owned()));
                }
                None => {
                    seen.insert(id, pos);
                }
            }
        }
    }

    fn inputs(&mut self) {
        let loaded = self.loaded;
        let nodes = loaded.root.get("inputs");
        for (name, spec) in &loaded.runbook.inputs {
            let node = nodes.and_then(|all| all.get(name));
            if !is_name(name) {
                let pos = nodes.and_then(|all| super::load::key(all, name)).map_or(loaded.root.pos, |key| key.pos);
                let help = "begin with a small letter; go on with small letters, digits and `_`";
                self.error(pos, "bad-id", format!("`{name}` cannot be the name of an input"), Some(help.to_owned()));
            }
            if let Some(default) = &spec.default
                && let Err((message, help)) = typed_input(name, spec, default, self.estate)
            {
                let pos = node.map_or(loaded.root.pos, |node| place(node, "default"));
                self.error(pos, "wrong-input", message, help);
            }
        }
    }

    fn needs(&mut self) {
        let loaded = self.loaded;
        let ids: Vec<&str> = loaded.runbook.steps.iter().map(|step| step.id.as_str()).collect();
        for (step, node) in loaded.runbook.steps.iter().zip(&loaded.nodes) {
            for (index, need) in step.needs.iter().enumerate().filter(|(_, need)| !ids.contains(&need.as_str())) {
                let pos = item_place(node.get("needs"), index).unwrap_or(step.pos);
                let help = suggest(need.as_str(), ids.iter().copied().filter(|id| *id != step.id.as_str()));
                let message = format!("step `{}` needs `{need}`, but there is no such step", step.id);
                self.error(pos, "dangling-reference", message, help);
            }
        }
    }

    /// Finds a circle and names it in full; without one, works out what comes before what.
    fn cycles(&mut self) {
        let loaded = self.loaded;
        let needs: BTreeMap<&StepId, &[StepId]> = loaded.runbook.steps.iter().map(|step| (&step.id, step.needs.as_slice())).collect();
        if let Some(cycle) = circle(&loaded.runbook.steps, &needs) {
            let first = cycle.first().copied();
            let at = loaded.runbook.steps.iter().position(|step| Some(&step.id) == first);
            let pos = at.and_then(|at| loaded.nodes.get(at)).map_or(loaded.root.pos, |node| place(node, "needs"));
            let names: Vec<&str> = cycle.iter().map(|id| id.as_str()).collect();
            let message = format!("the steps need each other in a circle: {}", names.join(" -> "));
            self.error(pos, "cycle", message, Some("take one of these `needs` away".to_owned()));
            return;
        }
        for step in &loaded.runbook.steps {
            let mut before = BTreeSet::new();
            let mut open: Vec<&StepId> = step.needs.iter().collect();
            while let Some(id) = open.pop() {
                if before.insert(id.clone()) {
                    open.extend(needs.get(id).into_iter().flat_map(|more| more.iter()));
                }
            }
            self.upstream.insert(step.id.clone(), before);
        }
    }

    fn action(&mut self, step: &Step, node: &Node) {
        if step.uses == APPROVAL {
            self.approval(&step.with, place(node, "with"));
            if step.approve.is_some() {
                let help = Some("take it away: the step is itself an approval".to_owned());
                self.error(place(node, "approve"), "unknown-key", "an approval has no `approve` of its own".to_owned(), help);
            }
            return;
        }
        if let Some(approve) = &step.approve {
            self.approval(approve, approve.pos);
        }
        let Some(info) = self.catalogue.info(&step.uses) else {
            let names = self.catalogue.names();
            let help = suggest(&step.uses, names.into_iter().chain([APPROVAL]));
            self.error(place(node, "uses"), "unknown-action", format!("there is no action `{}`", step.uses), help);
            return;
        };
        let check = SchemaCheck { source: &self.loaded.source, root: &info.input, estate: self.estate };
        self.found.extend(check.check(&step.with));
        if let Some(asked) = step.undo
            && strength(asked) > strength(info.undo)
        {
            let message = format!("`{}` cannot be undone as `{}`: the most it offers is `{}`", step.uses, word(asked), word(info.undo));
            self.error(place(node, "undo"), "undo-too-strong", message, Some("a step may only ask for less".to_owned()));
        }
    }

    /// What an approval asks for, as far as it is known before a run: the facts' values come later.
    fn approval(&mut self, with: &Node, pos: Pos) {
        let plain = super::lint_people::without_values(with);
        if holds_expression(&plain) {
            return;
        }
        let Some(approval) = decode_all::<Approval>(&self.loaded.source, &plain, &mut self.found) else { return };
        super::lint_people::check_approval(&self.loaded.source, with, pos, &approval, self.estate, &mut self.found);
    }

    fn policy(&mut self, step: &Step, node: &Node) {
        if !(1..=100).contains(&step.retry.attempts) {
            let pos = node.get("retry").map_or(step.pos, |retry| place(retry, "attempts"));
            self.error(pos, "wrong-type", format!("`attempts` is {}; it must be from 1 to 100", step.retry.attempts), None);
        }
        if step.timeout == Some(Span::default()) {
            self.error(place(node, "timeout"), "wrong-type", "a time-out of zero leaves no time for the step".to_owned(), None);
        }
    }

    fn expressions(&mut self, step: &Step, node: &Node) {
        if let Some(when) = &step.when {
            self.variables(step, place(node, "when"), expr::condition_variables(when));
        }
        let mut texts = Vec::new();
        collect(&step.with, &mut texts);
        if let Some(approve) = &step.approve {
            collect(approve, &mut texts);
        }
        for (pos, text) in texts {
            self.variables(step, pos, expr::variables(text));
        }
    }

    fn variables(&mut self, step: &Step, pos: Pos, paths: Result<BTreeSet<String>, ExprError>) {
        match paths {
            Err(ExprError { expr, message, .. }) => {
                let message = format!("the expression `{expr}` cannot be read: {message}");
                self.error(pos, "bad-expression", message, None);
            }
            Ok(paths) => paths.iter().for_each(|path| self.variable(step, pos, path)),
        }
    }

    fn variable(&mut self, step: &Step, pos: Pos, path: &str) {
        let mut parts = path.split('.');
        let (root, name) = (parts.next().unwrap_or_default(), parts.next());
        let rest: Vec<&str> = parts.collect();
        let loaded = self.loaded;
        match (root, name) {
            ("inputs", Some(name)) if loaded.runbook.inputs.contains_key(name) => {}
            ("inputs", Some(name)) => {
                let help = suggest(name, loaded.runbook.inputs.keys().map(String::as_str));
                let help = help.or_else(|| Some(format!("declare it: `inputs: {{ {name}: {{ type: ... }} }}`")));
                self.error(pos, "undefined-expression", format!("the runbook has no input `{name}`"), help);
            }
            ("steps", Some(name)) => self.step_field(step, pos, name, &rest),
            ("run", Some("id")) => {}
            ("run", Some(name)) => {
                self.error(pos, "undefined-expression", format!("a run has no `{name}` here"), suggest(name, ["id"]));
            }
            ("inputs" | "steps" | "run", None) => {
                let help = format!("write `{root}.NAME`");
                self.error(pos, "undefined-expression", format!("`{root}` alone cannot be checked"), Some(help));
            }
            _ => {
                let help = suggest(root, ROOTS);
                self.error(pos, "undefined-expression", format!("`{root}` is undefined in expressions"), help);
            }
        }
    }

    fn step_field(&mut self, step: &Step, pos: Pos, name: &str, fields: &[&str]) {
        let loaded = self.loaded;
        let Some(other) = loaded.runbook.steps.iter().find(|other| other.id.as_str() == name) else {
            let ids = loaded.runbook.steps.iter().map(|other| other.id.as_str());
            let help = suggest(name, ids.filter(|id| *id != step.id.as_str()));
            self.error(pos, "undefined-expression", format!("there is no step `{name}`"), help);
            return;
        };
        if self.upstream.get(&step.id).is_some_and(|before| !before.contains(&other.id)) {
            let message = format!("step `{}` uses what `{name}` gives, but does not wait for it", step.id);
            self.error(pos, "not-upstream", message, Some(format!("add `{name}` to its `needs`")));
        }
        let Some(info) = self.catalogue.info(&other.uses) else { return };
        let mut schema = &info.output;
        for field in fields {
            let Some(properties) = properties(schema, &info.output) else { return };
            if let Some(inner) = properties.get(*field) {
                schema = inner
            } else {
                let help = suggest(field, properties.keys().map(String::as_str));
                let message = format!("`{}` gives no `{field}` (step `{name}`)", other.uses);
                self.error(pos, "undefined-expression", message, help);
                return;
            }
        }
    }
}

/// The named properties of a schema; `None` where anything may stand.
fn properties<'v>(schema: &'v Value, root: &'v Value) -> Option<&'v serde_json::Map<String, Value>> {
    let mut schema = schema;
    for _ in 0..16 {
        let branches = schema.get("anyOf").and_then(Value::as_array);
        let solid = branches.and_then(|all| all.iter().find(|one| one.get("type").and_then(Value::as_str) != Some("null")));
        match (schema.get("$ref").and_then(Value::as_str), solid) {
            (Some(reference), _) => schema = root.pointer(reference.strip_prefix('#')?)?,
            (None, Some(branch)) => schema = branch,
            (None, None) => break,
        }
    }
    let open = matches!(schema.get("additionalProperties"), Some(Value::Object(_) | Value::Bool(true)));
    if open { None } else { schema.get("properties").and_then(Value::as_object) }
}

fn holds_expression(node: &Node) -> bool {
    let mut texts = Vec::new();
    collect(node, &mut texts);
    !texts.is_empty()
}

/// Every text of a tree that holds an expression.
fn collect<'n>(node: &'n Node, out: &mut Vec<(Pos, &'n str)>) {
    match &node.value {
        NodeValue::Text { text, .. } if has_expression(text) => out.push((node.pos, text)),
        NodeValue::List(items) => items.iter().for_each(|item| collect(item, out)),
        NodeValue::Map(entries) => entries.iter().for_each(|(_, item)| collect(item, out)),
        _ => {}
    }
}

/// A circle of needs, from a step back to itself.
fn circle<'r>(steps: &'r [Step], needs: &BTreeMap<&'r StepId, &'r [StepId]>) -> Option<Vec<&'r StepId>> {
    let mut done: BTreeSet<&StepId> = BTreeSet::new();
    for step in steps {
        // The way from the start to here, each with how many of its needs have been looked at.
        let mut way: Vec<(&StepId, usize)> = vec![(&step.id, 0)];
        while let Some((id, at)) = way.last_mut() {
            let next = needs.get(*id).and_then(|all| all.get(*at));
            *at += 1;
            match next {
                None => {
                    done.insert(*id);
                    way.pop();
                }
                Some(next) if done.contains(next) => {}
                Some(next) => {
                    if let Some(start) = way.iter().position(|(id, _)| *id == next) {
                        return Some(way.iter().skip(start).map(|(id, _)| *id).chain([next]).collect());
                    }
                    way.push((next, 0));
                }
            }
        }
    }
    None
}

/// Names that expressions can say.
fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase()) && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

fn strength(policy: UndoPolicy) -> u8 {
    match policy {
        UndoPolicy::None => 0,
        UndoPolicy::Manual => 1,
        UndoPolicy::Automatic => 2,
    }
}

fn word(policy: UndoPolicy) -> &'static str {
    match policy {
        UndoPolicy::None => "none",
        UndoPolicy::Manual => "manual",
        UndoPolicy::Automatic => "automatic",
    }
}

type Complaint = (String, Option<String>);

/// An input's text as the type that it was declared with.
pub(super) fn typed_input(name: &str, spec: &InputSpec, text: &str, estate: Option<&Estate>) -> Result<Value, Complaint> {
    let wrong = |expected: &str| Err((format!("the input `{name}` must be {expected}; `{text}` is not"), None));
    if !spec.allow.is_empty() && !spec.allow.iter().any(|allowed| allowed == text) {
        let message = format!("the input `{name}` may not be `{text}`");
        return Err((message, suggest(text, spec.allow.iter().map(String::as_str))));
    }
    let kind = match spec.kind {
        InputType::String => return Ok(text.into()),
        InputType::Integer => return text.parse::<i64>().map(Value::from).or_else(|_| wrong("a whole number")),
        InputType::Number => {
            let number = text.parse::<f64>().ok().and_then(serde_json::Number::from_f64);
            return number.map(Value::Number).map_or_else(|| wrong("a number"), Ok);
        }
        InputType::Boolean => return text.parse::<bool>().map(Value::from).or_else(|_| wrong("`true` or `false`")),
        InputType::Duration => {
            return text.parse::<Span>().map(|_| text.into()).map_err(|why| (format!("the input `{name}`: {why}"), None));
        }
        InputType::Region => "RegionName",
        InputType::Service => "ServiceName",
        InputType::Database => "DatabaseName",
        InputType::Bucket => "BucketName",
        InputType::Endpoint => "EndpointName",
    };
    if let Some((what, valid)) = estate.and_then(|estate| estate_names(estate, kind))
        && !valid.contains(&text)
    {
        let message = format!("the input `{name}` names the {what} `{text}`, which the estate does not have");
        return Err((message, suggest(text, valid)));
    }
    Ok(text.into())
}

/// One finding about given inputs: the input it concerns, a word for its kind, and the words for people.
pub(super) struct InputFault {
    pub name: String,
    pub code: &'static str,
    pub message: String,
    pub help: Option<String>,
}

/// The inputs of a run, typed, with the defaults filled in.
pub(super) fn typed_inputs(
    loaded: &LoadedRunbook,
    given: &BTreeMap<String, String>,
    estate: Option<&Estate>,
) -> (BTreeMap<String, Value>, Vec<InputFault>) {
    let (mut typed, mut faults) = (BTreeMap::new(), Vec::new());
    let runbook = &loaded.runbook;
    for name in given.keys().filter(|name| !runbook.inputs.contains_key(*name)) {
        let message = format!("the runbook `{}` has no input `{name}`", runbook.runbook);
        let help = suggest(name, runbook.inputs.keys().map(String::as_str));
        faults.push(InputFault { name: name.clone(), code: "unknown-input", message, help });
    }
    for (name, spec) in &runbook.inputs {
        let Some(text) = given.get(name).or(spec.default.as_ref()) else {
            let message = format!("the runbook `{}` needs the input `{name}`", runbook.runbook);
            let help = Some(format!("give it: `{name}` is {}", spec.description.as_deref().unwrap_or("required")));
            faults.push(InputFault { name: name.clone(), code: "missing-input", message, help });
            continue;
        };
        match typed_input(name, spec, text, estate) {
            Ok(value) => {
                typed.insert(name.clone(), value);
            }
            Err((message, help)) => faults.push(InputFault { name: name.clone(), code: "wrong-input", message, help }),
        }
    }
    (typed, faults)
}

/// Everything that is wrong with a drill. A runbook that could not be found or read is told of elsewhere.
pub fn check_drill(loaded: &LoadedDrill, estate: &Estate, runbook: Option<&LoadedRunbook>, then: Option<&LoadedRunbook>) -> Found {
    let mut lint = DrillLint { loaded, estate, found: Vec::new() };
    let drill = &loaded.drill;
    if let Some(runbook) = runbook {
        lint.given(runbook, &drill.inputs, loaded.root.get("inputs"), place(&loaded.root, "runbook"));
    }
    if let (Some(then), Some(book), Some(node)) = (&drill.then, then, loaded.root.get("then")) {
        lint.given(book, &then.inputs, node.get("inputs"), place(node, "runbook"));
    }
    lint.probes();
    lint.measured();
    lint.scenario();
    lint.restore();
    lint.kind();
    let mut found = lint.found;
    found.sort_by_key(|one| (one.pos.line, one.pos.column));
    found
}

struct DrillLint<'a> {
    loaded: &'a LoadedDrill,
    estate: &'a Estate,
    found: Found,
}

impl DrillLint<'_> {
    fn given(&mut self, runbook: &LoadedRunbook, given: &BTreeMap<String, String>, node: Option<&Node>, otherwise: Pos) {
        for fault in typed_inputs(runbook, given, Some(self.estate)).1 {
            let pos = match node {
                Some(node) if fault.code == "unknown-input" => super::load::key(node, &fault.name).map_or(node.pos, |key| key.pos),
                Some(node) => place(node, &fault.name),
                None => otherwise,
            };
            self.found.push(self.loaded.source.error(pos, fault.code, fault.message).maybe_help(fault.help));
        }
    }

    fn named(&mut self, kind: &str, name: &str, pos: Pos) {
        if let Some((what, valid)) = estate_names(self.estate, kind)
            && !valid.contains(&name)
        {
            let made = self.loaded.source.error(pos, "dangling-reference", format!("the estate has no {what} `{name}`"));
            self.found.push(made.maybe_help(suggest(name, valid)));
        }
    }

    fn probes(&mut self) {
        let loaded = self.loaded;
        let Some(probes) = loaded.root.get("probes") else { return };
        if let (Some(http), Some(node)) = (&loaded.drill.probes.http, probes.get("http")) {
            self.named("EndpointName", http.endpoint.as_str(), place(node, "endpoint"));
        }
        if let (Some(ledger), Some(node)) = (&loaded.drill.probes.ledger, probes.get("ledger")) {
            self.named("DatabaseName", ledger.database.as_str(), place(node, "database"));
        }
    }

    /// A pass of such a drill says that its runbook ran, and nothing of recovery.
    fn measured(&mut self) {
        let drill = &self.loaded.drill;
        let moves = matches!(drill.kind, DrillKind::Failover | DrillKind::Switchover);
        if moves && drill.probes.http.is_none() && drill.probes.ledger.is_none() {
            let message = "nothing measures this drill: its recovery time and data loss will be null, and without objectives it passes when its runbook succeeds";
            let made = self.loaded.source.error(place(&self.loaded.root, "kind"), "not-measured", message).warning();
            self.found.push(made.help("add `probes: { http: …, ledger: … }`, as drills/region-loss.yaml has them"));
        }
    }

    /// A restore loses nothing, so nobody watches for a loss.
    fn restore(&mut self) {
        let loaded = self.loaded;
        if loaded.drill.kind != DrillKind::Restore {
            return;
        }
        for word in ["scenario", "probes", "detect"] {
            if let Some(key) = super::load::key(&loaded.root, word) {
                let message =
                    format!("a drill of kind `restore` has no `{word}`: nothing is lost in it, and its figures come from its run's record");
                self.found.push(
                    loaded.source.error(key.pos, "not-in-restore", message).help("take it away, or make it a drill of kind `failover`"),
                );
            }
        }
    }

    /// Known words, for which there is nothing that would run them yet: found out now, and not when it is due.
    fn kind(&mut self) {
        let loaded = self.loaded;
        if matches!(loaded.drill.kind, DrillKind::Isolated | DrillKind::Tabletop) {
            let message = "this version runs drills of the kinds `failover`, `switchover` and `restore`";
            self.found.push(loaded.source.error(place(&loaded.root, "kind"), "kind-not-run", message));
        }
    }

    fn scenario(&mut self) {
        let loaded = self.loaded;
        let Some(NodeValue::List(items)) = loaded.root.get("scenario").map(|node| &node.value) else { return };
        for (fault, item) in loaded.drill.scenario.iter().zip(items) {
            let pos = item.get(fault.word()).map_or(item.pos, |target| place(target, "region"));
            self.named("RegionName", fault.target().region.as_str(), pos);
        }
    }
}
