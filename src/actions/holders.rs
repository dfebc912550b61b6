//! A name in a zone that several servers hold, each for itself: what is changed at one is not changed at the others, so
//! each is read, written and put back on its own. Of all other zones there is one holder, and this is no more than that.
//!
//! Either all take a change or none keeps it: what one refuses is taken back from those that took it before. An answer that
//! stays away is neither, and taken back nowhere: the same intent once more completes it, at whoever has it not yet.
//!
//! In an unplanned failover the servers of the lost region are what this does not hang on, as long as there are others: one that
//! cannot be reached is left out, and said to be. It has the old answer when it comes back.

use super::{contract::*, shared::*};
use crate::model::{effect::*, ids::*};
use crate::providers::port::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long a server of the lost region is waited for. It would add to the time that a failover takes.
pub(super) const SPARE: Duration = Duration::from_secs(1);

/// What stands at one server, and what shall.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct At {
    /// Empty where there is but one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub server: String,
    /// The lost region, if it stands there and is not needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spare: Option<RegionName>,
    /// All records of the name, as they were found.
    pub expect: Vec<RoutedSet>,
    pub want: Vec<RoutedSet>,
}

/// A server that was not changed: it stands in the lost region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeftOut {
    pub server: String,
    pub region: RegionName,
    pub why: String,
}

/// One name, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Subject {
    pub endpoint: EndpointName,
    pub zone: String,
    pub name: String,
    pub kind: String,
}

/// What every server has of a name.
pub(super) struct Found {
    pub at: Vec<At>,
    pub left: Vec<LeftOut>,
}

/// What became of a change, as it can be seen.
pub(super) enum Standing {
    Done(Vec<LeftOut>),
    Absent,
    Differs(String),
    CannotTell(PortError),
}

impl Subject {
    /// Reads it at every server; `want` says what it shall become, of what stands there.
    pub async fn find(&self, cx: &ReadCx, want: impl Fn(&[RoutedSet]) -> Result<Vec<RoutedSet>, Refusal> + Send) -> Result<Found, Refusal> {
        let holders = &cx.world.holders(self.endpoint.as_str())?;
        let asked = holders.iter().map(|holder| async move {
            let spare = spare(cx, holders, holder.region.as_ref());
            let sets = self.read(cx, &*holder.dns, spare.is_some()).await;
            (holder, spare, sets)
        });
        let mut found = Found { at: Vec::new(), left: Vec::new() };
        for (holder, spare, sets) in futures::future::join_all(asked).await {
            let server = holder.server.clone();
            let chosen = sets.map_err(Refusal::from).and_then(|expect| want(&expect).map(|want| (expect, want)));
            match (chosen, spare) {
                (Ok((expect, want)), spare) => found.at.push(At { server, spare, expect, want }),
                (Err(refusal), Some(region)) => found.left.push(LeftOut { server, region, why: refusal.failure.message }),
                (Err(refusal), None) => return Err(refusal),
            }
        }
        Ok(found)
    }

    async fn read(&self, cx: &ReadCx, dns: &(impl DnsRead + ?Sized), spare: bool) -> PortResult<Vec<RoutedSet>> {
        let question = dns.sets(&self.zone, &self.name, &self.kind);
        if spare { within(cx, SPARE, question).await } else { question.await }
    }

    /// Writes it wherever it is not yet as it shall be. What comes of it is the changes' identifiers, if there were any.
    pub async fn write(&self, cx: &WriteCx, at: &[At], comment: &str) -> Result<Option<String>, ApplyError> {
        let (mut taken, mut changes): (Vec<&At>, Vec<String>) = (Vec::new(), Vec::new());
        // What is not needed comes last: it holds up nothing, and nothing must be taken back for it.
        let order = at.iter().filter(|at| at.spare.is_none()).chain(at.iter().filter(|at| at.spare.is_some()));
        for at in order.filter(|at| at.expect != at.want) {
            match self.swap(cx, at, &at.expect, &at.want, comment).await {
                Ok(change) => {
                    taken.push(at);
                    changes.extend(change.map(|change| labelled(&at.server, &change.0)));
                }
                // That it is left out, and why, is told by whoever looks what stands there.
                Err(_) if at.spare.is_some() => {}
                Err(error) if taken.is_empty() => return Err(error),
                Err(error @ ApplyError::Unknown(_)) => return Err(error),
                Err(error) => return Err(self.take_back(cx, &taken, error, comment).await),
            }
        }
        Ok((!changes.is_empty()).then(|| changes.join(", ")))
    }

