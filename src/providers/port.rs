//! The shape of the world, as actions see it: small traits, reading and writing apart.
//!
//! Every call has a deadline of its own inside the provider; none waits for ever. A write answers
//! `PortError::Unknown` when it may have happened: the caller must look before it repeats.

pub use super::{port_buckets::*, port_dns::*, port_patroni::*, port_replication::*, port_rows::*};
use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

pub use super::port_instances::*;
pub use super::port_server::*;

/// Why a call gave no answer, by what it means for the caller.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum PortError {
    /// Certainly not carried out: it never left, or nothing listened.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// Certainly not carried out; worth another try after so long.
    #[error("throttled: {message}")]
    Throttled { after: Duration, message: String },
    /// Certainly not carried out: the other side said no.
    #[error("refused: {0}")]
    Refused(String),
    /// Compare-and-swap lost: something else stands there.
    #[error("conflict: found {found}")]
    Conflict { found: String },
    #[error("not found: {0}")]
    NotFound(String),
    /// What is kept there is damaged.
    #[error("damaged: {0}")]
    Corrupt(String),
    /// May have been carried out.
    #[error("unknown outcome: {0}")]
    Unknown(String),
    /// The estate does not say how to reach it, or says it wrongly.
    #[error("{0}")]
    Config(String),
}

pub type PortResult<T> = Result<T, PortError>;

// ---------------------------------------------------------------- objects

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectMeta {
    pub key: String,
    pub size: u64,
    pub etag: Option<String>,
    pub version: Option<String>,
    pub modified: Option<jiff::Timestamp>,
    /// User metadata; empty in listings.
    pub metadata: BTreeMap<String, String>,
    /// What the server keeps for the content, as `sha256:BASE64` or `crc64nvme:BASE64`, with `-PARTS` behind it
    /// when it is made of those of an upload's parts. Not in listings, and not every server has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<String>,
}

/// Where an object stands within its provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectPlace {
    pub bucket: String,
    /// The whole key, with every prefix.
    pub key: String,
}

/// How firmly an object is retained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LockMode {
    /// Who is allowed to bypass it can shorten it.
    #[default]
    Governance,
    /// Nobody can, not even the account's root.
    Compliance,
}

pub struct ObjectPage {
    pub objects: Vec<ObjectMeta>,
    /// Give it back for the next page; `None` on the last.
    pub next: Option<String>,
}

#[async_trait]
pub trait ObjectRead: Send + Sync {
    /// Objects whose key begins with `prefix`, in the order of their keys' bytes. Some servers (SeaweedFS, S3's own
    /// directory buckets) go folder by folder instead: who needs the order sorts.
    async fn list(&self, prefix: &str, after: Option<&str>) -> PortResult<ObjectPage>;
    async fn head(&self, key: &str) -> PortResult<Option<ObjectMeta>>;
    /// The whole body, as a stream of chunks.
    async fn get(&self, key: &str) -> PortResult<ObjectBody>;
    /// The whole body of the very object that had this etag: a `Conflict` when another stands there by now.
    async fn get_if(&self, key: &str, etag: &str) -> PortResult<ObjectBody>;
    /// Exactly `length` bytes, from this one on. An object that ends sooner is `Refused`; a transfer that does is
    /// `Unreachable`.
    async fn range(&self, key: &str, from: u64, length: u64) -> PortResult<Vec<u8>>;
    /// Where the object stands, or would stand, for its provider's own copying; `None` where there is none.
    fn place(&self, key: &str) -> Option<ObjectPlace>;
    /// Who keeps the objects: two stores with the same provider can copy between them (`ObjectWrite::copy_from`).
    /// `None` is never the same.
    async fn provider(&self) -> PortResult<Option<String>>;
    /// Can objects be retained here (S3: the bucket has Object Lock)?
    async fn locks(&self) -> PortResult<bool>;
    /// Until when an object can be neither deleted nor replaced for good; `None` when it can be now.
    async fn retention(&self, key: &str) -> PortResult<Option<jiff::Timestamp>>;
    /// The same, and how firmly, where the store tells that.
    async fn retained(&self, key: &str) -> PortResult<Option<(jiff::Timestamp, Option<LockMode>)>> {
        Ok(self.retention(key).await?.map(|until| (until, None)))
    }
    /// The same as `list`, from behind a key on, as the store orders them. Stores of our own take a key for a token.
    async fn list_behind(&self, prefix: &str, key: &str) -> PortResult<ObjectPage> {
        self.list(prefix, Some(key)).await
    }
    /// Every version under a prefix, and the markers of what was deleted.
    async fn versions(&self, prefix: &str, _after: Option<&VersionMark>) -> PortResult<VersionPage> {
        Err(PortError::Refused(format!("{prefix}: this store keeps no versions")))
    }
    /// An object, and how it is encrypted and replicated.
    async fn standing(&self, key: &str) -> PortResult<Option<ObjectStanding>> {
        Ok(self.head(key).await?.map(ObjectStanding::from))
    }
    /// The checksums of an object that `head` does not tell, where the server keeps them and lets itself be asked.
    async fn sums(&self, _key: &str) -> PortResult<Option<ObjectSums>> {
        Ok(None)
    }
    /// Does it keep what is replaced and deleted?
    async fn keeps_versions(&self) -> PortResult<bool> {
        Ok(false)
    }
    async fn lock(&self) -> PortResult<BucketLock> {
        Ok(BucketLock::Absent)
    }
    /// The rules by which it is replicated elsewhere.
    async fn replication_rules(&self) -> PortResult<Vec<ReplicationRule>> {
        Ok(Vec::new())
    }
}

