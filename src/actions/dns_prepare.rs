//! `dns.prepare`: set an endpoint up so that it can fail over without the control plane of DNS.
//!
//! **What it does.** Where the estate gives the endpoint a `standby`, it makes the health check that looks for the switch
//! (see [`super::standby`]), waits until the checkers have found that the switch is off, and then replaces the name's
//! records, whatever they are, by a PRIMARY that hangs on this check and a SECONDARY: one batch, carried out only
//! if they stand as `prepare` found them. The order matters: a new inverted check counts as ill until there is enough
//! data, and would move the traffic. Nothing is prepared whose switch the health checkers could not see: an
//! object beside it is written for good, and asked for as they ask, without a key.
//!
//! **Half-done** it is with a check that nothing hangs on. The check is made with a reference that is derived from run
//! and step, so that the next attempt finds it again.
//!
//! **Undone** it is by the records of before, exactly, in one batch; then the check and the object are deleted if this
//! step made them.

use super::{contract::*, shared::*, standby, standby::Switch};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use crate::providers::port::*;
use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// One with a `standby` in the estate.
    pub endpoint: EndpointName,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    endpoint: EndpointName,
    zone: String,
    kind: String,
    /// The records as they were found, all of them.
    expect: Vec<RoutedSet>,
    /// What the check is made with, and found by.
    reference: String,
    spec: HealthSpec,
    /// A check that is right already and is kept.
    kept: Option<String>,
    /// The object beside the switch was there before.
    probed: bool,
    nothing: bool,
    comment: String,
    hint: PathBuf,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    /// The region whose record answers while the switch is off.
    pub primary: RegionName,
    /// The region that takes over, and owns the switch.
    pub standby: RegionName,
    /// The provider's identifier of the health check.
    pub health_check: String,
    /// Where the health checkers look for the switch.
    pub switch: String,
    /// The provider's identifier of the change; `null` when nothing was to be changed or it is not known any more.
    pub change: Option<String>,
}

/// How often it is asked what the checkers found.
const POLL: Duration = Duration::from_secs(1);
/// How much of the step's time is left for the records.
const RECORDS: Duration = Duration::from_secs(10);

pub struct Prepare;

