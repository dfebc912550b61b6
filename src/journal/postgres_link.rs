//! The way to the journal's PostgreSQL: which servers there are, which of them may be written to, and the
//! connections to it.
//!
//! A pool of our own, for three things that the library's does not do. Several hosts may be named, and after
//! a failover the one that takes writes is looked for again; of two that claim to, the one on the higher
//! timeline is right, and one on a lower timeline than was seen before is an old primary that came back. A
//! connection on which anything went wrong, or on which an answer did not come in time, is closed and never
//! used again: with it the server ends the transaction, and its row locks. And an error says its cause,
//! where a pool would only say that none could be had in time.
//!
//! There is no `statement_timeout`, on purpose. On a server that replicates synchronously it would end the
//! wait for the standby, and the commit would be reported as done: acknowledged, and lost with the primary.
//! Answers are timed here instead, and an answer that did not come leaves the outcome unknown. What the
//! server does bound is waiting for row locks, and transactions whose node has gone silent, so that a node
//! that was cut off in the middle of one keeps nobody out for longer than its lease.

use super::{JournalError, lease::Terms};
use crate::providers::clock::Clock;
use secrecy::{ExposeSecret, SecretString};
use sqlx::{
    Connection as _, PgConnection, Row as _,
    postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgSslMode},
};
use std::{
    future::Future,
    str::FromStr as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a server may take to let us in.
const CONNECT: Duration = Duration::from_secs(3);
/// How long the store may take for one thing. Several commits of others may have to come first.
pub const CALL: Duration = Duration::from_secs(5);
/// One that lay idle for longer is asked whether it still is one.
const FRESH: Duration = Duration::from_secs(1);
/// How many of its tasks may ask the store at the same time: commits that meet share the disk's flush.
const SEATS: usize = 12;
/// No server has answered yet.
const NONE: usize = usize::MAX;

/// Why something did not come about: the store refused it by our own rules, or the store is in trouble.
pub enum Trouble {
    Refused(JournalError),
    Store(String),
}

impl From<JournalError> for Trouble {
    fn from(error: JournalError) -> Self {
        Self::Refused(error)
    }
}

impl From<sqlx::Error> for Trouble {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(explain(&error))
    }
}

/// A connection that is lent; dropped, it is closed.
pub struct Lent {
    pub conn: PgConnection,
    /// The server's timeline: which of a line of primaries it is.
    pub server: i64,
    _seat: OwnedSemaphorePermit,
}

struct Idle {
    conn: PgConnection,
    server: i64,
    since: Duration,
}

pub struct Link {
    hosts: Vec<PgConnectOptions>,
    place: String,
    clock: Arc<dyn Clock>,
    seats: Arc<Semaphore>,
    idle: Mutex<Vec<Idle>>,
    /// The host that answered last.
    good: AtomicUsize,
    /// The highest timeline seen.
    seen: AtomicI64,
}

impl Link {
    /// Reads where the journal is; asks nobody yet.
    pub fn new(url: &SecretString, terms: Terms, clock: Arc<dyn Clock>) -> Result<Self, String> {
        let (hosts, place) = parse(url.expose_secret())?;
        let patience = |length: Duration| format!("{}ms", length.as_millis().max(100));
        let settings = [
            ("lock_timeout", patience(CALL / 2)),
            ("idle_in_transaction_session_timeout", patience((terms.ttl / 2).min(CALL))),
            ("tcp_user_timeout", patience(terms.ttl)),
            ("tcp_keepalives_idle", "10".to_owned()),
            ("tcp_keepalives_interval", "5".to_owned()),
            ("tcp_keepalives_count", "3".to_owned()),
        ];
        let hosts = hosts.into_iter().map(|host| host.application_name("muster").options(settings.clone())).collect();
        let seats = Arc::new(Semaphore::new(SEATS));
        let (good, seen) = (AtomicUsize::new(NONE), AtomicI64::new(0));
        Ok(Self { hosts, place, clock, seats, idle: Mutex::default(), good, seen })
    }

