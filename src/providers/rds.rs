//! Amazon RDS: the control plane of database instances. Its calls carry no idempotency token, so
//! identifiers and tags chosen by the caller are what tells an attempt of ours from another's.

use super::aws::{AwsClients, Doing, explain, instant};
use super::aws_signed as signed;
use super::clock::Clock;
use super::http::HttpClient;
use super::port::*;
use async_trait::async_trait;
use aws_sdk_rds::types::{DbInstance, DbSnapshot, Tag};
use aws_smithy_runtime_api::client::{orchestrator::HttpResponse, result::SdkError};
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use secrecy::{ExposeSecret, SecretString};
use std::{collections::BTreeMap, sync::Arc};

/// More pages than any instance has snapshots: a server that never ends is not followed for ever.
const MOST_PAGES: usize = 100;

pub struct Rds {
    clients: Arc<AwsClients>,
    http: Arc<HttpClient>,
    clock: Arc<dyn Clock>,
}

impl Rds {
    #[must_use]
    pub fn new(clients: Arc<AwsClients>, http: Arc<HttpClient>, clock: Arc<dyn Clock>) -> Self {
        Self { clients, http, clock }
    }

    async fn reader(&self) -> PortResult<&aws_sdk_rds::Client> {
        Ok(&self.clients.rds().await?.read)
    }
    /// It never repeats a call by itself: the journal sees each attempt.
    async fn writer(&self) -> PortResult<&aws_sdk_rds::Client> {
        Ok(&self.clients.rds().await?.write)
    }

    /// By which this region fetches something encrypted from the one that an ARN names; `None` within one region.
    async fn fetch_url(&self, arn: &str, params: &[(&str, &str)]) -> PortResult<Option<String>> {
        let Some(from) = arn_region(arn) else { return Ok(None) };
        if from == self.clients.region().await? {
            return Ok(None);
        }
        signed::fetch_url(&self.clients, from, params, self.clock.now()).await.map(Some)
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
        replicas: found.read_replica_db_instance_identifiers().to_vec(),
        cluster: found.db_cluster_identifier().filter(|c| !c.is_empty()).map(str::to_owned),
        groups: found.vpc_security_groups().iter().map(|g| (text(g.vpc_security_group_id()), text(g.status()))).collect(),
        master_user: found.master_username().filter(|u| !u.is_empty()).map(str::to_owned),
        password_pending: found.pending_modified_values().is_some_and(|p| p.master_user_password().is_some()),
        kms_key: found.kms_key_id().filter(|k| !k.is_empty()).map(str::to_owned),
        restorable_until: found.latest_restorable_time().and_then(instant),
        starts_again: found.automatic_restart_time().and_then(instant),
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
        arn: text(found.db_snapshot_arn()),
        kind: text(found.snapshot_type()),
        copy_of: found.source_db_snapshot_identifier().filter(|s| !s.is_empty()).map(str::to_owned),
        kms_key: found.kms_key_id().filter(|k| !k.is_empty()).map(str::to_owned),
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
        let call = self.reader().await?.describe_db_instances().db_instance_identifier(id);
        let answer = call.send().await.map_err(|e| explain(&e, Doing::Reading, &format!("DescribeDBInstances {id}")));
        Ok(absent(answer)?.and_then(|a| a.db_instances().first().map(instance)))
    }

    async fn snapshot(&self, id: &str) -> PortResult<Option<SnapshotInfo>> {
        let call = self.reader().await?.describe_db_snapshots().db_snapshot_identifier(id);
        let answer = call.send().await.map_err(|e| explain(&e, Doing::Reading, &format!("DescribeDBSnapshots {id}")));
        Ok(absent(answer)?.and_then(|a| a.db_snapshots().first().map(snapshot)))
    }

