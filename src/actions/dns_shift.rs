//! `dns.shift`: point an endpoint's name at another region.
//!
//! **What it does.** One atomic change at the DNS provider: the old record sets are deleted and the new ones
//! created in one batch, which the provider carries out only if the old ones stand there exactly as
//! `prepare` found them. What they are decides what becomes of them: a simple record gets the region's address (or its
//! alias); of weighted ones, the region's gets all the weight; of a failover pair, the region's becomes the PRIMARY. Health
//! checks and aliases stay with the record that has them. That is the fence where the effect lands: a second Muster, or a person, that
//! changed the record meanwhile makes the change fail instead of being overwritten.
//!
//! **Half-done** it is while the provider spreads it to its servers and while resolvers still answer from
//! their caches. The step is done when the provider says that the change is in sync (where its identifier
//! is still known: it is kept in the run's own directory on this machine, as a hint and no more) and every
//! resolver of the endpoint answers with the new address and no other. After a crash without the hint,
//! record and resolvers alone tell. A resolver that keeps the old answer although its TTL has run out, or that
//! does not answer, is named in `late` and not waited for, as long as others have moved.
//!
//! Where several servers take the zone's updates, each gets a change of its own, and who stands in a lost region may be left
//! out: that is `holders.rs`.
//!
//! **Undone** it is by the reverse change, under the same condition.

use super::{
    contract::*,
    holders::{self, At, LeftOut, Standing, Subject},
    proof::FenceProof,
    propagation::Spread,
    shared::*,
    spread::{self, Settled, Waiting},
    standby,
};
use crate::model::{effect::*, estate::{Endpoint, Estate}, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use crate::providers::port::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{net::IpAddr, time::Duration};

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub endpoint: EndpointName,
    /// The region that shall answer under the name.
    pub to: RegionName,
    /// A fence proof; with it, a shift to the very region that is fenced is refused.
    #[serde(default)]
    pub proof: Option<FenceProof>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    #[serde(flatten)]
    subject: Subject,
    address: IpAddr,
    /// All records of the name, at each server that holds the zone for itself.
    at: Vec<At>,
    /// Those that could not be asked and are not changed.
    left: Vec<LeftOut>,
    comment: String,
    /// It points there already.
    nothing: bool,
    /// Where the change's identifier is kept.
    hint: std::path::PathBuf,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    pub address: String,
    #[serde(flatten)]
    pub spread: Settled,
    /// Servers that take the zone's updates and were not changed: they stand in the lost region. They have the old record.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
}

pub struct Shift;

impl Action for Shift {
    type Input = Input;
    type Intent = Intent;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "dns.shift",
            version: 3,
            summary: "Point an endpoint's name at another region and wait until resolvers answer with it",
            effect: Effect::Repeatable,
            danger: Danger::Reversible,
            undo: UndoPolicy::Automatic,
            timeout: Span::from_secs(300),
            example: "id: traffic\nuses: dns.shift\nwith: { endpoint: inference, to: west }\n",
        }
    }
    fn reach(with: &Node, estate: &Estate) -> Vec<Reach> {
        reach_dns(with, "endpoint", estate)
    }
    fn locks(with: &Node) -> Vec<Resource> {
        locks(with, "endpoint", "endpoint")
    }

    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Intent>, Refusal> {
        let ep = endpoint(cx, &input.endpoint)?;
        let address = target(ep, &input.to)?;
        if input.proof.as_ref().is_some_and(|p| p.region == input.to) {
            return Err(Refusal::no("fenced", format!("`{}` is fenced; traffic is not sent there", input.to)));
        }
        let subject = Subject {
            endpoint: input.endpoint.clone(),
            zone: ep.zone.clone(),
            name: ep.name.clone(),
            kind: record_kind(address).to_owned(),
        };
        let found = subject.find(cx, |there| moved(&input, ep, there, &subject.kind)).await?;
        let nothing = found.nothing();
        let mut notes = found.notes();
        if nothing {
            notes.push(format!("{} points to {address} already; nothing to change", ep.name));
        }
        let known: Vec<String> = ep.targets.values().map(ToString::to_string).collect();
        let values = found.at.iter().flat_map(|at| &at.expect).flat_map(|set| &set.record.values);
        if let Some(strange) = values.into_iter().find(|v| !known.contains(v)) {
            notes.push(format!("{} points to {strange}, which is no target of the estate", ep.name));
        }
        let change = found.changes(&subject);
        let comment = format!("muster {} {} {}", cx.run, cx.step, short_key(cx));
        let hint = cx.scratch.join(format!("{}.change", cx.key));
        let intent = Intent { subject, address, at: found.at, left: found.left, comment, nothing, hint };
        Ok(Prepared { intent, change, notes })
    }

    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
        if intent.nothing {
            return Ok(output(intent, None));
        }
        let change = intent.subject.write(cx, &intent.at, &intent.comment).await?;
        if let Some(change) = &change {
            spread::keep(&intent.hint, &Spread::new(change.clone(), cx.read.world.clock().now())).await;
        }
        Ok(output(intent, change))
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<Output> {
        let mut kept = spread::load(&intent.hint).await;
        let mut left_out = intent.left.clone();
        match kept.as_ref().filter(|spread| spread.standing) {
            Some(spread) => left_out.extend(spread.left.iter().cloned()),
            None => match intent.subject.standing(cx, &intent.at).await {
                Standing::CannotTell(e) => return cannot_tell(&e),
                Standing::Done(left) => {
                    if let Some(spread) = &mut kept {
                        spread.left.clone_from(&left);
                    }
                    left_out.extend(left);
                }
                Standing::Absent => return Seen::Absent,
                Standing::Differs(found) => return Seen::Differs { found },
            },
        }
        if let Some(spread) = &mut kept {
            spread.standing = true;
            synchronised(cx, intent, spread).await;
        }
        let want = [intent.address];
        let old_ttl = Duration::from_secs(holders::old_ttl_s(&intent.at).into());
        let waiting = Waiting { endpoint: &intent.subject.endpoint, want: &want, old_ttl, hint: &intent.hint };
        match spread::settle(cx, &waiting, kept).await {
            Seen::Done(spread) => Seen::Done(Output { address: intent.address.to_string(), spread, left_out }),
            Seen::Pending { poll_after_ms, note } => pending(poll_after_ms, note),
            Seen::CannotTell { why } => Seen::CannotTell { why },
            Seen::Differs { found } => Seen::Differs { found },
            Seen::Absent => Seen::Absent,
        }
    }

    async fn undo(cx: &WriteCx, intent: &Intent, _output: Option<Output>) -> Result<(), ApplyError> {
        if intent.nothing {
            return Ok(());
        }
        intent.subject.put_back(cx, &intent.at, &format!("{} undone", intent.comment)).await
    }

    fn warnings(output: &Output) -> Vec<String> {
        holders::warnings(&output.left_out)
    }
}

