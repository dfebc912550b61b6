//! `http.check`: ask an address and look at the answer.
//!
//! It only reads (GET, HEAD, OPTIONS), so nothing can be half-done and a lost answer is asked for again.
//! The address is a URL, or an endpoint of the estate: in one region, past DNS, or where its name leads.

use super::{contract::*, shared::*};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use crate::providers::port::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, time::Duration};

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// The address; or give `endpoint`.
    #[serde(default)]
    pub url: Option<String>,
    /// An endpoint of the estate, instead of `url`.
    #[serde(default)]
    pub endpoint: Option<EndpointName>,
    /// Ask the endpoint's target in this region, whatever DNS says.
    #[serde(default)]
    pub region: Option<RegionName>,
    /// The path at the endpoint; its `health` path, or `/`, when left out.
    #[serde(default)]
    pub path: Option<String>,
    /// GET, HEAD or OPTIONS.
    #[serde(default = "get")]
    pub method: String,
    /// The codes that are good; any 2xx when left out.
    #[serde(default)]
    pub status: Vec<u16>,
    /// What the body must contain.
    #[serde(default)]
    pub contains: Option<String>,
    /// For one attempt.
    #[serde(default = "five_seconds")]
    pub timeout: Span,
    /// How often it is asked, a second apart, before it counts as failed.
    #[serde(default = "one")]
    pub attempts: u32,
}

fn get() -> String {
    "GET".to_owned()
}
fn five_seconds() -> Span {
    Span::from_secs(5)
}
fn one() -> u32 {
    1
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    pub url: String,
    pub status: u16,
    pub attempts: u32,
    pub duration_ms: u64,
}

pub struct Check;

impl Action for Check {
    type Input = Input;
    type Intent = Input;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "http.check",
            version: 1,
            summary: "Ask an address and look at the answer",
            effect: Effect::Read,
            danger: Danger::None,
            undo: UndoPolicy::None,
            timeout: Span::from_secs(60),
            example: "id: alive\nuses: http.check\nwith: { endpoint: inference, region: west, path: /healthz }\n",
        }
    }
    fn reach(with: &Node, _estate: &Estate) -> Vec<Reach> {
        reach(with, "region", Plane::Data).map_or_else(|| vec![reach_here()], |r| vec![r])
    }
    fn locks(_with: &Node) -> Vec<Resource> {
        Vec::new()
    }
    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Input>, Refusal> {
        precheck(cx, &input)?;
        Ok(Prepared { intent: input, change: Vec::new(), notes: Vec::new() })
    }
    async fn apply(cx: &WriteCx, intent: &Input) -> Result<Output, ApplyError> {
        check(cx, intent).await
    }
    async fn observe(_cx: &ReadCx, _intent: &Input) -> Seen<Output> {
        Seen::Absent
    }
    async fn undo(_cx: &WriteCx, _intent: &Input, _output: Option<Output>) -> Result<(), ApplyError> {
        Ok(())
    }
}

fn precheck(cx: &ReadCx, input: &Input) -> Result<(), Refusal> {
    if !["GET", "HEAD", "OPTIONS"].contains(&input.method.as_str()) {
        return Err(Refusal::no("input", format!("`{}` may change something; a check uses GET, HEAD or OPTIONS", input.method)));
    }
    if input.url.is_some() == input.endpoint.is_some() {
        return Err(Refusal::no("input", "give either `url` or `endpoint`"));
    }
    match (&input.endpoint, &input.region) {
        (Some(name), Some(region)) => target(endpoint(cx, name)?, region).map(|_| ()),
        (Some(name), None) => endpoint(cx, name).map(|_| ()),
        (None, _) => Ok(()),
    }
}

/// One question to a region's own target, past DNS.
pub(super) fn of_region(endpoint: &EndpointName, region: &RegionName, path: &str) -> Input {
    Input {
        url: None,
        endpoint: Some(endpoint.clone()),
        region: Some(region.clone()),
        path: Some(path.to_owned()),
        method: get(),
        status: Vec::new(),
        contains: None,
        timeout: five_seconds(),
        attempts: 1,
    }
}

pub(super) async fn check(cx: &WriteCx, input: &Input) -> Result<Output, ApplyError> {
    let clock = cx.read.world.clock();
    let mut last = fail("http", "it was never asked: `attempts` is 0");
    for attempt in 1..=input.attempts {
        if attempt > 1 {
            clock.sleep(Duration::from_secs(1)).await;
        }
        let began = clock.monotonic();
        let (url, connect_to) = address(cx, input).await?;
        let request = HttpRequest {
            method: input.method.clone(),
            url: url.clone(),
            connect_to,
            timeout: Some(input.timeout.duration()),
            ..HttpRequest::default()
        };
        match cx.read.world.http().send(request).await {
            Err(e) => last = fail("http", format!("{url}: {e}")),
            Ok(answer) => if let Err(why) = judge(input, &answer) { last = fail("http", format!("{url}: {why}")) } else {
                let duration_ms = u64::try_from(clock.monotonic().saturating_sub(began).as_millis()).unwrap_or(u64::MAX);
                return Ok(Output { url, status: answer.status, attempts: attempt, duration_ms });
            },
        }
    }
    Err(last)
}

async fn address(cx: &ReadCx, input: &Input) -> Result<(String, Option<SocketAddr>), ApplyError> {
    let Some(name) = &input.endpoint else { return Ok((input.url.clone().unwrap_or_default(), None)) };
    let ep = endpoint(cx, name).map_err(definite)?;
    let ip = match &input.region {
        Some(region) => target(ep, region).map_err(definite)?,
        None => resolved(cx, ep).await?,
    };
    let path = input.path.as_deref().or(ep.health.as_deref()).unwrap_or("/");
    Ok(at(ep, ip, path))
}

fn judge(input: &Input, answer: &HttpResponse) -> Result<(), String> {
    let good = if input.status.is_empty() { (200..300).contains(&answer.status) } else { input.status.contains(&answer.status) };
    if !good {
        return Err(format!("answered with status {}", answer.status));
    }
    match &input.contains {
        Some(text) if !String::from_utf8_lossy(&answer.body).contains(text) => Err(format!("the answer does not contain `{text}`")),
        _ => Ok(()),
    }
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    super::contract_tests::Fixture::new(serde_json::json!({ "endpoint": "inference", "path": "/healthz" })).set(|world| {
        world.answer(|request| {
            let status = if request.url.ends_with("/healthz") { 200 } else { 404 };
            Ok(HttpResponse { status, headers: std::collections::BTreeMap::new(), body: b"all well".to_vec() })
        });
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::contract_tests::Bench;
    use serde_json::json;

    #[tokio::test]
    async fn what_is_not_good_is_named() {
        for (with, why) in [
            (json!({ "endpoint": "inference", "path": "/x" }), "status 404"),
            (json!({ "endpoint": "inference", "path": "/healthz", "contains": "ill" }), "does not contain `ill`"),
        ] {
            let mut fixture = fixture();
            fixture.with = with;
            let failure = Bench::new(&fixture).failed::<Check>().await;
            assert!(failure.message.contains(why), "{failure}");
        }
    }
}
