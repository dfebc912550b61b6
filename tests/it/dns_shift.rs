//! `dns.shift` by the real program against a zone of one's own: a primary, a secondary, and a panel of resolvers of
//! which one obeys the TTL, one keeps every answer longer than it may, and one does not answer. What the step says
//! is compared with what a client saw that asked all the time.

use super::{dns_servers::*, place::Place};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

const EAST: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);
const WEST: Ipv4Addr = Ipv4Addr::new(127, 0, 2, 1);

fn estate(place: &Place, primary: SocketAddr, secondary: SocketAddr, resolvers: &[SocketAddr]) {
    place.file("key", SECRET);
    let resolvers: Vec<String> = resolvers.iter().map(|r| format!("\"{r}\"")).collect();
    let text = format!(
        "regions: {{ east: {{}}, west: {{}} }}\nendpoints:\n  inference:\n    name: {NAME}\n    provider: rfc2136\n    zone: {ZONE}\n    ttl: 2s\n\
         \x20   targets: {{ east: {EAST}, west: {WEST} }}\n    resolvers: [{}]\n    update:\n      server: \"{primary}\"\n      secondaries: [\"{secondary}\"]\n\
         \x20     key: {{ name: {KEY}, secret: {{ file: {} }} }}\n",
        resolvers.join(", "),
        place.path("key").display(),
    );
    place.file("muster.yaml", &text);
    place.file(
        "shift.yaml",
        "runbook: shift\nmode: failover\ninputs: { to: { type: region } }\nsteps:\n  - id: traffic\n    uses: dns.shift\n    with: { endpoint: inference, to: \"{{ inputs.to }}\" }\n    timeout: 30s\n",
    );
}

fn alone() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// One question for the name's address; none when nothing comes.
fn ask(server: SocketAddr) -> Option<IpAddr> {
    asked(&alone(), server)
}

fn asked(runtime: &tokio::runtime::Runtime, server: SocketAddr) -> Option<IpAddr> {
    let resolver = muster::providers::resolver::DnsResolver;
    let answer = runtime.block_on(muster::providers::port::Resolve::ask(&resolver, Some(server), NAME)).ok()?;
    answer.addresses.first().copied()
}

/// What a client saw of a server that changed its answer: it did so after `from` and by `by`.
#[derive(Clone, Copy, Debug)]
struct Turn {
    /// When the last question was sent that was still answered with something else.
    from: Timestamp,
    /// When the first new answer came.
    by: Timestamp,
    /// The longest that the client did not look.
    longest: SignedDuration,
}

