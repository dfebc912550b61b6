//! Two buckets compared as sets: both listings side by side, in bounded memory, from where an earlier process stopped.

use super::{
    bucket_verify::{Compared, Input, Rule},
    contract::*,
    set_judge::{How, Judge},
    set_rows::Sides,
    set_tally::{Checkpoint, Desk},
    set_walk::{Listing, Order},
    set_work::{self, Ended},
    shared::*,
};
use crate::model::{effect::Failure, time::Span};
use crate::providers::port::*;
use futures::future::try_join;
use std::{path::PathBuf, sync::Arc};

/// Where the comparison of one step keeps what it needs: how far it has come, what differs, and sorted listings.
pub(crate) fn folder(cx: &ReadCx) -> PathBuf {
    cx.scratch.join(format!("bucket-verify-{}", short_key(cx)))
}

pub(crate) async fn verify(cx: &ReadCx, input: &Input) -> Result<Compared, ApplyError> {
    let source = cx.world.objects(input.bucket.as_str(), input.from.as_str())?;
    let copy = cx.world.objects(input.bucket.as_str(), input.to.as_str())?;
    let listing = |store: &Arc<dyn ObjectRead>| Some(Listing { versions: input.versions, ..Listing::of(store.clone(), &input.prefix) });
    let sides = Sides { manifest: None, source: listing(&source), copy: listing(&copy) };
    let opened = set_work::open(&folder(cx), Checkpoint::default())?;
    let judge = judge(cx, input, source, copy, opened.at.tally.read_bytes).await?;
    let ended = set_work::compared(opened, cx.world.clock(), (input.bucket.as_str(), &input.prefix), sides, judge).await?;
    Ok(told(ended))
}

async fn judge(cx: &ReadCx, input: &Input, source: Arc<dyn ObjectRead>, copy: Arc<dyn ObjectRead>, read: u64) -> Result<Judge, ApplyError> {
    let rules = source.replication_rules().await?;
    // The rules of a bucket may have several destinations.
    let place = copy.place("").map(|place| place.bucket);
    let rules: Vec<ReplicationRule> = rules.into_iter().filter(|rule| place.as_ref().is_none_or(|place| rule.to == *place)).collect();
    let keeps = try_join(source.keeps_versions(), copy.keeps_versions()).await?;
    let how = How {
        versions: input.versions,
        checksums: input.checksums,
        read: input.read_data,
        sample: input.sample,
        seed: cx.key.clone(),
        max_backlog_age: input.max_backlog_age.map(Span::signed).unwrap_or_default(),
    };
    Ok(Judge { source, copy, rules, keeps, how, now: cx.world.clock().now(), read: read.into() })
}

fn told(ended: Ended<Judge>) -> Compared {
    let Checkpoint { order, tally, .. } = ended.at;
    let rules = ended.judge.rules.into_iter().map(|r| Rule {
        id: r.id,
        enabled: r.enabled,
        prefix: r.prefix,
        tagged: r.tagged,
        delete_markers: r.delete_markers,
    });
    let order = match order {
        Order::Bytes => "bytes",
        Order::Folders => "folders",
        Order::Sorted => "sorted here",
    };
    Compared {
        copies: tally.copies,
        older_versions: tally.older_versions,
        told: tally.told(),
        differences: tally.differences(),
        objects: tally.objects,
        bytes: tally.bytes,
        same_by: tally.same_by,
        read_bytes: tally.read_bytes,
        waiting: tally.waiting,
        kept: tally.kept,
        found: tally.found,
        backlog: tally.backlog,
        rules: rules.collect(),
        order: order.to_owned(),
        resumed_at: ended.resumed_at,
        objects_per_s: ended.objects_per_s,
    }
}

/// What differs, as the failure of a step.
pub(crate) fn differs(cx: &ReadCx, input: &Input, compared: &Compared) -> ApplyError {
    let file = Desk::differences(&folder(cx));
    let behind = &compared.backlog;
    let backlog = match behind.oldest {
        Some(oldest) => format!("; replication: {} pending, {} failed, the oldest of {oldest}", behind.pending, behind.failed),
        None => String::new(),
    };
    let rules = compared.rules.iter().filter(|rule| !rule.enabled).map(|rule| format!("; replication rule `{}` is disabled", rule.id));
    let message = format!(
        "bucket `{}` in `{}` differs from `{}`: {}{backlog}{}{}; each with its reason in {}",
        input.bucket,
        input.to,
        input.from,
        compared.told,
        rules.collect::<String>(),
        gone_on(compared.resumed_at.as_deref()),
        file.display()
    );
    let remedy =
        "copy what is missing or stale again (`bucket.backup`, or the provider's batch replication), and find out what changed the copies";
    ApplyError::Definite(Failure::new("replica_differs", message).remedy(remedy))
}

pub(crate) fn gone_on(resumed_at: Option<&str>) -> String {
    resumed_at.map(|key| format!("; gone on behind `{key}`, where an earlier process had stopped")).unwrap_or_default()
}