    /// One server's compare-and-swap; `None` where somebody, an earlier attempt of this step perhaps, has done it.
    async fn swap(
        &self,
        cx: &WriteCx,
        at: &At,
        expect: &[RoutedSet],
        want: &[RoutedSet],
        comment: &str,
    ) -> Result<Option<ChangeId>, ApplyError> {
        let dns = holder(cx.world()?.holders_mut(self.endpoint.as_str())?, at)?;
        match dns.replace(&self.zone, expect, want, comment).await {
            Ok(change) => Ok(Some(change)),
            Err(PortError::Conflict { found }) => {
                if self.read(cx, &*dns, false).await? == want {
                    return Ok(None);
                }
                let text = format!("{}{} was changed by someone else: {found}", self.name, place(&at.server));
                let remedy = "look at the record, then retry the step: it reads it again";
                Err(ApplyError::Definite(Failure::new("conflict", text).remedy(remedy)))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// One server would not: those that did get back what they had, so that none has it.
    async fn take_back(&self, cx: &WriteCx, taken: &[&At], error: ApplyError, comment: &str) -> ApplyError {
        let comment = format!("{comment} taken back");
        for at in taken.iter().rev() {
            if let Err(ApplyError::Definite(why) | ApplyError::Retry { failure: why, .. } | ApplyError::Unknown(why)) =
                self.swap(cx, at, &at.want, &at.expect, &comment).await
            {
                let (ApplyError::Definite(first) | ApplyError::Retry { failure: first, .. } | ApplyError::Unknown(first)) = error;
                let text =
                    format!("{}; {} has taken the change, and it could not be taken back: {}", first.message, at.server, why.message);
                return ApplyError::Unknown(Failure { code: "half_done".to_owned(), message: text, ..first });
            }
        }
        error
    }

    /// What stands at each of these servers: the change, what was there before, or something else?
    pub async fn standing(&self, cx: &ReadCx, at: &[At]) -> Standing {
        let holders = match cx.world.holders(self.endpoint.as_str()) {
            Ok(holders) => holders,
            Err(error) => return Standing::CannotTell(error),
        };
        let holders = &holders;
        let asked = at.iter().map(|at| async move {
            let found = match holders.iter().find(|holder| holder.server == at.server) {
                Some(holder) => self.read(cx, &*holder.dns, at.spare.is_some()).await,
                None => Err(gone(at)),
            };
            (at, found)
        });
        let asked = futures::future::join_all(asked).await;
        let (mut left, mut absent, mut differs, mut unseen) = (Vec::new(), false, None, None);
        for (at, found) in asked {
            let out = |why| at.spare.clone().map(|region| LeftOut { server: at.server.clone(), region, why });
            match found {
                Ok(sets) if sets == at.want => {}
                Ok(sets) => match out(format!("it still has {}", show_sets(&sets))) {
                    Some(out) => left.push(out),
                    None if sets == at.expect => absent = true,
                    None => differs = differs.or_else(|| Some(format!("{}{}", show_sets(&sets), place(&at.server)))),
                },
                Err(error) => match out(error.to_string()) {
                    Some(out) => left.push(out),
                    None => unseen = Some(error),
                },
            }
        }
        match (differs, unseen) {
            (Some(found), _) => Standing::Differs(found),
            (None, Some(error)) => Standing::CannotTell(error),
            (None, None) if absent => Standing::Absent,
            (None, None) => Standing::Done(left),
        }
    }

    /// Is the change on all authoritative servers of those that took it?
    pub async fn in_sync(&self, cx: &ReadCx, change: &str, at: &[At]) -> PortResult<bool> {
        let holders = cx.world.holders(self.endpoint.as_str())?;
        let parts = change.split(", ").map(|part| part.split_once(": ").unwrap_or(("", part)));
        let asked = parts.map(|(server, id)| {
            let holder = holders.iter().find(|holder| holder.server == server);
            let spare = at.iter().any(|at| at.server == server && at.spare.is_some());
            async move {
                // Nothing hangs on what is not needed.
                let Some(holder) = holder.filter(|_| !spare) else { return Ok(true) };
                holder.dns.in_sync(&ChangeId(id.to_owned())).await
            }
        });
        let mut silent = None;
        for answer in futures::future::join_all(asked).await {
            match answer {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(error) => silent = Some(error),
            }
        }
        silent.map_or(Ok(true), Err)
    }

    /// Gives each server back what it had, if it has what this step made of it; one that fails does not keep the others from it.
    pub async fn put_back(&self, cx: &WriteCx, at: &[At], comment: &str) -> Result<(), ApplyError> {
        let mut failed = None;
        for at in at.iter().rev().filter(|at| at.expect != at.want) {
            let back = async {
                let dns = holder(cx.world()?.holders_mut(self.endpoint.as_str())?, at)?;
                if self.read(cx, &*dns, at.spare.is_some()).await? != at.expect {
                    dns.replace(&self.zone, &at.want, &at.expect, comment).await?;
                }
                Ok::<_, ApplyError>(())
            };
            failed = failed.or(back.await.err());
        }
        failed.map_or(Ok(()), Err)
    }
}

impl Found {
    /// It stands everywhere as it shall.
    pub fn nothing(&self) -> bool {
        self.at.iter().all(|at| at.expect == at.want)
    }
    /// What would be changed where, for people.
    pub fn changes(&self, subject: &Subject) -> Vec<Change> {
        let shown = |at: &At| {
            let from = (!at.expect.is_empty()).then(|| show_sets(&at.expect));
            change(format!("{} {}{}", subject.name, subject.kind, place(&at.server)), from, Some(show_sets(&at.want)))
        };
        self.at.iter().filter(|at| at.expect != at.want).map(shown).collect()
    }
    /// What a person should know beforehand.
    pub fn notes(&self) -> Vec<String> {
        let mut notes: Vec<String> = self.left.iter().map(|left| format!("left out: {left}")).collect();
        if self.at.windows(2).any(|pair| matches!(pair, [one, other] if one.expect != other.expect)) {
            let each: Vec<String> = self.at.iter().map(|at| format!("{} has {}", at.server, show_sets(&at.expect))).collect();
            notes.push(format!("the servers do not have the same: {}", each.join("; ")));
        }
        notes
    }
}

impl std::fmt::Display for LeftOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in `{}`, the region that is lost ({})", self.server, self.region, self.why)
    }
}

/// What a person must hear of when the step has succeeded.
pub(super) fn warnings(left: &[LeftOut]) -> Vec<String> {
    let told = |left: &LeftOut| {
        format!("{left} was left out: when it is back it gives the old answer, until the same step is run once more or the traffic is back")
    };
    left.iter().map(told).collect()
}

/// The longest TTL that caches may hold.
pub(super) fn old_ttl_s(at: &[At]) -> u32 {
    at.iter().flat_map(|at| &at.expect).map(|set| set.record.ttl_s).max().unwrap_or(0)
}

/// The lost region, where this server stands in it and another stands elsewhere.
fn spare<D: ?Sized>(cx: &ReadCx, holders: &[Holder<D>], region: Option<&RegionName>) -> Option<RegionName> {
    let lost = cx.lost.as_ref()?;
    let elsewhere = holders.iter().any(|holder| holder.region.as_ref() != Some(lost));
    (region == Some(lost) && elsewhere).then(|| lost.clone())
}

fn holder<D: ?Sized>(holders: Vec<Holder<D>>, at: &At) -> PortResult<std::sync::Arc<D>> {
    holders.into_iter().find(|holder| holder.server == at.server).map(|holder| holder.dns).ok_or_else(|| gone(at))
}

fn gone(at: &At) -> PortError {
    PortError::Config(format!("the estate does not name `{}` any more among the servers of the zone", at.server))
}

fn place(server: &str) -> String {
    if server.is_empty() { String::new() } else { format!(" at {server}") }
}

fn labelled(server: &str, change: &str) -> String {
    if server.is_empty() { change.to_owned() } else { format!("{server}: {change}") }
}

#[cfg(test)]
#[path = "holders_tests.rs"]
mod tests;
