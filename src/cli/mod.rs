//! The command line: one file a command. Data goes to stdout, everything else to stderr; with `--json`
//! stdout holds JSON alone, one object a line, the last one the result.
//!
//! Exit codes: 0 done and good; 1 ran, and the answer is no; 2 could not run; 3 stopped and needs a person.

mod actions;
mod approve;
mod backup;
mod bench;
mod doctor;
mod drill;
mod evidence;
mod operate;
mod output;
mod plan;
mod progress;
mod readiness;
mod replica;
mod run;
mod runs;
mod schema;
mod serve;
mod show;
mod status;
mod validate;
mod wal;

#[cfg(feature = "lab")]
mod demo;
#[cfg(feature = "lab")]
mod demo_log;
#[cfg(feature = "lab")]
mod lab;

use crate::model::time::Span;
use crate::service::{Muster, ServiceError, shared::Shared};
use clap::{CommandFactory, Parser, Subcommand};
use output::Output;
use secrecy::SecretString;
use std::{path::PathBuf, process::ExitCode, sync::Arc};

/// What a command comes to: an exit code, or why it could not run.
type Done = Result<u8, ServiceError>;

#[derive(Parser)]
#[command(name = "muster", version, about = "Disaster recovery: runbooks as code, drills that measure, evidence that holds", long_about = None)]
#[command(
    after_help = "Begin with `muster demo`: it loses a region on this machine, recovers, and measures it.\nExit codes: 0 done and good, 1 ran and the answer is no, 2 could not run, 3 stopped and needs a person."
)]
struct Cli {
    /// The estate: what is protected
    #[arg(long, global = true, value_name = "FILE", default_value = "muster.yaml", env = "MUSTER_ESTATE")]
    estate: PathBuf,
    /// Where the journal and its files are kept
    #[arg(long, global = true, value_name = "DIR", default_value = ".muster", env = "MUSTER_STATE")]
    state: PathBuf,
    /// A journal that several nodes share: postgres://USER@HOST[:PORT][,HOST[:PORT]]/DATABASE
    #[arg(long, global = true, value_name = "URL", env = "MUSTER_JOURNAL", hide_env_values = true)]
    journal: Option<SecretString>,
    /// How long a shared journal keeps others from what this process owns, when it is not heard of
    #[arg(long, global = true, value_name = "TIME", default_value = "15s", env = "MUSTER_LEASE")]
    lease: Span,
    /// JSON on stdout, one object a line, the result last
    #[arg(long, global = true)]
    json: bool,
    /// Say more (twice: still more)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lose a region on this machine, recover, measure, lead back, verify the evidence
    #[cfg(feature = "lab")]
    Demo(demo::Args),
    /// Two regions in a box: up, down, status, kill, heal
    #[cfg(feature = "lab")]
    Lab(lab::Args),
    /// Check estate, runbook and drill files
    Validate(validate::Args),
    /// What a runbook would do, without doing it
    Plan(plan::Args),
    /// Run a runbook here
    Run(run::Args),
    /// The estate and what is open, on one screen
    Status,
    /// The runs on record, newest first
    Runs(runs::ListArgs),
    /// One run or drill with its steps, its timeline, and what to do about it
    Show(show::Args),
    /// Follow a run or drill until it ends or waits for a person
    Watch(runs::WatchArgs),
    /// Go on with a run or drill that was paused or whose process ended
    Resume(operate::ResumeArgs),
    /// Pause a run: what is under way is settled, nothing new begins
    Pause(operate::ReasonArgs),
    /// End a run: what is under way is settled, nothing new begins, nothing is undone
    Abort(operate::ReasonArgs),
    /// Approve a step that waits for it
    Approve(approve::Args),
    /// Refuse approval
    Reject(operate::StepReasonArgs),
    /// Try a failed step again
    Retry(operate::StepArgs),
    /// Go on without a step
    Skip(operate::StepReasonArgs),
    /// Let a run go on past a guard that does not hold; it stays visible for ever
    Override(approve::OverrideArgs),
    /// Say what happened in a step whose outcome is not known
    Resolve(operate::ResolveArgs),
    /// Drills: run, list, next, history, report
    Drill(drill::Args),
    /// Backups: create, list, show, diff, restore, verify, forget, prune, copy, key, stats
    Backup(backup::Args),
    /// PostgreSQL's write-ahead log in a repository: archive, fetch, receive, status
    Wal(wal::Args),
    /// Is the replica really there? State, schema, settings, and every row
    Replica(replica::Args),
    /// Is what would be failed over to really there? Replicas, backups, DNS, proofs
    Readiness(readiness::Args),
    /// Is what the runbooks will need there? Their permissions at Amazon
    Doctor(doctor::Args),
    /// Fire drills on schedule
    Serve,
    /// Verify the journal, export it, import another's
    Evidence(evidence::Args),
    /// The actions, and what each takes and gives
    Actions(actions::Args),
    /// The JSON Schema of a file
    Schema(schema::Args),
    /// Completions for a shell
    Completions { shell: clap_complete::Shell },
    /// What the engine and its journal can do on this machine
    #[command(hide = true)]
    Bench(bench::Args),
    #[cfg(feature = "lab")]
    #[command(hide = true)]
    LabProcess(lab::ProcessArgs),
}

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    // Of a fetch, whatever it is that fails must not look as if there were no such file.
    let trouble = if wal::is_fetch() { wal::TROUBLE } else { 2 };
    if trouble == wal::TROUBLE {
        std::panic::set_hook(Box::new(|panic| {
            eprintln!("error: {panic}");
            std::process::exit(i32::from(wal::TROUBLE));
        }));
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { trouble } else { 0 };
            // Nothing is left to tell if even this cannot be printed.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    output::logging(cli.verbose);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the runtime could not be started: {error}");
            return ExitCode::from(trouble);
        }
    };
    let mut muster = Muster::new(cli.state.clone(), cli.estate.clone());
    muster.shared = cli.journal.clone().map(|url| Shared::new(url, cli.lease));
    let output = Output::new(cli.json, muster.program());
    let code = runtime.block_on(async {
        let code = dispatch(cli, muster.clone(), &output).await;
        muster.leave().await;
        code
    });
    let code = code.unwrap_or_else(|error| output.error(&error));
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    ExitCode::from(code)
}

