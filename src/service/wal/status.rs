//! `wal status`: of each cluster, what there is of its log, whether each base backup can be led on and until where, and
//! what is amiss: a gap, a base backup that is too old or of no use, log of a server that went on after another had taken
//! over; and, if the server is asked as well, archiving that fails or falls behind, a slot that is missing, lost or
//! held by nobody.

use super::{
    super::{Muster, ServiceError, backup::place::Where},
    server::{ServerLook, look_at},
};
use crate::model::time::{Span, rfc3339_ms};
use crate::providers::port::Lsn;
use crate::repository::{
    names::{Id, WAL},
    open::Repository,
    recovery::Cluster,
    snapshot::Snapshot,
    wal::{self, Listed},
    wal_history::History,
    wal_line::{Line, look},
    wal_name::{self, Segment, SegmentName, WalName},
    wal_page,
};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default)]
pub struct Status {
    pub at: Where,
    /// Only this cluster.
    pub system: Option<String>,
    /// The newest base backup may be so old.
    pub max_age: Option<Span>,
    /// The running server, to be asked as well.
    pub server: Option<String>,
    pub slot: Option<String>,
    /// The log here may be so many bytes behind the server's.
    pub max_lag: Option<u64>,
}

#[derive(Clone, Debug, Serialize)]
pub struct StatusReport {
    pub good: bool,
    pub clusters: Vec<ClusterStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerLook>,
    /// All that is amiss, in sentences.
    pub problems: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct ClusterStatus {
    pub system_identifier: String,
    pub segment_size: u32,
    pub timelines: Vec<TimelineStatus>,
    pub base_backups: Vec<BaseStatus>,
}

#[derive(Clone, Debug, Serialize)]
pub struct TimelineStatus {
    pub timeline: u32,
    pub first: String,
    pub last: String,
    pub segments: u64,
    /// Runs of segments that are missing, each by its first and its last.
    pub gaps: Vec<(String, String)>,
    pub end: Lsn,
    /// When the newest object came.
    pub newest_at: Option<String>,
    pub age_ms: Option<u64>,
    pub stored_bytes: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct BaseStatus {
    pub snapshot: Id,
    pub time: String,
    pub timeline: u32,
    pub start: Lsn,
    pub recoverable: bool,
    /// There is log for it up to here,
    pub until: Lsn,
    pub until_timeline: u32,
    /// and it came until then.
    pub until_about: Option<String>,
    pub missing: Vec<String>,
}

impl Muster {
    pub async fn wal_status(&self, ask: &Status) -> Result<StatusReport, ServiceError> {
        let now = self.clock.now();
        let opened = self.backup_open(&ask.at).await?;
        let found = opened.repository.snapshots().await?;
        let mut problems: Vec<String> = found.damaged.iter().map(ToString::to_string).collect();
        let mut by_system: BTreeMap<String, Vec<Listed>> = BTreeMap::new();
        for one in wal::list(&opened.repository, WAL).await? {
            by_system.entry(one.system.clone()).or_default().push(one);
        }
        let bases: Vec<(Id, Snapshot, Cluster)> =
            found.whole.into_iter().filter_map(|(id, snapshot)| Cluster::of(&snapshot).map(|cluster| (id, snapshot, cluster))).collect();
        for (_, _, cluster) in &bases {
            by_system.entry(cluster.system.clone()).or_default();
        }
        by_system.retain(|system, _| ask.system.as_ref().is_none_or(|only| only == system));
        let mut clusters = Vec::new();
        for (system, listed) in by_system {
            let own: Vec<&(Id, Snapshot, Cluster)> = bases.iter().filter(|(_, _, cluster)| cluster.system == system).collect();
            let size = match own.first() {
                Some((_, _, cluster)) => cluster.segment_size,
                None => segment_size(&opened.repository, &listed).await?,
            };
            let line = look(&opened.repository, &system, size).await?;
            let status = cluster_status(&system, &line, &listed, &own, now, &mut problems);
            judge_age(&system, &own, ask.max_age, now, &mut problems);
            clusters.push(status);
        }
        let server = match &ask.server {
            Some(url) => Some(look_at(url, ask, &clusters, &mut problems).await?),
            None => None,
        };
        if clusters.is_empty() {
            problems.push("there is neither log nor a base backup of any cluster".to_owned());
        }
        Ok(StatusReport { good: problems.is_empty(), clusters, server, problems })
    }
}

/// As a segment says it; 16 MiB, where there is none.
async fn segment_size(repository: &Repository, listed: &[Listed]) -> Result<u32, ServiceError> {
    let first = listed.iter().find(|one| match one.name {
        WalName::File(SegmentName::Whole(_)) => true,
        WalName::Piece(piece) => piece.from == 0,
        WalName::File(_) => false,
    });
    let Some(first) = first else { return Ok(16 << 20) };
    let content = wal::open(repository, &wal_name::key(&first.system, &first.name)).await?;
    Ok(wal_page::first_page(&content).map_or(16 << 20, |page| page.segment_size))
}

fn cluster_status(
    system: &str,
    line: &Line,
    listed: &[Listed],
    bases: &[&(Id, Snapshot, Cluster)],
    now: Timestamp,
    problems: &mut Vec<String>,
) -> ClusterStatus {
    let timelines: Vec<TimelineStatus> =
        line.timelines.keys().filter_map(|timeline| timeline_status(line, *timeline, listed, now)).collect();
    for (timeline, history) in &line.histories {
        if let Some(beyond) = stranded(line, history) {
            problems.push(format!(
                "cluster {system}: timeline {} goes on to {beyond} in the log, and timeline {timeline} took over from it at {}: what was \
                 written there meanwhile is on the old timeline alone",
                history.begins().map_or(0, |(parent, _)| parent),
                history.begins().map_or(Lsn(0), |(_, at)| at)
            ));
        }
    }
    let base_backups =
        bases.iter().map(|(id, snapshot, cluster)| base_status(line, *id, snapshot, cluster, &timelines)).collect::<Vec<_>>();
    for base in &base_backups {
        let missing = |names: &[String]| match names {
            [first, .., last] => format!("{first} to {last}"),
            names => names.join(""),
        };
        if !base.recoverable {
            problems.push(format!(
                "base backup {} of cluster {system} cannot be used: log is missing ({})",
                base.snapshot.short(),
                missing(&base.missing)
            ));
        } else if !base.missing.is_empty() {
            problems.push(format!(
                "base backup {} of cluster {system} can be led to {} and no further: log is missing ({})",
                base.snapshot.short(),
                base.until,
                missing(&base.missing)
            ));
        }
    }
    ClusterStatus { system_identifier: system.to_owned(), segment_size: line.size, timelines, base_backups }
}

fn timeline_status(line: &Line, timeline: u32, listed: &[Listed], now: Timestamp) -> Option<TimelineStatus> {
    let runs = line.runs(timeline);
    let ((first, _), (_, last)) = (*runs.first()?, *runs.last()?);
    let name = |number: u64| Segment::of_number(timeline, number, line.size).to_string();
    let gaps = runs.windows(2).map(|pair| (name(pair[0].1 + 1), name(pair[1].0 - 1))).collect();
    let own = || listed.iter().filter(|one| one.name.timeline() == timeline);
    let newest = own().filter_map(|one| one.modified).max();
    Some(TimelineStatus {
        timeline,
        first: name(first),
        last: name(last),
        segments: runs.iter().map(|(first, last)| last - first + 1).sum(),
        gaps,
        end: line.end_of(&Segment::of_number(timeline, last, line.size)),
        newest_at: newest.map(rfc3339_ms),
        age_ms: newest.map(|newest| u64::try_from(now.as_millisecond() - newest.as_millisecond()).unwrap_or(0)),
        stored_bytes: own().map(|one| one.size).sum(),
    })
}

fn base_status(line: &Line, id: Id, snapshot: &Snapshot, cluster: &Cluster, timelines: &[TimelineStatus]) -> BaseStatus {
    let reach = line.reach(&cluster.base, line.newest(&cluster.base), None);
    let on = reach.needed.last().map_or(cluster.base.timeline, |segment| segment.timeline);
    let until_about =
        if reach.missing.is_empty() { timelines.iter().find(|one| one.timeline == on).and_then(|one| one.newest_at.clone()) } else { None };
    BaseStatus {
        snapshot: id,
        time: rfc3339_ms(snapshot.time),
        timeline: cluster.base.timeline,
        start: cluster.base.start,
        recoverable: reach.end >= cluster.base.stop,
        until: reach.end,
        until_timeline: on,
        until_about,
        missing: reach.missing.iter().map(ToString::to_string).collect(),
    }
}

/// How far the parent of a timeline goes in the log beyond where it was left; `None`: not at all.
fn stranded(line: &Line, history: &History) -> Option<Lsn> {
    let (parent, left) = history.begins()?;
    let (_, last) = line.runs(parent).last().copied()?;
    let end = line.end_of(&Segment::of_number(parent, last, line.size));
    // In the very segment there may be padding.
    (last > left.0 / u64::from(line.size.max(1))).then_some(end)
}

fn judge_age(system: &str, bases: &[&(Id, Snapshot, Cluster)], max_age: Option<Span>, now: Timestamp, problems: &mut Vec<String>) {
    let Some(max_age) = max_age else { return };
    match bases.iter().map(|(_, snapshot, _)| snapshot.time).max() {
        None => problems.push(format!("cluster {system} has no base backup: its log leads on from nothing")),
        Some(newest) if now - max_age.signed() > newest => {
            problems.push(format!("the newest base backup of cluster {system} is of {}, older than {max_age}", rfc3339_ms(newest)));
        }
        Some(_) => {}
    }
}