/// The chunks of a body; nothing comes after an error.
pub type Chunks = futures::stream::BoxStream<'static, PortResult<Vec<u8>>>;

pub struct ObjectBody {
    pub meta: ObjectMeta,
    pub chunks: Chunks,
}

#[async_trait]
pub trait ObjectWrite: ObjectRead {
    /// Writes one object. With `only_if_absent` an object that is there already is a `Conflict`: the store itself looks and
    /// writes at once, so of several writers one wins, and the others are told. (A server that ignores `If-None-Match`, as
    /// Garage does, writes over what is there: where that matters the caller looks first as well.)
    async fn put(&self, key: &str, body: Bytes, metadata: &BTreeMap<String, String>, only_if_absent: bool) -> PortResult<ObjectMeta>;
    /// The same from a file, whose SHA-256 is known (in hexadecimal): however large, it is never held in memory.
    async fn put_file(
        &self,
        key: &str,
        file: &std::path::Path,
        sha256: &str,
        metadata: &BTreeMap<String, String>,
        only_if_absent: bool,
    ) -> PortResult<ObjectMeta>;
    /// The same from a stream whose length nobody knows yet. Nothing is seen under the key before the whole body is
    /// there, and nothing is left when it breaks off or when `only_if_absent` finds an object there. Memory is bounded: 48 MiB, or two parts when they are larger
    /// (they are 8 MiB each, and double with every thousand, so that 10,000 suffice for the largest object).
    async fn put_stream(
        &self,
        key: &str,
        body: Chunks,
        metadata: &BTreeMap<String, String>,
        only_if_absent: bool,
    ) -> PortResult<ObjectMeta>;
    /// Has the provider copy an object from one of its places, which must be at the same provider. `listed` is what
    /// is known of it: another object that stands there by now is a `Conflict`. Metadata go along (above 5 GiB:
    /// those of `listed`).
    async fn copy_from(&self, key: &str, from: &ObjectPlace, listed: &ObjectMeta) -> PortResult<ObjectMeta>;
    /// The same in parts of this size, whatever the object's; its metadata are those of `listed`.
    async fn copy_in_parts(&self, key: &str, from: &ObjectPlace, listed: &ObjectMeta, _part: u64) -> PortResult<ObjectMeta> {
        self.copy_from(key, from, listed).await
    }
    /// Retains an object until then. It is never shortened here: an earlier instant is refused by the provider.
    async fn retain(&self, key: &str, until: jiff::Timestamp, mode: LockMode) -> PortResult<()>;
    /// Writes one small object in place of the one with the etag `expect`, or where there is none: a `Conflict`
    /// when something else is there.
    async fn swap(&self, key: &str, body: Vec<u8>, expect: Option<&str>) -> PortResult<()>;
    async fn delete(&self, key: &str) -> PortResult<()>;
}

