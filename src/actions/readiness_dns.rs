//! What `readiness.check` asks of an endpoint's DNS: do its records stand as the estate says, does the zone answer with
//! one voice, would an answer outlive the objective, and is what a failover hangs on really there?
//!
//! It is asked in one of two ways: the provider's records, or, where the provider's control plane may be what is
//! lost, the zone's servers and the switch alone.

use super::{
    authority,
    contract::ReadCx,
    readiness_check::{Finding, finding},
    shared::*,
    standby,
};
use crate::model::{estate::Endpoint, ids::*, time::Span};
use crate::providers::port::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whom the state of DNS is asked of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dns {
    /// The provider's records and health checks, and the zone's servers.
    #[default]
    Records,
    /// The zone's servers alone: no control plane is asked.
    Answers,
}

pub(super) async fn look(cx: &ReadCx, how: Dns, name: &EndpointName, ep: &Endpoint) -> Vec<Finding> {
    let mut all = Vec::new();
    let mut weighted = false;
    if how == Dns::Records {
        let kind = ep.targets.values().next().map_or("A", |ip| record_kind(*ip));
        let held = held(cx, name, ep, kind).await;
        weighted = held.iter().any(|(_, found)| found.iter().flatten().any(|set| matches!(set.routing, Routing::Weighted { .. })));
        for (at, found) in held {
            match found {
                Err(e) => all.push(finding(format!("endpoint/{name} record{at}"), "unknown", false, e.to_string())),
                Ok(sets) => {
                    let named = |found: Finding| Finding { what: format!("{}{at}", found.what), ..found };
                    all.extend(records(cx, name, ep, &sets, kind).into_iter().map(named));
                    if ep.standby.is_some() {
                        all.push(prepared(cx, name, ep, &sets, kind).await);
                    }
                }
            }
        }
    } else if ep.standby.is_some() {
        all.push(visible(cx, name).await);
    }
    all.extend(servers(cx, how, name, ep, weighted).await);
    all
}

/// What each server has that holds the zone for itself, and how a finding names it.
async fn held(cx: &ReadCx, name: &EndpointName, ep: &Endpoint, kind: &str) -> Vec<(String, PortResult<Vec<RoutedSet>>)> {
    let holders = match cx.world.holders(name.as_str()) {
        Ok(holders) => holders,
        Err(e) => return vec![(String::new(), Err(e))],
    };
    let asked = holders.iter().map(|holder| async move {
        let at = if holder.server.is_empty() { String::new() } else { format!(" at {}", holder.server) };
        let question = holder.dns.sets(&ep.zone, &ep.name, kind);
        // In a failover nobody waits long for what is lost.
        let lost = holder.region.is_some() && holder.region == cx.lost;
        (at, if lost { within(cx, super::holders::SPARE, question).await } else { question.await })
    });
    futures::future::join_all(asked).await
}

/// Against the estate: addresses, TTL, and the check without which a failover record fails over to nothing.
fn records(cx: &ReadCx, name: &EndpointName, ep: &Endpoint, sets: &[RoutedSet], kind: &str) -> Vec<Finding> {
    let what = format!("endpoint/{name} record");
    if sets.is_empty() {
        return vec![finding(what, "missing", false, format!("{} has no {kind} record", ep.name))];
    }
    let known = |value: &String| ep.targets.values().any(|target| target.to_string() == *value);
    let strange = sets.iter().flat_map(|set| &set.record.values).find(|value| !known(value));
    let mut all = vec![match strange {
        Some(value) => finding(what, "strange", false, format!("{} -> {value}, which is no target of the estate", ep.name)),
        None => finding(what, "expected", true, format!("{} -> {}", ep.name, show_sets(sets))),
    }];
    all.extend(ttl(cx, name, ep, sets.iter().map(|set| set.record.ttl_s).max().unwrap_or(0)));
    let unchecked = |set: &&RoutedSet| set.health.is_none() && !set.alias.as_ref().is_some_and(|alias| alias.evaluate);
    if let Some(set) = sets.iter().filter(|set| set.routing == Routing::Primary).find(unchecked) {
        let detail = format!("no health check hangs on {set}: it answers whatever becomes of its region");
        all.push(finding(format!("endpoint/{name} health check"), "none", false, detail));
    }
    all
}

