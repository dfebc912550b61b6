//! How a change of DNS spreads: when every authoritative server had it, and when which resolver first answered with it.
//!
//! What was seen is kept in the run's own directory between two looks, so that a look asks only whom it must: the
//! provider's control plane is not asked again and again (Route 53 allows five calls a second to a whole account), and
//! a resolver that has moved is done. It is a hint: without it, after a crash on another machine, what is seen is as
//! true, and the times are not known.
//!
//! A resolver that still answers with the old record when its TTL has long run out does not obey it (`cache-min-ttl`,
//! `serve-expired`, or a cache in between), and one that does not answer may stand in the region that is lost. Neither
//! keeps a failover from going on: both are named.

use crate::providers::port::PortResult;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr, time::Duration};

/// How long a resolver may take longer than the old TTL allows: a lookup that was under way, and a second's rounding.
const GRACE: Duration = Duration::from_secs(3);
/// How long authoritative servers that answer may stay behind. Route 53 promises its change within this.
const SPREADS: Duration = Duration::from_secs(60);

/// What is known of one change so far.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Spread {
    /// The provider's identifier of the change.
    pub change: String,
    pub at: jiff::Timestamp,
    /// The record was seen to be ours.
    #[serde(default)]
    pub standing: bool,
    /// Who was left out, as far as that was seen then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<super::holders::LeftOut>,
    /// When the provider was last asked whether all its servers have it.
    #[serde(default)]
    pub asked: Option<jiff::Timestamp>,
    #[serde(default)]
    pub in_sync: Option<jiff::Timestamp>,
    /// Why it could not be told, the last time.
    #[serde(default)]
    pub untold: Option<String>,
    /// When each resolver was first seen to answer with it.
    #[serde(default)]
    pub moved: BTreeMap<String, jiff::Timestamp>,
    /// When each resolver was last asked and still answered with something else: it moved after that.
    #[serde(default)]
    pub stood: BTreeMap<String, jiff::Timestamp>,
}

/// What a resolver answered last in one look.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub resolver: String,
    pub found: PortResult<Vec<IpAddr>>,
    pub at: jiff::Timestamp,
    /// When the last question was sent that was answered with something else than what is wanted.
    pub stood: Option<jiff::Timestamp>,
}

/// A server that has not moved in time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Late {
    pub resolver: String,
    /// What it still answers, or why it answers nothing.
    pub why: String,
}

/// Milliseconds from the accepted change until so many in a hundred of the resolvers answered with it; `null` where that
/// many never did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(clippy::struct_field_names)] // the unit stands in every name that others read
pub struct Panel {
    pub p50_ms: Option<u64>,
    pub p90_ms: Option<u64>,
    pub p99_ms: Option<u64>,
    pub p100_ms: Option<u64>,
    /// How fine these times are: the longest that a resolver was not looked at while it moved; `null` where none has.
    pub step_ms: Option<u64>,
}

/// What one look comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Wait { poll_after_ms: u64, note: String },
    Done { late: Vec<Late> },
}

impl Spread {
    pub(crate) fn new(change: String, at: jiff::Timestamp) -> Self {
        Self {
            change,
            at,
            standing: false,
            left: Vec::new(),
            asked: None,
            in_sync: None,
            untold: None,
            moved: BTreeMap::new(),
            stood: BTreeMap::new(),
        }
    }

    /// Is the provider to be asked again? Often at first, and ever less: a tenth of the time that has passed.
    pub(crate) fn asks(&self, now: jiff::Timestamp) -> bool {
        let Some(asked) = self.asked else { return true };
        self.in_sync.is_none() && millis(asked, now) >= (millis(self.at, now) / 10).max(50)
    }

    /// Takes in what the resolvers answered.
    pub(crate) fn look(&mut self, want: &[IpAddr], answers: &[Answer]) {
        for Answer { resolver, found, at, stood } in answers {
            if self.moved.contains_key(resolver) {
                continue;
            }
            if let Some(stood) = stood {
                self.stood.insert(resolver.clone(), *stood);
            }
            if found.as_deref().is_ok_and(|addresses| addresses == want) {
                self.moved.insert(resolver.clone(), *at);
            }
        }
    }