/// Asks a server every few milliseconds until it answers with this address: when that was.
struct Client {
    seen: Arc<Mutex<Option<Turn>>>,
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Client {
    fn of(server: SocketAddr, want: Ipv4Addr) -> Self {
        let (seen, over) = (Arc::new(Mutex::new(None)), Arc::new(AtomicBool::new(false)));
        let (note, end, runtime) = (seen.clone(), over.clone(), alone());
        let began = Timestamp::now();
        let thread = std::thread::spawn(move || {
            let (mut from, mut longest) = (began, SignedDuration::ZERO);
            while !end.load(Ordering::Relaxed) {
                let sent = Timestamp::now();
                let found = asked(&runtime, server);
                let by = Timestamp::now();
                if found.is_some() {
                    longest = longest.max(by.duration_since(from));
                }
                if found == Some(IpAddr::V4(want)) {
                    *note.lock().unwrap() = Some(Turn { from, by, longest });
                    return;
                }
                if found.is_some() {
                    from = sent;
                }
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        Self { seen, over, thread: Some(thread) }
    }

    fn when(&self) -> Option<Turn> {
        *self.seen.lock().unwrap()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// What the program itself saw, as it keeps it between two looks: its figures are made of this.
struct Kept {
    /// When the change was accepted.
    at: Timestamp,
    log: Value,
}

impl Kept {
    fn of(place: &Place, run: &str) -> Self {
        let folder = place.path(".muster/runs").join(run);
        let mut hints = std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path());
        let hint = hints.find(|path| path.extension().is_some_and(|ext| ext == "change")).unwrap();
        let log: Value = serde_json::from_slice(&std::fs::read(hint).unwrap()).unwrap();
        Self { at: log["at"].as_str().unwrap().parse().unwrap(), log }
    }

    fn time(&self, what: &str, of: SocketAddr) -> Option<Timestamp> {
        self.log[what].get(of.to_string())?.as_str().map(|text| text.parse().unwrap())
    }

    /// The step's times are those of its own log, and each of them is within one of its looks of the truth. That one is not
    /// known, and no clock of the test's is the judge of it: the program and a client looked at the same resolver, each saw
    /// a span within which it changed its answer, and two such spans overlap, however slow the machine is.
    fn agrees(&self, panel: &Value, clients: &[(SocketAddr, Turn)], authority: &Turn) {
        assert!(authority.from < self.at, "it was accepted before the zone had it: {} {authority:?}", self.at);
        let mut moved = Vec::new();
        for (resolver, client) in clients {
            let by = self.time("moved", *resolver).unwrap_or_else(|| panic!("{resolver} is not in {}", self.log));
            let stood = self.time("stood", *resolver);
            // No resolver can have moved before the zone did.
            let from = stood.unwrap_or(authority.from);
            assert!(from <= client.by && client.from <= by, "{resolver}: the step saw it move in {from}..{by}, a client in {client:?}");
            moved.push((by.duration_since(self.at), by.duration_since(stood.unwrap_or(self.at))));
        }
        let (slowest, step) = (moved.iter().map(|m| m.0).max().unwrap(), moved.iter().map(|m| m.1).max().unwrap());
        assert_eq!(i128::from(ms(&panel["p50_ms"])), slowest.as_millis(), "of {clients:?} the slowest: {panel}");
        assert_eq!(i128::from(ms(&panel["step_ms"])), (step.as_micros() + 999) / 1_000, "{panel}");
        // A look at the panel takes half a second at most, and what comes between two of them what the machine needs for
        // it: the bound is what it needed for a client that wanted to look every three milliseconds.
        let longest = clients.iter().map(|(_, client)| client.longest.as_millis()).max().unwrap();
        assert!(step.as_millis() <= 500 + longest, "a step of {step:?}, and a client's longest was {longest} ms: {panel}");
        eprintln!("the step's longest span {step:?}, the clients' {longest} ms");
    }
}

fn ms(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn dns_shift_says_how_a_change_spread_and_who_ignores_the_ttl() {
    let there = address();
    let primary = Authority::primary(Kind::Knot, &[there]);
    let _secondary = Authority::secondary(Kind::Bind, there, primary.address);
    let obeys = Resolver::of(primary.address, &[]);
    let obeys_too = Resolver::of(primary.address, &[]);
    // What is over is answered once more while it is fetched anew.
    let expired = Resolver::of(primary.address, &["serve-expired: yes", "serve-expired-client-timeout: 0"]);
    let clamps = Resolver::of(primary.address, &["cache-min-ttl: 60"]);
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let place = Place::new();
    let panel = [obeys.address, obeys_too.address, expired.address, clamps.address, silent.local_addr().unwrap()];
    estate(&place, primary.address, there, &panel);
    place.until("the secondary has the zone", || ask(there) == Some(IpAddr::V4(EAST)));
    // Caches are filled: what follows waits for the old TTL of 5 s.
    for resolver in [&obeys, &obeys_too, &expired, &clamps] {
        assert_eq!(ask(resolver.address), Some(IpAddr::V4(EAST)));
    }
    let plan = place.muster(&["plan", "shift.yaml", "-i", "to=west"]).expect(0);
    assert!(plan.out.contains("127.0.2.1"), "{}", plan.out);

    let authority = Client::of(primary.address, WEST);
    let clients = [&obeys, &obeys_too, &expired].map(|resolver| Client::of(resolver.address, WEST));
    let said = place.muster(&["run", "shift.yaml", "-i", "to=west", "--live"]).expect(0);
    let step = said.step("traffic");
    let output = &step["output"];
    let first = authority.when().unwrap();
    let panel_of = [&obeys, &obeys_too, &expired].map(|resolver| resolver.address);
    let turns: Vec<(SocketAddr, Turn)> = panel_of.into_iter().zip(clients.iter().map(|client| client.when().unwrap())).collect();
    let truth = turns.iter().map(|(_, turn)| turn.by.duration_since(first.by)).max().unwrap();
    eprintln!("all that obey: {truth:?} after the authority as a client saw it; the step says {}", output["panel"]);
    // Of a panel of five the half are three: the slowest of those that obey.
    Kept::of(&place, &said.run()).agrees(&output["panel"], &turns, &first);
    let told = ms(&output["panel"]["p50_ms"]);
    assert!((1_000..=8_000).contains(&told), "a filled cache answers the old one for what is left of 5 s: {output}");
    assert_eq!((output["panel"]["p90_ms"].as_u64(), output["panel"]["p100_ms"].as_u64()), (None, None), "{output}");
    assert!(ms(&output["in_sync_ms"]) < 5_000, "{output}");
    let late: Vec<(&str, &str)> =
        output["late"].as_array().unwrap().iter().map(|l| (l["resolver"].as_str().unwrap(), l["why"].as_str().unwrap())).collect();
    assert_eq!(late.len(), 2, "{output}");
    let why = |of: SocketAddr| late.iter().find(|(who, _)| *who == of.to_string()).map(|(_, why)| *why).unwrap_or_default();
    assert!(why(clamps.address).contains("still answers 127.0.1.1"), "{late:?}");
    assert!(why(silent.local_addr().unwrap()).contains("no answer"), "{late:?}");
    assert_eq!(output["resolvers"].as_array().unwrap().len(), 3);
    let text = said.out + &said.err;
    assert!(!text.contains(SECRET), "the key was told");
}

/// Planned: the TTL is lowered and the old one waited out, so that clients move within a second of the zone.
#[test]
fn a_cut_over_after_a_lowered_ttl_takes_a_second() {
    let primary = Authority::primary(Kind::Knot, &[]);
    let obeys = Resolver::of(primary.address, &[]);
    let place = Place::new();
    estate(&place, primary.address, primary.address, &[obeys.address]);
    place.file(
        "ahead.yaml",
        "runbook: ahead\nsteps:\n  - id: ahead\n    uses: dns.lower_ttl\n    with: { endpoint: inference, ttl: 1s }\n    timeout: 30s\n",
    );
    assert_eq!(ask(obeys.address), Some(IpAddr::V4(EAST)));
    let began = Instant::now();
    let said = place.muster(&["run", "ahead.yaml", "--live"]).expect(0);
    let output = said.step("ahead")["output"].clone();
    assert!(began.elapsed() >= Duration::from_secs(5), "the old TTL of 5 s was not waited out: {output}");
    assert_eq!((ms(&output["was_s"]), ms(&output["ttl_s"])), (5, 1));
    let mut took = Vec::new();
    for to in [WEST, EAST, WEST] {
        let region = if to == WEST { "to=west" } else { "to=east" };
        // The shift gives the record the estate's TTL again.
        place.muster(&["run", "ahead.yaml", "--live"]).expect(0);
        // The cache is filled at this very moment: the worst that can be.
        let (authority, client) = (Client::of(primary.address, to), Client::of(obeys.address, to));
        let said = place.muster(&["run", "shift.yaml", "-i", region, "--live"]).expect(0);
        place.until("the client saw it", || client.when().is_some());
        let (turn, first) = (client.when().unwrap(), authority.when().unwrap());
        let truth = turn.by.duration_since(first.by).as_millis();
        // A panel of one: every share of it is that one.
        let panel = said.step("traffic")["output"]["panel"].clone();
        let shares = ["p50_ms", "p90_ms", "p99_ms", "p100_ms"].map(|share| ms(&panel[share]));
        assert!(shares.iter().all(|share| *share == shares[0]), "{panel}");
        Kept::of(&place, &said.run()).agrees(&panel, &[(obeys.address, turn)], &first);
        took.push(truth);
    }
    eprintln!("cut-over, from the authority's new answer to the client's: {took:?} ms");
    // A second and 50 ms, and up to another second because Unbound counts in whole ones: what it got with a TTL of 1 s it has until the
    // clock has gone past the next. What is over it is for a machine that does other things as well.
    assert!(took.iter().all(|ms| *ms <= 2_050 + 150), "{took:?}");
}

#[test]
fn dns_shift_is_undone_exactly_and_yields_to_nobody() {
    let primary = Authority::primary(Kind::Bind, &[]);
    let obeys = Resolver::of(primary.address, &["cache-max-ttl: 0"]);
    let place = Place::new();
    estate(&place, primary.address, primary.address, &[obeys.address]);
    place.file(
        "back.yaml",
        "runbook: back\nsteps:\n  - id: traffic\n    uses: dns.shift\n    with: { endpoint: inference, to: west }\n    timeout: 20s\n\
         \x20 - id: fails\n    uses: exec.command\n    with: { argv: [\"false\"] }\n    on_failure: undo\n",
    );
    let said = place.muster(&["run", "back.yaml", "--live"]).expect(1);
    assert_eq!(said.step("traffic")["status"], "undone");
    assert_eq!(ask(primary.address), Some(IpAddr::V4(EAST)));
    place.until("the resolver has the old answer again", || ask(obeys.address) == Some(IpAddr::V4(EAST)));
}
