//! `muster bench noop`: what the engine and its journal can do on this machine. Hidden, since it says
//! nothing of any estate; it is how Muster is compared with others, and one journal's disk with another.

use super::{Done, output::Output};
use crate::model::time::Span;
use crate::service::{Muster, bench::Load};
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Runs of steps that do nothing: the same engine, journal and records as any run, each step durable
    /// before the next one begins
    Noop(Noop),
}

#[derive(clap::Args)]
struct Noop {
    /// Steps in each run
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Runs under way at once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    concurrency: u32,
    /// For how long runs are begun
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Keep the journal in this directory; without it, one is made in the state directory, and removed
    #[arg(long, value_name = "DIR")]
    journal: Option<PathBuf>,
}

pub async fn main(args: Args, muster: &Muster, output: &Output) -> Done {
    let What::Noop(noop) = args.what;
    let length = Span::from_secs(u64::from(noop.seconds)).duration();
    let load = Load { steps: noop.steps, concurrency: noop.concurrency, length };
    let loaded = match noop.journal {
        Some(state) => {
            let mut muster = muster.clone();
            muster.state = state;
            muster.noop(&load).await?
        }
        None => muster.noop_apart(&load).await?,
    };
    output.line(serde_json::to_value(&loaded).unwrap_or_default().to_string());
    Ok(0)
}
