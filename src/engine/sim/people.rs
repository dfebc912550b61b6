//! People. They look at the world and answer truly what a run asks, and they make every mistake that commands
//! allow: too late, twice, unasked, to a run that is owned, while its owner is dead or frozen.

use super::{Stage, parked};
use crate::engine::{inbox, sim::life::true_time, sim::tally::Fault};
use crate::journal::{ChainRow, Command, Draft, Journal, JournalError};
use crate::model::{ids::*, plan::StepKind, status::*};
use crate::plan::state::{Phase, RunState};
use crate::providers::clock::Clock;
use std::{collections::BTreeMap, sync::Arc};
use tokio::time::sleep;

/// How often a person tries a failed step again before going on without it.
const RETRIES: u32 = 2;
/// The reason that is given for a command that nobody asked for.
const UNASKED: &str = "because";

#[derive(Default)]
struct Memory {
    retried: BTreeMap<(RunId, StepId), u32>,
    /// Approvals that nobody gives until it is too late.
    ignored: BTreeMap<(RunId, StepId, Option<jiff::Timestamp>), bool>,
}

pub async fn people(stage: Arc<Stage>) {
    let mut memory = Memory::default();
    loop {
        let rest = stage.sim.dice().ms(300, 2_500);
        sleep(rest).await;
        for row in stage.store.inner.open().await.unwrap() {
            let events = stage.store.inner.load(&row.id, 0).await.unwrap();
            let Some(state) = RunState::of(events.iter().map(|one| &one.event)) else { continue };
            match parked(&row.status) {
                Some(status) => answer(&stage, &mut memory, &row, &state, status),
                None => meddle(&stage, &row, &state),
            }
        }
    }
}

/// What a run asks for, done; once nothing is left to say, it is resumed.
fn answer(stage: &Arc<Stage>, memory: &mut Memory, row: &ChainRow, state: &RunState, status: RunStatus) {
    let mut commands = Vec::new();
    let mut wait = false;
    for (id, known) in &state.steps {
        let place = (row.id.clone(), id.clone());
        let step = id.clone();
        match (&known.phase, status) {
            (Phase::Held, _) if stage.world.is_quiet(&place) => {
                let done = stage.sim.watch().stands(&place);
                commands.push(Command::Resolve { step, done, reason: "looked".into(), question: Some(known.mark) });
            }
            (Phase::Held, _) => wait = true,
            (Phase::Asked, RunStatus::WaitingApproval) => {
                let key = (row.id.clone(), id.clone(), known.expires_at);
                let ignored = *memory.ignored.entry(key).or_insert_with(|| stage.sim.dice().of_1000(250)) && !stage.sim.is_calm();
                // A person's clock is right; the nodes' need not be. In the end the answer counts, not the guess.
                let over = !stage.sim.is_calm() && known.expires_at.is_some_and(|end| end <= true_time(&stage.sim));
                let wanted = match state.plan.step(id).map(|step| &step.kind) {
                    Some(StepKind::Approval(approval)) => approval.approvers as usize,
                    _ => 0,
                };
                let enough = known.approvals.len() >= wanted || known.rejected.is_some();
                let early = known.approvals.is_empty() && stage.sim.dice().of_1000(300);
                let approves = !over && !enough && (!ignored || early);
                if stage.sim.fault(Fault::Reject, 60) {
                    commands.push(Command::Reject { step, reason: "not today".into() });
                } else if approves || over && stage.sim.fault(Fault::LateApproval, 300) {
                    commands.push(Command::Approve { step, signed: None, request: None });
                } else {
                    wait |= ignored && !over;
                }
            }
            (_, RunStatus::Paused) if known.status.is_failure() => {
                let tried = memory.retried.entry(place).or_default();
                *tried += 1;
                let reason = "goes without".to_owned();
                // An approval is not skipped: who goes on without it overrides it, and that stays to be seen.
                let approval = state.plan.step(&step).is_some_and(|step| matches!(step.kind, StepKind::Approval(_)));
                commands.push(match (*tried <= RETRIES, approval) {
                    (true, _) => Command::Retry { step },
                    (false, true) => Command::Override { step, reason, signed: None },
                    (false, false) => Command::Skip { step, reason },
                });
            }
            _ => {}
        }
    }
    // Who is told that it is too late, by whatever clock, goes on from there.
    let refused = stage.refused.lock().unwrap().remove(&row.id);
    if commands.is_empty() && !wait || refused || stage.sim.fault(Fault::Resume, 50) {
        resume(stage, &row.id);
    }
    for command in commands {
        tell(stage, &row.id, command);
    }
}

