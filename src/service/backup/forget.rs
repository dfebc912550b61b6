//! `backup forget`: snapshots that nobody needs any more, by name or by a rule. Only their objects are deleted; what
//! they alone used, `backup prune` finds and deletes.

use super::{
    super::{Muster, ServiceError},
    look::{Filter, Shot},
    place::Where,
};
use crate::plan::retention::{Point, Reason, Retention, decide};
use crate::repository::{
    RepositoryError,
    names::{Id, SNAPSHOTS},
    prune,
    snapshot::Snapshot,
};
use serde::Serialize;

pub use crate::plan::retention;

#[derive(Clone, Debug, Default)]
pub struct Forget {
    pub at: Where,
    /// These, and then no rule applies.
    pub ids: Vec<String>,
    pub rule: Retention,
    pub filter: Filter,
    pub dry_run: bool,
}

/// One snapshot, and what is decided about it.
#[derive(Clone, Debug, Serialize)]
pub struct Fate {
    #[serde(flatten)]
    pub shot: Shot,
    /// Why it is kept; nothing: it is forgotten.
    pub reasons: Vec<Reason>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Forgotten {
    pub dry_run: bool,
    pub kept: Vec<Fate>,
    pub forgotten: Vec<Fate>,
    /// Snapshots that cannot be read and were named: forgotten as well.
    pub forgotten_damaged: Vec<Id>,
    /// What else is damaged among the snapshots.
    pub damaged: Vec<String>,
}

impl Muster {
    pub async fn backup_forget(&self, ask: &Forget) -> Result<Forgotten, ServiceError> {
        if ask.ids.is_empty() == ask.rule.is_empty() {
            return Err(ServiceError::Usage(
                "which snapshots? Name them, or say what to keep: --keep-last N, --keep-daily N, --keep-weekly N, --keep-monthly N, --keep-yearly N".to_owned(),
            ));
        }
        let opened = self.backup_open(&ask.at).await?;
        let found = opened.repository.snapshots().await?;
        let mut damaged = found.damaged;
        let mut unreadable: Vec<Id> = Vec::new();
        let fates = if ask.ids.is_empty() {
            by_rule(found.whole.iter().filter(|(_, snapshot)| ask.filter.fits(snapshot)).cloned().collect(), ask.rule)
        } else {
            let mut fates: Vec<Fate> = Vec::new();
            for name in &ask.ids {
                if let Some(id) = damaged_one(name, &found.whole, &damaged) {
                    unreadable.extend((!unreadable.contains(&id)).then_some(id));
                    continue;
                }
                let (id, snapshot) = opened.repository.snapshot(name).await?;
                if !fates.iter().any(|fate| fate.shot.id == id) {
                    fates.push(Fate { shot: Shot::of(id, snapshot), reasons: Vec::new() });
                }
            }
            fates
        };
        let (forgotten, kept): (Vec<Fate>, Vec<Fate>) = fates.into_iter().partition(|fate| fate.reasons.is_empty());
        if !ask.dry_run {
            let ids: Vec<Id> = forgotten.iter().map(|fate| fate.shot.id).chain(unreadable.iter().copied()).collect();
            prune::forget(&*opened.store, &ids).await?;
        }
        damaged.retain(|error| snapshot_of(error).is_none_or(|id| !unreadable.contains(&id)));
        let damaged = damaged.iter().map(ToString::to_string).collect();
        Ok(Forgotten { dry_run: ask.dry_run, kept, forgotten, forgotten_damaged: unreadable, damaged })
    }
}

/// The damaged snapshot whose name begins so, if there is no other of that beginning.
fn damaged_one(name: &str, whole: &[(Id, Snapshot)], damaged: &[RepositoryError]) -> Option<Id> {
    let fits = |id: &Id| !name.is_empty() && id.to_string().starts_with(name);
    let mut ids = damaged.iter().filter_map(snapshot_of).filter(fits);
    let id = ids.next()?;
    (ids.next().is_none() && !whole.iter().any(|(id, _)| fits(id))).then_some(id)
}

fn snapshot_of(damaged: &RepositoryError) -> Option<Id> {
    let RepositoryError::Damaged { object, .. } = damaged else { return None };
    Id::in_key(object, SNAPSHOTS)
}

fn by_rule(snapshots: Vec<(Id, Snapshot)>, rule: Retention) -> Vec<Fate> {
    let point = |(id, snapshot): &(Id, Snapshot)| Point { id: id.to_string(), time: snapshot.time, group: snapshot.series() };
    let points: Vec<Point> = snapshots.iter().map(point).collect();
    let fate = |((id, snapshot), reasons)| Fate { shot: Shot::of(id, snapshot), reasons };
    let reasons = decide(&points, rule);
    snapshots.into_iter().zip(reasons).map(fate).collect()
}
