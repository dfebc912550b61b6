//! `readiness.check`: is what a failover to a region would need really there?
//!
//! It asks the region itself, and the DNS provider; the other regions only for a moment, because they may be
//! what is lost: a replica's lag counts up to its last contact with the primary, and is `null` if it is not
//! known. Everything that was looked at becomes a finding, good or bad. It changes nothing; if anything that
//! is needed is not there, it fails and names it.

use super::{
    contract::*,
    manifest, patroni, readiness_log,
    own_server::{RETRY_INTERVAL, SLOW_RETRY_MS, setting_ms},
    readiness_buckets::protected,
    readiness_dns::{self, Dns},
    replica::{judge_once, retry_note},
    shared::*,
    vault,
};
use crate::model::{effect::*, estate::{Database, DnsProvider, Endpoint, Engine, Estate}, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use crate::plan::proof::{PROOF_VALID, ProofState, Trial, proof_state};
use crate::providers::port::*;
use crate::repository::{names::Id, open::Repository, proof, snapshot::Snapshot};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// The region that a failover would go to.
    pub region: RegionName,
    /// Only what these services use; everything in the region when left out.
    #[serde(default)]
    pub services: Vec<ServiceName>,
    /// The largest lag of a replica that is still good.
    #[serde(default)]
    pub max_replica_lag: Option<Span>,
    /// The largest age of the latest snapshot and backup in the region that is still good.
    #[serde(default)]
    pub max_backup_age: Option<Span>,
    /// The largest age of the latest proof that a repository restores that is still good; what the estate says of the
    /// repository (`proof_valid`) when left out.
    #[serde(default)]
    pub max_proof_age: Option<Span>,
    /// These repositories are looked at: is their newest snapshot young enough, and is it proven that they restore? With
    /// `max_proof_age` alone those that the services use.
    #[serde(default)]
    pub repositories: Vec<RepositoryName>,
    /// The largest age of the newest log of a cluster whose base backups are in these repositories that is still good: an
    /// older one is a receiver or an archiver that stands still. Set it above `archive_timeout`.
    #[serde(default)]
    pub max_log_age: Option<Span>,
    /// Whom the state of DNS is asked of: `records` (the provider), or `answers` (the zone's servers alone, where the
    /// provider's control plane may be what is lost).
    #[serde(default)]
    pub dns: Dns,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// `database/predictions replica`.
    pub what: String,
    pub state: String,
    pub ok: bool,
    pub detail: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    pub ready: bool,
    pub findings: Vec<Finding>,
}

pub struct Readiness;

impl Action for Readiness {
    type Input = Input;
    type Intent = Input;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "readiness.check",
            version: 1,
            summary: "Check that what a failover to a region needs is there",
            effect: Effect::Read,
            danger: Danger::None,
            undo: UndoPolicy::None,
            timeout: Span::from_secs(60),
            example: "id: readiness\nuses: readiness.check\nwith: { region: west, max_replica_lag: 30s, max_backup_age: 24h }\n",
        }
    }
    fn reach(with: &Node, estate: &Estate) -> Vec<Reach> {
        let dns = if text(with, "dns") == Some("answers") { Plane::Data } else { Plane::Control };
        let region = [Plane::Control, Plane::Data].into_iter().filter_map(|plane| reach(with, "region", plane));
        region.chain(asks_dns(with, estate).then_some(Reach { place: Place::Global, plane: dns })).collect()
    }
    fn locks(_with: &Node) -> Vec<Resource> {
        Vec::new()
    }
    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Input>, Refusal> {
        if !cx.estate.regions.contains_key(&input.region) {
            return Err(Refusal::no("unknown_region", format!("the estate has no region `{}`", input.region)));
        }
        if let Some(service) = input.services.iter().find(|s| !cx.estate.services.contains_key(*s)) {
            return Err(Refusal::no("unknown_service", format!("the estate has no service `{service}`")));
        }
        input.repositories.iter().try_for_each(|name| vault::named(cx, name).map(drop))?;
        Ok(Prepared { intent: input, change: Vec::new(), notes: Vec::new() })
    }
    async fn apply(cx: &WriteCx, intent: &Input) -> Result<Output, ApplyError> {
        let findings = look(&cx.read, intent).await;
        if findings.is_empty() {
            return Err(fail("nothing_there", format!("the estate has nothing in region `{}` that could be checked", intent.region)));
        }
        let bad: Vec<String> = findings.iter().filter(|f| !f.ok).map(|f| format!("{}: {} ({})", f.what, f.state, f.detail)).collect();
        if bad.is_empty() {
            return Ok(Output { ready: true, findings });
        }
        Err(fail("not_ready", format!("region `{}` is not ready: {}", intent.region, bad.join("; "))))
    }
    async fn observe(_cx: &ReadCx, _intent: &Input) -> Seen<Output> {
        Seen::Absent
    }
    async fn undo(_cx: &WriteCx, _intent: &Input, _output: Option<Output>) -> Result<(), ApplyError> {
        Ok(())
    }
}

