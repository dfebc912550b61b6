//! DNS servers that take dynamic updates (RFC 2136): BIND, Knot, PowerDNS, Windows DNS. No cloud stands between: the
//! change goes to the zone's primary server, signed with TSIG.
//!
//! A swap is ONE message: the prerequisites say what must stand there, the updates what shall, and the server carries
//! out both or neither. That makes it a compare-and-swap, and harmless to repeat. Prerequisites compare values, not
//! TTLs. An answer that stays away is an unknown outcome; one that is not signed by who knows the key counts as none.
//!
//! A change is known by the zone's serial after it. It is in sync when every authoritative server has that serial or a
//! later one, which the primary alone cannot say: each is asked. Where the estate says so, each is told as well (NOTIFY, RFC
//! 1996): a primary may take its time with that. Nothing hangs on it: whoever does not hear it hears the primary later.

use super::{
    clock::{Clock, random},
    port::{ChangeId, DnsRead, DnsWrite, PortError, PortResult, RecordSet, WeightedSet},
    tsig::Key,
};
use async_trait::async_trait;
use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RData, Record, RecordType},
};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
};

/// A server on the other side of the world answers within a fraction of this.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How long the name of a secondary may take to become an address. What is sent is not waited for.
const TELLS: Duration = Duration::from_millis(300);

pub struct Settings {
    /// Who takes updates: `HOST:PORT`.
    pub primary: String,
    /// The other authoritative servers, in the same form.
    pub secondaries: Vec<String>,
    pub key: Option<Key>,
    /// Tell the secondaries of each change.
    pub notify: bool,
}

pub struct Updates {
    settings: Settings,
    clock: Arc<dyn Clock>,
}

/// How far a request has come when it fails.
enum Lost {
    /// Nothing has been sent.
    Before(String),
    /// It may have been taken up.
    After(String),
}

impl Updates {
    #[must_use]
    pub fn new(settings: Settings, clock: Arc<dyn Clock>) -> Self {
        Self { settings, clock }
    }

    fn seconds(&self) -> u64 {
        u64::try_from(self.clock.now().as_second()).unwrap_or(0)
    }

