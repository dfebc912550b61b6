//! The one language of expressions, the same in `when:` and between `{{` and `}}` in a value.
//!
//! The engine is `minijinja`'s expressions: strict about what is undefined, with a limit on work, and
//! without statements, includes or files. A value that is one expression keeps the expression's type;
//! among other text it becomes text. What an expression gave is never looked at again for expressions.

use crate::model::node::{Node, NodeValue, Pos};
use minijinja::{Environment, UndefinedBehavior, Value, value::Serde};
use std::collections::{BTreeMap, BTreeSet};

/// How many instructions one expression may take.
const FUEL: u64 = 20_000;
/// What an expression may begin with.
pub const ROOTS: [&str; 3] = ["inputs", "steps", "run"];

/// What expressions can see.
#[derive(Clone, Debug, Default)]
pub struct Context {
    inputs: BTreeMap<String, serde_json::Value>,
    steps: BTreeMap<String, serde_json::Value>,
    run: Option<String>,
}

impl Context {
    #[must_use]
    pub fn new(inputs: &BTreeMap<String, serde_json::Value>) -> Self {
        Self { inputs: inputs.clone(), steps: BTreeMap::new(), run: None }
    }
    /// The output of a step that has one; a skipped step has none.
    #[must_use]
    pub fn with_step(mut self, id: &str, output: serde_json::Value) -> Self {
        self.steps.insert(id.to_owned(), output);
        self
    }
    #[must_use]
    pub fn with_run(mut self, id: &str) -> Self {
        self.run = Some(id.to_owned());
        self
    }
    fn value(&self) -> Value {
        let run: BTreeMap<&str, &String> = self.run.iter().map(|id| ("id", id)).collect();
        Value::from(Serde(serde_json::json!({ "inputs": self.inputs, "steps": self.steps, "run": run })))
    }
}

/// An expression that could not be read, or gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{expr}`: {message}")]
pub struct ExprError {
    pub pos: Pos,
    pub expr: String,
    pub message: String,
}

fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env.set_fuel(Some(FUEL));
    env.remove_global("debug");
    env
}

/// A piece of a value's text.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part<'a> {
    Text(&'a str),
    Expr(&'a str),
}

/// True if the text holds an expression.
#[must_use]
pub fn has_expression(text: &str) -> bool {
    text.contains("{{")
}

fn parts(text: &str) -> Result<Vec<Part<'_>>, ExprError> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        if !before.is_empty() {
            found.push(Part::Text(before));
        }
        let fail = || ExprError { pos: Pos::default(), expr: text.to_owned(), message: "`{{` is never closed by `}}`".to_owned() };
        let end = closing(after).ok_or_else(fail)?;
        let (inside, tail) = after.split_at(end);
        found.push(Part::Expr(inside.trim()));
        rest = tail.strip_prefix("}}").unwrap_or_default();
    }
    if !rest.is_empty() {
        found.push(Part::Text(rest));
    }
    Ok(found)
}

/// Where the `}}` stands that closes an expression, past strings and inner brackets.
fn closing(text: &str) -> Option<usize> {
    let mut quote = None;
    let mut depth = 0_u32;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '"' || c == '\'' => quote = Some(c),
            None if matches!(c, '{' | '[' | '(') => depth += 1,
            None if depth == 0 && text.get(at..).is_some_and(|rest| rest.starts_with("}}")) => return Some(at),
            None if matches!(c, '}' | ']' | ')') => depth = depth.saturating_sub(1),
            None => {}
        }
    }
    None
}

fn evaluate(env: &Environment<'_>, expr: &str, context: &Value, pos: Pos) -> Result<Value, ExprError> {
    let fail = |e: minijinja::Error| ExprError { pos, expr: expr.to_owned(), message: words(&e) };
    let value = env.compile_expression(expr).map_err(fail)?.eval(context.clone()).map_err(fail)?;
    if value.is_undefined() {
        return Err(ExprError { pos, expr: expr.to_owned(), message: "it is undefined".to_owned() });
    }
    Ok(value)
}

/// What went wrong, without the engine's file names.
fn words(error: &minijinja::Error) -> String {
    match (error.kind(), error.detail()) {
        (minijinja::ErrorKind::UndefinedError, _) => "something in it is undefined".to_owned(),
        (minijinja::ErrorKind::OutOfFuel, _) => format!("it takes more than {FUEL} steps of work"),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    }
}

