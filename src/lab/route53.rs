//! The Route 53-shaped API: AWS's REST and XML in front of the zone that [`super::dns`] serves. A change is
//! `PENDING`, and not answered yet, until the delay that the lab is set to has passed; then it is `INSYNC`.
//! It is a process of its own: killed, it leaves the servers and the health checkers at work.

use super::{
    checker::{Served, health_file, served_file},
    error::{LabError, LabResult},
    health::{self, Check},
    plan::{LabPlan, ZONE, ZONE_ID, read_json, write_json},
    web,
    xml::{self, Element, tag, wrap},
    zone::{Change, Record, Verb, Zone, plain},
};
use crate::providers::clock::Clock;
use axum::{
    Router,
    extract::{Path as UrlPath, Query, Request, State},
    http::StatusCode,
    middleware::{self, Next},
    response::Response,
    routing::{get, post},
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

const NAMESPACE: &str = "https://route53.amazonaws.com/doc/2013-04-01/";

/// What is kept on disk.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Kept {
    pub zone: Zone,
    #[serde(default)]
    pub checks: BTreeMap<String, Check>,
    /// Accepted changes: identifier, when, comment.
    #[serde(default)]
    pub changes: BTreeMap<String, (jiff::Timestamp, String)>,
}

struct Live {
    kept: Kept,
    /// What the servers answer with.
    served: Zone,
    /// How many changes had been accepted when that was the zone.
    served_at: usize,
    in_sync: BTreeMap<String, bool>,
}

pub struct Route53 {
    plan: Arc<LabPlan>,
    clock: Arc<dyn Clock>,
    file: PathBuf,
    access_key: SecretString,
    live: Mutex<Live>,
}

impl Route53 {
    /// # Errors
    /// When the zone's record cannot be read.
    pub fn open(plan: Arc<LabPlan>, clock: Arc<dyn Clock>) -> LabResult<Arc<Self>> {
        let file = plan.dir(super::plan::OUTSIDE).join("zone.json");
        let kept: Kept = read_json(&file)?;
        let in_sync = kept.changes.keys().map(|id| (id.clone(), true)).collect();
        let live = Live { served: kept.zone.clone(), served_at: 0, kept, in_sync };
        let access_key = plan.secret("access_key_id")?;
        let api = Self { plan, clock, file, access_key, live: Mutex::new(live) };
        api.with(|live| api.publish(live))?;
        Ok(Arc::new(api))
    }

    /// Hands over to the servers and the health checkers what they answer with and ask for.
    fn publish(&self, live: &Live) -> LabResult<()> {
        write_json(&served_file(&self.plan), &Served { zone: live.served.clone(), checks: live.kept.checks.clone() })
    }

    fn with<T>(&self, look: impl FnOnce(&mut Live) -> T) -> T {
        look(&mut self.live.lock().unwrap_or_else(PoisonError::into_inner))
    }

    #[must_use]
    pub fn clock(&self) -> Arc<dyn Clock> {
        self.clock.clone()
    }

    /// A check, and whether its checker found an answer good, if it has found out.
    #[must_use]
    pub fn check(&self, id: &str) -> Option<(Check, Option<bool>)> {
        let found: BTreeMap<String, bool> = read_json(&health_file(&self.plan)).unwrap_or_default();
        self.with(|live| Some((live.kept.checks.get(id)?.clone(), found.get(id).copied())))
    }
    #[must_use]
    pub fn checks(&self) -> BTreeMap<String, Check> {
        self.with(|live| live.kept.checks.clone())
    }
    /// Adds a check, or gives back the one of the same caller reference; removes it when `None`.
    /// # Errors
    /// When it cannot be kept.
    pub fn keep_check(&self, id: &str, check: Option<Check>) -> LabResult<bool> {
        self.with(|live| {
            let mut next = live.kept.clone();
            let known = match check {
                Some(check) => next.checks.insert(id.to_owned(), check).is_some(),
                None => next.checks.remove(id).is_some(),
            };
            write_json(&self.file, &next)?;
            live.kept = next;
            self.publish(live)?;
            Ok(known)
        })
    }
    #[must_use]
    pub fn check_of(&self, reference: &str) -> Option<(String, Check)> {
        self.with(|live| live.kept.checks.iter().find(|(_, c)| c.reference == reference).map(|(id, c)| (id.clone(), c.clone())))
    }

