//! The client under a clock of the test's own: what it sends when, what it calls good, what it keeps.

use super::super::{probe_ledger, probe_watch::ResolverWatch};
use super::*;
use crate::model::time::Span;
use crate::plan::measure::{Detector, Recovery, instants, rpo, rto};
use crate::providers::port::{DnsAnswer, PortError, PortResult};
use async_trait::async_trait;
use jiff::Timestamp;
use std::collections::BTreeSet;
use tokio::sync::oneshot;

const EAST: &str = "10.0.0.1";
const WEST: &str = "10.0.0.2";

/// Time goes on only when the test says so.
#[derive(Default)]
struct VirtualClock {
    now: Mutex<Duration>,
    sleepers: Mutex<Vec<(Duration, oneshot::Sender<()>)>>,
    ids: AtomicU64,
}

impl VirtualClock {
    async fn run_for(&self, length: Duration) {
        let end = *lock(&self.now) + length;
        loop {
            for _ in 0..200 {
                tokio::task::yield_now().await;
            }
            let mut sleepers = lock(&self.sleepers);
            sleepers.sort_by_key(|(at, _)| *at);
            if sleepers.first().is_none_or(|(at, _)| *at > end) {
                *lock(&self.now) = end;
                return;
            }
            let (at, wake) = sleepers.remove(0);
            let mut now = lock(&self.now);
            *now = at.max(*now);
            let _ = wake.send(());
        }
    }
}

#[async_trait]
impl Clock for VirtualClock {
    fn now(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH.checked_add(self.monotonic()).unwrap()
    }
    fn monotonic(&self) -> Duration {
        *lock(&self.now)
    }
    async fn sleep(&self, length: Duration) {
        let (wake, woken) = oneshot::channel();
        let at = self.monotonic() + length;
        lock(&self.sleepers).push((at, wake));
        let _ = woken.await;
    }
    fn new_id(&self) -> String {
        format!("id-{}", self.ids.fetch_add(1, Relaxed))
    }
    fn jitter(&self) -> f64 {
        0.5
    }
}

type Answer = (Duration, PortResult<HttpResponse>);
type Behaviour = Box<dyn Fn(u64, &HttpRequest) -> Answer + Send + Sync>;

/// A service whose answer depends on when it is asked.
struct FakeHttp {
    clock: Arc<VirtualClock>,
    answer: Behaviour,
    requests: Mutex<Vec<(u64, HttpRequest)>>,
}

#[async_trait]
impl Http for FakeHttp {
    async fn send(&self, request: HttpRequest) -> PortResult<HttpResponse> {
        let now = u64::try_from(self.clock.monotonic().as_millis()).unwrap();
        let (delay, answer) = (self.answer)(now, &request);
        lock(&self.requests).push((now, request));
        self.clock.sleep(delay).await;
        answer
    }
}

/// A name that moves from east to west at an instant, through a resolver that may fail.
struct FakeDns {
    clock: Arc<VirtualClock>,
    ttl_s: u32,
    moves_at: u64,
    fails: std::ops::Range<u64>,
    asked: Mutex<Vec<u64>>,
}

#[async_trait]
impl Resolve for FakeDns {
    async fn ask(&self, server: Option<SocketAddr>, _: &str) -> PortResult<DnsAnswer> {
        let now = u64::try_from(self.clock.monotonic().as_millis()).unwrap();
        lock(&self.asked).push(now);
        if server.is_some_and(|s| s.port() == 9) {
            self.clock.sleep(Duration::from_secs(3_600)).await;
        }
        if self.fails.contains(&now) {
            return Err(PortError::Unreachable("resolver down".to_owned()));
        }
        let address = if now < self.moves_at { EAST } else { WEST };
        Ok(DnsAnswer { addresses: vec![address.parse().unwrap()], ttl_s: self.ttl_s })
    }
}

struct Rig {
    clock: Arc<VirtualClock>,
    http: Arc<FakeHttp>,
    dns: Arc<FakeDns>,
}

