//! The gates of a canary by the real program, on figures that are measured: an inference server of the test's own answers real
//! requests and counts how long each took in the buckets of a histogram, a real Prometheus scrapes it, and the 95th percentile
//! and the share of errors are reckoned by PromQL. And recorded predictions, which the server gives until it does not.

use super::{
    pg::free_port,
    place::Place,
    prometheus::Prometheus,
    stores_servers::{Server, ministack},
    traffic::{EAST, NAME, WEST, client, weights, zone},
};
use aws_sdk_route53::Client;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

/// Upper ends of the buckets, in seconds.
const ENDS: [f64; 8] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];

#[derive(Default)]
struct Figures {
    /// How many requests took no longer, by the ends of the buckets.
    buckets: [u64; ENDS.len()],
    count: u64,
    seconds: f64,
    errors: u64,
}

/// A model that answers in west, somebody who asks it all the time, and what both can be made to do.
#[derive(Clone, Default)]
struct Scorer {
    figures: Arc<Mutex<Figures>>,
    /// So many milliseconds for each answer.
    slow_ms: Arc<AtomicU64>,
    /// Every so manieth request fails; none when 0.
    fails: Arc<AtomicU64>,
    /// It answers as another model would.
    other: Arc<AtomicBool>,
    /// What came with `record: false`.
    unrecorded: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.over.store(true, Relaxed);
    }
}

/// The requests of clients, until it is dropped.
struct Asking(Scorer);

/// What the model says of these features.
fn predicted(features: &[f64], other: bool) -> Value {
    let sum: f64 = features.iter().sum();
    let share = 1.0 / (1.0 + (-sum - if other { 0.05 } else { 0.0 }).exp());
    json!({ "scores": [1.0 - share, share], "label": i64::from(share > 0.5) })
}

impl Scorer {
    fn at(port: u16) -> Self {
        let (listener, scorer) = (TcpListener::bind((WEST, port)).unwrap(), Self::default());
        let serving = scorer.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let scorer = serving.clone();
                thread::spawn(move || scorer.serve(stream));
            }
        });
        scorer
    }

    /// Four clients, one request after the other each.
    fn asked(&self, port: u16) -> Asking {
        for n in 0..4 {
            let scorer = self.clone();
            thread::spawn(move || {
                while !scorer.over.load(Relaxed) {
                    let body = json!({ "id": format!("client-{n}"), "features": [0.25, 0.5] }).to_string();
                    if let Ok(mut stream) = TcpStream::connect((WEST, port)) {
                        let head = format!("POST /predict HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.read_to_end(&mut Vec::new()));
                    }
                    thread::sleep(Duration::from_millis(10));
                }
            });
        }
        Asking(self.clone())
    }

    fn serve(&self, mut stream: TcpStream) {
        let Some((line, body)) = request(&mut stream) else { return };
        let (status, answer) = match line.split(' ').nth(1) {
            Some("/predict") => self.predict(&body),
            Some("/metrics") => (200, self.metrics()),
            _ => (404, String::new()),
        };
        let length = answer.len();
        let head = format!(
            "HTTP/1.1 {status} X\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        let _ = stream.write_all((head + &answer).as_bytes());
    }

    fn predict(&self, body: &[u8]) -> (u16, String) {
        let begin = Instant::now();
        let asked: Value = serde_json::from_slice(body).unwrap();
        let features: Vec<f64> = asked["features"].as_array().unwrap().iter().map(|f| f.as_f64().unwrap()).collect();
        self.unrecorded.fetch_add(u64::from(asked["record"] == false), Relaxed);
        thread::sleep(Duration::from_millis(self.slow_ms.load(Relaxed)));
        let answer = predicted(&features, self.other.load(Relaxed)).to_string();
        let took = begin.elapsed().as_secs_f64();
        let mut figures = self.figures.lock().unwrap();
        figures.count += 1;
        figures.seconds += took;
        for (bucket, end) in figures.buckets.iter_mut().zip(ENDS) {
            *bucket += u64::from(took <= end);
        }
        let every = self.fails.load(Relaxed);
        let failed = every > 0 && figures.count.is_multiple_of(every);
        figures.errors += u64::from(failed);
        if failed { (500, String::new()) } else { (200, answer) }
    }

    fn metrics(&self) -> String {
        let figures = self.figures.lock().unwrap();
        let mut text = "# TYPE predict_seconds histogram\n".to_owned();
        for (bucket, end) in figures.buckets.iter().zip(ENDS) {
            writeln!(text, "predict_seconds_bucket{{le=\"{end}\"}} {bucket}").unwrap();
        }
        let Figures { count, seconds, errors, .. } = &*figures;
        writeln!(text, "predict_seconds_bucket{{le=\"+Inf\"}} {count}\npredict_seconds_sum {seconds}\npredict_seconds_count {count}")
            .unwrap();
        writeln!(text, "# TYPE predict_errors_total counter\npredict_errors_total {errors}").unwrap();
        text
    }
}

/// The first line and the body.
fn request(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok()).unwrap_or(0);
            if bytes.len() >= end + 4 + length {
                return Some((head.lines().next()?.to_owned(), bytes[end + 4..].to_vec()));
            }
        }
        let read = stream.read(&mut buffer).ok().filter(|read| *read > 0)?;
        bytes.extend_from_slice(&buffer[..read]);
    }
}

