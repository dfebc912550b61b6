//! What is wrong with an estate that could be read: names that lead nowhere, and a lab that is none.

use super::{
    diagnostic::{Diagnostic, suggest},
    parse::Source,
};
use crate::model::{
    estate::{DnsProvider, Endpoint, Estate},
    ids::RegionName,
    node::{Node, NodeValue, Pos},
};
use url::Host;

pub(super) fn check(source: &Source, root: &Node, estate: &Estate, found: &mut Vec<Diagnostic>) {
    let mut lint = Lint { source, root, estate, found };
    lint.services();
    lint.databases();
    lint.buckets();
    lint.endpoints();
    lint.repositories();
    lint.notices();
    super::lint_people::check_people(source, root, estate, lint.found);
    if estate.lab {
        lint.loopback();
    }
}

struct Lint<'a> {
    source: &'a Source,
    root: &'a Node,
    estate: &'a Estate,
    found: &'a mut Vec<Diagnostic>,
}

/// The place of a value along a path of keys, or of the innermost map on the way that exists.
pub(super) fn at(root: &Node, path: &[&str]) -> Pos {
    let mut node = root;
    for name in path {
        match node.get(name) {
            Some(inner) => node = inner,
            None => return node.pos,
        }
    }
    node.pos
}

impl<'a> Lint<'a> {
    /// The names in a section of the file, also of entries that could not be read: those have errors of
    /// their own, and who refers to them has none.
    fn names(&self, section: &str) -> Vec<&'a str> {
        match self.root.get(section).map(|node| &node.value) {
            Some(NodeValue::Map(entries)) => entries.iter().map(|(key, _)| key.name.as_str()).collect(),
            _ => Vec::new(),
        }
    }

    fn dangling(&mut self, pos: Pos, what: &str, name: &str, valid: Vec<&str>) {
        let made = self.source.error(pos, "dangling-reference", format!("the estate has no {what} `{name}`"));
        self.found.push(made.maybe_help(suggest(name, valid)));
    }

    fn region(&mut self, pos: Pos, region: &RegionName) {
        let valid = self.names("regions");
        if !valid.contains(&region.as_str()) {
            self.dangling(pos, "region", region.as_str(), valid);
        }
    }

    /// The regions that are keys of the map at a path.
    fn region_keys<'r>(&mut self, path: &[&str], regions: impl IntoIterator<Item = &'r RegionName>) {
        let mut node = self.root;
        for name in path {
            match node.get(name) {
                Some(inner) => node = inner,
                None => return,
            }
        }
        for region in regions {
            let pos = super::load::key(node, region.as_str()).map_or(node.pos, |key| key.pos);
            self.region(pos, region);
        }
    }

    fn services(&mut self) {
        let estate = self.estate;
        let valid: Vec<&str> =
            ["databases", "buckets", "endpoints", "repositories"].into_iter().flat_map(|section| self.names(section)).collect();
        for (name, service) in &estate.services {
            let uses = self.root.get("services").and_then(|all| all.get(name.as_str())).and_then(|one| one.get("uses"));
            for (index, used) in service.uses.iter().enumerate() {
                if !valid.contains(&used.as_str()) {
                    let pos = item_place(uses, index).unwrap_or(self.root.pos);
                    self.dangling(pos, "database, bucket, endpoint or repository", used, valid.clone());
                }
            }
        }
    }

    fn databases(&mut self) {
        let estate = self.estate;
        for (name, database) in &estate.databases {
            self.region_keys(&["databases", name.as_str(), "instances"], database.instances.keys());
            super::lint_postgres::check(self.source, self.root, name.as_str(), database, self.found);
            for (index, pooler) in database.poolers.iter().enumerate() {
                let list = self.root.get("databases").and_then(|all| all.get(name.as_str())).and_then(|one| one.get("poolers"));
                if let Some(region) = &pooler.region {
                    self.region(item_place(list, index).unwrap_or(self.root.pos), region);
                }
            }
        }
    }

    fn buckets(&mut self) {
        let estate = self.estate;
        for (name, regions) in &estate.buckets {
            self.region_keys(&["buckets", name.as_str()], regions.keys());
            for (region, bucket) in regions {
                let Some(to) = bucket.replicates_to.as_ref().filter(|to| *to == region || !regions.contains_key(*to)) else { continue };
                let pos = at(self.root, &["buckets", name.as_str(), region.as_str(), "replicates_to"]);
                let valid = regions.keys().filter(|other| *other != region).map(RegionName::as_str).collect();
                self.dangling(pos, &format!("other region of bucket `{name}` with the name"), to.as_str(), valid);
            }
        }
    }

    fn endpoints(&mut self) {
        let estate = self.estate;
        for (name, endpoint) in &estate.endpoints {
            self.region_keys(&["endpoints", name.as_str(), "targets"], endpoint.targets.keys());
            self.provider(name.as_str(), endpoint);
            super::lint_dns::check(self.source, self.root, self.estate, name, endpoint, self.found);
            let Some(golden) = &endpoint.golden else { continue };
            let valid = self.names("buckets");
            if !valid.contains(&golden.bucket.as_str()) {
                let pos = at(self.root, &["endpoints", name.as_str(), "golden", "bucket"]);
                self.dangling(pos, "bucket", golden.bucket.as_str(), valid);
            }
        }
    }

    /// Each provider has a way of its own to be reached, and the other's would be ignored in silence.
    fn provider(&mut self, name: &str, endpoint: &Endpoint) {
        let wrong = match (endpoint.provider, &endpoint.update, &endpoint.aws) {
            (DnsProvider::Rfc2136, None, _) => {
                Some(("provider", "`provider: rfc2136` needs `update: { server: HOST }`, the zone's primary server"))
            }
            (DnsProvider::Rfc2136, _, Some(_)) => Some(("aws", "`aws` is for `provider: route53`; this endpoint's provider is rfc2136")),
            (DnsProvider::Route53, Some(_), _) => {
                Some(("update", "`update` is for `provider: rfc2136`; this endpoint's provider is route53"))
            }
            _ => None,
        };
        if let Some((key, message)) = wrong {
            let pos = at(self.root, &["endpoints", name, key]);
            self.found.push(self.source.error(pos, "wrong-provider", message));
        }
        let Some(update) = &endpoint.update else { return };
        if let Some(region) = &update.region {
            self.region(at(self.root, &["endpoints", name, "update", "region"]), region);
        }
        let list =
            self.root.get("endpoints").and_then(|all| all.get(name)).and_then(|one| one.get("update")).and_then(|one| one.get("servers"));
        for (index, region) in update.servers.iter().enumerate().filter_map(|(index, one)| Some((index, one.region.as_ref()?))) {
            self.region(item_place(list, index).unwrap_or(self.root.pos), region);
        }
    }

    fn repositories(&mut self) {
        let estate = self.estate;
        for (name, repository) in &estate.repositories {
            if let Some(region) = &repository.region {
                self.region(at(self.root, &["repositories", name.as_str(), "region"]), region);
            }
        }
    }

    fn notices(&mut self) {
        let estate = self.estate;
        for (index, notify) in estate.notify.iter().enumerate() {
            let ways = [notify.webhook.is_some(), notify.webhook_from.is_some(), !notify.exec.is_empty()];
            if ways.into_iter().filter(|way| *way).count() != 1 {
                let pos = item_place(self.root.get("notify"), index).unwrap_or(self.root.pos);
                let message = "a notice goes by exactly one of `webhook`, `webhook_from` and `exec`";
                self.found.push(self.source.error(pos, "wrong-type", message));
            }
        }
    }

    /// A lab may be lost without harm, so nothing in it may lie elsewhere than on this machine.
    fn loopback(&mut self) {
        for (pos, address) in self.addresses() {
            let message = format!("the estate says `lab: true`, but `{address}` is not an address of this machine's loopback");
            let help = "use an address such as 127.0.0.1, or drop `lab: true`: then every run needs `--live`";
            self.found.push(self.source.error(pos, "lab-not-loopback", message).help(help));
        }
    }

    /// Every address in the estate that is not on loopback, with its place.
    fn addresses(&self) -> Vec<(Pos, String)> {
        let (root, mut out) = (self.root, Vec::new());
        for (name, region) in &self.estate.regions {
            let Some(aws) = &region.aws else { continue };
            let e = &aws.endpoints;
            for (word, url) in [("s3", &e.s3), ("rds", &e.rds), ("route53", &e.route53)] {
                if let Some(url) = url.as_ref().filter(|url| !is_local(url)) {
                    out.push((at(root, &["regions", name.as_str(), "aws", "endpoints", word]), url.to_string()));
                }
            }
        }
        for (name, endpoint) in &self.estate.endpoints {
            for (region, target) in endpoint.targets.iter().filter(|(_, target)| !target.is_loopback()) {
                out.push((at(root, &["endpoints", name.as_str(), "targets", region.as_str()]), target.to_string()));
            }
            for resolver in endpoint.resolvers.iter().filter(|resolver| !resolver.ip().is_loopback()) {
                out.push((at(root, &["endpoints", name.as_str(), "resolvers"]), resolver.to_string()));
            }
            for server in endpoint.update.iter().flat_map(crate::model::estate::DnsUpdate::authorities) {
                // An IPv6 address alone has colons and no port.
                let alone = server.parse::<std::net::Ipv6Addr>().is_ok();
                let host = server.rsplit_once(':').filter(|_| !alone && !server.ends_with(']')).map_or(server.as_str(), |(host, _)| host);
                if !is_local_host(host.trim_matches(['[', ']'])) {
                    out.push((at(root, &["endpoints", name.as_str(), "update"]), server.clone()));
                }
            }
            let urls = endpoint.aws.as_ref().map(|aws| [&aws.endpoints.s3, &aws.endpoints.rds, &aws.endpoints.route53]);
            for url in urls.into_iter().flatten().flatten().filter(|url| !is_local(url)) {
                out.push((at(root, &["endpoints", name.as_str(), "aws", "endpoints"]), url.to_string()));
            }
        }
        for (name, database) in &self.estate.databases {
            for (region, instance) in &database.instances {
                if let Some(host) = instance.host.as_ref().filter(|host| !is_local_host(host)) {
                    out.push((at(root, &["databases", name.as_str(), "instances", region.as_str(), "host"]), host.clone()));
                }
                if let Some(server) = instance.server.as_ref().filter(|server| !server.reach.is_empty()) {
                    let pos = at(root, &["databases", name.as_str(), "instances", region.as_str(), "server", "reach"]);
                    out.push((pos, server.reach.join(" ")));
                }
            }
            for (region, url) in
                database.instances.iter().flat_map(|(r, i)| i.patroni.iter().flat_map(move |p| p.urls.iter().map(move |u| (r, u))))
            {
                if !is_local(url) {
                    out.push((at(root, &["databases", name.as_str(), "instances", region.as_str(), "patroni"]), url.to_string()));
                }
            }
            for pooler in &database.poolers {
                let away = (!is_local_host(&pooler.host)).then(|| pooler.host.clone());
                let away = away.or_else(|| (!pooler.reach.is_empty()).then(|| pooler.reach.join(" ")));
                out.extend(away.map(|place| (at(root, &["databases", name.as_str(), "poolers"]), place)));
            }
            if let Some(lease) = database.lease.as_ref().filter(|lease| !is_local(&lease.url)) {
                out.push((at(root, &["databases", name.as_str(), "lease", "url"]), lease.url.to_string()));
            }
        }
        out
    }
}

fn is_local(url: &url::Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => url.scheme() == "file",
    }
}

fn is_local_host(host: &str) -> bool {
    host == "localhost" || host.starts_with('/') || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The place of a list's item.
pub(super) fn item_place(list: Option<&Node>, index: usize) -> Option<Pos> {
    match list.map(|list| &list.value) {
        Some(NodeValue::List(items)) => items.get(index).map(|item| item.pos),
        _ => list.map(|list| list.pos),
    }
}
