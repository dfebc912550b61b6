//! A proxy of ours in front of an emulator that nobody of Muster wrote: it throttles, holds answers back, loses them after
//! the effect, and cuts a region off, which the emulators cannot. It counts what was asked.

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

struct Rule {
    /// What the request contains: `Action=CreateDBSnapshot`.
    has: String,
    /// The region that it is signed for; any when `None`.
    region: Option<String>,
    left: usize,
    fault: Fault,
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    /// Every request: the region it is signed for, its body, and whether it was passed on.
    seen: Vec<(String, String, bool)>,
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
        state.seen.push((region.to_owned(), body.to_owned(), !matches!(fault, Some(Fault::Throttle | Fault::BlackHole))));
        fault
    }

    fn serve(&self, mut client: TcpStream, upstream: u16) {
        let Some((head, body)) = request(&mut client) else { return };
        let text = String::from_utf8_lossy(&body).into_owned();
        let fault = self.meets(&signed_for(&head), &text);
        match fault {
            Some(Fault::BlackHole) => {
                // Until whoever asked gives up.
                let _ = client.read(&mut [0; 1]);
                return;
            }
            Some(Fault::Throttle) => return answer(&mut client, 400, &error("Throttling", "Rate exceeded")),
            _ => {}
        }
        let Some(reply) = forward(&head, &body, upstream) else { return };
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
