//! From a base backup and the log to a cluster as it stood at an instant: what is needed for that and whether it is there,
//! what a target folder holds already, and what PostgreSQL is told.
//!
//! Two things are refused before anything is written: a recovery for which log is missing, with the names of what is
//! missing and how far it would come; and a target that would be damaged. A folder that a restore has begun in
//! carries a mark until all of it is there, with the settings for the recovery last, so that a server cannot be started on
//! half of it by mistake.

use super::{
    RepositoryError, Result,
    names::Id,
    open::Repository,
    restore::MARKER,
    snapshot::{Snapshot, Source},
    wal_line::{self, Base, Reach},
};
use crate::providers::port::Lsn;
use serde::{Deserialize, Serialize};
use std::{
    fmt, fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    str::FromStr,
};

/// Where a recovery ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Until {
    /// All the log that there is.
    #[default]
    Latest,
    /// As soon as the copy is consistent.
    Immediate,
    Time(jiff::Timestamp),
    Position(Lsn),
    Transaction(u64),
}

impl FromStr for Until {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let fail = || {
            format!(
                "`{text}` is no point to recover to: write `latest`, `immediate`, a time with its zone (2026-11-26T03:00:00Z), a log position \
                 (0/16B3748) or the number of a transaction"
            )
        };
        match text {
            "latest" => Ok(Self::Latest),
            "immediate" => Ok(Self::Immediate),
            _ if text.contains('/') => text.parse().map(Self::Position).map_err(|_| fail()),
            _ if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => text.parse().map(Self::Transaction).map_err(|_| fail()),
            _ => text.parse().map(Self::Time).map_err(|_| fail()),
        }
    }
}

impl fmt::Display for Until {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::Immediate => f.write_str("immediate"),
            Self::Time(time) => write!(f, "{time}"),
            Self::Position(position) => write!(f, "{position}"),
            Self::Transaction(number) => write!(f, "{number}"),
        }
    }
}

impl Serialize for Until {
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Until {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What a snapshot of a base backup says of its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    pub system: String,
    pub version: u32,
    pub segment_size: u32,
    pub base: Base,
}

impl Cluster {
    /// `None`: the snapshot is no base backup.
    #[must_use]
    pub fn of(snapshot: &Snapshot) -> Option<Self> {
        let Source::Postgres { system_identifier, version, timeline, start, stop, wal_segment_size, .. } = &snapshot.source else {
            return None;
        };
        let base = Base { timeline: *timeline, start: *start, stop: *stop };
        Some(Self { system: system_identifier.clone(), version: *version, segment_size: *wal_segment_size, base })
    }
}

/// A recovery for which all is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    pub until: Until,
    pub reach: Reach,
}

/// What tells PostgreSQL to recover by the log that `restore_command` gives.
const SIGNAL: &str = "recovery.signal";
/// What the clocks of a server and a store may differ by.
const SKEW: jiff::SignedDuration = jiff::SignedDuration::from_mins(1);
/// Names of so many segments are told.
const TOLD: usize = 8;

/// Looks whether the log that this takes is there. `timeline`: the newest that leads on from the base backup, if left out.
pub async fn plan(repository: &Repository, cluster: &Cluster, until: Until, timeline: Option<u32>) -> Result<Recovery> {
    let line = wal_line::look(repository, &cluster.system, cluster.segment_size).await?;
    let refused = |why: String| RepositoryError::Refused(why);
    let newest = line.newest(&cluster.base);
    let timeline = timeline.unwrap_or(newest);
    if timeline != cluster.base.timeline && !line.histories.get(&timeline).is_some_and(|h| wal_line::Line::leads_on(h, &cluster.base)) {
        return Err(refused(format!(
            "the base backup of timeline {} does not lead to timeline {timeline}: the newest that it leads to is {newest}",
            cluster.base.timeline
        )));
    }
    let to = match until {
        Until::Immediate => Some(cluster.base.stop),
        Until::Position(position) if position < cluster.base.stop => {
            return Err(refused(format!(
                "{position} lies before {}, where this base backup became consistent: take an older one",
                cluster.base.stop
            )));
        }
        Until::Position(position) => Some(position),
        Until::Latest | Until::Time(_) | Until::Transaction(_) => None,
    };
    if let (Until::Time(time), Some(newest)) = (until, line.newest_at)
        && time > newest + SKEW
    {
        // PostgreSQL would replay everything and then refuse to go on.
        return Err(refused(format!(
            "the newest log in the repository came at {newest}, before {time}: `--until latest` takes it to the end"
        )));
    }
    let reach = line.reach(&cluster.base, timeline, to);
    let consistent = reach.end >= cluster.base.stop;
    if !reach.missing.is_empty() {
        let names: Vec<String> = reach.missing.iter().take(TOLD).map(ToString::to_string).collect();
        let more = if reach.missing.len() > TOLD { format!(" and {} more", reach.missing.len() - TOLD) } else { String::new() };
        let far = if consistent {
            format!("without it the recovery comes to {}: `--until {}` takes it there", reach.end, reach.end)
        } else {
            "without it the base backup is not consistent, and cannot be used at all".to_owned()
        };
        return Err(refused(format!(
            "the repository lacks log that this recovery needs: {}{more} of cluster {}; {far}",
            names.join(", "),
            cluster.system
        )));
    }
    if let Some(to) = to.filter(|to| reach.end < *to) {
        return Err(refused(format!("the log in the repository ends at {}, before {to}: `--until latest` takes it there", reach.end)));
    }
    Ok(Recovery { until, reach })
}

