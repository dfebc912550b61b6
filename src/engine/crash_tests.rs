//! Random runs in a model world, crashed at every instant: between any two records, and on either side of
//! any effect. Whatever was lost, the next owner must bring the run to its end, and nothing that cannot be
//! repeated may happen twice.
//!
//! The policy under test is the real one (`plan::decide`, `plan::fold`, [`work::bodies`]); only the loop
//! is a small copy of the engine's, without tasks and clocks, so that it can be stopped anywhere. Records
//! that the store commits together are cut apart here too, which is harsher than the store is.

use super::work::{self, Report, Work};
use crate::actions::contract::{ApplyError, Prepared, Refusal};
use crate::model::{effect::*, estate::Estate, event::*, ids::*, node::*, plan::*, runbook::*, status::*, time::Span};
use crate::plan::{
    decide::{Decision, decide},
    state::{Phase, RunState, UndoState, fold},
};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// What one call to the world comes to.
#[derive(Clone, Copy, Debug)]
enum Call {
    Works,
    /// It is carried out, and the answer is lost.
    AnswerLost,
    /// It never arrives, and nobody is told.
    Lost,
    Fails,
}

#[derive(Clone, Debug)]
struct Script {
    step: PlanStep,
    /// Does a look tell what happened?
    visible: bool,
    refused_first: bool,
    skipped: bool,
    calls: Vec<Call>,
    /// What the calls that undo it come to.
    undos: Vec<Call>,
}

#[derive(Clone, Debug, Default)]
struct World {
    /// What stands, and how often it was asked for.
    done: BTreeSet<StepId>,
    calls: BTreeMap<StepId, usize>,
    looks: BTreeMap<StepId, usize>,
    undos: BTreeMap<StepId, usize>,
    twice: Vec<StepId>,
}

/// The process is gone; nothing it knew is left but the records.
struct Crash;

struct Sim<'a> {
    scripts: &'a [Script],
    order: &'a [u8],
    events: Vec<Event>,
    state: RunState,
    world: World,
    in_flight: BTreeMap<StepId, Work>,
    /// Instants passed, and the one at which the process dies.
    instants: usize,
    fuse: Option<usize>,
    turns: usize,
    now: jiff::Timestamp,
}

fn event(seq: u64, at: jiff::Timestamp, body: Body) -> Event {
    Event { run: "r".into(), seq, at, actor: "test".into(), epoch: 1, body, prev: String::new() }
}

impl<'a> Sim<'a> {
    fn new(scripts: &'a [Script], order: &'a [u8], fuse: Option<usize>) -> Self {
        let plan = Plan {
            runbook: "random".into(),
            file: "random.yaml".into(),
            digest: String::new(),
            mode: None,
            scope: Scope::Live,
            live: false,
            inputs: BTreeMap::new(),
            waive: Vec::new(),
            estate: Estate::default().into(),
            locks: Vec::new(),
            steps: scripts.iter().map(|script| script.step.clone()).collect(),
        };
        let now: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let first = event(1, now, Body::RunCreated { plan: plan.into(), drill: None });
        let state = RunState::new(&first).unwrap();
        let (world, in_flight) = (World::default(), BTreeMap::new());
        Self { scripts, order, events: vec![first], state, world, in_flight, instants: 0, fuse, turns: 0, now }
    }

    fn instant(&mut self) -> Result<(), Crash> {
        if self.fuse == Some(self.instants) {
            return Err(Crash);
        }
        self.instants += 1;
        Ok(())
    }

    fn append(&mut self, bodies: Vec<Body>) -> Result<(), Crash> {
        for body in bodies {
            self.instant()?;
            let event = event(self.state.seq + 1, self.now, body);
            self.check_order(&event);
            fold(&mut self.state, &event);
            self.events.push(event);
        }
        Ok(())
    }

    /// What must hold at the very moment that an effect is begun.
    fn check_order(&self, event: &Event) {
        let Body::Applying { step, .. } = &event.body else { return };
        let planned = self.state.plan.step(step).unwrap();
        assert!(planned.needs.iter().all(|need| self.state.steps[need].status.satisfies()), "{step} began before what it needs");
        assert!(self.state.finished_at.is_none(), "{step} began after the end");
        let read = matches!(planned.kind, StepKind::Action { effect: Effect::Read, .. });
        assert!(read || self.state.steps[step].phase == Phase::Prepared, "{step} began while {:?}", self.state.steps[step].phase);
    }

