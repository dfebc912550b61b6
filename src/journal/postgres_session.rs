//! A process's session with the journal: one lease for all the chains that it owns.
//!
//! The server grants it by its own clock, and a task renews it, on a connection of its own so that other
//! work never keeps it waiting. A session that the server let run out is never revived: its claims are lost
//! at once, and what is claimed afterwards is claimed under a new one.

use super::{
    JournalError,
    lease::{Hold, Terms},
    postgres_link::{Link, Trouble, within},
};
use crate::model::ids::RunId;
use crate::providers::clock::Clock;
use sqlx::PgConnection;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio_util::task::AbortOnDropHandle;

/// Sessions that nobody can need any more are removed when one begins.
const FORGET: &str = "DELETE FROM nodes WHERE expires_at < clock_timestamp() - interval '1 day' \
                      AND NOT EXISTS (SELECT 1 FROM chains WHERE chains.session = nodes.session AND finished_at IS NULL)";
const BEGIN: &str = "INSERT INTO nodes (session, name, serves, ttl_ms, server, expires_at) \
                     VALUES ($1, $2, $3, $4, $5, clock_timestamp() + $4 * interval '1 millisecond')";
/// On another server than the one that granted it, its end is not known, and nobody has judged it to have
/// ended: then it may be renewed. Whoever judges it there first gives it its whole length again.
const RENEW: &str = "UPDATE nodes SET expires_at = clock_timestamp() + ttl_ms * interval '1 millisecond', server = $2 \
                     WHERE session = $1 AND (expires_at > clock_timestamp() OR server <> $2)";

pub struct Session {
    pub id: String,
    pub hold: Hold,
    /// The chains that this process owns under it, and the epochs.
    held: Mutex<BTreeMap<RunId, u64>>,
    keeper: Mutex<Option<AbortOnDropHandle<()>>>,
}

impl Session {
    /// A new one, with the task that renews it.
    pub async fn begin(
        link: &Arc<Link>,
        clock: &Arc<dyn Clock>,
        terms: Terms,
        name: &str,
        serves: bool,
    ) -> Result<Arc<Self>, JournalError> {
        let id = clock.new_id();
        let mut lent = link.take().await?;
        let server = lent.server;
        let sent = clock.monotonic();
        let done = within(async {
            sqlx::query(FORGET).execute(&mut lent.conn).await?;
            let begun = sqlx::query(BEGIN).bind(&id).bind(name).bind(serves).bind(millis(terms.ttl)).bind(server);
            begun.execute(&mut lent.conn).await?;
            Ok(())
        })
        .await;
        link.settle(lent, done)?;
        let hold = Hold::leased(terms, sent);
        let keeper = Keeper { link: link.clone(), clock: clock.clone(), terms, id: id.clone(), hold: hold.clone() };
        let keeper = AbortOnDropHandle::new(tokio::spawn(keeper.keep()));
        Ok(Arc::new(Self { id, hold, held: Mutex::default(), keeper: Mutex::new(Some(keeper)) }))
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<RunId, u64>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
    pub fn holds(&self, run: &RunId) -> bool {
        self.held().contains_key(run)
    }
    pub fn keep(&self, run: &RunId, epoch: u64) {
        self.held().insert(run.clone(), epoch);
    }
    /// False when it is not held under this epoch any more: then there is nothing to let go of.
    pub fn let_go(&self, run: &RunId, epoch: u64) -> bool {
        let mut held = self.held();
        let ours = held.get(run) == Some(&epoch);
        if ours {
            held.remove(run);
        }
        ours
    }
    pub fn all(&self) -> Vec<String> {
        self.held().keys().map(|run| run.as_str().to_owned()).collect()
    }

    /// Nothing is begun under it any more, and it is not renewed.
    pub fn end(&self) {
        self.hold.lose();
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

struct Keeper {
    link: Arc<Link>,
    clock: Arc<dyn Clock>,
    terms: Terms,
    id: String,
    hold: Hold,
}

impl Keeper {
    /// Renews until the server says that it has run out.
    async fn keep(self) {
        let mut conn = None;
        let mut trouble = false;
        let mut pause = self.terms.renew;
        loop {
            self.clock.sleep(pause).await;
            let sent = self.clock.monotonic();
            let renewed = tokio::time::timeout(self.terms.call, self.renew(&mut conn)).await;
            pause = self.terms.renew;
            match renewed {
                Ok(Ok(true)) => {
                    self.hold.renewed(self.terms, sent);
                    if trouble {
                        tracing::warn!("{}: the lease is renewed again", self.link.place());
                        trouble = false;
                    }
                }
                Ok(Ok(false)) => {
                    self.hold.lose();
                    tracing::error!("{}: the lease of this process ran out; it acts on nothing that it owned", self.link.place());
                    return;
                }
                failed => {
                    // It may have stopped in the middle of a statement.
                    conn = None;
                    if !trouble {
                        let why = match failed {
                            Ok(Err(error)) => error.to_string(),
                            _ => format!("no answer within {} ms", self.terms.call.as_millis()),
                        };
                        tracing::warn!("{}: the lease could not be renewed ({why}); trying again", self.link.place());
                        trouble = true;
                    }
                    pause = self.terms.renew / 4;
                }
            }
        }
    }

    async fn renew(&self, conn: &mut Option<(PgConnection, i64)>) -> Result<bool, JournalError> {
        let (mut link, server) = match conn.take() {
            Some(kept) => kept,
            None => self.link.connect().await?,
        };
        let done = sqlx::query(RENEW).bind(&self.id).bind(server).execute(&mut link).await;
        let done = done.map_err(|e| self.link.store(super::postgres_link::explain(&e)))?;
        *conn = Some((link, server));
        Ok(done.rows_affected() == 1)
    }
}

/// Whether whoever owns a chain under this session may still believe so. The session's row is locked, so
/// that a renewal under way is waited for.
pub async fn owner(conn: &mut PgConnection, session: &str, server: i64) -> Result<Owner, Trouble> {
    let asked = "SELECT name, server, expires_at > clock_timestamp() FROM nodes WHERE session = $1 FOR UPDATE";
    let Some((name, granted, live)) = sqlx::query_as::<_, (String, i64, bool)>(asked).bind(session).fetch_optional(&mut *conn).await?
    else {
        return Ok(Owner::Gone);
    };
    if granted != server {
        sqlx::query(RENEW).bind(session).bind(server).execute(&mut *conn).await?;
        return Ok(Owner::Judged(name));
    }
    Ok(if live { Owner::Lives(name) } else { Owner::Gone })
}

pub enum Owner {
    Gone,
    Lives(String),
    /// It was given its whole length again on this server: that must be committed.
    Judged(String),
}

pub fn millis(length: Duration) -> i64 {
    i64::try_from(length.as_millis()).unwrap_or(i64::MAX)
}
