//! The control plane of database instances: it accepts or refuses at once, and what it accepted takes its time.

use super::{
    data::Data,
    state::{CREATION, PROMOTION, SimInstance, State},
};
use crate::providers::{clock::Clock, port::*};
use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use secrecy::SecretString;
use std::collections::BTreeMap;

/// After so long the provider starts what was stopped.
const WEEK: SignedDuration = SignedDuration::from_hours(7 * 24);

#[async_trait]
impl InstanceRead for Data {
    async fn instance(&self, id: &str) -> PortResult<Option<InstanceInfo>> {
        self.asked("instances.instance");
        self.world.up(&self.region)?;
        Ok(self.world.lock().instances.get(&self.here(id)).map(|i| i.info.clone()))
    }
    async fn snapshot(&self, id: &str) -> PortResult<Option<SnapshotInfo>> {
        self.asked("instances.snapshot");
        self.world.up(&self.region)?;
        Ok(self.world.lock().snapshots.get(&self.here(id)).map(|(s, _)| s.clone()))
    }
    async fn snapshots_of(&self, instance: &str) -> PortResult<Vec<SnapshotInfo>> {
        self.asked("instances.snapshots_of");
        self.world.up(&self.region)?;
        let state = self.world.lock();
        Ok(state
            .snapshots
            .iter()
            .filter(|((r, _), (s, _))| *r == self.region && s.instance == instance)
            .map(|(_, (s, _))| s.clone())
            .collect())
    }
    async fn global_cluster(&self, id: &str) -> PortResult<Option<GlobalCluster>> {
        self.asked("instances.global_cluster");
        self.world.up(&self.region)?;
        Ok(self.world.lock().globals.get(id).map(|(g, _)| g.clone()))
    }
    async fn measured_lag(&self, id: &str) -> PortResult<MeasuredLag> {
        self.asked("instances.measured_lag");
        self.world.up(&self.region)?;
        let now = self.world.clock.now();
        let told = self.world.lock().lags.get(&self.here(id)).copied();
        Ok(match told {
            None => MeasuredLag::Nothing(std::time::Duration::from_mins(5)),
            Some(lag) if lag < 0.0 => MeasuredLag::NotReplicating(now),
            Some(lag) => MeasuredLag::Seconds(lag, now),
        })
    }
}

fn find<'a>(state: &'a mut State, at: &(String, String)) -> PortResult<&'a mut SimInstance> {
    state.instances.get_mut(at).ok_or_else(|| PortError::NotFound(format!("instance {}", at.1)))
}

fn snapshot(id: &str, instance: &str, region: &str, now: Timestamp, tags: &BTreeMap<String, String>) -> SnapshotInfo {
    SnapshotInfo {
        id: id.to_owned(),
        arn: format!("arn:aws:rds:{region}:000000000000:snapshot:{id}"),
        instance: instance.to_owned(),
        status: "creating".into(),
        percent: Some(0),
        created: Some(now),
        size_gib: Some(1),
        kind: "manual".into(),
        tags: tags.clone(),
        ..SnapshotInfo::default()
    }
}

impl Data {
    /// An instance that is being made: of a database, if the estate has one of that name there.
    fn make(&self, state: &mut State, new: &NewInstance, source: Option<&str>, now: Timestamp) -> PortResult<()> {
        let at = self.here(&new.id);
        let estate = self.world.estate();
        let named =
            |d: &crate::model::estate::Database| d.instances.get(self.region.as_str()).is_some_and(|i| i.id.as_ref() == Some(&new.id));
        let database = estate.databases.iter().find(|(_, d)| named(d)).map_or(new.id.as_str(), |(name, _)| name.as_str());
        if state.instances.contains_key(&at) {
            return Err(PortError::Conflict { found: format!("instance {}", new.id) });
        }
        state.instance(&new.id, &self.region, database, source, now);
        let instance = find(state, &at)?;
        instance.info.status = "creating".into();
        instance.info.tags.clone_from(&new.tags);
        instance.due = Some(now + CREATION);
        Ok(())
    }
    fn free(&self, state: &State, id: &str) -> PortResult<()> {
        if state.snapshots.contains_key(&self.here(id)) {
            return Err(PortError::Conflict { found: format!("snapshot {id}") });
        }
        Ok(())
    }
    fn change_global(&self, id: &str, to: &str) -> PortResult<()> {
        self.write(|state, now| {
            let (global, due) = state.globals.get_mut(id).ok_or_else(|| PortError::NotFound(format!("global cluster {id}")))?;
            if global.status != "available" || !global.members.iter().any(|m| m.arn == to && !m.writer) {
                return Err(PortError::Refused(format!("{to} cannot become the writer of {id}")));
            }
            global.status = "switching-over".into();
            *due = Some((now + PROMOTION, to.to_owned()));
            Ok(())
        })
    }
}

