//! `muster backup`: the repository. Here are the commands and what they have in common; what each prints is in a file
//! of its own.

mod changes;
mod copy;
mod create;
mod forget;
mod key;
mod list;
mod live;
mod prune;
mod restore;
mod stats;
mod verify;

use super::{Done, output::Output};
use crate::service::{Muster, backup::place::Where};
use std::path::PathBuf;

const CODES: &str = "Exit codes: 0 done and good, 1 done and something is amiss, 2 could not run, 3 interrupted.";

#[derive(clap::Args)]
#[command(
    after_help = "Begin with:\n  head -c 32 /dev/urandom | base64 > vault.pw && chmod 600 vault.pw   # keep a copy elsewhere\n  muster backup create /srv/models --repo /mnt/vault --password-file vault.pw\nA repository is a path, s3://BUCKET[/PREFIX], or a name under `repositories` in the estate.\nIts secret comes from --key-file, --password-file, MUSTER_REPO_PASSWORD, or the estate, in that order.\nA snapshot is named by the beginning of its ID, or `latest`."
)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Back up a folder, a file, a bucket, or standard input
    Create(create::Args),
    /// The snapshots, oldest first
    List(list::Args),
    /// One snapshot, and the files in it
    Show(list::ShowArgs),
    /// What differs between two snapshots
    Diff(changes::Args),
    /// Bring a snapshot back, all or a part of it
    Restore(restore::Args),
    /// Is everything there, and what it was?
    Verify(verify::Args),
    /// Let snapshots go, by name or by a rule
    Forget(forget::Args),
    /// Give back the space of what no snapshot needs
    Prune(prune::Args),
    /// The same repository in a second place
    Copy(copy::Args),
    /// Who may open the repository: list, add, rotate, remove
    Key(key::Args),
    /// How much the repository holds, and what that takes
    Stats(stats::Args),
}

/// Which repository, and what opens it.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct RepoArgs {
    /// The repository: a path, s3://BUCKET[/PREFIX], or a name in the estate; the estate's only one if left out
    #[arg(long, value_name = "URL", env = "MUSTER_REPO")]
    repo: Option<String>,
    /// A file that holds its password
    #[arg(long, value_name = "FILE", conflicts_with = "key_file")]
    password_file: Option<PathBuf>,
    /// A file that is its key
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

impl RepoArgs {
    pub(super) fn at(&self) -> Where {
        let (password_file, key_file) = (self.password_file.clone(), self.key_file.clone());
        Where { repo: self.repo.clone(), password_file, key_file, compression: None }
    }
}

/// For commands that write content or log.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(super) struct CompressionArg {
    /// How much work goes into making smaller what is stored; what the estate says of the repository, or standard, if left out
    #[arg(long, value_enum, value_name = "HOW")]
    compression: Option<Compression>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Compression {
    None,
    Fast,
    Standard,
}

impl CompressionArg {
    pub(super) fn on(self, at: Where) -> Where {
        use crate::model::estate::Compression as How;
        let how = self.compression.map(|how| match how {
            Compression::None => How::None,
            Compression::Fast => How::Fast,
            Compression::Standard => How::Standard,
        });
        Where { compression: how, ..at }
    }
}

pub async fn main(args: Args, mut muster: Muster, output: &Output) -> Done {
    muster.interrupt = super::output::interrupts();
    match args.command {
        Command::Create(args) => create::main(args, &muster, output).await,
        Command::List(args) => list::main(args, &muster, output).await,
        Command::Show(args) => list::show(args, &muster, output).await,
        Command::Diff(args) => changes::main(args, &muster, output).await,
        Command::Restore(args) => restore::main(args, &muster, output).await,
        Command::Verify(args) => verify::main(args, &muster, output).await,
        Command::Forget(args) => forget::main(args, &muster, output).await,
        Command::Prune(args) => prune::main(args, &muster, output).await,
        Command::Copy(args) => copy::main(args, &muster, output).await,
        Command::Key(args) => key::main(args, &muster, output).await,
        Command::Stats(args) => stats::main(args, &muster, output).await,
    }
}

/// A size as a person reads it.
#[must_use]
pub(super) fn size(bytes: u64) -> String {
    let (mut value, mut unit) = (bytes as f64, "B");
    for next in ["KiB", "MiB", "GiB", "TiB", "PiB"] {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    match unit {
        "B" => format!("{bytes} B"),
        _ if value < 9.995 => format!("{value:.2} {unit}"),
        _ if value < 99.95 => format!("{value:.1} {unit}"),
        _ => format!("{value:.0} {unit}"),
    }
}

/// `1 file`, `2 files`.
#[must_use]
pub(super) fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{} {}", thousands(count), if count == 1 { one } else { many })
}

/// 1234567 as 1,234,567.
#[must_use]
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// An identifier as it is shown and typed.
#[must_use]
fn short(id: &impl std::fmt::Display) -> String {
    id.to_string().chars().take(10).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_counts_are_short_and_true() {
        let shown = [0, 1023, 1024, 10_230, 102_400, 1_048_576, 2_175_795_200, u64::MAX].map(size);
        assert_eq!(shown, ["0 B", "1023 B", "1.00 KiB", "9.99 KiB", "100 KiB", "1.00 MiB", "2.03 GiB", "16384 PiB"]);
        assert_eq!([1, 999, 1_000, 1_234_567].map(thousands), ["1", "999", "1,000", "1,234,567"]);
        assert_eq!((counted(1, "file", "files"), counted(0, "file", "files")), ("1 file".to_owned(), "0 files".to_owned()));
    }
}
