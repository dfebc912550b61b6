//! `rds.create_replica`: make a read replica of a database's instance, in its own region or in another.
//!
//! **What it does.** One call to the region that gets the replica. Its name comes from the step's key unless one is
//! given, and its tags carry the whole key, so that it is never made twice. An encrypted instance leaves its region only
//! with a KMS key of the other one, and with a URL that Muster signs for the region that it comes from.
//!
//! **Half-done** it is while it is `creating`, `backing-up` or `modifying`, for minutes or hours. It is done when it is
//! `available` and replicates from that very instance; whether it keeps up is `database.verify_replica`'s to say. It is
//! not undone: a replica harms nobody, and costs until somebody deletes it.

use super::{contract::*, rds_shared::*, shared::*};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use crate::providers::port::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub database: DatabaseName,
    /// Where the instance is that is replicated.
    pub from: RegionName,
    /// Where the replica is made; the same region when left out.
    #[serde(default)]
    pub to: Option<RegionName>,
    /// The identifier of the replica; derived from the step when left out.
    #[serde(default)]
    pub name: Option<String>,
    /// A KMS key of the replica's region, by ARN or identifier.
    #[serde(default)]
    pub kms_key: Option<String>,
    /// `db.r6g.large`; the source's when left out.
    #[serde(default)]
    pub class: Option<String>,
    #[serde(default)]
    pub subnet_group: Option<String>,
    #[serde(default)]
    pub security_groups: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    region: RegionName,
    /// An identifier in the same region, an ARN elsewhere.
    source: String,
    source_id: String,
    kms_key: Option<String>,
    new: NewInstance,
}

pub struct Replica;

impl Action for Replica {
    type Input = Input;
    type Intent = Intent;
    type Output = MadeInstance;

    fn spec() -> Spec {
        Spec {
            name: "rds.create_replica",
            version: 1,
            summary: "Make a read replica of a database's instance, in its region or in another",
            effect: Effect::Repeatable,
            danger: Danger::None,
            undo: UndoPolicy::None,
            timeout: Span::from_secs(4 * 3600),
            example: "id: replica\nuses: rds.create_replica\nwith: { database: predictions, from: east, to: west, kms_key: \"arn:aws:kms:us-west-2:111122223333:key/1234\" }\n",
        }
    }
    fn reach(with: &Node, _estate: &Estate) -> Vec<Reach> {
        ["from", "to"].iter().filter_map(|field| reach(with, field, Plane::Control)).collect()
    }
    fn locks(with: &Node) -> Vec<Resource> {
        locks(with, "database", "database")
    }

    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Intent>, Refusal> {
        let Input { database, from, to, name, kms_key, class, subnet_group, security_groups } = input;
        let to = to.unwrap_or_else(|| from.clone());
        let source_id = instance_id(cx, &database, &from)?;
        let source = instance(cx, &from, &source_id).await?;
        if source.status != "available" {
            return Err(Refusal::later("not_available", format!("`{source_id}` in `{from}` is `{}`, not `available`", source.status)));
        }
        let leaves = aws_region(cx, &from)? != aws_region(cx, &to)?;
        key_fits(source.kms_key.is_some(), kms_key.as_deref(), leaves, &to)?;
        let id = name_of(cx, name, &database)?;
        free(cx, &to, &id).await?;
        let what = change(format!("{id} in {to}"), None, Some(format!("replica of {source_id} in {from}")));
        let new = Wishes { class, subnet_group, security_groups }.into_instance(cx, id);
        let source = if leaves { source.arn } else { source_id.clone() };
        Ok(Prepared { intent: Intent { region: to, source, source_id, kms_key, new }, change: vec![what], notes: Vec::new() })
    }

    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<MadeInstance, ApplyError> {
        let of = MadeOf::Instance { source: &intent.source, kms_key: intent.kms_key.as_deref() };
        make_instance(cx, &intent.region, &intent.new, of).await
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<MadeInstance> {
        see_instance(cx, &intent.region, &intent.new, |info| match &info.replicates_from {
            Some(source) if *source == intent.source || *source == intent.source_id => Ok(()),
            Some(source) => Err(format!("`{}` replicates from `{source}`", info.id)),
            // RDS says it from the first moment on; without it somebody has promoted the replica.
            None => Err(format!("`{}` is no replica any more", info.id)),
        })
        .await
    }

    async fn undo(_cx: &WriteCx, _intent: &Intent, _output: Option<MadeInstance>) -> Result<(), ApplyError> {
        Ok(())
    }
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    super::contract_tests::Fixture::new(serde_json::json!({ "database": "predictions", "from": "east", "to": "west" }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::contract_tests::{Bench, Fixture};
    use serde_json::json;

    #[tokio::test]
    async fn what_is_encrypted_leaves_its_region_only_with_a_key() {
        let bench = Bench::new(&fixture());
        let east = ("east".to_owned(), "predictions-east".to_owned());
        bench.world.lock().instances.get_mut(&east).expect("east").info.kms_key = Some("arn:aws:kms:us-east-1:1:key/a".into());
        assert_eq!(bench.refused::<Replica>().await, "no_kms_key");
        let same = Bench::new(&Fixture::new(json!({ "database": "predictions", "from": "east" })));
        same.world.lock().instances.get_mut(&east).expect("east").info.kms_key = Some("arn:aws:kms:us-east-1:1:key/a".into());
        assert_eq!(same.run::<Replica>().await.expect("made").status, "available");
    }

    #[tokio::test]
    async fn a_name_that_is_taken_is_refused() {
        let with = json!({ "database": "predictions", "from": "east", "to": "west", "name": "predictions-west" });
        assert_eq!(Bench::new(&Fixture::new(with)).refused::<Replica>().await, "conflict");
        let with = json!({ "database": "predictions", "from": "east", "to": "west", "name": "no_name" });
        assert_eq!(Bench::new(&Fixture::new(with)).refused::<Replica>().await, "name");
    }
}
