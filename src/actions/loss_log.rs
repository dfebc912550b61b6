//! The log that a recovery lacks, fetched from the primary that still has it, and its commits counted: by the replication protocol, so
//! nothing is changed there and no rights are taken but those that a standby has; read by PostgreSQL's own `pg_waldump`.
//!
//! Positions go on from timeline to timeline, so bytes can be told as soon as it is clear that the one history is the beginning of
//! the other. What cannot be told is told to be so, and is never 0.

use super::{contract::*, loss::Asked, recovered::Came, shared::within, stranded_log::Log};
use crate::providers::{
    port::{Lsn, Newest},
    replication::{Dial, Event, Purpose, Started},
    servers::{ServerSpec, Servers},
};
use crate::repository::{wal_history::History, wal_name::Segment};
use jiff::Timestamp;
use std::{fs, os::unix::fs::FileExt, path::Path, time::Duration};

/// More log than this is not fetched to be counted: it is held on disk and its commits in memory.
const MOST: u64 = 128 << 20;
/// Of the stream.
const QUIET: Duration = Duration::from_secs(10);
const DUMP: Duration = Duration::from_mins(2);
const ALL: Duration = Duration::from_mins(5);
/// In the data directory of the server that came back, which has room for it.
const FOLDER: &str = "muster.lost";

/// What a recovery lacks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lacks {
    pub bytes: u64,
    /// `None`: they could not be counted; `why` says why not.
    pub commits: Option<u64>,
    /// When the last of them was committed.
    pub newest: Option<Timestamp>,
    pub why: Option<String>,
}

/// A server that came back, and how.
pub(crate) struct Back<'a> {
    pub servers: &'a dyn Servers,
    pub spec: &'a ServerSpec,
    pub came: &'a Came,
    pub segment_size: u32,
}

/// What the recovery lacks of what the primary had; `Err`: the two cannot be compared.
pub(crate) async fn lacks(cx: &ReadCx, asked: &Asked, back: &Back<'_>) -> Result<Lacks, String> {
    let (Some(newest), Some(region)) = (&asked.primary, &asked.region) else {
        return Err(asked.why.clone().unwrap_or_else(|| "the primary was not asked".to_owned()));
    };
    let bytes = newest.position.0.saturating_sub(back.came.position.0);
    let dial = cx.world.replication(asked.database.as_str(), region.as_str()).map_err(|e| e.to_string());
    let history = match &dial {
        _ if newest.timeline == 1 => Ok(History::none(1)),
        Ok(dial) => history(&**dial, newest.timeline).await,
        Err(why) => Err(why.clone()),
    };
    let history = match history {
        Ok(history) => history,
        Err(why) if asked.timeline == newest.timeline => return Ok(uncounted(bytes, &why)),
        Err(why) => {
            let which = format!("the backup is of timeline {}, the primary on timeline {}", asked.timeline, newest.timeline);
            return Err(format!("{which}, and where they part cannot be learnt: {why}"));
        }
    };
    same_line(&history, asked.timeline, back.came.position)?;
    if bytes == 0 {
        return Ok(Lacks { commits: Some(0), ..Lacks::default() });
    }
    if bytes > MOST {
        return Ok(uncounted(bytes, &format!("it is more than {MOST} bytes")));
    }
    let folder = back.spec.data.join(FOLDER);
    let whole = async { read(&*dial?, newest, &history, back, &folder).await };
    let read = within(cx, ALL, async { Ok(whole.await) }).await.unwrap_or_else(|e| Err(e.to_string()));
    let _ = tidy(&back.spec.data);
    Ok(match read {
        Ok(log) => {
            let newest = log.committed.iter().filter_map(|one| committed_at(&one.at)).max();
            Lacks { bytes, commits: Some(log.committed.len() as u64), newest, why: None }
        }
        Err(why) => uncounted(bytes, &why),
    })
}

