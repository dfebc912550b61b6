//! AWS SDK configuration from the estate, and what the SDK's errors mean for the caller.
//!
//! Two configurations for each region: reading retries a little and gives up soon; writing never
//! retries, so that the journal sees every attempt, and a lost answer is `Unknown`.

use super::aws_signed;
use super::counted::Counted;
use super::port::{PortError, PortResult};
use super::secrets;
use crate::model::estate::{Aws, AwsCredentials, AwsEndpoints};
use aws_config::{
    BehaviorVersion, ConfigLoader, Region, SdkConfig, default_provider::region::DefaultRegionChain,
    environment::EnvironmentVariableRegionProvider, meta::region::RegionProviderChain, profile::ProfileFileRegionProvider,
    retry::RetryConfig, timeout::TimeoutConfig,
};
use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use aws_smithy_runtime_api::client::{orchestrator::HttpResponse, result::SdkError};
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use aws_types::service_config::ServiceConfigKey;
use secrecy::ExposeSecret;
use std::{error::Error, io::ErrorKind, time::Duration};
use tokio::sync::OnceCell;
use url::Url;

const CONNECT: Duration = Duration::from_secs(2);
const READ: Duration = Duration::from_secs(5);
const WRITE: Duration = Duration::from_secs(15);
/// An object's whole body goes out within one operation.
const UPLOAD: Duration = Duration::from_mins(2);
const LOAD: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    Reading,
    Writing,
}

/// A client that reads and one that writes.
#[derive(Clone)]
pub struct Pair<C> {
    pub read: C,
    pub write: C,
}

/// All clients of one region, made when first asked for.
pub struct AwsClients {
    /// As the estate says; `None` for the SDK's own configuration alone.
    aws: Option<Aws>,
    base: OnceCell<SdkConfig>,
    s3: OnceCell<Pair<aws_sdk_s3::Client>>,
    rds: OnceCell<Pair<aws_sdk_rds::Client>>,
    route53: OnceCell<Pair<aws_sdk_route53::Client>>,
    /// What was sent to Route 53: it is a control plane.
    pub dns_calls: Counted,
}

impl AwsClients {
    #[must_use]
    pub fn new(aws: Option<Aws>) -> Self {
        Self {
            aws,
            base: OnceCell::new(),
            s3: OnceCell::new(),
            rds: OnceCell::new(),
            route53: OnceCell::new(),
            dns_calls: Counted::default(),
        }
    }

    async fn base(&self) -> PortResult<&SdkConfig> {
        self.base.get_or_try_init(|| load(self.aws.as_ref())).await
    }

    fn endpoint(&self, of: impl Fn(&AwsEndpoints) -> &Option<Url>) -> Option<String> {
        self.aws.as_ref().and_then(|aws| of(&aws.endpoints).as_ref()).map(Url::to_string)
    }

    /// Where S3 is, if it is not Amazon's own: by the estate, or by the SDK's own configuration.
    pub async fn s3_endpoint(&self) -> PortResult<Option<String>> {
        let base = self.base().await?;
        Ok(self.endpoint(|at| &at.s3).or_else(|| s3_elsewhere(base)))
    }

    /// Where CloudWatch is asked.
    pub(super) async fn cloudwatch_endpoint(&self, region: &str) -> PortResult<String> {
        let base = self.base().await?;
        let written = self.endpoint(|at| &at.cloudwatch).or_else(|| elsewhere(base, "CloudWatch"));
        Ok(written.unwrap_or_else(|| aws_signed::address("monitoring", region, ways(base))))
    }

    /// Where RDS of another region is.
    pub(super) async fn rds_of(&self, region: &str) -> PortResult<String> {
        Ok(aws_signed::address("rds", region, ways(self.base().await?)))
    }

    pub(super) async fn credentials(&self) -> PortResult<SharedCredentialsProvider> {
        let found = self.base().await?.credentials_provider();
        found.ok_or_else(|| {
            PortError::Config("no AWS credentials are set up; give the region `credentials` or a `profile` in the estate".to_owned())
        })
    }

    /// Amazon's name for the region.
    pub async fn region(&self) -> PortResult<String> {
        Ok(self.base().await?.region().map(ToString::to_string).unwrap_or_default())
    }

