//! Going on with what other processes left: what an earlier one left open when a scheduler begins, and, on a
//! shared journal, all the time what the nodes left that died, froze, or were told to stop.
//!
//! A node takes no more at a time than its share of what there is, in no particular order, so that several
//! nodes share the work instead of racing for it; the journal's epoch decides wherever they meet. What a
//! person has to decide about is left alone. So is a run of a form or with an action that this Muster does
//! not know, and one whose owners keep dying on it: that one is paused, since whatever ends them would end
//! this node as well.

use super::{
    Muster, ServiceError,
    runs::{knows, state_of},
    serve::{Log, conduct},
};
use crate::drill::conduct::DrillError;
use crate::engine::{EngineError, INTERRUPTED, needs_a_person};
use crate::journal::{ChainKind, ChainRow, Claim, Draft, Journal, JournalError, Stored};
use crate::model::{event::Body, ids::RunId, plan::Plan, status::RunStatus};
use crate::plan::state::RunState;
use futures::{StreamExt as _, future::BoxFuture, stream};
use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};
use tokio::task::JoinSet;

/// How often what was left is looked for, give or take half, so that nodes do not meet all the time.
const LOOK: Duration = Duration::from_millis(400);
/// How much is taken over at one look, at most.
const BATCH: usize = 32;
/// So much is taken over at once when a scheduler begins: what is put on record shares commits, and those who were
/// taken first go on meanwhile.
const ABREAST: usize = 64;
/// So many owners in a row may end without any progress, before a person is asked.
const DEATHS: usize = 5;

const PARKED: [RunStatus; 3] = [RunStatus::Paused, RunStatus::WaitingApproval, RunStatus::Indeterminate];

/// Goes on with what others left.
pub(super) struct Heir {
    taker: Taker,
    /// What has been told, so that it is told once.
    told: BTreeSet<String>,
    tasks: JoinSet<()>,
}

impl Heir {
    pub(super) fn new(muster: &Muster, journal: &Arc<dyn Journal>, log: &Log) -> Self {
        let taker = Taker { muster: muster.clone(), journal: journal.clone(), log: log.clone(), plans: Arc::default() };
        Self { taker, told: BTreeSet::new(), tasks: JoinSet::new() }
    }

    fn tell(&mut self, text: String) {
        if !self.told.contains(&text) {
            (self.taker.log)(&text);
            self.told.insert(text);
        }
    }

    /// What was taken is gone on with; what was not, and why, is told.
    fn settle(&mut self, taken: Result<Taken, String>) {
        match taken {
            Ok(Taken::GoesOn(task)) => {
                self.tasks.spawn(task);
            }
            Ok(Taken::LeftAlone) => {}
            Ok(Taken::Waits(why)) | Err(why) => self.tell(why),
        }
    }

    /// What an earlier process left open and nobody has to decide about is carried on.
    pub(super) async fn begin(&mut self) -> Result<(), ServiceError> {
        let mut left = Vec::new();
        for row in self.taker.journal.open().await? {
            match row.kind {
                ChainKind::Run if row.parent.is_some() => {}
                ChainKind::Run if is_parked(&row) => self.tell(format!(
                    "run {} ({}) is {}; no drill starts before it has ended: muster show {}",
                    row.id, row.name, row.status, row.id
                )),
                // Who owns what is known to a shared journal alone.
                _ if self.taker.muster.shared.is_none() => left.push(row),
                _ => {}
            }
        }
        let taker = self.taker.clone();
        let mut taken = stream::iter(left).map(|row| taker.take(row)).buffer_unordered(ABREAST);
        while let Some(taken) = taken.next().await {
            self.settle(taken);
        }
        Ok(())
    }

    /// Goes on with what is left, until interrupted; what is under way then is settled first.
    pub(super) async fn go_on(mut self) {
        let mut trouble = false;
        let Taker { muster, log, .. } = self.taker.clone();
        while !*muster.interrupt.borrow() {
            if muster.shared.is_some() {
                match self.look().await {
                    Ok(()) if trouble => {
                        log("the journal answers again");
                        trouble = false;
                    }
                    Ok(()) => {}
                    Err(error) if !trouble => {
                        log(&format!("{error}; nothing new is begun meanwhile, and it is tried again"));
                        trouble = true;
                    }
                    Err(_) => {}
                }
            }
            muster.clock.sleep(LOOK.mul_f64(0.5 + muster.clock.jitter())).await;
            while self.tasks.try_join_next().is_some() {}
        }
        while self.tasks.join_next().await.is_some() {}
    }

    async fn look(&mut self) -> Result<(), ServiceError> {
        let Taker { muster, journal, .. } = self.taker.clone();
        let orphans = journal.orphans(&muster.actor()).await?;
        let mut rows = orphans.rows;
        let share = rows.len().div_ceil(orphans.nodes.max(1)).min(BATCH);
        for _ in 0..share {
            let at = (muster.clock.jitter() * rows.len() as f64) as usize;
            if rows.is_empty() || *muster.interrupt.borrow() {
                break;
            }
            let row = rows.swap_remove(at.min(rows.len() - 1));
            let taken = self.taker.take(row).await;
            self.settle(taken);
        }
        Ok(())
    }
}

