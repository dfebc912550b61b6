//! Making the old primary of RDS a replica of the new one: an instance is deleted, with a last snapshot, and another made
//! under its name. **One emulator does it**: moto deletes with a last snapshot and makes replicas across regions; MiniStack
//! makes none across regions. moto gives every instance one and the same resource id, by which Muster tells the old one from
//! the new, as Amazon documents it; so the proxy mends that in moto's answers. The server behind the new replica is a real
//! standby of a real primary; the lease is allowed to the primary's region by an authority of the test's own.

use super::{
    fault_proxy::Fault,
    pg::{Cluster, Home},
    rds_stage::{EAST, Stage, WEST, Which, at},
};
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    net::TcpListener,
};

const DELETE: &str = "Action=DeleteDBInstance";
const CREATE: &str = "Action=CreateDBInstanceReadReplica";
const REJOIN: &str = "database.rejoin";
/// The one that moto gives to everything.
const RESOURCE: &str = "db-M5ENSHXFPU6XHZ4G4ZEI5QIO2U";

/// Answers every question about the lease of `orders`: it is allowed to west. The thread ends with the tests.
fn lease() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 4096]);
            let body = json!({ "name": "orders", "epoch": 5, "allowed": "west", "holder": null, "ttl_ms": 1000, "remaining_ms": 0,
                "expired_at": null, "now": "2026-01-01T00:00:00Z" })
            .to_string();
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = stream.write_all((head + &body).as_bytes());
        }
    });
    port
}

struct Pair {
    stage: Stage,
    _west: Cluster,
    _east: Cluster,
    /// The last to go: the servers' files are in it.
    _home: Home,
}

/// West serves; east is as it was when it was lost. What answers at the old instance's address is what will: a standby.
async fn pair() -> Pair {
    let home = Home::new();
    let west = Cluster::primary(&home);
    let east = west.standby(&home);
    west.await_standby();
    let lease = format!("{}    lease: {{ url: \"http://127.0.0.1:{}\" }}\n", at(west.port), lease());
    let stage = Stage::with(Which::Moto, &at(east.port), &lease).await;
    stage.make_instance(EAST, "orders-east").await;
    stage.make_instance(WEST, "orders-west").await;
    stage.proxy.mend("Action=DescribeDBInstances", |_, body| {
        let replica = body.contains("<ReadReplicaSourceDBInstanceIdentifier>");
        assert!(body.contains(RESOURCE) || !body.contains("<DbiResourceId>"), "moto tells them apart by now: {body}");
        if replica { body.replace(RESOURCE, "db-OFTHENEWREPLICA") } else { body }
    });
    Pair { stage, _west: west, _east: east, _home: home }
}

impl Pair {
    fn with() -> Value {
        json!({ "database": "orders", "region": "east", "primary": "west" })
    }
    /// One replica, one last snapshot, each asked for once, and the primary untouched.
    async fn check(&self, about: &str) {
        let stage = &self.stage;
        assert_eq!((stage.proxy.passed(DELETE), stage.proxy.passed(CREATE)), (1, 1), "{about}: no second change");
        assert_eq!((stage.count(EAST).await, stage.count(WEST).await), ((1, 1), (1, 0)), "{about}: no second replica");
        let replica = stage.instances("east").instance("orders-east").await.unwrap().unwrap();
        assert!(replica.replicates_from.is_some_and(|source| source.contains("orders-west")), "{about}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_primary_is_replaced_once_whatever_becomes_of_the_answers() {
    for (call, fault) in [
        (CREATE, None),
        (DELETE, Some(Fault::ErrorAfter)),
        (DELETE, Some(Fault::CutAfter)),
        (CREATE, Some(Fault::ErrorAfter)),
        (CREATE, Some(Fault::CutAfter)),
    ] {
        let pair = pair().await;
        if let Some(fault) = fault {
            pair.stage.proxy.fault(call, 1, fault);
        }
        let out = pair.stage.step(REJOIN, "rejoin", Pair::with()).await.unwrap();
        assert!(out["final_snapshot"].as_str().is_some_and(|name| name.starts_with("muster-orders-final-")), "{out}");
        assert!(out["position"].is_string(), "it streams: {out}");
        pair.check(&format!("{call}, {fault:?}")).await;
        // Once more, by another run: it is a replica already, and nothing is asked for.
        pair.stage.step(REJOIN, "again", Pair::with()).await.unwrap();
        pair.check(&format!("{call}, {fault:?}, again")).await;
    }
}

/// The real program is killed when the old instance is deleted, or the new one is made, and nobody has heard of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_between_a_call_and_its_record_replaces_the_old_primary_once() {
    for call in [DELETE, CREATE] {
        let pair = pair().await;
        pair.stage.killed_before_its_record(REJOIN, call, &Pair::with());
        pair.check(&format!("killed after {call}")).await;
    }
}