/// The mark of a restore that has begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Begun {
    snapshot: Id,
}

/// What a target holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    Empty,
    /// What a restore of this very snapshot left when it was interrupted.
    Begun,
    /// A data directory, of the cluster with this identifier. No server runs on it.
    Cluster(u64),
}

/// Looks at a target, and refuses what must not be touched, whoever wants it.
pub fn standing(to: &Path, snapshot: &Id) -> Result<Standing> {
    let refuse = |why: String| Err(RepositoryError::File { path: to.to_owned(), why });
    let entries = match fs::read_dir(to) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Standing::Empty),
        Err(e) => return refuse(format!("it cannot be read: {e}")),
    };
    let found = entries.filter_map(std::result::Result::ok).map(|entry| entry.file_name()).next();
    let Some(found) = found else { return Ok(Standing::Empty) };
    if let Some(pid) = server_on(to) {
        return refuse(format!("a server works on it (process {pid}): stop it first, or restore elsewhere"));
    }
    if let Ok(text) = fs::read(to.join(MARKER)) {
        return match serde_json::from_slice::<Begun>(&text) {
            Ok(begun) if begun.snapshot == *snapshot => Ok(Standing::Begun),
            Ok(begun) => refuse(format!(
                "a restore of snapshot {} has begun there and is not done: finish it, or empty the folder",
                begun.snapshot.short()
            )),
            Err(_) => refuse(format!("its `{MARKER}` is no mark of a restore: empty the folder, or restore elsewhere")),
        };
    }
    match control_system(to) {
        Some(system) => Ok(Standing::Cluster(system)),
        None => refuse(format!("it is not empty (there is `{}`) and no data directory of PostgreSQL: restore elsewhere", found.display())),
    }
}

/// The system identifier in a data directory's `pg_control`: its first eight bytes.
#[must_use]
pub fn control_system(data: &Path) -> Option<u64> {
    let first = fs::read(data.join("global/pg_control")).ok()?;
    Some(u64::from_le_bytes(first.get(..8)?.try_into().ok()?))
}

/// A process that works on this data directory: its postmaster, or a backend that outlived it. Both have it as their
/// current folder.
#[must_use]
pub fn server_on(data: &Path) -> Option<u32> {
    let real = fs::canonicalize(data).ok()?;
    let works_there = |pid: u32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == real);
    let said = fs::read_to_string(data.join("postmaster.pid")).ok();
    let said: Option<u32> = said.and_then(|text| text.lines().next()?.trim().parse().ok());
    if let Some(pid) = said {
        let gone = fs::symlink_metadata(format!("/proc/{pid}")).is_err();
        // Of whose process nothing can be seen, the worst is assumed.
        let unseen = fs::read_link(format!("/proc/{pid}/cwd")).is_err();
        if !gone && (works_there(pid) || unseen) {
            return Some(pid);
        }
    }
    let all = fs::read_dir("/proc").ok()?;
    let pids = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let server = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_end().starts_with("postgres"));
    pids.filter(|pid| works_there(*pid)).find(server)
}

