//! What a comparison of two buckets has come to: counts, the first keys of each kind of difference, and how far it is,
//! so that another process can go on. Every difference is also a line of a file, since a million do not fit here.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use super::set_walk::Order;

/// How a copy differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The source has it, the copy does not.
    Missing,
    /// The copy is of an older state of the source.
    Stale,
    /// The copy is younger than the source, or the same version, and has other content.
    Corrupt,
    /// The copy has it, and the source never had, or has forgotten that it did.
    Extra,
    /// Deleted at the source, and the copy is still there.
    DeleteMarker,
    /// The same now, but the copy lacks older versions.
    Versions,
    /// Nothing that can be compared was allowed to be.
    Undecided,
}

impl Kind {
    pub fn word(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Stale => "stale",
            Self::Corrupt => "corrupt",
            Self::Extra => "extra",
            Self::DeleteMarker => "not deleted",
            Self::Versions => "lacking versions",
            Self::Undecided => "undecided",
        }
    }
}

/// What told that an object and its copy are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// Both sides' etags in the listings, which are digests of the content.
    Etag,
    /// The checksums that both servers keep.
    Checksum,
    /// The digest that `bucket.backup` took and left at the copy, and the source's etag of that time.
    Digest,
    /// Every byte of both was read.
    Content,
}

/// One difference.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Finding {
    pub kind: Kind,
    pub key: String,
    pub why: String,
    /// What the source says of its replication.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication: Option<String>,
    /// Since when the source has been as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Verdict {
    Same(By),
    /// Neither side has it any more.
    Gone,
    /// Replication is under way, and not for too long.
    Waiting(Option<Timestamp>),
    /// Deleted at the source and kept here, as the rule says.
    Kept,
    Differs(Box<Finding>),
}

impl PartialEq for Finding {
    fn eq(&self, other: &Self) -> bool {
        (self.kind, &self.key) == (other.kind, &other.key)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Found {
    pub count: u64,
    /// The first hundred.
    pub keys: Vec<String>,
}

/// Objects that the source's replication has not carried over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Backlog {
    pub pending: u64,
    pub failed: u64,
    /// Not copied, and covered by no rule that is enabled.
    pub uncovered: u64,
    /// When the oldest of those that are pending or failed was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub oldest: Option<Timestamp>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tally {
    /// At the source.
    pub objects: u64,
    pub copies: u64,
    pub bytes: u64,
    /// Beside the newest, at the source, with their markers.
    pub older_versions: u64,
    pub same_by: BTreeMap<By, u64>,
    pub read_bytes: u64,
    pub waiting: u64,
    pub kept: u64,
    pub found: BTreeMap<Kind, Found>,
    pub backlog: Backlog,
}

/// So many keys of each kind are told by name.
const NAMED: usize = 100;

impl Tally {
    /// Answers what is to be written down.
    pub fn add(&mut self, verdict: Verdict) -> Option<Finding> {
        match verdict {
            Verdict::Gone => None,
            Verdict::Same(by) => {
                *self.same_by.entry(by).or_default() += 1;
                None
            }
            Verdict::Kept => {
                self.kept += 1;
                None
            }
            Verdict::Waiting(since) => {
                self.waiting += 1;
                self.backlog.pending += 1;
                self.older(since);
                None
            }
            Verdict::Differs(finding) => {
                self.behind(&finding);
                let found = self.found.entry(finding.kind).or_default();
                found.count += 1;
                if found.keys.len() < NAMED {
                    found.keys.push(finding.key.clone());
                }
                Some(*finding)
            }
        }
    }

    fn behind(&mut self, finding: &Finding) {
        match finding.replication.as_deref() {
            Some("PENDING") => self.backlog.pending += 1,
            Some("FAILED") => self.backlog.failed += 1,
            Some("uncovered") => {
                self.backlog.uncovered += 1;
                return;
            }
            _ => return,
        }
        self.older(finding.since);
    }

    fn older(&mut self, since: Option<Timestamp>) {
        self.backlog.oldest = [self.backlog.oldest, since].into_iter().flatten().min();
    }

    pub fn differences(&self) -> u64 {
        self.found.values().map(|found| found.count).sum()
    }

    /// `2 missing: a, b; 1 stale: c`.
    pub fn told(&self) -> String {
        let each = self.found.iter().map(|(kind, found)| {
            let more = if found.count as usize > found.keys.len() { ", ..." } else { "" };
            format!("{} {}: {}{more}", found.count, kind.word(), found.keys.join(", "))
        });
        each.collect::<Vec<_>>().join("; ")
    }
}

/// How far a comparison has come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    pub order: Order,
    /// All keys up to this one are judged.
    pub after: Option<String>,
    /// The length of the file of differences by then.
    pub written: u64,
    pub objects_per_s: u64,
    /// The manifest that is compared with, if one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<String>,
    /// Without the source, which does not answer.
    #[serde(default)]
    pub alone: bool,
    pub tally: Tally,
}

/// The folder of one comparison.
pub(crate) struct Desk {
    pub folder: PathBuf,
    file: File,
}

