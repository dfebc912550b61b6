//! `muster wal receive`.

use super::{CompressionArg, Done, Output, RepoArgs};
use crate::model::time::Span;
use crate::service::{
    Muster,
    wal::receive::{Heard, Receive},
};
use serde_json::json;

#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  muster wal receive postgres://backup@db.east:5432/ --slot muster --create-slot --repo vault --key-file wal.key\nIts role takes REPLICATION. The log is in the repository within --every of being written, piece by piece while a segment fills,\nand the server hears that it is flushed only then: it keeps all that is not, and can have this as a synchronous standby\n(synchronous_standby_names = 'muster'). It goes on until Ctrl-C; broken connections are made again.\nA slot holds log back while nothing receives: bound it with max_slot_wal_keep_size.\nExit codes: 0 it was stopped, 2 it could not go on."
)]
pub struct Args {
    /// The server: postgres://USER@HOST[:PORT]/
    #[arg(value_name = "URL")]
    url: String,
    /// The replication slot, which has the server keep what was not received yet
    #[arg(long, value_name = "NAME")]
    slot: String,
    /// Make the slot if it is not there
    #[arg(long)]
    create_slot: bool,
    #[command(flatten)]
    repo: RepoArgs,
    #[command(flatten)]
    compression: CompressionArg,
    /// The longest that log waits before it is written
    #[arg(long, value_name = "TIME", default_value = "200ms")]
    every: Span,
    /// The server has removed log that never came here: go on from what it has
    #[arg(long)]
    accept_gap: bool,
}

pub async fn main(args: Args, muster: &Muster, output: &Output) -> Done {
    let ask = Receive {
        at: args.compression.on(args.repo.at()),
        url: args.url,
        slot: args.slot,
        create_slot: args.create_slot,
        every: args.every,
        accept_gap: args.accept_gap,
    };
    let position = muster.wal_receive(&ask, &|heard| tell(heard, output)).await?;
    output.object(&json!({ "position": position }));
    Ok(0)
}

fn tell(heard: &Heard, output: &Output) {
    if output.json {
        output.object(&json!(heard));
        return;
    }
    output.say(match heard {
        Heard::SlotCreated { slot } => format!("made the replication slot `{slot}`"),
        Heard::Streaming { server, system_identifier, timeline, from } => {
            format!("receiving the log of cluster {system_identifier} from {server}, timeline {timeline}, from {from} on")
        }
        Heard::Flushed { position, lag_bytes, .. } => format!("in the repository up to {position}, {lag_bytes} bytes behind the server"),
        Heard::Timeline { timeline, from } => format!("timeline {timeline} took over at {from}"),
        Heard::Gap { from, to } => format!("{} the log from {from} to {to} is not in the repository", output.paint("✗", "31")),
        Heard::Trouble { why, again_in_ms } => format!("{} {why}; again in {again_in_ms} ms", output.paint("!", "33")),
        Heard::Stopped { position } => format!("stopped; all up to {position} is in the repository"),
    });
}
