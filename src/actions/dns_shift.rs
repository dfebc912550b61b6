//! `dns.shift`: point an endpoint's name at another region.
//!
//! **What it does.** One atomic change at the DNS provider: the old record set is deleted and the new one
//! created in one batch, which the provider carries out only if the old one stands there exactly as
//! `prepare` found it. That is the fence where the effect lands: a second Muster, or a person, that
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
    propagation::{self, Answer, Late, Panel, Spread, Verdict},
    shared::*,
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
    expect: Option<RecordSet>,
    want: RecordSet,
    comment: String,
    /// It points there already.
    nothing: bool,
    /// Where the change's identifier is kept.
    hint: std::path::PathBuf,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    pub address: String,
    /// The provider's identifier of the change; `null` when nothing was to be changed or it is not known any more.
    pub change: Option<String>,
    /// The resolvers that answer with the new address; empty until they were asked.
    pub resolvers: Vec<String>,
    /// From the accepted change to the end of the waiting; `null` when that was not seen.
    pub waited_ms: Option<u64>,
    /// From the accepted change until every authoritative server was seen to have it; `null` when that was not seen.
    #[serde(default)]
    pub in_sync_ms: Option<u64>,
    /// How it spread over the endpoint's resolvers.
    #[serde(default)]
    pub panel: Panel,
    /// Servers that had not moved when all should have: they ignore the TTL, or do not answer.
    #[serde(default)]
    pub late: Vec<Late>,
}

/// A cache answers at once, or has the answer when it is asked the next time.
const RESOLVER: Duration = Duration::from_millis(300);
/// How often a resolver is asked: the times of the panel are as fine as this.
const STEP: Duration = Duration::from_millis(20);
/// How long one look at the resolvers may take.
const LOOK: Duration = Duration::from_millis(500);

pub struct Shift;

impl Action for Shift {
    type Input = Input;
    type Intent = Intent;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "dns.shift",
            version: 1,
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
        let kind = if address.is_ipv4() { "A" } else { "AAAA" };
        let expect = cx.world.dns(input.endpoint.as_str())?.record(&ep.zone, &ep.name, kind).await?;
        // Route 53 counts in seconds; less than one would mean "do not cache", which is not the same.
        let ttl_s = u32::try_from(ep.ttl.ms.div_ceil(1_000)).unwrap_or(u32::MAX);
        let want = RecordSet { name: ep.name.clone(), kind: kind.to_owned(), ttl_s, values: vec![address.to_string()] };
        let nothing = expect.as_ref().is_some_and(|r| r.values == want.values && r.ttl_s == want.ttl_s);
        let mut notes = Vec::new();
        if nothing {
            notes.push(format!("{} points to {address} already; nothing to change", ep.name));
        }
        let known: Vec<String> = ep.targets.values().map(ToString::to_string).collect();
        if let Some(strange) = expect.iter().flat_map(|r| &r.values).find(|v| !known.contains(v)) {
            notes.push(format!("{} points to {strange}, which is no target of the estate", ep.name));
        }
        let from = expect.as_ref().map(show);
        let changes = if nothing { Vec::new() } else { vec![change(format!("{} {kind}", ep.name), from, Some(show(&want)))] };
        let comment = format!("muster {} {} {}", cx.run, cx.step, short_key(cx));
        let hint = cx.scratch.join(format!("{}.change", cx.key));
        Ok(Prepared { intent: Intent { endpoint: input.endpoint, zone: ep.zone.clone(), expect, want, comment, nothing, hint }, change: changes, notes })
    }

    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
        if intent.nothing {
            return Ok(output(intent, None));
        }
        let dns = cx.world()?.dns_mut(intent.endpoint.as_str())?;
        let change = match dns.swap(&intent.zone, intent.expect.as_ref(), Some(&intent.want), &intent.comment).await {
            Ok(change) => change,
            Err(PortError::Conflict { found }) => {
                let there = dns.record(&intent.zone, &intent.want.name, &intent.want.kind).await?;
                if there.as_ref() == Some(&intent.want) {
                    return Ok(output(intent, None));
                }
                return Err(ApplyError::Definite(
                    Failure::new("conflict", format!("{} was changed by someone else: {found}", intent.want.name))
                        .remedy("look at the record, then retry the step: it reads it again"),
                ));
            }
            Err(e) => return Err(e.into()),
        };
        keep(intent, &Spread::new(change.0.clone(), cx.read.world.clock().now())).await;
        Ok(output(intent, Some(change.0)))
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<Output> {
        let mut spread = tokio::fs::read(&intent.hint).await.ok().and_then(|text| serde_json::from_slice::<Spread>(&text).ok());
        if !spread.as_ref().is_some_and(|s| s.standing) {
            let there = match cx.world.dns(intent.endpoint.as_str()) {
                Ok(dns) => dns.record(&intent.zone, &intent.want.name, &intent.want.kind).await,
                Err(e) => Err(e),
            };
            match there {
                Err(e) => return cannot_tell(&e),
                Ok(there) if there.as_ref() == Some(&intent.want) => {}
                Ok(there) if there == intent.expect => return Seen::Absent,
                Ok(there) => return Seen::Differs { found: there.as_ref().map_or_else(|| "no record".to_owned(), show) },
            }
        }
        if let Some(spread) = &mut spread {
            spread.standing = true;
            synchronised(cx, intent, spread).await;
        }
        answered(cx, intent, spread).await
    }

    async fn undo(cx: &WriteCx, intent: &Intent, _output: Option<Output>) -> Result<(), ApplyError> {
        if intent.nothing {
            return Ok(());
        }
        let dns = cx.world()?.dns_mut(intent.endpoint.as_str())?;
        let there = dns.record(&intent.zone, &intent.want.name, &intent.want.kind).await?;
        if there == intent.expect {
            return Ok(());
        }
        let comment = format!("{} undone", intent.comment);
        dns.swap(&intent.zone, Some(&intent.want), intent.expect.as_ref(), &comment).await?;
        Ok(())
    }
}

