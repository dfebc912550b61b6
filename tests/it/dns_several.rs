//! A zone that two servers hold, each for itself, one in each region: BIND twice, and BIND beside Knot. What a failover makes
//! of it when one is gone, when it is back with the old answer, when it refuses, and when Muster dies between the two.

use super::{dns_servers::*, place::Place};
use serde_json::Value;
use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

const EAST: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);
const WEST: Ipv4Addr = Ipv4Addr::new(127, 0, 2, 1);
const PAIRS: [(Kind, Kind); 2] = [(Kind::Bind, Kind::Bind), (Kind::Bind, Kind::Knot)];

/// The estate with a server in each region, and runbooks; the second server may have a key of its own.
fn estate(place: &Place, east: SocketAddr, west: SocketAddr, resolver: SocketAddr, own_key: &str) {
    place.file("key", SECRET);
    let text = format!(
        "regions: {{ east: {{}}, west: {{}} }}\nendpoints:\n  inference:\n    name: {NAME}\n    provider: rfc2136\n    zone: {ZONE}\n    ttl: 5s\n\
         \x20   targets: {{ east: {EAST}, west: {WEST} }}\n    resolvers: [\"{resolver}\"]\n    update:\n      servers:\n\
         \x20       - {{ server: \"{east}\", region: east }}\n        - {{ server: \"{west}\", region: west{own_key} }}\n\
         \x20     key: {{ name: {KEY}, secret: {{ file: {} }} }}\n",
        place.path("key").display(),
    );
    place.file("muster.yaml", &text);
    let step = "steps:\n  - id: traffic\n    uses: dns.shift\n    with: { endpoint: inference, to: \"{{ inputs.to }}\" }\n    timeout: 30s\n    on_failure: stop\n";
    let inputs = "inputs: { from: { type: region }, to: { type: region } }\n";
    place.file("failover.yaml", &format!("runbook: failover\nmode: failover\n{inputs}{step}"));
    place.file("planned.yaml", &format!("runbook: planned\nmode: switchover\n{inputs}{step}"));
    place.file(
        "back.yaml",
        &format!("runbook: back\nmode: switchover\n{inputs}{}", step.replace("    on_failure: stop\n", "")).replace(
            "timeout: 30s\n",
            "timeout: 30s\n  - id: fails\n    uses: exec.command\n    with: { argv: [\"false\"] }\n    on_failure: undo\n",
        ),
    );
    place.file(
        "ready.yaml",
        "runbook: ready\nsteps:\n  - id: ready\n    uses: readiness.check\n    with: { region: west }\n    on_failure: stop\n",
    );
}

fn ask(server: SocketAddr) -> Option<IpAddr> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answer = runtime.block_on(muster::providers::port::Resolve::ask(&muster::providers::resolver::DnsResolver, Some(server), NAME));
    answer.ok()?.addresses.first().copied()
}

fn both(east: &Authority, west: &Authority) -> [Option<IpAddr>; 2] {
    [ask(east.address), ask(west.address)]
}

fn at(east: Ipv4Addr, west: Ipv4Addr) -> [Option<IpAddr>; 2] {
    [Some(east.into()), Some(west.into())]
}

fn go(place: &Place, book: &str, from: &str, to: &str, code: i32) -> Value {
    let (from, to) = (format!("from={from}"), format!("to={to}"));
    let said = place.muster(&["run", book, "-i", &from, "-i", &to, "--live"]).expect(code);
    assert!(!(said.out.clone() + &said.err).contains(SECRET), "the key was told");
    said.step("traffic")
}

#[test]
fn dns_shift_out_of_a_region_leaves_its_server_out_and_brings_it_in_line_again() {
    for (first, second) in PAIRS {
        let (east, west) = (Authority::primary(first, &[]), Authority::primary(second, &[]));
        let resolver = Resolver::of(west.address, &["cache-max-ttl: 0"]);
        let place = Place::new();
        estate(&place, east.address, west.address, resolver.address, "");
        // Nobody copies from anybody, and each is written.
        let step = go(&place, "planned.yaml", "east", "west", 0);
        assert_eq!((step["status"].as_str(), both(&east, &west)), (Some("succeeded"), at(WEST, WEST)), "{second:?}: {step}");
        go(&place, "planned.yaml", "west", "east", 0);
        assert_eq!(both(&east, &west), at(EAST, EAST));
        // The region is frozen. The plan has said who is left behind, and is no error.
        let plan = place.plain(&["plan", "failover.yaml", "-i", "from=east", "-i", "to=west"]).expect(0);
        let told = plan.out + &plan.err;
        assert!(told.contains("left-behind") && told.contains(&east.address.to_string()), "{told}");
        east.signal("STOP");
        let step = go(&place, "failover.yaml", "east", "west", 0);
        assert_eq!(step["status"], "succeeded_with_warning", "{second:?}: {step}");
        let left = &step["output"]["left_out"][0];
        assert_eq!((left["server"].as_str(), left["region"].as_str()), (Some(east.address.to_string().as_str()), Some("east")), "{step}");
        assert_eq!(ask(west.address), Some(WEST.into()));
        // It is back with the old answer: told, and brought in line by the same step.
        east.signal("CONT");
        place.until("it answers again", || ask(east.address).is_some());
        assert_eq!(both(&east, &west), at(EAST, WEST), "{second:?}");
        let ready = place.muster(&["run", "ready.yaml", "--live"]).expect(1);
        assert!(ready.out.contains("disagree") && ready.out.contains("brings it in line"), "{}", ready.out);
        let step = go(&place, "failover.yaml", "east", "west", 0);
        assert_eq!((step["status"].as_str(), both(&east, &west)), (Some("succeeded"), at(WEST, WEST)), "{second:?}: {step}");
        place.muster(&["run", "ready.yaml", "--live"]).expect(0);
        // And by the way back, where it was not.
        go(&place, "failover.yaml", "west", "east", 0);
        assert_eq!(both(&east, &west), at(EAST, EAST));
        // Dead instead of frozen: nothing planned is begun without it, an unplanned failover is.
        east.signal("KILL");
        let step = go(&place, "planned.yaml", "east", "west", 1);
        assert!(step["status"] == "failed" && ask(west.address) == Some(EAST.into()), "{step}");
        let step = go(&place, "failover.yaml", "east", "west", 0);
        assert_eq!((step["status"].as_str(), ask(west.address)), (Some("succeeded_with_warning"), Some(WEST.into())), "{step}");
    }
}

