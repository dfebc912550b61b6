//! `dns.lower_ttl`: before a planned change, let an endpoint's answers be short-lived.
//!
//! **What it does.** It gives every record of the name a short TTL, in one batch that is carried out only if they stand as
//! `prepare` found them, and then waits out the old one: from then on no cache that obeys holds an answer for longer
//! than the new TTL. `dns.shift`, which follows, gives the record the TTL of the estate again.
//!
//! **Half-done** it is while caches may hold the old answer with the old TTL. After a crash without the run's own
//! directory nobody knows when it began, and the whole of the old TTL is waited for once more.
//!
//! Where several servers take the zone's updates, each gets a change of its own (`holders.rs`).
//!
//! **Undone** it is by the records of before.

use super::{
    contract::*,
    holders::{self, At, LeftOut, Standing, Subject},
    propagation::Spread,
    shared::*,
    spread,
};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use crate::providers::port::*;
use jiff::SignedDuration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub endpoint: EndpointName,
    /// What every record's TTL becomes, in whole seconds.
    #[serde(default = "one_second")]
    pub ttl: Span,
}

fn one_second() -> Span {
    Span::from_secs(1)
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    #[serde(flatten)]
    subject: Subject,
    at: Vec<At>,
    left: Vec<LeftOut>,
    /// What caches may hold when it is changed.
    old_ttl_s: u32,
    comment: String,
    nothing: bool,
    hint: PathBuf,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    /// The longest TTL of the name's records before, and now.
    pub was_s: u32,
    pub ttl_s: u32,
    /// The provider's identifier of the change; `null` when nothing was to be changed or it is not known any more.
    pub change: Option<String>,
    /// From the accepted change until the old TTL had run out; `null` when that was not seen.
    pub waited_ms: Option<u64>,
    /// Servers that take the zone's updates and were not changed: they stand in the lost region.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
}

pub struct LowerTtl;

impl Action for LowerTtl {
    type Input = Input;
    type Intent = Intent;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "dns.lower_ttl",
            version: 2,
            summary: "Shorten the TTL of an endpoint's records ahead of a planned change, and wait out the old one",
            effect: Effect::Repeatable,
            danger: Danger::Reversible,
            undo: UndoPolicy::Automatic,
            timeout: Span::from_secs(7_200),
            example: "id: ahead\nuses: dns.lower_ttl\nwith: { endpoint: inference, ttl: 1s }\n",
        }
    }
    fn reach(with: &Node, estate: &Estate) -> Vec<Reach> {
        reach_dns(with, "endpoint", estate)
    }
    fn locks(with: &Node) -> Vec<Resource> {
        locks(with, "endpoint", "endpoint")
    }

    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Intent>, Refusal> {
        let ep = endpoint(cx, &input.endpoint)?;
        if input.ttl.ms < 1_000 || !input.ttl.ms.is_multiple_of(1_000) {
            return Err(Refusal::no("input", "`ttl` is in whole seconds, and at least one"));
        }
        let ttl_s = u32::try_from(input.ttl.ms / 1_000).unwrap_or(u32::MAX);
        let kind = ep.targets.values().next().map_or("A", |ip| record_kind(*ip));
        let subject =
            Subject { endpoint: input.endpoint, zone: ep.zone.clone(), name: ep.name.clone(), kind: kind.to_owned() };
        let lowered = |there: &[RoutedSet]| {
            if there.is_empty() {
                return Err(Refusal::no("no_record", format!("{} has no {kind} record", ep.name)));
            }
            let mut want = there.to_vec();
            // An alias has no TTL of its own.
            for set in want.iter_mut().filter(|set| set.alias.is_none()) {
                set.record.ttl_s = set.record.ttl_s.min(ttl_s);
            }
            Ok(want)
        };
        let found = subject.find(cx, lowered).await?;
        let (nothing, old_ttl_s) = (found.nothing(), holders::old_ttl_s(&found.at));
        let change = found.changes(&subject);
        let mut notes = found.notes();
        notes.push(if nothing {
            format!("{} has no longer TTL; nothing to change", ep.name)
        } else {
            format!("caches may hold the old answers for {old_ttl_s} s; that is waited out")
        });
        let comment = format!("muster {} {} {}", cx.run, cx.step, short_key(cx));
        let hint = cx.scratch.join(format!("{}.change", cx.key));
        let intent = Intent { subject, at: found.at, left: found.left, old_ttl_s, comment, nothing, hint };
        Ok(Prepared { intent, change, notes })
    }

    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
        if intent.nothing {
            return Ok(output(intent, None, None, &[]));
        }
        let change = intent.subject.write(cx, &intent.at, &intent.comment).await?;
        if let Some(change) = &change {
            spread::keep(&intent.hint, &Spread::new(change.clone(), cx.read.world.clock().now())).await;
        }
        Ok(output(intent, change, None, &[]))
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<Output> {
        let left = match intent.subject.standing(cx, &intent.at).await {
            Standing::CannotTell(e) => return cannot_tell(&e),
            Standing::Absent => return Seen::Absent,
            Standing::Differs(found) => return Seen::Differs { found },
            Standing::Done(left) => left,
        };
        if intent.nothing {
            return Seen::Done(output(intent, None, None, &left));
        }
        let spread = spread::load(&intent.hint).await;
        let synced = match &spread {
            Some(Spread { in_sync: None, change, .. }) if !change.is_empty() => intent.subject.in_sync(cx, change, &intent.at).await,
            _ => Ok(true),
        };
        match synced {
            Ok(true) => {}
            Ok(false) => return pending(100, "not all servers have the new TTL yet"),
            Err(e) => return cannot_tell(&e),
        }
        let now = cx.world.clock().now();
        // Where nobody knows when it was changed, the waiting begins now.
        let mut spread = spread.unwrap_or_else(|| Spread::new(String::new(), now));
        let from = *spread.in_sync.get_or_insert(now);
        spread::keep(&intent.hint, &spread).await;
        let over = from + SignedDuration::from_secs(intent.old_ttl_s.into());
        let remains = over.duration_since(now);
        if remains > SignedDuration::ZERO {
            let ms = u64::try_from(remains.as_millis()).unwrap_or(0);
            return pending(ms.clamp(20, 1_000), format!("caches may hold the old TTL for another {} s", ms.div_ceil(1_000)));
        }
        let known = !spread.change.is_empty();
        let waited = known.then(|| super::propagation::millis(spread.at, now));
        Seen::Done(output(intent, known.then_some(spread.change), waited, &left))
    }

    async fn undo(cx: &WriteCx, intent: &Intent, _output: Option<Output>) -> Result<(), ApplyError> {
        if intent.nothing {
            return Ok(());
        }
        intent.subject.put_back(cx, &intent.at, &format!("{} undone", intent.comment)).await
    }

    fn warnings(output: &Output) -> Vec<String> {
        holders::warnings(&output.left_out)
    }
}

