//! Route 53 as two emulators have it that nobody of Muster wrote, and a proxy of ours before them: it turns requests away,
//! loses answers after the effect, holds them back, tells what a health checker would have found, and spells MiniStack's
//! booleans as XML does.

use super::stores_servers;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_route53::{Client, config::Credentials, types::*};
use axum::{Router, body::Bytes, extract::Request, http::StatusCode, response::Response};
use hickory_proto::{
    op::{Message, MessageType},
    rr::{RData, Record, rdata::A},
};
use muster::{
    model::estate::{Aws, AwsCredentials, AwsEndpoints, SecretRef},
    providers::{aws::AwsClients, clock::SystemClock, route53::Route53},
};
use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

pub const EAST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
pub const WEST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
pub const NAME: &str = "api.scoring.test";

pub use stores_servers::{Server, ministack, moto};

pub fn client(url: &str) -> Client {
    let keys = Credentials::new("test", "testtest", None, None, "test");
    let config = aws_sdk_route53::Config::builder().behavior_version(BehaviorVersion::latest()).region(Region::new("us-east-1"));
    Client::from_conf(config.endpoint_url(url).credentials_provider(keys).build())
}

/// Muster's provider, and where it counts what it sends.
pub fn provider(url: &str, dir: &Path) -> (Route53, Arc<AwsClients>) {
    let secret = |name: &str, value: &str| {
        let path = dir.join(name);
        std::fs::write(&path, value).unwrap();
        SecretRef::File(path)
    };
    let keys = AwsCredentials { access_key_id: secret("id", "test"), secret_access_key: secret("secret", "testtest") };
    let endpoints = AwsEndpoints { route53: Some(url.parse().unwrap()), ..AwsEndpoints::default() };
    let aws = Aws { region: "us-east-1".into(), credentials: Some(keys), endpoints, ..Aws::default() };
    let clients = Arc::new(AwsClients::new(Some(aws)));
    (Route53::new(clients.clone(), Arc::new(SystemClock::new())), clients)
}

/// A zone `scoring.test`: its identifier.
pub async fn zone(dns: &Client, reference: &str) -> String {
    let made = dns.create_hosted_zone().name("scoring.test").caller_reference(reference).send().await.unwrap();
    made.hosted_zone().unwrap().id().trim_start_matches("/hostedzone/").to_owned()
}

pub fn record(address: Ipv4Addr, ttl: i64) -> ResourceRecordSet {
    let value = ResourceRecord::builder().value(address.to_string()).build().unwrap();
    ResourceRecordSet::builder().name(NAME).r#type(RrType::A).ttl(ttl).resource_records(value).build().unwrap()
}

/// By UPSERT: what was ever made by CREATE, moto does not let anybody CREATE again while the name has any record, also not
/// the batch that deletes that record; and to undo a change is just that.
pub async fn create(dns: &Client, zone: &str, sets: Vec<ResourceRecordSet>) {
    let change = |set| Change::builder().action(ChangeAction::Upsert).resource_record_set(set).build().unwrap();
    let batch = ChangeBatch::builder().set_changes(Some(sets.into_iter().map(change).collect())).build().unwrap();
    dns.change_resource_record_sets().hosted_zone_id(zone).change_batch(batch).send().await.unwrap();
}

/// The record sets of the name, as text that can be compared.
pub async fn sets(dns: &Client, zone: &str) -> Vec<String> {
    let all = dns.list_resource_record_sets().hosted_zone_id(zone).send().await.unwrap();
    let ours = all.resource_record_sets().iter().filter(|set| set.name().trim_end_matches('.') == NAME);
    ours.map(|set| {
        format!("{:?}", (set.set_identifier(), set.failover(), set.weight(), set.ttl(), set.resource_records(), set.health_check_id()))
    })
    .collect()
}

pub async fn checks(dns: &Client) -> Vec<String> {
    dns.list_health_checks().send().await.unwrap().health_checks().iter().map(|check| check.id().to_owned()).collect()
}

