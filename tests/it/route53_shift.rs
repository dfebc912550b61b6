//! `dns.shift` by the real program, over Route 53 as two emulators have it that nobody of Muster wrote: every kind of record
//! that it knows is shifted, read back past Muster, and by undoing put back exactly as it was; and a change that Route 53
//! calls PENDING is waited for, whatever resolvers answer.
//!
//! moto calls every change INSYNC at once, so that it can show nothing of that. MiniStack says PENDING to the first question
//! after a change and INSYNC to every later one; where it is to last longer, the proxy writes PENDING into its answers.
//! Neither answers queries: the resolver is the test's own.

use super::{
    fault_proxy::FaultProxy,
    place::{Place, Running},
    route53_servers::*,
};
use aws_sdk_route53::{
    Client,
    types::{
        AliasTarget, ResourceRecord, ResourceRecordSet,
        ResourceRecordSetFailover::{self, Primary, Secondary},
        RrType,
        builders::ResourceRecordSetBuilder,
    },
};
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// The zone of what aliases stand for.
const BALANCERS: &str = "Z0000000BALANCER";
const HEALTH: &str = "11111111-1111-1111-1111-111111111111";
const OTHER: &str = "22222222-2222-2222-2222-222222222222";

fn set() -> ResourceRecordSetBuilder {
    ResourceRecordSet::builder().name(format!("{NAME}.")).r#type(RrType::A)
}

fn address(address: Ipv4Addr, ttl: i64) -> ResourceRecordSetBuilder {
    set().ttl(ttl).resource_records(ResourceRecord::builder().value(address.to_string()).build().unwrap())
}

fn alias(region: &str) -> ResourceRecordSetBuilder {
    let target = AliasTarget::builder().hosted_zone_id(BALANCERS).dns_name(format!("{region}.lb.test."));
    set().alias_target(target.evaluate_target_health(true).build().unwrap())
}

/// A kind of record: what stands there, and what `dns.shift` to west is to make of it.
struct Kind {
    name: &'static str,
    before: Vec<ResourceRecordSet>,
    after: Vec<ResourceRecordSet>,
}

impl Kind {
    fn of(name: &'static str, before: Vec<ResourceRecordSetBuilder>, after: Vec<ResourceRecordSetBuilder>) -> Self {
        let built = |sets: Vec<ResourceRecordSetBuilder>| sets.into_iter().map(|set| set.build().unwrap()).collect();
        Self { name, before: built(before), after: built(after) }
    }
}

/// In the order of their identifiers.
fn kinds() -> Vec<Kind> {
    let weighted = |east: i64, west: i64| {
        let blue = address(EAST, 30).set_identifier("blue").weight(east).health_check_id(HEALTH);
        vec![blue, address(WEST, 40).set_identifier("green").weight(west)]
    };
    let failover = |east: ResourceRecordSetFailover, west: ResourceRecordSetFailover| {
        let first = address(EAST, 30).set_identifier("first").failover(east).health_check_id(HEALTH);
        vec![first, address(WEST, 30).set_identifier("second").failover(west).health_check_id(OTHER)]
    };
    // Which one is a region's is told by its identifier here.
    let aliases = |east: ResourceRecordSetFailover, west: ResourceRecordSetFailover| {
        let first = alias("east").set_identifier("east").failover(east).health_check_id(HEALTH);
        vec![first, alias("west").set_identifier("west").failover(west)]
    };
    vec![
        // It has the estate's TTL then, and its own again when that is undone.
        Kind::of("simple", vec![address(EAST, 60)], vec![address(WEST, 2)]),
        Kind::of("weighted", weighted(70, 30), weighted(0, 100)),
        Kind::of("failover", failover(Primary, Secondary), failover(Secondary, Primary)),
        Kind::of("alias", vec![alias("east")], vec![alias("west")]),
        Kind::of("failover of aliases", aliases(Primary, Secondary), aliases(Secondary, Primary)),
    ]
}

