//! `muster backup prune`.

use super::{
    super::{
        Done,
        output::{Output, ms},
    },
    CODES, RepoArgs, counted, live, size,
};
use crate::model::time::Span;
use crate::service::{
    Muster,
    backup::prune::{Prune, PruneReport},
};
use serde_json::json;

#[derive(clap::Args)]
#[command(after_help = format!("Examples:\n  muster backup prune --repo vault --dry-run\n  muster backup prune --repo vault                       every night, after `forget`\nIt works in two phases. What no snapshot needs is marked; a run that comes when the mark is older than its grace deletes\nit, after looking again. So backups may run meanwhile. One that takes longer than half the grace\nmay find that some of its data are deleted: it makes no snapshot then, and says so.\nIt alone needs the right to delete: run it with credentials of its own.\n{CODES}"))]
pub struct Args {
    #[command(flatten)]
    repo: RepoArgs,
    /// How long what is found unused is kept; 0s only if no backup can be running
    #[arg(long, value_name = "TIME", default_value = "24h")]
    grace: Span,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

pub async fn main(args: Args, muster: &Muster, output: &Output) -> Done {
    let ask = Prune { at: args.repo.at(), grace: args.grace, dry_run: args.dry_run };
    let (watch, line) = live::start("pruning", muster, output);
    let report = muster.backup_prune(&ask, &watch).await;
    drop(line);
    let report = report?;
    if output.json {
        output.object(&json!(report));
    } else {
        told(&report, output);
    }
    Ok(u8::from(!report.wal_kept.is_empty()))
}

fn told(report: &PruneReport, output: &Output) {
    for kept in &report.wal_kept {
        output.say(format!("{} {kept}", output.paint("✗", "31")));
    }
    let packs = |count| counted(count, "pack", "packs");
    let would = if report.dry_run { "would be " } else { "" };
    output.line(format!("{} in the repository, of it {} not needed", size(report.bytes_stored), size(report.bytes_unused)));
    output.line(format!(
        "{would}deleted: {}, {}; {would}marked: {}, {} of them after what is needed was moved into new ones; {}",
        packs(report.deleted),
        size(report.bytes_deleted),
        packs(report.marked),
        report.repacked,
        ms(Some(report.duration_ms.into()))
    ));
    if report.bytes_checked > 0 {
        output.line(format!("read, since it is kept instead of what was deleted: {}", size(report.bytes_checked)));
    }
    if report.wal_deleted + report.wal_marked > 0 {
        let objects = |count| counted(count, "object", "objects");
        output.line(format!(
            "write-ahead logs: {would}deleted: {}; {would}marked: {}",
            objects(report.wal_deleted),
            objects(report.wal_marked)
        ));
    }
    if let Some(until) = &report.retained_until {
        output.say(format!(
            "{} not needed, and not deleted: the bucket retains them, the last until {until} (Object Lock)",
            packs(report.retained)
        ));
    }
    if report.waiting > 0 && !report.dry_run {
        let grace = Span::from_ms(report.grace_ms);
        output.say(format!("{} to be deleted by a prune after the grace (of {grace} for those marked now)", packs(report.waiting)));
    }
}
