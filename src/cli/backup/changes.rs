//! `muster backup diff`.

use super::{
    super::{Done, output::Output},
    CODES, RepoArgs, live, short, size, thousands,
};
use crate::service::{
    Muster,
    backup::look::{Difference, Differences},
};
use serde_json::json;

#[derive(clap::Args)]
#[command(after_help = format!("Examples:\n  muster backup diff 3f9a1c latest --repo vault\n+ added, - removed, M content changed, m only metadata changed.\n{CODES}"))]
pub struct Args {
    /// The earlier snapshot
    #[arg(value_name = "A")]
    before: String,
    /// The later one
    #[arg(value_name = "B")]
    after: String,
    #[command(flatten)]
    repo: RepoArgs,
}

pub async fn main(args: Args, muster: &Muster, output: &Output) -> Done {
    let watch = live::quiet(output);
    let found = muster.backup_diff(&args.repo.at(), &args.before, &args.after, &watch).await?;
    if output.json {
        output.object(&json!(found));
    } else {
        told(&found, output);
    }
    Ok(0)
}

fn told(found: &Differences, output: &Output) {
    for change in &found.changes {
        output.line(line(change));
    }
    output.line(format!(
        "{} to {}: {} added ({}), {} removed ({}), {} changed, {} only in their metadata",
        short(&found.before),
        short(&found.after),
        thousands(found.added),
        size(found.bytes_added),
        thousands(found.removed),
        size(found.bytes_removed),
        thousands(found.changed),
        thousands(found.metadata)
    ));
}

fn line(change: &Difference) -> String {
    let path = &change.path;
    match (change.before, change.after) {
        (Some(before), Some(after)) => format!("M {path}  {} -> {}", size(before), size(after)),
        (Some(before), None) => format!("- {path}  {}", size(before)),
        (None, Some(after)) => format!("+ {path}  {}", size(after)),
        (None, None) => format!("m {path}  {}", change.parts.join(", ")),
    }
}
