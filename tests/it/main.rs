//! Tests against real components, each with its own directories, addresses and ports.
// Tests measure real time, wait for real processes, and end at the first surprise.
#![allow(
    clippy::unwrap_used,
    clippy::format_collect,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::used_underscore_binding
)]

// By this name the fuzzers, which are compiled here too, call the macro that makes each a function.
extern crate self as libfuzzer_sys;

#[cfg(feature = "lab")]
mod actions;
mod backup;
#[cfg(feature = "lab")]
mod black_hole;
#[cfg(feature = "lab")]
mod buckets;
#[cfg(feature = "lab")]
mod buckets_weather;
mod cli;
#[cfg(feature = "lab")]
mod demo;
mod disk;
mod dns;
mod dns_servers;
mod dns_shift;
mod docs;
#[cfg(feature = "lab")]
mod doctor;
#[cfg(feature = "lab")]
mod drill;
#[cfg(feature = "lab")]
mod drill_crash;
#[cfg(feature = "lab")]
mod drill_parts;
#[cfg(feature = "lab")]
mod drill_restore;
#[cfg(feature = "lab")]
mod drill_support;
mod engine;
mod evidence;
#[cfg(feature = "lab")]
mod fault_proxy;
mod fuzz_seeds;
mod fuzzers;
#[cfg(feature = "lab")]
mod lab;
#[cfg(feature = "lab")]
mod lab_own;
mod nodes;
#[cfg(feature = "lab")]
mod paging;
mod people;
mod pg;
mod pg_backup;
mod pg_beside;
mod pg_disk;
mod pg_drill;
mod pg_fence;
mod pg_follow;
mod pg_keep;
mod pg_load;
mod pg_loss;
mod pg_patroni;
mod pg_patroni_yard;
mod pg_record;
mod pg_rejoin;
mod pg_replica;
mod pg_replica_content;
mod pg_replica_logical;
mod pg_replica_soak;
mod pg_replication;
mod pg_restore;
mod pg_ssh;
mod pg_switch;
mod pg_vault;
mod pg_versions;
mod pg_wal;
mod pg_yard;
mod place;
mod preempt;
mod prometheus;
#[cfg(feature = "lab")]
mod providers;
mod providers_postgres;
#[cfg(feature = "lab")]
mod rds;
#[cfg(feature = "lab")]
mod rds_config;
#[cfg(feature = "lab")]
mod rds_crash;
#[cfg(feature = "lab")]
mod rds_fence;
#[cfg(feature = "lab")]
mod rds_global;
#[cfg(feature = "lab")]
mod rds_keys;
#[cfg(feature = "lab")]
mod rds_promote;
#[cfg(feature = "lab")]
mod rds_rejoin;
#[cfg(feature = "lab")]
mod rds_stage;
mod receiver;
#[cfg(feature = "lab")]
mod repository_s3;
#[cfg(feature = "lab")]
mod repository_s3_tools;
mod repository_tool;
#[cfg(feature = "lab")]
mod route53;
#[cfg(feature = "lab")]
mod route53_servers;
#[cfg(feature = "lab")]
mod route53_shift;
mod serve;
mod soak;
#[cfg(feature = "lab")]
mod stores;
#[cfg(feature = "lab")]
mod stores_servers;
#[cfg(feature = "lab")]
mod sums;
mod sweep;
mod tidy;
#[cfg(feature = "lab")]
mod traffic;
#[cfg(feature = "lab")]
mod traffic_gates;
#[cfg(feature = "lab")]
mod undo;
#[cfg(feature = "lab")]
mod wheel;
