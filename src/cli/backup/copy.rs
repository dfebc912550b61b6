//! `muster backup copy`.

use super::{
    super::{
        Done,
        output::{Output, ms},
    },
    CODES, RepoArgs, counted, live, size,
};
use crate::service::{
    Muster,
    backup::{
        copy::{Copy, CopyReport},
        look::Filter,
    },
};
use serde_json::json;

#[derive(clap::Args)]
#[command(after_help = format!("Examples:\n  muster backup copy --repo vault --to vault-west            all snapshots\n  muster backup copy latest --repo vault --to s3://dr-vault-west/scoring\nThe copy is the same repository in another place: it opens with the same passwords and key files. Where both places\nbelong to one provider, the provider copies by itself. Packs that are there already are not copied again.\nKeys go along to a new place, later only after a rotation of the source; what differs is said.\n{CODES}"))]
pub struct Args {
    /// Snapshots to copy, by the beginnings of their IDs; all if left out
    #[arg(value_name = "ID", conflicts_with_all = ["source", "tag"])]
    ids: Vec<String>,
    /// Where to: a path, s3://BUCKET[/PREFIX], or a name in the estate; made if it is empty or absent
    #[arg(long, value_name = "URL")]
    to: String,
    #[command(flatten)]
    repo: RepoArgs,
    /// Only the snapshots of this source
    #[arg(long, value_name = "SOURCE")]
    source: Option<String>,
    /// Only the snapshots with this tag
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
}

pub async fn main(args: Args, muster: &Muster, output: &Output) -> Done {
    let ask = Copy { at: args.repo.at(), ids: args.ids, filter: Filter { source: args.source, tags: args.tag }, to: args.to };
    let (watch, line) = live::start("copying", muster, output);
    let report = muster.backup_copy(&ask, &watch).await;
    drop(line);
    let report = report?;
    if output.json {
        output.object(&json!(report));
    } else {
        told(&report, output);
    }
    Ok(u8::from(!report.damaged.is_empty()))
}

fn told(report: &CopyReport, output: &Output) {
    for damaged in &report.damaged {
        output.say(format!("{} {damaged}", output.paint("✗", "31")));
    }
    for unread in &report.marks_unread {
        output.say(format!("{} {unread}", output.paint("!", "33")));
    }
    for differs in &report.keys_differ {
        output.say(format!("{} {differs}", output.paint("?", "33")));
    }
    let how = if report.server_side && report.packs_copied > 0 { ", by the provider itself" } else { "" };
    output.line(format!(
        "{}: {} there, {} of them new; {} copied, {}{how}; {}",
        report.to,
        counted(report.snapshots.len() as u64, "snapshot is", "snapshots are"),
        report.snapshots_copied,
        counted(report.packs_copied, "pack", "packs"),
        size(report.bytes_copied),
        ms(Some(report.duration_ms.into()))
    ));
    if report.wal_copied > 0 {
        output.line(format!("{} of write-ahead logs, {}", counted(report.wal_copied, "object", "objects"), size(report.wal_bytes_copied)));
    }
}
