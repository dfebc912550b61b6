//! The shared journal: PostgreSQL, where several nodes share the work.
//!
//! **Ownership** is a session's ([`super::postgres_session`]): a chain's row names the session of its owner,
//! and a session is live while its lease, by the server's clock, has not run out. Taking a chain over locks
//! its row, then the row of its owner's session, and raises the epoch.
//!
//! **READ COMMITTED with row locks** is enough, and no transaction fails for the sake of another. Each
//! decision rests on rows that are locked when it is taken: an append is one `UPDATE` of the chain's row, with
//! epoch, session, sequence and last hash in its condition (which PostgreSQL evaluates again after it has
//! waited for the row), and the events are inserted by the same statement, only if that row was ours. Locks are
//! taken in one order, so that none waits in a circle: chain, session, resources in sorted order, and last
//! of all the one row of `tail`, which is what keeps the chain of heads without a gap.
//!
//! **What was not heard.** Any failure of the store is [`JournalError::Store`]: whether it was done is not
//! known. Each thing here may be asked again: an append is recognised by the engine as its own, and a chain
//! that was created or claimed for this session, and that nobody here holds, is simply held.

use super::{bells::Bells, chain::*, postgres_link::*, postgres_rows::*, postgres_session::*, *};
use crate::providers::clock::Clock;
use secrecy::SecretString;
use sqlx::{Connection as _, PgConnection, Row};
use std::sync::{Arc, Mutex, PoisonError};

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("migrations/postgres");

pub struct PostgresJournal {
    link: Arc<Link>,
    clock: Arc<dyn Clock>,
    terms: lease::Terms,
    serves: bool,
    session: tokio::sync::Mutex<Option<Arc<Session>>>,
    bells: Arc<Bells>,
}

/// How a process takes part.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    pub terms: lease::Terms,
    /// It goes on with what others left: `muster serve`. What a person's command lets go of waits for a person.
    pub serves: bool,
}

/// What stands behind a claim: the session, and the chain's row as this owner left it.
struct Guard {
    link: Arc<Link>,
    session: Arc<Session>,
    run: RunId,
    epoch: u64,
    serves: bool,
    row: Mutex<ChainRow>,
}

impl Guard {
    fn known(&self) -> ChainRow {
        self.row.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.session.let_go(&self.run, self.epoch) {
            return;
        }
        // With no runtime left the lease runs out, or the session is ended with the process.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (link, session, run) = (self.link.clone(), self.session.id.clone(), self.run.clone());
            let (epoch, serves) = (self.epoch, self.serves);
            runtime.spawn(async move { let_go(&link, &session, &run, epoch, serves).await });
        }
    }
}

/// The runs for which letters wait.
async fn waiting(link: Arc<Link>) -> Vec<String> {
    let Ok(mut lent) = link.take().await else { return Vec::new() };
    let runs = sqlx::query_scalar("SELECT DISTINCT run FROM inbox WHERE NOT taken");
    let done = within(async { Ok(runs.fetch_all(&mut lent.conn).await?) }).await;
    link.settle(lent, done).unwrap_or_default()
}

async fn let_go(link: &Link, session: &str, run: &RunId, epoch: u64, serves: bool) {
    let release = "UPDATE chains SET session = NULL, waits = NOT $4 WHERE id = $1 AND epoch = $2 AND session = $3";
    let done = async {
        let mut lent = link.take().await?;
        let release = sqlx::query(release).bind(run.as_str()).bind(signed(epoch)).bind(session).bind(serves);
        let done = within(async { Ok(release.execute(&mut lent.conn).await?) }).await;
        link.settle(lent, done)
    };
    if let Err(error) = done.await {
        tracing::warn!("{run} could not be let go of, and is free when the lease runs out: {error}");
    }
}

