//! `dns.standby_takes_over`: move an endpoint's traffic without the control plane of DNS.
//!
//! **What it does.** It writes the switch into the bucket of the standby region, or deletes it to give the traffic back
//! (see [`super::standby`]; `dns.prepare` sets it up). That is one request to the data plane of S3 in the region that
//! takes over. Route 53's health checkers, which ask for the object all the time, do the rest.
//!
//! **Half-done** it is while the health checkers have not seen it, and while resolvers still answer from their caches. The
//! step is done when the zone's authoritative servers answer with the new address, and every resolver of the endpoint;
//! those that keep the old answer beyond its TTL are named in `late`. Whether it happened is seen in the bucket.
//!
//! **Undone** it is by the switch as it was, body and all.

use super::{
    authority,
    contract::*,
    proof::FenceProof,
    propagation::Spread,
    shared::*,
    spread::{self, Settled, Waiting},
    standby,
};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use crate::providers::port::*;
use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::{IpAddr, SocketAddr}, path::PathBuf, time::Duration};

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// One with a `standby` in the estate that `dns.prepare` has set up.
    pub endpoint: EndpointName,
    /// The region that shall answer under the name: the standby, or to give the traffic back the other one.
    pub to: RegionName,
    /// A fence proof; with it, sending traffic to the very region that is fenced is refused.
    #[serde(default)]
    pub proof: Option<FenceProof>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    endpoint: EndpointName,
    address: IpAddr,
    bucket: BucketName,
    region: RegionName,
    key: String,
    /// The switch's body as it was found.
    was: Option<String>,
    /// As it shall be.
    want: Option<String>,
    /// It is so already.
    nothing: bool,
    /// What the record's caches may still hold.
    old_ttl_s: u32,
    authority: Vec<SocketAddr>,
    hint: PathBuf,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    pub address: String,
    /// Is the switch on: does the standby answer?
    pub on: bool,
    #[serde(flatten)]
    pub spread: Settled,
}

pub struct TakesOver;

impl Action for TakesOver {
    type Input = Input;
    type Intent = Intent;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "dns.standby_takes_over",
            version: 1,
            summary: "Move an endpoint's traffic by a switch in the standby region, without the control plane of DNS",
            effect: Effect::Repeatable,
            danger: Danger::Reversible,
            undo: UndoPolicy::Automatic,
            timeout: Span::from_secs(300),
            example: "id: traffic\nuses: dns.standby_takes_over\nwith: { endpoint: inference, to: west }\n",
        }
    }
    fn reach(with: &Node, estate: &Estate) -> Vec<Reach> {
        let standby = text(with, "endpoint").and_then(|name| estate.endpoints.get(name)).and_then(|e| e.standby.as_ref());
        let there = standby.map(|s| Reach { place: Place::Region(s.region.clone()), plane: Plane::Data });
        there.into_iter().chain([Reach { place: Place::Global, plane: Plane::Data }]).collect()
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
        let switch = standby::switch(cx, &input.endpoint)?;
        let on = input.to == switch.region;
        let was = standby::read(cx, &switch.bucket, &switch.region, &switch.key).await?;
        let mut notes = Vec::new();
        let authority = authority::servers(cx, ep).await.unwrap_or_else(|e| {
            notes.push(format!("the authoritative servers of {} are not known, and are not asked: {e}", ep.name));
            Vec::new()
        });
        let nothing = was.is_some() == on;
        if nothing {
            notes.push(format!("the switch is {} already: {}", if on { "on" } else { "off" }, switch.told()));
        }
        // In an emergency it is tried all the same; that it stays without effect would be seen.
        if let Err(why) = standby::visible(cx, &switch).await {
            notes.push(format!("the health checkers may not see the switch: {why}; {}", standby::remedy(&switch)));
        }
        let old_ttl_s = authority::agreed(cx, ep).await.map_or(ttl_s(ep), |answer| answer.ttl_s);
        let said = |there: bool| Some(if there { "on" } else { "off" }.to_owned());
        let changes = if nothing { Vec::new() } else { vec![change(format!("switch {}", switch.told()), said(!on), said(on))] };
        let body = format!("{}\n", serde_json::json!({ "endpoint": input.endpoint, "to": input.to, "run": cx.run, "key": cx.key }));
        let want = if nothing { was.clone() } else { on.then_some(body) };
        let hint = cx.scratch.join(format!("{}.change", cx.key));
        let (bucket, region, key) = (switch.bucket, switch.region, switch.key);
        let intent = Intent { endpoint: input.endpoint, address, bucket, region, key, was, want, nothing, old_ttl_s, authority, hint };
        Ok(Prepared { intent, change: changes, notes })
    }

    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
        if !intent.nothing {
            let objects = cx.world()?.objects_mut(intent.bucket.as_str(), intent.region.as_str())?;
            set(&*objects, intent, intent.want.as_deref()).await?;
            spread::keep(&intent.hint, &Spread::new(format!("{} in {}", intent.key, intent.bucket), cx.read.world.clock().now())).await;
        }
        Ok(output(intent, Settled::default()))
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<Output> {
        let kept = spread::load(&intent.hint).await;
        if !kept.as_ref().is_some_and(|s| s.standing) {
            match standby::read(cx, &intent.bucket, &intent.region, &intent.key).await {
                Err(e) => return cannot_tell(&e),
                // Whoever wrote it: what counts is whether it is there.
                Ok(there) if there.is_some() != intent.want.is_some() => return Seen::Absent,
                Ok(_) => {}
            }
        }
        // Without the hint nobody knows when it was set; the servers are asked all the same.
        let known = kept.is_some();
        let mut spread = kept.unwrap_or_else(|| Spread::new(String::new(), cx.world.clock().now()));
        spread.standing = true;
        answered(cx, intent, &mut spread).await;
        if !known && spread.in_sync.is_none() && spread.untold.is_none() {
            return pending(200, "the authoritative servers still answer with the old address");
        }
        let want = [intent.address];
        // A record's old answer may lie in caches from the moment before the servers changed their mind.
        let waiting =
            Waiting { endpoint: &intent.endpoint, want: &want, old_ttl: Duration::from_secs(intent.old_ttl_s.into()), hint: &intent.hint };
        match spread::settle(cx, &waiting, known.then_some(spread)).await {
            Seen::Done(settled) => Seen::Done(output(intent, settled)),
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
        let there = standby::read(cx, &intent.bucket, &intent.region, &intent.key).await?;
        if there == intent.was {
            return Ok(());
        }
        if there != intent.want {
            return Err(fail("conflict", format!("the switch {} was set by somebody else meanwhile", intent.key)));
        }
        let objects = cx.world()?.objects_mut(intent.bucket.as_str(), intent.region.as_str())?;
        set(&*objects, intent, intent.was.as_deref()).await
    }
}

