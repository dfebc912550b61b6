//! What must hold, checked at every record, every request and every effect, and once more at the end. The watch
//! sees what no process sees: the true order of everything. It keeps its own account and trusts nobody's.

use super::{Sim, tally::Tally, world::THROTTLED_MS};
use crate::engine::work;
use crate::model::{effect::*, event::*, ids::*, plan::*, status::*};
use crate::plan::{
    state::{Phase, RunState, StepState, UndoState, fold},
    undo,
};
use std::collections::{BTreeMap, BTreeSet};

type Place = (RunId, StepId);

/// An approval that is being asked for, by the watch's own count.
#[derive(Default)]
struct Asked {
    over: String,
    until: jiff::Timestamp,
    by: BTreeSet<String>,
}

struct Run {
    state: RunState,
    locks: Vec<Resource>,
    /// The highest epoch granted, and to whom.
    epoch: u64,
    owner: String,
    /// Taken over while its owner was alive: what that owner had under way is not stopped by it.
    forced: bool,
    /// Intents on record, and requests sent, by step and process.
    intents: BTreeMap<(StepId, String, bool), u32>,
    sent: BTreeMap<(StepId, String, bool), u32>,
    asked: BTreeMap<StepId, Asked>,
    /// What the last look at a step showed, if nothing was tried since.
    seen: BTreeMap<StepId, Seen<serde_json::Value>>,
    accepted: BTreeSet<StepId>,
    /// Repeatable, tried, and never seen since: the record claims nothing of it.
    untold: BTreeSet<StepId>,
    undone: BTreeMap<StepId, u32>,
    undos: BTreeMap<StepId, Undos>,
}

/// What became of the attempts to undo one step, by the watch's own count.
#[derive(Default)]
struct Undos {
    begun: u32,
    /// When its owner began with it.
    since: Option<jiff::Timestamp>,
    /// When it is tried again, and when that was decided.
    due: Option<(jiff::Timestamp, jiff::Timestamp)>,
    /// The last request to undo it was refused for good.
    refused: bool,
}

#[derive(Clone, Debug)]
pub struct Broken {
    pub invariant: &'static str,
    pub what: String,
}

#[derive(Default)]
pub struct Watch {
    runs: BTreeMap<RunId, Run>,
    stands: BTreeSet<Place>,
    /// The first that broke.
    pub broken: Option<Broken>,
    pub tally: Tally,
}

fn effect(state: &RunState, step: &StepId) -> Effect {
    match state.plan.step(step).map(|step| &step.kind) {
        Some(StepKind::Action { effect, .. }) => *effect,
        _ => Effect::Read,
    }
}

/// Nothing is open but what changes nothing.
fn settled(state: &RunState) -> bool {
    let open = |phase: &Phase| matches!(phase, Phase::Applying | Phase::Unknown(_) | Phase::Applied | Phase::Held);
    state.steps.iter().all(|(id, known)| effect(state, id) == Effect::Read || !open(&known.phase))
}

fn undo_left(state: &RunState, known: &StepState, id: &StepId) -> bool {
    effect(state, id) != Effect::Read && known.first_applying.is_some() && matches!(known.undo, UndoState::Not | UndoState::Undoing)
}

impl Watch {
    pub fn broke(&mut self, invariant: &'static str, what: String) {
        if self.broken.is_none() {
            self.broken = Some(Broken { invariant, what });
        }
    }

    pub fn must(&mut self, holds: bool, invariant: &'static str, what: impl FnOnce() -> String) {
        self.tally.checks += 1;
        if !holds {
            self.broke(invariant, what());
        }
    }

    pub fn epoch(&self, run: &RunId) -> u64 {
        self.runs.get(run).map_or(1, |run| run.epoch)
    }

    pub fn stands(&self, place: &Place) -> bool {
        self.stands.contains(place)
    }