/// Commands that nobody asked for.
fn meddle(stage: &Arc<Stage>, row: &ChainRow, state: &RunState) {
    let sim = &stage.sim;
    let step = sim.dice().one(&state.plan.steps).id;
    let reason = || UNASKED.to_owned();
    let unasked = [
        (Fault::Pause, 25, Command::Pause { reason: reason() }),
        (Fault::Abort, 12, Command::Abort { reason: reason() }),
        (Fault::Skip, 25, Command::Skip { step: step.clone(), reason: reason() }),
        (Fault::Retry, 25, Command::Retry { step: step.clone() }),
        (Fault::Approve, 60, Command::Approve { step: step.clone(), signed: None, request: None }),
        (Fault::WrongResolve, 25, Command::Resolve { step, done: true, reason: reason(), question: None }),
    ];
    for (fault, often, command) in unasked {
        if sim.fault(fault, often) {
            // Some say everything twice.
            if sim.dice().of_1000(300) {
                tell(stage, &row.id, command.clone());
            }
            tell(stage, &row.id, command);
        }
    }
    if sim.fault(Fault::Resume, 30) {
        resume(stage, &row.id);
    }
    seize(stage, row);
}

fn resume(stage: &Arc<Stage>, run: &RunId) {
    let Some(life) = stage.someone() else { return };
    let (stage, run, by) = (stage.clone(), run.clone(), life.clone());
    life.spawn(async move {
        if let Ok(claim) = stage.journal(&by).claim(&run, &by.name).await {
            stage.carry(&by, claim, true);
        }
    });
}

/// Takes a run over by force: as a rule only after its owner was certainly ended.
fn seize(stage: &Arc<Stage>, row: &ChainRow) {
    let sim = &stage.sim;
    let dead = sim.fault(Fault::Seize, 20);
    if !dead && !sim.fault(Fault::SeizeAlive, 4) {
        return;
    }
    let owner = row.owner.clone().unwrap_or_default();
    let lives: Vec<_> = stage.lives.lock().unwrap().values().cloned().collect();
    if dead {
        lives.iter().filter(|life| life.name == owner).for_each(|life| life.crash("its run is taken over"));
    } else {
        sim.watch().forced(&row.id);
    }
    let Some(life) = lives.into_iter().find(|life| life.is_alive() && life.name != owner) else { return };
    let (stage, run, by) = (stage.clone(), row.id.clone(), life.clone());
    life.spawn(async move {
        // Between the look and the deed another may have taken it over.
        let journal = stage.journal(&by);
        let same = journal.row(&run).await.is_ok_and(|row| row.owner.as_deref() == Some(owner.as_str()) && row.finished_at.is_none());
        if same && let Ok(claim) = journal.seize(&run, &by.name).await {
            stage.carry(&by, claim, true);
        }
    });
}

/// A command as the program carries it out: to the owner if there is one, else onto the record.
fn tell(stage: &Arc<Stage>, run: &RunId, command: Command) {
    let Some(life) = stage.someone() else { return };
    let who = stage.sim.dice().one(&["ana", "ben", "eve"]);
    let (stage, run, by) = (stage.clone(), run.clone(), life.clone());
    life.spawn(async move {
        stage.sim.note(who, || format!("says {command:?} to {run} at {}", by.name));
        let (journal, clock) = (stage.journal(&by), by.clock());
        // First a look whether it makes sense at all; by the time that it arrives it may not.
        let events = journal.load(&run, 0).await.unwrap_or_default();
        let Some(state) = RunState::of(events.iter().map(|one| &one.event)) else { return };
        if let Err(why) = inbox::bodies(&state, &run, who, &command, clock.now()) {
            stage.sim.note(who, || format!("is refused: {why}"));
            stage.refused.lock().unwrap().insert(run);
            return;
        }
        // Who answers without having looked is refused, or keeps silent: people do not lie.
        if matches!(&command, Command::Resolve { reason, .. } if reason == UNASKED) {
            return;
        }
        match journal.claim(&run, &by.name).await {
            Ok(claim) => {
                let events = journal.load(&run, 0).await.unwrap_or_default();
                let state = RunState::of(events.iter().map(|one| &one.event));
                match state.map(|state| (state.seq, inbox::bodies(&state, &run, who, &command, clock.now()))) {
                    Some((seq, Ok(bodies))) => {
                        let draft = |body| Draft { at: clock.now(), actor: who.to_owned(), body };
                        let _ = journal.append(&claim, seq, bodies.into_iter().map(draft).collect()).await;
                    }
                    Some((_, Err(why))) => {
                        stage.sim.note(who, || format!("is refused: {why}"));
                        stage.refused.lock().unwrap().insert(run);
                    }
                    None => {}
                }
                journal.release(claim).await;
            }
            Err(JournalError::Owned { .. }) => drop(journal.post(&run, clock.now(), who, &command).await),
            Err(_) => {}
        }
    });
}
