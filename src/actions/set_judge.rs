//! One object and its copy: the same, or how they differ, and what told it.
//!
//! What two listings show decides most of it: the same size and the same etag. Everything else is looked at once more,
//! on both sides, at the same moment: listings are read one page after the other while the buckets live on, and a
//! difference that is gone by then never was one.

use super::{
    set_rows::Row,
    set_tally::{By, Finding, Kind, Tally, Verdict},
    set_walk::{Broken, Item},
    set_work::Judges,
};
use crate::providers::port::*;
use async_trait::async_trait;
use futures::{StreamExt, future::try_join};
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest, Sha256};
use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// How two buckets are compared.
#[derive(Clone, Debug, Default)]
pub(crate) struct How {
    pub versions: bool,
    /// Ask for the checksums of every object, whatever the listings say.
    pub checksums: bool,
    /// Read every object; `Some(false)`: none, whatever cannot be compared otherwise.
    pub read: Option<bool>,
    /// Read this share of all objects.
    pub sample: f64,
    /// Chooses which.
    pub seed: String,
    /// Replication that is pending for no longer is no difference.
    pub max_backlog_age: SignedDuration,
}

pub(crate) struct Judge {
    pub source: Arc<dyn ObjectRead>,
    pub copy: Arc<dyn ObjectRead>,
    /// Of the source.
    pub rules: Vec<ReplicationRule>,
    /// Whether each keeps versions: then what is gone may have left a marker.
    pub keeps: (bool, bool),
    pub how: How,
    pub now: Timestamp,
    /// Bytes of the source that were read.
    pub read: AtomicU64,
}

/// What cannot be compared otherwise is read, up to so many bytes in all.
pub(crate) const UNASKED: u64 = 1024 * 1024 * 1024;

/// What two descriptions say.
enum Told {
    Same(By),
    Differs(String),
    Cannot(String),
}

impl Judge {
    /// Whether the listings alone say that all is the same.
    fn alike(&self, source: &Item, copy: &Item) -> Option<By> {
        let (Some(s), Some(c)) = (source.latest(), copy.latest()) else { return None };
        let same = !s.marker && !c.marker && s.size == c.size && s.etag.is_some() && s.etag == c.etag;
        let asked = self.how.checksums || self.how.read == Some(true) || self.sampled(&s.key);
        (same && !asked && lacking(&source.0, &copy.0) == 0).then_some(By::Etag)
    }

    fn sampled(&self, key: &str) -> bool {
        if self.how.sample <= 0.0 {
            return false;
        }
        let digest = Sha256::digest(format!("{}\0{key}", self.how.seed));
        let number = digest.iter().take(4).fold(0u32, |n, byte| (n << 8) | u32::from(*byte));
        f64::from(number) < self.how.sample * f64::from(u32::MAX)
    }

    /// Looks at both sides of a key as they stand now.
    async fn both_sides(&self, key: &str) -> PortResult<Vec<Verdict>> {
        let (source, copy) = try_join(self.source.standing(key), self.copy.standing(key)).await?;
        let mut all = vec![match (source, copy) {
            (None, None) => Verdict::Gone,
            (None, Some(_)) => self.left_over(key).await?,
            (Some(source), None) => self.missing(key, &source).await?,
            (Some(source), Some(copy)) => self.both(key, &source, &copy).await?,
        }];
        if self.how.versions {
            let (source, copy) = try_join(history(&*self.source, key), history(&*self.copy, key)).await?;
            let lacks = lacking(&source, &copy);
            if lacks > 0 {
                let why = format!("{lacks} of {} older versions", source.len().saturating_sub(1));
                all.push(differs(Finding { kind: Kind::Versions, key: key.to_owned(), why, replication: None, since: None }));
            }
        }
        Ok(all)
    }

    /// The copy alone is there.
    async fn left_over(&self, key: &str) -> PortResult<Verdict> {
        let deleted = if self.keeps.0 { newest(&*self.source, key).await?.filter(|newest| newest.marker) } else { None };
        let rule = self.rules.iter().find(|rule| rule.covers(key));
        Ok(match (&deleted, rule) {
            (Some(_), Some(rule)) if !rule.delete_markers => Verdict::Kept,
            (Some(marker), _) => {
                let why = "deleted at the source, which has a marker of it".to_owned();
                differs(Finding { kind: Kind::DeleteMarker, key: key.to_owned(), why, replication: None, since: marker.modified })
            }
            (None, _) => {
                let why = "the source has no such object".to_owned();
                differs(Finding { kind: Kind::Extra, key: key.to_owned(), why, replication: None, since: None })
            }
        })
    }