/// The records as they shall be, so that the region answers.
fn moved(input: &Input, ep: &Endpoint, there: &[RoutedSet], kind: &str) -> Result<Vec<RoutedSet>, Refusal> {
    let Input { endpoint, to, .. } = input;
    let single = |set: &RoutedSet| set.routing == Routing::Simple;
    if there.iter().all(single) {
        return simple(input, ep, there, kind).map(|set| vec![set]);
    }
    let mine = |set: &RoutedSet| standby::region_of(ep, set.set.as_deref().unwrap_or_default(), &set.record).as_ref() == Some(to);
    if there.iter().filter(|set| mine(set)).count() != 1 {
        let text = format!("{} {kind} has not one record of `{to}` among {}", ep.name, show_sets(there));
        return Err(Refusal::no("no_record", text).remedy("give each region one record, with its address or its name as the identifier"));
    }
    if ep.standby.is_some() && there.iter().any(|set| set.routing == Routing::Primary) {
        return Err(Refusal::no("behind_a_switch", format!("{} is answered as its switch says; its records are not exchanged", ep.name))
            .remedy(format!("use `dns.standby_takes_over` with `endpoint: {endpoint}`")));
    }
    let routed = |set: &RoutedSet| match set.routing {
        Routing::Weighted { .. } => Routing::Weighted { weight: if mine(set) { 100 } else { 0 } },
        Routing::Primary | Routing::Secondary if mine(set) => Routing::Primary,
        Routing::Primary | Routing::Secondary => Routing::Secondary,
        Routing::Simple => Routing::Simple,
    };
    Ok(there.iter().map(|set| RoutedSet { routing: routed(set), ..set.clone() }).collect())
}

/// The one record of a name that has no policy; of an alias, another alias.
fn simple(input: &Input, ep: &Endpoint, there: &[RoutedSet], kind: &str) -> Result<RoutedSet, Refusal> {
    let address = target(ep, &input.to)?;
    let record = |ttl_s, values| RecordSet { name: ep.name.clone(), kind: kind.to_owned(), ttl_s, values };
    let health = there.first().and_then(|set| set.health.clone());
    if there.first().is_none_or(|set| set.alias.is_none()) {
        return Ok(RoutedSet { health, ..RoutedSet::simple(record(ttl_s(ep), vec![address.to_string()])) });
    }
    let alias = ep.aliases.get(&input.to).ok_or_else(|| {
        Refusal::no("no_alias", format!("{} {kind} is an alias, and the estate says of no alias in `{}`", ep.name, input.to))
            .remedy(format!("write endpoints.{}.aliases.{}: {{ zone: ID, name: NAME }}", input.endpoint, input.to))
    })?;
    let full = |name: &str| format!("{}.", name.trim_end_matches('.').to_ascii_lowercase());
    let alias = Alias { zone: alias.zone.clone(), name: full(&alias.name), evaluate: alias.evaluate };
    Ok(RoutedSet { health, alias: Some(alias), ..RoutedSet::simple(record(0, Vec::new())) })
}

fn output(intent: &Intent, change: Option<String>) -> Output {
    Output { address: intent.address.to_string(), spread: Settled { change, ..Settled::default() }, left_out: intent.left.clone() }
}