const P95: &str = "p95: { query: 'histogram_quantile(0.95, sum by (le) (rate(predict_seconds_bucket[2s])))', kind: p95 }";
const ERRORS: &str = "errors: { query: 'sum(rate(predict_errors_total[2s])) / sum(rate(predict_seconds_count[2s]))', kind: error_rate }";

/// Everything of one canary.
struct Canary {
    place: Place,
    server: Server,
    dns: Client,
    zone: String,
    port: u16,
    scorer: Scorer,
}

impl Canary {
    async fn new() -> Self {
        let (server, place, port) = (ministack().await, Place::new(), free_port());
        let dns = client(&server.url());
        let zone = zone(&dns).await;
        let url = server.url();
        place.file("id", "test").file("secret", "testtest");
        let keys = "credentials: { access_key_id: { file: @/id }, secret_access_key: { file: @/secret } }";
        let aws = format!("aws: {{ region: us-east-1, {keys}, endpoints: {{ s3: \"{url}\", route53: \"{url}\" }} }}");
        let estate = format!(
            "regions: {{ east: {{ {aws} }}, west: {{ {aws} }} }}\nbuckets: {{ models: {{ east: {{ bucket: models-east }}, west: {{ bucket: models-west }} }} }}\n\
             endpoints:\n  inference:\n    name: {NAME}\n    provider: route53\n    zone: {zone}\n    ttl: 5s\n    targets: {{ east: {EAST}, west: {WEST} }}\n\
             \x20   port: {port}\n    golden: {{ bucket: models, key: golden.json }}\n    {aws}\n"
        );
        place.file("muster.yaml", &estate);
        let scorer = Scorer::at(port);
        Self { place, server, dns, zone, port, scorer }
    }

    async fn weights(&self) -> (i64, i64) {
        weights(&self.dns, &self.zone).await
    }

    fn book(&self, to: &str, stages: &str, bake: &str, rest: &str) {
        self.place.book(&format!(
            "  - id: canary\n    uses: traffic.shift\n    on_failure: stop\n    with:\n      endpoint: inference\n      to: {to}\n\
             \x20     stages: {stages}\n      bake: {bake}\n      every: 200ms\n{rest}"
        ));
    }

    /// It goes all the way, and back again: what its last stage measured.
    async fn passes(&self, rest: &str) -> Value {
        self.book("west", "[50, 100]", "2s", rest);
        let output =
            tokio::task::block_in_place(|| self.place.muster(&["run", "book.yaml", "--live"])).expect(0).step("canary")["output"].clone();
        assert_eq!((self.weights().await, &output["percent"]), ((0, 100), &100.into()), "{output}");
        self.book("east", "[100]", "0s", "");
        tokio::task::block_in_place(|| self.place.muster(&["run", "book.yaml", "--live"])).expect(0);
        assert_eq!(self.weights().await, (100, 0));
        output["stages"][1].clone()
    }