    async fn missing(&self, key: &str, source: &ObjectStanding) -> PortResult<Verdict> {
        let hidden = self.keeps.1 && newest(&*self.copy, key).await?.is_some_and(|newest| newest.marker);
        let why = if hidden { "the copy was deleted: a marker hides it" } else { "there is no copy" };
        Ok(self.behind(Kind::Missing, key, source, why.to_owned()))
    }

    async fn both(&self, key: &str, source: &ObjectStanding, copy: &ObjectStanding) -> PortResult<Verdict> {
        let wanted = self.how.read == Some(true) || self.sampled(key);
        let told = match compare(source, copy) {
            Told::Cannot(why) => self.by_sums(key, source, copy).await?.unwrap_or(Told::Cannot(why)),
            told => told,
        };
        let told = match told {
            Told::Same(by) if !wanted => Told::Same(by),
            Told::Differs(why) => Told::Differs(why),
            Told::Cannot(why) if !wanted && !self.may_read(source.meta.size) => Told::Cannot(why),
            Told::Same(_) | Told::Cannot(_) => self.content(key, source.meta.size).await?,
        };
        Ok(match told {
            Told::Same(by) => Verdict::Same(by),
            Told::Differs(why) => self.behind(kind(source, copy), key, source, why),
            Told::Cannot(why) => {
                differs(Finding { kind: Kind::Undecided, key: key.to_owned(), why, replication: None, since: source.meta.modified })
            }
        })
    }

    /// What the servers know of the parts of an upload; not of what was replaced since it was looked at.
    async fn by_sums(&self, key: &str, source: &ObjectStanding, copy: &ObjectStanding) -> PortResult<Option<Told>> {
        let (Some(one), Some(other)) = try_join(self.source.sums(key), self.copy.sums(key)).await? else { return Ok(None) };
        if one.etag.is_none() || one.etag != source.meta.etag || other.etag.is_none() || other.etag != copy.meta.etag {
            return Ok(None);
        }
        let (one, other) = (one.and_of_head(source.meta.checksum.as_deref()), other.and_of_head(copy.meta.checksum.as_deref()));
        let told = |same| if same { Told::Same(By::Checksum) } else { Told::Differs("the checksums of their parts differ".to_owned()) };
        Ok(one.same(&other).map(told))
    }

    fn may_read(&self, size: u64) -> bool {
        self.how.read.is_none() && self.read.load(Ordering::Relaxed).saturating_add(size) <= UNASKED
    }

    async fn content(&self, key: &str, size: u64) -> PortResult<Told> {
        self.read.fetch_add(size, Ordering::Relaxed);
        let (source, copy) = try_join(digest(&*self.source, key), digest(&*self.copy, key)).await?;
        Ok(if source == copy { Told::Same(By::Content) } else { Told::Differs("the content differs".to_owned()) })
    }

    /// What a missing or stale copy means, where the source replicates.
    fn behind(&self, kind: Kind, key: &str, source: &ObjectStanding, why: String) -> Verdict {
        let since = source.meta.modified;
        let covered = self.rules.is_empty() || self.rules.iter().any(|rule| rule.covers(key));
        let late = matches!(kind, Kind::Missing | Kind::Stale);
        let replication = source.replication.clone().or_else(|| (!covered).then(|| "uncovered".to_owned())).filter(|_| late);
        let young = since.is_some_and(|since| self.now.duration_since(since) <= self.how.max_backlog_age);
        if replication.as_deref() == Some("PENDING") && young {
            return Verdict::Waiting(since);
        }
        let why = match replication.as_deref() {
            Some("uncovered") => format!("{why}; no enabled replication rule covers it"),
            Some(status) => format!("{why}; its replication is {status}"),
            None => why,
        };
        differs(Finding { kind, key: key.to_owned(), why, replication, since })
    }
}

#[async_trait]
impl Judges for Judge {
    fn listed(&self, row: &Row, tally: &mut Tally) -> Option<Verdict> {
        let Row { source, copy, .. } = row;
        let there = |item: &Option<Item>| item.as_ref().and_then(|item| item.latest().filter(|latest| !latest.marker)).map(|o| o.size);
        tally.objects += u64::from(there(source).is_some());
        tally.copies += u64::from(there(copy).is_some());
        tally.bytes += there(source).unwrap_or(0);
        tally.older_versions += source.as_ref().map_or(0, |item| item.0.len() as u64 - 1);
        source.as_ref().zip(copy.as_ref()).and_then(|(source, copy)| self.alike(source, copy)).map(Verdict::Same)
    }
    async fn look(&self, row: &Row) -> Result<Vec<Verdict>, Broken> {
        Ok(self.both_sides(row.key()).await?)
    }
    fn read(&self) -> &AtomicU64 {
        &self.read
    }
}

fn differs(finding: Finding) -> Verdict {
    Verdict::Differs(Box::new(finding))
}

