//! Programs on this machine. Each runs in a process group of its own, without a shell, and is built to
//! outlive Muster: its output goes straight to a file, and it inherits a descriptor that holds a lock.
//! After a crash the lock tells whether it, or any descendant, still lives; the file tells what it said.
//!
//! The lock is `flock`'s, which belongs to the open file, not to the process: Muster opens and locks it,
//! the child gets it as descriptor 3, and Muster's own copy is closed. No other child ever gets it.

use super::{
    clock::Clock,
    port::{PortError, PortResult, ProcessEnd, ProcessSpec, Processes},
};
use async_trait::async_trait;
use command_fds::{CommandFdExt, FdMapping};
use rustix::{
    fs::{FallocateFlags, FlockOperation, fallocate, flock},
    io::Errno,
    process::{Pid, Signal, kill_process_group, test_kill_process_group},
};
use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    path::Path,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt,
    process::{Child, Command},
};

/// The descriptor on which a child holds its lock.
const LOCK_FD: i32 = 3;
/// How long a group may take to end after SIGTERM, before SIGKILL.
const GRACE: Duration = Duration::from_secs(2);
const WATCH: Duration = Duration::from_millis(50);
const DEFAULT_OUTPUT: u64 = 64 * 1024;
/// Holes begin and end at whole blocks of the file system; no usual one has larger ones.
const BLOCK: u64 = 4096;

pub struct LocalProcesses {
    clock: Arc<dyn Clock>,
}

impl LocalProcesses {
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock }
    }

    /// Takes the lock for a child that is about to start. Someone who only looks whether it is free
    /// holds it for an instant, hence the second try.
    async fn lock(&self, path: &str) -> PortResult<OwnedFd> {
        let file = open_lock(path, true).map_err(|e| file_trouble("lock file", path, &e))?;
        for _ in 0..5 {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file.into()),
                Err(Errno::WOULDBLOCK | Errno::INTR) => self.clock.sleep(WATCH).await,
                Err(e) => return Err(file_trouble("lock file", path, &e)),
            }
        }
        Err(PortError::Conflict { found: format!("a process that still holds the lock `{path}`: an earlier attempt lives") })
    }

    fn output(&self, spec: &ProcessSpec) -> PortResult<Output> {
        let limit = if spec.output_limit == 0 { DEFAULT_OUTPUT } else { spec.output_limit };
        let mut options = OpenOptions::new();
        options.read(true).append(true);
        let file = if let Some(path) = &spec.output_file {
            folder_of(path);
            options.create(true).open(path).map_err(|e| file_trouble("output file", path, &e))?
        } else {
            let path = std::env::temp_dir().join(format!("muster-output-{}", self.clock.new_id()));
            let name = path.display().to_string();
            let file = options.create_new(true).open(&path).map_err(|e| file_trouble("output file", &name, &e))?;
            // Nobody needs its name.
            std::fs::remove_file(&path).map_err(|e| file_trouble("output file", &name, &e))?;
            file
        };
        let start = file.metadata().map_or(0, |m| m.len());
        Ok(Output { file, start, limit, freed: 0 })
    }

    /// Waits for its end; meanwhile keeps the output within bounds.
    async fn watch(&self, child: &mut Child, output: &mut Output, deadline: Duration) -> std::io::Result<Option<ExitStatus>> {
        let until = self.clock.monotonic() + deadline;
        loop {
            let left = until.saturating_sub(self.clock.monotonic());
            tokio::select! {
                status = child.wait() => return status.map(Some),
                () = self.clock.sleep(left.min(WATCH)) => {}
            }
            output.keep_within();
            if self.clock.monotonic() >= until {
                return Ok(None);
            }
        }
    }

    /// Ends the whole group: asked first, then not.
    async fn end(&self, child: &mut Child, group: Pid) -> std::io::Result<ExitStatus> {
        // An error here and below means that nobody is left to be signalled.
        let _ = kill_process_group(group, Signal::TERM);
        let until = self.clock.monotonic() + GRACE;
        while self.clock.monotonic() < until {
            // Reaped as soon as it ends, so that it no longer counts as one of the group.
            child.try_wait()?;
            if test_kill_process_group(group).is_err() {
                break;
            }
            self.clock.sleep(WATCH / 2).await;
        }
        if test_kill_process_group(group).is_ok() {
            let _ = kill_process_group(group, Signal::KILL);
        }
        match tokio::time::timeout(GRACE, child.wait()).await {
            Ok(status) => status,
            Err(_) => Err(std::io::Error::other("it did not end on SIGKILL")),
        }
    }
}

