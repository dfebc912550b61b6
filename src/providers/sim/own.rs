//! Servers of one's own: a machine whose server runs or does not, and what that server says; and poolers. A server that
//! stops in order sends its standby the whole log; one that starts is what its files say.

use super::{SimWorld, state::State};
use crate::providers::port::*;
use async_trait::async_trait;
use secrecy::{ExposeSecret, SecretString};
use std::{collections::BTreeMap, path::Path, time::Duration};

type Key2 = (String, String);

/// How much log a last checkpoint is.
const RECORD: u64 = 0x78;

pub(super) struct Own {
    pub world: SimWorld,
    /// Database and region.
    pub at: Key2,
}

pub(super) struct Pooler {
    pub world: SimWorld,
    pub index: usize,
}

fn nobody<T>() -> PortResult<T> {
    Err(PortError::Unreachable("no server listens".into()))
}

impl super::SimMachine {
    fn read_settings(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        self.settings.extend(pending);
    }
}

impl State {
    /// Does a server answer there? Those without a machine of one's own always do.
    pub(super) fn listening(&self, at: &Key2) -> PortResult<()> {
        if self.machines.get(at).is_some_and(|m| !m.running) { nobody() } else { Ok(()) }
    }

    fn others(&self, at: &Key2) -> Vec<Key2> {
        self.machines.keys().filter(|k| k.0 == at.0 && **k != *at).cloned().collect()
    }

    fn start_own(&mut self, at: &Key2) {
        let upstream = self.others(at).into_iter().filter_map(|k| self.servers.get(&k)).find(|s| !s.state.in_recovery).cloned();
        let (Some(machine), Some(server)) = (self.machines.get_mut(at), self.servers.get_mut(at)) else { return };
        if machine.running {
            return;
        }
        machine.running = true;
        machine.read_settings();
        server.state.in_recovery = machine.standby_signal;
        server.state.streaming = machine.standby_signal && upstream.is_some();
        if let Some(up) = upstream.filter(|_| machine.standby_signal) {
            (server.state.timeline, server.state.position) = (up.state.timeline, up.state.position);
        }
        let primary = (!machine.standby_signal).then_some(server.state.position);
        // Its standbys find it again.
        for key in self.others(at) {
            if let (Some(end), Some(standby)) =
                (primary, self.servers.get_mut(&key).filter(|s| s.state.in_recovery && !s.state.replay_paused))
            {
                (standby.state.streaming, standby.state.position) = (true, end);
            }
        }
    }

    fn stop_own(&mut self, at: &Key2) {
        let Some(server) = self.servers.get_mut(at) else { return };
        if self.machines.get(at).is_some_and(|m| !m.running) {
            return;
        }
        server.state.position.0 += RECORD;
        let end = server.state.position;
        for key in self.others(at) {
            if let Some(standby) = self.servers.get_mut(&key).filter(|s| s.state.in_recovery && s.state.streaming) {
                standby.state.streaming = false;
                if !standby.state.replay_paused {
                    standby.state.position = end;
                }
            }
        }
        if let Some(machine) = self.machines.get_mut(at) {
            machine.running = false;
        }
    }
}

impl Own {
    fn ask<T>(&self, look: impl FnOnce(&State) -> T) -> PortResult<T> {
        self.world.up(&self.at.1)?;
        let state = self.world.lock();
        state.listening(&self.at)?;
        Ok(look(&state))
    }
    fn tell<T>(&self, change: impl FnOnce(&mut State) -> T) -> PortResult<T> {
        self.world.up(&self.at.1)?;
        self.world.write(|state, _| {
            state.listening(&self.at)?;
            Ok(change(state))
        })
    }
    /// Of the machine, whether its server runs or not.
    fn do_there(&self, change: impl FnOnce(&mut State)) -> PortResult<()> {
        self.world.up(&self.at.1)?;
        self.world.write(|state, _| {
            change(state);
            Ok(())
        })
    }
}

