//! The contract that every action in the catalogue keeps, put to each of them by itself: an action that
//! is added is tested here without a line of its own, but for the fixture that stands beside it.
//!
//! The heart is the sweep: every write that an action makes is lost once on the way, and once after it was carried out; then the
//! engine's rule is followed (look, and only what is absent is done again), and the world must end as if nothing had gone wrong.

use super::{catalogue, contract::*, proof::*};
use crate::model::{effect::*, estate::*, node::Node, plan::Scope, runbook::UndoPolicy};
use crate::providers::{clock::Clock, port::*, sim::*};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
    time::Duration,
};

/// A world and an input that an action succeeds with.
pub struct Fixture {
    pub with: Value,
    setup: Vec<fn(&SimWorld)>,
    /// False for what nobody can look at afterwards, such as a message.
    pub observable: bool,
    /// What it changes is not in the world but on this machine's own disk.
    pub local: bool,
    /// It makes sure of its own writes: of one lost answer it may know more than that it is lost.
    pub sure: bool,
    /// Its end is no write: what was written is watched, and only then is it done.
    pub watched: bool,
}

impl Fixture {
    pub fn new(with: Value) -> Self {
        Self { with, setup: Vec::new(), observable: true, local: false, sure: false, watched: false }
    }
    pub fn set(mut self, setup: fn(&SimWorld)) -> Self {
        self.setup.push(setup);
        self
    }
    pub fn blind(mut self) -> Self {
        self.observable = false;
        self
    }
    pub fn local(mut self) -> Self {
        self.local = true;
        self
    }
    pub fn sure(mut self) -> Self {
        self.sure = true;
        self
    }
    pub fn watched(mut self) -> Self {
        self.watched = true;
        self
    }
}

fn move_lease(world: &SimWorld, epoch: u64, allowed: Option<&str>) {
    let now = world.time().now();
    world.lock().leases.insert("predictions".into(), SimLease { epoch, allowed: allowed.map(str::to_owned), ttl_ms: 1_000, ends: now });
}

/// East is fenced; west is still a replica.
pub fn fenced(with: Value) -> Fixture {
    Fixture::new(with).set(|world| move_lease(world, 4, None))
}

fn promote_west(world: &SimWorld) {
    let mut state = world.lock();
    state.instances.get_mut(&("west".into(), "predictions-west".into())).expect("west").info.replicates_from = None;
    let server = state.servers.get_mut(&("predictions".into(), "west".into())).expect("west");
    server.state.in_recovery = false;
    server.state.streaming = false;
    server.state.timeline = 2;
}

/// East is fenced, west is promoted, nobody may write yet.
pub fn promoted(with: Value) -> Fixture {
    fenced(with).set(promote_west)
}

/// West serves; east is as it was left.
pub fn failed_over(with: Value) -> Fixture {
    promoted(with).set(|world| move_lease(world, 5, Some("west")))
}

/// The objects of a repository with two snapshots of the same folder, a day apart; made once, since keys are slow.
static VAULT: LazyLock<BTreeMap<(String, String, String), SimObject>> = LazyLock::new(|| {
    let make = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut bench = Bench::new(&super::backup_create::fixture());
            bench.run::<super::backup_create::Create>().await.expect("a first snapshot");
            bench.world.time().advance(Duration::from_secs(86_400));
            bench.another_run("0191");
            bench.run::<super::backup_create::Create>().await.expect("a second snapshot");
            let mut objects = bench.world.lock().objects.clone();
            objects.retain(|(bucket, _, _), _| bucket == "repositories/vault");
            objects
        })
    };
    std::thread::spawn(make).join().expect("a repository")
});

/// The repository `vault` holds two snapshots.
pub fn with_vault(with: Value) -> Fixture {
    Fixture::new(with).set(|world| world.lock().objects.extend(VAULT.clone())).sure()
}

/// The instance in east has ten snapshots, one a day, and one that RDS itself took.
pub fn with_rds_snapshots(with: Value) -> Fixture {
    Fixture::new(with).set(|world| {
        let now = world.time().now();
        for day in 0..11 {
            let id = if day == 10 { "rds:nightly".to_owned() } else { format!("day-{day}") };
            let snapshot = SnapshotInfo {
                arn: format!("arn:aws:rds:us-east-1:000000000000:snapshot:{id}"),
                id: id.clone(),
                instance: "predictions-east".into(),
                status: "available".into(),
                created: Some(now - jiff::SignedDuration::from_hours(24 * day)),
                kind: if day == 10 { "automated".into() } else { "manual".into() },
                ..SnapshotInfo::default()
            };
            world.lock().snapshots.insert(("east".into(), id), (snapshot, now));
        }
    })
}

