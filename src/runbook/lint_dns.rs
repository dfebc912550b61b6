//! What is wrong with an endpoint of the estate before anything happens: a switch that could not work, servers of the zone
//! that are written twice or not at all, and a TTL that alone would use up the time in which a service must be back.

use super::{diagnostic::Diagnostic, lint_estate::at, parse::Source};
use crate::model::{
    estate::{DnsProvider, DnsUpdate, Endpoint, Estate, Standby},
    ids::EndpointName,
    node::Node,
};

pub(super) fn check(source: &Source, root: &Node, estate: &Estate, name: &EndpointName, endpoint: &Endpoint, found: &mut Vec<Diagnostic>) {
    if let Some(standby) = &endpoint.standby
        && let Some((key, message)) = wrong(estate, endpoint, standby)
    {
        let pos = at(root, &["endpoints", name.as_str(), "standby", key]);
        found.push(source.error(pos, "wrong-standby", message));
    }
    if let Some((key, message)) = endpoint.update.as_ref().and_then(unclear) {
        let pos = at(root, &["endpoints", name.as_str(), "update", key]);
        found.push(source.error(pos, "wrong-update", message));
    }
    let services = estate.services.iter().filter(|(_, service)| service.uses.iter().any(|used| used == name.as_str()));
    let shortest = services.filter_map(|(service, s)| Some((service, s.objectives.rto?))).min_by_key(|(_, rto)| *rto);
    if let Some((service, rto)) = shortest.filter(|(_, rto)| endpoint.ttl.ms > rto.ms / 2) {
        let message =
            format!("clients may keep an old answer for {}, more than half of the {rto} in which `{service}` must be back", endpoint.ttl);
        let made = source.error(at(root, &["endpoints", name.as_str(), "ttl"]), "ttl-too-long", message).warning();
        found.push(made.help("shorten the `ttl`, here and in the zone"));
    }
}

/// The key at which it is wrong, and why.
fn wrong(estate: &Estate, endpoint: &Endpoint, standby: &Standby) -> Option<(&'static str, String)> {
    if endpoint.provider != DnsProvider::Route53 {
        return Some(("region", "`standby` is for `provider: route53`: only there do health checks choose between records".to_owned()));
    }
    if !endpoint.targets.contains_key(&standby.region) || endpoint.targets.len() != 2 {
        let message = format!("failover records are a pair: the endpoint needs two targets, one of them in `{}`", standby.region);
        return Some(("region", message));
    }
    let Some(regions) = estate.buckets.get(&standby.bucket) else {
        return Some(("bucket", format!("the estate has no bucket `{}`", standby.bucket)));
    };
    if !regions.contains_key(&standby.region) {
        return Some(("bucket", format!("bucket `{}` has no place in `{}`, where the switch must lie", standby.bucket, standby.region)));
    }
    if !matches!(standby.every.ms, 10_000 | 30_000) {
        return Some(("every", format!("health checkers look every `10s` or every `30s`, not every `{}`", standby.every)));
    }
    if !(1..=10).contains(&standby.looks) {
        return Some(("looks", "`looks` is from 1 to 10".to_owned()));
    }
    let odd = standby.url.as_ref().filter(|url| !matches!(url.scheme(), "http" | "https"));
    odd.map(|url| ("url", format!("health checkers speak http and https, not {}", url.scheme())))
}

/// The key at which it is not clear who takes the zone's updates, and why.
fn unclear(update: &DnsUpdate) -> Option<(&'static str, String)> {
    let Some(first) = update.servers.first() else {
        let missing = update.server.is_none();
        return missing.then(|| ("server", "write `server: HOST`, the zone's primary server, or `servers`, if it has several".to_owned()));
    };
    if update.server.is_some() {
        return Some(("server", "`server` is for a zone with one primary server; with `servers`, it is one of them".to_owned()));
    }
    if let Some(key) =
        [("region", update.region.is_some()), ("secondaries", !update.secondaries.is_empty())].iter().find(|(_, there)| *there)
    {
        return Some((
            key.0,
            format!("with `servers`, `{}` is written at each of them: `{{ server: {}, {}: … }}`", key.0, first.server, key.0),
        ));
    }
    let twice =
        update.servers.iter().enumerate().find(|(index, one)| update.servers.iter().take(*index).any(|two| two.server == one.server));
    twice.map(|(_, one)| ("servers", format!("`{}` stands among the `servers` twice", one.server)))
}

