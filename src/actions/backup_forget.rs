//! `backup.forget`: delete snapshots that a rule no longer keeps: grandfather, father, son.
//!
//! **What it does.** `prepare` decides which, and the intent names each: a plan shows them, and an approval of the step
//! covers exactly these. Only the snapshots' own objects are deleted; their data stay until `muster backup prune` finds
//! that nobody needs them. The newest snapshot of each source and machine is kept whatever the rule says.
//!
//! **Half-done** it is when some of them are gone: deleting the rest completes it, and deleting what is gone changes
//! nothing. It cannot be undone.

use super::{contract::*, shared::*, vault::*};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use crate::plan::retention::{Point, Retention, decide};
use crate::repository::{
    names::{Id, SNAPSHOTS},
    snapshot::Snapshot,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub repository: RepositoryName,
    /// The newest so many of each source and machine.
    #[serde(default)]
    pub keep_last: u32,
    /// The last of each of so many days; the same of weeks, months and years. Everything counts in UTC.
    #[serde(default)]
    pub keep_daily: u32,
    #[serde(default)]
    pub keep_weekly: u32,
    #[serde(default)]
    pub keep_monthly: u32,
    #[serde(default)]
    pub keep_yearly: u32,
    /// Only snapshots of this source, as `muster backup list` shows it.
    #[serde(default)]
    pub source: Option<String>,
    /// Only snapshots that have this tag.
    #[serde(default)]
    pub tag: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    repository: RepositoryName,
    forget: Vec<Id>,
    kept: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    /// Identifiers of the snapshots that are gone.
    pub forgotten: Vec<String>,
    pub kept: u64,
}

pub struct Forget;

impl Action for Forget {
    type Input = Input;
    type Intent = Intent;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "backup.forget",
            version: 1,
            summary: "Delete the snapshots that a rule no longer keeps",
            effect: Effect::Repeatable,
            danger: Danger::Irreversible,
            undo: UndoPolicy::None,
            timeout: Span::from_secs(600),
            example: "id: forget\nuses: backup.forget\nwith: { repository: vault, keep_daily: 7, keep_weekly: 4, keep_monthly: 12, keep_yearly: 3 }\n",
        }
    }
    fn reach(with: &Node, estate: &Estate) -> Vec<Reach> {
        reach_vault(with, "repository", estate)
    }
    fn locks(_with: &Node) -> Vec<Resource> {
        Vec::new()
    }

    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Intent>, Refusal> {
        let Input { keep_last: last, keep_daily: daily, keep_weekly: weekly, keep_monthly: monthly, keep_yearly: yearly, .. } = input;
        let rule = Retention { last, daily, weekly, monthly, yearly };
        if rule.is_empty() {
            return Err(Refusal::no(
                "input",
                "a rule that keeps nothing: say at least one of `keep_last`, `keep_daily`, `keep_weekly`, `keep_monthly`, `keep_yearly`",
            ));
        }
        let repository = open(cx, &input.repository).await?;
        let found = repository.snapshots().await?;
        let mut snapshots = found.whole;
        snapshots.retain(|(_, s)| input.source.as_ref().is_none_or(|source| s.source.shown() == source));
        snapshots.retain(|(_, s)| input.tag.as_ref().is_none_or(|tag| s.tags.contains(tag)));
        let reasons = decide(&snapshots.iter().map(point).collect::<Vec<_>>(), rule);
        let gone: Vec<&(Id, Snapshot)> = snapshots.iter().zip(&reasons).filter(|(_, reasons)| reasons.is_empty()).map(|(s, _)| s).collect();
        let change = match gone.as_slice() {
            [] => vec![change(place(&input.repository), Some("all snapshots are kept by the rule".to_owned()), None)],
            gone => gone.iter().map(|(id, s)| change(place(&input.repository), Some(shown(id, s)), None)).collect(),
        };
        let notes = found.damaged.iter().map(|damaged| format!("it is left alone: {damaged}")).collect();
        let intent = Intent {
            forget: gone.iter().map(|(id, _)| *id).collect(),
            kept: (snapshots.len() - gone.len()) as u64,
            repository: input.repository,
        };
        Ok(Prepared { intent, change, notes })
    }

    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
        let store = cx.world()?.store_mut(intent.repository.as_str())?;
        for id in &intent.forget {
            cx.world()?;
            store.delete(&id.key(SNAPSHOTS)).await?;
        }
        Ok(output(intent))
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<Output> {
        let look = async {
            let store = cx.world.store(intent.repository.as_str())?;
            for id in &intent.forget {
                if store.head(&id.key(SNAPSHOTS)).await?.is_some() {
                    return Ok(false);
                }
            }
            Ok::<_, crate::providers::port::PortError>(true)
        };
        match look.await {
            Err(error) => cannot_tell(&error),
            Ok(true) => Seen::Done(output(intent)),
            Ok(false) => Seen::Absent,
        }
    }

    async fn undo(_cx: &WriteCx, _intent: &Intent, _output: Option<Output>) -> Result<(), ApplyError> {
        Ok(())
    }
}

/// Snapshots of one source from one machine take each other's places, and those of one database; others do not.
fn point((id, snapshot): &(Id, Snapshot)) -> Point {
    Point { id: id.to_string(), time: snapshot.time, group: snapshot.series() }
}

fn output(intent: &Intent) -> Output {
    Output { forgotten: intent.forget.iter().map(ToString::to_string).collect(), kept: intent.kept }
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    super::contract_tests::with_vault(serde_json::json!({ "repository": "vault", "keep_last": 1 }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::contract_tests::{Bench, with_vault};
    use serde_json::json;

    #[tokio::test]
    async fn the_plan_shows_what_goes_and_nothing_else_goes() {
        let bench = Bench::new(&fixture());
        let input = crate::model::node::decode(&bench.with).expect("valid");
        let prepared = Forget::prepare(&bench.read, input).await.map_err(|r| r.failure).expect("prepared");
        assert!(
            prepared.change.len() == 1 && prepared.change[0].from.as_ref().is_some_and(|from| from.contains("2026-01-01")),
            "{:?}",
            prepared.change
        );
        let out = bench.run::<Forget>().await.expect("forgotten");
        assert_eq!((out.forgotten.len(), out.kept), (1, 1));
        assert!(prepared.change[0].from.as_ref().is_some_and(|from| from.contains(&out.forgotten[0][..10])));
    }

    #[tokio::test]
    async fn a_rule_that_keeps_nothing_is_refused_and_one_that_keeps_all_says_so() {
        assert_eq!(Bench::new(&with_vault(json!({ "repository": "vault" }))).refused::<Forget>().await, "input");
        let all = Bench::new(&with_vault(json!({ "repository": "vault", "keep_daily": 9 })));
        assert_eq!(all.run::<Forget>().await.expect("nothing to do").forgotten.len(), 0);
    }
}
