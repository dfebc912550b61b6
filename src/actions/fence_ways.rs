//! The ways to fence a PostgreSQL server of one's own, each closed, looked at from outside, and opened again. Which of
//! them count alone is [`super::proof`]'s to say; what is lost is nothing that was acknowledged, and what is put back is
//! exactly what stood.

use super::{contract::*, fence_hba as hba, fence_rds as rds, own_server::*, patroni, proof::ProofKind, shared::*};
use crate::model::{
    effect::{Failure, Seen},
    estate::Network,
    ids::*,
};
use crate::providers::port::*;
use std::time::Duration;

/// How long a server may take to end its sessions and write its last checkpoint, before it is stopped at once.
const PATIENCE: Duration = Duration::from_secs(20);
const UNPLANNED_PATIENCE: Duration = Duration::from_secs(5);
/// A client that does not end its transaction.
const PAUSE: Duration = Duration::from_secs(10);
const COMMAND: Duration = Duration::from_secs(60);
/// Anybody may resume a pooler.
pub(crate) const PAUSE_COUNTS: Duration = Duration::from_mins(5);

/// What is fenced.
#[derive(Clone, Copy)]
pub(crate) struct Fenced<'a> {
    pub database: &'a DatabaseName,
    pub region: &'a RegionName,
    pub planned: bool,
}

/// What a look at one closed way gave.
pub(crate) struct Closed {
    pub lsn: Option<Lsn>,
    pub detail: String,
    /// When it opens by itself.
    pub expires: Option<jiff::Timestamp>,
}

pub(crate) fn closed(lsn: Option<Lsn>, detail: impl Into<String>) -> PortResult<Seen<Closed>> {
    Ok(Seen::Done(Closed { lsn, detail: detail.into(), expires: None }))
}

/// Does the estate have what this way needs?
pub(crate) fn possible(cx: &ReadCx, fenced: Fenced<'_>, kind: ProofKind) -> Result<(), Refusal> {
    let (name, region) = (fenced.database, fenced.region);
    match kind {
        ProofKind::ServerStopped => needs_machine(cx, name, region, "it cannot be stopped"),
        ProofKind::HbaClosed => needs_machine(cx, name, region, "its pg_hba.conf cannot be changed"),
        ProofKind::PatroniDemoted => patroni::follows(cx, fenced).map(drop),
        ProofKind::PoolerPaused if database(cx, name)?.poolers.is_empty() => {
            Err(Refusal::no("no_pooler", format!("database `{name}` has no poolers in the estate")))
        }
        ProofKind::NetworkCut if instance(cx, name, region)?.network.is_none() => {
            Err(Refusal::no("no_network", format!("the estate does not say how `{name}` in `{region}` is cut off from its network"))
                .remedy(format!("write databases.{name}.instances.{region}.network")))
        }
        ProofKind::LeaseExpired | ProofKind::ReadOnly if database(cx, name)?.lease.is_none() => {
            let message =
                format!("`{}` is no fence for `{name}`: it has no write lease, and a session may make itself writable", kind.word());
            Err(Refusal::no("no_lease", message).remedy("use `server_stopped`, `access_revoked` or `hba_closed`"))
        }
        kind if kind.of_rds() => rds::possible(cx, fenced, kind),
        _ => Ok(()),
    }
}

/// The roles that are to be kept out: all that can log in, but Muster's own and replication's, and those that an earlier
/// fence keeps out already.
pub(crate) async fn roles(cx: &ReadCx, fenced: Fenced<'_>) -> Result<Vec<String>, Refusal> {
    let cluster = cx.world.cluster(fenced.database.as_str(), fenced.region.as_str())?;
    let mut roles: Vec<String> = cluster.logins(&replicators(cx, fenced)?).await?.into_iter().map(|r| r.name).collect();
    roles.extend(cluster.revoked().await?);
    roles.sort();
    roles.dedup();
    Ok(roles)
}