#[async_trait]
impl ClusterRead for Own {
    async fn settings(&self, names: &[&str]) -> PortResult<BTreeMap<String, String>> {
        self.ask(|state| {
            let known = state.machines.get(&self.at).map(|m| m.settings.clone()).unwrap_or_default();
            known.into_iter().filter(|(name, _)| names.contains(&name.as_str())).collect()
        })
    }
    async fn slots(&self) -> PortResult<Vec<SlotUse>> {
        self.ask(|state| {
            let slots = state.machines.get(&self.at).map(|m| m.slots.clone()).unwrap_or_default();
            let used = |name: &str| {
                let uses =
                    |at: &Key2| state.machines.get(at).and_then(|m| m.settings.get("primary_slot_name")).is_some_and(|slot| slot == name);
                state.others(&self.at).iter().any(|at| uses(at) && state.servers.get(at).is_some_and(|s| s.state.streaming))
            };
            slots.into_iter().map(|name| SlotUse { active: used(&name), name, wal: Some("reserved".into()) }).collect()
        })
    }
    async fn logins(&self, _but: &[String]) -> PortResult<Vec<LoginRole>> {
        self.ask(|_| Vec::new())
    }
    async fn revoked(&self) -> PortResult<Vec<String>> {
        self.ask(|_| Vec::new())
    }
    async fn writers(&self) -> PortResult<Vec<String>> {
        self.ask(|_| Vec::new())
    }
    async fn refusal(&self, _role: &str) -> PortResult<Option<String>> {
        self.ask(|_| Some("28000".to_owned()))
    }
    async fn hba(&self) -> PortResult<Hba> {
        self.ask(|_| Hba { file: "pg_hba.conf".into(), rules: Vec::new(), errors: Vec::new() })
    }
    async fn replay(&self, _beyond: Lsn, _limit: Duration) -> PortResult<Lsn> {
        self.ask(|state| state.servers.get(&self.at).map(|s| s.state.position).unwrap_or_default())
    }
    async fn history(&self, _timeline: u32) -> PortResult<Vec<(u32, Lsn)>> {
        self.ask(|_| Vec::new())
    }
}

#[async_trait]
impl ClusterWrite for Own {
    async fn checkpoint(&self) -> PortResult<()> {
        self.ask(|_| ())
    }
    async fn promote(&self, _limit: Duration) -> PortResult<ServerState> {
        let promoted = self.tell(|state| {
            let server = state.servers.get_mut(&self.at)?;
            if server.state.in_recovery {
                server.state.in_recovery = false;
                server.state.timeline += 1;
            }
            Some(server.state.clone())
        })?;
        promoted.map_or_else(nobody, Ok)
    }
    async fn set(&self, name: &str, value: Option<&str>) -> PortResult<()> {
        self.tell(|state| {
            if let Some(machine) = state.machines.get_mut(&self.at) {
                machine.settings.insert(name.to_owned(), value.unwrap_or_default().to_owned());
            }
        })
    }
    async fn make_slot(&self, name: &str) -> PortResult<()> {
        self.tell(|state| {
            state.machines.get_mut(&self.at).map(|m| m.slots.insert(name.to_owned()));
        })
    }
    async fn drop_slot(&self, name: &str) -> PortResult<()> {
        self.tell(|state| {
            state.machines.get_mut(&self.at).map(|m| m.slots.remove(name));
        })
    }
    async fn let_log_in(&self, _roles: &[String], _may: bool) -> PortResult<()> {
        self.tell(|_| ())
    }
    async fn end_writers(&self) -> PortResult<()> {
        self.tell(|_| ())
    }
    async fn reload(&self) -> PortResult<()> {
        self.tell(|state| {
            let up = state.others(&self.at).into_iter().filter_map(|k| state.servers.get(&k)).find(|s| !s.state.in_recovery).cloned();
            let (Some(machine), Some(server)) = (state.machines.get_mut(&self.at), state.servers.get_mut(&self.at)) else { return };
            let moved = !machine.pending.is_empty();
            machine.read_settings();
            if let Some(up) = up.filter(|_| moved && server.state.in_recovery && !server.state.replay_paused) {
                (server.state.streaming, server.state.timeline, server.state.position) = (true, up.state.timeline, up.state.position);
            }
        })
    }
    async fn freeze(&self, _tables: &[String], _forms: &str, questions: &[String], _point: &str) -> PortResult<Frozen> {
        let position = self.ask(|state| state.servers.get(&self.at).map(|s| s.state.position).unwrap_or_default())?;
        let row = vec![Some("3".to_owned()), Some("1234".to_owned())];
        Ok(Frozen { position, held_ms: 1, rows: vec![row; questions.len()] })
    }
}