    fn script(&self, id: &StepId) -> &'a Script {
        self.scripts.iter().find(|script| script.step.id == *id).unwrap()
    }

    /// Until the run ends or a person must act.
    fn drive(&mut self) -> Result<RunStatus, Crash> {
        loop {
            self.turns += 1;
            assert!(self.turns < 2_000, "it never ends: {:#?}", self.events);
            let busy = self.in_flight.keys().cloned().collect();
            let (mut wake, mut moved) = (None, false);
            for decision in decide(&self.state, &busy, self.now) {
                match decision {
                    Decision::WakeAt(at) => wake = Some(wake.map_or(at, |other: jiff::Timestamp| other.min(at))),
                    Decision::Park { status, reason } => {
                        self.append(vec![Body::Parked { status, reason }])?;
                        return Ok(status);
                    }
                    Decision::Finish { status, reason } => {
                        self.append(vec![Body::RunFinished { status, reason }])?;
                        return Ok(status);
                    }
                    other => {
                        self.carry_out(other)?;
                        moved = true;
                    }
                }
            }
            let pick = usize::from(self.order[self.turns % self.order.len()]);
            if !self.in_flight.is_empty() && (!moved || pick % 2 == 0) {
                let step = self.in_flight.keys().nth(pick % self.in_flight.len()).unwrap().clone();
                self.complete(&step)?;
            } else if !moved {
                self.now = wake.expect("nothing is in flight, nothing moved, and nothing is waited for");
            }
        }
    }

    fn carry_out(&mut self, decision: Decision) -> Result<(), Crash> {
        match decision {
            Decision::SkipApproval(_) | Decision::Confirm(_) | Decision::WakeAt(_) | Decision::Park { .. } | Decision::Finish { .. } => {
                unreachable!()
            }
            Decision::Ask(step) => {
                let expires_at = self.now + jiff::SignedDuration::from_secs(900);
                self.append(vec![Body::ApprovalAsked {
                    step,
                    over: "plan".into(),
                    approvers: 1,
                    expires_at,
                    message: None,
                    facts: Default::default(),
                }])?;
            }
            Decision::Void { step, why } => self.append(vec![Body::ApprovalVoid { step, why, facts: Default::default() }])?,
            Decision::End { step, status, failure } => self.append(vec![Body::StepEnded { step, status, failure }])?,
            Decision::LeaveUndo { step, reason } => self.append(vec![Body::UndoLeft { step, reason }])?,
            Decision::EndUndo { step, failure } => self.append(vec![Body::UndoFailed { step, failure }])?,
            Decision::Prepare(step) => drop(self.in_flight.insert(step, Work::Prepare)),
            Decision::Apply { step, attempt } => {
                self.append(vec![Body::Applying { step: step.clone(), attempt, epoch: 1, key: "k".into() }])?;
                self.in_flight.insert(step, Work::Apply { attempt });
            }
            Decision::Observe(step) => {
                let accepted = self.state.steps[&step].phase == Phase::Applied;
                self.in_flight.insert(step, Work::Observe { accepted });
            }
            Decision::Undo(step) => {
                let attempt = self.state.steps[&step].undo_tries.attempts + 1;
                self.append(vec![Body::Undoing { step: step.clone(), attempt }])?;
                self.in_flight.insert(step, Work::Undo);
            }
        }
        Ok(())
    }

    /// One task does its work and reports.
    fn complete(&mut self, step: &StepId) -> Result<(), Crash> {
        let work = self.in_flight[step];
        self.instant()?;
        let report = match work {
            Work::Prepare => self.prepare(step),
            Work::Apply { attempt } => self.apply(step, attempt),
            Work::Observe { .. } => Report::Observed { seen: self.look(step), timed_out: false },
            Work::Undo => self.undo(step),
            Work::Facts { .. } => unreachable!("no approval here has facts"),
        };
        // The effect has happened, and nobody has heard of it yet.
        self.instant()?;
        self.in_flight.remove(step);
        let now = self.now;
        let context = work::Context { planned: &self.script(step).step, known: &self.state.steps[step].clone(), now };
        let bodies = work::bodies(&context, report, |ms| now + jiff::SignedDuration::from_millis(i64::try_from(ms).unwrap()));
        self.append(bodies)
    }

    fn prepare(&mut self, step: &StepId) -> Report {
        let script = self.script(step);
        let looks = self.world.looks.entry(step.clone()).or_default();
        *looks += 1;
        if script.skipped {
            return Report::Skip { reason: "its `when` is false".into() };
        }
        if script.refused_first && *looks == 1 {
            return Report::Refused { refusal: Refusal { failure: Failure::new("down", "not yet"), retry: true }, timed_out: false };
        }
        Report::Prepared(Prepared { intent: json!(step), change: Vec::new(), notes: Vec::new() })
    }

    fn apply(&mut self, step: &StepId, attempt: u32) -> Report {
        let script = self.script(step);
        let calls = self.world.calls.entry(step.clone()).or_default();
        let call = script.calls.get(*calls).copied().unwrap_or(Call::Works);
        *calls += 1;
        let StepKind::Action { effect, .. } = script.step.kind else { unreachable!() };
        if matches!(call, Call::Works | Call::AnswerLost) && effect != Effect::Read {
            let anew = self.world.done.insert(step.clone());
            if !anew && effect != Effect::Repeatable {
                self.world.twice.push(step.clone());
            }
        }
        let result = match call {
            Call::Works => Ok(Value::Null),
            Call::Fails => Err(ApplyError::Definite(Failure::new("exit", "no"))),
            Call::Lost | Call::AnswerLost => Err(ApplyError::Unknown(Failure::new("timed_out", "no answer"))),
        };
        Report::Applied { attempt, result, timed_out: false, observes: script.visible && effect != Effect::Read }
    }

    fn undo(&mut self, step: &StepId) -> Report {
        let undos = self.world.undos.entry(step.clone()).or_default();
        let call = self.scripts.iter().find(|script| script.step.id == *step).and_then(|script| script.undos.get(*undos).copied());
        *undos += 1;
        let call = call.unwrap_or(Call::Works);
        if matches!(call, Call::Works | Call::AnswerLost) {
            self.world.done.remove(step);
        }
        Report::Undone(match call {
            Call::Works => Ok(()),
            Call::Fails => Err(ApplyError::Definite(Failure::new("exit", "no"))),
            Call::Lost | Call::AnswerLost => Err(ApplyError::Unknown(Failure::new("timed_out", "no answer"))),
        })
    }

    fn look(&self, step: &StepId) -> Seen<Value> {
        if !self.script(step).visible {
            return Seen::CannotTell { why: "nobody can tell".into() };
        }
        if self.world.done.contains(step) { Seen::Done(Value::Null) } else { Seen::Absent }
    }

    /// A person who looks at the world and answers truly, and goes on without what failed.
    fn person(&mut self, status: RunStatus) {
        let by = || "ana".to_owned();
        let reason = || "looked".to_owned();
        let mut bodies = Vec::new();
        for (id, known) in self.state.steps.clone() {
            match (status, &known.phase) {
                (RunStatus::Indeterminate, Phase::Held) => {
                    assert!(!self.script(&id).visible, "{id} can be seen, so nobody need be asked");
                    let done = self.world.done.contains(&id);
                    bodies.push(Body::Resolved { step: id, done, by: by(), reason: reason() });
                }
                (RunStatus::WaitingApproval, Phase::Asked) => {
                    bodies.push(Body::Approved { step: id, by: by(), over: "plan".into(), signed: None })
                }
                (RunStatus::Paused, _) if known.status.is_failure() => {
                    bodies.push(Body::SkipRequested { step: id, by: by(), reason: reason() });
                }
                _ => {}
            }
        }
        assert!(!bodies.is_empty(), "the run is {status:?} and there is nothing that a person could do");
        self.fuse = None;
        assert!(self.append([bodies, vec![Body::Claimed { owner: "next".into() }, Body::Resumed]].concat()).is_ok());
    }

    /// To the end, with the crash and the people that it takes.
    fn carry_through(&mut self) {
        for _ in 0..40 {
            match self.drive() {
                Ok(status) if status.is_final() => return,
                Ok(status) => self.person(status),
                Err(Crash) => {
                    self.fuse = None;
                    self.in_flight.clear();
                    // Nothing but the records is known to the next owner.
                    self.state = RunState::of(&self.events).unwrap();
                    assert!(self.append(vec![Body::Claimed { owner: "next".into() }]).is_ok());
                }
            }
        }
        panic!("people are asked again and again: {:#?}", self.events);
    }

    fn check_the_end(&self) {
        assert_eq!(self.world.twice, [], "done twice, in {:#?}", self.events);
        assert!(decide(&self.state, &BTreeSet::new(), self.now).is_empty(), "something is to be done after the end");
        assert_eq!(RunState::of(&self.events).as_ref(), Some(&self.state), "the records alone give the state");
        let ends: Vec<_> = self.events.iter().filter(|event| matches!(event.body, Body::RunFinished { .. })).collect();
        assert!(ends.len() == 1 && self.events.last() == ends.first().copied(), "one end, and nothing after it");
        for (id, known) in &self.state.steps {
            let wants = matches!(known.status, StepStatus::Succeeded | StepStatus::SucceededWithWarning);
            let StepKind::Action { effect, .. } = self.script(id).step.kind else { continue };
            // An undo that ended without having been heard of may have been carried out, and its failure says so.
            let backed_out = known.undo == UndoState::Failed;
            assert!(!wants || effect == Effect::Read || backed_out || self.world.done.contains(id), "{id} is said to be done and is not");
            if known.undo == UndoState::Undone {
                assert!(!self.world.done.contains(id), "{id} is said to be undone and stands");
            }
            if known.undo == UndoState::Failed {
                let script = self.script(id);
                let refused = script.undos.iter().any(|call| matches!(call, Call::Fails));
                let spent = known.undo_tries.attempts >= crate::plan::undo::policy(&script.step).attempts;
                assert!(refused || spent, "the undo of {id} was given up: {:#?}", self.events);
            }
            assert!(known.undo != UndoState::Undoing, "the undo of {id} is left open");
        }
        self.check_undo_order();
    }

    fn check_undo_order(&self) {
        let mut undoing: Vec<&StepId> = Vec::new();
        for event in &self.events {
            if let Body::Undoing { step, .. } = &event.body
                && undoing.last() != Some(&step)
            {
                undoing.push(step);
            }
        }
        let first = |id: &&StepId| self.state.steps[*id].first_applying.unwrap();
        assert!(undoing.is_sorted_by(|a, b| first(a) > first(b)), "undone out of order: {undoing:?}");
    }
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![3 => Just(Call::Works), 1 => Just(Call::AnswerLost), 1 => Just(Call::Lost), 1 => Just(Call::Fails)]
}

