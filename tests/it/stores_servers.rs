//! S3 servers that run here: one in this process, as the lab has it, and two that nobody of Muster wrote. Each is
//! started for one test, on ports of its own, and killed with it.

use muster::{
    model::estate::{Aws, AwsCredentials, AwsEndpoints, SecretRef},
    providers::{aws::AwsClients, port::ObjectWrite, store},
};
use std::{
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::net::TcpListener;

pub struct Server {
    aws: Aws,
    process: Option<(Command, Child)>,
    pub dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some((_, process)) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Server {
    fn new(port: u16, process: Option<(Command, Child)>, dir: tempfile::TempDir) -> Self {
        let secret = |name: &str, value: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, value).unwrap();
            SecretRef::File(path)
        };
        let keys = AwsCredentials { access_key_id: secret("id", "test"), secret_access_key: secret("secret", "testtest") };
        let endpoints = AwsEndpoints { s3: Some(format!("http://127.0.0.1:{port}").parse().unwrap()), ..AwsEndpoints::default() };
        let aws = Aws { region: "us-east-1".into(), credentials: Some(keys), endpoints, ..Aws::default() };
        Self { aws, process, dir }
    }

    pub fn url(&self) -> String {
        self.aws.endpoints.s3.as_ref().unwrap().as_str().trim_end_matches('/').to_owned()
    }

    pub fn open(&self, place: &str) -> Arc<dyn ObjectWrite> {
        store::open(place, Some(&self.aws)).unwrap()
    }

    pub fn port(&self) -> u16 {
        self.aws.endpoints.s3.as_ref().unwrap().port().unwrap()
    }

    /// The same by way of another port here, behind which somebody passes it on.
    pub fn open_through(&self, place: &str, port: u16) -> Arc<dyn ObjectWrite> {
        let mut aws = self.aws.clone();
        aws.endpoints.s3 = Some(format!("http://127.0.0.1:{port}").parse().unwrap());
        store::open(place, Some(&aws)).unwrap()
    }

    pub fn clients(&self) -> Arc<AwsClients> {
        Arc::new(AwsClients::new(Some(self.aws.clone())))
    }

    pub async fn bucket(&self, name: &str, locks: bool) {
        let clients = self.clients();
        let make = clients.s3().await.unwrap().write.create_bucket().bucket(name);
        let make = if locks { make.object_lock_enabled_for_bucket(true) } else { make };
        make.send().await.unwrap_or_else(|e| panic!("bucket {name}: {e:?}"));
    }

    /// Killed as by a power cut for the process, and started again as it was, over the same directory.
    pub async fn killed_and_started_again(mut self) -> Self {
        let (command, process) = self.process.as_mut().expect("it is a process");
        let before = process.id();
        process.kill().unwrap();
        process.wait().unwrap();
        *process = command.spawn().unwrap();
        assert_ne!(process.id(), before);
        let port = self.port();
        self.up(port).await
    }

    /// Waits until it answers; when it ends instead, its last words are told.
    async fn up(mut self, port: u16) -> Self {
        let begin = Instant::now();
        let log = self.dir.path().join("log");
        loop {
            let clients = self.clients();
            if TcpStream::connect(("127.0.0.1", port)).is_ok() && clients.s3().await.unwrap().read.list_buckets().send().await.is_ok() {
                return self;
            }
            let ended = self.process.as_mut().is_some_and(|(_, process)| process.try_wait().unwrap().is_some());
            let late = begin.elapsed() > Duration::from_secs(60);
            assert!(!ended && !late, "the server does not answer: {}", std::fs::read_to_string(&log).unwrap_or_default());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// What `scripts/deps.sh` installs.
fn installed(program: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin").join(program);
    assert!(path.exists(), "{} is missing: make deps", path.display());
    path
}

fn start(dir: &Path, mut command: Command) -> (Command, Child) {
    let log = std::fs::File::create(dir.join("log")).unwrap();
    command.current_dir(dir).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    let process = command.spawn().unwrap();
    (command, process)
}

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("muster-s3-").tempdir().unwrap()
}

/// `s3s-fs` behind the lab's own lock around conditional writes.
pub async fn s3s_fs() -> Server {
    let dir = folder();
    let root = dir.path().join("data");
    std::fs::create_dir(&root).unwrap();
    let mut builder = s3s::service::S3ServiceBuilder::new(s3s_fs::FileSystem::new(&root).unwrap());
    builder.set_auth(s3s::auth::SimpleAuth::from_single("test", "testtest"));
    let service = builder.build();
    let one_at_a_time = Arc::new(tokio::sync::Mutex::new(()));
    let answer = move |request: axum::extract::Request| {
        let (service, one_at_a_time) = (service.clone(), Arc::clone(&one_at_a_time));
        async move {
            let conditional = ["if-match", "if-none-match"].iter().any(|name| request.headers().contains_key(*name));
            let _alone =
                if conditional && ["PUT", "POST"].contains(&request.method().as_str()) { Some(one_at_a_time.lock().await) } else { None };
            service.call(request.map(s3s::Body::http_body_unsync)).await.unwrap().map(axum::body::Body::new)
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
    Server::new(port, None, dir).up(port).await
}

pub async fn ministack() -> Server {
    let (dir, port) = (folder(), crate::pg::free_port());
    let mut command = Command::new(installed("python"));
    command.args(["-m", "ministack"]).env("BIND_HOST", "127.0.0.1").env("GATEWAY_PORT", port.to_string()).env("SFTP_ENABLED", "0");
    let process = start(dir.path(), command);
    Server::new(port, Some(process), dir).up(port).await
}

/// Amazon's APIs by the people of moto: RDS, CloudWatch and STS among them, all regions behind one address. State is
/// in memory, nothing takes any time, and no signature is checked.
pub async fn moto() -> Server {
    let (dir, port) = (folder(), crate::pg::free_port());
    let mut command = Command::new(installed("moto_server"));
    command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
    let process = start(dir.path(), command);
    Server::new(port, Some(process), dir).up(port).await
}

pub async fn seaweedfs() -> Server {
    seaweedfs_for(true).await
}

/// One that takes everybody, whatever the signature: what somebody has changed on the way is carried out too.
pub async fn open_seaweedfs() -> Server {
    seaweedfs_for(false).await
}

async fn seaweedfs_for(known: bool) -> Server {
    // Each of its four servers opens the port 10,000 above its own as well, and two SeaweedFS on the same ports would
    // quietly become one.
    let (dir, base) = (folder(), crate::ports::four_ports());
    let identity = r#"{"identities":[{"name":"t","credentials":[{"accessKey":"test","secretKey":"testtest"}],"actions":["Admin","Read","Write","List","Tagging"]}]}"#;
    std::fs::write(dir.path().join("s3.json"), identity).unwrap();
    std::fs::create_dir(dir.path().join("data")).unwrap();
    let mut command = Command::new(installed("weed"));
    command.args(["server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-dir=data", "-master.telemetry=false", "-filer", "-s3"]);
    command.args(["-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=100", "-master.volumeSizeLimitMB=64"]);
    if known {
        command.arg("-s3.config=s3.json");
    }
    for (n, name) in ["s3", "master", "volume", "filer"].iter().enumerate() {
        command.arg(format!("-{name}.port={}", base + n as u16));
    }
    let process = start(dir.path(), command);
    Server::new(base, Some(process), dir).up(base).await
}
