//! `database.restore`: bring a PostgreSQL cluster back from its base backup and its log into a folder of this machine, and,
//! if asked, start a server of Muster's own on it.
//!
//! **What it does.** The base backup, the point and the folder are chosen beforehand. All the log that it takes is checked to
//! be there, and is brought along, so the server needs the repository no more. A folder that would be damaged is refused.
//! The server that `start` starts listens on loopback on a port that the system picked, archives nothing and streams from
//! nowhere; without it the folder is ready for a server of the operator's.
//!
//! **Half-done** it leaves a folder that is marked, on which no server starts; the same intent again goes on from there, also with
//! the count of what was lost. That it happened is seen from the folder, and from the server that answers on it. **Undone**, the
//! server is ended and the folder removed, if it was not there before.

use super::{
    contract::*,
    loss::{self, Asked, Loss},
    loss_log::{self, Back},
    recovered::*,
    shared::*,
    vault::*,
};
use crate::model::{effect::*, estate::Estate, ids::*, node::Node, runbook::UndoPolicy, time::Span};
use crate::providers::{
    port::Lsn,
    servers::{Running, ServerSpec, Servers},
};
use crate::repository::{
    names::Id,
    recovery::{self, Standing, Until},
};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf};

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub repository: RepositoryName,
    /// `latest`, or the beginning of an identifier: a base backup.
    #[serde(default = "latest")]
    pub snapshot: String,
    /// Only base backups of this source, as `muster backup list` shows it.
    #[serde(default)]
    pub source: Option<String>,
    /// `latest`, `immediate`, a time with its zone, a log position, or a transaction's number.
    #[serde(default)]
    pub until: Option<String>,
    /// The folder, which is empty or not there; one of the run's own when left out.
    #[serde(default)]
    pub to: Option<PathBuf>,
    /// Start a server on it, and see that it answers.
    #[serde(default = "yes")]
    pub start: bool,
    /// The role that asks: the one that the cluster was made with.
    #[serde(default = "postgres")]
    pub role: String,
    /// The folder of PostgreSQL's programs; looked for when left out.
    #[serde(default)]
    pub programs: Option<PathBuf>,
    /// Settings of the server, beyond those that make it harmless.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// The database that the backup is of: its primary is asked beforehand for its newest commit, and what the recovery lacks of
    /// that is told as `loss`, if `start` is true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<DatabaseName>,
}

fn yes() -> bool {
    true
}
fn postgres() -> String {
    "postgres".to_owned()
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    repository: RepositoryName,
    snapshot: Id,
    base_time: Timestamp,
    version: u32,
    until: Until,
    to: PathBuf,
    run: PathBuf,
    start: bool,
    role: String,
    programs: Option<PathBuf>,
    settings: BTreeMap<String, String>,
    /// Whose primary was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    database: Option<DatabaseName>,
    /// How the primary and the repository's log stood before anything was restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    asked: Option<Asked>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Output {
    /// The snapshot's identifier.
    pub snapshot: String,
    /// Where it was restored to.
    pub to: PathBuf,
    /// When the newest transaction was committed that came back; without any, or without a server, when the base backup was made.
    #[schemars(with = "String")]
    pub recovered_point: Timestamp,
    /// The last of the log that was replayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub position: Option<Lsn>,
    /// The timeline that the server is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<u32>,
    /// Where the server listens, on 127.0.0.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The folder of its socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// When the files and the log were back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub restored_at: Option<Timestamp>,
    /// When the server answered its first query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub verified_at: Option<Timestamp>,
    /// What the primary had at the moment of loss and the recovery lacks; absent where no `database` is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<Loss>,
}

pub struct Restore;

impl Action for Restore {
    type Input = Input;
    type Intent = Intent;
    type Output = Output;

