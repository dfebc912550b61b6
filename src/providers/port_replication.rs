//! What a PostgreSQL server tells of replication beside its state, and what it has beside rows. What it would not
//! tell (the user may not see it) is absent, which is never the same as "none".

use super::port::Lsn;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// In one look. Most fields are of one side only: a standby has a receiver, a primary has slots and senders.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Replication {
    /// The user may not see what it tells: then what is absent may be there.
    pub refused: bool,
    /// `server_version_num`: 150020; 0 when not known.
    pub version: u32,
    /// The name that it gives itself.
    pub cluster_name: Option<String>,
    /// Does it know where its primary is?
    pub follows: Option<bool>,
    /// Can it fetch log from an archive?
    pub restores: Option<bool>,
    /// The slot that it was told to use.
    pub slot: Option<String>,
    pub receiver: Option<Receiver>,
    /// What the process that replays waits for.
    pub waits_for: Option<String>,
    /// `not paused`, `pause requested`, `paused`.
    pub pause: Option<String>,
    pub retry_interval_ms: Option<u64>,
    pub apply_delay_ms: Option<u64>,
    /// The settings that a standby must not have lower than its primary.
    pub limits: BTreeMap<String, i64>,
    pub slots: Option<Vec<Slot>>,
    pub senders: Option<Vec<Sender>>,
    /// The number of the oldest segment of log that is still there, and how large segments are.
    pub oldest_segment: Option<u64>,
    pub segment_bytes: Option<u64>,
    /// Where its timeline comes from: parent, and the position where it branched off.
    pub history: Option<Vec<(u32, Lsn)>>,
    pub subscriptions: Vec<Subscription>,
    /// Tables that are published, by publication.
    pub published: Vec<Published>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Receiver {
    pub status: Option<String>,
    pub slot: Option<String>,
    pub host: Option<String>,
    pub port: Option<i64>,
    pub timeline: Option<u32>,
    /// When the last message was sent, by the sender's clock.
    pub last_sent: Option<jiff::Timestamp>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Slot {
    pub name: String,
    /// `physical` or `logical`.
    pub kind: String,
    pub active: bool,
    pub active_pid: Option<i64>,
    /// `reserved`, `extended`, `unreserved`, `lost`.
    pub wal_status: Option<String>,
    pub restart: Option<Lsn>,
    pub confirmed: Option<Lsn>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sender {
    pub pid: i64,
    pub name: Option<String>,
    pub state: Option<String>,
    pub sent: Option<Lsn>,
    pub replayed: Option<Lsn>,
}

/// What a subscriber says of one subscription.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Subscription {
    pub name: String,
    pub enabled: bool,
    pub slot: Option<String>,
    pub publications: Vec<String>,
    /// Does a worker apply at this moment?
    pub working: bool,
    pub last_message: Option<jiff::Timestamp>,
    /// Errors while applying, if the server counts them.
    pub errors: Option<u64>,
    /// Each table with its state: `i`, `d`, `f`, `s`, and `r` when it is ready.
    pub tables: BTreeMap<String, String>,
}

/// A table of a publication.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Published {
    pub publication: String,
    pub table: String,
    /// Those that are published; all when absent.
    pub columns: Option<Vec<String>>,
    /// Only rows of which this is true.
    pub filter: Option<String>,
}

/// Everything that two servers can be compared by, beside rows. Keys are what a person would call it: `column
/// public.orders.id`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Inventory {
    /// Of a primary: a standby that has replayed this has all of it.
    pub at: Lsn,
    /// Tables, columns, indexes, constraints, extensions, roles.
    pub things: BTreeMap<String, String>,
    /// The last value of each sequence, and whether it goes down.
    pub sequences: BTreeMap<String, (Option<i64>, bool)>,
    pub settings: BTreeMap<String, String>,
    /// Versions of extensions that are in use, and that this machine could run: name to versions.
    pub extensions: BTreeMap<String, String>,
    pub available: BTreeMap<String, Vec<String>>,
    /// What a collation was made with and what this machine sorts by, where they differ.
    pub collations: BTreeMap<String, (String, String)>,
    /// Tables that are not replicated, and tables without a key.
    pub unlogged: Vec<String>,
    pub keyless: Vec<String>,
}