/// Where a child's output goes, and how much of it is kept.
struct Output {
    file: File,
    /// Where this run's output begins.
    start: u64,
    limit: u64,
    /// Up to where its beginning is a hole.
    freed: u64,
}

impl Output {
    fn pair(&self) -> std::io::Result<(Stdio, Stdio)> {
        Ok((self.file.try_clone()?.into(), self.file.try_clone()?.into()))
    }

    /// Frees the beginning of the file when it has grown too long: a hole takes no room, the child goes on writing at the
    /// end meanwhile, and no word is lost. Where the file system has no holes it is cut instead, and what is written
    /// between reading its end and cutting is lost.
    fn keep_within(&mut self) {
        let size = self.file.metadata().map_or(0, |m| m.len());
        if size.saturating_sub(self.freed) <= self.limit.saturating_mul(4) {
            return;
        }
        let until = size.saturating_sub(self.limit) / BLOCK * BLOCK;
        if until <= self.freed {
            return;
        }
        if fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, until).is_ok() {
            self.freed = until;
            return;
        }
        let tail = self.tail_bytes();
        if self.file.set_len(0).is_ok() {
            self.start = 0;
            // The file is in append mode: this lands before whatever the child writes next.
            let _ = self.file.write_all(&tail);
        }
    }

    fn tail_bytes(&mut self) -> Vec<u8> {
        let size = self.file.metadata().map_or(0, |m| m.len());
        let from = self.start.min(size).max(size.saturating_sub(self.limit));
        let mut bytes = Vec::new();
        if self.file.seek(SeekFrom::Start(from)).is_ok() {
            let _ = Read::by_ref(&mut self.file).take(self.limit).read_to_end(&mut bytes);
        }
        bytes
    }

    /// The end of it as text of at most `limit` bytes, also after replacing what is not UTF-8.
    fn text(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.tail_bytes()).into_owned();
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let mut cut = text.len().saturating_sub(limit);
        while !text.is_char_boundary(cut) {
            cut += 1;
        }
        text.get(cut..).unwrap_or_default().to_owned()
    }
}

/// This machine, as nobody else calls itself: where a program that was begun may still be running.
#[must_use]
pub fn this_machine() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let id = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let id: String = id.trim().chars().take(8).collect();
    if id.is_empty() { name } else { format!("{name} ({id})") }
}

/// The folder that a file is to be made in. If it cannot be had, opening the file says so.
fn folder_of(path: &str) {
    let _ = Path::new(path).parent().map(std::fs::create_dir_all);
}

fn open_lock(path: &str, create: bool) -> std::io::Result<File> {
    if create {
        folder_of(path);
    }
    OpenOptions::new().read(true).write(true).create(create).truncate(false).open(path)
}

fn file_trouble(what: &str, path: &str, error: &dyn std::fmt::Display) -> PortError {
    PortError::Refused(format!("the {what} `{path}` cannot be used: {error}"))
}

fn start(spec: &ProcessSpec, program: &str, output: &Output, lock: Option<OwnedFd>) -> PortResult<Child> {
    let trouble = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => match spec.cwd.as_deref().filter(|d| !Path::new(d).is_dir()) {
            Some(dir) => PortError::NotFound(format!("the directory `{dir}` to run `{program}` in does not exist")),
            None => PortError::NotFound(format!("the program `{program}` was not found: install it, or give its full path")),
        },
        _ => PortError::Refused(format!("the program `{program}` cannot be started: {e}")),
    };
    let (out, err) = output.pair().map_err(trouble)?;
    let mut command = Command::new(program);
    command.args(spec.argv.iter().skip(1)).envs(&spec.env).process_group(0).kill_on_drop(false);
    command.stdin(if spec.stdin.is_some() { Stdio::piped() } else { Stdio::null() }).stdout(out).stderr(err);
    if let Some(cwd) = &spec.cwd {
        command.current_dir(cwd);
    }
    if let Some(lock) = lock {
        let mapping = vec![FdMapping { parent_fd: lock, child_fd: LOCK_FD }];
        command.fd_mappings(mapping).map_err(|e| PortError::Refused(format!("the lock cannot be handed to `{program}`: {e}")))?;
    }
    // Our copy of the lock is closed with `command`, on return.
    command.spawn().map_err(trouble)
}

