//! `muster backup restore`.

use super::{
    super::{
        Done,
        output::{Output, ms},
    },
    CODES, RepoArgs, counted, live, short, size,
};
use crate::service::{
    Muster, ServiceError,
    backup::{
        restore::{Restore, RestoreReport},
        restore_cluster::{Recover, RecoveryReport},
    },
};
use serde_json::json;
use std::path::PathBuf;

const HELP: &str = "Examples:\n  muster backup restore latest --to /srv/restored --repo vault\n  muster backup restore 3f9a1c --to /srv/restored --include 'adapters/**' --include '*.json' --repo vault\n  muster backup restore 3f9a1c --to /srv/models --in-place --dry-run --repo vault      what would change\n  muster backup restore 3f9a1c --to /srv/models --in-place --delete --repo vault       roll back to that state\n  muster backup restore latest --to /srv/data --until '2026-11-26 03:00:00+00' --repo vault --key-file wal.key\n                                                    a PostgreSQL cluster as it stood then: start a server on it\nA file under its own name is whole and compared with its digest. What is damaged in the repository is named, and all\nthe rest is restored. An interrupted restore goes on with --in-place; that of a base backup by itself.\n";

#[derive(clap::Args)]
#[command(after_help = format!("{HELP}{CODES}"))]
pub struct Args {
    /// A snapshot: the beginning of its ID, or `latest`
    #[arg(value_name = "ID")]
    id: String,
    /// The folder to restore into, which is made if it is not there; or s3://BUCKET[/PREFIX]
    #[arg(long, value_name = "DIR")]
    to: String,
    #[command(flatten)]
    repo: RepoArgs,
    /// Restore only what this pattern fits; may be given several times
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// The folder holds something already: change what differs
    #[arg(long)]
    in_place: bool,
    /// And remove what is not in the snapshot
    #[arg(long, requires = "in_place", conflicts_with = "include")]
    delete: bool,
    /// Say what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Of a base backup: restore the files that it has, and do not make them ready to recover
    #[arg(long, help_heading = "PostgreSQL")]
    files_only: bool,
    /// Of a base backup: `latest`, `immediate`, a time with its zone, a log position (0/16B3748), or a transaction's number
    #[arg(long, value_name = "POINT", help_heading = "PostgreSQL")]
    until: Option<String>,
    /// The timeline to follow; the newest that leads on from the base backup if left out
    #[arg(long, value_name = "NUMBER", help_heading = "PostgreSQL")]
    timeline: Option<u32>,
    /// The port that the restored server will listen on
    #[arg(long, value_name = "PORT", help_heading = "PostgreSQL")]
    port: Option<u16>,
    /// Where a tablespace goes, by its number; to DIR.tablespaces/NUMBER if left out; may be given several times
    #[arg(long, value_name = "NUMBER=DIR", value_parser = tablespace, help_heading = "PostgreSQL")]
    tablespace: Vec<(u32, PathBuf)>,
    /// The folder is the data directory of another cluster: replace it
    #[arg(long, requires = "in_place", help_heading = "PostgreSQL")]
    other_cluster: bool,
    /// The folder holds log that the repository lacks: let it go
    #[arg(long, requires = "in_place", help_heading = "PostgreSQL")]
    discard_wal: bool,
}

/// `16385=/srv/fast`.
fn tablespace(text: &str) -> Result<(u32, PathBuf), String> {
    let (number, place) = text.split_once('=').ok_or("write NUMBER=DIR")?;
    let number = number.parse().map_err(|_| format!("`{number}` is no tablespace's number"))?;
    std::path::absolute(place).map(|place| (number, place)).map_err(|e| format!("{place}: {e}"))
}

pub async fn main(args: Args, muster: &Muster, output: &Output) -> Done {
    let until = args.until.as_deref().map(str::parse).transpose().map_err(|why| ServiceError::Usage(format!("--until: {why}")))?;
    let recover = Recover {
        until,
        timeline: args.timeline,
        port: args.port,
        tablespaces: args.tablespace.into_iter().collect(),
        other_cluster: args.other_cluster,
        discard_wal: args.discard_wal,
    };
    let ask = Restore {
        at: args.repo.at(),
        snapshot: args.id,
        to: args.to,
        include: args.include,
        in_place: args.in_place,
        delete: args.delete,
        dry_run: args.dry_run,
        files_only: args.files_only,
        recover,
    };
    let (watch, line) = live::start("restoring", muster, output);
    let report = muster.backup_restore(&ask, &watch).await;
    drop(line);
    let report = report?;
    if output.json {
        output.object(&json!(report));
    } else {
        told(&report, output);
    }
    Ok(u8::from(!report.is_good()))
}

fn told(report: &RestoreReport, output: &Output) {
    let done = &report.restored;
    for lost in &done.damaged {
        output.say(format!("{} {} is not restored: {}", output.paint("✗", "31"), lost.path, lost.why));
    }
    for lost in &done.without {
        output.say(format!("{} {} is restored, but {}", output.paint("?", "33"), lost.path, lost.why));
    }
    for note in &done.notes {
        output.say(format!("{} {note}", output.paint("?", "33")));
    }
    let verb = if report.dry_run { "would be restored" } else { "restored" };
    output.line(format!(
        "snapshot {}: {}, {} {verb} to {}",
        short(&report.snapshot),
        counted(done.files, "file", "files"),
        size(done.bytes),
        report.to
    ));
    let removed = if done.deleted > 0 { format!(", {} removed", done.deleted) } else { String::new() };
    let written = if report.dry_run { "to write" } else { "written" };
    output.line(format!(
        "{} {written}, {} there already{removed}; {}",
        size(done.bytes_written),
        size(done.bytes_in_place),
        ms(Some(done.duration_ms.into()))
    ));
    if let Some(recovery) = &report.recovery {
        told_recovery(report, recovery, output);
    }
    if !report.is_good() {
        output.say(format!(
            "{}: the repository is damaged there; `muster backup verify --read-data` tells all of it",
            counted(done.damaged.len() as u64, "file is not restored", "files are not restored")
        ));
    }
}

fn told_recovery(report: &RestoreReport, recovery: &RecoveryReport, output: &Output) {
    output.line(format!(
        "cluster {}, to be recovered to {} on timeline {}: {} of log from {}, consistent at {}, the log there ends at {}",
        recovery.system_identifier,
        recovery.until,
        recovery.timeline,
        counted(recovery.segments, "segment", "segments"),
        recovery.from,
        recovery.consistent_at,
        recovery.log_end
    ));
    if report.is_good() && !report.dry_run {
        let bin = recovery.server_version / 10_000;
        output.say(format!(
            "start it with the programs of PostgreSQL {bin}, as the folder's owner: pg_ctl -D {} start. It archives where its \
             settings say: see to it that it does not where its original still does",
            report.to
        ));
    }
}
