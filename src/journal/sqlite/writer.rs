//! The one writer of a process: it takes all that waits, runs it in one transaction, and answers each after
//! the commit. So many runs share one flush of the disk, and a single one waits for nothing but its own.
//!
//! What is refused (a stale epoch, a lock that is held) is refused by itself, before it has written
//! anything; a commit that fails fails all of its batch. Nothing that was read in one transaction is
//! trusted in the next, since other processes write as well: what a caller believes to be the end of its
//! chain is a condition of its update.

use super::{
    hold::{self, Token},
    trouble,
};
use crate::journal::{chain::*, *};
use rusqlite::{CachedStatement, Connection, OptionalExtension, TransactionBehavior, params};
use std::{
    path::PathBuf,
    sync::{Arc, mpsc},
};
use tokio::sync::oneshot;

/// At most so many requests share a commit.
const BATCH: usize = 1_024;

pub type Answer<T> = oneshot::Sender<Result<T, JournalError>>;

/// What is asked of the writer.
pub enum Job {
    Create {
        chain: NewChain,
        owner: String,
        /// Sealed as the first event of its chain.
        first: Vec<Sealed>,
        answer: Answer<(i64, Stored)>,
        number: i64,
    },
    Append(Append),
    Take {
        run: RunId,
        owner: String,
        /// Whoever has it.
        force: bool,
        answer: Answer<Taken>,
        taken: Option<Taken>,
    },
    Adopt {
        chains: Vec<adopt::Adopted>,
        origin: adopt::Origin,
        answer: Answer<()>,
    },
    /// Lets go of a chain that was held under this epoch.
    Release {
        chain: i64,
        epoch: u64,
        answer: Option<Answer<()>>,
    },
    /// One statement of its own; gives the row that it inserted.
    Simple {
        run: Box<dyn FnMut(&Connection) -> rusqlite::Result<i64> + Send>,
        answer: Answer<i64>,
        row: i64,
    },
}

pub struct Append {
    pub run: RunId,
    /// The chain's number, where it is known.
    pub chain: Option<i64>,
    pub epoch: u64,
    pub after: u64,
    /// The hash of event `after` that `sealed` was sealed with.
    pub prev: String,
    pub sealed: Vec<Sealed>,
    /// All of it goes back, so that it is the asker that tidies it up.
    pub answer: Answer<Vec<Sealed>>,
}

/// A chain that was taken.
#[derive(Clone)]
pub struct Taken {
    pub chain: i64,
    pub epoch: u64,
    pub seq: u64,
    pub head: String,
}

/// Why a request wrote nothing.
enum Refused {
    Refusal(JournalError),
    Sql(rusqlite::Error),
}

impl From<rusqlite::Error> for Refused {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

type Done = Result<(), Refused>;

/// How requests reach the writer.
#[derive(Clone)]
pub struct Desk {
    jobs: mpsc::Sender<Job>,
    _token: Arc<Token>,
}

impl Desk {
    /// Starts the writer over a connection of its own. It ends when nobody can ask it any more.
    pub fn open(connection: Connection, dir: PathBuf) -> Result<Self, String> {
        // The store's random numbers, so that a name is never used twice, by whatever machine.
        let name: String = connection
            .query_row("SELECT lower(hex(randomblob(16)))", [], |row| row.get(0))
            .map_err(|error| trouble::of_rusqlite(&error))?;
        let token = Token::new(&dir.join("locks"), name).map_err(|error| format!("its locks: {}", trouble::of_io(&error)))?;
        let token = Arc::new(token);
        let (jobs, waiting) = mpsc::channel();
        let mut writer = Writer { connection, dir, token: token.name.clone(), head: None, owed: Vec::new() };
        let work = move || writer.work(&waiting);
        std::thread::Builder::new().name("journal".to_owned()).spawn(work).map_err(|error| format!("its writer: {error}"))?;
        Ok(Self { jobs, _token: token })
    }

    /// False when the writer is gone.
    pub fn send(&self, job: Job) -> bool {
        self.jobs.send(job).is_ok()
    }
}

struct Writer {
    connection: Connection,
    dir: PathBuf,
    token: String,
    /// The end of the chain of heads, within one transaction.
    head: Option<(i64, String)>,
    /// Chains that were let go of, which the store did not take down yet.
    owed: Vec<(i64, u64)>,
}

impl Writer {
    fn work(&mut self, waiting: &mpsc::Receiver<Job>) {
        while let Ok(first) = waiting.recv() {
            let mut batch = vec![first];
            batch.extend(waiting.try_iter().take(BATCH - 1));
            self.batch(batch);
        }
    }

