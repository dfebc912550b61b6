//! The DNS servers outside the regions: the authoritative one of the zone, and a caching resolver in
//! front of it as clients have one, so that a change takes its time-to-live to reach them.

use super::{
    checker::Nameserver,
    error::{LabError, What},
    plan::LabPlan,
    zone::{Record as ZoneRecord, plain},
};
use crate::providers::clock::Clock;
use async_trait::async_trait;
use hickory_proto::{
    op::{Message, Metadata, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata},
};
use hickory_server::{
    Server,
    net::runtime::Time,
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo},
    zone_handler::MessageResponseBuilder,
};
use std::{
    collections::HashMap,
    net::SocketAddr,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::net::{TcpListener, UdpSocket};

const UPSTREAM_LIMIT: Duration = Duration::from_millis(800);
const MOST_ENTRIES: usize = 1_000;

/// What a server says to one question.
struct Answer {
    code: ResponseCode,
    records: Vec<Record>,
    authoritative: bool,
}

impl Answer {
    fn code(code: ResponseCode) -> Self {
        Self { code, records: Vec::new(), authoritative: false }
    }
}

#[async_trait]
trait Source: Send + Sync + Unpin + 'static {
    async fn answer(&self, name: &Name, kind: RecordType) -> Answer;
}

struct Handler<S>(S);

#[async_trait]
impl<S: Source> RequestHandler for Handler<S> {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut response: R) -> ResponseInfo {
        let answer = match request.request_info() {
            Ok(info) => self.0.answer(info.query.original().name(), info.query.query_type()).await,
            Err(_) => Answer::code(ResponseCode::FormErr),
        };
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = answer.code;
        metadata.authoritative = answer.authoritative;
        metadata.recursion_available = !answer.authoritative;
        let builder = MessageResponseBuilder::from_message_request(request);
        let message = builder.build(metadata, &answer.records, [], [], []);
        match response.send_response(message).await {
            Ok(info) => info,
            Err(error) => {
                tracing::warn!(%error, "a DNS answer could not be sent");
                hickory_proto::op::Header { metadata, counts: Default::default() }.into()
            }
        }
    }
}

async fn serve<S: Source>(at: SocketAddr, source: S) -> Result<Server<Handler<S>>, LabError> {
    let mut server = Server::new(Handler(source));
    server.register_socket(UdpSocket::bind(at).await.what(format!("listening on {at} (UDP)"))?);
    let tcp = TcpListener::bind(at).await.what(format!("listening on {at} (TCP)"))?;
    server.register_listener(tcp, Duration::from_secs(5), 32);
    Ok(server)
}

// ---------------------------------------------------------------- the authority

struct Authority(Arc<Nameserver>);

#[async_trait]
impl Source for Authority {
    async fn answer(&self, name: &Name, kind: RecordType) -> Answer {
        let mut asked = plain(&name.to_ascii());
        let mut records = Vec::new();
        // A chain of aliases within the zone is followed, as an authority does; a loop ends it.
        for _ in 0..8 {
            if let Some(found) = self.0.lookup(&asked, &kind.to_string()) {
                records.extend(rdata_of(&found));
                break;
            }
            let Some(alias) = self.0.lookup(&asked, "CNAME") else { break };
            records.extend(rdata_of(&alias));
            asked = plain(alias.values.first().map_or("", String::as_str));
        }
        let first = plain(&name.to_ascii());
        let code = match (records.is_empty(), self.0.inside(&first), self.0.known(&first)) {
            (true, false, _) => ResponseCode::Refused,
            (true, true, false) => ResponseCode::NXDomain,
            _ => ResponseCode::NoError,
        };
        Answer { code, records, authoritative: true }
    }
}

fn rdata_of(record: &ZoneRecord) -> Vec<Record> {
    let Ok(name) = Name::from_str(&format!("{}.", record.name)) else { return Vec::new() };
    let data = |value: &String| match record.kind.as_str() {
        "A" => value.parse().ok().map(|ip| RData::A(rdata::A(ip))),
        "AAAA" => value.parse().ok().map(|ip| RData::AAAA(rdata::AAAA(ip))),
        "CNAME" => Name::from_str(&format!("{}.", plain(value))).ok().map(|n| RData::CNAME(rdata::CNAME(n))),
        "TXT" => Some(RData::TXT(rdata::TXT::new(vec![value.trim_matches('"').to_owned()]))),
        _ => None,
    };
    record.values.iter().filter_map(data).map(|d| Record::from_rdata(name.clone(), record.ttl, d)).collect()
}

