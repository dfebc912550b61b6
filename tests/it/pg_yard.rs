//! A primary in east, its standby in west and a PgBouncer before them, with the estate that describes them, and what it
//! takes to carry out single actions on them as the engine would.

use crate::pg::{Cluster, Home, Programs, free_port, other_user};
use muster::{
    actions::{contract::*, find},
    model::{effect::*, estate::Estate, node::Node, plan::Scope},
    providers::{clock::SystemClock, world::World},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sqlx::{Connection, Executor, PgConnection, postgres::PgConnectOptions};
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

pub const REWINDABLE: &str = "max_connections=60\nwal_log_hints=on\nfsync=off\n";

pub struct Yard {
    // In this order they end: the pooler, the servers, the directory.
    pooler: Option<Child>,
    pub pooler_port: u16,
    pub east: Cluster,
    pub west: Cluster,
    pub world: Arc<World>,
    pub estate: Arc<Estate>,
    pub scratch: tempfile::TempDir,
    steps: AtomicU64,
    pub home: Home,
}

impl Drop for Yard {
    fn drop(&mut self) {
        if let Some(mut child) = self.pooler.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Yard {
    /// `extra` is merged into the database of the estate.
    pub fn up(settings: &str, extra: Value) -> Self {
        Self::of(Programs::Debian, settings, extra)
    }

    /// The same with servers of either version.
    pub fn of(programs: Programs, settings: &str, extra: Value) -> Self {
        let home = Home::new();
        // Without hints it is one that cannot be rewound: then it has no checksums either.
        let initdb = if settings.contains("wal_log_hints=on") { &[][..] } else { programs.without_checksums() };
        let east = Cluster::named(&home, "east", programs, settings, initdb);
        let roles = "CREATE ROLE muster SUPERUSER LOGIN PASSWORD 'm'; CREATE ROLE repl REPLICATION LOGIN PASSWORD 'r';
                     CREATE ROLE app LOGIN PASSWORD 'a'; CREATE ROLE idle NOLOGIN; CREATE TABLE writes (id bigint PRIMARY KEY, at timestamptz DEFAULT clock_timestamp());
                     GRANT ALL ON writes TO app";
        for role in roles.split(';') {
            east.sql(role.trim());
        }
        let west = east.standby(&home);
        let pooler_port = free_port();
        let pooler = pooler(home.0.path(), pooler_port, east.port);
        let server = |cluster: &Cluster| json!({ "data": cluster.data, "bin": cluster.bin });
        let mut database = json!({
            "engine": "postgres", "user": "muster",
            "instances": {
                "east": { "host": "127.0.0.1", "port": east.port, "server": server(&east) },
                "west": { "host": "127.0.0.1", "port": west.port, "server": server(&west) },
            },
            "replication": { "user": "repl" },
            "poolers": [{ "host": "127.0.0.1", "port": pooler_port, "user": "muster", "database": "orders", "file": home.0.path().join("orders.ini") }],
        });
        merge(&mut database, extra);
        let estate: Estate =
            serde_json::from_value(json!({ "lab": true, "regions": { "east": {}, "west": {} }, "databases": { "orders": database } }))
                .unwrap();
        let estate = Arc::new(estate);
        let world = Arc::new(World::new(estate.clone(), Arc::new(SystemClock::new())));
        let yard = Self {
            pooler: Some(pooler),
            pooler_port,
            east,
            west,
            world,
            estate,
            scratch: tempfile::tempdir().unwrap(),
            steps: AtomicU64::new(0),
            home,
        };
        until("the standby streams", || yard.west.sql("SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'") == "1");
        yard
    }

    /// As somebody would by hand, who has seen that the old one is dead. (A process that has ended and that nobody has taken
    /// notice of keeps its number, and the server will not start over that.)
    pub fn start_by_hand(&self, region: &str) {
        let _ = std::fs::remove_file(self.cluster(region).data.join("postmaster.pid"));
        self.cluster(region).start_again();
    }

    pub fn cluster(&self, region: &str) -> &Cluster {
        if region == "east" { &self.east } else { &self.west }
    }

    /// A context for one step; `permits` is how often it may still ask to write.
    pub fn cx(&self, key: &str, permits: u64) -> WriteCx {
        context(&self.world, &self.estate, self.scratch.path(), key, permits)
    }

    pub fn next(&self, uses: &str) -> WriteCx {
        self.cx(&format!("{uses} s{}", self.steps.fetch_add(1, Ordering::SeqCst)), u64::MAX)
    }

    pub async fn step(&self, uses: &str, with: Value) -> Result<Value, Failure> {
        let cx = self.next(uses);
        let intent = prepare(&cx, uses, &with).await?;
        finish(&cx, uses, &intent).await
    }
    pub async fn done(&self, uses: &str, with: Value) -> Value {
        self.step(uses, with.clone()).await.unwrap_or_else(|f| panic!("{uses} {with}: {}: {f}", f.code))
    }
    pub async fn fails(&self, uses: &str, with: Value) -> Failure {
        match self.step(uses, with.clone()).await {
            Ok(output) => panic!("{uses} {with} did not fail: {output}"),
            Err(failure) => failure,
        }
    }

    /// How many servers accept a write at this moment, each asked directly.
    pub async fn writable(&self) -> Vec<&'static str> {
        let mut found = Vec::new();
        for (name, cluster) in [("east", &self.east), ("west", &self.west)] {
            if let Ok(mut session) = session(cluster.port, "postgres", "postgres").await
                && session
                    .execute("CREATE TEMP TABLE probe (x int); INSERT INTO muster_probe VALUES (1)")
                    .await
                    .is_err_and(|e| e.to_string().contains("does not exist"))
            {
                found.push(name);
            }
        }
        found
    }
}

/// A context for one step in any world.
pub fn context(world: &Arc<World>, estate: &Arc<Estate>, scratch: &Path, key: &str, permits: u64) -> WriteCx {
    let read = ReadCx {
        world: world.clone(),
        estate: estate.clone(),
        run: "0190".into(),
        step: key.split(' ').next_back().unwrap().into(),
        scope: Scope::Drill,
        key: hex::encode(Sha256::digest(key)),
        deadline: Duration::from_secs(60),
        scratch: scratch.to_owned(),
    };
    let left = AtomicU64::new(permits);
    let permit = move || left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
    WriteCx::new(read, world.clone(), Arc::new(permit))
}

pub fn until(what: &str, test: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !test() {
        assert!(Instant::now() < end, "{what} never came about");
        std::thread::sleep(Duration::from_millis(30));
    }
}

pub async fn prepare(cx: &WriteCx, uses: &str, with: &Value) -> Result<Value, Failure> {
    Ok(find(uses).unwrap().prepare(&cx.read, &Node::typed(with.clone())).await.map_err(|r| r.failure)?.intent)
}

pub async fn apply(cx: &WriteCx, uses: &str, intent: &Value) -> Result<Value, Failure> {
    find(uses).unwrap().apply(cx, intent).await.map_err(|error| match error {
        ApplyError::Definite(f) | ApplyError::Retry { failure: f, .. } | ApplyError::Unknown(f) => f,
    })
}

/// Applied, and looked at until it is seen.
pub async fn finish(cx: &WriteCx, uses: &str, intent: &Value) -> Result<Value, Failure> {
    let output = apply(cx, uses, intent).await?;
    // A check has nothing to be looked at afterwards.
    if find(uses).unwrap().spec().effect == Effect::Read { Ok(output) } else { observed(cx, uses, intent).await }
}

pub async fn observed(cx: &WriteCx, uses: &str, intent: &Value) -> Result<Value, Failure> {
    let end = Instant::now() + Duration::from_secs(40);
    let mut last = String::new();
    while Instant::now() < end {
        match find(uses).unwrap().observe(&cx.read, intent).await {
            Seen::Done(output) => return Ok(output),
            Seen::Pending { poll_after_ms, note } => {
                last = note;
                tokio::time::sleep(Duration::from_millis(poll_after_ms)).await;
            }
            Seen::Absent => return Err(Failure::new("absent", "it was not seen")),
            Seen::Differs { found } => return Err(Failure::new("differs", found)),
            Seen::CannotTell { why } => return Err(Failure::new("cannot_tell", why)),
        }
    }
    Err(Failure::new("pending", last))
}

pub async fn undo(cx: &WriteCx, uses: &str, intent: &Value) -> Result<(), Failure> {
    find(uses).unwrap().undo(cx, intent, None).await.map_err(|error| match error {
        ApplyError::Definite(f) | ApplyError::Retry { failure: f, .. } | ApplyError::Unknown(f) => f,
    })
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            from.into_iter().for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value))
        }
        (into, from) => *into = from,
    }
}