    pub fn created(&mut self, sim: &Sim, id: &RunId, owner: &str, locks: Vec<Resource>, first: &Event) {
        sim.note(owner, || format!("creates {id}"));
        let holder = |run: &Run| run.state.finished_at.is_none() && run.locks.iter().any(|lock| locks.contains(lock));
        let other = self.runs.iter().find(|(_, run)| holder(run)).map(|(id, _)| id.clone());
        self.must(other.is_none(), "two runs never hold one resource", || format!("{id} and {other:?} hold {locks:?}"));
        let Some(state) = RunState::new(first) else { return self.broke("the first record creates the run", format!("{first:?}")) };
        let run = Run {
            state,
            locks,
            epoch: 1,
            owner: owner.to_owned(),
            forced: false,
            intents: BTreeMap::new(),
            sent: BTreeMap::new(),
            asked: BTreeMap::new(),
            seen: BTreeMap::new(),
            accepted: BTreeSet::new(),
            untold: BTreeSet::new(),
            undone: BTreeMap::new(),
            undos: BTreeMap::new(),
        };
        self.runs.insert(id.clone(), run);
    }

    pub fn granted(&mut self, run: &RunId, epoch: u64, owner: &str) {
        let before = self.epoch(run);
        self.must(epoch > before, "an epoch is granted once", || format!("{run}: epoch {epoch} to {owner} after {before}"));
        if let Some(run) = self.runs.get_mut(run) {
            run.epoch = epoch;
            owner.clone_into(&mut run.owner);
        }
    }

    /// Somebody takes it over from an owner that is alive.
    pub fn forced(&mut self, run: &RunId) {
        if let Some(run) = self.runs.get_mut(run) {
            run.forced = true;
        }
    }

    /// A record is durable. `epoch` and `owner` are of who asked for it, whatever the record says.
    pub fn appended(&mut self, sim: &Sim, epoch: u64, owner: &str, event: &Event) {
        sim.note(owner, || format!("{} #{} {}", event.run, event.seq, brief(&event.body)));
        self.tally.records += 1;
        let Some(mut run) = self.runs.remove(&event.run) else {
            return self.broke("no record without a run", format!("{event:?}"));
        };
        let what = || format!("{} #{} {:?} by {owner} under epoch {epoch}", event.run, event.seq, event.body);
        self.must(epoch >= run.epoch && event.epoch == run.epoch, "a stale epoch never appends", what);
        self.must(event.seq == run.state.seq + 1, "records follow each other without a gap", what);
        self.must(run.state.finished_at.is_none(), "nothing follows the end", what);
        self.before(&run, event, what);
        count(&mut run, owner, event);
        fold(&mut run.state, event);
        self.after(&run, event, what);
        self.runs.insert(event.run.clone(), run);
    }

