//! The estate: what is protected, in one file (`muster.yaml`). Secrets are references, never values.

use super::{ids::*, objective::Objectives, time::Span};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf};
use url::Url;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Estate {
    /// True for the lab alone: everything named here may be lost without harm, and every address is on loopback.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lab: bool,
    #[serde(default)]
    pub regions: BTreeMap<RegionName, Region>,
    #[serde(default)]
    pub services: BTreeMap<ServiceName, Service>,
    #[serde(default)]
    pub databases: BTreeMap<DatabaseName, Database>,
    #[serde(default)]
    pub buckets: BTreeMap<BucketName, BTreeMap<RegionName, Bucket>>,
    #[serde(default)]
    pub endpoints: BTreeMap<EndpointName, Endpoint>,
    #[serde(default)]
    pub repositories: BTreeMap<RepositoryName, Repository>,
    #[serde(default)]
    pub people: BTreeMap<PersonName, Person>,
    /// Who is told when a run fails, waits or is indeterminate, a drill is missed, and that `serve` still lives.
    #[serde(default)]
    pub notify: Vec<Notify>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Region {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aws: Option<Aws>,
}

/// How to reach AWS, or what speaks its protocols. What is left out comes from the SDK's own configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Aws {
    /// AWS's name for the region: `us-east-1`.
    pub region: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<AwsCredentials>,
    /// Other addresses for `s3`, `rds`, `cloudwatch`, `route53`.
    #[serde(default, skip_serializing_if = "AwsEndpoints::is_empty")]
    pub endpoints: AwsEndpoints,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AwsEndpoints {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<Url>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rds: Option<Url>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloudwatch: Option<Url>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route53: Option<Url>,
}

impl AwsEndpoints {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AwsCredentials {
    pub access_key_id: SecretRef,
    pub secret_access_key: SecretRef,
}

/// Where a secret is to be found: `{ env: NAME }` or `{ file: PATH }`. One trailing newline is dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SecretRef {
    Env(String),
    File(PathBuf),
}

/// What recovers as one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Service {
    #[serde(default)]
    pub objectives: Objectives,
    /// Databases, buckets, endpoints and repositories of the estate, by name.
    #[serde(default)]
    pub uses: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Database {
    pub engine: Engine,
    /// The name of the database inside the server.
    #[serde(default = "postgres_word")]
    pub name: String,
    #[serde(default = "postgres_word")]
    pub user: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretRef>,
    pub instances: BTreeMap<RegionName, Instance>,
    /// The lease without which the database's writers do not acknowledge a write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseSource>,
    /// Tables whose content `database.verify_replica` compares; all of them when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<String>,
    /// With what standbys connect to their primary (`engine: postgres`); as Muster itself does when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication: Option<Login>,
    /// The connection poolers that clients reach it through (`engine: postgres`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub poolers: Vec<Pooler>,
}

fn postgres_word() -> String {
    "postgres".to_owned()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// Amazon RDS for PostgreSQL: changed through its API, looked at through SQL as well.
    RdsPostgres,
    /// PostgreSQL on machines of one's own: SQL, and for the rest the `server` of each instance.
    Postgres,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Instance {
    /// The RDS DB instance identifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Where the server answers, when it shall not be asked of the control plane (which may be down).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The machine that the server runs on, for what SQL cannot do (`engine: postgres`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<Server>,
    /// How the server is cut off from its network, as a way to fence it (`engine: postgres`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// The Patroni cluster that manages the region's servers (`engine: postgres`): it is asked, never worked around.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patroni: Option<Patroni>,
    /// What was prepared to fence it with (`engine: rds-postgres`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<RdsFence>,
}

/// A Patroni cluster, by the REST API of its members. Its `host` and `port` in the estate lead to its leader.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Patroni {
    /// Every member's: `https://db1.east.example.org:8008`. A proof that the cluster is fenced takes each of them.
    pub urls: Vec<Url>,
    /// Those of Patroni's `restapi.authentication`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretRef>,
    /// A permanent slot of this cluster (`slots` in its configuration), for the standby cluster elsewhere that follows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<String>,
}

/// What closes an RDS instance to its writers; each is prepared beforehand.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RdsFence {
    /// A security group of the instance's network that lets in nobody but Muster: `sg-0123`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security_group: Option<String>,
    /// The passwords of the master user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master_password: Option<FencePasswords>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FencePasswords {
    /// What it gets while the instance is fenced.
    pub fenced: SecretRef,
    /// What it has otherwise, and gets back.
    pub usual: SecretRef,
}

