//! Authoritative name servers and a caching one that nobody of Muster wrote: BIND, Knot and Unbound, from Debian's
//! packages. Each is started for one test, on a port of its own, and killed with it.

use std::{
    net::{SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

pub const ZONE: &str = "scoring.test";
pub const NAME: &str = "api.scoring.test";
pub const KEY: &str = "muster";
/// In base64, as `tsig-keygen` gives it.
pub const SECRET: &str = "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2U=";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Bind,
    Knot,
}

/// One server that answers for [`ZONE`].
pub struct Authority {
    pub address: SocketAddr,
    process: Child,
    _dir: tempfile::TempDir,
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub fn address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], super::ports::free_port()))
}

/// The program, copied to where no profile of the system's says what it may read.
fn program(name: &str, dir: &Path) -> PathBuf {
    let from = ["/usr/sbin", "/usr/bin", "/usr/local/sbin"].map(|place| Path::new(place).join(name)).into_iter().find(|p| p.exists());
    let from = from.unwrap_or_else(|| panic!("there is no {name} on this machine: run `make deps`"));
    let to = dir.join(name);
    std::fs::copy(from, &to).unwrap();
    to
}

fn start(mut command: Command, dir: &Path, address: SocketAddr) -> Child {
    let log = std::fs::File::create(dir.join("log")).unwrap();
    let mut child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    while std::net::TcpStream::connect(address).is_err() {
        let gone = child.try_wait().unwrap();
        assert!(gone.is_none() && Instant::now() < end, "{gone:?}: {}", std::fs::read_to_string(dir.join("log")).unwrap());
        std::thread::sleep(Duration::from_millis(10));
    }
    child
}

