//! The hosted zone: records, health checks, AWS's rules for changing them, and which of them answers a
//! question. Pure: no clock, no I/O.

use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub name: String,
    pub kind: String,
    pub ttl: u32,
    pub values: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// `PRIMARY` or `SECONDARY`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failover: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Create,
    Delete,
    Upsert,
}

#[derive(Clone, Debug)]
pub struct Change {
    pub verb: Verb,
    pub record: Record,
}

/// Records by name, type and set identifier.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zone {
    pub apex: String,
    pub records: Vec<Record>,
}

/// As the API and the server spell it: lower case, no dot at the end.
#[must_use]
pub fn plain(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

impl Record {
    fn same_place(&self, other: &Self) -> bool {
        self.name == other.name && self.kind == other.kind && self.set == other.set
    }
    fn same_set(&self, other: &Self) -> bool {
        self.name == other.name && self.kind == other.kind
    }
    fn equal(&self, other: &Self) -> bool {
        let sorted = |r: &Self| {
            let mut values = r.values.clone();
            values.sort();
            Self { values, ..r.clone() }
        };
        sorted(self) == sorted(other)
    }
    fn spelled(&self) -> String {
        format!(
            "name='{}.', type='{}'{}",
            self.name,
            self.kind,
            self.set.as_ref().map(|s| format!(", set identifier='{s}'")).unwrap_or_default()
        )
    }
}

impl Zone {
    /// The zone after all changes, or every reason why none of them is made.
    /// # Errors
    /// AWS's sentences, one a change.
    pub fn change(&self, changes: &[Change]) -> Result<Self, Vec<String>> {
        let mut next = self.clone();
        let faults: Vec<String> = changes.iter().filter_map(|c| next.apply(c).err()).collect();
        if !faults.is_empty() {
            return Err(faults);
        }
        let clashes = next.clashes();
        if clashes.is_empty() { Ok(next) } else { Err(clashes) }
    }

    fn apply(&mut self, change: &Change) -> Result<(), String> {
        let record = &change.record;
        let here = self.records.iter().position(|r| r.same_place(record));
        match (change.verb, here) {
            (Verb::Delete, Some(at)) if self.records.get(at).is_some_and(|r| r.equal(record)) => {
                self.records.remove(at);
                return Ok(());
            }
            (Verb::Delete, Some(_)) => {
                return Err(format!(
                    "Tried to delete resource record set [{}] but the values provided do not match the current values",
                    record.spelled()
                ));
            }
            (Verb::Delete, None) => {
                return Err(format!("Tried to delete resource record set [{}] but it was not found", record.spelled()));
            }
            (Verb::Create, Some(_)) => {
                return Err(format!("Tried to create resource record set [{}] but it already exists", record.spelled()));
            }
            _ => {}
        }
        self.check(record)?;
        match here.and_then(|at| self.records.get_mut(at)) {
            Some(slot) => *slot = record.clone(),
            None => self.records.push(record.clone()),
        }
        Ok(())
    }

    fn check(&self, record: &Record) -> Result<(), String> {
        let inside = record.name == self.apex || record.name.ends_with(&format!(".{}", self.apex));
        if !inside {
            return Err(format!("RRSet with DNS name {}. is not permitted in zone {}.", record.name, self.apex));
        }
        if record.values.is_empty() {
            return Err(format!("Missing resource records in [{}]", record.spelled()));
        }
        let wrong = record.values.iter().find(|value| match record.kind.as_str() {
            "A" => !matches!(value.parse(), Ok(IpAddr::V4(_))),
            "AAAA" => !matches!(value.parse(), Ok(IpAddr::V6(_))),
            _ => false,
        });
        if let Some(value) = wrong {
            return Err(format!("Invalid Resource Record: '{value}' is not a valid address for type {}", record.kind));
        }
        if !matches!(record.kind.as_str(), "A" | "AAAA" | "CNAME" | "TXT") {
            return Err(format!("The lab serves A, AAAA, CNAME and TXT, not {}", record.kind));
        }
        if record.weight.is_some_and(|w| w > 255) {
            return Err("The weight must be between 0 and 255".to_owned());
        }
        if record.kind == "CNAME" && record.name == self.apex {
            return Err(format!("RRSet of type CNAME with DNS name {}. is not permitted at apex in zone {}.", record.name, self.apex));
        }
        let routed = usize::from(record.weight.is_some()) + usize::from(record.failover.is_some());
        if routed != usize::from(record.set.is_some()) {
            return Err(format!("[{}] needs both a set identifier and one routing policy, or neither", record.spelled()));
        }
        Ok(())
    }

    /// What cannot stand beside what: judged when the whole batch is applied.
    fn clashes(&self) -> Vec<String> {
        let mut out = Vec::new();
        for (at, record) in self.records.iter().enumerate() {
            for other in self.records.iter().skip(at + 1) {
                let mixed = record.same_set(other)
                    && (record.weight.is_some() != other.weight.is_some() || record.failover.is_some() != other.failover.is_some());
                let doubled = record.same_set(other) && record.failover.is_some() && record.failover == other.failover;
                let beside_cname = record.name == other.name && (record.kind == "CNAME") != (other.kind == "CNAME");
                if mixed || doubled || beside_cname {
                    out.push(format!("RRSet [{}] conflicts with RRSet [{}]", record.spelled(), other.spelled()));
                }
            }
        }
        out
    }

    /// The record that answers, given which health checks fail and a number in [0, 1).
    /// When none is healthy all count as healthy, as with AWS.
    #[must_use]
    pub fn answer(&self, name: &str, kind: &str, unhealthy: &BTreeMap<String, bool>, dice: f64) -> Option<&Record> {
        let all: Vec<&Record> = self.records.iter().filter(|r| r.name == name && r.kind == kind).collect();
        let first = *all.first()?;
        let healthy = |r: &&Record| !r.health.as_ref().is_some_and(|id| unhealthy.get(id).copied().unwrap_or(false));
        if first.failover.is_some() {
            let role = |word: &str| all.iter().copied().find(|r| r.failover.as_deref() == Some(word));
            let (primary, secondary) = (role("PRIMARY"), role("SECONDARY"));
            return primary.filter(healthy).or(secondary.filter(healthy)).or(primary).or(secondary);
        }
        if first.weight.is_none() {
            return Some(first);
        }
        let well: Vec<&Record> = all.iter().copied().filter(healthy).collect();
        weighted(if well.is_empty() { &all } else { &well }, dice)
    }

    #[must_use]
    pub fn has_name(&self, name: &str) -> bool {
        name == self.apex || self.records.iter().any(|r| r.name == name || r.name.ends_with(&format!(".{name}")))
    }
}

/// In proportion to the weights; evenly when all are zero.
fn weighted<'a>(among: &[&'a Record], dice: f64) -> Option<&'a Record> {
    let weight = |r: &Record| f64::from(r.weight.unwrap_or(0));
    let total: f64 = among.iter().map(|r| weight(r)).sum();
    if total <= 0.0 {
        let at = (dice * among.len() as f64) as usize;
        return among.get(at).or(among.last()).copied();
    }
    let mut left = dice * total;
    for record in among {
        left -= weight(record);
        if left < 0.0 {
            return Some(record);
        }
    }
    among.iter().rev().find(|r| weight(r) > 0.0).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a(value: &str) -> Record {
        Record { name: "api.z.test".into(), kind: "A".into(), ttl: 5, values: vec![value.into()], ..Record::default() }
    }
    fn change(verb: Verb, record: Record) -> Change {
        Change { verb, record }
    }
    fn zone(records: Vec<Record>) -> Zone {
        Zone { apex: "z.test".into(), records }
    }

    #[test]
    fn a_swap_is_compare_and_swap_and_atomic() {
        let now = zone(vec![a("127.0.0.1")]);
        let swap = [change(Verb::Delete, a("127.0.0.1")), change(Verb::Create, a("127.0.0.2"))];
        let next = now.change(&swap).unwrap();
        assert_eq!(next.records, [a("127.0.0.2")]);
        let faults = next.change(&swap).unwrap_err();
        assert!(faults[0].contains("do not match"), "{faults:?}");
        assert!(now.change(&[change(Verb::Create, a("127.0.0.2"))]).unwrap_err()[0].contains("already exists"));
        let upsert = next.change(&[change(Verb::Upsert, a("127.0.0.9"))]).unwrap();
        assert_eq!(upsert.records, [a("127.0.0.9")]);
    }

    #[test]
    fn what_aws_refuses_is_refused() {
        let create = |record| zone(vec![a("127.0.0.1")]).change(&[change(Verb::Create, record)]).unwrap_err();
        assert!(create(Record { name: "x.other".into(), ..a("1.1.1.1") })[0].contains("not permitted in zone"));
        assert!(create(Record { name: "b.z.test".into(), ..a("300.1.1.1") })[0].contains("not a valid address"));
        assert!(create(Record { kind: "CNAME".into(), ..a("w.z.test") })[0].contains("conflicts"));
        assert!(create(Record { set: Some("s".into()), weight: Some(1), ..a("1.1.1.1") })[0].contains("conflicts"));
        let heavy = Record { name: "b.z.test".into(), set: Some("s".into()), weight: Some(256), ..a("1.1.1.1") };
        assert!(create(heavy)[0].contains("255"));
    }

    #[test]
    fn weights_and_failover_follow_health() {
        let weigh = |set: &str, ip: &str, weight| Record { set: Some(set.into()), weight: Some(weight), health: Some(set.into()), ..a(ip) };
        let z = zone(vec![weigh("e", "127.0.0.1", 3), weigh("w", "127.0.0.2", 1)]);
        let ask = |z: &Zone, ill: &[&str], dice| {
            let ill = ill.iter().map(|id| ((*id).to_owned(), true)).collect();
            z.answer("api.z.test", "A", &ill, dice).unwrap().values[0].clone()
        };
        assert_eq!(ask(&z, &[], 0.7), "127.0.0.1");
        assert_eq!(ask(&z, &[], 0.8), "127.0.0.2");
        assert_eq!(ask(&z, &["e"], 0.1), "127.0.0.2");
        assert_eq!(ask(&z, &["e", "w"], 0.1), "127.0.0.1");
        let fail =
            |role: &str, ip: &str| Record { set: Some(role.into()), failover: Some(role.into()), health: Some(role.into()), ..a(ip) };
        let z = zone(vec![fail("SECONDARY", "127.0.0.2"), fail("PRIMARY", "127.0.0.1")]);
        assert_eq!(ask(&z, &[], 0.5), "127.0.0.1");
        assert_eq!(ask(&z, &["PRIMARY"], 0.5), "127.0.0.2");
        assert_eq!(ask(&z, &["PRIMARY", "SECONDARY"], 0.5), "127.0.0.1");
        assert!(z.answer("no.z.test", "A", &BTreeMap::new(), 0.5).is_none());
    }
}