/// How a server is stopped, started and looked at on its machine (Linux). Commands are lists of arguments; no shell
/// reads them, and each has a time limit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// The data directory: an absolute path on that machine.
    pub data: PathBuf,
    /// The directory of `pg_ctl` and the other programs; found when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bin: Option<PathBuf>,
    /// What reaches the machine as the owner of the data directory: `[ssh, -o, BatchMode=yes, postgres@db-east]`. Left
    /// out, it is this machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reach: Vec<String>,
    /// Starts the server; `pg_ctl start` when left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub start: Vec<String>,
    /// Stops it, and keeps whatever watches it from starting it again; `pg_ctl stop` when left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
}

/// Commands of one's own, run on the machine that Muster runs on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Cuts the server off from all that writes to it.
    pub cut: Vec<String>,
    /// Ends with 0 if, seen from outside, it is cut off at this moment.
    pub verify: Vec<String>,
    /// Takes the cut back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub open: Vec<String>,
}

/// A role and its password.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Login {
    pub user: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretRef>,
}

/// A PgBouncer: paused through its console, and pointed to another server by a file that its configuration includes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pooler {
    pub host: String,
    #[serde(default = "pgbouncer_port")]
    pub port: u16,
    /// One of its `admin_users`.
    #[serde(default = "pgbouncer_word")]
    pub user: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretRef>,
    /// What clients call the database there; the database's own name when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// The file with the line of that database, `NAME = host=… port=… …`, which `pgbouncer.ini` includes
    /// (`%include`) below `[databases]`: an absolute path on the pooler's machine.
    pub file: PathBuf,
    /// What reaches the pooler's machine; left out, it is this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reach: Vec<String>,
    /// Where it runs, if it is lost with a region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<RegionName>,
}

fn pgbouncer_port() -> u16 {
    6432
}

fn pgbouncer_word() -> String {
    "pgbouncer".to_owned()
}

/// Where the writers' lease is granted. It must not stand in a region that it fences.
/// The protocol is in `docs/lease.md`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LeaseSource {
    pub url: Url,
    /// The lease's name there; the database's own when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    pub bucket: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prefix: String,
    /// It shall keep versions: `readiness.check` sees whether it does.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub versioned: bool,
    /// It shall retain by Object Lock what is written, for at least so long: `readiness.check` sees whether it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locked_for: Option<Span>,
    /// The provider shall replicate it to this region's bucket: `readiness.check` sees whether a rule does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicates_to: Option<RegionName>,
}

/// A DNS name with a target in each region.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// The fully qualified name: `api.scoring.test`.
    pub name: String,
    pub provider: DnsProvider,
    /// The zone's domain name; with Route 53 also the hosted zone's id (`Z123`).
    pub zone: String,
    pub ttl: Span,
    /// An IPv4 or IPv6 address for each region.
    pub targets: BTreeMap<RegionName, std::net::IpAddr>,
    /// Where the service answers behind the name.
    #[serde(default = "http_word")]
    pub scheme: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<String>,
    /// Recorded inputs and outputs that `model.golden` compares with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub golden: Option<Golden>,
    /// Caching resolvers that clients use, asked after a change: `127.0.0.1:53`. The system's when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resolvers: Vec<std::net::SocketAddr>,
    /// How to reach the provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aws: Option<Aws>,
    /// Whom to send dynamic updates, with provider `rfc2136`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<DnsUpdate>,
    /// The zone's authoritative servers: `192.0.2.1:53`. Found by their NS records when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub authority: Vec<std::net::SocketAddr>,
    /// Where the name is an alias (Route 53): what it stands for in each region.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub aliases: BTreeMap<RegionName, AliasTarget>,
    /// How traffic moves when no control plane of DNS answers, with provider `route53`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standby: Option<Standby>,
}

/// What an alias record of Route 53 stands for. The region's target must be the address that it leads to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AliasTarget {
    /// The identifier of the hosted zone that the other name is in.
    pub zone: String,
    pub name: String,
    /// Does it count as ill when what it stands for is?
    #[serde(default)]
    pub evaluate: bool,
}

/// A switch in the region that takes over: an object in its bucket, which Route 53's health checkers look for. While it
/// is there, the other region's record counts as ill, and this region's answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Standby {
    /// The region that takes over. It has the SECONDARY record; the endpoint's other target has the PRIMARY.
    pub region: RegionName,
    /// A bucket of the estate; the switch lies in its bucket of that region.
    pub bucket: BucketName,
    /// The switch's key; `.muster/switch/ENDPOINT` when left out. Everybody may read it, and the same with `.probe`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Where the health checkers find it, if that is not the bucket's own address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<Url>,
    /// How often each health checker looks: `10s` or `30s`.
    #[serde(default = "ten_seconds")]
    pub every: Span,
    /// How many looks in a row change a health checker's mind; 1 to 10.
    #[serde(default = "two")]
    pub looks: u32,
}