/// A TTL that is longer than was agreed, or than the time in which the service must be back.
fn ttl(cx: &ReadCx, name: &EndpointName, ep: &Endpoint, found_s: u32) -> Option<Finding> {
    let what = format!("endpoint/{name} ttl");
    if found_s > ttl_s(ep) {
        return Some(finding(what, "longer", false, format!("its records may be kept for {found_s} s; the estate says {} s", ttl_s(ep))));
    }
    let services = cx.estate.services.iter().filter(|(_, service)| service.uses.iter().any(|used| used == name.as_str()));
    let (service, rto) = services.filter_map(|(service, s)| Some((service, s.objectives.rto?))).min_by_key(|(_, rto)| *rto)?;
    let long = Span::from_secs(found_s.into()).ms > rto.ms / 2;
    let detail = format!("clients may keep the old answer for {found_s} s, more than half of the {rto} in which `{service}` must be back");
    long.then(|| finding(what, "too_long", false, detail))
}

/// Is the failover through the data plane set up: records, check, what its checkers find, and can they see the switch?
async fn prepared(cx: &ReadCx, name: &EndpointName, ep: &Endpoint, sets: &[RoutedSet], kind: &str) -> Finding {
    let what = format!("endpoint/{name} switch");
    let no = |state: &str, detail: String| finding(what.clone(), state, false, format!("{detail}; run `dns.prepare`"));
    let switch = match standby::switch(cx, name) {
        Ok(switch) => switch,
        Err(refusal) => return finding(what, "unknown", false, refusal.failure.to_string()),
    };
    let Some(check) = standby::hangs_on(ep, &switch, sets, kind) else {
        return no("not_prepared", format!("the records are {}, not the pair that a switch moves", show_sets(sets)));
    };
    let asked = async {
        let dns = cx.world.dns(name.as_str())?;
        let on = standby::read(cx, &switch.bucket, &switch.region, &switch.key).await?.is_some();
        Ok::<_, PortError>((dns.health_check(&check).await?, dns.health_seen(&check).await?, on))
    };
    let (found, seen, on) = match asked.await {
        Ok(asked) => asked,
        Err(e) => return finding(what, "unknown", false, e.to_string()),
    };
    if found.is_none_or(|found| found.spec.as_ref() != Some(&switch.spec)) {
        return no("not_prepared", format!("health check {check} does not look for {}", switch.url));
    }
    let told = if on { "on" } else { "off" };
    // While it changes its mind, some find this and some that.
    if let Some(HealthSeen { good, bad }) = seen
        && if on { good == 0 && bad > 0 } else { good > 0 }
    {
        let detail = format!("the switch is {told}; {good} health checkers find it, {bad} do not");
        return finding(what, "not_seen", false, detail);
    }
    match standby::visible(cx, &switch).await {
        Ok(()) => finding(what, "prepared", true, format!("{told}; health check {check} looks for {}", switch.url)),
        Err(why) => finding(what, "not_visible", false, format!("{why}; {}", standby::remedy(&switch))),
    }
}

/// What can be told of the switch without a control plane: it is where the health checkers can see it.
async fn visible(cx: &ReadCx, name: &EndpointName) -> Finding {
    let what = format!("endpoint/{name} switch");
    let switch = match standby::switch(cx, name) {
        Ok(switch) => switch,
        Err(refusal) => return finding(what, "unknown", false, refusal.failure.to_string()),
    };
    match standby::visible(cx, &switch).await {
        Ok(()) => finding(what, "visible", true, format!("{} can be seen; its health check is not asked for here", switch.url)),
        Err(why) => finding(what, "not_visible", false, format!("{why}; {}", standby::remedy(&switch))),
    }
}

