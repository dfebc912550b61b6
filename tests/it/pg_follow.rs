//! A third server: after a switchover and after a failover it is led to the new primary, with what the old one kept for it
//! let go of; back again; and not at all where it has more than the new primary ever had.

use crate::{
    pg::Cluster,
    pg_yard::{REWINDABLE, Yard, apply, context, finish, prepare, undo, until},
};
use muster::{
    actions::contract::WriteCx,
    model::{effect::Failure, estate::Estate},
    providers::{clock::SystemClock, world::World},
};
use serde_json::{Value, json};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// The yard with a third server that follows east in a slot, as somebody made it by hand.
struct Three {
    yard: Yard,
    south: Cluster,
    world: Arc<World>,
    estate: Arc<Estate>,
    steps: AtomicU64,
}

impl Three {
    fn up() -> Self {
        let yard = Yard::up(REWINDABLE, json!({}));
        let south = yard.east.standby_named(&yard.home, "south", "", &["-C", "-S", "by_hand"]);
        let mut estate = serde_json::to_value(&*yard.estate).unwrap();
        estate["regions"]["south"] = json!({});
        estate["databases"]["orders"]["instances"]["south"] =
            json!({ "host": "127.0.0.1", "port": south.port, "server": { "data": south.data, "bin": south.bin } });
        let estate: Arc<Estate> = Arc::new(serde_json::from_value(estate).unwrap());
        let world = Arc::new(World::new(estate.clone(), Arc::new(SystemClock::new())));
        until("south streams", || slots(&yard.east).contains("by_hand true"));
        Self { yard, south, world, estate, steps: AtomicU64::new(0) }
    }

    fn cx(&self, key: &str, permits: u64) -> WriteCx {
        context(&self.world, &self.estate, self.yard.scratch.path(), key, permits)
    }

    fn next(&self, uses: &str) -> WriteCx {
        self.cx(&format!("{uses} s{}", self.steps.fetch_add(1, Ordering::SeqCst)), u64::MAX)
    }

    async fn step(&self, uses: &str, with: Value) -> Result<Value, Failure> {
        let cx = self.next(uses);
        let intent = prepare(&cx, uses, &with).await?;
        finish(&cx, uses, &intent).await
    }

    async fn done(&self, uses: &str, with: Value) -> Value {
        self.step(uses, with.clone()).await.unwrap_or_else(|f| panic!("{uses} {with}: {}: {f}", f.code))
    }

    fn south_follows(&self, primary: &Cluster) -> bool {
        self.south.sql("SELECT coalesce(string_agg(sender_port || ' ' || status, ''), '') FROM pg_stat_wal_receiver")
            == format!("{} streaming", primary.port)
    }

    fn reaches_south(&self, primary: &Cluster, id: i64) {
        primary.sql(&format!("INSERT INTO writes (id) VALUES ({id})"));
        until("the row is in the south", || self.south.sql(&format!("SELECT count(*) FROM writes WHERE id = {id}")) == "1");
    }
}

fn slots(of: &Cluster) -> String {
    of.sql("SELECT coalesce(string_agg(slot_name || ' ' || active, ', ' ORDER BY slot_name), '') FROM pg_replication_slots")
}

const FOLLOW: &str = "database.follow";