    /// While five percent are there something happens: it is taken back, and this is why.
    async fn is_taken_back(&self, rest: &str, happens: impl FnOnce(&Scorer)) -> Value {
        self.book("west", "[5, 50, 100]", "50s", rest);
        let mut running = self.place.start(&["run", "book.yaml", "--live", "--json"]);
        let begin = Instant::now();
        while self.weights().await != (95, 5) {
            assert!(running.ended().is_none() && begin.elapsed() < Duration::from_secs(30), "{}", running.told());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // It is good before, and watched.
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(running.ended().is_none(), "{}", running.told());
        happens(&self.scorer);
        let failure = tokio::task::block_in_place(|| running.end()).expect(1).step("canary")["failure"].clone();
        assert_eq!(self.weights().await, (100, 0), "every weight is as it was: {failure}");
        assert!(failure["message"].as_str().unwrap().contains("at 5 %"), "{failure}");
        failure
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_percentile_of_real_buckets_lets_a_canary_pass_and_takes_it_back() {
    let canary = Canary::new().await;
    let prometheus = Prometheus::scraping(&format!("{WEST}:{}", canary.port));
    let _asking = canary.scorer.asked(canary.port);
    let gates = format!("      metrics: {}\n      gates:\n        {P95}\n        {ERRORS}\n", prometheus.url);
    tokio::task::block_in_place(|| {
        let check = format!(
            "runbook: wait\nsteps:\n  - id: gate\n    uses: metrics.check\n    on_failure: stop\n    with: {{ url: {}, gates: {{ {P95}, {ERRORS} }} }}\n",
            prometheus.url
        );
        canary.place.file("wait.yaml", &check);
        canary.place.until("there are two scrapes to reckon with", || canary.place.muster(&["run", "wait.yaml"]).code == Some(0));
    });

    let stage = canary.passes(&gates).await;
    let of = |gate: &str, what: &str| stage["gates"][gate][what].as_f64().unwrap();
    assert!(of("p95", "smallest") > 0.0 && of("p95", "largest") < 0.5, "{stage}");
    assert!(of("errors", "largest") <= 0.0, "{stage}");

    // One answer in twenty that is slow would not be seen by the 95th percentile; all of them are.
    let failure = canary.is_taken_back(&gates, |scorer| scorer.slow_ms.store(700, Relaxed)).await;
    assert_eq!(failure["code"], "metrics_out_of_bounds", "{failure}");
    let message = failure["message"].as_str().unwrap();
    assert!(message.contains("p95") && message.contains("more than 0.5"), "{failure}");
    canary.scorer.slow_ms.store(0, Relaxed);

    // Quick, and one in ten fails.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let failure = canary.is_taken_back(&gates, |scorer| scorer.fails.store(10, Relaxed)).await;
    assert_eq!(failure["code"], "metrics_out_of_bounds", "{failure}");
    let message = failure["message"].as_str().unwrap();
    assert!(message.contains("errors") && message.contains("more than 0.01"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_whose_predictions_differ_is_taken_back() {
    let canary = Canary::new().await;
    canary.server.bucket("models-west", false).await;
    let features = [[0.5, -1.0], [2.0, 0.25], [-0.75, -0.5]];
    let cases: Vec<Value> = features
        .map(|features| {
            let mut case = predicted(&features, false);
            case["features"] = json!(features);
            case
        })
        .into();
    let golden = json!({ "cases": cases }).to_string();
    canary.server.open("s3://models-west").put("golden.json", golden.into_bytes().into(), &BTreeMap::new(), true).await.unwrap();

    let gate = "      golden: { tolerance: 1e-6 }\n";
    let stage = canary.passes(gate).await;
    assert!(stage["baked_ms"].as_u64().unwrap() >= 2_000, "{stage}");
    let asked = canary.scorer.unrecorded.load(Relaxed);
    assert!(asked >= 2 * 3 * 5 && asked.is_multiple_of(3), "two stages of two seconds, all three cases each time: {asked}");

    // The model is another by a little: healthy, quick, and wrong.
    let failure = canary.is_taken_back(gate, |scorer| scorer.other.store(true, Relaxed)).await;
    assert_eq!(failure["code"], "golden_differs", "{failure}");
    let message = failure["message"].as_str().unwrap();
    assert!(message.contains("of 3 golden cases differ in `west`"), "{failure}");

    // Within a wider tolerance it is the same model.
    canary.passes("      golden: { tolerance: 0.1 }\n").await;
}
