//! The write lease's authority over HTTP: the protocol of `docs/lease.md`. Changing who may hold the
//! lease is a compare-and-swap on its epoch, so a lost answer can always be told by looking.

use super::port::{Http, HttpRequest, HttpResponse, LeaseRead, LeaseState, LeaseWrite, PortError, PortResult};
use async_trait::async_trait;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use url::Url;

const TIMEOUT: Duration = Duration::from_secs(2);

/// One lease at one authority.
pub struct HttpLease {
    http: Arc<dyn Http>,
    base: Url,
    name: String,
}

impl HttpLease {
    #[must_use]
    pub fn new(http: Arc<dyn Http>, base: Url, name: String) -> Self {
        Self { http, base, name }
    }

    fn url(&self, verb: Option<&str>) -> PortResult<String> {
        let mut url = self.base.clone();
        {
            let mut path = url
                .path_segments_mut()
                .map_err(|()| PortError::Config(format!("the lease authority's address `{}` is not an http URL", self.base)))?;
            path.pop_if_empty().push("leases").push(&self.name).extend(verb);
        }
        Ok(url.into())
    }

    fn state(&self, response: &HttpResponse) -> PortResult<LeaseState> {
        let state: LeaseState = serde_json::from_slice(&response.body)
            .map_err(|e| PortError::Refused(format!("the lease authority's answer on `{}` is not a lease's state: {e}", self.name)))?;
        if state.name == self.name {
            Ok(state)
        } else {
            Err(PortError::Refused(format!("the lease authority answered for `{}`, not for `{}`", state.name, self.name)))
        }
    }

    fn refused(&self, response: &HttpResponse, write: bool) -> PortError {
        let said: String = String::from_utf8_lossy(&response.body).chars().take(200).collect();
        let text = format!("the lease authority answered {} on `{}`: {said}", response.status, self.name);
        match response.status {
            404 => PortError::NotFound(text),
            429 => PortError::Throttled { after: Duration::from_secs(1), message: text },
            500.. if write => PortError::Unknown(text),
            500.. => PortError::Unreachable(text),
            _ => PortError::Refused(text),
        }
    }
}

#[async_trait]
impl LeaseRead for HttpLease {
    async fn lease(&self) -> PortResult<LeaseState> {
        let request = HttpRequest { method: "GET".to_owned(), url: self.url(None)?, timeout: Some(TIMEOUT), ..HttpRequest::default() };
        let response = self.http.send(request).await?;
        if response.status == 200 { self.state(&response) } else { Err(self.refused(&response, false)) }
    }
}

#[async_trait]
impl LeaseWrite for HttpLease {
    async fn allow(&self, region: Option<&str>, expect_epoch: u64) -> PortResult<LeaseState> {
        self.change(&serde_json::json!({ "region": region, "expect_epoch": expect_epoch })).await
    }

    async fn hand_over(&self, region: &str, expect_epoch: u64) -> PortResult<LeaseState> {
        self.change(&serde_json::json!({ "region": region, "expect_epoch": expect_epoch, "ended": true })).await
    }
}

impl HttpLease {
    async fn change(&self, ask: &serde_json::Value) -> PortResult<LeaseState> {
        let request = HttpRequest {
            method: "POST".to_owned(),
            url: self.url(Some("allow"))?,
            headers: BTreeMap::from([("content-type".to_owned(), "application/json".to_owned())]),
            body: Some(ask.to_string().into_bytes()),
            connect_to: None,
            timeout: Some(TIMEOUT),
        };
        let response = self.http.send(request).await?;
        match response.status {
            // It was carried out, whatever became of the answer's text.
            200 => self.state(&response).map_err(|e| PortError::Unknown(e.to_string())),
            409 => {
                let now = self.state(&response)?;
                let allowed = now.allowed.as_deref().unwrap_or("nobody");
                Err(PortError::Conflict { found: format!("lease `{}` at epoch {}, allowed to {allowed}", self.name, now.epoch) })
            }
            _ => Err(self.refused(&response, true)),
        }
    }
}
