//! `metrics.check`: hold figures of a Prometheus against their limits, once or for a while.
//!
//! It is the gate of a canary: after a part of the traffic was moved, the error rate and the latency are watched
//! before more follows. It only reads, so a lost answer is asked for again. A figure that is missing, that is not a
//! number, or of which the query gives more than one, is a failed gate and not a passed one: nothing is believed good
//! for want of evidence. With `for`, every look in that time must be good; the first that is not ends it. A
//! Prometheus that cannot be asked is asked again, but never for longer than `patience`.

use super::{contract::*, shared::*};
use crate::model::{effect::*, estate::Estate, node::Node, runbook::UndoPolicy, time::Span};
use crate::providers::port::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    time::Duration,
};

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Where Prometheus, or what speaks its API, answers: `http://prometheus:9090`.
    pub url: String,
    /// The figures, by the names that they are shown under.
    pub gates: BTreeMap<String, Gate>,
    /// For how long they must stay good; a single look when left out.
    #[serde(default, rename = "for")]
    pub length: Option<Span>,
    /// How often they are looked at.
    #[serde(default = "five_seconds")]
    pub every: Span,
    /// For how long Prometheus may be out of reach before that counts as a failed gate.
    #[serde(default = "thirty_seconds")]
    pub patience: Span,
}

/// One figure and its limits; at least one of them, or what it measures.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// PromQL that gives one number: `sum(rate(errors[1m])) / sum(rate(requests[1m]))`.
    pub query: String,
    /// What it measures, where that has a usual limit: then `max` may be left out.
    #[serde(default)]
    pub kind: Option<Kind>,
    /// The largest that is good; when left out, that of `kind`.
    #[serde(default)]
    pub max: Option<f64>,
    /// The smallest that is good.
    #[serde(default)]
    pub min: Option<f64>,
}

/// What a figure is, as far as its limit goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The share of requests that fail: at most 0.01, one in a hundred.
    ErrorRate,
    /// Within how many seconds 95 of 100 requests are answered: at most 0.5.
    P95,
}

impl Gate {
    /// The largest that is good, as written or as usual for what it is.
    fn largest(&self) -> Option<f64> {
        let usual = |kind| match kind {
            Kind::ErrorRate => 0.01,
            Kind::P95 => 0.5,
        };
        self.max.or(self.kind.map(usual))
    }
}

fn five_seconds() -> Span {
    Span::from_secs(5)
}
fn thirty_seconds() -> Span {
    Span::from_secs(30)
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    /// How often all of them were looked at.
    pub looks: u64,
    pub duration_ms: u64,
    pub gates: BTreeMap<String, Range>,
}

/// What one figure was while it was watched.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Range {
    pub smallest: f64,
    pub largest: f64,
    pub last: f64,
}

pub struct Check;

impl Action for Check {
    type Input = Input;
    type Intent = Input;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "metrics.check",
            version: 1,
            summary: "Hold figures of a Prometheus against their limits, once or for a while",
            effect: Effect::Read,
            danger: Danger::None,
            undo: UndoPolicy::None,
            timeout: Span::from_secs(900),
            example: "id: bake\nuses: metrics.check\nwith:\n  url: http://prometheus.west.internal:9090\n  for: 5m\n  gates:\n    error_rate: { query: 'sum(rate(http_errors_total[1m])) / sum(rate(http_requests_total[1m]))', max: 0.01 }\n    p95_seconds: { query: 'histogram_quantile(0.95, sum by (le) (rate(http_seconds_bucket[1m])))', max: 0.5 }\n",
        }
    }
    fn reach(_with: &Node, _estate: &Estate) -> Vec<Reach> {
        vec![reach_here()]
    }
    fn locks(_with: &Node) -> Vec<Resource> {
        Vec::new()
    }
    async fn prepare(_cx: &ReadCx, input: Input) -> Result<Prepared<Input>, Refusal> {
        precheck(&input)?;
        Ok(Prepared { intent: input, change: Vec::new(), notes: Vec::new() })
    }
    async fn apply(cx: &WriteCx, intent: &Input) -> Result<Output, ApplyError> {
        watch(cx, intent).await
    }
    async fn observe(_cx: &ReadCx, _intent: &Input) -> Seen<Output> {
        Seen::Absent
    }
    async fn undo(_cx: &WriteCx, _intent: &Input, _output: Option<Output>) -> Result<(), ApplyError> {
        Ok(())
    }
}

