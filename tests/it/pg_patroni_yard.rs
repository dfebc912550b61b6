//! Two regions of a database whose clusters Patroni manages: real Patroni over a real etcd. East has two members, west is
//! a standby cluster of one. With the estate that describes them, and what it takes to carry out single actions on them.

use crate::{
    pg::{Cluster, Home, free_port, other_user},
    pg_load::{Load, Route},
    pg_yard::{context, observed},
};
use muster::{
    actions::contract::WriteCx,
    model::{effect::Failure, estate::Estate},
    providers::{clock::SystemClock, world::World},
};
use serde_json::{Value, json};
use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

pub const PASSWORD: &str = "sesame";

/// One member: its Patroni, and the server that it manages.
pub struct Member {
    pub name: &'static str,
    pub rest: u16,
    pub child: Child,
    pub cluster: Cluster,
}

pub struct Yard {
    pub members: Vec<Member>,
    etcd: Child,
    pub estate: Arc<Estate>,
    pub world: Arc<World>,
    pub scratch: tempfile::TempDir,
    steps: AtomicU64,
    _home: Home,
}

impl Drop for Yard {
    fn drop(&mut self) {
        // Their servers end with `Cluster`, once nobody starts them again.
        for child in self.members.iter_mut().map(|m| &mut m.child).chain([&mut self.etcd]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// As the server's user. Under root the interpreter may lie where that user may not look, so it keeps root's right to
/// read, and nothing else of root.
fn as_server(program: &Path) -> Command {
    let Some((uid, gid)) = other_user() else { return Command::new(program) };
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".into()]);
    command.args(["--inh-caps=-all,+dac_override", "--ambient-caps=+dac_override", "--bounding-set=-all,+dac_override"]);
    command.arg(program);
    command
}

fn spawn(mut command: Command, home: &Path, log: &str) -> Child {
    let log = std::fs::File::create(home.join(log)).unwrap();
    command.current_dir(home).env("HOME", home).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    command.process_group(0);
    command.spawn().unwrap()
}

fn etcd(home: &Path) -> (Child, u16) {
    let program = ["/usr/bin/etcd", "/usr/local/bin/etcd"].iter().map(PathBuf::from).find(|p| p.exists());
    let program = program.expect("no etcd: make deps");
    let (client, peer) = (free_port(), free_port());
    let [client_url, peer_url] = [client, peer].map(|port| format!("http://127.0.0.1:{port}"));
    let mut command = as_server(&program);
    command.arg("--data-dir").arg(home.join("etcd"));
    command.args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url, "--listen-peer-urls", &peer_url]);
    command.args(["--initial-advertise-peer-urls", &peer_url, "--initial-cluster", &format!("default={peer_url}")]);
    (spawn(command, home, "etcd.log"), client)
}

/// The shortest times that Patroni allows.
fn settings(scope: &str, name: &str, ports: (u16, u16, u16), home: &Path, bin: &Path, follows: Option<u16>) -> Value {
    let (etcd, rest, server) = ports;
    let mut dcs = json!({
        "ttl": 20, "loop_wait": 1, "retry_timeout": 3,
        "postgresql": { "use_pg_rewind": true, "use_slots": true, "parameters": {
            "wal_log_hints": "on", "shared_buffers": "16MB", "max_connections": 40, "fsync": "off", "wal_keep_size": "64MB",
            "wal_retrieve_retry_interval": "100ms",
        } },
    });
    if let Some(port) = follows {
        dcs["standby_cluster"] = json!({ "host": "127.0.0.1", "port": port, "create_replica_methods": ["basebackup"] });
    }
    let trust = ["local all all trust", "host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust"];
    let login = json!({ "username": "postgres" });
    json!({
        "scope": scope, "name": name,
        "restapi": { "listen": format!("127.0.0.1:{rest}"), "connect_address": format!("127.0.0.1:{rest}"),
                     "authentication": { "username": "muster", "password": PASSWORD } },
        "etcd3": { "host": format!("127.0.0.1:{etcd}") },
        "bootstrap": { "dcs": dcs, "initdb": [{ "auth": "trust" }, { "username": "postgres" }, "no-sync"] },
        "postgresql": {
            "listen": format!("127.0.0.1:{server}"), "connect_address": format!("127.0.0.1:{server}"),
            "data_dir": home.join(name), "bin_dir": bin, "pgpass": home.join(format!("pgpass-{name}")), "pg_hba": trust,
            "authentication": { "superuser": login, "replication": login, "rewind": login },
            "parameters": { "unix_socket_directories": home },
        },
    })
}

fn start(scope: &str, name: &'static str, etcd: u16, home: &Path, follows: Option<u16>) -> Member {
    let bin = crate::pg::bin().expect("no initdb under /usr/lib/postgresql: make deps");
    let (rest, port) = (free_port(), free_port());
    let file = home.join(format!("{name}.yml"));
    std::fs::write(&file, settings(scope, name, (etcd, rest, port), home, &bin, follows).to_string()).unwrap();
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python");
    let mut command = as_server(&python);
    command.args(["-m", "patroni"]).arg(&file);
    let child = spawn(command, home, &format!("{name}.log"));
    Member { name, rest, child, cluster: Cluster { bin, data: home.join(name), port } }
}

impl Member {
    /// Answers one path of its REST API.
    pub async fn get(&self, path: &str) -> Option<Value> {
        let answer = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(3)).build().unwrap();
        answer.get(format!("http://127.0.0.1:{}/{path}", self.rest)).send().await.ok()?.json().await.ok()
    }

