//! `muster readiness`: is what would be failed over to really there?

use super::{
    Done,
    output::{Output, glyph, table},
};
use crate::actions::{readiness_check::Finding, readiness_dns::Dns};
use crate::model::time::Span;
use crate::service::{Muster, readiness::Asked};
use serde_json::json;

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  muster readiness                                        every region, and every repository\n  muster readiness west --max-replica-lag 30s --max-backup-age 24h --max-proof-age 7d\n  muster readiness west --service inference --dns answers   ask no control plane\nIt looks at what the step `readiness.check` looks at, changes nothing and needs no journal.\nExit codes: 0 ready, 1 not ready, 2 could not run."
)]
pub struct Args {
    /// The regions that a failover would go to; all of the estate if left out
    #[arg(value_name = "REGION")]
    regions: Vec<String>,
    /// Only what this service uses (again for more)
    #[arg(long = "service", value_name = "NAME")]
    services: Vec<String>,
    /// Only this repository (again for more)
    #[arg(long = "repository", value_name = "NAME")]
    repositories: Vec<String>,
    /// The largest lag of a replica that is still good
    #[arg(long, value_name = "TIME")]
    max_replica_lag: Option<Span>,
    /// The largest age of the latest snapshot and backup that is still good
    #[arg(long, value_name = "TIME")]
    max_backup_age: Option<Span>,
    /// The largest age of the latest proof that a repository restores that is still good
    #[arg(long, value_name = "TIME")]
    max_proof_age: Option<Span>,
    /// The largest age of the newest log of a cluster that is still good
    #[arg(long, value_name = "TIME")]
    max_log_age: Option<Span>,
    /// Whom the state of DNS is asked of: the provider for its records, or the zone's servers for their answers
    #[arg(long, value_name = "WHOM", value_parser = ["records", "answers"], default_value = "records")]
    dns: String,
}

pub async fn main(args: Args, muster: &Muster, output: &Output) -> Done {
    let found = muster.readiness(asked(args)).await?;
    if output.json {
        output.object(&json!(found));
        return Ok(u8::from(!found.ready));
    }
    let mut table = table(&["REGION", "", "WHAT", "STATE", "DETAIL"]);
    let mut add = |region: &str, finding: &Finding| {
        let mark = glyph(if finding.ok { '+' } else { '!' });
        table.add_row(vec![region, mark, &finding.what, &finding.state.replace('_', " "), &finding.detail]);
    };
    for (region, findings) in &found.regions {
        findings.iter().for_each(|finding| add(region.as_str(), finding));
    }
    found.repositories.iter().for_each(|finding| add("", finding));
    output.line(table.to_string());
    let bad = found.regions.values().flatten().chain(&found.repositories).filter(|finding| !finding.ok).count();
    output.line(if found.ready { "ready".to_owned() } else { format!("not ready: {bad} of what a failover needs is not there") });
    Ok(u8::from(!found.ready))
}

fn asked(args: Args) -> Asked {
    let Args { regions, services, repositories, max_replica_lag, max_backup_age, max_proof_age, max_log_age, dns } = args;
    Asked {
        regions: regions.iter().map(|name| name.as_str().into()).collect(),
        services: services.iter().map(|name| name.as_str().into()).collect(),
        repositories: repositories.iter().map(|name| name.as_str().into()).collect(),
        dns: if dns == "answers" { Dns::Answers } else { Dns::Records },
        max_replica_lag,
        max_backup_age,
        max_proof_age,
        max_log_age,
    }
}