pub(super) fn precheck(input: &Input) -> Result<(), Refusal> {
    let no = |message: String| Err(Refusal::no("input", message));
    match url::Url::parse(&input.url) {
        // Not repeated: it is in the runbook already, and need not be on record.
        Ok(url) if url.password().is_some() => return no("the address holds a password, which would stand in the record: leave it out".into()),
        Ok(url) if matches!(url.scheme(), "http" | "https") => {}
        _ => return no(format!("`{}` is no address: write http://HOST:9090", input.url)),
    }
    if input.gates.is_empty() {
        return no("without `gates` nothing is checked".into());
    }
    if input.every.ms == 0 {
        return no("`every: 0s` would ask without end".into());
    }
    for (name, gate) in &input.gates {
        let limits = [gate.largest(), gate.min];
        if limits == [None, None] {
            return no(format!("gate `{name}` has neither `max` nor `min` nor a `kind`: anything would be good"));
        }
        if limits.iter().flatten().any(|limit| limit.is_nan()) {
            return no(format!("a limit of gate `{name}` is not a number"));
        }
    }
    Ok(())
}

/// Looks until the time is over, or something is not good.
pub(super) async fn watch(cx: &WriteCx, input: &Input) -> Result<Output, ApplyError> {
    let clock = cx.read.world.clock();
    let begun = clock.monotonic();
    let length = input.length.map_or(Duration::ZERO, |span| Duration::from_millis(span.ms));
    let (every, patience) = (Duration::from_millis(input.every.ms), Duration::from_millis(input.patience.ms));
    let mut output = Output { looks: 0, duration_ms: 0, gates: BTreeMap::new() };
    let mut heard = begun;
    loop {
        let began = clock.monotonic();
        match look(cx, input).await {
            Ok(figures) => {
                heard = clock.monotonic();
                output.looks += 1;
                take(&mut output.gates, &figures);
                judge(input, &figures)?;
            }
            Err(Trouble::Silent(why)) if clock.monotonic().saturating_sub(heard) < patience => {
                tracing::info!("{}: {why}; asked again", input.url);
            }
            Err(Trouble::Silent(why)) => {
                return Err(closed("metrics_unreachable", format!("{}: {why}", input.url)));
            }
            Err(Trouble::Gate(message)) => return Err(closed("metrics_missing", message)),
        }
        let now = clock.monotonic();
        output.duration_ms = u64::try_from(now.saturating_sub(begun).as_millis()).unwrap_or(u64::MAX);
        // The last look must lie at the end of the time, and be one that was answered.
        if now.saturating_sub(begun) >= length && heard >= began {
            return Ok(output);
        }
        let left = (begun + length).saturating_sub(now).max(Duration::from_millis(100));
        clock.sleep(every.min(left)).await;
    }
}

fn closed(code: &str, message: String) -> ApplyError {
    ApplyError::Definite(Failure::new(code, message).remedy("look at the figure in Prometheus; a gate passes only on what was measured"))
}

enum Trouble {
    /// No answer: it may come later.
    Silent(String),
    /// An answer that says nothing about the figure.
    Gate(String),
}

async fn look(cx: &WriteCx, input: &Input) -> Result<BTreeMap<String, f64>, Trouble> {
    let mut figures = BTreeMap::new();
    for (name, gate) in &input.gates {
        figures.insert(name.clone(), ask(cx, &input.url, name, &gate.query).await?);
    }
    Ok(figures)
}