impl Action for Prepare {
    type Input = Input;
    type Intent = Intent;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "dns.prepare",
            version: 1,
            summary: "Set up health check and failover records, so that an endpoint can fail over without the control plane of DNS",
            effect: Effect::Repeatable,
            danger: Danger::Reversible,
            undo: UndoPolicy::Automatic,
            timeout: Span::from_secs(600),
            example: "id: prepare\nuses: dns.prepare\nwith: { endpoint: inference }\n",
        }
    }
    fn reach(with: &Node, estate: &Estate) -> Vec<Reach> {
        let standby = text(with, "endpoint").and_then(|name| estate.endpoints.get(name)).and_then(|e| e.standby.as_ref());
        let there = standby.map(|s| Reach { place: Place::Region(s.region.clone()), plane: Plane::Data });
        reach_dns(with, "endpoint", estate).into_iter().chain(there).collect()
    }
    fn locks(with: &Node) -> Vec<Resource> {
        locks(with, "endpoint", "endpoint")
    }

    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Intent>, Refusal> {
        let ep = endpoint(cx, &input.endpoint)?;
        let switch = standby::switch(cx, &input.endpoint)?;
        let kind = record_kind(target(ep, &switch.primary)?);
        let dns = cx.world.dns(input.endpoint.as_str())?;
        let expect = dns.sets(&ep.zone, &ep.name, kind).await?;
        let probed = standby::read(cx, &switch.bucket, &switch.region, &switch.probe_key()).await?.is_some();
        let on = standby::read(cx, &switch.bucket, &switch.region, &switch.key).await?.is_some();
        stays(ep, &switch, &expect, on)?;
        let hanging = expect.iter().find(|set| set.routing == Routing::Primary).and_then(|set| set.health.clone());
        let known = match &hanging {
            Some(id) => dns.health_check(id).await?,
            None => None,
        };
        let kept = known.filter(|check| check.spec.as_ref() == Some(&switch.spec)).map(|check| check.id);
        let want = standby::wanted(ep, &switch, &expect, kind, kept.as_deref());
        let nothing = kept.is_some() && want == expect;
        let reference = format!("muster-{}", cx.key.get(..48).unwrap_or(&cx.key));
        let mut changes = Vec::new();
        if kept.is_none() {
            changes.push(change("health check", None, Some(format!("inverted, on {}", switch.url))));
        }
        if !nothing {
            changes.push(change(format!("{} {kind}", ep.name), Some(show_sets(&expect)), Some(show_sets(&want))));
        }
        if !probed {
            changes.push(change("object", None, Some(format!("{} beside the switch", switch.probe_key()))));
        }
        let notes = if nothing { vec![format!("{} is prepared already", ep.name)] } else { Vec::new() };
        let comment = format!("muster {} {} {}", cx.run, cx.step, short_key(cx));
        let hint = cx.scratch.join(format!("{}.change", cx.key));
        let (zone, spec) = (ep.zone.clone(), switch.spec);
        let intent = Intent { endpoint: input.endpoint, zone, kind: kind.to_owned(), expect, reference, spec, kept, probed, nothing, comment, hint };
        Ok(Prepared { intent, change: changes, notes })
    }

    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
        let ep = endpoint(cx, &intent.endpoint).map_err(definite)?;
        let switch = standby::switch(cx, &intent.endpoint).map_err(definite)?;
        put_probe(cx, &switch).await?;
        if let Err(why) = standby::visible(cx, &switch).await {
            let text = format!("the health checkers of Route 53 could not see the switch: {why}");
            return Err(ApplyError::Definite(Failure::new("switch_not_visible", text).remedy(standby::remedy(&switch))));
        }
        let check = checked(cx, intent).await?;
        settled(cx, intent, &check).await?;
        let mut change = None;
        if !intent.nothing {
            let want = standby::wanted(ep, &switch, &intent.expect, &intent.kind, Some(&check));
            change = replace(cx, intent, &want).await?;
        }
        if let Some(change) = &change {
            let _ = tokio::fs::write(&intent.hint, change).await;
        }
        Ok(output(&switch, check, change))
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<Output> {
        let (Ok(ep), Ok(switch)) = (endpoint(cx, &intent.endpoint), standby::switch(cx, &intent.endpoint)) else {
            return Seen::CannotTell { why: format!("the estate has no endpoint `{}` with a standby", intent.endpoint) };
        };
        let look = async {
            let dns = cx.world.dns(intent.endpoint.as_str())?;
            let there = dns.sets(&intent.zone, &ep.name, &intent.kind).await?;
            let check = match standby::hangs_on(ep, &switch, &there, &intent.kind) {
                Some(id) => dns.health_check(&id).await?,
                None => None,
            };
            let right = check.filter(|check| check.spec.as_ref() == Some(&intent.spec));
            let probed = standby::read(cx, &switch.bucket, &switch.region, &switch.probe_key()).await?.is_some();
            Ok::<_, PortError>((there, right.filter(|_| probed)))
        };
        match look.await {
            Err(e) => cannot_tell(&e),
            Ok((_, Some(check))) => in_sync(cx, intent, &switch, check.id).await,
            Ok((there, None)) if there == intent.expect => Seen::Absent,
            Ok((there, None)) => Seen::Differs { found: show_sets(&there) },
        }
    }

    async fn undo(cx: &WriteCx, intent: &Intent, _output: Option<Output>) -> Result<(), ApplyError> {
        let ep = endpoint(cx, &intent.endpoint).map_err(definite)?;
        let switch = standby::switch(cx, &intent.endpoint).map_err(definite)?;
        let dns = cx.world()?.dns_mut(intent.endpoint.as_str())?;
        let there = dns.sets(&intent.zone, &ep.name, &intent.kind).await?;
        if there != intent.expect {
            let ours = standby::wanted(ep, &switch, &intent.expect, &intent.kind, standby::hangs_on(ep, &switch, &there, &intent.kind).as_deref());
            if there != ours {
                return Err(fail("conflict", format!("the records of {} were changed by somebody else: {}", ep.name, show_sets(&there))));
            }
            dns.replace(&intent.zone, &ours, &intent.expect, &format!("{} undone", intent.comment)).await?;
        }
        if intent.kept.is_none()
            && let Some(check) = dns.health_check_of(&intent.reference).await?
        {
            dns.delete_health_check(&check.id).await?;
        }
        if !intent.probed {
            let objects = cx.world()?.objects_mut(switch.bucket.as_str(), switch.region.as_str())?;
            objects.delete(&switch.probe_key()).await?;
        }
        Ok(())
    }
}

/// Preparing must not move anybody.
fn stays(ep: &crate::model::estate::Endpoint, switch: &Switch, there: &[RoutedSet], on: bool) -> Result<(), Refusal> {
    let serving = standby::serving(ep, there);
    // Behind failover records the switch decides already.
    let paired = there.iter().any(|set| set.routing == Routing::Primary);
    let will = if on && !paired { &switch.region } else { &switch.primary };
    // Where there is nothing, nobody is moved.
    if there.is_empty() || serving == [will.clone()] {
        return Ok(());
    }
    let names: Vec<&str> = serving.iter().map(RegionName::as_str).collect();
    let text = format!("{} is answered by {}; prepared, it would be by {will}", ep.name, if names.is_empty() { "no region of the estate".to_owned() } else { names.join(", ") });
    Err(Refusal::no("would_move", text).remedy(format!("move its traffic to `{}` first, or write the other region as `standby.region`", switch.primary)))
}

