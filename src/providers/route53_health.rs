//! Health checks of Route 53. One is made once for a reference: Route 53 itself keeps that promise, and it is looked for
//! before, since not everything that speaks its protocol does.

use super::aws::{AwsClients, Doing, explain};
use super::port::{HealthCheck, HealthSeen, HealthSpec, PortError, PortResult};
use super::route53::{endless, further};
use aws_sdk_route53::types::{self, HealthCheckConfig, HealthCheckType};
use std::net::IpAddr;

/// Health checks a page; and how many pages an account may have.
const PAGE: i32 = 100;
const MOST_PAGES: usize = 1_000;

pub(super) async fn read(clients: &AwsClients, id: &str) -> PortResult<Option<HealthCheck>> {
    match clients.route53().await?.read.get_health_check().health_check_id(id).send().await {
        Ok(answer) => Ok(answer.health_check().map(told)),
        Err(e) => match explain(&e, Doing::Reading, &format!("GetHealthCheck {id}")) {
            PortError::NotFound(_) => Ok(None),
            other => Err(other),
        },
    }
}

pub(super) async fn seen(clients: &AwsClients, id: &str) -> PortResult<Option<HealthSeen>> {
    let answer = match clients.route53().await?.read.get_health_check_status().health_check_id(id).send().await {
        Ok(answer) => answer,
        // A check that is there, and nobody who tells of it.
        Err(e) => match explain(&e, Doing::Reading, &format!("GetHealthCheckStatus {id}")) {
            PortError::Refused(_) | PortError::NotFound(_) => return Ok(None),
            other => return Err(other),
        },
    };
    let reports = answer.health_check_observations().iter().filter_map(|seen| seen.status_report()?.status());
    let mut found = HealthSeen::default();
    for report in reports {
        match report.split([':', '.', ' ']).next() {
            Some("Success") => found.good += 1,
            Some("Failure") => found.bad += 1,
            // One that has not looked yet.
            _ => {}
        }
    }
    Ok(Some(found))
}

pub(super) async fn create(clients: &AwsClients, reference: &str, spec: &HealthSpec) -> PortResult<HealthCheck> {
    if let Some(known) = find(clients, reference).await? {
        return if known.spec.as_ref() == Some(spec) {
            Ok(known)
        } else {
            let text = format!("health check {} was made with the reference {reference}, and asks something else by now", known.id);
            Err(PortError::Conflict { found: text })
        };
    }
    let what = format!("CreateHealthCheck {reference}");
    let config = config(spec).map_err(|e| PortError::Config(format!("{what}: {e}")))?;
    let call = clients.route53().await?.write.create_health_check().caller_reference(reference).health_check_config(config);
    let answer = call.send().await.map_err(|e| explain(&e, Doing::Writing, &what))?;
    answer.health_check().map(told).ok_or_else(|| PortError::Unknown(format!("{what}: the answer names no health check")))
}

pub(super) async fn delete(clients: &AwsClients, id: &str) -> PortResult<()> {
    match clients.route53().await?.write.delete_health_check().health_check_id(id).send().await {
        Ok(_) => Ok(()),
        Err(e) => match explain(&e, Doing::Writing, &format!("DeleteHealthCheck {id}")) {
            PortError::NotFound(_) => Ok(()),
            other => Err(other),
        },
    }
}

/// The health check that was made with a reference. What was not looked at to its end is never said to be missing: a
/// second check would be made.
pub(super) async fn find(clients: &AwsClients, reference: &str) -> PortResult<Option<HealthCheck>> {
    let (what, mut after): (_, Option<String>) = ("ListHealthChecks", None);
    for _ in 0..MOST_PAGES {
        let call = clients.route53().await?.read.list_health_checks().max_items(PAGE).set_marker(after.clone());
        let answer = call.send().await.map_err(|e| explain(&e, Doing::Reading, what))?;
        if let Some(found) = answer.health_checks().iter().find(|check| check.caller_reference() == reference) {
            return Ok(Some(told(found)));
        }
        if !answer.is_truncated() {
            return Ok(None);
        }
        after = Some(further(answer.next_marker(), after.as_deref(), what)?);
    }
    Err(endless(what))
}

fn config(spec: &HealthSpec) -> Result<HealthCheckConfig, aws_sdk_route53::error::BuildError> {
    let kind = if spec.scheme == "https" { HealthCheckType::Https } else { HealthCheckType::Http };
    let number = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
    let made = HealthCheckConfig::builder().r#type(kind).port(i32::from(spec.port)).resource_path(&spec.path).inverted(spec.inverted);
    let made = made.request_interval(number(spec.every_s)).failure_threshold(number(spec.looks)).disabled(spec.disabled);
    let by_address = spec.host.parse::<IpAddr>().is_ok();
    if by_address { made.ip_address(&spec.host).build() } else { made.fully_qualified_domain_name(&spec.host).build() }
}

fn told(check: &types::HealthCheck) -> HealthCheck {
    HealthCheck { id: check.id().to_owned(), spec: check.health_check_config().and_then(spec) }
}

/// What a check asks, if it is one that Muster could have made.
fn spec(config: &HealthCheckConfig) -> Option<HealthSpec> {
    let scheme = match config.r#type() {
        HealthCheckType::Http => "http",
        HealthCheckType::Https => "https",
        _ => return None,
    };
    // With both, the name is only what is sent along.
    let host = config.ip_address().filter(|a| !a.is_empty()).or(config.fully_qualified_domain_name())?;
    let number = |n: Option<i32>, otherwise: u32| n.and_then(|n| u32::try_from(n).ok()).unwrap_or(otherwise);
    Some(HealthSpec {
        scheme: scheme.to_owned(),
        host: host.to_owned(),
        port: config.port().and_then(|p| u16::try_from(p).ok()).unwrap_or(if scheme == "https" { 443 } else { 80 }),
        path: config.resource_path().unwrap_or("/").to_owned(),
        inverted: config.inverted().unwrap_or(false),
        every_s: number(config.request_interval(), 30),
        looks: number(config.failure_threshold(), 3),
        disabled: config.disabled().unwrap_or(false),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_goes_there_and_back() {
        for host in ["127.0.2.1", "models-west.s3.us-west-2.amazonaws.com"] {
            let want = HealthSpec {
                scheme: "https".into(),
                host: host.into(),
                port: 443,
                path: "/.muster/switch/inference".into(),
                inverted: true,
                every_s: 10,
                looks: 2,
                disabled: false,
            };
            assert_eq!(spec(&config(&want).unwrap()), Some(want));
        }
        let other = HealthCheckConfig::builder().r#type(HealthCheckType::Calculated).build().unwrap();
        assert_eq!(spec(&other), None);
    }
}
