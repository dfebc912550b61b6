//! `muster evidence verify`: is the record whole?

use super::{Done, output::Output};
use crate::service::{
    Muster,
    evidence::{Evidence, LedgerState},
};
use serde_json::json;

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Verify every chain of the journal, the chain of heads over them, and the ledgers beside it
    Verify,
}

pub async fn main(args: &Args, muster: &Muster, output: &Output) -> Done {
    let Command::Verify = args.command;
    let found = muster.evidence_verify().await?;
    if output.json {
        output.object(&json!(found));
    } else {
        told(&found, output);
    }
    Ok(u8::from(!found.journal.verified))
}

fn told(found: &Evidence, output: &Output) {
    let journal = &found.journal;
    for problem in &journal.problems {
        output.line(format!("✗ {problem}"));
    }
    for ledger in found.ledgers.iter().filter(|ledger| ledger.state == LedgerState::Missing) {
        output.line(format!("? {}: its ledger {} is not here; nobody can count again", ledger.drill, ledger.file.display()));
    }
    let word = if journal.verified { "verified" } else { "NOT verified" };
    let chains = if journal.chains == 1 { "chain" } else { "chains" };
    let same = found.ledgers.iter().filter(|ledger| ledger.state == LedgerState::Same).count();
    let ledgers = if found.ledgers.is_empty() { String::new() } else { format!(", {same} of {} ledgers as measured", found.ledgers.len()) };
    output.line(format!("{word}: {} events in {} {chains}{ledgers}", journal.events, journal.chains));
    if found.signed + found.unsigned > 0 {
        output.line(format!("approvals and overrides: {} signed, their signatures hold; {} by name alone", found.signed, found.unsigned));
    }
    if let Some(head) = &journal.head {
        output.line(format!("head {head}: keep it elsewhere, and a later cut is found"));
    }
}
