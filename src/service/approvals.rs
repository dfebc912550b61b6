//! Approvals and overrides: who it is that speaks, what exactly is signed, and signing it here.
//!
//! A private key is read only to sign, in memory, and never printed. One with a passphrase, in an agent or in
//! hardware is used by `ssh-keygen -Y sign` on what `--print` shows, and the signature handed in.

use super::{Muster, ServiceError, runs::state_of};
use crate::journal::Command;
use crate::model::{estate::Estate, ids::*, plan::*, signing::*};
use crate::plan::{
    approval::{Act, eligible, fact_line, statement},
    state::RunState,
};
use ssh_key::{HashAlg, LineEnding, PrivateKey};
use std::path::{Path, PathBuf};

/// How a person vouches for what they say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Voucher {
    /// By name alone: enough where the estate lists nobody.
    Name,
    /// With this private key, here.
    Key(PathBuf),
    /// With this signature, made elsewhere.
    Signature(PathBuf),
}

/// What a person is about to sign, and why.
#[derive(Clone, Debug)]
pub struct Shown {
    pub statement: String,
    pub message: Option<String>,
    pub facts: Vec<String>,
    /// What the step is about to change, where it is the step's own intent that is approved.
    pub changes: Vec<crate::model::effect::Change>,
}

impl Muster {
    /// Whose name stands for who acts: the one given, else the person of the estate with this login, else the login.
    #[must_use]
    pub fn named(estate: &Estate, by: Option<&str>) -> String {
        let login = by.map_or_else(Self::person, str::to_owned);
        if estate.people.contains_key(&PersonName::from(login.as_str())) {
            return login;
        }
        let known = estate.people.iter().find(|(_, person)| person.logins.contains(&login));
        known.map_or(login, |(name, _)| name.to_string())
    }

    /// Could this plan be approved at all, if this person starts it? Asked before it is on record.
    pub(super) fn could_be_approved(plan: &Plan, initiator: &str) -> Result<(), ServiceError> {
        let estate = &plan.estate;
        let asks = plan.steps.iter().filter_map(|step| Some((step, step.asks()?)));
        for (step, approval) in asks.filter(|_| !estate.people.is_empty() && plan.scope == Scope::Live) {
            if !estate.people.contains_key(&PersonName::from(initiator)) {
                let names: Vec<_> = estate.people.keys().map(PersonName::as_str).collect();
                return Err(ServiceError::Usage(format!(
                    "step `{}` takes an approval by somebody else than who starts the run, and `{initiator}` is not among the estate's people: \
                     say who you are with --by ({}), or list the login: `people: {{ NAME: {{ logins: [{initiator}] }} }}`",
                    step.id,
                    names.join(", ")
                )));
            }
            let able = eligible(estate, approval, initiator);
            if able.len() < approval.approvers as usize {
                return Err(ServiceError::Usage(format!(
                    "step `{}` takes {} approvals; beside `{initiator}`, who starts the run, {} could give one ({})",
                    step.id,
                    approval.approvers,
                    able.len(),
                    if able.is_empty() { "nobody".to_owned() } else { able.join(", ") }
                )));
            }
        }
        Ok(())
    }

    /// What this person would sign, to be looked at or signed elsewhere.
    pub async fn shown(&self, run: &RunId, step: &StepId, by: &str, reason: Option<&str>) -> Result<Shown, ServiceError> {
        let journal = self.existing_journal().await?;
        let state = state_of(&*journal, run).await?;
        let statement = said(&state, run, step, by, act(reason))?;
        let (planned, known) = (state.plan.step(step), state.step(step));
        let asks = planned.and_then(PlanStep::asks);
        let facts = planned.zip(known).and_then(|(planned, known)| {
            let asked = known.asked.as_ref()?;
            Some(asked.facts.iter().map(|(name, value)| fact_line(planned, name, value)).collect())
        });
        Ok(Shown {
            statement,
            message: asks.and_then(|approval| approval.message.clone()),
            facts: facts.unwrap_or_default(),
            changes: known.map(|known| known.change.clone()).unwrap_or_default(),
        })
    }