    pub async fn s3(&self) -> PortResult<&Pair<aws_sdk_s3::Client>> {
        let make = || async {
            let (base, endpoint) = (self.base().await?, self.s3_endpoint().await?);
            let make = |limit: Duration, retry: RetryConfig| {
                let mut config = aws_sdk_s3::config::Builder::from(base).timeout_config(timeouts(limit)).retry_config(retry);
                if let Some(url) = &endpoint {
                    // Another address is rarely one with a name for every bucket.
                    config = config.endpoint_url(url).force_path_style(true);
                }
                aws_sdk_s3::Client::from_conf(config.build())
            };
            Ok(Pair { read: make(READ, patient()), write: make(UPLOAD, RetryConfig::disabled()) })
        };
        self.s3.get_or_try_init(make).await
    }

    pub async fn rds(&self) -> PortResult<&Pair<aws_sdk_rds::Client>> {
        let make = || async {
            let base = self.base().await?;
            let make = |limit: Duration, retry: RetryConfig| {
                let mut config = aws_sdk_rds::config::Builder::from(base).timeout_config(timeouts(limit)).retry_config(retry);
                if let Some(url) = self.endpoint(|at| &at.rds) {
                    config = config.endpoint_url(url);
                }
                aws_sdk_rds::Client::from_conf(config.build())
            };
            Ok(Pair { read: make(READ, patient()), write: make(WRITE, RetryConfig::disabled()) })
        };
        self.rds.get_or_try_init(make).await
    }

    pub async fn route53(&self) -> PortResult<&Pair<aws_sdk_route53::Client>> {
        let make = || async {
            let base = self.base().await?;
            let make = |limit: Duration, retry: RetryConfig| {
                let mut config = aws_sdk_route53::config::Builder::from(base).timeout_config(timeouts(limit)).retry_config(retry);
                config = config.interceptor(self.dns_calls.clone());
                if let Some(url) = self.endpoint(|at| &at.route53) {
                    config = config.endpoint_url(url);
                }
                aws_sdk_route53::Client::from_conf(config.build())
            };
            Ok(Pair { read: make(READ, patient()), write: make(WRITE, RetryConfig::disabled()) })
        };
        self.route53.get_or_try_init(make).await
    }
}

/// Short: a region that is down is found out by failing, and quickly.
pub(super) fn patient() -> RetryConfig {
    RetryConfig::standard()
        .with_max_attempts(3)
        .with_initial_backoff(Duration::from_millis(100))
        .with_max_backoff(Duration::from_millis(500))
}

fn timeouts(limit: Duration) -> TimeoutConfig {
    TimeoutConfig::builder().connect_timeout(CONNECT).operation_timeout(limit).build()
}

/// Which of a service's addresses are asked for: FIPS, dual-stack.
fn ways(base: &SdkConfig) -> (bool, bool) {
    (base.use_fips() == Some(true), base.use_dual_stack() == Some(true))
}

async fn load(aws: Option<&Aws>) -> PortResult<SdkConfig> {
    let Some(aws) = aws else { return standard().await };
    let mut loader = aws_config::defaults(BehaviorVersion::latest()).region(Region::new(aws.region.clone()));
    if let Some(profile) = &aws.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(keys) = &aws.credentials {
        loader = loader.credentials_provider(credentials(keys)?);
    }
    loaded(loader, &aws.region).await
}

/// The standard chain may ask the machine's metadata service.
async fn loaded(loader: ConfigLoader, of: &str) -> PortResult<SdkConfig> {
    tokio::time::timeout(LOAD, loader.load())
        .await
        .map_err(|_| PortError::Unreachable(format!("the AWS configuration for {of} could not be loaded within {} s", LOAD.as_secs())))
}

/// What the SDK finds in the environment, in profiles and in the machine's metadata.
async fn standard() -> PortResult<SdkConfig> {
    let written = RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new()).or_else(ProfileFileRegionProvider::new());
    let base = loaded(aws_config::defaults(BehaviorVersion::latest()).region(written), "this user").await?;
    if base.region().is_some() {
        return Ok(base);
    }
    // What is not Amazon's rarely has regions. The machine's metadata, for which an answer may take seconds where
    // there is none, are asked only when nothing else says where to go.
    let region = if s3_elsewhere(&base).is_some() {
        Some(Region::from_static("us-east-1"))
    } else {
        tokio::time::timeout(LOAD, DefaultRegionChain::builder().build().region()).await.unwrap_or(None)
    };
    match region {
        Some(region) => Ok(base.into_builder().region(region).build()),
        None => Err(PortError::Config(
            "no AWS region is known: set AWS_REGION, give the profile a `region`, or name another server by AWS_ENDPOINT_URL_S3".to_owned(),
        )),
    }
}

