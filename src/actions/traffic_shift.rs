//! `traffic.shift`: move a part of an endpoint's traffic to a region, watch it, and move more.
//!
//! **What it does.** The endpoint's name has a weighted record in each region. For each stage the weights are changed in
//! one atomic batch, which the provider carries out only if they stand as this step left them. Then it is waited until the
//! provider says that all of its servers have them, since nobody gets the new share before; and then they bake: the
//! gates are held against their limits, and the region is asked, for as long as `bake` says. A gate that closes, or
//! whose figure is missing, takes every weight back to what it was, and the step has failed; so does a change that does
//! not spread in the step's time. The last stage bakes, too.
//!
//! **Half-done** it is between two stages, or while one bakes. The weights that stand there say which: the intent holds
//! those of before and of every stage. After a crash the stage that is found bakes anew, also the last one, and then it
//! goes on. It is set once more, to what stands there already: then the provider says of that change when it has
//! spread, and with it the one before, whose identifier nobody knows. Other weights than these were set by somebody
//! else, and nothing is touched.
//!
//! **Undone** it is by the weights of before, in one batch, whatever stage is found.

use super::{
    contract::*,
    http_check,
    metrics_check::{self, Gate, Range},
    model_golden,
    shared::*,
    standby,
};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use crate::providers::port::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub endpoint: EndpointName,
    /// The region that gets more.
    pub to: RegionName,
    /// Its share after each stage, in percent, growing.
    #[serde(default = "stages")]
    pub stages: Vec<u32>,
    /// How long each stage is watched before the next, from when all of the provider's servers have it. Caches keep the
    /// old answers for the records' TTL beyond that: a shorter bake sees only a part of the share.
    #[serde(default = "five_minutes")]
    pub bake: Span,
    /// How often it is looked at meanwhile.
    #[serde(default = "five_seconds")]
    pub every: Span,
    /// Where Prometheus answers, for `gates`.
    #[serde(default)]
    pub metrics: Option<String>,
    /// Figures of Prometheus that must stay within their limits, as in `metrics.check`.
    #[serde(default)]
    pub gates: BTreeMap<String, Gate>,
    /// Paths that the region itself must answer with 2xx, past DNS.
    #[serde(default)]
    pub paths: Vec<String>,
    /// The region itself must give the recorded predictions, past DNS, as in `model.golden`.
    #[serde(default)]
    pub golden: Option<GoldenGate>,
}

/// A model that answers, and answers otherwise, is not one to send traffic to.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GoldenGate {
    /// The largest difference of a score, absolute, that still counts as equal.
    #[serde(default = "model_golden::tolerance")]
    pub tolerance: f64,
    /// How many cases are asked each time; all when left out.
    #[serde(default)]
    pub cases: Option<usize>,
}