    /// Accepts the whole batch or none of it.
    fn change(self: &Arc<Self>, changes: &[Change], comment: &str) -> Result<String, Vec<String>> {
        let id = format!("C{}", self.clock.new_id().replace('-', "").to_uppercase());
        let (number, next) = self.with(|live| {
            let unknown = changes.iter().filter(|c| c.verb != Verb::Delete).filter_map(|c| c.record.health.as_ref());
            let unknown: Vec<String> =
                unknown.filter(|h| !live.kept.checks.contains_key(*h)).map(|h| format!("no health check {h}")).collect();
            if !unknown.is_empty() {
                return Err(unknown);
            }
            let mut kept = live.kept.clone();
            kept.zone = kept.zone.change(changes)?;
            kept.changes.insert(id.clone(), (self.clock.now(), comment.to_owned()));
            write_json(&self.file, &kept).map_err(|e| vec![e.to_string()])?;
            live.kept = kept;
            live.in_sync.insert(id.clone(), false);
            Ok((live.in_sync.len(), live.kept.zone.clone()))
        })?;
        let (api, change) = (self.clone(), id.clone());
        let delay = Duration::from_millis(self.plan.knobs().dns_delay_ms);
        tokio::spawn(async move {
            api.clock.sleep(delay).await;
            api.with(|live| {
                // A later change, which holds this one too, may have been faster.
                if number > live.served_at {
                    (live.served, live.served_at) = (next, number);
                    if let Err(error) = api.publish(live) {
                        tracing::error!(%error, "the servers were not told");
                        return;
                    }
                }
                live.in_sync.insert(change, true);
            });
        });
        Ok(id)
    }
}

/// Serves until the process is killed.
/// # Errors
/// When its port is not to be had.
pub async fn serve(api: Arc<Route53>, at: SocketAddr) -> Result<(), LabError> {
    let zones = Router::new()
        .route("/hostedzone", get(list_zones))
        .route("/hostedzonesbyname", get(list_zones_by_name))
        .route("/hostedzone/{zone}", get(get_zone))
        .route("/hostedzone/{zone}/rrset", get(list_records).post(change_records))
        .route("/hostedzone/{zone}/rrset/", post(change_records))
        .route("/change/{id}", get(get_change))
        .merge(health::routes());
    let checked = zones.layer(middleware::from_fn_with_state(api.clone(), check_key));
    web::serve(at, Router::new().nest("/2013-04-01", checked).with_state(api)).await
}

/// The process that is the control plane, until it is killed.
/// # Errors
/// When a file or port is not to be had.
pub async fn serve_api(plan: Arc<LabPlan>, clock: Arc<dyn Clock>) -> Result<(), LabError> {
    let at = plan.outside.at(plan.outside.route53);
    serve(Route53::open(plan, clock)?, at).await
}

async fn check_key(State(api): State<Arc<Route53>>, request: Request, next: Next) -> Response {
    if web::names_key(request.headers(), api.access_key.expose_secret()) {
        return next.run(request).await;
    }
    refuse(StatusCode::FORBIDDEN, "InvalidClientTokenId", "The security token included in the request is invalid.")
}

#[must_use]
pub fn refuse(status: StatusCode, code: &str, message: &str) -> Response {
    let error = wrap("Error", &(tag("Type", "Sender") + &tag("Code", code) + &tag("Message", message)));
    web::xml(status, &format!("<ErrorResponse xmlns=\"{NAMESPACE}\">{error}{}</ErrorResponse>", tag("RequestId", "lab")))
}

#[must_use]
pub fn answer(status: StatusCode, name: &str, inner: &str) -> Response {
    web::xml(status, &format!("<{name} xmlns=\"{NAMESPACE}\">{inner}</{name}>"))
}