fn output(intent: &Intent, change: Option<String>, waited_ms: Option<u64>, left: &[LeftOut]) -> Output {
    let ttl_s = intent.at.iter().flat_map(|at| &at.want).map(|set| set.record.ttl_s).max().unwrap_or(0);
    let left_out = intent.left.iter().chain(left).cloned().collect();
    Output { was_s: intent.old_ttl_s, ttl_s, change, waited_ms, left_out }
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    super::contract_tests::Fixture::new(serde_json::json!({ "endpoint": "inference", "ttl": "1s" }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::contract_tests::{Bench, Fixture};
    use serde_json::json;

    fn ttl(bench: &Bench) -> u32 {
        bench.world.lock().records[&("scoring.test".to_owned(), "api.scoring.test".to_owned(), "A".to_owned())].ttl_s
    }

    #[tokio::test]
    async fn the_old_ttl_is_waited_out_and_comes_back() {
        let bench = Bench::new(&fixture());
        let intent = bench.intent::<LowerTtl>().await;
        let out = bench.run::<LowerTtl>().await.expect("lowered");
        assert_eq!((out.was_s, out.ttl_s, ttl(&bench)), (5, 1, 1));
        assert!(out.waited_ms.is_some_and(|ms| (5_300..7_000).contains(&ms)), "5 s after 300 ms of sync: {out:?}");
        LowerTtl::undo(&bench.write, &intent, None).await.expect("undone");
        assert_eq!(ttl(&bench), 5);
    }

    #[tokio::test]
    async fn what_is_short_enough_is_left_and_less_than_a_second_is_refused() {
        let bench = Bench::new(&Fixture::new(json!({ "endpoint": "inference", "ttl": "10s" })));
        assert_eq!(bench.run::<LowerTtl>().await.expect("nothing to do").change, None);
        assert_eq!(bench.world.writes(), 0);
        let bench = Bench::new(&Fixture::new(json!({ "endpoint": "inference", "ttl": "500ms" })));
        assert_eq!(bench.refused::<LowerTtl>().await, "input");
    }
}
