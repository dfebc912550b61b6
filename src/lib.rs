//! Disaster recovery orchestration: runbooks as code, drills that measure, evidence that holds.
#![forbid(unsafe_code)]

pub mod actions;
pub mod cli;
pub mod drill;
pub mod engine;
pub mod journal;
#[cfg(feature = "lab")]
pub mod lab;
pub mod model;
pub mod plan;
pub mod providers;
pub mod runbook;
pub mod service;