async fn dispatch(cli: Cli, mut muster: Muster, output: &Output) -> Done {
    match cli.command {
        #[cfg(feature = "lab")]
        Command::Demo(args) => return demo::main(args, output).await,
        #[cfg(feature = "lab")]
        Command::Lab(args) => return lab::main(args, &muster, output).await,
        #[cfg(feature = "lab")]
        Command::LabProcess(args) => return lab::process(args).await,
        Command::Validate(args) => return validate::main(&args, &muster, output),
        Command::Actions(args) => return actions::main(&args, output),
        Command::Schema(args) => return schema::main(args, output),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut public(), "muster", &mut std::io::stdout());
            return Ok(0);
        }
        Command::Backup(args) => return backup::main(args, muster, output).await,
        Command::Wal(args) => return wal::main(args, muster, output).await,
        Command::Replica(args) => return replica::main(args, muster, output).await,
        Command::Bench(args) => return bench::main(args, &muster, output).await,
        Command::Plan(args) => return plan::main(&args, &muster, output).await,
        Command::Readiness(args) => return readiness::main(args, &muster, output).await,
        Command::Doctor(args) => return doctor::main(&args, &muster, output).await,
        Command::Status => return status::main(&muster, output).await,
        Command::Runs(args) => return runs::list(&args, &muster, output).await,
        Command::Show(args) => return show::main(&args, &muster, output).await,
        Command::Watch(args) => return runs::watch(&args, &muster, output).await,
        Command::Evidence(args) => return evidence::main(&args, &muster, output).await,
        Command::Pause(args) => return operate::pause(args, &muster, output).await,
        Command::Abort(args) => return operate::abort(args, &muster, output).await,
        Command::Approve(args) => return approve::approve(args, &muster, output).await,
        Command::Reject(args) => return operate::reject(args, &muster, output).await,
        Command::Retry(args) => return operate::retry(args, &muster, output).await,
        Command::Skip(args) => return operate::skip(args, &muster, output).await,
        Command::Override(args) => return approve::overrule(args, &muster, output).await,
        Command::Resolve(args) => return operate::resolve(args, &muster, output).await,
        _ => {}
    }
    // What follows acts, and may be interrupted.
    muster.interrupt = output::interrupts();
    let _progress = match &cli.command {
        Command::Drill(_) | Command::Resume(_) => progress::start(&mut muster, output),
        _ => {
            muster.listener = output.listener();
            None
        }
    };
    muster.faults = faults(&muster);
    match cli.command {
        Command::Run(args) => run::main(&args, &muster, output).await,
        Command::Resume(args) => operate::resume(&args, &muster, output).await,
        Command::Drill(args) => drill::main(args, &muster, output).await,
        Command::Serve => {
            if let Some(shared) = &mut muster.shared {
                shared.serves();
            }
            serve::main(&muster, output).await
        }
        _ => Ok(2),
    }
}

/// The commands that are for people: those that Muster starts itself are not offered for completion.
fn public() -> clap::Command {
    let all = Cli::command();
    let shown = all.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    clap::Command::new("muster").args(all.get_arguments().cloned()).subcommands(shown)
}

/// The lab of this state directory, if one is up.
#[cfg(feature = "lab")]
fn faults(muster: &Muster) -> Option<Arc<dyn crate::providers::port::Faults>> {
    lab::attach(muster).map(|lab| Arc::new(lab) as Arc<dyn crate::providers::port::Faults>)
}

#[cfg(not(feature = "lab"))]
fn faults(_: &Muster) -> Option<Arc<dyn crate::providers::port::Faults>> {
    None
}