pub(super) fn finding(what: impl Into<String>, state: impl Into<String>, ok: bool, detail: impl Into<String>) -> Finding {
    Finding { what: what.into(), state: state.into(), ok, detail: detail.into() }
}

fn wanted(cx: &ReadCx, input: &Input, name: &str) -> bool {
    let used = |s: &ServiceName| cx.estate.services.get(s).is_some_and(|s| s.uses.iter().any(|u| u == name));
    input.services.is_empty() || input.services.iter().any(used)
}

async fn look(cx: &ReadCx, input: &Input) -> Vec<Finding> {
    let mut all = region(cx, input).await;
    // Opening a repository takes a moment, in which a failover waits: it is done where it was asked for.
    if !input.repositories.is_empty() || input.max_proof_age.is_some() {
        for name in chosen(cx, input) {
            all.extend(repository(cx, input, &name).await);
        }
    }
    all
}

/// What the region has of its own.
pub(crate) async fn region(cx: &ReadCx, input: &Input) -> Vec<Finding> {
    let mut all = Vec::new();
    for (name, database) in cx.estate.databases.iter().filter(|(n, _)| wanted(cx, input, n.as_str())) {
        if database.instances.contains_key(&input.region) {
            match database.engine {
                Engine::RdsPostgres => all.extend(instance(cx, input, name).await),
                Engine::Postgres => all.extend(own(cx, input, name, database).await),
            }
            all.extend(replica(cx, input, name).await);
        }
    }
    for (name, regions) in cx.estate.buckets.iter().filter(|(n, _)| wanted(cx, input, n.as_str())) {
        if regions.contains_key(&input.region) {
            for from in regions.keys().filter(|r| **r != input.region) {
                all.push(bucket(cx, input, name, from).await);
            }
            all.extend(protected(cx, input, name, regions).await);
        }
    }
    for (name, ep) in cx.estate.endpoints.iter().filter(|(n, _)| wanted(cx, input, n.as_str())) {
        if ep.targets.contains_key(&input.region) {
            all.extend(readiness_dns::look(cx, input.dns, name, ep).await);
        }
    }
    all
}

/// Is there an endpoint in the region whose records are Route 53's?
fn asks_dns(with: &Node, estate: &Estate) -> bool {
    let here = |ep: &Endpoint| text(with, "region").is_none_or(|region| ep.targets.contains_key(region));
    estate.endpoints.values().any(|ep| ep.provider == DnsProvider::Route53 && here(ep))
}

/// Those that are named, else those that the services use.
pub(crate) fn chosen(cx: &ReadCx, input: &Input) -> Vec<RepositoryName> {
    if !input.repositories.is_empty() {
        return input.repositories.clone();
    }
    cx.estate.repositories.keys().filter(|name| wanted(cx, input, name.as_str())).cloned().collect()
}

/// The age of a repository's newest snapshot, and whether it is proven that its snapshots restore.
pub(crate) async fn repository(cx: &ReadCx, input: &Input, name: &RepositoryName) -> Vec<Finding> {
    let (snapshot, proven) = (format!("repository/{name} snapshot"), format!("repository/{name} proof"));
    let loaded = async {
        let repository = vault::open(cx, name).await?;
        Ok::<_, Refusal>((repository.snapshots().await?.whole, trials(&repository).await?, repository))
    };
    match loaded.await {
        Err(refusal) => vec![finding(snapshot, "unknown", false, refusal.failure.message)],
        Ok((snapshots, trials, repository)) => {
            let newest = snapshots.last().map(|(_, snapshot)| snapshot.time);
            let mut fresh = age(cx, input, snapshot, newest);
            if newest.is_none() {
                "the repository has none".clone_into(&mut fresh.detail);
            }
            let valid = input.max_proof_age.or(cx.estate.repositories.get(name).and_then(|r| r.proof_valid)).unwrap_or(PROOF_VALID);
            let mut all = vec![fresh, judged(proven, input.max_proof_age, &snapshots, &trials, cx.world.clock().now(), valid)];
            all.extend(readiness_log::look(cx, name, &repository, &snapshots, (input.max_backup_age, input.max_log_age)).await);
            all
        }
    }
}

