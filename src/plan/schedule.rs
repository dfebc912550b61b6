//! When a schedule fires, and what becomes of each fire.
//!
//! Calendar arithmetic is the `cron` crate's, over wall times without a zone; which instants a wall time
//! is, around daylight saving, is decided here. A fixed time that does not exist fires at the first valid
//! instant after it, one that exists twice fires at the first only; with `*` in the minute or hour the
//! schedule runs by elapsed time: each real matching minute, nothing added for a gap.

pub use super::crontab::CronError;
use super::crontab::Crontab;
use crate::model::drill::{Blackout, Missed, Schedule};
use chrono::{DateTime, TimeZone as _, Utc};
use jiff::{Timestamp, civil, tz::AmbiguousOffset, tz::Offset, tz::TimeZone};
use std::{collections::VecDeque, str::FromStr as _};

/// So many fires are listed one by one at most, the newest; what was before them is summed up.
pub const LISTED: usize = 1_000;
/// So many are walked through at most before looking back a month only.
const WALKED: usize = 50_000;
const MONTH: jiff::SignedDuration = jiff::SignedDuration::from_hours(31 * 24);

/// A schedule that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    #[error("cron: {0}")]
    Cron(#[from] CronError),
    #[error("timezone: `{name}` is not in the time zone database{}", .nearest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
    Zone { name: String, nearest: Option<String> },
}

/// A parsed line of crontab(5).
#[derive(Clone, Debug)]
pub struct Cron {
    tab: Crontab,
    /// The same in the crate's form: two when either day field may match.
    forms: Vec<cron::Schedule>,
}

/// An IANA time zone by its name.
///
/// # Errors
/// Names the nearest zone there is.
pub fn zone(name: &str) -> Result<TimeZone, ScheduleError> {
    TimeZone::get(name).map_err(|_| {
        let lower = name.to_ascii_lowercase();
        let score = |known: &str| strsim::jaro_winkler(&known.to_ascii_lowercase(), &lower);
        let nearest = jiff::tz::db().available().map(|known| known.to_string()).max_by(|a, b| score(a).total_cmp(&score(b)));
        ScheduleError::Zone { name: name.to_owned(), nearest: nearest.filter(|n| score(n) > 0.75) }
    })
}

impl Cron {
    /// Reads five fields, or `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`.
    ///
    /// # Errors
    /// Says which field is wrong, and where.
    pub fn parse(line: &str) -> Result<Self, CronError> {
        let tab = Crontab::parse(line)?;
        let list = |values: &mut dyn Iterator<Item = u32>| values.map(|v| v.to_string()).collect::<Vec<_>>().join(",");
        let [minute, hour, day, month] = [&tab.minute, &tab.hour, &tab.day, &tab.month].map(|f| list(&mut f.values.iter().copied()));
        let weekday = list(&mut tab.weekday.values.iter().map(|v| v + 1));
        let form = |day: &str, weekday: &str| {
            cron::Schedule::from_str(&format!("0 {minute} {hour} {day} {month} {weekday} *")).map_err(|e| CronError {
                field: "schedule",
                message: format!("`{line}` was not understood: {e}"),
                column: 1,
            })
        };
        let forms = if tab.either_day() { vec![form(&day, "*")?, form("*", &weekday)?] } else { vec![form(&day, &weekday)?] };
        Ok(Self { tab, forms })
    }

    /// The first fire after an instant; `None` when there is none until the year 2100.
    #[must_use]
    pub fn next_after(&self, zone: &TimeZone, after: Timestamp) -> Option<Timestamp> {
        if self.tab.by_elapsed_time() { self.next_by_elapsed_time(zone, after) } else { self.next_fixed(zone, after) }
    }

    /// Wall times that begin after `wall`, earliest first.
    fn walls(&self, wall: civil::DateTime) -> Option<impl Iterator<Item = civil::DateTime> + '_> {
        let from = to_chrono(wall)?;
        let mut heads: Vec<_> = self.forms.iter().map(|form| form.after(&from).peekable()).collect();
        Some(std::iter::from_fn(move || {
            let next = heads.iter_mut().filter_map(|head| head.peek().copied()).min()?;
            for head in &mut heads {
                if head.peek() == Some(&next) {
                    head.next();
                }
            }
            from_chrono(next)
        }))
    }

    fn next_fixed(&self, zone: &TimeZone, after: Timestamp) -> Option<Timestamp> {
        // Wall times map to instants in order, so none at or before the present one can still come.
        self.walls(zone.to_datetime(after))?.find_map(|wall| first_instant(zone, wall).filter(|at| *at > after))
    }

    /// Walks through the stretches of constant offset: within one, wall time is elapsed time.
    fn next_by_elapsed_time(&self, zone: &TimeZone, after: Timestamp) -> Option<Timestamp> {
        let mut offset = zone.to_offset(after);
        let mut from = offset.to_datetime(after);
        let mut changes = zone.following(after);
        loop {
            let candidate = offset.to_timestamp(self.walls(from)?.next()?).ok()?;
            match changes.next() {
                Some(change) if change.timestamp() <= candidate => {
                    offset = change.offset();
                    // The first instant of the new stretch counts, and `walls` begins after what it is given.
                    from = offset.to_datetime(change.timestamp()).checked_sub(jiff::SignedDuration::from_secs(1)).ok()?;
                }
                _ => return Some(candidate),
            }
        }
    }

    /// The fires after `last` and up to `now`.
    #[must_use]
    pub fn due(&self, zone: &TimeZone, last: Timestamp, now: Timestamp) -> Due {
        let mut due = Due::default();
        let mut fires = VecDeque::new();
        let mut cursor = last;
        let mut walked = 0;
        while let Some(at) = self.next_after(zone, cursor).filter(|at| *at <= now) {
            fires.push_back(at);
            if fires.len() > LISTED {
                let first = fires.pop_front();
                due.since = due.since.or(first);
            }
            walked += 1;
            // Dense and long ago: nobody reads a million lines. Once only, so that it ends.
            cursor = if walked == WALKED { now.checked_sub(MONTH).unwrap_or(at).max(at) } else { at };
        }
        due.fires = fires.into();
        due
    }
}