    async fn snapshots_of(&self, of: &str) -> PortResult<Vec<SnapshotInfo>> {
        let client = self.reader().await?;
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

    async fn global_cluster(&self, id: &str) -> PortResult<Option<GlobalCluster>> {
        let call = self.reader().await?.describe_global_clusters().global_cluster_identifier(id);
        let answer = call.send().await.map_err(|e| explain(&e, Doing::Reading, &format!("DescribeGlobalClusters {id}")));
        let text = |t: Option<&str>| t.unwrap_or_default().to_owned();
        let member = |found: &aws_sdk_rds::types::GlobalClusterMember| GlobalMember {
            arn: text(found.db_cluster_arn()),
            writer: found.is_writer() == Some(true),
            sync: found.synchronization_status().map(|s| s.as_str().to_owned()),
        };
        Ok(absent(answer)?.and_then(|a| {
            // Some servers do not heed the identifier that was asked for.
            let named =
                |g: &&aws_sdk_rds::types::GlobalCluster| g.global_cluster_identifier().is_some_and(|found| found.eq_ignore_ascii_case(id));
            let found = a.global_clusters().iter().find(named)?;
            let members = found.global_cluster_members().iter().map(member).collect();
            Some(GlobalCluster { id: text(found.global_cluster_identifier()), status: text(found.status()), members })
        }))
    }

    async fn measured_lag(&self, id: &str) -> PortResult<MeasuredLag> {
        signed::replica_lag(&self.clients, &self.http, id, self.clock.now()).await
    }
}

#[async_trait]
impl InstanceWrite for Rds {
    async fn create_snapshot(&self, instance: &str, snapshot: &str, tags: &BTreeMap<String, String>) -> PortResult<()> {
        let call = self.writer().await?.create_db_snapshot();
        let call = call.db_instance_identifier(instance).db_snapshot_identifier(snapshot).set_tags(tag_list(tags));
        wrote(call.send().await, &format!("CreateDBSnapshot {snapshot}"))
    }

    async fn promote(&self, id: &str) -> PortResult<()> {
        let call = self.writer().await?.promote_read_replica().db_instance_identifier(id);
        wrote(call.send().await, &format!("PromoteReadReplica {id}"))
    }

    async fn create_replica(&self, source: &str, kms_key: Option<&str>, new: &NewInstance) -> PortResult<()> {
        let mut params = vec![
            ("Action", "CreateDBInstanceReadReplica"),
            ("SourceDBInstanceIdentifier", source),
            ("DBInstanceIdentifier", new.id.as_str()),
        ];
        params.extend(kms_key.map(|key| ("KmsKeyId", key)));
        let url = self.fetch_url(source, &params).await?;
        let call = self.writer().await?.create_db_instance_read_replica().set_kms_key_id(kms_key.map(str::to_owned));
        let call = call.db_instance_identifier(&new.id).source_db_instance_identifier(source).set_tags(tag_list(&new.tags));
        let call = call.set_db_instance_class(new.class.clone()).set_db_subnet_group_name(new.subnet_group.clone());
        let call = call.set_vpc_security_group_ids(some(&new.groups)).set_pre_signed_url(url);
        wrote(call.send().await, &format!("CreateDBInstanceReadReplica {} of {source}", new.id))
    }

    async fn copy_snapshot(&self, copy: &SnapshotCopy) -> PortResult<()> {
        let mut params = vec![
            ("Action", "CopyDBSnapshot"),
            ("SourceDBSnapshotIdentifier", copy.source.as_str()),
            ("TargetDBSnapshotIdentifier", copy.id.as_str()),
        ];
        params.extend(copy.kms_key.as_deref().map(|key| ("KmsKeyId", key)));
        let url = self.fetch_url(&copy.source, &params).await?;
        let call = self.writer().await?.copy_db_snapshot().set_kms_key_id(copy.kms_key.clone()).set_pre_signed_url(url);
        let call = call.source_db_snapshot_identifier(&copy.source).target_db_snapshot_identifier(&copy.id).set_tags(tag_list(&copy.tags));
        wrote(call.send().await, &format!("CopyDBSnapshot {} to {}", copy.source, copy.id))
    }

    async fn delete_snapshot(&self, id: &str) -> PortResult<()> {
        let call = self.writer().await?.delete_db_snapshot().db_snapshot_identifier(id);
        wrote(call.send().await, &format!("DeleteDBSnapshot {id}"))
    }

