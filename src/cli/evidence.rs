//! `muster evidence verify`: is the record whole?

use super::{Done, output::Output};
use crate::journal::chain;
use crate::service::Muster;
use serde_json::json;

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Verify every chain of the journal, and the chain of heads over them
    Verify,
}

pub async fn main(args: &Args, muster: &Muster, output: &Output) -> Done {
    let Command::Verify = args.command;
    let journal = muster.existing_journal().await?;
    let found = chain::verify(&journal.dump(None).await?);
    if output.json {
        output.object(&json!(found));
    } else {
        for problem in &found.problems {
            output.line(format!("✗ {problem}"));
        }
        let word = if found.verified { "verified" } else { "NOT verified" };
        output.line(format!("{word}: {} events in {} chains", found.events, found.chains));
        if let Some(head) = &found.head {
            output.line(format!("head {head}: keep it elsewhere, and a later cut is found"));
        }
    }
    Ok(u8::from(!found.verified))
}
