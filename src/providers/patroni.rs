//! A Patroni cluster through the REST API of its members. Reading needs no password there; writing takes the one that
//! Patroni's `restapi.authentication` has.
//!
//! Any member answers for the whole cluster, so the first that does is asked; what a member's own server is doing, only
//! it can say. A change is sent to one member, once: whether it took effect is for a look to say.

use super::port::*;
use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::STANDARD};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use url::Url;

const READ: Duration = Duration::from_secs(4);
/// Patroni answers a switchover when it is over.
const SWITCH: Duration = Duration::from_secs(60);

pub struct Patroni {
    pub http: Arc<dyn Http>,
    /// For messages: `orders in east`.
    pub label: String,
    /// Where the estate has it, for messages.
    pub place: String,
    pub urls: Vec<Url>,
    pub login: Option<(String, SecretString)>,
}

#[derive(Deserialize)]
struct ClusterText {
    #[serde(default)]
    members: Vec<MemberText>,
    #[serde(default)]
    scope: String,
    #[serde(default)]
    pause: bool,
}

#[derive(Deserialize)]
struct MemberText {
    name: String,
    role: String,
    state: String,
    #[serde(default)]
    api_url: Option<String>,
    #[serde(default)]
    timeline: Option<Value>,
    #[serde(default)]
    lag: Option<Value>,
    #[serde(default)]
    tags: BTreeMap<String, Value>,
}

impl MemberText {
    fn member(self) -> PatroniMember {
        let barred = self.tags.get("nofailover").is_some_and(|v| *v == true) || self.tags.get("failover_priority").is_some_and(|v| *v == 0);
        PatroniMember {
            name: self.name,
            role: self.role,
            state: self.state,
            api: self.api_url,
            timeline: self.timeline.as_ref().and_then(Value::as_u64).and_then(|n| n.try_into().ok()),
            lag: self.lag.as_ref().and_then(Value::as_u64),
            eligible: !barred,
        }
    }
}

/// What `GET /patroni` says. Of a server that answers it has `xlog`, whose keys tell a primary from a standby by the server's
/// own word; `role` is Patroni's idea, and may be older.
fn node(text: &Value) -> PatroniNode {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let xlog = &text["xlog"];
    let (written, replayed) = (xlog["location"].as_u64(), xlog["replayed_location"].as_u64());
    let in_recovery = xlog.as_object().map(|_| xlog.get("location").is_none());
    PatroniNode {
        name: word(&text["patroni"]["name"]),
        scope: word(&text["patroni"]["scope"]),
        state: word(&text["state"]),
        in_recovery,
        position: written.or(replayed).map(Lsn),
        timeline: text["timeline"].as_u64().and_then(|n| n.try_into().ok()),
        system_identifier: text["database_system_identifier"].as_str().map(str::to_owned),
    }
}

/// Whom the dynamic configuration makes it follow.
fn standby_of(config: &Value) -> Option<String> {
    let standby = config.get("standby_cluster").filter(|s| s.as_object().is_some_and(|o| !o.is_empty()))?;
    let host = standby["host"].as_str().unwrap_or("an archive");
    let port = standby.get("port").map_or_else(|| "5432".to_owned(), |p| p.to_string().trim_matches('"').to_owned());
    Some(format!("{host}:{port}"))
}

/// `http://db1:8008/patroni` and `http://db1:8008` are the same member.
fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

impl Patroni {
    fn at(&self, base: &Url, path: &str) -> PortResult<String> {
        base.join(path).map(String::from).map_err(|e| PortError::Config(format!("{}.urls: `{base}` leads nowhere: {e}", self.place)))
    }

    async fn get(&self, base: &Url, path: &str) -> PortResult<Value> {
        let request = HttpRequest {
            method: "GET".into(),
            url: self.at(base, path)?,
            headers: self.headers(),
            timeout: Some(READ),
            ..HttpRequest::default()
        };
        let response = self.http.send(request).await?;
        if response.status != 200 {
            let text = format!("Patroni of {} at {}{path} answered {}", self.label, origin(base), response.status);
            return Err(if response.status == 401 { self.not_let_in(base) } else { PortError::Unreachable(text) });
        }
        serde_json::from_slice(&response.body)
            .map_err(|_| PortError::Refused(format!("what answers at {} for {} is no Patroni", origin(base), self.label)))
    }

    fn headers(&self) -> BTreeMap<String, String> {
        let basic = |(user, password): &(String, SecretString)| {
            ("authorization".to_owned(), format!("Basic {}", STANDARD.encode(format!("{user}:{}", password.expose_secret()))))
        };
        self.login.iter().map(basic).chain([("content-type".to_owned(), "application/json".to_owned())]).collect()
    }

    fn not_let_in(&self, base: &Url) -> PortError {
        let what = if self.login.is_some() { "does not take the user and password of" } else { "wants a user and a password:" };
        PortError::Config(format!(
            "Patroni of {} at {} {what} {}: they are those of Patroni's `restapi.authentication`",
            self.label,
            origin(base),
            self.place
        ))
    }