/// A global cluster `scoring-global` whose writer is in east.
pub fn with_global(fixture: Fixture) -> Fixture {
    fixture.set(|world| {
        let member = |region: &str, writer| GlobalMember {
            arn: format!("arn:aws:rds:{region}:000000000000:cluster:scoring-{region}"),
            writer,
            sync: (!writer).then(|| "connected".to_owned()),
        };
        let members = vec![member("us-east-1", true), member("us-west-2", false)];
        let global = GlobalCluster { id: "scoring-global".into(), status: "available".into(), members };
        world.lock().globals.insert(global.id.clone(), (global, None));
    })
}

/// What fencing east gives in the [`fenced`] world.
pub fn proof() -> FenceProof {
    FenceProof {
        kind: ProofKind::LeaseExpired,
        also: Vec::new(),
        database: "predictions".into(),
        region: "east".into(),
        epoch: Some(4),
        at: SimClock::default().now(),
        expires: None,
        lsn: None,
        detail: "lease allowed to nobody".into(),
    }
}

pub fn estate() -> Estate {
    serde_json::from_value(json!({
        "lab": true,
        "regions": { "east": { "aws": { "region": "us-east-1" } }, "west": { "aws": { "region": "us-west-2" } } },
        "services": { "scoring": { "uses": ["predictions", "models", "inference"] } },
        "databases": { "predictions": {
            "engine": "rds-postgres",
            "instances": {
                "east": { "id": "predictions-east", "fence": {
                    "security_group": "sg-closed",
                    "master_password": { "fenced": { "env": "SIM_VAULT" }, "usual": { "env": "SIM_VAULT" } },
                } },
                "west": { "id": "predictions-west" },
            },
            "lease": { "url": "http://127.0.0.1:1/" },
        }, "orders": {
            "engine": "postgres",
            "instances": {
                "east": { "host": "east.test", "server": { "data": "/srv/east" } },
                "west": { "host": "west.test", "server": { "data": "/srv/west" } },
            },
            "poolers": [{ "host": "127.0.0.1", "file": "/etc/orders.ini" }],
        } },
        "repositories": {
            "vault": { "url": "memory", "region": "west", "password": { "env": "SIM_VAULT" } },
            "second": { "url": "memory", "region": "east", "password": { "env": "SIM_VAULT" } },
        },
        "buckets": { "models": { "east": { "bucket": "models-east" }, "west": { "bucket": "models-west" } } },
        "endpoints": { "inference": {
            "name": "api.scoring.test", "provider": "route53", "zone": "scoring.test", "ttl": "5s",
            "targets": { "east": "127.0.0.2", "west": "127.0.0.3" }, "port": 8080,
            "resolvers": ["127.0.0.1:53"],
            "golden": { "bucket": "models", "key": "golden.json" },
            "aliases": { "west": { "zone": "Z1", "name": "west.lb.test", "evaluate": true } },
        }, "steady": {
            "name": "steady.scoring.test", "provider": "route53", "zone": "scoring.test", "ttl": "5s",
            "targets": { "east": "127.0.0.2", "west": "127.0.0.3" }, "resolvers": ["127.0.0.1:53"],
            "standby": { "region": "west", "bucket": "models" },
        } },
    }))
    .expect("an estate")
}

/// The pair behind the switch of `steady`.
pub fn steady_sets(check: &str) -> Vec<RoutedSet> {
    let set = |region: &str, routing, address: &str, health: Option<&str>| RoutedSet {
        set: Some(region.into()),
        routing,
        health: health.map(str::to_owned),
        alias: None,
        record: RecordSet { name: "steady.scoring.test".into(), kind: "A".into(), ttl_s: 5, values: vec![address.into()] },
    };
    vec![set("east", Routing::Primary, "127.0.0.2", Some(check)), set("west", Routing::Secondary, "127.0.0.3", None)]
}

