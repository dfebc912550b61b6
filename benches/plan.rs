//! What is decided: the next steps of a large run, the figures of a long measurement, the next fire of a
//! schedule.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use jiff::{Timestamp, ToSpan as _};
use muster::model::{event::*, ids::*, plan::Plan, time::Span};
use muster::plan::{
    decide::decide,
    measure::{Detector, ProbeSample, Recovery, instants, longest_pause, rto},
    schedule::{Cron, zone},
    state::RunState,
};
use std::{collections::BTreeSet, net::IpAddr};
use support::*;

const STEPS: usize = 100;
const SAMPLES: u64 = 36_000;
const EVERY_MS: i64 = 100;

fn start() -> Timestamp {
    "2026-01-05T02:00:00Z".parse().expect("an instant")
}

/// The shipped runbook's first step, a hundred times: ten chains of ten.
fn wide() -> Plan {
    let mut plan = plan("regional-failover", &[("from", "east"), ("to", "west")]);
    let step = plan.steps[0].clone();
    plan.steps = (0..STEPS)
        .map(|n| {
            let needs = n.checked_sub(10).map(|above| StepId(format!("step_{above}"))).into_iter().collect();
            muster::model::plan::PlanStep { id: StepId(format!("step_{n}")), needs, ..step.clone() }
        })
        .collect();
    plan
}

fn state(plan: Plan, done: usize) -> RunState {
    let event = |seq: u64, body| Event { run: "r".into(), seq, at: start(), actor: "bench".into(), epoch: 1, body, prev: String::new() };
    let mut events = vec![event(1, Body::RunCreated { plan: plan.into(), drill: None })];
    for n in 0..done {
        let body = Body::Verified { step: StepId(format!("step_{n}")), output: serde_json::Value::Null, warnings: Vec::new() };
        events.push(event(n as u64 + 2, body));
    }
    RunState::of(&events).expect("a run")
}

/// An hour of probes ten times a second, with an outage of a minute in the middle.
fn hour() -> Vec<ProbeSample> {
    let (east, west): (IpAddr, IpAddr) = ("127.0.0.1".parse().unwrap(), "127.0.0.2".parse().unwrap());
    (0..SAMPLES)
        .map(|seq| {
            let sent = start() + (i64::try_from(seq).unwrap() * EVERY_MS).milliseconds();
            let good = !(18_000..18_600).contains(&seq);
            let address = Some(if seq < 18_600 { east } else { west });
            ProbeSample { seq, sent, done: sent + 5.milliseconds(), good, address, why_bad: None, id: None }
        })
        .collect()
}

fn figures(samples: &[ProbeSample]) {
    let mut detector = Detector::new(5);
    let lost = samples.iter().find_map(|sample| detector.feed(sample)).expect("detected");
    let at = |ms: i64| lost.at + ms.milliseconds();
    let resolvers =
        [muster::plan::measure::ResolverSample { at: at(2_000), resolver: "r".into(), addresses: vec!["127.0.0.2".parse().unwrap()] }];
    let recovery = Recovery {
        samples,
        resolvers: &resolvers,
        fault: Some(samples[18_000].sent),
        detected: Some(lost.at),
        first_applying: Some(at(10)),
        traffic_sent: Some(at(1_000)),
        traffic_applied: Some(at(1_500)),
        target: "127.0.0.2".parse().ok(),
        good: 3,
    };
    let found = rto(&instants(&recovery), Some(Span::from_secs(60)), false);
    assert!(found.actual_ms.is_some());
    assert!(longest_pause(samples, samples[0].sent, samples[samples.len() - 1].done).is_some());
}

fn main() {
    for done in [0, 50] {
        let state = state(wide(), done);
        let none = BTreeSet::new();
        measure(201, || decide(&state, &none, start())).print(&format!("decide, 100 steps, {done} done"), 1);
    }
    let samples = hour();
    measure(21, || figures(&samples)).print("detect and measure over 36,000 samples", SAMPLES);
    let berlin = zone("Europe/Berlin").expect("a zone");
    for line in ["0 3 * * 1", "*/15 * * * *", "30 2 29 2 *"] {
        measure(201, || Cron::parse(line).expect("a schedule").next_after(&berlin, start())).print(&format!("next fire of {line}"), 1);
    }
}
