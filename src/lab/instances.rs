//! What the RDS-shaped API of one region knows: instances and snapshots, and for each the work that is
//! under way, so that an API that is killed goes on with it when it is started again.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RegionState {
    pub instances: BTreeMap<String, Instance>,
    pub snapshots: BTreeMap<String, Snapshot>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    pub id: String,
    /// Never reused, unlike the identifier.
    pub resource_id: String,
    pub status: String,
    pub port: u16,
    pub created: jiff::Timestamp,
    /// The ARN of what it streams from.
    pub replicates_from: Option<String>,
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// Under way; finished again from the start after a crash.
    #[serde(default)]
    pub task: Option<Task>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    Create,
    Promote,
    Snapshot { snapshot: String },
    Delete { final_snapshot: Option<String> },
    Stop,
    Start,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    pub id: String,
    pub instance: String,
    pub resource_id: String,
    pub status: String,
    pub created: jiff::Timestamp,
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

impl Instance {
    #[must_use]
    pub fn new(id: &str, port: u16, replicates_from: Option<String>, clock: &dyn crate::providers::clock::Clock) -> Self {
        let unique = clock.new_id().replace('-', "").to_uppercase();
        Self {
            id: id.to_owned(),
            resource_id: format!("db-{}", unique.get(..26).unwrap_or(&unique)),
            status: "creating".to_owned(),
            port,
            created: clock.now(),
            replicates_from,
            tags: BTreeMap::new(),
            task: None,
        }
    }

    /// Should its server be running?
    #[must_use]
    pub fn wants_server(&self) -> bool {
        !matches!(self.status.as_str(), "stopped" | "creating" | "failed" | "deleting")
    }
}

/// Region and identifier of `arn:aws:rds:REGION:ACCOUNT:db:ID`.
#[must_use]
pub fn split_arn(arn: &str) -> Option<(&str, &str)> {
    let mut parts = arn.split(':');
    let region = parts.nth(3)?;
    let kind = parts.nth(1)?;
    let id = parts.next()?;
    (arn.starts_with("arn:aws:rds:") && matches!(kind, "db" | "snapshot")).then_some((region, id))
}

#[cfg(test)]
mod tests {
    #[test]
    fn arns_are_taken_apart() {
        assert_eq!(super::split_arn("arn:aws:rds:us-east-1:000000000000:db:predictions-east"), Some(("us-east-1", "predictions-east")));
        assert_eq!(super::split_arn("predictions-east"), None);
        assert_eq!(super::split_arn("arn:aws:s3:::bucket"), None);
    }
}
