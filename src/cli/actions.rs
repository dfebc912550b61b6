//! `muster actions`: the catalogue, documented from its own types.

use super::{
    Done,
    output::{Output, table},
};
use crate::actions::Known;
use crate::model::catalogue::{ActionInfo, Catalogue};
use crate::service::ServiceError;
use serde_json::{Value, json};

#[derive(clap::Args)]
pub struct Args {
    /// One action, in full
    name: Option<String>,
}

pub fn main(args: &Args, output: &Output) -> Done {
    let Some(name) = &args.name else {
        list(output);
        return Ok(0);
    };
    let info = Known.info(name).ok_or_else(|| {
        let near = crate::runbook::diagnostic::suggest(name, Known.names()).map(|help| format!("; {help}")).unwrap_or_default();
        ServiceError::Usage(format!("there is no action `{name}`{near}"))
    })?;
    if output.json {
        output.object(&view(&info));
    } else {
        page(&info, output);
    }
    Ok(0)
}

fn view(info: &ActionInfo) -> Value {
    json!({
        "name": info.name, "version": info.version, "summary": info.summary, "effect": info.effect, "danger": info.danger,
        "undo": info.undo, "timeout": info.timeout, "example": info.example, "input": info.input, "output": info.output,
    })
}

fn list(output: &Output) {
    let all: Vec<_> = Known.names().into_iter().filter_map(|name| Known.info(name)).collect();
    if output.json {
        output.object(&json!({ "actions": all.iter().map(view).collect::<Vec<_>>() }));
        return;
    }
    let mut table = table(&["ACTION", "EFFECT", "WHAT IT DOES"]);
    for info in &all {
        table.add_row(vec![info.name.to_owned(), word(&json!(info.effect)), info.summary.to_owned()]);
    }
    table.add_row(vec!["approval", "-", "Wait for people to approve (a step of the engine's own)"]);
    output.line(table.to_string());
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn page(info: &ActionInfo, output: &Output) {
    output.line(format!("{}  (version {})\n\n{}\n", info.name, info.version, info.summary));
    output.line(format!("effect   {}", word(&json!(info.effect))));
    output.line(format!("danger   {}", word(&json!(info.danger))));
    output.line(format!("undo     {}", word(&json!(info.undo))));
    output.line(format!("timeout  {}\n", info.timeout));
    output.line("with:");
    output.line(fields(&info.input));
    output.line("\ngives:");
    output.line(fields(&info.output));
    output.line(format!("\nexample:\n{}", info.example));
}

fn fields(schema: &Value) -> String {
    let mut table = table(&["  FIELD", "TYPE", "", "MEANING"]);
    let required: Vec<_> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let need = if required.contains(&name.as_str()) { "required" } else { "" };
        let meaning = field["description"].as_str().unwrap_or_default().replace('\n', " ");
        table.add_row(vec![format!("  {name}"), kind(field), need.to_owned(), meaning]);
    }
    table.to_string()
}

/// A field's type in a word: the last part of a reference, or JSON's own name.
fn kind(field: &Value) -> String {
    if let Some(reference) = field["$ref"].as_str() {
        return reference.rsplit('/').next().unwrap_or_default().to_owned();
    }
    if let Some(any) = field["anyOf"].as_array() {
        return any.iter().map(kind).filter(|kind| kind != "null").collect::<Vec<_>>().join(" | ");
    }
    match &field["type"] {
        Value::String(one) if one == "array" => format!("list of {}", kind(&field["items"])),
        Value::String(one) => one.clone(),
        Value::Array(several) => several.iter().filter_map(Value::as_str).filter(|kind| *kind != "null").collect::<Vec<_>>().join(" | "),
        _ => "any".to_owned(),
    }
}
