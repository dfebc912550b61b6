//! VERBS. One file an action; this one is the catalogue.
//!
//! Actions see the ports in `providers::port` and the nouns in `model`; they know neither the engine
//! nor the journal, nor an SDK. Adding one touches its own file and one line here.

mod authority;
mod compared;
pub mod contract;
mod database_checks;
mod fence_hba;
mod fence_rds;
mod fence_ways;
mod loss;
mod loss_log;
mod manifest;
mod manifest_verify;
mod own_server;
pub(crate) mod patroni;
pub mod permissions;
mod poolers;
pub mod proof;
mod propagation;
mod rds_global;
mod rds_shared;
mod readiness_buckets;
pub(crate) mod readiness_dns;
mod readiness_log;
mod recovered;
mod rejoin_own;
pub mod replica;
pub mod replica_causes;
mod replica_content;
mod replica_judge;
mod replica_keys;
pub(crate) mod replica_load;
mod replica_monitored;
pub mod replica_report;
mod replica_structure;
pub(crate) mod replica_verify;
mod set_judge;
mod set_rows;
mod set_runs;
mod set_tally;
mod set_verify;
mod set_walk;
mod set_work;
mod shared;
mod spread;
mod standby;
mod stranded;
mod stranded_log;
mod switchover_patroni;
mod switchover_steps;
mod tablespace_places;
mod vault;
mod wheel;

#[cfg(test)]
mod cluster_fixture;
#[cfg(test)]
pub mod contract_tests;
#[cfg(test)]
mod reach_tests;

use crate::model::{
    catalogue::{ActionInfo, Catalogue},
    effect::{Effect, Reach, Resource},
    estate::Estate,
    node::Node,
    runbook::UndoPolicy,
};
use contract::{DynAction, Erased};

/// The list of actions: each line is a file and the type in it, in the order of their names.
macro_rules! actions {
    ($($module:ident::$name:ident),+ $(,)?) => {
        $(pub mod $module;)+

        /// Every action there is, by name.
        #[must_use]
        pub fn catalogue() -> Vec<Box<dyn DynAction>> {
            vec![$(Erased::<$module::$name>::boxed()),+]
        }

        /// The world and the input that an action's contract is tested with.
        #[cfg(test)]
        fn fixture(name: &str) -> Option<contract_tests::Fixture> {
            $(if <$module::$name as contract::Action>::spec().name == name {
                return Some($module::fixture());
            })+
            None
        }
    };
}

actions! {
    backup_copy::Copy,
    backup_create::Create,
    backup_forget::Forget,
    backup_prove::Prove,
    backup_restore::Restore,
    backup_verify::Verify,
    bucket_backup::Backup,
    bucket_verify::Verify,
    condition_check::Check,
    database_admit::Admit,
    database_backup::Backup,
    database_fence::Fence,
    database_follow::Follow,
    database_promote::Promote,
    database_prove::Prove,
    database_record::Record,
    database_rejoin::Rejoin,
    database_restore::Restore,
    database_snapshot::Snapshot,
    database_switchover::Switchover,
    database_verify_replica::VerifyReplica,
    dns_lower_ttl::LowerTtl,
    dns_prepare::Prepare,
    dns_shift::Shift,
    dns_standby_takes_over::TakesOver,
    exec_command::Command,
    http_check::Check,
    metrics_check::Check,
    model_golden::Golden,
    notify_exec::Exec,
    notify_webhook::Webhook,
    rds_copy_snapshot::Copy,
    rds_create_replica::Replica,
    rds_failover_global_cluster::Failover,
    rds_prune_snapshots::Prune,
    rds_restore_point_in_time::PointInTime,
    rds_restore_snapshot::FromSnapshot,
    rds_switchover_global_cluster::Switchover,
    readiness_check::Readiness,
    traffic_shift::Shift,
    wheel_release::Release,
    wheel_take::Take,
}

/// The action of that name.
#[must_use]
pub fn find(name: &str) -> Option<Box<dyn DynAction>> {
    #[cfg(test)]
    if name == crate::engine::sim::effect::NAME {
        return Some(Erased::<crate::engine::sim::effect::SimEffect>::boxed());
    }
    catalogue().into_iter().find(|action| action.spec().name == name)
}

/// The catalogue as the language sees it.
pub struct Known;

impl Catalogue for Known {
    fn names(&self) -> Vec<&'static str> {
        catalogue().iter().map(|action| action.spec().name).collect()
    }
    fn info(&self, action: &str) -> Option<ActionInfo> {
        let action = find(action)?;
        let spec = action.spec();
        Some(ActionInfo {
            name: spec.name,
            version: spec.version,
            summary: spec.summary,
            effect: spec.effect,
            danger: spec.danger,
            undo: spec.undo,
            timeout: spec.timeout,
            example: spec.example,
            input: action.input_schema().to_value(),
            output: action.output_schema().to_value(),
        })
    }
    fn effect(&self, action: &str, with: &Node) -> Effect {
        find(action).map_or(Effect::OneShot, |action| action.effect(with))
    }
    fn undo(&self, action: &str, with: &Node) -> UndoPolicy {
        find(action).map_or(UndoPolicy::None, |action| action.undo_policy(with))
    }
    fn reach(&self, action: &str, with: &Node, estate: &Estate) -> Vec<Reach> {
        find(action).map(|action| action.reach(with, estate)).unwrap_or_default()
    }
    fn locks(&self, action: &str, with: &Node) -> Vec<Resource> {
        find(action).map(|action| action.locks(with)).unwrap_or_default()
    }
}
