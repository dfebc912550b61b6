//! `muster readiness`: could we fail over to a region now? The check of the runbooks, asked for by itself, and on
//! record like any run.

use super::{Done, output::Output};
use crate::model::time::Span;
use crate::runbook::load::load_runbook;
use crate::service::{Muster, ServiceError, runs::Ran};
use serde_json::{Map, Value, json};

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  muster readiness west\n  muster readiness west --max-replica-lag 30s --max-backup-age 24h\n  muster readiness west --service scoring --repository vault --json\nIt only looks; what it found is a run on record. Exit codes: 0 ready, 1 not ready (what is not there is named), 2 could not look."
)]
pub struct Args {
    /// The region that a failover would go to
    region: String,
    /// Only what this service uses (may be given again); everything in the region if left out
    #[arg(long = "service", value_name = "SERVICE")]
    services: Vec<String>,
    /// This repository too (may be given again): is its newest snapshot young enough, and is it proven to restore?
    #[arg(long = "repository", value_name = "REPOSITORY")]
    repositories: Vec<String>,
    /// The largest lag of a replica that is still good
    #[arg(long, value_name = "TIME")]
    max_replica_lag: Option<Span>,
    /// The largest age of the latest snapshot and backup that is still good
    #[arg(long, value_name = "TIME")]
    max_backup_age: Option<Span>,
    /// The largest age of a proof that a repository restores that is still good
    #[arg(long, value_name = "TIME")]
    max_proof_age: Option<Span>,
}

pub async fn main(args: &Args, muster: &Muster, output: &Output) -> Done {
    let book = load_runbook("muster readiness", book(args).to_string().as_bytes()).map_err(ServiceError::Invalid)?;
    let ran = muster.run_book(&book).await?;
    if !output.json {
        findings(&ran, output);
    }
    Ok(super::run::told(&ran, output))
}

/// The runbook of one step that this is. JSON is YAML too, and quotes what somebody gave.
fn book(args: &Args) -> Value {
    let mut with = Map::new();
    with.insert("region".to_owned(), json!(args.region));
    for (name, list) in [("services", &args.services), ("repositories", &args.repositories)] {
        if !list.is_empty() {
            with.insert(name.to_owned(), json!(list));
        }
    }
    let limits =
        [("max_replica_lag", args.max_replica_lag), ("max_backup_age", args.max_backup_age), ("max_proof_age", args.max_proof_age)];
    for (name, limit) in limits {
        if let Some(limit) = limit {
            with.insert(name.to_owned(), json!(limit.to_string()));
        }
    }
    let step = json!({ "id": "readiness", "uses": "readiness.check", "on_failure": "stop", "with": with });
    json!({ "runbook": "readiness", "steps": [step] })
}

/// What was looked at, a line each. Where something is missing, its failure names it.
fn findings(ran: &Ran, output: &Output) {
    let found = ran.state.steps.values().filter_map(|step| step.output.as_ref()?.get("findings")?.as_array().cloned());
    for one in found.flatten() {
        let text = |name: &str| one[name].as_str().unwrap_or_default().to_owned();
        let mark = if one["ok"] == json!(true) { "✓" } else { "✗" };
        output.line(format!("{mark} {}  {}  {}", text("what"), text("state"), text("detail")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_is_what_the_check_is_asked() {
        let hour = Span::from_secs(3600);
        let args = Args {
            region: "west".into(),
            services: vec!["scoring".into()],
            repositories: Vec::new(),
            max_replica_lag: Some(Span::from_ms(250)),
            max_backup_age: Some(hour),
            max_proof_age: None,
        };
        let book = book(&args);
        let with = &book["steps"][0]["with"];
        assert_eq!(
            with,
            &json!({ "region": "west", "services": ["scoring"], "max_replica_lag": "250ms", "max_backup_age": hour.to_string() })
        );
        let loaded = load_runbook("x", book.to_string().as_bytes()).unwrap();
        assert_eq!(crate::runbook::lint::check_runbook(&loaded, None, &crate::actions::Known), Vec::new());
    }
}