// ---------------------------------------------------------------- PostgreSQL (data plane)

/// A position in the write-ahead log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl std::fmt::Display for Lsn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl std::str::FromStr for Lsn {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let fail = || format!("`{text}` is not a log position such as 0/16B3748");
        let (high, low) = text.split_once('/').ok_or_else(fail)?;
        let high = u32::from_str_radix(high, 16).map_err(|_| fail())?;
        let low = u32::from_str_radix(low, 16).map_err(|_| fail())?;
        Ok(Self((u64::from(high) << 32) | u64::from(low)))
    }
}

impl Serialize for Lsn {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// How a server stands, as it says itself, in one query.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServerState {
    pub in_recovery: bool,
    /// Of the log it writes or replays: the first eight hexadecimal digits of the segment's name.
    pub timeline: u32,
    /// Written (primary) or replayed (standby).
    pub position: Lsn,
    /// Received from upstream (standby).
    pub received: Option<Lsn>,
    pub replay_paused: bool,
    /// Does a WAL receiver stream at this moment?
    pub streaming: bool,
    /// When the receiver last heard from upstream.
    pub last_message: Option<jiff::Timestamp>,
    /// Commit time of the last replayed transaction.
    pub last_replayed: Option<jiff::Timestamp>,
    /// New sessions start read-only (`default_transaction_read_only`).
    pub read_only: bool,
    /// The server's own clock.
    pub now: jiff::Timestamp,
    /// Identifies the cluster across copies.
    pub system_identifier: String,
}

/// One connected standby, as the primary sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Standby {
    pub name: String,
    pub state: String,
    pub sent: Option<Lsn>,
    pub replayed: Option<Lsn>,
}

/// How far a primary is, in one look.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Newest {
    pub timeline: u32,
    /// Its log is safe on disk up to here.
    pub position: Lsn,
    /// Of its newest transaction, if the server keeps the times of commits.
    pub commit: Option<jiff::Timestamp>,
    /// The server's own clock.
    pub now: jiff::Timestamp,
}

#[async_trait]
pub trait SqlRead: Send + Sync {
    async fn state(&self) -> PortResult<ServerState>;
    /// How far a primary is; a standby refuses.
    async fn newest(&self) -> PortResult<Newest>;
    async fn standbys(&self) -> PortResult<Vec<Standby>>;
    /// What it tells of replication beside its state.
    async fn replication(&self) -> PortResult<Replication> {
        Ok(Replication::default())
    }
    /// What it has beside rows.
    async fn inventory(&self) -> PortResult<Inventory> {
        Err(PortError::Config("this server keeps no inventory".into()))
    }
    async fn rows(&self) -> PortResult<Box<dyn RowRead>>;
    /// Those of `ids` (text) that are present in `table.column`.
    async fn present(&self, table: &str, column: &str, ids: &[String]) -> PortResult<Vec<String>>;
    /// How many sessions of clients there are, beside ours and replication.
    async fn sessions(&self) -> PortResult<u64>;
    /// What whoever asks lacks to make the database read-only and to end its sessions, in words; nothing where it may.
    async fn lacks_to_close(&self) -> PortResult<Vec<String>> {
        Ok(Vec::new())
    }
    /// The wheel that lies in the database, as it was written.
    async fn wheel(&self) -> PortResult<Option<String>>;
}

#[async_trait]
pub trait SqlWrite: SqlRead {
    /// Makes every session of the database that begins from now on read-only, and ends those that began before.
    async fn make_read_only(&self) -> PortResult<()>;
    /// Takes that back, and ends the sessions that began read-only: they would stay so.
    async fn make_writable(&self) -> PortResult<()>;
    /// Writes a row to a canary table of Muster's own and reads it back.
    async fn prove_writable(&self, mark: &str) -> PortResult<()>;
    /// Puts a wheel in the place of the one that is expected there (`None`: none is), or nothing: then `Conflict`.
    async fn swap_wheel(&self, expect: Option<&str>, wheel: &str) -> PortResult<()>;
}

// ---------------------------------------------------------------- HTTP