/// Written once, and there for good.
async fn put_probe(cx: &WriteCx, switch: &Switch) -> Result<(), ApplyError> {
    let objects = cx.world()?.objects_mut(switch.bucket.as_str(), switch.region.as_str())?;
    if objects.head(&switch.probe_key()).await?.is_some() {
        return Ok(());
    }
    let body = Bytes::from_static(b"This object shows that everybody can see the switch beside it. Leave it here.\n");
    match objects.put(&switch.probe_key(), body, &BTreeMap::new(), true).await {
        Ok(_) | Err(PortError::Conflict { .. }) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// The check, made unless it is there.
async fn checked(cx: &WriteCx, intent: &Intent) -> Result<String, ApplyError> {
    if let Some(kept) = &intent.kept {
        return Ok(kept.clone());
    }
    let dns = cx.world()?.dns_mut(intent.endpoint.as_str())?;
    let made = dns.create_health_check(&intent.reference, &intent.spec).await?;
    if made.spec.as_ref() == Some(&intent.spec) {
        return Ok(made.id);
    }
    // What asks something else, or is not inverted, would move the traffic the moment it hangs on the record.
    dns.delete_health_check(&made.id).await?;
    Err(fail("check_differs", format!("the provider made another health check than it was asked for: {:?} instead of {:?}; it is deleted again", made.spec, intent.spec)))
}

/// Waits until the checkers have found that the switch is off: an inverted check counts as ill until then.
async fn settled(cx: &WriteCx, intent: &Intent, check: &str) -> Result<(), ApplyError> {
    if intent.nothing {
        return Ok(());
    }
    let (clock, dns) = (cx.read.world.clock(), cx.read.world.dns(intent.endpoint.as_str())?);
    let begun = clock.monotonic();
    let passed = || clock.monotonic().saturating_sub(begun);
    // Where nobody tells, the time in which they must have found it.
    let blind = Duration::from_secs(u64::from(intent.spec.every_s) * u64::from(intent.spec.looks + 2));
    let limit = cx.deadline.saturating_sub(RECORDS);
    loop {
        let seen = dns.health_seen(check).await?;
        match seen {
            Some(HealthSeen { good: 0, bad }) if bad > 0 => return Ok(()),
            None if passed() >= blind => return Ok(()),
            _ => {}
        }
        if passed() + POLL >= limit {
            let why = match seen {
                Some(HealthSeen { good, bad }) => format!("{good} of its checkers find the switch, {bad} do not"),
                None => "nobody tells what its checkers find".to_owned(),
            };
            let failure = Failure::new("check_not_settled", format!("health check {check} has not settled after {} s: {why}; the records are as they were", passed().as_secs()));
            return Err(ApplyError::Definite(failure.remedy("retry the step, with a longer `timeout` if its checkers look seldom")));
        }
        clock.sleep(POLL).await;
    }
}

async fn replace(cx: &WriteCx, intent: &Intent, want: &[RoutedSet]) -> Result<Option<String>, ApplyError> {
    let dns = cx.world()?.dns_mut(intent.endpoint.as_str())?;
    match dns.replace(&intent.zone, &intent.expect, want, &intent.comment).await {
        Ok(change) => Ok(Some(change.0)),
        Err(PortError::Conflict { found }) => {
            let name = want.first().map_or("the name", |set| set.record.name.as_str());
            let kind = intent.kind.as_str();
            // Sent before, and heard.
            if dns.sets(&intent.zone, name, kind).await? == want {
                return Ok(None);
            }
            let failure = Failure::new("conflict", format!("the records of {name} were changed by someone else: {found}"));
            Err(ApplyError::Definite(failure.remedy("look at the records, then retry the step: it reads them again")))
        }
        Err(e) => Err(e.into()),
    }
}

async fn in_sync(cx: &ReadCx, intent: &Intent, switch: &Switch, check: String) -> Seen<Output> {
    let change = tokio::fs::read_to_string(&intent.hint).await.ok();
    if let Some(id) = &change {
        let asked = async { cx.world.dns(intent.endpoint.as_str())?.in_sync(&ChangeId(id.clone())).await };
        match asked.await {
            Ok(true) => {}
            Ok(false) => return pending(500, format!("change {id} is not in sync yet")),
            Err(e) => return cannot_tell(&e),
        }
    }
    Seen::Done(output(switch, check, change))
}

fn output(switch: &Switch, health_check: String, change: Option<String>) -> Output {
    Output { primary: switch.primary.clone(), standby: switch.region.clone(), health_check, switch: switch.url.to_string(), change }
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    super::contract_tests::Fixture::new(serde_json::json!({ "endpoint": "steady" })).set(tests::unprepared)
}

#[cfg(test)]
#[path = "dns_prepare_tests.rs"]
mod tests;