fn stages() -> Vec<u32> {
    vec![5, 25, 50, 100]
}
fn five_minutes() -> Span {
    Span::from_secs(300)
}
fn five_seconds() -> Span {
    Span::from_secs(5)
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    input: Input,
    zone: String,
    before: Vec<WeightedSet>,
    /// The weights of each stage.
    stages: Vec<Vec<WeightedSet>>,
    comment: String,
    /// Where what was seen is kept.
    notes: PathBuf,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    /// What the region gets now, in percent.
    pub percent: u32,
    /// The stages that this machine saw bake.
    pub stages: Vec<Stage>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Stage {
    pub percent: u32,
    /// The provider's identifier of the change; `null` for a stage that was found there.
    pub change: Option<String>,
    /// From the accepted change until all of the provider's servers had it; the bake begins then.
    #[serde(default)]
    pub in_sync_ms: u64,
    pub baked_ms: u64,
    pub gates: BTreeMap<String, Range>,
}

pub struct Shift;

impl Action for Shift {
    type Input = Input;
    type Intent = Intent;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "traffic.shift",
            version: 1,
            summary: "Move an endpoint's traffic to a region in stages, with gates between them",
            effect: Effect::Repeatable,
            danger: Danger::Reversible,
            undo: UndoPolicy::Automatic,
            timeout: Span::from_secs(3600),
            example: "id: canary\nuses: traffic.shift\nwith:\n  endpoint: inference\n  to: west\n  stages: [5, 25, 50, 100]\n  bake: 5m\n  metrics: http://prometheus.west.internal:9090\n  gates:\n    error_rate: { query: 'sum(rate(http_errors_total[1m])) / sum(rate(http_requests_total[1m]))', max: 0.01 }\n    p95_seconds: { query: 'histogram_quantile(0.95, sum by (le) (rate(http_seconds_bucket[1m])))', max: 0.5 }\n  paths: [/healthz]\n",
        }
    }
    fn reach(with: &Node, estate: &Estate) -> Vec<Reach> {
        reach_dns(with, "endpoint", estate).into_iter().chain(reach(with, "to", Plane::Data)).collect()
    }
    fn locks(with: &Node) -> Vec<Resource> {
        locks(with, "endpoint", "endpoint")
    }

    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Intent>, Refusal> {
        let ep = endpoint(cx, &input.endpoint)?;
        let address = target(ep, &input.to)?;
        precheck(&input)?;
        if let Some(golden) = golden_of(&input) {
            model_golden::precheck(cx, &golden)?;
        }
        let kind = if address.is_ipv4() { "A" } else { "AAAA" };
        let before = cx.world.dns(input.endpoint.as_str())?.weights(&ep.zone, &ep.name, kind).await?;
        let region = |set: &WeightedSet| standby::region_of(ep, &set.set, &set.record);
        let mine = before.iter().position(|set| region(set).as_ref() == Some(&input.to));
        let mine = mine.ok_or_else(|| {
            Refusal::no("no_weighted_record", format!("{} {kind} has no weighted record with {address}, the address of `{}`", ep.name, input.to))
                .remedy("make one for each region, with weight 0 where no traffic shall go yet")
        })?;
        let stages: Vec<_> = input.stages.iter().map(|percent| weighed(&before, mine, *percent)).collect();
        let shown = |sets: &[WeightedSet]| sets.iter().map(|s| format!("{} {}", s.set, s.weight)).collect::<Vec<_>>().join(", ");
        let last = stages.last().map_or_else(String::new, |sets| shown(sets));
        let change = vec![change(format!("weights of {} {kind}", ep.name), Some(shown(&before)), Some(last))];
        let percents: Vec<String> = input.stages.iter().map(|p| format!("{p} %")).collect();
        let mut notes = vec![format!("`{}` gets {}; {} s of watching each", input.to, percents.join(", "), input.bake.ms / 1_000)];
        notes.extend(shorter_than_caches(&input, &before));
        let comment = format!("muster {} {} {}", cx.run, cx.step, short_key(cx));
        let kept = cx.scratch.join(format!("{}.stages", cx.key));
        Ok(Prepared { intent: Intent { input, zone: ep.zone.clone(), before, stages, comment, notes: kept }, change, notes })
    }

    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
        let begun = cx.read.world.clock().monotonic();
        let mut output = seen(intent).await;
        let there = standing(cx, intent).await?;
        // A stage that is found there was set by an attempt before this one, and may not have baked.
        let (first, found) = match place(intent, &there) {
            Stands::Before => (0, None),
            Stands::At(number) => (number, Some(number)),
            Stands::Elsewhere => return Err(fail("weights_moved", format!("the weights of {} were changed by somebody else", name(intent)))),
        };
        enough_time(cx, intent, intent.stages.len() - first)?;
        for number in first..intent.stages.len() {
            let again = found == Some(number);
            let change = set(cx, intent, number, again).await?;
            let until = begun + cx.deadline.saturating_sub(bakes(intent, intent.stages.len() - number));
            match watched(cx, intent, number, Set { change, again, until }).await {
                Ok(stage) => {
                    output.percent = stage.percent;
                    // One that an attempt before this one saw to its end has baked again.
                    output.stages.retain(|seen| seen.percent != stage.percent);
                    output.stages.push(stage);
                    keep(intent, &output).await;
                }
                Err(why) => return Err(back(cx, intent, number, why).await),
            }
        }
        Ok(output)
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<Output> {
        let there = match cx.world.dns(intent.input.endpoint.as_str()) {
            Ok(dns) => weights(&*dns, intent).await,
            Err(e) => Err(e),
        };
        match there.map(|there| place(intent, &there)) {
            Err(e) => cannot_tell(&e),
            Ok(Stands::Elsewhere) => Seen::Differs { found: format!("the weights of {} are none of this step's", name(intent)) },
            Ok(Stands::At(number)) if number + 1 == intent.stages.len() => {
                let percent = intent.input.stages.last().copied().unwrap_or(0);
                match seen(intent).await {
                    // The weights alone do not say that it has spread and was good.
                    seen if seen.stages.iter().any(|stage| stage.percent == percent) => Seen::Done(Output { percent, ..seen }),
                    _ => Seen::Absent,
                }
            }
            // What is missing is done by another attempt, which goes on from here.
            Ok(_) => Seen::Absent,
        }
    }

    async fn undo(cx: &WriteCx, intent: &Intent, _output: Option<Output>) -> Result<(), ApplyError> {
        let there = standing(cx, intent).await?;
        match place(intent, &there) {
            Stands::Before => Ok(()),
            // Asked for here, where who lost the run is told so.
            Stands::At(_) if cx.world().is_err() => cx.world().map(|_| ()),
            Stands::At(_) => restore(cx, intent, &there).await.map_err(ApplyError::from),
            Stands::Elsewhere => Err(fail("weights_moved", format!("the weights of {} were changed by somebody else", name(intent)))),
        }
    }
}

