//! How a replica stands, told apart without ever taking silence for health: streaming, stalled, not
//! replicating, unknown; each with its cause and what to do about it. A lag that was not measured is `null`, never zero.
//!
//! **Lag in seconds** compares instants of one clock, the primary's: the time of the last commit that was replayed (the
//! primary stamped it) with the primary's time now, or, when no primary answers, with the time that its last message
//! bears. And where the standby has replayed all that the primary had written at the first look, the time between the
//! looks bounds it too. So clocks that differ do not turn into lag; that they do is noted by itself.
//!
//! **Timelines**: a standby is on the primary's own, or on one that the primary's history names and not past the point
//! where the history leaves it. Everything else has rows that the primary has not.

use super::replica_causes::{self as causes, Cause};
use crate::providers::port::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum ReplicaState {
    /// Hears from its primary and replays what it receives.
    Streaming {
        lag_bytes: Option<u64>,
        lag_ms: Option<u64>,
    },
    /// Connected, but what it should replay does not move.
    Stalled {
        cause: Cause,
        why: String,
        cure: String,
        lag_bytes: Option<u64>,
        lag_ms: Option<u64>,
    },
    /// Hears from no primary; the lag is that at the last contact.
    NotReplicating {
        cause: Cause,
        why: String,
        cure: String,
        lag_bytes: Option<u64>,
        lag_ms: Option<u64>,
    },
    Unknown {
        cause: Cause,
        why: String,
        cure: String,
    },
}

/// A receiver that heard nothing for so long hears nothing any more: PostgreSQL sends a message at least
/// every half `wal_sender_timeout`, 30 s.
const SILENT_MS: u64 = 35_000;

/// What is worth saying of a replica beside its state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Note {
    /// A stable word: `wal_retrieve_retry_interval`.
    pub what: String,
    pub detail: String,
    pub cure: String,
}

impl ReplicaState {
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Streaming { .. } => "streaming",
            Self::Stalled { .. } => "stalled",
            Self::NotReplicating { .. } => "not_replicating",
            Self::Unknown { .. } => "unknown",
        }
    }
    #[must_use]
    pub fn lag_ms(&self) -> Option<u64> {
        match self {
            Self::Streaming { lag_ms, .. } | Self::Stalled { lag_ms, .. } | Self::NotReplicating { lag_ms, .. } => *lag_ms,
            Self::Unknown { .. } => None,
        }
    }
    #[must_use]
    pub fn lag_bytes(&self) -> Option<u64> {
        match self {
            Self::Streaming { lag_bytes, .. } | Self::Stalled { lag_bytes, .. } | Self::NotReplicating { lag_bytes, .. } => *lag_bytes,
            Self::Unknown { .. } => None,
        }
    }
    /// Why it is not streaming, and the cure.
    #[must_use]
    pub fn trouble(&self) -> Option<(Cause, &str, &str)> {
        match self {
            Self::Streaming { .. } => None,
            Self::Stalled { cause, why, cure, .. } | Self::NotReplicating { cause, why, cure, .. } | Self::Unknown { cause, why, cure } => {
                Some((*cause, why, cure))
            }
        }
    }
    pub(crate) fn unknown(cause: Cause, why: impl Into<String>) -> Self {
        Self::Unknown { cause, why: why.into(), cure: causes::cure(cause).to_owned() }
    }
}

/// Two looks at a standby, a moment apart, and what else is known.
pub(crate) struct Sight<'a> {
    pub first: &'a ServerState,
    pub second: &'a ServerState,
    /// The primary before the first and between the two, if it could be asked.
    pub primary: Option<(&'a ServerState, &'a ServerState)>,
    /// What the standby tells, and what the primary does.
    pub here: &'a Replication,
    pub there: &'a Replication,
}

/// From one look, for whoever has no time for two: nothing can be said to stand still.
pub(crate) fn judge_once(state: &ServerState, primary: Option<&ServerState>, here: &Replication) -> ReplicaState {
    let there = Replication::default();
    judge(&Sight { first: state, second: state, primary: primary.map(|p| (p, p)), here, there: &there })
}

pub(crate) fn judge(sight: &Sight<'_>) -> ReplicaState {
    let lag = Lag::of(sight);
    if let Some((cause, why)) = elsewhere(sight) {
        return lag.not_replicating(cause, why);
    }
    if sight.second.streaming
        && let Some(why) = perhaps_elsewhere(sight)
    {
        let cure = "let Muster's user read the history: GRANT EXECUTE ON FUNCTION pg_read_file(text, bigint, bigint, boolean) TO it";
        return ReplicaState::Unknown { cause: Cause::WrongTimeline, why, cure: cure.into() };
    }
    if !sight.second.streaming && sight.here.refused {
        let why = "whether it has a receiver is not told to the user that Muster connects as".into();
        return ReplicaState::Unknown { cause: Cause::NotTold, why, cure: causes::cure(Cause::NotTold).into() };
    }
    if !sight.second.streaming {
        let (cause, why) = causes::no_receiver(sight);
        return lag.not_replicating(cause, why);
    }
    match standing(sight, lag.bytes) {
        Some((cause, why)) => lag.stalled(cause, why),
        None => ReplicaState::Streaming { lag_bytes: lag.bytes, lag_ms: lag.ms },
    }
}

