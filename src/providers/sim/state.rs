//! What there is in the world, as one value that can be compared; and what time alone does to it.

use super::WriteFault;
use crate::providers::port::*;
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimObject {
    pub body: Vec<u8>,
    pub etag: String,
    pub version: String,
    pub modified: Timestamp,
    pub metadata: BTreeMap<String, String>,
    /// Retained until then.
    pub retained: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimInstance {
    pub info: InstanceInfo,
    /// The database that it serves.
    pub database: String,
    /// When what is under way will be through.
    pub due: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    pub state: ServerState,
    /// Of its one table, `public.predictions`.
    pub rows: Vec<Version>,
    pub sessions: u64,
    pub canaries: BTreeSet<String>,
}

/// A machine of one's own, with the server of the same database and region.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SimMachine {
    pub running: bool,
    pub standby_signal: bool,
    pub files: BTreeMap<String, String>,
    pub settings: BTreeMap<String, String>,
    /// Written, and not read by the server yet.
    pub pending: BTreeMap<String, String>,
    pub slots: BTreeSet<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimPooler {
    pub paused: bool,
    pub host: String,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimLease {
    pub epoch: u64,
    pub allowed: Option<String>,
    pub ttl_ms: u64,
    /// When the latest grant to anyone runs out.
    pub ends: Timestamp,
}

type Key2 = (String, String);

/// What the names of repositories' buckets begin with.
pub(super) const REPOSITORIES: &str = "repositories/";

/// Keyed by name and region where a thing has both.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    pub objects: BTreeMap<(String, String, String), SimObject>,
    pub instances: BTreeMap<Key2, SimInstance>,
    pub snapshots: BTreeMap<Key2, (SnapshotInfo, Timestamp)>,
    /// Each with when another member becomes the writer, and which.
    pub globals: BTreeMap<String, (GlobalCluster, Option<(Timestamp, String)>)>,
    /// What monitoring has of replicas' lags, in seconds.
    pub lags: BTreeMap<Key2, f64>,
    pub servers: BTreeMap<Key2, Server>,
    /// Only those of one's own.
    pub machines: BTreeMap<Key2, SimMachine>,
    pub poolers: Vec<SimPooler>,
    /// By database: every server of one has the row.
    pub wheels: BTreeMap<String, String>,
    pub leases: BTreeMap<String, SimLease>,
    pub records: BTreeMap<(String, String, String), RecordSet>,
    pub weights: BTreeMap<(String, String, String), Vec<WeightedSet>>,
    /// Failover records, and whatever else is neither simple nor weighted.
    pub routed: BTreeMap<(String, String, String), Vec<RoutedSet>>,
    /// Health checks by their reference, which is their identifier as well.
    pub checks: BTreeMap<String, HealthSpec>,
    /// When each change is in sync.
    pub changes: BTreeMap<String, Timestamp>,
    /// Zones of which no update is taken any more.
    pub refusing: BTreeSet<String>,
    /// From now on none ever is.
    pub stuck: bool,
    /// What resolvers answer for a name from an instant on, oldest first.
    pub visible: BTreeMap<String, Vec<(Timestamp, Option<RecordSet>)>>,
    /// Regions that do not answer.
    pub down: BTreeSet<String>,
    /// Requests that a receiver accepted, by their idempotency key.
    pub received: BTreeMap<String, String>,
    /// Marks that processes left: what `mark`, `unmark` and `marked` are about.
    pub marks: BTreeSet<String>,
    /// Lock files that a child still holds, and until when.
    pub held: BTreeMap<String, Timestamp>,
    pub writes: u64,
    pub fault: Option<(u64, WriteFault)>,
    /// The fault meets every write from then on.
    pub lasting: bool,
    pub(super) serial: u64,
}

/// How long the fake's slow things take.
pub(super) const PROMOTION: SignedDuration = SignedDuration::from_millis(1_500);
pub(super) const CREATION: SignedDuration = SignedDuration::from_millis(4_000);
pub(super) const SYNC: SignedDuration = SignedDuration::from_millis(300);

impl State {
    pub(super) fn next(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }
    /// A body becomes an object.
    pub(super) fn make(&mut self, body: Vec<u8>, metadata: BTreeMap<String, String>, modified: Timestamp) -> SimObject {
        let etag = hex::encode(Sha256::digest(&body));
        SimObject { body, etag, version: self.next().to_string(), modified, metadata, retained: None }
    }
    /// Puts an object there, as somebody else would.
    pub fn object(&mut self, bucket: &str, region: &str, key: &str, body: &[u8], at: Timestamp) {
        let object = self.make(body.to_vec(), BTreeMap::new(), at);
        self.objects.insert((bucket.to_owned(), region.to_owned(), key.to_owned()), object);
    }
    /// An instance that is available, and its server: a replica when it replicates from something.
    pub fn instance(&mut self, id: &str, region: &str, database: &str, replicates_from: Option<&str>, at: Timestamp) {
        let info = InstanceInfo {
            id: id.to_owned(),
            resource_id: format!("db-{}", self.next()),
            status: "available".into(),
            arn: format!("arn:aws:rds:{region}:000000000000:db:{id}"),
            host: Some("127.0.0.1".into()),
            port: Some(5432),
            replicates_from: replicates_from.map(str::to_owned),
            groups: [("sg-open".to_owned(), "active".to_owned())].into(),
            restorable_until: Some(at),
            ..InstanceInfo::default()
        };
        let instance = SimInstance { info, database: database.to_owned(), due: None };
        self.instances.insert((region.to_owned(), id.to_owned()), instance);
        self.servers.insert((database.to_owned(), region.to_owned()), fresh_server(replicates_from.is_some(), at));
    }

    /// A primary in east, a standby in west, and a pooler before them.
    pub fn own_servers(&mut self, database: &str, at: Timestamp) {
        for (region, standby) in [("east", false), ("west", true)] {
            let key = (database.to_owned(), region.to_owned());
            self.servers.insert(key.clone(), fresh_server(standby, at));
            let settings = [
                ("max_wal_senders", "10"),
                ("max_replication_slots", "10"),
                ("wal_retrieve_retry_interval", "5s"),
                ("recovery_min_apply_delay", "0"),
            ];
            let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
            self.machines.insert(key, SimMachine { running: true, standby_signal: standby, settings, ..SimMachine::default() });
        }
        self.poolers = vec![SimPooler { paused: false, host: "east.test".into(), port: 5432 }];
    }

    /// Lets everything happen whose time has come.
    pub(super) fn settle(&mut self, now: Timestamp) {
        let due: Vec<Key2> = self.instances.iter().filter(|(_, i)| i.due.is_some_and(|due| due <= now)).map(|(k, _)| k.clone()).collect();
        for key in due {
            self.finish(&key, now);
        }
        for (snapshot, ready) in self.snapshots.values_mut() {
            if *ready <= now && snapshot.status == "creating" {
                snapshot.status = "available".into();
            }
        }
        for (global, due) in self.globals.values_mut() {
            if let Some((_, to)) = due.take_if(|(at, _)| *at <= now) {
                global.status = "available".into();
                global.members.iter_mut().for_each(|member| member.writer = member.arn == to);
            }
        }
        self.held.retain(|_, until| *until > now);
    }

    fn finish(&mut self, key: &Key2, now: Timestamp) {
        let Some(instance) = self.instances.get_mut(key) else { return };
        instance.due = None;
        let server_key = (instance.database.clone(), key.0.clone());
        match instance.info.status.as_str() {
            "deleting" => {
                self.instances.remove(key);
                self.servers.remove(&server_key);
            }
            "modifying" => {
                instance.info.status = "available".into();
                instance.info.replicates_from = None;
                if let Some(server) = self.servers.get_mut(&server_key) {
                    server.state.in_recovery = false;
                    server.state.streaming = false;
                    server.state.timeline += 1;
                }
            }
            _ => {
                instance.info.status = "available".into();
                let replica = instance.info.replicates_from.is_some();
                self.servers.insert(server_key, fresh_server(replica, now));
            }
        }
    }

    /// All sets of a name, whatever they are chosen by.
    pub(super) fn sets(&self, key: &(String, String, String)) -> Vec<RoutedSet> {
        let weighted = self.weights.get(key).into_iter().flatten().map(|w| RoutedSet {
            set: Some(w.set.clone()),
            routing: Routing::Weighted { weight: w.weight },
            health: w.health.clone(),
            alias: w.alias.clone(),
            record: w.record.clone(),
        });
        let simple = self.records.get(key).cloned().map(RoutedSet::simple);
        simple.into_iter().chain(weighted).chain(self.routed.get(key).into_iter().flatten().cloned()).collect()
    }

    /// Is the object there that a health check looks for, and was it for long enough to be seen?
    pub(super) fn checked(&self, id: &str, now: Timestamp) -> bool {
        let Some(spec) = self.checks.get(id) else { return false };
        let key = spec.path.trim_start_matches('/');
        self.objects.iter().any(|((_, _, at), object)| at == key && object.modified + SYNC <= now)
    }

    /// The failover record that answers for a name, if that is what there is.
    pub(super) fn chosen(&self, name: &str, now: Timestamp) -> Option<RecordSet> {
        let sets = self.routed.iter().find(|((_, of, _), _)| of == name).map(|(_, sets)| sets)?;
        let of = |routing| sets.iter().find(|set| set.routing == routing);
        let ill = |set: &RoutedSet| {
            let spec = set.health.as_ref().and_then(|id| self.checks.get(id).map(|spec| (id, spec)));
            spec.is_some_and(|(id, spec)| self.checked(id, now) == spec.inverted)
        };
        of(Routing::Primary).filter(|set| !ill(set)).or(of(Routing::Secondary)).map(|set| set.record.clone())
    }

    /// What there is, without what differs between two runs of the same thing: times, versions, counters.
    #[must_use]
    pub fn essence(&self) -> Vec<String> {
        let mut out = Vec::new();
        let plain = |(bucket, _, key): &(String, String, String)| !bucket.starts_with(REPOSITORIES) && !key.starts_with(".muster/");
        out.extend(self.objects.iter().filter(|(k, _)| plain(k)).map(|(k, o)| format!("{k:?} {}", o.etag)));
        // What is encrypted is never the same twice; what counts of a repository is what was committed to it.
        for kind in ["snapshots/", "proofs/"] {
            let mut counts: BTreeMap<(&str, &str), u64> = BTreeMap::new();
            for (bucket, region, key) in self.objects.keys().filter(|(bucket, _, _)| bucket.starts_with(REPOSITORIES)) {
                *counts.entry((bucket, region)).or_default() += u64::from(key.starts_with(kind));
            }
            out.extend(counts.iter().map(|(k, count)| format!("{k:?} {count} {kind}")));
        }
        out.extend(self.objects.keys().filter(|(_, _, key)| key.starts_with(".muster/")).map(|k| format!("{k:?}")));
        let plain = |i: &InstanceInfo| format!("{} {:?} {:?} {:?}", i.status, i.replicates_from, i.groups, i.tags);
        out.extend(self.instances.iter().map(|(k, i)| format!("{k:?} {}", plain(&i.info))));
        out.extend(self.globals.values().map(|(g, _)| format!("{g:?}")));
        out.extend(self.snapshots.iter().map(|(k, (s, _))| format!("{k:?} {} {}", s.instance, s.status)));
        out.extend(self.servers.iter().map(|(k, s)| format!("{k:?} {} {} {}", s.state.in_recovery, s.state.timeline, s.state.read_only)));
        out.extend(self.machines.iter().map(|(k, m)| format!("{k:?} {} {} {:?}", m.running, m.standby_signal, m.slots)));
        out.extend(self.poolers.iter().map(|p| format!("{p:?}")));
        out.extend(self.leases.iter().map(|(k, l)| format!("{k} {:?}", l.allowed)));
        out.extend(self.records.iter().map(|(k, r)| format!("{k:?} {:?}", r.values)));
        out.extend(self.routed.iter().map(|(k, sets)| format!("{k:?} {}", show_sets(sets))));
        out.extend(self.checks.iter().map(|check| format!("{check:?}")));
        out.extend(self.received.iter().map(|r| format!("{r:?}")));
        out.extend(self.marks.iter().cloned());
        out
    }
}

fn fresh_server(replica: bool, at: Timestamp) -> Server {
    let state = ServerState {
        in_recovery: replica,
        timeline: 1,
        position: Lsn(0x0300_0000),
        received: replica.then_some(Lsn(0x0300_0000)),
        replay_paused: false,
        streaming: replica,
        last_message: replica.then_some(at),
        last_replayed: replica.then_some(at),
        read_only: false,
        now: at,
        system_identifier: "7000000000000000001".into(),
    };
    let row = |line: u32| Version { block: 0, line, born: 700 + line, touched: false, digest: format!("row {line}") };
    Server { state, rows: (1..=3).map(row).collect(), sessions: 0, canaries: BTreeSet::new() }
}
