//! A switchover within a region whose cluster Patroni manages: Patroni is asked, and watched. It stops the leader in order
//! and promotes the candidate when that has the whole log; Muster holds no poolers and stops no server there.
//!
//! The request names the leader that it is for, and Patroni refuses it when another leads by then. So it is safe to ask
//! again after a lost answer: the same switchover never happens twice.

use super::{
    contract::*,
    database_switchover::{Input, Intent, Output},
    own_server::seen,
    patroni::{managed, no_leader, ready},
    shared::*,
};
use crate::model::effect::*;
use crate::providers::port::*;
use serde::{Deserialize, Serialize};

/// A member that is further behind makes a long pause, or none at all: Patroni refuses it.
const MOST_BEHIND: u64 = 16 * 1024 * 1024;

/// Who hands over to whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handover {
    pub leader: String,
    pub candidate: String,
}

pub(super) async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Intent>, Refusal> {
    let (name, region) = (&input.database, &input.to);
    let cluster = ready(cx, name, region).await?;
    if let Some(of) = &cluster.standby_of {
        let message =
            format!("Patroni of `{name}` in `{region}` is a standby cluster (of {of}); its region changes places by being promoted");
        return Err(Refusal::no("standby_cluster", message).remedy(
            "`database.fence` the other region with `planned: true` and `by: [patroni_demoted]`, then `database.promote` this one",
        ));
    }
    let leader = cluster.leader().ok_or_else(|| no_leader(name, region, &cluster))?;
    let members = || cluster.members.iter().map(|m| m.name.as_str()).collect::<Vec<_>>().join(", ");
    let candidate = match &input.member {
        Some(wanted) => cluster.member(wanted).ok_or_else(|| {
            Refusal::no("no_member", format!("Patroni of `{name}` in `{region}` has no member `{wanted}`; it has: {}", members()))
        })?,
        None => nearest(&cluster).ok_or_else(|| {
            Refusal::later("no_standby", format!("no member of `{}` could take over from `{}`: {}", cluster.scope, leader.name, members()))
                .remedy(format!("patronictl list {}", cluster.scope))
        })?,
    };
    let nothing = candidate.name == leader.name;
    if !nothing {
        fit(&cluster, candidate)?;
    }
    let timeline = leader.timeline.unwrap_or_default();
    let nodes = cx.world.patroni(name.as_str(), region.as_str())?.nodes().await?;
    let identifier =
        nodes.iter().filter_map(|(_, n)| n.as_ref().ok()).find(|n| n.name == leader.name).and_then(|n| n.system_identifier.clone());
    let all = vec![
        change(format!("{} of {name} in {region}", leader.name), Some("leader".into()), Some("replica".into())),
        change(format!("{} of {name} in {region}", candidate.name), Some(candidate.role.clone()), Some("leader".into())),
    ];
    let behind = candidate.lag.map_or_else(|| "an unknown distance".to_owned(), |lag| format!("{lag} bytes"));
    let notes = match nothing {
        true => vec![format!("`{}` leads already", leader.name)],
        false => vec![format!("Patroni `{}` is asked; `{}` is {behind} behind, on timeline {timeline}", cluster.scope, candidate.name)],
    };
    let handover = Handover { leader: leader.name.clone(), candidate: candidate.name.clone() };
    let intent = Intent {
        database: name.clone(),
        from: region.clone(),
        to: region.clone(),
        max_pause: input.max_pause,
        system_identifier: identifier.unwrap_or_default(),
        timeline,
        hurry: false,
        kept: String::new(),
        nothing,
        epoch: None,
        patroni: Some(handover),
    };
    Ok(Prepared { intent, change: if nothing { Vec::new() } else { all }, notes })
}

/// A synchronous standby before others, then the least behind, then by name: the same choice from the same sight.
fn nearest(cluster: &PatroniCluster) -> Option<&PatroniMember> {
    let rank = |m: &PatroniMember| (m.role != "sync_standby", m.lag.unwrap_or(u64::MAX), m.name.clone());
    cluster.members.iter().filter(|m| m.follows() && m.eligible).min_by_key(|m| rank(m))
}

fn fit(cluster: &PatroniCluster, candidate: &PatroniMember) -> Result<(), Refusal> {
    let list = format!("patronictl list {}", cluster.scope);
    if !candidate.eligible {
        return Err(Refusal::no("not_eligible", format!("`{}` may not become the leader: it has the tag `nofailover`", candidate.name)));
    }
    if !candidate.follows() {
        return Err(Refusal::later("not_streaming", format!("`{}` does not follow its leader (`{}`)", candidate.name, candidate.state))
            .remedy(list));
    }
    match candidate.lag {
        Some(lag) if lag <= MOST_BEHIND => Ok(()),
        Some(lag) => Err(Refusal::later(
            "lags",
            format!("`{}` is {lag} bytes behind its leader; a switchover starts below {MOST_BEHIND}", candidate.name),
        )),
        None => {
            Err(Refusal::later("lag_unknown", format!("Patroni does not know how far `{}` is behind its leader", candidate.name))
                .remedy(list))
        }
    }
}

pub(super) async fn apply(cx: &WriteCx, intent: &Intent, handover: &Handover) -> Result<(), ApplyError> {
    if intent.nothing {
        return Ok(());
    }
    ready(cx, &intent.database, &intent.to).await.map_err(definite)?;
    let patroni = cx.world()?.patroni_mut(intent.database.as_str(), intent.to.as_str())?;
    Ok(patroni.switch_over(&handover.leader, &handover.candidate).await?)
}