fn script(index: usize) -> impl Strategy<Value = Script> {
    let kind = prop_oneof![
        1 => Just((Effect::Read, true)),
        2 => Just((Effect::Repeatable, true)),
        1 => Just((Effect::Repeatable, false)),
        3 => Just((Effect::Observable, true)),
        3 => Just((Effect::OneShot, false)),
    ];
    let policy = prop_oneof![
        3 => Just(OnFailure::Pause),
        1 => Just(OnFailure::Stop),
        1 => Just(OnFailure::Continue),
        2 => Just(OnFailure::Undo),
    ];
    let undo = prop_oneof![4 => Just(UndoPolicy::Automatic), 1 => Just(UndoPolicy::Manual)];
    let odd = (prop::bool::weighted(0.1), prop::bool::weighted(0.1), prop::bool::weighted(0.1));
    let calls = (prop::collection::vec(call(), 0..3), prop::collection::vec(call(), 0..3));
    (kind, policy, undo, 1u32..4, calls, any::<u8>(), odd).prop_map(
        move |((effect, visible), on_failure, undo, attempts, (calls, undos), needs, (approval, refused_first, skipped))| {
            let needs = (0..index).filter(|n| needs >> n & 1 == 1).map(|n| StepId(format!("s{n}"))).collect();
            let action = StepKind::Action { name: "exec.command".into(), version: 1, effect };
            let asks = StepKind::Approval(Approval { expires: Span::from_secs(900), ..Approval::default() });
            let step = PlanStep {
                id: StepId(format!("s{index}")),
                kind: if approval { asks } else { action },
                needs,
                with: Node::empty_map(),
                when: None,
                retry: Retry { attempts, backoff: Span::from_ms(100), max_backoff: Span::from_ms(400) },
                timeout: Span::from_secs(60),
                on_failure,
                undo,
                reach: Vec::new(),
                approve: None,
                pos: Pos::default(),
            };
            Script { step, visible, refused_first, skipped, calls, undos }
        },
    )
}

fn scripts() -> impl Strategy<Value = Vec<Script>> {
    (1usize..=8).prop_flat_map(|count| (0..count).map(script).collect::<Vec<_>>())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, max_shrink_iters: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_crash_at_any_instant_loses_nothing_and_repeats_nothing(scripts in scripts(), order in prop::collection::vec(any::<u8>(), 1..40)) {
        let mut calm = Sim::new(&scripts, &order, None);
        assert!(calm.append(vec![Body::Claimed { owner: "first".into() }]).is_ok());
        calm.carry_through();
        calm.check_the_end();
        for fuse in 0..calm.instants {
            let mut sim = Sim::new(&scripts, &order, Some(fuse));
            if sim.append(vec![Body::Claimed { owner: "first".into() }]).is_err() {
                sim.fuse = None;
            }
            sim.carry_through();
            sim.check_the_end();
        }
    }
}