/// Marks a folder: what is in it is what this restore has begun. From here on no server can be started on what stood there.
pub fn begin(to: &Path, snapshot: &Id) -> Result<()> {
    let wrong = |e: std::io::Error| RepositoryError::File { path: to.to_owned(), why: e.to_string() };
    fs::create_dir_all(to).map_err(wrong)?;
    let mark = serde_json::to_vec(&Begun { snapshot: *snapshot }).map_err(|e| RepositoryError::Refused(e.to_string()))?;
    fs::write(to.join(MARKER), mark).map_err(wrong)?;
    sync(&to.join(MARKER)).and_then(|()| sync(to)).map_err(wrong)?;
    match fs::remove_file(to.join("global/pg_control")) {
        Err(e) if e.kind() != ErrorKind::NotFound && e.kind() != ErrorKind::NotADirectory => Err(wrong(e)),
        _ => Ok(()),
    }
}

/// A server that is started there recovers, or goes on recovering: PostgreSQL takes this mark away at the end of it.
#[must_use]
pub fn is_to_come(data: &Path) -> bool {
    data.join(SIGNAL).is_file()
}

fn sync(path: &Path) -> std::io::Result<()> {
    fs::File::open(path)?.sync_all()
}

/// Segments in a data directory's `pg_wal/` that are what their names say: the last that there may be of its log.
#[must_use]
pub fn log_in(data: &Path) -> Vec<super::wal_name::Segment> {
    let Ok(entries) = fs::read_dir(data.join("pg_wal")) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.filter_map(std::result::Result::ok) {
        let Some(segment) = entry.file_name().to_str().and_then(|name| name.parse::<super::wal_name::Segment>().ok()) else { continue };
        let mut first = [0; 40];
        let read = fs::File::open(entry.path()).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut first));
        if read.is_ok() && super::wal_page::first_page(&first).is_ok_and(|page| page.position == segment.start(page.segment_size)) {
            found.push(segment);
        }
    }
    found.sort_unstable();
    found
}

/// What the server is told.
#[derive(Clone, Debug)]
pub struct Settings {
    pub restore_command: String,
    pub until: Until,
    pub timeline: u32,
    /// Further settings, by name.
    pub more: Vec<(String, String)>,
}

impl Settings {
    /// As lines of `postgresql.auto.conf`.
    #[must_use]
    pub fn lines(&self) -> String {
        let quoted = |value: &str| format!("'{}'", value.replace('\'', "''"));
        let mut lines = vec![("restore_command", self.restore_command.clone())];
        // What ended the fetching ahead is not needed any more.
        lines.push(("recovery_end_command", "rm -rf pg_wal/muster.ahead".to_owned()));
        match self.until {
            Until::Latest => {}
            Until::Immediate => lines.push(("recovery_target", "immediate".to_owned())),
            Until::Time(time) => lines.push(("recovery_target_time", time.strftime("%Y-%m-%d %H:%M:%S%.6f+00").to_string())),
            Until::Position(position) => lines.push(("recovery_target_lsn", position.to_string())),
            Until::Transaction(number) => lines.push(("recovery_target_xid", number.to_string())),
        }
        lines.push(("recovery_target_timeline", self.timeline.to_string()));
        lines.push(("recovery_target_action", "promote".to_owned()));
        let more = self.more.iter().map(|(name, value)| (name.as_str(), value.clone()));
        let all = lines.iter().map(|(name, value)| (*name, value.clone())).chain(more);
        all.fold(String::new(), |lines, (name, value)| lines + &format!("{name} = {}\n", quoted(&value)))
    }
}

/// Folders that a server wants to find, and a base backup may leave out, since what is in them is not kept.
const FOLDERS: [&str; 8] =
    ["pg_wal", "pg_wal/archive_status", "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_stat_tmp"];

/// Makes a restored folder ready to be started: everything that is written here belongs to the folder's owner.
pub fn finish(data: &Path, settings: &Settings) -> Result<()> {
    let wrong = |path: &Path| {
        let path = path.to_owned();
        move |e: std::io::Error| RepositoryError::File { path, why: e.to_string() }
    };
    let version = data.join("PG_VERSION");
    let owner = fs::metadata(&version).map_err(wrong(&version))?;
    for folder in FOLDERS.iter().chain(&["pg_subtrans"]).map(|name| data.join(name)) {
        if !folder.exists() {
            fs::create_dir(&folder).map_err(wrong(&folder))?;
            own(&folder, &owner, 0o700).map_err(wrong(&folder))?;
        }
    }
    // The folder itself: PostgreSQL starts on nothing that others may write.
    own(data, &owner, if fs::metadata(data).map_err(wrong(data))?.mode_bits() & 0o050 == 0o050 { 0o750 } else { 0o700 })
        .map_err(wrong(data))?;
    let auto = data.join("postgresql.auto.conf");
    let mut text = fs::read_to_string(&auto).unwrap_or_default();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str("# Written by muster backup restore:\n");
    text.push_str(&settings.lines());
    write(&auto, text.as_bytes(), &owner).map_err(wrong(&auto))?;
    for signal in ["standby.signal", "postmaster.pid", "postmaster.opts"].map(|name| data.join(name)) {
        match fs::remove_file(&signal) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(wrong(&signal)(e)),
            _ => {}
        }
    }
    let signal = data.join(SIGNAL);
    write(&signal, b"", &owner).map_err(wrong(&signal))?;
    sync(data).map_err(wrong(data))?;
    let marker = data.join(MARKER);
    match fs::remove_file(&marker) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(wrong(&marker)(e)),
        _ => sync(data).map_err(wrong(data)),
    }
}