#[derive(Clone, Debug, Default)]
pub struct HttpRequest {
    pub method: String,
    pub url: String,
    pub headers: BTreeMap<String, String>,
    pub body: Option<Vec<u8>>,
    /// Connect here instead of where the URL's name leads.
    pub connect_to: Option<SocketAddr>,
    pub timeout: Option<Duration>,
}

#[derive(Clone, Debug)]
pub struct HttpResponse {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    /// At most 1 MiB of it.
    pub body: Vec<u8>,
}

#[async_trait]
pub trait Http: Send + Sync {
    async fn send(&self, request: HttpRequest) -> PortResult<HttpResponse>;
}

// ---------------------------------------------------------------- write leases

/// What the lease authority says of one lease. Times are by the authority's clock alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseState {
    pub name: String,
    /// Grows with each change of holder or of standing.
    pub epoch: u64,
    /// The region that may hold it; no other is granted.
    pub allowed: Option<String>,
    pub holder: Option<String>,
    /// How long a grant is good for.
    pub ttl_ms: u64,
    /// What is left of the last grant to anyone, 0 when it has run out.
    pub remaining_ms: u64,
    /// When the last grant ran out, if it has.
    pub expired_at: Option<jiff::Timestamp>,
    pub now: jiff::Timestamp,
}

#[async_trait]
pub trait LeaseRead: Send + Sync {
    async fn lease(&self) -> PortResult<LeaseState>;
}

#[async_trait]
pub trait LeaseWrite: LeaseRead {
    /// From now on only `region` is granted the lease (`None`: nobody). Compare-and-swap on the epoch:
    /// `Conflict` when it is no longer `expect_epoch`. What was granted before runs out by itself.
    async fn allow(&self, region: Option<&str>, expect_epoch: u64) -> PortResult<LeaseState>;
    /// The same, for whoever has seen that what was granted before can commit nothing any more, since its server is
    /// stopped: it keeps nobody waiting. An authority that does not know this lets it run out all the same.
    async fn hand_over(&self, region: &str, expect_epoch: u64) -> PortResult<LeaseState>;
}

// ---------------------------------------------------------------- processes on this machine

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    pub argv: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub cwd: Option<String>,
    /// Held locked (flock) by the child and its descendants for as long as any of them lives.
    pub lock_file: Option<String>,
    /// Where its output goes; kept when Muster dies.
    pub output_file: Option<String>,
    pub output_limit: u64,
    #[serde(skip)]
    pub stdin: Option<Vec<u8>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessEnd {
    /// `None` when a signal ended it.
    pub code: Option<i32>,
    pub signal: Option<i32>,
    /// The deadline passed, and the process group was killed.
    pub timed_out: bool,
    /// The last of its output, at most `output_limit` bytes, lossily as UTF-8.
    pub output: String,
}

#[async_trait]
pub trait Processes: Send + Sync {
    /// Runs it in a process group of its own until it ends or the deadline passes.
    async fn run(&self, spec: &ProcessSpec, deadline: Duration) -> PortResult<ProcessEnd>;
    /// Waits until nobody holds the lock file; false when someone still does at the deadline.
    async fn wait_released(&self, lock_file: &str, deadline: Duration) -> PortResult<bool>;
}