#[cfg(test)]
mod tests {
    use crate::runbook::load::load_estate;

    fn found(standby: &str, rest: &str) -> Vec<(&'static str, String)> {
        let text = format!(
            "regions: {{ east: {{}}, west: {{}} }}\nservices: {{ s: {{ objectives: {{ rto: 60s }}, uses: [api] }} }}\nbuckets: {{ m: {{ west: {{ bucket: m }} }}, e: {{ east: {{ bucket: e }} }} }}\n\
             endpoints: {{ api: {{ name: a.test, provider: route53, zone: test, {rest}, standby: {{ {standby} }} }} }}\n"
        );
        let found = match load_estate("muster.yaml", text.as_bytes()) {
            Ok(loaded) => loaded.warnings,
            Err(found) => found,
        };
        found.into_iter().map(|one| (one.code, one.message)).collect()
    }

    #[test]
    fn a_switch_that_could_not_work_is_told() {
        let two = "ttl: 5s, targets: { east: 192.0.2.1, west: 192.0.2.2 }";
        assert_eq!(found("region: west, bucket: m", two), []);
        for (standby, says) in [
            ("region: west, bucket: x", "no bucket `x`"),
            ("region: west, bucket: e", "no place in `west`"),
            ("region: west, bucket: m, every: 20s", "every `10s` or every `30s`"),
            ("region: west, bucket: m, looks: 0", "from 1 to 10"),
            ("region: west, bucket: m, url: 'ftp://x/y'", "http and https"),
        ] {
            let all = found(standby, two);
            assert!(matches!(all.as_slice(), [("wrong-standby", why)] if why.contains(says)), "{standby}: {all:?}");
        }
        assert!(found("region: west, bucket: m", "ttl: 5s, targets: { west: 192.0.2.2 }")[0].1.contains("two targets"));
    }

    #[test]
    fn a_ttl_that_uses_up_the_objective_is_told() {
        let targets = "targets: { east: 192.0.2.1, west: 192.0.2.2 }";
        assert_eq!(found("region: west, bucket: m", &format!("ttl: 30s, {targets}")), []);
        let all = found("region: west, bucket: m", &format!("ttl: 31s, {targets}"));
        assert!(matches!(all.as_slice(), [("ttl-too-long", why)] if why.contains("half of the 1m")), "{all:?}");
    }

    fn of_update(update: &str) -> Vec<(&'static str, String)> {
        let text = format!(
            "regions: {{ east: {{}}, west: {{}} }}\nendpoints: {{ api: {{ name: a.test, provider: rfc2136, zone: test, ttl: 5s, targets: {{ east: 192.0.2.1 }}, update: {{ {update} }} }} }}\n"
        );
        let found = match load_estate("muster.yaml", text.as_bytes()) {
            Ok(loaded) => loaded.warnings,
            Err(found) => found,
        };
        found.into_iter().map(|one| (one.code, one.message)).collect()
    }

    #[test]
    fn who_takes_a_zones_updates_is_clear() {
        for good in ["server: ns1", "servers: [{ server: ns1, region: east, secondaries: [ns3] }, { server: ns2, region: west }]"] {
            assert_eq!(of_update(good), [], "{good}");
        }
        for (bad, code, says) in [
            ("secondaries: [ns1]", "wrong-update", "write `server: HOST`"),
            ("server: ns1, servers: [{ server: ns2 }]", "wrong-update", "one primary server"),
            ("servers: [{ server: ns1 }], region: east", "wrong-update", "`region` is written at each"),
            ("servers: [{ server: ns1 }], secondaries: [ns2]", "wrong-update", "`secondaries` is written at each"),
            ("servers: [{ server: ns1 }, { server: ns1 }]", "wrong-update", "twice"),
            ("servers: [{ server: ns1, region: north }]", "dangling-reference", "no region `north`"),
        ] {
            let all = of_update(bad);
            assert!(matches!(all.as_slice(), [(found, why)] if *found == code && why.contains(says)), "{bad}: {all:?}");
        }
    }
}
