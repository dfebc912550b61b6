//! Route 53's provider and what is made of it, by the real program against two emulators that nobody of Muster wrote:
//! what is written is read as it was, changes are made once however answers get lost, and undone exactly.
//!
//! MiniStack tells nothing of health; moto makes a second check for the same reference, finds every check good, and does not
//! let anybody CREATE again what was CREATEd before. Each is used for what it has, and the rest is what the provider must
//! not be fooled by.

use super::{
    fault_proxy::{self, FaultProxy},
    place::Place,
    rds_stage::Which,
    route53_servers::*,
};
use muster::providers::port::*;
use std::{net::Ipv4Addr, time::Duration};

fn set(identifier: &str, routing: Routing, address: Ipv4Addr, health: Option<&str>) -> RoutedSet {
    let record = RecordSet { name: NAME.into(), kind: "A".into(), ttl_s: 5, values: vec![address.to_string()] };
    RoutedSet { set: Some(identifier.into()), routing, health: health.map(str::to_owned), alias: None, record }
}

const BOTH: [Which; 2] = [Which::Moto, Which::MiniStack];

/// Every kind of record is replaced by every other in one batch, and only if it stands as it was found. `back_ttl`: on the
/// way back the records have another TTL, so that none is one of before.
async fn records_go_there_and_back(url: &str, aliases: bool, back_ttl: Option<u32>) {
    let dir = tempfile::tempdir().unwrap();
    let (dns, zone) = (client(url), zone(&client(url), "records").await);
    let (provider, clients) = provider(url, dir.path());
    let simple = RoutedSet::simple(RecordSet { ttl_s: 60, ..set("", Routing::Simple, EAST, None).record });
    let bare = RecordSet { ttl_s: 0, values: Vec::new(), ..simple.record.clone() };
    let alias = Alias { zone: zone.clone(), name: "east.scoring.test.".into(), evaluate: true };
    let stages = [
        vec![simple.clone()],
        vec![set("east", Routing::Weighted { weight: 70 }, EAST, None), set("west", Routing::Weighted { weight: 30 }, WEST, None)],
        vec![
            set("east", Routing::Primary, EAST, Some("11111111-1111-1111-1111-111111111111")),
            set("west", Routing::Secondary, WEST, None),
        ],
        vec![RoutedSet { alias: Some(alias), record: bare.clone(), ..simple.clone() }],
    ];
    let mut back = stages.clone();
    back.reverse();
    for set in back.iter_mut().flatten().filter(|set| set.alias.is_none()) {
        set.record.ttl_s = back_ttl.unwrap_or(set.record.ttl_s);
    }
    let mut there: Vec<RoutedSet> = Vec::new();
    for stage in stages.iter().chain(back.iter()) {
        let skipped = !aliases && stage.iter().any(|set| set.alias.is_some());
        if *stage == there || skipped {
            continue;
        }
        let change = provider.replace(&zone, &there, stage, "test").await.unwrap();
        assert_eq!(provider.sets(&zone, NAME, "A").await.unwrap(), *stage);
        while !provider.in_sync(&change).await.unwrap() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // What was there before is not there any more: the same change is refused, and changes nothing.
        let again = provider.replace(&zone, &there, stage, "test").await;
        assert!(again.is_err(), "{again:?}");
        assert_eq!(provider.sets(&zone, NAME, "A").await.unwrap(), *stage);
        there.clone_from(stage);
    }
    assert!(clients.dns_calls.so_far() > 20, "every request is counted");
    assert_eq!(sets(&dns, &zone).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_go_there_and_back_on_ministack() {
    records_go_there_and_back(&ministack().await.url(), true, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_go_there_and_back_on_moto() {
    // It keeps an alias's name without its dot, and does not know it again with one, as Route 53 does.
    records_go_there_and_back(&moto().await.url(), false, Some(7)).await;
}

/// An ambiguous name lists what it could mean; a hundred and thirty records are read page by page.
async fn zones_and_pages(url: &str) {
    let dir = tempfile::tempdir().unwrap();
    let dns = client(url);
    let (provider, _) = provider(url, dir.path());
    assert!(matches!(provider.sets("scoring.test", NAME, "A").await, Err(PortError::NotFound(_))));
    let first = zone(&dns, "one").await;
    assert_eq!(provider.sets("scoring.test", NAME, "A").await.unwrap(), []);
    let (fresh, second) = (self::provider(url, dir.path()).0, zone(&dns, "two").await);
    match fresh.sets("scoring.test", NAME, "A").await {
        Err(PortError::Config(text)) => {
            assert!(text.contains(&first) && text.contains(&second) && text.contains("2 hosted zones"), "{text}")
        }
        other => panic!("{other:?}"),
    }
    let many: Vec<RoutedSet> =
        (0..130).map(|n| set(&format!("set-{n:03}"), Routing::Weighted { weight: n }, Ipv4Addr::new(127, 0, 9, n as u8), None)).collect();
    provider.replace(&first, &[], &many, "many").await.unwrap();
    assert_eq!(provider.sets(&first, NAME, "A").await.unwrap(), many);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ambiguous_zone_is_told_and_lists_are_read_to_their_end() {
    zones_and_pages(&ministack().await.url()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_turned_away_for_its_rate_is_sent_again_and_happens_once() {
    for which in BOTH {
        let (emulator, dir) = (which.started().await, tempfile::tempdir().unwrap());
        let proxy = Proxy::before(&emulator.url()).await;
        let zone = zone(&client(&emulator.url()), "throttled").await;
        let (provider, _) = provider(&proxy.url, dir.path());
        for code in ["Throttling", "PriorRequestNotComplete"] {
            proxy.fault("/rrset", Fault::Throttled(code));
        }
        let want = [RoutedSet::simple(set("", Routing::Simple, EAST, None).record)];
        provider.replace(&zone, &[], &want, "test").await.unwrap();
        assert_eq!((proxy.changes("/rrset"), provider.sets(&zone, NAME, "A").await.unwrap()), (1, want.to_vec()), "{which:?}");
        // One that is turned away for ever is told as what it is: not carried out.
        (0..6).for_each(|_| proxy.fault("/rrset", Fault::Throttled("Throttling")));
        assert!(matches!(provider.replace(&zone, &want, &[], "test").await, Err(PortError::Throttled { .. })), "{which:?}");
        assert_eq!(proxy.changes("/rrset"), 1, "{which:?}");
    }
}

/// A change is sent once, and where its answer is lost it is unknown and not a failure; what only reads is asked again.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_whose_answer_is_late_lost_or_cut_off_is_sent_once() {
    let late = fault_proxy::Fault::Delay(Duration::from_millis(1_500));
    for which in BOTH {
        let (emulator, dir) = (which.started().await, tempfile::tempdir().unwrap());
        let proxy = FaultProxy::before(emulator.port());
        let (provider, _) = provider(&proxy.url(), dir.path());
        for (n, fault) in [late, fault_proxy::Fault::ErrorAfter, fault_proxy::Fault::CutAfter].into_iter().enumerate() {
            let zone = zone(&client(&emulator.url()), &format!("zone-{n}")).await;
            let [change, look] = ["POST", "GET"].map(|method| format!("{method} /2013-04-01/hostedzone/{zone}/rrset"));
            let want = [RoutedSet::simple(set("", Routing::Simple, EAST, None).record)];
            proxy.fault(&change, 1, fault);
            let answer = provider.replace(&zone, &[], &want, "test").await;
            let known = if fault == late { answer.is_ok() } else { matches!(answer, Err(PortError::Unknown(_))) };
            assert!(known, "{which:?}, {fault:?}: {:?}", answer.map(|_| ()));
            proxy.fault(&look, 1, fault);
            assert_eq!(provider.sets(&zone, NAME, "A").await.unwrap(), want, "{which:?}, {fault:?}");
            assert_eq!((proxy.asked(&change), proxy.passed(&change)), (1, 1), "{which:?}, {fault:?}");
            assert!(proxy.asked(&look) >= if fault == late { 1 } else { 2 }, "{which:?}, {fault:?}");
        }
    }
}

/// The estate: DNS behind the proxy, the buckets at MiniStack.
fn estate(place: &Place, dns: &str, s3: &str, zone: &str, resolver: std::net::SocketAddr) {
    place.file("id", "test").file("secret", "testtest");
    let keys = "credentials: { access_key_id: { file: @/id }, secret_access_key: { file: @/secret } }";
    place.file(
        "muster.yaml",
        &format!(
            "regions:\n  east: {{ aws: {{ region: us-east-1, endpoints: {{ s3: \"{s3}\" }}, {keys} }} }}\n  west: {{ aws: {{ region: us-east-1, endpoints: {{ s3: \"{s3}\" }}, {keys} }} }}\n\
             buckets:\n  models: {{ west: {{ bucket: models-west }} }}\n\
             endpoints:\n  inference:\n    name: {NAME}\n    provider: route53\n    zone: {zone}\n    ttl: 2s\n    targets: {{ east: {EAST}, west: {WEST} }}\n\
             \x20   resolvers: [\"{resolver}\"]\n    authority: [\"{resolver}\"]\n    standby: {{ region: west, bucket: models, looks: 1 }}\n\
             \x20   aws: {{ region: us-east-1, endpoints: {{ route53: \"{dns}\" }}, {keys} }}\n"
        ),
    );
}

/// A step that is tried again, and an undoing if a second step is to fail.
pub fn book(place: &Place, step: &str, then_fails: bool) {
    let fails = "  - id: fails\n    uses: exec.command\n    with: { argv: [\"false\"] }\n    on_failure: undo\n";
    place.book(&format!(
        "  - id: it\n    {step}\n    timeout: 60s\n    retry: {{ attempts: 3, backoff: 100ms }}\n{}",
        if then_fails { fails } else { "" }
    ));
}

/// A bench: an emulator for DNS and MiniStack for the bucket, each behind a proxy, and one simple record.
pub struct Bench {
    /// By way of the proxy.
    pub dns: aws_sdk_route53::Client,
    pub zone: String,
    pub proxy: Proxy,
    s3: FaultProxy,
    pub place: Place,
    pub answers: Answers,
    _emulators: (Server, Server),
}

impl Bench {
    pub async fn new(which: Which, ttl: i64) -> Self {
        let store = ministack().await;
        let server = which.started().await;
        store.bucket("models-west", false).await;
        let (direct, proxy, place) = (client(&server.url()), Proxy::before(&server.url()).await, Place::new());
        let zone = zone(&direct, "bench").await;
        create(&direct, &zone, vec![record(EAST, ttl)]).await;
        let (answers, s3) = (Answers::with(EAST), FaultProxy::before(store.port()));
        estate(&place, &proxy.url, &s3.url(), &zone, answers.at);
        Self { dns: client(&proxy.url), zone, proxy, s3, place, answers, _emulators: (server, store) }
    }
    pub fn run(&self) -> super::place::Said {
        tokio::task::block_in_place(|| self.place.muster(&["run", "book.yaml", "--live"]))
    }
    pub async fn sets(&self) -> Vec<String> {
        sets(&self.dns, &self.zone).await
    }
    /// Kills the program once the request is carried out and not answered, and goes on with its run.
    async fn killed_after(&self, path: &'static str) -> super::place::Said {
        self.killed_at(path, 1).await
    }
    /// The same for the request of this number.
    pub async fn killed_at(&self, path: &'static str, number: usize) -> super::place::Said {
        let before = self.proxy.changes(path);
        (1..number).for_each(|_| self.proxy.fault(path, Fault::Nothing));
        self.proxy.fault(path, Fault::Held);
        let running = self.place.start(&["run", "book.yaml", "--live", "--json"]);
        while self.proxy.changes(path) < before + number {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        running.signal("KILL");
        tokio::task::block_in_place(|| running.end());
        tokio::task::block_in_place(|| self.place.muster(&["resume"]))
    }
}

const PREPARE: &str = "uses: dns.prepare\n    with: { endpoint: inference }";

/// The records are exactly as they were, and no check is left: in one batch, a failover pair becomes a simple record again.
#[tokio::test(flavor = "multi_thread")]
async fn dns_prepare_is_undone_exactly() {
    for which in BOTH {
        let bench = Bench::new(which, 60).await;
        let before = bench.sets().await;
        book(&bench.place, PREPARE, true);
        bench.run().expect(1);
        assert_eq!((bench.sets().await, checks(&bench.dns).await.len()), (before, 0), "{which:?}");
        assert_eq!((bench.proxy.changes("/healthcheck"), bench.proxy.changes("/rrset")), (1, 2), "{which:?}: there and back");
    }
}

/// The answer to the batch that puts the records back is lost, or the program is killed before it: they are found as they
/// were, nothing is sent a third time, and the check goes as well.
#[tokio::test(flavor = "multi_thread")]
async fn dns_prepare_is_undone_once_whatever_is_lost() {
    for which in BOTH {
        for killed in [false, true] {
            let bench = Bench::new(which, 60).await;
            let before = bench.sets().await;
            book(&bench.place, PREPARE, true);
            let said = if killed {
                bench.killed_at("/rrset", 2).await
            } else {
                bench.proxy.fault("/rrset", Fault::Nothing);
                bench.proxy.fault("/rrset", Fault::AnswerLost);
                bench.run()
            };
            said.expect(1);
            assert_eq!((bench.sets().await, checks(&bench.dns).await.len()), (before, 0), "{which:?}, {killed}");
            assert_eq!((bench.proxy.changes("/healthcheck"), bench.proxy.changes("/rrset")), (1, 2), "{which:?}, {killed}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dns_prepare_happens_once_whatever_is_lost() {
    for which in BOTH {
        // The answers to both changes are lost; moto itself would make a second check.
        let bench = Bench::new(which, 60).await;
        book(&bench.place, PREPARE, false);
        bench.proxy.fault("/healthcheck", Fault::AnswerLost);
        bench.proxy.fault("/rrset", Fault::AnswerLost);
        let output = bench.run().expect(0).step("it")["output"].clone();
        let all = checks(&bench.dns).await;
        assert_eq!((all.len(), bench.proxy.changes("/healthcheck"), bench.proxy.changes("/rrset")), (1, 1, 1), "{which:?}: {output}");
        assert_eq!(output["health_check"], all[0].as_str());
        let prepared = bench.sets().await;
        let primary = prepared.iter().find(|set| set.contains("Primary")).unwrap();
        assert!(prepared.len() == 2 && primary.contains(&all[0]), "{which:?}: {prepared:?}");
        let check = bench.dns.get_health_check().health_check_id(&all[0]).send().await.unwrap();
        let config = check.health_check().unwrap().health_check_config().unwrap().clone();
        assert_eq!((config.inverted(), config.resource_path()), (Some(true), Some("/models-west/.muster/switch/inference")));

        // Prepared already: nothing is sent.
        bench.run().expect(0);
        assert_eq!((bench.proxy.changes("/healthcheck"), bench.proxy.changes("/rrset")), (1, 1), "{which:?}");
        assert_eq!(bench.sets().await, prepared);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dns_prepare_that_is_killed_goes_on_with_what_it_made() {
    for which in BOTH {
        let bench = Bench::new(which, 60).await;
        book(&bench.place, PREPARE, false);
        bench.killed_after("/healthcheck").await.expect(0);
        let changes = (bench.proxy.changes("/healthcheck"), bench.proxy.changes("/rrset"));
        assert_eq!((checks(&bench.dns).await.len(), changes), (1, (1, 1)), "{which:?}");
        assert_eq!(bench.sets().await.len(), 2, "{which:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_records_happen_once_however_the_program_ends() {
    let bench = Bench::new(Which::Moto, 3).await;
    // The TTL is lowered, and the old one waited out.
    book(&bench.place, "uses: dns.lower_ttl\n    with: { endpoint: inference, ttl: 1s }", false);
    let said = bench.killed_after("/rrset").await.expect(0);
    assert_eq!((said.step("it")["output"]["was_s"].as_u64(), bench.proxy.changes("/rrset")), (Some(3), 1));
    assert!(bench.sets().await[0].contains("Some(1)"), "{:?}", bench.sets().await);

    // The name is moved; who answers for it moves with it.
    book(&bench.place, "uses: dns.shift\n    with: { endpoint: inference, to: west }", false);
    bench.answers.moves_to(WEST);
    bench.killed_after("/rrset").await.expect(0);
    assert_eq!(bench.proxy.changes("/rrset"), 2, "no second change");
    assert!(bench.sets().await[0].contains("127.0.0.3"), "{:?}", bench.sets().await);
}

/// The server does not know `Inverted`: what it makes would say that all is well while the switch is off, and the other way
/// round.
#[tokio::test(flavor = "multi_thread")]
async fn a_check_that_is_made_otherwise_than_asked_is_hung_on_nothing() {
    for which in BOTH {
        let bench = Bench::new(which, 60).await;
        let before = bench.sets().await;
        (0..3).for_each(|_| bench.proxy.fault("/healthcheck", Fault::Without("<Inverted>true</Inverted>")));
        book(&bench.place, &format!("{PREPARE}\n    on_failure: stop"), false);
        let failure = bench.run().expect(1).step("it")["failure"].clone();
        assert_eq!(failure["code"], "check_differs", "{which:?}: {failure}");
        assert_eq!((bench.sets().await, checks(&bench.dns).await.len()), (before, 0), "{which:?}: as it was, and the check is gone again");
        assert_eq!(bench.proxy.changes("/rrset"), 0, "{which:?}");
    }
}

/// The program is killed while the switch is written and the answer is on its way, and while it is taken away again: it goes
/// on with what it finds, and the switch is written and deleted once.
#[tokio::test(flavor = "multi_thread")]
async fn a_switch_that_is_thrown_by_a_process_that_is_killed_is_thrown_once() {
    let bench = Bench::new(Which::MiniStack, 2).await;
    for (to, address, call) in [("west", WEST, "PUT /models-west/.muster/switch/"), ("east", EAST, "DELETE /models-west/.muster/switch/")] {
        book(&bench.place, &format!("uses: dns.standby_takes_over\n    with: {{ endpoint: inference, to: {to} }}"), false);
        bench.s3.fault(call, 1, fault_proxy::Fault::HoldAfter);
        let said = tokio::task::block_in_place(|| {
            let running = bench.place.start(&["run", "book.yaml", "--live", "--json"]);
            bench.place.until_told(call, || bench.s3.holding() == 1, || running.told());
            running.signal("KILL");
            running.end();
            bench.s3.let_go();
            bench.answers.moves_to(address);
            bench.place.muster(&["resume"])
        });
        assert_eq!(said.expect(0).statuses(), ["succeeded"], "to {to}");
        assert_eq!(bench.s3.passed(call), 1, "to {to}");
    }
    assert_eq!((bench.proxy.changes("/rrset"), bench.proxy.changes("/healthcheck")), (0, 0), "no control plane of DNS was asked to change");
}
