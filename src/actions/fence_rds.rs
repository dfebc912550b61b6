//! The ways to fence an RDS instance through its API, each closed, looked at afterwards, and opened again. The API says
//! what it has accepted; that no session is left only the server itself can say.

use super::{
    contract::*,
    fence_ways::{Closed, Fenced, closed, half},
    proof::ProofKind,
    shared::*,
};
use crate::model::{
    effect::{Failure, Seen},
    estate::RdsFence,
};
use crate::providers::port::*;
use jiff::{SignedDuration, Timestamp};
use std::{sync::Arc, time::Duration};

/// RDS starts a stopped instance again after so long.
const STOPPED_FOR: SignedDuration = SignedDuration::from_hours(7 * 24);
/// What is no longer counted on before that.
const MARGIN: SignedDuration = SignedDuration::from_hours(1);
/// How long a group or a password may take until it is in force.
const SETTLES: Duration = Duration::from_mins(2);
/// What is left of another fence on the instance itself.
const TAG: &str = "muster-fence-credentials";
/// When it was told to stop, for where RDS does not say when it starts it again. Written before the stop, so that what is
/// reckoned from it is never too late.
const STOPPED: &str = "muster-fence-stopped";

fn written<'a>(cx: &'a ReadCx, fenced: Fenced<'_>) -> Result<Option<&'a RdsFence>, Refusal> {
    Ok(database(cx, fenced.database)?.instances.get(fenced.region).and_then(|i| i.fence.as_ref()))
}

fn config(refusal: Refusal) -> PortError {
    PortError::Config(refusal.failure.message)
}

fn group(cx: &ReadCx, fenced: Fenced<'_>) -> Result<String, Refusal> {
    let found = written(cx, fenced)?.and_then(|f| f.security_group.clone());
    found.ok_or_else(|| lacks(fenced, "security_group", "which closed security group is attached"))
}

fn lacks(fenced: Fenced<'_>, field: &str, what: &str) -> Refusal {
    let (name, region) = (fenced.database, fenced.region);
    Refusal::no("no_fence", format!("the estate does not say {what} to fence `{name}` in `{region}`"))
        .remedy(format!("write databases.{name}.instances.{region}.fence.{field} (docs/aws.md)"))
}

/// Does the estate have what this way needs?
pub(crate) fn possible(cx: &ReadCx, fenced: Fenced<'_>, kind: ProofKind) -> Result<(), Refusal> {
    instance_id(cx, fenced.database, fenced.region)?;
    match kind {
        ProofKind::SecurityGroupClosed => group(cx, fenced).map(drop),
        ProofKind::CredentialsRotated if written(cx, fenced)?.is_none_or(|f| f.master_password.is_none()) => {
            Err(lacks(fenced, "master_password", "which passwords are set"))
        }
        _ => Ok(()),
    }
}

/// A stopped server answers no question, so what asks it does not go together with that.
pub(crate) fn fits(fenced: Fenced<'_>, by: &[ProofKind]) -> Result<(), Refusal> {
    if !by.contains(&ProofKind::InstanceStopped) {
        return Ok(());
    }
    let name = fenced.database;
    if fenced.planned {
        return Err(Refusal::no(
            "not_planned",
            format!("a stopped instance does not say where the log of `{name}` ended, so nothing planned can wait for it"),
        )
        .remedy("use `security_group_closed` or `read_only`"));
    }
    if let Some(other) = by.iter().find(|kind| matches!(kind, ProofKind::ReadOnly | ProofKind::SecurityGroupClosed)) {
        return Err(Refusal::no(
            "not_together",
            format!("`{}` is seen by asking the server of `{name}`, which `instance_stopped` stops", other.word()),
        ));
    }
    Ok(())
}