    /// Is it done, given what those answered that have not moved?
    pub(crate) fn judge(&self, panel: &[String], open: &[Answer], old_ttl: Duration, now: jiff::Timestamp) -> Verdict {
        let wait = |poll_after_ms, note| Verdict::Wait { poll_after_ms, note };
        // One that does not answer may stand in the region that is lost.
        let spreads = if self.untold.is_some() { GRACE } else { SPREADS };
        if self.in_sync.is_none() && millis(self.at, now) < as_millis(spreads) {
            return wait(50, format!("change {} is not in sync yet", self.change));
        }
        let behind = self.in_sync.is_none().then(|| Late {
            resolver: "authoritative servers".into(),
            why: self.untold.clone().unwrap_or_else(|| format!("not all of them have it after {} s", SPREADS.as_secs())),
        });
        let still: Vec<Late> = open
            .iter()
            .filter(|seen| !self.moved.contains_key(&seen.resolver))
            .map(|seen| Late {
                resolver: seen.resolver.clone(),
                why: match &seen.found {
                    Ok(addresses) => format!("still answers {}", addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
                    Err(why) => why.to_string(),
                },
            })
            .collect();
        let Some(first) = still.first() else { return Verdict::Done { late: behind.into_iter().collect() } };
        // Who got the old answer just before the last server had the new one may keep it for that TTL.
        let patience = old_ttl + GRACE;
        let over = millis(self.in_sync.unwrap_or(self.at), now) >= as_millis(patience);
        // Where nobody has moved, it is not one resolver's doing.
        if over && still.len() < panel.len() {
            return Verdict::Done { late: behind.into_iter().chain(still).collect() };
        }
        wait(5, format!("resolver {} {}{}", first.resolver, first.why, if still.len() > 1 { ", and others" } else { "" }))
    }

    pub(crate) fn panel(&self, size: usize) -> Panel {
        let mut times: Vec<u64> = self.moved.values().map(|at| millis(self.at, *at)).collect();
        times.sort_unstable();
        let at = |percent: usize| times.get((size * percent).div_ceil(100).saturating_sub(1)).copied();
        Panel { p50_ms: at(50), p90_ms: at(90), p99_ms: at(99), p100_ms: at(100), step_ms: self.step() }
    }

    /// Each resolver moved at some time between the last look that found it unmoved and the first that found it moved, or
    /// after the change if it was never found unmoved: the longest of these spans, rounded up.
    fn step(&self) -> Option<u64> {
        let span = |(who, at): (&String, &jiff::Timestamp)| {
            let from = *self.stood.get(who).unwrap_or(&self.at);
            u64::try_from(at.duration_since(from).as_micros()).unwrap_or(0).div_ceil(1_000)
        };
        self.moved.iter().map(span).max()
    }
}

pub(crate) fn millis(from: jiff::Timestamp, to: jiff::Timestamp) -> u64 {
    u64::try_from(to.duration_since(from).as_millis()).unwrap_or(0)
}

fn as_millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: jiff::Timestamp = jiff::Timestamp::UNIX_EPOCH;

    fn at(ms: i64) -> jiff::Timestamp {
        T0 + jiff::SignedDuration::from_millis(ms)
    }
    fn new() -> IpAddr {
        "127.0.2.1".parse().unwrap()
    }
    fn panel(count: usize) -> Vec<String> {
        (0..count).map(|n| format!("r{n}")).collect()
    }
    fn answers(panel: &[String], moved: usize, ms: i64) -> Vec<Answer> {
        let old = "127.0.1.1".parse().unwrap();
        let one = |(n, who): (usize, &String)| Answer {
            resolver: who.clone(),
            found: Ok(vec![if n < moved { new() } else { old }]),
            at: at(ms),
            stood: None,
        };
        panel.iter().enumerate().map(one).collect()
    }

    #[test]
    fn each_share_of_the_panel_has_the_time_of_the_one_that_completed_it() {
        let (panel, mut spread) = (panel(10), Spread::new("c".into(), T0));
        for (moved, ms) in (1..=10).zip((100..).step_by(100)) {
            spread.look(&[new()], &answers(&panel, moved, ms));
        }
        let found = spread.panel(10);
        assert_eq!((found.p50_ms, found.p90_ms, found.p99_ms, found.p100_ms), (Some(500), Some(900), Some(1_000), Some(1_000)));
        assert_eq!(spread.panel(11).p100_ms, None, "one never moved");
        assert_eq!(Spread::new("c".into(), T0).panel(3), Panel::default());
    }

