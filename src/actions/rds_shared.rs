//! What the `rds.*` actions share: an instance or a snapshot that one step makes, under a name and a tag that come from
//! its key, so that it is found again after an answer that was lost and never made twice.

use super::{contract::*, shared::*};
use crate::model::{effect::*, ids::*};
use crate::providers::port::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The whole key of the step that made a thing.
pub(crate) const KEY_TAG: &str = "muster-key";

pub(crate) fn tags(cx: &ReadCx) -> BTreeMap<String, String> {
    [(KEY_TAG.to_owned(), cx.key.clone()), ("muster-run".to_owned(), cx.run.0.clone())].into()
}

/// The name that a person gave, or one of the step's own.
pub(crate) fn name_of(cx: &ReadCx, given: Option<String>, database: &DatabaseName) -> Result<String, Refusal> {
    let Some(name) = given else { return Ok(rds_name(&["muster", database.as_str(), &short_key(cx)])) };
    if rds_name(&[&name]) == name && name.starts_with(|c: char| c.is_ascii_lowercase()) && !name.contains(|c: char| c.is_ascii_uppercase())
    {
        return Ok(name);
    }
    Err(Refusal::no(
        "name",
        format!("`{name}` is no name for RDS: small letters, digits and single hyphens, beginning with a letter, at most 63"),
    ))
}

pub(crate) async fn instance(cx: &ReadCx, region: &RegionName, id: &str) -> Result<InstanceInfo, Refusal> {
    let info = cx.world.instances(region.as_str())?.instance(id).await?;
    info.ok_or_else(|| Refusal::no("no_instance", format!("there is no instance `{id}` in region `{region}`")))
}

/// Nothing of that name stands there yet, unless this very step made it.
pub(crate) async fn free(cx: &ReadCx, region: &RegionName, id: &str) -> Result<(), Refusal> {
    match cx.world.instances(region.as_str())?.instance(id).await? {
        Some(there) if !ours(&there.tags, &tags(cx)) => {
            Err(Refusal::no("conflict", format!("an instance `{id}` is in region `{region}` already, and not from this step"))
                .remedy("give another `name`"))
        }
        _ => Ok(()),
    }
}

/// Amazon's name of a region of the estate.
pub(crate) fn aws_region<'a>(cx: &'a ReadCx, region: &RegionName) -> Result<&'a str, Refusal> {
    let found = cx.estate.regions.get(region).and_then(|r| r.aws.as_ref()).map(|a| a.region.as_str());
    found.ok_or_else(|| {
        Refusal::no("no_aws", format!("the estate does not say what region `{region}` is at Amazon"))
            .remedy(format!("write regions.{region}.aws.region"))
    })
}

/// Something encrypted leaves its region only with a key of the other one.
pub(crate) fn key_fits(encrypted: bool, key: Option<&str>, leaves: bool, to: &RegionName) -> Result<(), Refusal> {
    if encrypted && leaves && key.is_none() {
        return Err(Refusal::no("no_kms_key", format!("it is encrypted, and a copy in `{to}` needs a KMS key of that region"))
            .remedy("give `kms_key`"));
    }
    if let Some(found) = key.filter(|k| k.starts_with("arn:"))
        && !encrypted
        && leaves
    {
        return Err(Refusal::no(
            "kms_key",
            format!("it is not encrypted, so `{found}` would not be used for a copy in another region; leave `kms_key` out"),
        ));
    }
    Ok(())
}

pub(crate) fn ours(found: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    found.contains_key(KEY_TAG) && found.get(KEY_TAG) == wanted.get(KEY_TAG)
}

/// An instance that a step made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MadeInstance {
    pub instance: String,
    /// `available` when it can be used.
    pub status: String,
    pub arn: Option<String>,
    /// Where its server answers; `null` until it is there.
    pub host: Option<String>,
    pub port: Option<u16>,
}

impl MadeInstance {
    pub(crate) fn accepted(new: &NewInstance) -> Self {
        Self { instance: new.id.clone(), status: "creating".into(), arn: None, host: None, port: None }
    }
    fn found(info: InstanceInfo) -> Self {
        Self { instance: info.id, status: info.status, arn: Some(info.arn), host: info.host, port: info.port }
    }
}

/// From these nothing comes by waiting.
const LOST: [&str; 9] = [
    "failed",
    "restore-error",
    "incompatible-restore",
    "incompatible-network",
    "incompatible-parameters",
    "incompatible-option-group",
    "inaccessible-encryption-credentials",
    "storage-full",
    "deleting",
];

/// What a new instance is made of.
pub(crate) enum MadeOf<'a> {
    Instance { source: &'a str, kms_key: Option<&'a str> },
    Time { source: &'a str, at: Option<jiff::Timestamp> },
    Snapshot(&'a str),
}

/// Makes it unless it is there. One that came first under the same name is looked at again.
pub(crate) async fn make_instance(
    cx: &WriteCx,
    region: &RegionName,
    new: &NewInstance,
    of: MadeOf<'_>,
) -> Result<MadeInstance, ApplyError> {
    let instances = cx.world()?.instances_mut(region.as_str())?;
    let there = |found: InstanceInfo| {
        if ours(&found.tags, &new.tags) { Ok(MadeInstance::found(found)) } else { Err(fail("conflict", strange(&found))) }
    };
    if let Some(found) = instances.instance(&new.id).await? {
        return there(found);
    }
    let made = match of {
        MadeOf::Instance { source, kms_key } => instances.create_replica(source, kms_key, new).await,
        MadeOf::Time { source, at } => instances.restore_to(source, at, new).await,
        MadeOf::Snapshot(id) => instances.restore_snapshot(id, new).await,
    };
    match made {
        Ok(()) => Ok(MadeInstance::accepted(new)),
        Err(error @ PortError::Conflict { .. }) => match instances.instance(&new.id).await? {
            Some(found) => there(found),
            None => Err(error.into()),
        },
        Err(error) => Err(error.into()),
    }
}

fn strange(found: &InstanceInfo) -> String {
    format!("an instance `{}` is there and was not made by this step", found.id)
}

/// Is it there, ours and ready? `right` says what else must be true of it.
pub(crate) async fn see_instance(
    cx: &ReadCx,
    region: &RegionName,
    new: &NewInstance,
    right: impl Fn(&InstanceInfo) -> Result<(), String>,
) -> Seen<MadeInstance> {
    let found = match cx.world.instances(region.as_str()) {
        Ok(instances) => instances.instance(&new.id).await,
        Err(e) => Err(e),
    };
    match found {
        Err(e) => cannot_tell(&e),
        Ok(None) => Seen::Absent,
        Ok(Some(there)) if !ours(&there.tags, &new.tags) => Seen::Differs { found: strange(&there) },
        Ok(Some(there)) if LOST.contains(&there.status.as_str()) => {
            Seen::Differs { found: format!("instance `{}` is `{}`", there.id, there.status) }
        }
        Ok(Some(there)) => match right(&there) {
            Err(found) => Seen::Differs { found },
            Ok(()) if there.status == "available" => Seen::Done(MadeInstance::found(there)),
            Ok(()) => pending(2_000, format!("instance `{}` is `{}`", there.id, there.status)),
        },
    }
}

/// What a new instance gets, as a step's input says it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Wishes {
    pub class: Option<String>,
    pub subnet_group: Option<String>,
    pub security_groups: Vec<String>,
}

impl Wishes {
    pub fn into_instance(self, cx: &ReadCx, id: String) -> NewInstance {
        NewInstance { id, class: self.class, subnet_group: self.subnet_group, groups: self.security_groups, tags: tags(cx) }
    }
}
