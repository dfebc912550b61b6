//! How soon a change of DNS is where it must be: from the call of the provider's change until every authoritative server
//! of the zone has answered with the new record, each asked by itself past every cache.
//!
//! Real servers of the system's packages, started as the tests start them: BIND and Knot alone, each as the primary of the
//! other with its delays of NOTIFY at their lowest; and for the shape of Route 53 the API of an emulator, from the call to
//! INSYNC to what is read back. `make bench-dns`; needs what `make deps` installs. What a server needs to write a change
//! down is in it: the servers keep their zones where temporary files are kept.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../tests/it/dns_servers.rs"]
#[allow(dead_code, clippy::format_collect)]
mod dns_servers;
#[path = "../tests/it/ports.rs"]
#[allow(dead_code)]
mod ports;
mod support;

use dns_servers::{Authority, KEY, Kind, NAME, SECRET, ZONE, address};
use muster::{
    model::estate::{Aws, AwsCredentials, AwsEndpoints, SecretRef},
    providers::{
        aws::AwsClients,
        clock::SystemClock,
        port::*,
        resolver::DnsResolver,
        rfc2136::{Settings, Updates},
        route53::Route53,
        tsig::{Algorithm, Key},
    },
};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

const CHANGES: usize = 50;
/// How often each way of telling a secondary is measured.
const ROUNDS: usize = 2;
/// What a change should take until it is read back from every server.
const GOAL: Duration = Duration::from_millis(20);
/// Between two questions to a server that does not have it yet: a figure is as fine as this.
const STEP: Duration = Duration::from_millis(1);
const PATIENCE: Duration = Duration::from_secs(30);

fn load() -> String {
    std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned()
}

fn told(what: &str, mut took: Vec<Duration>, goal: bool) {
    took.sort_unstable();
    let at = |share: usize| took[(took.len() - 1) * share / 100];
    let within = took.iter().filter(|one| **one <= GOAL).count();
    let goal = if goal { format!(", {within} of {} within {GOAL:?}", took.len()) } else { String::new() };
    println!("{what:<58} {:>10.2?} median, {:>10.2?} p99, {:>10.2?} longest{goal}", at(50), at(99), at(100));
}

fn record(last: u8) -> RecordSet {
    RecordSet { name: NAME.into(), kind: "A".into(), ttl_s: 5, values: vec![Ipv4Addr::new(127, 0, last, 1).to_string()] }
}

/// When this server first answers with the record and nothing else.
async fn answered(server: SocketAddr, want: &RecordSet, begun: Instant) -> Duration {
    let want: Vec<IpAddr> = want.values.iter().map(|value| value.parse().unwrap()).collect();
    loop {
        if DnsResolver.ask(Some(server), NAME).await.is_ok_and(|answer| answer.addresses == want) {
            return begun.elapsed();
        }
        assert!(begun.elapsed() < PATIENCE, "{server} does not get the change");
        tokio::time::sleep(STEP).await;
    }
}

/// Changes of one zone, there and back: until the primary took each of them, and until every server was read to have it.
async fn changes(what: &str, primary: SocketAddr, secondaries: &[SocketAddr], notify: bool) {
    let key = Some(Key::new(KEY, Algorithm::Sha256, &SECRET.into()).unwrap());
    let settings =
        Settings { primary: primary.to_string(), secondaries: secondaries.iter().map(ToString::to_string).collect(), key, notify };
    let dns = Updates::new(settings, Arc::new(SystemClock::new()));
    let all: Vec<SocketAddr> = std::iter::once(primary).chain(secondaries.iter().copied()).collect();
    let mut standing = record(1);
    let there = Instant::now();
    futures::future::join_all(all.iter().map(|server| answered(*server, &standing, there))).await;
    let (mut accepted, mut everywhere) = (Vec::new(), Vec::new());
    // The first does not count: a server has its files to make.
    for round in 0..=CHANGES {
        let next = record(if round % 2 == 0 { 2 } else { 1 });
        let begun = Instant::now();
        let change = dns.swap(ZONE, Some(&standing), Some(&next), "").await.unwrap();
        let taken = begun.elapsed();
        let seen = futures::future::join_all(all.iter().map(|server| answered(*server, &next, begun))).await;
        if round > 0 {
            accepted.push(taken);
            everywhere.push(seen.into_iter().max().unwrap());
        }
        assert!(dns.in_sync(&change).await.unwrap(), "{what}: every server answers with it, and its serial is older");
        standing = next;
    }
    told(&format!("{what}: the call"), accepted, false);
    told(&format!("{what}: to the answer of every server"), everywhere, true);
}

