//! The wheel: an object in a bucket that says which run may act on a region, for `wheel.take` and `wheel.release`.
//!
//! Two operators on two machines share no journal when everything that they shared is down; what they do share is
//! the region that they act on. So the lock lies there: one object, written only by compare-and-swap on its etag.
//! It is never deleted, so that its epoch grows over all runs, and it has no time-out: no clock says that somebody
//! has let go, only a person does.

use super::{contract::*, shared::*};
use crate::model::ids::*;
use crate::providers::port::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where it lies in its bucket.
pub(crate) const KEY: &str = ".muster/wheel.json";

/// Its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Wheel {
    /// Grows by one each time that it is taken.
    pub epoch: u64,
    /// The run that holds it; nobody does when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// Who began that run, and on which machine.
    pub by: String,
    #[schemars(with = "String")]
    pub since: jiff::Timestamp,
}

impl Wheel {
    pub fn is_of(&self, run: &RunId) -> bool {
        self.run.as_ref() == Some(run)
    }

    /// One sentence for whoever stands before it.
    pub fn told(&self, bucket: &BucketName, region: &RegionName) -> String {
        let since = crate::model::time::rfc3339_ms(self.since);
        match &self.run {
            Some(run) => format!(
                "run {run} of {} has the wheel of `{region}` (bucket `{bucket}`, {KEY}) since {since}, epoch {}",
                self.by, self.epoch
            ),
            None => {
                format!(
                    "nobody has the wheel of `{region}` (bucket `{bucket}`, {KEY}): {} let go of it, epoch {}, {since}",
                    self.by, self.epoch
                )
            }
        }
    }
}

/// The wheel as it lies there, and the etag that a swap must name.
pub(crate) struct Found {
    pub wheel: Wheel,
    pub etag: String,
}

pub(crate) async fn find(objects: &dyn ObjectRead) -> PortResult<Option<Found>> {
    let (meta, bytes) = match read_all(objects, KEY).await {
        Ok(found) => found,
        Err(PortError::NotFound(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    let unreadable = |why: String| PortError::Refused(format!("{KEY} is there and is not a wheel: {why}; a person must look at it"));
    let wheel = serde_json::from_slice(&bytes).map_err(|e| unreadable(e.to_string()))?;
    let etag = meta.etag.ok_or_else(|| unreadable("it has no etag".to_owned()))?;
    Ok(Some(Found { wheel, etag }))
}

/// Puts it there if it is still as it was found.
pub(crate) async fn put(objects: &dyn ObjectWrite, wheel: &Wheel, expect: Option<&str>) -> Result<(), ApplyError> {
    let body = serde_json::to_vec(wheel).map_err(|e| fail("wheel", e.to_string()))?;
    objects.swap(KEY, body, expect).await?;
    Ok(())
}

/// Lets go of it if it is this run's; what is another's is left alone.
pub(crate) async fn let_go(cx: &WriteCx, bucket: &BucketName, region: &RegionName) -> Result<bool, ApplyError> {
    let objects = cx.world()?.objects_mut(bucket.as_str(), region.as_str())?;
    match find(&*objects).await? {
        Some(found) if found.wheel.is_of(&cx.run) => {
            put(&*objects, &Wheel { run: None, since: cx.read.world.clock().now(), ..found.wheel }, Some(&found.etag)).await?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// What a person may do who cannot reach the place where it lies.
pub(crate) fn without(refusal: Refusal) -> Refusal {
    refusal.remedy(
        "if that place is down, go on without it, on record: give the reason with `-i no_wheel=REASON`; then nothing keeps another operator from acting too",
    )
}