/// It is no replica of this primary, whatever it receives.
fn elsewhere(sight: &Sight<'_>) -> Option<(Cause, String)> {
    let standby = sight.second;
    if let Some((_, primary)) = sight.primary
        && primary.system_identifier != standby.system_identifier
    {
        let why = format!(
            "it belongs to another cluster (system identifier {}, the primary's is {})",
            standby.system_identifier, primary.system_identifier
        );
        return Some((Cause::AnotherCluster, why));
    }
    if !standby.in_recovery {
        return Some((Cause::NoStandby, format!("it is no standby: it accepts writes, on timeline {}", standby.timeline)));
    }
    let (_, primary) = sight.primary?;
    if standby.timeline > primary.timeline {
        let why = format!(
            "it is on timeline {}, which the primary's ({}) has never been on: it follows another server that was promoted",
            standby.timeline, primary.timeline
        );
        return Some((Cause::WrongTimeline, why));
    }
    if standby.timeline == primary.timeline {
        // The primary was asked later: what was replayed by then must have been written by then.
        return (sight.first.position > primary.position && sight.primary.is_some()).then(|| {
            let why = format!("it has replayed {}, and the primary has only written {}", sight.first.position, primary.position);
            (Cause::AheadOfPrimary, why)
        });
    }
    let history = sight.there.history.as_ref()?;
    match history.iter().find(|(timeline, _)| *timeline == standby.timeline) {
        Some((_, left)) if standby.position > *left => {
            let why = format!(
                "it went on along timeline {} to {}, and the primary's timeline {} left that at {left}",
                standby.timeline, standby.position, primary.timeline
            );
            Some((Cause::WrongTimeline, why))
        }
        Some(_) => None,
        None => {
            let why = format!("it is on timeline {}, from which the primary's ({}) does not come", standby.timeline, primary.timeline);
            Some((Cause::WrongTimeline, why))
        }
    }
}

/// It is on an older timeline than the primary, and whether the primary's history leaves that further on is not told. One
/// that follows this primary goes over to its timeline as soon as it comes to it.
fn perhaps_elsewhere(sight: &Sight<'_>) -> Option<String> {
    let (_, primary) = sight.primary.filter(|_| sight.there.version > 0 && sight.there.history.is_none())?;
    (sight.second.timeline < primary.timeline).then(|| {
        format!(
            "it is on timeline {} and the primary on {}, and where the primary left that is not told: it may be behind, or follow another server",
            sight.second.timeline, primary.timeline
        )
    })
}

/// A receiver is there. Does what it should bring move?
fn standing(sight: &Sight<'_>, lag_bytes: Option<u64>) -> Option<(Cause, String)> {
    let (first, second) = (sight.first, sight.second);
    let silent = second.last_message.and_then(|at| u64::try_from(second.now.duration_since(at).as_millis()).ok());
    if let Some(ms) = silent.filter(|ms| *ms > SILENT_MS) {
        return Some((Cause::ReceiverSilent, format!("its receiver has heard nothing for {} s", ms / 1_000)));
    }
    let lower = causes::lower(&sight.here.limits, &sight.there.limits);
    if second.replay_paused {
        if !lower.is_empty() {
            return Some((Cause::SettingsTooLow, format!("its replay has stopped: {}", lower.join(", "))));
        }
        let asked = sight.here.pause.as_deref() == Some("pause requested");
        return Some((Cause::ReplayPaused, if asked { "a pause of its replay was asked for" } else { "its replay is paused" }.into()));
    }
    if lag_bytes.is_none_or(|bytes| bytes == 0) || first.now >= second.now {
        return None;
    }
    let to_replay = second.received.is_none_or(|received| received > second.position);
    if to_replay && first.position == second.position {
        return match sight.here.waits_for.as_deref() {
            Some("RecoveryApplyDelay") => None,
            Some(conflict) if conflict.starts_with("RecoveryConflict") => {
                Some((Cause::RecoveryConflict, "it is behind, and its replay waits for queries that run on it".into()))
            }
            _ => Some((Cause::ReplayStuck, "it is behind and replays nothing".into())),
        };
    }
    let behind = |primary: &ServerState| second.received.is_some_and(|received| received < primary.position);
    if !to_replay && first.received == second.received && sight.primary.is_some_and(|(_, primary)| behind(primary)) {
        return Some((Cause::ReceiverStuck, "it is behind and receives nothing, though its receiver is there".into()));
    }
    None
}