/// Everything that an action may look at. Lent by [`super::world::World`], or by a fake in tests.
pub trait WorldRead: Send + Sync {
    fn clock(&self) -> Arc<dyn super::clock::Clock>;
    fn objects(&self, bucket: &str, region: &str) -> PortResult<Arc<dyn ObjectRead>>;
    /// Where a backup repository of the estate lies.
    fn store(&self, repository: &str) -> PortResult<Arc<dyn ObjectRead>>;
    fn instances(&self, region: &str) -> PortResult<Arc<dyn InstanceRead>>;
    fn sql(&self, database: &str, region: &str) -> PortResult<Arc<dyn SqlRead>>;
    fn dns(&self, endpoint: &str) -> PortResult<Arc<dyn DnsRead>>;
    /// The servers that hold an endpoint's zone, each for itself: one, where it is the zone's own business who copies from whom.
    fn holders(&self, endpoint: &str) -> PortResult<Vec<Holder<dyn DnsRead>>> {
        Ok(vec![Holder { server: String::new(), region: None, dns: self.dns(endpoint)? }])
    }
    fn resolver(&self) -> Arc<dyn Resolve>;
    fn http(&self) -> Arc<dyn Http>;
    fn lease(&self, database: &str) -> PortResult<Arc<dyn LeaseRead>>;
    fn processes(&self) -> Arc<dyn Processes>;
    /// A server of a database, by its replication protocol.
    fn replication(&self, database: &str, region: &str) -> PortResult<Arc<dyn super::replication::Dial>> {
        Err(PortError::Config(format!("the server of `{database}` in `{region}` cannot be streamed from here")))
    }
    /// PostgreSQL servers of Muster's own on this machine.
    fn servers(&self) -> Arc<dyn super::servers::Servers>;
    /// What a server of one's own says beyond [`SqlRead`].
    fn cluster(&self, database: &str, region: &str) -> PortResult<Arc<dyn ClusterRead>> {
        no_server(database, region)
    }
    /// The machine that it runs on.
    fn machine(&self, database: &str, region: &str) -> PortResult<Arc<dyn MachineRead>> {
        no_server(database, region)
    }
    /// The poolers of a database, in the estate's order.
    fn poolers(&self, _database: &str) -> PortResult<Vec<Arc<dyn PoolerRead>>> {
        Ok(Vec::new())
    }
    /// The Patroni cluster that manages a region's servers of a database.
    fn patroni(&self, database: &str, region: &str) -> PortResult<Arc<dyn PatroniRead>> {
        no_patroni(database, region)
    }
    /// The value behind a reference. Never printed, never journaled.
    fn secret(&self, reference: &crate::model::estate::SecretRef) -> PortResult<secrecy::SecretString>;
    /// How many requests were sent to a control plane of DNS so far, whatever became of them; `None` where nobody counts.
    fn control_plane_calls(&self) -> Option<u64> {
        None
    }
    /// Who acts, and on which machine.
    fn who(&self) -> String {
        "somebody".to_owned()
    }
}

/// Everything that an action may change.
pub trait WorldWrite: WorldRead {
    fn objects_mut(&self, bucket: &str, region: &str) -> PortResult<Arc<dyn ObjectWrite>>;
    fn store_mut(&self, repository: &str) -> PortResult<Arc<dyn ObjectWrite>>;
    fn instances_mut(&self, region: &str) -> PortResult<Arc<dyn InstanceWrite>>;
    fn sql_mut(&self, database: &str, region: &str) -> PortResult<Arc<dyn SqlWrite>>;
    fn dns_mut(&self, endpoint: &str) -> PortResult<Arc<dyn DnsWrite>>;
    fn holders_mut(&self, endpoint: &str) -> PortResult<Vec<Holder<dyn DnsWrite>>> {
        Ok(vec![Holder { server: String::new(), region: None, dns: self.dns_mut(endpoint)? }])
    }
    fn lease_mut(&self, database: &str) -> PortResult<Arc<dyn LeaseWrite>>;
    fn cluster_mut(&self, database: &str, region: &str) -> PortResult<Arc<dyn ClusterWrite>> {
        no_server(database, region)
    }
    fn machine_mut(&self, database: &str, region: &str) -> PortResult<Arc<dyn MachineWrite>> {
        no_server(database, region)
    }
    fn poolers_mut(&self, _database: &str) -> PortResult<Vec<Arc<dyn PoolerWrite>>> {
        Ok(Vec::new())
    }
    fn patroni_mut(&self, database: &str, region: &str) -> PortResult<Arc<dyn PatroniWrite>> {
        no_patroni(database, region)
    }
}

fn no_server<T>(database: &str, region: &str) -> PortResult<T> {
    Err(PortError::Config(format!("`{database}` in `{region}` is no server of one's own")))
}

fn no_patroni<T>(database: &str, region: &str) -> PortResult<T> {
    Err(PortError::Config(format!(
        "the estate names no Patroni for `{database}` in `{region}`: write databases.{database}.instances.{region}.patroni"
    )))
}

/// Faults, where there is a lab that can have them.
#[async_trait]
pub trait Faults: Send + Sync {
    async fn inject(&self, fault: &crate::model::drill::Fault) -> PortResult<()>;
    /// Takes every fault back: thaws and restarts what is down. Says what it did.
    async fn heal(&self) -> PortResult<String>;
}
