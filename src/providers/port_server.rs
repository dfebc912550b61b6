//! The shape of a PostgreSQL server of one's own: what its SQL can do where it is the superuser, the machine that it
//! runs on, and the pooler before it. Reading and writing apart, as in [`super::port`], which gives all of it on.

use super::port::{Lsn, PortResult, ServerState};
use async_trait::async_trait;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

// ---------------------------------------------------------------- SQL

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotUse {
    pub name: String,
    pub active: bool,
    /// `reserved`, `extended`, `unreserved`, `lost`; `None` while it keeps nothing.
    pub wal: Option<String>,
}

/// A role that can log in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginRole {
    pub name: String,
    pub superuser: bool,
}

/// What decides who may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hba {
    pub file: String,
    /// The rules as the server reads the file now, a line each.
    pub rules: Vec<String>,
    /// Lines that it cannot read.
    pub errors: Vec<String>,
}

/// What tables held at one position of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frozen {
    pub position: Lsn,
    /// For how long their writers waited.
    pub held_ms: u64,
    /// The first row of each question's answer.
    pub rows: Vec<Vec<Option<String>>>,
}

#[async_trait]
pub trait ClusterRead: Send + Sync {
    /// Settings as they are in force; those that the server does not know are left out.
    async fn settings(&self, names: &[&str]) -> PortResult<BTreeMap<String, String>>;
    async fn slots(&self) -> PortResult<Vec<SlotUse>>;
    /// The roles that can log in, without Muster's own and those named.
    async fn logins(&self, but: &[String]) -> PortResult<Vec<LoginRole>>;
    /// The roles that [`ClusterWrite::let_log_in`] keeps out, as the database itself has it on record.
    async fn revoked(&self) -> PortResult<Vec<String>>;
    /// What could still write, in whatever database: sessions of clients, and workers that are no part of the server.
    /// Muster's own sessions and replication do not count.
    async fn writers(&self) -> PortResult<Vec<String>>;
    /// Tries to begin a session as this role, without a password: how it was refused (with the SQLSTATE), or
    /// `None` if it was let in.
    async fn refusal(&self, role: &str) -> PortResult<Option<String>>;
    async fn hba(&self) -> PortResult<Hba>;
    /// Waits until a standby has replayed beyond this position; how far it is then, or at the end of the limit.
    async fn replay(&self, beyond: Lsn, limit: Duration) -> PortResult<Lsn>;
    /// Where tablespaces lie that are outside of the data directory, by their numbers.
    async fn tablespaces(&self) -> PortResult<BTreeMap<u32, PathBuf>> {
        Ok(BTreeMap::new())
    }
    /// Where each earlier timeline of this one ended.
    async fn history(&self, timeline: u32) -> PortResult<Vec<(u32, Lsn)>>;
}

#[async_trait]
pub trait ClusterWrite: ClusterRead {
    async fn checkpoint(&self) -> PortResult<()>;
    /// Ends recovery and waits until the server has left it.
    async fn promote(&self, limit: Duration) -> PortResult<ServerState>;
    /// `ALTER SYSTEM`, and waits until it is in force; `None` takes the setting out again.
    async fn set(&self, name: &str, value: Option<&str>) -> PortResult<()>;
    /// A physical slot that keeps the log from now on; one that is there is left as it is.
    async fn make_slot(&self, name: &str) -> PortResult<()>;
    async fn drop_slot(&self, name: &str) -> PortResult<()>;
    /// Whether these roles may log in. Who is kept out goes on record in the database, in the same transaction, so that
    /// a server that was promoted meanwhile knows it too. A role that is gone is passed over.
    async fn let_log_in(&self, roles: &[String], may: bool) -> PortResult<()>;
    /// Ends what [`ClusterRead::writers`] counts, until none is left.
    async fn end_writers(&self) -> PortResult<()>;
    async fn reload(&self) -> PortResult<()>;
    /// Holds these tables' writers while a snapshot is taken and a restore point of this name is written; then asks, in
    /// that snapshot, with `forms` set before.
    async fn freeze(&self, tables: &[String], forms: &str, questions: &[String], point: &str) -> PortResult<Frozen>;
}

// ---------------------------------------------------------------- the machine

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    pub pid: u32,
    pub name: String,
}

/// What the server's machine says of a data directory, whether a server runs or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineState {
    /// Every process that works in the directory: the postmaster, its children, also those that it left behind, and
    /// the tools that work on it.
    pub processes: Vec<Standing>,
    /// One of them is the postmaster that the pid file names: it can be asked to stop.
    pub postmaster: bool,
    /// Processes that are attached to the shared memory that the directory's pid file names.
    pub attached: u32,
    /// Whoever starts the server gets a standby.
    pub standby_signal: bool,
    /// Patroni has left its mark: it starts, stops and configures this server.
    pub patroni: bool,
    /// A directory can be made beside it.
    pub beside: bool,
    /// The control file: `shut down`, `in production`, `in archive recovery`…
    pub state: String,
    pub timeline: u32,
    /// Where the latest checkpoint's record begins.
    pub checkpoint: Lsn,
    pub system_identifier: String,
    /// `pg_rewind` can be used: checksums, or `wal_log_hints`.
    pub rewindable: bool,
}

