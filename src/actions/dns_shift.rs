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
//! record and resolvers alone tell.
//!
//! **Undone** it is by the reverse change, under the same condition.

use super::{contract::*, proof::FenceProof, shared::*};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use crate::providers::port::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

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
    /// From the accepted change to the last resolver's answer; `null` when that was not seen.
    pub waited_ms: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct Hint {
    change: String,
    at: jiff::Timestamp,
}

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
    fn reach(_with: &Node, _estate: &Estate) -> Vec<Reach> {
        vec![Reach { place: Place::Global, plane: Plane::Control }, Reach { place: Place::Global, plane: Plane::Data }]
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
        let hint = Hint { change: change.0.clone(), at: cx.read.world.clock().now() };
        if let Ok(text) = serde_json::to_vec(&hint) {
            // Only a hint: without it `observe` asks the record and the resolvers alone.
            let _ = tokio::fs::write(&intent.hint, text).await;
        }
        Ok(output(intent, Some(change.0)))
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<Output> {
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
        let hint = tokio::fs::read(&intent.hint).await.ok().and_then(|text| serde_json::from_slice::<Hint>(&text).ok());
        if let Some(hint) = &hint {
            match cx.world.dns(intent.endpoint.as_str()) {
                Ok(dns) if dns.in_sync(&ChangeId(hint.change.clone())).await == Ok(false) => {
                    return pending(50, format!("change {} is not in sync yet", hint.change));
                }
                _ => {}
            }
        }
        answered(cx, intent, hint).await
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
    Output { address: intent.want.values.join(", "), change, resolvers: Vec::new(), waited_ms: None }
}

/// Every resolver must answer with the new address and no other.
async fn answered(cx: &ReadCx, intent: &Intent, hint: Option<Hint>) -> Seen<Output> {
    let ep = match endpoint(cx, &intent.endpoint) {
        Ok(ep) => ep,
        Err(refusal) => return Seen::CannotTell { why: refusal.failure.message },
    };
    let want: Vec<IpAddr> = intent.want.values.iter().filter_map(|v| v.parse().ok()).collect();
    let mut resolvers = Vec::new();
    for (who, answer) in resolve(cx, ep).await {
        match answer {
            Ok(addresses) if addresses == want => resolvers.push(who),
            Ok(addresses) => return pending(50, format!("resolver {who} still answers {addresses:?}")),
            Err(e) => return pending(100, format!("resolver {who}: {e}")),
        }
    }
    let now = cx.world.clock().now();
    let waited_ms = hint.as_ref().and_then(|h| u64::try_from(now.duration_since(h.at).as_millis()).ok());
    Seen::Done(Output { resolvers, waited_ms, ..output(intent, hint.map(|h| h.change)) })
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
