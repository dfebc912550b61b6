//! Route 53's health checks, as its API makes, tells and deletes them. [`super::checker`] carries them out.

use super::{
    route53::{Route53, answer, refuse},
    xml::{self, tag, wrap},
};
use axum::{
    Router,
    extract::{Path as UrlPath, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    pub reference: String,
    pub address: String,
    pub port: u16,
    pub path: String,
    pub interval_s: u64,
    pub threshold: u32,
    /// It is good when the answer is bad.
    #[serde(default)]
    pub inverted: bool,
}

pub fn routes() -> Router<Arc<Route53>> {
    Router::new()
        .route("/healthcheck", post(create).get(list))
        .route("/healthcheck/{id}", get(read).delete(delete))
        .route("/healthcheck/{id}/status", get(status))
}

fn check_xml(id: &str, check: &Check) -> String {
    let config = tag("IPAddress", &check.address)
        + &tag("Port", check.port)
        + &tag("Type", "HTTP")
        + &tag("ResourcePath", &check.path)
        + &tag("RequestInterval", check.interval_s)
        + &tag("FailureThreshold", check.threshold)
        + &tag("Inverted", check.inverted);
    wrap(
        "HealthCheck",
        &(tag("Id", id) + &tag("CallerReference", &check.reference) + &wrap("HealthCheckConfig", &config) + &tag("HealthCheckVersion", 1)),
    )
}

fn missing(id: &str) -> Response {
    refuse(StatusCode::NOT_FOUND, "NoSuchHealthCheck", &format!("A health check with id {id} does not exist"))
}

fn read_check(body: &str) -> Result<Check, String> {
    let request = xml::parse(body)?;
    let config = request.child("HealthCheckConfig").ok_or("no HealthCheckConfig in the request")?;
    let number =
        |name: &str, otherwise: u64| config.value(name).map_or(Ok(otherwise), |v| v.parse().map_err(|_| format!("{name} is not a number")));
    if config.value("Type").as_deref() != Some("HTTP") {
        return Err("the lab probes with HTTP only".to_owned());
    }
    let address = config.value("IPAddress").ok_or("no IPAddress in the check")?;
    if !address.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback()) {
        return Err(format!("`{address}` is not an address of the lab"));
    }
    let interval_s = number("RequestInterval", 30)?;
    let threshold = u32::try_from(number("FailureThreshold", 3)?).unwrap_or(0);
    if !matches!(interval_s, 10 | 30) || !(1..=10).contains(&threshold) {
        return Err("RequestInterval is 10 or 30, FailureThreshold from 1 to 10".to_owned());
    }
    let path = config.value("ResourcePath").unwrap_or_default();
    Ok(Check {
        reference: request.value("CallerReference").ok_or("no CallerReference in the request")?,
        address,
        port: u16::try_from(number("Port", 80)?).map_err(|_| "Port is too large")?,
        path: if path.starts_with('/') { path } else { format!("/{path}") },
        interval_s,
        threshold,
        inverted: config.value("Inverted").as_deref() == Some("true"),
    })
}

async fn create(State(api): State<Arc<Route53>>, body: String) -> Response {
    let check = match read_check(&body) {
        Ok(check) => check,
        Err(cause) => return refuse(StatusCode::BAD_REQUEST, "InvalidInput", &cause),
    };
    let id = match api.check_of(&check.reference) {
        // The caller's reference makes it idempotent; the same one for another check is refused.
        Some((id, known)) if known == check => id,
        Some(_) => {
            return refuse(StatusCode::CONFLICT, "HealthCheckAlreadyExists", "The health check you're attempting to create already exists");
        }
        None => {
            let id = api.clock().new_id();
            if let Err(error) = api.keep_check(&id, Some(check.clone())) {
                return refuse(StatusCode::INTERNAL_SERVER_ERROR, "InternalFailure", &error.to_string());
            }
            id
        }
    };
    let mut response = answer(StatusCode::CREATED, "CreateHealthCheckResponse", &check_xml(&id, &check));
    if let Ok(place) = format!("https://route53.amazonaws.com/2013-04-01/healthcheck/{id}").parse() {
        response.headers_mut().insert(axum::http::header::LOCATION, place);
    }
    response
}

async fn read(State(api): State<Arc<Route53>>, UrlPath(id): UrlPath<String>) -> Response {
    api.check(&id).map_or_else(|| missing(&id), |(check, _)| answer(StatusCode::OK, "GetHealthCheckResponse", &check_xml(&id, &check)))
}

async fn list(State(api): State<Arc<Route53>>) -> Response {
    let all: String = api.checks().iter().map(|(id, check)| check_xml(id, check)).collect();
    let inner = wrap("HealthChecks", &all) + &tag("Marker", "") + &tag("IsTruncated", false) + &tag("MaxItems", 100);
    answer(StatusCode::OK, "ListHealthChecksResponse", &inner)
}

async fn delete(State(api): State<Arc<Route53>>, UrlPath(id): UrlPath<String>) -> Response {
    match api.keep_check(&id, None) {
        Ok(true) => answer(StatusCode::OK, "DeleteHealthCheckResponse", ""),
        Ok(false) => missing(&id),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "InternalFailure", &error.to_string()),
    }
}

async fn status(State(api): State<Arc<Route53>>, UrlPath(id): UrlPath<String>) -> Response {
    let Some((_, good)) = api.check(&id) else { return missing(&id).into_response() };
    let observed = |good: bool| {
        let word = if good { "Success: HTTP Status Code 200, OK" } else { "Failure: no good answer" };
        let report = tag("Status", word) + &tag("CheckedTime", api.clock().now());
        let seen = tag("Region", "us-east-1") + &tag("IPAddress", "127.0.0.1") + &wrap("StatusReport", &report);
        wrap("HealthCheckObservation", &seen)
    };
    let list = wrap("HealthCheckObservations", &good.map(observed).unwrap_or_default());
    answer(StatusCode::OK, "GetHealthCheckStatusResponse", &list)
}