impl Standby {
    /// The switch's key in its bucket.
    #[must_use]
    pub fn key(&self, endpoint: &EndpointName) -> String {
        self.key.clone().unwrap_or_else(|| format!(".muster/switch/{endpoint}"))
    }
}

fn ten_seconds() -> Span {
    Span::from_secs(10)
}
fn two() -> u32 {
    2
}

/// The servers of a zone that is changed by dynamic updates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DnsUpdate {
    /// The zone's primary server: `HOST`, or `HOST:PORT` where it is not 53.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// Instead of `server`: several primaries that do not copy from each other. Each is written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<DnsPrimary>,
    /// The other authoritative servers; a change is done when each of them has it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secondaries: Vec<String>,
    /// The region that the primary stands in, where it stands in one: a failover out of it cannot use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<RegionName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<TsigKey>,
    /// After a change Muster itself sends NOTIFY to the secondaries, instead of waiting for the primary's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub notify: bool,
}

impl DnsUpdate {
    /// Every server that takes updates, however it is written.
    #[must_use]
    pub fn primaries(&self) -> Vec<DnsPrimary> {
        let alone = self.server.iter().map(|server| DnsPrimary {
            server: server.clone(),
            secondaries: self.secondaries.clone(),
            region: self.region.clone(),
            key: None,
        });
        let shared = |one: DnsPrimary| DnsPrimary { key: one.key.or_else(|| self.key.clone()), ..one };
        alone.chain(self.servers.iter().cloned()).map(shared).collect()
    }

    /// The zone's authoritative servers, each once.
    #[must_use]
    pub fn authorities(&self) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        for primary in self.primaries() {
            for server in std::iter::once(primary.server).chain(primary.secondaries) {
                if !all.contains(&server) {
                    all.push(server);
                }
            }
        }
        all
    }
}

/// One of several servers that each take a zone's updates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DnsPrimary {
    /// `HOST`, or `HOST:PORT` where it is not 53.
    pub server: String,
    /// The authoritative servers that copy from this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secondaries: Vec<String>,
    /// The region that it stands in: an unplanned failover out of it leaves it out if it cannot be reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<RegionName>,
    /// That of `update` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<TsigKey>,
}

/// A key that a DNS server knows by name, as in its own configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TsigKey {
    pub name: String,
    #[serde(default)]
    pub algorithm: TsigAlgorithm,
    /// In base64.
    pub secret: SecretRef,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TsigAlgorithm {
    #[default]
    HmacSha256,
    HmacSha384,
    HmacSha512,
}

/// Where golden predictions are kept, and where they are asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Golden {
    /// A bucket of the estate; read in the region that the endpoint points to.
    pub bucket: BucketName,
    pub key: String,
    #[serde(default = "predict_word")]
    pub path: String,
}

fn predict_word() -> String {
    "/predict".to_owned()
}

fn http_word() -> String {
    "http".to_owned()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DnsProvider {
    Route53,
    /// The zone's own servers, by dynamic updates: BIND, Knot, PowerDNS, Windows DNS.
    Rfc2136,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Repository {
    pub url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<RegionName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretRef>,
    /// For how long the proof counts that a snapshot was restored and compared; a week when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof_valid: Option<Span>,
    /// How much work goes into making smaller what is stored here: `none`, `fast` or `standard`, which it is when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
}

/// How much work goes into making smaller what a repository stores. Who reads it needs not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// Everything is stored as it is.
    None,
    /// Larger than `standard`, for less of the processor's time.
    Fast,
    #[default]
    Standard,
}

/// Somebody who approves and accepts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Person {
    /// Public keys in OpenSSH's format.
    #[serde(default)]
    pub keys: Vec<String>,
    #[serde(default)]
    pub roles: Vec<String>,
    /// The person's user names on machines: who starts a run as one of these is this person.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logins: Vec<String>,
}

/// One channel for notices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Notify {
    /// Send a JSON object by POST to this address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<Url>,
    /// The same, where the address is itself a secret: where it is to be found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook_from: Option<SecretRef>,
    /// Run this program with the JSON object on its standard input.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exec: Vec<String>,
    /// Which notices; all but the heartbeat when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub on: Vec<Notice>,
    /// How often the heartbeat goes out, if `on` has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<Span>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Notice {
    Failed,
    Missed,
    Waiting,
    Indeterminate,
    Succeeded,
    /// `serve` is alive; its absence is the alarm.
    Heartbeat,
}
