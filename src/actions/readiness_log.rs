//! Can the newest base backup of each cluster be led on, and does its log still come? Found in the repository alone, so
//! that it can be told when the servers are gone.

use super::{
    contract::ReadCx,
    readiness_check::{Finding, finding},
};
use crate::model::{ids::*, time::Span};
use crate::repository::{
    names::Id,
    open::Repository,
    recovery::Cluster,
    snapshot::Snapshot,
    wal_line::{self, Line},
};
use std::collections::BTreeMap;

/// `ages`: how old a cluster's newest base backup and its newest log may be.
pub(super) async fn look(
    cx: &ReadCx,
    name: &RepositoryName,
    repository: &Repository,
    snapshots: &[(Id, Snapshot)],
    ages: (Option<Span>, Option<Span>),
) -> Vec<Finding> {
    // Oldest first, so that the newest of each cluster stays.
    let newest: BTreeMap<String, (&Id, &Snapshot, Cluster)> =
        snapshots.iter().filter_map(|(id, s)| Cluster::of(s).map(|c| (c.system.clone(), (id, s, c)))).collect();
    let now = cx.world.clock().now();
    let mut all = Vec::new();
    for (system, (id, snapshot, cluster)) in newest {
        let base = format!("repository/{name} base backup of {system}");
        let age = now.duration_since(snapshot.time);
        let good = ages.0.is_none_or(|most| age <= most.signed());
        all.push(finding(base, if good { "fresh" } else { "old" }, good, format!("{} is {} s old", id.short(), age.as_secs())));
        let what = format!("repository/{name} log of {system}");
        all.push(match wal_line::look(repository, &system, cluster.segment_size).await {
            Err(error) => finding(what, "unknown", false, error.to_string()),
            Ok(line) => judge(what, id, &cluster, &line, now, ages.1),
        });
    }
    all
}

fn judge(what: String, id: &Id, cluster: &Cluster, line: &Line, now: jiff::Timestamp, most: Option<Span>) -> Finding {
    let reach = line.reach(&cluster.base, line.newest(&cluster.base), None);
    let missing = match reach.missing.as_slice() {
        [] => "its end".to_owned(),
        [one] => one.to_string(),
        [first, .., last] => format!("{first} to {last}"),
    };
    if reach.end < cluster.base.stop {
        return finding(
            what,
            "unusable",
            false,
            format!("base backup {} is not consistent without log that is missing: {missing}", id.short()),
        );
    }
    if !reach.missing.is_empty() {
        let detail = format!("{missing} is missing: base backup {} can be led to {} and no further; make a new one", id.short(), reach.end);
        return finding(what, "gap", false, detail);
    }
    let age = line.newest_at.map(|at| now.duration_since(at));
    let good = most.is_none_or(|most| age.is_some_and(|age| age <= most.signed()));
    let told = age.map_or_else(|| "nobody knows when the newest came".to_owned(), |age| format!("the newest came {} s ago", age.as_secs()));
    let more = if good { "" } else { ": `muster wal status --server` tells whether the archiver fails or nobody receives" };
    finding(what, if good { "whole" } else { "stalled" }, good, format!("up to {}; {told}{more}", reach.end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::{cluster_fixture::with_cluster, contract_tests::Bench, readiness_check::Readiness};
    use crate::{providers::port::Lsn, repository::wal_line::Base};
    use serde_json::json;

    fn asked() -> serde_json::Value {
        json!({ "region": "west", "services": [], "repositories": ["vault"] })
    }

    async fn said(segment: Option<&str>, with: serde_json::Value) -> String {
        let bench = Bench::new(&with_cluster(with));
        bench.world.lock().objects.retain(|(_, _, key), _| segment.is_none_or(|gone| !key.ends_with(gone)));
        match bench.run::<Readiness>().await {
            Ok(out) => serde_json::to_string(&out.findings).expect("json"),
            Err(failure) => failure.message,
        }
    }

    #[tokio::test]
    async fn a_log_that_does_not_lead_on_is_named() {
        let whole = said(None, asked()).await;
        assert!(whole.contains("log of 7445172393480321234") && whole.contains("whole"), "{whole}");
        let lost = said(Some("000000010000000000000003"), asked()).await;
        assert!(lost.contains("unusable") && lost.contains("000000010000000000000003"), "{lost}");
    }

    #[test]
    fn a_log_that_has_stopped_coming_is_stalled_and_a_gap_says_how_far_it_comes() {
        const MIB: u32 = 1 << 20;
        let now: jiff::Timestamp = "2026-11-26T03:00:00Z".parse().expect("a time");
        let (start, stop) = (Lsn(u64::from(MIB) + 40), Lsn(u64::from(MIB) + 300));
        let cluster = Cluster { system: "7".into(), version: 150_000, segment_size: MIB, base: Base { timeline: 1, start, stop } };
        let mut line = Line::new(MIB);
        line.newest_at = Some(now - jiff::SignedDuration::from_secs(90));
        for name in ["000000010000000000000001", "000000010000000000000002"] {
            line.add(&name.parse().expect("a name"));
        }
        let asked = |line: &Line, most: u64| judge("log".into(), &Id::of(b"x"), &cluster, line, now, Some(Span::from_secs(most)));
        let (quiet, still) = (asked(&line, 91), asked(&line, 89));
        assert_eq!((quiet.state.as_str(), quiet.ok), ("whole", true), "{quiet:?}");
        assert_eq!((still.state.as_str(), still.ok), ("stalled", false), "{still:?}");
        line.add(&"000000010000000000000004".parse().expect("a name"));
        let gap = asked(&line, 91);
        assert!(
            gap.state == "gap" && !gap.ok && gap.detail.contains("000000010000000000000003") && gap.detail.contains("0/300000"),
            "{gap:?}"
        );
    }
}