fn zone_xml(live: &Live) -> String {
    wrap(
        "HostedZone",
        &(tag("Id", format!("/hostedzone/{ZONE_ID}"))
            + &tag("Name", format!("{ZONE}."))
            + &tag("CallerReference", "lab")
            + &wrap("Config", &tag("PrivateZone", false))
            + &tag("ResourceRecordSetCount", live.kept.zone.records.len())),
    )
}

fn no_zone(id: &str) -> Response {
    refuse(StatusCode::NOT_FOUND, "NoSuchHostedZone", &format!("No hosted zone found with ID: {id}"))
}

async fn list_zones(State(api): State<Arc<Route53>>) -> Response {
    let zones = wrap("HostedZones", &api.with(|live| zone_xml(live)));
    answer(StatusCode::OK, "ListHostedZonesResponse", &(zones + &tag("Marker", "") + &tag("IsTruncated", false) + &tag("MaxItems", 100)))
}

async fn list_zones_by_name(State(api): State<Arc<Route53>>, Query(query): Query<BTreeMap<String, String>>) -> Response {
    let from = query.get("dnsname").map(|name| plain(name));
    let found = from.is_none_or(|from| reversed(ZONE) >= reversed(&from));
    let zones = if found { api.with(|live| zone_xml(live)) } else { String::new() };
    let zones = wrap("HostedZones", &zones);
    answer(StatusCode::OK, "ListHostedZonesByNameResponse", &(zones + &tag("IsTruncated", false) + &tag("MaxItems", 100)))
}

/// Route 53 lists in the order of the labels from the right.
fn reversed(name: &str) -> Vec<&str> {
    name.split('.').rev().collect()
}

async fn get_zone(State(api): State<Arc<Route53>>, UrlPath(zone): UrlPath<String>) -> Response {
    if zone != ZONE_ID {
        return no_zone(&zone);
    }
    let servers = wrap("DelegationSet", &wrap("NameServers", &tag("NameServer", format!("ns.{ZONE}"))));
    answer(StatusCode::OK, "GetHostedZoneResponse", &(api.with(|live| zone_xml(live)) + &servers))
}

async fn get_change(State(api): State<Arc<Route53>>, UrlPath(id): UrlPath<String>) -> Response {
    let info = api.with(|live| {
        let (at, comment) = live.kept.changes.get(&id)?;
        Some(change_xml(&id, live.in_sync.get(&id).copied().unwrap_or(false), *at, comment))
    });
    match info {
        Some(info) => answer(StatusCode::OK, "GetChangeResponse", &info),
        None => refuse(StatusCode::NOT_FOUND, "NoSuchChange", &format!("A change with id {id} was not found")),
    }
}

fn change_xml(id: &str, in_sync: bool, at: jiff::Timestamp, comment: &str) -> String {
    let status = if in_sync { "INSYNC" } else { "PENDING" };
    let inner = tag("Id", format!("/change/{id}")) + &tag("Status", status) + &tag("SubmittedAt", at) + &tag("Comment", comment);
    wrap("ChangeInfo", &inner)
}