/// Whether it is proven that the repository restores, and nothing else of it.
pub(crate) async fn proven(cx: &ReadCx, name: &RepositoryName) -> Finding {
    let what = format!("repository/{name} proof");
    let loaded = async {
        let repository = vault::open(cx, name).await?;
        Ok::<_, Refusal>((repository.snapshots().await?.whole, trials(&repository).await?))
    };
    match loaded.await {
        Err(refusal) => finding(what, "unknown", false, refusal.failure.message),
        Ok((snapshots, trials)) => {
            let valid = cx.estate.repositories.get(name).and_then(|r| r.proof_valid).unwrap_or(PROOF_VALID);
            judged(what, None, &snapshots, &trials, cx.world.clock().now(), valid)
        }
    }
}

async fn trials(repository: &Repository) -> Result<Vec<(Id, Trial)>, Refusal> {
    let proofs = proof::load(repository).await?.whole;
    Ok(proofs.into_iter().map(|(_, p)| (p.snapshot, Trial { at: p.time, ok: p.ok, why: p.why })).collect())
}

/// Over the snapshots that are still there: the last try of any of them. That it failed is always bad, that it is old or
/// was never made only where an age was asked for.
fn judged(what: String, wanted: Option<Span>, snapshots: &[(Id, Snapshot)], trials: &[(Id, Trial)], now: jiff::Timestamp, valid: Span) -> Finding {
    let there = |id: &Id| snapshots.iter().any(|(snapshot, _)| snapshot == id);
    let tried: Vec<Trial> = trials.iter().filter(|(id, _)| there(id)).map(|(_, trial)| trial.clone()).collect();
    let state = proof_state(&tried, now, valid);
    let ok = match state {
        ProofState::Proven { .. } => true,
        ProofState::Failed { .. } => false,
        ProofState::Stale { .. } | ProofState::Never => wanted.is_none(),
    };
    finding(what, state.word(), ok, state.detail())
}

/// The instance as its control plane sees it, and the age of its latest snapshot.
async fn instance(cx: &ReadCx, input: &Input, name: &DatabaseName) -> Vec<Finding> {
    let what = format!("database/{name} instance");
    let id = match instance_id(cx, name, &input.region) {
        Ok(id) => id,
        Err(refusal) => return vec![finding(what, "unknown", false, refusal.failure.message)],
    };
    let asked = async {
        let instances = cx.world.instances(input.region.as_str())?;
        Ok::<_, PortError>((instances.instance(&id).await?, instances.snapshots_of(&id).await?))
    };
    match asked.await {
        Err(e) => vec![finding(what, "unknown", false, e.to_string())],
        Ok((None, _)) => vec![finding(what, "missing", false, format!("there is no instance `{id}`"))],
        Ok((Some(info), snapshots)) => {
            let latest = snapshots.iter().filter(|s| s.status == "available").filter_map(|s| s.created).max();
            let good = info.status == "available";
            vec![finding(what, info.status, good, id), age(cx, input, format!("database/{name} snapshot"), latest)]
        }
    }
}

/// What a promotion of a server of one's own would need: its machine, and that it takes notice of it at once.
async fn own(cx: &ReadCx, input: &Input, name: &DatabaseName, database: &Database) -> Vec<Finding> {
    let mut all = Vec::new();
    if database.instances.get(&input.region).is_some_and(|i| i.server.is_some()) {
        let what = format!("database/{name} machine");
        let looked = async { cx.world.machine(name.as_str(), input.region.as_str())?.look().await };
        all.push(match looked.await {
            Err(e) => finding(what, "unknown", false, e.to_string()),
            Ok(state) => finding(what, state.state.clone(), !state.dead(), format!("timeline {}, {} processes", state.timeline, state.processes.len())),
        });
    }
    if patroni::managed(cx, name, &input.region).is_some() {
        let (state, ok, detail) = patroni::health(cx, name, &input.region).await;
        all.push(finding(format!("database/{name} patroni"), state, ok, detail));
        return all;
    }
    let what = format!("database/{name} promotion");
    let asked = async { cx.world.cluster(name.as_str(), input.region.as_str())?.settings(&[RETRY_INTERVAL]).await };
    all.push(match asked.await {
        Err(e) => finding(what, "unknown", false, e.to_string()),
        Ok(settings) => {
            let value = settings.get(RETRY_INTERVAL).cloned().unwrap_or_default();
            let quick = setting_ms(&value).is_some_and(|ms| ms <= SLOW_RETRY_MS);
            let advice = if quick { "" } else { ": just after its primary is lost, a standby may take so long to notice a promotion that is not Muster's; set it to 50ms" };
            finding(what, if quick { "quick" } else { "slow" }, true, format!("{RETRY_INTERVAL} is {value}{advice}"))
        }
    });
    all
}

