//! The client outside both regions: it asks on a fixed cadence, whatever becomes of its questions.
//!
//! Open loop: each question is a task of its own, so a slow answer never delays the next question and no
//! outage is made to look shorter than it was. It resolves the endpoint's name as clients do, for as long
//! as the answer's TTL allows, and writes what was acknowledged to it into a ledger.

use super::probe_ledger::{Ledger, LedgerError};
use crate::model::{drill::HttpProbe, estate::Endpoint, event::LedgerDigest};
use crate::plan::measure::{LedgerEntry, ProbeSample};
use crate::providers::clock::Clock;
use crate::providers::port::{Http, HttpRequest, HttpResponse, Resolve};
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64, atomic::Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::{Semaphore, broadcast};
use tokio_util::{sync::CancellationToken, sync::DropGuard, task::TaskTracker};

/// So many questions may be without an answer at a time; one more is not sent, and says so.
pub const OUTSTANDING: usize = 1_000;
/// So many samples are kept; older ones are dropped and counted. Ten at a second fill it in three hours.
const KEPT: usize = 108_000;
/// So far may one who listens fall behind.
const FEED: usize = 8_192;
const FLUSH_EVERY: Duration = Duration::from_secs(1);
const REASON_LENGTH: usize = 200;

/// The parts of the world that a probe needs.
#[derive(Clone)]
pub struct ProbePorts {
    pub http: Arc<dyn Http>,
    pub resolve: Arc<dyn Resolve>,
    pub clock: Arc<dyn Clock>,
}

/// What is asked, where and how often.
#[derive(Clone, Debug)]
pub struct ProbeSpec {
    pub name: String,
    pub url: String,
    pub port: u16,
    pub body: Option<String>,
    pub every: Duration,
    pub timeout: Duration,
    /// Asked one after another until one answers; the system's when empty.
    pub resolvers: Vec<SocketAddr>,
}

impl ProbeSpec {
    #[must_use]
    pub fn new(endpoint: &Endpoint, probe: &HttpProbe) -> Self {
        let name = endpoint.name.trim_end_matches('.').to_owned();
        let port = endpoint.port.map(|p| format!(":{p}")).unwrap_or_default();
        let slash = if probe.path.starts_with('/') { "" } else { "/" };
        Self {
            url: format!("{}://{name}{port}{slash}{}", endpoint.scheme, probe.path),
            port: endpoint.port.unwrap_or(if endpoint.scheme == "https" { 443 } else { 80 }),
            name,
            body: probe.body.clone(),
            // A cadence of nothing would be a busy loop.
            every: probe.every.duration().max(Duration::from_millis(1)),
            timeout: probe.timeout.duration().max(Duration::from_millis(1)),
            resolvers: endpoint.resolvers.clone(),
        }
    }
}

/// What was seen, when the probe has stopped.
#[derive(Debug, Default)]
pub struct ProbeLog {
    /// In the order of sending. Identifiers stand in the ledger only.
    pub samples: Vec<ProbeSample>,
    /// The oldest samples, dropped to keep memory bounded.
    pub dropped: u64,
    /// Questions not sent because too many were without an answer.
    pub not_sent: u64,
    /// Questions left out because this process itself had stood still.
    pub stalled: u64,
    pub ledger: Option<LedgerDigest>,
    /// Why the ledger is not to be trusted, if it is not.
    pub ledger_error: Option<String>,
}

/// A probe that runs until it is stopped or dropped.
pub struct Prober {
    shared: Arc<Shared>,
    driver: tokio::task::JoinHandle<()>,
    asking: TaskTracker,
    guard: DropGuard,
}

struct Shared {
    ports: ProbePorts,
    spec: ProbeSpec,
    feed: broadcast::Sender<ProbeSample>,
    log: Mutex<VecDeque<ProbeSample>>,
    ledger: Mutex<Option<Ledger>>,
    ledger_error: Mutex<Option<String>>,
    cache: Mutex<Option<Cached>>,
    dropped: AtomicU64,
    not_sent: AtomicU64,
    stalled: AtomicU64,
}

struct Cached {
    address: IpAddr,
    asked: Duration,
    until: Duration,
}

/// The samples in the order in which they end.
pub struct Feed(broadcast::Receiver<ProbeSample>);

