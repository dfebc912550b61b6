//! How a replica stands, told apart without ever taking silence for health: streaming, stalled, not
//! replicating, unknown. A lag that was not measured is `null`, never zero.

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
        why: String,
        lag_bytes: Option<u64>,
        lag_ms: Option<u64>,
    },
    /// Hears from no primary; the lag is that at the last contact.
    NotReplicating {
        why: String,
        lag_bytes: Option<u64>,
        lag_ms: Option<u64>,
    },
    Unknown {
        why: String,
    },
}

/// A receiver that heard nothing for so long hears nothing any more: PostgreSQL sends a message at least
/// every half `wal_sender_timeout`, 30 s.
const SILENT_MS: u64 = 35_000;

impl ReplicaState {
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Streaming { .. } => "streaming",
            Self::Stalled { .. } => "stalled",
            Self::NotReplicating { .. } => "not_replicating",
            Self::Unknown { .. } => "unknown",
        }
    }
    pub(crate) fn lag_ms(&self) -> Option<u64> {
        match self {
            Self::Streaming { lag_ms, .. } | Self::Stalled { lag_ms, .. } | Self::NotReplicating { lag_ms, .. } => *lag_ms,
            Self::Unknown { .. } => None,
        }
    }
}

/// From two looks at the standby and, if it could be asked between them, the primary's position.
pub(crate) fn judge(first: &ServerState, second: &ServerState, primary: Option<Lsn>) -> ReplicaState {
    if !second.in_recovery {
        return ReplicaState::NotReplicating { why: "it is no standby".into(), lag_bytes: None, lag_ms: None };
    }
    let end = primary.or(second.received);
    let lag_bytes = end.map(|end| end.0.saturating_sub(second.position.0));
    let lag_ms = lag(second, lag_bytes, primary.is_some());
    let silent = second.last_message.and_then(|at| u64::try_from(second.now.duration_since(at).as_millis()).ok());
    if !second.streaming {
        let why = "no receiver is connected to a primary".into();
        return ReplicaState::NotReplicating { why, lag_bytes, lag_ms };
    }
    if silent.is_some_and(|ms| ms > SILENT_MS) {
        return ReplicaState::Stalled { why: "its receiver hears nothing any more".into(), lag_bytes, lag_ms };
    }
    if second.replay_paused {
        return ReplicaState::Stalled { why: "its replay is paused".into(), lag_bytes, lag_ms };
    }
    if lag_bytes.is_some_and(|b| b > 0) && first.position == second.position && first.now < second.now {
        return ReplicaState::Stalled { why: "it is behind and replays nothing".into(), lag_bytes, lag_ms };
    }
    ReplicaState::Streaming { lag_bytes, lag_ms }
}

/// With the primary at hand: the age of the last replayed commit, if anything is missing. Without it, only
/// up to the last message: what was not sent by then, nobody here can know.
fn lag(state: &ServerState, lag_bytes: Option<u64>, primary: bool) -> Option<u64> {
    if lag_bytes? == 0 {
        return Some(0);
    }
    let until = if primary { Some(state.now) } else { state.last_message };
    u64::try_from(until?.duration_since(state.last_replayed?).as_millis()).ok()
}