/// A missing or old backup is bad only where an age was asked for.
fn age(cx: &ReadCx, input: &Input, what: String, latest: Option<jiff::Timestamp>) -> Finding {
    let age = latest.map(|at| cx.world.clock().now().duration_since(at));
    let ok = input.max_backup_age.is_none_or(|max| age.is_some_and(|age| age <= max.signed()));
    match age {
        None => finding(what, "missing", ok, "there is none in this region"),
        Some(age) => finding(what, if ok { "fresh" } else { "old" }, ok, format!("{} s old", age.as_secs())),
    }
}

async fn replica(cx: &ReadCx, input: &Input, name: &DatabaseName) -> Vec<Finding> {
    let what = format!("database/{name} replica");
    let asked = async {
        let sql = cx.world.sql(name.as_str(), input.region.as_str())?;
        let state = sql.state().await?;
        // Without what it tells of replication, its state is still worth knowing.
        let told = if state.in_recovery { sql.replication().await.unwrap_or_default() } else { Replication::default() };
        Ok::<_, PortError>((state, told))
    };
    let (state, told) = match asked.await {
        Ok(asked) => asked,
        Err(e) => return vec![finding(what, "unknown", false, e.to_string())],
    };
    if !state.in_recovery {
        return vec![finding(what, "primary", true, "this region has the primary already")];
    }
    let primary = primary(cx, input, name).await;
    let judged = judge_once(&state, primary.as_ref(), &told);
    let lag = judged.lag_ms();
    let slow = input.max_replica_lag.is_some_and(|max| lag.is_none_or(|lag| lag > max.ms));
    // Of a lost primary nothing can be streamed; then what counts is how far the replica had come.
    let ok = !slow && (judged.word() == "streaming" || primary.is_none());
    let lag = lag.map_or_else(|| "not known".to_owned(), |ms| format!("{ms} ms"));
    let since = if primary.is_some() { "now" } else { "as of the last contact with the primary, which does not answer" };
    let why = judged.trouble().filter(|_| !ok).map(|(_, why, cure)| format!("; {why}; {cure}")).unwrap_or_default();
    let mut all = vec![finding(what, judged.word(), ok, format!("lag {lag} {since}{why}"))];
    // It slows a promotion down and does not prevent it.
    all.extend(retry_note(&told).map(|note| finding(format!("database/{name} promotion"), "may_wait", true, format!("{}; {}", note.detail, note.cure))));
    all
}

async fn primary(cx: &ReadCx, input: &Input, name: &DatabaseName) -> Option<ServerState> {
    for region in cx.estate.databases.get(name)?.instances.keys().filter(|r| **r != input.region) {
        let Ok(sql) = cx.world.sql(name.as_str(), region.as_str()) else { continue };
        if let Ok(state) = within(cx, Duration::from_millis(500), sql.state()).await
            && !state.in_recovery
        {
            return Some(state);
        }
    }
    None
}

async fn bucket(cx: &ReadCx, input: &Input, name: &BucketName, from: &RegionName) -> Finding {
    let what = format!("bucket/{name} backup of {from}");
    let objects = match cx.world.objects(name.as_str(), input.region.as_str()) {
        Ok(objects) => objects,
        Err(e) => return finding(what, "unknown", false, e.to_string()),
    };
    match manifest::latest(&*objects, name, from, None).await {
        Err(e) => finding(what, "unknown", false, e.message),
        Ok(latest) => age(cx, input, what, latest.map(|(_, m)| m.at)),
    }
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    super::contract_tests::Fixture::new(serde_json::json!({ "region": "west", "max_replica_lag": "30s" }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::contract_tests::{Bench, Fixture};
    use serde_json::json;

    #[tokio::test]
    async fn a_lost_primary_does_not_make_its_replica_unready() {
        let bench = Bench::new(&fixture()).down("east");
        let out = bench.run::<Readiness>().await.expect("ready");
        assert!(out.ready && out.findings.iter().any(|f| f.detail.contains("last contact")), "{out:?}");
    }

    #[tokio::test]
    async fn what_is_missing_is_named() {
        let bench = Bench::new(&Fixture::new(json!({ "region": "west", "max_backup_age": "24h" })));
        let failure = bench.failed::<Readiness>().await;
        assert_eq!(failure.code, "not_ready");
        assert!(failure.message.contains("database/predictions snapshot: missing"), "{failure}");
        assert!(failure.message.contains("bucket/models backup of east: missing"), "{failure}");
    }
}
