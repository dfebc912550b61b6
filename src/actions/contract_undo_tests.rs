//! What the engine relies on when it tries an undo again: whatever became of the attempt before, the next one finds what
//! there is, and in the end everything is as it was. Put to every action that undoes by itself.

use super::*;

/// Undoes as the engine does: what may have happened, or may be otherwise soon, is tried again; a refusal ends it, unless
/// the attempt before it was not heard of. How many attempts it took.
pub async fn undone(bench: &Bench, action: &dyn DynAction, intent: &Value, output: Option<&Value>) -> Result<u32, Failure> {
    let mut doubt = false;
    for attempt in 1..=6 {
        match action.undo(&bench.write, intent, output.cloned()).await {
            Ok(()) => return Ok(attempt),
            Err(ApplyError::Unknown(_)) => doubt = true,
            Err(ApplyError::Retry { .. }) => {}
            Err(ApplyError::Definite(_)) if doubt => doubt = false,
            Err(ApplyError::Definite(failure)) => return Err(failure),
        }
        // A moment, as the engine waits.
        bench.read.world.clock().sleep(Duration::from_secs(1)).await;
    }
    Err(Failure::new("spent", "it never came through"))
}

/// A world in which the step was done: what it was before, what was intended and what came of it.
async fn done(action: &dyn DynAction, fixture: &Fixture) -> (Bench, Vec<String>, Value, Value) {
    let name = action.spec().name;
    let bench = Bench::new(fixture);
    let intent = action.prepare(&bench.read, &bench.with).await.map_err(|r| r.failure).expect(name).intent;
    let before = bench.world.lock().essence();
    let output = action.apply(&bench.write, &intent).await.unwrap_or_else(|e| panic!("{name}: {e:?}"));
    bench.settled(action, &intent).await;
    (bench, before, intent, output)
}

#[tokio::test]
async fn every_answer_to_an_undo_may_be_lost_and_in_the_end_all_is_as_it_was() {
    let mut swept = Vec::new();
    for (action, fixture) in all() {
        let name = action.spec().name;
        if action.spec().undo != UndoPolicy::Automatic || effect(&*action, &Bench::new(&fixture)) == Effect::Read {
            continue;
        }
        let (bench, before, intent, output) = done(&*action, &fixture).await;
        let first = bench.world.writes();
        assert_eq!(undone(&bench, &*action, &intent, Some(&output)).await, Ok(1), "{name}");
        let writes = bench.world.writes() - first;
        assert_eq!(bench.world.lock().essence(), before, "{name}");
        for n in 0..writes {
            for fault in [WriteFault::AppliedButLost, WriteFault::LostOnTheWay, WriteFault::Unreachable] {
                let about = format!("{name}, write {n} of its undo, {fault:?}");
                let (bench, before, intent, output) = done(&*action, &fixture).await;
                bench.world.fault(n, fault);
                let attempts = undone(&bench, &*action, &intent, Some(&output)).await.unwrap_or_else(|f| panic!("{about}: {f}"));
                assert!(attempts > 1, "{about}: nobody noticed");
                assert_eq!(bench.world.lock().essence(), before, "{about}");
            }
        }
        if writes > 0 {
            swept.push(name);
        }
    }
    println!("swept: {}", swept.join(", "));
    for name in ["database.admit", "database.fence", "database.follow", "dns.lower_ttl", "dns.prepare", "dns.shift", "wheel.take"] {
        assert!(swept.contains(&name), "{name} writes nothing when it is undone: {swept:?}");
    }
}

/// The permit is asked for by an undo as well, and who lost the run hears just that: the next owner undoes it.
#[tokio::test]
async fn an_undo_without_the_permit_changes_nothing_and_says_why() {
    for (action, fixture) in all() {
        let name = action.spec().name;
        if action.spec().undo != UndoPolicy::Automatic || effect(&*action, &Bench::new(&fixture)) == Effect::Read {
            continue;
        }
        let (bench, _, intent, output) = done(&*action, &fixture).await;
        let stands = bench.world.lock().essence();
        let deposed = WriteCx::new(bench.read.clone(), Arc::new(bench.world.clone()), Arc::new(|| false));
        let said = action.undo(&deposed, &intent, Some(output)).await;
        assert_eq!(bench.world.lock().essence(), stands, "{name}");
        let told = match &said {
            Ok(()) => true,
            Err(ApplyError::Definite(failure)) => failure.code == DEPOSED,
            Err(_) => false,
        };
        assert!(told, "{name}: {said:?}");
    }
}

/// What cannot be taken back is said to be so once it is seen; as long as nobody can look, it is not said.
#[tokio::test]
async fn what_cannot_be_taken_back_is_told_when_it_was_seen_and_not_before() {
    let names =
        ["database.promote", "database.rejoin", "rds.failover_global_cluster", "rds.prune_snapshots", "rds.switchover_global_cluster"];
    for (action, fixture) in all().into_iter().filter(|(action, _)| names.contains(&action.spec().name)) {
        let name = action.spec().name;
        let (bench, _, intent, output) = done(&*action, &fixture).await;
        bench.world.lock().down.extend(["east".to_owned(), "west".to_owned()]);
        let unseen = action.undo(&bench.write, &intent, Some(output.clone())).await;
        assert!(matches!(unseen, Err(ApplyError::Retry { .. } | ApplyError::Unknown(_))), "{name}: {unseen:?}");
        bench.world.lock().down.clear();
        let seen = action.undo(&bench.write, &intent, Some(output)).await;
        assert!(matches!(&seen, Err(ApplyError::Definite(failure)) if failure.code == "irreversible"), "{name}: {seen:?}");
    }
}
