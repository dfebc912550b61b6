//! `model.golden`: does the model that answers behind a name still give the recorded outputs?
//!
//! It asks what the endpoint's resolvers answer, finds the region by its target, reads the golden cases
//! from that region's bucket (what is served there must agree with what is kept there) and sends each case
//! to that very address, asking that it be not recorded. It changes nothing.

use super::{contract::*, shared::*};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use crate::providers::port::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub endpoint: EndpointName,
    /// The largest difference of a score, absolute, that still counts as equal.
    #[serde(default = "tolerance")]
    pub tolerance: f64,
    /// How many cases are asked; all when left out.
    #[serde(default)]
    pub cases: Option<usize>,
}

pub(super) fn tolerance() -> f64 {
    1e-5
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    pub region: RegionName,
    pub address: String,
    pub cases: usize,
    /// The largest difference of any score.
    pub worst: f64,
}

#[derive(Deserialize)]
struct File {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    features: Vec<f64>,
    scores: Vec<f64>,
    label: i64,
}

#[derive(Deserialize)]
struct Answer {
    scores: Vec<f64>,
    label: i64,
}

pub struct Golden;

impl Action for Golden {
    type Input = Input;
    type Intent = Input;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "model.golden",
            version: 1,
            summary: "Compare the served model with recorded outputs",
            effect: Effect::Read,
            danger: Danger::None,
            undo: UndoPolicy::None,
            timeout: Span::from_secs(60),
            example: "id: prove\nuses: model.golden\nwith: { endpoint: inference, tolerance: 1e-5 }\n",
        }
    }
    fn reach(_with: &Node, _estate: &Estate) -> Vec<Reach> {
        vec![Reach { place: Place::Global, plane: Plane::Data }]
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

pub(super) fn precheck(cx: &ReadCx, input: &Input) -> Result<(), Refusal> {
    if !(input.tolerance >= 0.0 && input.tolerance.is_finite()) {
        return Err(Refusal::no("input", "`tolerance` must be a number that is not negative"));
    }
    if input.cases == Some(0) {
        return Err(Refusal::no("input", "`cases: 0` would prove nothing"));
    }
    endpoint(cx, &input.endpoint)?.golden.as_ref().map(|_| ()).ok_or_else(|| {
        Refusal::no("no_golden", format!("endpoint `{}` has no golden cases", input.endpoint)).remedy(format!("write endpoints.{}.golden", input.endpoint))
    })
}

async fn check(cx: &WriteCx, input: &Input) -> Result<Output, ApplyError> {
    let ep = endpoint(cx, &input.endpoint).map_err(definite)?;
    let ip = resolved(cx, ep).await?;
    let region = ep.targets.iter().find(|(_, target)| **target == ip).map(|(region, _)| region.clone());
    let region = region.ok_or_else(|| fail("unknown_target", format!("{} leads to {ip}, which is no target of the estate", ep.name)))?;
    compare(cx, input, region).await
}

/// Of the region itself, past DNS.
pub(super) async fn compare(cx: &WriteCx, input: &Input, region: RegionName) -> Result<Output, ApplyError> {
    let ep = endpoint(cx, &input.endpoint).map_err(definite)?;
    let ip = target(ep, &region).map_err(definite)?;
    let golden = ep.golden.as_ref().ok_or_else(|| fail("no_golden", "the endpoint has no golden cases"))?;
    let (_, bytes) = read_all(&*cx.read.world.objects(golden.bucket.as_str(), region.as_str())?, &golden.key).await?;
    let file: File = serde_json::from_slice(&bytes)
        .map_err(|e| fail("golden_unreadable", format!("{} in bucket `{}`, region `{region}`: {e}", golden.key, golden.bucket)))?;
    let cases = file.cases.len().min(input.cases.unwrap_or(usize::MAX));
    if cases == 0 {
        return Err(fail("no_golden", format!("{} holds no cases", golden.key)));
    }
    let (url, connect_to) = at(ep, ip, &golden.path);
    let mut worst = (0.0_f64, 0_usize);
    let mut wrong = Vec::new();
    for (number, case) in file.cases.iter().take(cases).enumerate() {
        let answer = ask(cx, &url, connect_to, number, case).await?;
        let difference = difference(case, &answer);
        if difference > worst.0 {
            worst = (difference, number);
        }
        if answer.label != case.label || difference > input.tolerance {
            wrong.push(format!("case {number}: label {} (recorded {}), largest difference {difference:e}", answer.label, case.label));
        }
    }
    if let Some(first) = wrong.iter().find(|w| w.starts_with(&format!("case {}:", worst.1))).or(wrong.first()) {
        let message = format!("{} of {cases} golden cases differ in `{region}`; the worst is {first} (tolerance {:e})", wrong.len(), input.tolerance);
        return Err(ApplyError::Definite(Failure::new("golden_differs", message).remedy("compare the model served there with the one in its bucket")));
    }
    Ok(Output { region, address: ip.to_string(), cases, worst: worst.0 })
}

async fn ask(cx: &WriteCx, url: &str, connect_to: Option<std::net::SocketAddr>, number: usize, case: &Case) -> Result<Answer, ApplyError> {
    let body = serde_json::json!({ "id": format!("golden-{}-{number}", short_key(cx)), "features": case.features, "record": false });
    let request = HttpRequest {
        method: "POST".into(),
        url: url.to_owned(),
        headers: [("Content-Type".to_owned(), "application/json".to_owned())].into(),
        body: Some(body.to_string().into_bytes()),
        connect_to,
        timeout: Some(std::time::Duration::from_secs(5)),
    };
    // Nothing is recorded, so asking again is safe whatever became of the first request.
    let again = |why: String| ApplyError::Retry { after: std::time::Duration::from_millis(200), failure: Failure::new("model_unreachable", why) };
    let answer = cx.read.world.http().send(request).await.map_err(|e| again(format!("{url}: {e}")))?;
    if !(200..300).contains(&answer.status) {
        return Err(again(format!("{url} answered golden case {number} with status {}", answer.status)));
    }
    serde_json::from_slice(&answer.body).map_err(|e| fail("golden_unreadable", format!("{url} answered golden case {number} unreadably: {e}")))
}

/// Infinite where the answer has another shape or is not a number.
fn difference(case: &Case, answer: &Answer) -> f64 {
    if case.scores.len() != answer.scores.len() {
        return f64::INFINITY;
    }
    let each = case.scores.iter().zip(&answer.scores).map(|(want, got)| (want - got).abs());
    each.fold(0.0, |worst, d| if d.is_nan() { f64::INFINITY } else { worst.max(d) })
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    super::contract_tests::Fixture::new(serde_json::json!({ "endpoint": "inference" })).set(|world| serve(world, "0.75"))
}

#[cfg(test)]
fn serve(world: &crate::providers::sim::SimWorld, second: &'static str) {
    world.answer(move |_| {
        let body = format!("{{\"scores\":[0.25,{second}],\"label\":1}}").into_bytes();
        Ok(HttpResponse { status: 200, headers: std::collections::BTreeMap::new(), body })
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::contract_tests::Bench;

    #[tokio::test]
    async fn a_difference_beyond_the_tolerance_is_named() {
        let bench = Bench::new(&fixture());
        serve(&bench.world, "0.750001");
        assert_eq!(bench.run::<Golden>().await.expect("within tolerance").cases, 1);
        serve(&bench.world, "0.76");
        let failure = bench.failed::<Golden>().await;
        assert_eq!(failure.code, "golden_differs");
        assert!(failure.message.contains("case 0"), "{failure}");
    }
}
