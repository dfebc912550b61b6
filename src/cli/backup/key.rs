//! `muster backup key`: who may open the repository.

use super::{
    super::{
        Done,
        output::{Output, seconds, table},
    },
    CODES, RepoArgs, short,
};
use crate::service::{
    Muster,
    backup::key::{Key, NewSecret},
};
use serde_json::json;
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(after_help = format!("Examples:\n  muster backup key list --repo vault\n  muster backup key add --repo vault --new-password-file break-glass.pw --label break-glass\n  muster backup key remove 5d21 --repo vault\n  muster backup key rotate --repo vault --new-key-file vault.key --revoke-others\n{CODES}"))]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// The keys that open the repository
    #[command(after_help = "Example:\n  muster backup key list --repo vault")]
    List {
        #[command(flatten)]
        repo: RepoArgs,
    },
    /// One more password or key file that opens it
    #[command(after_help = "Example:\n  muster backup key add --repo vault --new-password-file break-glass.pw --label break-glass")]
    Add {
        #[command(flatten)]
        repo: RepoArgs,
        #[command(flatten)]
        new: NewArgs,
    },
    /// Begin a new master key: what is written from now on is under it, and one password or key file opens it
    #[command(
        after_help = "What is there stays readable and is not written again. Without a new secret, the one that opens the repository now\nstays. Whoever had another key needs a new one: `muster backup key add`. Whoever copied the old keyring can still read\nwhat was written before; no rotation can take that back.\n\nExample:\n  muster backup key rotate --repo vault --new-key-file vault.key --revoke-others"
    )]
    Rotate {
        #[command(flatten)]
        repo: RepoArgs,
        #[command(flatten)]
        new: NewArgs,
        /// The other keys no longer open the repository
        #[arg(long)]
        revoke_others: bool,
    },
    /// A key no longer opens it
    #[command(
        after_help = "Whoever had it may have copied what it opens: then `muster backup key rotate` as well.\n\nExample:\n  muster backup key remove 5d21 --repo vault"
    )]
    Remove {
        /// The beginning of its ID; of what is damaged among the keys, of its name under keys/
        #[arg(value_name = "ID")]
        id: String,
        #[command(flatten)]
        repo: RepoArgs,
    },
}

#[derive(clap::Args)]
struct NewArgs {
    /// A file that holds the new password
    #[arg(long, value_name = "FILE", conflicts_with = "new_key_file")]
    new_password_file: Option<PathBuf>,
    /// A file that is the new key: at least 32 random bytes
    #[arg(long, value_name = "FILE")]
    new_key_file: Option<PathBuf>,
    /// Whose it is, or what for; the person and the host if left out
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
}

impl NewArgs {
    fn secret(self) -> NewSecret {
        NewSecret { password_file: self.new_password_file, key_file: self.new_key_file, label: self.label }
    }
}

pub async fn main(args: Args, muster: &Muster, output: &Output) -> Done {
    let gone = |key: &Key| format!("key {} ({}) is gone", short(&key.id), key.label);
    let mut code = 0;
    let (json, lines) = match args.command {
        Command::List { repo } => {
            let found = muster.backup_keys(&repo.at()).await?;
            for damaged in &found.damaged {
                output.say(format!("{} {damaged}", output.paint("✗", "31")));
            }
            code = u8::from(!found.damaged.is_empty());
            (json!(found), vec![listed(&found.keys)])
        }
        Command::Add { repo, new } => {
            let key = muster.backup_key_add(&repo.at(), &new.secret()).await?;
            (json!({ "key": key }), vec![format!("key {} ({}) opens the repository from now on", short(&key.id), key.label)])
        }
        Command::Rotate { repo, new, revoke_others } => {
            let done = muster.backup_key_rotate(&repo.at(), &new.secret(), revoke_others).await?;
            let mut lines: Vec<String> = done.removed.iter().map(gone).collect();
            let (id, label) = (short(&done.key.id), &done.key.label);
            lines.push(format!(
                "key {id} ({label}) opens the repository from now on; what is written from now on is under master key {}",
                done.generation
            ));
            (json!(done), lines)
        }
        Command::Remove { id, repo } => {
            let done = muster.backup_key_remove(&repo.at(), &id).await?;
            let damaged = done.damaged.iter().map(|place| format!("{place}, which was damaged, is gone"));
            (json!(done), done.key.iter().map(gone).chain(damaged).collect())
        }
    };
    output.object(&json);
    if !output.json {
        for line in &lines {
            output.line(line);
        }
    }
    Ok(code)
}

fn listed(keys: &[Key]) -> String {
    let mut table = table(&["KEY", "CREATED", "OPENS WITH", "", "LABEL"]);
    for key in keys {
        let current = if key.current { "used now" } else { "" };
        table.add_row(vec![short(&key.id), seconds(key.created), key.opens_with.to_owned(), current.to_owned(), key.label.clone()]);
    }
    table.trim_fmt()
}