/// Does it know the zone's beginning?
fn answers(address: SocketAddr) -> bool {
    let mut question = vec![0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in ZONE.split('.') {
        question.push(label.len() as u8);
        question.extend_from_slice(label.as_bytes());
    }
    question.extend_from_slice(&[0, 0, 6, 0, 1]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    socket.send_to(&question, address).unwrap();
    let mut answer = [0; 512];
    matches!(socket.recv(&mut answer), Ok(length) if length > 12 && answer[3] % 16 == 0 && answer[7] > 0)
}

fn zone_file(dir: &Path) {
    let text = format!(
        "$ORIGIN {ZONE}.\n$TTL 60\n@ SOA ns1 admin 1 3600 600 86400 5\n@ NS ns1\nns1 A 127.0.0.1\napi 5 A 127.0.1.1\nalias 5 CNAME api\n\
         both 5 A 127.0.1.1\nboth 5 A 127.0.1.2\n"
    );
    std::fs::write(dir.join("zone"), text).unwrap();
}

impl Authority {
    /// The zone's primary; it tells and lets the secondaries copy.
    pub fn primary(kind: Kind, secondaries: &[SocketAddr]) -> Self {
        Self::run(kind, address(), None, secondaries)
    }

    /// Copies the zone from that server.
    pub fn secondary(kind: Kind, address: SocketAddr, primary: SocketAddr) -> Self {
        Self::run(kind, address, Some(primary), &[])
    }

    fn run(kind: Kind, address: SocketAddr, primary: Option<SocketAddr>, secondaries: &[SocketAddr]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        if primary.is_none() {
            zone_file(dir.path());
        }
        let process = match kind {
            Kind::Bind => bind(dir.path(), address, primary, secondaries),
            Kind::Knot => knot(dir.path(), address, primary, secondaries),
        };
        // It accepts connections before it has read the zone.
        while primary.is_none() && !answers(address) {
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { address, process, _dir: dir }
    }

    pub fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([&format!("-{name}"), &self.process.id().to_string()]).status().unwrap().success());
    }
}

fn bind(dir: &Path, address: SocketAddr, primary: Option<SocketAddr>, secondaries: &[SocketAddr]) -> Child {
    let tell: String = secondaries.iter().map(|s| format!("{} port {};", s.ip(), s.port())).collect();
    let (role, rest) = match primary {
        None => ("primary", format!("notify explicit; also-notify {{ {tell} }}; allow-update {{ key \"{KEY}\"; }};")),
        Some(p) => ("secondary", format!("notify no; primaries {{ {} port {}; }}; allow-notify {{ any; }};", p.ip(), p.port())),
    };
    let conf = format!(
        "options {{ directory \"{dir}\"; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; pid-file none; session-keyfile none; \
         recursion no; dnssec-validation no; allow-transfer {{ any; }}; notify-delay 0; notify-rate 1000; serial-query-rate 1000; }};\n\
         controls {{ }};\nkey \"{KEY}\" {{ algorithm hmac-sha256; secret \"{SECRET}\"; }};\n\
         zone \"{ZONE}\" {{ type {role}; file \"zone\"; {rest} }};\n",
        dir = dir.display(),
        port = address.port(),
    );
    std::fs::write(dir.join("named.conf"), conf).unwrap();
    let mut command = Command::new(program("named", dir));
    command.arg("-g").arg("-c").arg(dir.join("named.conf"));
    start(command, dir, address)
}

fn knot(dir: &Path, address: SocketAddr, primary: Option<SocketAddr>, secondaries: &[SocketAddr]) -> Child {
    let at = |a: &SocketAddr| format!("{}@{}", a.ip(), a.port());
    let remotes: String =
        secondaries.iter().chain(&primary).enumerate().map(|(n, a)| format!("  - id: r{n}\n    address: {}\n", at(a))).collect();
    let rest = match primary {
        None => {
            let tell: Vec<String> = (0..secondaries.len()).map(|n| format!("r{n}")).collect();
            let notify = if tell.is_empty() { String::new() } else { format!("    notify: [{}]\n", tell.join(", ")) };
            format!("{notify}    acl: [update, copy]\n")
        }
        Some(_) => "    master: r0\n    acl: [copy, tell, hint]\n".to_owned(),
    };
    let remotes = if remotes.is_empty() { String::new() } else { format!("remote:\n{remotes}") };
    let conf = format!(
        "server:\n  rundir: {dir}\n  listen: {listen}\n  pidfile: {dir}/pid\ndatabase:\n  storage: {dir}/db\n\
         key:\n  - id: {KEY}\n    algorithm: hmac-sha256\n    secret: {SECRET}\n{remotes}\
         acl:\n  - id: update\n    key: {KEY}\n    action: [update, transfer]\n  - id: copy\n    address: 127.0.0.1\n    action: transfer\n  - id: tell\n    address: 127.0.0.1\n    action: notify\n\
         \x20 - id: hint\n    key: {KEY}\n    action: notify\n\
         zone:\n  - domain: {ZONE}\n    storage: {dir}\n    file: zone\n    zonefile-sync: -1\n    journal-content: changes\n{rest}",
        dir = dir.display(),
        listen = at(&address),
    );
    std::fs::create_dir(dir.join("db")).unwrap();
    std::fs::write(dir.join("knot.conf"), conf).unwrap();
    let mut command = Command::new(program("knotd", dir));
    command.arg("-c").arg(dir.join("knot.conf"));
    start(command, dir, address)
}

/// A caching resolver that knows one zone and nothing else.
pub struct Resolver {
    pub address: SocketAddr,
    process: Child,
    _dir: tempfile::TempDir,
}

impl Drop for Resolver {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Resolver {
    /// With more lines for its `server:` section.
    pub fn of(authority: SocketAddr, settings: &[&str]) -> Self {
        let (dir, address) = (tempfile::tempdir().unwrap(), address());
        let more: String = settings.iter().map(|line| format!("  {line}\n")).collect();
        let conf = format!(
            "server:\n  directory: \"\"\n  chroot: \"\"\n  username: \"\"\n  pidfile: \"\"\n  use-syslog: no\n  logfile: \"\"\n  interface: {ip}@{port}\n\
             \x20 access-control: 127.0.0.0/8 allow\n  do-not-query-localhost: no\n  local-zone: \"test.\" nodefault\n  module-config: \"iterator\"\n\
             \x20 cache-max-negative-ttl: 1\n  num-threads: 1\n{more}\
             stub-zone:\n  name: \"{ZONE}\"\n  stub-addr: {aip}@{aport}\nremote-control:\n  control-enable: no\n",
            ip = address.ip(),
            port = address.port(),
            aip = authority.ip(),
            aport = authority.port(),
        );
        std::fs::write(dir.path().join("unbound.conf"), conf).unwrap();
        let mut command = Command::new(program("unbound", dir.path()));
        command.arg("-d").arg("-c").arg(dir.path().join("unbound.conf"));
        let process = start(command, dir.path(), address);
        Self { address, process, _dir: dir }
    }
}