impl MachineState {
    /// Nothing of it can write: no process works in the directory or holds its memory.
    #[must_use]
    pub fn dead(&self) -> bool {
        self.processes.is_empty() && self.attached == 0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Sessions are ended, a last checkpoint is written, standbys get the whole log.
    Fast,
    /// At once; recovery follows at the next start.
    Immediate,
}

/// A tablespace of a server that is copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tablespace {
    pub number: u32,
    /// Where the source has it.
    pub from: PathBuf,
    /// Where the copy puts it: a folder that is not there, or empty.
    pub to: PathBuf,
    /// Where else, if something is in that folder.
    pub or: Option<PathBuf>,
}

/// Another server, as a tool or a standby connects to it.
#[derive(Clone)]
pub struct Upstream {
    pub host: String,
    pub port: u16,
    pub user: String,
    pub database: String,
    pub password: Option<SecretString>,
}

#[async_trait]
pub trait MachineRead: Send + Sync {
    async fn look(&self) -> PortResult<MachineState>;
    /// A text file, by its path or by its name in the data directory.
    async fn read(&self, file: &str) -> PortResult<Option<String>>;
    /// Does anything accept connections at the server's address, seen from here?
    async fn listens(&self) -> PortResult<bool>;
    /// Of the tablespaces of a copy those that have nowhere to go, in words.
    async fn no_room_for(&self, _tablespaces: &[Tablespace]) -> PortResult<Vec<String>> {
        Ok(Vec::new())
    }
}

#[async_trait]
pub trait MachineWrite: MachineRead {
    /// Puts a whole file in the place of what is there, in one step.
    async fn write(&self, file: &str, content: &SecretString) -> PortResult<()>;
    async fn remove(&self, file: &str) -> PortResult<()>;
    /// From the next start on, whoever starts it, the server is a standby: of the primary that these settings name.
    async fn make_standby(&self, conninfo: &SecretString, slot: &str) -> PortResult<()>;
    async fn start(&self) -> PortResult<()>;
    /// Asks it to stop. That it has stopped is for `look` to say.
    async fn stop(&self, how: Stop) -> PortResult<()>;
    /// Ends every process that works in the directory.
    async fn kill(&self) -> PortResult<()>;
    /// Keeps a copy of the server's own configuration beside the data directory, and puts it back.
    async fn keep_configuration(&self) -> PortResult<()>;
    async fn restore_configuration(&self) -> PortResult<()>;
    /// Takes the directory back to where it left the source's history, and to the source's state.
    async fn rewind(&self, source: &Upstream, limit: Duration) -> PortResult<()>;
    /// Puts a new copy of the source in the directory's place; the old one is kept beside it, under this name. A tablespace goes where
    /// nothing is; where that cannot be, nothing is begun.
    async fn copy(&self, source: &Upstream, kept: &str, tablespaces: &[Tablespace], limit: Duration) -> PortResult<String>;
    /// Writes what `pg_waldump` says of a timeline's log from a position to its end into a file here.
    async fn dump_log(&self, timeline: u32, from: Lsn, into: &std::path::Path, limit: Duration) -> PortResult<()>;
    /// Starts the directory's server where nobody else can reach it and nothing can be written, replayed up to a
    /// position at least.
    async fn isolate(&self, upto: Lsn, user: &str, limit: Duration) -> PortResult<()>;
    /// Ends that server.
    async fn isolated_no_more(&self) -> PortResult<()>;
    /// Asks that server; rows go into a file here, one a line.
    async fn ask(&self, database: &str, user: &str, sql: &str, into: &std::path::Path, limit: Duration) -> PortResult<()>;
}

// ---------------------------------------------------------------- poolers

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolerState {
    pub paused: bool,
    /// Where it sends the database's clients.
    pub host: String,
    pub port: u16,
}

#[async_trait]
pub trait PoolerRead: Send + Sync {
    async fn state(&self) -> PortResult<PoolerState>;
    /// For messages.
    fn name(&self) -> String;
}

#[async_trait]
pub trait PoolerWrite: PoolerRead {
    /// Holds clients at the next end of a transaction; returns when none is under way. One that does not come to that
    /// within the limit is an error, and the pooler may then be paused or not.
    async fn pause(&self, limit: Duration) -> PortResult<()>;
    async fn resume(&self) -> PortResult<()>;
    /// Changes its file and has it read. Clients that are held stay held.
    async fn point(&self, host: &str, port: u16) -> PortResult<()>;
}