    fn spec() -> Spec {
        Spec {
            name: "database.restore",
            version: 2,
            summary: "Recover a database from its backup to an instant, and start a server on it",
            effect: Effect::Repeatable,
            danger: Danger::None,
            undo: UndoPolicy::Manual,
            timeout: Span::from_secs(12 * 3600),
            example: "id: restore\nuses: database.restore\nwith: { repository: vault, until: latest, to: /srv/restored }\n",
        }
    }
    fn aside(with: &Node) -> bool {
        with.get("to").is_none()
    }
    fn measured() -> &'static [&'static str] {
        // Not which database, nor the timeline that the recovery follows: another one is another history.
        &["asked.lost_at", "asked.region", "asked.log_end", "asked.primary", "asked.why"]
    }
    fn reach(with: &Node, estate: &Estate) -> Vec<Reach> {
        [reach_vault(with, "repository", estate), vec![reach_here()]].concat()
    }
    fn locks(with: &Node) -> Vec<Resource> {
        // Two restores into one folder would mix.
        let folder = text(with, "to").map(|to| Resource(format!("folder/{to}")));
        folder.or_else(|| text(with, "repository").map(|name| Resource(format!("database-restore/{name}")))).into_iter().collect()
    }

    async fn prepare(cx: &ReadCx, input: Input) -> Result<Prepared<Intent>, Refusal> {
        let until = until(input.until.as_deref())?;
        let repository = open(cx, &input.repository).await?;
        let (id, snapshot, cluster) = choose_base(&repository, &input.snapshot, input.source.as_deref()).await?;
        let planned = recovery::plan(&repository, &cluster, until, None).await?;
        let to = match &input.to {
            Some(to) => std::path::absolute(to).map_err(|e| Refusal::no("input", format!("`to: {}`: {e}", to.display())))?,
            None => scratch_folder(cx, None),
        };
        let from = match recovery::standing(&to, &id)? {
            Standing::Empty => None,
            Standing::Begun => Some("a part of it, from an earlier try".to_owned()),
            Standing::Cluster(system) => {
                let message = format!("{} is the data directory of cluster {system} already", to.display());
                return Err(Refusal::no("occupied", message)
                    .remedy("restore into another folder; `muster backup restore --in-place` turns one back, after asking what must not be lost"));
            }
        };
        let change = change(to.display().to_string(), from, Some(shown(&id, &snapshot)));
        let mut notes = vec![format!("{} segments of log, up to {}", planned.reach.needed.len(), planned.reach.end)];
        let Input { repository, start, role, programs, settings, database, .. } = input;
        let database = database.filter(|_| start);
        let asked = match &database {
            Some(name) => Some(loss::ask(cx, name, &cluster.system, &planned.reach).await?),
            None => None,
        };
        notes.extend(asked.iter().map(Asked::note));
        let intent = Intent {
            repository,
            snapshot: id,
            base_time: snapshot.time,
            version: cluster.version,
            until,
            to,
            run: run_folder(cx),
            start,
            role,
            programs,
            settings,
            database,
            asked,
        };
        Ok(Prepared { intent, change: vec![change], notes })
    }

    async fn apply(cx: &WriteCx, intent: &Intent) -> Result<Output, ApplyError> {
        cx.world()?;
        let (clock, servers) = (cx.read.world.clock(), cx.read.world.servers());
        let repository = open(&cx.read, &intent.repository).await.map_err(definite)?;
        let (id, snapshot, cluster) = choose_base(&repository, &intent.snapshot.to_string(), None).await.map_err(definite)?;
        let stuck = |stuck: Stuck| match stuck {
            Stuck::Other(error) => error,
            Stuck::Backup(why) => ApplyError::Definite(
                Failure::new("not_restored", why).remedy("`muster wal status` and `muster backup verify --read-data` name what is missing or damaged"),
            ),
        };
        // A server of an earlier try would see its files change under it.
        servers.stop(&intent.to).await?;
        let wrong = |e: std::io::Error| fail("scratch", format!("{}: {e}", intent.run.display()));
        let mut restored_at = None;
        if !is_done(intent) {
            // What an earlier try said of itself is not said of this one.
            told_anew(intent).map_err(wrong)?;
            let asked = intent.asked.as_ref();
            let mut planned = recovery::plan(&repository, &cluster, intent.until, asked.map(|asked| asked.timeline)).await?;
            if let Some(asked) = asked {
                planned = asked.keep(planned, cluster.segment_size);
            }
            cx.world()?;
            bring(&repository, (&id, &snapshot, &cluster), &planned, &*servers, &intent.to).await.map_err(stuck)?;
            restored_at = Some(clock.now());
        }
        let mut output = output(intent);
        output.restored_at = restored_at;
        if intent.start {
            cx.world()?;
            let recovers = recovery::is_to_come(&intent.to);
            let (running, now) = answer(&*servers, &spec(intent)).await.map_err(stuck)?;
            keep(intent, &running, recovers.then_some(&now)).map_err(wrong)?;
            let came = how_far(intent);
            answered(&mut output, &running, came.as_ref().unwrap_or(&now));
            output.verified_at = Some(clock.now());
            output.loss = lost(&cx.read, intent, &*servers, (came, now), cluster.segment_size).await.map_err(wrong)?;
        }
        Ok(output)
    }

    async fn observe(cx: &ReadCx, intent: &Intent) -> Seen<Output> {
        if !is_done(intent) {
            return Seen::Absent;
        }
        let mut output = output(intent);
        if intent.start {
            let Some(running) = kept(intent) else { return Seen::Absent };
            match came(&*cx.world.servers(), &running).await {
                Ok(now) => answered(&mut output, &running, how_far(intent).as_ref().unwrap_or(&now)),
                // It does not answer: the same again starts it.
                Err(_) => return Seen::Absent,
            }
            output.verified_at = Some(cx.world.clock().now());
            output.loss = counted(intent);
            if intent.asked.is_some() && output.loss.is_none() {
                // Cut off while it was counted: the same again counts it.
                return Seen::Absent;
            }
        }
        Seen::Done(output)
    }

    async fn undo(cx: &WriteCx, intent: &Intent, _output: Option<Output>) -> Result<(), ApplyError> {
        cx.world()?;
        cx.read.world.servers().stop(&intent.to).await?;
        for folder in [&intent.to, &intent.run] {
            match std::fs::remove_dir_all(folder) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(fail("folder", format!("{}: {e}", folder.display()))),
                _ => {}
            }
        }
        Ok(())
    }
}

