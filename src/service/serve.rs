//! The scheduler: fires drills when they are due, puts on record those that were missed, says that it lives.
//!
//! Which fires there are is decided in `plan::schedule`; here they are started or put on record, and only
//! then is the calendar moved on. A fire's drill has an identifier made of its name and its instant, so a
//! scheduler that was killed between the two starts nothing twice.

use super::{Muster, ServiceError, drills::Scheduled, notices};
use crate::journal::{ChainKind, Journal, JournalError};
use crate::model::{estate::Notice, ids::*, status::RunStatus};
use crate::plan::schedule::{Fire, FireKind, decide_fires};
use crate::providers::world::World;
use serde_json::json;
use std::{sync::Arc, time::Duration};
use tokio::task::JoinSet;

/// How often the calendar is looked at.
const TICK: Duration = Duration::from_millis(250);
/// A fire that is noticed later than this was missed.
const TOLERANCE: jiff::SignedDuration = jiff::SignedDuration::from_secs(60);

/// What the scheduler tells of itself, a sentence at a time.
pub type Log = Arc<dyn Fn(&str) + Send + Sync>;

/// Runs until interrupted; what is under way then is settled first.
pub async fn serve(muster: &Muster, log: &Log) -> Result<(), ServiceError> {
    let journal = muster.journal().await?;
    let scheduled = muster.scheduled(None)?;
    for one in &scheduled {
        super::drills::calendar(&one.schedule)?;
        log(&format!("drill {}: {} ({})", one.drill.drill, one.schedule.cron, one.schedule.timezone));
    }
    if scheduled.is_empty() {
        log("no drill has a schedule; only what is open is carried on");
    }
    let mut tasks = JoinSet::new();
    resume_open(muster, &*journal, &mut tasks, log).await?;
    let begun = muster.clock.now();
    let mut beats = Heartbeats::new(muster)?;
    while !*muster.interrupt.borrow() {
        beats.beat(muster).await;
        for one in &scheduled {
            fire(muster, &*journal, one, begun, &mut tasks, log).await?;
        }
        muster.clock.sleep(TICK).await;
        while tasks.try_join_next().is_some() {}
    }
    log("stopping: what is under way is settled first");
    while tasks.join_next().await.is_some() {}
    Ok(())
}

async fn fire(
    muster: &Muster,
    journal: &dyn Journal,
    one: &Scheduled,
    begun: jiff::Timestamp,
    tasks: &mut JoinSet<()>,
    log: &Log,
) -> Result<(), ServiceError> {
    let name = &one.drill.drill;
    let now = muster.clock.now();
    // A drill that was never considered begins its calendar now.
    let last = if let Some(last) = journal.considered(name.as_str()).await? {
        last
    } else {
        journal.consider(name.as_str(), begun).await?;
        begun
    };
    let fires = decide_fires(&one.schedule, last, now, TOLERANCE).map_err(|e| ServiceError::Usage(e.to_string()))?;
    for Fire { at, what } in &fires {
        match what {
            FireKind::Missed { reason } | FireKind::Blackout { reason } => miss(muster, name, *at, reason, log).await?,
            FireKind::Start => match incident(journal).await? {
                Some(why) => miss(muster, name, *at, &why, log).await?,
                None => start(muster.clone(), one.file.display().to_string(), name.clone(), *at, tasks, log.clone()),
            },
        }
    }
    if !fires.is_empty() {
        journal.consider(name.as_str(), now).await?;
    }
    Ok(())
}

async fn miss(muster: &Muster, name: &DrillName, at: jiff::Timestamp, reason: &str, log: &Log) -> Result<(), ServiceError> {
    muster.put_on_record(name, at, reason).await?;
    log(&format!("drill {name}, due at {at}, is on record as missed: {reason}"));
    let estate = muster.written_estate()?;
    let world = World::new(Arc::new(estate.clone()), muster.clock.clone());
    let about = json!({ "drill": name, "scheduled_for": crate::model::time::rfc3339_ms(at) });
    notices::tell(&world, &estate, Notice::Missed, &format!("drill {name} was missed: {reason}"), about).await;
    Ok(())
}