fn s3_elsewhere(base: &SdkConfig) -> Option<String> {
    elsewhere(base, "S3")
}

/// AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL and their like in profiles.
fn elsewhere(base: &SdkConfig, service: &'static str) -> Option<String> {
    let key = ServiceConfigKey::builder().service_id(service).env("AWS_ENDPOINT_URL").profile("endpoint_url").build().ok()?;
    base.service_config().and_then(|config| config.load_config(key)).or_else(|| base.endpoint_url().map(str::to_owned))
}

fn credentials(keys: &AwsCredentials) -> PortResult<Credentials> {
    let id = secrets::read(&keys.access_key_id)?;
    let key = secrets::read(&keys.secret_access_key)?;
    Ok(Credentials::new(id.expose_secret(), key.expose_secret(), None, None, "estate"))
}

const THROTTLING: [&str; 12] = [
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "RequestThrottled",
    "RequestThrottledException",
    "TooManyRequestsException",
    "RequestLimitExceeded",
    "BandwidthLimitExceeded",
    "LimitExceededException",
    "SlowDown",
    "PriorRequestNotComplete",
    "EC2ThrottledException",
];

const MISSING: [&str; 10] = [
    "NoSuchKey",
    "NoSuchBucket",
    "NotFound",
    "DBInstanceNotFound",
    "DBInstanceNotFoundFault",
    "DBSnapshotNotFound",
    "DBSnapshotNotFoundFault",
    "NoSuchHostedZone",
    "NoSuchHealthCheck",
    "NoSuchChange",
];

/// What a refused or lost call means. `what` names the call: `CreateDBSnapshot muster-1`.
pub fn explain<E>(error: &SdkError<E, HttpResponse>, doing: Doing, what: &str) -> PortError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let lost = |text: String| if doing == Doing::Writing { PortError::Unknown(text) } else { PortError::Unreachable(text) };
    match error {
        SdkError::ServiceError(service) => {
            let (status, meta) = (service.raw().status().as_u16(), service.err().meta());
            answered(status, meta.code().unwrap_or_default(), meta.message().unwrap_or_default(), doing, what)
        }
        SdkError::ConstructionFailure(_) => not_sent(format!("{what}: {}", causes(error))),
        SdkError::DispatchFailure(failure) => {
            let text = format!("{what}: {}", causes(error));
            if never_connected(error, &text) || text.contains("credentials") && failure.is_other() { not_sent(text) } else { lost(text) }
        }
        SdkError::TimeoutError(_) | SdkError::ResponseError(_) => lost(format!("{what}: {}", causes(error))),
        _ => lost(format!("{what}: {}", causes(error))),
    }
}

fn not_sent(text: String) -> PortError {
    if text.contains("credentials") {
        PortError::Config(format!("{text}; give the region `credentials` or a `profile` in the estate, or set up the AWS SDK's own"))
    } else {
        PortError::Unreachable(text)
    }
}

/// By status and code alone, so that it can be tested without a server.
pub(super) fn answered(status: u16, code: &str, message: &str, doing: Doing, what: &str) -> PortError {
    let name = if code.is_empty() { status.to_string() } else { code.to_owned() };
    let text = if message.is_empty() { format!("{what}: {name}") } else { format!("{what}: {name}: {message}") };
    if THROTTLING.contains(&code) || status == 429 {
        return PortError::Throttled { after: Duration::from_secs(1), message: text };
    }
    // Nobody has begun what he does not know.
    if code == "NotImplemented" || status == 501 {
        return PortError::Refused(text);
    }
    if status >= 500 {
        return if doing == Doing::Writing { PortError::Unknown(text) } else { PortError::Unreachable(text) };
    }
    if MISSING.contains(&code) || status == 404 {
        return PortError::NotFound(text);
    }
    let there_already = code.ends_with("AlreadyExists") || code.ends_with("AlreadyExistsFault");
    if code == "PreconditionFailed" || status == 412 || (there_already && doing == Doing::Writing) {
        return PortError::Conflict { found: text };
    }
    PortError::Refused(match remedy(code) {
        Some(remedy) => format!("{text} ({remedy})"),
        None => text,
    })
}