/// Asks, now and then, whether every authoritative server has the change.
async fn synchronised(cx: &ReadCx, intent: &Intent, spread: &mut Spread) {
    let clock = cx.world.clock();
    if !spread.asks(clock.now()) {
        return;
    }
    let asked = intent.subject.in_sync(cx, &spread.change, &intent.at).await;
    spread.asked = Some(clock.now());
    match asked {
        Ok(true) => spread.in_sync = spread.asked,
        Ok(false) => spread.untold = None,
        Err(e) => spread.untold = Some(e.to_string()),
    }
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    super::contract_tests::Fixture::new(serde_json::json!({ "endpoint": "inference", "to": "west" }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::contract_tests::{Bench, Fixture};
    use serde_json::json;

    #[tokio::test]
    async fn it_waits_for_sync_and_then_for_caches() {
        let bench = Bench::new(&fixture());
        let out = bench.run::<Shift>().await.expect("shifted");
        assert!(out.spread.waited_ms.expect("seen") >= 5_300, "the old answer was cached for 5 s after 300 ms of sync");
        assert!(out.spread.change.is_some());
    }

    #[tokio::test]
    async fn somebody_elses_change_is_never_overwritten() {
        let bench = Bench::new(&fixture());
        let intent = bench.intent::<Shift>().await;
        for record in bench.world.lock().records.values_mut() {
            record.values = vec!["127.0.0.9".into()];
        }
        assert!(matches!(Shift::apply(&bench.write, &intent).await, Err(ApplyError::Definite(f)) if f.code == "conflict"));
        assert!(matches!(Shift::observe(&bench.read, &intent).await, Seen::Differs { .. }));
    }

    #[tokio::test]
    async fn a_name_that_points_there_already_is_left() {
        let bench = Bench::new(&Fixture::new(json!({ "endpoint": "inference", "to": "east" })));
        assert_eq!(bench.run::<Shift>().await.expect("nothing").spread.change, None);
        assert_eq!(bench.world.writes(), 0);
    }

    fn set(name: &str, routing: Routing, address: &str, health: &str) -> RoutedSet {
        let record = RecordSet { name: "api.scoring.test".into(), kind: "A".into(), ttl_s: 60, values: vec![address.into()] };
        RoutedSet { set: Some(name.into()), routing, health: Some(health.into()), alias: None, record }
    }

    /// The records of the name before and after a shift to west, and that undoing puts them back.
    async fn shifted(before: Vec<RoutedSet>) -> Vec<RoutedSet> {
        let bench = Bench::new(&fixture());
        let key = ("scoring.test".to_owned(), "api.scoring.test".to_owned(), "A".to_owned());
        bench.world.lock().records.clear();
        bench.world.lock().routed.insert(key.clone(), before.clone());
        let intent = bench.intent::<Shift>().await;
        Shift::apply(&bench.write, &intent).await.expect("shifted");
        let after = bench.world.lock().routed[&key].clone();
        Shift::undo(&bench.write, &intent, None).await.expect("undone");
        assert_eq!(bench.world.lock().routed[&key], before, "exactly as before");
        after
    }

    #[tokio::test]
    async fn weighted_records_move_all_their_weight_and_failover_records_exchange_their_roles() {
        let weighted = |east, west| {
            let set = |name, weight, address, health| set(name, Routing::Weighted { weight }, address, health);
            vec![set("blue", east, "127.0.0.2", "h1"), set("green", west, "127.0.0.3", "h2")]
        };
        assert_eq!(shifted(weighted(70, 30)).await, weighted(0, 100));
        let pair = |east, west| vec![set("a", east, "127.0.0.2", "h1"), set("b", west, "127.0.0.3", "h2")];
        assert_eq!(shifted(pair(Routing::Primary, Routing::Secondary)).await, pair(Routing::Secondary, Routing::Primary));
    }

    #[tokio::test]
    async fn an_alias_keeps_its_place_among_several_and_alone_becomes_another() {
        let alias = |name: &str| Some(Alias { zone: "Z1".into(), name: name.into(), evaluate: true });
        let bare = |one: RoutedSet, name: &str| RoutedSet { alias: alias(name), record: RecordSet { ttl_s: 0, values: Vec::new(), ..one.record }, ..one };
        let pair = |east, west| {
            vec![bare(set("east", east, "", "h1"), "east.lb.test."), bare(set("west", west, "", "h2"), "west.lb.test.")]
        };
        assert_eq!(shifted(pair(Routing::Primary, Routing::Secondary)).await, pair(Routing::Secondary, Routing::Primary));
        let alone = |name: &str| vec![bare(RoutedSet { set: None, health: None, ..set("", Routing::Simple, "", "") }, name)];
        assert_eq!(shifted(alone("east.lb.test.")).await, alone("west.lb.test."));
    }

    #[tokio::test]
    async fn what_a_switch_decides_is_left_to_the_switch() {
        let bench = Bench::new(&Fixture::new(json!({ "endpoint": "steady", "to": "west" })));
        assert_eq!(bench.refused::<Shift>().await, "behind_a_switch");
    }
}