/// What was fetched to be counted does not stay in a data directory.
pub(crate) fn tidy(data: &Path) -> std::io::Result<()> {
    match fs::remove_dir_all(data.join(FOLDER)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn uncounted(bytes: u64, why: &str) -> Lacks {
    let commits = (bytes == 0).then_some(0);
    Lacks { bytes, commits, newest: None, why: commits.is_none().then(|| format!("the log that is lacking was not read: {why}")) }
}

/// Is what came back the beginning of what the primary has?
fn same_line(history: &History, timeline: u32, position: Lsn) -> Result<(), String> {
    let primary = history.timeline;
    match history.left_at(timeline) {
        None => Err(format!("the primary's timeline {primary} did not come from timeline {timeline}, which the backup is of")),
        Some(Some(left)) if left < position => Err(format!(
            "timeline {timeline} came back to {position}, and the primary's timeline {primary} left it at {left}: it has another history"
        )),
        _ => Ok(()),
    }
}

async fn history(dial: &dyn Dial, timeline: u32) -> Result<History, String> {
    let mut session = dial.dial(Purpose::Replication).await.map_err(|e| e.to_string())?;
    let content = session.timeline_history(timeline).await.map_err(|e| e.to_string());
    session.close().await;
    History::parse(timeline, &content?.1)
}

/// A piece of log on one timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stretch {
    timeline: u32,
    from: Lsn,
    to: Lsn,
}

/// The timelines that lie between two positions.
fn stretches(history: &History, from: Lsn, to: Lsn) -> Vec<Stretch> {
    let path = history.path();
    let ends = path.iter().skip(1).map(|(_, begins)| *begins).chain([to]);
    let each =
        path.iter().zip(ends).map(|((timeline, begins), end)| Stretch { timeline: *timeline, from: from.max(*begins), to: end.min(to) });
    each.filter(|one| one.from < one.to).collect()
}

async fn read(dial: &dyn Dial, newest: &Newest, history: &History, back: &Back<'_>, folder: &Path) -> Result<Log, String> {
    let wrong = |e: std::io::Error| format!("{}: {e}", folder.display());
    fs::create_dir_all(folder).map_err(wrong)?;
    let mut log = Log::default();
    for stretch in stretches(history, back.came.position, newest.position) {
        fetch(dial, stretch, back.segment_size, folder).await?;
        back.servers.own(folder).await.map_err(|e| e.to_string())?;
        let Stretch { timeline, from, to } = stretch;
        let place = folder.display().to_string();
        let args = ["-p", &place, "-t", &timeline.to_string(), "-s", &from.to_string(), "-e", &to.to_string(), "-r", "Transaction"];
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        match back.servers.tool(back.spec, "pg_waldump", &args, DUMP).await {
            Ok(Some(ended)) if ended.ok => ended.output.lines().for_each(|line| log.read(line)),
            // What was on the disk then ends within the first record.
            Ok(Some(ended)) if ended.output.contains("could not find a valid record after") => {}
            Ok(Some(ended)) => return Err(format!("pg_waldump: {}", ended.output.trim())),
            Ok(None) => return Err("there is no pg_waldump among PostgreSQL's programs".to_owned()),
            Err(e) => return Err(e.to_string()),
        }
    }
    Ok(log)
}

/// Puts the segments in which this stretch lies into a folder, from the beginning of the first one on.
async fn fetch(dial: &dyn Dial, stretch: Stretch, size: u32, folder: &Path) -> Result<(), String> {
    let mut at = Segment::at(stretch.timeline, stretch.from, size).start(size);
    let session = dial.dial(Purpose::Replication).await.map_err(|e| e.to_string())?;
    let mut stream = match session.stream(None, at, stretch.timeline).await.map_err(|e| e.to_string())? {
        Started::Streaming(stream) => stream,
        Started::Ended(..) => return Err(format!("timeline {} has no log at {at}", stretch.timeline)),
    };
    while at < stretch.to {
        match stream.next(QUIET).await.map_err(|e| e.to_string())? {
            Some(Event::Wal { start, data, .. }) if start == at => {
                write(folder, stretch.timeline, size, start, &data).map_err(|e| format!("{}: {e}", folder.display()))?;
                at.0 += data.len() as u64;
            }
            Some(Event::Wal { start, .. }) => return Err(format!("the log goes on at {start} in place of {at}")),
            Some(Event::Keepalive { .. }) => {}
            Some(Event::End) => return Err(format!("timeline {} ends at {at}, before {}", stretch.timeline, stretch.to)),
            None => return Err(format!("nothing came after {at} for {} s", QUIET.as_secs())),
        }
    }
    if let Ok((session, _)) = stream.finish().await {
        session.close().await;
    }
    Ok(())
}

/// Into the segments' files, each as long as a segment is.
fn write(folder: &Path, timeline: u32, size: u32, start: Lsn, data: &[u8]) -> std::io::Result<()> {
    let (mut at, mut rest) = (start, data);
    while !rest.is_empty() {
        let segment = Segment::at(timeline, at, size);
        let offset = at.0 - segment.start(size).0;
        let room = usize::try_from(u64::from(size) - offset).unwrap_or(usize::MAX);
        let (now, later) = rest.split_at(room.min(rest.len()));
        let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(folder.join(segment.to_string()))?;
        file.set_len(u64::from(size))?;
        file.write_all_at(now, offset)?;
        at.0 += now.len() as u64;
        rest = later;
    }
    Ok(())
}

/// `2026-11-26 17:35:34.979508 UTC`, as `pg_waldump` writes it where the zone is UTC.
fn committed_at(text: &str) -> Option<Timestamp> {
    text.strip_suffix(" UTC")?
        .replacen(' ', "T", 1)
        .parse::<jiff::civil::DateTime>()
        .ok()?
        .to_zoned(jiff::tz::TimeZone::UTC)
        .ok()
        .map(|at| at.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history() -> History {
        History::parse(3, b"1\t0/3000\tx\n2\t0/5000\tx\n").unwrap()
    }

    #[test]
    fn what_lies_between_goes_from_timeline_to_timeline() {
        let of = |from, to| stretches(&history(), Lsn(from), Lsn(to)).iter().map(|s| (s.timeline, s.from.0, s.to.0)).collect::<Vec<_>>();
        assert_eq!(of(0x2000, 0x6000), [(1, 0x2000, 0x3000), (2, 0x3000, 0x5000), (3, 0x5000, 0x6000)]);
        assert_eq!(of(0x3000, 0x4000), [(2, 0x3000, 0x4000)]);
        assert_eq!(of(0x5500, 0x6000), [(3, 0x5500, 0x6000)]);
        assert_eq!(of(0x6000, 0x6000), []);
    }

    #[test]
    fn another_history_is_not_compared() {
        assert_eq!(same_line(&history(), 2, Lsn(0x5000)), Ok(()));
        assert_eq!(same_line(&history(), 3, Lsn(0x9000)), Ok(()));
        assert!(same_line(&history(), 2, Lsn(0x5001)).unwrap_err().contains("left it at 0/5000"));
        assert!(same_line(&History::none(1), 2, Lsn(1)).unwrap_err().contains("did not come from timeline 2"));
    }

    #[test]
    fn the_time_of_a_commit_is_read_as_it_is_written() {
        let at = |text: &str| committed_at(text).map(|at| at.to_string());
        assert_eq!(at("2026-11-26 17:35:34.979508 UTC").as_deref(), Some("2026-11-26T17:35:34.979508Z"));
        assert_eq!(at("2026-11-26 17:35:34 UTC").as_deref(), Some("2026-11-26T17:35:34Z"));
        assert_eq!((at("2026-11-26 17:35:34 CET"), at("")), (None, None));
    }

    #[test]
    fn a_piece_of_log_may_go_over_two_segments() {
        let (dir, size) = (tempfile::tempdir().unwrap(), 1 << 20);
        let start = Lsn((2 << 20) - 3);
        write(dir.path(), 1, size, start, b"abcdef").unwrap();
        let read = |name: &str| fs::read(dir.path().join(name)).unwrap();
        let (first, second) = (read("000000010000000000000001"), read("000000010000000000000002"));
        assert_eq!((first.len(), second.len()), (1 << 20, 1 << 20));
        assert_eq!((&first[(1 << 20) - 3..], &second[..4]), (&b"abc"[..], &b"def\0"[..]));
    }
}
