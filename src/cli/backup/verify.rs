//! `muster backup verify`.

use super::{
    super::{
        Done,
        output::{Output, ms},
    },
    CODES, RepoArgs, counted, live, short, size,
};
use crate::service::{
    Muster,
    backup::verify::{Verify, VerifyReport},
};
use serde_json::json;

#[derive(clap::Args)]
#[command(after_help = format!("Examples:\n  muster backup verify --repo vault                      every object is there, every list is read\n  muster backup verify --repo vault --read-data=5        and five packs of a hundred, by chance\n  muster backup verify latest --repo vault --read-data   and all that the newest snapshot needs\nWhat is damaged is named, with the files of each snapshot that it touches.\n{CODES}"))]
pub struct Args {
    /// A snapshot: the beginning of its ID, or `latest`; the whole repository if left out
    #[arg(value_name = "ID")]
    id: Option<String>,
    #[command(flatten)]
    repo: RepoArgs,
    /// Read, decrypt and compare the data as well; with =PERCENT, so many packs of a hundred
    #[arg(long, value_name = "PERCENT", num_args = 0..=1, require_equals = true, default_missing_value = "100", value_parser = clap::value_parser!(u8).range(1..=100))]
    read_data: Option<u8>,
}

pub async fn main(args: Args, muster: &Muster, output: &Output) -> Done {
    let ask = Verify { at: args.repo.at(), snapshot: args.id, percent: args.read_data };
    let (watch, line) = live::start("verifying", muster, output);
    let report = muster.backup_verify(&ask, &watch).await;
    drop(line);
    let report = report?;
    if output.json {
        output.object(&json!(report));
    } else {
        told(&report, output);
    }
    Ok(u8::from(!report.good))
}

fn told(report: &VerifyReport, output: &Output) {
    for problem in &report.problems {
        output.line(format!("✗ {problem}"));
    }
    for file in &report.touched {
        output.line(format!("✗ snapshot {}: {} cannot be restored: {}", short(&file.snapshot), file.path, file.why));
    }
    for notice in &report.notices {
        output.line(format!("· {notice}"));
    }
    let data = match report.packs_read {
        0 => "the data were not read (--read-data)".to_owned(),
        packs => {
            let chunks = counted(report.chunks_read, "chunk", "chunks");
            format!("{} with {chunks} read, {}", counted(packs, "pack", "packs"), size(report.bytes_read))
        }
    };
    output.line(format!(
        "{}: {}, {}; {data}; {}",
        if report.good { "good" } else { "NOT good" },
        counted(report.snapshots, "snapshot", "snapshots"),
        counted(report.files, "file", "files"),
        ms(Some(report.duration_ms.into()))
    ));
    if !report.good {
        output.say(
            "what heals it: take a damaged object away (keep it, some of it may be whole), then back up again while the source is there, \
             or copy from a second place. Prune nothing before: docs/backups.md, \"What is damaged\", has each kind",
        );
    }
}
