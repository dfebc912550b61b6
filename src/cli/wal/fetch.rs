//! `muster wal fetch`. Its exit codes are PostgreSQL's: 1 to 125 say that there is no such file, upon which a recovery
//! ends; from 126 on that something is wrong, upon which it stops. So *whatever* goes wrong here must end with 126,
//! even a word on the command line that this Muster does not know, and a panic.

use super::{Done, Output, RepoArgs};
use crate::service::{
    Muster,
    wal::fetch::{Fetch, Fetched},
};
use serde_json::json;
use std::path::PathBuf;

/// PostgreSQL stops the recovery.
pub const TROUBLE: u8 = 126;

#[derive(clap::Args)]
#[command(
    after_help = "Example, in postgresql.conf (`muster backup restore` writes it):\n  restore_command = 'muster wal fetch %f %p --repo /mnt/vault --key-file /etc/muster/wal.key'\nSegments behind the one that is asked for are fetched as well and kept in `muster.ahead` beside it.\nExit codes: 0 it is there, 1 there is no such file and none that comes after it, 126 anything else: a recovery stops then,\nrather than to end as if the log had ended."
)]
pub struct Args {
    /// What is wanted: `%f`
    #[arg(value_name = "NAME")]
    name: String,
    /// Where it goes: `%p`
    #[arg(value_name = "PATH")]
    to: PathBuf,
    #[command(flatten)]
    repo: RepoArgs,
    /// The cluster's system identifier; read from `global/pg_control` beside the target if left out
    #[arg(long, value_name = "NUMBER")]
    system: Option<String>,
    /// How many segments behind it are fetched as well
    #[arg(long, value_name = "COUNT", default_value_t = 8, value_parser = clap::value_parser!(u64).range(0..=64))]
    ahead: u64,
}

/// Is that what this process was started for? Asked before anything is parsed.
#[must_use]
pub fn is_fetch() -> bool {
    let mut words = std::env::args().skip(1).skip_while(|word| word != "wal");
    words.next().is_some() && words.next().is_some_and(|word| word == "fetch")
}

pub async fn main(args: Args, muster: &Muster, output: &Output) -> Done {
    let ask = Fetch { at: args.repo.at(), name: args.name, to: args.to, system: args.system, ahead: args.ahead };
    match muster.wal_fetch(&ask).await {
        Ok(fetched) => {
            output.object(&json!({ "name": ask.name, "fetched": fetched }));
            Ok(u8::from(fetched == Fetched::Absent))
        }
        Err(error) => {
            let _ = output.error(&error);
            Ok(TROUBLE)
        }
    }
}