async fn ask(cx: &WriteCx, base: &str, name: &str, query: &str) -> Result<f64, Trouble> {
    let form = url::form_urlencoded::Serializer::new(String::new()).append_pair("query", query).finish();
    let request = HttpRequest {
        method: "POST".into(),
        url: format!("{}/api/v1/query", base.trim_end_matches('/')),
        headers: [("Content-Type".to_owned(), "application/x-www-form-urlencoded".to_owned())].into(),
        body: Some(form.into_bytes()),
        connect_to: None,
        timeout: Some(Duration::from_secs(10).min(cx.deadline)),
    };
    let answer = cx.read.world.http().send(request).await.map_err(|e| Trouble::Silent(e.to_string()))?;
    if answer.status >= 500 {
        return Err(Trouble::Silent(format!("it answers with status {}", answer.status)));
    }
    let answer: Answer = serde_json::from_slice(&answer.body)
        .map_err(|_| Trouble::Gate(format!("gate `{name}`: what answers there with status {} is no Prometheus", answer.status)))?;
    figure(&answer).map_err(|why| Trouble::Gate(format!("gate `{name}`: {why} (query: {query})")))
}

/// What Prometheus answers to an instant query.
#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    data: Option<Data>,
    #[serde(default)]
    error: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    result_type: String,
    result: serde_json::Value,
}

#[derive(Deserialize)]
struct Sample {
    value: (f64, String),
}

fn figure(answer: &Answer) -> Result<f64, String> {
    if let Some(error) = &answer.error {
        return Err(format!("Prometheus refuses the query: {error}"));
    }
    let data = answer.data.as_ref().ok_or("the answer has no data")?;
    let unreadable = |e: serde_json::Error| format!("the answer cannot be read: {e}");
    let text = match data.result_type.as_str() {
        "scalar" => <(f64, String)>::deserialize(&data.result).map_err(unreadable)?.1,
        "vector" => {
            let mut all = Vec::<Sample>::deserialize(&data.result).map_err(unreadable)?;
            match (all.pop(), all.len()) {
                (Some(one), 0) => one.value.1,
                (None, _) => return Err("there is no such figure".into()),
                (_, more) => return Err(format!("the query gives {} figures, and which is meant cannot be told: sum or select them", more + 1)),
            }
        }
        other => return Err(format!("the query gives a {other}, not a figure")),
    };
    match text.parse::<f64>() {
        // 0 / 0: nothing was asked of the service, so nothing is known of it.
        Ok(number) if number.is_nan() => Err("it is not a number: there was nothing to measure".into()),
        Ok(number) => Ok(number),
        Err(_) => Err(format!("`{text}` is no number")),
    }
}

fn take(ranges: &mut BTreeMap<String, Range>, figures: &BTreeMap<String, f64>) {
    for (name, &figure) in figures {
        let range = ranges.entry(name.clone()).or_insert(Range { smallest: figure, largest: figure, last: figure });
        *range = Range { smallest: range.smallest.min(figure), largest: range.largest.max(figure), last: figure };
    }
}

fn judge(input: &Input, figures: &BTreeMap<String, f64>) -> Result<(), ApplyError> {
    let mut bad = Vec::new();
    for (name, gate) in &input.gates {
        let Some(&figure) = figures.get(name) else { continue };
        if let Some(max) = gate.largest().filter(|max| figure > *max) {
            bad.push(format!("`{name}` is {figure}, more than {max}"));
        }
        if let Some(min) = gate.min.filter(|min| figure < *min) {
            bad.push(format!("`{name}` is {figure}, less than {min}"));
        }
    }
    if bad.is_empty() { Ok(()) } else { Err(fail("metrics_out_of_bounds", bad.join("; "))) }
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    let gates = serde_json::json!({ "error_rate": { "query": "errors / requests", "max": 0.01 } });
    super::contract_tests::Fixture::new(serde_json::json!({ "url": "http://127.0.0.1:9090", "gates": gates })).set(|world| answers(world, "[[0,\"0.002\"]]"))
}