impl PostgresJournal {
    /// Opens the journal at this URL, making its tables if `make` says so and they are not there.
    pub async fn open(url: &SecretString, part: Part, clock: Arc<dyn Clock>, make: bool) -> Result<Self, JournalError> {
        let store = |why: String| JournalError::Store { place: "--journal (MUSTER_JOURNAL)".to_owned(), why };
        let terms = part.terms.check().map_err(store)?;
        let link = Arc::new(Link::new(url, terms, clock.clone()).map_err(store)?);
        let asked = link.clone();
        let bells = Arc::new(Bells::new(Box::new(move || Box::pin(waiting(asked.clone())))));
        let journal = Self { link, clock, terms, serves: part.serves, session: tokio::sync::Mutex::default(), bells };
        if make {
            journal.make().await?;
        }
        Ok(journal)
    }

    /// Makes the tables, or brings them up to date. Of several nodes one does it, and the others wait.
    pub async fn make(&self) -> Result<(), JournalError> {
        // A role that may not make anything can use what is there.
        let mut lent = self.link.take().await?;
        let there = sqlx::query_scalar::<_, Option<i64>>("SELECT max(version) FROM _sqlx_migrations WHERE success");
        let there = within(async { Ok(there.fetch_one(&mut lent.conn).await?) }).await;
        if there.is_ok_and(|there| there == MIGRATIONS.iter().map(|migration| migration.version).max()) {
            return self.link.settle(lent, Ok(()));
        }
        drop(lent);
        let pool = self.link.pool().await?;
        let done = MIGRATIONS.run(&pool).await;
        pool.close().await;
        done.map_err(|error| self.link.store(explain_migration(&error)))
    }

    /// This process's session; a new one when there is none, or when it is not known to hold any more.
    async fn session(&self, name: &str) -> Result<Arc<Session>, JournalError> {
        let mut session = self.session.lock().await;
        if let Some(current) = session.as_ref() {
            if current.hold.permits(self.clock.monotonic()) {
                return Ok(current.clone());
            }
            current.end();
        }
        let new = Session::begin(&self.link, &self.clock, self.terms, name, self.serves).await?;
        *session = Some(new.clone());
        Ok(new)
    }

    /// As if the answer that made this chain ours had not been heard.
    #[cfg(test)]
    pub(super) async fn forget(&self, run: &RunId) {
        if let Some(session) = self.session.lock().await.as_ref() {
            (1..9).any(|epoch| session.let_go(run, epoch));
        }
    }

    /// Ends the session: whatever it still owns is free at once.
    pub async fn leave(&self) -> Result<(), JournalError> {
        let Some(session) = self.session.lock().await.take() else { return Ok(()) };
        session.end();
        let mut lent = self.link.take().await?;
        let held = session.all();
        let done = within(async {
            let mut tx = lent.conn.begin().await?;
            let free = "UPDATE chains SET session = NULL, waits = NOT $3 WHERE session = $1 AND id = ANY($2)";
            sqlx::query(free).bind(&session.id).bind(&held).bind(self.serves).execute(&mut *tx).await?;
            sqlx::query("DELETE FROM nodes WHERE session = $1").bind(&session.id).execute(&mut *tx).await?;
            Ok(tx.commit().await?)
        })
        .await;
        self.link.settle(lent, done)
    }

    fn claim_on(&self, session: &Arc<Session>, row: ChainRow, epoch: u64, owner: &str) -> Claim {
        session.keep(&row.id, epoch);
        let run = row.id.clone();
        let guard =
            Guard { link: self.link.clone(), session: session.clone(), run: run.clone(), epoch, serves: self.serves, row: Mutex::new(row) };
        Claim { run, epoch, owner: owner.to_owned(), hold: session.hold.clone(), _guard: Box::new(guard) }
    }

