//! `muster run`: a runbook, here and now.

use super::{Done, output::Output};
use crate::service::{
    Muster, ServiceError, run_exit_code,
    runs::{Ran, Start},
    view,
};
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
    /// Who starts it, and so does not approve it; the user of this machine if left out
    #[arg(long, value_name = "PERSON")]
    by: Option<String>,
    /// Take the place also of a run that cannot be settled, does not answer, or is itself a live failover
    #[arg(long, requires = "live")]
    take_over: bool,
    /// Let it need the failed region or a global control plane all the same; the reason stands on the record
    #[arg(long, value_name = "REASON")]
    waive: Option<String>,
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
    let start = Start { live: args.live, by: args.by.clone(), take_over: args.take_over, waive: args.waive.clone() };
    let ran = muster.run_as(&args.runbook, &args.inputs.read()?, &start).await?;
    Ok(told(&ran, output))
}

/// The command that begins the same run anew and takes the wheel from its holder, if that is what it lacked.
fn take_over(ran: &Ran, output: &Output) -> Option<String> {
    let failure = ran.state.steps.values().filter_map(|step| step.failure.as_ref()).find(|failure| failure.code == "wheel_held")?;
    let (_, holder) = failure.remedy.as_ref()?.split_once("take_over=")?;
    let plan = &ran.state.plan;
    let given = plan.inputs.iter().filter(|(name, _)| !["take_over", "no_wheel"].contains(&name.as_str()));
    let inputs: String = given.filter_map(|(name, value)| Some(format!(" -i {name}={}", value.as_str()?))).collect();
    let live = if plan.live { " --live" } else { "" };
    Some(format!("{} run {}{inputs} -i take_over={}{live}", output.program, plan.runbook, holder.trim_end_matches('`')))
}

/// Prints how a run was left, and what to do if a person must act.
pub fn told(ran: &Ran, output: &Output) -> u8 {
    if output.json {
        output.object(&view::run(&ran.run, &ran.state, &ran.evidence));
    } else {
        output.line(super::runs::steps_table(&ran.state));
        output.line(format!("run {} {}", ran.run, super::runs::status(ran.state.status.word(), !ran.state.overridden().is_empty())));
    }
    if let Some(command) = take_over(ran, output) {
        output.say(format!("another run has the wheel; to take it over: {command}"));
    }
    for line in super::show::next(&output.program, &ran.run, &ran.state) {
        output.say(line);
    }
    run_exit_code(ran.state.status)
}
