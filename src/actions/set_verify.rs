//! Two buckets compared as sets: both listings side by side, in bounded memory, from where an earlier process stopped.

use super::{
    bucket_verify::{Compared, Input, Rule},
    contract::*,
    set_judge::{How, Judge},
    set_tally::{Checkpoint, Desk, Finding, Verdict},
    set_walk::{Broken, Item, Listing, Order, Walker},
    shared::*,
};
use crate::model::{effect::Failure, time::Span};
use crate::providers::{clock::Clock, port::*};
use futures::{StreamExt, TryStreamExt, future::try_join};
use std::{cmp::Ordering, path::PathBuf, sync::Arc, time::Duration};

/// So many keys at most are judged between two checkpoints.
const BATCH: usize = 1_000;
/// Fewer where so many of them have to be looked at, which takes its time.
const LOOKED_AT: usize = 256;
/// So many of those at a time.
const LOOKS: usize = 32;
/// How often it is said how far it has come.
const TOLD: Duration = Duration::from_secs(10);

/// Where the comparison of one step keeps what it needs: how far it has come, what differs, and sorted listings.
pub(crate) fn folder(cx: &ReadCx) -> PathBuf {
    cx.scratch.join(format!("bucket-verify-{}", short_key(cx)))
}

pub(crate) async fn verify(cx: &ReadCx, input: &Input) -> Result<Compared, ApplyError> {
    let source = cx.world.objects(input.bucket.as_str(), input.from.as_str())?;
    let copy = cx.world.objects(input.bucket.as_str(), input.to.as_str())?;
    let (desk, kept) = Desk::open(&folder(cx)).map_err(|e| broken_desk(cx, &e))?;
    let listing = |store: &Arc<dyn ObjectRead>| Listing { store: store.clone(), prefix: input.prefix.clone(), versions: input.versions };
    let listings = (listing(&source), listing(&copy));
    let resumed_at = kept.as_ref().and_then(|kept| kept.after.clone());
    let at = kept.unwrap_or_default();
    let judge = judge(cx, input, source, copy, at.tally.read_bytes).await?;
    let clock = cx.world.clock();
    let begin = clock.monotonic();
    let had = at.tally.objects.max(at.tally.copies);
    let mut work = Work { judge, listings, desk, at, clock, begin, had, told: begin, bucket: input.bucket.to_string() };
    loop {
        match work.walk().await {
            Ok(()) => break,
            Err(Broken::Order) => work.another_order().map_err(|e| broken_desk(cx, &e))?,
            Err(Broken::Port(e)) => return Err(e.into()),
            Err(Broken::Disk(why)) => return Err(fail("scratch", why)),
        }
    }
    work.finish(resumed_at).map_err(|e| broken_desk(cx, &e))
}

