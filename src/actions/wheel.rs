//! The wheel: an object in a bucket that says which run may act on a region, or a row in a database that says which may act
//! on that, for `wheel.take` and `wheel.release`.
//!
//! Two operators on two machines share no journal when everything that they shared is down; what they do share is
//! the region that they act on. So the lock lies there: one object, written only by compare-and-swap on its etag.
//! It is never deleted, so that its epoch grows over all runs, and it has no time-out: no clock says that somebody
//! has let go, only a person does.
//!
//! An estate of servers of one's own often has no bucket. What its operators share is the database: the row is written on
//! the primary, by compare-and-swap as well, and goes where the database goes. In the middle of a switchover there
//! is no primary, so nobody can change it, and the standby's copy is read; that none lives must then be seen on the
//! machines of those that do not answer. A failover cannot use it, since what it lies on is what is lost.

use super::{contract::*, own_server::state_of, shared::*};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node};
use crate::providers::port::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Where a wheel lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Seat {
    Object { bucket: BucketName, region: RegionName },
    Row { database: DatabaseName },
}

impl Seat {
    pub fn of(bucket: Option<BucketName>, region: Option<RegionName>, database: Option<DatabaseName>) -> Result<Self, Refusal> {
        match (bucket, region, database) {
            (Some(bucket), Some(region), None) => Ok(Self::Object { bucket, region }),
            (None, None, Some(database)) => Ok(Self::Row { database }),
            _ => Err(Refusal::no(
                "input",
                "a wheel lies in a bucket of a region, or in a database: give `bucket` and `region`, or `database`",
            )),
        }
    }

    /// What it is the wheel of.
    pub fn over(&self) -> &str {
        match self {
            Self::Object { region, .. } => region.as_str(),
            Self::Row { database } => database.as_str(),
        }
    }

    fn place(&self) -> String {
        match self {
            Self::Object { bucket, .. } => format!("bucket `{bucket}`, {KEY}"),
            Self::Row { .. } => "in it, muster.wheel".to_owned(),
        }
    }
}

/// The inputs that name a seat, as a schema tells them, so that a file without is found wrong before anything runs.
pub(crate) fn places() -> serde_json::Value {
    serde_json::json!([
        { "type": "object", "required": ["bucket", "region"] },
        { "type": "object", "required": ["database"] },
    ])
}

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
    pub fn told(&self, seat: &Seat) -> String {
        let (since, over, place) = (crate::model::time::rfc3339_ms(self.since), seat.over(), seat.place());
        match &self.run {
            Some(run) => format!("run {run} of {} has the wheel of `{over}` ({place}) since {since}, epoch {}", self.by, self.epoch),
            None => format!("nobody has the wheel of `{over}` ({place}): {} let go of it, epoch {}, {since}", self.by, self.epoch),
        }
    }
}

/// The wheel as it lies there, and the mark that a swap must name: an object's etag, a row's content.
pub(crate) struct Found {
    pub wheel: Wheel,
    pub mark: String,
}

pub(crate) async fn find(cx: &ReadCx, seat: &Seat) -> PortResult<Option<Found>> {
    let unreadable = |why: String| {
        PortError::Refused(format!("a wheel ({}) is there and cannot be read: {why}; a person must look at it", seat.place()))
    };
    let (bytes, mark) = match seat {
        Seat::Object { bucket, region } => match read_all(&*cx.world.objects(bucket.as_str(), region.as_str())?, KEY).await {
            Ok((meta, bytes)) => (bytes, meta.etag.ok_or_else(|| unreadable("it has no etag".to_owned()))?),
            Err(PortError::NotFound(_)) => return Ok(None),
            Err(error) => return Err(error),
        },
        Seat::Row { database } => {
            let (region, _) = holder(cx, database).await?;
            match cx.world.sql(database.as_str(), region.as_str())?.wheel().await? {
                Some(text) => (text.clone().into_bytes(), text),
                None => return Ok(None),
            }
        }
    };
    let wheel = serde_json::from_slice(&bytes).map_err(|e| unreadable(e.to_string()))?;
    Ok(Some(Found { wheel, mark }))
}

