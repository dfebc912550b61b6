//! The journal in memory, for tests of what stands on it: the same rules, no disk.

use super::{chain::*, *};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

#[derive(Default)]
struct Inner {
    rows: BTreeMap<RunId, (ChainRow, u64)>,
    events: BTreeMap<RunId, Vec<Sealed>>,
    heads: Vec<HeadRow>,
    locks: BTreeMap<Resource, RunId>,
    inbox: Vec<(RunId, Letter, bool)>,
    considered: BTreeMap<String, jiff::Timestamp>,
    owned: std::collections::BTreeSet<RunId>,
}

#[derive(Clone, Default)]
pub struct MemJournal {
    inner: Arc<Mutex<Inner>>,
}

/// Releases the chain when the claim is dropped, unless somebody has taken it over.
struct Guard(Arc<Mutex<Inner>>, RunId, u64);

impl Drop for Guard {
    fn drop(&mut self) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.rows.get(&self.1).is_some_and(|(_, epoch)| *epoch == self.2) {
            inner.owned.remove(&self.1);
        }
    }
}

impl MemJournal {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn claim_on(&self, run: &RunId, epoch: u64, owner: &str) -> Claim {
        let guard = Box::new(Guard(self.inner.clone(), run.clone(), epoch));
        Claim { run: run.clone(), epoch, owner: owner.to_owned(), hold: lease::Hold::unlimited(), _guard: guard }
    }
}

impl Inner {
    fn head(&mut self, row: &ChainRow, ended: bool, origin: Option<&adopt::Origin>) {
        let prev = self.heads.last().map(|head| head.hash.clone()).unwrap_or_default();
        let n = self.heads.len() as u64 + 1;
        let (record, hash) = origin.map_or_else(|| seal_head(n, &prev, row, ended), |origin| seal_adopted(n, &prev, row, origin));
        self.heads.push(HeadRow { n, run: row.id.clone(), prev, hash, record });
    }

    fn advance(&mut self, run: &RunId, sealed: Vec<Sealed>) {
        let Some((row, _)) = self.rows.get_mut(run) else { return };
        let ended = row.advance(&sealed);
        let row = row.clone();
        self.events.entry(run.clone()).or_default().extend(sealed);
        if ended {
            self.locks.retain(|_, holder| holder != run);
            self.head(&row, true, None);
        }
    }
}

#[async_trait]
impl Journal for MemJournal {
    async fn create(&self, chain: NewChain, owner: &str, first: Draft) -> Result<(Claim, Stored), JournalError> {
        let run = chain.id.clone();
        let mut inner = self.inner();
        if inner.rows.contains_key(&run) {
            return Err(JournalError::Exists { run });
        }
        if let Some((resource, holder)) = chain.locks.iter().find_map(|r| inner.locks.get_key_value(r)) {
            return Err(JournalError::Locked { resource: resource.clone(), holder: holder.clone() });
        }
        for resource in &chain.locks {
            inner.locks.insert(resource.clone(), run.clone());
        }
        let at = first.at;
        let sealed = seal(&run, 1, 0, "", vec![first])?;
        let Some(stored) = sealed.first().map(|one| one.stored.clone()) else { return Err(JournalError::NoSuchRun(run)) };
        let row = ChainRow {
            id: run.clone(),
            kind: chain.kind,
            name: chain.name,
            parent: chain.parent,
            status: "running".to_owned(),
            started_at: at,
            finished_at: None,
            seq: 1,
            head: stored.hash.clone(),
            owner: Some(owner.to_owned()),
        };
        inner.rows.insert(run.clone(), (row.clone(), 1));
        inner.owned.insert(run.clone());
        inner.head(&row, false, None);
        inner.advance(&run, sealed);
        Ok((self.claim_on(&run, 1, owner), stored))
    }

    async fn claim(&self, run: &RunId, owner: &str) -> Result<Claim, JournalError> {
        let owner_now = {
            let inner = self.inner();
            let (row, _) = inner.rows.get(run).ok_or_else(|| JournalError::NoSuchRun(run.clone()))?;
            adopt::own(row)?;
            inner.owned.contains(run).then(|| row.owner.clone().unwrap_or_default())
        };
        match owner_now {
            Some(owner) => Err(JournalError::Owned { run: run.clone(), owner }),
            None => self.seize(run, owner).await,
        }
    }

    async fn seize(&self, run: &RunId, owner: &str) -> Result<Claim, JournalError> {
        let mut inner = self.inner();
        let (row, epoch) = inner.rows.get_mut(run).ok_or_else(|| JournalError::NoSuchRun(run.clone()))?;
        adopt::own(row)?;
        *epoch += 1;
        row.owner = Some(owner.to_owned());
        let epoch = *epoch;
        inner.owned.insert(run.clone());
        Ok(self.claim_on(run, epoch, owner))
    }

    async fn append(&self, claim: &Claim, after: u64, drafts: Vec<Draft>) -> Result<Vec<Stored>, JournalError> {
        let run = &claim.run;
        let mut inner = self.inner();
        let (row, epoch) = inner.rows.get(run).ok_or_else(|| JournalError::NoSuchRun(run.clone()))?;
        if *epoch != claim.epoch {
            return Err(JournalError::Fenced { run: run.clone(), ours: claim.epoch, now: *epoch });
        }
        if row.seq != after {
            return Err(JournalError::Behind { run: run.clone(), ours: after, now: row.seq });
        }
        let sealed = seal(run, claim.epoch, after, &row.head, drafts)?;
        let stored = sealed.iter().map(|one| one.stored.clone()).collect();
        inner.advance(run, sealed);
        Ok(stored)
    }