pub(super) async fn observe(cx: &ReadCx, intent: &Intent, handover: &Handover) -> Seen<Output> {
    seen(look(cx, intent, handover)).await
}

async fn look(cx: &ReadCx, intent: &Intent, handover: &Handover) -> PortResult<Seen<Output>> {
    let cluster = cx.world.patroni(intent.database.as_str(), intent.to.as_str())?.cluster().await?;
    let Some(leader) = cluster.leader() else { return Ok(pending(200, "Patroni has no leader at this moment")) };
    let after = leader.timeline;
    if leader.name == handover.leader && !intent.nothing {
        return Ok(match after {
            Some(after) if after == intent.timeline => Seen::Absent,
            Some(after) => Seen::Differs { found: format!("`{}` leads again, on timeline {after}", leader.name) },
            None => pending(200, format!("`{}` leads; its timeline is not known", leader.name)),
        });
    }
    if leader.name != handover.candidate {
        return Ok(Seen::Differs { found: format!("`{}` leads, neither of the two", leader.name) });
    }
    let output = Output {
        from: intent.from.clone(),
        to: intent.to.clone(),
        timeline_before: intent.timeline,
        timeline_after: after,
        lsn: None,
        write_pause_ms: None,
        rejoined: true,
        leader: Some(leader.name.clone()),
    };
    if intent.nothing {
        return Ok(Seen::Done(output));
    }
    if after.is_none_or(|after| after <= intent.timeline) {
        return Ok(pending(200, format!("`{}` has taken over, and is not promoted yet", leader.name)));
    }
    match cluster.member(&handover.leader) {
        Some(old) if old.follows() && old.timeline == after => Ok(Seen::Done(output)),
        Some(old) => Ok(pending(200, format!("`{}` does not follow yet (`{}`)", old.name, old.state))),
        None => Ok(pending(200, format!("`{}` is not there yet", handover.leader))),
    }
}

/// Back is a switchover the other way; what Patroni has not begun yet cannot be told from what it will begin.
pub(super) async fn undo(cx: &WriteCx, intent: &Intent, handover: &Handover) -> Result<(), ApplyError> {
    match observe(cx, intent, handover).await {
        Seen::Absent => Ok(()),
        _ if intent.nothing => Ok(()),
        Seen::CannotTell { why } => Err(unseen(&format!("`{}` in `{}` has changed places", intent.database, intent.to), &why)),
        _ => Err(ApplyError::Definite(
            Failure::new("promoted", format!("`{}` leads `{}` in `{}` by now", handover.candidate, intent.database, intent.to))
                .remedy(format!("switch over again, with `member: {}`", handover.leader)),
        )),
    }
}

/// Does Patroni manage the region that the switchover leads to?
pub(super) fn is_for(cx: &ReadCx, input: &Input) -> bool {
    managed(cx, &input.database, &input.to).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        actions::contract_tests::{Bench, Fixture},
        model::time::Span,
    };

    /// Nobody has said that the candidate leads: it may be asked soon.
    #[tokio::test]
    async fn an_undo_does_not_take_silence_for_a_switchover_that_was_done() {
        let bench = Bench::new(&Fixture::new(serde_json::Value::Null));
        let intent = Intent {
            database: "orders".into(),
            from: "east".into(),
            to: "east".into(),
            max_pause: Span::from_secs(5),
            system_identifier: "1".into(),
            timeline: 1,
            hurry: false,
            kept: String::new(),
            nothing: false,
            epoch: None,
            patroni: None,
        };
        let handover = Handover { leader: "a".into(), candidate: "b".into() };
        assert!(matches!(observe(&bench.read, &intent, &handover).await, Seen::CannotTell { .. }), "no Patroni answers in this world");
        let undone = undo(&bench.write, &intent, &handover).await;
        assert!(matches!(&undone, Err(ApplyError::Retry { failure, .. }) if failure.code == "cannot_tell"), "{undone:?}");
    }

    fn member(name: &str, role: &str, lag: Option<u64>) -> PatroniMember {
        let state = "streaming".to_owned();
        PatroniMember { name: name.into(), role: role.into(), state, api: None, timeline: Some(1), lag, eligible: true }
    }

    #[test]
    fn the_one_that_loses_least_is_chosen() {
        let mut cluster = PatroniCluster {
            scope: "orders".into(),
            members: vec![
                member("a", "leader", None),
                member("b", "replica", Some(9)),
                member("c", "replica", Some(3)),
                member("d", "replica", None),
            ],
            paused: false,
            standby_of: None,
        };
        assert_eq!(nearest(&cluster).map(|m| m.name.as_str()), Some("c"));
        cluster.members[1].role = "sync_standby".into();
        assert_eq!(nearest(&cluster).map(|m| m.name.as_str()), Some("b"));
        cluster.members[1].eligible = false;
        cluster.members[2].state = "stopped".into();
        assert_eq!(nearest(&cluster).map(|m| m.name.as_str()), Some("d"));
        // It may be chosen, and is not fit: how far it is behind nobody knows.
        assert_eq!(fit(&cluster, &cluster.members[3]).unwrap_err().failure.code, "lag_unknown");
        assert_eq!(fit(&cluster, &cluster.members[1]).unwrap_err().failure.code, "not_eligible");
        assert_eq!(fit(&cluster, &cluster.members[2]).unwrap_err().failure.code, "not_streaming");
    }
}