struct Lag {
    bytes: Option<u64>,
    ms: Option<u64>,
}

impl Lag {
    fn of(sight: &Sight<'_>) -> Self {
        let standby = sight.second;
        if !standby.in_recovery {
            return Self { bytes: None, ms: None };
        }
        let end = sight.primary.map(|(_, now)| now.position).or(standby.received);
        let bytes = end.map(|end| end.0.saturating_sub(standby.position.0));
        Self { bytes, ms: bytes.and_then(|bytes| if bytes == 0 { Some(0) } else { seconds(sight) }) }
    }
    fn stalled(self, cause: Cause, why: String) -> ReplicaState {
        let cure = causes::cure(cause).to_owned();
        ReplicaState::Stalled { cause, why, cure, lag_bytes: self.bytes, lag_ms: self.ms }
    }
    fn not_replicating(self, cause: Cause, why: String) -> ReplicaState {
        let cure = causes::cure(cause).to_owned();
        ReplicaState::NotReplicating { cause, why, cure, lag_bytes: self.bytes, lag_ms: self.ms }
    }
}

/// All instants here are of the primary's clock.
fn seconds(sight: &Sight<'_>) -> Option<u64> {
    let standby = sight.second;
    let since = |until: jiff::Timestamp, from: jiff::Timestamp| u64::try_from(until.duration_since(from).as_millis()).ok();
    match sight.primary {
        Some((before, now)) => {
            let commit = standby.last_replayed.and_then(|at| since(now.now, at));
            let reached = (standby.position >= before.position).then(|| since(now.now, before.now)).flatten();
            [commit, reached].into_iter().flatten().min()
        }
        None => {
            let sent = sight.here.receiver.as_ref().and_then(|r| r.last_sent);
            since(sent?, standby.last_replayed?)
        }
    }
}

/// How long a standby that lost its receiver may wait before it notices that it was promoted, if that is long.
pub(crate) fn retry_note(here: &Replication) -> Option<Note> {
    let ms = here.retry_interval_ms.filter(|ms| *ms > 1_000)?;
    Some(Note {
        what: "wal_retrieve_retry_interval".into(),
        detail: format!("a promotion that comes just after the primary was lost may wait {ms} ms before it takes effect"),
        cure: "ALTER SYSTEM SET wal_retrieve_retry_interval = '200ms' on the standby (on RDS in its parameter group), then reload".into(),
    })
}

pub(crate) fn notes(sight: &Sight<'_>) -> Vec<Note> {
    let note = |what: &str, detail: String, cure: &str| Note { what: what.into(), detail, cure: cure.into() };
    let mut all: Vec<Note> = retry_note(sight.here).into_iter().collect();
    if let Some(ms) = sight.here.apply_delay_ms.filter(|ms| *ms > 0) {
        let cure = "RESET recovery_min_apply_delay before a failover, unless the delay is wanted";
        all.push(note("apply_delay", format!("it replays {ms} ms late on purpose (recovery_min_apply_delay)"), cure));
    }
    if let Some((_, primary)) = sight.primary {
        let skew = sight.second.now.duration_since(primary.now).as_millis();
        // The two were asked a moment after one another.
        if skew.abs() > 2_000 {
            let detail =
                format!("the standby's clock is {} s {} the primary's", skew.abs() / 1_000, if skew > 0 { "before" } else { "behind" });
            all.push(note("clock_skew", detail, "synchronise the clocks; the lag above was measured by the primary's alone"));
        }
        let lower = causes::lower(&sight.here.limits, &sight.there.limits);
        if !lower.is_empty() {
            let cure = "raise them on the standby and restart it: replay stops when the primary's next change of them arrives";
            all.push(note("settings_too_low", lower.join(", "), cure));
        }
    }
    if let Some(slot) = causes::slot(sight)
        && matches!(slot.wal_status.as_deref(), Some("extended" | "unreserved"))
    {
        let status = slot.wal_status.as_deref().unwrap_or_default();
        let detail = format!("the slot `{}` is `{status}`: it holds back more log than planned", slot.name);
        all.push(note("slot_wal_status", detail, "let the standby catch up; see max_slot_wal_keep_size"));
    }
    if sight.here.refused {
        let detail = "the standby does not tell its settings of replication to this user".into();
        all.push(note("not_told", detail, causes::cure(Cause::NotTold)));
    }
    all
}

#[cfg(test)]
#[path = "replica_tests.rs"]
mod tests;
