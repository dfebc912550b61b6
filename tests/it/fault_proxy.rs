//! A proxy of ours in front of an emulator that nobody of Muster wrote: it throttles, holds answers back, loses them after
//! the effect, cuts a region off and asks for small pages, which the emulators cannot. Where an emulator leaves out what
//! Amazon documents, a test mends its answers here, and says so. It counts what was asked.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::Duration,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Refused for being one of too many; not passed on.
    Throttle,
    /// S3's way to refuse one of too many; not passed on.
    SlowDown,
    /// Refused to who asks; not passed on.
    Deny,
    /// Passed on, and the answer comes so much later.
    Delay(Duration),
    /// Carried out, and answered with an error of the server's.
    ErrorAfter,
    /// Carried out, and the connection is cut before the answer.
    CutAfter,
    /// Carried out, and the answer is held until [`FaultProxy::let_go`].
    HoldAfter,
    /// Accepted, not passed on, never answered.
    BlackHole,
}

/// What an answer says instead: of the request and of the answer's body.
type Mend = Arc<dyn Fn(&str, String) -> String + Send + Sync>;

struct Rule {
    /// What the request's first line or body contains: `Action=CreateDBSnapshot`.
    has: String,
    /// The region that it is signed for; any when `None`.
    region: Option<String>,
    left: usize,
    fault: Fault,
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    /// Every request: the region it is signed for, its first line and body, and whether it was passed on.
    seen: Vec<(String, String, bool)>,
    /// Every listing is asked for in pages of so many.
    pages: Option<usize>,
    mends: Vec<(String, Mend)>,
    held: bool,
    holding: usize,
}

#[derive(Clone)]
pub struct FaultProxy {
    pub port: u16,
    state: Arc<(Mutex<State>, Condvar)>,
}

