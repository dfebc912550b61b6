//! How the lab's HTTP servers listen and answer, so that each says it once.

use super::error::{LabError, What};
use axum::{
    Router,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use std::net::SocketAddr;

/// Listens on the address given by the plan until the process is killed.
/// # Errors
/// When the port is taken.
pub async fn serve(at: SocketAddr, router: Router) -> Result<(), LabError> {
    let listener = tokio::net::TcpListener::bind(at).await.what(format!("listening on {at}"))?;
    axum::serve(listener, router).await.what(format!("serving on {at}"))
}

#[must_use]
pub fn xml(status: StatusCode, body: &str) -> Response {
    (status, [(header::CONTENT_TYPE, "text/xml")], format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{body}")).into_response()
}

/// Does the request name our access key, as a signed one does? The lab does not check the signature itself.
#[must_use]
pub fn names_key(headers: &HeaderMap, key: &str) -> bool {
    let signed = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).unwrap_or_default();
    signed.contains(&format!("Credential={key}/"))
}
