//! The schedule against a reference that knows nothing of it: every minute of some days, one by one.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeSet, HashMap};

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn fires(line: &str, zone_name: &str, from: &str, count: usize) -> Vec<String> {
    let (cron, zone) = (Cron::parse(line).unwrap(), zone(zone_name).unwrap());
    let mut cursor = at(from);
    let next = std::iter::from_fn(|| {
        cursor = cron.next_after(&zone, cursor)?;
        Some(cursor.to_zoned(zone.clone()).strftime("%m-%d %H:%M %:z").to_string())
    });
    next.take(count).collect()
}

#[test]
fn a_fixed_time_in_the_gap_fires_at_its_end_once() {
    assert_eq!(
        fires("30 2 * * *", "Europe/Berlin", "2026-03-28T00:00:00Z", 3),
        ["03-28 02:30 +01:00", "03-29 03:00 +02:00", "03-30 02:30 +02:00"]
    );
    assert_eq!(fires("0,30 2,3 29 3 *", "Europe/Berlin", "2026-03-28T00:00:00Z", 2), ["03-29 03:00 +02:00", "03-29 03:30 +02:00"]);
    assert_eq!(fires("30 2 8 3 *", "America/New_York", "2026-03-01T00:00:00Z", 1), ["03-08 03:00 -04:00"]);
}

#[test]
fn a_fixed_time_that_occurs_twice_fires_at_the_first_only() {
    assert_eq!(fires("30 2 * * *", "Europe/Berlin", "2026-10-25T00:00:00Z", 2), ["10-25 02:30 +02:00", "10-26 02:30 +01:00"]);
    assert_eq!(fires("30 1 * * *", "America/New_York", "2026-11-01T05:00:00Z", 2), ["11-01 01:30 -04:00", "11-02 01:30 -05:00"]);
    // Asked within the second pass, the first is over.
    assert_eq!(fires("45 2 * * *", "Europe/Berlin", "2026-10-25T01:10:00Z", 1), ["10-26 02:45 +01:00"]);
}

#[test]
fn with_a_star_it_runs_by_elapsed_time() {
    let fold = ["10-25 02:00 +02:00", "10-25 02:30 +02:00", "10-25 02:00 +01:00", "10-25 02:30 +01:00", "10-25 03:00 +01:00"];
    assert_eq!(fires("*/30 * * * *", "Europe/Berlin", "2026-10-24T23:59:00Z", 5), fold);
    let gap = ["03-29 01:30 +01:00", "03-29 03:00 +02:00", "03-29 03:30 +02:00"];
    assert_eq!(fires("*/30 * * * *", "Europe/Berlin", "2026-03-29T00:00:00Z", 3), gap);
    // The hour is fixed, the minute has a star: the hour that is missing has no minutes.
    assert_eq!(fires("*/30 2 * * *", "Europe/Berlin", "2026-03-29T00:00:00Z", 1), ["03-30 02:00 +02:00"]);
    assert_eq!(
        fires("15 * * * *", "America/New_York", "2026-11-01T05:00:00Z", 3),
        ["11-01 01:15 -04:00", "11-01 01:15 -05:00", "11-01 02:15 -05:00"]
    );
}

#[test]
fn day_fields_are_joined_as_crontab_says() {
    assert_eq!(fires("0 0 13 * 5", "UTC", "2026-02-01T00:00:00Z", 3), ["02-06 00:00 +00:00", "02-13 00:00 +00:00", "02-20 00:00 +00:00"]);
    assert_eq!(fires("0 0 13 * */5", "UTC", "2026-02-01T00:00:00Z", 2), ["02-13 00:00 +00:00", "03-13 00:00 +00:00"]);
    assert_eq!(fires("0 0 */2 * 1", "UTC", "2026-02-01T00:00:00Z", 3), ["02-09 00:00 +00:00", "02-23 00:00 +00:00", "03-09 00:00 +00:00"]);
    assert_eq!(fires("0 3 * * 7", "UTC", "2026-02-02T00:00:00Z", 1), ["02-08 03:00 +00:00"]);
    assert_eq!(fires("0 0 29 2 *", "UTC", "2026-03-01T00:00:00Z", 1), ["02-29 00:00 +00:00"]);
}

