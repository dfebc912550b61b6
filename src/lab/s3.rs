//! The object store of one region: the `s3s` server over a directory, with signatures checked.

use super::{
    error::{LabError, What},
    plan::LabPlan,
    web,
};
use async_trait::async_trait;
use axum::{Router, extract::Request, response::IntoResponse};
use s3s::{
    access::{S3Access, S3AccessContext},
    auth::SimpleAuth,
    service::S3ServiceBuilder,
};
use secrecy::ExposeSecret;

/// As the bucket policy of docs/dns.md says it: everybody may read the switches of data-plane failovers, nothing else.
struct Open;

const OPEN: &str = ".muster/switch/";

#[async_trait]
impl S3Access for Open {
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> s3s::S3Result<()> {
        let reads = matches!(cx.s3_op().name(), "GetObject" | "HeadObject");
        let open = reads && cx.s3_path().as_object().is_some_and(|(_, key)| key.starts_with(OPEN));
        if cx.credentials().is_some() || open { Ok(()) } else { Err(s3s::s3_error!(AccessDenied, "Signature is required")) }
    }
}

/// Serves until the process is killed.
/// # Errors
/// When its directory or its port is not to be had.
pub async fn serve(plan: &LabPlan, region: &str) -> Result<(), LabError> {
    let at = plan.region(region)?;
    let root = plan.dir(region).join("s3");
    let files = s3s_fs::FileSystem::new(&root).map_err(|e| std::io::Error::other(format!("{e:?}"))).what(root.display().to_string())?;
    let mut builder = S3ServiceBuilder::new(files);
    let (key, secret) = (plan.secret("access_key_id")?, plan.secret("secret_access_key")?);
    builder.set_auth(SimpleAuth::from_single(key.expose_secret(), secret.expose_secret()));
    builder.set_access(Open);
    let service = builder.build();
    // The server looks at a condition first and writes later: two conditional writes at once would both hold.
    let one_at_a_time = std::sync::Arc::new(tokio::sync::Mutex::new(()));
    let answer = move |request: Request| {
        let (service, one_at_a_time) = (service.clone(), one_at_a_time.clone());
        async move {
            let conditional = ["if-match", "if-none-match"].iter().any(|name| request.headers().contains_key(*name));
            let writes = request.method() != axum::http::Method::GET && request.method() != axum::http::Method::HEAD;
            let _alone = if conditional && writes { Some(one_at_a_time.lock().await) } else { None };
            match service.call(request.map(s3s::Body::http_body_unsync)).await {
                Ok(response) => response.into_response(),
                Err(error) => {
                    tracing::error!(?error, "the object store failed");
                    axum::http::StatusCode::INTERNAL_SERVER_ERROR.into_response()
                }
            }
        }
    };
    web::serve(at.at(at.s3), Router::new().fallback(answer)).await
}