    /// Takes a chain over; `forced` whoever owns it.
    async fn take(&self, run: &RunId, owner_name: &str, forced: bool) -> Result<Claim, JournalError> {
        let session = self.session(owner_name).await?;
        let mut lent = self.link.take().await?;
        let server = lent.server;
        let done = within(async {
            let mut tx = lent.conn.begin().await?;
            let row = sqlx::query("SELECT session, owner FROM chains WHERE id = $1 FOR UPDATE")
                .bind(run.as_str())
                .fetch_optional(&mut *tx)
                .await?;
            let row = row.ok_or_else(|| JournalError::NoSuchRun(run.clone()))?;
            if let Some(origin) = row.get::<Option<String>, _>(1).filter(|owner| adopt::is_origin(owner)) {
                return Err(JournalError::Imported { run: run.clone(), origin }.into());
            }
            let held: Option<String> = row.get(0);
            let owned = |owner: String| JournalError::Owned { run: run.clone(), owner };
            match held.filter(|_| !forced) {
                Some(id) if id == session.id && session.holds(run) => return Err(owned(owner_name.to_owned()).into()),
                // Claimed for us by a request whose answer was not heard.
                Some(id) if id == session.id => {}
                Some(id) => match owner(&mut tx, &id, server).await? {
                    Owner::Lives(name) => return Err(owned(name).into()),
                    Owner::Judged(name) => {
                        tx.commit().await?;
                        return Err(owned(name).into());
                    }
                    Owner::Gone => {}
                },
                None => {}
            }
            let raise = "UPDATE chains SET epoch = epoch + 1, owner = $2, session = $3, waits = false WHERE id = $1 \
                         RETURNING *, owner AS living";
            let row = sqlx::query(raise).bind(run.as_str()).bind(owner_name).bind(&session.id).fetch_one(&mut *tx).await?;
            tx.commit().await?;
            Ok((row.get::<i64, _>("epoch").unsigned_abs(), chain_row(&row)?))
        })
        .await;
        let (epoch, row) = self.link.settle(lent, done)?;
        Ok(self.claim_on(&session, row, epoch, owner_name))
    }

    /// The chain's row as it is now, its epoch, and the session that owns it.
    async fn standing(&self, conn: &mut PgConnection, run: &RunId) -> Result<(ChainRow, u64, Option<String>), Trouble> {
        let row = sqlx::query("SELECT *, owner AS living FROM chains WHERE id = $1").bind(run.as_str()).fetch_optional(conn).await?;
        let row = row.ok_or_else(|| JournalError::NoSuchRun(run.clone()))?;
        Ok((chain_row(&row)?, row.get::<i64, _>("epoch").unsigned_abs(), row.get("session")))
    }

    /// Why the store did not take an append.
    async fn refusal(&self, conn: &mut PgConnection, claim: &Claim, session: &str, known: &ChainRow) -> Trouble {
        let (row, epoch, owner) = match self.standing(conn, &claim.run).await {
            Ok(standing) => standing,
            Err(trouble) => return trouble,
        };
        let (run, ours) = (claim.run.clone(), known.seq);
        if epoch > claim.epoch || (epoch == claim.epoch && owner.as_deref() != Some(session) && row.seq >= ours) {
            return JournalError::Fenced { run, ours: claim.epoch, now: epoch }.into();
        }
        if row.seq < ours || epoch < claim.epoch || (row.seq == ours && row.head != known.head) {
            return JournalError::Lost { run, ours, now: row.seq }.into();
        }
        if row.seq > ours {
            return JournalError::Behind { run, ours, now: row.seq }.into();
        }
        Trouble::Store(format!("{run} was let go of"))
    }

    /// The chain that was to be created is there: is it what we asked for, and did not hear of?
    async fn ours(&self, conn: &mut PgConnection, session: &Session, first: &Stored) -> Result<ChainRow, Trouble> {
        let run = &first.event.run;
        let (row, epoch, owner) = self.standing(conn, run).await?;
        let hash = sqlx::query_scalar::<_, String>("SELECT hash FROM events WHERE run = $1 AND seq = 1").bind(run.as_str());
        let same = hash.fetch_optional(conn).await?.is_some_and(|hash| hash == first.hash);
        if same && epoch == 1 && owner.as_deref() == Some(&session.id) && !session.holds(run) {
            return Ok(row);
        }
        Err(JournalError::Exists { run: run.clone() }.into())
    }
}

fn explain_migration(error: &sqlx::migrate::MigrateError) -> String {
    use sqlx::migrate::MigrateError::{Execute, VersionMismatch, VersionMissing};
    let ours = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default();
    match error {
        VersionMissing(theirs) => {
            format!("a newer Muster wrote it: its schema is version {theirs}, and this Muster knows {ours}; use the newer one")
        }
        VersionMismatch(version) => format!("its schema {version} is not the one that Muster made"),
        Execute(error) => explain(error),
        other => other.to_string(),
    }
}