/// What stands before: the groups that are attached. Says what may come in the way.
pub(crate) async fn before(cx: &ReadCx, fenced: Fenced<'_>, by: &[ProofKind], notes: &mut Vec<String>) -> Result<Vec<String>, Refusal> {
    let id = instance_id(cx, fenced.database, fenced.region)?;
    let info = cx.world.instances(fenced.region.as_str())?.instance(&id).await?;
    let info = info.ok_or_else(|| Refusal::no("no_instance", format!("there is no instance `{id}` in region `{}`", fenced.region)))?;
    if let Some(cluster) = &info.cluster {
        return Err(of_cluster(fenced, &id, cluster, by));
    }
    if by.contains(&ProofKind::InstanceStopped) {
        if !info.replicas.is_empty() {
            notes.push(format!("`{id}` has replicas ({}): RDS may refuse to stop it", info.replicas.join(", ")));
        }
        notes.push("RDS starts a stopped instance again after seven days: the proof expires before".to_owned());
    }
    let asks = by.iter().any(|kind| matches!(kind, ProofKind::ReadOnly | ProofKind::SecurityGroupClosed));
    let user = &database(cx, fenced.database)?.user;
    if by.contains(&ProofKind::CredentialsRotated) && asks && info.master_user.as_ref() == Some(user) {
        return Err(Refusal::no(
            "own_credentials",
            format!("Muster itself logs in as the master user `{user}`: with another password it could not end the sessions"),
        )
        .remedy(format!("give databases.{}.user a role of its own", fenced.database)));
    }
    let closed = written(cx, fenced)?.and_then(|f| f.security_group.as_ref());
    Ok(info.groups.into_keys().filter(|g| Some(g) != closed).collect())
}

/// Groups, master password and stopping are the cluster's: RDS refuses them of a member, or does something else with it.
fn of_cluster(fenced: Fenced<'_>, id: &str, cluster: &str, by: &[ProofKind]) -> Refusal {
    let way = by.iter().find(|kind| kind.of_rds()).map_or("", |kind| kind.word());
    let message = format!(
        "`{way}` is for an instance of its own, and `{id}` is a member of the cluster `{cluster}`: its security groups, its password and \
         whether it runs are the cluster's"
    );
    Refusal::no("of_a_cluster", message).remedy(format!(
        "fence by the write lease (databases.{}.lease, docs/lease.md): `lease_expired`, or `read_only` beside it where it is planned",
        fenced.database
    ))
}

fn instances(cx: &WriteCx, fenced: Fenced<'_>) -> Result<(Arc<dyn InstanceWrite>, String), ApplyError> {
    let id = instance_id(cx, fenced.database, fenced.region).map_err(definite)?;
    Ok((cx.world()?.instances_mut(fenced.region.as_str())?, id))
}

async fn look(cx: &ReadCx, fenced: Fenced<'_>) -> PortResult<InstanceInfo> {
    let id = instance_id(cx, fenced.database, fenced.region).map_err(config)?;
    let found = cx.world.instances(fenced.region.as_str())?.instance(&id).await?;
    found.ok_or_else(|| PortError::NotFound(format!("instance `{id}` in `{}`", fenced.region)))
}

/// Waits until the API says that it is so. From here on something is half-done.
async fn settled(cx: &ReadCx, fenced: Fenced<'_>, what: &str, so: impl Fn(&InstanceInfo) -> bool) -> Result<(), ApplyError> {
    let clock = cx.world.clock();
    let until = clock.monotonic() + SETTLES.min(cx.deadline.saturating_sub(Duration::from_secs(2)));
    loop {
        let info = look(cx, fenced).await.map_err(half)?;
        if so(&info) {
            return Ok(());
        }
        if clock.monotonic() >= until {
            let message = format!("{what}: not in force yet, the instance is `{}`", info.status);
            return Err(ApplyError::Unknown(Failure::new("not_in_force", message)));
        }
        clock.sleep(Duration::from_millis(500)).await;
    }
}

fn alone(info: &InstanceInfo, group: &str) -> bool {
    info.groups.len() == 1 && info.groups.get(group).is_some_and(|state| state == "active") && info.status == "available"
}