fn show(record: &RecordSet) -> String {
    format!("{} (ttl {} s)", record.values.join(", "), record.ttl_s)
}

fn output(intent: &Intent, change: Option<String>) -> Output {
    let address = intent.want.values.join(", ");
    Output { address, change, resolvers: Vec::new(), waited_ms: None, in_sync_ms: None, panel: Panel::default(), late: Vec::new() }
}

/// Only a hint: without it `observe` asks the record and the resolvers alone.
async fn keep(intent: &Intent, spread: &Spread) {
    if let Ok(text) = serde_json::to_vec(spread) {
        let _ = tokio::fs::write(&intent.hint, text).await;
    }
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

/// Asks each of these resolvers again and again, until it answers with what is wanted or the look is over; its last
/// answer and when it came. Each on its own: one that is silent must not make the others' times coarse.
async fn watch(cx: &ReadCx, ep: &Endpoint, want: &[IpAddr], wanted: impl Fn(&str) -> bool) -> Vec<Answer> {
    let clock = cx.world.clock();
    let until = clock.monotonic() + LOOK.min(cx.deadline);
    let each = resolvers(ep).filter(|(who, _)| wanted(who)).map(|(who, server)| {
        let clock = clock.clone();
        async move {
            loop {
                let found = ask(cx, ep, server, RESOLVER).await;
                let moved = found.as_deref().is_ok_and(|addresses| addresses == want);
                if moved || clock.monotonic() >= until {
                    return Answer { resolver: who, found, at: clock.now() };
                }
                clock.sleep(STEP).await;
            }
        }
    });
    futures::future::join_all(each).await
}

/// Every resolver must answer with the new address and no other; who has done so once is not asked again.
async fn answered(cx: &ReadCx, intent: &Intent, spread: Option<Spread>) -> Seen<Output> {
    let ep = match endpoint(cx, &intent.endpoint) {
        Ok(ep) => ep,
        Err(refusal) => return Seen::CannotTell { why: refusal.failure.message },
    };
    let want: Vec<IpAddr> = intent.want.values.iter().filter_map(|v| v.parse().ok()).collect();
    let old_ttl = intent.expect.as_ref().map_or(0, |r| u64::from(r.ttl_s));
    let known = spread.is_some();
    // Nobody knows when it was: then everybody is waited for, as long as the step may take.
    let begun = cx.world.clock().now();
    let mut spread = spread.unwrap_or_else(|| Spread { in_sync: Some(begun), ..Spread::new(String::new(), begun) });
    let panel = panel(ep);
    let open = watch(cx, ep, &want, |who| !spread.moved.contains_key(who)).await;
    let now = cx.world.clock().now();
    spread.look(&want, &open);
    if known {
        keep(intent, &spread).await;
    }
    match spread.judge(&panel, &open, Duration::from_secs(old_ttl), now) {
        Verdict::Wait { poll_after_ms, note } => pending(poll_after_ms, note),
        Verdict::Done { late } => {
            let seen = |at| known.then(|| propagation::millis(spread.at, at));
            Seen::Done(Output {
                address: intent.want.values.join(", "),
                change: known.then(|| spread.change.clone()),
                resolvers: spread.moved.keys().cloned().collect(),
                waited_ms: seen(now),
                in_sync_ms: spread.in_sync.and_then(seen),
                panel: if known { spread.panel(panel.len()) } else { Panel::default() },
                late,
            })
        }
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
        assert!(out.waited_ms.expect("seen") >= 5_300, "the old answer was cached for 5 s after 300 ms of sync");
        assert!(out.change.is_some());
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
        assert_eq!(bench.run::<Shift>().await.expect("nothing").change, None);
        assert_eq!(bench.world.writes(), 0);
    }
}