    async fn load(&self, run: &RunId, after: u64) -> Result<Vec<Stored>, JournalError> {
        let inner = self.inner();
        let events = inner.events.get(run).map(Vec::as_slice).unwrap_or_default();
        Ok(events.iter().filter(|one| one.stored.event.seq > after).map(|one| one.stored.clone()).collect())
    }

    async fn row(&self, run: &RunId) -> Result<ChainRow, JournalError> {
        self.inner().rows.get(run).map(|(row, _)| row.clone()).ok_or_else(|| JournalError::NoSuchRun(run.clone()))
    }

    async fn list(&self, kind: ChainKind, limit: u32) -> Result<Vec<ChainRow>, JournalError> {
        let mut rows: Vec<_> = self.inner().rows.values().map(|(row, _)| row.clone()).filter(|row| row.kind == kind).collect();
        rows.sort_by(|a, b| (b.started_at, &b.id).cmp(&(a.started_at, &a.id)));
        rows.truncate(limit as usize);
        Ok(rows)
    }

    async fn children(&self, parent: &RunId) -> Result<Vec<ChainRow>, JournalError> {
        let mut rows: Vec<_> = self.inner().rows.values().map(|(row, _)| row.clone()).collect();
        rows.retain(|row| row.parent.as_ref() == Some(parent));
        rows.sort_by(|a, b| (a.started_at, &a.id).cmp(&(b.started_at, &b.id)));
        Ok(rows)
    }

    async fn open(&self) -> Result<Vec<ChainRow>, JournalError> {
        let mut rows: Vec<_> = self.inner().rows.values().map(|(row, _)| row.clone()).filter(|row| row.finished_at.is_none()).collect();
        rows.sort_by(|a, b| (a.started_at, &a.id).cmp(&(b.started_at, &b.id)));
        Ok(rows)
    }

    async fn find(&self, prefix: &str) -> Result<RunId, JournalError> {
        let inner = self.inner();
        let found: Vec<_> = inner.rows.keys().filter(|id| id.as_str().starts_with(prefix)).collect();
        match found.as_slice() {
            [] => Err(JournalError::NoSuchRun(RunId::from(prefix))),
            [one] => Ok((*one).clone()),
            [one, ..] if one.as_str() == prefix => Ok((*one).clone()),
            _ => Err(JournalError::Ambiguous(prefix.to_owned())),
        }
    }

    async fn post(&self, run: &RunId, _at: jiff::Timestamp, actor: &str, command: &Command) -> Result<i64, JournalError> {
        let mut inner = self.inner();
        let id = i64::try_from(inner.inbox.len()).unwrap_or(i64::MAX) + 1;
        inner.inbox.push((run.clone(), Letter { id, actor: actor.to_owned(), command: command.clone() }, false));
        Ok(id)
    }

    async fn letters(&self, run: &RunId) -> Result<Vec<Letter>, JournalError> {
        Ok(self.inner().inbox.iter().filter(|(to, _, taken)| to == run && !taken).map(|(_, letter, _)| letter.clone()).collect())
    }

    async fn taken(&self, letter: i64) -> Result<(), JournalError> {
        for (_, one, taken) in &mut self.inner().inbox {
            *taken |= one.id == letter;
        }
        Ok(())
    }

    async fn considered(&self, drill: &str) -> Result<Option<jiff::Timestamp>, JournalError> {
        Ok(self.inner().considered.get(drill).copied())
    }

    async fn consider(&self, drill: &str, until: jiff::Timestamp) -> Result<(), JournalError> {
        self.inner().considered.insert(drill.to_owned(), until);
        Ok(())
    }

    async fn adopt(&self, chains: Vec<adopt::Adopted>, origin: &adopt::Origin) -> Result<(), JournalError> {
        let mut inner = self.inner();
        for adopt::Adopted { row, events, .. } in chains {
            let sealed = events.into_iter().map(|event| {
                let corrupt = |e: serde_json::Error| JournalError::Corrupt { run: row.id.clone(), seq: event.seq, why: e.to_string() };
                let read = serde_json::from_slice(&event.record).map_err(corrupt)?;
                Ok(Sealed::new(read, event.record))
            });
            let sealed: Vec<_> = sealed.collect::<Result<_, JournalError>>()?;
            inner.events.entry(row.id.clone()).or_default().extend(sealed);
            inner.head(&row, false, Some(origin));
            inner.rows.insert(row.id.clone(), (row, 1));
        }
        Ok(())
    }

    async fn dump(&self, only: Option<&[RunId]>) -> Result<Dump, JournalError> {
        let inner = self.inner();
        let wanted = |run: &RunId| only.is_none_or(|only| only.contains(run));
        Ok(Dump {
            rows: inner.rows.values().map(|(row, _)| row.clone()).filter(|row| wanted(&row.id)).collect(),
            events: inner.events.iter().filter(|(run, _)| wanted(run)).flat_map(|(_, events)| rows(events)).collect(),
            heads: only.is_none().then(|| inner.heads.clone()),
        })
    }
}