/// A copy that is younger than the source was changed after it was made.
fn kind(source: &ObjectStanding, copy: &ObjectStanding) -> Kind {
    let (s, c) = (&source.meta, &copy.meta);
    if let Some(copied) = c.metadata.get("muster-source-etag") {
        return if Some(copied) == s.etag.as_ref() { Kind::Corrupt } else { Kind::Stale };
    }
    let same_version = s.version.is_some() && s.version == c.version;
    if same_version || c.modified > s.modified { Kind::Corrupt } else { Kind::Stale }
}

fn compare(source: &ObjectStanding, copy: &ObjectStanding) -> Told {
    let (s, c) = (&source.meta, &copy.meta);
    if s.size != c.size {
        return Told::Differs(format!("{} bytes, {} at the copy", s.size, c.size));
    }
    if let Some(same) = checksums(s.checksum.as_deref(), c.checksum.as_deref()) {
        return if same { Told::Same(By::Checksum) } else { Told::Differs("the servers' checksums differ".to_owned()) };
    }
    let kms = source.kms || copy.kms;
    if let (Some(one), Some(other)) = (&s.etag, &c.etag)
        && !kms
    {
        if one == other {
            return Told::Same(By::Etag);
        }
        if md5(one) && md5(other) {
            return Told::Differs("the etags differ".to_owned());
        }
    }
    if c.metadata.contains_key("muster-sha256") && s.etag.is_some() && c.metadata.get("muster-source-etag") == s.etag.as_ref() {
        return Told::Same(By::Digest);
    }
    let why = if kms { "encrypted by KMS" } else { "their etags are of uploads in parts" };
    Told::Cannot(format!("{why}, without checksums that both servers keep"))
}

/// Are they the same? `None` when these two cannot be compared: other algorithms, or of other parts.
fn checksums(one: Option<&str>, other: Option<&str>) -> Option<bool> {
    let (one, other) = (one?, other?);
    if one == other {
        return Some(true);
    }
    let algorithm = |text: &str| text.split(':').next().map(str::to_owned);
    // Behind a hyphen stands of how many parts' checksums it is made.
    let whole = !one.contains('-') && !other.contains('-');
    (whole && algorithm(one) == algorithm(other)).then_some(false)
}

/// Is it the digest of the body itself, as far as its form tells?
fn md5(etag: &str) -> bool {
    etag.len() == 32 && etag.bytes().all(|b| b.is_ascii_hexdigit())
}

/// How many of the source's older versions the copy has not. A version is known by its identifier, which replication
/// keeps, or by what it holds.
fn lacking(source: &[ObjectVersion], copy: &[ObjectVersion]) -> usize {
    let ids: HashSet<&str> = copy.iter().filter_map(|v| v.version.as_deref()).collect();
    let mut held: HashMap<(bool, u64, Option<&str>), usize> = HashMap::new();
    for v in copy {
        *held.entry((v.marker, v.size, v.etag.as_deref())).or_default() += 1;
    }
    let mut lacks = 0;
    for (n, v) in source.iter().enumerate() {
        let alike = held.get_mut(&(v.marker, v.size, v.etag.as_deref())).filter(|left| **left > 0);
        let there = v.version.as_deref().is_some_and(|id| ids.contains(id)) || alike.is_some();
        if let Some(left) = alike {
            *left -= 1;
        }
        // The newest is compared by itself.
        lacks += usize::from(n > 0 && !there);
    }
    lacks
}

/// All versions of one key, newest first.
async fn history(store: &dyn ObjectRead, key: &str) -> PortResult<Vec<ObjectVersion>> {
    let (mut all, mut mark) = (Vec::new(), None);
    loop {
        let page = store.versions(key, mark.as_ref()).await?;
        let others = page.versions.iter().any(|v| v.key != key);
        all.extend(page.versions.into_iter().filter(|v| v.key == key));
        match page.next {
            Some(next) if !others => mark = Some(next),
            _ => return Ok(all),
        }
    }
}

async fn newest(store: &dyn ObjectRead, key: &str) -> PortResult<Option<ObjectVersion>> {
    Ok(history(store, key).await?.into_iter().next())
}