/// Each sample as `[time, "value"]`.
#[cfg(test)]
fn answers(world: &crate::providers::sim::SimWorld, samples: &'static str) {
    let samples: Vec<serde_json::Value> = serde_json::from_str(samples).expect("JSON");
    let result: Vec<_> = samples.iter().map(|sample| serde_json::json!({ "metric": {}, "value": sample })).collect();
    let body = serde_json::json!({ "status": "success", "data": { "resultType": "vector", "result": result } }).to_string();
    world.answer(move |_| Ok(HttpResponse { status: 200, headers: BTreeMap::new(), body: body.clone().into_bytes() }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::contract_tests::{Bench, Fixture};
    use serde_json::json;

    #[tokio::test]
    async fn what_is_not_measured_closes_the_gate() {
        let bench = Bench::new(&fixture());
        for (samples, want) in [("[]", "no such figure"), ("[[0,\"NaN\"]]", "nothing to measure"), ("[[0,\"1\"],[0,\"2\"]]", "2 figures")] {
            answers(&bench.world, samples);
            let failure = bench.failed::<Check>().await;
            assert_eq!(failure.code, "metrics_missing");
            assert!(failure.message.contains(want), "{failure}");
        }
        answers(&bench.world, "[[0,\"0.02\"]]");
        let failure = bench.failed::<Check>().await;
        assert_eq!(failure.code, "metrics_out_of_bounds");
        assert!(failure.message.contains("0.02, more than 0.01"), "{failure}");
        answers(&bench.world, "[[0,\"+Inf\"]]");
        assert_eq!(bench.failed::<Check>().await.code, "metrics_out_of_bounds");
    }

    /// One in a hundred that fail, and half a second, unless the gate says otherwise.
    #[tokio::test]
    async fn what_a_figure_is_gives_its_usual_limit() {
        let closed = async |gate: serde_json::Value, sample: &'static str| {
            let with = json!({ "url": "http://127.0.0.1:9090", "gates": { "it": gate } });
            let bench = Bench::new(&Fixture::new(with).set(|world| answers(world, "[[0,\"0\"]]")));
            answers(&bench.world, sample);
            bench.run::<Check>().await.err().map(|failure| failure.message)
        };
        let more = |found: Option<String>, limit: &str| assert!(found.as_ref().is_some_and(|m| m.contains(&format!("more than {limit}"))), "{found:?}");
        let rate = || json!({ "query": "q", "kind": "error_rate" });
        assert_eq!(closed(rate(), "[[0,\"0.01\"]]").await, None);
        more(closed(rate(), "[[0,\"0.011\"]]").await, "0.01");
        let p95 = || json!({ "query": "q", "kind": "p95" });
        assert_eq!(closed(p95(), "[[0,\"0.5\"]]").await, None);
        more(closed(p95(), "[[0,\"0.6\"]]").await, "0.5");
        let own = json!({ "query": "q", "kind": "p95", "max": 2 });
        assert_eq!(closed(own.clone(), "[[0,\"1.9\"]]").await, None, "what is written counts");
        more(closed(own, "[[0,\"2.1\"]]").await, "2");
        assert_eq!(closed(json!({ "query": "q", "max": 1 }), "[[0,\"0.9\"]]").await, None, "without a kind nothing is assumed");
    }

    #[tokio::test]
    async fn it_is_watched_for_as_long_as_was_asked() {
        let gates = json!({ "error_rate": { "query": "q", "max": 0.01 }, "ready": { "query": "q", "min": 0.001 } });
        let with = json!({ "url": "http://127.0.0.1:9090", "gates": gates, "for": "1m", "every": "10s" });
        let bench = Bench::new(&Fixture::new(with).set(|world| answers(world, "[[0,\"0.002\"]]")));
        let out = bench.run::<Check>().await.expect("good all the time");
        assert!(out.looks >= 6 && bench.elapsed_ms() >= 60_000, "{out:?}");
        assert_eq!(out.gates["ready"], Range { smallest: 0.002, largest: 0.002, last: 0.002 });
    }

    #[tokio::test]
    async fn limits_that_let_everything_pass_are_refused() {
        for with in [
            json!({ "url": "http://127.0.0.1:9090", "gates": {} }),
            json!({ "url": "http://127.0.0.1:9090", "gates": { "a": { "query": "q" } } }),
            json!({ "url": "http://u:hunter2@127.0.0.1:9090", "gates": { "a": { "query": "q", "max": 1 } } }),
            json!({ "url": "localhost:9090", "gates": { "a": { "query": "q", "max": 1 } } }),
            json!({ "url": "prometheus", "gates": { "a": { "query": "q", "max": 1 } } }),
        ] {
            assert_eq!(Bench::new(&Fixture::new(with)).refused::<Check>().await, "input");
        }
    }
}