    #[test]
    fn the_figures_say_how_fine_they_are() {
        let (panel, mut spread) = (panel(3), Spread::new("c".into(), T0));
        let seen = |moved: usize, ms: i64, stood: Option<i64>| {
            answers(&panel, moved, ms).into_iter().map(|one| Answer { stood: stood.map(at), ..one }).collect::<Vec<_>>()
        };
        assert_eq!(spread.panel(3).step_ms, None, "none has moved");
        // The first is found moved at once: it did so within what has passed since the change.
        spread.look(&[new()], &seen(1, 30, None));
        assert_eq!(spread.panel(3).step_ms, Some(30));
        spread.look(&[new()], &seen(1, 1_000, Some(990)));
        assert_eq!(spread.panel(3).step_ms, Some(30), "those that stand say nothing yet");
        // Nobody was looked at for 60 ms, between two looks; and the third moves under the eyes of one.
        spread.look(&[new()], &seen(2, 1_050, None));
        assert_eq!(spread.panel(3).step_ms, Some(60));
        spread.look(&[new()], &seen(3, 2_000, Some(1_979)));
        assert_eq!((spread.panel(3).step_ms, spread.panel(3).p100_ms), (Some(60), Some(2_000)));
        let kept: Spread = serde_json::from_str(&serde_json::to_string(&spread).unwrap()).unwrap();
        assert_eq!(kept.panel(3), spread.panel(3), "what was seen is kept between two looks");
    }

    #[test]
    fn who_keeps_the_old_answer_beyond_its_time_is_named_and_not_waited_for() {
        let (panel, mut spread) = (panel(3), Spread::new("c".into(), T0));
        spread.in_sync = Some(at(20));
        let ttl = Duration::from_secs(5);
        let mut seen = answers(&panel, 2, 4_000);
        spread.look(&[new()], &seen);
        assert!(
            matches!(spread.judge(&panel, &seen, ttl, at(8_019)), Verdict::Wait { note, .. } if note.contains("r2 still answers 127.0.1.1"))
        );
        let Verdict::Done { late } = spread.judge(&panel, &seen, ttl, at(8_021)) else { panic!("it was waited for") };
        assert_eq!((late.len(), late[0].resolver.as_str()), (1, "r2"));
        seen[2].found = Err(crate::providers::port::PortError::Unreachable("no answer within 300 ms".into()));
        let Verdict::Done { late } = spread.judge(&panel, &seen, ttl, at(9_000)) else { panic!("it was waited for") };
        assert_eq!(late[0].why, "unreachable: no answer within 300 ms");
    }

    #[test]
    fn where_nobody_moves_it_is_not_a_resolvers_doing() {
        let (panel, mut spread) = (panel(3), Spread::new("c".into(), T0));
        spread.in_sync = Some(at(20));
        let seen = answers(&panel, 0, 90_000);
        spread.look(&[new()], &seen);
        assert!(matches!(spread.judge(&panel, &seen, Duration::from_secs(5), at(90_000)), Verdict::Wait { .. }));
    }

    #[test]
    fn a_server_that_never_says_that_it_has_the_change_is_waited_for_a_minute() {
        let (panel, mut spread) = (panel(1), Spread::new("c".into(), T0));
        let seen = answers(&panel, 1, 10);
        spread.look(&[new()], &seen);
        assert!(matches!(spread.judge(&panel, &seen, Duration::ZERO, at(59_000)), Verdict::Wait { note, .. } if note.contains("in sync")));
        let Verdict::Done { late } = spread.judge(&panel, &seen, Duration::ZERO, at(60_000)) else { panic!("it was waited for") };
        assert_eq!(late[0].resolver, "authoritative servers");
        // One that cannot be asked is not waited for so long.
        spread.untold = Some("ns2 did not answer".into());
        let Verdict::Done { late } = spread.judge(&panel, &seen, Duration::ZERO, at(3_000)) else { panic!("it was waited for") };
        assert_eq!(late[0].why, "ns2 did not answer");
    }

    #[test]
    fn the_provider_is_asked_ever_less() {
        let mut spread = Spread::new("c".into(), T0);
        assert!(spread.asks(at(0)));
        spread.asked = Some(at(100));
        assert!(!spread.asks(at(149)) && spread.asks(at(150)));
        spread.asked = Some(at(10_000));
        assert!(!spread.asks(at(10_900)) && spread.asks(at(11_200)));
        spread.in_sync = Some(at(11_200));
        assert!(!spread.asks(at(60_000)));
    }
}