fn precheck(input: &Input) -> Result<(), Refusal> {
    let no = |message: &str| Err(Refusal::no("input", message));
    let growing = input.stages.windows(2).all(|pair| pair[0] < pair[1]);
    if input.stages.is_empty() || !growing || input.stages.iter().any(|percent| *percent == 0 || *percent > 100) {
        return no("`stages` are percentages that grow, from 1 to 100");
    }
    if input.gates.is_empty() != input.metrics.is_none() {
        return no("`gates` and `metrics`, the address of Prometheus, go together");
    }
    if input.bake.ms > 0 && input.gates.is_empty() && input.paths.is_empty() && input.golden.is_none() {
        return no("with neither `gates` nor `paths` nor `golden` nothing is watched while it bakes: give one, or `bake: 0s`");
    }
    metrics(input, Span::from_secs(0)).map_or(Ok(()), |check| metrics_check::precheck(&check))
}

fn bakes(intent: &Intent, stages: usize) -> Duration {
    intent.input.bake.duration().saturating_mul(u32::try_from(stages).unwrap_or(u32::MAX))
}

/// What is worth knowing before it runs: while caches answer with the old weights, a gate watches too little traffic.
fn shorter_than_caches(input: &Input, before: &[WeightedSet]) -> Option<String> {
    let ttl_s = before.iter().filter(|set| set.alias.is_none()).map(|set| set.record.ttl_s).max()?;
    let shorter = input.bake.ms > 0 && input.bake.ms < u64::from(ttl_s) * 1_000;
    shorter.then(|| {
        format!(
            "WARNING: a bake of {} ends before caches have let go of the old answers ({ttl_s} s): it watches less than each stage's share; \
             make it longer, or the TTL shorter with `dns.lower_ttl`",
            input.bake
        )
    })
}

/// An attempt that its deadline ends would leave the weights at some stage.
fn enough_time(cx: &WriteCx, intent: &Intent, stages: usize) -> Result<(), ApplyError> {
    let bakes = bakes(intent, stages);
    if bakes < cx.deadline {
        return Ok(());
    }
    let message = format!("{stages} stages of {} s do not fit into the {} s that the step has; nothing was moved", bakes.as_secs() / stages.max(1) as u64, cx.deadline.as_secs());
    Err(ApplyError::Definite(Failure::new("too_short", message).remedy("give the step a longer `timeout`, or shorten `bake`")))
}

/// The weights when one set gets so many percent; the others keep their proportions to each other. They add up to 100.
fn weighed(before: &[WeightedSet], mine: usize, percent: u32) -> Vec<WeightedSet> {
    let rest = 100 - percent.min(100);
    let others: u32 = before.iter().enumerate().filter(|(n, _)| *n != mine).map(|(_, s)| s.weight).sum();
    let count = u32::try_from(before.len().saturating_sub(1)).unwrap_or(1).max(1);
    let mut left = rest;
    let mut last = None;
    let mut sets: Vec<WeightedSet> = before.to_vec();
    for (number, set) in sets.iter_mut().enumerate() {
        if number == mine {
            set.weight = percent;
            continue;
        }
        // Where all others had nothing, they share evenly.
        set.weight = (rest * set.weight).checked_div(others).unwrap_or(rest / count);
        left -= set.weight;
        if others == 0 || before[number].weight > 0 {
            last = Some(number);
        }
    }
    // What rounding left over, to one that has a share.
    if let Some(set) = last.and_then(|number| sets.get_mut(number)) {
        set.weight += left;
    }
    sets
}

fn name(intent: &Intent) -> &str {
    intent.before.first().map_or("?", |set| set.record.name.as_str())
}

