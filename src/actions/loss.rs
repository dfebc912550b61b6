//! What a recovery lacks of what its database had at the moment of loss. The primary is asked at that moment, before anything is
//! restored: how far its log is, and when its newest transaction was committed. What came back is held against that.
//!
//! **In this order**: first how far the repository's log goes, then the primary. So what is written in between counts as lost, and
//! the loss is never told too small. The recovery is then kept to that log, though more has come since: a primary that is asked goes
//! on writing, and what it sent to the repository after the moment of loss would not be there after a real one.
//!
//! A primary that cannot be asked, or whose history is another one, is no reason not to restore. The loss is then the age of what came
//! back, which is never less than what was lost, and says so (`upper_bound`, `why`). It knows no single action.

use super::{contract::*, loss_log::Lacks, recovered::Came, shared::*};
use crate::model::ids::*;
use crate::providers::port::*;
use crate::repository::{recovery::Recovery, recovery::Until, wal_line::Reach};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long one server may take to answer: one that is lost must not hold the recovery up.
const ASK: Duration = Duration::from_secs(3);

/// How things stood at the moment of loss. It stands in the intent, so it is on record before anything is restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    pub database: DatabaseName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<RegionName>,
    /// When the primary had answered, or it was clear that none would.
    pub lost_at: Timestamp,
    /// The timeline that the recovery follows, and where the repository's log ended.
    pub timeline: u32,
    pub log_end: Lsn,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary: Option<Newest>,
    /// Why there is no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What was lost: the newest commit that came back against that of the primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Loss {
    pub database: String,
    /// Where the primary was that was asked; `null` if none could be.
    pub region: Option<String>,
    /// The moment of loss: when it was asked.
    #[schemars(with = "String")]
    pub lost_at: Timestamp,
    /// Where the repository's log ended then; the recovery went no further.
    #[schemars(with = "String")]
    pub log_end: Lsn,
    /// How far the primary's log was safe on its disk.
    #[schemars(with = "Option<String>")]
    pub primary_position: Option<Lsn>,
    pub primary_timeline: Option<u32>,
    /// When the newest transaction in that was committed, if the primary keeps such times or its log could be read.
    #[schemars(with = "Option<String>")]
    pub primary_commit: Option<Timestamp>,
    /// How far the recovery came.
    #[schemars(with = "String")]
    pub recovered_position: Lsn,
    /// When the newest transaction was committed that came back; `null` when none was since the base backup.
    #[schemars(with = "Option<String>")]
    pub recovered_commit: Option<Timestamp>,
    /// From the one position to the other; `null` when the primary could not be asked, or its history is another.
    pub lost_bytes: Option<u64>,
    /// Transactions that were committed in between, those of the server itself among them; `null` when that log could not be read.
    pub lost_commits: Option<u64>,
    /// From the newest commit that came back to the primary's newest; 0 when nothing was lost.
    pub lost_ms: u64,
    /// `lost_ms` is the age of what came back, and no more than that was lost; `why` says why it is not known better.
    pub upper_bound: bool,
    /// What could not be told, and why.
    pub why: Option<String>,
}

/// Asks, after it is known how far the repository's log goes.
pub(crate) async fn ask(cx: &ReadCx, name: &DatabaseName, system: &str, reach: &Reach) -> Result<Asked, Refusal> {
    let found = primary(cx, name).await?;
    let mut asked = Asked {
        database: name.clone(),
        region: None,
        lost_at: cx.world.clock().now(),
        timeline: reach.timeline,
        log_end: reach.end,
        primary: None,
        why: None,
    };
    let (region, state) = match found {
        Ok(found) => found,
        Err(why) => return Ok(Asked { why: Some(why), ..asked }),
    };
    if state.system_identifier != system {
        let what = format!(
            "the base backup is of cluster {system}, and `{name}` in `{region}` is cluster {}: its commits say nothing of what this recovery lacks",
            state.system_identifier
        );
        return Err(Refusal::no("another_cluster", what)
            .remedy("name the database that the backup is of as `database`, or back that one up: `muster backup create postgres://…`"));
    }
    let sql = cx.world.sql(name.as_str(), region.as_str())?;
    match within(cx, ASK, sql.newest()).await {
        Ok(newest) => asked.primary = Some(newest),
        Err(e) => asked.why = Some(format!("the primary in {region} was not asked: {e}")),
    }
    (asked.lost_at, asked.region) = (cx.world.clock().now(), Some(region));
    Ok(asked)
}