trait Mode {
    fn mode_bits(&self) -> u32;
}
impl Mode for fs::Metadata {
    fn mode_bits(&self) -> u32 {
        std::os::unix::fs::MetadataExt::mode(self)
    }
}

fn own(path: &Path, owner: &fs::Metadata, mode: u32) -> std::io::Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    if rustix::process::geteuid().is_root() { chown(path, Some(owner.uid()), Some(owner.gid())) } else { Ok(()) }
}

fn write(path: &Path, content: &[u8], owner: &fs::Metadata) -> std::io::Result<()> {
    let incomplete = PathBuf::from(format!("{}.muster-tmp", path.display()));
    fs::write(&incomplete, content)?;
    own(&incomplete, owner, 0o600)?;
    sync(&incomplete)?;
    fs::rename(&incomplete, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_a_word_a_time_a_position_or_a_transaction() {
        for (text, want) in [
            ("latest", Until::Latest),
            ("immediate", Until::Immediate),
            ("0/16B3748", Until::Position(Lsn(0x016B_3748))),
            ("751", Until::Transaction(751)),
            ("2026-11-26T03:00:00Z", Until::Time("2026-11-26T03:00:00Z".parse().unwrap())),
            ("2026-11-26 04:00:00.25+01", Until::Time("2026-11-26T03:00:00.25Z".parse().unwrap())),
        ] {
            assert_eq!(text.parse(), Ok(want), "{text}");
        }
        for text in ["", "yesterday", "2026-11-26", "2026-11-26T03:00:00", "0/x", "-5"] {
            assert!(text.parse::<Until>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_the_server_is_told_is_quoted() {
        let until = Until::Time("2026-11-26T03:00:00.5Z".parse().unwrap());
        let settings =
            Settings { restore_command: "x 'a b' %f".to_owned(), until, timeline: 2, more: vec![("port".to_owned(), "5".to_owned())] };
        let lines = settings.lines();
        assert!(lines.contains("restore_command = 'x ''a b'' %f'\n"), "{lines}");
        assert!(lines.contains("recovery_target_time = '2026-11-26 03:00:00.500000+00'\n"), "{lines}");
        assert!(lines.ends_with("recovery_target_timeline = '2'\nrecovery_target_action = 'promote'\nport = '5'\n"), "{lines}");
    }

    #[test]
    fn a_target_that_would_be_damaged_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (to, id) = (dir.path().join("data"), Id([1; 32]));
        assert_eq!(standing(&to, &id).unwrap(), Standing::Empty);
        begin(&to, &id).unwrap();
        assert_eq!(standing(&to, &id).unwrap(), Standing::Begun);
        assert!(standing(&to, &Id([2; 32])).unwrap_err().to_string().contains("has begun there"));
        fs::remove_file(to.join(MARKER)).unwrap();
        fs::write(to.join("letter.txt"), b"dear").unwrap();
        assert!(standing(&to, &id).unwrap_err().to_string().contains("letter.txt"));
        fs::create_dir_all(to.join("global")).unwrap();
        fs::write(to.join("global/pg_control"), [77u64.to_le_bytes(), [0; 8]].concat()).unwrap();
        assert_eq!(standing(&to, &id).unwrap(), Standing::Cluster(77));
        // A number that was a server's once, and is nobody's now.
        fs::write(to.join("postmaster.pid"), "4194304\n").unwrap();
        assert_eq!(standing(&to, &id).unwrap(), Standing::Cluster(77));
        begin(&to, &id).unwrap();
        assert!(!to.join("global/pg_control").exists(), "no server starts on what is half restored");
    }
}
