//! What somebody kept of a journal, held against the journal as it is now.
//!
//! Hashes hold a journal together, but nothing in it says that it is still the one that it was: whoever can write
//! it can make all of it anew, or leave out the end. Only what was kept elsewhere tells. A head covers every chain
//! that had ended, and of one that was still open no more than its beginning, so the last events of those are kept
//! beside it.

use super::chain::Dump;
use crate::model::ids::RunId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// An event by its place and its hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tip {
    pub run: RunId,
    pub seq: u64,
    pub hash: String,
}

/// What was kept: a head, and events that must be there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// In hexadecimal, without `sha256:` before it.
    pub head: Option<String>,
    pub tips: Vec<Tip>,
}

/// A head as it is printed, or the bare hash.
#[must_use]
pub fn head(text: &str) -> Option<String> {
    let text = text.trim();
    let text = text.strip_prefix("sha256:").unwrap_or(text);
    (text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| text.to_ascii_lowercase())
}

/// The last event of every chain that has not ended.
#[must_use]
pub fn open_tips(dump: &Dump) -> Vec<Tip> {
    let mut last: BTreeMap<&RunId, Tip> = BTreeMap::new();
    let mut ended = std::collections::BTreeSet::new();
    for event in &dump.events {
        let body = serde_json::from_slice::<crate::model::event::Event>(&event.record).ok();
        if body.and_then(|event| super::project(&event.body)).is_some_and(|(_, end)| end) {
            ended.insert(&event.run);
        }
        last.insert(&event.run, Tip { run: event.run.clone(), seq: event.seq, hash: event.hash.clone() });
    }
    last.into_iter().filter(|(run, _)| !ended.contains(run)).map(|(_, tip)| tip).collect()
}

/// What was kept and is not in this journal. It is asked after the journal itself was verified: the hashes in its
/// columns are those of its records.
#[must_use]
pub fn missing(dump: &Dump, kept: &Kept) -> Vec<String> {
    let mut problems = Vec::new();
    if let Some(head) = &kept.head {
        match &dump.heads {
            None => problems.push("only some chains are in it, and no chain of heads that a kept head could be held against".to_owned()),
            Some(heads) if !heads.iter().any(|one| one.hash == *head) => {
                problems
                    .push(format!("the head sha256:{head} that was kept is not in it: it was cut off or replaced, or is another journal"));
            }
            Some(_) => {}
        }
    }
    let events: BTreeMap<(&RunId, u64), &str> = dump.events.iter().map(|one| ((&one.run, one.seq), one.hash.as_str())).collect();
    for tip in &kept.tips {
        let place = format!("{} event {}", tip.run, tip.seq);
        match events.get(&(&tip.run, tip.seq)) {
            None => problems.push(format!("{place}: it was kept, and is gone")),
            Some(hash) if *hash != tip.hash => problems.push(format!("{place}: it is not the one that was kept")),
            Some(_) => {}
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{Draft, Journal, conformance, mem::MemJournal};
    use crate::model::{event::Body, status::RunStatus};

    async fn journal(more: u64) -> Dump {
        let journal = MemJournal::default();
        let (done, _) = journal.create(conformance::new("done", &[]), "one", conformance::first(0)).await.unwrap();
        journal.append(&done, 1, vec![conformance::draft(1, conformance::finished())]).await.unwrap();
        let (open, _) = journal.create(conformance::new("open", &[]), "one", conformance::first(2)).await.unwrap();
        let resumed = |n: u64| Draft { at: conformance::at(n.cast_signed() + 3), actor: "tester".into(), body: Body::Resumed };
        journal.append(&open, 1, (0..more).map(resumed).collect()).await.unwrap();
        journal.dump(None).await.unwrap()
    }

    fn kept(dump: &Dump) -> Kept {
        Kept { head: dump.heads.as_ref().and_then(|heads| heads.last()).map(|head| head.hash.clone()), tips: open_tips(dump) }
    }

    #[tokio::test]
    async fn what_went_on_still_has_what_was_kept() {
        let (then, now) = (journal(2).await, journal(4).await);
        assert_eq!(open_tips(&then).iter().map(|tip| (tip.run.as_str(), tip.seq)).collect::<Vec<_>>(), [("open", 3)]);
        assert_eq!(missing(&then, &kept(&then)), Vec::<String>::new());
        assert_eq!(missing(&now, &kept(&then)), Vec::<String>::new());
    }

    /// The very journal that hashes alone call whole: the end of an open run is gone, and the list says so as well.
    #[tokio::test]
    async fn a_cut_that_the_hashes_do_not_show_is_told_by_what_was_kept() {
        let (whole, cut) = (journal(4).await, journal(2).await);
        assert!(crate::journal::chain::verify(&cut).verified);
        let head_alone = Kept { tips: Vec::new(), ..kept(&whole) };
        assert_eq!(missing(&cut, &head_alone), Vec::<String>::new(), "a head knows only the beginning of what is open");
        assert_eq!(missing(&cut, &kept(&whole)), ["open event 5: it was kept, and is gone"]);
    }

    #[tokio::test]
    async fn a_journal_made_anew_is_another() {
        let mine = journal(1).await;
        let other = MemJournal::default();
        let (claim, _) = other.create(conformance::new("done", &[]), "one", conformance::first(0)).await.unwrap();
        let better = Body::RunFinished { status: RunStatus::Aborted, reason: None };
        other.append(&claim, 1, vec![conformance::draft(1, better)]).await.unwrap();
        let other = other.dump(None).await.unwrap();
        assert!(crate::journal::chain::verify(&other).verified);
        let found = missing(&other, &kept(&mine));
        assert!(found.len() == 2 && found[0].contains("cut off or replaced") && found[1].contains("open event 2"), "{found:?}");
        let part = Dump { heads: None, ..mine.clone() };
        assert!(missing(&part, &kept(&mine))[0].contains("no chain of heads"));
    }

    #[test]
    fn a_head_is_sixty_four_digits() {
        let hash = "0b".repeat(32);
        assert_eq!(head(&format!(" sha256:{hash}\n")), Some(hash.clone()));
        assert_eq!(head(&hash.to_uppercase()), Some(hash));
        assert_eq!((head("sha256:0b"), head(&"xy".repeat(32)), head("")), (None, None, None));
    }
}
