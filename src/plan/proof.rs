//! Whether a recovery point is proven: from what was tried, when, and for how long a proof counts. A backup of which
//! nobody knows that it restores is none, so this stands wherever backups are listed and readiness is judged.

use crate::model::time::{Span, rfc3339_ms};
use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// For how long a proof counts, if the estate does not say.
pub const PROOF_VALID: Span = Span::from_secs(7 * 24 * 60 * 60);
/// So far may the clock of whoever proved be ahead of ours.
const AHEAD: SignedDuration = SignedDuration::from_mins(60);

/// One try to restore a recovery point and to compare what came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    pub at: Timestamp,
    pub ok: bool,
    /// What failed.
    pub why: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum ProofState {
    Proven {
        #[schemars(with = "String")]
        #[serde(serialize_with = "instant")]
        until: Timestamp,
    },
    Stale {
        why: String,
    },
    /// The last try did not bring everything back.
    Failed {
        why: String,
    },
    Never,
}

fn instant<S: serde::Serializer>(at: &Timestamp, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(&rfc3339_ms(*at))
}

impl ProofState {
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Proven { .. } => "proven",
            Self::Stale { .. } => "stale",
            Self::Failed { .. } => "failed",
            Self::Never => "never",
        }
    }
    /// One sentence for people.
    #[must_use]
    pub fn detail(&self) -> String {
        match self {
            Self::Proven { until } => format!("until {}", rfc3339_ms(*until)),
            Self::Stale { why } | Self::Failed { why } => why.clone(),
            Self::Never => "it was never restored and compared".to_owned(),
        }
    }
}

/// The last try decides: a success makes good for what failed before, and a failure is not outweighed by any success
/// before it.
#[must_use]
pub fn proof_state(trials: &[Trial], now: Timestamp, valid: Span) -> ProofState {
    // Of two at one instant the failure counts.
    let Some(last) = trials.iter().max_by_key(|trial| (trial.at, !trial.ok)) else { return ProofState::Never };
    let at = rfc3339_ms(last.at);
    if !last.ok {
        let why = last.why.as_deref().unwrap_or("it did not come back whole");
        return ProofState::Failed { why: format!("{why} (at {at})") };
    }
    if last.at.duration_since(now) > AHEAD {
        return ProofState::Stale { why: format!("its proof is dated {at}, which is not yet: a clock is or was wrong") };
    }
    // Beyond the calendar's end nothing runs out.
    let until = last.at.checked_add(valid.signed()).unwrap_or(Timestamp::MAX);
    if now < until {
        ProofState::Proven { until }
    } else {
        ProofState::Stale { why: format!("proven at {at}; a proof counts for {valid}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    fn at(s: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + s).unwrap()
    }
    fn trial(s: i64, ok: bool) -> Trial {
        Trial { at: at(s), ok, why: (!ok).then(|| "a.bin differs".to_owned()) }
    }
    const VALID: Span = Span::from_secs(100);

    #[test]
    fn the_last_try_decides() {
        let word = |trials: &[Trial], now| proof_state(trials, at(now), VALID).word();
        assert_eq!(word(&[], 0), "never");
        assert_eq!(word(&[trial(0, true)], 99), "proven");
        assert_eq!(word(&[trial(0, true)], 100), "stale");
        assert_eq!(word(&[trial(0, true), trial(5, false)], 6), "failed");
        assert_eq!(word(&[trial(5, false), trial(0, true)], 6), "failed", "in whatever order they are loaded");
        assert_eq!(word(&[trial(0, false), trial(5, true)], 6), "proven");
        assert_eq!(word(&[trial(5, true), trial(5, false)], 6), "failed");
        // A failure does not become better with time.
        assert_eq!(word(&[trial(0, false)], 1_000_000), "failed");
        assert_eq!(word(&[trial(7_200, true)], 0), "stale", "from a clock that was wrong");
        assert_eq!(word(&[trial(60, true)], 0), "proven", "clocks may differ a little");
    }

    #[test]
    fn it_says_until_when_and_why() {
        assert_eq!(proof_state(&[trial(0, true)], at(1), VALID), ProofState::Proven { until: at(100) });
        let failed = proof_state(&[trial(0, false)], at(1), VALID).detail();
        assert!(failed.contains("a.bin differs") && failed.contains("2027-01-15"), "{failed}");
        assert!(proof_state(&[trial(0, true)], at(500), VALID).detail().contains("1m40s"));
        let json = serde_json::to_value(proof_state(&[trial(0, true)], at(1), VALID)).unwrap();
        assert_eq!((json["state"].as_str(), json["until"].is_string()), (Some("proven"), true));
    }

    proptest! {
        #[test]
        fn what_is_proven_runs_out_once_and_for_good(times in vec((0i64..1_000, any::<bool>()), 0..6), now in 1_000i64..3_000, later in 0i64..3_000) {
            let trials: Vec<Trial> = times.iter().map(|(s, ok)| trial(*s, *ok)).collect();
            let (first, then) = (proof_state(&trials, at(now), VALID), proof_state(&trials, at(now + later), VALID));
            match first {
                ProofState::Proven { until } => prop_assert_eq!(then.word(), if at(now + later) < until { "proven" } else { "stale" }),
                other => prop_assert_eq!(then, other),
            }
        }
    }
}