    /// Host and database, for people: never the password.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    pub fn store(&self, why: impl Into<String>) -> JournalError {
        JournalError::Store { place: self.place.clone(), why: why.into() }
    }

    /// A connection to the server that takes writes.
    pub async fn take(&self) -> Result<Lent, JournalError> {
        let seat = tokio::time::timeout(CALL, self.seats.clone().acquire_owned()).await;
        let Ok(Ok(seat)) = seat else { return Err(self.store(format!("no connection was free within {} s", CALL.as_secs()))) };
        loop {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(Idle { mut conn, server, since }) = idle else { break };
            let fresh = self.clock.monotonic().saturating_sub(since) < FRESH;
            if fresh || tokio::time::timeout(FRESH, conn.ping()).await.is_ok_and(|pong| pong.is_ok()) {
                return Ok(Lent { conn, server, _seat: seat });
            }
        }
        let (conn, server) = self.connect().await?;
        Ok(Lent { conn, server, _seat: seat })
    }

    /// Gives back what is to be used again.
    fn give(&self, lent: Lent) {
        let Lent { conn, server, .. } = lent;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(Idle { conn, server, since: self.clock.monotonic() });
    }

    /// What came of it; the connection is kept only if nothing at all was wrong.
    pub fn settle<T>(&self, lent: Lent, done: Result<T, Trouble>) -> Result<T, JournalError> {
        match done {
            Ok(value) => {
                self.give(lent);
                Ok(value)
            }
            // A transaction may be open on it, with locks: they end with the connection.
            Err(Trouble::Refused(error)) => Err(error),
            Err(Trouble::Store(why)) => {
                // What lies idle has probably lost its server as well.
                self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
                Err(self.store(why))
            }
        }
    }

    /// A new connection to a server that takes writes, and the server's timeline.
    pub async fn connect(&self) -> Result<(PgConnection, i64), JournalError> {
        if let Some(host) = self.hosts.get(self.good.load(Ordering::Relaxed))
            && let Ok(found) = self.enter(host).await
        {
            return Ok(found);
        }
        let tried = futures::future::join_all(self.hosts.iter().map(|host| self.enter(host))).await;
        let mut best: Option<(usize, (PgConnection, i64))> = None;
        let mut why = Vec::new();
        for (n, (host, tried)) in self.hosts.iter().zip(tried).enumerate() {
            match tried {
                Ok(found) if best.as_ref().is_none_or(|(_, (_, server))| *server < found.1) => best = Some((n, found)),
                Ok(_) => {}
                Err(error) if self.hosts.len() == 1 => why.push(error),
                Err(error) => why.push(format!("{}:{}: {error}", host.get_host(), host.get_port())),
            }
        }
        let Some((n, (conn, server))) = best else { return Err(self.store(why.join("; "))) };
        self.good.store(n, Ordering::Relaxed);
        self.seen.fetch_max(server, Ordering::Relaxed);
        Ok((conn, server))
    }

    /// A pool of one connection to the server that takes writes, for what wants a pool.
    pub async fn pool(&self) -> Result<PgPool, JournalError> {
        let (conn, _) = self.connect().await?;
        drop(conn);
        let host = self.hosts.get(self.good.load(Ordering::Relaxed)).cloned().unwrap_or_default();
        Ok(PgPoolOptions::new().max_connections(1).acquire_timeout(CONNECT).connect_lazy_with(host))
    }

    async fn enter(&self, host: &PgConnectOptions) -> Result<(PgConnection, i64), String> {
        let entered = async {
            let mut conn = PgConnection::connect_with(host).await.map_err(|e| explain(&e))?;
            let server = check(&mut conn).await?;
            Ok::<_, String>((conn, server))
        };
        let late = || format!("no answer within {} s", CONNECT.as_secs());
        let (conn, server) = tokio::time::timeout(CONNECT, entered).await.map_err(|_| late())??;
        let seen = self.seen.load(Ordering::Relaxed);
        if server < seen {
            return Err(format!("it is an old primary that came back (timeline {server}, and {seen} has been seen): shut it down"));
        }
        Ok((conn, server))
    }
}