impl Rig {
    fn new(dns: impl FnOnce(&mut FakeDns), answer: impl Fn(u64, &HttpRequest) -> Answer + Send + Sync + 'static) -> Self {
        let clock = Arc::new(VirtualClock::default());
        let mut fake = FakeDns { clock: Arc::clone(&clock), ttl_s: 1, moves_at: u64::MAX, fails: 0..0, asked: Mutex::default() };
        dns(&mut fake);
        let http = FakeHttp { clock: Arc::clone(&clock), answer: Box::new(answer), requests: Mutex::default() };
        Self { clock, http: Arc::new(http), dns: Arc::new(fake) }
    }
    fn start(&self, body: Option<&str>, ledger: Option<&Path>, change: impl FnOnce(&mut ProbeSpec)) -> Prober {
        let ports = ProbePorts { http: self.http.clone(), resolve: self.dns.clone(), clock: self.clock.clone() };
        let mut spec = ProbeSpec {
            name: "api.scoring.test".to_owned(),
            url: "http://api.scoring.test:8080/predict".to_owned(),
            port: 8080,
            body: body.map(str::to_owned),
            every: Duration::from_millis(100),
            timeout: Duration::from_secs(1),
            resolvers: vec![],
        };
        change(&mut spec);
        Prober::start(ports, spec, ledger).unwrap()
    }
    async fn run(&self, prober: Prober, ms: u64) -> ProbeLog {
        self.clock.run_for(Duration::from_millis(ms)).await;
        tokio::join!(prober.stop(), self.clock.run_for(Duration::from_secs(3))).0
    }
}

fn echo(request: &HttpRequest) -> PortResult<HttpResponse> {
    Ok(HttpResponse { status: 200, headers: BTreeMap::new(), body: request.body.clone().unwrap_or_default() })
}

const MS: Duration = Duration::from_millis(1);