    async fn restore_to(&self, source: &str, at: Option<jiff::Timestamp>, new: &NewInstance) -> PortResult<()> {
        let call = self.writer().await?.restore_db_instance_to_point_in_time();
        let call = call.source_db_instance_identifier(source).target_db_instance_identifier(&new.id).set_tags(tag_list(&new.tags));
        let call = call.set_restore_time(at.map(|at| aws_smithy_types::DateTime::from_secs(at.as_second())));
        let call = if at.is_none() { call.use_latest_restorable_time(true) } else { call };
        let call = call.set_db_instance_class(new.class.clone()).set_db_subnet_group_name(new.subnet_group.clone());
        let sent = call.set_vpc_security_group_ids(some(&new.groups)).send().await;
        wrote(sent, &format!("RestoreDBInstanceToPointInTime {} of {source}", new.id))
    }

    async fn restore_snapshot(&self, snapshot: &str, new: &NewInstance) -> PortResult<()> {
        let call = self.writer().await?.restore_db_instance_from_db_snapshot();
        let call = call.db_snapshot_identifier(snapshot).db_instance_identifier(&new.id).set_tags(tag_list(&new.tags));
        let call = call.set_db_instance_class(new.class.clone()).set_db_subnet_group_name(new.subnet_group.clone());
        let sent = call.set_vpc_security_group_ids(some(&new.groups)).send().await;
        wrote(sent, &format!("RestoreDBInstanceFromDBSnapshot {} of {snapshot}", new.id))
    }

    async fn delete(&self, id: &str, final_snapshot: Option<&str>) -> PortResult<()> {
        let call = self.writer().await?.delete_db_instance().db_instance_identifier(id);
        let call = call.skip_final_snapshot(final_snapshot.is_none()).set_final_db_snapshot_identifier(final_snapshot.map(str::to_owned));
        wrote(call.send().await, &format!("DeleteDBInstance {id}"))
    }

    async fn stop(&self, id: &str) -> PortResult<()> {
        let call = self.writer().await?.stop_db_instance().db_instance_identifier(id);
        wrote(call.send().await, &format!("StopDBInstance {id}"))
    }

    async fn start(&self, id: &str) -> PortResult<()> {
        let call = self.writer().await?.start_db_instance().db_instance_identifier(id);
        wrote(call.send().await, &format!("StartDBInstance {id}"))
    }

    async fn set_groups(&self, id: &str, groups: &[String]) -> PortResult<()> {
        let call = self.writer().await?.modify_db_instance().db_instance_identifier(id).apply_immediately(true);
        let sent = call.set_vpc_security_group_ids(some(groups)).send().await;
        wrote(sent, &format!("ModifyDBInstance {id} (security groups)"))
    }

    async fn set_password(&self, id: &str, password: &SecretString) -> PortResult<()> {
        let call = self.writer().await?.modify_db_instance().db_instance_identifier(id).apply_immediately(true);
        let sent = call.master_user_password(password.expose_secret()).send().await;
        wrote(sent, &format!("ModifyDBInstance {id} (master password)"))
    }

    async fn tag(&self, arn: &str, key: &str, value: Option<&str>) -> PortResult<()> {
        let client = self.writer().await?;
        match value {
            Some(value) => {
                let tag = Tag::builder().key(key).value(value).build();
                wrote(client.add_tags_to_resource().resource_name(arn).tags(tag).send().await, &format!("AddTagsToResource {arn}"))
            }
            None => {
                let sent = client.remove_tags_from_resource().resource_name(arn).tag_keys(key).send().await;
                wrote(sent, &format!("RemoveTagsFromResource {arn}"))
            }
        }
    }

    async fn switch_global(&self, id: &str, to: &str) -> PortResult<()> {
        let call = self.writer().await?.switchover_global_cluster().global_cluster_identifier(id).target_db_cluster_identifier(to);
        wrote(call.send().await, &format!("SwitchoverGlobalCluster {id}"))
    }

    async fn fail_over_global(&self, id: &str, to: &str) -> PortResult<()> {
        let call = self.writer().await?.failover_global_cluster().global_cluster_identifier(id).target_db_cluster_identifier(to);
        wrote(call.allow_data_loss(true).send().await, &format!("FailoverGlobalCluster {id}"))
    }
}

fn some(list: &[String]) -> Option<Vec<String>> {
    (!list.is_empty()).then(|| list.to_vec())
}

/// A write was accepted, or why not; what it answered is looked for by reading.
fn wrote<T, E>(sent: Result<T, SdkError<E, HttpResponse>>, what: &str) -> PortResult<()>
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    sent.map(|_| ()).map_err(|e| explain(&e, Doing::Writing, what))
}
