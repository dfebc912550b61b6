//! The lab over servers of one's own: its service writes to the primary wherever that is, as the lease says, and a primary
//! and its standby change places under it.

use crate::lab::{Box, ask, until};
use muster::{
    lab::Servers,
    model::node::Node,
    providers::{clock::SystemClock, world::World},
};
use serde_json::json;
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

async fn up() -> Box {
    let lab = Box::of(Servers::Own).await;
    until("the lease is granted", || async { lab.predict("east").await.0 == 200 }).await;
    lab
}

async fn acknowledged(lab: &Box, region: &str) -> String {
    let (status, answer) = lab.predict(region).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["region"], region, "{answer}");
    answer["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn either_region_writes_to_the_primary_and_to_no_other() {
    let lab = up().await;
    assert!(lab.lab.status().unwrap().iter().all(|p| p.state == "running" && p.role != "rds"), "{:?}", lab.lab.status());
    let id = acknowledged(&lab, "west").await;
    assert!(lab.has("east", &id).await, "west wrote somewhere else");
    until("the row is on the standby", || lab.has("west", &id)).await;

    assert!(lab.lab.kill("east").await.unwrap() >= 3);
    assert_eq!(lab.predict("west").await.0, 503, "the primary is dead");
    lab.allow(None).await;
    lab.lease_over().await;
    assert_eq!(lab.predict("west").await.0, 503, "nobody may write");
    sqlx::query("select pg_promote(true, 60)").execute(&lab.sql("west").await).await.unwrap();
    assert_eq!(lab.predict("west").await.0, 503, "promoted, and nobody may write yet");
    lab.allow(Some("west")).await;
    let id = acknowledged(&lab, "west").await;
    assert!(lab.has("west", &id).await);

    let said = lab.lab.heal("all").await.unwrap();
    assert!(said.contains("postgres:predictions-east in east"), "{said}");
    // It is back as a primary, and fenced: its region's service writes to the new one.
    let id = acknowledged(&lab, "east").await;
    assert!(lab.has("west", &id).await && !lab.has("east", &id).await, "the old primary took a write that was acknowledged");
    lab.down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switchover_under_load_loses_nothing_and_is_felt_for_a_moment() {
    let lab = up().await;
    let text = std::fs::read(lab.lab.estate_path()).unwrap();
    let estate = Arc::new(muster::runbook::load::load_estate("muster.yaml", &text).unwrap().estate);
    let world = Arc::new(World::new(estate.clone(), Arc::new(SystemClock::new())));
    let scratch = tempfile::tempdir().unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let acks: Arc<Mutex<Vec<(String, Instant)>>> = Arc::default();
    // Half of the clients have an old answer to the name, as they may for as long as it lives.
    let load: Vec<_> = (0..4)
        .map(|n| {
            let (over, acks, url) = (over.clone(), acks.clone(), lab.url(["east", "west"][n % 2], "/predict"));
            tokio::spawn(async move {
                while !over.load(Ordering::SeqCst) {
                    let (status, answer) = ask(&url, true).await;
                    if status == 200 {
                        acks.lock().unwrap().push((answer["id"].as_str().unwrap().to_owned(), Instant::now()));
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut pauses = Vec::new();
    for (n, to) in ["west", "east", "west"].into_iter().enumerate() {
        let cx = crate::pg_yard::context(&world, &estate, scratch.path(), &format!("switch s{n}"), u64::MAX);
        let with = Node::typed(json!({ "database": "predictions", "to": to }));
        let action = muster::actions::find("database.switchover").unwrap();
        let intent = action.prepare(&cx.read, &with).await.unwrap_or_else(|r| panic!("{}", r.failure)).intent;
        let out = crate::pg_yard::finish(&cx, "database.switchover", &intent).await.unwrap_or_else(|f| panic!("{}: {f}", f.code));
        pauses.push(out["write_pause_ms"].as_u64().unwrap());
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    over.store(true, Ordering::SeqCst);
    for client in load {
        client.await.unwrap();
    }
    let acks = acks.lock().unwrap().clone();
    let gap = acks.windows(2).map(|pair| pair[1].1.duration_since(pair[0].1)).max().unwrap();
    println!("writes held for {pauses:?} ms; {} acknowledged, none for {} ms at most", acks.len(), gap.as_millis());
    let held: Vec<String> = sqlx::query_scalar("select id from predictions").fetch_all(&lab.sql("west").await).await.unwrap();
    let held: std::collections::BTreeSet<_> = held.into_iter().collect();
    let lost: Vec<_> = acks.iter().filter(|(id, _)| !held.contains(id)).collect();
    assert!(lost.is_empty() && acks.len() > 100, "{} of {} lost: {lost:?}", lost.len(), acks.len());
    // A lease that had to run out would be felt for a second, whatever the servers do.
    let longest = pauses.iter().max().copied().unwrap();
    assert!(gap < Duration::from_millis(longest + 500), "felt for {gap:?}, held for {longest} ms");
    lab.down().await;
}