async fn list_records(
    State(api): State<Arc<Route53>>,
    UrlPath(zone): UrlPath<String>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Response {
    if zone != ZONE_ID {
        return no_zone(&zone);
    }
    let most: usize = query.get("maxitems").and_then(|n| n.parse().ok()).unwrap_or(300).clamp(1, 300);
    let name = query.get("name").map(|n| plain(n)).unwrap_or_default();
    let kind = query.get("type").cloned().unwrap_or_default();
    let set = query.get("identifier").cloned().unwrap_or_default();
    let mut all = api.with(|live| live.kept.zone.records.clone());
    let from = (reversed(&name), kind.as_str(), set.as_str());
    let mut kept: Vec<Record> = Vec::new();
    all.sort_by(|a, b| place(a).cmp(&place(b)));
    kept.extend(all.into_iter().filter(|r| name.is_empty() || place(r) >= from));
    let next = (kept.len() > most).then(|| kept.get(most).cloned()).flatten();
    kept.truncate(most);
    let records = wrap("ResourceRecordSets", &kept.iter().map(record_xml).collect::<String>());
    let mut inner = records + &tag("IsTruncated", next.is_some()) + &tag("MaxItems", most);
    if let Some(next) = next {
        inner += &(tag("NextRecordName", format!("{}.", next.name)) + &tag("NextRecordType", &next.kind));
        inner += &next.set.map(|set| tag("NextRecordIdentifier", set)).unwrap_or_default();
    }
    answer(StatusCode::OK, "ListResourceRecordSetsResponse", &inner)
}

fn place(record: &Record) -> (Vec<&str>, &str, &str) {
    (reversed(&record.name), record.kind.as_str(), record.set.as_deref().unwrap_or_default())
}

fn record_xml(r: &Record) -> String {
    let optional = |name: &str, value: Option<String>| value.map(|v| tag(name, v)).unwrap_or_default();
    let values: String = r.values.iter().map(|v| wrap("ResourceRecord", &tag("Value", v))).collect();
    wrap(
        "ResourceRecordSet",
        &(tag("Name", format!("{}.", r.name))
            + &tag("Type", &r.kind)
            + &optional("SetIdentifier", r.set.clone())
            + &optional("Weight", r.weight.map(|w| w.to_string()))
            + &optional("Failover", r.failover.clone())
            + &tag("TTL", r.ttl)
            + &wrap("ResourceRecords", &values)
            + &optional("HealthCheckId", r.health.clone())),
    )
}

async fn change_records(State(api): State<Arc<Route53>>, UrlPath(zone): UrlPath<String>, body: String) -> Response {
    if zone != ZONE_ID {
        return no_zone(&zone);
    }
    let invalid = |message: &str| refuse(StatusCode::BAD_REQUEST, "InvalidInput", message);
    let request = match xml::parse(&body) {
        Ok(request) => request,
        Err(cause) => return invalid(&format!("the request is not XML: {cause}")),
    };
    let Some(batch) = request.child("ChangeBatch") else { return invalid("no ChangeBatch in the request") };
    let listed: Vec<&Element> = batch.child("Changes").map(|c| c.all("Change").collect()).unwrap_or_default();
    let changes: Result<Vec<Change>, String> = listed.into_iter().map(change_of).collect();
    let changes = match changes {
        Ok(changes) if !changes.is_empty() && changes.len() <= 1_000 => changes,
        Ok(_) => return invalid("a batch holds from 1 to 1000 changes"),
        Err(cause) => return invalid(&cause),
    };
    let comment = batch.value("Comment").unwrap_or_default();
    match api.change(&changes, &comment) {
        Ok(id) => answer(StatusCode::OK, "ChangeResourceRecordSetsResponse", &change_xml(&id, false, api.clock.now(), &comment)),
        Err(faults) => refuse(StatusCode::BAD_REQUEST, "InvalidChangeBatch", &format!("[{}]", faults.join(", "))),
    }
}

fn change_of(change: &Element) -> Result<Change, String> {
    let verb = match change.value("Action").as_deref() {
        Some("CREATE") => Verb::Create,
        Some("DELETE") => Verb::Delete,
        Some("UPSERT") => Verb::Upsert,
        other => return Err(format!("the action {} is none of CREATE, DELETE, UPSERT", other.unwrap_or("(none)"))),
    };
    let set = change.child("ResourceRecordSet").ok_or("no ResourceRecordSet in the change")?;
    let number = |name: &str| set.value(name).map(|v| v.parse::<u32>().map_err(|_| format!("{name} is not a number"))).transpose();
    let values = set.child("ResourceRecords").map(|r| r.all("ResourceRecord").filter_map(|v| v.value("Value")).collect());
    let record = Record {
        name: plain(&set.value("Name").ok_or("no Name in the record")?),
        kind: set.value("Type").ok_or("no Type in the record")?,
        ttl: number("TTL")?.ok_or("no TTL in the record")?,
        values: values.unwrap_or_default(),
        set: set.value("SetIdentifier"),
        weight: number("Weight")?,
        failover: set.value("Failover"),
        health: set.value("HealthCheckId"),
    };
    Ok(Change { verb, record })
}