async fn servers() {
    for kind in [Kind::Bind, Kind::Knot] {
        let primary = Authority::primary(kind, &[]);
        changes(&format!("{kind:?} alone"), primary.address, &[], false).await;
    }
    for (first, second) in [(Kind::Bind, Kind::Knot), (Kind::Knot, Kind::Bind)] {
        let there = address();
        let primary = Authority::primary(first, &[there]);
        let _secondary = Authority::secondary(second, there, primary.address);
        // In turns: what differs is who tells the secondary.
        for round in 1..=ROUNDS {
            changes(&format!("{first:?} to {second:?}, {round}"), primary.address, &[there], false).await;
            changes(&format!("{first:?} to {second:?}, NOTIFY from here, {round}"), primary.address, &[there], true).await;
        }
    }
}

/// MiniStack, killed with the bench.
struct Emulator {
    process: Child,
    url: String,
    dir: tempfile::TempDir,
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Emulator {
    /// None where `make deps` was not run.
    fn start() -> Option<Self> {
        let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python");
        if !python.exists() {
            return None;
        }
        let (dir, port) = (tempfile::tempdir().unwrap(), address().port());
        let mut command = Command::new(python);
        command.args(["-m", "ministack"]).env("BIND_HOST", "127.0.0.1").env("GATEWAY_PORT", port.to_string()).env("SFTP_ENABLED", "0");
        let process = command.current_dir(dir.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let emulator = Self { process, url: format!("http://127.0.0.1:{port}"), dir };
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begun.elapsed() < PATIENCE, "the emulator does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(emulator)
    }

    /// Muster's provider for it, and a zone.
    async fn provider(&self) -> (Route53, String) {
        let secret = |name: &str, value: &str| {
            let path = self.dir.path().join(name);
            std::fs::write(&path, value).unwrap();
            SecretRef::File(path)
        };
        let keys = AwsCredentials { access_key_id: secret("id", "test"), secret_access_key: secret("secret", "testtest") };
        let endpoints = AwsEndpoints { route53: Some(self.url.parse().unwrap()), ..AwsEndpoints::default() };
        let aws = Aws { region: "us-east-1".into(), credentials: Some(keys), endpoints, ..Aws::default() };
        let clients = Arc::new(AwsClients::new(Some(aws)));
        let call = clients.route53().await.unwrap().write.create_hosted_zone().name(ZONE).caller_reference("bench");
        let made = call.send().await.unwrap();
        let zone = made.hosted_zone().unwrap().id().trim_start_matches("/hostedzone/").to_owned();
        (Route53::new(clients, Arc::new(SystemClock::new())), zone)
    }
}

/// The way of a change through an API of the shape of Route 53's. It says what Muster and an emulator need, and nothing of
/// Amazon.
async fn route53() {
    let Some(emulator) = Emulator::start() else {
        println!("Route 53's API: left out, there is no .venv (make deps)");
        return;
    };
    let (dns, zone) = emulator.provider().await;
    let mut standing: Vec<RoutedSet> = Vec::new();
    let (mut accepted, mut in_sync, mut read) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=CHANGES {
        let next = vec![RoutedSet::simple(record(if round % 2 == 0 { 2 } else { 1 }))];
        let begun = Instant::now();
        let change = dns.replace(&zone, &standing, &next, "bench").await.unwrap();
        let taken = begun.elapsed();
        while !dns.in_sync(&change).await.unwrap() {
            assert!(begun.elapsed() < PATIENCE, "the change stays PENDING");
        }
        let synchronised = begun.elapsed();
        assert_eq!(dns.sets(&zone, NAME, "A").await.unwrap(), next);
        if round > 0 {
            accepted.push(taken);
            in_sync.push(synchronised);
            read.push(begun.elapsed());
        }
        standing = next;
    }
    told("Route 53's API, MiniStack: the call", accepted, false);
    told("Route 53's API, MiniStack: to INSYNC (one PENDING before)", in_sync, false);
    told("Route 53's API, MiniStack: to the records read back", read, false);
}

fn main() {
    println!("load at the start: {}; {CHANGES} changes each", load());
    let runtime = support::runtime();
    runtime.block_on(servers());
    runtime.block_on(route53());
    println!("load at the end: {}", load());
}
