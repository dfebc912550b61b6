//! A stage for the `rds.*` actions: an emulator that nobody of Muster wrote, the fault proxy before it, an estate of two
//! regions that goes through the proxy, and the engine's rule for one step.

use super::{
    fault_proxy::{Fault, FaultProxy},
    place::Place,
    stores_servers::{Server, ministack, moto},
};
use muster::{
    actions::{contract::*, find},
    model::{effect::Seen, estate::Estate, node::Node, plan::Scope},
    providers::{
        aws::AwsClients,
        clock::{Clock, SystemClock},
        port::{InstanceRead, WorldRead},
        world::World,
    },
    service::Muster,
};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{sync::Arc, time::Duration};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    Moto,
    MiniStack,
}

impl Which {
    pub async fn started(self) -> Server {
        match self {
            Self::Moto => moto().await,
            Self::MiniStack => ministack().await,
        }
    }
}

pub struct Stage {
    pub proxy: FaultProxy,
    pub place: Place,
    pub world: Arc<World>,
    pub estate: Arc<Estate>,
    server: Server,
}

/// Where the emulators are asked past the proxy, to set things up and to look at the end.
pub const EAST: &str = "us-east-1";
pub const WEST: &str = "us-west-2";

/// Where no server is. Not where the emulator says: that may be somebody else's.
pub const NOWHERE: &str = "        host: 127.0.0.1\n        port: 1\n";

/// Where a server of the test's own is.
pub fn at(port: u16) -> String {
    format!("        host: 127.0.0.1\n        port: {port}\n")
}

impl Stage {
    pub async fn up(which: Which) -> Self {
        Self::with(which, NOWHERE, NOWHERE).await
    }

    /// What stands below the instances in east and in west; at least where their servers are.
    pub async fn with(which: Which, east: &str, west: &str) -> Self {
        let server = which.started().await;
        let proxy = FaultProxy::before(server.port());
        let place = Place::new();
        place.file("id", "test").file("secret", "testtest");
        let keys = "credentials: { access_key_id: { file: @/id }, secret_access_key: { file: @/secret } }";
        let region = |name: &str, aws: &str| {
            let url = proxy.url();
            format!(
                "  {name}:\n    aws:\n      region: {aws}\n      {keys}\n      endpoints: {{ rds: \"{url}\", cloudwatch: \"{url}\" }}\n"
            )
        };
        let regions = region("east", EAST) + &region("west", WEST);
        let instances = format!("      east:\n        id: orders-east\n{east}      west:\n        id: orders-west\n{west}");
        place.file(
            "muster.yaml",
            &format!("regions:\n{regions}databases:\n  orders:\n    engine: rds-postgres\n    instances:\n{instances}"),
        );
        let estate = Arc::new(Muster::new(place.path("state"), place.path("muster.yaml")).estate().unwrap());
        let world = Arc::new(World::new(estate.clone(), Arc::new(SystemClock::new())));
        Self { proxy, place, world, estate, server }
    }

    /// Where the emulator is, past the proxy.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Past the proxy, in this region.
    pub async fn rds(&self, region: &str) -> aws_sdk_rds::Client {
        let mut aws = self.estate.regions["east"].aws.clone().unwrap();
        aws.region = region.to_owned();
        aws.endpoints.rds = Some(self.server.url().parse().unwrap());
        AwsClients::new(Some(aws)).rds().await.unwrap().write.clone()
    }

    pub async fn make_instance(&self, region: &str, id: &str) {
        let call = self.rds(region).await.create_db_instance().db_instance_identifier(id).engine("postgres");
        let call = call.db_instance_class("db.t3.micro").allocated_storage(20).master_username("owner").master_user_password("first-one");
        call.send().await.unwrap_or_else(|e| panic!("{id}: {e:?}"));
    }

    pub fn instances(&self, region: &str) -> Arc<dyn InstanceRead> {
        self.world.instances(region).unwrap()
    }

    /// How many instances and snapshots a region has, whoever made them.
    pub async fn count(&self, region: &str) -> (usize, usize) {
        let rds = self.rds(region).await;
        let instances = rds.describe_db_instances().send().await.unwrap();
        let snapshots = rds.describe_db_snapshots().send().await.unwrap();
        let manual = snapshots.db_snapshots().iter().filter(|s| s.snapshot_type() != Some("automated")).count();
        (instances.db_instances().len(), manual)
    }