/// Every record set of the zone as the server lists it, those of other names too, in an order that does not hang on when
/// each was made.
async fn all(dns: &Client, zone: &str) -> Vec<ResourceRecordSet> {
    let listed = dns.list_resource_record_sets().hosted_zone_id(zone).send().await.unwrap();
    assert!(!listed.is_truncated());
    let mut all = listed.resource_record_sets().to_vec();
    all.sort_by_key(|set| (set.name().to_owned(), set.r#type().as_str().to_owned(), set.set_identifier().map(str::to_owned)));
    all
}

/// Those of the name, with the names of aliases as Route 53 writes them.
fn ours(all: &[ResourceRecordSet]) -> Vec<ResourceRecordSet> {
    let mut ours: Vec<_> = all.iter().filter(|set| set.name().trim_end_matches('.') == NAME).cloned().collect();
    for target in ours.iter_mut().filter_map(|set| set.alias_target.as_mut()) {
        target.dns_name = format!("{}.", target.dns_name.trim_end_matches('.'));
    }
    ours
}

/// The estate: no switch, so that failover records are `dns.shift`'s to exchange.
fn estate(place: &Place, dns: &str, zone: &str, resolver: SocketAddr) {
    place.file("id", "test").file("secret", "testtest");
    let alias = |region: &str| format!("{region}: {{ zone: {BALANCERS}, name: {region}.lb.test, evaluate: true }}");
    place.file(
        "muster.yaml",
        &format!(
            "regions: {{ east: {{}}, west: {{}} }}\nendpoints:\n  inference:\n    name: {NAME}\n    provider: route53\n    zone: {zone}\n    ttl: 2s\n\
             \x20   targets: {{ east: {EAST}, west: {WEST} }}\n    aliases: {{ {}, {} }}\n    resolvers: [\"{resolver}\"]\n    authority: [\"{resolver}\"]\n\
             \x20   aws:\n      region: us-east-1\n      endpoints: {{ route53: \"{dns}\" }}\n\
             \x20     credentials: {{ access_key_id: {{ file: @/id }}, secret_access_key: {{ file: @/secret }} }}\n",
            alias("east"),
            alias("west"),
        ),
    );
}

/// A shift, and a step that waits for the test and fails: then the shift is undone.
const THEN_FAILS: &str = "  - id: it\n    uses: dns.shift\n    with: { endpoint: inference, to: west }\n    timeout: 60s\n\
     \x20 - id: fails\n    uses: exec.command\n    on_failure: undo\n    timeout: 60s\n\
     \x20   with: { argv: [\"sh\", \"-c\", \"touch @/there; while [ ! -e @/seen ]; do sleep 0.05; done; exit 1\"] }\n";

/// The run of that book, once its second step has begun.
async fn shifted(place: &Place, what: &str) -> Running {
    let mut running = place.start(&["run", "book.yaml", "--live", "--json"]);
    while !place.path("there").exists() {
        assert!(running.ended().is_none(), "{what}: {}", running.told());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    running
}

/// One kind of record in a zone of its own: shifted, read back while the run goes on, and put back when its next step fails.
async fn goes_there_and_back(server: &Server, kind: Kind) {
    let (dns, place) = (client(&server.url()), Place::new());
    let zone = zone(&dns, kind.name).await;
    create(&dns, &zone, kind.before.clone()).await;
    let (proxy, answers) = (Proxy::before(&server.url()).await, Answers::with(EAST));
    estate(&place, &proxy.url, &zone, answers.at);
    place.book(THEN_FAILS);
    let before = all(&dns, &zone).await;
    assert_eq!(ours(&before), kind.before, "{}: the server keeps it as it was written", kind.name);
    answers.moves_to(WEST);

    let running = shifted(&place, kind.name).await;
    let there = all(&dns, &zone).await;
    place.file("seen", "");
    let said = tokio::task::block_in_place(|| running.end()).expect(1);

    assert_eq!(ours(&there), kind.after, "{}", kind.name);
    assert_eq!(said.step("it")["status"], "undone", "{}: {}", kind.name, said.out);
    assert_eq!(all(&dns, &zone).await, before, "{}: the whole zone, as it was", kind.name);
    assert_eq!(proxy.changes("/rrset"), 2, "{}: there and back, once each", kind.name);
}

#[tokio::test(flavor = "multi_thread")]
async fn dns_shift_moves_every_kind_of_record_and_puts_it_back_on_ministack() {
    let server = ministack().await;
    for kind in kinds() {
        goes_there_and_back(&server, kind).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dns_shift_moves_every_kind_of_record_and_puts_it_back_on_moto() {
    let server = moto().await;
    for kind in kinds() {
        goes_there_and_back(&server, kind).await;
    }
}

/// What somebody else changed after the shift is not written over by undoing it. MiniStack alone: moto takes the DELETE of
/// whatever was ever made with these values, whether it still stands there or not.
#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_else_changed_after_a_shift_is_not_put_back() {
    let server = ministack().await;
    let (dns, place, answers) = (client(&server.url()), Place::new(), Answers::with(WEST));
    let zone = zone(&dns, "else").await;
    create(&dns, &zone, kinds().swap_remove(1).before).await;
    estate(&place, &server.url(), &zone, answers.at);
    place.book(THEN_FAILS);
    let running = shifted(&place, "weighted").await;
    // A person gives east's record another address.
    let other = address(Ipv4Addr::new(127, 0, 0, 9), 30).set_identifier("blue").weight(0).health_check_id(HEALTH);
    create(&dns, &zone, vec![other.build().unwrap()]).await;
    let changed = all(&dns, &zone).await;
    place.file("seen", "");
    let said = tokio::task::block_in_place(|| running.end()).expect(1);
    assert_eq!(all(&dns, &zone).await, changed, "{}", said.out);
    let step = said.step("it");
    assert!(step["status"] != "undone" && step["failure"]["code"] == "conflict", "{step}");
    assert!(step["failure"]["message"].as_str().unwrap().contains("127.0.0.9"), "{step}");
}

/// The statuses that were told of changes, and whether it is always PENDING that is told.
#[derive(Clone, Default)]
struct Told {
    held: Arc<AtomicBool>,
    statuses: Arc<Mutex<Vec<&'static str>>>,
}

impl Told {
    fn by(proxy: &FaultProxy) -> Self {
        let told = Self::default();
        let Self { held, statuses } = told.clone();
        proxy.mend("/2013-04-01/change/", move |_, body| {
            let body = if held.load(Ordering::Relaxed) { body.replace("INSYNC", "PENDING") } else { body };
            let status = ["PENDING", "INSYNC"].into_iter().find(|status| body.contains(*status));
            statuses.lock().unwrap().push(status.unwrap_or("neither"));
            body
        });
        told
    }
    /// Since the last time it was asked.
    fn take(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.statuses.lock().unwrap())
    }
}

/// The resolver answers with the new address all the time: nothing but the change itself keeps the step from being done.
#[tokio::test(flavor = "multi_thread")]
async fn a_shift_is_done_only_when_route_53_calls_it_insync() {
    let server = ministack().await;
    let (dns, place, answers) = (client(&server.url()), Place::new(), Answers::with(WEST));
    let zone = zone(&dns, "sync").await;
    create(&dns, &zone, vec![record(EAST, 1)]).await;
    let proxy = FaultProxy::before(server.port());
    let told = Told::by(&proxy);
    estate(&place, &proxy.url(), &zone, answers.at);
    let book = |to: &str, timeout: &str| {
        let with = format!("with: {{ endpoint: inference, to: {to} }}");
        place.book(&format!("  - id: it\n    uses: dns.shift\n    {with}\n    timeout: {timeout}\n    on_failure: stop\n"));
    };

    // MiniStack as it is: one PENDING. Whoever does not ask again never learns of the INSYNC.
    book("west", "60s");
    let output = tokio::task::block_in_place(|| place.muster(&["run", "book.yaml", "--live"])).expect(0).step("it")["output"].clone();
    assert_eq!(told.take(), ["PENDING", "INSYNC"], "{output}");
    assert!(output["in_sync_ms"].as_u64().unwrap() >= 50, "it is asked again after 50 ms, and not at once: {output}");
    assert_eq!(output["late"], serde_json::json!([]), "{output}");

    // It stays PENDING: the records are there, the resolver has moved, and the step is not done.
    told.held.store(true, Ordering::Relaxed);
    answers.moves_to(EAST);
    book("east", "60s");
    let mut running = place.start(&["run", "book.yaml", "--live", "--json"]);
    while !sets(&dns, &zone).await[0].contains(&EAST.to_string()) {
        assert!(running.ended().is_none(), "{}", running.told());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let there = Instant::now();
    while there.elapsed() < Duration::from_secs(3) {
        assert!(running.ended().is_none(), "it is done, and the change is PENDING: {}", running.told());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    told.held.store(false, Ordering::Relaxed);
    let output = tokio::task::block_in_place(|| running.end()).expect(0).step("it")["output"].clone();
    let statuses = told.take();
    let (last, before) = statuses.split_last().unwrap();
    assert!(*last == "INSYNC" && before.len() > 5 && before.iter().all(|status| *status == "PENDING"), "{statuses:?}");
    // Route 53 takes five calls a second from a whole account: it is asked ever less.
    assert!(before.len() <= 40, "{} questions in three seconds", before.len());
    assert!(output["in_sync_ms"].as_u64().unwrap() >= 2_000, "{output}");

    // It never spreads: the step has its time, and says what it waited for.
    told.held.store(true, Ordering::Relaxed);
    answers.moves_to(WEST);
    book("west", "2s");
    let step = tokio::task::block_in_place(|| place.muster(&["run", "book.yaml", "--live"])).expect(1).step("it");
    assert_eq!(step["status"], "timed_out", "{step}");
    assert!(step["failure"]["message"].as_str().unwrap().contains("not in sync"), "{step}");
    assert!(told.take().iter().all(|status| *status == "PENDING"));
}