/// What fired in a span of time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// The newest, in order.
    pub fires: Vec<Timestamp>,
    /// There were more than are listed, from this one on.
    pub since: Option<Timestamp>,
}

fn to_chrono(wall: civil::DateTime) -> Option<DateTime<Utc>> {
    Utc.timestamp_opt(Offset::UTC.to_timestamp(wall).ok()?.as_second(), 0).single()
}

fn from_chrono(wall: DateTime<Utc>) -> Option<civil::DateTime> {
    Some(Offset::UTC.to_datetime(Timestamp::from_second(wall.timestamp()).ok()?))
}

/// When a wall time is: the first of two, or the end of the gap that it lies in.
fn first_instant(zone: &TimeZone, wall: civil::DateTime) -> Option<Timestamp> {
    match zone.to_ambiguous_timestamp(wall).offset() {
        AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(wall).ok(),
        AmbiguousOffset::Fold { before, .. } => before.to_timestamp(wall).ok(),
        AmbiguousOffset::Gap { after, .. } => {
            // Read with the later offset, the missing wall time lies before the change, and by less than the gap.
            let before_it = after.to_timestamp(wall).ok()?;
            zone.following(before_it).find(|change| change.offset() == after).map(|change| change.timestamp())
        }
    }
}

/// What becomes of one fire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fire {
    pub at: Timestamp,
    pub what: FireKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FireKind {
    Start,
    /// To be recorded as missed.
    Missed {
        reason: String,
    },
    /// To be recorded: nothing is started in a blackout.
    Blackout {
        reason: String,
    },
}

/// Decides on the fires after `last` and up to `now`. At most one of them is a [`FireKind::Start`], and
/// it is the last. A fire is late once `tolerance` has passed; with `missed: run-once` the latest missed
/// one is both on record as missed and started.
///
/// # Errors
/// When the cron line or the time zone cannot be read.
pub fn decide_fires(
    schedule: &Schedule,
    last: Timestamp,
    now: Timestamp,
    tolerance: jiff::SignedDuration,
) -> Result<Vec<Fire>, ScheduleError> {
    let due = Cron::parse(&schedule.cron)?.due(&zone(&schedule.timezone)?, last, now);
    let closed = blackout_at(&schedule.blackout, now);
    let mut fires = Vec::new();
    if let Some(since) = due.since {
        fires.push(missed(since, format!("no scheduler ran; more than {LISTED} fires from here on are not listed one by one")));
    }
    let newest = due.fires.last().copied();
    let mut start = None;
    let mut latest_missed = None;
    for at in due.fires {
        let late = now.duration_since(at) > tolerance;
        if let Some(blackout) = blackout_at(&schedule.blackout, at).or(if late { None } else { closed }) {
            fires.push(Fire { at, what: FireKind::Blackout { reason: blackout_reason(blackout) } });
        } else if late {
            latest_missed = Some(at);
            fires.push(missed(at, format!("no scheduler ran at that time; noticed {} later", span(now.duration_since(at)))));
        } else if Some(at) == newest {
            start = Some(at);
        } else {
            fires.push(missed(at, "came due together with a later one, which is the one considered".to_owned()));
        }
    }
    let catch_up = latest_missed.filter(|_| schedule.missed == Missed::RunOnce && closed.is_none());
    fires.extend(start.or(catch_up).map(|at| Fire { at, what: FireKind::Start }));
    Ok(fires)
}

/// The first instant after `now` at which [`decide_fires`] can have anything to say; `None` when it never will.
///
/// # Errors
/// When the cron line or the time zone cannot be read.
pub fn next_look(schedule: &Schedule, now: Timestamp) -> Result<Option<Timestamp>, ScheduleError> {
    Ok(Cron::parse(&schedule.cron)?.next_after(&zone(&schedule.timezone)?, now))
}

fn missed(at: Timestamp, reason: String) -> Fire {
    Fire { at, what: FireKind::Missed { reason } }
}

fn blackout_at(blackouts: &[Blackout], at: Timestamp) -> Option<&Blackout> {
    blackouts.iter().find(|b| b.from <= at && at < b.until)
}

fn blackout_reason(blackout: &Blackout) -> String {
    let why = blackout.reason.as_deref().map(|r| format!(": {r}")).unwrap_or_default();
    format!("blackout until {}{why}", crate::model::time::rfc3339_ms(blackout.until))
}

fn span(length: jiff::SignedDuration) -> crate::model::time::Span {
    crate::model::time::Span::from_secs(length.as_secs().unsigned_abs())
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