#[async_trait]
impl Processes for LocalProcesses {
    async fn run(&self, spec: &ProcessSpec, deadline: Duration) -> PortResult<ProcessEnd> {
        let program = spec.argv.first().filter(|p| !p.is_empty());
        let program = program.ok_or_else(|| PortError::Config("the command is empty: `argv` needs a program".to_owned()))?;
        let mut output = self.output(spec)?;
        let lock = match &spec.lock_file {
            Some(path) => Some(self.lock(path).await?),
            None => None,
        };
        let mut child = start(spec, program, &output, lock)?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let feeder = spec.stdin.clone().zip(child.stdin.take()).map(|(bytes, mut pipe)| {
            // A child that does not read its input must not hold us up.
            tokio::spawn(async move { drop(pipe.write_all(&bytes).await) })
        });
        let lost = |e: std::io::Error| PortError::Unknown(format!("how `{program}` ended cannot be told: {e}"));
        let ended = self.watch(&mut child, &mut output, deadline).await.map_err(lost)?;
        let (status, timed_out) = match (ended, group) {
            (Some(status), _) => (status, false),
            (None, Some(group)) => (self.end(&mut child, group).await.map_err(lost)?, true),
            (None, None) => return Err(lost(std::io::Error::other("it has no process id"))),
        };
        if let Some(feeder) = feeder {
            feeder.abort();
        }
        // What it wrote since the last look, too, does not stay behind at its full length.
        output.keep_within();
        Ok(ProcessEnd { code: status.code(), signal: status.signal(), timed_out, output: output.text() })
    }

    async fn wait_released(&self, lock_file: &str, deadline: Duration) -> PortResult<bool> {
        let file = match open_lock(lock_file, false) {
            Ok(file) => file,
            // Never made, so never held.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(true),
            Err(e) => return Err(file_trouble("lock file", lock_file, &e)),
        };
        let until = self.clock.monotonic() + deadline;
        loop {
            // Shared, so that two who look do not take each other for the holder.
            match flock(&file, FlockOperation::NonBlockingLockShared) {
                Ok(()) => return Ok(true),
                Err(Errno::WOULDBLOCK | Errno::INTR) => {}
                Err(e) => return Err(file_trouble("lock file", lock_file, &e)),
            }
            let left = until.saturating_sub(self.clock.monotonic());
            if left.is_zero() {
                return Ok(false);
            }
            self.clock.sleep(left.min(WATCH)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::clock::SystemClock;

    fn processes() -> LocalProcesses {
        LocalProcesses::new(Arc::new(SystemClock::new()))
    }
    fn sh(script: &str) -> ProcessSpec {
        ProcessSpec { argv: vec!["/bin/sh".into(), "-c".into(), script.into()], output_limit: 1000, ..ProcessSpec::default() }
    }
    async fn run(spec: &ProcessSpec, seconds: f64) -> ProcessEnd {
        processes().run(spec, Duration::from_secs_f64(seconds)).await.unwrap()
    }
    fn alive(pid: &str) -> bool {
        // A zombie that nobody reaps is dead all the same.
        std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).is_ok_and(|s| !s.contains(") Z "))
    }

    #[tokio::test]
    async fn codes_signals_and_output_are_told_apart() {
        let end = run(&sh("echo out; echo err >&2; exit 7"), 5.0).await;
        assert_eq!((end.code, end.signal, end.timed_out), (Some(7), None, false));
        assert_eq!(end.output, "out\nerr\n");
        let end = run(&sh("kill -9 $$"), 5.0).await;
        assert_eq!((end.code, end.signal, end.timed_out), (None, Some(9), false));
    }

    #[tokio::test]
    async fn input_environment_and_directory_reach_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut spec = sh("cat; echo $MUSTER_KEY; pwd");
        spec.stdin = Some(b"hello ".to_vec());
        spec.env.insert("MUSTER_KEY".into(), "k1".into());
        spec.cwd = Some(dir.path().to_str().unwrap().into());
        let want = format!("hello k1\n{}\n", dir.path().canonicalize().unwrap().display());
        assert_eq!(run(&spec, 5.0).await.output, want);
        // Nobody reads a megabyte of input: it ends all the same.
        let mut deaf = sh("exit 0");
        deaf.stdin = Some(vec![b'x'; 1_000_000]);
        assert_eq!(run(&deaf, 5.0).await.code, Some(0));
    }

    #[tokio::test]
    async fn what_cannot_start_is_said_to_be_missing() {
        let missing = ProcessSpec { argv: vec!["/no/such/program".into()], ..ProcessSpec::default() };
        assert!(matches!(processes().run(&missing, GRACE).await, Err(PortError::NotFound(m)) if m.contains("/no/such/program")));
        assert!(matches!(processes().run(&ProcessSpec::default(), GRACE).await, Err(PortError::Config(_))));
        let mut nowhere = sh("true");
        nowhere.cwd = Some("/no/such/dir".into());
        assert!(matches!(processes().run(&nowhere, GRACE).await, Err(PortError::NotFound(m)) if m.contains("/no/such/dir")));
    }

    #[tokio::test]
    async fn the_deadline_ends_grandchildren_too_even_stubborn_ones() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let script = format!("(trap '' TERM; echo $(exec sh -c 'echo $PPID') > {}; while :; do sleep 0.1; done) & sleep 60", pid.display());
        let clock = SystemClock::new();
        let end = run(&sh(&script), 0.5).await;
        assert!(end.timed_out && end.signal == Some(15), "{end:?}");
        assert!(clock.monotonic() < Duration::from_secs(8));
        let grandchild = std::fs::read_to_string(&pid).unwrap();
        // SIGKILL is delivered at once, but the kernel may take a moment to take the process down.
        for _ in 0..100 {
            if !alive(&grandchild) {
                return;
            }
            clock.sleep(Duration::from_millis(20)).await;
        }
        panic!("the grandchild {grandchild} survived");
    }