    /// Sends one message, by TCP: whether it arrived is known, and it may be of any length.
    async fn exchange(&self, server: &str, bytes: &[u8]) -> Result<Vec<u8>, Lost> {
        let connect = tokio::time::timeout(TIMEOUT, TcpStream::connect(server)).await;
        let mut stream = connect
            .map_err(|_| Lost::Before(format!("{server} did not accept a connection within {} s", TIMEOUT.as_secs())))?
            .map_err(|e| Lost::Before(format!("{server}: {e}")))?;
        let mut framed = (bytes.len() as u16).to_be_bytes().to_vec();
        framed.extend_from_slice(bytes);
        let talk = async {
            stream.write_all(&framed).await?;
            let length = stream.read_u16().await?;
            let mut answer = vec![0; usize::from(length)];
            stream.read_exact(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        tokio::time::timeout(TIMEOUT, talk)
            .await
            .map_err(|_| Lost::After(format!("{server} did not answer within {} s", TIMEOUT.as_secs())))?
            .map_err(|e| Lost::After(format!("{server}: {e}")))
    }

    /// Asks one authoritative server, and no cache, for what it has of a name.
    async fn ask(&self, server: &str, name: &Name, kind: RecordType) -> PortResult<Message> {
        let mut message = Message::new(identifier()?, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(name.clone(), kind));
        let bytes = message.to_vec().map_err(|e| PortError::Config(format!("a question for {name}: {e}")))?;
        let answer = self.exchange(server, &bytes).await.map_err(|lost| match lost {
            Lost::Before(why) | Lost::After(why) => PortError::Unreachable(why),
        })?;
        let answer = parsed(server, &answer, message.metadata.id).map_err(PortError::Unreachable)?;
        match answer.metadata.response_code {
            ResponseCode::NoError | ResponseCode::NXDomain if answer.metadata.authoritative => Ok(answer),
            ResponseCode::ServFail => Err(PortError::Unreachable(format!("{server} has trouble of its own with {name} (SERVFAIL)"))),
            // A resolver answers a question that is not recursive from its cache, or refuses it.
            ResponseCode::NoError | ResponseCode::NXDomain | ResponseCode::Refused => Err(PortError::Refused(format!(
                "{server} is not authoritative for {name}: write the zone's own servers as the endpoint's `update`, not a resolver"
            ))),
            code => Err(PortError::Refused(format!("{server} will not answer for {name}: {code}"))),
        }
    }

    async fn serial(&self, server: &str, zone: &Name) -> PortResult<u32> {
        let answer = self.ask(server, zone, RecordType::SOA).await?;
        let serial = answer.answers.iter().find_map(|r| match &r.data {
            RData::SOA(soa) => Some(soa.serial),
            _ => None,
        });
        serial
            .ok_or_else(|| PortError::NotFound(format!("{server} has no zone {zone}: write the zone's own name as the endpoint's `zone`")))
    }

    async fn find(&self, name: &str, kind: &str) -> PortResult<Option<RecordSet>> {
        let (owner, wanted) = (absolute(name)?, record_type(kind)?);
        let server = &self.settings.primary;
        let answer = self.ask(server, &owner, wanted).await?;
        let here: Vec<&Record> = answer.answers.iter().filter(|r| r.name.to_lowercase() == owner).collect();
        if here.iter().any(|r| r.record_type() == RecordType::CNAME) {
            return Err(PortError::Refused(format!("{name} is a CNAME at {server}; Muster shifts records that hold addresses")));
        }
        let mut values: Vec<String> = here.iter().filter(|r| r.record_type() == wanted).map(|r| r.data.to_string()).collect();
        values.sort();
        let ttl_s = here.first().map_or(0, |r| r.ttl);
        Ok((!values.is_empty()).then(|| RecordSet { name: name.to_owned(), kind: kind.to_owned(), ttl_s, values }))
    }

    /// The whole change as one message, unsigned.
    fn message(zone: &str, expect: Option<&RecordSet>, want: Option<&RecordSet>) -> PortResult<Message> {
        let mut message = Message::new(identifier()?, MessageType::Query, OpCode::Update);
        let mut of_zone = Query::new();
        of_zone.set_name(absolute(zone)?).set_query_class(DNSClass::IN).set_query_type(RecordType::SOA);
        message.add_query(of_zone);
        let Some(subject) = want.or(expect) else {
            return Err(PortError::Config("a change of DNS that changes nothing".to_owned()));
        };
        let (owner, kind) = (absolute(&subject.name)?, record_type(&subject.kind)?);
        match expect {
            // Each value, without a TTL: the set must be exactly this.
            Some(old) => message.answers = records(old, 0)?,
            None => message.answers = vec![bare(&owner, kind, DNSClass::NONE)],
        }
        message.add_authority(bare(&owner, kind, DNSClass::ANY));
        if let Some(new) = want {
            message.authorities.extend(records(new, new.ttl_s)?);
        }
        Ok(message)
    }

    /// Sends an update and reads what the server made of it.
    async fn update(&self, message: &Message, what: &str) -> PortResult<ResponseCode> {
        let server = &self.settings.primary;
        let mut bytes = message.to_vec().map_err(|e| PortError::Config(format!("{what}: {e}")))?;
        let signed = |e| PortError::Config(format!("{what}: {e}"));
        let mac = self.settings.key.as_ref().map(|key| key.sign(&mut bytes, self.seconds())).transpose().map_err(signed)?;
        let answer = match self.exchange(server, &bytes).await {
            Ok(answer) => answer,
            Err(Lost::Before(why)) => return Err(PortError::Unreachable(format!("{what}: {why}"))),
            Err(Lost::After(why)) => return Err(PortError::Unknown(format!("{what}: {why}"))),
        };
        let parsed = parsed(server, &answer, message.metadata.id).map_err(|why| PortError::Unknown(format!("{what}: {why}")))?;
        let code = parsed.metadata.response_code;
        if let (Some(key), Some(mac)) = (&self.settings.key, &mac) {
            match key.check(&answer, mac, self.seconds()) {
                Ok(()) => {}
                Err(super::tsig::TsigError::Refused(error)) => {
                    return Err(PortError::Refused(format!("{what}: {}; {}", super::tsig::TsigError::Refused(error), remedy())));
                }
                // Who does not know the key is refused without a signature: nothing was done, if it was the server.
                Err(super::tsig::TsigError::Unsigned) if code == ResponseCode::Refused || code == ResponseCode::NotAuth => {
                    return Err(PortError::Refused(format!("{what}: {server} answers {code}, unsigned; {}", remedy())));
                }
                Err(error) => return Err(PortError::Unknown(format!("{what}: {server}: {error}"))),
            }
        }
        Ok(code)
    }

    /// Tells every secondary that the zone has changed, and waits for nobody.
    async fn tell(&self, zone: &Name) {
        let told = self.settings.secondaries.iter().map(|server| async move {
            let sent = tokio::time::timeout(TELLS, self.notify(server, zone)).await;
            match sent {
                Ok(Ok(())) => {}
                Ok(Err(why)) => tracing::warn!("NOTIFY of {zone} to {server}: {why}"),
                Err(_) => tracing::warn!("NOTIFY of {zone} to {server}: not sent within {} ms", TELLS.as_millis()),
            }
        });
        futures::future::join_all(told).await;
    }

    async fn notify(&self, server: &str, zone: &Name) -> Result<(), String> {
        let mut bytes = notice(identifier().map_err(|e| e.to_string())?, zone).to_vec().map_err(|e| e.to_string())?;
        if let Some(key) = &self.settings.key {
            key.sign(&mut bytes, self.seconds()).map_err(|e| e.to_string())?;
        }
        let mut why = "it has no address".to_owned();
        // One of them may be of a kind that leads nowhere from here.
        for address in tokio::net::lookup_host(server).await.map_err(|e| e.to_string())? {
            let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let sent = async { UdpSocket::bind((any, 0)).await?.send_to(&bytes, address).await };
            match sent.await {
                Ok(_) => return Ok(()),
                Err(error) => why = error.to_string(),
            }
        }
        Err(why)
    }

    /// What stands where a swap was refused.
    async fn standing(&self, of: &RecordSet) -> String {
        match self.find(&of.name, &of.kind).await {
            Ok(Some(found)) => format!("{} {} {} {}", found.name, found.ttl_s, found.kind, found.values.join(" ")),
            Ok(None) => format!("no record {} {}", of.name, of.kind),
            Err(e) => format!("something else (it could not be read: {e})"),
        }
    }
}

/// That a zone has changed. How far is for the secondary to ask of its primary: no serial is claimed here.
fn notice(id: u16, zone: &Name) -> Message {
    let mut message = Message::new(id, MessageType::Query, OpCode::Notify);
    message.metadata.authoritative = true;
    message.add_query(Query::query(zone.clone(), RecordType::SOA));
    message
}

/// `HOST:PORT`, with DNS's own port where none is given.
#[must_use]
pub fn with_port(server: &str) -> String {
    if server.parse::<std::net::Ipv6Addr>().is_ok() {
        return format!("[{server}]:53");
    }
    let after = server.rsplit_once(']').map_or(server, |(_, after)| after);
    if after.contains(':') { server.to_owned() } else { format!("{server}:53") }
}

fn remedy() -> &'static str {
    "see that the endpoint's `update.key` has name, algorithm and secret as on the server, and that the server lets this key update the zone"
}

fn identifier() -> PortResult<u16> {
    let bytes = random().map_err(|e| PortError::Config(format!("the system gives no random numbers: {e}")))?;
    Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// The answer to just this question.
fn parsed(server: &str, bytes: &[u8], id: u16) -> Result<Message, String> {
    let answer = Message::from_vec(bytes).map_err(|e| format!("{server} answers something that is no DNS message: {e}"))?;
    if answer.metadata.id == id { Ok(answer) } else { Err(format!("{server} answers another question")) }
}

fn absolute(name: &str) -> PortResult<Name> {
    let mut parsed = Name::from_ascii(name).map_err(|e| PortError::Config(format!("`{name}` is no domain name: {e}")))?;
    parsed.set_fqdn(true);
    Ok(parsed.to_lowercase())
}

fn record_type(kind: &str) -> PortResult<RecordType> {
    match kind {
        "A" => Ok(RecordType::A),
        "AAAA" => Ok(RecordType::AAAA),
        other => Err(PortError::Config(format!("records of type {other} are not shifted; A and AAAA are"))),
    }
}

/// A record without data: all of a type in an update, none of it in a prerequisite.
fn bare(owner: &Name, kind: RecordType, class: DNSClass) -> Record {
    let mut record = Record::update0(owner.clone(), 0, kind);
    record.dns_class = class;
    record.into_record_of_rdata()
}

fn records(set: &RecordSet, ttl: u32) -> PortResult<Vec<Record>> {
    let owner = absolute(&set.name)?;
    let one = |value: &String| {
        let data = match value.parse() {
            Ok(IpAddr::V4(address)) => RData::A(address.into()),
            Ok(IpAddr::V6(address)) => RData::AAAA(address.into()),
            Err(_) => return Err(PortError::Config(format!("{}: `{value}` is no address", set.name))),
        };
        Ok(Record::from_rdata(owner.clone(), ttl, data))
    };
    set.values.iter().map(one).collect()
}

/// Is a serial that one or a later one? They go round (RFC 1982).
fn reached(serial: u32, wanted: u32) -> bool {
    serial.wrapping_sub(wanted) < 1 << 31
}

#[async_trait]
impl DnsRead for Updates {
    async fn record(&self, zone: &str, name: &str, kind: &str) -> PortResult<Option<RecordSet>> {
        let (zone, owner) = (absolute(zone)?, absolute(name)?);
        if !zone.zone_of(&owner) {
            return Err(PortError::Config(format!("{name} does not lie in the zone {zone}")));
        }
        self.find(name, kind).await
    }

    async fn weights(&self, _zone: &str, name: &str, _kind: &str) -> PortResult<Vec<WeightedSet>> {
        Err(unweighted(name))
    }

    async fn in_sync(&self, change: &ChangeId) -> PortResult<bool> {
        let fail = || PortError::Config(format!("`{}` is no change of a zone here", change.0));
        let (zone, serial) = change.0.rsplit_once(' ').ok_or_else(fail)?;
        let (zone, wanted) = (absolute(zone)?, serial.parse().map_err(|_| fail())?);
        let servers = std::iter::once(&self.settings.primary).chain(&self.settings.secondaries);
        let asked = futures::future::join_all(servers.map(|server| self.serial(server, &zone))).await;
        // One that lags settles it, whatever the others say; one that cannot be asked leaves it open.
        let mut silent = None;
        for answer in asked {
            match answer {
                Ok(serial) if !reached(serial, wanted) => return Ok(false),
                Ok(_) => {}
                Err(error) => silent = Some(error),
            }
        }
        silent.map_or(Ok(true), Err)
    }
}

#[async_trait]
impl DnsWrite for Updates {
    async fn swap(&self, zone: &str, expect: Option<&RecordSet>, want: Option<&RecordSet>, _comment: &str) -> PortResult<ChangeId> {
        let message = Self::message(zone, expect, want)?;
        let Some(subject) = want.or(expect) else {
            return Err(PortError::Config("a change of DNS that changes nothing".to_owned()));
        };
        let what = format!("update of {} {} at {}", subject.name, subject.kind, self.settings.primary);
        match self.update(&message, &what).await? {
            ResponseCode::NoError => {
                // The change is made: that its number cannot be read makes it no less so.
                let named = absolute(zone)?;
                let serial = self.serial(&self.settings.primary, &named).await;
                if self.settings.notify {
                    self.tell(&named).await;
                }
                let serial = serial.map_err(|e| PortError::Unknown(format!("{what} was accepted, and then: {e}")))?;
                Ok(ChangeId(format!("{zone} {serial}")))
            }
            ResponseCode::NXRRSet | ResponseCode::YXRRSet | ResponseCode::NXDomain | ResponseCode::YXDomain => {
                Err(PortError::Conflict { found: self.standing(subject).await })
            }
            ResponseCode::NotZone => Err(PortError::Config(format!("{what}: {} does not lie in the zone {zone}", subject.name))),
            // It may have failed at its very end: BIND answers so when it cannot write its journal.
            ResponseCode::ServFail => Err(PortError::Unknown(format!("{what}: the server has trouble of its own (SERVFAIL)"))),
            code => Err(PortError::Refused(format!("{what}: {code}; {}", remedy()))),
        }
    }

    async fn reweigh(&self, zone: &str, _expect: &[WeightedSet], _want: &[WeightedSet], _comment: &str) -> PortResult<ChangeId> {
        Err(unweighted(zone))
    }
}

fn unweighted(name: &str) -> PortError {
    PortError::Refused(format!("{name}: a zone of one's own answers alike to everybody; weighted records need `provider: route53`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(ttl_s: u32, values: &[&str]) -> RecordSet {
        RecordSet { name: "API.scoring.test".into(), kind: "A".into(), ttl_s, values: values.iter().map(|v| (*v).to_owned()).collect() }
    }

    #[test]
    fn a_swap_is_one_message_with_what_must_stand_there() {
        let made =
            Updates::message("scoring.test", Some(&record(60, &["127.0.1.1", "127.0.1.2"])), Some(&record(5, &["127.0.2.1"]))).unwrap();
        let back = Message::from_vec(&made.to_vec().unwrap()).unwrap();
        assert_eq!(back.metadata.op_code, OpCode::Update);
        let shown = |of: &[Record]| of.iter().map(|r| (r.name.to_string(), r.dns_class, r.ttl, r.record_type())).collect::<Vec<_>>();
        let owner = || "api.scoring.test.".to_owned();
        assert_eq!(shown(&back.answers), [(owner(), DNSClass::IN, 0, RecordType::A), (owner(), DNSClass::IN, 0, RecordType::A)]);
        assert_eq!(shown(&back.authorities), [(owner(), DNSClass::ANY, 0, RecordType::A), (owner(), DNSClass::IN, 5, RecordType::A)]);
    }

    #[test]
    fn a_notice_is_as_rfc_1996_has_it() {
        let back = Message::from_vec(&notice(7, &absolute("scoring.test").unwrap()).to_vec().unwrap()).unwrap();
        assert_eq!((back.metadata.id, back.metadata.op_code, back.metadata.authoritative), (7, OpCode::Notify, true));
        assert_eq!((back.queries.len(), back.queries[0].query_type(), back.answers.len()), (1, RecordType::SOA, 0));
    }

    #[test]
    fn what_is_not_there_must_not_be_there() {
        let made = Updates::message("scoring.test", None, Some(&record(5, &["127.0.2.1"]))).unwrap();
        assert_eq!((made.answers.len(), made.answers[0].dns_class), (1, DNSClass::NONE));
        let gone = Updates::message("scoring.test", Some(&record(5, &["127.0.2.1"])), None).unwrap();
        assert_eq!((gone.authorities.len(), gone.authorities[0].dns_class), (1, DNSClass::ANY));
    }

    #[test]
    fn a_server_without_a_port_answers_on_53() {
        let ports = ["ns1.example", "ns1.example:5353", "10.0.0.1", "2001:db8::1", "[2001:db8::1]:5353", "[2001:db8::1]"].map(with_port);
        assert_eq!(
            ports,
            ["ns1.example:53", "ns1.example:5353", "10.0.0.1:53", "[2001:db8::1]:53", "[2001:db8::1]:5353", "[2001:db8::1]:53"]
        );
    }

    #[test]
    fn serials_go_round() {
        assert!(reached(7, 7) && reached(8, 7) && !reached(6, 7));
        assert!(reached(2, u32::MAX) && !reached(u32::MAX, 2));
    }

    #[test]
    fn what_is_no_address_or_no_name_is_refused() {
        assert!(matches!(Updates::message("scoring.test", None, Some(&record(5, &["west"]))), Err(PortError::Config(_))));
        assert!(matches!(absolute("a..b"), Err(PortError::Config(_))));
        assert!(matches!(record_type("TXT"), Err(PortError::Config(_))));
    }
}