/// A session of a client, straight to a server or through a pooler.
pub async fn session(port: u16, user: &str, database: &str) -> sqlx::Result<PgConnection> {
    let options =
        PgConnectOptions::new_without_pgpass().host("127.0.0.1").port(port).username(user).password(&user[..1]).database(database);
    let options = options.extra_float_digits(None).statement_cache_capacity(0);
    let connecting = PgConnection::connect_with(&options);
    tokio::time::timeout(Duration::from_secs(5), connecting).await.map_err(|_| sqlx::Error::PoolTimedOut)?
}

/// PgBouncer refuses root as well.
fn pooler(home: &Path, port: u16, server: u16) -> Child {
    let program: PathBuf =
        ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"].iter().map(PathBuf::from).find(|p| p.exists()).expect("no pgbouncer: make deps");
    let (ini, users, line) = (home.join("pgbouncer.ini"), home.join("users.txt"), home.join("orders.ini"));
    std::fs::write(&line, format!("orders = host=127.0.0.1 port={server} dbname=postgres\n")).unwrap();
    std::fs::write(&users, "\"app\" \"a\"\n\"muster\" \"m\"\n").unwrap();
    let text = format!(
        "[databases]\n%include {}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = trust\n\
         auth_file = {}\nadmin_users = muster\npool_mode = transaction\nlogfile = {}\ndefault_pool_size = 20\nserver_login_retry = 1\n",
        line.display(),
        users.display(),
        home.join("pgbouncer.log").display()
    );
    std::fs::write(&ini, text).unwrap();
    let mut command = Command::new(program);
    command.arg("-q").arg(&ini).current_dir(home).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if let Some((uid, gid)) = other_user() {
        for file in [&ini, &users, &line] {
            std::os::unix::fs::chown(file, Some(uid), Some(gid)).unwrap();
        }
        command.uid(uid).gid(gid);
    }
    let child = command.spawn().unwrap();
    let end = Instant::now() + Duration::from_secs(10);
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(
            Instant::now() < end,
            "pgbouncer does not listen: {}",
            std::fs::read_to_string(home.join("pgbouncer.log")).unwrap_or_default()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    child
}