fn broken_desk(cx: &ReadCx, e: &std::io::Error) -> ApplyError {
    fail("scratch", format!("{}: {e}", folder(cx).display()))
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

struct Work {
    judge: Judge,
    listings: (Listing, Listing),
    desk: Desk,
    at: Checkpoint,
    clock: Arc<dyn Clock>,
    begin: Duration,
    /// Objects that an earlier process had judged.
    had: u64,
    told: Duration,
    bucket: String,
}

impl Work {
    /// From where it stands to the end.
    async fn walk(&mut self) -> Result<(), Broken> {
        let (order, after) = (self.at.order, self.at.after.clone());
        let (source, copy) = (self.desk.folder.join("source"), self.desk.folder.join("copy"));
        let source = Walker::begin(self.listings.0.clone(), order, after.clone(), &source);
        let copy = Walker::begin(self.listings.1.clone(), order, after, &copy);
        let (source, copy) = try_join(source, copy).await?;
        let mut pairs = Pairs { order, source, copy, left: None, right: None };
        while self.batch(&mut pairs).await? {
            self.tell();
        }
        Ok(())
    }

    /// Judges the next keys and remembers that they are; false when there are no more.
    async fn batch(&mut self, pairs: &mut Pairs) -> Result<bool, Broken> {
        let (mut looks, mut taken, mut more) = (Vec::new(), 0, true);
        let mut tally = self.at.tally.clone();
        let mut after = None;
        while taken < BATCH && looks.len() < LOOKED_AT {
            let Some((source, copy)) = pairs.next().await? else {
                more = false;
                break;
            };
            taken += 1;
            let key = source.as_ref().or(copy.as_ref()).map(|item| item.key().to_owned()).unwrap_or_default();
            after = Some(key.clone());
            if key.starts_with(OWN) && !self.listings.0.prefix.starts_with(OWN) {
                continue;
            }
            let there = |item: &Option<Item>| item.as_ref().and_then(|item| item.latest().filter(|latest| !latest.marker)).map(|o| o.size);
            tally.objects += u64::from(there(&source).is_some());
            tally.copies += u64::from(there(&copy).is_some());
            tally.bytes += there(&source).unwrap_or(0);
            tally.older_versions += source.as_ref().map_or(0, |item| item.0.len() as u64 - 1);
            let listed = source.as_ref().zip(copy.as_ref()).and_then(|(source, copy)| self.judge.listed(source, copy));
            match listed {
                Some(by) => drop(tally.add(Verdict::Same(by))),
                None => looks.push(key),
            }
        }
        let mut each = Vec::new();
        for key in &looks {
            each.push(self.judge.look(key));
        }
        let verdicts: Vec<Vec<Verdict>> = futures::stream::iter(each).buffered(LOOKS).try_collect().await?;
        let findings: Vec<Finding> = verdicts.into_iter().flatten().filter_map(|verdict| tally.add(verdict)).collect();
        tally.read_bytes = self.judge.read.load(std::sync::atomic::Ordering::Relaxed);
        self.at.tally = tally;
        self.at.after = after.or(self.at.after.take());
        self.keep(&findings).map_err(|e| Broken::Disk(format!("{}: {e}", self.desk.folder.display())))?;
        Ok(more)
    }

    fn keep(&mut self, findings: &[Finding]) -> std::io::Result<()> {
        self.at.written = self.desk.write(findings)?;
        self.at.objects_per_s = self.rate();
        self.desk.keep(&self.at)
    }

    /// Of this process alone.
    fn rate(&self) -> u64 {
        let seen = self.at.tally.objects.max(self.at.tally.copies) - self.had;
        (seen as f64 / self.clock.monotonic().saturating_sub(self.begin).as_secs_f64().max(0.001)) as u64
    }

    fn tell(&mut self) {
        if self.clock.monotonic().saturating_sub(self.told) >= TOLD {
            self.told = self.clock.monotonic();
            let (tally, rate) = (&self.at.tally, self.at.objects_per_s);
            let after = self.at.after.as_deref().unwrap_or_default();
            tracing::info!("bucket {}: {} objects, {} differences, {rate}/s, at {after}", self.bucket, tally.objects, tally.differences());
        }
    }

    /// The listings were not in the order that was thought: what was judged may be wrong.
    fn another_order(&mut self) -> std::io::Result<()> {
        let order = self.at.order.next().ok_or_else(|| std::io::Error::other("a listing that was sorted here is not"))?;
        tracing::info!("bucket {}: a server does not list in the order of keys; begun again ({order:?})", self.bucket);
        self.at = Checkpoint { order, ..Checkpoint::default() };
        self.had = 0;
        self.judge.read = 0.into();
        self.desk.again()?;
        self.desk.keep(&self.at)
    }

    /// The next try begins anew.
    fn finish(self, resumed_at: Option<String>) -> std::io::Result<Compared> {
        let rate = self.rate();
        for runs in ["source", "copy"] {
            let _ = std::fs::remove_dir_all(self.desk.folder.join(runs));
        }
        std::fs::remove_file(self.desk.folder.join("checkpoint.json"))?;
        let Checkpoint { order, tally, .. } = self.at;
        let rules = self.judge.rules.into_iter().map(|r| Rule {
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
        Ok(Compared {
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
            resumed_at,
            objects_per_s: rate,
        })
    }
}

/// Both sides, key by key.
struct Pairs {
    order: Order,
    source: Walker,
    copy: Walker,
    left: Option<Item>,
    right: Option<Item>,
}

impl Pairs {
    async fn next(&mut self) -> Result<Option<(Option<Item>, Option<Item>)>, Broken> {
        if self.left.is_none() {
            self.left = self.source.next().await?;
        }
        if self.right.is_none() {
            self.right = self.copy.next().await?;
        }
        let first = match (&self.left, &self.right) {
            (None, None) => return Ok(None),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(left), Some(right)) => self.order.cmp(left.key(), right.key()),
        };
        Ok(Some(match first {
            Ordering::Less => (self.left.take(), None),
            Ordering::Greater => (None, self.right.take()),
            Ordering::Equal => (self.left.take(), self.right.take()),
        }))
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
    let resumed = compared.resumed_at.as_ref().map(|key| format!("; gone on behind `{key}`, where an earlier process had stopped"));
    let resumed = resumed.unwrap_or_default();
    let message = format!(
        "bucket `{}` in `{}` differs from `{}`: {}{backlog}{}{resumed}; each with its reason in {}",
        input.bucket,
        input.to,
        input.from,
        compared.told,
        rules.collect::<String>(),
        file.display()
    );
    let remedy =
        "copy what is missing or stale again (`bucket.backup`, or the provider's batch replication), and find out what changed the copies";
    ApplyError::Definite(Failure::new("replica_differs", message).remedy(remedy))
}