    /// The command of an approval, or with a reason of an override, signed as the person vouches for it.
    pub async fn signed(
        &self,
        run: &RunId,
        step: &StepId,
        by: &str,
        reason: Option<&str>,
        voucher: &Voucher,
    ) -> Result<Command, ServiceError> {
        let journal = self.existing_journal().await?;
        let state = state_of(&*journal, run).await?;
        self.still_listed(&state, step, by)?;
        let signed = match voucher {
            Voucher::Name => None,
            Voucher::Key(file) => {
                let statement = said(&state, run, step, by, act(reason))?;
                Some(sign(&statement, file)?)
            }
            Voucher::Signature(file) => {
                let statement = said(&state, run, step, by, act(reason))?;
                let signature = read(file)?;
                let key = verify(&state.plan.estate, by, &statement, &signature).map_err(ServiceError::Usage)?;
                Some(Signed { statement, key, signature })
            }
        };
        let step = step.clone();
        Ok(match reason {
            None => Command::Approve { step, signed, request: None },
            Some(reason) => Command::Override { step, reason: reason.to_owned(), signed },
        })
    }

    /// Who was taken off the list since the run began may not approve it any more. An estate that cannot be
    /// read now says nothing: a recovery must not depend on it.
    fn still_listed(&self, state: &RunState, step: &StepId, by: &str) -> Result<(), ServiceError> {
        let name = PersonName::from(by);
        let Ok(now) = self.written_estate() else { return Ok(()) };
        let Some(then) = state.plan.estate.people.get(&name).filter(|_| !now.people.is_empty()) else { return Ok(()) };
        let Some(person) = now.people.get(&name) else {
            return Err(ServiceError::Usage(format!("`{by}` is no longer among the estate's people")));
        };
        let asked = state.plan.step(step).and_then(PlanStep::asks).map(|approval| approval.roles.clone()).unwrap_or_default();
        let has = |person: &crate::model::estate::Person| person.roles.iter().any(|role| asked.contains(role));
        if has(then) && !has(person) {
            return Err(ServiceError::Usage(format!("`{by}` no longer has the role {}", asked.join(" or "))));
        }
        if !then.keys.iter().all(|key| person.keys.contains(key)) {
            return Err(ServiceError::Usage(format!(
                "the keys of `{by}` have changed since the run began; abort the run and start it anew"
            )));
        }
        Ok(())
    }
}

fn act(reason: Option<&str>) -> Act<'_> {
    reason.map_or(Act::Approve, Act::Override)
}

fn said(state: &RunState, run: &RunId, step: &StepId, by: &str, act: Act<'_>) -> Result<String, ServiceError> {
    let nothing = || {
        let known = crate::engine::inbox::find(state, step);
        let why = known.map(|known| format!("step `{step}` is {}; there is nothing to sign", known.status.word().replace('_', " ")));
        ServiceError::Usage(why.unwrap_or_else(|why| why))
    };
    statement(state, run, step, by, act).ok_or_else(nothing)
}

fn read(file: &Path) -> Result<String, ServiceError> {
    std::fs::read_to_string(file).map_err(|e| ServiceError::Usage(format!("{} cannot be read: {e}", file.display())))
}

fn sign(statement: &str, file: &Path) -> Result<Signed, ServiceError> {
    let name = file.display();
    let elsewhere = format!(
        "`--print` the statement, sign it with `ssh-keygen -Y sign -n {NAMESPACE} -f {name} FILE`, and give `--signature FILE.sig`"
    );
    let wrong = |why: String| ServiceError::Usage(format!("{name} cannot sign: {why}"));
    let text = secrecy::SecretString::from(read(file)?);
    let key = PrivateKey::from_openssh(secrecy::ExposeSecret::expose_secret(&text))
        .map_err(|e| wrong(format!("it is not a private key in OpenSSH's format ({e}); for an agent or a hardware key: {elsewhere}")))?;
    if key.is_encrypted() {
        return Err(wrong(format!("it is protected by a passphrase; {elsewhere}")));
    }
    public_key(&key.public_key().to_openssh().unwrap_or_default()).map_err(&wrong)?;
    let signature = key.sign(NAMESPACE, HashAlg::Sha512, statement.as_bytes()).map_err(|e| wrong(format!("{e}; {elsewhere}")))?;
    let signature = signature.to_pem(LineEnding::LF).map_err(|e| wrong(e.to_string()))?;
    Ok(Signed { statement: statement.to_owned(), key: fingerprint(key.public_key()), signature })
}
