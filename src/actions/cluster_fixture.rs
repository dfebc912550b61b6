//! The world of contract tests with a repository in it that holds a base backup of a small cluster and its log.

use super::contract_tests::Fixture;
use crate::model::estate::SecretRef;
use crate::providers::{
    clock::Clock,
    port::{Lsn, WorldRead, WorldWrite},
    sim::{SimObject, SimWorld},
};
use crate::repository::{
    create::{About, Base, create},
    globs::Globs,
    keys::Unlock,
    open::Repository,
    snapshot::Source,
    tree::{Options, Tree},
    wal::WalStore,
    wal_name::{Segment, SegmentName},
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

const MIB: u32 = 1 << 20;
const SYSTEM: u64 = 7_445_172_393_480_321_234;

static OBJECTS: LazyLock<BTreeMap<(String, String, String), SimObject>> = LazyLock::new(|| {
    let make = || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        runtime.block_on(made())
    };
    std::thread::spawn(make).join().expect("a repository")
});

async fn made() -> BTreeMap<(String, String, String), SimObject> {
    let world = SimWorld::new(Arc::new(super::contract_tests::estate()));
    let store = world.store_mut("vault").expect("a store");
    let clock: Arc<dyn Clock> = world.clock();
    let secret = world.secret(&SecretRef::Env("SIM_VAULT".to_owned())).expect("a secret");
    let unlock = Unlock::Passphrase(secret);
    Repository::make(&*store, "vault", &unlock, "test", clock.now()).await.expect("made");
    let repository = Arc::new(Repository::open(store.clone(), "vault", &unlock).await.expect("open"));
    let dir = tempfile::tempdir().expect("a folder");
    for (name, content) in [
        ("PG_VERSION", "15\n"),
        ("backup_label", "START WAL LOCATION: 0/200028\n"),
        ("global/pg_control", "controlled"),
        ("base/1/1259", "rows"),
    ] {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, content).expect("written");
    }
    let base = Base::load(&repository, None, &*clock).await.expect("a base");
    let options = Options { one_file_system: false, exclude: Globs::none(), reread: false };
    let source = Box::new(Tree::new(dir.path(), base.entries(&repository), options).expect("a tree"));
    let origin = Source::Postgres {
        url: "postgres://backup@db.east:5432/".to_owned(),
        system_identifier: SYSTEM.to_string(),
        version: 150_018,
        timeline: 1,
        start: Lsn(2 * u64::from(MIB) + 40),
        stop: Lsn(3 * u64::from(MIB) + 300),
        wal_segment_size: MIB,
        from_standby: false,
        tablespaces: BTreeMap::new(),
    };
    let about = About { origin, host: "here".to_owned(), user: "ana".to_owned(), tags: Vec::new(), run: None };
    create(repository.clone(), store.clone(), source, base, about, Arc::default(), clock).await.expect("a snapshot");
    let wal = WalStore::new(repository, store, SYSTEM.to_string()).expect("a log");
    for number in 2..4 {
        let segment = Segment::of_number(1, number, MIB);
        let mut content = crate::repository::wal_page::header(1, segment.start(MIB), SYSTEM, MIB);
        content.resize(MIB as usize, 0);
        wal.put(&SegmentName::Whole(segment), content.into()).await.expect("a segment");
    }
    world.lock().objects.clone()
}

/// The repository `vault` holds the base backup of a cluster, and its log.
pub fn with_cluster(with: Value) -> Fixture {
    Fixture::new(with).set(|world| world.lock().objects.extend(OBJECTS.clone())).sure()
}

/// The same, and it is that of the servers of `orders`.
pub fn with_own_cluster(with: Value) -> Fixture {
    with_cluster(with).set(|world| {
        let mut state = world.lock();
        let own = state.servers.iter_mut().filter(|((database, _), _)| database == "orders");
        own.for_each(|(_, server)| server.state.system_identifier = SYSTEM.to_string());
    })
}
