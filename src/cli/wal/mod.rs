//! `muster wal`: what PostgreSQL calls to put its log into a repository and to have it back, and what people look at.

mod archive;
mod fetch;
mod receive;
mod status;

use super::{
    Done,
    backup::{CompressionArg, RepoArgs},
    output::Output,
};
use crate::service::Muster;
pub use fetch::{TROUBLE, is_fetch};

#[derive(clap::Args)]
#[command(
    after_help = "In postgresql.conf:\n  archive_mode = on\n  archive_command = 'muster wal archive %p --repo /mnt/vault --key-file /etc/muster/wal.key'\n  restore_command = 'muster wal fetch %f %p --repo /mnt/vault --key-file /etc/muster/wal.key'      # `muster backup restore` writes it\nA password takes 0.15 s to open a repository, each time; a key file takes none of that and is as safe, since it is random:\n  head -c 64 /dev/urandom > wal.key && chmod 600 wal.key && muster backup key add --new-key-file wal.key --label wal --repo /mnt/vault --password-file vault.pw"
)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Put one file of a server's log into the repository: its `archive_command`
    Archive(archive::Args),
    /// Have one file of a log back: a server's `restore_command`
    Fetch(fetch::Args),
    /// Stream a server's log into the repository as it is written
    Receive(receive::Args),
    /// What there is of each cluster's log, until when its base backups can be led, and what is amiss
    Status(status::Args),
}

pub async fn main(args: Args, mut muster: Muster, output: &Output) -> Done {
    match args.command {
        Command::Archive(args) => archive::main(args, &muster, output).await,
        Command::Fetch(args) => fetch::main(args, &muster, output).await,
        Command::Status(args) => status::main(args, &muster, output).await,
        Command::Receive(args) => {
            muster.interrupt = super::output::interrupts();
            receive::main(args, &muster, output).await
        }
    }
}