/// No drill starts while a run outside of drills is open.
async fn incident(journal: &dyn Journal) -> Result<Option<String>, ServiceError> {
    let open = journal.open().await?;
    let live = open.iter().find(|row| row.kind == ChainKind::Run && row.parent.is_none());
    Ok(live.map(|row| format!("run {} ({}) is open: no drill starts during an incident", row.id, row.name)))
}

fn start(muster: Muster, file: String, name: DrillName, at: jiff::Timestamp, tasks: &mut JoinSet<()>, log: Log) {
    tasks.spawn(async move {
        log(&format!("drill {name}, due at {at}, starts"));
        match muster.drill_run(&file, Some(at)).await {
            Ok(drilled) => {
                let verdict =
                    drilled.state.verdict.as_ref().map_or("skipped".to_owned(), |(verdict, _)| format!("{verdict:?}").to_lowercase());
                log(&format!("drill {name}: {verdict} ({})", drilled.state.id));
            }
            Err(ServiceError::Drill(crate::drill::conduct::DrillError::Journal(JournalError::Exists { .. }))) => {}
            Err(error) => {
                log(&format!("drill {name} could not run: {error}"));
                let reason = format!("it could not run: {error}");
                if let Err(error) = miss(&muster, &name, at, &reason, &log).await {
                    log(&format!("and could not be put on record: {error}"));
                }
            }
        }
    });
}

/// What an earlier process left open and nobody has to decide about is carried on.
async fn resume_open(muster: &Muster, journal: &dyn Journal, tasks: &mut JoinSet<()>, log: &Log) -> Result<(), ServiceError> {
    for row in journal.open().await? {
        let parked =
            [RunStatus::Paused, RunStatus::WaitingApproval, RunStatus::Indeterminate].iter().any(|status| row.status == status.word());
        let (muster, log) = (muster.clone(), log.clone());
        match row.kind {
            ChainKind::Drill => {
                log(&format!("drill {} ({}) was left open; going on with it", row.name, row.id));
                tasks.spawn(async move {
                    if let Err(error) = muster.drill_resume(&row.id).await {
                        log(&format!("drill {}: {error}", row.id));
                    }
                });
            }
            ChainKind::Run if row.parent.is_none() && !parked => {
                log(&format!("run {} ({}) was left open; going on with it", row.id, row.name));
                tasks.spawn(async move {
                    if let Err(error) = muster.resume_run(&row.id).await {
                        log(&format!("run {}: {error}", row.id));
                    }
                });
            }
            ChainKind::Run => {}
        }
    }
    Ok(())
}

/// The heartbeats of the estate's channels, each at its own pace.
struct Heartbeats {
    estate: crate::model::estate::Estate,
    due: Duration,
    every: Option<Duration>,
}

impl Heartbeats {
    fn new(muster: &Muster) -> Result<Self, ServiceError> {
        let estate = muster.written_estate()?;
        let wanted = estate.notify.iter().filter(|channel| channel.on.contains(&Notice::Heartbeat));
        let every = wanted.map(|channel| channel.every.map_or(Duration::from_mins(1), crate::model::time::Span::duration)).min();
        Ok(Self { estate, due: muster.clock.monotonic(), every })
    }

    async fn beat(&mut self, muster: &Muster) {
        let now = muster.clock.monotonic();
        let Some(every) = self.every.filter(|_| now >= self.due) else { return };
        self.due = now + every;
        let world = World::new(Arc::new(self.estate.clone()), muster.clock.clone());
        notices::tell(&world, &self.estate, Notice::Heartbeat, "muster serve is alive", json!({ "actor": muster.actor() })).await;
    }
}
