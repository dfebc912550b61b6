//! The shape of a control plane of database instances (Amazon RDS): what is asked of it and what it is told to do.
//! Reading and writing apart, as in [`super::port`], which gives all of it on.
//!
//! None of its calls carries an idempotency token. Whoever makes something chooses its name and its tags from the step's
//! key beforehand, and looks for them after an answer that was lost.

use super::port::PortResult;
use async_trait::async_trait;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct InstanceInfo {
    pub id: String,
    /// Never reused, unlike the identifier (RDS: `DbiResourceId`).
    pub resource_id: String,
    /// As the provider writes it: `available`, `modifying`, `stopped`, `creating`...
    pub status: String,
    pub arn: String,
    pub host: Option<String>,
    pub port: Option<u16>,
    /// The identifier or ARN of what it replicates from, if it is a replica.
    pub replicates_from: Option<String>,
    /// The identifiers or ARNs of its replicas.
    pub replicas: Vec<String>,
    /// The cluster that it is a member of (Aurora), which then has its network, its password and its life.
    pub cluster: Option<String>,
    /// The security groups of its network, each with its state: `active`, `adding`, `removing`.
    pub groups: BTreeMap<String, String>,
    pub master_user: Option<String>,
    /// A new password of its master user was accepted and is not in force yet.
    pub password_pending: bool,
    /// The key that it is encrypted with, if it is.
    pub kms_key: Option<String>,
    /// Until when it can be brought back to a point in time.
    pub restorable_until: Option<jiff::Timestamp>,
    /// When the provider starts a stopped one again, whatever anybody wants.
    pub starts_again: Option<jiff::Timestamp>,
    pub tags: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SnapshotInfo {
    pub id: String,
    pub arn: String,
    pub instance: String,
    pub status: String,
    pub percent: Option<i32>,
    pub created: Option<jiff::Timestamp>,
    pub size_gib: Option<i32>,
    /// `manual`, or `automated` and such, which nobody but the provider deletes.
    pub kind: String,
    /// The ARN of the snapshot that it is a copy of.
    pub copy_of: Option<String>,
    pub kms_key: Option<String>,
    pub tags: BTreeMap<String, String>,
}

/// Several clusters in several regions, of which one writes (Aurora).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GlobalCluster {
    pub id: String,
    pub status: String,
    pub members: Vec<GlobalMember>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GlobalMember {
    /// The ARN of its cluster: the fourth part of it is Amazon's name of the region.
    pub arn: String,
    pub writer: bool,
    /// `connected`, `pending-resync`, where it is told.
    pub sync: Option<String>,
}

impl GlobalMember {
    /// Amazon's name of its region.
    #[must_use]
    pub fn region(&self) -> &str {
        arn_region(&self.arn).unwrap_or_default()
    }
}

/// `us-east-1`, of `arn:aws:rds:us-east-1:123456789012:db:name`.
#[must_use]
pub fn arn_region(arn: &str) -> Option<&str> {
    let mut parts = arn.split(':');
    (parts.next() == Some("arn")).then(|| parts.nth(2)).flatten().filter(|region| !region.is_empty())
}

/// What the provider's own monitoring says of a replica's lag.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum MeasuredLag {
    /// Seconds behind, at that time.
    Seconds(f64, jiff::Timestamp),
    /// It says that the replica does not replicate, at that time (RDS: −1).
    NotReplicating(jiff::Timestamp),
    /// It has no figure of this stretch of time, which is never zero.
    Nothing(Duration),
}

#[async_trait]
pub trait InstanceRead: Send + Sync {
    async fn instance(&self, id: &str) -> PortResult<Option<InstanceInfo>>;
    async fn snapshot(&self, id: &str) -> PortResult<Option<SnapshotInfo>>;
    /// All of an instance, whoever took them, also of one that is gone.
    async fn snapshots_of(&self, instance: &str) -> PortResult<Vec<SnapshotInfo>>;
    async fn global_cluster(&self, id: &str) -> PortResult<Option<GlobalCluster>>;
    /// The newest figure of a replica's lag that monitoring has.
    async fn measured_lag(&self, id: &str) -> PortResult<MeasuredLag>;
}

/// What a new instance gets beside its data; what is left out is the provider's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewInstance {
    pub id: String,
    pub class: Option<String>,
    pub subnet_group: Option<String>,
    pub groups: Vec<String>,
    pub tags: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotCopy {
    /// Of the snapshot: an ARN, which names its region.
    pub source: String,
    pub id: String,
    /// In the region of the copy. An encrypted snapshot leaves its region only with one.
    pub kms_key: Option<String>,
    pub tags: BTreeMap<String, String>,
}

/// Each call is accepted or refused; how far it came is read through `InstanceRead`.
#[async_trait]
pub trait InstanceWrite: InstanceRead {
    async fn create_snapshot(&self, instance: &str, snapshot: &str, tags: &BTreeMap<String, String>) -> PortResult<()>;
    /// Asked of the region that gets the copy.
    async fn copy_snapshot(&self, copy: &SnapshotCopy) -> PortResult<()>;
    async fn delete_snapshot(&self, id: &str) -> PortResult<()>;
    /// A new instance as another was at that time; its newest when `None`.
    async fn restore_to(&self, source: &str, at: Option<jiff::Timestamp>, new: &NewInstance) -> PortResult<()>;
    async fn restore_snapshot(&self, snapshot: &str, new: &NewInstance) -> PortResult<()>;
    /// Makes a replica stand on its own.
    async fn promote(&self, id: &str) -> PortResult<()>;
    /// `source` is an identifier in this region, or an ARN elsewhere; then an encrypted source needs a key of this region.
    async fn create_replica(&self, source: &str, kms_key: Option<&str>, new: &NewInstance) -> PortResult<()>;
    /// Deletes an instance, keeping its last state as a snapshot of that name if one is given.
    async fn delete(&self, id: &str, final_snapshot: Option<&str>) -> PortResult<()>;
    async fn stop(&self, id: &str) -> PortResult<()>;
    async fn start(&self, id: &str) -> PortResult<()>;
    /// From now on these security groups alone say who gets to it; connections that are open stay open.
    async fn set_groups(&self, id: &str, groups: &[String]) -> PortResult<()>;
    async fn set_password(&self, id: &str, password: &SecretString) -> PortResult<()>;
    /// Puts a tag on what this ARN names; `None` takes it off.
    async fn tag(&self, arn: &str, key: &str, value: Option<&str>) -> PortResult<()>;
    /// The member with this ARN becomes the writer when it has all that was written. Asked of the writer's region.
    async fn switch_global(&self, id: &str, to: &str) -> PortResult<()>;
    /// The member with this ARN becomes the writer with what it has. Asked of the region that it is in.
    async fn fail_over_global(&self, id: &str, to: &str) -> PortResult<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arn_names_its_region() {
        assert_eq!(arn_region("arn:aws:rds:us-east-1:123456789012:db:one"), Some("us-east-1"));
        assert_eq!(arn_region("arn:aws:rds::123456789012:global-cluster:one"), None);
        assert_eq!(arn_region("one"), None);
    }
}
