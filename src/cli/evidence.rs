//! `muster evidence`: is the record whole, and how does it get from one journal into another?

use super::{Done, output::Output};
use crate::service::{
    Muster,
    evidence::{Evidence, LedgerState, evidence_verify_file},
    portable::{Exported, Imported},
};
use serde_json::json;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Verify every chain of the journal, the chain of heads over them, and the ledgers beside it
    #[command(
        after_help = "Examples:\n  muster evidence verify\n  muster evidence verify --json > /elsewhere/kept.json         keep it where nobody who can write the journal can write\n  muster evidence verify --against /elsewhere/kept.json        is all that was there then still there?\n  muster evidence verify --against sha256:888ebef7…            the same, of a head alone\n  muster evidence verify record.jsonl                          an export, without a journal\nExit codes: 0 whole, and has what was kept; 1 changed, cut off or replaced; 2 cannot be read."
    )]
    Verify {
        /// A file made by `evidence export`, in place of the journal
        file: Option<PathBuf>,
        /// What was kept of it: a head, what `evidence verify --json` said, or an export
        #[arg(long, value_name = "HEAD|FILE")]
        against: Option<String>,
    },
    /// Write chains into a file that anyone can verify and another journal can import
    #[command(
        after_help = "Examples:\n  muster evidence export --out record.jsonl                 the whole journal\n  muster evidence export --runs 0198f2 --out record.jsonl   one run, or one drill with its runs"
    )]
    Export {
        /// Runs or drills, by the beginnings of their identifiers; all if left out
        #[arg(long, value_name = "ID", num_args = 1..)]
        runs: Vec<String>,
        /// The file to write
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Take in the chains of an exported file or of another state directory, byte for byte
    #[command(
        after_help = "Examples:\n  muster evidence import record.jsonl\n  muster --state /var/lib/muster evidence import ./laptop-state\nExit codes: 0 all of it is here now, 1 something overlaps or is in conflict, 2 it does not verify or cannot be read."
    )]
    Import {
        /// A file made by `evidence export`, or a state directory
        from: PathBuf,
    },
}

pub async fn main(args: &Args, muster: &Muster, output: &Output) -> Done {
    let found = match &args.command {
        Command::Verify { file: Some(file), against } => evidence_verify_file(file, against.as_deref())?,
        Command::Verify { file: None, against } => muster.evidence_verify(against.as_deref()).await?,
        Command::Export { runs, out } => return Ok(exported(&muster.evidence_export(runs, out).await?, output)),
        Command::Import { from } => return Ok(imported(&muster.evidence_import(from).await?, output)),
    };
    if output.json {
        output.object(&json!(found));
    } else {
        told(&found, output);
    }
    Ok(u8::from(!found.journal.verified))
}

fn exported(done: &Exported, output: &Output) -> u8 {
    output.object(&json!(done));
    if !output.json {
        output.line(format!("{}: {} events in {} chains", done.file, done.events, done.chains));
        output.line("ledgers of drills are files of their own: take the folder `drills` of the state directory along");
    }
    0
}

fn imported(done: &Imported, output: &Output) -> u8 {
    output.object(&json!(done));
    if !output.json {
        for conflict in &done.conflicts {
            output.line(format!("✗ {}: not imported: {}", conflict.run, conflict.why));
        }
        for overlap in &done.overlaps {
            let (from, to) = (crate::model::time::rfc3339_ms(overlap.from), crate::model::time::rfc3339_ms(overlap.to));
            output.line(format!(
                "! {} and {} both held `{}` from {from} to {to}: look at what each of them did",
                overlap.imported, overlap.here, overlap.resource.0
            ));
        }
        for run in &done.unfinished {
            output.line(format!("? {run} had not ended; it is a record here: go on with it where it was begun, and import it again"));
        }
        output.line(format!("from {}: {} imported, {} here already", done.from, done.imported.len(), done.present.len()));
        if let Some(head) = &done.head {
            output.line(format!("head {head}: keep it elsewhere, and a later cut is found"));
        }
    }
    u8::from(!done.conflicts.is_empty() || !done.overlaps.is_empty())
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
    for signer in &found.signers {
        output.line(format!("  {} signed by {} with the key {}: is it theirs?", signer.signatures, signer.by, signer.key));
    }
    if let (Some(against), true) = (&found.against, journal.verified) {
        output.line(format!("all that was kept in {against} is in it"));
    }
    if let Some(head) = &journal.head {
        output.line(format!("head {head}: keep it elsewhere, and a later cut is found"));
        if !found.open.is_empty() {
            let open = found.open.len();
            output.line(format!(
                "it knows no more than the beginning of what is still open ({open}): keep the whole answer of --json for that"
            ));
        }
    }
}