fn json(value: &Value, expr: &str, pos: Pos) -> Result<serde_json::Value, ExprError> {
    let fail = |e: serde_json::Error| ExprError { pos, expr: expr.to_owned(), message: format!("it gives no plain value: {e}") };
    serde_json::to_value(value).map_err(fail)
}

/// The tree with every expression replaced by what it gives.
pub fn render(node: &Node, context: &Context) -> Result<Node, ExprError> {
    walk(node, &environment(), &context.value(), &|_| true)
}

/// True if no text in the tree holds an expression: rendered, it is itself.
#[must_use]
pub fn is_plain(node: &Node) -> bool {
    match &node.value {
        NodeValue::Text { text, .. } => !has_expression(text),
        NodeValue::List(items) => items.iter().all(is_plain),
        NodeValue::Map(entries) => entries.iter().all(|(_, item)| is_plain(item)),
        NodeValue::Null | NodeValue::Typed(_) => true,
    }
}

/// Like [`render`], but text that mentions anything beside `inputs` stays as it is, whole.
pub fn render_partial(node: &Node, context: &Context) -> Result<Node, ExprError> {
    walk(node, &environment(), &context.value(), &|text| {
        variables(text).is_ok_and(|paths| paths.iter().all(|path| path.split('.').next() == Some("inputs")))
    })
}

fn walk(node: &Node, env: &Environment<'_>, context: &Value, ripe: &dyn Fn(&str) -> bool) -> Result<Node, ExprError> {
    let value = match &node.value {
        NodeValue::Text { text, .. } if has_expression(text) && ripe(text) => NodeValue::Typed(rendered(text, env, context, node.pos)?),
        NodeValue::List(items) => {
            NodeValue::List(items.iter().map(|item| walk(item, env, context, ripe)).collect::<Result<_, ExprError>>()?)
        }
        NodeValue::Map(entries) => NodeValue::Map(
            entries.iter().map(|(key, item)| Ok((key.clone(), walk(item, env, context, ripe)?))).collect::<Result<_, ExprError>>()?,
        ),
        other => other.clone(),
    };
    Ok(Node { pos: node.pos, value })
}

fn rendered(text: &str, env: &Environment<'_>, context: &Value, pos: Pos) -> Result<serde_json::Value, ExprError> {
    let pieces = parts(text).map_err(|e| ExprError { pos, ..e })?;
    if let [Part::Expr(expr)] = pieces.as_slice() {
        return json(&evaluate(env, expr, context, pos)?, expr, pos);
    }
    let mut out = String::new();
    for piece in pieces {
        match piece {
            Part::Text(text) => out.push_str(text),
            Part::Expr(expr) => match json(&evaluate(env, expr, context, pos)?, expr, pos)? {
                serde_json::Value::String(text) => out.push_str(&text),
                other => out.push_str(&other.to_string()),
            },
        }
    }
    Ok(serde_json::Value::String(out))
}

/// Whether a `when:` holds. `{{ }}` around the whole of it may be left out.
pub fn truth(expr: &str, context: &Context) -> Result<bool, ExprError> {
    let env = environment();
    let value = evaluate(&env, bare(expr), &context.value(), Pos::default())?;
    Ok(value.is_true())
}

fn bare(expr: &str) -> &str {
    match parts(expr.trim()).as_deref() {
        Ok([Part::Expr(inner)]) => inner,
        _ => expr,
    }
}

/// Every variable that the expressions in a value's text use, with its path: `inputs.to`, `steps.fence.proof`.
pub fn variables(text: &str) -> Result<BTreeSet<String>, ExprError> {
    let env = environment();
    let mut found = BTreeSet::new();
    for piece in parts(text)? {
        if let Part::Expr(expr) = piece {
            found.extend(used(&env, expr)?);
        }
    }
    Ok(found)
}

/// The same of a `when:`.
pub fn condition_variables(expr: &str) -> Result<BTreeSet<String>, ExprError> {
    used(&environment(), bare(expr))
}

fn used(env: &Environment<'_>, expr: &str) -> Result<BTreeSet<String>, ExprError> {
    let fail = |e: minijinja::Error| ExprError { pos: Pos::default(), expr: expr.to_owned(), message: words(&e) };
    let compiled = env.compile_expression(expr).map_err(fail)?;
    unknown_words(expr).map_err(fail)?;
    let known: BTreeSet<&str> = env.globals().map(|(name, _)| name).collect();
    Ok(compiled.undeclared_variables(true).into_iter().filter(|path| !known.contains(path.as_str())).collect())
}

