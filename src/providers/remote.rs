//! Commands on the machine of a database server or a pooler: this one, or one that `reach` leads to.
//!
//! Arguments stay arguments: nothing is ever put together into the text of a command. Only `ssh` makes one text of them
//! for the other machine's shell, so for it each is quoted. Secrets go by standard input. As root on this machine a
//! command runs as the owner of the directory or file that it is about, since PostgreSQL refuses root.

use super::port::{PortError, PortResult};
use super::postgres::Doing;
use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
};

/// More than any file or answer that is asked for; what is longer is a mistake, or goes into a file.
const MOST: u64 = 4 * 1024 * 1024;
const MOST_ERRORS: usize = 2_000;

/// A machine, and whose commands run there.
#[derive(Clone)]
pub struct Remote {
    /// For messages: `orders in east`.
    pub label: String,
    pub reach: Vec<String>,
    /// On this machine: the owner of this runs them.
    pub owned: PathBuf,
}

pub struct Call<'a> {
    pub argv: Vec<String>,
    pub stdin: Option<Vec<u8>>,
    pub limit: Duration,
    pub doing: Doing,
    /// Where its output goes, instead of into the answer.
    pub into: Option<&'a Path>,
}

#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    /// The end of what it complained about.
    pub errors: String,
}

/// For the shell of another machine.
fn quoted(argument: &str) -> String {
    format!("'{}'", argument.replace('\'', r"'\''"))
}

fn joins_arguments(reach: &[String]) -> bool {
    reach.iter().any(|word| Path::new(word).file_name().is_some_and(|name| name == "ssh"))
}

impl Remote {
    fn command(&self, argv: &[String]) -> PortResult<Command> {
        let ours = argv.iter().map(|a| if joins_arguments(&self.reach) { quoted(a) } else { a.clone() });
        let mut words = self.reach.iter().cloned().chain(ours);
        let program = words.next().filter(|p| !p.is_empty());
        let program = program.ok_or_else(|| PortError::Config(format!("{}: an empty command", self.label)))?;
        let mut command = Command::new(program);
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0).kill_on_drop(true).current_dir("/");
        if self.reach.is_empty() && rustix::process::getuid().is_root() {
            let place = self.owned.display();
            let owner = std::fs::metadata(&self.owned)
                .map_err(|e| PortError::NotFound(format!("{}: `{place}` is not to be found on this machine: {e}", self.label)))?;
            command.uid(owner.uid()).gid(owner.gid());
        }
        Ok(command)
    }

    /// Runs it to its end. An error is what kept it from that: how it ended is in the answer.
    pub async fn run(&self, call: Call<'_>) -> PortResult<Said> {
        let mut command = self.command(&call.argv)?;
        let program = call.argv.first().cloned().unwrap_or_default();
        let child = command.spawn().map_err(|e| {
            PortError::NotFound(format!("{}: `{}` cannot be started: {e}", self.label, self.reach.first().unwrap_or(&program)))
        })?;
        let lost = |why: String| {
            let text = format!("{}: {why}", self.label);
            if call.doing == Doing::Writing { PortError::Unknown(text) } else { PortError::Unreachable(text) }
        };
        let done = tokio::time::timeout(call.limit, finish(child, call.stdin, call.into)).await;
        let said = done
            .map_err(|_| lost(format!("no end within {} s: {}", call.limit.as_secs(), last_word(&call.argv))))?
            .map_err(|e| lost(format!("{}: {e}", last_word(&call.argv))))?;
        if said.code == 255 && joins_arguments(&self.reach) {
            return Err(lost(format!("its machine cannot be reached: {}", said.errors)));
        }
        Ok(said)
    }
}

/// What is worth saying of a command: its program, or what a script of ours is about.
fn last_word(argv: &[String]) -> String {
    let word = if argv.first().is_some_and(|p| p == "sh") { argv.get(3) } else { argv.first() };
    word.cloned().unwrap_or_default()
}

async fn finish(mut child: Child, stdin: Option<Vec<u8>>, into: Option<&Path>) -> std::io::Result<Said> {
    let (input, out, err) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let (Some(mut pipe), Some(bytes)) = (input, stdin) {
            // Who does not read its input need not.
            let _ = pipe.write_all(&bytes).await;
        }
    };
    let output = async {
        let Some(mut out) = out else { return Ok(String::new()) };
        if let Some(path) = into {
            let mut file = tokio::fs::File::create(path).await?;
            tokio::io::copy(&mut out, &mut file).await?;
            file.sync_all().await?;
            return Ok(String::new());
        }
        let mut bytes = Vec::new();
        (&mut out).take(MOST).read_to_end(&mut bytes).await?;
        if bytes.len() as u64 == MOST {
            return Err(std::io::Error::other("its output has no end"));
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let ((), out, errors) = tokio::join!(feed, output, tail(err));
    let (out, errors) = (out?, errors?);
    let status = child.wait().await?;
    Ok(Said { code: status.code().unwrap_or(128), out, errors })
}

/// The end of a stream, all of which is read.
async fn tail(stream: Option<impl AsyncRead + Unpin>) -> std::io::Result<String> {
    let Some(mut stream) = stream else { return Ok(String::new()) };
    let (mut kept, mut chunk) = (Vec::new(), [0_u8; 4096]);
    loop {
        let read = stream.read(&mut chunk).await?;
        if read == 0 {
            return Ok(String::from_utf8_lossy(&kept).trim().to_owned());
        }
        kept.extend_from_slice(chunk.get(..read).unwrap_or_default());
        let extra = kept.len().saturating_sub(MOST_ERRORS);
        kept.drain(..extra);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(argv: &[&str], limit_ms: u64) -> Call<'static> {
        let argv = argv.iter().map(|a| (*a).to_owned()).collect();
        Call { argv, stdin: None, limit: Duration::from_millis(limit_ms), doing: Doing::Writing, into: None }
    }
    fn here(reach: &[&str]) -> Remote {
        Remote { label: "orders in east".into(), reach: reach.iter().map(|a| (*a).to_owned()).collect(), owned: "/tmp".into() }
    }

    #[tokio::test]
    async fn arguments_stay_arguments_also_through_a_shell_that_joins_them() {
        let argv = ["printf", "%s|", "a b", "$(id)", "it's", "\"`;&|<>*\\", ""];
        let want = "a b|$(id)|it's|\"`;&|<>*\\||";
        assert_eq!(here(&[]).run(call(&argv, 5_000)).await.unwrap().out, want);
        // What ssh does: all its arguments, joined by spaces, are the text that a shell reads.
        let dir = tempfile::tempdir().unwrap();
        let ssh = dir.path().join("ssh");
        std::fs::write(&ssh, "#!/bin/sh\nshift\nexec sh -c \"$*\"\n").unwrap();
        std::fs::set_permissions(&ssh, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        assert_eq!(here(&[ssh.to_str().unwrap(), "db-east"]).run(call(&argv, 5_000)).await.unwrap().out, want);
    }

    #[tokio::test]
    async fn how_it_failed_is_told_apart() {
        let said = here(&[]).run(call(&["sh", "-c", "echo no >&2; exit 3"], 5_000)).await.unwrap();
        assert_eq!((said.code, said.errors.as_str()), (3, "no"));
        assert!(matches!(here(&[]).run(call(&["sleep", "5"], 100)).await, Err(PortError::Unknown(_))));
        assert!(matches!(here(&[]).run(call(&["/no/such"], 100)).await, Err(PortError::NotFound(_))));
    }
}
