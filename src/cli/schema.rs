//! `muster schema`: the JSON Schemas that editors complete by.

use super::{Done, output::Output};
use crate::{actions::Known, runbook::schema};

#[derive(clap::Args)]
pub struct Args {
    /// Which kind of file
    kind: Kind,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Kind {
    Estate,
    Runbook,
    Drill,
}

pub fn main(args: Args, output: &Output) -> Done {
    let schema = match args.kind {
        Kind::Estate => schema::estate(),
        Kind::Runbook => schema::runbook(&Known),
        Kind::Drill => schema::drill(),
    };
    if output.json {
        output.line(serde_json::to_string(&schema).unwrap_or_default());
    } else {
        output.line(serde_json::to_string_pretty(&schema).unwrap_or_default());
    }
    Ok(0)
}