/// Puts it there if it is still as it was found.
pub(crate) async fn put(cx: &WriteCx, seat: &Seat, wheel: &Wheel, expect: Option<&str>) -> Result<(), ApplyError> {
    let text = serde_json::to_string(wheel).map_err(|e| fail("wheel", e.to_string()))?;
    match seat {
        Seat::Object { bucket, region } => {
            cx.world()?.objects_mut(bucket.as_str(), region.as_str())?.swap(KEY, text.into_bytes(), expect).await?;
        }
        Seat::Row { database } => match holder(cx, database).await? {
            (region, true) => cx.world()?.sql_mut(database.as_str(), region.as_str())?.swap_wheel(expect, &text).await?,
            (_, false) => {
                let failure = Failure::new("no_primary", format!("`{database}` has no primary at this moment that could be written to"));
                return Err(ApplyError::Retry { after: Duration::from_secs(1), failure });
            }
        },
    }
    Ok(())
}

/// The region whose server has the row, and whether it is the primary.
async fn holder(cx: &ReadCx, name: &DatabaseName) -> PortResult<(RegionName, bool)> {
    let regions = cx.estate.databases.get(name).map(|d| d.instances.keys().cloned().collect::<Vec<_>>());
    let regions = regions.ok_or_else(|| PortError::Config(format!("the estate has no database `{name}`")))?;
    let states = regions.iter().map(|region| within(cx, Duration::from_secs(5), state_of(cx, name, region)));
    let states = futures::future::join_all(states).await;
    let (mut primaries, mut standbys, mut silent) = (Vec::new(), Vec::new(), Vec::new());
    for (region, state) in regions.into_iter().zip(states) {
        match state {
            Ok(state) if !state.in_recovery => primaries.push(region),
            Ok(_) => standbys.push(region),
            Err(error) => silent.push((region, error)),
        }
    }
    if primaries.len() > 1 {
        let text = format!("`{name}` has {} primaries; which of them has the wheel is for a person to say", primaries.len());
        return Err(PortError::Refused(text));
    }
    if let Some(primary) = primaries.pop() {
        return Ok((primary, true));
    }
    // Silence does not say that it is no primary; its machine may.
    for (region, error) in silent {
        let dead = match cx.world.machine(name.as_str(), region.as_str()) {
            Ok(machine) => machine.look().await.is_ok_and(|state| state.dead()),
            Err(_) => false,
        };
        if !dead {
            let text = format!("whether `{name}` in `{region}` is the primary that has the wheel cannot be seen: {error}");
            return Err(PortError::Unreachable(text));
        }
    }
    let standby = standbys.pop().ok_or_else(|| PortError::Unreachable(format!("no server of `{name}` answers")))?;
    Ok((standby, false))
}

/// Lets go of it if it is this run's; what is another's is left alone.
pub(crate) async fn let_go(cx: &WriteCx, seat: &Seat) -> Result<bool, ApplyError> {
    match find(cx, seat).await? {
        Some(found) if found.wheel.is_of(&cx.run) => {
            put(cx, seat, &Wheel { run: None, since: cx.read.world.clock().now(), ..found.wheel }, Some(&found.mark)).await?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// What it needs: the region of the object, or every region that the database has a server in.
pub(crate) fn reaches(with: &Node, estate: &Estate) -> Vec<Reach> {
    reach(with, "region", Plane::Data).into_iter().chain(reach_servers(with, estate)).chain([reach_here()]).collect()
}

/// What a person may do who cannot reach the place where it lies.
pub(crate) fn without(refusal: Refusal) -> Refusal {
    refusal.remedy(
        "if that place is down, go on without it, on record: give the reason with `-i no_wheel=REASON`; then nothing keeps another operator from acting too",
    )
}