/// How long a server is given to say what a role may.
const RIGHTS: Duration = Duration::from_secs(5);

/// Whoever may not make the database read-only and end its sessions must not take the lease or change the groups first, and
/// stop half-way. A server that cannot be asked says nothing of it.
pub(crate) async fn may_close(cx: &ReadCx, fenced: Fenced<'_>, by: &[ProofKind]) -> Result<(), Refusal> {
    if !by.iter().any(|kind| matches!(kind, ProofKind::ReadOnly | ProofKind::AccessRevoked | ProofKind::SecurityGroupClosed)) {
        return Ok(());
    }
    let (name, region) = (fenced.database, fenced.region);
    let sql = cx.world.sql(name.as_str(), region.as_str())?;
    let lacks = within(cx, RIGHTS, async { sql.lacks_to_close().await }).await.unwrap_or_default();
    if lacks.is_empty() {
        return Ok(());
    }
    let user = &database(cx, name)?.user;
    let message = format!("user `{user}` could not close `{name}` in `{region}`: it {}", lacks.join(", "));
    Err(Refusal::no("lacks_rights", message)
        .remedy(format!("ALTER DATABASE … OWNER TO \"{user}\"; GRANT pg_monitor, pg_signal_backend TO \"{user}\" (docs/aws.md)")))
}

fn replicators(cx: &ReadCx, fenced: Fenced<'_>) -> Result<Vec<String>, Refusal> {
    Ok(database(cx, fenced.database)?.replication.iter().map(|login| login.user.clone()).collect())
}

fn network<'a>(cx: &'a ReadCx, fenced: Fenced<'_>) -> Result<&'a Network, Refusal> {
    let found = instance(cx, fenced.database, fenced.region)?.network.as_ref();
    found.ok_or_else(|| Refusal::no("no_network", "the estate does not say how the server is cut off"))
}

async fn command(cx: &ReadCx, argv: &[String]) -> PortResult<ProcessEnd> {
    let spec = ProcessSpec { argv: argv.to_vec(), output_limit: 2_000, ..ProcessSpec::default() };
    cx.world.processes().run(&spec, COMMAND.min(cx.deadline)).await
}

/// From here on a failure leaves something done.
pub(crate) fn half(error: PortError) -> ApplyError {
    ApplyError::Unknown(failure(&error))
}

pub(crate) async fn close(cx: &WriteCx, fenced: Fenced<'_>, kind: ProofKind, roles: &[String]) -> Result<(), ApplyError> {
    let (name, region) = (fenced.database.as_str(), fenced.region.as_str());
    match kind {
        // The lease is taken by `database.fence` itself, before anything else.
        ProofKind::LeaseExpired => Ok(()),
        ProofKind::ReadOnly => cx.world()?.sql_mut(name, region)?.make_read_only().await.map_err(half),
        ProofKind::ServerStopped => {
            let machine = cx.world()?.machine_mut(name, region)?;
            // Before it stops: what starts it again, a person or what watches it, then gets a standby of nobody.
            make_standby(&*machine, None).await?;
            if fenced.planned {
                // It shortens the stop, and is not needed for it.
                let _ = cx.world()?.cluster_mut(name, region)?.checkpoint().await;
            }
            let patience = if fenced.planned { PATIENCE } else { UNPLANNED_PATIENCE };
            stop(cx, &*machine, patience).await.map(drop).map_err(half)
        }
        ProofKind::AccessRevoked => {
            let cluster = cx.world()?.cluster_mut(name, region)?;
            cluster.let_log_in(roles, false).await?;
            cx.world()?.sql_mut(name, region)?.make_read_only().await.map_err(half)?;
            cluster.end_writers().await.map_err(half)
        }
        ProofKind::HbaClosed => hba::close(cx, fenced).await,
        ProofKind::PoolerPaused => {
            for pooler in cx.world()?.poolers_mut(name)? {
                pooler.pause(PAUSE).await.map_err(half)?;
            }
            Ok(())
        }
        ProofKind::PatroniDemoted => patroni::close(cx, fenced).await,
        ProofKind::SecurityGroupClosed | ProofKind::InstanceStopped | ProofKind::CredentialsRotated => rds::close(cx, fenced, kind).await,
        ProofKind::NetworkCut => {
            cx.world()?;
            let end = command(cx, &network(cx, fenced).map_err(definite)?.cut).await?;
            if end.code == Some(0) {
                return Ok(());
            }
            Err(ApplyError::Unknown(Failure::new(
                "cut_failed",
                format!("the command that cuts the network ended with {:?}: {}", end.code, end.output.trim()),
            )))
        }
    }
}