fn lead() -> Value {
    json!({ "database": "orders", "primary": "west" })
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_switchover_the_third_server_is_led_to_the_new_primary_and_back() {
    let three = Three::up();
    let (east, west) = (&three.yard.east, &three.yard.west);
    three.done("database.switchover", json!({ "database": "orders", "to": "west" })).await;
    until("south follows what was the primary, as a standby of it", || three.south_follows(east));

    let cx = three.next(FOLLOW);
    let intent = prepare(&cx, FOLLOW, &lead()).await.unwrap();
    let out = finish(&cx, FOLLOW, &intent).await.unwrap();
    assert_eq!(out, json!({ "led": [{ "region": "south", "slot": "muster_south", "from": "east" }], "left": [] }));
    assert!(three.south_follows(west));
    assert_eq!(slots(west), "muster_east true, muster_south true");
    assert!(!slots(east).contains("by_hand"), "east keeps the log for nobody: {}", slots(east));
    three.reaches_south(west, 1);
    // Led already: there is nothing to do.
    assert_eq!(three.done(FOLLOW, lead()).await, json!({ "led": [], "left": [] }));

    undo(&cx, FOLLOW, &intent).await.unwrap();
    until("south follows east again", || three.south_follows(east));
    assert_eq!((slots(west), slots(east).contains("by_hand true")), ("muster_east true".to_owned(), true));
    three.reaches_south(west, 2);

    // Cut off after any number of permits, it is gone on with; and east is not needed for it any more.
    for permits in 1.. {
        let cut = three.cx(&format!("cut p{permits}"), permits);
        let intent = prepare(&cut, FOLLOW, &lead()).await.unwrap();
        let whole = three.cx(&format!("cut p{permits}"), u64::MAX);
        let broken_off = apply(&cut, FOLLOW, &intent).await.is_err();
        finish(&whole, FOLLOW, &intent).await.unwrap_or_else(|f| panic!("after {permits} permits: {}: {f}", f.code));
        assert!(three.south_follows(west), "after {permits} permits");
        assert!(!slots(east).contains("by_hand"), "after {permits} permits: {}", slots(east));
        if !broken_off {
            assert!(permits > 3, "it asks for {permits} permits only");
            break;
        }
        undo(&whole, FOLLOW, &intent).await.unwrap();
        until("south follows east again", || three.south_follows(east));
    }
    east.shut_down();
    three.reaches_south(west, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failover_the_third_server_is_led_and_a_dead_one_is_left() {
    let three = Three::up();
    three.yard.east.signal("KILL");
    let proof = three.done("database.fence", json!({ "database": "orders", "region": "east" })).await["proof"].clone();
    three.done("database.promote", json!({ "database": "orders", "region": "west", "proof": proof })).await;
    let out = three.done(FOLLOW, lead()).await;
    assert_eq!(out["led"][0]["region"], "south", "{out}");
    assert_eq!(out["left"][0]["region"], "east", "{out}");
    assert!(three.south_follows(&three.yard.west));
    three.reaches_south(&three.yard.west, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_third_server_that_has_more_than_the_new_primary_is_not_led() {
    let three = Three::up();
    let (east, west) = (&three.yard.east, &three.yard.west);
    west.sql("ALTER SYSTEM SET primary_conninfo = ''");
    west.sql("SELECT pg_reload_conf()");
    until("west hears nothing", || west.sql("SELECT count(*) FROM pg_stat_wal_receiver") == "0");
    three.reaches_south(east, 7);
    east.signal("KILL");
    let proof = three.done("database.fence", json!({ "database": "orders", "region": "east" })).await["proof"].clone();
    three.done("database.promote", json!({ "database": "orders", "region": "west", "proof": proof })).await;
    let out = three.done(FOLLOW, lead()).await;
    let why = out["left"].to_string();
    assert!(out["led"] == json!([]) && why.contains("never had"), "{out}");
    let named = json!({ "database": "orders", "primary": "west", "regions": ["south"] });
    let failed = three.step(FOLLOW, named).await.unwrap_err();
    assert!(failed.code == "ahead" && failed.to_string().contains("database.rejoin"), "{failed}");
    // What it has more is listed and kept, and then it follows.
    let out = three.done("database.rejoin", json!({ "database": "orders", "region": "south", "primary": "west" })).await;
    assert_eq!(out["stranded"]["rows"], 1, "{out}");
    three.reaches_south(west, 8);
    assert_eq!(three.south.sql("SELECT count(*) FROM writes WHERE id = 7"), "0");
}