/// The one server that says that it is the primary; or why there is none that could be asked.
async fn primary(cx: &ReadCx, name: &DatabaseName) -> Result<Result<(RegionName, ServerState), String>, Refusal> {
    let (mut found, mut others) = (Vec::new(), Vec::new());
    for region in database(cx, name)?.instances.keys() {
        // Nor is it a reason not to restore that somebody cannot even be asked: a password that is not here, say.
        let sql = match cx.world.sql(name.as_str(), region.as_str()) {
            Ok(sql) => sql,
            Err(e) => {
                others.push(format!("{region}: {e}"));
                continue;
            }
        };
        match within(cx, ASK, sql.state()).await {
            Ok(state) if state.in_recovery => others.push(format!("{region}: it is a standby")),
            // An old primary that was fenced says so still: what the new one took since is not in it.
            Ok(state) if state.read_only => others.push(format!("{region}: it takes no writes")),
            Ok(state) => found.push((region.clone(), state)),
            Err(e) => others.push(format!("{region}: {e}")),
        }
    }
    let regions: Vec<&str> = found.iter().map(|(region, _)| region.as_str()).collect();
    Ok(match (found.len(), found.first()) {
        (1, Some(one)) => Ok(one.clone()),
        (0, _) => Err(format!("no server of `{name}` answers as its primary ({})", others.join("; "))),
        _ => Err(format!("more than one server of `{name}` says that it is the primary: {}", regions.join(", "))),
    })
}

impl Asked {
    /// A recovery of all the log that there is, kept to what there was when the primary was asked. Where nobody was, the more the better.
    pub(crate) fn keep(&self, mut recovery: Recovery, segment_size: u32) -> Recovery {
        if recovery.until == Until::Latest && self.primary.is_some() {
            recovery.reach = recovery.reach.no_further(self.log_end, segment_size);
        }
        recovery
    }

    /// In words, for who is told what will be done.
    pub(crate) fn note(&self) -> String {
        match (&self.primary, &self.region) {
            (Some(newest), Some(region)) => {
                format!(
                    "the primary of {} in {region} is at {}, and the repository's log ends at {}",
                    self.database, newest.position, self.log_end
                )
            }
            _ => format!("what is lost will be told as the age of what comes back: {}", self.why.as_deref().unwrap_or_default()),
        }
    }

    /// The loss, from what came back and what of the primary's log it lacks.
    pub(crate) fn loss(&self, came: &Came, base_time: Timestamp, lacks: Result<Lacks, String>) -> Loss {
        let lacks = lacks.as_ref();
        let kept = self.primary.as_ref().and_then(|newest| newest.commit);
        // A look at a server that goes on committing may see one that is not in its log yet; what came back is then the newest.
        let newest = match lacks.ok() {
            Some(l) if l.commits == Some(0) => came.last_commit.or(kept),
            l => l.and_then(|l| l.newest).or(kept),
        };
        let (lost_ms, upper_bound, why) = self.time(came, base_time, newest, lacks);
        Loss {
            database: self.database.to_string(),
            region: self.region.as_ref().map(ToString::to_string),
            lost_at: self.lost_at,
            log_end: self.log_end,
            primary_position: self.primary.as_ref().map(|newest| newest.position),
            primary_timeline: self.primary.as_ref().map(|newest| newest.timeline),
            primary_commit: newest,
            recovered_position: came.position,
            recovered_commit: came.last_commit,
            lost_bytes: lacks.ok().map(|l| l.bytes),
            lost_commits: lacks.ok().and_then(|l| l.commits),
            lost_ms,
            upper_bound,
            why,
        }
    }

    /// How long, whether that is only the most that it can be, and what is not known.
    fn time(
        &self,
        came: &Came,
        base_time: Timestamp,
        newest: Option<Timestamp>,
        lacks: Result<&Lacks, &String>,
    ) -> (u64, bool, Option<String>) {
        // What came back stands at its newest commit; without any, it is as old as its base backup at the most.
        let point = came.last_commit.unwrap_or(base_time);
        let age = ms(point, self.lost_at);
        let lacks = match lacks {
            Ok(lacks) => lacks,
            Err(why) => return (age, true, Some(why.clone())),
        };
        if lacks.bytes == 0 || lacks.commits == Some(0) {
            return (0, false, lacks.why.clone());
        }
        let Some(newest) = newest else {
            let why = lacks.why.as_deref().unwrap_or("its log names no time");
            return (age, true, Some(format!("the primary keeps no times of commits (`track_commit_timestamp` is off), and {why}")));
        };
        // The clock of a transaction may stand still, or behind that of the one before it: what was lost is not nothing.
        let lost = ms(point, newest).max(u64::from(lacks.commits.is_some()));
        match came.last_commit {
            Some(_) => (lost, false, lacks.why.clone()),
            None => {
                (lost, true, Some("no transaction came back after the base backup, so the time of the backup itself counts".to_owned()))
            }
        }
    }
}