#[async_trait]
impl Journal for PostgresJournal {
    async fn create(&self, chain: NewChain, owner: &str, first: Draft) -> Result<(Claim, Stored), JournalError> {
        let session = self.session(owner).await?;
        let row = ChainRow {
            id: chain.id.clone(),
            kind: chain.kind,
            name: chain.name.clone(),
            parent: chain.parent.clone(),
            status: "running".to_owned(),
            started_at: first.at,
            finished_at: None,
            seq: 0,
            head: String::new(),
            owner: Some(owner.to_owned()),
        };
        let sealed = seal(&chain.id, 1, 0, "", vec![first])?;
        let Some(stored) = sealed.first().map(|one| one.stored.clone()) else { return Err(JournalError::NoSuchRun(chain.id)) };
        let mut lent = self.link.take().await?;
        let done = within(async {
            let mut tx = lent.conn.begin().await?;
            if !insert_chain(&mut tx, &row, owner, &session.id).await? {
                tx.rollback().await?;
                return self.ours(&mut lent.conn, &session, &stored).await;
            }
            take_locks(&mut tx, &chain).await?;
            let mut after = row.clone();
            let ended = after.advance(&sealed);
            append_events(&mut tx, &row, &after, (1, &session.id), &sealed).await?;
            // Last of all: from here to the commit everybody stands in line who begins or ends a chain.
            let mut begun = row.clone();
            begun.seq = 1;
            begun.head.clone_from(&stored.hash);
            add_head(&mut tx, &begun, false).await?;
            if ended {
                finish(&mut tx, &after).await?;
            }
            tx.commit().await?;
            Ok(after)
        })
        .await;
        let row = self.link.settle(lent, done)?;
        Ok((self.claim_on(&session, row, 1, owner), stored))
    }

    async fn claim(&self, run: &RunId, owner: &str) -> Result<Claim, JournalError> {
        self.take(run, owner, false).await
    }

    async fn seize(&self, run: &RunId, owner: &str) -> Result<Claim, JournalError> {
        self.take(run, owner, true).await
    }

    async fn release(&self, claim: Claim) {
        let Some(guard) = claim._guard.downcast_ref::<Guard>() else { return };
        guard.session.let_go(&claim.run, claim.epoch);
        let_go(&self.link, &guard.session.id, &claim.run, claim.epoch, self.serves).await;
    }

    async fn append(&self, claim: &Claim, after: u64, drafts: Vec<Draft>) -> Result<Vec<Stored>, JournalError> {
        if drafts.is_empty() {
            return Ok(Vec::new());
        }
        let guard = claim._guard.downcast_ref::<Guard>();
        let session = guard.map_or("", |guard| guard.session.id.as_str());
        let known = guard.map(Guard::known).filter(|row| row.seq == after);
        let mut lent = self.link.take().await?;
        let done = within(async {
            let known = match known {
                Some(known) => known,
                None => ChainRow { seq: after, ..self.standing(&mut lent.conn, &claim.run).await?.0 },
            };
            let sealed = seal(&claim.run, claim.epoch, after, &known.head, drafts)?;
            let mut row = known.clone();
            let taken = if row.advance(&sealed) {
                let mut tx = lent.conn.begin().await?;
                let taken = append_events(&mut tx, &known, &row, (claim.epoch, session), &sealed).await?;
                if taken {
                    finish(&mut tx, &row).await?;
                    tx.commit().await?;
                } else {
                    tx.rollback().await?;
                }
                taken
            } else {
                append_events(&mut lent.conn, &known, &row, (claim.epoch, session), &sealed).await?
            };
            if taken { Ok((row, sealed)) } else { Err(self.refusal(&mut lent.conn, claim, session, &known).await) }
        })
        .await;
        let (row, sealed) = self.link.settle(lent, done)?;
        if let Some(guard) = guard {
            *guard.row.lock().unwrap_or_else(PoisonError::into_inner) = row;
        }
        Ok(sealed.into_iter().map(|one| one.stored).collect())
    }

