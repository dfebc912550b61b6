//! A receiver of webhooks: a listener of the test's own that keeps the JSON it is sent.

use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    Answers,
    /// Takes the request and never answers.
    Hangs,
    /// Answers 500.
    Refuses,
}

pub struct Receiver {
    address: SocketAddr,
    got: Arc<Mutex<Vec<Value>>>,
}

impl Receiver {
    pub fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let got = Arc::new(Mutex::new(Vec::new()));
        let kept = got.clone();
        // It ends with the test's process, each of which has one.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let kept = kept.clone();
                std::thread::spawn(move || take(stream, manner, &kept));
            }
        });
        Self { address, got }
    }
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
    pub fn got(&self) -> Vec<Value> {
        self.got.lock().unwrap().clone()
    }
    /// The first so many, once they have come.
    pub fn wait(&self, count: usize) -> Vec<Value> {
        let begun = Instant::now();
        loop {
            let got = self.got();
            if got.len() >= count {
                return got.into_iter().take(count).collect();
            }
            assert!(begun.elapsed() < Duration::from_secs(40), "{count} were to come, these did: {got:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn take(stream: TcpStream, manner: Manner, kept: &Mutex<Vec<Value>>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let line = line.trim().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        kept.lock().unwrap().push(serde_json::from_slice(&body).ok()?);
        let answer = match manner {
            Manner::Hangs => continue,
            Manner::Answers => "204 No Content",
            Manner::Refuses => "500 Internal Server Error",
        };
        (&stream).write_all(format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\n\r\n").as_bytes()).ok()?;
    }
}
