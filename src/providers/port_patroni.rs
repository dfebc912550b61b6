//! The shape of a Patroni cluster, as its REST API shows it and may be asked to change it. Reading and writing apart, as
//! in [`super::port`], which gives all of it on.

use super::port::{Lsn, PortResult};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};

/// One that the cluster's own store has on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatroniMember {
    pub name: String,
    /// `leader`, `standby_leader`, `replica`, `sync_standby`, `quorum_standby`.
    pub role: String,
    /// `running`, `streaming`, `stopped`…
    pub state: String,
    /// Where its own REST API answers.
    pub api: Option<String>,
    pub timeline: Option<u32>,
    /// In bytes; `None`: not known.
    pub lag: Option<u64>,
    /// It may become the leader (no tag `nofailover`).
    pub eligible: bool,
}

impl PatroniMember {
    #[must_use]
    pub fn leads(&self) -> bool {
        matches!(self.role.as_str(), "leader" | "standby_leader")
    }
    /// It takes in the log.
    #[must_use]
    pub fn follows(&self) -> bool {
        !self.leads() && matches!(self.state.as_str(), "streaming" | "running" | "in archive recovery")
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatroniCluster {
    pub scope: String,
    pub members: Vec<PatroniMember>,
    /// Maintenance: Patroni looks on.
    pub paused: bool,
    /// It follows a cluster elsewhere, which stands here as `HOST:PORT`.
    pub standby_of: Option<String>,
}

impl PatroniCluster {
    #[must_use]
    pub fn leader(&self) -> Option<&PatroniMember> {
        self.members.iter().find(|m| m.leads())
    }
    #[must_use]
    pub fn member(&self, name: &str) -> Option<&PatroniMember> {
        self.members.iter().find(|m| m.name == name)
    }
}

/// What one member says of its own server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatroniNode {
    pub name: String,
    pub scope: String,
    pub state: String,
    /// As the server itself says by SQL; `None`: it does not answer.
    pub in_recovery: Option<bool>,
    /// Written (of a primary) or replayed.
    pub position: Option<Lsn>,
    pub timeline: Option<u32>,
    pub system_identifier: Option<String>,
}

/// Whom a standby cluster follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandbyOf {
    pub host: String,
    pub port: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary_slot_name: Option<String>,
}

#[async_trait]
pub trait PatroniRead: Send + Sync {
    /// As the first member that answers has it.
    async fn cluster(&self) -> PortResult<PatroniCluster>;
    /// Every member that the estate or the cluster names, asked itself: by its address, what it says.
    async fn nodes(&self) -> PortResult<Vec<(String, PortResult<PatroniNode>)>>;
}

#[async_trait]
pub trait PatroniWrite: PatroniRead {
    /// Asks for a change of leaders. Patroni refuses it if `leader` is none any more, so the same request twice is once.
    async fn switch_over(&self, leader: &str, candidate: &str) -> PortResult<()>;
    /// Makes it a standby cluster, or (`None`) one of its own. It takes effect afterwards.
    async fn follow(&self, upstream: Option<&StandbyOf>) -> PortResult<()>;
}
