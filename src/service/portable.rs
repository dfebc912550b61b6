//! The record on its way from one journal to another: a file with whole chains, bytes and hashes and all.
//!
//! A file is JSON Lines: first what it is and where it came from, then the chains as the list has them, their
//! events, and the chain of heads if the whole journal is in it. An event's `record` is a text whose bytes in
//! UTF-8 are exactly those that its hash covers, so anyone can verify the file without Muster.

use super::{Muster, ServiceError};
use crate::journal::{
    ChainRow, Journal,
    adopt::{Conflict, Judgement, Origin, Overlap, judge},
    chain::{Dump, EventRow, HeadRow, verify},
    sqlite::SqliteJournal,
};
use crate::model::ids::RunId;
use crate::providers::who;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The form of the file.
const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Evidence {
        version: u32,
        /// Machine and directory.
        place: String,
        by: String,
        at: jiff::Timestamp,
        /// The last head of the journal that it was taken from.
        head: Option<String>,
    },
    Chain(ChainRow),
    Event(EventRow),
    Head(HeadRow),
}

/// What was written into a file.
#[derive(Debug, Serialize)]
pub struct Exported {
    pub file: String,
    pub chains: u64,
    pub events: u64,
    pub head: Option<String>,
}

/// What came of an import.
#[derive(Debug, Serialize)]
pub struct Imported {
    pub from: String,
    pub imported: Vec<RunId>,
    /// Here already, with the same bytes.
    pub present: Vec<RunId>,
    pub unfinished: Vec<RunId>,
    pub conflicts: Vec<Conflict>,
    pub overlaps: Vec<Overlap>,
    /// The last hash of this journal's chain of heads.
    pub head: Option<String>,
}

impl Muster {
    /// Writes chains of this journal into a file; the whole journal when none are named.
    pub async fn evidence_export(&self, runs: &[String], file: &Path) -> Result<Exported, ServiceError> {
        let journal = self.existing_journal().await?;
        let mut only = Vec::new();
        for run in runs {
            let id = self.find(&*journal, run).await?;
            // A drill is nothing without its runs.
            only.extend(journal.children(&id).await?.into_iter().map(|child| child.id));
            only.push(id);
        }
        let dump = journal.dump((!only.is_empty()).then_some(&only[..])).await?;
        let found = verify(&dump);
        if !found.verified {
            return Err(ServiceError::Usage(format!(
                "this journal does not verify, so nothing is exported: {}",
                found.problems.join("; ")
            )));
        }
        let head = Self::head(&*journal).await?;
        let text = lines(&dump, self.place(), self.clock.now(), head.clone())?;
        std::fs::write(file, text).map_err(|e| ServiceError::Usage(format!("{} cannot be written: {e}", file.display())))?;
        Ok(Exported { file: file.display().to_string(), chains: found.chains, events: found.events, head })
    }

    /// Takes the chains of a file, or of another state directory, into this journal.
    pub async fn evidence_import(&self, from: &Path) -> Result<Imported, ServiceError> {
        let (theirs, place, head) = if from.is_dir() { self.elsewhere(from).await? } else { read(from)? };
        let origin = Origin { place: place.clone(), head, by: Self::person(), at: self.clock.now() };
        let journal = self.journal().await?;
        let ours = journal.dump(None).await?;
        let judged = judge(&theirs, &ours, &origin).map_err(|problems| {
            let problems = problems.join("\n  ");
            ServiceError::Usage(format!("{} does not verify, so nothing of it is imported:\n  {problems}", from.display()))
        })?;
        let Judgement { adopted, present, unfinished, conflicts, overlaps } = judged;
        let imported: Vec<_> = adopted.iter().map(|chain| chain.row.id.clone()).collect();
        if !adopted.is_empty() {
            journal.adopt(adopted, &origin).await?;
        }
        let head = Self::head(&*journal).await?;
        Ok(Imported { from: place, imported, present, unfinished, conflicts, overlaps, head })
    }

    fn place(&self) -> String {
        let state = std::path::absolute(&self.state).unwrap_or_else(|_| self.state.clone());
        format!("{}:{}", who::host(), state.display())
    }

    async fn head(journal: &dyn Journal) -> Result<Option<String>, ServiceError> {
        let whole = journal.dump(None).await?;
        Ok(whole.heads.and_then(|heads| heads.last().map(|head| format!("sha256:{}", head.hash))))
    }

    async fn elsewhere(&self, dir: &Path) -> Result<(Dump, String, Option<String>), ServiceError> {
        let other = Self { state: dir.to_owned(), ..self.clone() };
        if !dir.join("journal.db").is_file() {
            return Err(ServiceError::Usage(format!(
                "there is no journal in {}; name a state directory, or a file that was exported",
                dir.display()
            )));
        }
        let dump = SqliteJournal::open(dir).await?.dump(None).await?;
        let head = dump.heads.as_ref().and_then(|heads| heads.last()).map(|head| format!("sha256:{}", head.hash));
        Ok((dump, other.place(), head))
    }
}

fn lines(dump: &Dump, place: String, at: jiff::Timestamp, head: Option<String>) -> Result<String, ServiceError> {
    let mut lines = vec![Line::Evidence { version: VERSION, place, by: who::person(), at, head }];
    lines.extend(dump.rows.iter().cloned().map(Line::Chain));
    lines.extend(dump.events.iter().cloned().map(Line::Event));
    lines.extend(dump.heads.iter().flatten().cloned().map(Line::Head));
    let mut text = String::new();
    for line in &lines {
        text += &serde_json::to_string(line).map_err(|e| ServiceError::Usage(format!("a record cannot be exported: {e}")))?;
        text.push('\n');
    }
    Ok(text)
}

/// The chains in a file that was exported, where they came from, and the last head of that journal.
pub(super) fn read(file: &Path) -> Result<(Dump, String, Option<String>), ServiceError> {
    let wrong = |why: String| ServiceError::Usage(format!("{} is not an export of Muster's: {why}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|e| ServiceError::Usage(format!("{} cannot be read: {e}", file.display())))?;
    let mut numbered = (1..).zip(text.lines());
    let parse = |(number, line): (u32, &str)| serde_json::from_str::<Line>(line).map_err(|e| wrong(format!("line {number}: {e}")));
    let Some(Line::Evidence { version, place, head, .. }) = numbered.next().map(parse).transpose()? else {
        return Err(wrong("its first line does not say what it is".to_owned()));
    };
    if version != VERSION {
        return Err(wrong(format!("its form is {version}, and this Muster knows {VERSION}")));
    }
    let mut dump = Dump::default();
    for line in numbered {
        match parse(line)? {
            Line::Chain(row) => dump.rows.push(row),
            Line::Event(event) => dump.events.push(event),
            Line::Head(head) => dump.heads.get_or_insert_default().push(head),
            Line::Evidence { .. } => return Err(wrong("it says twice what it is".to_owned())),
        }
    }
    Ok((dump, place, head))
}
