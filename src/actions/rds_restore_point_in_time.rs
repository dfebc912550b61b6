//! `rds.restore_point_in_time`: bring a database's instance back as it was at a time, as a new instance beside it.
//!
//! **What it does.** One call; RDS makes the new instance from its own backups and logs. Without a time it is the newest
//! that can be had, which lies up to five minutes back; a time beyond that is refused beforehand. The old instance is
//! not touched, and nothing points to the new one yet.
//!
//! **Half-done** it is while it is `creating`; the name and the tags come from the step's key, so that it is never made
//! twice. It is not undone: it harms nobody, and costs until somebody deletes it. The recovered point is on record: the
//! time that was asked for, or, for the newest, the latest that RDS offered when the step was prepared, at least.

use super::{contract::*, rds_shared::*, shared::*};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use crate::providers::port::*;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub database: DatabaseName,
    pub region: RegionName,
    /// A time with its zone, to the second: `2026-11-26T20:00:00Z`; the newest when left out.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub until: Option<Timestamp>,
    /// The identifier of the new instance; derived from the step when left out.
    #[serde(default)]
    pub name: Option<String>,
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
    source: String,
    until: Option<Timestamp>,
    /// What comes back at least.
    point: Option<Timestamp>,
    new: NewInstance,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    #[serde(flatten)]
    pub made: MadeInstance,
    /// What came back, at least up to here; `null` when RDS would not say.
    #[schemars(with = "Option<String>")]
    pub recovered_point: Option<Timestamp>,
}

pub struct PointInTime;

impl Action for PointInTime {
    type Input = Input;
    type Intent = Intent;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "rds.restore_point_in_time",
            version: 2,
            summary: "Bring a database's instance back as it was at a time, as a new instance",
            effect: Effect::Repeatable,
            danger: Danger::None,
            undo: UndoPolicy::None,
            timeout: Span::from_secs(4 * 3600),
            example: "id: restored\nuses: rds.restore_point_in_time\nwith: { database: predictions, region: east, until: \"2026-11-26T20:00:00Z\" }\n",
        }
    }
    fn measured() -> &'static [&'static str] {
        &["point"]
    }
    fn reach(with: &Node, _estate: &Estate) -> Vec<Reach> {
        reach(with, "region", Plane::Control).into_iter().collect()
    }
    fn locks(with: &Node) -> Vec<Resource> {
        locks(with, "database", "database")
    }

    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Intent>, Refusal> {
        let Input { database, region, until, name, class, subnet_group, security_groups } = input;
        let source = instance_id(cx, &database, &region)?;
        let info = instance(cx, &region, &source).await?;
        let latest = info.restorable_until;
        if let (Some(until), Some(latest)) = (until, latest)
            && until > latest
        {
            return Err(Refusal::later("not_yet", format!("`{source}` can be brought back up to {latest}, not to {until}")).remedy("leave `until` out for the newest"));
        }
        let id = name_of(cx, name, &database)?;
        free(cx, &region, &id).await?;
        let point = until.or(latest);
        let to = point.map_or_else(|| "the newest".to_owned(), |at| at.to_string());
        let what = change(format!("{id} in {region}"), None, Some(format!("{source} as of {to}")));
        let notes = if latest.is_none() { vec![format!("RDS does not say up to when `{source}` can be brought back: are its backups on?")] } else { Vec::new() };
        let new = Wishes { class, subnet_group, security_groups }.into_instance(cx, id);
        Ok(Prepared { intent: Intent { region, source, until, point, new }, change: vec![what], notes })
    }

    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
        let of = MadeOf::Time { source: &intent.source, at: intent.until };
        let made = make_instance(cx, &intent.region, &intent.new, of).await?;
        Ok(Output { made, recovered_point: intent.point })
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<Output> {
        see_instance(cx, &intent.region, &intent.new, |_| Ok(())).await.map(|made| Output { made, recovered_point: intent.point })
    }

    async fn undo(_cx: &WriteCx, _intent: &Intent, _output: Option<Output>) -> Result<(), ApplyError> {
        Ok(())
    }
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    super::contract_tests::Fixture::new(serde_json::json!({ "database": "predictions", "region": "east" }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::contract_tests::{Bench, Fixture};
    use serde_json::json;

    #[tokio::test]
    async fn a_time_that_rds_does_not_have_yet_is_refused() {
        let with = json!({ "database": "predictions", "region": "east", "until": "2999-01-01T00:00:00Z" });
        assert_eq!(Bench::new(&Fixture::new(with)).refused::<PointInTime>().await, "not_yet");
    }

    #[tokio::test]
    async fn a_point_that_nobody_told_is_null() {
        let bench = Bench::new(&fixture());
        assert!(bench.run::<PointInTime>().await.expect("restored").recovered_point.is_some());
        let bench = Bench::new(&fixture());
        let east = ("east".to_owned(), "predictions-east".to_owned());
        bench.world.lock().instances.get_mut(&east).expect("east").info.restorable_until = None;
        assert_eq!(bench.run::<PointInTime>().await.expect("restored").recovered_point, None);
    }
}
