//! A known delay put into each of the five parts of a recovery time is found in that part, and in no other.
//!
//! The drill moves a service that only reads: no lease runs out and no database is promoted, whose own
//! spread would hide a tenth of a second. The name has a time to live of nothing, for the same reason.
//! Probe, detector, engine, DNS, watch and fold are those of every drill.

use crate::drill_support::*;
use serde_json::json;
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

const TOLERATED: i64 = 100;
/// Noise only ever adds: of so many tries the smallest value counts.
const TRIES: usize = 4;

/// What is delayed, and by how much.
#[derive(Clone, Copy)]
struct Delays {
    /// Answers missed, each 40 ms, until the region is called lost.
    missed: i64,
    decide: i64,
    act: i64,
    propagate: i64,
    verify: i64,
}

const NONE: Delays = Delays { missed: 10, decide: 0, act: 0, propagate: 0, verify: 0 };

struct Bench {
    desk: Desk,
    slow: SocketAddr,
    slowness: Arc<AtomicU64>,
}

impl Bench {
    fn new() -> Self {
        let desk = Desk::with_lab();
        let slowness = Arc::new(AtomicU64::new(0));
        let slow = slow_server(slowness.clone());
        let estate = std::fs::read_to_string(desk.lab().estate_path()).unwrap();
        assert!(estate.contains("ttl: 2s"), "{estate}");
        std::fs::write(desk.path("muster.yaml"), estate.replace("ttl: 2s", "ttl: 0s")).unwrap();
        wait_for(keep_no_answer(&desk));
        Self { desk, slow, slowness }
    }

    fn set(&self, knob: &str, value: i64) {
        let set = self.desk.muster(&["lab", "set", knob, &value.to_string()]);
        assert_eq!(set.code, Some(0), "{set:?}");
    }

    /// One drill with these delays; its five parts.
    fn measure(&self, delays: Delays) -> [i64; 5] {
        self.slowness.store(delays.decide.unsigned_abs(), Ordering::Relaxed);
        self.set("dns_delay_ms", 50 + delays.propagate);
        self.set("predict_delay_ms.west", delays.verify);
        let pause = format!("{}", (200 + delays.act) as f64 / 1_000.0);
        let there =
            runbook("there", &format!("  - {{ id: ask, uses: http.check, with: {{ url: \"http://{}/\" }} }}\n{}", self.slow, wait(&pause)));
        let back = runbook("back", "");
        std::fs::write(self.desk.path("runbooks/there.yaml"), there).unwrap();
        std::fs::write(self.desk.path("runbooks/back.yaml"), back).unwrap();
        self.desk.drill(
            "parts",
            &[
                ("runbook: regional-failover", "runbook: there"),
                ("runbook: failback", "runbook: back"),
                ("{\"id\": \"$ID\", ", "{\"id\": \"$ID\", \"record\": false, "),
                ("  ledger: { database: predictions }\n", ""),
                // What is not measured is not held to anything.
                ("rto: 60s, rpo: 5s", "rto: 60s"),
                ("good_probes_missed: 5", &format!("good_probes_missed: {}", delays.missed)),
            ],
        );
        let ran = self.desk.muster(&["drill", "run", "parts"]);
        let view = ran.result();
        assert_eq!(ran.code, Some(0), "{view} {}", ran.story);
        assert_eq!(view["then"]["as_found"], true, "{view}");
        parts(view)
    }

    /// The smallest of each part over several drills, as soon as they are `good`.
    fn smallest(&self, delays: Delays, good: impl Fn(&[i64; 5]) -> bool) -> [i64; 5] {
        let mut least = self.measure(delays);
        for _ in 1..TRIES {
            if good(&least) {
                break;
            }
            let next = self.measure(delays);
            least = std::array::from_fn(|n| least[n].min(next[n]));
        }
        least
    }
}

fn runbook(name: &str, before: &str) -> String {
    format!(
        "runbook: {name}\nmode: failover\nwaive: [{{ rule: global-control-plane, reason: as the shipped one }}]\ninputs:\n  from: {{ type: region }}\n  to: {{ type: region }}\nsteps:\n{before}  - {{ id: traffic, uses: dns.shift, with: {{ endpoint: inference, to: \"{{{{ inputs.to }}}}\" }} }}\n"
    )
}

fn wait(seconds: &str) -> String {
    format!("  - {{ id: pause, uses: exec.command, with: {{ argv: [sleep, \"{seconds}\"] }} }}\n")
}

/// Answers each request as late as it is told to.
fn slow_server(slowness: Arc<AtomicU64>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for link in listener.incoming() {
            let Ok(mut link) = link else { return };
            let _ = link.read(&mut [0; 4096]);
            std::thread::sleep(Duration::from_millis(slowness.load(Ordering::Relaxed)));
            let _ = link.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
    });
    address
}

/// Gives the name a time to live of nothing, so that no cache on the way answers for it.
async fn keep_no_answer(desk: &Desk) {
    use aws_sdk_route53::{
        config::{BehaviorVersion, Region},
        types::{Change, ChangeAction, ChangeBatch, ResourceRecord, ResourceRecordSet, RrType},
    };
    use muster::lab::plan;
    let lab = desk.lab();
    let outside = &lab.plan().outside;
    let config = aws_sdk_route53::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(format!("http://{}", outside.at(outside.route53)))
        .credentials_provider(desk.credentials())
        .build();
    let east = ResourceRecord::builder().value(lab.plan().regions["east"].address.to_string()).build().unwrap();
    let record = ResourceRecordSet::builder().name(plan::NAME).r#type(RrType::A).ttl(0).resource_records(east).build().unwrap();
    let change = Change::builder().action(ChangeAction::Upsert).resource_record_set(record).build().unwrap();
    let batch = ChangeBatch::builder().changes(change).build().unwrap();
    let client = aws_sdk_route53::Client::from_conf(config);
    client.change_resource_record_sets().hosted_zone_id(plan::ZONE_ID).change_batch(batch).send().await.unwrap();
    // Until what was cached before has run out.
    tokio::time::sleep(Duration::from_secs(3)).await;
}

#[test]
fn drill_finds_a_delay_in_the_part_where_it_was_put() {
    let bench = Bench::new();
    let twice = std::cell::Cell::new(0);
    let base = bench.smallest(NONE, |_| {
        twice.set(twice.get() + 1);
        twice.get() > 1
    });
    println!("baseline {}", json!(base));
    let cases = [
        ("detect", Delays { missed: NONE.missed + 10, ..NONE }, [400, 0, 0, 0, 0]),
        ("decide", Delays { decide: 500, ..NONE }, [0, 500, 0, 0, 0]),
        ("act", Delays { act: 600, ..NONE }, [0, 0, 600, 0, 0]),
        ("propagate", Delays { propagate: 700, ..NONE }, [0, 0, 0, 700, 0]),
        ("verify", Delays { verify: 300, ..NONE }, [0, 0, 0, 0, 300]),
    ];
    for (name, delays, expected) in cases {
        let found = |parts: &[i64; 5]| std::array::from_fn::<i64, 5, _>(|n| parts[n] - base[n]);
        let near = |parts: &[i64; 5]| found(parts).iter().zip(expected).all(|(found, want)| (found - want).abs() <= TOLERATED);
        let parts = bench.smallest(delays, near);
        println!("{name}: {expected:?} put in, {:?} found", found(&parts));
        assert!(near(&parts), "{name}: {expected:?} put in, {:?} found in {PARTS:?}; baseline {base:?}", found(&parts));
    }
}