    pub fn cx(&self, key: &str) -> WriteCx {
        let read = ReadCx {
            world: self.world.clone(),
            estate: self.estate.clone(),
            run: "0190".into(),
            step: "step".into(),
            scope: Scope::Live,
            lost: None,
            key: hex::encode(Sha256::digest(key)),
            deadline: Duration::from_secs(60),
            scratch: self.place.path("scratch"),
        };
        WriteCx::new(read, self.world.clone(), Arc::new(|| true))
    }

    /// One step as the engine carries it out: what is unknown is looked at, and only what is absent is done again.
    pub async fn step(&self, name: &str, key: &str, with: Value) -> Result<Value, String> {
        let (action, cx) = (find(name).unwrap(), self.cx(key));
        let prepared = action.prepare(&cx.read, &Node::typed(with)).await.map_err(|r| format!("{}: {}", r.failure.code, r.failure))?;
        for _ in 0..8 {
            match action.apply(&cx, &prepared.intent).await {
                Ok(_) | Err(ApplyError::Unknown(_)) => {}
                Err(ApplyError::Retry { after, .. }) => {
                    tokio::time::sleep(after.min(Duration::from_millis(200))).await;
                    continue;
                }
                Err(ApplyError::Definite(f)) => return Err(format!("{}: {f}", f.code)),
            }
            loop {
                match action.observe(&cx.read, &prepared.intent).await {
                    Seen::Done(output) => return Ok(output),
                    Seen::Pending { .. } => tokio::time::sleep(Duration::from_millis(100)).await,
                    Seen::Absent => break,
                    Seen::Differs { found } => return Err(format!("differs: {found}")),
                    Seen::CannotTell { why } => return Err(format!("cannot tell: {why}")),
                }
            }
        }
        Err("it never came through".to_owned())
    }

    /// One step of the real program, which is killed while its call has had its effect and the answer is on its way; then
    /// `resume`, which must succeed.
    pub fn killed_before_its_record(&self, name: &str, call: &str, with: &Value) {
        self.place.book(&format!("  - id: act\n    uses: {name}\n    with: {with}\n"));
        self.proxy.fault(call, 1, Fault::HoldAfter);
        let said = tokio::task::block_in_place(|| {
            let running = self.place.start(&["run", "book.yaml", "--live", "--json"]);
            self.place.until_told(&format!("{name}: the effect"), || self.proxy.holding() == 1, || running.told());
            running.signal("KILL");
            running.end();
            self.proxy.let_go();
            self.place.muster(&["resume"])
        });
        assert_eq!(said.expect(0).statuses(), ["succeeded"], "{name}, {with}");
    }

    /// A check, whose answer is that of `apply`.
    pub async fn check(&self, name: &str, with: Value) -> Result<Value, String> {
        let (action, cx) = (find(name).unwrap(), self.cx("check"));
        let prepared = action.prepare(&cx.read, &Node::typed(with)).await.map_err(|r| r.failure.to_string())?;
        action.apply(&cx, &prepared.intent).await.map_err(|e| match e {
            ApplyError::Definite(f) | ApplyError::Unknown(f) | ApplyError::Retry { failure: f, .. } => format!("{}: {f}", f.code),
        })
    }

    /// A figure of `ReplicaLag`, as RDS would leave it in CloudWatch. The emulators do not look at signatures.
    pub async fn put_lag(&self, region: &str, instance: &str, seconds: f64) {
        let now = SystemClock::new().now();
        let body = format!(
            "Action=PutMetricData&Version=2010-08-01&Namespace=AWS%2FRDS&MetricData.member.1.MetricName=ReplicaLag&MetricData.member.1.Value={seconds}\
             &MetricData.member.1.Unit=Seconds&MetricData.member.1.Timestamp={now:.0}&MetricData.member.1.Dimensions.member.1.Name=DBInstanceIdentifier\
             &MetricData.member.1.Dimensions.member.1.Value={instance}"
        );
        let scope = format!("AWS4-HMAC-SHA256 Credential=test/20260101/{region}/monitoring/aws4_request, SignedHeaders=host, Signature=0");
        let sent = reqwest::Client::new().post(self.server.url()).header("authorization", scope);
        let sent = sent.header("content-type", "application/x-www-form-urlencoded").body(body).send().await.unwrap();
        let status = sent.status();
        assert!(status.is_success(), "{status}: {}", sent.text().await.unwrap());
    }
}
