//! `muster backup list` and `show`.

use super::{
    super::{
        Done,
        output::{Output, ms, seconds, table},
    },
    CODES, RepoArgs, counted, live, size, thousands,
};
use crate::service::{
    Muster,
    backup::look::{File, Filter, Listed, Shot},
};
use serde_json::json;

#[derive(clap::Args)]
#[command(after_help = format!("Examples:\n  muster backup list --repo vault\n  muster backup list --repo /mnt/vault --source /srv/models --tag nightly\n  muster backup list --repo vault --json | jq -r '.snapshots[-1].id'\n{CODES}"))]
pub struct Args {
    #[command(flatten)]
    repo: RepoArgs,
    /// Only those of this path, s3://BUCKET/PREFIX, or name of standard input
    #[arg(long, value_name = "SOURCE")]
    source: Option<String>,
    /// Only those with this tag; given several times, with all of them
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
}

#[derive(clap::Args)]
#[command(after_help = format!("Examples:\n  muster backup show latest --repo vault\n  muster backup show 3f9a1c --repo vault --files\nWith --json and --files, each file is a line of its own before the last, which is the snapshot.\n{CODES}"))]
pub struct ShowArgs {
    /// A snapshot: the beginning of its ID, or `latest`
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    repo: RepoArgs,
    /// Everything that is in it
    #[arg(long)]
    files: bool,
}

pub async fn main(args: Args, muster: &Muster, output: &Output) -> Done {
    let listed = muster.backup_list(&args.repo.at(), &Filter { source: args.source, tags: args.tag }).await?;
    if output.json {
        output.object(&json!(listed));
    } else {
        told(&listed, output);
    }
    Ok(u8::from(!listed.damaged.is_empty()))
}

fn told(listed: &Listed, output: &Output) {
    for damaged in &listed.damaged {
        output.say(format!("{} {damaged}", output.paint("✗", "31")));
    }
    if listed.snapshots.is_empty() {
        output.say("there is no such snapshot");
        return;
    }
    let mut table = table(&["SNAPSHOT", "TIME", "HOST", "FILES", "SIZE", "NEW", "PROOF", "TAGS", "SOURCE"]);
    for shot in &listed.snapshots {
        table.add_row(vec![
            shot.short.clone(),
            seconds(shot.time),
            shot.host.clone(),
            thousands(shot.stats.files),
            size(shot.stats.bytes),
            size(shot.stats.bytes_new),
            shot.proof.as_ref().map_or("-", |proof| proof.word()).to_owned(),
            shot.tags.join(" "),
            shot.source.clone(),
        ]);
    }
    output.line(table.trim_fmt());
}

pub async fn show(args: ShowArgs, muster: &Muster, output: &Output) -> Done {
    let watch = live::quiet(output);
    let each = |file: &File| {
        if output.json {
            output.object(&json!({ "file": file }));
        } else {
            output.line(listed(file));
        }
    };
    let shot = muster.backup_show(&args.repo.at(), &args.id, &watch, args.files.then_some(&each)).await?;
    if output.json {
        output.object(&json!(shot));
    } else if args.files {
        output.say(format!("{} in snapshot {}", counted(shot.stats.files, "file", "files"), shot.short));
    } else {
        shown(&shot, output);
    }
    Ok(0)
}

/// As `ls -l` does, without names for owners: the snapshot may come from elsewhere.
fn listed(file: &File) -> String {
    let mark = match file.kind {
        "folder" => 'd',
        "symlink" => 'l',
        "fifo" => 'p',
        "socket" => 's',
        "char-device" => 'c',
        "block-device" => 'b',
        _ => '-',
    };
    let mode = file.mode.map_or_else(|| "---------".to_owned(), permissions);
    let owner = file.uid.zip(file.gid).map_or_else(|| "-".to_owned(), |(uid, gid)| format!("{uid}:{gid}"));
    let mtime = file.mtime.as_deref().and_then(|at| at.get(..19)).unwrap_or("-");
    let to = file.to.as_ref().map(|to| format!(" -> {to}")).unwrap_or_default();
    let changed = if file.changed_while_read { "  (changed while it was read)" } else { "" };
    format!("{mark}{mode} {owner:>11} {:>10} {mtime:>19} {}{to}{changed}", size(file.size), file.path)
}

fn permissions(mode: u32) -> String {
    ['r', 'w', 'x'].iter().cycle().take(9).enumerate().map(|(at, letter)| if mode & (0o400 >> at) == 0 { '-' } else { *letter }).collect()
}

fn shown(shot: &Shot, output: &Output) {
    let stats = &shot.stats;
    let holds =
        [counted(stats.files, "file", "files"), counted(stats.folders, "folder", "folders"), counted(stats.others, "other", "others")];
    let rows = [
        ("snapshot", shot.id.to_string()),
        ("time", seconds(shot.time)),
        ("source", shot.source.clone()),
        ("host", format!("{} ({})", shot.host, shot.user)),
        ("tags", if shot.tags.is_empty() { "-".to_owned() } else { shot.tags.join(" ") }),
        ("compared with", shot.parent.as_ref().map_or_else(|| "-".to_owned(), super::short)),
        ("made by", format!("{} in {}", shot.program, ms(Some(shot.duration_ms.into())))),
        ("holds", format!("{}: {}", holds.join(", "), size(stats.bytes))),
        ("read", format!("{}, of it new {}, stored {}", size(stats.bytes_read), size(stats.bytes_new), size(stats.bytes_stored))),
        ("left out", counted(stats.unreadable, "file that could not be read", "files that could not be read")),
        ("changed meanwhile", counted(stats.changed_while_read, "file", "files")),
    ];
    for (name, value) in rows {
        output.line(format!("{name:<18} {value}"));
    }
}