/// Is it closed, as seen from outside at this moment?
pub(crate) async fn verify(cx: &ReadCx, fenced: Fenced<'_>, kind: ProofKind) -> Seen<Closed> {
    match kind {
        ProofKind::LeaseExpired | ProofKind::ReadOnly => Seen::Absent,
        ProofKind::ServerStopped => seen(stopped(cx, fenced)).await,
        ProofKind::AccessRevoked => seen(revoked(cx, fenced)).await,
        ProofKind::HbaClosed => seen(hba::verify(cx, fenced)).await,
        ProofKind::PoolerPaused => seen(paused(cx, fenced)).await,
        ProofKind::NetworkCut => seen(cut(cx, fenced)).await,
        ProofKind::PatroniDemoted => seen(patroni::demoted(cx, fenced)).await,
        ProofKind::SecurityGroupClosed | ProofKind::InstanceStopped | ProofKind::CredentialsRotated => {
            seen(rds::verify(cx, fenced, kind)).await
        }
    }
}

async fn stopped(cx: &ReadCx, fenced: Fenced<'_>) -> PortResult<Seen<Closed>> {
    let machine = cx.world.machine(fenced.database.as_str(), fenced.region.as_str())?;
    let state = machine.look().await?;
    if !state.dead() || !state.standby_signal {
        return Ok(Seen::Absent);
    }
    if machine.listens().await? {
        return Ok(Seen::Differs { found: "no process of the server lives, and yet something listens at its address".into() });
    }
    // The standby must have replayed beyond the beginning of the last record there is.
    let lsn = (fenced.planned && state.state.starts_with("shut down")).then_some(Lsn(state.checkpoint.0 + 1));
    if fenced.planned && lsn.is_none() {
        return Ok(Seen::Differs {
            found: format!("the server did not stop in order (`{}`): where its log ends is not known", state.state),
        });
    }
    closed(lsn, format!("server {}: no process, no memory held, nothing listens; it starts as a standby only", state.state))
}

async fn revoked(cx: &ReadCx, fenced: Fenced<'_>) -> PortResult<Seen<Closed>> {
    let (name, region) = (fenced.database.as_str(), fenced.region.as_str());
    let cluster = cx.world.cluster(name, region)?;
    let but = replicators(cx, fenced).map_err(|r| PortError::Config(r.failure.message))?;
    let left = cluster.logins(&but).await?;
    if !left.is_empty() {
        return Ok(Seen::Absent);
    }
    let kept_out = cluster.revoked().await?;
    if let Some(role) = kept_out.first()
        && cluster.refusal(role).await?.is_none()
    {
        return Ok(Seen::Differs { found: format!("`{role}` may not log in, and yet it was let in") });
    }
    let writers = cluster.writers().await?;
    if !writers.is_empty() {
        return Ok(Seen::Pending { poll_after_ms: 50, note: format!("still there: {}", writers.join(", ")) });
    }
    // Sessions first: the position must be one that nobody can add an acknowledged write to.
    let state = cx.world.sql(name, region)?.state().await?;
    if !state.read_only {
        return Ok(Seen::Absent);
    }
    closed(Some(state.position), format!("{} roles may not log in, no session is left, read-only at {}", kept_out.len(), state.position))
}

