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
//! **Undone** it is by the reverse change, under the same condition.

use super::{
    contract::*,
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
    endpoint: EndpointName,
    zone: String,
    kind: String,
    address: IpAddr,
    /// All records of the name, as they were found.
    expect: Vec<RoutedSet>,
    want: Vec<RoutedSet>,
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
}

pub struct Shift;

impl Action for Shift {
    type Input = Input;
    type Intent = Intent;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "dns.shift",
            version: 2,
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
        let kind = record_kind(address);
        let expect = cx.world.dns(input.endpoint.as_str())?.sets(&ep.zone, &ep.name, kind).await?;
        let want = moved(&input, ep, &expect, kind)?;
        let nothing = expect == want;
        let mut notes = Vec::new();
        if nothing {
            notes.push(format!("{} points to {address} already; nothing to change", ep.name));
        }
        let known: Vec<String> = ep.targets.values().map(ToString::to_string).collect();
        if let Some(strange) = expect.iter().flat_map(|set| &set.record.values).find(|v| !known.contains(v)) {
            notes.push(format!("{} points to {strange}, which is no target of the estate", ep.name));
        }
        let from = (!expect.is_empty()).then(|| show_sets(&expect));
        let changes = if nothing { Vec::new() } else { vec![change(format!("{} {kind}", ep.name), from, Some(show_sets(&want)))] };
        let comment = format!("muster {} {} {}", cx.run, cx.step, short_key(cx));
        let hint = cx.scratch.join(format!("{}.change", cx.key));
        let (zone, kind) = (ep.zone.clone(), kind.to_owned());
        let intent = Intent { endpoint: input.endpoint, zone, kind, address, expect, want, comment, nothing, hint };
        Ok(Prepared { intent, change: changes, notes })
    }

    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
        if intent.nothing {
            return Ok(output(intent, None));
        }
        let dns = cx.world()?.dns_mut(intent.endpoint.as_str())?;
        let change = match dns.replace(&intent.zone, &intent.expect, &intent.want, &intent.comment).await {
            Ok(change) => change,
            Err(PortError::Conflict { found }) => {
                if standing(&*dns, intent).await? == intent.want {
                    return Ok(output(intent, None));
                }
                return Err(ApplyError::Definite(
                    Failure::new("conflict", format!("{} was changed by someone else: {found}", name(intent)))
                        .remedy("look at the record, then retry the step: it reads it again"),
                ));
            }
            Err(e) => return Err(e.into()),
        };
        spread::keep(&intent.hint, &Spread::new(change.0.clone(), cx.read.world.clock().now())).await;
        Ok(output(intent, Some(change.0)))
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<Output> {
        let mut kept = spread::load(&intent.hint).await;
        if !kept.as_ref().is_some_and(|s| s.standing) {
            let there = match cx.world.dns(intent.endpoint.as_str()) {
                Ok(dns) => standing(&*dns, intent).await,
                Err(e) => Err(e),
            };
            match there {
                Err(e) => return cannot_tell(&e),
                Ok(there) if there == intent.want => {}
                Ok(there) if there == intent.expect => return Seen::Absent,
                Ok(there) => return Seen::Differs { found: show_sets(&there) },
            }
        }
        if let Some(spread) = &mut kept {
            spread.standing = true;
            synchronised(cx, intent, spread).await;
        }
        let want = [intent.address];
        let old_ttl = Duration::from_secs(intent.expect.iter().map(|set| u64::from(set.record.ttl_s)).max().unwrap_or(0));
        let waiting = Waiting { endpoint: &intent.endpoint, want: &want, old_ttl, hint: &intent.hint };
        match spread::settle(cx, &waiting, kept).await {
            Seen::Done(spread) => Seen::Done(Output { address: intent.address.to_string(), spread }),
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
        let dns = cx.world()?.dns_mut(intent.endpoint.as_str())?;
        if standing(&*dns, intent).await? == intent.expect {
            return Ok(());
        }
        let comment = format!("{} undone", intent.comment);
        dns.replace(&intent.zone, &intent.want, &intent.expect, &comment).await?;
        Ok(())
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

fn name(intent: &Intent) -> &str {
    intent.want.first().map_or("?", |set| set.record.name.as_str())
}

async fn standing(dns: &(impl DnsRead + ?Sized), intent: &Intent) -> PortResult<Vec<RoutedSet>> {
    dns.sets(&intent.zone, name(intent), &intent.kind).await
}

fn output(intent: &Intent, change: Option<String>) -> Output {
    Output { address: intent.address.to_string(), spread: Settled { change, ..Settled::default() } }
}

/// Asks, now and then, whether every authoritative server has the change.
async fn synchronised(cx: &ReadCx, intent: &Intent, spread: &mut Spread) {
    let clock = cx.world.clock();
    if !spread.asks(clock.now()) {
        return;
    }
    let asked = match cx.world.dns(intent.endpoint.as_str()) {
        Ok(dns) => dns.in_sync(&ChangeId(spread.change.clone())).await,
        Err(e) => Err(e),
    };
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
