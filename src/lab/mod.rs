//! Two regions in a box: real PostgreSQL, object stores, DNS, AWS-shaped APIs and an inference service, as
//! child processes on loopback, for the demo, the tests and anyone's first hour. Scaffolding: nothing but
//! the CLI and tests may import it.
//!
//! [`Lab`] is all that others use: `up`, `attach`, `down`, `status`, faults and `heal`. Each process of a lab
//! is this same binary as `muster lab-process ROLE`, which is [`process_main`]. Read [`plan`] first (where
//! everything stands), then [`up`](Lab::up), then the roles: [`pg`], [`s3`], [`rds`], [`inference`] in a region;
//! [`dns`] with its health [`checker`], [`route53`], [`lease`] outside.

pub mod checker;
pub mod dns;
pub mod error;
pub mod estate;
pub mod faults;
pub mod health;
pub mod inference;
pub mod instances;
pub mod lease;
pub mod model;
pub mod pg;
pub mod plan;
pub mod process;
pub mod rds;
pub mod rds_work;
pub mod route53;
pub mod s3;
mod sdk;
pub mod up;
mod web;
pub mod xml;
pub mod zone;

pub use error::{LabError, LabResult};
pub use faults::ProcessStatus;
pub use plan::Servers;
pub use up::Options;

use crate::providers::clock::{Clock, SystemClock};
use pg::Postgres;
use plan::LabPlan;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// A lab that is up, by its state directory. Dropping it ends nothing: the processes live until [`Lab::down`].
pub struct Lab {
    state: PathBuf,
    plan: Arc<LabPlan>,
    clock: Arc<dyn Clock>,
    postgres: Postgres,
}

impl Lab {
    /// The lab that was started in this state directory.
    /// # Errors
    /// When there is none, or its start was broken off.
    pub fn attach(state: &Path) -> LabResult<Self> {
        let record = record_of(state);
        if !record.exists() {
            return Err(LabError::NoLab(state.to_owned()));
        }
        let plan = LabPlan::load(&record)?;
        if !plan.complete {
            let cause = "its start was broken off".to_owned();
            return Err(LabError::Record { path: record, cause });
        }
        Self::with_plan(state, plan, Arc::new(SystemClock::new()))
    }

    fn with_plan(state: &Path, plan: LabPlan, clock: Arc<dyn Clock>) -> LabResult<Self> {
        let plan = Arc::new(plan);
        let postgres = Postgres { plan: plan.clone(), clock: clock.clone(), password: plan.secret("database_password")? };
        Ok(Self { state: state.to_owned(), plan, clock, postgres })
    }

    /// The estate file that goes with it.
    #[must_use]
    pub fn estate_path(&self) -> PathBuf {
        folder_of(&self.state).join("muster.yaml")
    }

    #[must_use]
    pub fn plan(&self) -> &LabPlan {
        &self.plan
    }
}

fn folder_of(state: &Path) -> PathBuf {
    state.join("lab")
}

fn record_of(state: &Path) -> PathBuf {
    folder_of(state).join("lab.json")
}

/// One process of a lab, told by `role` what to be: `s3`, `rds`, `inference`, `postgres:INSTANCE` in a region;
/// `dns`, `route53`, `resolver`, `lease` outside. Returns only when it fails.
/// # Errors
/// When the role is unknown, or what it needs is not to be had.
pub async fn process_main(role: &str, home: &Path, region: Option<&str>) -> Result<(), LabError> {
    // Away from the terminal: its Ctrl-C is not for us.
    let _ = rustix::process::setsid();
    let _ = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).try_init();
    let plan = Arc::new(LabPlan::load(&home.join("lab.json"))?);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let place = || region.ok_or_else(|| LabError::Usage(format!("the role {role} needs --region")));
    match role {
        "s3" => s3::serve(&plan, place()?).await,
        "rds" => rds::serve(plan, place()?, clock).await,
        "inference" => inference::serve(plan, place()?, clock).await,
        "dns" => dns::serve_authority(plan, clock).await,
        "route53" => route53::serve_api(plan, clock).await,
        "resolver" => dns::serve_resolver(&plan, clock).await,
        "lease" => lease::serve(&plan, clock).await,
        _ => match role.strip_prefix("postgres:") {
            Some(instance) => Err(pg::become_server(&plan, place()?, instance)),
            None => Err(LabError::Usage(format!("the lab has no role `{role}`"))),
        },
    }
}
