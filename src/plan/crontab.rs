//! The five fields of crontab(5), read with their positions.
//!
//! The `cron` crate has another dialect (seconds, years, Sunday as 1, both day fields always and-ed), so
//! what a person writes is understood here and handed on as plain lists in the crate's own form.

use std::collections::BTreeSet;

/// What is wrong with a line, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message} (column {column})")]
pub struct CronError {
    pub field: &'static str,
    pub message: String,
    /// From 1, in characters.
    pub column: usize,
}

/// One field: the values it admits, and whether it begins with `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub values: BTreeSet<u32>,
    pub star: bool,
}

/// A line of five fields. Days of the week are 0 (Sunday) to 6.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crontab {
    pub minute: Field,
    pub hour: Field,
    pub day: Field,
    pub month: Field,
    pub weekday: Field,
}

struct Kind {
    name: &'static str,
    min: u32,
    max: u32,
    /// Names for the values from `min` on.
    names: &'static [&'static str],
}

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const MINUTE: Kind = Kind { name: "minute", min: 0, max: 59, names: &[] };
const HOUR: Kind = Kind { name: "hour", min: 0, max: 23, names: &[] };
const DAY: Kind = Kind { name: "day of month", min: 1, max: 31, names: &[] };
const MONTH: Kind = Kind { name: "month", min: 1, max: 12, names: &MONTHS };
const WEEKDAY: Kind = Kind { name: "day of week", min: 0, max: 7, names: &DAYS };

const SHORTHANDS: [(&str, &str); 7] = [
    ("@hourly", "0 * * * *"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@weekly", "0 0 * * 0"),
    ("@monthly", "0 0 1 * *"),
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
];

impl Crontab {
    /// Reads a line.
    ///
    /// # Errors
    /// Says which field is wrong, in which column, and what would be right.
    pub fn parse(line: &str) -> Result<Self, CronError> {
        let mut fields = words(line);
        if let Some((column, word)) = fields.first().copied().filter(|(_, w)| w.starts_with('@')) {
            let known = SHORTHANDS.iter().find(|(name, _)| name.eq_ignore_ascii_case(word));
            return match known {
                Some((_, meaning)) if fields.len() == 1 => Self::parse(meaning),
                _ => Err(CronError { field: "schedule", message: shorthand_help(word), column }),
            };
        }
        if fields.len() != 5 {
            return Err(count_error(&fields));
        }
        let mut next = |kind: &Kind| {
            if fields.is_empty() {
                Err(CronError { field: kind.name, message: "is missing".to_owned(), column: 1 })
            } else {
                let (column, word) = fields.remove(0);
                field(kind, word, column)
            }
        };
        let (minute, hour, day, month) = (next(&MINUTE)?, next(&HOUR)?, next(&DAY)?, next(&MONTH)?);
        let mut weekday = next(&WEEKDAY)?;
        if weekday.values.remove(&7) {
            weekday.values.insert(0);
        }
        Ok(Self { minute, hour, day, month, weekday })
    }

    /// With `*` in the minute or the hour it runs by elapsed time, not at times of the day.
    #[must_use]
    pub fn by_elapsed_time(&self) -> bool {
        self.minute.star || self.hour.star
    }

    /// Both day fields are restricted: either may match.
    #[must_use]
    pub fn either_day(&self) -> bool {
        !self.day.star && !self.weekday.star
    }
}

/// The words of a line, each with the column where it begins.
fn words(line: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut column = 1;
    for piece in line.split_inclusive(char::is_whitespace) {
        let word = piece.trim_end();
        if !word.is_empty() {
            found.push((column, word));
        }
        column += piece.chars().count();
    }
    found
}

fn count_error(fields: &[(usize, &str)]) -> CronError {
    let want = "write five: minute, hour, day of month, month, day of week, such as `0 3 * * 1`";
    let (message, column) = match fields.len() {
        0 => (format!("is empty; {want}"), 1),
        n @ (6 | 7) => {
            (format!("has {n} fields; there are none for seconds and years here; {want}"), fields.get(5).map_or(1, |(column, _)| *column))
        }
        n => (format!("has {n} field{}; {want}", if n == 1 { "" } else { "s" }), fields.last().map_or(1, |(column, _)| *column)),
    };
    CronError { field: "schedule", message, column }
}

fn shorthand_help(word: &str) -> String {
    let names = SHORTHANDS.map(|(name, _)| name).join(", ");
    if word.eq_ignore_ascii_case("@every") {
        "`@every` has no fixed times; write five fields, such as `*/15 * * * *`".to_owned()
    } else {
        format!("`{word}` is not known here or does not stand alone; there are {names}, or five fields")
    }
}

fn field(kind: &Kind, text: &str, column: usize) -> Result<Field, CronError> {
    let mut values = BTreeSet::new();
    let mut at = column;
    for item in text.split(',') {
        values.extend(self::item(kind, item, at)?);
        at += item.chars().count() + 1;
    }
    Ok(Field { values, star: text.starts_with('*') })
}

/// One of a list: `*`, `5`, `mon`, `1-5`, and a step after `*` or a range.
fn item(kind: &Kind, text: &str, column: usize) -> Result<Vec<u32>, CronError> {
    let wrong = |message: String, column: usize| CronError { field: kind.name, message, column };
    if text.is_empty() {
        return Err(wrong(format!("a value is missing; {}", kind.wants()), column));
    }
    let (body, step) = match text.split_once('/') {
        None => (text, 1),
        Some((body, step)) => {
            let at = column + body.chars().count() + 1;
            let number = digits(step).filter(|n| *n > 0);
            (body, number.ok_or_else(|| wrong(format!("the step `{step}` is not a whole number from 1 on"), at))?)
        }
    };
    // `*` stands for each value once; 7 is another name of Sunday.
    let last = kind.max.min(if kind.name == WEEKDAY.name { 6 } else { kind.max });
    let (low, high) = if body == "*" {
        (kind.min, last)
    } else if let Some((low, high)) = body.split_once('-') {
        let (from, to) = (value(kind, low, column)?, value(kind, high, column + low.chars().count() + 1)?);
        if from > to {
            return Err(wrong(backward(kind, low, high, to), column));
        }
        (from, to)
    } else {
        let one = value(kind, body, column)?;
        if step != 1 || text.contains('/') {
            return Err(wrong(format!("a step needs `*` or a range before it; write `{one}-{last}/{step}`"), column));
        }
        (one, one)
    };
    Ok((low..=high).step_by(step as usize).collect())
}

fn backward(kind: &Kind, low: &str, high: &str, to: u32) -> String {
    let mut message = format!("the range `{low}-{high}` runs backwards; write it as two, joined by a comma");
    if kind.name == WEEKDAY.name && to == 0 {
        message.push_str(", or call Sunday 7");
    }
    message
}

fn value(kind: &Kind, text: &str, column: usize) -> Result<u32, CronError> {
    let named = kind.names.iter().position(|name| name.eq_ignore_ascii_case(text));
    let number = match named {
        Some(at) => u32::try_from(at).ok().map(|at| at + kind.min),
        None => digits(text),
    };
    number.filter(|n| (kind.min..=kind.max).contains(n)).ok_or_else(|| {
        let nearest = nearest_name(kind, text).map(|name| format!("; did you mean `{name}`?")).unwrap_or_default();
        CronError { field: kind.name, message: format!("`{text}` is not valid; {}{nearest}", kind.wants()), column }
    })
}

fn nearest_name(kind: &Kind, text: &str) -> Option<&'static str> {
    let lower = text.to_ascii_lowercase();
    if lower.is_empty() || !lower.chars().all(char::is_alphabetic) {
        return None;
    }
    let begins = kind.names.iter().find(|name| lower.starts_with(**name));
    begins.or_else(|| kind.names.iter().find(|name| strsim::damerau_levenshtein(name, &lower) == 1)).copied()
}

