//! JSON Schemas (2020-12) of the three kinds of file, for editors. The loader does not use them: it says
//! more, and knows what an expression is.

use super::lint::APPROVAL;
use crate::model::{
    catalogue::Catalogue,
    drill::Drill,
    estate::Estate,
    plan::Approval,
    runbook::{InputSpec, Mode, OnFailure, Retry, UndoPolicy, Waiver},
    time::Span,
};
use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

/// The schema of `muster.yaml`.
#[must_use]
pub fn estate() -> Value {
    schemars::schema_for!(Estate).to_value()
}

/// The schema of a drill.
#[must_use]
pub fn drill() -> Value {
    let mut schema = schemars::schema_for!(Drill).to_value();
    // Inputs are text to us; in YAML a number or a truth value needs no quotes.
    loosen_inputs(&mut schema);
    schema
}

fn loosen_inputs(schema: &mut Value) {
    let scalar = json!({ "type": ["string", "number", "boolean"] });
    for at in ["/properties/inputs/additionalProperties", "/$defs/Then/properties/inputs/additionalProperties"] {
        if let Some(inputs) = schema.pointer_mut(at) {
            *inputs = scalar.clone();
        }
    }
}

/// The schema of a runbook: what may stand in `with` follows from `uses`.
#[must_use]
pub fn runbook(catalogue: &dyn Catalogue) -> Value {
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    let waiver = generator.subschema_for::<Waiver>();
    let input = generator.subschema_for::<InputSpec>();
    let mode = generator.subschema_for::<Mode>();
    let step = step_properties(&mut generator, catalogue);
    let mut defs: Map<String, Value> = generator.take_definitions(true);
    let inputs_of = with_schemas(catalogue, &mut defs);
    defs.insert("Step".to_owned(), step_schema(&step, &inputs_of));
    defs.insert("Group".to_owned(), group_schema());
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Runbook",
        "type": "object",
        "properties": {
            "runbook": { "type": "string", "description": "The runbook's name." },
            "description": { "type": "string" },
            "mode": mode.to_value(),
            "waive": { "type": "array", "items": waiver.to_value() },
            "inputs": { "type": "object", "additionalProperties": input.to_value() },
            "steps": { "type": "array", "minItems": 1, "items": {
                "if": { "required": ["parallel"] },
                "then": { "$ref": "#/$defs/Group" },
                "else": { "$ref": "#/$defs/Step" },
            } },
        },
        "required": ["runbook", "steps"],
        "additionalProperties": false,
        "$defs": defs,
    })
}

/// The keys of a step, but for what `with` may hold.
fn step_properties(generator: &mut SchemaGenerator, catalogue: &dyn Catalogue) -> Value {
    let mut step = json!({
        "id": { "type": "string", "pattern": "^[a-z][a-z0-9_]*$", "description": "Unique within the runbook; expressions say `steps.ID`." },
        "uses": { "enum": names(catalogue), "description": "The action." },
        "description": { "type": "string" },
        "needs": ids("Steps that come before; the item above when left out, nothing when empty."),
        "with": { "type": "object", "description": "The action's input." },
        "when": { "type": ["string", "boolean"], "description": "An expression; the step is skipped when it does not hold." },
    });
    let policies = [
        ("retry", generator.subschema_for::<Retry>()),
        ("timeout", generator.subschema_for::<Span>()),
        ("on_failure", generator.subschema_for::<OnFailure>()),
        ("undo", generator.subschema_for::<UndoPolicy>()),
        ("approve", generator.subschema_for::<Approval>()),
    ];
    for (name, schema) in policies {
        insert(&mut step, name, schema.to_value());
    }
    step
}

fn insert(map: &mut Value, name: &str, value: Value) {
    if let Some(map) = map.as_object_mut() {
        map.insert(name.to_owned(), value);
    }
}

fn names(catalogue: &dyn Catalogue) -> Vec<&'static str> {
    catalogue.names().into_iter().chain([APPROVAL]).collect()
}

fn ids(description: &str) -> Value {
    json!({ "type": "array", "items": { "type": "string" }, "description": description })
}

fn group_schema() -> Value {
    json!({
        "type": "object",
        "description": "Steps that run at the same time; what follows needs all of them.",
        "properties": {
            "parallel": { "type": "array", "items": { "$ref": "#/$defs/Step" } },
            "needs": ids("What every member without `needs` of its own needs."),
        },
        "required": ["parallel"],
        "additionalProperties": false,
    })
}

fn step_schema(properties: &Value, inputs_of: &[(&'static str, String)]) -> Value {
    let rules: Vec<Value> = inputs_of
        .iter()
        .map(|(action, name)| {
            json!({
                "if": { "properties": { "uses": { "const": action } }, "required": ["uses"] },
                "then": { "properties": { "with": { "$ref": format!("#/$defs/{name}") } } },
            })
        })
        .collect();
    json!({
        "type": "object",
        "properties": properties,
        "required": ["id", "uses"],
        "additionalProperties": false,
        "allOf": rules,
    })
}

/// Every action's input among the definitions, its own definitions beside it under names that cannot clash.
fn with_schemas(catalogue: &dyn Catalogue, defs: &mut Map<String, Value>) -> Vec<(&'static str, String)> {
    let approval = schemars::schema_for!(Approval).to_value();
    let actions = catalogue.names().into_iter().filter_map(|name| Some((name, catalogue.info(name)?.input)));
    let mut out = Vec::new();
    for (action, mut schema) in actions.chain([(APPROVAL, approval)]) {
        let own = schema.as_object_mut().and_then(|map| {
            map.remove("$schema");
            map.remove("$defs")
        });
        let prefix = format!("with.{action}");
        if let Some(Value::Object(own)) = own {
            for (name, mut inner) in own {
                embed(&mut inner, &prefix);
                defs.insert(format!("{prefix}.{name}"), inner);
            }
        }
        embed(&mut schema, &prefix);
        defs.insert(prefix.clone(), schema);
        out.push((action, prefix));
    }
    out
}

/// Makes references absolute, and lets an expression stand for any number or truth value.
fn embed(schema: &mut Value, prefix: &str) {
    match schema {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get_mut("$ref")
                && let Some(name) = reference.strip_prefix("#/$defs/")
            {
                *reference = format!("#/$defs/{prefix}.{name}");
            }
            map.values_mut().for_each(|inner| embed(inner, prefix));
            let kinds = map.get("type").filter(|kinds| !kinds.is_object()).map(Value::to_string).unwrap_or_default();
            let scalar = ["\"integer\"", "\"number\"", "\"boolean\""].iter().any(|kind| kinds.contains(kind));
            let constrained = ["pattern", "format", "enum", "const"].iter().any(|word| map.contains_key(*word));
            if scalar || (kinds.contains("\"string\"") && constrained) {
                let own = Value::Object(std::mem::take(map));
                map.insert("anyOf".to_owned(), json!([own, { "type": "string", "pattern": "\\{\\{" }]));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| embed(item, prefix)),
        _ => {}
    }
}
