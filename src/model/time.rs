//! Lengths of time as people write them (`250ms`, `5s`, `15m`, `24h`, `7d`), held in milliseconds.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

/// A length of time in whole milliseconds. Written as a number and a unit: `ms`, `s`, `m`, `h`, `d`;
/// several may be joined, the largest first (`1h30m`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span {
    pub ms: u64,
}

const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

impl Span {
    #[must_use]
    pub const fn from_ms(ms: u64) -> Self {
        Self { ms }
    }
    #[must_use]
    pub const fn from_secs(secs: u64) -> Self {
        Self { ms: secs * 1_000 }
    }
    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.ms)
    }
    /// As a difference of instants.
    #[must_use]
    pub fn signed(self) -> jiff::SignedDuration {
        jiff::SignedDuration::from_millis(i64::try_from(self.ms).unwrap_or(i64::MAX))
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fail = || format!("`{text}` is not a length of time; write a number and a unit, such as `250ms`, `5s`, `15m`, `24h`, `7d`");
        let mut rest = text;
        let mut total: u64 = 0;
        let mut last_unit = u64::MAX;
        if rest.is_empty() {
            return Err(fail());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(fail)?;
            let number: u64 = rest[..digits].parse().map_err(|_| fail())?;
            rest = &rest[digits..];
            let letters = rest.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(rest.len());
            let unit = UNITS.iter().find(|(name, _)| *name == &rest[..letters]).ok_or_else(fail)?.1;
            if unit >= last_unit {
                return Err(fail());
            }
            last_unit = unit;
            total = number.checked_mul(unit).and_then(|ms| total.checked_add(ms)).ok_or_else(fail)?;
            rest = &rest[letters..];
        }
        Ok(Self { ms: total })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ms == 0 {
            return f.pad("0s");
        }
        let mut rest = self.ms;
        let mut out = String::new();
        for (name, unit) in UNITS.iter().rev() {
            if rest >= *unit {
                out.push_str(&format!("{}{name}", rest / unit));
                rest %= unit;
            }
        }
        f.pad(&out)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(d)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A length of time: a number and a unit (ms, s, m, h, d), joined from the largest on: 1h30m.",
            "pattern": "^([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$"
        })
    }
}

/// An instant as the surfaces print it: RFC 3339, UTC, milliseconds.
#[must_use]
pub fn rfc3339_ms(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn people_write_lengths_in_several_ways() {
        assert_eq!("250ms".parse(), Ok(Span::from_ms(250)));
        assert_eq!("15m".parse(), Ok(Span::from_ms(900_000)));
        assert_eq!("1h30m".parse(), Ok(Span::from_ms(5_400_000)));
        for wrong in ["", "5", "s", "5 s", "-5s", "5s1h", "5x", "1.5s", "99999999999999999999d"] {
            assert!(wrong.parse::<Span>().is_err(), "{wrong:?} must be refused");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(ms in 0u64..10_000_000_000) {
            prop_assert_eq!(Span::from_ms(ms).to_string().parse(), Ok(Span::from_ms(ms)));
        }
    }
}
