//! Which backups are kept: grandfather, father, son. Of each kind of period the last snapshot in it is kept, for the
//! newest so many periods that have one; everything counts in UTC. Snapshots of different sources or hosts are judged
//! apart, and the newest of each is kept whatever the rules say: a repository is never emptied by a rule.

use jiff::{Timestamp, civil::Date, tz::TimeZone};
use serde::Serialize;
use std::collections::BTreeMap;

/// How many of each are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Retention {
    pub last: u32,
    pub daily: u32,
    pub weekly: u32,
    pub monthly: u32,
    pub yearly: u32,
}

impl Retention {
    /// Does it keep nothing but what is always kept?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A snapshot, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    pub id: String,
    pub time: Timestamp,
    /// What is backed up where: only snapshots of the same group take each other's places.
    pub group: String,
}

/// Why a snapshot is kept. One may have several reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    Newest,
    Last,
    Daily,
    Weekly,
    Monthly,
    Yearly,
}

impl Reason {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Newest => "newest",
            Self::Last => "last",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Yearly => "yearly",
        }
    }
}

/// For each point, in the order given, the reasons to keep it: none, and it may be forgotten.
#[must_use]
pub fn decide(points: &[Point], rule: Retention) -> Vec<Vec<Reason>> {
    let mut groups: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (at, point) in points.iter().enumerate() {
        groups.entry(&point.group).or_default().push(at);
    }
    let mut reasons = vec![Vec::new(); points.len()];
    for mut group in groups.into_values() {
        // The newest first; of two of one instant, the identifier decides, so that everybody decides alike.
        group.sort_by(|a, b| {
            let key = |at: usize| points.get(at).map(|point| (point.time, &point.id));
            key(*b).cmp(&key(*a))
        });
        one_group(points, &group, rule, &mut reasons);
    }
    reasons
}

