//! Servers that answer what a recovered one would, and run nowhere.

use crate::providers::{
    port::{PortError, PortResult},
    servers::{Ended, Running, ServerSpec, Servers, TextRow},
};
use async_trait::async_trait;
use std::{path::Path, time::Duration};

pub struct SimServers;

/// The port of one that has just recovered, and that of one that was only started.
const RECOVERED: u16 = 5432;
const STARTED: u16 = 5433;

#[async_trait]
impl Servers for SimServers {
    async fn own(&self, _folder: &Path) -> PortResult<()> {
        Ok(())
    }
    async fn start(&self, spec: &ServerSpec, _patience: Duration) -> PortResult<Running> {
        // As the real one, on nothing that is not ready for it; and at the end of its recovery it takes the mark away.
        let (signal, over) = (spec.data.join("recovery.signal"), spec.data.join("recovery.done"));
        let recovers = std::fs::rename(&signal, &over).is_ok();
        if !over.is_file() || !spec.data.join("global/pg_control").is_file() {
            return Err(PortError::Refused(format!("the server on {} ended: it is no data directory", spec.data.display())));
        }
        Ok(Running { port: if recovers { RECOVERED } else { STARTED }, run: spec.run.clone(), role: spec.role.clone() })
    }
    async fn query(&self, server: &Running, _database: &str, text: &str, _patience: Duration) -> PortResult<Vec<TextRow>> {
        let row = |cells: &[&str]| Ok(vec![cells.iter().map(|cell| Some((*cell).to_owned())).collect()]);
        match text {
            // Started once more, it no longer knows how far it had come, nor of which time the last of that was.
            _ if text.contains("pg_last_wal_replay_lsn") && server.port == STARTED => {
                Ok(vec![vec![Some("0/300500".to_owned()), None, Some("2".to_owned())]])
            }
            _ if text.contains("pg_last_wal_replay_lsn") => row(&["0/300148", "2026-01-01T00:00:00.000000Z", "2"]),
            _ if text.contains("amcheck") => row(&["1"]),
            _ => match text.strip_prefix("SELECT '").and_then(|rest| rest.strip_suffix('\'')) {
                Some(said) => row(&[said]),
                None => row(&["t"]),
            },
        }
    }
    async fn stop(&self, _data: &Path) -> PortResult<()> {
        Ok(())
    }
    async fn tool(&self, _spec: &ServerSpec, _name: &str, _args: &[String], _patience: Duration) -> PortResult<Option<Ended>> {
        Ok(Some(Ended { ok: true, output: String::new() }))
    }
}