impl Desk {
    /// With how far an earlier process came, if one did. A checkpoint that cannot be read, that is of a comparison with another
    /// manifest, or whose differences are not all there, counts for nothing: to compare all of it again costs time, to go on
    /// from it could hide what was found.
    pub fn open(folder: &Path, manifest: Option<&str>) -> std::io::Result<(Self, Option<Checkpoint>)> {
        std::fs::create_dir_all(folder)?;
        let file = OpenOptions::new().create(true).append(true).open(Self::differences(folder))?;
        let there = file.metadata()?.len();
        let kept = match std::fs::read(folder.join("checkpoint.json")) {
            Ok(text) => {
                let kept = serde_json::from_slice::<Checkpoint>(&text).ok();
                kept.filter(|kept| kept.written <= there && kept.manifest.as_deref() == manifest)
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        // What was written after the checkpoint is found again.
        file.set_len(kept.as_ref().map_or(0, |kept| kept.written))?;
        Ok((Self { folder: folder.to_owned(), file }, kept))
    }

    pub fn differences(folder: &Path) -> PathBuf {
        folder.join("differences.jsonl")
    }

    /// Forgets all that was found: the order was another one.
    pub fn again(&mut self) -> std::io::Result<()> {
        self.file.set_len(0)
    }

    /// One line each; answers how long the file is then.
    pub fn write(&mut self, findings: &[Finding]) -> std::io::Result<u64> {
        let mut lines = Vec::new();
        for finding in findings {
            serde_json::to_writer(&mut lines, finding)?;
            lines.push(b'\n');
        }
        self.file.write_all(&lines)?;
        Ok(self.file.metadata()?.len())
    }

    /// The differences first: a checkpoint never speaks of one that a power cut could take.
    pub fn keep(&self, checkpoint: &Checkpoint) -> std::io::Result<()> {
        let (new, path) = (self.folder.join("checkpoint.new"), self.folder.join("checkpoint.json"));
        self.file.sync_data()?;
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(checkpoint)?)?;
        file.sync_data()?;
        std::fs::rename(new, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_after_the_checkpoint_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let finding = |key: &str| Finding { kind: Kind::Missing, key: key.into(), why: String::new(), replication: None, since: None };
        let (mut desk, kept) = Desk::open(dir.path(), None).unwrap();
        assert!(kept.is_none());
        let mut checkpoint = Checkpoint { after: Some("a".into()), ..Checkpoint::default() };
        checkpoint.written = desk.write(&[finding("a")]).unwrap();
        desk.keep(&checkpoint).unwrap();
        desk.write(&[finding("b"), finding("c")]).unwrap();
        let (mut desk, kept) = Desk::open(dir.path(), None).unwrap();
        assert_eq!(kept, Some(checkpoint));
        desk.write(&[finding("b")]).unwrap();
        let text = std::fs::read_to_string(Desk::differences(dir.path())).unwrap();
        let keys: Vec<String> = text.lines().map(|l| serde_json::from_str::<Finding>(l).unwrap().key).collect();
        assert_eq!(keys, ["a", "b"]);
    }

    #[test]
    fn a_checkpoint_that_is_not_whole_or_has_lost_its_differences_counts_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (mut desk, _) = Desk::open(dir.path(), None).unwrap();
        let finding = Finding { kind: Kind::Missing, key: "a".into(), why: String::new(), replication: None, since: None };
        let written = desk.write(&[finding]).unwrap();
        desk.keep(&Checkpoint { written, ..Checkpoint::default() }).unwrap();
        std::fs::write(Desk::differences(dir.path()), b"").unwrap();
        assert_eq!(Desk::open(dir.path(), None).unwrap().1, None);
        desk.keep(&Checkpoint { written: 0, ..Checkpoint::default() }).unwrap();
        assert!(Desk::open(dir.path(), None).unwrap().1.is_some());
        assert!(Desk::open(dir.path(), Some("a manifest")).unwrap().1.is_none(), "of another comparison");
        std::fs::write(dir.path().join("checkpoint.json"), b"{").unwrap();
        assert_eq!(Desk::open(dir.path(), None).unwrap().1, None);
    }

    #[test]
    fn the_oldest_of_the_backlog_is_kept_and_what_no_rule_covers_is_not_of_it() {
        let at = |s: i64| Timestamp::from_second(s).ok();
        let finding = |status: &str, since: i64| {
            Verdict::Differs(Box::new(Finding {
                kind: Kind::Missing,
                key: status.into(),
                why: String::new(),
                replication: Some(status.into()),
                since: at(since),
            }))
        };
        let mut tally = Tally::default();
        for verdict in [finding("PENDING", 50), finding("FAILED", 20), finding("uncovered", 1), Verdict::Waiting(at(30))] {
            tally.add(verdict);
        }
        assert_eq!(tally.backlog, Backlog { pending: 2, failed: 1, uncovered: 1, oldest: at(20) });
        assert_eq!((tally.differences(), tally.told().as_str()), (3, "3 missing: PENDING, FAILED, uncovered"));
    }
}
