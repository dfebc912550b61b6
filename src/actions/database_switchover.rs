//! `database.switchover`: a primary and its standby change places, both healthy, and not one write is lost.
//!
//! **What it does**, in this order. Ahead, while writes go on: the slot for the old primary, its configuration as a
//! standby (in force from its next start, so whoever starts it from here on gets a standby), a checkpoint. Then writes
//! pause: the poolers hold their clients, the primary is stopped in order, which sends its standby the whole log, and
//! nothing of it lives (looked at, on its machine). The standby has replayed beyond the last record, is promoted, and
//! the poolers, which point to it by then, let their clients go on. The old primary is started and follows; the slot in which
//! it kept the log for the other would hold it for ever, and is dropped. Clients that come another way see their sessions
//! end, and connect again.
//!
//! If the standby has not come to the end of the log within `max_pause`, or anything else fails before it is asked to
//! promote, all goes back: the old primary is started as what it was, the poolers go on to it.
//!
//! **Half-done** it can be anywhere; what was done is seen in the world alone. While the standby is one, `apply` goes
//! on from where things stand: each part looks before it acts. Once it has left recovery there is no way back, and only
//! the poolers and the old primary are left to do. There are never two that can be written to: the one is dead before
//! the other is asked, and can come back only as a standby.
//!
//! **Undone** it is while nothing is promoted, as above; afterwards by switching over again.

use super::{contract::*, own_server::*, shared::*, switchover_patroni as with_patroni, switchover_steps as steps};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use crate::providers::port::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub database: DatabaseName,
    /// Where the standby is that becomes the primary.
    pub to: RegionName,
    /// How long writes may pause until the standby can be promoted; else all goes back.
    #[serde(default = "two_seconds")]
    pub max_pause: Span,
    /// Where Patroni manages the region: the member that shall lead. Left out, the one that is least behind.
    #[serde(default)]
    pub member: Option<String>,
}

fn two_seconds() -> Span {
    Span::from_secs(2)
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    pub(super) database: DatabaseName,
    pub(super) from: RegionName,
    pub(super) to: RegionName,
    pub(super) max_pause: Span,
    pub(super) system_identifier: String,
    pub(super) timeline: u32,
    /// The standby's `wal_retrieve_retry_interval` is made short, and stays so.
    pub(super) hurry: bool,
    /// The slot in which the old primary keeps the log for the standby until now.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) kept: String,
    /// They change places already.
    pub(super) nothing: bool,
    /// The write lease's epoch, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) epoch: Option<u64>,
    /// Patroni is asked to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) patroni: Option<with_patroni::Handover>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    pub from: RegionName,
    pub to: RegionName,
    pub timeline_before: u32,
    pub timeline_after: Option<u32>,
    /// Where the old primary's log ended.
    #[schemars(with = "Option<String>")]
    pub lsn: Option<Lsn>,
    /// From when the first client was held to when the last could go on; `null` when it was not measured, since this
    /// machine died on the way.
    pub write_pause_ms: Option<u64>,
    /// The old primary follows the new one.
    pub rejoined: bool,
    /// The member that leads now, where Patroni manages the region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
}

pub struct Switchover;

impl Action for Switchover {
    type Input = Input;
    type Intent = Intent;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "database.switchover",
            version: 1,
            summary: "Let a primary and its standby change places without losing a write",
            effect: Effect::Observable,
            danger: Danger::Reversible,
            undo: UndoPolicy::Manual,
            timeout: Span::from_secs(600),
            example: "id: switch\nuses: database.switchover\nwith: { database: predictions, to: west, max_pause: 500ms }\n",
        }
    }
    fn reach(with: &Node, estate: &Estate) -> Vec<Reach> {
        reach_servers(with, estate).chain([reach_here()]).collect()
    }
    fn locks(with: &Node) -> Vec<Resource> {
        locks(with, "database", "database")
    }

    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Intent>, Refusal> {
        let (name, to) = (&input.database, &input.to);
        if !is_own(cx, name)? {
            return Err(Refusal::no("not_own", format!("`{name}` is Amazon's; its server cannot be stopped in order"))
                .remedy("use `database.fence` with `planned: true`, `database.promote`, `database.admit` and `database.rejoin`"));
        }
        instance(cx, name, to)?;
        if with_patroni::is_for(cx, &input) {
            return with_patroni::prepare(cx, input).await;
        }
        if let Some(member) = &input.member {
            return Err(Refusal::no("no_patroni", format!("`{name}` in `{to}` has no members to choose from (`{member}`): no Patroni manages it"))
                .remedy(format!("leave `member` out, or write databases.{name}.instances.{to}.patroni")));
        }
        let standby = state_of(cx, name, to).await?;
        let from = the_other(cx, name, to, &standby).await?;
        needs_machine(cx, name, &from, "it cannot be stopped in order")?;
        not_patronis(cx, name, &from).await?;
        not_patronis(cx, name, to).await?;
        let old = state_of(cx, name, &from).await?;
        let mut intent = Intent {
            database: name.clone(), from, to: to.clone(), max_pause: input.max_pause, system_identifier: old.system_identifier.clone(),
            timeline: old.timeline, hurry: false, kept: String::new(), nothing: !standby.in_recovery, epoch: None, patroni: None,
        };
        if intent.nothing {
            return Ok(Prepared { intent, change: Vec::new(), notes: vec![format!("`{to}` has the primary already, and `{}` follows it", input.database)] });
        }
        if database(cx, name)?.lease.is_some() {
            let lease = cx.world.lease(name.as_str())?.lease().await?;
            intent.epoch = Some(lease.epoch);
            if lease.allowed.as_deref() != Some(intent.from.as_str()) {
                let allowed = lease.allowed.as_deref().unwrap_or("nobody");
                return Err(Refusal::no("lease", format!("the write lease of `{name}` is allowed to {allowed}, not to `{}`", intent.from)));
            }
        }
        let notes = steps::preflight(cx, &mut intent, &old, &standby).await?;
        let mut all = vec![
            change(format!("{name} in {}", intent.from), Some("primary".into()), Some("standby".into())),
            change(format!("{name} in {to}"), Some("standby".into()), Some("primary".into())),
        ];
        let poolers = cx.world.poolers(name.as_str())?;
        all.extend(poolers.iter().map(|p| change(p.name(), Some(intent.from.0.clone()), Some(to.0.clone()))));
        if intent.hurry {
            all.push(change(format!("{RETRY_INTERVAL} of {name} in {to}"), None, Some(QUICK_RETRY.into())));
        }
        Ok(Prepared { intent, change: all, notes })
    }

    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
        if let Some(handover) = &intent.patroni {
            with_patroni::apply(cx, intent, handover).await?;
            return Ok(steps::output(cx, intent, None));
        }
        if !intent.nothing {
            if state_of(cx, &intent.database, &intent.to).await?.in_recovery {
                steps::switch(cx, intent).await?;
            }
            steps::let_go_on(cx, intent).await?;
            steps::follow(cx, intent).await?;
        }
        Ok(steps::output(cx, intent, None))
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<Output> {
        if let Some(handover) = &intent.patroni {
            return with_patroni::observe(cx, intent, handover).await;
        }
        seen(steps::where_it_stands(cx, intent)).await
    }

    async fn undo(cx: &WriteCx, intent: &Intent, _output: Option<Output>) -> Result<(), ApplyError> {
        if let Some(handover) = &intent.patroni {
            return with_patroni::undo(cx, intent, handover).await;
        }
        if intent.nothing {
            return Ok(());
        }
        let promoted = !state_of(cx, &intent.database, &intent.to).await?.in_recovery;
        if promoted {
            return Err(ApplyError::Definite(
                Failure::new("promoted", format!("`{}` in `{}` is the primary by now", intent.database, intent.to)).remedy("switch over again, the other way"),
            ));
        }
        steps::back(cx, intent).await
    }
}

