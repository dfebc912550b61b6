//! The parts of a switchover, each of which looks before it acts, so that it can be gone through again from anywhere.

use super::{
    contract::*,
    database_switchover::{Intent, Output},
    fence_ways::start_as_primary,
    own_server::*,
    poolers,
    shared::*,
};
use crate::model::{effect::*, ids::*};
use crate::providers::port::*;
use futures::future::try_join_all;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A standby that is further behind is not what a short pause needs.
const MOST_BEHIND: u64 = 16 * 1024 * 1024;
const PROMOTE: Duration = Duration::from_secs(60);
/// Beyond the pause that was asked for: how long a server that was told to stop may take before something else is wrong.
const STOP: Duration = Duration::from_secs(30);
/// How long a standby may take to find its primary again.
const RECONNECT: Duration = Duration::from_secs(10);

/// What was measured, for the report: kept on this machine, since a look at the world does not show it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Measured {
    lsn: Option<Lsn>,
    write_pause_ms: Option<u64>,
}

fn notes(cx: &ReadCx) -> std::path::PathBuf {
    cx.scratch.join(format!("switchover-{}.json", cx.step))
}

fn measured(cx: &ReadCx) -> Measured {
    std::fs::read(notes(cx)).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

fn remember(cx: &ReadCx, change: impl FnOnce(&mut Measured)) {
    let mut known = measured(cx);
    change(&mut known);
    // Only the report would miss it.
    let _ = std::fs::create_dir_all(&cx.scratch);
    let _ = serde_json::to_vec(&known).map(|text| std::fs::write(notes(cx), text));
}

pub(super) fn output(cx: &ReadCx, intent: &Intent, after: Option<u32>) -> Output {
    let Measured { lsn, write_pause_ms } = measured(cx);
    Output {
        from: intent.from.clone(),
        to: intent.to.clone(),
        timeline_before: intent.timeline,
        timeline_after: after,
        lsn,
        write_pause_ms,
        rejoined: after.is_some(),
        leader: None,
    }
}

/// All that would make the pause long, or lose something, is found before anything is touched.
pub(super) async fn preflight(cx: &ReadCx, intent: &mut Intent, old: &ServerState, standby: &ServerState) -> Result<Vec<String>, Refusal> {
    let (name, to) = (&intent.database, &intent.to);
    let who = format!("`{name}` in `{to}`");
    if standby.timeline != old.timeline {
        return Err(Refusal::no("timeline", format!("{who} is on timeline {}, its primary on {}", standby.timeline, old.timeline)));
    }
    if standby.replay_paused {
        return Err(Refusal::no("replay_paused", format!("the replay of {who} is paused")).remedy("SELECT pg_wal_replay_resume()"));
    }
    if !standby.streaming {
        return Err(Refusal::later("not_streaming", format!("{who} does not stream from its primary")));
    }
    let behind = old.position.0.saturating_sub(standby.position.0);
    if behind > MOST_BEHIND {
        return Err(Refusal::later("lags", format!("{who} is {behind} bytes behind its primary; a switchover starts below {MOST_BEHIND}")));
    }
    let cluster = cx.world.cluster(name.as_str(), to.as_str())?;
    let names = [RETRY_INTERVAL, "max_wal_senders", "max_replication_slots", "recovery_min_apply_delay", "primary_slot_name"];
    let settings = cluster.settings(&names).await?;
    if let Some(delay) = settings.get("recovery_min_apply_delay").filter(|d| setting_ms(d) != Some(0)) {
        return Err(Refusal::no("delayed", format!("{who} replays with a delay on purpose (recovery_min_apply_delay {delay})")));
    }
    let most = |name: &str| settings.get(name).and_then(|value| value.parse::<usize>().ok()).unwrap_or(0);
    let slots = cluster.slots().await?;
    let new_slot = slot_name(&intent.from);
    if most("max_wal_senders") == 0 || (slots.len() >= most("max_replication_slots") && !slots.iter().any(|s| s.name == new_slot)) {
        return Err(Refusal::no("no_slot", format!("{who} has no room for the old primary to follow it"))
            .remedy("raise max_wal_senders and max_replication_slots there; it needs a restart"));
    }
    for pooler in cx.world.poolers(name.as_str())? {
        let state = pooler.state().await?;
        if state.paused {
            return Err(Refusal::later("paused", format!("{} is paused already, by somebody else", pooler.name())));
        }
    }
    intent.kept = settings.get("primary_slot_name").cloned().unwrap_or_default();
    intent.hurry = settings.get(RETRY_INTERVAL).and_then(|v| setting_ms(v)).is_none_or(|ms| ms > SLOW_RETRY_MS);
    Ok(vec![format!("{behind} bytes behind, on timeline {}", old.timeline)])
}

/// Both parts; whatever fails before the standby is asked to promote leads back.
pub(super) async fn switch(cx: &WriteCx, intent: &Intent) -> Result<(), ApplyError> {
    // Nothing is done yet, should this process have lost the run.
    cx.world()?;
    match ahead(cx, intent).await {
        Ok(fresh) => change_places(cx, intent, fresh).await,
        Err(why) => Err(roll_back(cx, intent, why).await),
    }
}

/// What can be done while writes go on. Do they, or has an earlier attempt stopped them already?
async fn ahead(cx: &WriteCx, intent: &Intent) -> Result<bool, ApplyError> {
    let (name, from, to) = (intent.database.as_str(), intent.from.as_str(), intent.to.as_str());
    let standby = cx.world()?.cluster_mut(name, to)?;
    if intent.hurry {
        standby.set(RETRY_INTERVAL, Some(QUICK_RETRY)).await?;
    }
    standby.make_slot(&slot_name(&intent.from)).await?;
    let machine = cx.world()?.machine_mut(name, from)?;
    let up = upstream(cx, &intent.database, &intent.to, true).map_err(definite)?;
    make_standby(&*machine, Some((&up, &intent.from))).await?;
    // What is dirty now need not be written while clients wait. Twice: the first may have taken long.
    let primary = cx.world()?.cluster_mut(name, from)?;
    let mut fresh = !machine.look().await?.dead();
    if fresh {
        streams(cx, intent).await?;
    }
    for _ in 0..if fresh { 2 } else { 0 } {
        primary.checkpoint().await?;
    }
    for pooler in cx.world.poolers(name)? {
        fresh &= !pooler.state().await?.paused;
    }
    Ok(fresh)
}

/// After an attempt that went back, the standby may not have found its primary again.
async fn streams(cx: &ReadCx, intent: &Intent) -> Result<(), ApplyError> {
    let clock = cx.world.clock();
    let until = clock.monotonic() + RECONNECT;
    while !state_of(cx, &intent.database, &intent.to).await?.streaming {
        if clock.monotonic() >= until {
            let failure =
                Failure::new("not_streaming", format!("`{}` in `{}` does not stream from its primary", intent.database, intent.to));
            return Err(ApplyError::Retry { after: Duration::from_secs(1), failure });
        }
        clock.sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// The pause.
async fn change_places(cx: &WriteCx, intent: &Intent, fresh: bool) -> Result<(), ApplyError> {
    let begun = cx.world.clock().monotonic();
    match stop_and_catch_up(cx, intent, begun).await {
        Ok(lsn) => remember(cx, |m| m.lsn = Some(lsn)),
        Err(why) => return Err(roll_back(cx, intent, why).await),
    }
    let standby = cx.world()?.cluster_mut(intent.database.as_str(), intent.to.as_str())?;
    // Once asked it may happen at any moment: there is no way back from here.
    let promoted = standby.promote(PROMOTE.min(cx.deadline)).await;
    promoted.map_err(|e| ApplyError::Unknown(failure(&e)))?;
    let_go_on(cx, intent).await?;
    let pause = cx.world.clock().monotonic().saturating_sub(begun);
    remember(cx, |m| m.write_pause_ms = u64::try_from(pause.as_millis()).ok().filter(|_| fresh));
    Ok(())
}

async fn stop_and_catch_up(cx: &WriteCx, intent: &Intent, begun: Duration) -> Result<Lsn, ApplyError> {
    let (name, from, to) = (intent.database.as_str(), intent.from.as_str(), intent.to.as_str());
    let clock = cx.world.clock();
    let limit = intent.max_pause.duration();
    let left = || limit.saturating_sub(clock.monotonic().saturating_sub(begun));
    if let Some(epoch) = intent.epoch {
        take_lease(cx, intent, epoch).await?;
    }
    let poolers = cx.world()?.poolers_mut(name)?;
    try_join_all(poolers.iter().map(|pooler| pooler.pause(left()))).await.map_err(|e| late(&e))?;
    let machine = cx.world()?.machine_mut(name, from)?;
    let target = instance(cx, &intent.database, &intent.to).map_err(definite)?;
    let (host, port) = (target.host.clone().unwrap_or_default(), target.port.unwrap_or(5432));
    // Its clients are held: where it points to is seen by nobody until they go on.
    let pointing = try_join_all(poolers.iter().map(|pooler| pooler.point(&host, port)));
    let stopping = async {
        if !machine.look().await?.dead() {
            machine.stop(Stop::Fast).await?;
        }
        await_dead(cx, &*machine, STOP.min(left())).await
    };
    let (stopped, _) = futures::future::try_join(stopping, pointing).await.map_err(|e| late(&e))?;
    let stopped = stopped.ok_or_else(|| fail("slow_stop", format!("the primary in `{from}` did not stop within {}", intent.max_pause)))?;
    if stopped.state != "shut down" || !stopped.standby_signal {
        return Err(fail("not_in_order", format!("the primary in `{from}` did not stop in order (`{}`)", stopped.state)));
    }
    let standby = cx.world.cluster(name, to)?;
    let replayed = standby.replay(stopped.checkpoint, left()).await.map_err(|e| late(&e))?;
    if replayed <= stopped.checkpoint {
        let message =
            format!("`{to}` has replayed {replayed} and not the end of the log at {} within {}", stopped.checkpoint, intent.max_pause);
        return Err(fail("not_caught_up", message));
    }
    // Between the look and here nobody may have started it as anything but a standby.
    let now = machine.look().await?;
    if now.standby_signal && (now.dead() || state_of(cx, &intent.database, &intent.from).await.is_ok_and(|s| s.in_recovery)) {
        return Ok(stopped.checkpoint);
    }
    Err(fail("not_fenced", format!("the server in `{from}` runs again, and may be written to")))
}

/// Everything up to the promotion can be taken back, whether it happened or not.
fn late(error: &PortError) -> ApplyError {
    match ApplyError::from(error.clone()) {
        ApplyError::Unknown(failure) => ApplyError::Retry { after: Duration::from_secs(1), failure },
        other => other,
    }
}

async fn take_lease(cx: &WriteCx, intent: &Intent, epoch: u64) -> Result<(), ApplyError> {
    let lease = cx.world()?.lease_mut(intent.database.as_str())?;
    match lease.allow(None, epoch).await {
        Ok(_) => Ok(()),
        Err(e) => match lease.lease().await {
            Ok(now) if now.epoch == epoch + 1 && now.allowed.is_none() => Ok(()),
            _ => Err(late(&e)),
        },
    }
}

/// Goes back and says why; if even that fails, nobody knows how things stand until somebody looks.
async fn roll_back(cx: &WriteCx, intent: &Intent, why: ApplyError) -> ApplyError {
    let (why, again) = match why {
        ApplyError::Definite(f) => (f, false),
        ApplyError::Retry { failure: f, .. } | ApplyError::Unknown(f) => (f, true),
    };
    if why.code == DEPOSED {
        return ApplyError::Unknown(why);
    }
    match back(cx, intent).await {
        Ok(()) => {
            let message = format!("{}; all is as it was: `{}` has the primary", why.message, intent.from);
            let failure = Failure::new("rolled_back", message).remedy("try again at a quieter moment, or with a longer `max_pause`");
            if again { ApplyError::Retry { after: Duration::from_secs(1), failure } } else { ApplyError::Definite(failure) }
        }
        Err(ApplyError::Definite(f) | ApplyError::Retry { failure: f, .. } | ApplyError::Unknown(f)) => {
            ApplyError::Unknown(Failure::new("not_rolled_back", format!("{}; and going back failed: {}", why.message, f.message)))
        }
    }
}

/// The old primary is a primary again, and the poolers' clients go on to it. Only while the standby is one.
pub(super) async fn back(cx: &WriteCx, intent: &Intent) -> Result<(), ApplyError> {
    start_as_primary(cx, &intent.database, &intent.from).await?;
    if let Some(epoch) = intent.epoch {
        let lease = cx.world()?.lease_mut(intent.database.as_str())?;
        let now = lease.lease().await?;
        if now.epoch == epoch + 1 && now.allowed.is_none() {
            lease.allow(Some(intent.from.as_str()), now.epoch).await?;
        }
    }
    send_to(cx, intent, &intent.from).await?;
    let standby = cx.world()?.cluster_mut(intent.database.as_str(), intent.to.as_str())?;
    Ok(standby.drop_slot(&slot_name(&intent.from)).await?)
}

/// A switchover begins only when all poolers answer, so that one of them does not is never passed over.
async fn send_to(cx: &WriteCx, intent: &Intent, region: &RegionName) -> Result<(), ApplyError> {
    match poolers::lead(cx, &intent.database, region).await?.pop() {
        None => Ok(()),
        Some(left) => Err(PortError::Unreachable(left).into()),
    }
}

/// The new primary is one: its clients may have it.
pub(super) async fn let_go_on(cx: &WriteCx, intent: &Intent) -> Result<(), ApplyError> {
    if let Some(epoch) = intent.epoch {
        let lease = cx.world()?.lease_mut(intent.database.as_str())?;
        let now = lease.lease().await.map_err(half)?;
        if now.epoch == epoch + 1 && now.allowed.is_none() {
            // The old server was seen dead, and comes back as a standby only: what it was granted for cannot be written to.
            lease.hand_over(intent.to.as_str(), now.epoch).await.map_err(half)?;
        }
    }
    send_to(cx, intent, &intent.to).await.map_err(|error| match error {
        ApplyError::Definite(f) if f.code == DEPOSED => ApplyError::Definite(f),
        ApplyError::Definite(f) | ApplyError::Retry { failure: f, .. } | ApplyError::Unknown(f) => ApplyError::Unknown(f),
    })
}

fn half(error: PortError) -> ApplyError {
    ApplyError::Unknown(failure(&error))
}

/// The old primary stopped in order, so it can follow as it is.
pub(super) async fn follow(cx: &WriteCx, intent: &Intent) -> Result<(), ApplyError> {
    let (name, from, to) = (intent.database.as_str(), intent.from.as_str(), intent.to.as_str());
    cx.world()?.cluster_mut(name, to)?.make_slot(&slot_name(&intent.from)).await.map_err(half)?;
    let machine = cx.world()?.machine_mut(name, from)?;
    let state = machine.look().await.map_err(half)?;
    if state.dead() {
        if !state.standby_signal {
            let up = upstream(cx, &intent.database, &intent.to, true).map_err(definite)?;
            make_standby(&*machine, Some((&up, &intent.from))).await.map_err(half)?;
        }
        machine.start().await.map_err(half)?;
    }
    if answers(cx, &intent.database, &intent.from).await {
        let_slot_go(cx, &intent.database, &intent.from, &intent.kept).await?;
    }
    Ok(())
}

/// A start command of the estate may return before the server answers.
pub(super) async fn answers(cx: &ReadCx, name: &DatabaseName, region: &RegionName) -> bool {
    let clock = cx.world.clock();
    let until = clock.monotonic() + RECONNECT.min(cx.deadline);
    while state_of(cx, name, region).await.is_err() {
        if clock.monotonic() >= until {
            return false;
        }
        clock.sleep(Duration::from_millis(50)).await;
    }
    true
}

/// A slot that nobody uses any more holds the log for ever, on a standby too.
pub(super) async fn let_slot_go(cx: &WriteCx, name: &DatabaseName, region: &RegionName, slot: &str) -> Result<(), ApplyError> {
    let cluster = cx.world()?.cluster_mut(name.as_str(), region.as_str())?;
    if unused(&cluster.slots().await.map_err(half)?, slot) { cluster.drop_slot(slot).await.map_err(half) } else { Ok(()) }
}

fn unused(slots: &[SlotUse], slot: &str) -> bool {
    slots.iter().any(|s| s.name == slot && !s.active)
}

pub(super) async fn where_it_stands(cx: &ReadCx, intent: &Intent) -> PortResult<Seen<Output>> {
    let name = &intent.database;
    let new = state_of(cx, name, &intent.to).await?;
    if new.system_identifier != intent.system_identifier {
        return Ok(Seen::Differs { found: "another cluster answers there".into() });
    }
    if new.in_recovery {
        return Ok(Seen::Absent);
    }
    let old = match state_of(cx, name, &intent.from).await {
        Ok(old) => old,
        // It is still to be started.
        Err(PortError::Unreachable(_)) => return Ok(Seen::Absent),
        Err(e) => return Err(e),
    };
    if !old.in_recovery {
        return Ok(Seen::Differs { found: format!("`{}` and `{}` both have a primary", intent.from, intent.to) });
    }
    let (led, left) = poolers::led(cx, name, &intent.to).await?;
    if !led || !left.is_empty() {
        return Ok(Seen::Absent);
    }
    if old.streaming && old.timeline == new.timeline {
        if unused(&cx.world.cluster(name.as_str(), intent.from.as_str())?.slots().await?, &intent.kept) {
            return Ok(Seen::Absent);
        }
        return Ok(Seen::Done(output(cx, intent, Some(new.timeline))));
    }
    Ok(pending(50, "the old primary does not follow yet"))
}
