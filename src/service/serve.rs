//! The scheduler: fires drills when they are due, puts on record those that were missed, says that it lives.
//!
//! Which fires there are is decided in `plan::schedule`; here a fire's drill is begun (its chain is in the
//! journal) or put on record as missed, and only then is the calendar moved on. A fire's drill has an
//! identifier made of its name and its instant, so a scheduler that was killed between the two starts
//! nothing twice, and neither do several nodes on one journal. One scheduler serves a state directory: it
//! holds an OS lock on it, which ends with it. [`super::takeover`] is the other half of it: it goes on with
//! what was left.
//!
//! Between its fires a schedule costs next to nothing: the calendar knows when each is due next, and only then,
//! and now and then, is its place in the journal asked for. The files are looked at as often as they are few.
//!
//! What is wrong with one drill, or for a while with the journal, is told and does not stop the others.

use super::{
    Muster, ServiceError,
    drills::{Begun, Drilled, Scheduled, calendar, drill_state, scheduled_id},
    files::Folder,
    heartbeat::{self, Pulse},
    notices,
    takeover::{Heir, hand_over_drill, is_lapse},
};
use crate::drill::conduct::DrillError;
use crate::journal::{ChainKind, ChainRow, Journal, JournalError};
use crate::model::{drill::Drill, ids::*, time::rfc3339_ms};
use crate::plan::schedule::{Fire, FireKind, decide_fires, next_look};
use crate::providers::world::World;
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Seek as _, Write as _},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::task::JoinSet;

/// How often the calendar is looked at.
const TICK: Duration = Duration::from_millis(250);
/// What part of the time the drill files may be looked at: with many of them, less often than every tick.
const FILES: u32 = 50;
/// So many schedules a second are looked at between their fires: the journal may have been changed by others.
const LOOKS: u32 = 200;
/// A fire that is noticed later than this was missed.
const TOLERANCE: jiff::SignedDuration = jiff::SignedDuration::from_secs(60);

/// What a node reserves while it begins drills.
const CALENDAR: &str = "calendar";

/// What the scheduler tells of itself, a sentence at a time.
pub type Log = Arc<dyn Fn(&str) + Send + Sync>;

/// Runs until interrupted; what is under way then is settled first.
pub async fn serve(muster: &Muster, log: &Log) -> Result<(), ServiceError> {
    let _held = hold(muster)?;
    let journal = muster.journal().await?;
    let pulse = Pulse::default();
    pulse.round(muster.clock.monotonic());
    let begun = muster.clock.now();
    let mut scheduler = Scheduler {
        muster: muster.clone(),
        journal,
        log: log.clone(),
        begun,
        drills: Vec::new(),
        due: Vec::new(),
        looked: begun,
        reread: Duration::ZERO,
        stamp: None,
        told: BTreeSet::new(),
        tasks: JoinSet::new(),
    };
    scheduler.read_drills();
    if scheduler.drills.is_empty() {
        log("no drill has a schedule; what is open is carried on, and drills/ is watched");
    }
    let mut heir = Heir::new(muster, &scheduler.journal, log);
    heir.begin().await?;
    let heir = tokio::spawn(heir.go_on());
    let beats = heartbeat::start(muster, &pulse)?;
    while !*muster.interrupt.borrow() {
        scheduler.read_drills();
        if scheduler.round().await {
            pulse.round(muster.clock.monotonic());
        }
        // Nodes that look at the same instant would only be in each other's way.
        muster.clock.sleep(if muster.shared.is_some() { TICK.mul_f64(0.5 + muster.clock.jitter()) } else { TICK }).await;
        while scheduler.tasks.try_join_next().is_some() {}
    }
    drop(beats);
    log("stopping: what is under way is settled first");
    while scheduler.tasks.join_next().await.is_some() {}
    if let Err(died) = heir.await {
        log(&format!("going on with what was left open died: {died}"));
    }
    muster.leave().await;
    Ok(())
}

