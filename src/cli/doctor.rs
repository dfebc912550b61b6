//! `muster doctor`: is what a runbook will need there? So far its permissions at Amazon.

use super::{
    Done,
    output::{Output, table},
};
use crate::service::{Muster, ServiceError, doctor::Outcome};
use serde_json::json;

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  muster doctor --permissions\n  muster doctor --permissions regional-failover --list\n  muster doctor --permissions --json | jq .policy > policy.json"
)]
pub struct Args {
    /// The permissions at Amazon that runbooks need, as an IAM policy, and those that can be tried by reading
    #[arg(long)]
    permissions: bool,
    /// Only list them: ask nobody
    #[arg(long, requires = "permissions")]
    list: bool,
    /// Runbooks: paths, or names in runbooks/; all there when left out
    runbooks: Vec<String>,
}

pub async fn main(args: &Args, muster: &Muster, output: &Output) -> Done {
    if !args.permissions {
        return Err(ServiceError::Usage("say what to look at: `muster doctor --permissions`".to_owned()));
    }
    let (written, needs) = muster.permissions(&args.runbooks)?;
    let checks = if args.list {
        Vec::new()
    } else {
        // A lab's addresses are where it runs; where none is up nothing can be tried.
        let estate = muster.estate().unwrap_or(written);
        muster.try_permissions(&estate, &needs).await
    };
    let policy = needs.policy();
    let denied = checks.iter().any(|check| check.outcome == Outcome::Denied);
    if output.json {
        output.object(&json!({ "runbooks": needs.runbooks, "policy": policy, "unknown": needs.unknown, "checks": checks }));
        return Ok(u8::from(denied));
    }
    output.line(format!("{policy:#}"));
    if !checks.is_empty() {
        let mut table = table(&["PERMISSION", "WHERE", "", "WHY"]);
        for check in &checks {
            let word = json!(check.outcome).as_str().unwrap_or_default().replace('_', " ");
            table.add_row(vec![check.permission.to_owned(), check.place.clone().unwrap_or_default(), word, check.why.clone()]);
        }
        output.line(table.to_string());
    }
    for step in &needs.unknown {
        output.line(format!("not known: what {step} needs; its action has no permissions written down"));
    }
    Ok(u8::from(denied))
}
