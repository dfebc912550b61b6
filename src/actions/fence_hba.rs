//! Fencing by `pg_hba.conf`: it lets in Muster and replication alone. What stood there is kept beside the data, never in
//! the journal (its rules may hold passwords of directories), and is put back as it was, byte for byte.

use super::{
    contract::*,
    fence_ways::{Closed, Fenced},
    shared::*,
};
use crate::model::{effect::Seen, estate::Database};
use crate::providers::port::*;
use std::time::Duration;

/// In the data directory.
const KEPT: &str = "pg_hba.conf.muster-open";
const HEAD: &str = "# Closed by a fence of Muster's. What stood here is kept as pg_hba.conf.muster-open in the data directory.";
const SETTLE: Duration = Duration::from_secs(10);

fn name(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// Where a role has no password it is let in without one only if the file did so before. (`md5` is SCRAM for whoever
/// has a password kept that way.)
fn rules(database: &Database, trusting: bool) -> Result<String, String> {
    let method = |user: &str, password: bool| match (password, trusting) {
        (true, _) => Ok("md5"),
        (false, true) => Ok("trust"),
        (false, false) => {
            Err(format!("the estate has no password for `{user}`, and nobody is let in without one: it would lock Muster out"))
        }
    };
    let own = method(&database.user, database.password.is_some())?;
    let mut lines = vec![HEAD.to_owned()];
    for kind in ["local", "host"] {
        let place = if kind == "host" { " all" } else { "" };
        lines.push(format!("{kind} all {}{place} {own}", name(&database.user)));
        let (user, password) = match &database.replication {
            Some(login) => (&login.user, login.password.is_some()),
            None => (&database.user, database.password.is_some()),
        };
        lines.push(format!("{kind} replication {}{place} {}", name(user), method(user, password)?));
        lines.push(format!("{kind} all all{place} reject"));
    }
    Ok(lines.join("\n") + "\n")
}

pub(super) async fn close(cx: &WriteCx, fenced: Fenced<'_>) -> Result<(), ApplyError> {
    let (database_name, region) = (fenced.database.as_str(), fenced.region.as_str());
    let cluster = cx.world()?.cluster_mut(database_name, region)?;
    let machine = cx.world()?.machine_mut(database_name, region)?;
    let hba = cluster.hba().await?;
    let text = machine.read(&hba.file).await?.unwrap_or_default();
    if !text.starts_with(HEAD) {
        let trusting = hba.rules.iter().any(|rule| rule.ends_with(" trust"));
        let new = rules(database(cx, fenced.database).map_err(definite)?, trusting).map_err(|why| fail("hba", why))?;
        machine.write(KEPT, &text.into()).await?;
        machine.write(&hba.file, &new.into()).await.map_err(|e| ApplyError::Unknown(failure(&e)))?;
    }
    let half = |e: PortError| ApplyError::Unknown(failure(&e));
    cluster.reload().await.map_err(half)?;
    until_refused(cx, &*cluster, fenced).await.map_err(half)?;
    cluster.end_writers().await.map_err(half)
}

/// A role that is not Muster's, to knock with; none where there is no other.
async fn stranger(cx: &ReadCx, cluster: &dyn ClusterRead, fenced: Fenced<'_>) -> PortResult<Option<String>> {
    let own = database(cx, fenced.database).map_err(|r| PortError::Config(r.failure.message))?;
    let but: Vec<String> = own.replication.iter().map(|login| login.user.clone()).collect();
    Ok(cluster.logins(&but).await?.into_iter().next().map(|role| role.name))
}

/// A reload takes effect a moment after it was asked for.
async fn until_refused(cx: &ReadCx, cluster: &dyn ClusterRead, fenced: Fenced<'_>) -> PortResult<()> {
    let Some(role) = stranger(cx, cluster, fenced).await? else { return Ok(()) };
    let clock = cx.world.clock();
    let until = clock.monotonic() + SETTLE;
    loop {
        // 28000: turned away at the door. 28P01 would be a wrong password: let to the door at least.
        match cluster.refusal(&role).await? {
            Some(why) if why.contains("28000") => return Ok(()),
            _ if clock.monotonic() >= until => {
                return Err(PortError::Unknown(format!("pg_hba.conf is closed, and `{role}` is still let to the door")));
            }
            _ => clock.sleep(Duration::from_millis(20)).await,
        }
    }
}

pub(super) async fn verify(cx: &ReadCx, fenced: Fenced<'_>) -> PortResult<Seen<Closed>> {
    let (database_name, region) = (fenced.database.as_str(), fenced.region.as_str());
    let cluster = cx.world.cluster(database_name, region)?;
    let hba = cluster.hba().await?;
    let text = cx.world.machine(database_name, region)?.read(&hba.file).await?.unwrap_or_default();
    let own = database(cx, fenced.database).map_err(|r| PortError::Config(r.failure.message))?;
    let ours = [false, true].iter().any(|trusting| rules(own, *trusting).is_ok_and(|want| want == text));
    if !ours {
        return Ok(Seen::Absent);
    }
    if !hba.errors.is_empty() {
        return Ok(Seen::Differs {
            found: format!("the closed pg_hba.conf has lines that the server cannot read: {}", hba.errors.join("; ")),
        });
    }
    if let Some(role) = stranger(cx, &*cluster, fenced).await?
        && !cluster.refusal(&role).await?.is_some_and(|why| why.contains("28000"))
    {
        return Ok(Seen::Absent);
    }
    let writers = cluster.writers().await?;
    if !writers.is_empty() {
        return Ok(Seen::Pending { poll_after_ms: 50, note: format!("still there: {}", writers.join(", ")) });
    }
    let state = cx.world.sql(database_name, region)?.state().await?;
    let detail =
        format!("pg_hba.conf lets in Muster and replication alone, a connection was refused, no session is left at {}", state.position);
    Ok(Seen::Done(Closed { lsn: Some(state.position), detail, expires: None }))
}

pub(super) async fn open(cx: &WriteCx, fenced: Fenced<'_>) -> Result<(), ApplyError> {
    let (database_name, region) = (fenced.database.as_str(), fenced.region.as_str());
    let machine = cx.world()?.machine_mut(database_name, region)?;
    let Some(kept) = machine.read(KEPT).await? else { return Ok(()) };
    let cluster = cx.world()?.cluster_mut(database_name, region)?;
    let file = cluster.hba().await?.file;
    machine.write(&file, &kept.into()).await?;
    cluster.reload().await?;
    Ok(machine.remove(KEPT).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database(extra: &str) -> Database {
        let yaml = format!("{{ engine: postgres, user: 'mus\"ter', instances: {{}}{extra} }}");
        serde_saphyr::from_str(&yaml).unwrap()
    }

    #[test]
    fn only_muster_and_replication_are_let_in() {
        let with = database(", password: { env: A }, replication: { user: repl, password: { env: B } }");
        let text = rules(&with, false).unwrap();
        let want = "local all \"mus\"\"ter\" md5\nlocal replication \"repl\" md5\nlocal all all reject\n\
                    host all \"mus\"\"ter\" all md5\nhost replication \"repl\" all md5\nhost all all all reject\n";
        assert_eq!(text.strip_prefix(HEAD).unwrap().trim_start(), want);
    }

    #[test]
    fn nobody_is_let_in_without_a_password_who_was_not_before() {
        assert!(rules(&database(""), false).unwrap_err().contains("lock Muster out"));
        assert!(rules(&database(""), true).unwrap().contains("host all \"mus\"\"ter\" all trust"));
    }
}