/// The engine looks filters and tests up only when it comes to them, so an expression is tried once
/// over nothing at all: what fails for any other reason may well hold later.
fn unknown_words(expr: &str) -> Result<(), minijinja::Error> {
    let mut env = environment();
    env.set_undefined_behavior(UndefinedBehavior::Chainable);
    match env.compile_expression(expr)?.eval(Value::UNDEFINED) {
        Err(e) if matches!(e.kind(), minijinja::ErrorKind::UnknownFilter | minijinja::ErrorKind::UnknownTest) => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::node::Key;
    use proptest::prelude::*;
    use serde_json::json;

    fn text(text: &str) -> Node {
        Node { pos: Pos { line: 3, column: 7 }, value: NodeValue::Text { text: text.into(), quoted: true } }
    }
    fn context() -> Context {
        let inputs = BTreeMap::from([("to".to_owned(), json!("west")), ("n".to_owned(), json!(5))]);
        Context::new(&inputs).with_step("fence", json!({"proof": {"epoch": 3}})).with_run("r-1")
    }
    fn typed(source: &str) -> serde_json::Value {
        match render(&text(source), &context()).expect("renders").value {
            NodeValue::Typed(value) => value,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_expression_keeps_its_type_and_others_become_text() {
        assert_eq!(typed("{{ inputs.n }}"), json!(5));
        assert_eq!(typed("{{ inputs.n + 1 }} in {{ inputs.to }}"), json!("6 in west"));
        assert_eq!(typed("{{ steps.fence.proof }}"), json!({"epoch": 3}));
        assert_eq!(typed("{{ {'a': {'b': inputs.n}} }}"), json!({"a": {"b": 5}}));
        assert_eq!(typed("{{ '}}' }}{{ run.id }}"), json!("}}r-1"));
        assert_eq!(render(&text("no expression: }} {% if %}"), &context()), Ok(text("no expression: }} {% if %}")));
    }

    #[test]
    fn what_is_undefined_or_endless_is_an_error_with_its_place() {
        for wrong in ["{{ inputs.form }}", "{{ steps.gone.x }}", "{{ inputs.to ", "{{ 1 + }}", "{{ nothing }}"] {
            let error = render(&text(wrong), &context()).expect_err(wrong);
            assert_eq!(error.pos.line, 3, "{wrong}: {error}");
        }
        assert!(truth("range(100000) | list | length > 1 and range(99999)|sum > 5", &context()).is_err());
        assert!(truth("inputs.form", &context()).is_err());
    }

    #[test]
    fn conditions() {
        assert_eq!(truth("inputs.n > 3 and inputs.to == 'west'", &context()), Ok(true));
        assert_eq!(truth("{{ steps.gone is defined }}", &context()), Ok(false));
        assert_eq!(truth("false", &context()), Ok(false));
    }

    #[test]
    fn partly_rendered_text_waits_whole_for_other_steps() {
        let tree = Node {
            pos: Pos::default(),
            value: NodeValue::Map(vec![
                (Key { name: "a".into(), pos: Pos::default() }, text("{{ inputs.to }}")),
                (Key { name: "b".into(), pos: Pos::default() }, text("{{ inputs.to }}: {{ steps.fence.proof }}")),
            ]),
        };
        let half = render_partial(&tree, &context()).expect("renders");
        assert_eq!(half.get("a").map(|n| n.value.clone()), Some(NodeValue::Typed(json!("west"))));
        assert_eq!(half.get("b"), tree.get("b"));
    }

    #[test]
    fn variables_are_named_with_their_paths() {
        let found = variables("{{ inputs.to }} {{ steps.fence.proof.epoch | default(range(3)) }}").expect("parses");
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["inputs.to", "steps.fence.proof.epoch"]);
        assert!(condition_variables("steps.a.ok and (").is_err());
        assert!(variables("{{ inputs.to | uppper }}").is_err(), "an unknown filter is told before anything runs");
        assert!(condition_variables("inputs.to is defind").is_err());
    }

    proptest! {
        #[test]
        fn what_an_input_holds_is_never_taken_for_an_expression(value in "\\PC{0,30}") {
            let inputs = BTreeMap::from([("x".to_owned(), json!(value))]);
            let once = render_partial(&text("{{ inputs.x }}"), &Context::new(&inputs)).expect("renders");
            let twice = render(&once, &Context::default()).expect("nothing left to render");
            prop_assert_eq!(twice.value, NodeValue::Typed(json!(value)));
        }

        #[test]
        fn no_text_makes_it_panic(source in "[a-z{}'\"(). |\\\\+]{0,60}") {
            let _ = render(&text(&source), &context());
            let _ = variables(&source);
        }
    }
}