/// Writes the switch where none is, or deletes it.
async fn set(objects: &(dyn ObjectWrite + '_), intent: &Intent, body: Option<&str>) -> Result<(), ApplyError> {
    let Some(body) = body else { return Ok(objects.delete(&intent.key).await?) };
    match objects.put(&intent.key, Bytes::copy_from_slice(body.as_bytes()), &BTreeMap::new(), true).await {
        // It is on, by whomever.
        Ok(_) | Err(PortError::Conflict { .. }) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Asks the authoritative servers themselves, now and then, until all that answer have the new address.
async fn answered(cx: &ReadCx, intent: &Intent, spread: &mut Spread) {
    let clock = cx.world.clock();
    let Ok(ep) = endpoint(cx, &intent.endpoint) else { return };
    if !spread.asks(clock.now()) {
        return;
    }
    spread.asked = Some(clock.now());
    let (mut moved, mut behind, mut silent) = (0, 0, String::from("no authoritative server is known"));
    for (server, answer) in authority::answers(cx, ep, &intent.authority).await {
        match answer {
            Ok(answer) if answer.addresses == [intent.address] => moved += 1,
            Ok(_) => behind += 1,
            Err(e) => silent = format!("{server}: {e}"),
        }
    }
    spread.in_sync = (moved > 0 && behind == 0).then(|| clock.now());
    spread.untold = (moved + behind == 0).then_some(silent);
}

fn output(intent: &Intent, spread: Settled) -> Output {
    Output { address: intent.address.to_string(), on: intent.want.is_some(), spread }
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    super::contract_tests::Fixture::new(serde_json::json!({ "endpoint": "steady", "to": "west" }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::contract_tests::{Bench, Fixture};
    use serde_json::json;

    fn to(region: &str) -> Fixture {
        Fixture::new(json!({ "endpoint": "steady", "to": region }))
    }

    #[tokio::test]
    async fn one_object_moves_the_traffic_and_no_control_plane_is_asked() {
        let bench = Bench::new(&fixture()).down("east");
        let before = bench.world.lock().changes.clone();
        let out = bench.run::<TakesOver>().await.expect("taken over");
        assert_eq!((out.address.as_str(), out.on), ("127.0.0.3", true));
        assert!(out.spread.in_sync_ms.is_some_and(|ms| ms >= 300), "the checkers take 300 ms to see it: {out:?}");
        let after = bench.world.lock().changes.clone();
        assert_eq!((after, bench.world.writes()), (before, 1));
    }

    #[tokio::test]
    async fn it_is_given_back_and_undone_as_it_was() {
        let bench = Bench::new(&fixture());
        let intent = bench.intent::<TakesOver>().await;
        bench.run::<TakesOver>().await.expect("taken over");
        let key = ("models".to_owned(), "west".to_owned(), ".muster/switch/steady".to_owned());
        let switched = bench.world.lock().objects.get(&key).expect("the switch").body.clone();
        let mut back = bench;
        back.with = crate::model::node::Node::typed(to("east").with);
        let home = back.intent::<TakesOver>().await;
        assert_eq!(back.run::<TakesOver>().await.expect("given back").address, "127.0.0.2");
        assert!(!back.world.lock().objects.contains_key(&key));
        TakesOver::undo(&back.write, &home, None).await.expect("undone");
        assert_eq!(back.world.lock().objects.get(&key).expect("the switch").body, switched, "body and all");
        TakesOver::undo(&back.write, &intent, None).await.expect("undone");
        assert!(!back.world.lock().objects.contains_key(&key));
    }

    #[tokio::test]
    async fn what_has_no_standby_or_is_there_already_is_told() {
        let bench = Bench::new(&Fixture::new(json!({ "endpoint": "inference", "to": "west" })));
        assert_eq!(bench.refused::<TakesOver>().await, "no_standby");
        let bench = Bench::new(&to("east"));
        assert!(!bench.run::<TakesOver>().await.expect("nothing to do").on);
        assert_eq!(bench.world.writes(), 0);
    }
}