impl Feed {
    /// The next one; `None` once the probe is gone. One who falls far behind misses the oldest.
    pub async fn recv(&mut self) -> Option<ProbeSample> {
        loop {
            match self.0.recv().await {
                Ok(sample) => return Some(sample),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

impl Prober {
    /// Starts asking at once. With a `ledger`, every acknowledged identifier is appended to that file.
    ///
    /// # Errors
    /// When the ledger cannot be opened.
    pub fn start(ports: ProbePorts, spec: ProbeSpec, ledger: Option<&Path>) -> Result<Self, LedgerError> {
        let shared = Arc::new(Shared {
            ports,
            spec,
            feed: broadcast::Sender::new(FEED),
            log: Mutex::default(),
            ledger: Mutex::new(ledger.map(Ledger::open).transpose()?),
            ledger_error: Mutex::default(),
            cache: Mutex::default(),
            dropped: AtomicU64::new(0),
            not_sent: AtomicU64::new(0),
            stalled: AtomicU64::new(0),
        });
        let cancel = CancellationToken::new();
        let asking = TaskTracker::new();
        let driver = tokio::spawn(drive(Arc::clone(&shared), asking.clone(), cancel.clone()));
        Ok(Self { shared, driver, asking, guard: cancel.drop_guard() })
    }

    /// Every sample that ends from now on.
    #[must_use]
    pub fn subscribe(&self) -> Feed {
        Feed(self.shared.feed.subscribe())
    }

    /// What was seen up to now, in the order of sending.
    #[must_use]
    pub fn samples(&self) -> Vec<ProbeSample> {
        let mut samples: Vec<ProbeSample> = lock(&self.shared.log).iter().cloned().collect();
        samples.sort_by_key(|s| s.seq);
        samples
    }

    /// Sends nothing more, waits for the answers under way, closes the ledger.
    pub async fn stop(self) -> ProbeLog {
        let Self { shared, driver, asking, guard } = self;
        drop(guard);
        asking.close();
        let clock = &shared.ports.clock;
        let all_ended = async {
            let ended = driver.await;
            asking.wait().await;
            ended
        };
        // Each question has a deadline of its own, so this one is only for what cannot happen.
        let ended = within(clock.as_ref(), shared.spec.timeout + FLUSH_EVERY, all_ended).await;
        if !matches!(ended, Some(Ok(()))) {
            shared.distrust_ledger("questions were still under way when the probe was stopped");
        }
        let ledger = lock(&shared.ledger).take().map(Ledger::finish).transpose();
        let ledger = ledger.unwrap_or_else(|e| {
            shared.distrust_ledger(&e.to_string());
            None
        });
        let mut samples: Vec<ProbeSample> = std::mem::take(&mut *lock(&shared.log)).into();
        samples.sort_by_key(|s| s.seq);
        let ledger_error = lock(&shared.ledger_error).take();
        let [dropped, not_sent, stalled] = [&shared.dropped, &shared.not_sent, &shared.stalled].map(|count| count.load(Relaxed));
        ProbeLog { samples, dropped, not_sent, stalled, ledger, ledger_error }
    }
}

/// The cadence: one question each `every`, counted from the start so that it does not drift.
async fn drive(shared: Arc<Shared>, asking: TaskTracker, cancel: CancellationToken) {
    let (clock, every) = (Arc::clone(&shared.ports.clock), shared.spec.every);
    let outstanding = Arc::new(Semaphore::new(OUTSTANDING));
    let mut due = clock.monotonic();
    let mut flushed = due;
    let mut seq = 0;
    while !cancel.is_cancelled() {
        let now = clock.monotonic();
        if now < due {
            tokio::select! {
                () = cancel.cancelled() => break,
                () = clock.sleep(due.saturating_sub(now)) => continue,
            }
        }
        // A burst to make up for a standstill of ours would say nothing of the service.
        let behind = now.saturating_sub(due);
        if behind > shared.spec.timeout {
            let slots = behind.as_nanos() / every.as_nanos().max(1);
            shared.stalled.fetch_add(u64::try_from(slots).unwrap_or(u64::MAX), Relaxed);
            due = now;
        }
        let sent = clock.now();
        match Arc::clone(&outstanding).try_acquire_owned() {
            Ok(permit) => {
                let shared = Arc::clone(&shared);
                asking.spawn(async move {
                    shared.ask(seq, sent).await;
                    drop(permit);
                });
            }
            Err(_) => shared.leave_out(seq, sent),
        }
        seq += 1;
        due += every;
        if now.saturating_sub(flushed) >= FLUSH_EVERY {
            flushed = now;
            shared.flush();
        }
    }
}

impl Shared {
    /// One question, to its end.
    async fn ask(&self, seq: u64, sent: jiff::Timestamp) {
        let clock = self.ports.clock.as_ref();
        let began = clock.monotonic();
        let id = self.spec.body.as_ref().filter(|b| b.contains("$ID")).map(|_| clock.new_id());
        let (address, outcome) = self.attempt(began, id.as_deref()).await;
        let took = clock.monotonic().saturating_sub(began);
        // By the monotonic clock: a step of the wall clock is no slow answer.
        let done = sent.checked_add(took).unwrap_or(sent);
        if let (Ok(()), Some(id)) = (&outcome, &id) {
            self.acknowledge(&LedgerEntry { id: id.clone(), sent, acked: done });
        }
        let why_bad = outcome.err().map(|why| why.chars().take(REASON_LENGTH).collect());
        self.note(ProbeSample { seq, sent, done, good: why_bad.is_none(), address, why_bad, id });
    }

    async fn attempt(&self, began: Duration, id: Option<&str>) -> (Option<IpAddr>, Result<(), String>) {
        let clock = self.ports.clock.as_ref();
        let late = || format!("no good answer within {}ms", self.spec.timeout.as_millis());
        let address = match within(clock, self.spec.timeout, self.resolve()).await {
            None => return (None, Err(format!("the name was not resolved: {}", late()))),
            Some(Err(why)) => return (None, Err(format!("the name was not resolved: {why}"))),
            Some(Ok(address)) => address,
        };
        let left = self.spec.timeout.saturating_sub(clock.monotonic().saturating_sub(began));
        let answer = within(clock, left, self.ports.http.send(self.request(address, left, id))).await;
        let outcome = match answer {
            None => Err(late()),
            Some(Err(e)) => Err(e.to_string()),
            Some(Ok(response)) => judge(&response, id),
        };
        (Some(address), outcome)
    }

    fn request(&self, address: IpAddr, left: Duration, id: Option<&str>) -> HttpRequest {
        let body = self.spec.body.as_ref().map(|b| b.replace("$ID", id.unwrap_or_default()).into_bytes());
        let json = body.is_some().then(|| ("content-type".to_owned(), "application/json".to_owned()));
        HttpRequest {
            method: if body.is_some() { "POST" } else { "GET" }.to_owned(),
            url: self.spec.url.clone(),
            headers: BTreeMap::from_iter(json),
            body,
            connect_to: Some(SocketAddr::new(address, self.spec.port)),
            timeout: Some(left),
        }
    }

    /// The address, from the cache for as long as its TTL allows. Never beyond: an address kept when the
    /// resolver fails would hide that clients cannot find the service.
    async fn resolve(&self) -> Result<IpAddr, String> {
        let clock = self.ports.clock.as_ref();
        let asked = clock.monotonic();
        if let Some(cached) = lock(&self.cache).as_ref().filter(|c| asked < c.until) {
            return Ok(cached.address);
        }
        let (address, ttl_s) = self.ask_resolvers().await?;
        let until = clock.monotonic().saturating_add(Duration::from_secs(u64::from(ttl_s)));
        let mut cache = lock(&self.cache);
        // Of two that asked at the same time the later question has the later answer.
        if cache.as_ref().is_none_or(|c| c.asked <= asked) {
            *cache = Some(Cached { address, asked, until });
        }
        Ok(address)
    }

    async fn ask_resolvers(&self) -> Result<(IpAddr, u32), String> {
        let servers: Vec<Option<SocketAddr>> =
            if self.spec.resolvers.is_empty() { vec![None] } else { self.spec.resolvers.iter().copied().map(Some).collect() };
        // A resolver that is silent must leave time for the next.
        let each = self.spec.timeout / u32::try_from(servers.len()).unwrap_or(u32::MAX);
        let mut why = String::new();
        for server in servers {
            why = match within(self.ports.clock.as_ref(), each, self.ports.resolve.ask(server, &self.spec.name)).await {
                None => format!("no answer within {}ms", each.as_millis()),
                Some(Err(e)) => e.to_string(),
                Some(Ok(answer)) => match answer.addresses.first() {
                    Some(address) => return Ok((*address, answer.ttl_s)),
                    None => "the answer has no address".to_owned(),
                },
            };
        }
        Err(why)
    }

    fn leave_out(&self, seq: u64, sent: jiff::Timestamp) {
        self.not_sent.fetch_add(1, Relaxed);
        let why_bad = Some(format!("not sent: {OUTSTANDING} questions are without an answer"));
        self.note(ProbeSample { seq, sent, done: sent, good: false, address: None, why_bad, id: None });
    }

    fn note(&self, sample: ProbeSample) {
        // Nobody listening is no failure.
        let _ = self.feed.send(sample.clone());
        let mut log = lock(&self.log);
        if log.len() >= KEPT {
            log.pop_front();
            self.dropped.fetch_add(1, Relaxed);
        }
        log.push_back(ProbeSample { id: None, ..sample });
    }

    fn acknowledge(&self, entry: &LedgerEntry) {
        if let Some(Err(e)) = lock(&self.ledger).as_mut().map(|ledger| ledger.append(entry)) {
            self.distrust_ledger(&e.to_string());
        }
    }

    fn flush(&self) {
        if let Some(Err(e)) = lock(&self.ledger).as_mut().map(Ledger::flush) {
            self.distrust_ledger(&e.to_string());
        }
    }

    /// Keeps the first reason; the others follow from it.
    fn distrust_ledger(&self, why: &str) {
        lock(&self.ledger_error).get_or_insert_with(|| why.to_owned());
    }
}

/// Good is 2xx, and an identifier that was sent comes back.
fn judge(response: &HttpResponse, id: Option<&str>) -> Result<(), String> {
    if !(200..300).contains(&response.status) {
        return Err(format!("answered {}", response.status));
    }
    let Some(id) = id else { return Ok(()) };
    let answer: serde_json::Value =
        serde_json::from_slice(&response.body).map_err(|e| format!("answered {} with a body that is no JSON: {e}", response.status))?;
    match answer.get("id").and_then(serde_json::Value::as_str) {
        Some(same) if same == id => Ok(()),
        Some(other) => Err(format!("answered for another request: {other}")),
        None => Err("answered without the `id` that was sent".to_owned()),
    }
}

/// Waits so long at most.
pub(super) async fn within<T>(clock: &dyn Clock, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        done = work => Some(done),
        () = clock.sleep(limit) => None,
    }
}

/// What a panicking task left behind is still a log.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;