#[test]
fn a_server_that_refuses_leaves_the_change_nowhere_and_undo_gives_each_its_own() {
    for (first, second) in PAIRS {
        let (east, west) = (Authority::primary(first, &[]), Authority::primary(second, &[]));
        let resolver = Resolver::of(west.address, &["cache-max-ttl: 0"]);
        let place = Place::new();
        place.file("wrong", "d3Jvbmd3cm9uZw==");
        let wrong = format!(", key: {{ name: {KEY}, secret: {{ file: {} }} }}", place.path("wrong").display());
        estate(&place, east.address, west.address, resolver.address, &wrong);
        let step = go(&place, "planned.yaml", "east", "west", 1);
        assert!(step["status"] == "failed" && step.to_string().contains("BADSIG"), "{second:?}: {step}");
        assert_eq!(both(&east, &west), at(EAST, EAST), "{second:?}: what the first took was taken back");
        // They do not have the same, and each gets back what it had.
        place.file("wrong", SECRET);
        let said = place.muster(&["run", "back.yaml", "-i", "from=east", "-i", "to=west", "--live"]).expect(1);
        assert_eq!(said.step("traffic")["status"], "undone");
        assert_eq!(both(&east, &west), at(EAST, EAST), "{second:?}");
        let other = place.read("muster.yaml").replace(&format!("        - {{ server: \"{}\", region: east }}\n", east.address), "");
        place.file("muster.yaml", &other);
        go(&place, "planned.yaml", "east", "west", 0);
        assert_eq!(both(&east, &west), at(EAST, WEST));
        estate(&place, east.address, west.address, resolver.address, "");
        let said = place.muster(&["run", "back.yaml", "-i", "from=east", "-i", "to=west", "--live"]).expect(1);
        assert_eq!(said.step("traffic")["status"], "undone");
        assert_eq!(both(&east, &west), at(EAST, WEST), "{second:?}");
    }
}

/// In front of a server: passes everything on but updates, which it keeps until it is told otherwise.
struct Gate {
    address: SocketAddr,
    open: Arc<AtomicBool>,
    kept: Arc<AtomicUsize>,
}

impl Gate {
    fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, open, kept) = (listener.local_addr().unwrap(), Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (opened, count) = (open.clone(), kept.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (opened, count) = (opened.clone(), count.clone());
                std::thread::spawn(move || pass(stream, server, &opened, &count));
            }
        });
        Self { address, open, kept }
    }
}

fn message(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut framed = vec![0; usize::from(u16::from_be_bytes(length)) + 2];
    framed[..2].copy_from_slice(&length);
    stream.read_exact(&mut framed[2..]).ok()?;
    Some(framed)
}

fn pass(mut stream: TcpStream, server: SocketAddr, open: &AtomicBool, kept: &AtomicUsize) {
    const UPDATE: u8 = 5;
    let Some(question) = message(&mut stream) else { return };
    if (question[4] >> 3) & 15 == UPDATE && !open.load(Ordering::SeqCst) {
        kept.fetch_add(1, Ordering::SeqCst);
        // It never arrives; the connection stays as long as whoever sent it.
        let _ = stream.read(&mut [0]);
        return;
    }
    let mut server = TcpStream::connect(server).unwrap();
    server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    server.write_all(&question).unwrap();
    if let Some(answer) = message(&mut server) {
        let _ = stream.write_all(&answer);
    }
}

#[test]
fn a_kill_between_two_servers_is_seen_and_completed() {
    for (first, second) in PAIRS {
        let (east, west) = (Authority::primary(first, &[]), Authority::primary(second, &[]));
        let resolver = Resolver::of(west.address, &["cache-max-ttl: 0"]);
        let gate = Gate::before(west.address);
        let place = Place::new();
        estate(&place, east.address, gate.address, resolver.address, "");
        let running = place.start(&["run", "planned.yaml", "-i", "from=east", "-i", "to=west", "--live"]);
        place.until("the second is being written", || gate.kept.load(Ordering::SeqCst) > 0);
        running.signal("KILL");
        running.end();
        assert_eq!(both(&east, &west), at(WEST, EAST), "{second:?}: between the two");
        gate.open.store(true, Ordering::SeqCst);
        let said = place.muster(&["resume"]).expect(0);
        assert_eq!(both(&east, &west), at(WEST, WEST), "{second:?}: {}", said.out);
    }
}