#[async_trait]
impl InstanceWrite for Data {
    async fn create_snapshot(&self, instance: &str, id: &str, tags: &BTreeMap<String, String>) -> PortResult<()> {
        self.asked("instances.create_snapshot");
        self.write(|state, now| {
            find(state, &self.here(instance))?;
            self.free(state, id)?;
            state.snapshots.insert(self.here(id), (snapshot(id, instance, &self.region, now, tags), now + CREATION));
            Ok(())
        })
    }
    async fn copy_snapshot(&self, copy: &SnapshotCopy) -> PortResult<()> {
        self.asked("instances.copy_snapshot");
        self.write(|state, now| {
            self.free(state, &copy.id)?;
            let of = state.snapshots.values().find(|(s, _)| s.arn == copy.source).map(|(s, _)| s.clone());
            let of = of.ok_or_else(|| PortError::NotFound(format!("snapshot {}", copy.source)))?;
            let mut made = snapshot(&copy.id, &of.instance, &self.region, now, &copy.tags);
            (made.copy_of, made.kms_key) = (Some(of.arn), copy.kms_key.clone());
            state.snapshots.insert(self.here(&copy.id), (made, now + CREATION));
            Ok(())
        })
    }
    async fn delete_snapshot(&self, id: &str) -> PortResult<()> {
        self.asked("instances.delete_snapshot");
        self.write(|state, _| state.snapshots.remove(&self.here(id)).map(drop).ok_or_else(|| PortError::NotFound(format!("snapshot {id}"))))
    }
    async fn restore_to(&self, source: &str, _at: Option<Timestamp>, new: &NewInstance) -> PortResult<()> {
        self.asked("instances.restore_to");
        self.write(|state, now| {
            find(state, &self.here(source))?;
            self.make(state, new, None, now)
        })
    }
    async fn restore_snapshot(&self, id: &str, new: &NewInstance) -> PortResult<()> {
        self.asked("instances.restore_snapshot");
        self.write(|state, now| {
            let there = state.snapshots.contains_key(&self.here(id));
            if !there {
                return Err(PortError::NotFound(format!("snapshot {id}")));
            }
            self.make(state, new, None, now)
        })
    }
    async fn promote(&self, id: &str) -> PortResult<()> {
        self.asked("instances.promote");
        self.write(|state, now| {
            let instance = find(state, &self.here(id))?;
            if instance.info.replicates_from.is_none() || instance.info.status != "available" {
                return Err(PortError::Refused(format!("{id} is not an available replica")));
            }
            instance.info.status = "modifying".into();
            instance.due = Some(now + PROMOTION);
            Ok(())
        })
    }
    async fn create_replica(&self, source: &str, _kms_key: Option<&str>, new: &NewInstance) -> PortResult<()> {
        self.asked("instances.create_replica");
        self.write(|state, now| {
            if !state.instances.values().any(|i| i.info.arn == source || i.info.id == source) {
                return Err(PortError::NotFound(format!("source {source}")));
            }
            self.make(state, new, Some(source), now)
        })
    }
    async fn delete(&self, id: &str, final_snapshot: Option<&str>) -> PortResult<()> {
        self.asked("instances.delete");
        self.write(|state, now| {
            let instance = find(state, &self.here(id))?;
            if instance.info.status == "deleting" {
                return Err(PortError::Refused(format!("{id} is being deleted")));
            }
            instance.info.status = "deleting".into();
            instance.due = Some(now + PROMOTION);
            if let Some(name) = final_snapshot {
                state.snapshots.insert(self.here(name), (snapshot(name, id, &self.region, now, &BTreeMap::new()), now));
            }
            Ok(())
        })
    }
    async fn stop(&self, id: &str) -> PortResult<()> {
        self.asked("instances.stop");
        self.write(|state, now| {
            let instance = find(state, &self.here(id))?;
            if instance.info.status != "available" {
                return Err(PortError::Refused(format!("{id} is `{}`", instance.info.status)));
            }
            instance.info.status = "stopped".into();
            instance.info.starts_again = Some(now + WEEK);
            Ok(())
        })
    }
    async fn start(&self, id: &str) -> PortResult<()> {
        self.asked("instances.start");
        self.write(|state, _| {
            let instance = find(state, &self.here(id))?;
            instance.info.status = "available".into();
            instance.info.starts_again = None;
            Ok(())
        })
    }
    async fn set_groups(&self, id: &str, groups: &[String]) -> PortResult<()> {
        self.asked("instances.set_groups");
        self.write(|state, _| {
            find(state, &self.here(id))?.info.groups = groups.iter().map(|g| (g.clone(), "active".to_owned())).collect();
            Ok(())
        })
    }
    async fn set_password(&self, id: &str, _password: &SecretString) -> PortResult<()> {
        self.asked("instances.set_password");
        self.write(|state, _| find(state, &self.here(id)).map(drop))
    }
    async fn tag(&self, arn: &str, key: &str, value: Option<&str>) -> PortResult<()> {
        self.asked("instances.tag");
        self.write(|state, _| {
            let found = state.instances.values_mut().find(|i| i.info.arn == arn);
            let tags = &mut found.ok_or_else(|| PortError::NotFound(arn.to_owned()))?.info.tags;
            match value {
                Some(value) => tags.insert(key.to_owned(), value.to_owned()),
                None => tags.remove(key),
            };
            Ok(())
        })
    }
    async fn switch_global(&self, id: &str, to: &str) -> PortResult<()> {
        self.asked("instances.switch_global");
        self.change_global(id, to)
    }
    async fn fail_over_global(&self, id: &str, to: &str) -> PortResult<()> {
        self.asked("instances.fail_over_global");
        self.change_global(id, to)
    }
}