    /// All of it in one commit; one by one when something in it cannot be written for its own sake.
    fn batch(&mut self, mut batch: Vec<Job>) {
        match self.commit(&mut batch) {
            Ok(done) => answer(batch, done),
            Err(error) if batch.len() > 1 && concerns_one(&error) => batch.into_iter().for_each(|one| self.batch(vec![one])),
            Err(error) => {
                self.owed.extend(batch.iter().filter_map(|job| match job {
                    Job::Release { chain, epoch, .. } => Some((*chain, *epoch)),
                    _ => None,
                }));
                let failed = batch.iter().map(|_| Err(self.store(&error))).collect();
                answer(batch, failed);
            }
        }
    }

    fn commit(&mut self, batch: &mut [Job]) -> rusqlite::Result<Vec<Result<(), JournalError>>> {
        self.head = None;
        // The connection is this thread's own, so that no other transaction can be open on it.
        let tx = rusqlite::Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
        let mut work = Work { tx: &tx, dir: &self.dir, token: &self.token, head: &mut self.head, owed: &self.owed };
        for (chain, epoch) in work.owed {
            work.let_go(*chain, *epoch)?;
        }
        let mut done = Vec::with_capacity(batch.len());
        for job in batch.iter_mut() {
            done.push(match work.run(job) {
                Ok(()) => Ok(()),
                Err(Refused::Refusal(refusal)) => Err(refusal),
                Err(Refused::Sql(error)) => return Err(error),
            });
        }
        tx.commit()?;
        self.owed.clear();
        Ok(done)
    }

    fn store(&self, error: &rusqlite::Error) -> JournalError {
        JournalError::Store { place: self.dir.display().to_string(), why: trouble::of_rusqlite(error) }
    }
}

/// Is it about what was to be written, rather than about the store?
fn concerns_one(error: &rusqlite::Error) -> bool {
    !matches!(
        error.sqlite_error_code(),
        Some(
            rusqlite::ErrorCode::DiskFull
                | rusqlite::ErrorCode::SystemIoFailure
                | rusqlite::ErrorCode::DatabaseBusy
                | rusqlite::ErrorCode::CannotOpen
                | rusqlite::ErrorCode::ReadOnly
                | rusqlite::ErrorCode::NotADatabase
        )
    )
}

/// Tells each what became of it. Whoever does not wait any more loses nothing.
fn answer(batch: Vec<Job>, done: Vec<Result<(), JournalError>>) {
    for (job, done) in batch.into_iter().zip(done) {
        match job {
            Job::Create { chain, first, answer, number, .. } => {
                let stored = first.into_iter().next().map(|one| one.stored).ok_or(JournalError::NoSuchRun(chain.id));
                let _ = answer.send(done.and(stored).map(|stored| (number, stored)));
            }
            Job::Append(Append { sealed, answer, .. }) => {
                let _ = answer.send(done.map(|()| sealed));
            }
            Job::Take { run, answer, taken, .. } => {
                let _ = answer.send(done.and_then(|()| taken.ok_or(JournalError::NoSuchRun(run))));
            }
            Job::Adopt { answer, .. } => {
                let _ = answer.send(done);
            }
            Job::Release { answer, .. } => drop(answer.map(|answer| answer.send(done))),
            Job::Simple { answer, row, .. } => {
                let _ = answer.send(done.map(|()| row));
            }
        }
    }
}

/// One transaction's view of the store.
struct Work<'a> {
    tx: &'a Connection,
    dir: &'a std::path::Path,
    token: &'a str,
    head: &'a mut Option<(i64, String)>,
    owed: &'a [(i64, u64)],
}