/// All of it is there, with the settings, which come last; or a server has begun to recover on it.
fn is_done(intent: &Intent) -> bool {
    intent.to.join("PG_VERSION").is_file() && !intent.to.join(crate::repository::restore::MARKER).exists()
}

fn spec(intent: &Intent) -> ServerSpec {
    ServerSpec {
        data: intent.to.clone(),
        version: intent.version,
        programs: intent.programs.clone(),
        run: intent.run.clone(),
        role: intent.role.clone(),
        settings: intent.settings.clone().into_iter().collect(),
    }
}

/// Where the server listens stands beside its socket, for who looks afterwards; and how far it came, which it tells only until it
/// is started once more.
fn keep(intent: &Intent, running: &Running, came: Option<&Came>) -> std::io::Result<()> {
    std::fs::create_dir_all(&intent.run)?;
    if let Some(came) = came {
        put(intent, CAME, came)?;
    }
    std::fs::write(intent.run.join("port"), running.port.to_string())
}

const CAME: &str = "came.json";
/// What was counted is not counted again, when the primary may have gone on.
const LOSS: &str = "loss.json";

/// Whole, or not at all.
fn put(intent: &Intent, name: &str, what: &impl Serialize) -> std::io::Result<()> {
    let half = intent.run.join(format!("{name}.new"));
    std::fs::write(&half, serde_json::to_vec(what)?)?;
    std::fs::rename(half, intent.run.join(name))
}