/// Where the weights that stand there are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stands {
    Before,
    At(usize),
    /// Somebody else set them.
    Elsewhere,
}

fn place(intent: &Intent, there: &[WeightedSet]) -> Stands {
    // Looked for from behind: the weights of before may be those of a stage.
    match intent.stages.iter().rposition(|stage| stage == there) {
        Some(number) => Stands::At(number),
        None if there == intent.before => Stands::Before,
        None => Stands::Elsewhere,
    }
}

async fn weights(dns: &(impl DnsRead + ?Sized), intent: &Intent) -> PortResult<Vec<WeightedSet>> {
    let kind = intent.before.first().map_or("A", |set| set.record.kind.as_str());
    dns.weights(&intent.zone, name(intent), kind).await
}

async fn standing(cx: &WriteCx, intent: &Intent) -> Result<Vec<WeightedSet>, ApplyError> {
    Ok(weights(&*cx.read.world.dns(intent.input.endpoint.as_str())?, intent).await?)
}

/// Goes to a stage from where the one before left the weights; `again`, from the stage itself.
async fn set(cx: &WriteCx, intent: &Intent, number: usize, again: bool) -> Result<String, ApplyError> {
    let dns = cx.world()?.dns_mut(intent.input.endpoint.as_str())?;
    let to = intent.stages.get(number).map(Vec::as_slice).unwrap_or_default();
    let before = number.checked_sub(1).and_then(|n| intent.stages.get(n)).unwrap_or(&intent.before);
    match dns.reweigh(&intent.zone, if again { to } else { before }, to, &intent.comment).await {
        Ok(change) => Ok(change.0),
        Err(PortError::Conflict { found }) => Err(fail("weights_moved", format!("the weights of {} were changed by somebody else: {found}", name(intent)))),
        // Stages before this one stand.
        Err(e) if number > 0 || again => Err(ApplyError::Unknown(failure(&e))),
        Err(e) => Err(e.into()),
    }
}

/// A stage that was set: its change, whether it had stood there already, and until when it must have spread.
struct Set {
    change: String,
    again: bool,
    until: Duration,
}

/// Waits until a stage has spread, and bakes it.
async fn watched(cx: &WriteCx, intent: &Intent, number: usize, set: Set) -> Result<Stage, Failure> {
    let in_sync_ms = in_sync(cx, intent, &set).await?;
    let change = (!set.again).then_some(set.change);
    bake(cx, intent, number).await.map(|stage| Stage { change, in_sync_ms, ..stage })
}

/// How long one question may take.
const ASKED: Duration = Duration::from_secs(5);

/// Asks until all of the provider's servers have the change, and ever less: Route 53 takes five questions a second of a
/// whole account. What the provider does not say is no yes.
async fn in_sync(cx: &WriteCx, intent: &Intent, set: &Set) -> Result<u64, Failure> {
    let (clock, id) = (cx.read.world.clock(), ChangeId(set.change.clone()));
    let begun = clock.monotonic();
    loop {
        let asked = match cx.read.world.dns(intent.input.endpoint.as_str()) {
            Ok(dns) => within(&cx.read, ASKED, async { dns.in_sync(&id).await }).await,
            Err(e) => Err(e),
        };
        let now = clock.monotonic();
        let why = match asked {
            Ok(true) => return Ok(u64::try_from(now.saturating_sub(begun).as_millis()).unwrap_or(u64::MAX)),
            Ok(false) => "not all of the provider's servers have it".to_owned(),
            Err(e) => format!("the provider does not say whether its servers have it: {e}"),
        };
        if now >= set.until {
            let waited = now.saturating_sub(begun).as_secs();
            let message = format!("after {waited} s change {} has not spread: {why}", set.change);
            return Err(Failure::new("not_in_sync", message).remedy("give the step a longer `timeout`, and look at the provider's state"));
        }
        let pause = (now.saturating_sub(begun) / 10).clamp(Duration::from_millis(100), Duration::from_secs(2));
        clock.sleep(pause.min(set.until.saturating_sub(now))).await;
    }
}

fn metrics(input: &Input, length: Span) -> Option<metrics_check::Input> {
    let url = input.metrics.clone()?;
    Some(metrics_check::Input { url, gates: input.gates.clone(), length: Some(length), every: input.every, patience: Span::from_secs(30) })
}