/// Takes the state directory for this scheduler alone. The lock is the kernel's: it ends with the process.
fn hold(muster: &Muster) -> Result<std::fs::File, ServiceError> {
    let folder = muster.state.join("locks");
    let path = folder.join("serve.lock");
    let fail = |e: std::io::Error| ServiceError::Usage(format!("{} cannot be used: {e}", path.display()));
    std::fs::create_dir_all(&folder).map_err(fail)?;
    let mut file = std::fs::OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path).map_err(fail)?;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0).map_err(fail)?;
            file.rewind().map_err(fail)?;
            write!(file, "{} since {}", muster.actor(), rfc3339_ms(muster.clock.now())).map_err(fail)?;
            Ok(file)
        }
        Err(std::fs::TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // It may be about to write its name; the refusal stands without it.
            let _ = file.read_to_string(&mut holder);
            let holder = if holder.is_empty() { "another process".to_owned() } else { holder };
            let state = muster.state.display();
            Err(ServiceError::Usage(format!("{state} is served already, by {holder}; one scheduler serves a state directory")))
        }
        Err(std::fs::TryLockError::Error(error)) => Err(fail(error)),
    }
}

struct Scheduler {
    muster: Muster,
    journal: Arc<dyn Journal>,
    log: Log,
    /// When this scheduler began: a drill that was never considered begins its calendar then.
    begun: jiff::Timestamp,
    drills: Vec<Scheduled>,
    /// When each of them is looked at next.
    due: Vec<jiff::Timestamp>,
    /// When the calendar was looked at last.
    looked: jiff::Timestamp,
    /// When the files are looked at again, by the monotonic clock.
    reread: Duration,
    /// The drill files as they were when they were read: name, length, time of change.
    stamp: Option<Vec<(PathBuf, u64, Option<std::time::SystemTime>)>>,
    /// What has been told of what is wrong, so that it is told once.
    told: BTreeSet<String>,
    tasks: JoinSet<()>,
}

impl Scheduler {
    fn trouble(&mut self, text: String) {
        if !self.told.contains(&text) {
            (self.log)(&text);
            self.told.insert(text);
        }
    }

    /// Reads the drill files again when they have changed. One that cannot be used does not stop the others.
    fn read_drills(&mut self) {
        let look = |path: PathBuf| {
            let about = std::fs::metadata(&path).ok();
            let (length, changed) = (about.as_ref().map_or(0, std::fs::Metadata::len), about.and_then(|about| about.modified().ok()));
            (path, length, changed)
        };
        let begun = self.muster.clock.monotonic();
        if begun < self.reread {
            return;
        }
        let stamp: Vec<_> = self.muster.folder(Folder::Drills).into_iter().map(look).collect();
        let now = self.muster.clock.monotonic();
        self.reread = now + now.saturating_sub(begun) * FILES;
        if self.stamp.as_ref() == Some(&stamp) {
            return;
        }
        self.told.clear();
        let known: BTreeMap<_, _> = self.drills.drain(..).map(|one| (one.drill.drill.clone(), one.schedule)).collect();
        for (file, ..) in &stamp {
            match self.read_drill(file) {
                Ok(Some(one)) => {
                    if known.get(&one.drill.drill) != Some(&one.schedule) {
                        (self.log)(&format!("drill {}: {} ({})", one.drill.drill, one.schedule.cron, one.schedule.timezone));
                    }
                    self.drills.push(one);
                }
                Ok(None) => {}
                Err(error) => self.trouble(format!("{} cannot be used, and is left out: {error}", file.display())),
            }
        }
        self.stamp = Some(stamp);
        self.due = vec![jiff::Timestamp::MIN; self.drills.len()];
    }

    fn read_drill(&mut self, file: &std::path::Path) -> Result<Option<Scheduled>, ServiceError> {
        let (path, loaded) = self.muster.drill(&file.display().to_string())?;
        let Some(schedule) = loaded.drill.schedule.clone() else { return Ok(None) };
        calendar(&schedule)?;
        let name = &loaded.drill.drill;
        if let Some(other) = self.drills.iter().find(|one| one.drill.drill == *name) {
            return Err(ServiceError::Usage(format!("{} is drill {name} already", other.file.display())));
        }
        // Its runbooks may be mended before it is due: until then this is a warning.
        if let Ok(estate) = self.muster.estate()
            && let Err(error) = self.muster.drill_plans(&path, &loaded, &estate)
        {
            self.trouble(format!("drill {name} could not run as it stands: {error}"));
        }
        Ok(Some(Scheduled { drill: loaded.drill, schedule, file: path }))
    }

