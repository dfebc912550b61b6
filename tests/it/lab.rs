//! The lab, seen from outside: what it promises to the drills that stand on it.

use aws_sdk_rds::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_route53::types::{Change, ChangeAction, ChangeBatch, ResourceRecord, ResourceRecordSet, RrType};
use muster::lab::{Lab, Options, Servers, plan, process};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// A lab of the test's own, taken away however the test ends.
pub(crate) struct Box {
    pub lab: Lab,
    _dir: tempfile::TempDir,
    home: PathBuf,
}

impl Box {
    pub async fn up() -> Self {
        Self::of(Servers::Rds).await
    }
    pub async fn of(servers: Servers) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let began = Instant::now();
        let exe = Some(PathBuf::from(env!("CARGO_BIN_EXE_muster")));
        let lab = Lab::up(&dir.path().join("state"), Options { exe, servers, ..Options::default() }).await.unwrap();
        println!("up in {:?}", began.elapsed());
        let home = lab.plan().home.clone();
        Self { lab, _dir: dir, home }
    }
    pub fn state(&self) -> PathBuf {
        self._dir.path().join("state")
    }
    pub fn url(&self, region: &str, path: &str) -> String {
        let r = &self.lab.plan().regions[region];
        format!("http://{}{path}", r.at(r.inference))
    }
    pub async fn predict(&self, region: &str) -> (u16, Value) {
        ask(&self.url(region, "/predict"), true).await
    }
    pub async fn sql(&self, region: &str) -> sqlx::PgPool {
        let plan = self.lab.plan();
        let r = &plan.regions[region];
        let options = muster::lab::pg::connect_options(r.address, r.postgres, &plan.secret("database_password").unwrap());
        sqlx::postgres::PgPoolOptions::new().max_connections(2).acquire_timeout(Duration::from_secs(3)).connect_with(options).await.unwrap()
    }
    pub async fn has(&self, region: &str, id: &str) -> bool {
        let pool = self.sql(region).await;
        let count: i64 =
            sqlx::query_scalar("select count(*) from predictions where id = $1").bind(id.to_owned()).fetch_one(&pool).await.unwrap();
        count == 1
    }
    pub async fn allow(&self, region: Option<&str>) -> Value {
        let base = format!("http://{}/leases/predictions", self.lab.plan().outside.at(self.lab.plan().outside.lease));
        let client = reqwest::Client::new();
        let now: Value = client.get(&base).send().await.unwrap().json().await.unwrap();
        let body = json!({ "region": region, "expect_epoch": now["epoch"] });
        client.post(format!("{base}/allow")).json(&body).send().await.unwrap().json().await.unwrap()
    }
    /// Until no grant can be outstanding.
    pub async fn lease_over(&self) {
        let base = format!("http://{}/leases/predictions", self.lab.plan().outside.at(self.lab.plan().outside.lease));
        until("the lease runs out", || async {
            let now: Value = reqwest::get(&base).await.unwrap().json().await.unwrap();
            now["remaining_ms"] == 0
        })
        .await;
    }
    fn credentials(&self) -> Credentials {
        let secret = |name: &str| self.lab.plan().secret(name).unwrap().expose_secret().to_owned();
        Credentials::new(secret("access_key_id"), secret("secret_access_key"), None, None, "test")
    }
    fn rds(&self, region: &str) -> aws_sdk_rds::Client {
        let r = &self.lab.plan().regions[region];
        let config = aws_sdk_rds::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(r.aws_region.clone()))
            .endpoint_url(format!("http://{}", r.at(r.rds)))
            .credentials_provider(self.credentials());
        aws_sdk_rds::Client::from_conf(config.build())
    }
    fn route53(&self) -> aws_sdk_route53::Client {
        let outside = &self.lab.plan().outside;
        let config = aws_sdk_route53::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .endpoint_url(format!("http://{}", outside.at(outside.route53)))
            .credentials_provider(self.credentials());
        aws_sdk_route53::Client::from_conf(config.build())
    }
    /// What a server answers for the name: address and remaining seconds.
    pub async fn resolve(&self, server: SocketAddr) -> (IpAddr, u32) {
        use hickory_proto::{
            op::{Message, Query},
            rr::{Name, RData, RecordType},
        };
        let mut query = Message::query();
        query.add_query(Query::query("api.scoring.test.".parse::<Name>().unwrap(), RecordType::A));
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(&query.to_vec().unwrap(), server).await.unwrap();
        let mut buffer = [0; 2048];
        let length = tokio::time::timeout(Duration::from_secs(2), socket.recv(&mut buffer)).await.unwrap().unwrap();
        let message = Message::from_vec(&buffer[..length]).unwrap();
        let record = message.answers.first().expect("an answer");
        let RData::A(address) = record.data else { panic!("{record:?}") };
        (IpAddr::V4(address.0), record.ttl)
    }
    pub fn resolver(&self) -> SocketAddr {
        self.lab.plan().outside.at(self.lab.plan().outside.resolver)
    }
    fn authority(&self) -> SocketAddr {
        self.lab.plan().outside.at(self.lab.plan().outside.dns)
    }
    /// Ends it, and looks that nothing is left.
    pub async fn down(self) {
        let began = Instant::now();
        assert!(Lab::down(&self.state()).await.unwrap());
        println!("down in {:?}", began.elapsed());
        nothing_left(&self.home, &self.state());
    }
}

