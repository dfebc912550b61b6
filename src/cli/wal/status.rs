//! `muster wal status`.

use super::{
    super::{
        backup::{counted, size},
        output::table,
    },
    Done, Output, RepoArgs,
};
use crate::model::time::Span;
use crate::service::{
    Muster,
    wal::status::{ClusterStatus, Status, StatusReport},
};
use serde_json::json;

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  muster wal status --repo vault --key-file wal.key --max-age 26h\n  muster wal status --repo vault --key-file wal.key --server postgres://monitor@db.east:5432/ --slot muster --max-lag 67108864\nWith --server, the server is asked as well: whether it can archive, how far it is ahead, what its slot keeps.\nExit codes: 0 all is well, 1 something is amiss, 2 could not run."
)]
pub struct Args {
    #[command(flatten)]
    repo: RepoArgs,
    /// Only the cluster with this system identifier
    #[arg(long, value_name = "NUMBER")]
    system: Option<String>,
    /// The newest base backup may be so old
    #[arg(long, value_name = "TIME")]
    max_age: Option<Span>,
    /// Ask the running server as well
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// Its replication slot that `muster wal receive` uses
    #[arg(long, value_name = "NAME", requires = "server")]
    slot: Option<String>,
    /// The log in the repository may be so many bytes behind the server's
    #[arg(long, value_name = "BYTES", requires = "server")]
    max_lag: Option<u64>,
}

pub async fn main(args: Args, muster: &Muster, output: &Output) -> Done {
    let ask = Status {
        at: args.repo.at(),
        system: args.system,
        max_age: args.max_age,
        server: args.server,
        slot: args.slot,
        max_lag: args.max_lag,
    };
    let report = muster.wal_status(&ask).await?;
    if output.json {
        output.object(&json!(report));
    } else {
        told(&report, output);
    }
    Ok(u8::from(!report.good))
}

fn told(report: &StatusReport, output: &Output) {
    for cluster in &report.clusters {
        told_cluster(cluster, output);
    }
    if let Some(server) = &report.server {
        let lag = server.lag_bytes.map_or("unknown".to_owned(), size);
        output.line(format!("{} is at {}; the log in the repository is {lag} behind it", server.server, server.position));
    }
    for problem in &report.problems {
        output.line(format!("✗ {problem}"));
    }
    if report.good {
        output.line("nothing is amiss");
    }
}

fn told_cluster(cluster: &ClusterStatus, output: &Output) {
    output.line(format!("cluster {}, segments of {}", cluster.system_identifier, size(cluster.segment_size.into())));
    let mut shown = table(&["TIMELINE", "FIRST", "LAST", "SEGMENTS", "GAPS", "STORED", "NEWEST"]);
    for one in &cluster.timelines {
        shown.add_row(vec![
            one.timeline.to_string(),
            one.first.clone(),
            one.last.clone(),
            one.segments.to_string(),
            one.gaps.len().to_string(),
            size(one.stored_bytes),
            one.newest_at.clone().unwrap_or_default(),
        ]);
    }
    output.line(shown.trim_fmt());
    let mut shown = table(&["BASE BACKUP", "OF", "TIMELINE", "FROM", "RECOVERABLE UNTIL"]);
    for base in &cluster.base_backups {
        let until = match (&base.until_about, base.recoverable) {
            (_, false) => "cannot be used".to_owned(),
            (Some(about), true) => format!("{} (timeline {}, about {about})", base.until, base.until_timeline),
            (None, true) => format!(
                "{} (timeline {}); then {} missing",
                base.until,
                base.until_timeline,
                counted(base.missing.len() as u64, "segment is", "segments are")
            ),
        };
        shown.add_row(vec![base.snapshot.short(), base.time.clone(), base.timeline.to_string(), base.start.to_string(), until]);
    }
    if !cluster.base_backups.is_empty() {
        output.line(shown.trim_fmt());
    }
}