pub(crate) async fn close(cx: &WriteCx, fenced: Fenced<'_>, kind: ProofKind) -> Result<(), ApplyError> {
    let (rds, id) = instances(cx, fenced)?;
    match kind {
        ProofKind::SecurityGroupClosed => {
            let group = group(cx, fenced).map_err(definite)?;
            if !alone(&look(cx, fenced).await?, &group) {
                rds.set_groups(&id, std::slice::from_ref(&group)).await?;
                settled(cx, fenced, "the closed security group", |info| alone(info, &group)).await?;
            }
            // Connections that are open outlive a change of groups.
            let sql = cx.world()?.sql_mut(fenced.database.as_str(), fenced.region.as_str())?;
            sql.make_read_only().await.map_err(|e| {
                let failure = failure(&e).remedy("the closed group must let Muster in, so that it can end the sessions that are open");
                ApplyError::Unknown(failure)
            })
        }
        ProofKind::InstanceStopped => match look(cx, fenced).await?.status.as_str() {
            "stopped" | "stopping" => Ok(()),
            _ => stop(cx, fenced, &*rds, &id).await,
        },
        ProofKind::CredentialsRotated => set_password(cx, fenced, true).await,
        _ => Ok(()),
    }
}

async fn stop(cx: &WriteCx, fenced: Fenced<'_>, rds: &dyn InstanceWrite, id: &str) -> Result<(), ApplyError> {
    let arn = look(cx, fenced).await?.arn;
    rds.tag(&arn, STOPPED, Some(&cx.read.world.clock().now().to_string())).await?;
    cx.world()?.instances_mut(fenced.region.as_str())?.stop(id).await.map_err(|error| match error {
        PortError::Refused(why) => ApplyError::Definite(
            Failure::new("stop_refused", format!("RDS does not stop `{id}`: {why}"))
                .remedy("it may refuse while there are replicas or a change is under way: fence by `security_group_closed` instead"),
        ),
        other => other.into(),
    })
}

/// The new password first, the tag after it: a tag says that it was set.
async fn set_password(cx: &WriteCx, fenced: Fenced<'_>, fence: bool) -> Result<(), ApplyError> {
    let (rds, id) = instances(cx, fenced)?;
    let passwords = written(cx, fenced).map_err(definite)?.and_then(|f| f.master_password.as_ref());
    let passwords = passwords.ok_or_else(|| definite(lacks(fenced, "master_password", "which passwords are set")))?;
    let arn = look(cx, fenced).await?.arn;
    let password = cx.read.world.secret(if fence { &passwords.fenced } else { &passwords.usual })?;
    rds.set_password(&id, &password).await?;
    cx.world()?.instances_mut(fenced.region.as_str())?.tag(&arn, TAG, fence.then_some("rotated")).await.map_err(half)
}

/// Is it closed, as the API and, where it can, the server say at this moment?
pub(crate) async fn verify(cx: &ReadCx, fenced: Fenced<'_>, kind: ProofKind) -> PortResult<Seen<Closed>> {
    let info = look(cx, fenced).await?;
    match kind {
        ProofKind::SecurityGroupClosed => group_closed(cx, fenced, &info).await,
        ProofKind::InstanceStopped => Ok(match info.status.as_str() {
            "stopped" => match starts_again(&info) {
                Some(again) => Seen::Done(Closed {
                    lsn: None,
                    detail: format!("`{}` is stopped; RDS starts it again by {again}", info.id),
                    expires: Some(less(again)),
                }),
                None => Seen::CannotTell {
                    why: format!(
                        "`{}` was stopped by somebody else, and RDS does not say when it starts it again; start it, and fence once more",
                        info.id
                    ),
                },
            },
            "stopping" => pending(2_000, "the instance is `stopping`"),
            _ => Seen::Absent,
        }),
        ProofKind::CredentialsRotated if !info.tags.contains_key(TAG) => Ok(Seen::Absent),
        ProofKind::CredentialsRotated if info.password_pending || info.status == "resetting-master-credentials" => {
            Ok(pending(1_000, "the new password is not in force yet"))
        }
        ProofKind::CredentialsRotated => closed(None, "the master user has another password; other roles have theirs"),
        _ => Ok(Seen::Absent),
    }
}

/// As RDS says; else seven days from when this program told it to stop.
fn starts_again(info: &InstanceInfo) -> Option<Timestamp> {
    let told = || info.tags.get(STOPPED)?.parse::<Timestamp>().ok()?.checked_add(STOPPED_FOR).ok();
    info.starts_again.or_else(told)
}

fn less(at: Timestamp) -> Timestamp {
    at.saturating_sub(MARGIN).unwrap_or(at)
}