/// Watches one stage: its figures and its paths, side by side.
async fn bake(cx: &WriteCx, intent: &Intent, number: usize) -> Result<Stage, Failure> {
    let (input, clock) = (&intent.input, cx.read.world.clock());
    let begun = clock.monotonic();
    let figures = async {
        match metrics(input, input.bake) {
            Some(check) => metrics_check::watch(cx, &check).await.map(|seen| seen.gates),
            None => Ok(BTreeMap::new()),
        }
    };
    let (gates, (), ()) = futures::future::try_join3(figures, paths(cx, input), predictions(cx, input)).await.map_err(reason)?;
    let baked_ms = u64::try_from(clock.monotonic().saturating_sub(begun).as_millis()).unwrap_or(u64::MAX);
    Ok(Stage { percent: input.stages.get(number).copied().unwrap_or(0), change: None, in_sync_ms: 0, baked_ms, gates })
}

/// Asks the region itself, again and again, until the bake is over.
async fn paths(cx: &WriteCx, input: &Input) -> Result<(), ApplyError> {
    let clock = cx.read.world.clock();
    let until = clock.monotonic() + input.bake.duration();
    loop {
        for path in &input.paths {
            http_check::check(cx, &http_check::of_region(&input.endpoint, &input.to, path)).await?;
        }
        let left = until.saturating_sub(clock.monotonic());
        if left.is_zero() {
            return Ok(());
        }
        clock.sleep(input.every.duration().min(left).max(Duration::from_millis(20))).await;
    }
}

fn golden_of(input: &Input) -> Option<model_golden::Input> {
    let GoldenGate { tolerance, cases } = input.golden.clone()?;
    Some(model_golden::Input { endpoint: input.endpoint.clone(), tolerance, cases })
}

/// Asks the region's model for the recorded predictions, again and again, until the bake is over.
async fn predictions(cx: &WriteCx, input: &Input) -> Result<(), ApplyError> {
    let Some(golden) = golden_of(input) else { return Ok(()) };
    let clock = cx.read.world.clock();
    let until = clock.monotonic() + input.bake.duration();
    loop {
        model_golden::compare(cx, &golden, input.to.clone()).await?;
        let left = until.saturating_sub(clock.monotonic());
        if left.is_zero() {
            return Ok(());
        }
        clock.sleep(input.every.duration().min(left).max(Duration::from_millis(20))).await;
    }
}

fn reason(error: ApplyError) -> Failure {
    match error {
        ApplyError::Definite(why) | ApplyError::Unknown(why) | ApplyError::Retry { failure: why, .. } => why,
    }
}

/// Takes every weight back; what the step then failed with.
async fn back(cx: &WriteCx, intent: &Intent, number: usize, why: Failure) -> ApplyError {
    let percent = intent.input.stages.get(number).copied().unwrap_or(0);
    let there = intent.stages.get(number).map(Vec::as_slice).unwrap_or_default();
    match restore(cx, intent, there).await {
        Ok(()) => {
            let message = format!("at {percent} %: {}; every weight is as it was before", why.message);
            ApplyError::Definite(Failure { message, ..why })
        }
        Err(error) => {
            let message = format!("at {percent} %: {}; and the weights could not be taken back: {error}", why.message);
            ApplyError::Unknown(Failure::new("not_rolled_back", message).remedy("look at the weights, and undo the step or set them by hand"))
        }
    }
}

async fn restore(cx: &WriteCx, intent: &Intent, there: &[WeightedSet]) -> PortResult<()> {
    let lost = |e: ApplyError| PortError::Refused(reason(e).message);
    let dns = cx.world().map_err(lost)?.dns_mut(intent.input.endpoint.as_str())?;
    dns.reweigh(&intent.zone, there, &intent.before, &format!("{} back", intent.comment)).await.map(|_| ())
}

/// What this machine saw so far: a hint and no more.
async fn seen(intent: &Intent) -> Output {
    let kept = tokio::fs::read(&intent.notes).await.ok();
    kept.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

async fn keep(intent: &Intent, output: &Output) {
    if let Ok(text) = serde_json::to_vec(output) {
        let _ = tokio::fs::write(&intent.notes, text).await;
    }
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    let with = serde_json::json!({ "endpoint": "inference", "to": "west", "stages": [5, 50, 100], "bake": "5s", "paths": ["/healthz"] });
    super::contract_tests::Fixture::new(with).set(tests::weighted_world).watched()
}

#[cfg(test)]
#[path = "traffic_shift_tests.rs"]
mod tests;