/// Do the zone's servers answer with one voice, and with a target of the estate?
async fn servers(cx: &ReadCx, how: Dns, name: &EndpointName, ep: &Endpoint, weighted: bool) -> Vec<Finding> {
    let what = format!("endpoint/{name} servers");
    // Weighted records are drawn anew for each question.
    if weighted {
        return Vec::new();
    }
    if let Err(e) = authority::servers(cx, ep).await {
        return vec![finding(what, "unknown", how == Dns::Records, e.to_string())];
    }
    match authority::agreed(cx, ep).await {
        Err(why) if ep.update.as_ref().is_some_and(|update| !update.servers.is_empty()) => {
            // One of them was left out of a failover, and is back with the old answer.
            let remedy = "if one of them was away in a failover, `dns.shift` to where the traffic is brings it in line";
            vec![finding(what, "disagree", false, format!("{why}; {remedy}"))]
        }
        Err(why) => vec![finding(what, "disagree", false, why)],
        Ok(answer) => {
            let known = answer.addresses.iter().all(|ip| ep.targets.values().any(|target| target == ip));
            let shown = authority::show(&answer);
            let mut all = vec![finding(what, if known { "agree" } else { "strange" }, known, shown)];
            if how == Dns::Answers {
                all.extend(ttl(cx, name, ep, answer.ttl_s));
            }
            all
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::contract_tests::{Bench, Fixture};
    use crate::actions::readiness_check::Readiness;
    use serde_json::json;

    fn west(dns: &str) -> Fixture {
        Fixture::new(json!({ "region": "west", "services": ["scoring"], "dns": dns }))
    }

    async fn findings(bench: &Bench, name: &str) -> Vec<Finding> {
        let ep = bench.read.estate.endpoints[&EndpointName::from(name)].clone();
        look(&bench.read, Dns::Records, &EndpointName::from(name), &ep).await
    }
    fn state(all: &[Finding], what: &str) -> Option<(String, bool)> {
        all.iter().find(|f| f.what.ends_with(what)).map(|f| (f.state.clone(), f.ok))
    }

    #[tokio::test]
    async fn a_prepared_switch_is_told_from_one_that_would_not_work() {
        let bench = Bench::new(&west("records"));
        assert_eq!(state(&findings(&bench, "steady").await, "switch"), Some(("prepared".into(), true)));
        bench.world.lock().checks.get_mut("prepared").expect("the check").inverted = false;
        assert_eq!(state(&findings(&bench, "steady").await, "switch"), Some(("not_prepared".into(), false)));
        bench.world.lock().checks.get_mut("prepared").expect("the check").inverted = true;
        bench.world.lock().objects.retain(|(_, _, key), _| key != ".muster/switch/steady.probe");
        assert_eq!(state(&findings(&bench, "steady").await, "switch"), Some(("not_visible".into(), false)));
        for set in bench.world.lock().routed.values_mut().flatten() {
            set.health = None;
        }
        let all = findings(&bench, "steady").await;
        assert_eq!(state(&all, "switch"), Some(("not_prepared".into(), false)));
        assert_eq!(state(&all, "health check"), Some(("none".into(), false)));
    }

    #[tokio::test]
    async fn a_longer_ttl_and_a_strange_address_are_told_before_the_event() {
        let bench = Bench::new(&west("records"));
        assert_eq!(state(&findings(&bench, "inference").await, "ttl"), None);
        for record in bench.world.lock().records.values_mut() {
            record.ttl_s = 60;
            record.values = vec!["127.0.0.9".into()];
        }
        let all = findings(&bench, "inference").await;
        assert_eq!(state(&all, "ttl"), Some(("longer".into(), false)));
        assert_eq!(state(&all, "record"), Some(("strange".into(), false)));
    }

    #[tokio::test]
    async fn without_the_control_plane_the_servers_are_asked() {
        let bench = Bench::new(&west("answers"));
        bench.world.lock().records.clear();
        let out = bench.run::<Readiness>().await.expect("the servers still answer");
        assert_eq!(state(&out.findings, "servers"), Some(("agree".into(), true)));
        assert_eq!(state(&out.findings, "record"), None);
    }
}