    /// Looks at the whole calendar once; false when something of it could not be looked at.
    async fn round(&mut self) -> bool {
        let mut good = true;
        let now = self.muster.clock.now();
        if now < self.looked {
            // The clock was set back: what is due next is not what it was.
            self.due.fill(jiff::Timestamp::MIN);
        }
        self.looked = now;
        let due = |(place, at): (usize, &jiff::Timestamp)| (*at <= now).then_some(place);
        for place in self.due.iter().enumerate().filter_map(due).collect::<Vec<_>>() {
            let Some(one) = self.drills.get(place).cloned() else { continue };
            match self.look(&one, now).await {
                Ok(next) => self.due.iter_mut().skip(place).take(1).for_each(|due| *due = next),
                Err(error) => {
                    good = false;
                    self.trouble(format!("drill {}: {error}; tried again", one.drill.drill));
                }
            }
        }
        good
    }

    /// Looks at one schedule; gives when it is to be looked at again.
    async fn look(&mut self, one: &Scheduled, now: jiff::Timestamp) -> Result<jiff::Timestamp, ServiceError> {
        let name = &one.drill.drill;
        let last = if let Some(last) = self.journal.considered(name.as_str()).await? {
            last
        } else {
            self.journal.consider(name.as_str(), self.begun).await?;
            self.begun
        };
        // One node at a time begins drills: what is in the way of one must not begin beside it.
        if !fires(one, last, now)?.is_empty() {
            if !self.journal.reserve(CALENDAR, &self.muster.actor()).await? {
                return Ok(now);
            }
            let fired = self.fire(one, now).await;
            self.journal.free(CALENDAR).await?;
            fired?;
        }
        let count = u32::try_from(self.drills.len()).unwrap_or(u32::MAX);
        let again = now.saturating_add((Duration::from_secs(1) * count / LOOKS).max(Duration::from_secs(1))).unwrap_or(now);
        let fire = next_look(&one.schedule, now).map_err(|e| ServiceError::Usage(e.to_string()))?;
        Ok(fire.map_or(again, |fire| fire.min(again)))
    }

    async fn fire(&mut self, one: &Scheduled, now: jiff::Timestamp) -> Result<(), ServiceError> {
        let name = &one.drill.drill;
        // Another node may have moved the calendar on before it was this one's turn.
        let last = self.journal.considered(name.as_str()).await?.unwrap_or(self.begun);
        let mut missed = Vec::new();
        for Fire { at, what } in &fires(one, last, now)? {
            match what {
                FireKind::Missed { reason } => self.miss(name, *at, reason, &mut missed).await?,
                // Asked for beforehand: on record, and nobody is woken.
                FireKind::Blackout { reason } => self.miss(name, *at, reason, &mut Vec::new()).await?,
                FireKind::Start => {
                    if let Some(why) = self.start(one, *at).await? {
                        self.miss(name, *at, &why, &mut missed).await?;
                    }
                }
            }
        }
        self.journal.consider(name.as_str(), now).await?;
        self.tell_missed(&one.drill, &missed);
        Ok(())
    }

    /// Puts a fire on record that started nothing, unless it did start, or is on record already.
    async fn miss(
        &self,
        name: &DrillName,
        at: jiff::Timestamp,
        reason: &str,
        missed: &mut Vec<(jiff::Timestamp, String)>,
    ) -> Result<(), ServiceError> {
        if self.on_record(&scheduled_id(name, at)).await?.is_none() && self.muster.put_on_record(name, at, reason).await? {
            (self.log)(&format!("drill {name}, due at {}, is on record as missed: {reason}", rfc3339_ms(at)));
            missed.push((at, reason.to_owned()));
        }
        Ok(())
    }

