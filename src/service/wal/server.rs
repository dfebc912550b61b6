//! What a running server says of its own log: how far it is, whether it can archive, and what its replication slot keeps.

use super::{
    super::ServiceError,
    status::{ClusterStatus, Status},
};
use crate::providers::{
    port::{Lsn, PortError},
    replication::{PgError, Purpose, Row, Session, Target, commands::literal},
};
use serde::Serialize;

#[derive(Clone, Debug, Serialize)]
pub struct ServerLook {
    pub server: String,
    pub system_identifier: String,
    pub position: Lsn,
    /// Behind which the log in the repository is, by so many bytes; `null` where there is none of it.
    pub lag_bytes: Option<u64>,
    pub archive_mode: String,
    /// Segments that wait to be archived.
    pub waiting: Option<u64>,
    pub last_archived: Option<String>,
    /// The last failure, if nothing was archived since.
    pub failing: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot: Option<SlotLook>,
}

#[derive(Clone, Debug, Serialize)]
pub struct SlotLook {
    pub name: String,
    pub there: bool,
    pub active: bool,
    /// `reserved`, `extended`, `unreserved`, `lost`.
    pub wal_status: Option<String>,
    /// So much log is kept for it.
    pub held_bytes: Option<u64>,
}

const ASK: &str = "SELECT system_identifier, \
     CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END, \
     current_setting('archive_mode'), last_archived_wal, \
     CASE WHEN last_failed_time > coalesce(last_archived_time, '-infinity') \
          THEN last_failed_wal || ' at ' || last_failed_time END \
     FROM pg_control_system(), pg_stat_archiver";

pub(super) async fn look_at(
    url: &str,
    ask: &Status,
    clusters: &[ClusterStatus],
    problems: &mut Vec<String>,
) -> Result<ServerLook, ServiceError> {
    let port = |e: PgError| ServiceError::Port(e.into());
    let target = Target::parse(url).map_err(port)?;
    let mut session = Session::open(&target, Purpose::Sql).await.map_err(port)?;
    let row = session.one(ASK).await.map_err(port)?;
    // Only a superuser or a monitor may see it.
    let waiting = session.one("SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'").await;
    let waiting = waiting.ok().and_then(|row| row.get(0).ok());
    let mut look = server_look(session.at(), &row, waiting)
        .map_err(|why| ServiceError::Port(PortError::Refused(format!("{}: {why}", session.at()))))?;
    if let Some(name) = &ask.slot {
        look.slot = Some(slot(&mut session, name).await.map_err(port)?);
    }
    session.close().await;
    let own = clusters.iter().find(|cluster| cluster.system_identifier == look.system_identifier);
    let end = own.and_then(|cluster| cluster.timelines.iter().map(|timeline| timeline.end).max());
    look.lag_bytes = end.map(|end| look.position.0.saturating_sub(end.0));
    judge(&look, ask, problems);
    Ok(look)
}

fn server_look(at: &str, row: &Row, waiting: Option<u64>) -> Result<ServerLook, String> {
    Ok(ServerLook {
        server: at.to_owned(),
        system_identifier: row.text(0)?.to_owned(),
        position: row.get(1)?,
        lag_bytes: None,
        archive_mode: row.text(2)?.to_owned(),
        waiting,
        last_archived: row.maybe(3).map(str::to_owned),
        failing: row.maybe(4).map(str::to_owned),
        slot: None,
    })
}

async fn slot(session: &mut Session, name: &str) -> Result<SlotLook, PgError> {
    let ask = format!(
        "SELECT active, wal_status, pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE \
         pg_current_wal_lsn() END, restart_lsn)::bigint FROM pg_replication_slots WHERE slot_name = {}",
        literal(name)
    );
    let rows = session.query(&ask).await?;
    Ok(match rows.first() {
        None => SlotLook { name: name.to_owned(), there: false, active: false, wal_status: None, held_bytes: None },
        Some(row) => SlotLook {
            name: name.to_owned(),
            there: true,
            active: row.maybe(0) == Some("t"),
            wal_status: row.maybe(1).map(str::to_owned),
            held_bytes: row.get::<i64>(2).ok().and_then(|bytes| u64::try_from(bytes).ok()),
        },
    })
}

fn judge(look: &ServerLook, ask: &Status, problems: &mut Vec<String>) {
    let at = &look.server;
    if let Some(failing) = &look.failing {
        problems.push(format!("{at} cannot archive: {failing} failed, and nothing was archived since (its log says why)"));
    }
    if look.archive_mode == "off" && ask.slot.is_none() {
        problems.push(format!("{at} does not archive (archive_mode is off), and no slot was named that `muster wal receive` uses"));
    }
    match (look.lag_bytes, ask.max_lag) {
        (None, _) => problems.push(format!("the repository has no log of {at} (cluster {})", look.system_identifier)),
        (Some(lag), Some(most)) if lag > most => {
            problems.push(format!("the log in the repository is {lag} bytes behind {at}, more than {most}"));
        }
        _ => {}
    }
    let Some(slot) = &look.slot else { return };
    match slot.wal_status.as_deref() {
        _ if !slot.there => problems.push(format!("{at} has no replication slot `{}`: log that was not received is not kept", slot.name)),
        Some("lost") => problems.push(format!(
            "the slot `{}` of {at} is lost: the server has removed log that was not received (max_slot_wal_keep_size); make a new base backup",
            slot.name
        )),
        Some("unreserved") => problems.push(format!("the slot `{}` of {at} is about to be lost: log that was not received will be removed", slot.name)),
        _ if !slot.active => problems.push(format!(
            "nothing receives by the slot `{}` of {at}; it holds {} bytes of log back",
            slot.name,
            slot.held_bytes.unwrap_or(0)
        )),
        _ => {}
    }
}
