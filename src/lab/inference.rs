//! The service that recovers: predicts with the model from its region's bucket, and acknowledges a recorded
//! prediction only when it held the write lease both before the write and after the commit.

use super::{
    error::{LabError, LabResult},
    instances::RegionState,
    model::{FEATURES, Model, ONNX_KEY},
    pg::{self, connect_options},
    plan::{LEASE, LabPlan, bucket_of, instance_of, read_json},
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
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

const RENEW_EVERY: Duration = Duration::from_millis(250);
const RENEW_LIMIT: Duration = Duration::from_millis(400);
const WRITE_LIMIT: Duration = Duration::from_millis(1_500);
const MODEL_LIMIT: Duration = Duration::from_secs(5);
const MODEL_EVERY: Duration = Duration::from_secs(1);

/// What was granted: the epoch, and until when on our monotonic clock.
#[derive(Clone, Copy, Debug, Default)]
struct Grant {
    epoch: u64,
    until: Duration,
}

struct Service {
    plan: Arc<LabPlan>,
    region: String,
    clock: Arc<dyn Clock>,
    password: SecretString,
    grant: Mutex<Grant>,
    model: RwLock<Option<Arc<Model>>>,
    /// The pool, and the port that it leads to.
    pool: Mutex<Option<(u16, PgPool)>>,
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
    /// The epoch of the lease, while it is surely ours.
    fn held(&self) -> Result<u64, No> {
        let grant = *self.grant.lock().unwrap_or_else(PoisonError::into_inner);
        if self.clock.monotonic() < grant.until {
            return Ok(grant.epoch);
        }
        Err(unavailable(format!("no write lease: region {} is not granted `{LEASE}`", self.region)))
    }

    /// Asks for the lease on and on. A refusal ends it at once; silence lets it run out.
    async fn keep_lease(self: Arc<Self>) {
        let client = reqwest::Client::new();
        let url = format!("http://{}/leases/{LEASE}/acquire", self.plan.outside.at(self.plan.outside.lease));
        let ask = serde_json::json!({ "region": self.region, "holder": format!("inference-{}", std::process::id()) });
        loop {
            // Counted from before the request leaves: we always stop before the authority believes that we have.
            let before = self.clock.monotonic();
            if let Some(grant) = acquire(&client, &url, &ask, before).await {
                *self.grant.lock().unwrap_or_else(PoisonError::into_inner) = grant;
            }
            self.clock.sleep(RENEW_EVERY).await;
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

    /// Connections to the region's database, found through the record of the region's RDS API.
    fn pool(&self) -> Result<PgPool, No> {
        let state: RegionState = read_json(&self.plan.rds_file(&self.region)).map_err(|e| unavailable(e.to_string()))?;
        let id = instance_of(&self.region);
        let port = state.instances.get(&id).map(|i| i.port).ok_or_else(|| unavailable(format!("the region has no database {id}")))?;
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, pool)) = pool.as_ref().filter(|(known, _)| *known == port) {
            return Ok(pool.clone());
        }
        let address = self.plan.region(&self.region).map_err(|e| unavailable(e.to_string()))?.address;
        let options = connect_options(address, port, &self.password).application_name("inference");
        let fresh = PgPoolOptions::new().max_connections(8).acquire_timeout(Duration::from_secs(1)).connect_lazy_with(options);
        *pool = Some((port, fresh.clone()));
        Ok(fresh)
    }

    /// One committed row; the same prediction again is the same row.
    async fn write(&self, id: &str, label: i64) -> Result<(), No> {
        let label = i32::try_from(label).map_err(|_| unavailable("the label is out of range"))?;
        let pool = self.pool()?;
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
            let before = self.held()?;
            self.write(&ask.id, label).await?;
            // Whoever lost the lease meanwhile may have written where nobody will look: not acknowledged.
            if self.held()? != before {
                return Err(unavailable("the write lease changed hands during the write"));
            }
            epoch = Some(before);
        }
        Ok(Json(serde_json::json!({ "id": ask.id, "label": label, "scores": scores, "region": self.region, "epoch": epoch }))
            .into_response())
    }
}

/// A grant, `Some` of nothing when refused, `None` when the authority said neither.
async fn acquire(client: &reqwest::Client, url: &str, ask: &serde_json::Value, before: Duration) -> Option<Grant> {
    let answer = client.post(url).json(ask).timeout(RENEW_LIMIT).send().await.ok()?;
    if answer.status() == StatusCode::CONFLICT {
        return Some(Grant::default());
    }
    let body: serde_json::Value = answer.json().await.ok()?;
    let ttl = Duration::from_millis(body.get("ttl_ms")?.as_u64()?);
    (body.get("granted")?.as_bool()?).then_some(Grant { epoch: body.get("epoch")?.as_u64()?, until: before + ttl })
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
    (status, Json(serde_json::json!({ "region": service.region, "model": model, "epoch": service.held().ok() }))).into_response()
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
        grant: Mutex::default(),
        model: RwLock::new(None),
        pool: Mutex::new(None),
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
