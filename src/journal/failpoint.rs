//! A journal that ends its own process at a chosen write: what proves that a crash at every boundary is survived.
//!
//! Only debug builds have it, and only `MUSTER_FAILPOINT` switches it on: `write:17:before` kills the process
//! (SIGKILL, as a power cut would) before its seventeenth write reaches the store, `write:17:after` once the
//! store has it and nobody has heard of it; `write:17:freeze` stops the process (SIGSTOP) before the write, until
//! somebody thaws it. What counts as a write is everything that the engine asks the store to keep.

use super::*;
use rustix::process::{Signal, getpid, kill_process};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Where it is said when the process is to end.
pub const VARIABLE: &str = "MUSTER_FAILPOINT";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Before,
    After,
    Freeze,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Point {
    write: u64,
    when: When,
}

fn parse(text: &str) -> Option<Point> {
    let mut parts = text.split(':');
    let point = match (parts.next()?, parts.next()?.parse().ok()?, parts.next()?) {
        ("write", write, "before") => Point { write, when: When::Before },
        ("write", write, "after") => Point { write, when: When::After },
        ("write", write, "freeze") => Point { write, when: When::Freeze },
        _ => return None,
    };
    parts.next().is_none().then_some(point)
}

struct FailingJournal {
    inner: Arc<dyn Journal>,
    point: Point,
    writes: AtomicU64,
}

/// The journal itself, or one that fails where the environment says.
pub fn wrap(inner: Arc<dyn Journal>) -> Result<Arc<dyn Journal>, JournalError> {
    let Ok(text) = std::env::var(VARIABLE) else { return Ok(inner) };
    let why = format!("{VARIABLE}={text} is not write:NUMBER:before, :after or :freeze");
    let point = parse(&text).ok_or(JournalError::Store { place: "this process".to_owned(), why })?;
    Ok(Arc::new(FailingJournal { inner, point, writes: AtomicU64::new(0) }))
}

impl FailingJournal {
    /// Counts a write; the answer is for [`Self::after`].
    fn before(&self) -> bool {
        let here = self.writes.fetch_add(1, Ordering::SeqCst) + 1 == self.point.write;
        match self.point.when {
            When::Before if here => end(Signal::KILL),
            When::Freeze if here => end(Signal::STOP),
            _ => {}
        }
        here && self.point.when == When::After
    }

    fn after<T>(here: bool, answer: T) -> T {
        if here {
            end(Signal::KILL);
        }
        answer
    }
}

fn end(signal: Signal) {
    // Nobody can refuse a process its own signal; and if, the test that counts kills would see it.
    let _ = kill_process(getpid(), signal);
}

#[async_trait]
impl Journal for FailingJournal {
    async fn create(&self, chain: NewChain, owner: &str, first: Draft) -> Result<(Claim, Stored), JournalError> {
        let here = self.before();
        Self::after(here, self.inner.create(chain, owner, first).await)
    }
    async fn claim(&self, run: &RunId, owner: &str) -> Result<Claim, JournalError> {
        let here = self.before();
        Self::after(here, self.inner.claim(run, owner).await)
    }
    async fn seize(&self, run: &RunId, owner: &str) -> Result<Claim, JournalError> {
        let here = self.before();
        Self::after(here, self.inner.seize(run, owner).await)
    }
    async fn release(&self, claim: Claim) {
        let here = self.before();
        self.inner.release(claim).await;
        if here {
            end(Signal::KILL);
        }
    }
    async fn append(&self, claim: &Claim, after: u64, drafts: Vec<Draft>) -> Result<Vec<Stored>, JournalError> {
        let here = self.before();
        Self::after(here, self.inner.append(claim, after, drafts).await)
    }
    async fn make_room(&self) -> bool {
        self.inner.make_room().await
    }
    async fn load(&self, run: &RunId, after: u64) -> Result<Vec<Stored>, JournalError> {
        self.inner.load(run, after).await
    }
    async fn row(&self, run: &RunId) -> Result<ChainRow, JournalError> {
        self.inner.row(run).await
    }
    async fn list(&self, kind: ChainKind, limit: u32) -> Result<Vec<ChainRow>, JournalError> {
        self.inner.list(kind, limit).await
    }
    async fn children(&self, parent: &RunId) -> Result<Vec<ChainRow>, JournalError> {
        self.inner.children(parent).await
    }
    async fn open(&self) -> Result<Vec<ChainRow>, JournalError> {
        self.inner.open().await
    }
    async fn find(&self, prefix: &str) -> Result<RunId, JournalError> {
        self.inner.find(prefix).await
    }
    async fn post(&self, run: &RunId, at: jiff::Timestamp, actor: &str, command: &Command) -> Result<i64, JournalError> {
        let here = self.before();
        Self::after(here, self.inner.post(run, at, actor, command).await)
    }
    async fn letters(&self, run: &RunId) -> Result<Vec<Letter>, JournalError> {
        self.inner.letters(run).await
    }
    async fn taken(&self, letter: i64) -> Result<(), JournalError> {
        let here = self.before();
        Self::after(here, self.inner.taken(letter).await)
    }
    async fn considered(&self, drill: &str) -> Result<Option<jiff::Timestamp>, JournalError> {
        self.inner.considered(drill).await
    }
    async fn consider(&self, drill: &str, until: jiff::Timestamp) -> Result<(), JournalError> {
        let here = self.before();
        Self::after(here, self.inner.consider(drill, until).await)
    }
    async fn adopt(&self, chains: Vec<adopt::Adopted>, origin: &adopt::Origin) -> Result<(), JournalError> {
        let here = self.before();
        Self::after(here, self.inner.adopt(chains, origin).await)
    }
    async fn dump(&self, only: Option<&[RunId]>) -> Result<chain::Dump, JournalError> {
        self.inner.dump(only).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_points_are_read() {
        assert_eq!(parse("write:3:before"), Some(Point { write: 3, when: When::Before }));
        assert_eq!(parse("write:12:after"), Some(Point { write: 12, when: When::After }));
        assert_eq!(parse("write:1:freeze"), Some(Point { write: 1, when: When::Freeze }));
        for wrong in ["", "write", "write:x:before", "write:1", "write:1:never", "read:1:before", "write:1:before:x"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