/// What an operator does about a refusal.
fn remedy(code: &str) -> Option<&'static str> {
    Some(match code {
        "AccessDenied" | "AccessDeniedException" | "UnauthorizedOperation" | "AuthorizationError" => {
            "allow it to the role that Muster runs as: `muster doctor --permissions RUNBOOK` writes the policy"
        }
        "ExpiredToken" | "ExpiredTokenException" | "RequestExpired" => "get new credentials: those in use have run out",
        "InvalidClientTokenId" | "UnrecognizedClientException" | "SignatureDoesNotMatch" => {
            "the credentials are not this account's: look at the estate's `profile` or `credentials`, and at the machine's clock"
        }
        "OptInRequired" => "enable the region for the account",
        "KMSKeyNotAccessibleFault" | "KMSKeyNotAccessible" => {
            "name a KMS key of the region that gets the copy, enabled, which this role may use (kms:DescribeKey, kms:CreateGrant)"
        }
        "SnapshotQuotaExceeded" | "InstanceQuotaExceeded" | "StorageQuotaExceeded" => {
            "the account's quota is used up: delete what is not needed (`rds.prune_snapshots`) or ask for a larger one"
        }
        "InsufficientDBInstanceCapacity" => "this class is not to be had in that zone now: try another class or subnet group",
        "InvalidDBInstanceState" | "InvalidDBInstanceStateFault" | "InvalidDBSnapshotState" | "InvalidGlobalClusterStateFault" => {
            "its state does not allow it now: wait until it is `available`, then try again"
        }
        _ => return None,
    })
}

/// True when no connection came about, so that nothing can have been sent.
fn never_connected(error: &(dyn Error + 'static), text: &str) -> bool {
    let mut next = Some(error);
    while let Some(e) = next {
        let kind = e.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        if matches!(
            kind,
            Some(ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::AddrNotAvailable)
        ) {
            return true;
        }
        next = e.source();
    }
    // The time limit on connecting, and names that lead nowhere, have public types in no crate of ours.
    text.contains("HTTP connect timeout") || text.contains("dns error") || text.contains("failed to lookup address")
}

fn causes(error: &(dyn Error + 'static)) -> String {
    let mut parts = Vec::new();
    let mut next = Some(error);
    while let Some(e) = next {
        parts.push(e.to_string());
        next = e.source();
    }
    parts.dedup();
    parts.join(": ")
}

/// An instant of the SDK's.
#[must_use]
pub fn instant(at: &aws_smithy_types::DateTime) -> Option<jiff::Timestamp> {
    jiff::Timestamp::new(at.secs(), i32::try_from(at.subsec_nanos()).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use Doing::{Reading, Writing};

    #[test]
    fn an_answer_means_what_its_code_says() {
        let kind = |status, code, doing| match answered(status, code, "m", doing, "Call x") {
            PortError::Throttled { .. } => "throttled",
            PortError::Unknown(_) => "unknown",
            PortError::Unreachable(_) => "unreachable",
            PortError::NotFound(_) => "not found",
            PortError::Conflict { .. } => "conflict",
            PortError::Refused(_) => "refused",
            PortError::Config(_) => "config",
            PortError::Corrupt(_) => "corrupt",
        };
        // A 503 that says SlowDown was certainly not carried out; any other 5xx may have been.
        for (status, code, reading, writing) in [
            (503, "SlowDown", "throttled", "throttled"),
            (400, "Throttling", "throttled", "throttled"),
            (500, "InternalFailure", "unreachable", "unknown"),
            (503, "", "unreachable", "unknown"),
            (501, "NotImplemented", "refused", "refused"),
            (404, "DBInstanceNotFound", "not found", "not found"),
            (400, "NoSuchChange", "not found", "not found"),
            (404, "", "not found", "not found"),
            (412, "PreconditionFailed", "conflict", "conflict"),
            (403, "AccessDenied", "refused", "refused"),
            (400, "DBSnapshotAlreadyExists", "refused", "conflict"),
            (400, "InvalidDBInstanceState", "refused", "refused"),
        ] {
            assert_eq!(kind(status, code, Reading), reading, "reading {status} {code}");
            assert_eq!(kind(status, code, Writing), writing, "writing {status} {code}");
        }
        let text = answered(403, "AccessDenied", "not yours", Writing, "Call x").to_string();
        assert!(text.starts_with("refused: Call x: AccessDenied: not yours (allow it") && text.contains("doctor --permissions"), "{text}");
    }

    #[test]
    fn a_refused_connection_was_never_used() {
        let refused = std::io::Error::from(ErrorKind::ConnectionRefused);
        assert!(never_connected(&refused, "connection refused"));
        let reset = std::io::Error::from(ErrorKind::ConnectionReset);
        assert!(!never_connected(&reset, "connection reset"), "a connection that broke may have carried the call");
    }
}