    async fn load(&self, run: &RunId, after: u64) -> Result<Vec<Stored>, JournalError> {
        let mut lent = self.link.take().await?;
        let events = "SELECT seq, hash, record FROM events WHERE run = $1 AND seq > $2 ORDER BY seq";
        let rows = sqlx::query(events).bind(run.as_str()).bind(signed(after));
        let done = within(async { rows.fetch_all(&mut lent.conn).await?.iter().map(|row| Ok(stored(run, row)?)).collect() }).await;
        self.link.settle(lent, done)
    }

    async fn row(&self, run: &RunId) -> Result<ChainRow, JournalError> {
        let rows = self.rows(sqlx::query(concat_living!("WHERE id = $1")).bind(run.as_str())).await?;
        rows.into_iter().next().ok_or_else(|| JournalError::NoSuchRun(run.clone()))
    }

    async fn list(&self, kind: ChainKind, limit: u32) -> Result<Vec<ChainRow>, JournalError> {
        let newest = sqlx::query(concat_living!("WHERE kind = $1 ORDER BY started_at DESC, id DESC LIMIT $2"));
        self.rows(newest.bind(kind_word(kind)).bind(i64::from(limit))).await
    }

    async fn children(&self, parent: &RunId) -> Result<Vec<ChainRow>, JournalError> {
        self.rows(sqlx::query(concat_living!("WHERE parent = $1 ORDER BY started_at, id")).bind(parent.as_str())).await
    }

    async fn open(&self) -> Result<Vec<ChainRow>, JournalError> {
        self.rows(sqlx::query(concat_living!("WHERE finished_at IS NULL ORDER BY started_at, id"))).await
    }

    async fn find(&self, prefix: &str) -> Result<RunId, JournalError> {
        let mut lent = self.link.take().await?;
        let some = sqlx::query_scalar("SELECT id FROM chains WHERE starts_with(id, $1) ORDER BY id LIMIT 3").bind(prefix);
        let done = within(async { Ok(some.fetch_all(&mut lent.conn).await?) }).await;
        let found: Vec<String> = self.link.settle(lent, done)?;
        match found.as_slice() {
            [] => Err(JournalError::NoSuchRun(RunId::from(prefix))),
            [one] => Ok(RunId(one.clone())),
            // The whole identifier comes before those that begin with it.
            [one, ..] if one == prefix => Ok(RunId(one.clone())),
            _ => Err(JournalError::Ambiguous(prefix.to_owned())),
        }
    }

    async fn holding(&self, chains: &[RunId], kind: &str) -> Result<Vec<RunId>, JournalError> {
        let chains: Vec<_> = chains.iter().map(|run| run.as_str().to_owned()).collect();
        let mut lent = self.link.take().await?;
        let some = sqlx::query_scalar("SELECT DISTINCT run FROM events WHERE run = ANY($1) AND kind = $2").bind(chains).bind(kind);
        let done = within(async { Ok(some.fetch_all(&mut lent.conn).await?) }).await;
        let found: Vec<String> = self.link.settle(lent, done)?;
        Ok(found.into_iter().map(RunId).collect())
    }

    async fn orphans(&self, owner: &str) -> Result<Orphans, JournalError> {
        let session = self.session(owner).await?;
        let mut lent = self.link.take().await?;
        let server = lent.server;
        // Before the question is asked: what is claimed meanwhile is not listed, or refuses a second claim.
        let held = session.all();
        let done = within(async { orphans(&mut lent.conn, server, &session.id, &held).await }).await;
        self.link.settle(lent, done)
    }

    async fn reserve(&self, what: &str, owner: &str) -> Result<bool, JournalError> {
        let session = self.session(owner).await?;
        let mut lent = self.link.take().await?;
        let done = within(async { reserve(&mut lent.conn, what, &session.id).await }).await;
        self.link.settle(lent, done)
    }

    async fn free(&self, what: &str) -> Result<(), JournalError> {
        let Some(session) = self.session.lock().await.clone() else { return Ok(()) };
        let mut lent = self.link.take().await?;
        let free = sqlx::query("DELETE FROM reservations WHERE what = $1 AND session = $2").bind(what).bind(&session.id);
        let done = within(async { Ok(free.execute(&mut lent.conn).await.map(|_| ())?) }).await;
        self.link.settle(lent, done)
    }