#[test]
fn impossible_dates_and_odd_zones_end() {
    assert!(fires("0 0 30 2 *", "Europe/Berlin", "2026-01-01T00:00:00Z", 1).is_empty());
    assert!(fires("* * 31 4,6 *", "Europe/Berlin", "2026-01-01T00:00:00Z", 1).is_empty());
    assert_eq!(fires("0 0 30 2 1", "UTC", "2026-02-01T00:00:00Z", 1), ["02-02 00:00 +00:00"]);
    // Samoa left out the 30th of December 2011; Lord Howe moves by half an hour.
    assert_eq!(fires("0 9 30 12 *", "Pacific/Apia", "2011-12-29T00:00:00Z", 1), ["12-31 00:00 +14:00"]);
    assert_eq!(fires("10 2 4 10 *", "Australia/Lord_Howe", "2026-10-01T00:00:00Z", 1), ["10-04 02:30 +11:00"]);
}

#[test]
fn an_unknown_zone_names_the_nearest() {
    assert_eq!(
        zone("Europe/Berln").unwrap_err().to_string(),
        "timezone: `Europe/Berln` is not in the time zone database; did you mean `Europe/Berlin`?"
    );
    assert!(zone("").is_err());
}

/// A field as written, and what it admits by the generator's own knowledge.
type Written = (String, BTreeSet<u32>);

fn a_field(min: u32, max: u32) -> impl Strategy<Value = Written> {
    let one = (min..=max).prop_map(|v| (v.to_string(), BTreeSet::from([v])));
    let range = (min..=max, min..=max, 1u32..6).prop_map(|(a, b, step)| {
        let (low, high) = (a.min(b), a.max(b));
        let text = if step == 1 { format!("{low}-{high}") } else { format!("{low}-{high}/{step}") };
        (text, (low..=high).filter(|v| (v - low).is_multiple_of(step)).collect())
    });
    let list = prop::collection::vec(prop_oneof![one, range], 1..3).prop_map(|items: Vec<Written>| {
        (items.iter().map(|i| i.0.clone()).collect::<Vec<_>>().join(","), items.into_iter().flat_map(|i| i.1).collect())
    });
    let star = (1u32..20).prop_map(move |step| {
        let text = if step == 1 { "*".to_owned() } else { format!("*/{step}") };
        (text, (min..=max).filter(|v| (v - min).is_multiple_of(step)).collect())
    });
    prop_oneof![3 => list, 2 => star, 2 => Just(("*".to_owned(), (min..=max).collect()))]
}

#[derive(Debug)]
struct Reference {
    fields: [Written; 5],
}

impl Reference {
    fn line(&self) -> String {
        self.fields.iter().map(|f| f.0.as_str()).collect::<Vec<_>>().join(" ")
    }
    fn star(&self, field: usize) -> bool {
        self.fields[field].0.starts_with('*')
    }
    fn admits(&self, wall: civil::DateTime) -> bool {
        let has = |field: usize, value: i8| self.fields[field].1.contains(&u32::try_from(value).unwrap());
        let weekday = wall.weekday().to_sunday_zero_offset();
        let (day, week) = (has(2, wall.day()), has(4, weekday) || (weekday == 0 && has(4, 7)));
        let days = if self.star(2) || self.star(4) { day && week } else { day || week };
        has(0, wall.minute()) && has(1, wall.hour()) && has(3, wall.month()) && days
    }
    /// Every fire after `from` and up to `until`, by looking at every minute.
    fn fires(&self, zone: &TimeZone, from: Timestamp, until: Timestamp) -> BTreeSet<Timestamp> {
        let minute = jiff::SignedDuration::from_mins(1);
        let margin = jiff::SignedDuration::from_hours(6);
        let mut real = Vec::new();
        let mut t = from.checked_sub(margin).unwrap();
        while t <= until.checked_add(margin).unwrap() {
            real.push((t, zone.to_datetime(t)));
            t = t.checked_add(minute).unwrap();
        }
        let inside = |t: &Timestamp| *t > from && *t <= until;
        if self.star(0) || self.star(1) {
            return real.iter().filter(|(_, wall)| self.admits(*wall)).map(|(t, _)| *t).filter(inside).collect();
        }
        let mut first = HashMap::new();
        for (t, wall) in &real {
            first.entry(*wall).or_insert(*t);
        }
        let mut found = BTreeSet::new();
        let mut wall = real[0].1;
        while wall <= real[real.len() - 1].1 {
            if self.admits(wall) {
                let at = first.get(&wall).copied().or_else(|| real.iter().find(|(_, w)| *w > wall).map(|(t, _)| *t));
                found.extend(at.filter(inside));
            }
            wall = wall.checked_add(minute).unwrap();
        }
        found
    }
}

