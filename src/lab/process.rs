//! The lab's processes as the kernel knows them: found by the directory they stand in and by what they
//! are, so that nothing depends on a list that a crash could have lost, and a person's shell that happens
//! to stand there is never touched.

use super::{
    error::{LabError, LabResult, What},
    plan::{LabPlan, OUTSIDE},
};
use crate::providers::clock::Clock;
use rustix::process::{Pid, Signal, kill_process};
use std::{fs, path::Path, path::PathBuf, time::Duration};

/// One process that belongs to a lab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proc {
    pub pid: i32,
    pub argv: Vec<String>,
    pub cwd: PathBuf,
    pub parent: i32,
    /// As in /proc/PID/stat: `R`, `S`, `D`, `T` (stopped)...
    pub state: char,
}

impl Proc {
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.state == 'T'
    }
    /// What `lab-process` was told to be; PostgreSQL's server after its own name.
    #[must_use]
    pub fn role(&self) -> Option<String> {
        let at = self.argv.iter().position(|a| a == "lab-process")?;
        self.argv.get(at + 1).cloned()
    }
    #[must_use]
    pub fn title(&self) -> String {
        self.argv.join(" ")
    }
}

/// Every process of ours whose working directory is at or below `dir`.
#[must_use]
pub fn below(dir: &Path) -> Vec<Proc> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let me = std::process::id().cast_signed();
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != me)
        .filter_map(|pid| look(pid, dir))
        .collect()
}

fn look(pid: i32, dir: &Path) -> Option<Proc> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let cwd = without_deleted(&fs::read_link(proc.join("cwd")).ok()?);
    if !cwd.starts_with(dir) {
        return None;
    }
    let argv: Vec<String> = fs::read(proc.join("cmdline"))
        .ok()?
        .split(|byte| *byte == 0)
        .map(|part| String::from_utf8_lossy(part).trim_end().to_owned())
        .filter(|part| !part.is_empty())
        .collect();
    let exe = without_deleted(&fs::read_link(proc.join("exe")).unwrap_or_default());
    if !is_ours(&argv, &exe) {
        return None;
    }
    let stat = fs::read_to_string(proc.join("stat")).ok()?;
    // The name stands in parentheses and may hold anything: fields are counted after the last one.
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    (state != 'Z' && state != 'X').then_some(Proc { pid, argv, cwd, parent, state })
}

fn without_deleted(path: &Path) -> PathBuf {
    path.to_str().and_then(|text| text.strip_suffix(" (deleted)")).map_or_else(|| path.to_owned(), PathBuf::from)
}

fn is_ours(argv: &[String], exe: &Path) -> bool {
    let program = exe.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    argv.get(1).is_some_and(|word| word == "lab-process") || matches!(program, "postgres" | "initdb" | "pg_basebackup")
}

/// Sends one signal to one process; that it is gone already is no error.
pub fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}

/// SIGSTOP to all, until no new one appears: what is stopped can start no child.
pub fn stop_all(dir: &Path) -> usize {
    let mut seen = Vec::new();
    for _ in 0..20 {
        let fresh: Vec<Proc> = below(dir).into_iter().filter(|p| !seen.contains(&p.pid)).collect();
        if fresh.is_empty() {
            break;
        }
        // Parents first, so that they cannot answer for a child that stopped.
        for proc in fresh.iter().filter(|p| p.parent <= 1).chain(fresh.iter().filter(|p| p.parent > 1)) {
            signal(proc.pid, Signal::STOP);
            seen.push(proc.pid);
        }
    }
    seen.len()
}

pub fn continue_all(dir: &Path) -> usize {
    let stopped: Vec<Proc> = below(dir).into_iter().filter(Proc::stopped).collect();
    for proc in &stopped {
        signal(proc.pid, Signal::CONT);
    }
    stopped.len()
}

/// SIGKILL to everything below `dir`, until twice in a row nothing is found.
/// # Errors
/// When something is still there after ten seconds.
pub async fn kill_all(dir: &Path, clock: &dyn Clock) -> LabResult<usize> {
    let mut killed = std::collections::BTreeSet::new();
    let mut quiet = 0;
    for _ in 0..500 {
        stop_all(dir);
        let found = below(dir);
        for proc in &found {
            signal(proc.pid, Signal::KILL);
            killed.insert(proc.pid);
        }
        quiet = if found.is_empty() { quiet + 1 } else { 0 };
        if quiet == 2 {
            return Ok(killed.len());
        }
        clock.sleep(Duration::from_millis(if found.is_empty() { 10 } else { 20 })).await;
    }
    Err(LabError::Undead(below(dir).len()))
}

/// Shared memory outside the lab's home that processes below `dir` hold, and would leave behind when killed:
/// files of `initdb`'s servers, and the System V segment that is each server's interlock.
#[must_use]
pub fn shared_memory(dir: &Path) -> (Vec<PathBuf>, Vec<String>) {
    let (mut files, mut segments) = (Vec::new(), Vec::new());
    for proc in below(dir) {
        let maps = fs::read_to_string(format!("/proc/{}/maps", proc.pid)).unwrap_or_default();
        for line in maps.lines() {
            let mut fields = line.split_whitespace().skip(4);
            let (Some(inode), Some(path)) = (fields.next(), fields.next()) else { continue };
            if path.starts_with("/dev/shm/PostgreSQL.") {
                files.push(PathBuf::from(path));
            } else if path.starts_with("/SYSV") {
                // The kernel prints a segment's identifier where a file's inode stands.
                segments.push(inode.to_owned());
            }
        }
    }
    files.sort();
    files.dedup();
    segments.sort();
    segments.dedup();
    (files, segments)
}

/// Starts a process of the lab, in the directory of its place, its output in its log.
/// It leaves the terminal by itself, first thing (see [`super::process_main`]).
/// # Errors
/// When it cannot be started.
pub fn spawn(plan: &LabPlan, place: &str, role: &str) -> LabResult<()> {
    let log = plan.log(place, role);
    let out = fs::OpenOptions::new().create(true).append(true).open(&log).what(log.display().to_string())?;
    let err = out.try_clone().what("the log")?;
    let mut command = tokio::process::Command::new(&plan.exe);
    command.arg("lab-process").arg(role).arg("--lab-home").arg(&plan.home);
    if place != OUTSIDE {
        command.args(["--region", place]);
    }
    command.current_dir(plan.dir(place)).stdin(std::process::Stdio::null()).stdout(out).stderr(err);
    // The handle is dropped: the runtime reaps what ends while we live.
    command.spawn().map(drop).what(format!("starting {role} from {}", plan.exe.display()))
}

/// The last lines of a log, for an error message.
#[must_use]
pub fn tail(path: &Path) -> String {
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(8).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}