    async fn post(&self, run: &RunId, at: jiff::Timestamp, actor: &str, command: &Command) -> Result<i64, JournalError> {
        let text = serde_json::to_string(command).unwrap_or_default();
        let mut lent = self.link.take().await?;
        let post = sqlx::query_scalar("INSERT INTO inbox (run, at, actor, command) VALUES ($1, $2, $3, $4) RETURNING id");
        let post = post.bind(run.as_str()).bind(at.to_string()).bind(actor).bind(text);
        let done = within(async { Ok(post.fetch_one(&mut lent.conn).await?) }).await;
        self.link.settle(lent, done)
    }

    async fn letters(&self, run: &RunId) -> Result<Vec<Letter>, JournalError> {
        let mut lent = self.link.take().await?;
        let waiting = sqlx::query("SELECT id, actor, command FROM inbox WHERE run = $1 AND NOT taken ORDER BY id").bind(run.as_str());
        let done = within(async { Ok(waiting.fetch_all(&mut lent.conn).await?) }).await;
        Ok(self.link.settle(lent, done)?.iter().filter_map(letter).collect())
    }

    async fn taken(&self, letter: i64) -> Result<(), JournalError> {
        let mut lent = self.link.take().await?;
        let taken = sqlx::query("UPDATE inbox SET taken = true WHERE id = $1").bind(letter);
        let done = within(async { Ok(taken.execute(&mut lent.conn).await.map(|_| ())?) }).await;
        self.link.settle(lent, done)
    }

    fn bell(&self, run: &RunId) -> Option<Bell> {
        Some(Bells::hang(&self.bells, run))
    }

    async fn considered(&self, drill: &str) -> Result<Option<jiff::Timestamp>, JournalError> {
        let mut lent = self.link.take().await?;
        let at = sqlx::query_scalar::<_, String>("SELECT considered FROM schedules WHERE drill = $1").bind(drill);
        let done = within(async { Ok(at.fetch_optional(&mut lent.conn).await?) }).await;
        Ok(self.link.settle(lent, done)?.and_then(|at| at.parse().ok()))
    }

    async fn consider(&self, drill: &str, until: jiff::Timestamp) -> Result<(), JournalError> {
        let mut lent = self.link.take().await?;
        let moved =
            "INSERT INTO schedules (drill, considered) VALUES ($1, $2) ON CONFLICT (drill) DO UPDATE SET considered = excluded.considered";
        let moved = sqlx::query(moved).bind(drill).bind(until.to_string());
        let done = within(async { Ok(moved.execute(&mut lent.conn).await.map(|_| ())?) }).await;
        self.link.settle(lent, done)
    }

    async fn adopt(&self, chains: Vec<adopt::Adopted>, origin: &adopt::Origin) -> Result<(), JournalError> {
        let mut lent = self.link.take().await?;
        let done = within(async {
            let mut tx = lent.conn.begin().await?;
            for one in &chains {
                super::postgres_adopt::adopt(&mut tx, one, origin).await?;
            }
            Ok(tx.commit().await?)
        })
        .await;
        self.link.settle(lent, done)
    }

    async fn dump(&self, only: Option<&[RunId]>) -> Result<Dump, JournalError> {
        let mut lent = self.link.take().await?;
        // As long as it takes: an auditor's journal may be large, and nothing waits for it.
        let done = dump(&mut lent.conn, only).await;
        self.link.settle(lent, done)
    }
}

impl PostgresJournal {
    async fn rows(
        &self,
        query: sqlx::query::Query<'_, sqlx::Postgres, sqlx::postgres::PgArguments>,
    ) -> Result<Vec<ChainRow>, JournalError> {
        let mut lent = self.link.take().await?;
        let done = within(async { query.fetch_all(&mut lent.conn).await?.iter().map(|row| Ok(chain_row(row)?)).collect() }).await;
        self.link.settle(lent, done)
    }
}