    /// As `patronictl edit-config` does.
    pub async fn configure(&self, change: Value) {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build().unwrap();
        let sent = client.patch(format!("http://127.0.0.1:{}/config", self.rest)).basic_auth("muster", Some(PASSWORD)).json(&change);
        assert!(sent.send().await.unwrap().status().is_success());
    }

    /// Its Patroni alone: the server goes on.
    pub fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap().success());
    }
}

impl Yard {
    pub async fn up() -> Self {
        let home = Home::new();
        let dir = home.0.path().to_owned();
        let (etcd, store) = etcd(&dir);
        let scratch = tempfile::tempdir().unwrap();
        let mut yard = Self {
            members: Vec::new(),
            etcd,
            estate: Arc::default(),
            world: Arc::new(World::new(Arc::default(), Arc::new(SystemClock::new()))),
            scratch,
            steps: AtomicU64::new(0),
            _home: home,
        };
        yard.members.push(start("orders-east", "e1", store, &dir, None));
        yard.eventually("e1 leads", async |y| y.role("e1").await == ("leader".into(), "running".into())).await;
        for text in [
            "CREATE ROLE app LOGIN PASSWORD 'a'",
            "CREATE TABLE writes (id bigint PRIMARY KEY, at timestamptz DEFAULT clock_timestamp())",
            "GRANT ALL ON writes TO app",
        ] {
            yard.member("e1").cluster.sql(text);
        }
        let follows = Some(yard.member("e1").cluster.port);
        yard.members.push(start("orders-east", "e2", store, &dir, None));
        yard.members.push(start("orders-west", "w1", store, &dir, follows));
        yard.eventually("e2 streams", async |y| y.role("e2").await == ("replica".into(), "streaming".into())).await;
        yard.eventually("west is a standby cluster", async |y| y.role("w1").await == ("standby_leader".into(), "streaming".into())).await;
        yard.estate = Arc::new(serde_json::from_value(yard.describe()).unwrap());
        yard.world = Arc::new(World::new(yard.estate.clone(), Arc::new(SystemClock::new())));
        yard
    }

