//! `muster approve` and `muster override`: what a person answers for with a signature.

use super::{Done, operate::tell, output::Output};
use crate::model::{ids::*, signing::NAMESPACE};
use crate::service::{
    Muster, ServiceError,
    approvals::{Shown, Voucher},
    runs::state_of,
};
use serde_json::json;
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(after_help = "Examples:
  muster approve RUN declare --by ana --key ~/.ssh/id_ed25519
With a passphrase, an agent or a hardware key:
  muster approve RUN declare --by ana --print > statement
  ssh-keygen -Y sign -n muster -f ~/.ssh/id_ed25519 statement
  muster approve RUN declare --by ana --signature statement.sig")]
pub struct Args {
    /// A run, by the beginning of its identifier
    run: String,
    /// The step, by its id in the runbook
    step: String,
    #[command(flatten)]
    who: Who,
}

#[derive(clap::Args)]
#[command(after_help = "What can be overridden: an approval that waits, expired or was rejected; a check that failed.
The step is never a success: it is skipped, and marked as overridden wherever it is shown.

Examples:
  muster override RUN readiness --reason 'the backup was looked at by hand' --by ana --key ~/.ssh/id_ed25519
  muster resume RUN")]
pub struct OverrideArgs {
    /// A run, by the beginning of its identifier
    run: String,
    /// The step, by its id in the runbook
    step: String,
    /// Why; it stands on the record
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    who: Who,
}

#[derive(clap::Args)]
struct Who {
    /// In whose name; the user of this machine if left out
    #[arg(long = "by", value_name = "PERSON")]
    by: Option<String>,
    /// Sign here with this private key, in OpenSSH's format and without a passphrase
    #[arg(long, value_name = "FILE", conflicts_with_all = ["signature", "print"])]
    key: Option<PathBuf>,
    /// A signature that was made elsewhere over what --print shows
    #[arg(long, value_name = "FILE", conflicts_with = "print")]
    signature: Option<PathBuf>,
    /// Print exactly what is to be signed, and do nothing
    #[arg(long)]
    print: bool,
}

pub async fn approve(args: Args, muster: &Muster, output: &Output) -> Done {
    vouched(&args.run, &StepId(args.step), None, args.who, muster, output).await
}

pub async fn overrule(args: OverrideArgs, muster: &Muster, output: &Output) -> Done {
    vouched(&args.run, &StepId(args.step), Some(&args.reason), args.who, muster, output).await
}

async fn vouched(run: &str, step: &StepId, reason: Option<&str>, who: Who, muster: &Muster, output: &Output) -> Done {
    if reason.is_some_and(|reason| reason.trim().is_empty()) {
        return Err(ServiceError::Usage("an override needs a reason: it stands on the record".to_owned()));
    }
    let journal = muster.existing_journal().await?;
    let run = muster.find(&*journal, run).await?;
    let state = state_of(&*journal, &run).await?;
    let by = Muster::named(&state.plan.estate, who.by.as_deref());
    if who.print {
        let shown = muster.shown(&run, step, &by, reason).await?;
        return Ok(print(&shown, output));
    }
    let voucher = match (who.key, who.signature) {
        (Some(key), _) => Voucher::Key(key),
        (None, Some(signature)) => Voucher::Signature(signature),
        (None, None) => Voucher::Name,
    };
    let command = muster.signed(&run, step, &by, reason, &voucher).await?;
    tell(run.as_str(), Some(by), command, muster, output).await
}

/// The statement alone on stdout, so that it can go into a file; what explains it on stderr.
fn print(shown: &Shown, output: &Output) -> u8 {
    if output.json {
        let object = json!({ "statement": shown.statement, "namespace": NAMESPACE, "message": shown.message, "facts": shown.facts, "changes": shown.changes });
        output.object(&object);
        return 0;
    }
    shown.message.iter().for_each(|message| output.say(format!("asked: {message}")));
    for change in &shown.changes {
        output.say(format!("it will change {}", super::show::sentence_of(change)));
    }
    output.line(shown.statement.trim_end_matches('\n'));
    output.say(format!("sign it: ssh-keygen -Y sign -n {NAMESPACE} -f KEY FILE"));
    0
}