/// The server that answers for the zone, and the health checkers, until the process is killed. Neither needs the API.
/// # Errors
/// When a port is not to be had.
pub async fn serve_authority(plan: Arc<LabPlan>, clock: Arc<dyn Clock>) -> Result<(), LabError> {
    let zone = Nameserver::new(plan.clone(), clock);
    let mut server = serve(plan.outside.at(plan.outside.dns), Authority(zone.clone())).await?;
    tokio::select! {
        done = server.block_until_done() => done.map_err(std::io::Error::other).what("the DNS server"),
        () = zone.check() => Ok(()),
    }
}

// ---------------------------------------------------------------- the resolver

struct Cached {
    records: Vec<Record>,
    /// On the monotonic clock, when they came.
    at: Duration,
}

struct Resolver {
    upstream: SocketAddr,
    clock: Arc<dyn Clock>,
    cache: Mutex<HashMap<(Name, RecordType), Cached>>,
}

impl Resolver {
    /// What is held, each with what is left of its time; nothing once the shortest has run out.
    fn held(&self, key: &(Name, RecordType)) -> Option<Vec<Record>> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = cache.get(key)?;
        let age = self.clock.monotonic().saturating_sub(entry.at);
        let least = entry.records.iter().map(|r| r.ttl).min().unwrap_or(0);
        if age >= Duration::from_secs(u64::from(least)) {
            cache.remove(key);
            return None;
        }
        // Whole seconds, rounded up from the age, so that nobody behind us keeps it longer than the authority said.
        let gone = u32::try_from(age.as_millis().div_ceil(1_000)).unwrap_or(u32::MAX);
        Some(
            entry
                .records
                .iter()
                .cloned()
                .map(|mut r| {
                    r.ttl = r.ttl.saturating_sub(gone);
                    r
                })
                .collect(),
        )
    }

    async fn forward(&self, name: &Name, kind: RecordType) -> Result<Message, String> {
        let mut ask = Message::query();
        ask.metadata.recursion_desired = true;
        ask.add_query(Query::query(name.clone(), kind));
        let bytes = ask.to_vec().map_err(|e| e.to_string())?;
        let socket = UdpSocket::bind((self.upstream.ip(), 0)).await.map_err(|e| e.to_string())?;
        socket.connect(self.upstream).await.map_err(|e| e.to_string())?;
        socket.send(&bytes).await.map_err(|e| e.to_string())?;
        let mut buffer = vec![0; 4096];
        loop {
            let length = socket.recv(&mut buffer).await.map_err(|e| e.to_string())?;
            let message = Message::from_vec(buffer.get(..length).unwrap_or_default()).map_err(|e| e.to_string())?;
            if message.metadata.id == ask.metadata.id {
                return Ok(message);
            }
        }
    }
}

#[async_trait]
impl Source for Resolver {
    async fn answer(&self, name: &Name, kind: RecordType) -> Answer {
        let key = (name.to_lowercase(), kind);
        if let Some(records) = self.held(&key) {
            return Answer { code: ResponseCode::NoError, records, authoritative: false };
        }
        let asked = self.clock.monotonic();
        let Ok(Ok(message)) = tokio::time::timeout(UPSTREAM_LIMIT, self.forward(name, kind)).await else {
            return Answer::code(ResponseCode::ServFail);
        };
        let records = message.answers;
        if !records.is_empty() {
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            if cache.len() >= MOST_ENTRIES {
                cache.clear();
            }
            cache.insert(key, Cached { records: records.clone(), at: asked });
        }
        Answer { code: message.metadata.response_code, records, authoritative: false }
    }
}

/// Forwards to the authority and keeps what it says for as long as it allows, until the process is killed.
/// # Errors
/// When its port is not to be had.
pub async fn serve_resolver(plan: &LabPlan, clock: Arc<dyn Clock>) -> Result<(), LabError> {
    let resolver = Resolver { upstream: plan.outside.at(plan.outside.dns), clock, cache: Mutex::default() };
    let mut server = serve(plan.outside.at(plan.outside.resolver), resolver).await?;
    server.block_until_done().await.map_err(std::io::Error::other).what("the resolver")
}