/// What became of something that was left.
enum Taken {
    /// It is this process's, and this is the rest of it.
    GoesOn(BoxFuture<'static, ()>),
    LeftAlone,
    /// For a person, and why.
    Waits(String),
}

/// Takes over one thing.
#[derive(Clone)]
struct Taker {
    muster: Muster,
    journal: Arc<dyn Journal>,
    log: Log,
    /// The plans of runs that are gone on with, by the digests of their runbooks.
    plans: Arc<Mutex<HashMap<String, Weak<Plan>>>>,
}

impl Taker {
    async fn take(&self, row: ChainRow) -> Result<Taken, String> {
        let taken = match row.kind {
            ChainKind::Drill => self.take_drill(&row).await,
            ChainKind::Run => self.take_run(&row).await,
        };
        match taken {
            // Another one was faster, and it goes on.
            Err(ServiceError::Journal(JournalError::Owned { .. })) if self.muster.shared.is_some() => Ok(Taken::LeftAlone),
            taken => taken.map_err(|error| {
                let what = if row.kind == ChainKind::Drill { "drill" } else { "run" };
                format!("{what} {}: {error}", row.id)
            }),
        }
    }

    /// Runs with the same plan share it in memory: thousands of a kind may be open.
    fn share_plan(&self, events: &mut [Stored]) {
        let Some(Body::RunCreated { plan, .. }) = events.first_mut().map(|first| &mut first.event.body) else { return };
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = plans.get(&plan.digest).and_then(Weak::upgrade).filter(|known| known == plan) {
            *plan = known;
        } else {
            plans.retain(|_, known| known.strong_count() > 0);
            plans.insert(plan.digest.clone(), Arc::downgrade(plan));
        }
    }

    async fn take_run(&self, row: &ChainRow) -> Result<Taken, ServiceError> {
        let mut events = self.journal.load(&row.id, 0).await?;
        self.share_plan(&mut events);
        let Some(state) = RunState::of(events.iter().map(|stored| &stored.event)) else { return Ok(Taken::LeftAlone) };
        knows(&row.id, &state.plan)?;
        let engine = self.muster.engine(&state.plan.estate).await?;
        let claim = engine.journal.claim(&row.id, &engine.actor).await?;
        let deaths = deaths(&events);
        if deaths >= DEATHS {
            let reason = format!("{deaths} processes in a row ended while they owned it, and it came no further");
            self.park(claim, state.seq, &reason).await?;
            return Ok(Taken::Waits(format!("run {} ({}) waits for a person: {reason}; muster show {}", row.id, row.name, row.id)));
        }
        // Whoever had it may have written more until the claim was ours.
        events.extend(self.journal.load(&row.id, state.seq).await?);
        (self.log)(&format!("run {} ({}) was left open; going on with it", row.id, row.name));
        // A pause that a person asked for just before its owner ended stays; what a node paused for itself does not.
        let resume = state.paused.is_none() || state.paused.as_deref() == Some(INTERRUPTED);
        let (muster, log, journal, run) = (self.muster.clone(), self.log.clone(), self.journal.clone(), row.id.clone());
        Ok(Taken::GoesOn(Box::pin(async move {
            match muster.carry_on(&engine, claim, events, resume).await {
                Ok(ran) => {
                    log(&format!("run {run} is {}", ran.state.status.word()));
                    hand_over(&muster, &*journal, &run, &ran.state, &log).await;
                }
                Err(error) => log(&format!("run {run}: {error}")),
            }
        })))
    }

    async fn park(&self, claim: Claim, after: u64, reason: &str) -> Result<(), ServiceError> {
        let bodies =
            [Body::PauseRequested { reason: reason.to_owned() }, Body::Parked { status: RunStatus::Paused, reason: reason.to_owned() }];
        let draft = |body| Draft { at: self.muster.clock.now(), actor: self.muster.actor(), body };
        let appended = self.journal.append(&claim, after, bodies.into_iter().map(draft).collect()).await;
        self.journal.release(claim).await;
        Ok(appended.map(|_| ())?)
    }