/// The primary that the standby follows; or, where the places are changed already, the one that follows it.
async fn the_other(cx: &ReadCx, name: &DatabaseName, to: &RegionName, state: &ServerState) -> Result<RegionName, Refusal> {
    let mut found = Vec::new();
    for region in database(cx, name)?.instances.keys().filter(|r| *r != to) {
        let Ok(other) = state_of(cx, name, region).await else { continue };
        if other.system_identifier == state.system_identifier && other.in_recovery != state.in_recovery {
            found.push(region.clone());
        }
    }
    if state.in_recovery && found.len() != 1 {
        let message = format!("`{name}` has {} primaries that can be asked; a switchover needs one", found.len());
        return Err(Refusal::no("no_primary", message).remedy("if it is lost: `database.fence` and `database.promote`"));
    }
    found.into_iter().next().ok_or_else(|| {
        Refusal::no("no_standby", format!("`{name}` in `{to}` is a primary, and no other region has a standby that follows it"))
    })
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    super::contract_tests::Fixture::new(serde_json::json!({ "database": "orders", "to": "west" }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::contract_tests::Bench;

    fn west(bench: &Bench, change: impl FnOnce(&mut crate::providers::sim::Server)) {
        change(bench.world.lock().servers.get_mut(&("orders".into(), "west".into())).expect("west"));
    }

    #[tokio::test]
    async fn they_change_places() {
        let bench = Bench::new(&fixture());
        let out = bench.run::<Switchover>().await.expect("switched");
        assert_eq!((out.timeline_before, out.timeline_after, out.rejoined), (1, Some(2), true));
        assert!(out.lsn.is_some() && out.write_pause_ms.is_some());
        let state = bench.world.lock();
        assert_eq!(state.poolers[0].host, "west.test");
        assert!(!state.poolers[0].paused);
    }

    #[tokio::test]
    async fn one_that_cannot_catch_up_is_not_promoted_and_all_goes_back() {
        let bench = Bench::new(&fixture());
        let intent = bench.intent::<Switchover>().await;
        west(&bench, |s| s.state.replay_paused = true);
        let failed = Switchover::apply(&bench.write, &intent).await;
        assert!(matches!(&failed, Err(ApplyError::Definite(f)) if f.code == "rolled_back"), "{failed:?}");
        let state = bench.world.lock();
        let east = &state.servers[&("orders".into(), "east".into())];
        assert!(!east.state.in_recovery && !state.machines[&("orders".into(), "east".into())].standby_signal);
        assert!(state.servers[&("orders".into(), "west".into())].state.in_recovery);
        assert_eq!((state.poolers[0].host.as_str(), state.poolers[0].paused), ("east.test", false));
    }

    #[tokio::test]
    async fn what_would_lose_writes_or_take_long_is_refused_before() {
        let bench = Bench::new(&fixture());
        west(&bench, |s| s.state.streaming = false);
        assert_eq!(bench.refused::<Switchover>().await, "not_streaming");
        west(&bench, |s| (s.state.streaming, s.state.replay_paused) = (true, true));
        assert_eq!(bench.refused::<Switchover>().await, "replay_paused");
        west(&bench, |s| (s.state.replay_paused, s.state.timeline) = (false, 7));
        assert_eq!(bench.refused::<Switchover>().await, "timeline");
    }
}
