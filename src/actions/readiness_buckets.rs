//! Does a bucket protect what it holds as the estate says it shall: versions, Object Lock, replication? A part of
//! `readiness.check`.

use super::{
    contract::ReadCx,
    readiness_check::{Finding, Input, finding},
    shared::within,
};
use crate::model::{estate::Bucket, ids::*};
use crate::providers::port::*;
use std::{collections::BTreeMap, time::Duration};

/// What the estate asks of the bucket in the region, and of those whose copies it receives. They may be lost with their
/// region: that they do not answer is no fault of this one.
pub(super) async fn protected(cx: &ReadCx, input: &Input, name: &BucketName, regions: &BTreeMap<RegionName, Bucket>) -> Vec<Finding> {
    let mut all = Vec::new();
    let Some(here) = regions.get(&input.region) else { return all };
    match cx.world.objects(name.as_str(), input.region.as_str()) {
        Err(e) => all.push(finding(format!("bucket/{name}"), "unknown", false, e.to_string())),
        Ok(objects) => {
            if here.versioned {
                all.push(versioning(name, objects.keeps_versions().await));
            }
            if let Some(span) = here.locked_for {
                all.push(locked(name, span.ms, objects.lock().await));
            }
        }
    }
    for (from, place) in regions {
        let Some(to) = &place.replicates_to else { continue };
        if *from != input.region && *to != input.region {
            continue;
        }
        let what = format!("bucket/{name} replication from {from} to {to}");
        let rules = async { cx.world.objects(name.as_str(), from.as_str())?.replication_rules().await };
        let answer = within(cx, Duration::from_secs(2), rules).await;
        let target = regions.get(to).map(|place| place.bucket.as_str()).unwrap_or_default();
        all.push(match answer {
            Err(e @ PortError::Unreachable(_)) if *from != input.region => finding(what, "unknown", true, format!("not to be asked: {e}")),
            Err(e) => finding(what, "unknown", false, e.to_string()),
            Ok(rules) => replicated(what, target, &rules),
        });
    }
    all
}

fn versioning(name: &BucketName, on: PortResult<bool>) -> Finding {
    let what = format!("bucket/{name} versioning");
    match on {
        Err(e) => finding(what, "unknown", false, e.to_string()),
        Ok(true) => finding(what, "on", true, "what is replaced or deleted is kept"),
        Ok(false) => finding(what, "off", false, "what is replaced or deleted is gone; turn the bucket's versioning on"),
    }
}

const DAY_MS: u64 = 86_400_000;

fn locked(name: &BucketName, asked_ms: u64, lock: PortResult<BucketLock>) -> Finding {
    let what = format!("bucket/{name} object lock");
    let asked = asked_ms.div_ceil(DAY_MS);
    match lock {
        Err(e) => finding(what, "unknown", false, e.to_string()),
        Ok(BucketLock::Absent) => finding(what, "absent", false, "the bucket has no Object Lock; it is turned on when a bucket is made"),
        Ok(BucketLock::Present(None)) => {
            finding(what, "no default", false, format!("nothing is retained by default; set a default retention of {asked} days"))
        }
        Ok(BucketLock::Present(Some(LockDefault { mode, days }))) => {
            let mode = if mode == LockMode::Compliance { "compliance" } else { "governance" };
            let enough = u64::from(days) * DAY_MS >= asked_ms;
            let state = if enough { "retained" } else { "shorter" };
            finding(what, state, enough, format!("{days} days by default ({mode}), {asked} are asked for"))
        }
    }
}

fn replicated(what: String, to: &str, rules: &[ReplicationRule]) -> Finding {
    let ours: Vec<&ReplicationRule> = rules.iter().filter(|rule| rule.to == to).collect();
    let Some(best) = ours.iter().find(|rule| rule.enabled && rule.prefix.is_empty() && !rule.tagged).or(ours.first()) else {
        return finding(what, "missing", false, format!("no replication rule of the source leads to bucket {to}"));
    };
    if !ours.iter().any(|rule| rule.enabled) {
        return finding(what, "disabled", false, format!("rule `{}` is disabled", best.id));
    }
    if !best.enabled || best.tagged || !best.prefix.is_empty() {
        let some: Vec<&str> = ours.iter().filter(|rule| rule.enabled).map(|rule| rule.prefix.as_str()).collect();
        return finding(what, "partial", false, format!("only a part is replicated (prefixes: {}; or by tags)", some.join(", ")));
    }
    let markers = if best.delete_markers { "deletions too" } else { "not deletions" };
    finding(what, "enabled", true, format!("rule `{}`, {markers}", best.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(id: &str, enabled: bool, prefix: &str, to: &str) -> ReplicationRule {
        ReplicationRule { id: id.into(), enabled, prefix: prefix.into(), tagged: false, delete_markers: false, to: to.into() }
    }

    #[test]
    fn a_rule_counts_when_it_is_enabled_and_carries_all_there() {
        let state = |rules: &[ReplicationRule]| replicated("r".into(), "west", rules).state;
        assert_eq!(state(&[]), "missing");
        assert_eq!(state(&[rule("a", true, "", "north")]), "missing");
        assert_eq!(state(&[rule("a", false, "", "west")]), "disabled");
        assert_eq!(state(&[rule("a", true, "p/", "west"), rule("b", false, "", "west")]), "partial");
        assert_eq!(state(&[rule("a", true, "p/", "west"), rule("b", true, "", "west")]), "enabled");
    }

    #[test]
    fn a_lock_counts_when_it_is_long_enough() {
        let state = |days: Option<u32>| {
            let lock = BucketLock::Present(days.map(|days| LockDefault { mode: LockMode::Compliance, days }));
            let found = locked(&"models".into(), 30 * DAY_MS, Ok(lock));
            (found.state, found.ok)
        };
        assert_eq!(state(Some(30)), ("retained".into(), true));
        assert_eq!(state(Some(29)), ("shorter".into(), false));
        assert_eq!(state(None), ("no default".into(), false));
        assert!(!locked(&"models".into(), 1, Ok(BucketLock::Absent)).ok);
    }
}
