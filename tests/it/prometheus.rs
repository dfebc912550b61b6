//! `metrics.check` by the real program against a real Prometheus that scrapes a service whose figures the test sets: a
//! gate that stays open, one that closes while it is watched, one whose figure is gone, and a Prometheus that dies.

use super::{pg::free_port, place::Place};
use std::{
    io::{Read, Write},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

/// A service that tells its figures.
pub struct Service {
    port: u16,
    figures: Arc<Mutex<String>>,
}

impl Service {
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let figures = Arc::new(Mutex::new(String::new()));
        let told = figures.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 4096]);
                let body = told.lock().unwrap().clone();
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all((head + &body).as_bytes());
            }
        });
        Self { port, figures }
    }

    pub fn tells(&self, error_rate: &str) {
        *self.figures.lock().unwrap() =
            format!("# TYPE error_rate gauge\nerror_rate {error_rate}\n# TYPE p95 gauge\np95{{path=\"/a\"}} 0.1\np95{{path=\"/b\"}} 0.2\n");
    }
}

pub struct Prometheus {
    pub url: String,
    process: Child,
    _dir: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Prometheus {
    pub fn of(service: &Service) -> Self {
        Self::scraping(&format!("127.0.0.1:{}", service.port))
    }

    /// What answers there with `/metrics`, five times a second.
    pub fn scraping(target: &str) -> Self {
        let program = ["/usr/bin/prometheus", "/usr/local/bin/prometheus"].into_iter().find(|p| Path::new(p).exists());
        let program = program.expect("there is no prometheus on this machine: run `make deps`");
        let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
        let conf = format!(
            "global: {{ scrape_interval: 200ms, scrape_timeout: 200ms }}\nscrape_configs:\n  - job_name: service\n    static_configs: [ {{ targets: ['{target}'] }} ]\n"
        );
        std::fs::write(dir.path().join("p.yml"), conf).unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let process = Command::new(program)
            .arg(format!("--config.file={}", dir.path().join("p.yml").display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { url: format!("http://127.0.0.1:{port}"), process, _dir: dir }
    }
}

fn check(place: &Place, url: &str, rest: &str) {
    place.file(
        "check.yaml",
        &format!(
            "runbook: check\nsteps:\n  - id: gate\n    uses: metrics.check\n    on_failure: stop\n    with:\n      url: {url}\n{rest}"
        ),
    );
}

const RATE: &str = "      gates: { error_rate: { query: error_rate, max: 0.01 } }\n";

#[test]
fn metrics_gate_is_open_only_for_what_was_measured_and_good() {
    let (service, place) = (Service::new(), Place::new());
    service.tells("0.002");
    let prometheus = Prometheus::of(&service);
    check(&place, &prometheus.url, RATE);
    place.until("the first figure is there", || place.muster(&["run", "check.yaml"]).code == Some(0));

    // Watched for a while, and good all the time.
    check(&place, &prometheus.url, &format!("      for: 2s\n      every: 200ms\n{RATE}"));
    let said = place.muster(&["run", "check.yaml"]).expect(0);
    let output = said.step("gate")["output"].clone();
    assert!(output["looks"].as_u64().unwrap() >= 5 && output["duration_ms"].as_u64().unwrap() >= 2_000, "{output}");
    assert_eq!(output["gates"]["error_rate"]["largest"], 0.002);

    // It closes while it is watched, and not at the end only.
    check(&place, &prometheus.url, &format!("      for: 60s\n      every: 200ms\n{RATE}"));
    let running = place.start(&["run", "check.yaml", "--json"]);
    std::thread::sleep(Duration::from_secs(1));
    service.tells("0.2");
    let said = running.end().expect(1);
    let failure = said.step("gate")["failure"].clone();
    assert_eq!(failure["code"], "metrics_out_of_bounds", "{failure}");
    assert!(failure["message"].as_str().unwrap().contains("0.2, more than 0.01"), "{failure}");

    // What a figure is gives it its usual limit.
    check(&place, &prometheus.url, "      gates: { it: { query: error_rate, kind: error_rate } }\n");
    let failure = place.muster(&["run", "check.yaml"]).expect(1).step("gate")["failure"].clone();
    assert!(failure["message"].as_str().unwrap().contains("0.2, more than 0.01"), "{failure}");
    check(&place, &prometheus.url, "      gates: { it: { query: error_rate, kind: p95 } }\n");
    place.muster(&["run", "check.yaml"]).expect(0);

    // What nobody measures, what is many, and what is nothing by nothing.
    for (query, code, words) in [
        ("no_such_figure", "metrics_missing", "no such figure"),
        ("p95", "metrics_missing", "2 figures"),
        ("'0 / 0'", "metrics_missing", "nothing to measure"),
        ("'error_rate['", "metrics_missing", "refuses the query"),
        ("'error_rate[5s]'", "metrics_missing", "matrix"),
    ] {
        check(&place, &prometheus.url, &format!("      gates: {{ it: {{ query: {query}, max: 1 }} }}\n"));
        let failure = place.muster(&["run", "check.yaml"]).expect(1).step("gate")["failure"].clone();
        assert_eq!(failure["code"], code, "{query}: {failure}");
        assert!(failure["message"].as_str().unwrap().contains(words), "{query}: {failure}");
    }

    // A Prometheus that is gone measured nothing.
    check(&place, &prometheus.url, &format!("      patience: 1s\n      every: 200ms\n{RATE}"));
    drop(prometheus);
    let failure = place.muster(&["run", "check.yaml"]).expect(1).step("gate")["failure"].clone();
    assert_eq!(failure["code"], "metrics_unreachable", "{failure}");
}