impl Work<'_> {
    fn run(&mut self, job: &mut Job) -> Done {
        match job {
            Job::Create { chain, owner, first, number, .. } => {
                *number = self.create(chain, owner, first)?;
                Ok(())
            }
            Job::Append(append) => self.append(append),
            Job::Take { run, owner, force, taken, .. } => {
                *taken = Some(self.take(run, owner, *force)?);
                Ok(())
            }
            Job::Adopt { chains, origin, .. } => Ok(chains.iter().try_for_each(|one| self.adopt(one, origin))?),
            Job::Release { chain, epoch, .. } => Ok(self.let_go(*chain, *epoch)?),
            Job::Simple { run, row, .. } => {
                *row = run(self.tx)?;
                Ok(())
            }
        }
    }

    fn sql(&self, sql: &str) -> rusqlite::Result<CachedStatement<'_>> {
        self.tx.prepare_cached(sql)
    }

    fn create(&mut self, chain: &NewChain, owner: &str, first: &[Sealed]) -> Result<i64, Refused> {
        if self.sql("SELECT 1 FROM chains WHERE id = ?1")?.exists([chain.id.as_str()])? {
            return Err(Refused::Refusal(JournalError::Exists { run: chain.id.clone() }));
        }
        for resource in &chain.locks {
            let holder: Option<String> =
                self.sql("SELECT run FROM locks WHERE resource = ?1")?.query_row([&resource.0], |row| row.get(0)).optional()?;
            if let Some(holder) = holder {
                return Err(Refused::Refusal(JournalError::Locked { resource: resource.clone(), holder: RunId(holder) }));
            }
        }
        for resource in &chain.locks {
            self.sql("INSERT INTO locks (resource, run) VALUES (?1, ?2)")?.execute([&resource.0, &chain.id.0])?;
        }
        let Some(one) = first.first() else { return Err(Refused::Refusal(JournalError::NoSuchRun(chain.id.clone()))) };
        let kind = super::kind_word(chain.kind);
        let at = one.stored.event.at.to_string();
        let parent = chain.parent.as_ref().map(RunId::as_str);
        let mut row = ChainRow {
            id: chain.id.clone(),
            kind: chain.kind,
            name: chain.name.clone(),
            parent: chain.parent.clone(),
            status: "running".to_owned(),
            started_at: one.stored.event.at,
            finished_at: None,
            seq: 0,
            head: String::new(),
            owner: None,
        };
        // A chain may begin and end with one event, as that of a missed drill does.
        let ended = row.advance(first);
        let finished = row.finished_at.map(|at| at.to_string());
        let holder = (!ended).then_some(self.token);
        let number = self
            .sql(
                "INSERT INTO chains (id, kind, name, parent, status, started_at, finished_at, epoch, owner, holder, seq, head)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 1, ?8, ?9, ?10, ?11)",
            )?
            .insert(params![row.id.0, kind, row.name, parent, row.status, at, finished, owner, holder, signed(row.seq), row.head])?;
        self.insert(number, first)?;
        self.head(&row, false, None)?;
        if ended {
            self.end(&row)?;
        }
        Ok(number)
    }

    fn append(&mut self, append: &mut Append) -> Done {
        if append.sealed.is_empty() {
            return self.behind(append).map(|_| ());
        }
        let known = append.chain.map(|chain| self.advance(chain, append)).transpose()?.unwrap_or(false);
        if known {
            return Ok(());
        }
        // Not as its owner believes, or its owner did not know: ask the store what is true.
        let (chain, head) = self.behind(append)?;
        let drafts = append.sealed.drain(..).map(|one| {
            let Event { at, actor, body, .. } = one.stored.event;
            Draft { at, actor, body }
        });
        append.sealed = seal(&append.run, append.epoch, append.after, &head, drafts.collect()).map_err(Refused::Refusal)?;
        append.prev = head;
        if self.advance(chain, append)? { Ok(()) } else { Err(Refused::Refusal(JournalError::NoSuchRun(append.run.clone()))) }
    }

    /// The chain's number and last hash, if its epoch and its sequence are the caller's.
    fn behind(&self, append: &Append) -> Result<(i64, String), Refused> {
        let run = &append.run;
        let row = self
            .sql("SELECT n, epoch, seq, head FROM chains WHERE id = ?1")?
            .query_row([run.as_str()], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?, row.get(3)?)))
            .optional()?;
        let Some((chain, epoch, seq, head)) = row else { return Err(Refused::Refusal(JournalError::NoSuchRun(run.clone()))) };
        let (epoch, seq) = (epoch.unsigned_abs(), seq.unsigned_abs());
        if epoch != append.epoch {
            return Err(Refused::Refusal(JournalError::Fenced { run: run.clone(), ours: append.epoch, now: epoch }));
        }
        if seq != append.after {
            return Err(Refused::Refusal(JournalError::Behind { run: run.clone(), ours: append.after, now: seq }));
        }
        Ok((chain, head))
    }

    /// Puts the events in, if the chain ends as they were sealed for.
    fn advance(&mut self, chain: i64, append: &Append) -> Result<bool, Refused> {
        let Some(last) = append.sealed.last() else { return Ok(false) };
        let (seq, head) = (signed(last.stored.event.seq), &last.stored.hash);
        let (epoch, after, prev) = (signed(append.epoch), signed(append.after), &append.prev);
        let projected = append.sealed.iter().filter_map(|one| Some((project(&one.stored.event.body)?, one.stored.event.at)));
        let moved = projected.fold(None, |ended: Option<(String, Option<jiff::Timestamp>)>, ((status, end), at)| {
            Some((status, end.then_some(at).or(ended.and_then(|(_, at)| at))))
        });
        let changed = match &moved {
            None => self
                .sql("UPDATE chains SET seq = ?1, head = ?2 WHERE n = ?3 AND epoch = ?4 AND seq = ?5 AND head = ?6")?
                .execute(params![seq, head, chain, epoch, after, prev])?,
            Some((status, None)) => self
                .sql("UPDATE chains SET seq = ?1, head = ?2, status = ?7 WHERE n = ?3 AND epoch = ?4 AND seq = ?5 AND head = ?6")?
                .execute(params![seq, head, chain, epoch, after, prev, status])?,
            Some((status, Some(at))) => self
                .sql(
                    "UPDATE chains SET seq = ?1, head = ?2, status = ?7, finished_at = ?8, holder = NULL
                     WHERE n = ?3 AND epoch = ?4 AND seq = ?5 AND head = ?6",
                )?
                .execute(params![seq, head, chain, epoch, after, prev, status, at.to_string()])?,
        };
        if changed == 0 {
            return Ok(false);
        }
        self.insert(chain, &append.sealed)?;
        if let Some((_, Some(_))) = moved {
            let row = self.ended(chain, append)?;
            self.end(&row)?;
        }
        Ok(true)
    }

    /// What the chain of heads says of a chain that ends with this append.
    fn ended(&self, chain: i64, append: &Append) -> rusqlite::Result<ChainRow> {
        let (kind, name): (String, String) =
            self.sql("SELECT kind, name FROM chains WHERE n = ?1")?.query_row([chain], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let last = append.sealed.last().map(|one| &one.stored);
        Ok(ChainRow {
            id: append.run.clone(),
            kind: if kind == super::kind_word(ChainKind::Drill) { ChainKind::Drill } else { ChainKind::Run },
            name,
            parent: None,
            status: String::new(),
            started_at: jiff::Timestamp::UNIX_EPOCH,
            finished_at: None,
            seq: last.map_or(0, |one| one.event.seq),
            head: last.map(|one| one.hash.clone()).unwrap_or_default(),
            owner: None,
        })
    }

    fn insert(&self, chain: i64, sealed: &[Sealed]) -> rusqlite::Result<()> {
        let mut insert = self.sql("INSERT INTO events (chain, seq, kind, hash, record) VALUES (?1, ?2, ?3, ?4, ?5)")?;
        for one in sealed {
            insert.execute(params![chain, signed(one.stored.event.seq), one.kind, one.digest, one.record])?;
        }
        Ok(())
    }

    /// A chain has ended: nothing is locked for it any more, and the chain of heads says so.
    fn end(&mut self, row: &ChainRow) -> rusqlite::Result<()> {
        self.sql("DELETE FROM locks WHERE run = ?1")?.execute([row.id.as_str()])?;
        self.head(row, true, None)
    }

    fn head(&mut self, row: &ChainRow, ended: bool, origin: Option<&adopt::Origin>) -> rusqlite::Result<()> {
        let last = match self.head.take() {
            Some(last) => Some(last),
            None => self
                .sql("SELECT n, hash FROM heads ORDER BY n DESC LIMIT 1")?
                .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?,
        };
        let (n, prev) = last.map_or((1, String::new()), |(n, hash)| (n + 1, hash));
        let (record, hash) = match origin {
            None => seal_head(n.unsigned_abs(), &prev, row, ended),
            Some(origin) => seal_adopted(n.unsigned_abs(), &prev, row, origin),
        };
        self.sql("INSERT INTO heads (n, run, prev, hash, record) VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(params![n, row.id.0, prev, hash, record])?;
        *self.head = Some((n, hash));
        Ok(())
    }

    /// A chain of another journal, or the rest of one that is here in part: the bytes as they came.
    fn adopt(&mut self, one: &adopt::Adopted, origin: &adopt::Origin) -> rusqlite::Result<()> {
        let row = &one.row;
        if !one.known {
            self.sql("INSERT INTO chains (id, kind, name, parent, status, started_at, epoch) VALUES (?1, ?2, ?3, ?4, ?5, ?6, 1)")?
                .execute(params![
                    row.id.0,
                    super::kind_word(row.kind),
                    row.name,
                    row.parent.as_ref().map(RunId::as_str),
                    row.status,
                    row.started_at.to_string()
                ])?;
        }
        let finished = row.finished_at.map(|at| at.to_string());
        let update = "UPDATE chains SET seq = ?1, head = ?2, status = ?3, finished_at = ?4, owner = ?5 WHERE id = ?6 RETURNING n";
        let values = params![signed(row.seq), row.head, row.status, finished, row.owner, row.id.0];
        let chain: i64 = self.sql(update)?.query_row(values, |row| row.get(0))?;
        {
            let mut insert = self.sql("INSERT INTO events (chain, seq, kind, hash, record) VALUES (?1, ?2, ?3, ?4, ?5)")?;
            for event in &one.events {
                let hash = hex::decode(&event.hash).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
                insert.execute(params![chain, signed(event.seq), event.kind, hash, event.record])?;
            }
        }
        self.head(row, false, Some(origin))
    }

    fn take(&self, run: &RunId, owner: &str, force: bool) -> Result<Taken, Refused> {
        let row = self
            .sql("SELECT n, epoch, seq, head, holder, owner FROM chains WHERE id = ?1")?
            .query_row([run.as_str()], |row| {
                let (chain, epoch, seq): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
                let taken = Taken { chain, epoch: epoch.unsigned_abs(), seq: seq.unsigned_abs(), head: row.get(3)? };
                Ok((taken, row.get::<_, Option<String>>(4)?, row.get::<_, Option<String>>(5)?))
            })
            .optional()?;
        if let Some(origin) = row.as_ref().and_then(|(_, _, had)| had.as_ref()).filter(|had| adopt::is_origin(had)) {
            return Err(Refused::Refusal(JournalError::Imported { run: run.clone(), origin: origin.clone() }));
        }
        let Some((mut taken, holder, had)) = row else { return Err(Refused::Refusal(JournalError::NoSuchRun(run.clone()))) };
        if let Some(holder) = holder.filter(|_| !force)
            && self.lives(&holder)?
        {
            let owner = had.unwrap_or_else(|| "unknown".to_owned());
            return Err(Refused::Refusal(JournalError::Owned { run: run.clone(), owner }));
        }
        taken.epoch += 1;
        self.sql("UPDATE chains SET epoch = ?1, owner = ?2, holder = ?3 WHERE n = ?4")?.execute(params![
            signed(taken.epoch),
            owner,
            self.token,
            taken.chain
        ])?;
        Ok(taken)
    }

    /// What this process holds it has not let go of: letting go clears the name.
    fn lives(&self, holder: &str) -> Result<bool, Refused> {
        if holder == self.token {
            return Ok(true);
        }
        let folder = self.dir.join("locks");
        hold::lives(&folder, holder).map_err(|why| {
            let place = folder.display().to_string();
            Refused::Refusal(JournalError::Store { place, why: format!("whether {holder} lives cannot be told: {why}") })
        })
    }

    /// Under a later epoch the chain is somebody else's, and stays theirs.
    fn let_go(&self, chain: i64, epoch: u64) -> rusqlite::Result<()> {
        self.sql("UPDATE chains SET holder = NULL WHERE n = ?1 AND epoch = ?2 AND holder IS NOT NULL")?
            .execute(params![chain, signed(epoch)])?;
        Ok(())
    }
}

pub fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