#[tokio::test]
async fn a_slow_answer_never_delays_the_next_question() {
    let rig = Rig::new(|_| {}, |now, request| (if now == 200 { 900 * MS } else { 5 * MS }, echo(request)));
    let log = rig.run(rig.start(Some(r#"{"id":"$ID"}"#), None, |_| {}), 1_050).await;
    let sent: Vec<i64> = log.samples.iter().map(|s| s.sent.as_millisecond()).collect();
    assert_eq!(sent, (0..=10).map(|n| n * 100).collect::<Vec<_>>());
    let took: Vec<i64> = log.samples.iter().map(|s| s.done.as_millisecond() - s.sent.as_millisecond()).collect();
    assert_eq!(took, [5, 5, 900, 5, 5, 5, 5, 5, 5, 5, 5]);
    assert!(log.samples.iter().all(|s| s.good && s.address == EAST.parse().ok()));
}

#[tokio::test]
async fn what_is_not_a_good_answer_is_bad_and_says_why() {
    let rig = Rig::new(
        |_| {},
        |now, request| match now {
            0 => (MS, echo(request)),
            100 => (MS, Ok(HttpResponse { status: 503, headers: BTreeMap::new(), body: vec![] })),
            200 => (MS, Ok(HttpResponse { status: 200, headers: BTreeMap::new(), body: br#"{"id":"other"}"#.to_vec() })),
            300 => (MS, Ok(HttpResponse { status: 200, headers: BTreeMap::new(), body: b"<html>".to_vec() })),
            400 => (MS, Err(PortError::Unreachable("connection refused".to_owned()))),
            500 => (5_000 * MS, echo(request)),
            _ => (MS, Ok(HttpResponse { status: 201, headers: BTreeMap::new(), body: b"{}".to_vec() })),
        },
    );
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ledger.jsonl");
    let log = rig.run(rig.start(Some(r#"{"id":"$ID"}"#), Some(&file), |_| {}), 650).await;
    let why: Vec<String> = log.samples.iter().map(|s| s.why_bad.clone().unwrap_or_default()).collect();
    insta::assert_snapshot!(why.join("\n"), @"
    answered 503
    answered for another request: other
    answered 200 with a body that is no JSON: expected value at line 1 column 1
    unreachable: connection refused
    no good answer within 1000ms
    answered without the `id` that was sent
    ");
    assert_eq!(log.samples[5].done.as_millisecond(), 1_500, "given up at the deadline");
    // Only what was acknowledged is in the ledger.
    let entries = probe_ledger::read(&file).unwrap();
    assert_eq!(entries.iter().map(|e| e.id.as_str()).collect::<Vec<_>>(), ["id-0"]);
    assert_eq!(entries[0].acked.as_millisecond(), 1);
    assert_eq!(log.ledger, Some(probe_ledger::digest(&file).unwrap()));
    assert_eq!(log.ledger_error, None);
}

#[tokio::test]
async fn a_probe_without_a_body_is_a_get() {
    let rig = Rig::new(|_| {}, |_, _| (MS, Ok(HttpResponse { status: 204, headers: BTreeMap::new(), body: vec![] })));
    let log = rig.run(rig.start(None, None, |_| {}), 50).await;
    assert!(log.samples[0].good);
    let (_, request) = lock(&rig.http.requests).remove(0);
    assert_eq!((request.method.as_str(), request.connect_to), ("GET", "10.0.0.1:8080".parse().ok()));
}

#[tokio::test]
async fn the_name_is_asked_again_only_when_its_ttl_has_run_out() {
    let rig = Rig::new(|dns| (dns.ttl_s, dns.moves_at) = (1, 1_200), |_, request| (5 * MS, echo(request)));
    let log = rig.run(rig.start(Some("$ID"), None, |_| {}), 2_350).await;
    assert_eq!(*lock(&rig.dns.asked), [0, 1_000, 2_000]);
    let moved = log.samples.iter().find(|s| s.address == WEST.parse().ok()).unwrap();
    assert_eq!(moved.sent.as_millisecond(), 2_000, "as a client would, it went on asking east until then");
}

#[tokio::test]
async fn a_name_that_is_not_resolved_is_a_bad_sample() {
    let rig = Rig::new(|dns| (dns.ttl_s, dns.fails) = (1, 900..1_350), |_, request| (5 * MS, echo(request)));
    let log = rig.run(rig.start(None, None, |_| {}), 1_650).await;
    let bad: Vec<_> = log.samples.iter().filter(|s| !s.good).collect();
    assert_eq!(bad.iter().map(|s| s.sent.as_millisecond()).collect::<Vec<_>>(), [1_000, 1_100, 1_200, 1_300]);
    assert_eq!(bad[0].why_bad.as_deref(), Some("the name was not resolved: unreachable: resolver down"));
    assert_eq!(bad[0].address, None);
}

#[tokio::test]
async fn a_silent_resolver_leaves_time_for_the_next() {
    let rig = Rig::new(|dns| dns.ttl_s = 60, |_, request| (5 * MS, echo(request)));
    let log = rig
        .run(rig.start(None, None, |spec| spec.resolvers = vec!["127.0.0.1:9".parse().unwrap(), "127.0.0.1:53".parse().unwrap()]), 50)
        .await;
    assert!(log.samples[0].good);
    assert_eq!(log.samples[0].done.as_millisecond(), 505);
}

#[tokio::test]
async fn the_deadline_holds_for_name_and_answer_together() {
    let rig = Rig::new(|dns| dns.ttl_s = 60, |_, request| (3_600_000 * MS, echo(request)));
    let resolvers = vec!["127.0.0.1:9".parse().unwrap(), "127.0.0.1:53".parse().unwrap()];
    let log = rig.run(rig.start(None, None, |spec| spec.resolvers = resolvers), 50).await;
    assert_eq!((log.samples[0].good, log.samples[0].done.as_millisecond()), (false, 1_000));
    assert_eq!(log.samples[0].address, EAST.parse().ok());
}

#[tokio::test]
async fn more_than_can_be_outstanding_is_not_sent_and_counted() {
    let rig = Rig::new(|_| {}, |_, request| (3_000 * MS, echo(request)));
    let log = rig
        .run(
            rig.start(None, None, |spec| {
                spec.every = MS;
                spec.timeout = 2_000 * MS;
            }),
            1_099,
        )
        .await;
    assert_eq!((log.samples.len(), log.not_sent), (1_100, 100));
    assert_eq!(log.samples[1_000].why_bad.as_deref(), Some("not sent: 1000 questions are without an answer"));
    assert_eq!(lock(&rig.http.requests).len(), 1_000);
}

#[tokio::test]
async fn a_standstill_of_our_own_is_counted_and_not_made_up_for() {
    let rig = Rig::new(|_| {}, |_, request| (MS, echo(request)));
    let prober = rig.start(None, None, |_| {});
    rig.clock.run_for(250 * MS).await;
    // Nothing was run in between: the process stood still.
    *lock(&rig.clock.now) += Duration::from_secs(10);
    let log = rig.run(prober, 250).await;
    assert_eq!(log.stalled, 99);
    assert!(log.samples.windows(2).all(|w| w[1].seq == w[0].seq + 1));
    assert!(log.samples.len() < 10);
}

#[tokio::test]
async fn samples_are_fed_as_they_end() {
    let rig = Rig::new(|_| {}, |now, request| (if now == 0 { 250 * MS } else { 5 * MS }, echo(request)));
    let prober = rig.start(None, None, |_| {});
    let mut feed = prober.subscribe();
    let log = rig.run(prober, 350).await;
    let mut order = Vec::new();
    while let Some(sample) = feed.recv().await {
        order.push(sample.seq);
    }
    assert_eq!(order, [1, 2, 0, 3]);
    assert_eq!(log.samples.iter().map(|s| s.seq).collect::<Vec<_>>(), [0, 1, 2, 3]);
}

#[tokio::test]
async fn the_watch_notes_each_change_and_a_failing_resolver_is_none() {
    let rig = Rig::new(|dns| (dns.moves_at, dns.fails) = (505, 300..405), |_, request| (MS, echo(request)));
    let (resolve, clock): (Arc<dyn Resolve>, Arc<dyn Clock>) = (rig.dns.clone(), rig.clock.clone());
    let watch =
        ResolverWatch::start(&resolve, &clock, "api.scoring.test.", &["127.0.0.1:53".parse().unwrap(), "127.0.0.1:9".parse().unwrap()]);
    rig.clock.run_for(Duration::from_secs(1)).await;
    let seen: Vec<String> =
        watch.stop().await.iter().map(|s| format!("{} {} {:?}", s.at.as_millisecond(), s.resolver, s.addresses)).collect();
    assert_eq!(seen, ["0 127.0.0.1:53 [10.0.0.1]", "520 127.0.0.1:53 [10.0.0.2]"]);
}

#[tokio::test]
async fn an_outage_is_detected_measured_and_its_writes_counted() {
    let answer = |now: u64, request: &HttpRequest| {
        let east = request.connect_to.is_some_and(|to| to.ip().to_string() == EAST);
        match (east, now) {
            (true, 1_000..) => (MS, Err(PortError::Unreachable("connection refused".to_owned()))),
            (false, ..2_500) => (MS, Ok(HttpResponse { status: 503, headers: BTreeMap::new(), body: vec![] })),
            _ => (5 * MS, echo(request)),
        }
    };
    let rig = Rig::new(|dns| (dns.ttl_s, dns.moves_at) = (0, 2_030), answer);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ledger.jsonl");
    let prober = rig.start(Some(r#"{"id":"$ID"}"#), Some(&file), |_| {});
    let mut feed = prober.subscribe();
    let (resolve, clock): (Arc<dyn Resolve>, Arc<dyn Clock>) = (rig.dns.clone(), rig.clock.clone());
    let watch = ResolverWatch::start(&resolve, &clock, "api.scoring.test", &[]);
    let log = rig.run(prober, 3_050).await;
    let resolvers = watch.stop().await;
    let mut detector = Detector::new(3);
    while let Some(sample) = feed.recv().await {
        detector.feed(&sample);
    }
    let lost = detector.verdict().unwrap();
    let at = |ms: i64| Timestamp::from_millisecond(ms).ok();
    assert_eq!((Some(lost.at), lost.last_good, lost.missed), (at(1_201), at(905), 3));
    let found = instants(&Recovery {
        samples: &log.samples,
        resolvers: &resolvers,
        fault: at(950),
        detected: Some(lost.at),
        first_applying: at(1_301),
        traffic_sent: at(1_901),
        traffic_applied: at(2_001),
        target: WEST.parse().ok(),
        good: 3,
    });
    let rto = rto(&found, Some(Span::from_secs(2)), false);
    let p = &rto.parts_ms;
    assert_eq!([p.detect, p.decide, p.act, p.propagate, p.verify], [296, 100, 700, 39, 465].map(Some));
    assert_eq!((rto.actual_ms, rto.met), (Some(1_600), Some(true)));
    // East took the last of its writes along.
    let entries = probe_ledger::read(&file).unwrap();
    let mut present: BTreeSet<String> = entries.iter().map(|e| e.id.clone()).collect();
    present.remove("id-9");
    let rpo = rpo(None, Some(&entries), Some(&present), at(950));
    assert_eq!((rpo.acknowledged_writes, rpo.lost_writes, rpo.actual_ms), (Some(16), Some(1), Some(45)));
}