async fn group_closed(cx: &ReadCx, fenced: Fenced<'_>, info: &InstanceInfo) -> PortResult<Seen<Closed>> {
    let group = group(cx, fenced).map_err(config)?;
    if !info.groups.contains_key(&group) {
        return Ok(Seen::Absent);
    }
    if !alone(info, &group) {
        return Ok(pending(1_000, format!("the instance is `{}`, its groups are {:?}", info.status, info.groups)));
    }
    let sql = cx.world.sql(fenced.database.as_str(), fenced.region.as_str())?;
    // Sessions first: the position must be one that nobody can add an acknowledged write to.
    let sessions = sql.sessions().await?;
    let state = sql.state().await?;
    if !state.read_only {
        return Ok(Seen::Absent);
    }
    if sessions > 0 {
        return Ok(pending(200, format!("{sessions} sessions are still open")));
    }
    closed(Some(state.position), format!("only `{group}` is attached, no session is left, read-only at {}", state.position))
}

/// Puts back what stood.
pub(crate) async fn open(cx: &WriteCx, fenced: Fenced<'_>, kind: ProofKind, before: &[String]) -> Result<(), ApplyError> {
    let (rds, id) = instances(cx, fenced)?;
    match kind {
        ProofKind::SecurityGroupClosed => {
            cx.world()?.sql_mut(fenced.database.as_str(), fenced.region.as_str())?.make_writable().await?;
            let group = group(cx, fenced).map_err(definite)?;
            if !look(cx, fenced).await?.groups.contains_key(&group) {
                return Ok(());
            }
            if before.is_empty() {
                return Err(fail("no_groups", format!("`{id}` had no other security group than `{group}` before it was fenced")));
            }
            rds.set_groups(&id, before).await?;
            settled(cx, fenced, "the instance's own security groups", |info| !info.groups.contains_key(&group)).await
        }
        ProofKind::InstanceStopped => {
            if look(cx, fenced).await?.status == "stopping" {
                // It cannot be started before, and that takes minutes: it is waited for, not asked for again and again.
                settled(cx, fenced, "the stop", |info| info.status == "stopped").await?;
                // In that time another may have been promoted, and another run have the word: all is looked at once more.
                let failure = Failure::new("stopped_meanwhile", format!("`{id}` has only just stopped, and may be started now"));
                return Err(ApplyError::Retry { after: Duration::ZERO, failure });
            }
            match look(cx, fenced).await?.status.as_str() {
                "stopped" => rds.start(&id).await?,
                // Asked for before, and heard.
                "starting" => {}
                _ => return unmark(cx, fenced).await,
            }
            settled(cx, fenced, "the start", |info| info.status == "available").await?;
            unmark(cx, fenced).await
        }
        ProofKind::CredentialsRotated if look(cx, fenced).await?.tags.contains_key(TAG) => set_password(cx, fenced, false).await,
        _ => Ok(()),
    }
}

