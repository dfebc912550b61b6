//! The AWS SDK as the lab itself uses it: for the model in its buckets.

use super::{error::LabResult, plan::LabPlan};
use aws_sdk_s3::{
    config::{BehaviorVersion, Credentials, Region},
    error::DisplayErrorContext,
};
use secrecy::ExposeSecret;

/// # Errors
/// When the region or the keys are unknown.
pub fn s3(plan: &LabPlan, region: &str) -> LabResult<aws_sdk_s3::Client> {
    let place = plan.region(region)?;
    let (key, secret) = (plan.secret("access_key_id")?, plan.secret("secret_access_key")?);
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(place.aws_region.clone()))
        .endpoint_url(format!("http://{}", place.at(place.s3)))
        .credentials_provider(Credentials::new(key.expose_secret(), secret.expose_secret(), None, None, "lab"))
        .force_path_style(true)
        .build();
    Ok(aws_sdk_s3::Client::from_conf(config))
}

/// An SDK error with all its causes.
pub fn say<E: std::error::Error>(error: &E) -> String {
    DisplayErrorContext(error).to_string()
}