    async fn on_record(&self, id: &RunId) -> Result<Option<ChainRow>, ServiceError> {
        match self.journal.row(id).await {
            Ok(row) => Ok(Some(row)),
            Err(JournalError::NoSuchRun(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Begins the drill of a fire; gives why it could not.
    async fn start(&mut self, one: &Scheduled, at: jiff::Timestamp) -> Result<Option<String>, ServiceError> {
        let name = &one.drill.drill;
        if self.on_record(&scheduled_id(name, at)).await?.is_some() {
            // Begun by a scheduler that ended before it could move the calendar on.
            return Ok(None);
        }
        if let Some(why) = in_the_way(&*self.journal, &one.drill).await? {
            return Ok(Some(why));
        }
        match self.muster.drill_begin(&one.file.display().to_string(), Some(at)).await {
            Ok(begun) => {
                (self.log)(&format!("drill {name}, due at {}, has begun: {}", rfc3339_ms(at), begun.id()));
                self.tasks.spawn(conduct(self.muster.clone(), begun, false, self.log.clone()));
                Ok(None)
            }
            Err(ServiceError::Drill(DrillError::Journal(JournalError::Exists { .. }))) => Ok(None),
            // The store is in trouble: tried again, until it is late and on record as missed.
            Err(ServiceError::Journal(error) | ServiceError::Drill(DrillError::Journal(error))) => Err(error.into()),
            Err(error) => Ok(Some(format!("it could not run: {error}"))),
        }
    }

    fn tell_missed(&mut self, drill: &Drill, missed: &[(jiff::Timestamp, String)]) {
        let Some(message) = notices::missed(&self.muster.program_anywhere(), drill, missed) else { return };
        match self.muster.written_estate() {
            Ok(estate) => {
                let world = World::new(Arc::new(estate.clone()), self.muster.clock.clone());
                self.tasks.spawn(async move { notices::tell(&world, &estate, &message).await });
            }
            Err(error) => self.trouble(format!("nobody could be told that drill {} was missed: {error}", drill.drill)),
        }
    }
}

fn fires(one: &Scheduled, last: jiff::Timestamp, now: jiff::Timestamp) -> Result<Vec<Fire>, ServiceError> {
    decide_fires(&one.schedule, last, now, TOLERANCE).map_err(|e| ServiceError::Usage(e.to_string()))
}

/// Conducts a drill, and says how it was left.
pub(super) async fn conduct(muster: Muster, begun: Begun, resumed: bool, log: Log) {
    let id = begun.id().clone();
    match muster.drill_go(begun, resumed).await {
        Ok(Drilled { state, .. }) => {
            let verdict = state.verdict.as_ref().map(|(verdict, reasons)| (format!("{verdict:?}").to_lowercase(), reasons.join("; ")));
            let (verdict, why) = verdict.unwrap_or_else(|| ("skipped".to_owned(), state.skipped.clone().unwrap_or_default()));
            let why = if why.is_empty() { why } else { format!(": {why}") };
            log(&format!("drill {id}: {verdict}{why}"));
        }
        Err(ServiceError::Drill(DrillError::Interrupted(_))) => {
            log(&format!("drill {id} stopped; the next `muster serve` goes on with it"));
            hand_over_drill(muster, id, log).await;
        }
        Err(error) if is_lapse(&error) => log(&format!("drill {id} is not this node's any more: {error}")),
        Err(error) => log(&format!("drill {id}: {error}")),
    }
}

/// Why no drill may start now: a live run is open, this drill still is, or one that loses something.
async fn in_the_way(journal: &dyn Journal, drill: &Drill) -> Result<Option<String>, ServiceError> {
    for row in journal.open().await? {
        match row.kind {
            ChainKind::Run if row.parent.is_none() => {
                return Ok(Some(format!("run {} ({}) is open: no drill starts during an incident", row.id, row.name)));
            }
            ChainKind::Drill if row.name == drill.drill.as_str() => {
                return Ok(Some(format!("drill {} is still open", row.id)));
            }
            ChainKind::Drill => {
                // Faults reach further than any lock.
                let other = drill_state(journal, &row.id).await?;
                if !drill.scenario.is_empty() || !other.drill.scenario.is_empty() {
                    return Ok(Some(format!("drill {} is open, and faults would reach from one into the other", row.id)));
                }
            }
            ChainKind::Run => {}
        }
    }
    Ok(None)
}
