//! `muster backup stats`.

use super::{
    super::{Done, output::Output},
    CODES, RepoArgs, size, thousands,
};
use crate::service::{Muster, backup::look::Totals};
use serde_json::json;

#[derive(clap::Args)]
#[command(after_help = format!("Examples:\n  muster backup stats --repo vault\n{CODES}"))]
pub struct Args {
    #[command(flatten)]
    repo: RepoArgs,
}

pub async fn main(args: Args, muster: &Muster, output: &Output) -> Done {
    let totals = muster.backup_stats(&args.repo.at()).await?;
    if output.json {
        output.object(&json!(totals));
    } else {
        told(&totals, output);
    }
    Ok(u8::from(!totals.damaged.is_empty()))
}

fn told(totals: &Totals, output: &Output) {
    for damaged in &totals.damaged {
        output.say(format!("{} {damaged}", output.paint("✗", "31")));
    }
    let times = |large: u64, small: u64| if small == 0 { "-".to_owned() } else { format!("{:.2} times", large as f64 / small as f64) };
    let rows = [
        ("repository", format!("{} ({})", totals.repository, totals.id)),
        ("snapshots", format!("{}, which would restore to {}", thousands(totals.snapshots), size(totals.snapshot_bytes))),
        ("content", format!("{} in {} chunks, each once", size(totals.content_bytes), thousands(totals.chunks))),
        ("packs", format!("{} in {} packs", size(totals.pack_bytes), thousands(totals.packs))),
        ("index and the rest", size(totals.index_bytes + totals.other_bytes)),
        ("deduplication", times(totals.snapshot_bytes, totals.content_bytes)),
        ("compression", times(totals.content_bytes, totals.pack_bytes)),
        ("waiting to be freed", format!("{} in {} packs", size(totals.marked_bytes), thousands(totals.marked_packs))),
    ];
    for (name, value) in rows {
        output.line(format!("{name:<20} {value}"));
    }
}