    async fn take_drill(&self, row: &ChainRow) -> Result<Taken, ServiceError> {
        for child in open_children(&*self.journal, &row.id).await? {
            let state = state_of(&*self.journal, &child).await?;
            knows(&child, &state.plan)?;
            // What a scheduler paused when it was told to stop, the next one goes on with.
            let ours = state.status == RunStatus::Paused && state.paused.as_deref() == Some(INTERRUPTED) && self.muster.shared.is_none();
            if needs_a_person(state.status) && !ours {
                return Ok(Taken::Waits(format!("drill {} waits for a person: muster show {child}", row.id)));
            }
        }
        if deaths(&self.journal.load(&row.id, 0).await?) >= DEATHS {
            let text =
                format!("drill {} is left alone: {DEATHS} processes in a row ended while they owned it; muster resume {}", row.id, row.id);
            return Ok(Taken::Waits(text));
        }
        let begun = self.muster.drill_take(&row.id).await?;
        (self.log)(&format!("drill {} was left open; going on with it", row.id));
        Ok(Taken::GoesOn(Box::pin(conduct(self.muster.clone(), begun, true, self.log.clone()))))
    }
}

fn is_parked(row: &ChainRow) -> bool {
    PARKED.iter().any(|status| row.status == status.word())
}

/// How many owners in a row, the last ones, took the chain over and added nothing that is an outcome.
fn deaths(events: &[Stored]) -> usize {
    let outcome = |body: &Body| {
        !matches!(
            body,
            Body::Claimed { .. } | Body::Hole { .. } | Body::Resumed | Body::Prepared { .. } | Body::Applying { .. } | Body::Undoing { .. }
        ) && !matches!(body, Body::Observed { .. } | Body::RetryAt { .. })
    };
    let owned = |stored: &&Stored| matches!(stored.event.body, Body::Claimed { .. } | Body::Hole { .. });
    events.iter().rev().take_while(|stored| !outcome(&stored.event.body)).filter(owned).count()
}

/// A run that this node paused only because it was told to stop is another node's to go on with.
async fn hand_over(muster: &Muster, journal: &dyn Journal, run: &RunId, state: &RunState, log: &Log) {
    if muster.shared.is_none() || state.status != RunStatus::Paused || state.paused.as_deref() != Some(INTERRUPTED) {
        return;
    }
    match lift_pause(muster, journal, run, state.seq).await {
        Ok(()) => log(&format!("run {run} is left to the other nodes")),
        Err(error) => log(&format!("run {run} could not be left to the other nodes ({error}): muster resume {run}")),
    }
}

async fn lift_pause(muster: &Muster, journal: &dyn Journal, run: &RunId, after: u64) -> Result<(), JournalError> {
    let claim = journal.claim(run, &muster.actor()).await?;
    let resumed = Draft { at: muster.clock.now(), actor: muster.actor(), body: Body::Resumed };
    let appended = journal.append(&claim, after, vec![resumed]).await;
    journal.release(claim).await;
    appended.map(|_| ())
}

/// The same for the runs of a drill.
pub(super) async fn hand_over_drill(muster: Muster, drill: RunId, log: Log) {
    let Ok(journal) = muster.journal().await else { return };
    let Ok(children) = open_children(&*journal, &drill).await else { return };
    for child in children {
        if let Ok(state) = state_of(&*journal, &child).await {
            hand_over(&muster, &*journal, &child, &state, &log).await;
        }
    }
}

async fn open_children(journal: &dyn Journal, drill: &RunId) -> Result<Vec<RunId>, JournalError> {
    let children = journal.children(drill).await?;
    Ok(children.into_iter().filter(|child| child.finished_at.is_none()).map(|child| child.id).collect())
}

/// Did it stop because this process may not act on it any more? Then another one goes on, and nothing is wrong.
pub(super) fn is_lapse(error: &ServiceError) -> bool {
    let (ServiceError::Journal(why)
    | ServiceError::Engine(EngineError::Journal(why))
    | ServiceError::Stopped { why, .. }
    | ServiceError::Drill(DrillError::Journal(why) | DrillError::Engine(EngineError::Journal(why)))) = error
    else {
        return false;
    };
    matches!(why, JournalError::Lapsed { .. } | JournalError::Fenced { .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::StepId;

    fn chain(bodies: Vec<Body>) -> Vec<Stored> {
        let event = |(n, body)| crate::model::event::Event {
            run: RunId::from("r"),
            seq: n,
            at: jiff::Timestamp::UNIX_EPOCH,
            actor: "a".to_owned(),
            epoch: 1,
            body,
            prev: String::new(),
        };
        (1..).zip(bodies).map(|one| Stored { event: event(one), hash: String::new() }).collect()
    }

    #[test]
    fn owners_that_end_without_an_outcome_are_counted() {
        let step = StepId("a".to_owned());
        let claimed = || Body::Claimed { owner: "x".to_owned() };
        let applying = || Body::Applying { step: step.clone(), attempt: 1, epoch: 1, key: String::new() };
        let mut bodies = vec![claimed(), applying(), claimed(), Body::Resumed, claimed()];
        assert_eq!(deaths(&chain(bodies.clone())), 3);
        bodies.push(Body::Applied { step: step.clone(), attempt: 1, output: serde_json::Value::Null });
        assert_eq!(deaths(&chain(bodies.clone())), 0);
        bodies.extend([claimed(), claimed(), Body::PauseRequested { reason: String::new() }, claimed()]);
        assert_eq!(deaths(&chain(bodies)), 1, "a person had a look");
    }
}
