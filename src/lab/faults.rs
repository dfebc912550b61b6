//! What can befall a lab, taken back again by `heal`; and how its processes stand.

use super::{
    Lab,
    error::{LabError, LabResult},
    instances::RegionState,
    plan::{Knobs, OUTSIDE, REGIONS, Servers, instance_of, read_json, write_json},
    process::{self, Proc, below},
    up::OUTSIDE_ROLES,
};
use crate::{
    model::drill::Fault,
    providers::port::{Faults, PortError, PortResult},
};
use async_trait::async_trait;
use rustix::process::Signal;
use serde::Serialize;
use std::{net::SocketAddr, time::Duration};

/// Where the control planes of AWS's global services stand.
const GLOBAL_HOME: &str = "us-east-1";

/// One line of `muster lab status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProcessStatus {
    pub region: String,
    pub role: String,
    pub pid: Option<i32>,
    /// `running`, `stopped` or `dead`.
    pub state: String,
    pub address: SocketAddr,
}

impl Lab {
    /// Every process that the lab should have, and how it stands.
    /// # Errors
    /// When a region's record cannot be read.
    pub fn status(&self) -> LabResult<Vec<ProcessStatus>> {
        let procs = below(&self.plan.home);
        let mut out = Vec::new();
        for (place, role, address) in self.expected()? {
            let found = procs.iter().find(|p| self.is(p, &place, &role));
            let state = found.map_or("dead", |p| if p.stopped() { "stopped" } else { "running" });
            out.push(ProcessStatus { region: place, role, pid: found.map(|p| p.pid), state: state.to_owned(), address });
        }
        Ok(out)
    }

    fn expected(&self) -> LabResult<Vec<(String, String, SocketAddr)>> {
        let mut out = Vec::new();
        for region in REGIONS {
            let place = self.plan.region(region)?;
            let mut roles = vec!["s3", "inference"];
            if self.plan.servers == Servers::Own {
                out.push((region.to_owned(), format!("postgres:{}", instance_of(region)), place.at(place.postgres)));
            } else {
                let state: RegionState = read_json(&self.plan.rds_file(region))?;
                for instance in state.instances.values().filter(|i| i.wants_server()) {
                    out.push((region.to_owned(), format!("postgres:{}", instance.id), place.at(instance.port)));
                }
                roles.insert(1, "rds");
            }
            for role in roles {
                out.push((region.to_owned(), role.to_owned(), self.address(region, role)?));
            }
        }
        for role in OUTSIDE_ROLES {
            out.push((OUTSIDE.to_owned(), role.to_owned(), self.address(OUTSIDE, role)?));
        }
        Ok(out)
    }

    fn is(&self, proc: &Proc, place: &str, role: &str) -> bool {
        match role.strip_prefix("postgres:") {
            // The server itself, not one of its children: those bear titles, not arguments.
            Some(instance) => proc.cwd.starts_with(self.plan.data_dir(place, instance)) && proc.argv.get(1).is_some_and(|a| a == "-D"),
            None => proc.cwd.starts_with(self.plan.dir(place)) && proc.role().as_deref() == Some(role),
        }
    }

    /// SIGKILL to every process of the region.
    /// # Errors
    /// When there is no such region, or a process does not end.
    pub async fn kill(&self, region: &str) -> LabResult<usize> {
        self.plan.region(region)?;
        process::kill_all(&self.plan.dir(region), &*self.clock).await
    }

    /// SIGSTOP to every process of the region: nothing answers, nothing resets.
    /// # Errors
    /// When there is no such region.
    pub fn freeze(&self, region: &str) -> LabResult<usize> {
        self.plan.region(region)?;
        Ok(process::stop_all(&self.plan.dir(region)))
    }

    /// SIGCONT to every process of the region that is stopped.
    /// # Errors
    /// When there is no such region.
    pub fn thaw(&self, region: &str) -> LabResult<usize> {
        self.plan.region(region)?;
        Ok(process::continue_all(&self.plan.dir(region)))
    }

    /// SIGKILL to the region's database servers alone.
    /// # Errors
    /// When there is no such region, or a process does not end.
    pub async fn lose_database(&self, region: &str) -> LabResult<usize> {
        self.plan.region(region)?;
        process::kill_all(&self.plan.dir(region).join("pg"), &*self.clock).await
    }

    /// SIGKILL to what changes things and serves nobody: the region's RDS API (if the servers are Amazon's), and that of Route 53, which stands in
    /// `us-east-1` for all regions. DNS and its health checkers go on.
    /// # Errors
    /// When there is no such region, or a process does not end.
    pub async fn lose_control_plane(&self, region: &str) -> LabResult<usize> {
        let global = self.plan.region(region)?.aws_region == GLOBAL_HOME;
        let is = |proc: &Proc| self.is(proc, region, "rds") || (global && self.is(proc, OUTSIDE, "route53"));
        let mut killed = 0;
        for _ in 0..500 {
            let found: Vec<Proc> = below(&self.plan.home).into_iter().filter(is).collect();
            if found.is_empty() {
                return Ok(killed);
            }
            killed = killed.max(found.len());
            for proc in &found {
                process::signal(proc.pid, Signal::KILL);
            }
            self.clock.sleep(Duration::from_millis(10)).await;
        }
        Err(LabError::Undead(killed))
    }