    /// The estate, as a value to be changed.
    pub fn describe(&self) -> Value {
        let secret = self.scratch.path().join("patroni.pw");
        std::fs::write(&secret, PASSWORD).unwrap();
        let url = |name: &str| format!("http://127.0.0.1:{}", self.member(name).rest);
        let region = |names: &[&str]| {
            json!({ "host": "127.0.0.1", "port": self.member(names[0]).cluster.port,
                    "patroni": { "urls": names.iter().map(|n| url(n)).collect::<Vec<_>>(), "user": "muster", "password": { "file": secret } } })
        };
        json!({ "lab": true, "regions": { "east": {}, "west": {} }, "databases": { "orders": {
            "engine": "postgres", "instances": { "east": region(&["e1", "e2"]), "west": region(&["w1"]) } } } })
    }

    pub fn member(&self, name: &str) -> &Member {
        self.members.iter().find(|m| m.name == name).unwrap()
    }

    /// Role and state of a member, as its cluster has them.
    pub async fn role(&self, name: &str) -> (String, String) {
        let cluster = self.member(name).get("cluster").await.unwrap_or_default();
        let found = cluster["members"].as_array().and_then(|all| all.iter().find(|m| m["name"] == name).cloned()).unwrap_or_default();
        let word = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
        (word("role"), word("state"))
    }

    pub async fn eventually(&self, what: &str, test: impl AsyncFn(&Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !test(self).await {
            if Instant::now() > end {
                for member in &self.members {
                    let log = std::fs::read_to_string(self._home.0.path().join(format!("{}.log", member.name))).unwrap_or_default();
                    eprintln!(
                        "{}:\n{}",
                        member.name,
                        log.lines().rev().take(25).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
                    );
                }
                panic!("{what} never came about");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until one member of east leads and the other follows it: their names.
    pub async fn settled(&self, role: &str) -> (&'static str, &'static str) {
        let pairs = [("e1", "e2"), ("e2", "e1")];
        let found = std::sync::Mutex::new(pairs[0]);
        self.eventually(&format!("one is {role}, the other follows"), async |y| {
            for pair in pairs {
                if y.role(pair.0).await.0 == role && y.role(pair.1).await == ("replica".into(), "streaming".into()) {
                    *found.lock().unwrap() = pair;
                    return true;
                }
            }
            false
        })
        .await;
        found.into_inner().unwrap()
    }

    /// Clients of east, whichever member leads there.
    pub fn clients(&self) -> Load {
        let ports = ["e1", "e2"].map(|name| self.member(name).cluster.port).to_vec();
        Load::start(&Route { ports, database: "postgres" }, 4, Duration::from_millis(40))
    }

    pub fn next(&self, uses: &str) -> WriteCx {
        let key = format!("{uses} s{}", self.steps.fetch_add(1, Ordering::SeqCst));
        context(&self.world, &self.estate, self.scratch.path(), &key, u64::MAX)
    }

    /// The same for another estate.
    pub fn of(&self, estate: Value) -> WriteCx {
        let estate: Arc<Estate> = Arc::new(serde_json::from_value(estate).unwrap());
        let world = Arc::new(World::new(estate.clone(), Arc::new(SystemClock::new())));
        context(&world, &estate, self.scratch.path(), "other s", u64::MAX)
    }

    pub async fn done(&self, uses: &str, with: Value) -> Value {
        let cx = self.next(uses);
        let said = |f: Failure| panic!("{uses} {with}: {}: {f}", f.code);
        let intent = crate::pg_yard::prepare(&cx, uses, &with).await.unwrap_or_else(said);
        crate::pg_yard::apply(&cx, uses, &intent).await.unwrap_or_else(said);
        observed(&cx, uses, &intent).await.unwrap_or_else(said)
    }

    /// Why it is refused, with the remedy behind it.
    pub async fn refused(&self, uses: &str, with: Value) -> (String, String) {
        let failure = crate::pg_yard::prepare(&self.next(uses), uses, &with).await.unwrap_err();
        (failure.code.clone(), failure.remedy.unwrap_or_default())
    }
}
