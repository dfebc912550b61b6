//! What the RDS-shaped API does after it has said yes: one task at a time for an instance, on record
//! from before it begins, so that a killed region loses no instance and finishes what it began.

use super::{
    error::{LabError, LabResult, What},
    instances::{Instance, RegionState, Snapshot, Task, split_arn},
    pg::{Postgres, Server, Upstream, slot_name},
    plan::{LabPlan, RegionPlan, read_json, write_json},
};
use crate::providers::clock::Clock;
use secrecy::SecretString;
use std::{
    fs,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

const START_LIMIT: Duration = Duration::from_secs(30);

pub struct Rds {
    plan: Arc<LabPlan>,
    region: String,
    place: RegionPlan,
    postgres: Postgres,
    pub clock: Arc<dyn Clock>,
    pub access_key: SecretString,
    state: Mutex<RegionState>,
}

impl Rds {
    /// # Errors
    /// When the region's record or keys cannot be read.
    pub fn open(plan: Arc<LabPlan>, region: &str, clock: Arc<dyn Clock>) -> LabResult<Arc<Self>> {
        let state = read_json(&plan.rds_file(region))?;
        let postgres = Postgres { plan: plan.clone(), clock: clock.clone(), password: plan.secret("database_password")? };
        Ok(Arc::new(Self {
            place: plan.region(region)?.clone(),
            region: region.to_owned(),
            access_key: plan.secret("access_key_id")?,
            postgres,
            clock,
            plan,
            state: Mutex::new(state),
        }))
    }

    #[must_use]
    pub fn place(&self) -> RegionPlan {
        self.place.clone()
    }

    #[must_use]
    pub fn read(&self) -> RegionState {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the record, on disk before in memory; a refusal leaves both as they were.
    /// # Errors
    /// The refusal.
    pub fn change<T, E>(&self, change: impl FnOnce(&mut RegionState) -> Result<T, E>) -> Result<T, E> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = state.clone();
        let out = change(&mut next)?;
        if let Err(error) = write_json(&self.plan.rds_file(&self.region), &next) {
            tracing::error!(%error, "the region's record could not be written");
        }
        *state = next;
        Ok(out)
    }

    /// Goes on with what was under way when the process ended.
    pub fn resume(self: &Arc<Self>) {
        for instance in self.read().instances.values() {
            self.work(instance);
        }
    }

    /// Carries out the instance's task in the background.
    pub fn work(self: &Arc<Self>, instance: &Instance) {
        let Some(task) = instance.task.clone() else { return };
        let (rds, instance) = (self.clone(), instance.clone());
        tokio::spawn(async move {
            let done = match &task {
                Task::Create => rds.create(&instance).await,
                Task::Promote => rds.promote(&instance).await,
                Task::Snapshot { snapshot } => rds.snapshot(&instance, snapshot).await,
                Task::Delete { final_snapshot } => rds.delete(&instance, final_snapshot.as_deref()).await,
                Task::Stop => rds.postgres.stop(&rds.server(&instance)).await,
                Task::Start => rds.postgres.start(&rds.server(&instance), START_LIMIT).await,
            };
            rds.finish(&instance, &task, done);
        });
    }

    fn finish(&self, instance: &Instance, task: &Task, done: LabResult<()>) {
        let failed = done.is_err();
        if let Err(error) = done {
            tracing::error!(instance = instance.id, ?task, %error, "the task failed");
        }
        let now = self.clock.now();
        let _: Result<(), LabError> = self.change(|state| {
            finish_snapshots(state, instance, task, failed, now);
            if matches!(task, Task::Delete { .. }) && !failed {
                state.instances.remove(&instance.id);
                return Ok(());
            }
            let Some(entry) = state.instances.get_mut(&instance.id) else { return Ok(()) };
            entry.task = None;
            entry.status = match (task, failed) {
                (Task::Stop, false) => "stopped",
                // A promotion or a snapshot that failed leaves the server as it was.
                (Task::Promote | Task::Snapshot { .. } | Task::Stop, true) => "available",
                (Task::Create | Task::Start | Task::Delete { .. }, true) => "failed",
                (_, false) => "available",
            }
            .to_owned();
            if matches!(task, Task::Promote) && !failed {
                entry.replicates_from = None;
            }
            Ok(())
        });
    }

    fn server(&self, instance: &Instance) -> Server {
        self.postgres.server(&self.region, &instance.id, self.place.address, instance.port)
    }

    /// Where the server of an ARN answers, by its own region's record.
    /// # Errors
    /// When there is no such instance.
    pub fn upstream(&self, arn: &str) -> LabResult<Upstream> {
        let unknown = || LabError::Usage(format!("no instance {arn} in this lab"));
        let (aws_region, id) = split_arn(arn).ok_or_else(unknown)?;
        let (name, place) = self.plan.regions.iter().find(|(_, r)| r.aws_region == aws_region).ok_or_else(unknown)?;
        let state = if *name == self.region { self.read() } else { read_json::<RegionState>(&self.plan.rds_file(name))? };
        let port = state.instances.get(id).ok_or_else(unknown)?.port;
        Ok(Upstream { address: place.address, port })
    }

    async fn create(&self, instance: &Instance) -> LabResult<()> {
        let source = instance.replicates_from.as_deref().unwrap_or_default();
        let upstream = self.upstream(source)?;
        let server = self.server(instance);
        // A first attempt may have come as far as a running server.
        self.postgres.stop(&server).await?;
        make_replica(&self.postgres, &server, &upstream).await
    }

    async fn promote(&self, instance: &Instance) -> LabResult<()> {
        self.postgres.promote(&self.server(instance)).await?;
        // The old primary need not keep anything for us any more, if it lives.
        if let Some(Ok(upstream)) = instance.replicates_from.as_deref().map(|arn| self.upstream(arn)) {
            let (postgres, slot) = (self.postgres.clone(), slot_name(&instance.id));
            tokio::spawn(async move {
                let _ = postgres.drop_slot(&upstream, &slot).await;
            });
        }
        Ok(())
    }

    async fn snapshot(&self, instance: &Instance, snapshot: &str) -> LabResult<()> {
        let from = Upstream { address: self.place.address, port: instance.port };
        self.postgres.copy(&self.region, &from, None, &self.plan.snapshot_dir(&self.region, snapshot)).await
    }

    async fn delete(&self, instance: &Instance, final_snapshot: Option<&str>) -> LabResult<()> {
        let server = self.server(instance);
        self.postgres.stop(&server).await?;
        if let Some(snapshot) = final_snapshot {
            let kept = self.plan.snapshot_dir(&self.region, snapshot);
            if server.data.exists() {
                fs::rename(&server.data, &kept).what(kept.display().to_string())?;
            }
        } else {
            super::pg::remove_interlock(&server.data).await;
            remove(&server.data)?;
        }
        if let Some(Ok(upstream)) = instance.replicates_from.as_deref().map(|arn| self.upstream(arn)) {
            let _ = self.postgres.drop_slot(&upstream, &slot_name(&instance.id)).await;
        }
        Ok(())
    }

    /// The files of a snapshot that is off the record.
    pub fn remove_snapshot_files(&self, snapshot: &str) {
        if let Err(error) = remove(&self.plan.snapshot_dir(&self.region, snapshot)) {
            tracing::error!(%error, snapshot, "its files could not be removed");
        }
    }
}

fn finish_snapshots(state: &mut RegionState, instance: &Instance, task: &Task, failed: bool, now: jiff::Timestamp) {
    let status = if failed { "failed" } else { "available" };
    match task {
        Task::Snapshot { snapshot } => {
            if let Some(entry) = state.snapshots.get_mut(snapshot) {
                status.clone_into(&mut entry.status);
            }
        }
        Task::Delete { final_snapshot: Some(id) } if !failed => {
            let last = Snapshot {
                id: id.clone(),
                instance: instance.id.clone(),
                resource_id: instance.resource_id.clone(),
                status: status.to_owned(),
                created: now,
                tags: instance.tags.clone(),
            };
            state.snapshots.insert(id.clone(), last);
        }
        _ => {}
    }
}

fn remove(dir: &std::path::Path) -> LabResult<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).what(dir.display().to_string()),
        _ => Ok(()),
    }
}

/// A standby from a running server: a slot there, a copy, a start.
/// # Errors
/// When one of the three fails.
pub async fn make_replica(postgres: &Postgres, server: &Server, upstream: &Upstream) -> LabResult<()> {
    let slot = postgres.slot(server);
    postgres.make_slot(upstream, &slot).await?;
    postgres.copy(&server.region, upstream, Some(&slot), &server.data).await?;
    postgres.configure(server, Some(upstream))?;
    postgres.start(server, START_LIMIT).await
}
