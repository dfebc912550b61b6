//! `muster backup forget`.

use super::{
    super::{
        Done,
        output::{Output, seconds, table},
    },
    CODES, RepoArgs, counted, short,
};
use crate::service::{
    Muster,
    backup::{
        forget::{Forget, Forgotten, retention::Retention},
        look::Filter,
    },
};
use serde_json::json;

#[derive(clap::Args)]
#[command(after_help = format!("Examples:\n  muster backup forget --repo vault --keep-daily 7 --keep-weekly 4 --keep-monthly 12 --keep-yearly 3 --dry-run\n  muster backup forget 3f9a1c 88e0d2 --repo vault\nOf each period the last snapshot is kept, in UTC, for the newest so many periods that have one. Each source of each host\nis judged apart, and its newest snapshot always stays. Only the snapshots are deleted: `muster backup prune` frees space.\n{CODES}"))]
pub struct Args {
    /// Snapshots to forget, by the beginnings of their IDs, damaged ones too; then no rule applies
    #[arg(value_name = "ID", conflicts_with_all = ["keep_last", "keep_daily", "keep_weekly", "keep_monthly", "keep_yearly", "source", "tag"])]
    ids: Vec<String>,
    #[command(flatten)]
    repo: RepoArgs,
    /// Keep the newest N
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    keep_last: u32,
    /// Keep the last of each of N days
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    keep_daily: u32,
    /// Keep the last of each of N weeks (from Monday on)
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    keep_weekly: u32,
    /// Keep the last of each of N months
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    keep_monthly: u32,
    /// Keep the last of each of N years
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    keep_yearly: u32,
    /// Judge only the snapshots of this source; the others stay
    #[arg(long, value_name = "SOURCE")]
    source: Option<String>,
    /// Judge only the snapshots with this tag; the others stay
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
    /// Say what would be forgotten, and forget nothing
    #[arg(long)]
    dry_run: bool,
}

pub async fn main(args: Args, muster: &Muster, output: &Output) -> Done {
    let ask = Forget {
        at: args.repo.at(),
        ids: args.ids,
        rule: Retention {
            last: args.keep_last,
            daily: args.keep_daily,
            weekly: args.keep_weekly,
            monthly: args.keep_monthly,
            yearly: args.keep_yearly,
        },
        filter: Filter { source: args.source, tags: args.tag },
        dry_run: args.dry_run,
    };
    let done = muster.backup_forget(&ask).await?;
    if output.json {
        output.object(&json!(done));
    } else {
        told(&done, output);
    }
    // What is only to be forgotten is damaged still.
    Ok(u8::from(!done.damaged.is_empty() || (done.dry_run && !done.forgotten_damaged.is_empty())))
}

fn told(done: &Forgotten, output: &Output) {
    for damaged in &done.damaged {
        output.say(format!("{} {damaged}", output.paint("✗", "31")));
    }
    let mut table = table(&["SNAPSHOT", "TIME", "HOST", "SOURCE", ""]);
    let mut fates: Vec<_> = done.kept.iter().chain(&done.forgotten).collect();
    fates.sort_by_key(|fate| fate.shot.time);
    for fate in fates {
        let words: Vec<&str> = fate.reasons.iter().map(|reason| reason.word()).collect();
        let words = match (words.is_empty(), done.dry_run) {
            (true, true) => "would be forgotten".to_owned(),
            (true, false) => "forgotten".to_owned(),
            _ => format!("kept: {}", words.join(", ")),
        };
        table.add_row(vec![fate.shot.short.clone(), seconds(fate.shot.time), fate.shot.host.clone(), fate.shot.source.clone(), words]);
    }
    if !table.is_empty() {
        output.line(table.trim_fmt());
    }
    for id in &done.forgotten_damaged {
        output.line(format!(
            "snapshot {}, which cannot be read, is {}",
            short(id),
            if done.dry_run { "to be forgotten" } else { "forgotten" }
        ));
    }
    let (forgotten, kept) = ((done.forgotten.len() + done.forgotten_damaged.len()) as u64, done.kept.len());
    let would = if done.dry_run { "would be forgotten" } else { "forgotten" };
    output.line(format!("{} {would}, {kept} kept", counted(forgotten, "snapshot", "snapshots")));
    if forgotten > 0 && !done.dry_run {
        output.say(format!("what they alone used is freed by: {} backup prune", output.program));
    }
}
