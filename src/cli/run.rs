//! `muster run`: a runbook, here and now.

use super::{Done, output::Output};
use crate::model::status::RunStatus;
use crate::plan::state::RunState;
use crate::service::{Muster, ServiceError, run_exit_code, runs::Ran, view};
use std::collections::BTreeMap;

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  muster run regional-failover -i from=east -i to=west --live\n  muster run runbooks/protect.yaml --json"
)]
pub struct Args {
    /// A path, or a name in runbooks/
    runbook: String,
    #[command(flatten)]
    inputs: Inputs,
    /// Act on what is outside a lab
    #[arg(long)]
    live: bool,
}

#[derive(clap::Args)]
pub struct Inputs {
    /// An input of the runbook
    #[arg(short = 'i', long = "input", value_name = "NAME=VALUE")]
    input: Vec<String>,
}

impl Inputs {
    pub fn read(&self) -> Result<BTreeMap<String, String>, ServiceError> {
        let pair = |text: &String| match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(ServiceError::Usage(format!("`-i {text}`: an input is written NAME=VALUE, such as `-i to=west`"))),
        };
        let mut inputs = BTreeMap::new();
        for text in &self.input {
            let (name, value) = pair(text)?;
            if inputs.insert(name.clone(), value).is_some() {
                return Err(ServiceError::Usage(format!("input `{name}` is given twice")));
            }
        }
        Ok(inputs)
    }
}

pub async fn main(args: &Args, muster: &Muster, output: &Output) -> Done {
    let ran = muster.run(&args.runbook, &args.inputs.read()?, args.live).await?;
    Ok(told(&ran, output))
}

/// Prints how a run was left, and what to do if a person must act.
pub fn told(ran: &Ran, output: &Output) -> u8 {
    if output.json {
        output.object(&view::run(&ran.run, &ran.state, &ran.evidence));
    } else {
        output.line(super::runs::steps_table(&ran.state));
        output.line(format!("run {} {}", ran.run, ran.state.status.word()));
    }
    for line in what_now(&ran.run, &ran.state) {
        output.say(line);
    }
    run_exit_code(ran.state.status)
}

/// The exact commands that bring a run on which waits for a person.
#[must_use]
pub fn what_now(run: &crate::model::ids::RunId, state: &RunState) -> Vec<String> {
    let mut lines = Vec::new();
    for (id, step) in &state.steps {
        if let Some(question) = &step.question {
            lines.push(format!("step {id}: what happened is not known: {question}"));
            lines.push(format!("  find out, then say so: muster resolve {run} {id} --as done --reason TEXT"));
            lines.push(format!("                     or: muster resolve {run} {id} --as not-done --reason TEXT"));
        }
        if step.status == crate::model::status::StepStatus::WaitingApproval {
            lines.push(format!("step {id} waits for approval: muster approve {run} {id}"));
            lines.push(format!("                  or refuse: muster reject {run} {id} --reason TEXT"));
        }
        if step.status.is_failure() && state.status == RunStatus::Paused {
            let why = step.failure.as_ref().map(ToString::to_string).unwrap_or_default();
            lines.push(format!("step {id} {}: {why}", step.status.word()));
            lines.push(format!("  try it again: muster retry {run} {id}; go on without it: muster skip {run} {id} --reason TEXT; end the run: muster abort {run}"));
        }
    }
    if crate::engine::needs_a_person(state.status) {
        lines.push(format!("then go on with: muster resume {run}"));
    }
    lines
}