/// Is this a server to which a journal may be trusted? Gives its timeline.
async fn check(conn: &mut PgConnection) -> Result<i64, String> {
    let asked = "SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on', current_setting('fsync'), \
                 current_setting('synchronous_commit'), current_setting('server_version_num')::int";
    let row = sqlx::query(asked).fetch_one(&mut *conn).await.map_err(|e| explain(&e))?;
    if row.get::<bool, _>(0) {
        return Err("it is a standby, and takes no writes: name the primary, or name both".to_owned());
    }
    if row.get::<bool, _>(1) {
        return Err("it is read-only (default_transaction_read_only)".to_owned());
    }
    let (fsync, commit): (String, String) = (row.get(2), row.get(3));
    if fsync == "off" {
        return Err("it runs with fsync=off: what it acknowledges may be gone after a power cut; set fsync=on".to_owned());
    }
    if commit == "off" || commit == "local" {
        return Err(format!(
            "it runs with synchronous_commit={commit}: what it acknowledges may be gone after a crash or a failover; set it to `on`"
        ));
    }
    if row.get::<i32, _>(4) < 130_000 {
        return Err("it is older than PostgreSQL 13".to_owned());
    }
    // A server that speaks PostgreSQL and has no write-ahead log to name has no timelines either.
    let timeline = "SELECT ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint";
    Ok(sqlx::query_scalar(timeline).fetch_one(&mut *conn).await.unwrap_or(0))
}

/// Does it, within the time that the store has for one thing.
pub async fn within<T>(work: impl Future<Output = Result<T, Trouble>>) -> Result<T, Trouble> {
    match tokio::time::timeout(CALL, work).await {
        Ok(done) => done,
        Err(_) => Err(Trouble::Store(format!("no answer within {} s", CALL.as_secs()))),
    }
}

/// What is wrong with the store, in words for a person.
pub fn explain(error: &sqlx::Error) -> String {
    let code = error.as_database_error().and_then(|error| error.code().map(std::borrow::Cow::into_owned));
    match code.as_deref() {
        Some("42P01") => "there is no journal in this database yet: `muster run` and `muster serve` make one".to_owned(),
        Some("25006") => format!("it takes no writes any more ({error})"),
        Some("53100") => format!("its disk is full ({error}); make room, and go on"),
        _ => error.to_string(),
    }
}

/// `postgres://user:password@host:port,host:port/database?sslmode=verify-full`: every host, and what to call them.
fn parse(url: &str) -> Result<(Vec<PgConnectOptions>, String), String> {
    let form = "a journal is given as postgres://USER@HOST[:PORT][,HOST[:PORT]]/DATABASE";
    let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://")).ok_or(form)?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    let (user, hosts) = authority.rsplit_once('@').map_or((String::new(), authority), |(user, hosts)| (format!("{user}@"), hosts));
    let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
    let session = |pair: &&str| pair.split_once('=').is_some_and(|(name, _)| name == "target_session_attrs");
    if let Some(asked) = query.split('&').find(session).filter(|pair| !pair.ends_with("=read-write") && !pair.ends_with("=primary")) {
        return Err(format!("`{asked}`: a journal is written to; it is always target_session_attrs=read-write"));
    }
    let query: Vec<_> = query.split('&').filter(|pair| !pair.is_empty() && !session(pair)).collect();
    let mut all = Vec::new();
    for host in hosts.split(',') {
        let one = format!("postgres://{user}{host}{path}?{}", query.join("&"));
        // The error itself may hold the password.
        let options = PgConnectOptions::from_str(&one).map_err(|_| form.to_owned())?;
        all.push(if one.contains("sslmode=") || one.contains("ssl-mode=") { options } else { options.ssl_mode(PgSslMode::Prefer) });
    }
    let names = all.iter().map(|host| format!("{}:{}", host.get_host(), host.get_port())).collect::<Vec<_>>().join(",");
    let database = all.first().and_then(PgConnectOptions::get_database).unwrap_or("postgres");
    let place = format!("PostgreSQL {names}/{database}");
    Ok((all, place))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_hosts_are_read_and_no_password_is_told() {
        let (hosts, place) = parse("postgres://ana:s3:cr@et@db1:6000,db2/journal?target_session_attrs=read-write&sslmode=require").unwrap();
        assert_eq!(hosts.iter().map(|host| (host.get_host(), host.get_port())).collect::<Vec<_>>(), [("db1", 6000), ("db2", 5432)]);
        assert!(hosts.iter().all(|host| host.get_database() == Some("journal") && host.get_username() == "ana"));
        assert_eq!(place, "PostgreSQL db1:6000,db2:5432/journal");
        for wrong in ["mysql://x/y", "postgres://ana:secret@db:port/x", "postgres://h/x?target_session_attrs=any"] {
            let why = parse(wrong).unwrap_err();
            assert!(!why.contains("secret") && why.contains("journal"), "{why}");
        }
    }
}
