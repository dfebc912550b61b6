//! Every action of the first dozen against the real lab: databases, buckets, names and processes as an
//! operator has them, with the faults that an action is made for.

use crate::lab::{Box as LabBox, until};
use muster::{
    actions::{contract::*, find},
    model::{effect::*, estate::Estate, node::Node, plan::Scope},
    providers::{clock::SystemClock, port::*, world::World},
    service::Muster,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sqlx::{Executor, PgPool};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// A lab, and what an action is lent to act on it.
struct Stage {
    lab: LabBox,
    world: Arc<World>,
    estate: Arc<Estate>,
    scratch: tempfile::TempDir,
    steps: AtomicU64,
}

impl Stage {
    async fn up() -> Self {
        let lab = LabBox::up().await;
        let estate = Arc::new(Muster::new(lab.state(), lab.lab.estate_path()).estate().unwrap());
        let world = Arc::new(World::new(estate.clone(), Arc::new(SystemClock::new())));
        until("east holds the lease", || async { lab.predict("east").await.0 == 200 }).await;
        Self { lab, world, estate, scratch: tempfile::tempdir().unwrap(), steps: AtomicU64::new(0) }
    }

    /// A context for one step; `permits` is how often it may still ask to write.
    fn cx(&self, key: &str, permits: u64, deadline: Duration) -> WriteCx {
        let key = hex::encode(Sha256::digest(key));
        let read = ReadCx {
            world: self.world.clone(),
            estate: self.estate.clone(),
            run: "0190".into(),
            step: "step".into(),
            scope: Scope::Drill,
            lost: None,
            key,
            deadline,
            scratch: self.scratch.path().to_owned(),
        };
        let left = AtomicU64::new(permits);
        let permit = move || left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
        WriteCx::new(read, self.world.clone(), Arc::new(permit))
    }

    /// One step of its own, as the engine would carry it out.
    async fn step(&self, uses: &str, with: Value) -> Result<Value, Failure> {
        let key = format!("{uses} {}", self.steps.fetch_add(1, Ordering::SeqCst));
        carry_out(&self.cx(&key, u64::MAX, Duration::from_secs(60)), uses, with).await
    }
    async fn done(&self, uses: &str, with: Value) -> Value {
        self.step(uses, with.clone()).await.unwrap_or_else(|f| panic!("{uses} {with}: {}: {f}", f.code))
    }
    async fn fails(&self, uses: &str, with: Value) -> Failure {
        match self.step(uses, with.clone()).await {
            Ok(output) => panic!("{uses} {with} did not fail: {output}"),
            Err(failure) => failure,
        }
    }
    async fn put(&self, region: &str, key: &str, body: impl Into<Vec<u8>>) {
        let bucket = self.world.objects_mut("models", region).unwrap();
        let body: Vec<u8> = body.into();
        bucket.put(key, body.into(), &BTreeMap::new(), false).await.unwrap();
    }
    async fn get(&self, region: &str, key: &str) -> Vec<u8> {
        use futures::TryStreamExt;
        let body = self.world.objects("models", region).unwrap().get(key).await.unwrap();
        body.chunks.try_concat().await.unwrap()
    }
    /// The real program, in this lab.
    fn muster(&self, args: &[&str]) -> std::process::Command {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_muster"));
        command.args(args).arg("--json").arg("--state").arg(self.lab.state()).arg("--estate").arg(self.lab.lab.estate_path());
        command.current_dir(env!("CARGO_MANIFEST_DIR"));
        command
    }
}

/// Prepare, apply, look until it is seen: what `engine` does, without a journal.
async fn carry_out(cx: &WriteCx, uses: &str, with: Value) -> Result<Value, Failure> {
    let (action, with) = (find(uses).unwrap(), Node::typed(with));
    let intent = action.prepare(&cx.read, &with).await.map_err(|r| r.failure)?.intent;
    finish(cx, &*action, &with, &intent).await
}

async fn finish(cx: &WriteCx, action: &dyn DynAction, with: &Node, intent: &Value) -> Result<Value, Failure> {
    let applied = action.apply(cx, intent).await;
    let output = applied.map_err(|error| match error {
        ApplyError::Definite(f) | ApplyError::Retry { failure: f, .. } | ApplyError::Unknown(f) => f,
    })?;
    if !action.observes(with) {
        return Ok(output);
    }
    let end = Instant::now() + cx.deadline;
    while Instant::now() < end {
        match action.observe(&cx.read, intent).await {
            Seen::Done(output) => return Ok(output),
            Seen::Pending { poll_after_ms, .. } => tokio::time::sleep(Duration::from_millis(poll_after_ms)).await,
            Seen::Absent => return Err(Failure::new("absent", "")),
            Seen::Differs { found } => return Err(Failure::new("differs", found)),
            Seen::CannotTell { why } => return Err(Failure::new("cannot_tell", why)),
        }
    }
    Err(Failure::new("pending", "until the deadline"))
}

fn backup() -> Value {
    json!({ "bucket": "models", "from": "east", "to": "west" })
}

fn parsed(out: &std::process::Output) -> Value {
    let text = String::from_utf8(out.stdout.clone()).unwrap();
    let last = text.lines().last().unwrap_or_else(|| panic!("no output: {}", String::from_utf8_lossy(&out.stderr)));
    serde_json::from_str(last).unwrap()
}

#[tokio::test]
async fn lab_actions_backups_and_readiness() {
    let stage = Stage::up().await;
    let ready = json!({ "region": "west", "max_replica_lag": "30s", "max_backup_age": "1h" });
    let failure = stage.fails("readiness.check", ready.clone()).await;
    assert_eq!(failure.code, "not_ready");
    for part in ["database/predictions snapshot: missing", "bucket/models backup of east: missing"] {
        assert!(failure.message.contains(part), "{failure}");
    }
    // By the real program, and the real runbook.
    let out = stage.muster(&["run", "runbooks/protect.yaml"]).output().unwrap();
    let run = parsed(&out);
    assert_eq!((out.status.code(), run["status"].as_str()), (Some(0), Some("succeeded")), "{run}");
    let output = stage.done("readiness.check", ready.clone()).await;
    assert_eq!(output["ready"], true);
    assert!(output["findings"].as_array().unwrap().len() >= 5, "{output}");

    // The manifest names each object with what it really is.
    let copied = run["steps"].as_array().unwrap().iter().find(|s| s["id"] == "copy_models").unwrap()["output"].clone();
    let manifest: Value = serde_json::from_slice(&stage.get("west", copied["manifest"].as_str().unwrap()).await).unwrap();
    let objects = manifest["objects"].as_array().unwrap();
    assert!(objects.len() >= 2 && copied["copied"] == objects.len(), "{copied}");
    for entry in objects {
        let body = stage.get("east", entry["key"].as_str().unwrap()).await;
        assert_eq!(
            (entry["size"].as_u64(), entry["sha256"].as_str().unwrap()),
            (Some(body.len() as u64), &*hex::encode(Sha256::digest(&body)))
        );
        let head = stage.world.objects("models", "east").unwrap().head(entry["key"].as_str().unwrap()).await.unwrap().unwrap();
        assert!(entry["etag"].is_string() && entry["etag"].as_str() == head.etag.as_deref(), "{entry}");
    }
    let again = stage.done("bucket.backup", backup()).await;
    assert_eq!((again["copied"].as_u64(), again["bytes_copied"].as_u64()), (Some(0), Some(0)), "{again}");

    differences_are_named(&stage).await;
    a_broken_off_backup_leaves_no_manifest(&stage).await;
    memory_stays_small(&stage).await;
    stage.lab.down().await;
}

async fn differences_are_named(stage: &Stage) {
    for key in ["changed", "rotten", "gone"] {
        stage.put("east", key, format!("the first {key}")).await;
    }
    assert_eq!(stage.done("bucket.backup", backup()).await["copied"], 3);
    assert_eq!(stage.done("bucket.verify", backup()).await["source_asked"], true);
    stage.put("east", "changed", "the second one").await;
    stage.put("west", "rotten", "the fir5t rotten").await;
    stage.put("west", "stray", "nobody's").await;
    stage.put("east", "new", "never copied").await;
    stage.world.objects_mut("models", "west").unwrap().delete("gone").await.unwrap();
    let failure = stage.fails("bucket.verify", backup()).await;
    assert_eq!(failure.code, "replica_differs");
    for part in ["1 stale: changed", "1 corrupt: rotten", "1 extra: stray", "2 missing: gone, new"] {
        assert!(failure.message.contains(part), "{failure}");
    }
    // The next backup puts right what it can know of: it never deletes, and `stray` stays.
    assert_eq!(stage.done("bucket.backup", backup()).await["copied"], 4);
    stage.world.objects_mut("models", "west").unwrap().delete("stray").await.unwrap();
    stage.done("bucket.verify", backup()).await;
}

async fn a_broken_off_backup_leaves_no_manifest(stage: &Stage) {
    for n in 0..6 {
        stage.put("east", &format!("part/{n}"), vec![n; 1000]).await;
    }
    let action = find("bucket.backup").unwrap();
    let with = Node::typed(backup());
    // Deposed at the last of the objects: as a crash, but for what was on its way. Four are copied at a time,
    // so when the sixth is begun the first two are there.
    let cx = stage.cx("broken", 6, Duration::from_secs(30));
    let intent = action.prepare(&cx.read, &with).await.unwrap_or_else(|r| panic!("{}", r.failure)).intent;
    assert!(matches!(action.apply(&cx, &intent).await, Err(ApplyError::Definite(f)) if f.code == "deposed"));
    assert_eq!(action.observe(&cx.read, &intent).await, Seen::Absent, "no manifest, so it did not happen");
    let there = stage.world.objects("models", "west").unwrap();
    assert!(there.head(intent["manifest"].as_str().unwrap()).await.unwrap().is_none());
    let half = there.list("part/", None).await.unwrap().objects.len();
    assert!(half > 0 && half < 6, "{half} of 6 were copied: the test proves nothing");
    // The same intent once more copies only the rest, and what was on its way: a copy whose request was dropped may be
    // listed by then and yet not whole. The two that had to be done for the sixth to begin are not copied again.
    let output = finish(&stage.cx("broken", u64::MAX, Duration::from_secs(30)), &*action, &with, &intent).await.unwrap();
    let copied = output["copied"].as_u64().unwrap();
    assert!((6 - half as u64..=4).contains(&copied), "{half} were there: {output}");
    stage.done("bucket.verify", backup()).await;
}

/// Large objects pass through the real program; what it holds at most is what the kernel saw.
async fn memory_stays_small(stage: &Stage) {
    for n in 0..4u8 {
        stage.put("east", &format!("large/{n}"), vec![n; 40 << 20]).await;
    }
    let mut child = stage.muster(&["run", "runbooks/protect.yaml"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let held = status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        peak = peak.max(held.unwrap_or(0));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let out = child.wait_with_output().unwrap();
    let run = parsed(&out);
    assert_eq!(run["status"], "succeeded", "{run}");
    println!("peak memory of backing up and verifying 160 MiB in 4 objects: {} MiB", peak / 1024);
    // Of them 64 MiB are the repository's password, stretched.
    assert!(peak > 0 && peak < 256 * 1024, "{peak} KiB");
}

/// Writes through the inference service, or straight into a table, until it is dropped.
struct Load {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
}

impl Load {
    fn on(pool: PgPool, pause: Duration) -> Self {
        let load = Self { stop: Arc::default(), count: Arc::default() };
        let (stop, count) = (load.stop.clone(), load.count.clone());
        tokio::spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                let n = count.fetch_add(1, Ordering::SeqCst);
                let id = format!("load-{n}");
                let insert = "insert into predictions (id, label, region, at) values ($1, 1, 'east', now())";
                let _ = sqlx::query(insert).bind(&id).execute(&pool).await;
                if n % 5 == 4 {
                    let _ = sqlx::query("update predictions set label = label + 1 where id = $1")
                        .bind(format!("load-{}", n / 2))
                        .execute(&pool)
                        .await;
                }
                if n % 20 == 19 {
                    let _ = sqlx::query("delete from predictions where id = $1").bind(format!("load-{}", n / 3)).execute(&pool).await;
                }
                tokio::time::sleep(pause).await;
            }
        });
        load
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

fn replica() -> Value {
    json!({ "database": "predictions", "region": "west" })
}

#[tokio::test]
async fn lab_actions_replica_is_verified_under_load() {
    let stage = Stage::up().await;
    let east = stage.lab.sql("east").await;
    let fill = "insert into predictions select 'old-' || g, 1, 'east', now() from generate_series(1, 3000) g";
    sqlx::query(fill).execute(&east).await.unwrap();
    let load = Load::on(east.clone(), Duration::from_millis(8));
    let mut times = Vec::new();
    for _ in 0..10 {
        let plain = Instant::now();
        let output = stage.done("database.verify_replica", json!({ "database": "predictions", "region": "west", "content": false })).await;
        let plain = plain.elapsed();
        assert_eq!(output["replica"]["state"], "streaming");
        let lag = (&output["replica"]["lag_bytes"], &output["replica"]["lag_ms"]);
        assert!(lag.0.is_u64() && lag.1.is_u64(), "{output}");
        let began = Instant::now();
        let output = stage.done("database.verify_replica", replica()).await;
        times.push(began.elapsed().saturating_sub(plain));
        assert_eq!(output["tables"], 1, "{output}");
        assert!(output["compared_at"].is_string());
    }
    times.sort();
    let rate = load.count.load(Ordering::SeqCst);
    println!("content of 3000 rows and more, compared under load ({rate} inserts): median {:?}, worst {:?}", times[5], times[9]);
    assert!(times[5] < Duration::from_secs(5), "{times:?}");
    drop(load);

    // Only what is really there is reported: a row that the standby has otherwise, at the same place.
    plant(&stage, &east).await;
    let load = Load::on(east.clone(), Duration::from_millis(8));
    for _ in 0..3 {
        let failure = stage.fails("database.verify_replica", replica()).await;
        assert_eq!(failure.code, "replica_differs", "{failure}");
        assert!(failure.message.contains("predictions") && failure.message.contains("other content"), "{failure}");
    }
    drop(load);

    // Paused: it is said, and it is the operator's to go on.
    let west = stage.lab.sql("west").await;
    west.execute("select pg_wal_replay_pause()").await.unwrap();
    let failure = stage.fails("database.verify_replica", replica()).await;
    assert!(failure.code == "replica_stalled" && failure.message.contains("paused"), "{failure}");
    west.execute("select pg_wal_replay_resume()").await.unwrap();
    // Cut off: connected, and nothing arrives.
    stage.lab.lab.delay_replication("east").unwrap();
    sqlx::query("update predictions set label = 2 where id = 'old-2900'").execute(&east).await.unwrap();
    let failure = stage.fails("database.verify_replica", replica()).await;
    assert!(failure.code == "replica_stalled", "{failure}");
    stage.lab.lab.heal("east").await.unwrap();
    // Gone: nothing is known of it.
    stage.lab.lab.lose_database("west").await.unwrap();
    assert_eq!(stage.fails("database.verify_replica", replica()).await.code, "replica_unknown");
    stage.lab.down().await;
}

/// Changes one byte of one row in the standby's file, which no log will ever mend.
async fn plant(stage: &Stage, east: &PgPool) {
    let victim = "old-1234";
    for statement in ["vacuum (freeze) predictions", "checkpoint"] {
        east.execute(statement).await.unwrap();
    }
    let west = stage.lab.sql("west").await;
    let end: String = sqlx::query_scalar("select pg_current_wal_flush_lsn()::text").fetch_one(east).await.unwrap();
    until("the standby has it", || async {
        sqlx::query_scalar::<_, bool>("select pg_last_wal_replay_lsn() >= $1::pg_lsn").bind(&end).fetch_one(&west).await.unwrap()
    })
    .await;
    // Pages are checked as they are read; the planted one must be read all the same.
    west.execute("alter system set ignore_checksum_failure = on").await.unwrap();
    west.execute("checkpoint").await.unwrap();
    let file: String = sqlx::query_scalar("select pg_relation_filepath('predictions')").fetch_one(&west).await.unwrap();
    west.close().await;
    stage.lab.lab.lose_database("west").await.unwrap();
    let path = stage.lab.lab.plan().data_dir("west", "predictions-west").join(file);
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(victim.len()).position(|w| w == victim.as_bytes()).unwrap();
    bytes[at + victim.len() - 1] = b'X';
    std::fs::write(&path, bytes).unwrap();
    stage.lab.lab.heal("west").await.unwrap();
    let west = stage.lab.sql("west").await;
    let found: i64 = sqlx::query_scalar("select count(*) from predictions where id || '' = 'old-123X'").fetch_one(&west).await.unwrap();
    assert_eq!(found, 1, "the planted row is not there: the test proves nothing");
    until("the standby streams", || async { stage.world.sql("predictions", "west").unwrap().state().await.is_ok_and(|s| s.streaming) })
        .await;
}

#[tokio::test]
async fn lab_actions_fence_promote_and_rejoin() {
    let stage = Stage::up().await;
    stage.done("database.snapshot", json!({ "database": "predictions", "region": "west" })).await;
    the_same_step_is_one_snapshot(&stage).await;
    // West has replayed all; then east freezes, with a client's request inside.
    stage.lab.lab.freeze("east").unwrap();
    let lease = stage.world.lease("predictions").unwrap();
    let granted = lease.lease().await.unwrap();
    let began = Instant::now();
    let promote = |proof: &Value| json!({ "database": "predictions", "region": "west", "proof": proof });
    assert_eq!(stage.fails("database.promote", json!({ "database": "predictions", "region": "west" })).await.code, "not_fenced");
    let proof = stage.done("database.fence", json!({ "database": "predictions", "region": "east" })).await["proof"].clone();
    println!("fenced a frozen region in {:?}, {} ms of the lease were left", began.elapsed(), granted.remaining_ms);
    assert_eq!(proof["kind"], "lease_expired");
    let now = lease.lease().await.unwrap();
    assert!(now.remaining_ms == 0 && now.allowed.is_none() && now.expired_at.is_some(), "{now:?}");
    let (proved, expired): (jiff::Timestamp, jiff::Timestamp) = (proof["at"].as_str().unwrap().parse().unwrap(), now.expired_at.unwrap());
    assert!(proved >= expired, "proved at {proved}, the last grant ran out at {expired}");

    for (field, value) in [("database", json!("other")), ("epoch", json!(1)), ("region", json!("west"))] {
        let mut wrong = proof.clone();
        wrong[field] = value;
        assert_eq!(stage.fails("database.promote", promote(&wrong)).await.code, "proof_void", "{field}");
    }
    // The primary does not answer: lag is that at the last contact, and is no reason against it.
    let output = stage.done("readiness.check", json!({ "region": "west", "max_replica_lag": "30s" })).await;
    assert!(output.to_string().contains("as of the last contact"), "{output}");

    let admit = |proof: &Value| json!({ "database": "predictions", "region": "west", "proof": proof });
    assert_eq!(stage.fails("database.admit", admit(&proof)).await.code, "not_promoted");
    let promoted = stage.done("database.promote", promote(&proof)).await;
    assert_eq!((&promoted["timeline_before"], &promoted["timeline_after"]), (&json!(1), &json!(2)), "{promoted}");
    let admitted = stage.done("database.admit", admit(&proof)).await;
    assert_eq!(admitted["epoch"].as_u64(), Some(granted.epoch + 2));
    until("west acknowledges writes", || async { stage.lab.predict("west").await.0 == 200 }).await;
    assert_eq!(stage.fails("database.promote", promote(&proof)).await.code, "proof_void", "the lease has moved on");

    // What thaws acknowledges nothing; but it can still write what nobody will ever read.
    stage.lab.lab.thaw("east").unwrap();
    for _ in 0..5 {
        assert_eq!(stage.lab.predict("east").await.0, 503);
    }
    let east = stage.lab.sql("east").await;
    sqlx::query("insert into predictions values ('stranded', 1, 'east', now())").execute(&east).await.unwrap();
    east.close().await;
    let rejoin = json!({ "database": "predictions", "region": "east", "primary": "west" });
    let rejoined = stage.done("database.rejoin", rejoin.clone()).await;
    let kept = rejoined["final_snapshot"].as_str().unwrap();
    let kept = stage.world.instances("east").unwrap().snapshot(kept).await.unwrap().unwrap();
    assert_eq!(kept.status, "available");
    assert!(!stage.lab.has("east", "stranded").await);
    let back = json!({ "database": "predictions", "region": "east" });
    assert_eq!(stage.done("database.verify_replica", back.clone()).await["replica"]["state"], "streaming");
    assert_eq!(stage.done("database.rejoin", rejoin).await["final_snapshot"], Value::Null, "there was nothing to do");
    a_planned_fence_loses_nothing(&stage).await;
    stage.lab.down().await;
}

async fn the_same_step_is_one_snapshot(stage: &Stage) {
    let with = json!({ "database": "predictions", "region": "west" });
    let instances = stage.world.instances("west").unwrap();
    let before = instances.snapshots_of("predictions-west").await.unwrap().len();
    let mut names = Vec::new();
    for _ in 0..2 {
        let output =
            carry_out(&stage.cx("one snapshot", u64::MAX, Duration::from_secs(60)), "database.snapshot", with.clone()).await.unwrap();
        assert_eq!(output["status"], "available");
        names.push(output["snapshot"].clone());
    }
    assert_eq!(names[0], names[1]);
    assert_eq!(instances.snapshots_of("predictions-west").await.unwrap().len(), before + 1);
}

/// From west, which serves, to east, which follows it.
async fn a_planned_fence_loses_nothing(stage: &Stage) {
    let planned = json!({ "database": "predictions", "region": "west", "planned": true });
    // Taken back: the region serves on, and sessions that began meanwhile are no obstacle.
    let cx = stage.cx("taken back", u64::MAX, Duration::from_secs(30));
    let (action, with) = (find("database.fence").unwrap(), Node::typed(planned.clone()));
    let intent = action.prepare(&cx.read, &with).await.unwrap_or_else(|r| panic!("{}", r.failure)).intent;
    let output = finish(&cx, &*action, &with, &intent).await.unwrap();
    let client = stage.lab.sql("west").await;
    let refused = sqlx::query("insert into predictions values ('late', 1, 'west', now())").execute(&client).await.unwrap_err();
    assert_eq!(refused.as_database_error().unwrap().code().unwrap(), "25006");
    action.undo(&cx, &intent, Some(output)).await.unwrap_or_else(|e| panic!("{e:?}"));
    until("west acknowledges again", || async { stage.lab.predict("west").await.0 == 200 }).await;

    let open = stage.lab.sql("west").await;
    let mut open = open.begin().await.unwrap();
    sqlx::query("insert into predictions values ('never', 1, 'west', now())").execute(&mut *open).await.unwrap();
    let proof = stage.done("database.fence", planned).await["proof"].clone();
    assert_eq!(proof["kind"], "read_only");
    assert!(open.commit().await.is_err(), "its session was ended");
    let lsn: Lsn = proof["lsn"].as_str().unwrap().parse().unwrap();
    assert_eq!(stage.world.sql("predictions", "west").unwrap().sessions().await.unwrap(), 0);
    stage.done("database.promote", json!({ "database": "predictions", "region": "east", "proof": proof })).await;
    let state = stage.world.sql("predictions", "east").unwrap().state().await.unwrap();
    assert!(state.position >= lsn && state.read_only && !state.in_recovery, "what is read-only is promoted read-only: {state:?}");
    stage.done("database.admit", json!({ "database": "predictions", "region": "east", "proof": proof })).await;
    let began = Instant::now();
    until("east acknowledges writes", || async { stage.lab.predict("east").await.0 == 200 }).await;
    println!("east acknowledged {:?} after it was admitted", began.elapsed());
    assert!(!stage.lab.has("east", "never").await);
}

#[tokio::test]
async fn lab_actions_dns_golden_http_and_messages() {
    let stage = Stage::up().await;
    let (east, west) = (stage.lab.lab.plan().regions["east"].address, stage.lab.lab.plan().regions["west"].address);
    let golden = json!({ "endpoint": "inference", "tolerance": 1e-5 });
    let output = stage.done("model.golden", golden.clone()).await;
    assert!(output["region"] == "east" && output["cases"].as_u64().unwrap() > 3 && output["worst"].as_f64().unwrap() <= 1e-5, "{output}");
    let mut file: Value = serde_json::from_slice(&stage.get("east", "digits/golden.json").await).unwrap();
    let score = file["cases"][2]["scores"][0].as_f64().unwrap();
    file["cases"][2]["scores"][0] = json!(score + 0.25);
    stage.put("east", "digits/golden.json", file.to_string()).await;
    let failure = stage.fails("model.golden", golden).await;
    assert_eq!(failure.code, "golden_differs");
    assert!(failure.message.contains("case 2:") && failure.message.contains("difference 2."), "{failure}");

    let health = json!({ "endpoint": "inference", "region": "west", "path": "/healthz", "contains": "west" });
    assert_eq!(stage.done("http.check", health).await["status"], 200);
    let wrong = json!({ "endpoint": "inference", "path": "/nowhere" });
    assert!(stage.fails("http.check", wrong).await.message.contains("404"));
    messages(&stage).await;

    // It waits for what is slow: the change to be in sync, and the resolver's cache.
    stage.lab.lab.set("dns_delay_ms", 300).unwrap();
    assert_eq!(stage.lab.resolve(stage.lab.resolver()).await.0, east);
    let shift = json!({ "endpoint": "inference", "to": "west" });
    let cx = stage.cx("shift", u64::MAX, Duration::from_secs(60));
    let (action, with) = (find("dns.shift").unwrap(), Node::typed(shift.clone()));
    let record = || async {
        let ep = stage.estate.endpoints.values().next().unwrap();
        stage.world.dns("inference").unwrap().record(&ep.zone, &ep.name, "A").await.unwrap().unwrap()
    };
    let before = record().await;
    let intent = action.prepare(&cx.read, &with).await.unwrap_or_else(|r| panic!("{}", r.failure)).intent;
    let output = finish(&cx, &*action, &with, &intent).await.unwrap();
    assert!(output["waited_ms"].as_u64().unwrap() >= 300 && output["change"].is_string(), "{output}");
    assert_eq!(stage.lab.resolve(stage.lab.resolver()).await.0, west);
    action.undo(&cx, &intent, Some(output)).await.unwrap_or_else(|e| panic!("{e:?}"));
    assert_eq!(record().await, before, "put back exactly");

    // Somebody else was faster: nothing is overwritten.
    let cx = stage.cx("shift again", u64::MAX, Duration::from_secs(60));
    let intent = action.prepare(&cx.read, &with).await.unwrap_or_else(|r| panic!("{}", r.failure)).intent;
    let other = RecordSet { values: vec!["127.0.0.99".into()], ..before.clone() };
    let zone = stage.estate.endpoints.values().next().unwrap().zone.clone();
    stage.world.dns_mut("inference").unwrap().swap(&zone, Some(&before), Some(&other), "by hand").await.unwrap();
    assert!(matches!(action.apply(&cx, &intent).await, Err(ApplyError::Definite(f)) if f.code == "conflict"));
    assert_eq!(record().await, other);
    stage.lab.down().await;
}

async fn messages(stage: &Stage) {
    type Seen = Arc<Mutex<Vec<(String, Value)>>>;
    let seen: Seen = Arc::default();
    let keep = seen.clone();
    let hook = axum::routing::post(move |headers: axum::http::HeaderMap, body: axum::Json<Value>| async move {
        keep.lock().unwrap().push((headers["idempotency-key"].to_str().unwrap().to_owned(), body.0));
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at: SocketAddr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().route("/hook", hook)).await });
    let with = json!({ "url": format!("http://{at}/hook"), "message": "moved", "fields": { "to": "west" } });
    for _ in 0..2 {
        carry_out(&stage.cx("hook", u64::MAX, Duration::from_secs(10)), "notify.webhook", with.clone()).await.unwrap();
    }
    let got = seen.lock().unwrap().clone();
    assert!(got.len() == 2 && got[0] == got[1], "the same message twice bears the same key: {got:?}");
    assert!(got[0].0.len() == 64 && got[0].1["key"] == got[0].0 && got[0].1["fields"]["to"] == "west", "{got:?}");
    let refused = json!({ "url": format!("http://{at}/other"), "message": "moved" });
    assert!(stage.fails("notify.webhook", refused).await.message.contains("404"));

    let file = stage.scratch.path().join("message");
    let argv = ["/bin/sh", "-c", "cat > \"$1\"", "page", file.to_str().unwrap()];
    stage.done("notify.exec", json!({ "argv": argv, "message": "moved; $HOME" })).await;
    let message: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(message["message"], "moved; $HOME", "{message}");
    let failure = stage.fails("notify.exec", json!({ "argv": ["/bin/false"], "message": "m" })).await;
    assert!(failure.message.contains("exit code 1"), "{failure}");
}