fn a_line() -> impl Strategy<Value = Reference> {
    (a_field(0, 59), a_field(0, 23), a_field(1, 31), a_field(1, 12), a_field(0, 6))
        .prop_map(|(a, b, c, d, e)| Reference { fields: [a, b, c, d, e] })
}

const PLACES: [(&str, &str); 7] = [
    ("Europe/Berlin", "2026-03-28T12:00:00Z"),
    ("Europe/Berlin", "2026-10-24T12:00:00Z"),
    ("America/New_York", "2026-03-07T12:00:00Z"),
    ("America/New_York", "2026-10-31T12:00:00Z"),
    ("Australia/Lord_Howe", "2026-04-04T00:00:00Z"),
    ("Asia/Kathmandu", "2026-02-27T12:00:00Z"),
    ("UTC", "2028-02-28T00:00:00Z"),
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn every_minute_agrees_with_the_reference(reference in a_line(), place in 0..PLACES.len(), any_month in any::<bool>(), any_day in any::<bool>()) {
        let mut reference = reference;
        // Most random months and days do not meet the few days that are looked at.
        if any_month {
            reference.fields[3] = ("*".to_owned(), (1..=12).collect());
        }
        if any_day {
            reference.fields[2] = ("1-31".to_owned(), (1..=31).collect());
        }
        let (zone_name, start) = PLACES[place];
        let (zone, from) = (zone(zone_name).unwrap(), at(start));
        let until = from.checked_add(jiff::SignedDuration::from_hours(30)).unwrap();
        let expected = reference.fires(&zone, from, until);
        let due = Cron::parse(&reference.line()).unwrap().due(&zone, from, until);
        let newest: Vec<_> = expected.iter().copied().skip(expected.len().saturating_sub(LISTED)).collect();
        prop_assert_eq!(due.fires, newest, "{} in {}", reference.line(), zone_name);
        prop_assert_eq!(due.since, if expected.len() > LISTED { expected.first().copied() } else { None });
    }

    #[test]
    fn days_over_years_agree_with_the_reference(day in a_field(1, 31), month in a_field(1, 12), weekday in a_field(0, 7)) {
        let noon = |v: &str, n| (v.to_owned(), BTreeSet::from([n]));
        let reference = Reference { fields: [noon("0", 0), noon("12", 12), day, month, weekday] };
        let cron = Cron::parse(&reference.line()).unwrap();
        let mut date = civil::date(2027, 12, 1).at(12, 0, 0, 0);
        let mut expected = Vec::new();
        for _ in 0..500 {
            date = date.tomorrow().unwrap();
            if reference.admits(date) {
                expected.push(Offset::UTC.to_timestamp(date).unwrap());
            }
        }
        let last = Offset::UTC.to_timestamp(date).unwrap();
        prop_assert_eq!(cron.due(&TimeZone::UTC, at("2027-12-01T12:00:00Z"), last).fires, expected, "{}", reference.line());
    }
}

fn schedule(missed: Missed, blackout: Vec<Blackout>) -> Schedule {
    Schedule { cron: "0 3 * * *".to_owned(), timezone: "UTC".to_owned(), missed, blackout }
}

