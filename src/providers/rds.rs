//! Amazon RDS: the control plane of database instances. Its calls carry no idempotency token, so
//! identifiers and tags chosen by the caller are what tells an attempt of ours from another's.

use super::aws::{AwsClients, Doing, explain, instant};
use super::port::{InstanceInfo, InstanceRead, InstanceWrite, PortError, PortResult, SnapshotInfo};
use async_trait::async_trait;
use aws_sdk_rds::types::{DbInstance, DbSnapshot, Tag};
use std::{collections::BTreeMap, sync::Arc};

/// More pages than any instance has snapshots: a server that never ends is not followed for ever.
const MOST_PAGES: usize = 100;

pub struct Rds {
    clients: Arc<AwsClients>,
}

impl Rds {
    #[must_use]
    pub fn new(clients: Arc<AwsClients>) -> Self {
        Self { clients }
    }
}

fn tags(list: &[Tag]) -> BTreeMap<String, String> {
    list.iter().filter_map(|t| Some((t.key()?.to_owned(), t.value().unwrap_or_default().to_owned()))).collect()
}

fn tag_list(tags: &BTreeMap<String, String>) -> Option<Vec<Tag>> {
    let all: Vec<Tag> = tags.iter().map(|(k, v)| Tag::builder().key(k).value(v).build()).collect();
    (!all.is_empty()).then_some(all)
}

fn instance(found: &DbInstance) -> InstanceInfo {
    let text = |t: Option<&str>| t.unwrap_or_default().to_owned();
    let endpoint = found.endpoint();
    InstanceInfo {
        id: text(found.db_instance_identifier()),
        resource_id: text(found.dbi_resource_id()),
        status: text(found.db_instance_status()),
        arn: text(found.db_instance_arn()),
        host: endpoint.and_then(|e| e.address()).map(str::to_owned),
        port: endpoint.and_then(aws_sdk_rds::types::Endpoint::port).and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0),
        replicates_from: found.read_replica_source_db_instance_identifier().filter(|s| !s.is_empty()).map(str::to_owned),
        tags: tags(found.tag_list()),
    }
}

fn snapshot(found: &DbSnapshot) -> SnapshotInfo {
    let text = |t: Option<&str>| t.unwrap_or_default().to_owned();
    SnapshotInfo {
        id: text(found.db_snapshot_identifier()),
        instance: text(found.db_instance_identifier()),
        status: text(found.status()),
        percent: found.percent_progress(),
        created: found.snapshot_create_time().and_then(instant),
        size_gib: found.allocated_storage(),
        tags: tags(found.tag_list()),
    }
}

fn absent<T>(result: PortResult<T>) -> PortResult<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(PortError::NotFound(_)) => Ok(None),
        Err(e) => Err(e),
    }
}

#[async_trait]
impl InstanceRead for Rds {
    async fn instance(&self, id: &str) -> PortResult<Option<InstanceInfo>> {
        let call = self.clients.rds().await?.read.describe_db_instances().db_instance_identifier(id);
        let answer = call.send().await.map_err(|e| explain(&e, Doing::Reading, &format!("DescribeDBInstances {id}")));
        Ok(absent(answer)?.and_then(|a| a.db_instances().first().map(instance)))
    }

    async fn snapshot(&self, id: &str) -> PortResult<Option<SnapshotInfo>> {
        let call = self.clients.rds().await?.read.describe_db_snapshots().db_snapshot_identifier(id);
        let answer = call.send().await.map_err(|e| explain(&e, Doing::Reading, &format!("DescribeDBSnapshots {id}")));
        Ok(absent(answer)?.and_then(|a| a.db_snapshots().first().map(snapshot)))
    }

    async fn snapshots_of(&self, of: &str) -> PortResult<Vec<SnapshotInfo>> {
        let client = &self.clients.rds().await?.read;
        let mut all = Vec::new();
        let mut marker = None;
        for _ in 0..MOST_PAGES {
            let call = client.describe_db_snapshots().db_instance_identifier(of).set_marker(marker);
            let answer = call.send().await.map_err(|e| explain(&e, Doing::Reading, &format!("DescribeDBSnapshots of {of}")));
            let Some(page) = absent(answer)? else { return Ok(all) };
            all.extend(page.db_snapshots().iter().map(snapshot));
            marker = page.marker().filter(|m| !m.is_empty()).map(str::to_owned);
            if marker.is_none() {
                return Ok(all);
            }
        }
        Err(PortError::Refused(format!("DescribeDBSnapshots of {of}: no end after {MOST_PAGES} pages")))
    }
}

#[async_trait]
impl InstanceWrite for Rds {
    async fn create_snapshot(&self, instance: &str, snapshot: &str, tags: &BTreeMap<String, String>) -> PortResult<()> {
        let call = self.clients.rds().await?.write.create_db_snapshot();
        let call = call.db_instance_identifier(instance).db_snapshot_identifier(snapshot).set_tags(tag_list(tags));
        call.send().await.map(|_| ()).map_err(|e| explain(&e, Doing::Writing, &format!("CreateDBSnapshot {snapshot}")))
    }

    async fn promote(&self, id: &str) -> PortResult<()> {
        let call = self.clients.rds().await?.write.promote_read_replica().db_instance_identifier(id);
        call.send().await.map(|_| ()).map_err(|e| explain(&e, Doing::Writing, &format!("PromoteReadReplica {id}")))
    }

    async fn create_replica(&self, id: &str, source: &str, source_region: Option<&str>, tags: &BTreeMap<String, String>) -> PortResult<()> {
        let from = source_region.map(|r| format!(" from {r}")).unwrap_or_default();
        let call = self.clients.rds().await?.write.create_db_instance_read_replica();
        let call = call.db_instance_identifier(id).source_db_instance_identifier(source).set_tags(tag_list(tags));
        call.send()
            .await
            .map(|_| ())
            .map_err(|e| explain(&e, Doing::Writing, &format!("CreateDBInstanceReadReplica {id} of {source}{from}")))
    }

    async fn delete(&self, id: &str, final_snapshot: Option<&str>) -> PortResult<()> {
        let call = self.clients.rds().await?.write.delete_db_instance().db_instance_identifier(id);
        let call = call.skip_final_snapshot(final_snapshot.is_none()).set_final_db_snapshot_identifier(final_snapshot.map(str::to_owned));
        call.send().await.map(|_| ()).map_err(|e| explain(&e, Doing::Writing, &format!("DeleteDBInstance {id}")))
    }

    async fn stop(&self, id: &str) -> PortResult<()> {
        let call = self.clients.rds().await?.write.stop_db_instance().db_instance_identifier(id);
        call.send().await.map(|_| ()).map_err(|e| explain(&e, Doing::Writing, &format!("StopDBInstance {id}")))
    }
}
