//! Switchovers under load: nothing lost, nothing failed through the pooler; back again when the standby cannot follow;
//! Muster gone at every point on the way. And the unplanned: a primary that is killed.

use crate::{
    pg::{Cluster, Programs, free_port},
    pg_load::{Load, Route, missing},
    pg_yard::{REWINDABLE, Yard, apply, finish, observed, prepare, session, until},
};
use muster::providers::{clock::SystemClock, world::World};
use serde_json::json;
use sqlx::Executor;
use std::{
    collections::BTreeSet,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

const EVERY: Duration = Duration::from_millis(40);
/// With [`EVERY`], 200 writes a second.
const CLIENTS: u32 = 8;

fn pooled(yard: &Yard) -> Route {
    Route { ports: vec![yard.pooler_port], database: "orders" }
}

fn direct(yard: &Yard) -> Route {
    Route { ports: vec![yard.east.port, yard.west.port], database: "postgres" }
}

/// From which quantile on, in milliseconds.
fn quantile(sorted: &[u64], q: f64) -> u64 {
    let at = ((sorted.len() as f64 - 1.0) * q).round() as usize;
    sorted[at]
}

/// There and back, so often, while clients write through the pooler and past it.
async fn switchovers(count: usize) {
    let yard = Yard::up(REWINDABLE, json!({}));
    let load = Load::start(&pooled(&yard), CLIENTS, EVERY);
    let aside = Load::start(&direct(&yard), 1, EVERY);
    load.flows().await;
    let (mut pauses, mut places) = (Vec::new(), ["west", "east"].into_iter().cycle());
    for _ in 0..count {
        let to = places.next().unwrap();
        let out = yard.done("database.switchover", json!({ "database": "orders", "to": to })).await;
        assert_eq!(out["rejoined"], true, "{out}");
        assert_eq!(out["timeline_after"].as_u64(), out["timeline_before"].as_u64().map(|t| t + 1), "{out}");
        pauses.push(out["write_pause_ms"].as_u64().expect("measured"));
        let old = yard.cluster(if to == "west" { "east" } else { "west" });
        assert_eq!(old.sql("SELECT count(*) FROM pg_replication_slots WHERE NOT active"), "0", "it keeps the log for nobody");
        load.flows().await;
        assert_eq!(yard.writable().await, [to]);
    }
    let (through, past) = (load.end().await, aside.end().await);
    let now = yard.cluster(if count % 2 == 1 { "west" } else { "east" });
    let lost = missing(now, &through.acknowledged).len() + missing(now, &past.acknowledged).len();
    pauses.sort_unstable();
    eprintln!(
        "{count} switchovers: write pause p50 {} ms, p99 {} ms, longest {} ms; through the pooler {} acknowledged, {} failed, longest gap {} ms; past it {} acknowledged, {} failed and tried again; {lost} lost",
        quantile(&pauses, 0.5),
        quantile(&pauses, 0.99),
        pauses.last().unwrap(),
        through.acknowledged.len(),
        through.failed.len(),
        through.longest_gap().as_millis(),
        past.acknowledged.len(),
        past.failed.len(),
    );
    assert_eq!(through.failed, Vec::<String>::new());
    assert_eq!(lost, 0);
    assert!(past.failed.len() <= count * 2, "{:?}", past.failed);
}

#[tokio::test(flavor = "multi_thread")]
async fn they_change_places_under_load_and_nothing_is_lost() {
    switchovers(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_cannot_follow_in_time_is_not_promoted_and_all_goes_on_as_before() {
    let yard = Yard::up(REWINDABLE, json!({}));
    let load = Load::start(&pooled(&yard), CLIENTS, EVERY);
    load.flows().await;
    let cx = yard.next("switch");
    let with = json!({ "database": "orders", "to": "west", "max_pause": "1s" });
    let intent = prepare(&cx, "database.switchover", &with).await.unwrap();
    // After all was found in order.
    yard.west.sql("SELECT pg_wal_replay_pause()");
    let failed = apply(&cx, "database.switchover", &intent).await.unwrap_err();
    assert_eq!(failed.code, "rolled_back", "{failed}");
    load.flows().await;
    assert_eq!(yard.writable().await, ["east"]);
    yard.west.sql("SELECT pg_wal_replay_resume()");
    until("it follows again", || yard.west.sql("SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'") == "1");
    // A client that does not come to an end of its transaction: it keeps it, and everybody goes on.
    let mut slow = session(yard.pooler_port, "app", "orders").await.unwrap();
    slow.execute("BEGIN; INSERT INTO writes (id) VALUES (-1)").await.unwrap();
    assert_eq!(yard.fails("database.switchover", with.clone()).await.code, "rolled_back");
    slow.execute("COMMIT").await.unwrap();
    load.flows().await;
    assert_eq!(yard.writable().await, ["east"]);
    assert_eq!(yard.east.sql("SELECT count(*) FROM writes WHERE id = -1"), "1");
    yard.west.sql("SELECT pg_wal_replay_pause()");
    let account = load.end().await;
    assert_eq!(account.failed, Vec::<String>::new());
    assert_eq!(missing(&yard.east, &account.acknowledged), Vec::<i64>::new());
    assert_eq!(yard.fails("database.switchover", with.clone()).await.code, "replay_paused");
    yard.west.sql("SELECT pg_wal_replay_resume()");
    until("it follows again", || yard.west.sql("SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'") == "1");
    yard.done("database.switchover", with).await;
    assert_eq!(yard.writable().await, ["west"]);
}

/// A third node that follows the old primary goes on behind it: there it gets the new primary's log.
#[tokio::test(flavor = "multi_thread")]
async fn a_third_node_follows_whoever_leads() {
    let yard = Yard::up(REWINDABLE, json!({}));
    let north = yard.east.standby_named(&yard.home, "north", "", &[]);
    for (to, id) in [("west", 1), ("east", 2), ("west", 3)] {
        yard.done("database.switchover", json!({ "database": "orders", "to": to })).await;
        yard.cluster(to).sql(&format!("INSERT INTO writes (id) VALUES ({id})"));
        until("the third node has it", || north.sql(&format!("SELECT count(*) FROM writes WHERE id <= {id}")) == id.to_string());
        let timeline = |c: &crate::pg::Cluster| c.sql("SELECT received_tli FROM pg_stat_wal_receiver");
        until("it is on the new timeline", || timeline(&north) == (id + 1).to_string());
    }
}

/// As an operator does it, with the shipped runbook and no bucket; one operator at a time, as the database itself says; and what
/// Patroni manages is left to it.
#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_runbook_switches_over_and_leaves_patronis_servers_alone() {
    let yard = Yard::up(REWINDABLE, json!({}));
    // Its standby waits as long as PostgreSQL does unless told otherwise: the switchover makes that short.
    yard.west.sql("ALTER SYSTEM SET wal_retrieve_retry_interval = '5s'");
    yard.west.sql("SELECT pg_reload_conf()");
    let home = tempfile::tempdir().unwrap();
    let mut estate = serde_json::to_value(&*yard.estate).unwrap();
    estate["lab"] = json!(false);
    std::fs::write(home.path().join("muster.yaml"), estate.to_string()).unwrap();
    let book = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("runbooks/switchover.yaml");
    let run = |to: &str, extra: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
        let to = format!("to={to}");
        command
            .current_dir(home.path())
            .args(["run", book.to_str().unwrap(), "-i", "database=orders", "-i", &to, "--live", "--json"])
            .args(extra);
        let ran = command.env_remove("MUSTER_ESTATE").env_remove("MUSTER_STATE").output().unwrap();
        let said = format!("{}\n{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        (ran.status.code(), said)
    };
    let (code, said) = run("west", &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("\"succeeded\""), "{said}");
    assert_eq!(yard.writable().await, ["west"]);
    // The wheel went with the database: taken on the one server, let go of on the other.
    let wheel = || serde_json::from_str::<serde_json::Value>(&yard.west.sql("SELECT holder FROM muster.wheel")).unwrap();
    assert_eq!((wheel()["epoch"].as_u64(), wheel()["run"].as_str()), (Some(1), None), "{}", wheel());

    // Somebody else on another machine has it.
    yard.west.sql(r#"UPDATE muster.wheel SET holder = '{"epoch":7,"run":"0198-other","by":"ben@laptop","since":"2026-01-01T00:00:00Z"}'"#);
    let (code, said) = run("east", &[]);
    assert!(code == Some(1) && said.contains("wheel_held") && said.contains("ben@laptop") && said.contains("muster.wheel"), "{said}");
    assert_eq!((yard.writable().await, wheel()["epoch"].as_u64()), (vec!["west"], Some(7)));
    let (code, said) = run("east", &["-i", "take_over=0198-other"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!((yard.writable().await, wheel()["epoch"].as_u64(), wheel()["run"].as_str()), (vec!["east"], Some(8), None));
    let (code, said) = run("west", &["-i", "no_wheel=nobody else is here"]);
    assert!(code == Some(0) && said.contains("nobody else is here"), "{said}");
    assert_eq!((yard.writable().await, wheel()["epoch"].as_u64()), (vec!["west"], Some(8)));
    std::fs::write(yard.west.data.join("patroni.dynamic.json"), "{}").unwrap();
    assert_eq!(yard.fails("database.switchover", json!({ "database": "orders", "to": "east" })).await.code, "patroni");
    assert_eq!(yard.fails("database.fence", json!({ "database": "orders", "region": "west" })).await.code, "patroni");
}

/// The run is lost after each number of permits: what is half-done is seen, and gone on with.
#[tokio::test(flavor = "multi_thread")]
async fn cut_off_anywhere_it_goes_on_and_there_are_never_two_primaries() {
    let yard = Yard::up(REWINDABLE, json!({}));
    let load = Load::start(&pooled(&yard), 2, EVERY);
    load.flows().await;
    let mut places = ["west", "east"].into_iter().cycle();
    let mut permits = 1;
    loop {
        let to = places.next().unwrap();
        let with = json!({ "database": "orders", "to": to });
        let key = format!("switch p{permits}");
        let cx = yard.cx(&key, permits);
        let intent = prepare(&cx, "database.switchover", &with).await.unwrap();
        let cut = apply(&cx, "database.switchover", &intent).await.is_err();
        assert!(yard.writable().await.len() <= 1, "after {permits} permits");
        let whole = yard.cx(&key, u64::MAX);
        let seen = observed(&whole, "database.switchover", &intent).await;
        if let Err(missing) = seen {
            assert_eq!(missing.code, "absent", "after {permits} permits");
            finish(&whole, "database.switchover", &intent).await.unwrap_or_else(|f| panic!("after {permits} permits: {}: {f}", f.code));
        }
        assert_eq!(yard.writable().await, [to], "after {permits} permits");
        load.flows().await;
        if !cut {
            break;
        }
        permits += 2;
    }
    assert!(permits > 8, "it asks for {permits} permits only");
    let account = load.end().await;
    let now = yard.writable().await[0];
    assert_eq!(account.failed, Vec::<String>::new());
    assert_eq!(missing(yard.cluster(now), &account.acknowledged), Vec::<i64>::new());
}

/// For how long before the kill nothing more is sent to the standby: at random, the same for a round each time, and now and
/// then not at all.
fn delay(round: usize) -> Duration {
    let mut x = (round as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x ^= x >> 29;
    x = x.wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x ^= x >> 32;
    Duration::from_millis(if x.is_multiple_of(5) { 0 } else { x % 900 })
}

/// The rows of the killed server, as it has them itself: a copy of it is started by itself, past everything of Muster's.
fn rows_of_the_dead(yard: &Yard, region: &str) -> BTreeSet<i64> {
    let copy = yard.home.0.path().join("truth");
    let copied = Command::new("cp").arg("-a").arg(&yard.cluster(region).data).arg(&copy).status().unwrap();
    assert!(copied.success());
    for file in ["postmaster.pid", "standby.signal"] {
        let _ = std::fs::remove_file(copy.join(file));
    }
    let server = yard.cluster(region).again(&copy);
    let rows = ids(&server);
    drop(server);
    std::fs::remove_dir_all(&copy).unwrap();
    rows
}

fn ids(cluster: &Cluster) -> BTreeSet<i64> {
    cluster.sql("SELECT id FROM writes").lines().map(|line| line.trim().parse().unwrap()).collect()
}

/// A primary is killed, with replication held up at random; what was acknowledged and is not there afterwards is counted, is
/// what the two databases themselves say, and is in the file of what is stranded.
async fn kills(programs: Programs, count: usize) {
    let yard = Yard::of(programs, REWINDABLE, json!({}));
    let (mut outages, mut lost_in_all, mut lossy) = (Vec::new(), 0, 0);
    let (mut from, mut to) = ("east", "west");
    for round in 0..count {
        let load = Load::start(&direct(&yard), CLIENTS, EVERY);
        let through = Load::start(&pooled(&yard), 1, EVERY);
        load.flows().await;
        through.flows().await;
        let held = delay(round);
        if !held.is_zero() {
            for sender in yard.cluster(from).sql("SELECT pid FROM pg_stat_replication").lines() {
                assert!(Command::new("kill").args(["-STOP", sender]).status().unwrap().success());
            }
            tokio::time::sleep(held).await;
        }
        yard.cluster(from).signal("KILL");
        let begun = Instant::now();
        let proof = yard.done("database.fence", json!({ "database": "orders", "region": from })).await["proof"].clone();
        let fenced = begun.elapsed();
        yard.done("database.promote", json!({ "database": "orders", "region": to, "proof": proof })).await;
        let promoted = begun.elapsed();
        load.flows().await;
        // Whoever comes through the pooler is let in as well.
        let admitted = yard.done("database.admit", json!({ "database": "orders", "region": to, "proof": proof })).await;
        assert!(admitted.get("poolers_left").is_none(), "{admitted}");
        through.flows().await;
        let (mut account, through) = (load.end().await, through.end().await);
        let pooled_gap = through.longest_gap();
        account.acknowledged.extend(through.acknowledged);
        assert_eq!(yard.writable().await, [to]);
        let lost: BTreeSet<i64> = missing(yard.cluster(to), &account.acknowledged).into_iter().collect();
        let survived = ids(yard.cluster(to));
        let truth: BTreeSet<i64> = rows_of_the_dead(&yard, from).difference(&survived).copied().collect();
        let acknowledged: BTreeSet<i64> = account.acknowledged.iter().copied().collect();
        // What was committed and never answered is nobody's loss; each client tries again what it was not answered.
        let told: BTreeSet<i64> = truth.intersection(&acknowledged).copied().collect();
        assert!(
            lost == told && truth.len() - told.len() <= CLIENTS as usize + 1,
            "round {round}: lost {lost:?}, the databases say {truth:?}"
        );
        let out = yard.done("database.rejoin", json!({ "database": "orders", "region": from, "primary": to })).await;
        let stranded = stranded_ids(&out);
        assert!(lost.iter().all(|id| stranded.contains(id)), "round {round}: lost {lost:?}, stranded {stranded:?}; {out}");
        assert!(
            stranded.iter().all(|id| truth.contains(id) || survived.contains(id)),
            "round {round}: stranded {stranded:?}, truly {truth:?}"
        );
        lost_in_all += lost.len();
        lossy += usize::from(!lost.is_empty());
        outages.push(u64::try_from(account.longest_gap().as_millis()).unwrap());
        eprintln!(
            "replication held up for {} ms; fenced after {} ms, promoted after {} ms, nothing acknowledged for {} ms, and through the pooler for {} ms, {} lost of {}, {} stranded, {}",
            held.as_millis(),
            fenced.as_millis(),
            promoted.as_millis(),
            outages.last().unwrap(),
            pooled_gap.as_millis(),
            lost.len(),
            account.acknowledged.len(),
            stranded.len(),
            out["how"]
        );
        (from, to) = (to, from);
    }
    outages.sort_unstable();
    eprintln!(
        "{count} kills: outage p50 {} ms, longest {} ms; {lost_in_all} acknowledged writes lost in {lossy} of them, as both databases say each time, each of them in the file of stranded writes",
        quantile(&outages, 0.5),
        outages.last().unwrap()
    );
}

fn stranded_ids(out: &serde_json::Value) -> Vec<i64> {
    let Some(file) = out["stranded"]["file"].as_str() else { return Vec::new() };
    let text = std::fs::read_to_string(file).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.filter(|line| line["table"] == "public.writes").filter_map(|line| line["row"]["id"].as_i64()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_is_killed_is_fenced_and_its_standby_promoted() {
    kills(Programs::Debian, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_is_killed_is_fenced_and_its_standby_promoted_in_18() {
    kills(Programs::Eighteen, 2).await;
}

/// A pooler that was lost with its region is left and named; without one that belongs to the new primary nobody is let in.
#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_is_left_only_where_it_was_lost_with_its_region() {
    let gone = json!({ "host": "127.0.0.1", "port": free_port(), "user": "muster", "file": "/nowhere/orders.ini", "region": "east" });
    let mut yard = Yard::up(REWINDABLE, json!({ "poolers": [gone] }));
    let proof = yard.done("database.fence", json!({ "database": "orders", "region": "east" })).await["proof"].clone();
    yard.done("database.promote", json!({ "database": "orders", "region": "west", "proof": proof })).await;
    let admit = json!({ "database": "orders", "region": "west" });
    let left = yard.done("database.admit", admit.clone()).await["poolers_left"].clone();
    assert!(
        left.as_array().is_some_and(|all| all.len() == 1) && left[0].as_str().unwrap().starts_with("PgBouncer at 127.0.0.1:"),
        "{left}"
    );

    let mut estate = (*yard.estate).clone();
    estate.databases.values_mut().next().unwrap().poolers[0].region = serde_json::from_value(json!("west")).unwrap();
    yard.estate = Arc::new(estate);
    yard.world = Arc::new(World::new(yard.estate.clone(), Arc::new(SystemClock::new())));
    let refused = yard.fails("database.admit", admit).await;
    assert!(refused.to_string().contains("PgBouncer at 127.0.0.1:"), "{refused}");

    // One that does not answer keeps no standby from coming back, and is told.
    let with = json!({ "database": "orders", "region": "east", "primary": "west" });
    let left = yard.done("database.rejoin", with.clone()).await["poolers_left"].clone();
    assert!(left.as_array().is_some_and(|all| all.len() == 1) && left[0].as_str().unwrap().contains("PgBouncer at"), "{left}");

    // It is back with its region, and its line says still what it said: with the old primary it is led to the new one.
    let file = yard.home.0.path().join("orders.ini");
    let mut estate = (*yard.estate).clone();
    let pooler = &mut estate.databases.values_mut().next().unwrap().poolers[0];
    (pooler.port, pooler.file, pooler.user) = (yard.pooler_port, file.clone(), "muster".into());
    (pooler.database, pooler.region) = (Some("orders".into()), serde_json::from_value(json!("east")).unwrap());
    yard.estate = Arc::new(estate);
    yard.world = Arc::new(World::new(yard.estate.clone(), Arc::new(SystemClock::new())));
    assert!(std::fs::read_to_string(&file).unwrap().contains(&format!("port={}", yard.east.port)));
    let rejoined = yard.done("database.rejoin", with).await;
    assert!(rejoined.get("poolers_left").is_none(), "{rejoined}");
    assert!(std::fs::read_to_string(&file).unwrap().contains(&format!("port={}", yard.west.port)));
}

mod soak {
    use super::{Command, Programs, kills, switchovers};

    fn many() -> usize {
        std::env::var("SOAK").ok().and_then(|n| n.parse().ok()).unwrap_or(200)
    }

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "long: make soak"]
    async fn switchovers_in_a_row() {
        // The load of the machine belongs to the figures.
        let _ = Command::new("uptime").status();
        switchovers(many()).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "long: make soak"]
    async fn primaries_killed() {
        kills(Programs::Debian, many()).await;
    }
}
