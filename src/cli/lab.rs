//! `muster lab`: two regions in a box, by hand.

use super::{
    Done,
    output::{Output, table},
};
use crate::lab::{Lab, LabError, Options, Servers, process_main};
use crate::service::{Muster, ServiceError};
use serde_json::json;
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  muster lab up\n  muster drill run region-loss\n  muster lab down\n  muster lab up --servers own   (PostgreSQL that Muster reaches itself, as on machines of one's own)"
)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Start two regions, and what stands outside of them; writes an estate file
    #[command(after_help = "Examples:\n  muster lab up\n  muster lab up --servers own")]
    Up {
        /// Whose the database servers are
        #[arg(long, default_value = "rds")]
        servers: Servers,
    },
    /// Stop everything and remove it, also what a crash left behind
    #[command(after_help = "Example:\n  muster lab down")]
    Down,
    /// The processes and their addresses
    #[command(after_help = "Examples:\n  muster lab status\n  muster lab status --json")]
    Status,
    /// SIGKILL to every process of a region
    #[command(after_help = "Example:\n  muster lab kill east")]
    Kill {
        /// `east` or `west`
        region: String,
    },
    /// SIGSTOP to every process of a region: nothing answers, nothing resets
    #[command(after_help = "Example:\n  muster lab freeze east")]
    Freeze {
        /// `east` or `west`
        region: String,
    },
    /// SIGCONT to every process of a region
    #[command(after_help = "Example:\n  muster lab thaw east")]
    Thaw {
        /// `east` or `west`
        region: String,
    },
    /// SIGKILL to a region's database server
    #[command(after_help = "Example:\n  muster lab lose-database east")]
    LoseDatabase {
        /// `east` or `west`
        region: String,
    },
    /// SIGKILL to what changes things and serves nobody: a region's RDS API, and in the east that of Route 53
    #[command(after_help = "Example:\n  muster lab lose-control-plane east")]
    LoseControlPlane {
        /// `east` or `west`
        region: String,
    },
    /// Hold up replication from a region's primary
    #[command(after_help = "Example:\n  muster lab delay-replication east")]
    DelayReplication {
        /// `east` or `west`
        region: String,
    },
    /// Thaw and restart what is down in a region (or in `all`)
    #[command(after_help = "Examples:\n  muster lab heal\n  muster lab heal east")]
    Heal {
        /// `east`, `west` or `all`
        #[arg(default_value = "all")]
        region: String,
    },
    /// Slow something down: `dns_delay_ms`, `predict_delay_ms.REGION`
    #[command(after_help = "Examples:\n  muster lab set dns_delay_ms 200\n  muster lab set predict_delay_ms.east 500")]
    Set {
        /// Which
        knob: String,
        /// In milliseconds
        value: u64,
    },
}

#[derive(clap::Args)]
pub struct ProcessArgs {
    role: String,
    #[arg(long)]
    lab_home: PathBuf,
    #[arg(long)]
    region: Option<String>,
}

impl From<LabError> for ServiceError {
    fn from(error: LabError) -> Self {
        Self::Usage(error.to_string())
    }
}

/// One of the lab's own processes; it ends only when it fails.
pub async fn process(args: ProcessArgs) -> Done {
    process_main(&args.role, &args.lab_home, args.region.as_deref()).await?;
    Ok(2)
}

/// The lab of this state directory, if one is up.
pub fn attach(muster: &Muster) -> Option<Lab> {
    Lab::attach(&muster.state).ok()
}

pub async fn main(args: Args, muster: &Muster, output: &Output) -> Done {
    let said = match args.command {
        Command::Up { servers } => return up(muster, servers, output).await,
        Command::Status => return status(muster, output),
        Command::Down => {
            let was = Lab::down(&muster.state).await?;
            if was { "the lab is down".to_owned() } else { "no lab was up".to_owned() }
        }
        Command::Kill { region } => count("killed", Lab::attach(&muster.state)?.kill(&region).await?, &region),
        Command::Freeze { region } => count("froze", Lab::attach(&muster.state)?.freeze(&region)?, &region),
        Command::Thaw { region } => count("thawed", Lab::attach(&muster.state)?.thaw(&region)?, &region),
        Command::LoseControlPlane { region } => count("killed", Lab::attach(&muster.state)?.lose_control_plane(&region).await?, &region),
        Command::LoseDatabase { region } => count("killed", Lab::attach(&muster.state)?.lose_database(&region).await?, &region),
        Command::DelayReplication { region } => count("stopped", Lab::attach(&muster.state)?.delay_replication(&region)?, &region),
        Command::Heal { region } => Lab::attach(&muster.state)?.heal(&region).await?,
        Command::Set { knob, value } => {
            Lab::attach(&muster.state)?.set(&knob, value)?;
            format!("{knob} = {value}")
        }
    };
    output.object(&json!({ "done": said }));
    if !output.json {
        output.line(said);
    }
    Ok(0)
}

fn count(verb: &str, processes: usize, region: &str) -> String {
    format!("{verb} {processes} processes of {region}")
}

/// Starts a lab; an interruption takes down what had come up.
pub async fn start(
    state: &std::path::Path,
    servers: Servers,
    mut interrupt: tokio::sync::watch::Receiver<bool>,
    output: &Output,
) -> Result<Lab, ServiceError> {
    let progress = |text: &str| output.say(format!("  {text}"));
    let options = Options { servers, progress: &progress, ..Options::default() };
    let interrupted = tokio::select! {
        lab = Lab::up(state, options) => return Ok(lab?),
        told = interrupt.wait_for(|stop| *stop) => told.is_ok(),
    };
    Lab::down(state).await?;
    let why = if interrupted { "interrupted; the lab is down again" } else { "the lab could not be watched over" };
    Err(ServiceError::Usage(why.to_owned()))
}

async fn up(muster: &Muster, servers: Servers, output: &Output) -> Done {
    let lab = start(&muster.state, servers, super::output::interrupts(), output).await?;
    let estate = lab.estate_path();
    output.object(&json!({ "up": true, "estate": estate, "processes": lab.status()?.len() }));
    if !output.json {
        output.line(format!("the lab is up; its estate is {}", estate.display()));
        output.line("try: muster status; muster drill run region-loss; muster lab down");
    }
    Ok(0)
}

fn status(muster: &Muster, output: &Output) -> Done {
    let lab = Lab::attach(&muster.state)?;
    let processes = lab.status()?;
    if output.json {
        let view = |p: &crate::lab::ProcessStatus| json!({ "region": p.region, "role": p.role, "pid": p.pid, "state": p.state, "address": p.address });
        output.object(&json!({ "up": true, "estate": lab.estate_path(), "processes": processes.iter().map(view).collect::<Vec<_>>() }));
        return Ok(0);
    }
    let mut table = table(&["REGION", "ROLE", "PID", "STATE", "ADDRESS"]);
    for p in &processes {
        let pid = p.pid.map_or("-".to_owned(), |pid| pid.to_string());
        table.add_row(vec![p.region.clone(), p.role.clone(), pid, p.state.clone(), p.address.to_string()]);
    }
    output.line(table.to_string());
    Ok(0)
}
