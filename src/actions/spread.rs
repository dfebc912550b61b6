//! Waiting until a change of DNS has reached everybody: the look at an endpoint's resolvers, again and again, and what it
//! comes to. What moves the traffic differs (a record, a switch); how it spreads does not. Decided in [`super::propagation`].

use super::{
    contract::ReadCx,
    propagation::{self, Answer, Late, Panel, Spread, Verdict},
    shared::*,
};
use crate::model::{effect::Seen, estate::Endpoint, ids::EndpointName};
use crate::providers::port::PortError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{net::IpAddr, path::Path, time::Duration};

/// A cache answers at once, or has the answer when it is asked the next time.
const RESOLVER: Duration = Duration::from_millis(300);
/// How often a resolver is asked: the times of the panel are as fine as this.
const STEP: Duration = Duration::from_millis(20);
/// How long one look at the resolvers may take.
const LOOK: Duration = Duration::from_millis(500);

/// What is waited for.
pub(super) struct Waiting<'a> {
    pub endpoint: &'a EndpointName,
    /// Every resolver must answer with these addresses and no others.
    pub want: &'a [IpAddr],
    pub old_ttl: Duration,
    /// Where what was seen is kept.
    pub hint: &'a Path,
}

/// How a change spread.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Settled {
    /// The identifier of the change; `null` when nothing was to be changed or it is not known any more.
    pub change: Option<String>,
    /// The resolvers that answer with the new address; empty until they were asked.
    pub resolvers: Vec<String>,
    /// From the accepted change to the end of the waiting; `null` when that was not seen.
    pub waited_ms: Option<u64>,
    /// From the accepted change until every authoritative server was seen to have it; `null` when that was not seen.
    #[serde(default)]
    pub in_sync_ms: Option<u64>,
    /// How it spread over the endpoint's resolvers.
    #[serde(default)]
    pub panel: Panel,
    /// Servers that had not moved when all should have: they ignore the TTL, or do not answer.
    #[serde(default)]
    pub late: Vec<Late>,
}

/// What this machine saw so far: a hint and no more.
pub(super) async fn load(hint: &Path) -> Option<Spread> {
    tokio::fs::read(hint).await.ok().and_then(|text| serde_json::from_slice::<Spread>(&text).ok())
}

/// Only a hint: without it the record and the resolvers alone are asked.
pub(super) async fn keep(hint: &Path, spread: &Spread) {
    if let Ok(text) = serde_json::to_vec(spread) {
        let _ = tokio::fs::write(hint, text).await;
    }
}

/// Is a look over for one resolver? Whoever is silent is not asked once more if that could outlast the look: the others are
/// not looked at again before all are done, which would make their times coarse.
fn over(now: Duration, until: Duration, silent: bool) -> bool {
    now + if silent { RESOLVER } else { Duration::ZERO } >= until
}

/// Asks each of these resolvers again and again, until it answers with what is wanted or the look is over; its last
/// answer and when it came. Each on its own: one that is silent must not make the others' times coarse.
async fn watch(cx: &ReadCx, ep: &Endpoint, want: &[IpAddr], wanted: impl Fn(&str) -> bool) -> Vec<Answer> {
    let clock = cx.world.clock();
    let until = clock.monotonic() + LOOK.min(cx.deadline);
    let each = resolvers(ep).filter(|(who, _)| wanted(who)).map(|(who, server)| {
        let clock = clock.clone();
        async move {
            let mut stood = None;
            loop {
                let asked = clock.now();
                let found = ask(cx, ep, server, RESOLVER).await;
                let moved = found.as_deref().is_ok_and(|addresses| addresses == want);
                let silent = !matches!(found, Ok(_) | Err(PortError::NotFound(_)));
                if !moved && !silent {
                    stood = Some(asked);
                }
                if moved || over(clock.monotonic(), until, silent) {
                    return Answer { resolver: who, found, at: clock.now(), stood };
                }
                clock.sleep(STEP).await;
            }
        }
    });
    futures::future::join_all(each).await
}

/// Every resolver must answer with the new address and no other; who has done so once is not asked again.
pub(super) async fn settle(cx: &ReadCx, waiting: &Waiting<'_>, spread: Option<Spread>) -> Seen<Settled> {
    let ep = match endpoint(cx, waiting.endpoint) {
        Ok(ep) => ep,
        Err(refusal) => return Seen::CannotTell { why: refusal.failure.message },
    };
    let known = spread.is_some();
    // Nobody knows when it was: then everybody is waited for, as long as the step may take.
    let begun = cx.world.clock().now();
    let mut spread = spread.unwrap_or_else(|| Spread { in_sync: Some(begun), ..Spread::new(String::new(), begun) });
    let panel = panel(ep);
    let open = watch(cx, ep, waiting.want, |who| !spread.moved.contains_key(who)).await;
    let now = cx.world.clock().now();
    spread.look(waiting.want, &open);
    if known {
        keep(waiting.hint, &spread).await;
    }
    match spread.judge(&panel, &open, waiting.old_ttl, now) {
        Verdict::Wait { poll_after_ms, note } => pending(poll_after_ms, note),
        Verdict::Done { late } => {
            let seen = |at| known.then(|| propagation::millis(spread.at, at));
            Seen::Done(Settled {
                change: known.then(|| spread.change.clone()),
                resolvers: spread.moved.keys().cloned().collect(),
                waited_ms: seen(now),
                in_sync_ms: spread.in_sync.and_then(seen),
                panel: if known { spread.panel(panel.len()) } else { Panel::default() },
                late,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_silent_holds_nobody_up() {
        let ms = Duration::from_millis;
        assert!(!over(ms(499), ms(500), false) && over(ms(500), ms(500), false));
        assert!(!over(ms(199), ms(500), true), "its next silence fits in");
        assert!(over(ms(320), ms(500), true), "it would be waited for until 620 ms, and the others not asked for 120 of them");
    }
}
