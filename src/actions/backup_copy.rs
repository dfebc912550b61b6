//! `backup.copy`: make a second repository hold the snapshots of a first one: the copy in another region.
//!
//! **What it does.** The copy is the same repository in another place, with the same keys, so stored objects go over as
//! they are; where both places are of one provider, it copies them itself. `prepare` decides which snapshots are not
//! there yet, and each is written last, after all that it needs.
//!
//! **Half-done** it is when some snapshots are there and others are not: copying again copies what is missing. It is not
//! undone: `backup.forget` decides what is kept there.

use super::{contract::*, shared::*, vault::*};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use crate::providers::port::{ObjectRead, PortError};
use crate::repository::{
    copy::{Beside, beside, copy},
    names::{Id, SNAPSHOTS},
    snapshot::Snapshot,
};
use futures::TryStreamExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// The repository that is copied.
    pub from: RepositoryName,
    /// The one that receives: an empty place, or an earlier copy.
    pub to: RepositoryName,
    /// `all`, `latest`, or the beginning of an identifier.
    #[serde(default = "all")]
    pub snapshot: String,
}

const ALL: &str = "all";

fn all() -> String {
    ALL.to_owned()
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    from: RepositoryName,
    to: RepositoryName,
    snapshots: Vec<Id>,
    there: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    /// Identifiers of the snapshots that were copied.
    pub copied: Vec<String>,
    /// How many of them were there already.
    pub there: u64,
    /// How the keys of both places differ, with what mends it; `null` when that could not be looked at.
    #[serde(default)]
    pub keys_differ: Option<Vec<String>>,
    /// Marks of a prune there that this key does not open, so that nobody knows what they mark; `null` when that could not be
    /// looked at.
    #[serde(default)]
    pub marks_unread: Option<Vec<String>>,
}

pub struct Copy;

impl Action for Copy {
    type Input = Input;
    type Intent = Intent;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "backup.copy",
            version: 1,
            summary: "Copy snapshots into another repository, such as one in another region",
            effect: Effect::Repeatable,
            danger: Danger::None,
            undo: UndoPolicy::None,
            timeout: Span::from_secs(6 * 3600),
            example: "id: second_copy\nuses: backup.copy\nwith: { from: vault, to: second }\n",
        }
    }
    fn reach(with: &Node, estate: &Estate) -> Vec<Reach> {
        [reach_vault(with, "from", estate), reach_vault(with, "to", estate)].concat()
    }
    fn locks(_with: &Node) -> Vec<Resource> {
        Vec::new()
    }

    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Intent>, Refusal> {
        named(cx, &input.to)?;
        if input.from == input.to {
            return Err(Refusal::no("same_repository", format!("`{}` is copied to another repository, not to itself", input.from)));
        }
        let repository = open(cx, &input.from).await?;
        let meant: Vec<(Id, Snapshot)> = match input.snapshot.as_str() {
            ALL => repository.snapshots().await?.whole,
            name => vec![repository.snapshot(name).await?],
        };
        let target = cx.world.store(input.to.as_str())?;
        let mut missing = Vec::new();
        for (id, snapshot) in &meant {
            if !holds(&*target, id).await? {
                missing.push((*id, snapshot));
            }
        }
        let change = match missing.as_slice() {
            [] => vec![change(place(&input.to), Some("it holds all of them already".to_owned()), None)],
            missing => missing.iter().map(|(id, snapshot)| change(place(&input.to), None, Some(shown(id, snapshot)))).collect(),
        };
        let there = (meant.len() - missing.len()) as u64;
        let snapshots = missing.iter().map(|(id, _)| *id).collect();
        Ok(Prepared { intent: Intent { from: input.from, to: input.to, snapshots, there }, change, notes: Vec::new() })
    }

    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
        let (clock, watched) = (cx.read.world.clock(), Watched::new());
        let target = cx.world()?.store_mut(intent.to.as_str())?;
        let repository = open(&cx.read, &intent.from).await.map_err(definite)?;
        let mut wanted = repository.snapshots().await?.whole;
        wanted.retain(|(id, _)| intent.snapshots.contains(id));
        // One that was forgotten meanwhile cannot be had any more; the others can.
        if let Some(gone) = intent.snapshots.iter().find(|id| !wanted.iter().any(|(there, _)| there == *id)) {
            return Err(fail("no_snapshot", format!("snapshot {} is no longer in {}", gone.short(), place(&intent.from))));
        }
        if !wanted.is_empty() {
            cx.world()?;
            let done = copy(&repository, target, &place(&intent.to), &wanted, watched.0.clone(), &*clock).await?;
            if !done.damaged.is_empty() {
                let (from, to) = (place(&intent.from), place(&intent.to));
                let message = format!("not all of {from} could be copied to {to}; all the rest is: {}", done.damaged.join("; "));
                let failure = Failure::new("source_damaged", message);
                return Err(ApplyError::Definite(failure.remedy("`muster backup verify --read-data` tells all of it")));
            }
        }
        Ok(output(intent, beside_it(&cx.read, intent).await))
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<Output> {
        let look = async {
            let target = cx.world.store(intent.to.as_str())?;
            for id in &intent.snapshots {
                if !holds(&*target, id).await? {
                    return Ok(false);
                }
            }
            Ok::<_, PortError>(true)
        };
        match look.await {
            Err(error) => cannot_tell(&error),
            Ok(true) => Seen::Done(output(intent, beside_it(cx, intent).await)),
            Ok(false) => Seen::Absent,
        }
    }

    async fn undo(_cx: &WriteCx, _intent: &Intent, _output: Option<Output>) -> Result<(), ApplyError> {
        Ok(())
    }

    /// The snapshots are there; that not everybody who opens the one place opens the other, a person must hear.
    fn warnings(output: &Output) -> Vec<String> {
        output.keys_differ.iter().chain(&output.marks_unread).flatten().cloned().collect()
    }
}

