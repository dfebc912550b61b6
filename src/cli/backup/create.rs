//! `muster backup create`.

use super::{
    super::{
        Done,
        output::{Output, ms},
    },
    CODES, CompressionArg, RepoArgs, counted, live, short, size,
};
use crate::model::time::Span;
use crate::service::{
    Muster,
    backup::{
        create::{BackupReport, Create, Lock},
        postgres::Postgres,
    },
};
use serde_json::json;

const HELP: &str = "Examples:\n  muster backup create /srv/models --repo /mnt/vault --password-file vault.pw\n  muster backup create . --repo s3://dr-vault/scoring --tag nightly --exclude '*.tmp' --exclude /cache\n  muster backup create s3://models/prod --repo vault --lock 30d\n  muster backup create postgres://replicator@db.example/ --repo vault\n  muster backup create postgres://postgres@db.example/predictions --logical --repo vault\n  mysqldump predictions | muster backup create - --stdin-name predictions.sql --repo vault\nThe repository is made if the place is empty or absent. Only what changed since the last snapshot of the same source\nfrom this host is read. A file that cannot be read, or changes meanwhile, is named; the snapshot has all the rest.\nA pattern without a slash fits at any depth, with a leading slash below the source, and `**` goes over folders.\n";

#[derive(clap::Args)]
#[command(after_help = format!("{HELP}{CODES}"))]
pub struct Args {
    /// A folder or file, s3://BUCKET[/PREFIX], postgres://USER@HOST[:PORT]/, or - for standard input
    #[arg(value_name = "SOURCE")]
    source: String,
    #[command(flatten)]
    repo: RepoArgs,
    #[command(flatten)]
    compression: CompressionArg,
    /// A word to find the snapshot by; may be given several times
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
    /// Leave out what this pattern fits; may be given several times
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// Stay out of other file systems that are mounted below
    #[arg(long)]
    one_file_system: bool,
    /// Read everything, also what seems not to have changed
    #[arg(long)]
    read_all: bool,
    /// What standard input is called in the snapshot
    #[arg(long, value_name = "NAME", default_value = "stdin")]
    stdin_name: String,
    /// Of a PostgreSQL server: dump one database by pg_dump, instead of copying the cluster
    #[arg(long)]
    logical: bool,
    /// The server runs on this machine, with this data directory: read its files where they are
    #[arg(long, value_name = "DIR", conflicts_with = "logical")]
    data_dir: Option<std::path::PathBuf>,
    /// The database to dump, if not the one in the URL
    #[arg(long, value_name = "NAME", requires = "logical")]
    database: Option<String>,
    /// Where PostgreSQL's programs are
    #[arg(long, value_name = "DIR", requires = "logical")]
    bin: Option<std::path::PathBuf>,
    /// What the snapshot needs can be deleted by nobody for so long (S3 with Object Lock)
    #[arg(long, value_name = "TIME")]
    lock: Option<Span>,
    /// Who can shorten that: whoever may bypass governance, or nobody
    #[arg(long, value_enum, default_value_t = LockMode::Governance, requires = "lock")]
    lock_mode: LockMode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum LockMode {
    Governance,
    Compliance,
}

pub async fn main(args: Args, muster: &Muster, output: &Output) -> Done {
    let ask = Create {
        source: args.source,
        postgres: Postgres { logical: args.logical, data_dir: args.data_dir, database: args.database, bin: args.bin },
        at: args.compression.on(args.repo.at()),
        tags: args.tag,
        exclude: args.exclude,
        one_file_system: args.one_file_system,
        read_all: args.read_all,
        stdin_name: args.stdin_name,
        lock: args.lock.map(|length| Lock { length, compliance: args.lock_mode == LockMode::Compliance }),
    };
    let (watch, line) = live::start("backing up", muster, output);
    let report = muster.backup_create(&ask, &watch).await;
    drop(line);
    let report = report?;
    if output.json {
        output.object(&json!(report));
    } else {
        told(&report, output);
    }
    Ok(u8::from(!report.is_good()))
}

fn told(report: &BackupReport, output: &Output) {
    let wrong = output.paint("✗", "31");
    for lost in &report.unreadable {
        output.say(format!("{wrong} {} is not in the snapshot: {}", lost.path, lost.why));
    }
    for page in &report.corrupt {
        output.say(format!("{wrong} {page}: its checksum is wrong; it is in the snapshot as it is"));
    }
    for path in &report.changed {
        output.say(format!("{wrong} {path} changed while it was read: what is in the snapshot may be no state that it ever had"));
    }
    output.line(format!(
        "snapshot {}: {}, {} of {}",
        short(&report.snapshot),
        counted(report.files, "file", "files"),
        size(report.bytes),
        report.source
    ));
    output.line(format!(
        "read {}, new {}, stored {} in {}",
        size(report.bytes_read),
        size(report.bytes_new),
        size(report.bytes_stored),
        ms(Some(report.duration_ms.into()))
    ));
    if let Some(until) = &report.locked_until {
        output.line(format!("locked until {until}"));
    }
    if !report.is_good() {
        let missing = counted(report.unreadable.len() as u64, "file is missing", "files are missing");
        let changed = counted(report.changed.len() as u64, "changed while it was read", "changed while they were read");
        let corrupt = counted(report.corrupt.len() as u64, "page is corrupt", "pages are corrupt");
        output.say(if report.corrupt.is_empty() {
            format!("the snapshot is there, but not complete: {missing}, {changed}")
        } else {
            format!("the snapshot is there, but the database is damaged: {corrupt}")
        });
    }
}
