//! `muster wal archive`.

use super::{CompressionArg, Done, Output, RepoArgs};
use crate::service::{Muster, wal::archive::Archive};
use serde_json::json;
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(
    after_help = "Example, in postgresql.conf:\n  archive_command = 'muster wal archive %p --repo /mnt/vault --key-file /etc/muster/wal.key'\nIt ends with 0 only when the file is durable in the repository. The same file again is no news; another one under the same\nname is refused, since then two servers write one history. So is a segment that does not fit its name.\nExit codes: 0 it is durable, 2 it is not, and PostgreSQL keeps it and asks again."
)]
pub struct Args {
    /// The file: `%p`
    #[arg(value_name = "PATH")]
    file: PathBuf,
    #[command(flatten)]
    repo: RepoArgs,
    #[command(flatten)]
    compression: CompressionArg,
    /// What it is called, if not as the file is
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The cluster's system identifier; read from `global/pg_control` beside the file if left out
    #[arg(long, value_name = "NUMBER")]
    system: Option<String>,
}

pub async fn main(args: Args, muster: &Muster, output: &Output) -> Done {
    let ask = Archive { at: args.compression.on(args.repo.at()), file: args.file, name: args.name, system: args.system };
    let report = muster.wal_archive(&ask).await?;
    output.object(&json!(report));
    // Otherwise silent: what this says ends in the server's own log, once for each segment.
    Ok(0)
}