/// Rounded up; 0 when the one is not before the other.
fn ms(from: Timestamp, to: Timestamp) -> u64 {
    u128::try_from(to.duration_since(from).as_nanos()).map_or(0, |ns| u64::try_from(ns.div_ceil(1_000_000)).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millisecond(1_800_000_000_000 + ms).unwrap()
    }
    fn asked(commit: Option<i64>) -> Asked {
        let primary = Newest { timeline: 1, position: Lsn(9_000), commit: commit.map(at), now: at(0) };
        Asked {
            database: "orders".into(),
            region: Some("east".into()),
            lost_at: at(0),
            timeline: 1,
            log_end: Lsn(8_000),
            primary: Some(primary),
            why: None,
        }
    }
    fn came(commit: Option<i64>) -> Came {
        Came { position: Lsn(7_900), last_commit: commit.map(at), timeline: 2 }
    }
    fn lacks(bytes: u64, commits: Option<u64>, newest: Option<i64>, why: Option<&str>) -> Result<Lacks, String> {
        Ok(Lacks { bytes, commits, newest: newest.map(at), why: why.map(str::to_owned) })
    }

    #[test]
    fn what_is_lost_runs_from_commit_to_commit() {
        let loss = asked(Some(-40)).loss(&came(Some(-5_000)), at(-90_000), lacks(1_100, Some(3), Some(-100), None));
        // The log knows better than a look at a server that goes on committing.
        assert_eq!((loss.lost_ms, loss.lost_bytes, loss.lost_commits, loss.upper_bound), (4_900, Some(1_100), Some(3), false), "{loss:?}");
        assert_eq!((loss.primary_commit, loss.recovered_commit, loss.why), (Some(at(-100)), Some(at(-5_000)), None));
        let unread = asked(Some(-40)).loss(&came(Some(-5_000)), at(-90_000), lacks(1_100, None, None, Some("no right")));
        assert_eq!((unread.lost_ms, unread.lost_commits, unread.upper_bound), (4_960, None, false), "{unread:?}");
        assert_eq!(unread.why.as_deref(), Some("no right"));
    }

    #[test]
    fn nothing_lost_is_0_and_a_commit_lost_is_not() {
        for nothing in [lacks(0, Some(0), None, None), lacks(1_100, Some(0), None, None)] {
            let loss = asked(Some(-40)).loss(&came(Some(-5_000)), at(-90_000), nothing);
            assert_eq!((loss.lost_ms, loss.lost_commits, loss.upper_bound), (0, Some(0), false), "{loss:?}");
        }
        let backwards = asked(None).loss(&came(Some(-50)), at(-90_000), lacks(200, Some(1), Some(-60), None));
        assert_eq!((backwards.lost_ms, backwards.upper_bound), (1, false), "{backwards:?}");
    }

    #[test]
    fn what_is_not_known_is_the_age_and_says_so() {
        let unasked = Asked { primary: None, region: None, why: Some("east: gone".to_owned()), ..asked(None) };
        for (asked, lacks, word) in [
            (&unasked, Err("east: gone".to_owned()), "east: gone"),
            (&asked(None), lacks(1_100, None, None, Some("its log was not read: refused")), "track_commit_timestamp"),
        ] {
            let loss = asked.loss(&came(Some(-5_000)), at(-90_000), lacks);
            assert!(loss.upper_bound && loss.lost_ms == 5_000 && loss.lost_commits.is_none(), "{loss:?}");
            assert!(loss.why.as_deref().is_some_and(|why| why.contains(word)), "{loss:?}");
        }
        let nothing_since = asked(Some(-40)).loss(&came(None), at(-90_000), lacks(1_100, Some(2), Some(-100), None));
        assert!(nothing_since.upper_bound && nothing_since.lost_ms == 89_900 && nothing_since.lost_commits == Some(2), "{nothing_since:?}");
    }
}