/// What becomes of the next request that matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// None: this one goes well, and the next in line meets the next.
    Nothing,
    /// Turned away before it is carried out.
    Throttled(&'static str),
    /// Carried out, and answered with an error of the server's.
    AnswerLost,
    /// Carried out, and never answered.
    Held,
    /// Carried out as a server does that does not know a part of it.
    Without(&'static str),
}

#[derive(Default)]
struct Weather {
    faults: Vec<(&'static str, Fault)>,
    forwarded: Vec<String>,
}

/// Passes everything on, in its weather. Methods are told by what stands in the request's path.
#[derive(Clone)]
pub struct Proxy {
    pub url: String,
    weather: Arc<Mutex<Weather>>,
}

impl Proxy {
    pub async fn before(target: &str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Self { url: format!("http://{}", listener.local_addr().unwrap()), weather: Arc::default() };
        let (passing, target) = (proxy.clone(), target.to_owned());
        let pass = move |request: Request| {
            let (passing, target) = (passing.clone(), target.clone());
            async move { passing.pass(&target, request).await }
        };
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(pass)).await });
        proxy
    }

    /// The next POST whose path holds this meets the fault; several wait in line.
    pub fn fault(&self, path: &'static str, fault: Fault) {
        self.weather.lock().unwrap().faults.push((path, fault));
    }
    /// POSTs whose path holds this, as they reached the server.
    pub fn changes(&self, path: &str) -> usize {
        self.weather.lock().unwrap().forwarded.iter().filter(|one| one.contains(path)).count()
    }

    async fn pass(&self, target: &str, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
        let xml = |status: StatusCode, text: String| {
            Response::builder().status(status).header("content-type", "text/xml").body(text.into()).unwrap()
        };
        if path.ends_with("/status") {
            // No emulator here looks at anything: MiniStack lacks the call, and moto finds everything well.
            let report = "<StatusReport><Status>Failure: HTTP Status Code 403</Status></StatusReport>";
            let seen = format!(
                "<HealthCheckObservation><Region>us-east-1</Region><IPAddress>127.0.0.1</IPAddress>{report}</HealthCheckObservation>"
            );
            return xml(
                StatusCode::OK,
                format!(
                    "<GetHealthCheckStatusResponse><HealthCheckObservations>{seen}</HealthCheckObservations></GetHealthCheckStatusResponse>"
                ),
            );
        }
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap_or_else(|_| Bytes::new());
        let fault = if parts.method == "POST" {
            let mut weather = self.weather.lock().unwrap();
            let at = weather.faults.iter().position(|(word, _)| path.contains(word));
            at.map(|at| weather.faults.remove(at).1)
        } else {
            None
        };
        let error = |code: &str| {
            format!("<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>weather</Message></Error></ErrorResponse>")
        };
        if let Some(Fault::Throttled(code)) = fault {
            return xml(StatusCode::BAD_REQUEST, error(code));
        }
        let (mut headers, mut body) = (parts.headers, body);
        if let Some(Fault::Without(part)) = fault {
            let text = String::from_utf8(body.to_vec()).unwrap();
            assert!(text.contains(part), "{text} lacks {part}");
            body = text.replace(part, "").into();
            headers.remove("content-length");
        }
        let sent = reqwest::Client::new()
            .request(parts.method.clone(), format!("{target}{path}"))
            .headers(headers)
            .body(body)
            .send()
            .await
            .unwrap();
        if parts.method == "POST" {
            self.weather.lock().unwrap().forwarded.push(path);
        }
        match fault {
            Some(Fault::AnswerLost) => return xml(StatusCode::INTERNAL_SERVER_ERROR, error("InternalFailure")),
            Some(Fault::Held) => tokio::time::sleep(Duration::from_secs(60)).await,
            _ => {}
        }
        let status = sent.status();
        // MiniStack writes them as Python does, which the SDK cannot read.
        xml(status, sent.text().await.unwrap().replace(">True<", ">true<").replace(">False<", ">false<"))
    }
}

/// A name server that answers every question with one address, which the test moves.
pub struct Answers {
    pub at: SocketAddr,
    address: Arc<Mutex<Ipv4Addr>>,
}

impl Answers {
    pub fn with(address: Ipv4Addr) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let made = Self { at: socket.local_addr().unwrap(), address: Arc::new(Mutex::new(address)) };
        let told = made.address.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let Ok(mut message) = Message::from_vec(&buffer[..length]) else { continue };
                message.metadata.message_type = MessageType::Response;
                message.metadata.authoritative = true;
                let asked = message.queries.first().cloned();
                if let Some(query) = asked.filter(|query| query.query_type() == hickory_proto::rr::RecordType::A) {
                    message.add_answer(Record::from_rdata(query.name().clone(), 1, RData::A(A(*told.lock().unwrap()))));
                }
                let _ = socket.send_to(&message.to_vec().unwrap(), from);
            }
        });
        made
    }
    pub fn moves_to(&self, address: Ipv4Addr) {
        *self.address.lock().unwrap() = address;
    }
}