    /// What must be so for this record to follow.
    fn before(&mut self, run: &Run, event: &Event, what: impl Fn() -> String + Copy) {
        let state = &run.state;
        let known = |step: &StepId| state.step(step).cloned().unwrap_or_default();
        match &event.body {
            Body::Applying { step, epoch, key, .. } => self.before_applying(run, &event.run, step, *epoch, key, what),
            Body::Verified { step, .. } => {
                let seen = matches!(run.seen.get(step), Some(Seen::Done(_)));
                let phase = known(step).phase;
                self.must(phase == Phase::Applied || seen, "what is not known never becomes success by itself", what);
                let stands = effect(state, step) == Effect::Read || self.stands(&(event.run.clone(), step.clone())) || run.forced;
                self.must(stands, "what is recorded as done is done", what);
            }
            Body::StepEnded { step, status: StepStatus::Succeeded | StepStatus::SucceededWithWarning, .. } => {
                let wanted = match state.plan.step(step).map(|step| &step.kind) {
                    Some(StepKind::Approval(approval)) => approval.approvers as usize,
                    _ => usize::MAX,
                };
                let given = run.asked.get(step).map_or(0, |asked| asked.by.len());
                self.must(given >= wanted, "an approval counts once, in time, for what was asked", what);
            }
            Body::Resolved { step, .. } => {
                self.must(known(step).phase == Phase::Held, "only an open question is resolved", what);
            }
            Body::Undoing { step, .. } => {
                let at = known(step).first_applying;
                self.must(settled(state), "undo begins when everything is settled", what);
                let later = |(id, other): (&StepId, &std::sync::Arc<StepState>)| other.first_applying > at && undo_left(state, other, id);
                self.must(at.is_some() && !state.steps.iter().any(later), "undo goes in reverse order", what);
                self.must(!run.undone.contains_key(step), "each is undone once", what);
                self.must(state.stopping.as_ref().is_some_and(|stopping| stopping.undo), "undo has a reason", what);
                let due = run.undos.get(step).and_then(|undos| undos.due);
                // By its owner's clock; one that was set back, or another node's, is not waited for.
                let early = due.is_some_and(|(due, decided)| event.at < due && event.at >= decided);
                self.must(!early, "an undo is tried again when its wait is over", what);
            }
            Body::UndoRetry { step, .. } => self.before_another_undo(run, step, what),
            Body::UndoFailed { step, .. } => self.before_an_undo_is_given_up(run, step, event.at, what),
            Body::Undone { step } => {
                self.must(!run.undone.contains_key(step), "each is undone once", what);
                let stands = self.stands(&(event.run.clone(), step.clone())) && !run.forced;
                self.must(!stands, "what is recorded as undone does not stand", what);
            }
            Body::RunFinished { status, .. } => self.before_the_end(run, *status, what),
            _ => {}
        }
    }

    fn before_applying(&mut self, run: &Run, id: &RunId, step: &StepId, epoch: u64, key: &str, what: impl Fn() -> String + Copy) {
        let state = &run.state;
        let Some((planned, known)) = state.plan.step(step).zip(state.step(step)) else { return };
        let read = effect(state, step) == Effect::Read;
        let halted = state.aborting.is_some() || state.paused.is_some() || state.stopping.is_some();
        self.must(!halted, "nothing is begun after an abort, a pause or a failure that stops", what);
        self.must(read || known.phase == Phase::Prepared, "an open attempt is looked at before another", what);
        self.must(epoch == run.epoch && key == work::key(id, step), "an intent names its epoch and its key", what);
        for need in &planned.needs {
            let met = state.step(need).is_some_and(|known| known.status.satisfies());
            self.must(met, "nothing begins before what it needs", what);
        }
    }

    fn before_another_undo(&mut self, run: &Run, step: &StepId, what: impl Fn() -> String + Copy) {
        let Some((planned, undos)) = run.state.plan.step(step).zip(run.undos.get(step)) else { return };
        let most = undo::policy(planned).attempts;
        self.must(undos.begun < most, "an undo is tried no more often than it may be", what);
        // Unless an attempt before it was not heard of, whose doing the refusal may be.
        self.must(!undos.refused || undos.begun > 1, "an undo that is refused is not tried again", what);
    }

    /// Only a refusal, an abort, or the end of its attempts or of its time ends an undo.
    fn before_an_undo_is_given_up(&mut self, run: &Run, step: &StepId, at: jiff::Timestamp, what: impl Fn() -> String + Copy) {
        let Some((planned, undos)) = run.state.plan.step(step).zip(run.undos.get(step)) else { return };
        let policy = undo::policy(planned);
        let passed = undos.since.map_or(0, |since| u64::try_from(at.duration_since(since).as_millis()).unwrap_or(0));
        let late = passed + policy.max_backoff.ms + THROTTLED_MS >= planned.timeout.ms;
        let over = undos.refused || undos.begun >= policy.attempts || late || run.state.aborting.is_some();
        self.must(over, "an undo is not given up for what may pass", what);
    }

