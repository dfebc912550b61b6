//! What people approve is what will be done. So it is the same at every look, as long as nobody changes anything: time goes on,
//! clients go on writing, the log that can be restored goes on. What differs by that was measured, and its action says so.

use super::*;
use crate::actions::cluster_fixture::with_own_cluster;
use crate::model::measured;

/// A moment later, and every server has written.
fn goes_on(world: &SimWorld) {
    world.time().advance(Duration::from_secs(600));
    let mut state = world.lock();
    state.servers.values_mut().for_each(|server| server.state.position.0 += 0x1000);
    for instance in state.instances.values_mut() {
        instance.info.restorable_until = instance.info.restorable_until.map(|at| at + jiff::SignedDuration::from_secs(600));
    }
}

async fn looked(action: &dyn DynAction, bench: &Bench) -> (Value, Option<Value>) {
    let prepared = action.prepare(&bench.read, &bench.with).await.map_err(|r| r.failure);
    let mut intent = prepared.unwrap_or_else(|f| panic!("{}: {f}", action.spec().name)).intent;
    let found = measured::take(&mut intent, action.measured());
    (intent, found)
}

#[tokio::test]
async fn what_is_approved_is_the_same_at_every_look() {
    let named = |name: &str, fixture: Fixture| (crate::actions::find(name).expect("an action"), fixture);
    let orders = || json!({ "repository": "vault", "database": "orders" });
    let more = [
        named("database.restore", with_own_cluster(orders())),
        named("database.prove", with_own_cluster(orders())),
        named("wheel.take", Fixture::new(json!({ "database": "orders" }))),
    ];
    let mut measures = Vec::new();
    for (action, fixture) in all().into_iter().chain(more) {
        let (name, bench) = (action.spec().name, Bench::new(&fixture));
        let (before, first) = looked(&*action, &bench).await;
        goes_on(&bench.world);
        let (after, then) = looked(&*action, &bench).await;
        assert_eq!(before.to_string(), after.to_string(), "{name}: what differs from look to look is measured, and not approved");
        if first.is_some() {
            assert_ne!(first, then, "{name}: what is always the same is no measurement");
            measures.push(name);
        }
    }
    measures.sort_unstable();
    measures.dedup();
    assert_eq!(measures, ["bucket.backup", "database.prove", "database.restore", "rds.restore_point_in_time", "wheel.take"]);
}

#[tokio::test]
async fn an_intent_is_whole_again_for_whoever_acts() {
    for (action, fixture) in all() {
        let bench = Bench::new(&fixture);
        let whole = action
            .prepare(&bench.read, &bench.with)
            .await
            .map_err(|r| r.failure)
            .unwrap_or_else(|e| panic!("{}: {e}", action.spec().name))
            .intent;
        let mut intent = whole.clone();
        let found = measured::take(&mut intent, action.measured());
        assert_eq!(measured::put_back(intent, found.as_ref()), whole, "{}", action.spec().name);
    }
}