async fn digest(store: &dyn ObjectRead, key: &str) -> PortResult<String> {
    let mut chunks = store.get(key).await?.chunks;
    let mut digest = Sha256::new();
    while let Some(chunk) = chunks.next().await {
        digest.update(&chunk?);
    }
    Ok(hex::encode(digest.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn standing(etag: &str, checksum: Option<&str>) -> ObjectStanding {
        let meta = ObjectMeta {
            key: "k".into(),
            size: 4,
            etag: Some(etag.into()),
            version: None,
            modified: None,
            metadata: BTreeMap::new(),
            checksum: checksum.map(str::to_owned),
        };
        meta.into()
    }
    fn told(one: &ObjectStanding, other: &ObjectStanding) -> &'static str {
        match compare(one, other) {
            Told::Same(By::Etag) => "same etag",
            Told::Same(By::Checksum) => "same checksum",
            Told::Same(By::Digest) => "same digest",
            Told::Same(By::Content) => "same content",
            Told::Differs(_) => "differs",
            Told::Cannot(_) => "cannot",
        }
    }

    #[test]
    fn what_two_descriptions_say_depends_on_what_an_etag_is() {
        let (a, b, parts) = ("0cc175b9c0f1b6a831c399e269772661", "92eb5ffee6ae2fec3ad71c777531578f", "92eb5ffee6ae2fec3ad71c777531578f-2");
        assert_eq!(told(&standing(a, None), &standing(a, None)), "same etag");
        assert_eq!(told(&standing(a, None), &standing(b, None)), "differs");
        assert_eq!(told(&standing(a, None), &standing(parts, None)), "cannot");
        assert_eq!(told(&standing(parts, None), &standing(parts, None)), "same etag");
        // Checksums say more than etags.
        assert_eq!(told(&standing(a, Some("crc32:AA==")), &standing(parts, Some("crc32:AA=="))), "same checksum");
        assert_eq!(told(&standing(a, Some("crc32:AA==")), &standing(a, Some("crc32:BB=="))), "differs");
        assert_eq!(told(&standing(a, Some("crc32:AA==")), &standing(a, Some("sha256:BB=="))), "same etag");
        assert_eq!(told(&standing(a, Some("crc32:AA==-2")), &standing(parts, Some("crc32:BB==-3"))), "cannot");
        // With KMS an etag is no digest.
        let kms = ObjectStanding { kms: true, ..standing(b, None) };
        assert_eq!(told(&standing(a, None), &kms), "cannot");
        let mut copied = standing(parts, None);
        copied.meta.metadata = [("muster-sha256", "x"), ("muster-source-etag", a)].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        assert_eq!(told(&standing(a, None), &copied), "same digest");
    }

    #[test]
    fn what_is_pending_is_a_difference_once_it_is_old() {
        let world = crate::providers::sim::SimWorld::new(Arc::new(crate::actions::contract_tests::estate()));
        let (source, copy) = (world.objects("models", "east").unwrap(), world.objects("models", "west").unwrap());
        let rule = |prefix: &str, enabled| ReplicationRule {
            id: "r".into(),
            enabled,
            prefix: prefix.into(),
            tagged: false,
            delete_markers: false,
            to: "models-west".into(),
        };
        let how = How { max_backlog_age: SignedDuration::from_mins(5), ..How::default() };
        let rules = vec![rule("k", true), rule("", false)];
        let now = Timestamp::from_second(10_000).unwrap();
        let judge = Judge { source, copy, rules, keeps: (false, false), how, now, read: 0.into() };
        let mut at = standing("a", None);
        let mut said = |key: &str, status: Option<&str>, age: i64| {
            at.replication = status.map(str::to_owned);
            at.meta.modified = Timestamp::from_second(10_000 - age).ok();
            match judge.behind(Kind::Missing, key, &at, "no copy".into()) {
                Verdict::Waiting(_) => "waits".to_owned(),
                Verdict::Differs(finding) => format!("{} ({})", finding.why, finding.replication.unwrap_or_default()),
                other => format!("{other:?}"),
            }
        };
        assert_eq!(said("k", Some("PENDING"), 60), "waits");
        assert_eq!(said("k", Some("PENDING"), 600), "no copy; its replication is PENDING (PENDING)");
        assert_eq!(said("k", Some("FAILED"), 60), "no copy; its replication is FAILED (FAILED)");
        assert_eq!(said("other", None, 60), "no copy; no enabled replication rule covers it (uncovered)");
        assert_eq!(said("k", None, 60), "no copy ()");
    }

    #[test]
    fn a_version_is_known_by_its_name_or_by_what_it_holds() {
        let v = |id: &str, etag: &str| ObjectVersion {
            key: "k".into(),
            size: 1,
            etag: Some(etag.into()),
            version: Some(id.into()),
            modified: None,
            marker: false,
            latest: false,
        };
        let source = [v("3", "c"), v("2", "b"), v("1", "b")];
        assert_eq!(lacking(&source, &source), 0);
        assert_eq!(lacking(&source, &[v("z", "c"), v("y", "b"), v("x", "b")]), 0, "copied without their names");
        assert_eq!(lacking(&source, &[v("z", "c"), v("y", "b")]), 1);
        assert_eq!(lacking(&source, &[v("3", "c")]), 2);
        assert_eq!(lacking(&source, &[]), 2);
    }
}
