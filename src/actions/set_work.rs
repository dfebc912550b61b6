//! A comparison of buckets under way: key by key in bounded memory, from where an earlier process stopped, whatever it is
//! that the copies are compared with. Who compares says what a row means; here it is gone through, counted and kept.

use super::{
    contract::*,
    set_rows::{RUNS, Row, Rows, Sides},
    set_tally::{Checkpoint, Desk, Finding, Tally, Verdict},
    set_walk::Broken,
    shared::*,
};
use crate::providers::{clock::Clock, port::*};
use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// So many keys at most are judged between two checkpoints.
const BATCH: usize = 1_000;
/// Fewer where so many of them have to be looked at, which takes its time.
const LOOKED_AT: usize = 256;
/// So many of those at a time.
const LOOKS: usize = 32;
/// How often it is said how far it has come.
const TOLD: Duration = Duration::from_secs(10);

/// Says what a row means.
#[async_trait]
pub(crate) trait Judges: Send + Sync {
    /// Counts it; what the listings alone decide needs no look.
    fn listed(&self, row: &Row, tally: &mut Tally) -> Option<Verdict>;
    /// Asks the servers.
    async fn look(&self, row: &Row) -> Result<Vec<Verdict>, Broken>;
    /// How many bytes it has read.
    fn read(&self) -> &AtomicU64;
}

struct Work<J> {
    judge: J,
    sides: Sides,
    desk: Desk,
    at: Checkpoint,
    clock: Arc<dyn Clock>,
    begin: Duration,
    /// Objects that an earlier process had judged.
    had: u64,
    told: Duration,
    bucket: String,
    prefix: String,
}

/// What it came to.
pub(crate) struct Ended<J> {
    pub judge: J,
    pub at: Checkpoint,
    /// Where an earlier process had stopped.
    pub resumed_at: Option<String>,
    /// Of this process.
    pub objects_per_s: u64,
}

/// Where it stands, before it goes on.
pub(crate) struct Opened {
    desk: Desk,
    pub at: Checkpoint,
    resumed_at: Option<String>,
}

/// As an earlier process left it; or at its beginning, which says how to begin and what the copies are compared with.
pub(crate) fn open(folder: &Path, begin: Checkpoint) -> Result<Opened, ApplyError> {
    let (desk, kept) = Desk::open(folder, begin.manifest.as_deref()).map_err(|e| broken(folder, &e))?;
    if kept.is_none() {
        // What an earlier try sorted may be of another manifest, or of listings that are old.
        without_runs(folder);
    }
    let resumed_at = kept.as_ref().and_then(|kept| kept.after.clone());
    Ok(Opened { desk, at: kept.unwrap_or(begin), resumed_at })
}

fn without_runs(folder: &Path) {
    for runs in RUNS {
        let _ = std::fs::remove_dir_all(folder.join(runs));
    }
}

fn broken(folder: &Path, e: &std::io::Error) -> ApplyError {
    fail("scratch", format!("{}: {e}", folder.display()))
}

/// Compares to the end.
pub(crate) async fn compared<J: Judges>(
    opened: Opened,
    clock: Arc<dyn Clock>,
    (bucket, prefix): (&str, &str),
    mut sides: Sides,
    judge: J,
) -> Result<Ended<J>, ApplyError> {
    let Opened { desk, at, resumed_at } = opened;
    if at.alone {
        sides.source = None;
    }
    let (now, had) = (clock.monotonic(), at.tally.objects.max(at.tally.copies));
    let (bucket, prefix) = (bucket.to_owned(), prefix.to_owned());
    let mut work = Work { judge, sides, desk, at, clock, begin: now, had, told: now, bucket, prefix };
    let folder = work.desk.folder.clone();
    loop {
        let on = match work.walk().await {
            Ok(()) => break,
            Err(Broken::Order) => work.another_order(),
            Err(Broken::Source(e)) if work.sides.manifest.is_some() => work.without_source(&e),
            Err(other) => return Err(other.into()),
        };
        on.map_err(|e| broken(&folder, &e))?;
    }
    work.close().map_err(|e| broken(&folder, &e))?;
    Ok(Ended { objects_per_s: work.rate(), judge: work.judge, at: work.at, resumed_at })
}

impl<J: Judges> Work<J> {
    /// From where it stands to the end.
    async fn walk(&mut self) -> Result<(), Broken> {
        let mut rows = Rows::begin(&self.sides, self.at.order, self.at.after.as_deref(), &self.desk.folder).await?;
        while self.batch(&mut rows).await? {
            self.tell();
        }
        Ok(())
    }

    /// Judges the next keys and remembers that they are; false when there are no more.
    async fn batch(&mut self, rows: &mut Rows) -> Result<bool, Broken> {
        let (mut looks, mut findings, mut taken, mut more) = (Vec::new(), Vec::new(), 0, true);
        let mut tally = self.at.tally.clone();
        let mut after = None;
        while taken < BATCH && looks.len() < LOOKED_AT {
            let Some(row) = rows.next().await? else {
                more = false;
                break;
            };
            taken += 1;
            let own = row.key().starts_with(OWN) && !self.prefix.starts_with(OWN);
            after = Some(row.key().to_owned());
            if own {
                continue;
            }
            match self.judge.listed(&row, &mut tally) {
                Some(verdict) => findings.extend(tally.add(verdict)),
                None => looks.push(row),
            }
        }
        let mut each = Vec::new();
        for row in &looks {
            each.push(self.judge.look(row));
        }
        let verdicts: Vec<Vec<Verdict>> = futures::stream::iter(each).buffered(LOOKS).try_collect().await?;
        findings.extend(verdicts.into_iter().flatten().filter_map(|verdict| tally.add(verdict)));
        tally.read_bytes = self.judge.read().load(Ordering::Relaxed);
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
        let seen = self.at.tally.objects.max(self.at.tally.copies).saturating_sub(self.had);
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
        self.anew(Checkpoint { order, alone: self.at.alone, ..Checkpoint::default() })
    }

    /// What was judged with the source's help is judged without it, as the rest.
    fn without_source(&mut self, why: &PortError) -> std::io::Result<()> {
        tracing::info!("bucket {}: the source does not answer ({why}); compared with the manifest alone", self.bucket);
        self.sides.source = None;
        self.anew(Checkpoint { order: self.at.order, alone: true, ..Checkpoint::default() })
    }

    fn anew(&mut self, begin: Checkpoint) -> std::io::Result<()> {
        self.at = Checkpoint { manifest: self.at.manifest.take(), ..begin };
        self.had = 0;
        self.judge.read().store(0, Ordering::Relaxed);
        self.desk.again()?;
        self.desk.keep(&self.at)
    }

    /// The next try begins anew.
    fn close(&self) -> std::io::Result<()> {
        without_runs(&self.desk.folder);
        std::fs::remove_file(self.desk.folder.join("checkpoint.json"))
    }
}