    /// The first member that answers, with what it says of the cluster.
    async fn first(&self) -> PortResult<(&Url, PatroniCluster)> {
        let mut silent = Vec::new();
        for url in &self.urls {
            let asked = async { Ok((self.get(url, "cluster").await?, self.get(url, "config").await?)) };
            match asked.await {
                Ok((cluster, config)) => {
                    let told: ClusterText = serde_json::from_value(cluster).map_err(|e| {
                        PortError::Refused(format!("Patroni of {} at {} answers what is no cluster: {e}", self.label, origin(url)))
                    })?;
                    let members = told.members.into_iter().map(MemberText::member).collect();
                    let cluster = PatroniCluster { scope: told.scope, members, paused: told.pause, standby_of: standby_of(&config) };
                    return Ok((url, cluster));
                }
                Err(error @ (PortError::Unreachable(_) | PortError::Throttled { .. })) => silent.push(error.to_string()),
                Err(other) => return Err(other),
            }
        }
        Err(PortError::Unreachable(format!(
            "no Patroni of {} answers ({}): start it (`systemctl start patroni`), or correct {}.urls",
            self.label,
            silent.join("; "),
            self.place
        )))
    }

    async fn change(&self, base: &Url, method: &str, path: &str, body: &Value, timeout: Duration) -> PortResult<HttpResponse> {
        let request = HttpRequest {
            method: method.to_owned(),
            url: self.at(base, path)?,
            headers: self.headers(),
            body: Some(body.to_string().into_bytes()),
            connect_to: None,
            timeout: Some(timeout),
        };
        let response = self.http.send(request).await?;
        let said: String = String::from_utf8_lossy(&response.body).chars().take(300).collect();
        let text = format!("Patroni of {} answered {} to {method} /{path}: {}", self.label, response.status, said.trim());
        match response.status {
            200 | 202 => Ok(response),
            401 | 403 => Err(self.not_let_in(base)),
            // Somebody changed the configuration at the same moment.
            409 => Err(PortError::Throttled { after: Duration::from_millis(200), message: text }),
            400..=499 => Err(PortError::Refused(text)),
            _ => Err(PortError::Unknown(text)),
        }
    }
}

#[async_trait]
impl PatroniRead for Patroni {
    async fn cluster(&self) -> PortResult<PatroniCluster> {
        self.first().await.map(|(_, cluster)| cluster)
    }

    async fn nodes(&self) -> PortResult<Vec<(String, PortResult<PatroniNode>)>> {
        let (_, cluster) = self.first().await?;
        let mut all: Vec<Url> = self.urls.clone();
        for api in cluster.members.iter().filter_map(|m| m.api.as_deref()) {
            let url: Url =
                api.parse().map_err(|e| PortError::Refused(format!("a member of {} has the address `{api}`: {e}", self.label)))?;
            if !all.iter().any(|known| origin(known) == origin(&url)) {
                all.push(url);
            }
        }
        let asked = all.iter().map(|url| async move { (origin(url), self.get(url, "/patroni").await.map(|text| node(&text))) });
        let mut found: Vec<(String, PortResult<PatroniNode>)> = futures::future::join_all(asked).await;
        // One and the same member may be known by two addresses, one of which leads nowhere from here.
        let names: Vec<String> = found.iter().filter_map(|(_, n)| n.as_ref().ok().map(|n| n.name.clone())).collect();
        let known = |at: &str| {
            let here = |m: &&PatroniMember| m.api.as_deref().and_then(|a| a.parse::<Url>().ok()).is_some_and(|u| origin(&u) == at);
            cluster.members.iter().find(here).is_some_and(|m| names.contains(&m.name))
        };
        found.retain(|(at, node)| node.is_ok() || !known(at));
        Ok(found)
    }
}

#[async_trait]
impl PatroniWrite for Patroni {
    async fn switch_over(&self, leader: &str, candidate: &str) -> PortResult<()> {
        let (url, _) = self.first().await?;
        let body = json!({ "leader": leader, "candidate": candidate });
        self.change(url, "POST", "switchover", &body, SWITCH).await.map(drop)
    }

    async fn follow(&self, upstream: Option<&StandbyOf>) -> PortResult<()> {
        let (url, _) = self.first().await?;
        let body = json!({ "standby_cluster": upstream });
        let answer = self.change(url, "PATCH", "config", &body, READ).await?;
        // It tells the configuration as it is now.
        let now: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        if standby_of(&now).is_some() == upstream.is_some() {
            return Ok(());
        }
        Err(PortError::Unknown(format!("Patroni of {} took the change, and its configuration does not show it", self.label)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_a_primary_by_its_servers_own_word() {
        let primary = node(
            &json!({ "state": "running", "role": "replica", "xlog": { "location": 50_331_976 }, "timeline": 2, "patroni": { "name": "e1", "scope": "east" } }),
        );
        assert_eq!((primary.in_recovery, primary.position, primary.timeline), (Some(false), Some(Lsn(50_331_976)), Some(2)));
        let standby = node(&json!({ "state": "running", "role": "primary", "xlog": { "received_location": 9, "replayed_location": 8 } }));
        assert_eq!((standby.in_recovery, standby.position), (Some(true), Some(Lsn(8))));
        assert_eq!(node(&json!({ "state": "stopped", "role": "replica" })).in_recovery, None);
    }

    #[test]
    fn an_empty_section_makes_no_standby_cluster() {
        assert_eq!(standby_of(&json!({ "ttl": 30, "standby_cluster": {} })), None);
        assert_eq!(standby_of(&json!({ "standby_cluster": null })), None);
        assert_eq!(standby_of(&json!({ "standby_cluster": { "host": "db", "port": "5433" } })), Some("db:5433".into()));
        assert_eq!(standby_of(&json!({ "standby_cluster": { "restore_command": "cp" } })), Some("an archive:5432".into()));
    }
}