    /// SIGSTOP to what sends the region's log: from now on nothing more arrives at the standby.
    /// # Errors
    /// When nothing streams from there.
    pub fn delay_replication(&self, region: &str) -> LabResult<usize> {
        self.plan.region(region)?;
        let senders: Vec<Proc> =
            below(&self.plan.data_dir(region, &instance_of(region))).into_iter().filter(|p| p.title().contains("walsender")).collect();
        if senders.is_empty() {
            return Err(LabError::Usage(format!("nothing streams from the database in {region}: look at `muster lab status`")));
        }
        for sender in &senders {
            process::signal(sender.pid, Signal::STOP);
        }
        Ok(senders.len())
    }

    /// Thaws, and starts what is dead, in one region or (`all`) everywhere. A database comes up as what it was.
    /// # Errors
    /// When something does not start.
    pub async fn heal(&self, region: &str) -> LabResult<String> {
        if region != "all" && region != OUTSIDE {
            self.plan.region(region)?;
        }
        let dir = if region == "all" { self.plan.home.clone() } else { self.plan.dir(region) };
        let thawed = process::continue_all(&dir);
        let dead: Vec<ProcessStatus> =
            self.status()?.into_iter().filter(|p| p.state == "dead" && (region == "all" || p.region == region)).collect();
        // Databases first: the API in front of them goes on with what it had begun.
        let (databases, others): (Vec<_>, Vec<_>) = dead.iter().partition(|p| p.role.starts_with("postgres:"));
        for p in others.iter().filter(|p| p.role != "rds") {
            process::spawn(&self.plan, &p.region, &p.role)?;
        }
        for p in &databases {
            let instance = p.role.trim_start_matches("postgres:");
            let address = self.plan.region(&p.region)?.address;
            let server = self.postgres.server(&p.region, instance, address, p.address.port());
            self.postgres.start(&server, Duration::from_mins(1)).await?;
        }
        for p in others.iter().filter(|p| p.role == "rds") {
            process::spawn(&self.plan, &p.region, "rds")?;
        }
        for p in &others {
            self.ready(&p.region, &p.role).await?;
            if p.role == "inference" {
                self.healthy(&p.region).await?;
            }
        }
        let names: Vec<String> = dead.iter().map(|p| format!("{} in {}", p.role, p.region)).collect();
        let started = if names.is_empty() { "started nothing".to_owned() } else { format!("started {}", names.join(", ")) };
        Ok(format!("thawed {thawed} processes; {started}"))
    }

    /// Turns one of the lab's knobs: `dns_delay_ms`, `predict_delay_ms` (both regions) or `predict_delay_ms.REGION`.
    /// # Errors
    /// When there is no such knob.
    pub fn set(&self, knob: &str, value: u64) -> LabResult<()> {
        let mut knobs: Knobs = self.plan.knobs();
        match knob.split_once('.').unwrap_or((knob, "")) {
            ("dns_delay_ms", "") => knobs.dns_delay_ms = value,
            ("predict_delay_ms", "") => knobs.predict_delay_ms = REGIONS.map(|r| (r.to_owned(), value)).into(),
            ("predict_delay_ms", region) => {
                self.plan.region(region)?;
                knobs.predict_delay_ms.insert(region.to_owned(), value);
            }
            _ => {
                return Err(LabError::Usage(format!(
                    "the lab has no knob `{knob}`: it has dns_delay_ms, predict_delay_ms and predict_delay_ms.REGION"
                )));
            }
        }
        write_json(&self.plan.home.join("knobs.json"), &knobs)
    }
}

fn port_error(error: LabError) -> PortError {
    match error {
        LabError::NoRegion(_) | LabError::Usage(_) => PortError::Refused(error.to_string()),
        LabError::NoLab(_) | LabError::Record { .. } => PortError::Config(error.to_string()),
        _ => PortError::Unknown(error.to_string()),
    }
}

#[async_trait]
impl Faults for Lab {
    async fn inject(&self, fault: &Fault) -> PortResult<()> {
        let region = fault.target().region.as_str();
        let done = match fault {
            Fault::Kill(_) => self.kill(region).await,
            Fault::Freeze(_) => self.freeze(region),
            Fault::LoseDatabase(_) => self.lose_database(region).await,
            Fault::LoseControlPlane(_) => self.lose_control_plane(region).await,
            Fault::DelayReplication(_) => self.delay_replication(region),
        };
        done.map(drop).map_err(port_error)
    }

    async fn heal(&self) -> PortResult<String> {
        Lab::heal(self, "all").await.map_err(port_error)
    }
}
