//! A PostgreSQL server that speaks just enough of the replication protocol to be backed up: one small cluster that never
//! changes, with a log of one segment. Real servers are in the integration tests.

use super::SimWorld;
use crate::providers::replication::{Dial, PgError, PgResult, Purpose, Session};
use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// The cluster's identifier.
pub const SYSTEM: &str = "7300000000000000001";
const START: &str = "0/200028";
const STOP: &str = "0/200100";
/// The segment in which the backup begins and ends, and its length.
const SEGMENT: u64 = 0x20_0000;
const LENGTH: usize = 1 << 20;

pub(super) struct SimCluster {
    pub world: SimWorld,
    pub database: String,
    pub region: String,
}

#[async_trait]
impl Dial for SimCluster {
    async fn dial(&self, purpose: Purpose) -> PgResult<Session> {
        let at = format!("{} in {}", self.database, self.region);
        self.world.up(&self.region).map_err(|e| PgError::Unreachable { at: at.clone(), why: e.to_string() })?;
        let server = (self.database.clone(), self.region.clone());
        let standby = self.world.lock().servers.get(&server).is_some_and(|server| server.state.in_recovery);
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        // It ends when the session does.
        tokio::spawn(async move { serve(theirs, standby).await });
        Session::over(Box::new(ours), at, "sim", purpose).await
    }
    fn url(&self) -> String {
        format!("postgres://sim@{}.{}.sim:5432/", self.database, self.region)
    }
}

/// Answers until the other side has gone.
async fn serve(mut io: DuplexStream, standby: bool) -> std::io::Result<()> {
    let length = io.read_u32().await? as usize;
    let mut startup = vec![0; length.saturating_sub(4)];
    io.read_exact(&mut startup).await?;
    let hot = if standby { "on" } else { "off" };
    let mut hello = message(b'R', &0u32.to_be_bytes());
    for (name, value) in [("server_version", "15.0"), ("in_hot_standby", hot)] {
        hello.extend(message(b'S', format!("{name}\0{value}\0").as_bytes()));
    }
    hello.extend(message(b'K', &[0; 8]));
    hello.extend(message(b'Z', b"I"));
    io.write_all(&hello).await?;
    loop {
        let tag = io.read_u8().await?;
        let length = io.read_u32().await? as usize;
        let mut body = vec![0; length.saturating_sub(4)];
        io.read_exact(&mut body).await?;
        let asked = String::from_utf8_lossy(&body);
        let answer = match tag {
            b'Q' => answer(asked.trim_end_matches('\0')),
            // The stream of the log ends.
            b'c' => [message(b'c', b""), message(b'C', b"START_STREAMING\0"), message(b'Z', b"I")].concat(),
            b'X' => return Ok(()),
            _ => Vec::new(),
        };
        io.write_all(&answer).await?;
    }
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    [&[tag][..], &length.to_be_bytes(), body].concat()
}

/// A result of one row.
fn result(values: &[&str]) -> Vec<u8> {
    let mut row = (values.len() as u16).to_be_bytes().to_vec();
    for value in values {
        row.extend((value.len() as u32).to_be_bytes());
        row.extend(value.as_bytes());
    }
    [message(b'T', &[0, 0]), message(b'D', &row), message(b'C', b"SELECT\0")].concat()
}

fn answer(asked: &str) -> Vec<u8> {
    let ready = message(b'Z', b"I");
    let copied = |data: &[u8]| message(b'd', data);
    if asked == "IDENTIFY_SYSTEM" {
        return [result(&[SYSTEM, "1", STOP]), ready].concat();
    }
    if let Some(setting) = asked.strip_prefix("SHOW ") {
        let value = match setting.trim_matches('"') {
            "wal_segment_size" => "1MB",
            "block_size" => "8192",
            _ => "off",
        };
        return [result(&[value]), ready].concat();
    }
    if asked.starts_with("START_REPLICATION") {
        let both = message(b'W', &[0, 0, 0]);
        let begins = [&b"w"[..], &SEGMENT.to_be_bytes(), &(SEGMENT + LENGTH as u64).to_be_bytes(), &[0; 8], &vec![7; LENGTH]].concat();
        return [both, copied(&begins)].concat();
    }
    if asked.starts_with("BASE_BACKUP") {
        let files = [("PG_VERSION", &b"15\n"[..]), ("backup_label", b"START WAL LOCATION: 0/200028\n"), ("base/1/1259", &[9; 16_384])];
        let listed: Vec<String> =
            files.iter().map(|(path, body)| format!("{{ \"Path\": \"{path}\", \"Size\": {} }}", body.len())).collect();
        let manifest = format!("{{ \"Files\": [{}] }}", listed.join(", "));
        let mut out = [result(&[START, "1"]), result(&["", "", "17"]), message(b'H', &[0, 0, 0]), copied(b"nbase.tar\0\0")].concat();
        for (path, body) in files {
            out.extend(copied(&[&b"d"[..], &header(path, body.len())].concat()));
            let padded = [body, &vec![0; body.len().next_multiple_of(512) - body.len()][..]].concat();
            out.extend(copied(&[&b"d"[..], &padded].concat()));
        }
        out.extend([copied(b"m"), copied(&[b"d", manifest.as_bytes()].concat()), message(b'c', b"")].concat());
        out.extend([result(&[STOP, "1"]), message(b'C', b"BASE_BACKUP\0"), ready].concat());
        return out;
    }
    [message(b'C', b"DONE\0"), ready].concat()
}

/// A tar header as PostgreSQL writes one.
fn header(path: &str, size: usize) -> [u8; 512] {
    let mut block = [0; 512];
    let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, path);
    put(100, "0000600 0000000 0000000 ");
    put(124, &format!("{size:011o} 14000000000 "));
    put(148, "        0");
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}