fn decided(schedule: &Schedule, last: &str, now: &str) -> Vec<String> {
    let fires = decide_fires(schedule, at(last), at(now), jiff::SignedDuration::from_secs(90)).unwrap();
    let word = |f: &Fire| match &f.what {
        FireKind::Start => "start".to_owned(),
        FireKind::Missed { reason } => format!("missed ({reason})"),
        FireKind::Blackout { reason } => format!("blackout ({reason})"),
    };
    fires.iter().map(|f| format!("{} {}", f.at.strftime("%d"), word(f))).collect()
}

#[test]
fn a_fire_on_time_starts_once() {
    let schedule = schedule(Missed::Skip, vec![]);
    assert_eq!(decided(&schedule, "2026-05-01T02:59:00Z", "2026-05-01T03:00:00Z"), ["01 start"]);
    assert!(decided(&schedule, "2026-05-01T03:00:00Z", "2026-05-01T03:00:30Z").is_empty());
    assert!(decided(&schedule, "2026-05-01T04:00:00Z", "2026-05-01T02:00:00Z").is_empty(), "the clock stepped back");
}

#[test]
fn missed_fires_are_on_record_and_at_most_one_is_caught_up() {
    let late =
        ["01 missed (no scheduler ran at that time; noticed 1d7h later)", "02 missed (no scheduler ran at that time; noticed 7h later)"];
    assert_eq!(decided(&schedule(Missed::Skip, vec![]), "2026-05-01T02:00:00Z", "2026-05-02T10:00:00Z"), late);
    let caught_up = decided(&schedule(Missed::RunOnce, vec![]), "2026-05-01T02:00:00Z", "2026-05-02T10:00:00Z");
    assert_eq!(caught_up, [late[0], late[1], "02 start"]);
    let on_time = decided(&schedule(Missed::RunOnce, vec![]), "2026-05-01T02:00:00Z", "2026-05-02T03:01:00Z");
    assert_eq!(on_time, ["01 missed (no scheduler ran at that time; noticed 1d1m later)", "02 start"]);
}

#[test]
fn nothing_starts_in_a_blackout() {
    let freeze = Blackout { from: at("2026-05-02T00:00:00Z"), until: at("2026-05-03T03:00:00Z"), reason: Some("release".to_owned()) };
    let schedule = schedule(Missed::RunOnce, vec![freeze]);
    let said = "02 blackout (blackout until 2026-05-03T03:00:00.000Z: release)";
    assert_eq!(decided(&schedule, "2026-05-01T10:00:00Z", "2026-05-02T03:00:10Z"), [said]);
    // Its end is exclusive.
    assert_eq!(decided(&schedule, "2026-05-02T10:00:00Z", "2026-05-03T03:00:10Z"), ["03 start"]);
    // What was missed before is not caught up within.
    assert_eq!(
        decided(&schedule, "2026-05-01T02:00:00Z", "2026-05-02T01:00:00Z"),
        ["01 missed (no scheduler ran at that time; noticed 22h later)"]
    );
    // A blackout is not a miss, so nothing of it is caught up afterwards.
    assert_eq!(decided(&schedule, "2026-05-01T10:00:00Z", "2026-05-03T02:00:00Z"), [said]);
}

#[test]
fn a_long_outage_is_summed_up() {
    let schedule = Schedule { cron: "* * * * *".to_owned(), ..schedule(Missed::RunOnce, vec![]) };
    let fires = decide_fires(&schedule, at("2025-01-01T00:00:00Z"), at("2026-05-01T00:00:00Z"), jiff::SignedDuration::ZERO).unwrap();
    assert_eq!(fires.len(), LISTED + 1);
    assert_eq!(fires[0].at, at("2025-01-01T00:01:00Z"));
    assert!(matches!(&fires[0].what, FireKind::Missed { reason } if reason.contains("not listed one by one")));
    assert_eq!(fires[LISTED], Fire { at: at("2026-05-01T00:00:00Z"), what: FireKind::Start });
}
