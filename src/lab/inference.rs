//! The service that recovers: predicts with the model from its region's bucket, and acknowledges a recorded
//! prediction only when it held the write lease both before the write and after the commit.
//!
//! Over Amazon's servers it writes to its own region's database, and holds the lease for it all the time. Over servers of
//! one's own it writes to the primary, wherever that is: the lease says where, it is asked for when a write comes and kept
//! only while writes come. So the name can move before the database does, and a switchover is all that clients feel.

use super::{
    error::{LabError, LabResult},
    instances::RegionState,
    model::{FEATURES, Model, ONNX_KEY},
    pg::{self, connect_options},
    plan::{LEASE, LabPlan, Servers, bucket_of, instance_of, read_json},
    sdk, web,
};
use crate::providers::clock::Clock;
use axum::{
    Json, Router,
    extract::{State, rejection::JsonRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use secrecy::SecretString;
use serde::Deserialize;
use sqlx::{PgPool, postgres::PgPoolOptions};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

const RENEW_EVERY: Duration = Duration::from_millis(250);
/// Where the lease also says which server to write to, and whoever waits for the answer is a client.
const RENEW_OFTEN: Duration = Duration::from_millis(50);
/// For so long after a write it is kept.
const IN_USE: Duration = Duration::from_secs(1);
const RENEW_LIMIT: Duration = Duration::from_millis(400);
const WRITE_LIMIT: Duration = Duration::from_millis(1_500);
const MODEL_LIMIT: Duration = Duration::from_secs(5);
const MODEL_EVERY: Duration = Duration::from_secs(1);

/// What was granted: the epoch, until when on our monotonic clock, and for which region's database.
#[derive(Clone, Debug, Default)]
struct Grant {
    epoch: u64,
    until: Duration,
    region: String,
}

struct Service {
    plan: Arc<LabPlan>,
    region: String,
    clock: Arc<dyn Clock>,
    password: SecretString,
    client: reqwest::Client,
    grant: Mutex<Grant>,
    /// The region whose database is written to, as far as is known.
    target: Mutex<String>,
    /// When a write last came.
    used: Mutex<Option<Duration>>,
    asking: tokio::sync::Mutex<()>,
    model: RwLock<Option<Arc<Model>>>,
    /// For each region a pool, and the port that it leads to.
    pools: Mutex<BTreeMap<String, (u16, PgPool)>>,
}

#[derive(Deserialize)]
struct Ask {
    id: String,
    features: Vec<f32>,
    #[serde(default = "yes")]
    record: bool,
}

fn yes() -> bool {
    true
}

/// Why nothing is acknowledged.
type No = (StatusCode, String);

fn unavailable(cause: impl Into<String>) -> No {
    (StatusCode::SERVICE_UNAVAILABLE, cause.into())
}

impl Service {
    /// The lease, while it is surely ours.
    fn held(&self) -> Result<Grant, No> {
        let grant = locked(&self.grant).clone();
        if self.clock.monotonic() < grant.until {
            return Ok(grant);
        }
        Err(unavailable(format!("no write lease: region {} is not granted `{LEASE}`", self.region)))
    }

    fn own(&self) -> bool {
        self.plan.servers == Servers::Own
    }

    /// The lease for one write.
    async fn lease(&self) -> Result<Grant, No> {
        if !self.own() {
            return self.held();
        }
        *locked(&self.used) = Some(self.clock.monotonic());
        if self.held().is_err() {
            // One asks for all that wait.
            let _one = self.asking.lock().await;
            if self.held().is_err() {
                self.renew().await;
            }
        }
        self.held()
    }

    /// Asks for the lease. A refusal ends it at once; silence lets it run out.
    async fn renew(&self) {
        let url = format!("http://{}/leases/{LEASE}/acquire", self.plan.outside.at(self.plan.outside.lease));
        // A refusal may name another region to ask for, once.
        for _ in 0..2 {
            let region = locked(&self.target).clone();
            let ask = serde_json::json!({ "region": region, "holder": format!("inference-{}", std::process::id()) });
            // Counted from before the request leaves: we always stop before the authority believes that we have.
            let before = self.clock.monotonic();
            match acquire(&self.client, &url, &ask, before).await {
                Some(Answer::Granted { epoch, until }) => {
                    *locked(&self.grant) = Grant { epoch, until, region };
                    return;
                }
                Some(Answer::Refused { allowed }) => {
                    *locked(&self.grant) = Grant::default();
                    match allowed.filter(|other| self.own() && *other != region && self.plan.regions.contains_key(other)) {
                        Some(other) => *locked(&self.target) = other,
                        None => return,
                    }
                }
                None => return,
            }
        }
    }

    async fn keep_lease(self: Arc<Self>) {
        loop {
            let used = *locked(&self.used);
            if !self.own() {
                self.renew().await;
            } else if used.is_some_and(|at| self.clock.monotonic().saturating_sub(at) < IN_USE) {
                let _one = self.asking.lock().await;
                self.renew().await;
            }
            self.clock.sleep(if self.own() { RENEW_OFTEN } else { RENEW_EVERY }).await;
        }
    }

    /// What was granted is of no use: the next write asks afresh.
    fn forget(&self, useless: &Grant) {
        let mut grant = locked(&self.grant);
        if self.own() && grant.epoch == useless.epoch {
            *grant = Grant::default();
        }
    }

    /// Loads the model from the region's bucket, and again whenever the object has changed.
    async fn keep_model(self: Arc<Self>, client: aws_sdk_s3::Client) {
        let bucket = bucket_of(&self.region);
        let mut loaded = None;
        loop {
            let head = client.head_object().bucket(&bucket).key(ONNX_KEY).send();
            match tokio::time::timeout(MODEL_LIMIT, head).await {
                Ok(Ok(head)) if loaded.is_none() || head.e_tag.as_ref() != loaded.as_ref() => match load(&client, &bucket).await {
                    Ok((model, tag)) => {
                        *self.model.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(model));
                        loaded = tag;
                    }
                    Err(error) => tracing::warn!(%error, "the model could not be loaded"),
                },
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::warn!(?error, "the model's object could not be looked at"),
                Err(_) => tracing::warn!("the bucket did not answer"),
            }
            let pause = if loaded.is_some() { MODEL_EVERY } else { RENEW_EVERY };
            self.clock.sleep(pause).await;
        }
    }

    /// Where a region's database listens: Amazon's is found through the record of the region's RDS API.
    fn port(&self, region: &str) -> Result<u16, No> {
        if self.own() {
            return Ok(self.plan.region(region).map_err(|e| unavailable(e.to_string()))?.postgres);
        }
        let state: RegionState = read_json(&self.plan.rds_file(region)).map_err(|e| unavailable(e.to_string()))?;
        let id = instance_of(region);
        state.instances.get(&id).map(|i| i.port).ok_or_else(|| unavailable(format!("the region has no database {id}")))
    }

    /// Connections to a region's database.
    fn pool(&self, region: &str) -> Result<PgPool, No> {
        let port = self.port(region)?;
        let mut pools = locked(&self.pools);
        if let Some((_, pool)) = pools.get(region).filter(|(known, _)| *known == port) {
            return Ok(pool.clone());
        }
        let address = self.plan.region(region).map_err(|e| unavailable(e.to_string()))?.address;
        let options = connect_options(address, port, &self.password).application_name("inference");
        let fresh = PgPoolOptions::new().max_connections(8).acquire_timeout(Duration::from_secs(1)).connect_lazy_with(options);
        pools.insert(region.to_owned(), (port, fresh.clone()));
        Ok(fresh)
    }

    /// One committed row; the same prediction again is the same row.
    async fn write(&self, region: &str, id: &str, label: i64) -> Result<(), No> {
        let label = i32::try_from(label).map_err(|_| unavailable("the label is out of range"))?;
        let pool = self.pool(region)?;
        let insert = sqlx::query(
            "insert into predictions (id, label, region, at) values ($1, $2, $3, clock_timestamp()) on conflict (id) do nothing",
        )
        .bind(id.to_owned())
        .bind(label)
        .bind(self.region.clone())
        .execute(&pool);
        let done = tokio::time::timeout(WRITE_LIMIT, insert).await;
        done.map_err(|_| unavailable("the database did not answer in time"))?.map_err(|e| unavailable(format!("the database: {e}")))?;
        Ok(())
    }

    async fn predict(&self, ask: Ask) -> Result<Response, No> {
        let delay = self.plan.knobs().predict_delay_ms.get(&self.region).copied().unwrap_or(0);
        if delay > 0 {
            self.clock.sleep(Duration::from_millis(delay)).await;
        }
        if ask.features.len() != FEATURES || ask.id.is_empty() || ask.id.len() > 200 {
            return Err((StatusCode::BAD_REQUEST, format!("`id` is 1 to 200 bytes, `features` {FEATURES} numbers")));
        }
        let model = self.model.read().unwrap_or_else(PoisonError::into_inner).clone();
        let model = model.ok_or_else(|| unavailable("the model is not loaded yet"))?;
        let (label, scores) = model.predict(&ask.features).map_err(|e| unavailable(e.to_string()))?;
        let mut epoch = None;
        if ask.record {
            let before = self.lease().await?;
            if let Err(no) = self.write(&before.region, &ask.id, label).await {
                self.forget(&before);
                return Err(no);
            }
            // Whoever lost the lease meanwhile may have written where nobody will look: not acknowledged.
            if self.held()?.epoch != before.epoch {
                return Err(unavailable("the write lease changed hands during the write"));
            }
            epoch = Some(before.epoch);
        }
        Ok(Json(serde_json::json!({ "id": ask.id, "label": label, "scores": scores, "region": self.region, "epoch": epoch }))
            .into_response())
    }
}

/// What the authority says.
enum Answer {
    Granted { epoch: u64, until: Duration },
    Refused { allowed: Option<String> },
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `None` when the authority neither granted nor refused.
async fn acquire(client: &reqwest::Client, url: &str, ask: &serde_json::Value, before: Duration) -> Option<Answer> {
    let answer = client.post(url).json(ask).timeout(RENEW_LIMIT).send().await.ok()?;
    let refused = answer.status() == StatusCode::CONFLICT;
    let body: Option<serde_json::Value> = answer.json().await.ok();
    if refused {
        let allowed = body.and_then(|body| Some(body.get("allowed")?.as_str()?.to_owned()));
        return Some(Answer::Refused { allowed });
    }
    let body = body?;
    let ttl = Duration::from_millis(body.get("ttl_ms")?.as_u64()?);
    (body.get("granted")?.as_bool()?).then_some(Answer::Granted { epoch: body.get("epoch")?.as_u64()?, until: before + ttl })
}

async fn load(client: &aws_sdk_s3::Client, bucket: &str) -> LabResult<(Model, Option<String>)> {
    let fail = |cause: String| LabError::Objects { region: bucket.to_owned(), cause };
    let work = async {
        let object = client.get_object().bucket(bucket).key(ONNX_KEY).send().await.map_err(|e| fail(sdk::say(&e)))?;
        let tag = object.e_tag.clone();
        let bytes = object.body.collect().await.map_err(|e| fail(e.to_string()))?;
        Ok((Model::load(&bytes.into_bytes())?, tag))
    };
    tokio::time::timeout(MODEL_LIMIT, work).await.map_err(|_| fail("no answer in time".to_owned()))?
}

async fn predict(State(service): State<Arc<Service>>, ask: Result<Json<Ask>, JsonRejection>) -> Response {
    let answer = match ask {
        Ok(Json(ask)) => service.predict(ask).await,
        Err(error) => Err((StatusCode::BAD_REQUEST, error.to_string())),
    };
    answer.unwrap_or_else(|(status, error)| (status, Json(serde_json::json!({ "error": error, "region": service.region }))).into_response())
}

async fn health(State(service): State<Arc<Service>>) -> Response {
    let model = service.model.read().unwrap_or_else(PoisonError::into_inner).is_some();
    let status = if model { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(serde_json::json!({ "region": service.region, "model": model, "epoch": service.held().ok().map(|grant| grant.epoch) })))
        .into_response()
}

/// Serves until the process is killed.
/// # Errors
/// When a key or the port is not to be had.
pub async fn serve(plan: Arc<LabPlan>, region: &str, clock: Arc<dyn Clock>) -> Result<(), LabError> {
    let at = plan.region(region)?;
    let at = at.at(at.inference);
    let client = sdk::s3(&plan, region)?;
    let service = Arc::new(Service {
        password: plan.secret("database_password")?,
        plan,
        region: region.to_owned(),
        clock,
        client: reqwest::Client::new(),
        grant: Mutex::default(),
        target: Mutex::new(region.to_owned()),
        used: Mutex::default(),
        asking: tokio::sync::Mutex::default(),
        model: RwLock::new(None),
        pools: Mutex::default(),
    });
    tokio::spawn(service.clone().keep_lease());
    tokio::spawn(service.clone().keep_model(client));
    let router = Router::new().route("/predict", post(predict)).route("/healthz", get(health)).with_state(service);
    web::serve(at, router).await
}

/// The table that predictions are recorded in.
pub const TABLE: &str =
    "create table if not exists predictions (id text primary key, label int not null, region text not null, at timestamptz not null)";

/// Makes the table on a fresh primary.
/// # Errors
/// When the database refuses.
pub async fn make_table(postgres: &pg::Postgres, server: &pg::Server) -> LabResult<()> {
    postgres.execute(server.address, server.port, TABLE, None, Duration::from_secs(10)).await
}