async fn unmark(cx: &WriteCx, fenced: Fenced<'_>) -> Result<(), ApplyError> {
    let info = look(cx, fenced).await?;
    if info.tags.contains_key(STOPPED) {
        cx.world()?.instances_mut(fenced.region.as_str())?.tag(&info.arn, STOPPED, None).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::STOPPED;
    use crate::actions::{
        contract::{Action, ApplyError},
        contract_tests::{Bench, Fixture, estate, map_of, undo::undone},
        database_fence::Fence,
        proof::{FenceProof, ProofKind, still_holds},
    };
    use crate::model::effect::{Plane, Seen};
    use crate::providers::sim::WriteFault;
    use serde_json::json;
    use std::time::Duration;

    fn fixture(by: &[&str]) -> Fixture {
        Fixture::new(json!({ "database": "predictions", "region": "east", "by": by }))
    }

    async fn proof(bench: &Bench) -> FenceProof {
        bench.run::<Fence>().await.expect("fenced").proof.expect("a proof")
    }

    #[tokio::test]
    async fn each_way_closes_proves_itself_and_opens_to_what_stood() {
        for by in [&["security_group_closed"][..], &["instance_stopped"], &["security_group_closed", "credentials_rotated"]] {
            let bench = Bench::new(&fixture(by));
            let before = bench.world.lock().essence();
            let intent = bench.intent::<Fence>().await;
            let proof = proof(&bench).await;
            assert!(still_holds(&bench.read, &proof, &"predictions".into(), &"west".into()).await.is_ok(), "{by:?}");
            Fence::undo(&bench.write, &intent, None).await.unwrap_or_else(|e| panic!("{by:?}: {e:?}"));
            assert_eq!(bench.world.lock().essence(), before, "{by:?}");
            assert!(
                still_holds(&bench.read, &proof, &"predictions".into(), &"west".into()).await.is_err(),
                "{by:?}: an open fence proves nothing"
            );
        }
    }

    /// But for when it was told to stop: each attempt has its own time.
    fn essence(bench: &Bench) -> Vec<String> {
        let at = |line: String| line.split_once(STOPPED).map_or(line.clone(), |(before, _)| format!("{before}{STOPPED}"));
        bench.world.lock().essence().into_iter().map(at).collect()
    }

    #[tokio::test]
    async fn every_lost_answer_leads_to_the_same_fence() {
        for by in [&["security_group_closed", "credentials_rotated"][..], &["instance_stopped"]] {
            let bench = Bench::new(&fixture(by));
            proof(&bench).await;
            let good = essence(&bench);
            let writes = bench.world.writes();
            for n in 0..writes {
                for fault in [WriteFault::AppliedButLost, WriteFault::LostOnTheWay] {
                    let bench = Bench::new(&fixture(by));
                    let intent = bench.intent::<Fence>().await;
                    bench.world.fault(n, fault);
                    for _ in 0..20 {
                        if matches!(Fence::observe(&bench.read, &intent).await, Seen::Done(_)) {
                            break;
                        }
                        match Fence::apply(&bench.write, &intent).await {
                            Ok(_) | Err(ApplyError::Unknown(_)) => bench.read.world.clock().sleep(Duration::from_secs(2)).await,
                            Err(other) => panic!("{by:?}, write {n}, {fault:?}: {other:?}"),
                        }
                    }
                    assert_eq!(essence(&bench), good, "{by:?}, write {n}, {fault:?}");
                }
            }
        }
    }

    #[tokio::test]
    async fn every_lost_answer_leads_back_to_what_stood() {
        let action = crate::actions::find("database.fence").expect("it is there");
        for by in [&["security_group_closed", "credentials_rotated"][..], &["instance_stopped"]] {
            let closed = async || {
                let bench = Bench::new(&fixture(by));
                let before = bench.world.lock().essence();
                let intent = serde_json::to_value(bench.intent::<Fence>().await).expect("an intent");
                proof(&bench).await;
                (bench, before, intent)
            };
            let (bench, before, intent) = closed().await;
            let first = bench.world.writes();
            undone(&bench, &*action, &intent, None).await.expect("undone");
            assert_eq!(bench.world.lock().essence(), before, "{by:?}");
            for n in 0..bench.world.writes() - first {
                for fault in [WriteFault::AppliedButLost, WriteFault::LostOnTheWay, WriteFault::Unreachable] {
                    let (bench, before, intent) = closed().await;
                    bench.world.fault(n, fault);
                    undone(&bench, &*action, &intent, None).await.unwrap_or_else(|f| panic!("{by:?}, write {n}, {fault:?}: {f}"));
                    assert_eq!(bench.world.lock().essence(), before, "{by:?}, write {n}, {fault:?}");
                    let east = ("east".to_owned(), "predictions-east".to_owned());
                    assert_eq!(bench.world.lock().instances[&east].info.status, "available", "{by:?}, write {n}, {fault:?}");
                }
            }
        }
    }

    #[tokio::test]
    async fn a_stopped_instance_is_fenced_for_less_than_seven_days() {
        let bench = Bench::new(&fixture(&["instance_stopped"]));
        let proof = proof(&bench).await;
        assert_eq!(proof.kind, ProofKind::InstanceStopped);
        let left = proof.expires.expect("it expires").duration_since(bench.read.world.clock().now());
        assert!(left.as_hours() >= 166 && left.as_hours() < 168, "{left:?}");
        bench.world.time().advance(Duration::from_hours(168));
        let late = still_holds(&bench.read, &proof, &"predictions".into(), &"west".into()).await;
        assert_eq!(late.expect_err("void").failure.code, "proof_void");
    }

    /// Stopping takes minutes, and what was looked at before may have changed by then: nothing is started on the word of that look.
    #[tokio::test]
    async fn an_instance_that_was_still_stopping_is_not_started_before_all_is_looked_at_once_more() {
        let bench = Bench::new(&fixture(&["instance_stopped"]));
        let intent = bench.intent::<Fence>().await;
        proof(&bench).await;
        let (east, west) = (("east".to_owned(), "predictions-east".to_owned()), ("predictions".to_owned(), "west".to_owned()));
        let turns = |status: &str| bench.world.lock().instances.get_mut(&east).expect("east").info.status = status.into();
        turns("stopping");
        let began = bench.elapsed_ms();
        let meanwhile = async {
            while bench.elapsed_ms() < began + 5_000 {
                tokio::task::yield_now().await;
            }
            turns("stopped");
            bench.world.lock().servers.get_mut(&west).expect("west").state.in_recovery = false;
        };
        let (undone, ()) = futures::join!(Fence::undo(&bench.write, &intent, None), meanwhile);
        assert!(matches!(&undone, Err(ApplyError::Retry { failure, .. }) if failure.code == "stopped_meanwhile"), "{undone:?}");
        let undone = Fence::undo(&bench.write, &intent, None).await;
        assert!(matches!(&undone, Err(ApplyError::Definite(failure)) if failure.code == "promoted"), "{undone:?}");
        assert!(!bench.world.calls().iter().any(|(call, _)| *call == "instances.start"), "west writes, and east was started");
        assert_eq!(bench.world.lock().instances[&east].info.status, "stopped");
    }

    /// An emulator that tells nothing, or an instance that was stopped days ago: no time is made up.
    #[tokio::test]
    async fn without_a_word_on_when_it_starts_again_only_its_own_stop_counts() {
        let bench = Bench::new(&fixture(&["instance_stopped"]));
        let east = ("east".to_owned(), "predictions-east".to_owned());
        let intent = bench.intent::<Fence>().await;
        proof(&bench).await;
        bench.world.lock().instances.get_mut(&east).expect("east").info.starts_again = None;
        let Seen::Done(out) = Fence::observe(&bench.read, &intent).await else { panic!("it was stopped by this step") };
        assert!(out.proof.expect("a proof").expires.is_some());
        bench.world.lock().instances.get_mut(&east).expect("east").info.tags.clear();
        assert!(matches!(Fence::observe(&bench.read, &intent).await, Seen::CannotTell { .. }));
    }

    #[tokio::test]
    async fn what_does_not_go_together_is_refused() {
        for (with, code) in [
            (json!({ "by": ["instance_stopped"], "planned": true }), "not_planned"),
            (json!({ "by": ["instance_stopped", "security_group_closed"] }), "not_together"),
            (json!({ "by": ["server_stopped"] }), "not_possible"),
            (json!({ "by": ["security_group_closed"], "region": "west" }), "no_fence"),
        ] {
            let mut all = json!({ "database": "predictions", "region": "east" });
            all.as_object_mut().expect("a map").extend(with.as_object().expect("a map").clone());
            assert_eq!(Bench::new(&Fixture::new(all.clone())).refused::<Fence>().await, code, "{all}");
        }
    }

    /// Without anything to fence with, the step is refused for that, and not for what it would need.
    #[test]
    fn only_a_fence_that_is_prepared_needs_the_control_plane() {
        let with = map_of(&json!({ "database": "predictions", "region": "east" }));
        let mut estate = estate();
        let controls = |estate: &_| Fence::reach(&with, estate).iter().any(|reach| reach.plane == Plane::Control);
        assert!(!controls(&estate), "it is leased");
        let database = estate.databases.get_mut("predictions").expect("it is there");
        database.lease = None;
        assert!(controls(&estate));
        let database = estate.databases.get_mut("predictions").expect("it is there");
        database.instances.values_mut().for_each(|instance| instance.fence = None);
        assert!(!controls(&estate));
    }
}