fn read<T: serde::de::DeserializeOwned>(intent: &Intent, name: &str) -> Option<T> {
    std::fs::read(intent.run.join(name)).ok().and_then(|text| serde_json::from_slice(&text).ok())
}

fn told_anew(intent: &Intent) -> std::io::Result<()> {
    for name in [CAME, LOSS, "port"] {
        match std::fs::remove_file(intent.run.join(name)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

fn counted(intent: &Intent) -> Option<Loss> {
    read(intent, LOSS)
}

/// How far the recovery came, as the server said that had just recovered.
fn how_far(intent: &Intent) -> Option<Came> {
    read(intent, CAME)
}

/// From how far it came, if that is known; else from how it is now, and then nothing is counted.
async fn lost(
    cx: &ReadCx,
    intent: &Intent,
    servers: &dyn Servers,
    (came, now): (Option<Came>, Came),
    segment_size: u32,
) -> std::io::Result<Option<Loss>> {
    let Some(asked) = &intent.asked else { return Ok(None) };
    // Of a count that was cut off.
    loss_log::tidy(&intent.to)?;
    if let Some(loss) = counted(intent) {
        return Ok(Some(loss));
    }
    let spec = spec(intent);
    let lacks = match &came {
        Some(came) => loss_log::lacks(cx, asked, &Back { servers, spec: &spec, came, segment_size }).await,
        // Started once more, it says how far it is, and not how far it had come.
        None => Err("an earlier try recovered it, and was cut off before it was told how far".to_owned()),
    };
    let loss = asked.loss(came.as_ref().unwrap_or(&now), intent.base_time, lacks);
    put(intent, LOSS, &loss)?;
    Ok(Some(loss))
}

fn kept(intent: &Intent) -> Option<Running> {
    let port = std::fs::read_to_string(intent.run.join("port")).ok()?.trim().parse().ok()?;
    Some(Running { port, run: intent.run.clone(), role: intent.role.clone() })
}

fn answered(output: &mut Output, running: &Running, came: &Came) {
    output.recovered_point = came.last_commit.unwrap_or(output.recovered_point);
    (output.position, output.timeline) = (Some(came.position), Some(came.timeline));
    (output.port, output.socket) = (Some(running.port), Some(running.run.clone()));
}

fn output(intent: &Intent) -> Output {
    Output {
        snapshot: intent.snapshot.to_string(),
        to: intent.to.clone(),
        recovered_point: intent.base_time,
        position: None,
        timeline: None,
        port: None,
        socket: None,
        restored_at: None,
        verified_at: None,
        loss: None,
    }
}

#[cfg(test)]
pub fn fixture() -> super::contract_tests::Fixture {
    super::cluster_fixture::with_cluster(serde_json::json!({ "repository": "vault" })).local()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actions::{cluster_fixture::{with_cluster, with_own_cluster}, contract_tests::Bench};
    use serde_json::json;

    #[tokio::test]
    async fn it_comes_back_and_answers() {
        let bench = Bench::new(&fixture());
        let intent = bench.intent::<Restore>().await;
        let out = Restore::apply(&bench.write, &intent).await.expect("restored");
        let seen = Restore::observe(&bench.read, &intent).await;
        assert!(matches!(&seen, Seen::Done(seen) if seen.port == out.port), "{seen:?}");
        assert_eq!((out.position, out.timeline, out.port), (Some("0/300148".parse().unwrap()), Some(2), Some(5432)), "{out:?}");
        assert!(out.to.join("pg_wal/000000010000000000000003").is_file() && !recovery::is_to_come(&out.to));
        assert_eq!(bench.refused::<Restore>().await, "occupied", "another run does not touch it");
        Restore::undo(&bench.write, &intent, None).await.expect("undone");
        assert!(!out.to.exists());
    }

    #[tokio::test]
    async fn what_cannot_come_back_or_would_be_damaged_is_refused() {
        let bench = Bench::new(&fixture());
        bench.world.lock().objects.retain(|(_, _, key), _| !key.ends_with("000000010000000000000003"));
        assert_eq!(bench.refused::<Restore>().await, "refused");
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("letter"), "dear").unwrap();
        let bench = Bench::new(&with_cluster(json!({ "repository": "vault", "to": dir.path() })));
        assert_eq!(bench.refused::<Restore>().await, "file");
    }

    /// A restore of `orders`, whose primary has its log up to here.
    fn with_primary(position: &str) -> Bench {
        let bench = Bench::new(&with_own_cluster(json!({ "repository": "vault", "database": "orders" })).local());
        let at = position.parse().unwrap();
        for server in bench.world.lock().servers.values_mut().filter(|server| !server.state.in_recovery) {
            server.state.position = at;
        }
        bench
    }

    #[tokio::test]
    async fn a_count_that_was_cut_off_is_made_by_the_next_try_and_nothing_of_it_stays() {
        let bench = with_primary("0/300248");
        let intent = bench.intent::<Restore>().await;
        let first = Restore::apply(&bench.write, &intent).await.expect("restored");
        let loss = first.loss.expect("a loss");
        assert_eq!((loss.lost_bytes, loss.upper_bound), (Some(0x100), false), "{loss:?}");
        // What a process leaves that was killed in the middle of it.
        std::fs::remove_file(intent.run.join(LOSS)).unwrap();
        let fetched = intent.to.join("muster.lost");
        std::fs::create_dir(&fetched).unwrap();
        std::fs::write(fetched.join("000000010000000000000003"), "a part").unwrap();
        assert!(matches!(Restore::observe(&bench.read, &intent).await, Seen::Absent), "it is not done before the loss is told");
        let again = Restore::apply(&bench.write, &intent).await.expect("restored");
        assert_eq!(again.loss.as_ref(), Some(&loss));
        // The server was started once more, and what it says then is not how far it had come.
        assert_eq!((again.position, again.recovered_point), (first.position, first.recovered_point));
        assert!(!fetched.exists());
        let seen = Restore::observe(&bench.read, &intent).await;
        assert!(matches!(&seen, Seen::Done(seen) if seen.loss.as_ref() == Some(&loss) && seen.position == first.position), "{seen:?}");
    }

    #[tokio::test]
    async fn how_far_an_earlier_try_came_that_did_not_say_it_is_not_known_and_said_so() {
        let bench = with_primary("0/300248");
        let intent = bench.intent::<Restore>().await;
        Restore::apply(&bench.write, &intent).await.expect("restored");
        // Killed before it had asked: the server has recovered, and nothing is told of it.
        std::fs::remove_dir_all(&intent.run).unwrap();
        let loss = Restore::apply(&bench.write, &intent).await.expect("restored").loss.expect("a loss");
        assert!(loss.upper_bound && loss.lost_bytes.is_none() && loss.lost_commits.is_none(), "{loss:?}");
        assert!(loss.why.as_deref().is_some_and(|why| why.contains("an earlier try recovered it")), "{loss:?}");
        assert_eq!(u128::from(loss.lost_ms), loss.lost_at.duration_since(intent.base_time).as_nanos().unsigned_abs().div_ceil(1_000_000));
    }

    #[tokio::test]
    async fn what_was_said_of_another_restore_is_not_said_of_this_one() {
        let bench = with_primary("0/300248");
        let intent = bench.intent::<Restore>().await;
        let other = Restore::apply(&bench.write, &intent).await.expect("restored").loss.expect("a loss");
        std::fs::remove_dir_all(&intent.to).unwrap();
        put(&intent, LOSS, &Loss { lost_bytes: Some(7), ..other.clone() }).unwrap();
        assert_eq!(Restore::apply(&bench.write, &intent).await.expect("restored").loss, Some(other));
    }
}