#[async_trait]
impl MachineRead for Own {
    async fn look(&self) -> PortResult<MachineState> {
        self.world.up(&self.at.1)?;
        let state = self.world.lock();
        let (Some(machine), Some(server)) = (state.machines.get(&self.at), state.servers.get(&self.at)) else { return nobody() };
        let processes = machine.running.then(|| Standing { pid: 1, name: "postgres".into() });
        Ok(MachineState {
            processes: processes.into_iter().collect(),
            postmaster: machine.running,
            patroni: false,
            attached: u32::from(machine.running),
            standby_signal: machine.standby_signal,
            beside: true,
            state: if machine.running { "in production" } else { "shut down" }.into(),
            timeline: server.state.timeline,
            checkpoint: Lsn(server.state.position.0 - RECORD),
            system_identifier: server.state.system_identifier.clone(),
            rewindable: true,
        })
    }
    async fn read(&self, file: &str) -> PortResult<Option<String>> {
        self.world.up(&self.at.1)?;
        Ok(self.world.lock().machines.get(&self.at).and_then(|m| m.files.get(file).cloned()))
    }
    async fn listens(&self) -> PortResult<bool> {
        self.world.up(&self.at.1)?;
        Ok(self.world.lock().listening(&self.at).is_ok())
    }
}

#[async_trait]
impl MachineWrite for Own {
    async fn write(&self, file: &str, content: &SecretString) -> PortResult<()> {
        self.do_there(|state| {
            state.machines.get_mut(&self.at).map(|m| m.files.insert(file.to_owned(), content.expose_secret().to_owned()));
        })
    }
    async fn make_standby(&self, conninfo: &SecretString, slot: &str) -> PortResult<()> {
        self.do_there(|state| {
            if let Some(machine) = state.machines.get_mut(&self.at) {
                machine.standby_signal = true;
                machine.pending.insert("primary_conninfo".into(), conninfo.expose_secret().to_owned());
                machine.pending.insert("primary_slot_name".into(), slot.to_owned());
            }
        })
    }
    async fn remove(&self, file: &str) -> PortResult<()> {
        self.do_there(|state| {
            let Some(machine) = state.machines.get_mut(&self.at) else { return };
            if file == "standby.signal" {
                machine.standby_signal = false;
            } else {
                machine.files.remove(file);
            }
        })
    }
    async fn start(&self) -> PortResult<()> {
        self.do_there(|state| state.start_own(&self.at))
    }
    async fn stop(&self, _how: Stop) -> PortResult<()> {
        self.do_there(|state| state.stop_own(&self.at))
    }
    async fn kill(&self) -> PortResult<()> {
        self.do_there(|state| state.stop_own(&self.at))
    }
    async fn keep_configuration(&self) -> PortResult<()> {
        Ok(())
    }
    async fn restore_configuration(&self) -> PortResult<()> {
        Ok(())
    }
    async fn rewind(&self, _source: &Upstream, _limit: Duration) -> PortResult<()> {
        Err(PortError::Refused("there are no files in this world".into()))
    }
    async fn copy(&self, _source: &Upstream, _kept: &str, _tablespaces: &[Tablespace], _limit: Duration) -> PortResult<String> {
        Err(PortError::Refused("there are no files in this world".into()))
    }
    async fn dump_log(&self, _timeline: u32, _from: Lsn, _into: &Path, _limit: Duration) -> PortResult<()> {
        Err(PortError::Refused("there is no log in this world".into()))
    }
    async fn isolate(&self, _upto: Lsn, _user: &str, _limit: Duration) -> PortResult<()> {
        Err(PortError::Refused("there is no log in this world".into()))
    }
    async fn isolated_no_more(&self) -> PortResult<()> {
        Ok(())
    }
    async fn ask(&self, _database: &str, _user: &str, _sql: &str, _into: &Path, _limit: Duration) -> PortResult<()> {
        Err(PortError::Refused("this world keeps no rows".into()))
    }
}

impl Pooler {
    fn change(&self, change: impl FnOnce(&mut super::SimPooler)) -> PortResult<()> {
        self.world.write(|state, _| {
            state.poolers.get_mut(self.index).map(change);
            Ok(())
        })
    }
}

#[async_trait]
impl PoolerRead for Pooler {
    async fn state(&self) -> PortResult<PoolerState> {
        let state = self.world.lock();
        let pooler = state.poolers.get(self.index).map(|p| PoolerState { paused: p.paused, host: p.host.clone(), port: p.port });
        pooler.map_or_else(nobody, Ok)
    }
    fn name(&self) -> String {
        format!("pooler {}", self.index)
    }
}

#[async_trait]
impl PoolerWrite for Pooler {
    async fn pause(&self, _limit: Duration) -> PortResult<()> {
        self.change(|p| p.paused = true)
    }
    async fn resume(&self) -> PortResult<()> {
        self.change(|p| p.paused = false)
    }
    async fn point(&self, host: &str, port: u16) -> PortResult<()> {
        self.change(|p| (p.host, p.port) = (host.to_owned(), port))
    }
}
