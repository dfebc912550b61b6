//! Switchovers under load: nothing lost, nothing failed through the pooler; back again when the standby cannot follow;
//! Muster gone at every point on the way. And the unplanned: a primary that is killed.

use crate::{
    pg_load::{Load, Route, missing},
    pg_yard::{REWINDABLE, Yard, apply, finish, observed, prepare, session, until},
};
use serde_json::json;
use sqlx::Executor;
use std::{
    process::Command,
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

/// As an operator does it, with the shipped runbook; and what Patroni manages is left to it.
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
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
    command.current_dir(home.path()).args(["run", book.to_str().unwrap(), "-i", "database=orders", "-i", "to=west", "--live", "--json"]);
    let ran = command.env_remove("MUSTER_ESTATE").env_remove("MUSTER_STATE").output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert_eq!(ran.status.code(), Some(0), "{said}\n{}", String::from_utf8_lossy(&ran.stderr));
    assert!(said.contains("\"succeeded\""), "{said}");
    assert_eq!(yard.writable().await, ["west"]);
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

/// A primary is killed; what was acknowledged and is not there afterwards is counted, and is exactly what is stranded.
async fn kills(count: usize) {
    let yard = Yard::up(REWINDABLE, json!({}));
    let (mut outages, mut lost_in_all) = (Vec::new(), 0);
    let (mut from, mut to) = ("east", "west");
    for _ in 0..count {
        let load = Load::start(&direct(&yard), CLIENTS, EVERY);
        load.flows().await;
        yard.cluster(from).signal("KILL");
        let begun = Instant::now();
        let proof = yard.done("database.fence", json!({ "database": "orders", "region": from })).await["proof"].clone();
        let fenced = begun.elapsed();
        yard.done("database.promote", json!({ "database": "orders", "region": to, "proof": proof })).await;
        let promoted = begun.elapsed();
        load.flows().await;
        let account = load.end().await;
        assert_eq!(yard.writable().await, [to]);
        let lost = missing(yard.cluster(to), &account.acknowledged);
        let out = yard.done("database.rejoin", json!({ "database": "orders", "region": from, "primary": to })).await;
        let stranded = stranded_ids(&out);
        assert!(lost.iter().all(|id| stranded.contains(id)), "lost {lost:?}, stranded {stranded:?}");
        lost_in_all += lost.len();
        outages.push(u64::try_from(account.longest_gap().as_millis()).unwrap());
        eprintln!(
            "fenced after {} ms, promoted after {} ms, nothing acknowledged for {} ms, {} lost of {}, {} stranded, {}",
            fenced.as_millis(),
            promoted.as_millis(),
            outages.last().unwrap(),
            lost.len(),
            account.acknowledged.len(),
            stranded.len(),
            out["how"]
        );
        (from, to) = (to, from);
    }
    outages.sort_unstable();
    eprintln!(
        "{count} kills: outage p50 {} ms, longest {} ms; {lost_in_all} acknowledged writes lost, each of them in the file of stranded writes",
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
    kills(2).await;
}

mod soak {
    use super::{Command, kills, switchovers};

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
        kills(many()).await;
    }
}