    fn before_the_end(&mut self, run: &Run, status: RunStatus, what: impl Fn() -> String + Copy) {
        let state = &run.state;
        self.must(settled(state), "a run ends when everything is settled", what);
        let undoes = status == RunStatus::Failed && state.stopping.as_ref().is_some_and(|stopping| stopping.undo);
        let left = state.steps.iter().any(|(id, known)| undo_left(state, known, id));
        self.must(!undoes || !left, "undo goes through every step that was begun", what);
        let good = state.steps.values().all(|known| known.status.satisfies());
        self.must(status != RunStatus::Succeeded || good, "success is the success of every step", what);
        self.must(status.is_final(), "an end is final", what);
        let open = state.steps.values().any(|known| known.undo == UndoState::Undoing);
        self.must(!open, "no undo is left open", what);
    }

    /// What the record has made of the state.
    fn after(&mut self, run: &Run, event: &Event, what: impl Fn() -> String + Copy) {
        if let Some(step) = crate::plan::state::step_of(&event.body)
            && let Some(known) = run.state.step(step)
        {
            let phase = format!("{:?}", known.phase);
            self.tally.saw("phases of steps", phase.split('(').next().unwrap_or_default().to_lowercase());
            self.tally.saw("statuses of steps", known.status.word());
            if known.undo != UndoState::Not {
                self.tally.saw("undo", format!("{:?}", known.undo).to_lowercase());
            }
            let defect = known.failure.as_ref().is_some_and(|failure| failure.code == "defect");
            self.must(!defect, "the engine never panics", what);
        }
        match &event.body {
            Body::UndoRetry { .. } => self.tally.saw("undo", "tried again"),
            Body::Parked { status, .. } => self.tally.saw("runs parked", status.word()),
            Body::RunFinished { status, .. } => self.tally.saw("runs ended", status.word()),
            _ => {}
        }
    }

    /// A process sends a request that changes something.
    pub fn sent(&mut self, sim: &Sim, place: &Place, by: &str, key: &str, undo: bool) {
        sim.note(by, || format!("sends {} {} {}", if undo { "undo of" } else { "effect of" }, place.0, place.1));
        self.tally.effects += 1;
        let what = || format!("{} {} by {by}, undo: {undo}", place.0, place.1);
        let Some(mut run) = self.runs.remove(&place.0) else {
            return self.broke("no effect before its intent is durable", what());
        };
        let one = (place.1.clone(), by.to_owned(), undo);
        let sent = run.sent.entry(one.clone()).or_default();
        *sent += 1;
        let durable = run.intents.get(&one).copied().unwrap_or(0);
        self.must(*sent <= durable, "no effect before its intent is durable", what);
        self.must(key == work::key(&place.0, &place.1), "an effect carries the key of its intent", what);
        self.must(run.forced || run.owner == by, "one hand on the wheel: only the owner acts", what);
        self.must(run.state.finished_at.is_none(), "nothing is done after the end", what);
        self.runs.insert(place.0.clone(), run);
    }

    /// What a process heard of its request to undo a step.
    pub fn undo_heard(&mut self, place: &Place, refused: bool) {
        if let Some(run) = self.runs.get_mut(&place.0) {
            run.undos.entry(place.1.clone()).or_default().refused |= refused;
        }
    }

    /// A request takes effect.
    pub fn landed(&mut self, sim: &Sim, place: &Place, undo: bool) {
        let what = || format!("{} {}, undo: {undo}, at {:?}", place.0, place.1, sim.elapsed());
        if undo {
            self.stands.remove(place);
            return;
        }
        let anew = self.stands.insert(place.clone());
        let Some(run) = self.runs.remove(&place.0) else { return };
        let state = &run.state;
        let known = state.step(&place.1).cloned().unwrap_or_default();
        let once = !matches!(effect(state, &place.1), Effect::Repeatable | Effect::Read);
        if !run.forced {
            self.must(anew || !once, "an effect happens at most once", what);
            self.must(!once || state.finished_at.is_none(), "nothing is done after the end", what);
            self.must(known.undo != UndoState::Undone, "what was undone does not come back", what);
            let over = matches!(known.phase, Phase::Ended | Phase::New | Phase::Prepared) && !known.status.satisfies();
            self.must(!once || !over, "what is recorded as not done is not done", what);
        }
        self.runs.insert(place.0.clone(), run);
    }