impl Drop for Box {
    fn drop(&mut self) {
        // A failed test leaves nothing either.
        for proc in process::below(&self.home) {
            process::signal(proc.pid, rustix::process::Signal::KILL);
        }
        let _ = std::fs::remove_dir_all(&self.home);
    }
}

fn nothing_left(home: &Path, state: &Path) {
    assert_eq!(process::below(home), [], "processes are left");
    assert!(!home.exists(), "{} is left", home.display());
    assert!(!state.join("lab").exists(), "the record is left");
}

pub(crate) async fn ask(url: &str, record: bool) -> (u16, Value) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let id = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let body = json!({ "id": id, "features": vec![1.0; 64], "record": record });
    match reqwest::Client::new().post(url).json(&body).timeout(Duration::from_secs(3)).send().await {
        Ok(answer) => (answer.status().as_u16(), answer.json().await.unwrap_or(Value::Null)),
        Err(_) => (0, Value::Null),
    }
}

pub(crate) async fn until<F: Future<Output = bool>>(what: &str, check: impl Fn() -> F) {
    let end = Instant::now() + Duration::from_secs(30);
    while !check().await {
        assert!(Instant::now() < end, "never came: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn status_of(rds: &aws_sdk_rds::Client, id: &str) -> Option<String> {
    let answer = rds.describe_db_instances().db_instance_identifier(id).send().await;
    match answer {
        Ok(found) => found.db_instances()[0].db_instance_status().map(str::to_owned),
        Err(error) => {
            assert!(error.as_service_error().unwrap().is_db_instance_not_found_fault(), "{error:?}");
            None
        }
    }
}

#[tokio::test]
async fn a_prediction_is_in_both_databases_and_a_lost_region_answers_nothing() {
    let lab = Box::up().await;
    until("east holds the lease", || async { lab.predict("east").await.0 == 200 }).await;

    let (address, _) = lab.resolve(lab.resolver()).await;
    let port = lab.lab.plan().regions["east"].inference;
    let (status, answer) = ask(&format!("http://{address}:{port}/predict"), true).await;
    assert_eq!((status, answer["region"].as_str()), (200, Some("east")), "{answer}");
    assert_eq!(answer["scores"].as_array().unwrap().len(), 10);
    let id = answer["id"].as_str().unwrap().to_owned();
    assert!(lab.has("east", &id).await);
    until("the row is on the standby", || lab.has("west", &id)).await;
    let (status, answer) = lab.predict("west").await;
    assert_eq!(status, 503, "west must not acknowledge a write: {answer}");
    assert_eq!(ask(&lab.url("west", "/predict"), false).await.0, 200);

    let mut times: Vec<Duration> = Vec::new();
    for _ in 0..50 {
        let began = Instant::now();
        assert_eq!(lab.predict("east").await.0, 200);
        times.push(began.elapsed());
    }
    times.sort();
    for p in lab.lab.status().unwrap() {
        let text = std::fs::read_to_string(format!("/proc/{}/status", p.pid.unwrap())).unwrap();
        println!("{} {}: {}", p.region, p.role, text.lines().find(|l| l.starts_with("VmRSS")).unwrap());
    }
    println!("predict: median {:?}, worst {:?}", times[25], times[49]);

    assert!(lab.lab.status().unwrap().iter().all(|p| p.state == "running"), "{:?}", lab.lab.status());
    assert!(lab.lab.kill("east").await.unwrap() >= 4);
    assert_eq!(process::below(&lab.home.join("east")), []);
    assert_eq!(lab.predict("east").await.0, 0);
    assert!(lab.lab.status().unwrap().iter().filter(|p| p.region == "east").all(|p| p.state == "dead"));

    assert_eq!(lab.allow(None).await["epoch"], 2);
    lab.lease_over().await;
    assert_eq!(lab.allow(Some("west")).await["epoch"], 3);
    let said = lab.lab.heal("all").await.unwrap();
    assert!(said.contains("postgres:predictions-east in east"), "{said}");
    assert!(lab.has("east", &id).await, "the old primary is up again as it was");
    tokio::time::sleep(Duration::from_millis(600)).await;
    for _ in 0..5 {
        let (status, answer) = lab.predict("east").await;
        assert_eq!(status, 503, "the old primary acknowledged a write: {answer}");
    }
    lab.down().await;
}

#[tokio::test]
async fn a_thawed_region_acknowledges_nothing_once_the_lease_is_elsewhere() {
    let lab = Box::up().await;
    until("east holds the lease", || async { lab.predict("east").await.0 == 200 }).await;
    assert!(lab.lab.freeze("east").unwrap() >= 4);
    // A signal is on its way for a moment.
    let stopped = || lab.lab.status().unwrap().iter().filter(|p| p.region == "east").all(|p| p.state == "stopped");
    until("east is frozen", || async { stopped() }).await;
    assert_eq!(lab.predict("east").await.0, 0, "a frozen region answers nothing");
    lab.allow(None).await;
    lab.lease_over().await;
    lab.allow(Some("west")).await;
    let url = lab.url("east", "/predict");
    // Waiting in the frozen socket, to be read the moment it thaws.
    let waiting: Vec<_> = (0..5)
        .map(|_| {
            let url = url.clone();
            tokio::spawn(async move { ask(&url, true).await.0 })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(lab.lab.thaw("east").unwrap() >= 4);
    for waiting in waiting {
        assert_eq!(waiting.await.unwrap(), 503);
    }
    assert_eq!(lab.predict("east").await.0, 503);
    lab.down().await;
}

#[tokio::test]
async fn a_delayed_standby_and_a_lost_database() {
    let lab = Box::up().await;
    until("east holds the lease", || async { lab.predict("east").await.0 == 200 }).await;
    assert_eq!(lab.lab.delay_replication("east").unwrap(), 1);
    let (status, answer) = lab.predict("east").await;
    assert_eq!(status, 200);
    let id = answer["id"].as_str().unwrap().to_owned();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(lab.has("east", &id).await && !lab.has("west", &id).await, "the log was sent all the same");
    lab.lab.heal("east").await.unwrap();
    until("the standby catches up", || lab.has("west", &id)).await;

    lab.lab.lose_database("east").await.unwrap();
    let (status, answer) = lab.predict("east").await;
    assert_eq!(status, 503, "{answer}");
    lab.lab.heal("all").await.unwrap();
    until("predictions are back", || async { lab.predict("east").await.0 == 200 }).await;
    let attached = Lab::attach(&lab.state()).unwrap();
    attached.set("predict_delay_ms.east", 300).unwrap();
    let began = Instant::now();
    assert_eq!(lab.predict("east").await.0, 200);
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert!(attached.set("nonsense", 1).is_err());
    lab.down().await;
}

#[tokio::test]
async fn rds_promotes_copies_snapshots_and_deletes() {
    let lab = Box::up().await;
    let (east, west) = (lab.rds("east"), lab.rds("west"));
    let replica = west.describe_db_instances().send().await.unwrap().db_instances()[0].clone();
    let arn = lab.lab.plan().regions["east"].arn("predictions-east");
    assert_eq!(replica.read_replica_source_db_instance_identifier(), Some(arn.as_str()));
    let no = east.promote_read_replica().db_instance_identifier("predictions-east").send().await.unwrap_err();
    assert!(no.as_service_error().unwrap().is_invalid_db_instance_state_fault(), "{no:?}");
    assert_eq!(status_of(&west, "nothing").await, None);

    east.create_db_snapshot().db_instance_identifier("predictions-east").db_snapshot_identifier("s1").send().await.unwrap();
    let again = east.create_db_snapshot().db_instance_identifier("predictions-east").db_snapshot_identifier("s1").send().await.unwrap_err();
    assert!(again.as_service_error().unwrap().is_db_snapshot_already_exists_fault(), "{again:?}");
    until("the snapshot is there", || async {
        let all = east.describe_db_snapshots().db_snapshot_identifier("s1").send().await.unwrap();
        all.db_snapshots()[0].status() == Some("available") && status_of(&east, "predictions-east").await.as_deref() == Some("available")
    })
    .await;

    let promoted = west.promote_read_replica().db_instance_identifier("predictions-west").send().await.unwrap();
    assert_eq!(promoted.db_instance().unwrap().db_instance_status(), Some("modifying"));
    until("west is promoted", || async { status_of(&west, "predictions-west").await.as_deref() == Some("available") }).await;
    let pool = lab.sql("west").await;
    assert!(!sqlx::query_scalar::<_, bool>("select pg_is_in_recovery()").fetch_one(&pool).await.unwrap());
    let now = west.describe_db_instances().send().await.unwrap().db_instances()[0].clone();
    assert_eq!(now.read_replica_source_db_instance_identifier(), None);

    let delete = east.delete_db_instance().db_instance_identifier("predictions-east");
    delete.clone().send().await.unwrap_err();
    delete.final_db_snapshot_identifier("last").send().await.unwrap();
    until("east is deleted", || async { status_of(&east, "predictions-east").await.is_none() }).await;
    let kept = east.describe_db_snapshots().db_snapshot_identifier("last").send().await.unwrap();
    assert_eq!(kept.db_snapshots()[0].status(), Some("available"));

    let source = lab.lab.plan().regions["west"].arn("predictions-west");
    let tag = aws_sdk_rds::types::Tag::builder().key("run").value("r1").build();
    let create = east.create_db_instance_read_replica().db_instance_identifier("predictions-east").source_db_instance_identifier(&source);
    create.tags(tag).send().await.unwrap();
    // The region dies in the middle of it, and goes on by itself when it is back.
    tokio::time::sleep(Duration::from_millis(200)).await;
    lab.lab.kill("east").await.unwrap();
    lab.lab.heal("east").await.unwrap();
    until("east is a replica", || async { status_of(&east, "predictions-east").await.as_deref() == Some("available") }).await;
    let fresh = east.describe_db_instances().send().await.unwrap().db_instances()[0].clone();
    assert_eq!(fresh.tag_list()[0].value(), Some("r1"));
    let pool = lab.sql("east").await;
    assert!(sqlx::query_scalar::<_, bool>("select pg_is_in_recovery()").fetch_one(&pool).await.unwrap());

    east.stop_db_instance().db_instance_identifier("predictions-east").send().await.unwrap();
    until("it is stopped", || async { status_of(&east, "predictions-east").await.as_deref() == Some("stopped") }).await;
    east.start_db_instance().db_instance_identifier("predictions-east").send().await.unwrap();
    until("it is started", || async { status_of(&east, "predictions-east").await.as_deref() == Some("available") }).await;
    lab.down().await;
}

fn record(address: &str, ttl: i64) -> ResourceRecordSet {
    let value = ResourceRecord::builder().value(address).build().unwrap();
    ResourceRecordSet::builder().name("api.scoring.test").r#type(RrType::A).ttl(ttl).resource_records(value).build().unwrap()
}

async fn change(dns: &aws_sdk_route53::Client, changes: Vec<(ChangeAction, ResourceRecordSet)>) -> Result<String, String> {
    let changes = changes.into_iter().map(|(action, set)| Change::builder().action(action).resource_record_set(set).build().unwrap());
    let batch = ChangeBatch::builder().set_changes(Some(changes.collect())).comment("test").build().unwrap();
    match dns.change_resource_record_sets().hosted_zone_id(plan::ZONE_ID).change_batch(batch).send().await {
        Ok(done) => Ok(done.change_info().unwrap().id().to_owned()),
        Err(error) => {
            let error = error.into_service_error();
            assert!(error.is_invalid_change_batch(), "{error:?}");
            Err(format!("{error:?}"))
        }
    }
}

#[tokio::test]
async fn dns_moves_by_compare_and_swap_and_reaches_clients_after_its_time() {
    let lab = Box::up().await;
    let dns = lab.route53();
    let (east, west) = (lab.lab.plan().regions["east"].address, lab.lab.plan().regions["west"].address);
    let ttl = i64::from(plan::RECORD_TTL_S);
    let zones = dns.list_hosted_zones_by_name().dns_name("scoring.test").send().await.unwrap();
    assert_eq!(zones.hosted_zones()[0].name(), "scoring.test.");
    assert_eq!(lab.resolve(lab.resolver()).await.0, IpAddr::V4(east));
    lab.lab.set("dns_delay_ms", 400).unwrap();

    let swap = vec![(ChangeAction::Delete, record(&east.to_string(), ttl)), (ChangeAction::Create, record(&west.to_string(), ttl))];
    let id = change(&dns, swap.clone()).await.unwrap();
    let status = || async { dns.get_change().id(&id).send().await.unwrap().change_info().unwrap().status().as_str().to_owned() };
    assert_eq!(status().await, "PENDING");
    assert_eq!(lab.resolve(lab.authority()).await.0, IpAddr::V4(east));
    until("it is in sync", || async { status().await == "INSYNC" }).await;
    assert_eq!(lab.resolve(lab.authority()).await, (IpAddr::V4(west), plan::RECORD_TTL_S));
    until("the resolver has it", || async { lab.resolve(lab.resolver()).await.0 == IpAddr::V4(west) }).await;
    assert!(change(&dns, swap).await.unwrap_err().contains("do not match"));
    let again = vec![(ChangeAction::Create, record(&west.to_string(), ttl))];
    assert!(change(&dns, again).await.unwrap_err().contains("already exists"));
    let listed = dns.list_resource_record_sets().hosted_zone_id(plan::ZONE_ID).start_record_name("api.scoring.test").send().await.unwrap();
    assert_eq!(listed.resource_record_sets()[0].resource_records()[0].value(), west.to_string());
    lab.down().await;
}

#[tokio::test]
async fn failover_records_follow_their_health_checks() {
    use aws_sdk_route53::types::{HealthCheckConfig, HealthCheckType, ResourceRecordSetFailover};
    let lab = Box::up().await;
    let dns = lab.route53();
    let regions = &lab.lab.plan().regions;
    let (east, west) = (regions["east"].address, regions["west"].address);
    let config = HealthCheckConfig::builder()
        .r#type(HealthCheckType::Http)
        .ip_address(east.to_string())
        .port(i32::from(regions["east"].inference))
        .resource_path("/healthz")
        .request_interval(10)
        .failure_threshold(1);
    let made = dns.create_health_check().caller_reference("one").health_check_config(config.build().unwrap()).send().await.unwrap();
    let check = made.health_check().unwrap().id().to_owned();
    let failover = |address: std::net::Ipv4Addr, role: ResourceRecordSetFailover, check: Option<String>| {
        let mut set = record(&address.to_string(), 0);
        set.set_identifier = Some(role.as_str().to_owned());
        set.failover = Some(role);
        set.health_check_id = check;
        set
    };
    let simple = record(&east.to_string(), i64::from(plan::RECORD_TTL_S));
    let batch = vec![
        (ChangeAction::Delete, simple),
        (ChangeAction::Create, failover(east, ResourceRecordSetFailover::Primary, Some(check.clone()))),
        (ChangeAction::Create, failover(west, ResourceRecordSetFailover::Secondary, None)),
    ];
    change(&dns, batch).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(lab.resolve(lab.authority()).await.0, IpAddr::V4(east));
    lab.lab.kill("east").await.unwrap();
    until("the secondary answers", || async { lab.resolve(lab.authority()).await.0 == IpAddr::V4(west) }).await;
    let status = dns.get_health_check_status().health_check_id(&check).send().await.unwrap();
    let word = status.health_check_observations()[0].status_report().unwrap().status().unwrap().to_owned();
    assert!(word.starts_with("Failure"), "{word}");
    lab.down().await;
}

#[tokio::test]
async fn objects_are_stored_for_signed_requests_only() {
    use aws_sdk_s3::{Client, Config, config::Credentials};
    let lab = Box::up().await;
    let r = &lab.lab.plan().regions["west"];
    let client = |credentials: Credentials| {
        let config = Config::builder()
            .behavior_version(aws_sdk_s3::config::BehaviorVersion::latest())
            .region(aws_sdk_s3::config::Region::new(r.aws_region.clone()))
            .endpoint_url(format!("http://{}", r.at(r.s3)))
            .credentials_provider(credentials)
            .force_path_style(true);
        Client::from_conf(config.build())
    };
    let ours = client(lab.credentials());
    let put = |body: &'static [u8]| ours.put_object().bucket("models-west").key("a/b c").body(body.to_vec().into());
    put(b"hello").metadata("origin", "test").if_none_match("*").send().await.unwrap();
    put(b"other").if_none_match("*").send().await.expect_err("it is there already");
    let got = ours.get_object().bucket("models-west").key("a/b c").send().await.unwrap();
    assert_eq!(got.metadata().unwrap()["origin"], "test");
    assert_eq!(got.body.collect().await.unwrap().into_bytes().as_ref(), b"hello");
    let listed = ours.list_objects_v2().bucket("models-west").send().await.unwrap();
    let keys: Vec<&str> = listed.contents().iter().filter_map(|o| o.key()).collect();
    assert_eq!(keys, ["a/b c", "digits/golden.json", "digits/model.onnx"]);
    let stranger = client(Credentials::new("AKIASTRANGER", "x", None, None, "test"));
    stranger.get_object().bucket("models-west").key("a/b c").send().await.expect_err("not signed by our key");
    lab.down().await;
}

#[tokio::test]
async fn down_cleans_up_after_an_up_that_was_killed() {
    // Counted from when it has begun: on a busy machine that takes a moment.
    for wait in [0, 300, 800] {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        std::fs::create_dir(&state).unwrap();
        let mut child =
            std::process::Command::new(env!("CARGO_BIN_EXE_muster")).args(["lab", "up", "--state"]).arg(&state).spawn().unwrap();
        let home = plan::home_for(&state.canonicalize().unwrap());
        until("it has begun", || async { home.exists() }).await;
        std::thread::sleep(Duration::from_millis(wait));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(Lab::attach(&state).is_err());
        assert!(Lab::down(&state).await.unwrap());
        nothing_left(&home, &state);
        assert!(!Lab::down(&state).await.unwrap(), "there was nothing left to take away");
    }
}