impl FaultProxy {
    pub fn before(upstream: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Self { port: listener.local_addr().unwrap().port(), state: Arc::default() };
        let serving = proxy.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let proxy = serving.clone();
                thread::spawn(move || proxy.serve(stream, upstream));
            }
        });
        proxy
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The next so many requests that contain this meet a fault.
    pub fn fault(&self, has: &str, times: usize, fault: Fault) {
        let mut state = self.state.0.lock().unwrap();
        state.held |= fault == Fault::HoldAfter;
        state.rules.push(Rule { has: has.to_owned(), region: None, left: times, fault });
    }

    /// From now on a region accepts and never answers.
    pub fn cut_off(&self, region: &str) {
        let rule = Rule { has: String::new(), region: Some(region.to_owned()), left: usize::MAX, fault: Fault::BlackHole };
        self.state.0.lock().unwrap().rules.push(rule);
    }

    pub fn heal(&self) {
        self.state.0.lock().unwrap().rules.clear();
    }

    /// From now on every listing of S3 and Route 53 is asked for in pages of so many, whatever the client wants. The
    /// request's signature does not hold any more: only for servers that do not look at it.
    pub fn pages_of(&self, size: usize) {
        self.state.0.lock().unwrap().pages = Some(size);
    }

    /// From now on the answers to requests that contain this are what `how` makes of them.
    pub fn mend(&self, has: &str, how: impl Fn(&str, String) -> String + Send + Sync + 'static) {
        self.state.0.lock().unwrap().mends.push((has.to_owned(), Arc::new(how)));
    }

    pub fn let_go(&self) {
        self.state.0.lock().unwrap().held = false;
        self.state.1.notify_all();
    }

    /// How many answers are held at this moment.
    pub fn holding(&self) -> usize {
        self.state.0.lock().unwrap().holding
    }

    /// How many requests with this content came.
    pub fn asked(&self, has: &str) -> usize {
        self.state.0.lock().unwrap().seen.iter().filter(|(_, body, _)| body.contains(has)).count()
    }

    /// How many of them reached the emulator.
    pub fn passed(&self, has: &str) -> usize {
        self.state.0.lock().unwrap().seen.iter().filter(|(_, body, on)| *on && body.contains(has)).count()
    }

    fn meets(&self, region: &str, body: &str) -> Option<Fault> {
        let mut state = self.state.0.lock().unwrap();
        let hit = |rule: &&mut Rule| rule.left > 0 && body.contains(&rule.has) && rule.region.as_deref().is_none_or(|r| r == region);
        let fault = state.rules.iter_mut().find(hit).map(|rule| {
            rule.left = rule.left.saturating_sub(1);
            rule.fault
        });
        state.seen.push((
            region.to_owned(),
            body.to_owned(),
            !matches!(fault, Some(Fault::Throttle | Fault::SlowDown | Fault::Deny | Fault::BlackHole)),
        ));
        fault
    }

    fn serve(&self, mut client: TcpStream, upstream: u16) {
        let Some((head, body)) = request(&mut client) else { return };
        let pages = self.state.0.lock().unwrap().pages;
        let head = pages.map_or_else(|| head.clone(), |size| in_pages(&head, size));
        let text = format!("{}\n{}", head.lines().next().unwrap_or_default(), String::from_utf8_lossy(&body));
        let fault = self.meets(&signed_for(&head), &text);
        match fault {
            Some(Fault::BlackHole) => {
                // Until whoever asked gives up.
                let _ = client.read(&mut [0; 1]);
                return;
            }
            Some(Fault::Throttle) => return answer(&mut client, 400, &error("Throttling", "Rate exceeded")),
            Some(Fault::SlowDown) => {
                return answer(&mut client, 503, "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>");
            }
            // Each service wraps its errors in its own way.
            Some(Fault::Deny) if text.contains(" /2013-04-01/") => {
                return answer(&mut client, 403, &error("AccessDenied", "not authorized to do this"));
            }
            Some(Fault::Deny) => {
                return answer(&mut client, 403, "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>");
            }
            _ => {}
        }
        let Some(mut reply) = forward(&head, &body, upstream) else { return };
        let mends: Vec<Mend> = {
            let state = self.state.0.lock().unwrap();
            state.mends.iter().filter(|(has, _)| text.contains(has)).map(|(_, how)| how.clone()).collect()
        };
        for how in mends {
            reply = mended(&reply, |body| how(&text, body));
        }
        match fault {
            Some(Fault::Delay(by)) => thread::sleep(by),
            Some(Fault::ErrorAfter) => return answer(&mut client, 500, &error("InternalFailure", "the answer was lost")),
            Some(Fault::CutAfter) => {
                let _ = client.shutdown(Shutdown::Both);
                return;
            }
            Some(Fault::HoldAfter) => {
                let mut state = self.state.0.lock().unwrap();
                state.holding += 1;
                while state.held {
                    state = self.state.1.wait(state).unwrap();
                }
                state.holding -= 1;
            }
            _ => {}
        }
        let _ = client.write_all(&reply);
    }
}

fn error(code: &str, message: &str) -> String {
    format!(
        "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error><RequestId>1</RequestId></ErrorResponse>"
    )
}

fn answer(client: &mut TcpStream, status: u16, body: &str) {
    let head = format!("HTTP/1.1 {status} X\r\nContent-Type: text/xml\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    let _ = client.write_all(format!("{head}{body}").as_bytes());
}

/// The head and the body of one request.
fn request(client: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 8192];
    loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok()).flatten()
            });
            let whole = end + 4 + length.unwrap_or(0);
            while bytes.len() < whole {
                let n = client.read(&mut buffer).ok().filter(|n| *n > 0)?;
                bytes.extend_from_slice(&buffer[..n]);
            }
            return Some((head, bytes[end + 4..whole].to_vec()));
        }
        let n = client.read(&mut buffer).ok().filter(|n| *n > 0)?;
        bytes.extend_from_slice(&buffer[..n]);
    }
}