    #[tokio::test]
    async fn a_surviving_grandchild_holds_the_lock_and_no_other_child_does() {
        let dir = tempfile::tempdir().unwrap();
        let lock = dir.path().join("lock").to_str().unwrap().to_owned();
        let held = processes();
        assert!(held.wait_released(&lock, Duration::ZERO).await.unwrap(), "never made, never held");
        let mut spec = sh("sleep 2 & exit 0");
        spec.lock_file = Some(lock.clone());
        let end = run(&spec, 5.0).await;
        assert_eq!(end.code, Some(0));
        // A bystander started now must not prolong it.
        let bystander = tokio::spawn(async { run(&sh("sleep 20"), 6.0).await });
        assert!(!held.wait_released(&lock, Duration::from_millis(300)).await.unwrap(), "the grandchild still sleeps");
        assert!(matches!(held.run(&spec, GRACE).await, Err(PortError::Conflict { .. })), "a second attempt must not start");
        assert!(held.wait_released(&lock, Duration::from_secs(4)).await.unwrap(), "released with the grandchild");
        assert!(bystander.await.unwrap().timed_out);
    }

    #[tokio::test]
    async fn output_is_kept_but_can_not_fill_a_disk() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("out");
        std::fs::write(&file, "earlier attempt\n").unwrap();
        let mut spec = sh("echo now");
        spec.output_file = Some(file.to_str().unwrap().into());
        assert_eq!(run(&spec, 5.0).await.output, "now\n", "only this run's");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "earlier attempt\nnow\n");

        spec.argv = sh("i=0; while [ $i -lt 40 ]; do head -c 2000 /dev/zero | tr '\\0' x; sleep 0.03; i=$((i+1)); done; echo end").argv;
        let end = run(&spec, 20.0).await;
        assert_eq!(end.code, Some(0));
        assert!(end.output.len() <= 1000 && end.output.ends_with("xend\n"), "{} bytes", end.output.len());
        // 80 kB were written; the limit is 4 kB and what comes between two looks.
        let taken = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&file).unwrap()) * 512;
        assert!(taken < 40_000, "{taken} bytes on the disk");
    }
}