    /// When nothing is on its way any more: what is recorded is what is so.
    pub fn at_the_end(&mut self) {
        let runs = std::mem::take(&mut self.runs);
        for (id, run) in &runs {
            self.must(run.state.finished_at.is_some(), "every run comes to an end", || format!("{id} is {}", run.state.status.word()));
            for (step, known) in run.state.steps.iter().filter(|_| !run.forced) {
                let what = || format!("{id} {step}: {} ({:?})", known.status.word(), known.undo);
                if effect(&run.state, step) == Effect::Read {
                    continue;
                }
                let stands = self.stands(&(id.clone(), step.clone()));
                let done = matches!(known.status, StepStatus::Succeeded | StepStatus::SucceededWithWarning);
                let backed_out = matches!(known.undo, UndoState::Undoing | UndoState::Undone | UndoState::Failed);
                self.must(!done || backed_out || stands, "what is recorded as done stands", what);
                self.must(known.status != StepStatus::Undone || !stands, "what is recorded as undone does not stand", what);
                // Of what nobody can look at, a failure says only that it was not heard to be done.
                let told = !run.untold.contains(step);
                let never = told && !done && !run.accepted.contains(step) && known.undo == UndoState::Not;
                self.must(!never || !stands, "what is recorded as not done does not stand", what);
            }
        }
        self.runs = runs;
    }
}

/// The watch's own account of what a record says.
fn count(run: &mut Run, owner: &str, event: &Event) {
    match &event.body {
        Body::Applying { step, .. } => {
            *run.intents.entry((step.clone(), owner.to_owned(), false)).or_default() += 1;
            run.seen.remove(step);
        }
        Body::Undoing { step, .. } => {
            *run.intents.entry((step.clone(), owner.to_owned(), true)).or_default() += 1;
            let undos = run.undos.entry(step.clone()).or_default();
            undos.begun += 1;
            undos.since.get_or_insert(event.at);
            (undos.due, undos.refused) = (None, false);
        }
        Body::UndoRetry { step, at, .. } => {
            run.undos.entry(step.clone()).or_default().due = Some((*at, event.at));
        }
        Body::Claimed { .. } => run.undos.values_mut().for_each(|undos| undos.since = None),
        Body::Undone { step } => *run.undone.entry(step.clone()).or_default() += 1,
        Body::Observed { step, seen } => {
            run.seen.insert(step.clone(), seen.clone());
            if matches!(seen, Seen::CannotTell { .. }) && effect(&run.state, step) == Effect::Repeatable {
                run.untold.insert(step.clone());
            } else {
                run.untold.remove(step);
            }
        }
        Body::Applied { step, .. } | Body::Resolved { step, done: true, .. } => drop(run.accepted.insert(step.clone())),
        Body::ApprovalAsked { step, over, expires_at, .. } => {
            run.asked.insert(step.clone(), Asked { over: over.clone(), until: *expires_at, by: BTreeSet::new() });
        }
        Body::Approved { step, by, over, .. } => {
            if let Some(asked) = run.asked.get_mut(step).filter(|asked| asked.over == *over && event.at < asked.until) {
                asked.by.insert(by.clone());
            }
        }
        _ => {}
    }
}

/// A record in one short line.
fn brief(body: &Body) -> String {
    let text = match body {
        Body::RunCreated { .. } => return "RunCreated".to_owned(),
        other => format!("{other:?}"),
    };
    text.chars().take(200).collect()
}