/// What is told beside a copy that is there may take no longer.
const BESIDE: std::time::Duration = std::time::Duration::from_secs(10);

/// A snapshot is written last, so where it is, all that it needs is too. One that is not what its name says is not there.
async fn holds(store: &dyn ObjectRead, id: &Id) -> Result<bool, PortError> {
    let body = match store.get(&id.key(SNAPSHOTS)).await {
        Err(PortError::NotFound(_)) => return Ok(false),
        other => other?,
    };
    Ok(Id::of(&body.chunks.try_concat().await?) == *id)
}

/// How the place stands beside the source, as far as both answer: the copy is there whether or not they do.
async fn beside_it(cx: &ReadCx, intent: &Intent) -> Option<Beside> {
    let look = async {
        let repository = open(cx, &intent.from).await.ok()?;
        beside(&repository, intent.from.as_str(), cx.world.store(intent.to.as_str()).ok()?, intent.to.as_str()).await.ok()
    };
    tokio::time::timeout(BESIDE, look).await.ok().flatten()
}

fn output(intent: &Intent, beside: Option<Beside>) -> Output {
    let (keys_differ, marks_unread) = beside.map(|beside| (beside.keys_differ, beside.marks_unread)).unzip();
    Output { copied: intent.snapshots.iter().map(ToString::to_string).collect(), there: intent.there, keys_differ, marks_unread }
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    super::contract_tests::with_vault(serde_json::json!({ "from": "vault", "to": "second" }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::{
        backup_prove::Prove,
        contract_tests::{Bench, with_vault},
    };
    use serde_json::json;

    #[tokio::test]
    async fn the_copy_restores_by_itself() {
        let mut bench = Bench::new(&fixture());
        let out = bench.run::<Copy>().await.expect("copied");
        assert_eq!((out.copied.len(), out.there), (2, 0));
        assert_eq!(bench.run::<Copy>().await.expect("nothing to do").there, 2);
        // The first region is gone.
        bench.world.lock().objects.retain(|(bucket, _, _), _| bucket != "repositories/vault");
        bench.with = crate::model::node::Node::typed(json!({ "repository": "second" }));
        assert!(bench.run::<Prove>().await.expect("proven").files > 0);
    }

    /// The key that a second place lacks was added, or removed there: nobody brings it, and somebody must hear of it.
    #[tokio::test]
    async fn keys_that_differ_and_marks_that_nobody_opens_are_warned_of() {
        use crate::{
            providers::port::WorldWrite,
            repository::{keys::Unlock, names::MARKS, rekey},
        };
        let bench = Bench::new(&fixture());
        let out = bench.run::<Copy>().await.expect("copied");
        assert_eq!((out.keys_differ.as_deref(), out.marks_unread.as_deref()), (Some(&[][..]), Some(&[][..])));
        assert!(Copy::warnings(&out).is_empty());
        let (repository, store) = open_mut(&bench.write, &"vault".into()).await.expect("open");
        let another = Unlock::KeyFile(std::sync::Arc::new(secrecy::SecretBox::new(Box::new(vec![9; 64]))));
        rekey::add(&repository, &*store, &another, "ben", bench.read.world.clock().now()).await.expect("added");
        let mark = Id([7; 32]).key(MARKS);
        let second = bench.world.store_mut("second").expect("the second place");
        second.put(&mark, vec![1, 2, 3].into(), &std::collections::BTreeMap::new(), true).await.expect("put");
        let out = bench.run::<Copy>().await.expect("nothing to do");
        let said = Copy::warnings(&out);
        assert!(said.len() == 2 && said[0].contains("(ben)") && said[0].contains("key add --repo second"), "{said:?}");
        assert!(said[1].contains(&mark) && said[1].contains("take it away"), "{said:?}");
    }

    #[tokio::test]
    async fn what_cannot_be_copied_is_refused() {
        let same = Bench::new(&with_vault(json!({ "from": "vault", "to": "vault" })));
        assert_eq!(same.refused::<Copy>().await, "same_repository");
        let empty = Bench::new(&with_vault(json!({ "from": "second", "to": "vault" })));
        assert_eq!(empty.refused::<Copy>().await, "no_repository");
    }
}