/// The head of a request that lists something, with another size of its pages; any other head as it is.
fn in_pages(head: &str, size: usize) -> String {
    let Some((line, rest)) = head.split_once("\r\n") else { return head.to_owned() };
    let [method, target, version] = line.split(' ').collect::<Vec<_>>()[..] else { return head.to_owned() };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let params = || query.split('&').filter(|param| !param.is_empty());
    let names = |name: &str| params().any(|param| param.split('=').next() == Some(name));
    let of_route53 =
        path.starts_with("/2013-04-01/") && ["/rrset", "/healthcheck", "/hostedzonesbyname"].iter().any(|end| path.ends_with(end));
    let param = match method {
        "GET" if query.contains("list-type=2") || names("versions") => "max-keys",
        "GET" if of_route53 => "maxitems",
        "GET" if names("attributes") => return format!("{line}\r\nx-amz-max-parts: {size}\r\n{}", without(rest, "x-amz-max-parts")),
        _ => return head.to_owned(),
    };
    let kept = params().filter(|one| one.split('=').next() != Some(param)).map(|one| format!("{one}&")).collect::<String>();
    format!("{method} {path}?{kept}{param}={size} {version}\r\n{rest}")
}

fn without(head: &str, name: &str) -> String {
    let other = |line: &&str| line.split(':').next().is_none_or(|n| !n.eq_ignore_ascii_case(name));
    head.split("\r\n").filter(other).collect::<Vec<_>>().join("\r\n")
}

/// An answer with another body.
fn mended(reply: &[u8], how: impl FnOnce(String) -> String) -> Vec<u8> {
    let end = reply.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let head = String::from_utf8_lossy(&reply[..end]).into_owned();
    assert!(!head.to_ascii_lowercase().contains("transfer-encoding"), "it can be read as it is: {head}");
    let body = how(String::from_utf8_lossy(&reply[end + 4..]).into_owned());
    format!("{}\r\ncontent-length: {}\r\n\r\n{body}", without(&head, "content-length"), body.len()).into_bytes()
}

/// The members of a list in an answer, from the one on that `first` names: a page of so many, and what follows it. For
/// what Amazon lists in pages and an emulator always lists as a whole.
pub fn page_of(body: &str, member: &str, size: usize, mut first: impl FnMut(usize, &str) -> bool) -> (String, Option<(usize, String)>) {
    let (open, close) = (format!("<{member}>"), format!("</{member}>"));
    let (Some(begin), Some(end)) = (body.find(&open), body.rfind(&close)) else { return (body.to_owned(), None) };
    let all: Vec<&str> = body[begin..end].split(&close).map(|one| one.trim_start().trim_start_matches(&open)).collect();
    let from = (0..all.len()).find(|n| first(*n, all[*n])).unwrap_or(all.len());
    let page = all.iter().skip(from).take(size).map(|one| format!("{open}{one}{close}")).collect::<String>();
    let next = all.get(from + size).map(|one| (from + size, (*one).to_owned()));
    (format!("{}{page}{}", &body[..begin], &body[end + close.len()..]), next)
}

/// The region of the signature's scope: `Credential=ID/DATE/REGION/…`.
fn signed_for(head: &str) -> String {
    let scope = head.split_once("Credential=").map_or("", |(_, rest)| rest);
    scope.split('/').nth(2).unwrap_or_default().to_owned()
}

/// The emulator's whole answer, made the last on its connection.
fn forward(head: &str, body: &[u8], upstream: u16) -> Option<Vec<u8>> {
    let mut server = TcpStream::connect(("127.0.0.1", upstream)).ok()?;
    let kept = head.lines().filter(|line| !line.to_ascii_lowercase().starts_with("connection:")).collect::<Vec<_>>().join("\r\n");
    server.write_all(format!("{kept}\r\nConnection: close\r\n\r\n").as_bytes()).ok()?;
    server.write_all(body).ok()?;
    let mut reply = Vec::new();
    server.read_to_end(&mut reply).ok()?;
    let end = reply.windows(2).position(|w| w == b"\r\n")? + 2;
    let text = String::from_utf8_lossy(&reply);
    if !text.to_ascii_lowercase().contains("\r\nconnection: close") {
        reply.splice(end..end, b"Connection: close\r\n".iter().copied());
    }
    Some(reply)
}