fn digits(text: &str) -> Option<u32> {
    (!text.is_empty() && text.len() <= 4 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

impl Kind {
    fn wants(&self) -> String {
        match self.names {
            [first, .., last] => format!("use {}-{} or {first}-{last}", self.min, self.max),
            _ => format!("use {}-{}", self.min, self.max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(line: &str) -> [Vec<u32>; 5] {
        let c = Crontab::parse(line).unwrap();
        [c.minute, c.hour, c.day, c.month, c.weekday].map(|f| f.values.into_iter().collect())
    }

    #[test]
    fn fields_mean_what_crontab_says() {
        assert_eq!(values("0 3 * * 1"), [vec![0], vec![3], (1..=31).collect(), (1..=12).collect(), vec![1]]);
        assert_eq!(values(" 0,30\t1-5/2 1,15 JAN-mar Sat ")[..4], [vec![0, 30], vec![1, 3, 5], vec![1, 15], vec![1, 2, 3]]);
        assert_eq!(values("0 0 * * 7")[4], vec![0]);
        assert_eq!(values("0 0 * * 5-7")[4], vec![0, 5, 6]);
        assert_eq!(values("0 0 * * */2")[4], vec![0, 2, 4, 6]);
        assert_eq!(values("*/20 0 * * *")[0], vec![0, 20, 40]);
        assert_eq!(values("@weekly"), values("0 0 * * sun"));
        assert!(Crontab::parse("0 0 1 * */2").unwrap().weekday.star);
        assert!(!Crontab::parse("0 0 1 * 0-6").unwrap().weekday.star);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let lines = [
            "",
            "* * * *",
            "0 0 3 * * 1",
            "0 0 0 3 * * 2030",
            "@every 5m",
            "@reboot",
            "@daily 3",
            "60 * * * *",
            "0 24 * * *",
            "0 0 0 * *",
            "0 0 32 * *",
            "0 0 * 13 *",
            "0 0 * * 8",
            "0 0 * * monday",
            "0 0 * janu *",
            "0 5/10 * * *",
            "*/0 * * * *",
            "0 0 * * 6-1",
            "0 0 * * fri-sun",
            "1,,2 * * * *",
            "0 0 ? * *",
            "0 0 L * *",
            "-1 * * * *",
            "0 0 * * mon#2",
            "١ * * * *",
            "99999999999 * * * *",
            "1- * * * *",
        ];
        let said: Vec<String> = lines.iter().map(|l| format!("{l:?}: {}", Crontab::parse(l).unwrap_err())).collect();
        insta::assert_snapshot!(said.join("\n"));
    }
}