async fn paused(cx: &ReadCx, fenced: Fenced<'_>) -> PortResult<Seen<Closed>> {
    let poolers = cx.world.poolers(fenced.database.as_str())?;
    for pooler in &poolers {
        if !pooler.state().await?.paused {
            return Ok(Seen::Absent);
        }
    }
    closed(None, format!("{} poolers hold their clients", poolers.len()))
}

async fn cut(cx: &ReadCx, fenced: Fenced<'_>) -> PortResult<Seen<Closed>> {
    let network = network(cx, fenced).map_err(|r| PortError::Config(r.failure.message))?;
    let end = command(cx, &network.verify).await?;
    if end.code == Some(0) { closed(None, "the network is cut, as the estate's command sees it") } else { Ok(Seen::Absent) }
}

/// Puts back what stood.
pub(crate) async fn open(cx: &WriteCx, fenced: Fenced<'_>, kind: ProofKind, roles: &[String], groups: &[String]) -> Result<(), ApplyError> {
    let (name, region) = (fenced.database.as_str(), fenced.region.as_str());
    match kind {
        ProofKind::LeaseExpired => Ok(()),
        ProofKind::ReadOnly => Ok(cx.world()?.sql_mut(name, region)?.make_writable().await?),
        ProofKind::ServerStopped => start_as_primary(cx, fenced.database, fenced.region).await,
        ProofKind::AccessRevoked => {
            cx.world()?.cluster_mut(name, region)?.let_log_in(roles, true).await?;
            Ok(cx.world()?.sql_mut(name, region)?.make_writable().await?)
        }
        ProofKind::HbaClosed => hba::open(cx, fenced).await,
        ProofKind::PoolerPaused => {
            for pooler in cx.world()?.poolers_mut(name)? {
                pooler.resume().await?;
            }
            Ok(())
        }
        ProofKind::PatroniDemoted => patroni::open(cx, fenced).await,
        ProofKind::SecurityGroupClosed | ProofKind::InstanceStopped | ProofKind::CredentialsRotated => {
            rds::open(cx, fenced, kind, groups).await
        }
        ProofKind::NetworkCut => {
            cx.world()?;
            let open = &network(cx, fenced).map_err(definite)?.open;
            let end = command(cx, open).await?;
            if end.code == Some(0) { Ok(()) } else { Err(fail("open_failed", format!("the network is still cut: {}", end.output.trim()))) }
        }
    }
}

/// Lets a server that was to come back as a standby be a primary again. Only where no other was promoted.
pub(crate) async fn start_as_primary(cx: &WriteCx, name: &DatabaseName, region: &RegionName) -> Result<(), ApplyError> {
    let machine = cx.world()?.machine_mut(name.as_str(), region.as_str())?;
    let state = machine.look().await?;
    if !state.standby_signal && !state.dead() && state_of(cx, name, region).await.is_ok_and(|s| !s.in_recovery) {
        return Ok(());
    }
    if !state.dead() && !state_of(cx, name, region).await.is_ok_and(|s| !s.in_recovery) {
        // Somebody started it meanwhile: it is a standby of nobody.
        stop(cx, &*machine, PATIENCE).await?;
    }
    machine.remove(STANDBY).await?;
    if machine.look().await?.dead() {
        machine.start().await?;
    }
    let clock = cx.world.clock();
    let until = clock.monotonic() + Duration::from_secs(60).min(cx.deadline);
    loop {
        match state_of(cx, name, region).await {
            Ok(state) if !state.in_recovery => return Ok(()),
            other if clock.monotonic() >= until => {
                let why = other.err().map_or_else(|| "it is in recovery".to_owned(), |e| e.to_string());
                return Err(ApplyError::Unknown(Failure::new("not_back", format!("`{name}` in `{region}` is not back: {why}"))));
            }
            _ => clock.sleep(Duration::from_millis(20)).await,
        }
    }
}