fn one_group(points: &[Point], newest_first: &[usize], rule: Retention, reasons: &mut [Vec<Reason>]) {
    let mut keep = |at: usize, reason| {
        if let Some(reasons) = reasons.get_mut(at) {
            reasons.push(reason);
        }
    };
    newest_first.iter().take(1).for_each(|at| keep(*at, Reason::Newest));
    newest_first.iter().take(rule.last as usize).for_each(|at| keep(*at, Reason::Last));
    let periods: [(Reason, u32, fn(Date) -> (i16, i16)); 4] = [
        (Reason::Daily, rule.daily, |day| (day.year(), day.day_of_year())),
        (Reason::Weekly, rule.weekly, |day| (day.iso_week_date().year(), day.iso_week_date().week().into())),
        (Reason::Monthly, rule.monthly, |day| (day.year(), day.month().into())),
        (Reason::Yearly, rule.yearly, |day| (day.year(), 0)),
    ];
    for (reason, mut left, period) in periods {
        let mut before = None;
        for at in newest_first {
            let Some(point) = points.get(*at) else { continue };
            let this = period(point.time.to_zoned(TimeZone::UTC).date());
            if left == 0 {
                break;
            }
            if before != Some(this) {
                before = Some(this);
                left -= 1;
                keep(*at, reason);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Reason::*, *};
    use proptest::{collection::vec, prelude::*};
    use std::collections::BTreeSet;

    fn point(group: &str, time: &str) -> Point {
        Point { id: format!("{group}{time}"), time: time.parse().unwrap(), group: group.to_owned() }
    }
    fn rule(last: u32, daily: u32, weekly: u32, monthly: u32, yearly: u32) -> Retention {
        Retention { last, daily, weekly, monthly, yearly }
    }

    #[test]
    fn the_last_of_each_period_is_kept() {
        let times = [
            "2025-12-31T23:59:59Z", // the last of 2025, and in the first ISO week of 2026
            "2026-01-01T00:00:00Z",
            "2026-01-04T10:00:00Z", // a Sunday
            "2026-01-05T09:00:00Z", // a Monday
            "2026-01-05T10:00:00Z",
        ];
        let points: Vec<Point> = times.iter().map(|time| point("a", time)).collect();
        let kept = decide(&points, rule(0, 2, 2, 2, 9));
        assert_eq!(kept, [vec![Monthly, Yearly], vec![], vec![Daily, Weekly], vec![], vec![Newest, Daily, Weekly, Monthly, Yearly]]);
        let kept = decide(&points, rule(2, 0, 0, 0, 0));
        assert_eq!(kept, [vec![], vec![], vec![], vec![Last], vec![Newest, Last]]);
    }

    #[test]
    fn groups_do_not_take_each_others_places() {
        let points = [point("a", "2026-01-01T00:00:00Z"), point("b", "2026-01-01T01:00:00Z"), point("a", "2026-01-01T02:00:00Z")];
        assert_eq!(decide(&points, Retention::default()), [vec![], vec![Reason::Newest], vec![Reason::Newest]]);
    }

    fn points() -> impl Strategy<Value = Vec<Point>> {
        // Ten years, by the minute, so that some fall together.
        let one = (0..3u8, 0..5_256_000i64);
        vec(one, 0..60).prop_map(|all| {
            let point = |(n, (group, minute)): (usize, (u8, i64))| Point {
                id: format!("{n:03}"),
                time: Timestamp::from_second(1_700_000_000 + minute * 60).unwrap(),
                group: group.to_string(),
            };
            all.into_iter().enumerate().map(point).collect()
        })
    }
    fn rules() -> impl Strategy<Value = Retention> {
        (0..4u32, 0..9u32, 0..6u32, 0..14u32, 0..4u32).prop_map(|(l, d, w, m, y)| rule(l, d, w, m, y))
    }
    fn kept(points: &[Point], rule: Retention) -> BTreeSet<String> {
        let reasons = decide(points, rule);
        points.iter().zip(reasons).filter(|(_, why)| !why.is_empty()).map(|(point, _)| point.id.clone()).collect()
    }

    proptest! {
        #[test]
        fn the_newest_of_each_group_is_kept_and_no_more_than_asked(points in points(), rule in rules()) {
            let kept = kept(&points, rule);
            for group in ["0", "1", "2"] {
                let of_group: Vec<&Point> = points.iter().filter(|p| p.group == group).collect();
                if let Some(newest) = of_group.iter().max_by_key(|p| (p.time, &p.id)) {
                    prop_assert!(kept.contains(&newest.id));
                }
                let most = 1 + rule.last + rule.daily + rule.weekly + rule.monthly + rule.yearly;
                prop_assert!(of_group.iter().filter(|p| kept.contains(&p.id)).count() <= most as usize);
            }
        }

        #[test]
        fn the_order_in_which_they_come_does_not_matter(points in points(), rule in rules()) {
            let mut turned = points.clone();
            turned.reverse();
            prop_assert_eq!(kept(&points, rule), kept(&turned, rule));
        }

        /// So that `forget` every night comes to the same as `forget` once: what is forgotten now would not be kept later.
        #[test]
        fn what_is_kept_is_kept_again(points in points(), rule in rules()) {
            let first = kept(&points, rule);
            let left: Vec<Point> = points.iter().filter(|p| first.contains(&p.id)).cloned().collect();
            prop_assert_eq!(&kept(&left, rule), &first);
        }

        #[test]
        fn to_keep_more_never_forgets_more(points in points(), rule in rules()) {
            let more = Retention { daily: rule.daily + 1, yearly: rule.yearly + 2, last: rule.last + 1, ..rule };
            prop_assert!(kept(&points, more).is_superset(&kept(&points, rule)));
        }

        #[test]
        fn every_period_that_is_asked_for_has_its_last(points in points()) {
            // More days than there are: of each day with a snapshot, the last stays.
            let kept = kept(&points, rule(0, 10_000, 0, 0, 0));
            let mut last: BTreeMap<(String, Date), (Timestamp, String)> = BTreeMap::new();
            for p in &points {
                let day = p.time.to_zoned(TimeZone::UTC).date();
                let newest = (p.time, p.id.clone());
                last.entry((p.group.clone(), day)).and_modify(|l| *l = newest.clone().max(l.clone())).or_insert(newest);
            }
            prop_assert_eq!(kept, last.into_values().map(|(_, id)| id).collect::<BTreeSet<_>>());
        }
    }
}