/// `steady` is prepared for a failover through the data plane.
fn prepared(state: &mut State, now: jiff::Timestamp) {
    let spec = HealthSpec {
        scheme: "https".into(),
        host: "models-west.s3.us-west-2.amazonaws.com".into(),
        port: 443,
        path: "/.muster/switch/steady".into(),
        inverted: true,
        every_s: 10,
        looks: 2,
        disabled: false,
    };
    state.checks.insert("prepared".into(), spec);
    state.routed.insert(("scoring.test".into(), "steady.scoring.test".into(), "A".into()), steady_sets("prepared"));
    state.object("models", "west", ".muster/switch/steady.probe", b"seen", now);
}

/// Both regions in order, replication running, the name at east.
fn healthy() -> SimWorld {
    let world = SimWorld::new(Arc::new(estate()));
    let now = world.time().now();
    let mut state = world.lock();
    state.instance("predictions-east", "east", "predictions", None, now);
    state.instance("predictions-west", "west", "predictions", Some("predictions-east"), now);
    state.own_servers("orders", now);
    state.object("models", "east", "model.onnx", b"weights", now);
    state.object("models", "east", "golden.json", br#"{"cases":[{"features":[1.0],"scores":[0.25,0.75],"label":1}]}"#, now);
    state.object("models", "east", "empty", b"", now);
    let ends = now + jiff::SignedDuration::from_secs(1);
    state.leases.insert("predictions".into(), SimLease { epoch: 3, allowed: Some("east".into()), ttl_ms: 1_000, ends });
    let record = RecordSet { name: "api.scoring.test".into(), kind: "A".into(), ttl_s: 5, values: vec!["127.0.0.2".into()] };
    state.visible.insert(record.name.clone(), vec![(now, Some(record.clone()))]);
    state.records.insert(("scoring.test".into(), record.name.clone(), "A".into()), record);
    prepared(&mut state, now);
    drop(state);
    world
}

/// One step of one run in a world of its own.
pub struct Bench {
    pub world: SimWorld,
    pub read: ReadCx,
    pub write: WriteCx,
    pub with: Node,
    _scratch: tempfile::TempDir,
}

impl Bench {
    pub fn new(fixture: &Fixture) -> Self {
        Self::within(healthy(), fixture)
    }
    pub fn within(world: SimWorld, fixture: &Fixture) -> Self {
        for setup in &fixture.setup {
            setup(&world);
        }
        let scratch = tempfile::tempdir().expect("a directory");
        let read = ReadCx {
            world: Arc::new(world.clone()),
            estate: world.estate(),
            run: "0190".into(),
            step: "step".into(),
            scope: Scope::Drill,
            lost: None,
            key: "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef".into(),
            deadline: Duration::from_secs(30),
            scratch: scratch.path().to_owned(),
        };
        let write = WriteCx::new(read.clone(), Arc::new(world.clone()), Arc::new(|| true));
        Self { world, read, write, with: Node::typed(fixture.with.clone()), _scratch: scratch }
    }
    pub fn down(self, region: &str) -> Self {
        self.world.lock().down.insert(region.to_owned());
        self
    }
    /// The same step in another run.
    pub fn again(&mut self, key: &str) {
        self.read.key = key.repeat(64);
        self.write = WriteCx::new(self.read.clone(), Arc::new(self.world.clone()), Arc::new(|| true));
    }
    pub fn another_run(&mut self, run: &str) {
        self.read.run = run.into();
        self.write = WriteCx::new(self.read.clone(), Arc::new(self.world.clone()), Arc::new(|| true));
    }
    pub fn elapsed_ms(&self) -> u128 {
        self.world.time().monotonic().as_millis()
    }
    fn input<A: Action>(&self) -> A::Input {
        crate::model::node::decode(&self.with).expect("a valid input")
    }
    pub async fn intent<A: Action>(&self) -> A::Intent {
        A::prepare(&self.read, self.input::<A>()).await.map_err(|r| r.failure).expect("prepared").intent
    }
    /// The code with which `prepare` refuses.
    pub async fn refused<A: Action>(&self) -> String {
        match A::prepare(&self.read, self.input::<A>()).await {
            Ok(_) => panic!("it was not refused"),
            Err(refusal) => refusal.failure.code,
        }
    }
    /// The failure of `apply`.
    pub async fn failed<A: Action>(&self) -> Failure {
        match self.run::<A>().await {
            Ok(_) => panic!("it did not fail"),
            Err(failure) => failure,
        }
    }
    /// Prepare, apply, and for what is not a check: observe until done.
    pub async fn run<A: Action>(&self) -> Result<A::Output, Failure> {
        let intent = A::prepare(&self.read, self.input::<A>()).await.map_err(|r| r.failure)?.intent;
        let applied = A::apply(&self.write, &intent).await;
        let output = applied.map_err(|error| match error {
            ApplyError::Definite(f) | ApplyError::Retry { failure: f, .. } | ApplyError::Unknown(f) => f,
        })?;
        if A::effect(&self.with) == Effect::Read {
            return Ok(output);
        }
        for _ in 0..1_000 {
            match A::observe(&self.read, &intent).await {
                Seen::Done(output) => return Ok(output),
                Seen::Pending { poll_after_ms, .. } => self.read.world.clock().sleep(Duration::from_millis(poll_after_ms)).await,
                Seen::Absent => return Err(Failure::new("absent", "")),
                Seen::Differs { found } => return Err(Failure::new("differs", found)),
                Seen::CannotTell { why } => return Err(Failure::new("cannot_tell", why)),
            }
        }
        Err(Failure::new("pending", "for ever"))
    }

    async fn settled(&self, action: &dyn DynAction, intent: &Value) -> Seen<Value> {
        for _ in 0..1_000 {
            match action.observe(&self.read, intent).await {
                Seen::Pending { poll_after_ms, .. } => self.read.world.clock().sleep(Duration::from_millis(poll_after_ms)).await,
                seen => return seen,
            }
        }
        panic!("{} is pending for ever", action.spec().name);
    }
}

fn all() -> Vec<(Box<dyn DynAction>, Fixture)> {
    catalogue()
        .into_iter()
        .map(|action| {
            let fixture = super::fixture(action.spec().name);
            let fixture = fixture.unwrap_or_else(|| panic!("{} has no fixture: give it one beside the action", action.spec().name));
            (action, fixture)
        })
        .collect()
}

fn effect(action: &dyn DynAction, bench: &Bench) -> Effect {
    action.effect(&bench.with)
}

#[test]
fn the_catalogue_is_in_order_and_each_name_stands_once() {
    let names: Vec<&str> = catalogue().iter().map(|a| a.spec().name).collect();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(names, sorted);
    assert_eq!(names.len(), all().len());
}

#[test]
fn every_action_says_all_that_it_is() {
    for (action, fixture) in all() {
        let spec = action.spec();
        let (noun, verb) = spec.name.split_once('.').expect("noun.verb");
        for word in [noun, verb] {
            assert!(!word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{}", spec.name);
        }
        assert!(spec.version >= 1 && spec.timeout.ms > 0, "{}", spec.name);
        assert!(spec.summary.len() > 15 && !spec.summary.ends_with('.'), "{}", spec.name);
        let example: Value = serde_saphyr::from_str(spec.example).unwrap_or_else(|e| panic!("{}: {e}", spec.name));
        assert_eq!(example["uses"], spec.name);
        assert!(example["id"].is_string(), "{}", spec.name);
        let schema = action.input_schema().to_value();
        let known = schema["properties"].as_object().expect("an object of inputs");
        assert_eq!(schema["additionalProperties"], false, "{}: unknown keys must be refused", spec.name);
        for with in [&example["with"], &fixture.with] {
            for key in with.as_object().expect("a map").keys() {
                assert!(known.contains_key(key), "{}: `{key}` is no input", spec.name);
            }
        }
        let outputs = action.output_schema().to_value();
        assert!(outputs["properties"].is_object(), "{}: outputs are fields", spec.name);
    }
}

/// A step's fields as its runbook has them.
pub fn map_of(with: &Value) -> Node {
    use crate::model::node::{Key, NodeValue, Pos};
    let entries = with.as_object().expect("a map").iter();
    let entries = entries.map(|(name, value)| (Key { name: name.clone(), pos: Pos::default() }, Node::typed(value.clone()))).collect();
    Node { pos: Pos::default(), value: NodeValue::Map(entries) }
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    for (action, fixture) in all() {
        let bench = Bench::new(&fixture);
        let before = bench.world.lock().clone();
        let prepared = action.prepare(&bench.read, &bench.with).await.map_err(|r| r.failure);
        let prepared = prepared.unwrap_or_else(|f| panic!("{}: {f}", action.spec().name));
        assert!(*bench.world.lock() == before, "{}: prepare changed the world", action.spec().name);
        let changes = effect(&*action, &bench) != Effect::Read && fixture.observable;
        assert!(!changes || !prepared.change.is_empty(), "{}: it does not say what it changes", action.spec().name);
    }
}

#[tokio::test]
async fn an_unknown_input_is_refused() {
    for (action, fixture) in all() {
        let bench = Bench::new(&fixture);
        let mut with = fixture.with.clone();
        with["no_such_input"] = json!("x");
        let refusal = action.prepare(&bench.read, &Node::typed(with)).await.err();
        assert_eq!(refusal.map(|r| r.failure.code).as_deref(), Some("input"), "{}", action.spec().name);
    }
}

#[tokio::test]
async fn what_was_applied_is_seen_and_a_check_changes_nothing() {
    for (action, fixture) in all() {
        let name = action.spec().name;
        let bench = Bench::new(&fixture);
        let intent = action.prepare(&bench.read, &bench.with).await.map_err(|r| r.failure).expect(name).intent;
        let before = bench.world.lock().clone();
        if effect(&*action, &bench) != Effect::Read && fixture.observable {
            assert_eq!(bench.settled(&*action, &intent).await, Seen::Absent, "{name}: seen before it happened");
        }
        let applied = action.apply(&bench.write, &intent).await;
        assert!(applied.is_ok(), "{name}: {applied:?}");
        match effect(&*action, &bench) {
            Effect::Read => assert!(*bench.world.lock() == before, "{name}: a check changed the world"),
            _ if fixture.observable => {
                let seen = bench.settled(&*action, &intent).await;
                assert!(matches!(seen, Seen::Done(_)), "{name}: {seen:?}");
            }
            _ => assert!(matches!(bench.settled(&*action, &intent).await, Seen::CannotTell { .. }), "{name}"),
        }
    }
}

#[tokio::test]
async fn the_same_intent_twice_is_once() {
    for (action, fixture) in all() {
        let name = action.spec().name;
        let bench = Bench::new(&fixture);
        if effect(&*action, &bench) != Effect::Repeatable {
            continue;
        }
        let intent = action.prepare(&bench.read, &bench.with).await.map_err(|r| r.failure).expect(name).intent;
        action.apply(&bench.write, &intent).await.unwrap_or_else(|e| panic!("{name}: {e:?}"));
        bench.settled(&*action, &intent).await;
        let once = bench.world.lock().essence();
        action.apply(&bench.write, &intent).await.unwrap_or_else(|e| panic!("{name}, again: {e:?}"));
        bench.settled(&*action, &intent).await;
        assert_eq!(bench.world.lock().essence(), once, "{name}");
    }
}

/// Follows the engine's rule until the step is through: look after every unknown outcome, and do again
/// only what is absent (or what may be repeated and cannot be seen).
async fn carry_out(bench: &Bench, action: &dyn DynAction, intent: &Value, observable: bool, about: &str) {
    let repeatable = effect(action, bench) == Effect::Repeatable;
    for _ in 0..6 {
        let applied = action.apply(&bench.write, intent).await;
        let known = match &applied {
            Ok(_) => true,
            Err(ApplyError::Unknown(_)) => false,
            Err(ApplyError::Retry { .. }) => continue,
            Err(ApplyError::Definite(f)) => panic!("{about}: {f}"),
        };
        match bench.settled(action, intent).await {
            Seen::Done(_) => return,
            Seen::Absent => {}
            Seen::CannotTell { .. } if !observable && known => return,
            Seen::CannotTell { .. } if !observable && repeatable => {}
            seen => panic!("{about}: {seen:?}"),
        }
    }
    panic!("{about}: it never came through");
}

#[tokio::test]
async fn every_write_may_be_lost_before_or_after_it_happened() {
    for (action, fixture) in all() {
        let bench = Bench::new(&fixture);
        if effect(&*action, &bench) == Effect::Read {
            continue;
        }
        let name = action.spec().name;
        let intent = action.prepare(&bench.read, &bench.with).await.map_err(|r| r.failure).expect(name).intent;
        carry_out(&bench, &*action, &intent, fixture.observable, name).await;
        let good = bench.world.lock().essence();
        let writes = bench.world.writes();
        assert!(writes > 0 || fixture.local, "{name} changes nothing");
        for n in 0..writes {
            for fault in [WriteFault::AppliedButLost, WriteFault::LostOnTheWay, WriteFault::Unreachable] {
                let about = format!("{name}, write {n}, {fault:?}");
                let bench = Bench::new(&fixture);
                let intent = action.prepare(&bench.read, &bench.with).await.map_err(|r| r.failure).expect(name).intent;
                bench.world.fault(n, fault);
                carry_out(&bench, &*action, &intent, fixture.observable, &about).await;
                assert_eq!(bench.world.lock().essence(), good, "{about}");
            }
        }
    }
}

#[tokio::test]
async fn a_lost_answer_is_unknown_and_then_seen() {
    for (action, fixture) in all() {
        let name = action.spec().name;
        let bench = Bench::new(&fixture);
        if effect(&*action, &bench) == Effect::Read || !fixture.observable || fixture.local {
            continue;
        }
        let intent = action.prepare(&bench.read, &bench.with).await.map_err(|r| r.failure).expect(name).intent;
        action.apply(&bench.write, &intent).await.unwrap_or_else(|e| panic!("{name}: {e:?}"));
        let last = bench.world.writes() - 1;
        for (fault, done) in [(WriteFault::AppliedButLost, !fixture.watched), (WriteFault::LostOnTheWay, false)] {
            let bench = Bench::new(&fixture);
            let intent = action.prepare(&bench.read, &bench.with).await.map_err(|r| r.failure).expect(name).intent;
            // How many packs there are depends on which thread was quicker: not every run has as many writes.
            bench.world.lasting_fault(if fixture.sure && !done { 0 } else { last }, fault);
            let applied = action.apply(&bench.write, &intent).await;
            bench.world.heal();
            let found_out = done && fixture.sure && applied.is_ok();
            assert!(found_out || matches!(applied, Err(ApplyError::Unknown(_))), "{name}, {fault:?}: {applied:?}");
            let seen = bench.settled(&*action, &intent).await;
            assert_eq!(matches!(seen, Seen::Done(_)), done, "{name}, {fault:?}: {seen:?}");
            assert!(done || seen == Seen::Absent, "{name}, {fault:?}: {seen:?}");
        }
    }
}

#[tokio::test]
async fn without_the_permit_nothing_is_changed() {
    for (action, fixture) in all() {
        let name = action.spec().name;
        let bench = Bench::new(&fixture);
        if effect(&*action, &bench) == Effect::Read {
            continue;
        }
        let intent = action.prepare(&bench.read, &bench.with).await.map_err(|r| r.failure).expect(name).intent;
        let before = bench.world.lock().clone();
        let deposed = WriteCx::new(bench.read.clone(), Arc::new(bench.world.clone()), Arc::new(|| false));
        let applied = action.apply(&deposed, &intent).await;
        assert!(matches!(&applied, Err(ApplyError::Definite(f)) if f.code == "deposed"), "{name}: {applied:?}");
        assert!(*bench.world.lock() == before, "{name} changed the world without a permit");
    }
}

#[tokio::test]
async fn undo_accepts_what_never_happened_and_takes_back_what_did() {
    for (action, fixture) in all() {
        let name = action.spec().name;
        let bench = Bench::new(&fixture);
        if effect(&*action, &bench) == Effect::Read {
            continue;
        }
        let intent = action.prepare(&bench.read, &bench.with).await.map_err(|r| r.failure).expect(name).intent;
        let before = bench.world.lock().essence();
        let never = action.undo(&bench.write, &intent, None).await;
        assert!(never.is_ok(), "{name}, never happened: {never:?}");
        assert_eq!(bench.world.lock().essence(), before, "{name}");
        if action.spec().undo != UndoPolicy::Automatic {
            continue;
        }
        let output = action.apply(&bench.write, &intent).await.unwrap_or_else(|e| panic!("{name}: {e:?}"));
        bench.settled(&*action, &intent).await;
        for again in 0..2 {
            let undone = action.undo(&bench.write, &intent, Some(output.clone())).await;
            assert!(undone.is_ok(), "{name}, {again}: {undone:?}");
            assert_eq!(bench.world.lock().essence(), before, "{name}");
        }
    }
}

#[cfg(test)]
#[path = "contract_measured_tests.rs"]
mod measured;
#[cfg(test)]
#[path = "contract_undo_tests.rs"]
pub mod undo;
